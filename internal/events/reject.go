package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/schemas"
)

// Refused is a message that is refused, as the stream delivered it.
type Refused struct {
	VCenter string
	VM      string     // empty where the subject names none
	Ref     RequestRef // the message's own source and id, zero where they could not be read
	Attrs   Attributes
	Seq     uint64 // in the requests stream
	Subject string
	Header  nats.Header
	Data    []byte
}

// Reject keeps a refused message as a dead letter, then tells its publisher by a rejected event, both under IDs by which a redelivery does not
// store them twice. It tries until ctx ends. The caller acknowledges the message afterwards.
func (c *Conn) Reject(ctx context.Context, m Refused, why *RejectError) error {
	if why.Code != NothingToCancel { // a cancel that came too late is nothing to look into
		if err := c.publish(ctx, m, "keep a dead letter", deadLetter(m, why)); err != nil {
			return err
		}
	}
	event, err := rejection(m, why, c.mode, time.Now())
	if err != nil {
		return err
	}
	return c.publish(ctx, m, "publish a rejection", event)
}

func (c *Conn) publish(ctx context.Context, m Refused, what string, msg *nats.Msg) error {
	_, err := ask(ctx, c.log, m.VCenter, m.VM, what, func(ctx context.Context) (*jetstream.PubAck, error) {
		ack, err := c.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
		if err != nil {
			return nil, storeError(err)
		}
		return ack, nil
	})
	return err
}

const (
	natsPrefix     = "nats-"
	ownPrefix      = "guestflow-"
	originalPrefix = "Guestflow-Original-"
)

// deadLetter is the message as it came, with why it was refused. Headers that mean something to the server, and those of a dead letter that
// was published again, keep their values under another name. What was refused for a secret is kept without its data.
func deadLetter(m Refused, why *RejectError) *nats.Msg {
	h := nats.Header{}
	for name, values := range m.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, natsPrefix) || strings.HasPrefix(lower, ownPrefix) {
			name = originalPrefix + name
		}
		h[name] = append(h[name], values...)
	}
	h.Set("Guestflow-Code", string(why.Code))
	h.Set("Guestflow-Reason", oneLine(why.text()))
	h.Set("Guestflow-Subject", m.Subject)
	h.Set("Guestflow-Sequence", strconv.FormatUint(m.Seq, 10))
	h.Set(jetstream.MsgIDHeader, fmt.Sprintf("deadletter.%s.%d", m.VCenter, m.Seq))
	data := m.Data
	if why.Withhold {
		sum := sha256.Sum256(data)
		if why.Field != "" {
			h.Set("Guestflow-Path", oneLine(why.Field))
		}
		h.Set("Guestflow-Size", strconv.Itoa(len(data)))
		h.Set("Guestflow-Sha256", hex.EncodeToString(sum[:]))
		data = nil
	}
	return &nats.Msg{Subject: DeadletterSubject(m.VCenter, vmToken(m.VM)), Header: h, Data: data}
}

// rejection is the event that tells a publisher that its message was refused. It is in no VM's journal.
func rejection(m Refused, why *RejectError, mode string, at time.Time) (*nats.Msg, error) {
	run := Run{VCenter: m.VCenter, VM: m.VM, Status: StatusRejected, Error: &Error{
		Code: why.Code, Message: why.text(), Field: why.Field, Retryable: why.Code == Expired,
	}}
	if m.Ref != (RequestRef{}) {
		run.Request = &m.Ref
	}
	data, err := marshal(run)
	if err != nil {
		return nil, err
	}
	h, data, err := encode(outgoing{
		id: fmt.Sprintf("rejected.%d", m.Seq), vcenter: m.VCenter, vm: m.VM, kind: KindRejected, time: at, attrs: m.Attrs,
		schema: schemas.URN(schemas.Run), data: data,
	}, mode)
	if err != nil {
		return nil, err
	}
	h.Set(jetstream.MsgIDHeader, fmt.Sprintf("rejected.%s.%d", m.VCenter, m.Seq))
	return &nats.Msg{Subject: RejectionSubject(m.VCenter, vmToken(m.VM)), Header: h, Data: data}, nil
}

func vmToken(vm string) string {
	if vm == "" {
		return "_"
	}
	return vm
}

// oneLine makes text fit for a header.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
