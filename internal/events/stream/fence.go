package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
)

// ConfirmLast proves, as far as a read can, that the VM's last event is mine and stands on the event before (the zero
// Mark: on none): the read-back right before an act. The message IDs are compared too, since a journal that lost its
// tail uses sequences again. ErrFenced: something else stands there. A read that is older than mine is made again,
// until ctx ends.
func (j *Journal) ConfirmLast(ctx context.Context, vcenter, vm string, mine, before events.Mark) error {
	fail := func(err error) error { return fmt.Errorf("vm %s: read back event %d: %w", vm, mine.Seq, err) }
	for {
		// The one before first: what was proved last is what the act leans on.
		first, err := ask(ctx, j.log, vcenter, vm, "read the VM's journal", func(ctx context.Context) (*Stored, error) {
			return j.store.NextBySubject(ctx, events.History(vcenter, vm), max(before.Seq, 1))
		})
		if err != nil {
			return fail(err)
		}
		last, err := j.last(ctx, vcenter, vm)
		if err != nil {
			return fail(err)
		}
		under := before
		if before == (events.Mark{}) {
			under = mine
		}
		switch {
		case last == nil || first == nil || last.Seq < mine.Seq: // older than my own append
		case markOf(last) != mine:
			return fail(fmt.Errorf("%w: event %d is the last one", events.ErrFenced, last.Seq))
		case markOf(first) != under:
			return fail(fmt.Errorf("%w: it does not stand on event %d as it was", events.ErrFenced, before.Seq))
		default:
			return nil
		}
		if err := backoff.Sleep(ctx, backoff.Jitter(firstRetry)); err != nil {
			return fail(err)
		}
	}
}

// ConfirmNotReplaced fails with ErrFenced where a read shows another event at the sequence of mine: the stream was made
// anew, or lost its end, and uses its sequences again, so an append that is compared by its sequence alone would pass.
// Any other answer is left to the append.
func (j *Journal) ConfirmNotReplaced(ctx context.Context, vcenter, vm string, mine events.Mark) error {
	at, err := ask(ctx, j.log, vcenter, vm, "read the VM's journal", func(ctx context.Context) (*Stored, error) {
		return j.store.NextBySubject(ctx, events.History(vcenter, vm), mine.Seq)
	})
	if err == nil && at != nil && at.Seq == mine.Seq && markOf(at) != mine {
		err = fmt.Errorf("vm %s: %w: event %d is another owner's", vm, events.ErrFenced, mine.Seq)
	}
	return err
}

func markOf(s *Stored) events.Mark {
	return events.Mark{Seq: s.Seq, MsgID: s.Header.Get(jetstream.MsgIDHeader)}
}

// RequestData is the data of the request of a run, as its run.accepted holds it, the event accepted of the stream (0:
// not known, the VM's last one); nil where that event is gone. A read that has not come as far as that event is made
// again.
func (j *Journal) RequestData(ctx context.Context, vcenter, vm, run string, accepted uint64) (json.RawMessage, error) {
	patience, cancel := context.WithTimeout(ctx, requestedTime)
	defer cancel()
	for {
		stored, err := ask(ctx, j.log, vcenter, vm, "read the run's acceptance",
			func(ctx context.Context) (*Stored, error) {
				if accepted == 0 {
					return j.store.LastBySubject(ctx, events.EventSubject(vcenter, vm, events.RunAccepted))
				}
				return j.store.NextBySubject(ctx, events.History(vcenter, vm), accepted)
			})
		switch {
		case err != nil:
			return nil, err
		case stored != nil && (accepted == 0 || stored.Seq == accepted):
			e, err := readEntry(stored)
			if err != nil || e.Run.ID != run {
				return nil, err
			}
			return e.Run.Requested, nil
		case stored != nil, accepted == 0: // it shows what followed: the event itself is gone
			return nil, nil
		}
		if backoff.Sleep(patience, backoff.Jitter(firstRetry)) != nil { // the stream has lost even what followed
			return nil, ctx.Err()
		}
	}
}

const requestedTime = 30 * time.Second
