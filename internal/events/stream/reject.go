package stream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

// RefusedMessage is a message that is refused, as the stream delivered it.
type RefusedMessage struct {
	VCenter string
	VM      string            // empty where the subject names none
	Ref     events.RequestRef // the message's own source and id, zero where they could not be read
	Attrs   events.Attributes
	Seq     uint64    // in the requests stream
	At      time.Time // when that stream stored it
	Subject string
	Header  nats.Header
	Data    []byte
}

// msgID is under what ID something of this message is stored once. Its sequence alone would be another message's too,
// once the stream was made anew.
func (m RefusedMessage) msgID(what string) string {
	return fmt.Sprintf("%s.%s.%d.%d", what, m.VCenter, m.Seq, m.At.UnixNano())
}

// errJournalMoved is a refusal that was not stored: the VM's journal has gone on from where it leans on it.
var errJournalMoved = errors.New("the VM's journal has gone on since it was read")

// Reject keeps a refused message as a dead letter, then tells its publisher by an event, both under IDs by which a
// redelivery does not store them twice. It tries until ctx ends. The caller acknowledges the message afterwards. Where
// the refusal depends on what the VM's journal was, and that has gone on since, nothing is told: errJournalMoved.
//
// Until then the message takes one of its vCenter's places in flight. Where nothing can be stored, no run could go on
// either: the message waits, and nothing is lost. Where only dead letters cannot be stored, a message is refused
// without one after a while, and its rejection says so: junk must not keep good requests from their runs, and its
// publisher has it.
func (c *Conn) Reject(ctx context.Context, m RefusedMessage, why *events.RejectError) error {
	why = why.Short()
	if why.Code != events.NothingToCancel { // nobody looks into a cancel that came too late
		rejected, err := c.keepOrRejectWithout(ctx, m, why)
		if rejected || err != nil {
			return err
		}
	}

	event, err := rejection(m, why, c.eventMode, time.Now())
	if err != nil {
		return err
	}
	_, err = ask(ctx, c.log, m.VCenter, m.VM, "publish a rejection",
		func(ctx context.Context) (struct{}, error) { return struct{}{}, c.publish(ctx, event) })
	return err
}

// keepOrRejectWithout tries to keep the dead letter until ctx ends. Where that fails for too long, while events can be
// stored, it rejects the message without.
func (c *Conn) keepOrRejectWithout(
	ctx context.Context, m RefusedMessage, why *events.RejectError,
) (rejected bool, err error) {
	w := newWaiter(c.log, m.VCenter, m.VM, "keep a dead letter")
	defer w.done()

	for {
		err := c.keepDeadLetter(ctx, m, why)
		failing := c.noteDeadLetter(m.VCenter, err != nil)
		if err == nil {
			return false, nil
		}

		if failing > c.patience.deadLetter {
			told := c.rejectWithout(ctx, m, why, err)
			if told == nil || errors.Is(told, errJournalMoved) {
				return true, told
			}
		}
		if err := w.wait(ctx, err); err != nil {
			return false, fmt.Errorf("vm %s: keep a dead letter: %w", m.VM, err)
		}
	}
}

// rejectWithout tells the publisher, with one attempt, that its message is refused and not kept, for keepErr.
func (c *Conn) rejectWithout(ctx context.Context, m RefusedMessage, why *events.RejectError, keepErr error) error {
	without := *why
	without.Message += "; it could not be kept as a dead letter"
	event, err := rejection(m, &without, c.eventMode, time.Now())
	if err == nil {
		err = c.publishOnce(ctx, event)
	}
	if err != nil {
		return err
	}

	if c.keepDeadLetter(ctx, m, why) == nil { // there was room again between the two
		c.noteDeadLetter(m.VCenter, false)
		return nil
	}
	c.log.Error().Err(keepErr).Str("vcenter", m.VCenter).Str("vm", m.VM).Uint64("seq", m.Seq).
		Msg("a refused message is lost: its dead letter cannot be stored. Its publisher was told")
	if c.hooks.NotKept != nil {
		c.hooks.NotKept(m.VCenter)
	}
	return nil
}

// noteDeadLetter notes whether a dead letter of this vCenter could be stored, and returns for how long none could.
func (c *Conn) noteDeadLetter(vcenter string, failed bool) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	since, known := c.notKeptSince[vcenter]
	switch {
	case !failed:
		delete(c.notKeptSince, vcenter)
		return 0
	case !known:
		since = time.Now()
		c.notKeptSince[vcenter] = since
	}
	return time.Since(since)
}

// keepDeadLetter tries once to store the dead letter.
func (c *Conn) keepDeadLetter(ctx context.Context, m RefusedMessage, why *events.RejectError) error {
	err := c.publishOnce(ctx, deadLetter(m, why))
	if tooLarge(err) { // for a server that took it, but not with a few headers more
		without := *why
		without.Withhold = true
		without.Message += "; it is too large to be kept with its data"
		err = c.publishOnce(ctx, deadLetter(m, &without))
	}
	return err
}

func (c *Conn) publishOnce(ctx context.Context, msg *nats.Msg) error {
	_, err := once(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, c.publish(ctx, msg) })
	return err
}

