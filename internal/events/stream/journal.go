package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
)

// emptyReads is how often a refused append finds nothing behind the expected event before it believes that this event
// is gone: the reader may lag behind the writer for a moment.
const emptyReads = 4

// Journal reads and appends to the histories of VMs: the events stream, one subject tree per VM. It is safe for
// concurrent use.
type Journal struct {
	store Store
	mode  string
	log   waitLog
}

// NewJournal is the journal in conn's events stream; mode is Structured or Binary.
func NewJournal(conn *Conn, mode string) *Journal {
	return &Journal{store: conn.Store(), mode: mode, log: conn.log}
}

// NewStoreJournal is a journal in any store.
func NewStoreJournal(store Store, mode string, log zerolog.Logger) *Journal {
	return &Journal{store: store, mode: mode, log: waitLog{Logger: log}}
}

// Last is the newest event of the VM, nil where it has none. It is read from the stream's leader; even so a read is not
// linearizable, only Append is. While the stream does not answer it is asked again, until ctx ends. An event that
// cannot be read is an error.
func (j *Journal) Last(ctx context.Context, vcenter, vm string) (*events.Entry, error) {
	stored, err := j.last(ctx, vcenter, vm)
	if err != nil || stored == nil {
		return nil, err
	}
	return readEntry(stored)
}

func (j *Journal) last(ctx context.Context, vcenter, vm string) (*Stored, error) {
	return ask(ctx, j.log, vcenter, vm, "read the VM's last event", func(ctx context.Context) (*Stored, error) {
		return j.store.LastBySubject(ctx, events.History(vcenter, vm))
	})
}

// CompleteSince is from when on the events stream has everything: it was made then, or its max age reaches back to
// there.
func (j *Journal) CompleteSince(ctx context.Context) (time.Time, error) {
	return ask(ctx, j.log, "", "", "look how far the journal reaches back", j.store.CompleteSince)
}

// Runs calls fn with each run.* event of the VM that can be read, oldest first, until fn returns false or the answer
// that comes shows none. Each answer is of a server that has everything before what it shows.
func (j *Journal) Runs(ctx context.Context, vcenter, vm string, fn func(*events.Entry) (more bool)) error {
	for from := uint64(1); ; {
		stored, err := ask(ctx, j.log, vcenter, vm, "read the runs in the VM's journal",
			func(ctx context.Context) (*Stored, error) {
				return j.store.NextBySubject(ctx, events.EventSubject(vcenter, vm, "run.*"), from)
			})
		if err != nil || stored == nil {
			return err
		}
		if e, err := readEntry(stored); err == nil && !fn(e) {
			return nil
		}
		from = stored.Seq + 1
	}
}

func readEntry(s *Stored) (*events.Entry, error) {
	e, err := events.DecodeEvent(s.Header, s.Data)
	if err != nil {
		return nil, unreadable(s.Seq, err)
	}
	return &events.Entry{Seq: s.Seq, MsgID: s.Header.Get(jetstream.MsgIDHeader), At: s.At, Kind: e.Kind, Attrs: e.Attrs,
		Run: e.Run}, nil
}

