package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// DeadLetter is a message that the service refused, as the stream of dead letters has it.
type DeadLetter struct {
	Seq         uint64 // in the stream of dead letters
	At          time.Time
	VCenter     string
	VM          string // "_" if the message's subject named none
	Code        string
	Reason      string
	Subject     string      // where it was published
	OriginalSeq uint64      // its sequence in the requests stream
	Header      nats.Header // its own headers, under their own names
	Data        []byte
	// WithheldPath is where the data held a secret; "-" if the place is not known. Such a message is kept without its
	// data: Size and SHA256 describe them.
	WithheldPath, Size, SHA256 string
}

const (
	originalPrefix = "Guestflow-Original-"
	ownPrefix      = "guestflow-"
	natsPrefix     = "nats-"
)

// DeadLetters are those of a VM, of a vCenter (vm empty), or all (both empty), oldest first.
func (c *Client) DeadLetters(ctx context.Context, vcenter, vm string) (all []*DeadLetter, err error) {
	filter := events.DeadletterSubject(cmp.Or(vcenter, "*"), cmp.Or(vm, "*"))
	err = c.forEachMessage(ctx, events.DeadlettersStream, filter, func(s *stream.Stored) {
		all = append(all, deadLetter(s))
	})
	return all, err
}

// DeadLetter is the one with this sequence.
func (c *Client) DeadLetter(ctx context.Context, seq uint64) (*DeadLetter, error) {
	s, err := c.getMessage(ctx, events.DeadlettersStream, map[string]any{"seq": seq})
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("there is no dead letter %d: guestflow deadletters list shows those that there are", seq)
	}
	return deadLetter(s), nil
}

func deadLetter(s *stream.Stored) *DeadLetter {
	d := &DeadLetter{
		Seq:     s.Seq,
		At:      s.At,
		Code:    s.Header.Get("Guestflow-Code"),
		Reason:  s.Header.Get("Guestflow-Reason"),
		Subject: s.Header.Get("Guestflow-Subject"),
		Header:  nats.Header{},
		Data:    s.Data,
	}
	if tokens := strings.Split(s.Subject, "."); len(tokens) == 4 { // guestflow.deadletters.<vcenter>.<vm>
		d.VCenter, d.VM = tokens[2], tokens[3]
	}
	d.OriginalSeq, _ = strconv.ParseUint(s.Header.Get("Guestflow-Sequence"), 10, 64) // 0 if it has none
	if d.Size = s.Header.Get("Guestflow-Size"); d.Size != "" {
		d.SHA256, d.WithheldPath = s.Header.Get("Guestflow-Sha256"), "-"
		if at := s.Header.Get("Guestflow-Path"); at != "" {
			d.WithheldPath = at
		}
	}
	for name, values := range s.Header {
		original, renamed := strings.CutPrefix(name, originalPrefix)
		lower := strings.ToLower(name)
		if !renamed && (strings.HasPrefix(lower, ownPrefix) || strings.HasPrefix(lower, natsPrefix)) {
			continue
		}
		d.Header[original] = values
	}
	return d
}

// Replayable returns nil if the letter can be published again, else the reason. An *events.RejectError means that it
// would be refused again.
func (d *DeadLetter) Replayable() error {
	if d.WithheldPath != "" {
		at := ""
		if d.WithheldPath != "-" {
			at = " at " + d.WithheldPath
		}
		return fmt.Errorf(
			"dead letter %d was kept without its data, because they hold a secret%s: it cannot be replayed. "+
				"Its sender has to send a new one, with a secretRef in that place",
			d.Seq,
			at,
		)
	}
	tokens := strings.Split(d.Subject, ".")
	if len(tokens) != 4 || tokens[0] != "guestflow" || tokens[2] != d.VCenter ||
		tokens[1] != "requests" && tokens[1] != "cancels" {
		return fmt.Errorf("dead letter %d names no subject of requests or cancels (Guestflow-Subject is %q): "+
			"it cannot be replayed", d.Seq, d.Subject)
	}
	if tokens[1] == "cancels" {
		_, err := events.DecodeCancel(d.VCenter, d.Subject, d.Header, d.Data)
		return err
	}
	r, err := events.DecodeRequest(d.VCenter, d.Subject, d.Header, d.Data)
	if err == nil && !r.Expires.IsZero() && !r.Expires.After(time.Now()) {
		message := "its expirytime " + r.Expires.Format(time.RFC3339) + " has passed"
		return &events.RejectError{Code: events.Expired, Message: message}
	}
	return err
}

// Replay publishes the letter's original bytes and headers on their original subject, and returns the new sequence.
//
// Headers for the server (Nats-…) are left out: they were about the first publish, and JetStream would take this one
// for a repeat of it, or refuse it.
func (c *Client) Replay(ctx context.Context, d *DeadLetter) (seq uint64, err error) {
	var reject *events.RejectError
	if err := d.Replayable(); err != nil && !errors.As(err, &reject) {
		return 0, err
	}
	h := nats.Header{}
	for name, values := range d.Header {
		if !strings.HasPrefix(strings.ToLower(name), natsPrefix) {
			h[name] = values
		}
	}
	ack, err := c.publish(ctx, d.Subject, h, d.Data)
	if err != nil {
		return 0, c.explain(ctx, &Message{VCenter: d.VCenter, VM: d.VM, Subject: d.Subject, Data: d.Data}, err)
	}
	return ack.Sequence, nil
}

// Drop deletes a dead letter.
func (c *Client) Drop(ctx context.Context, seq uint64) error {
	if _, err := c.DeadLetter(ctx, seq); err != nil {
		return err
	}
	_, err := call(ctx, c, func(ctx context.Context) (struct{}, error) {
		s, err := c.js.Stream(ctx, events.DeadlettersStream)
		if err == nil {
			err = s.DeleteMsg(ctx, seq)
		}
		return struct{}{}, err
	})
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) || errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("dead letter %d was not deleted: %w", seq, err)
	}
	return streamError(events.DeadlettersStream, err)
}