func (c *Conn) publish(ctx context.Context, msg *nats.Msg) error {
	_, err := c.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		return fmt.Errorf("no stream listens on %s: %w", msg.Subject, err)
	}
	var refused *StoreError
	if err = storeError(err); errors.As(err, &refused) && refused.proves() &&
		msg.Header.Get(jetstream.ExpectedLastSubjSeqHeader) != "" {
		return fmt.Errorf("%w: %w", errJournalMoved, err)
	}
	return err
}

// guardRefusal decides about a request that this build cannot read. It may be the request of the run that is under way,
// begun by another version of guestflow: by its identity, or where that cannot be read either. Then it is given back
// for a while. Else it is refused, but only as long as the journal stands where it was read, for that read may be older
// than the truth.
func (c *Conn) guardRefusal(
	ctx context.Context, vcenter, vm string, ref events.RequestRef, why *events.RejectError,
) error {
	if vm == "" {
		return why
	}
	last, err := NewJournal(c, c.eventMode).Last(ctx, vcenter, vm)
	if err != nil {
		return &events.RetryError{After: c.patience.otherVersion, Err: fmt.Errorf("%w; whether its run is "+
			"under way cannot be read: %w", why, err)}
	}

	refusal := *why
	refusal.IfLastSeq = new(uint64)
	if last == nil {
		return &refusal
	}
	*refusal.IfLastSeq = last.Seq

	if !last.Kind.Last() && (ref == (events.RequestRef{}) || last.Run.ID == events.RunID(vcenter, vm, ref)) {
		return &events.RetryError{After: c.patience.otherVersion, Err: fmt.Errorf("its run is under way, begun by "+
			"another version of guestflow: %w", why)}
	}
	return &refusal
}

const (
	// maxHeaders bounds in bytes what is kept of a refused message's headers: the server takes 64 KiB, ours included.
	maxHeaders     = 56 << 10
	natsPrefix     = "nats-"
	ownPrefix      = "guestflow-"
	originalPrefix = "Guestflow-Original-"
	maxDropped     = 8   // names of headers that found no room
	maxHeaderName  = 512 // bytes of such a name
)

// deadLetter is the message as it came, with why it was refused. Headers that mean something to the server, or to its
// clients (they take a message without data and with a Status for a word of the server), and those of a dead letter
// that was published again, keep their values under another name. What was refused for a secret is kept without its
// data.
func deadLetter(m RefusedMessage, why *events.RejectError) *nats.Msg {
	h, room := nats.Header{}, maxHeaders
	bare := why.Withhold || len(m.Data) == 0
	size := func(name string) int {
		n := 0
		for _, v := range m.Header[name] {
			n += len(originalPrefix) + len(name) + len(v) + len(": \r\n")
		}
		return n
	}
	// The smallest first, so that what finds no room is the largest.
	bySize := func(a, b string) int { return cmp.Or(size(a)-size(b), strings.Compare(a, b)) }
	for _, name := range slices.SortedFunc(maps.Keys(m.Header), bySize) {
		if room -= size(name); room < 0 {
			h.Add("Guestflow-Dropped-Header", events.Cut(oneLine(name), maxHeaderName))
			if len(h["Guestflow-Dropped-Header"]) == maxDropped {
				break
			}
			continue
		}
		kept := name
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, natsPrefix) || strings.HasPrefix(lower, ownPrefix) || bare && name == "Status" {
			kept = originalPrefix + name
		}
		h[kept] = append(h[kept], m.Header[name]...)
	}
	h.Set("Guestflow-Code", string(why.Code))
	h.Set("Guestflow-Reason", oneLine(why.Reason()))
	h.Set("Guestflow-Subject", m.Subject)
	h.Set("Guestflow-Sequence", strconv.FormatUint(m.Seq, 10))
	h.Set(jetstream.MsgIDHeader, m.msgID("deadletter"))
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
	return &nats.Msg{Subject: events.DeadletterSubject(m.VCenter, m.VM), Header: h, Data: data}
}

// rejection is the event that tells a publisher that its message was refused. It is in no VM's journal.
func rejection(m RefusedMessage, why *events.RejectError, mode string, at time.Time) (*nats.Msg, error) {
	told := events.Rejection{VCenter: m.VCenter, VM: m.VM, Seq: m.Seq, Ref: m.Ref, Attrs: m.Attrs}
	header, data, err := events.EncodeRejection(told, why, at, mode)
	if err != nil {
		return nil, err
	}
	h := nats.Header(header)
	if why.IfLastSeq != nil { // the server compares, as it does for an append
		h = appendHeader(h, "", *why.IfLastSeq, events.History(m.VCenter, m.VM))
	}
	h.Set(jetstream.MsgIDHeader, m.msgID("rejected"))
	return &nats.Msg{Subject: events.RejectionSubject(m.VCenter, m.VM), Header: h, Data: data}, nil
}

// tooLarge reports whether a message was refused for its size.
func tooLarge(err error) bool {
	var refused *StoreError
	return errors.Is(err, nats.ErrMaxPayload) ||
		errors.As(err, &refused) && (refused.Code == CodeMessageTooLarge || refused.Code == CodeHeadersTooLarge)
}

// oneLine makes text fit for a header.
func oneLine(s string) string { return strings.Join(strings.Fields(events.Clean(s)), " ") }