// Append stores the event k of run as the next one of its VM, after the event with the sequence after (0: the VM has
// none yet), and returns its sequence. run.N numbers it. msgID holds a token of the owner and is never used for other
// content: the server looks for duplicates before it compares sequences, so with an ID that two owners share both are
// told "stored".
//
// An append whose answer is lost, or that the stream cannot take at the moment, is sent again with the same ID until it
// is stored, refused, or ctx ends; after that it is not known whether it was stored, or still will be. ErrFenced:
// another event stands there; ErrForgotten, which is one too: the one at after is gone. That an append succeeded does
// not mean that no other followed: read back before an act.
func (j *Journal) Append(
	ctx context.Context, after uint64, msgID string, k events.Kind, attrs events.Attributes, run *events.Run,
) (seq uint64, err error) {
	m, err := j.message(time.Now(), after, msgID, k, attrs, run)
	if err != nil {
		return 0, err
	}
	w := newWaiter(j.log, run.VCenter, run.VM, "append "+string(k))
	defer w.done()
	fail := func(err error) (uint64, error) {
		return 0, fmt.Errorf("vm %s: append %s after event %d: %w", run.VM, k, after, err)
	}

	for empty := 0; ; {
		ack, err := once(ctx, func(ctx context.Context) (Ack, error) { return j.store.Publish(ctx, m) })
		if err == nil && ack.Sequence > after {
			return ack.Sequence, nil // also for a duplicate: stored at that place, whatever followed it
		}

		var refused *StoreError
		if err != nil && !(errors.As(err, &refused) && refused.proves()) {
			if err := waitToAppend(ctx, w, m, err); err != nil {
				return fail(err)
			}
			continue
		}

		// Refused, or a duplicate of an older event: its ID was used before.
		seq, readErr := j.findAppended(ctx, run, after, msgID, ack, err)
		if readErr != nil {
			return fail(readErr)
		}
		if seq > 0 {
			return seq, nil
		}
		if refused.Code == CodeWrongLastSequence {
			if empty++; empty == emptyReads {
				return fail(fmt.Errorf("%w: the stream no longer has event %d: %w", events.ErrForgotten, after, err))
			}
		}
		if err := backoff.Sleep(ctx, backoff.Jitter(firstRetry)); err != nil { // not known yet, but soon
			return fail(err)
		}
	}
}

// waitToAppend waits until an append that failed with err may be sent again. Its error says why it may not.
func waitToAppend(ctx context.Context, w *waiter, m Message, err error) error {
	if unstorable(err) {
		return fmt.Errorf("%w: it has %d bytes, and NATS refuses it for good (%w): raise the server's "+
			"max_payload to its default of 1 MB, or the stream's max_msg_size",
			events.ErrUnstorable, len(m.Data), err)
	}
	return w.wait(ctx, err)
}

// findAppended looks whether an append that was refused, or that was a duplicate of an older event, is stored all the
// same: then it is the next event behind after, for all that follow stand on it. 0: nothing is stored there, or this
// read is older than the truth. ErrFenced: it cannot be stored any more.
func (j *Journal) findAppended(
	ctx context.Context, run *events.Run, after uint64, msgID string, ack Ack, refusal error,
) (seq uint64, err error) {
	next, err := ask(ctx, j.log, run.VCenter, run.VM, "read the VM's journal",
		func(ctx context.Context) (*Stored, error) {
			return j.store.NextBySubject(ctx, events.History(run.VCenter, run.VM), after+1)
		})
	switch {
	case err != nil:
		return 0, err
	case next != nil && next.Header.Get(jetstream.MsgIDHeader) == msgID:
		return next.Seq, nil
	case refusal == nil:
		return 0, fmt.Errorf("%w: the ID of this append belongs to event %d", events.ErrFenced, ack.Sequence)
	case next != nil:
		return 0, fmt.Errorf("%w: event %d stands there: %w", events.ErrFenced, next.Seq, refusal)
	}
	return 0, nil
}

// unreadable says of a message that no guestflow wrote how the VM gets going again: its journal goes on where it was
// before.
func unreadable(seq uint64, err error) error {
	return fmt.Errorf("event %d of stream %s cannot be read, so guestflow did not write it: see who may "+
		"(docs/operate/nats-permissions.md), and remove it: nats stream rmm %s %d: %w",
		seq, events.EventsStream, events.EventsStream, seq, err)
}

// proves reports whether the refusal is one of the three that call for reading the VM's history again.
func (e *StoreError) proves() bool {
	return e.Code == CodeWrongLastSequence || e.Code == CodeLastSequenceRace || e.Code == CodeIDInProcess
}

func (j *Journal) message(
	at time.Time, after uint64, msgID string, k events.Kind, attrs events.Attributes, run *events.Run,
) (Message, error) {
	h, data, err := events.EncodeEvent(at, k, attrs, run, j.mode)
	if err != nil {
		return Message{}, fmt.Errorf("vm %s: %w", run.VM, err)
	}
	return Message{
		Subject: events.EventSubject(run.VCenter, run.VM, k),
		Header:  appendHeader(h, msgID, after, events.History(run.VCenter, run.VM)),
		Data:    data,
	}, nil
}
