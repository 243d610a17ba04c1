package handler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/guestflow/guestflow/internal/events"
)

// HandleCancel holds a cancel until the run that it names has ended: the run's owner looks for it in the stream before
// the run is accepted and before each intent, and hears of it at once. A cancel whose run is unknown or ended is
// refused. The answer tells what becomes of the message, as with Handle.
func (h *Handler) HandleCancel(ctx context.Context, c *events.Cancel) error {
	wake, stop := h.queue.Wake(c.VCenter, c.VM)
	defer stop()
	held := false
	var unseen time.Time // since when its run is not seen any more
	for pause := newPause(turnPause); ; {
		// The queue first: a run that ends between the two reads is then in the journal.
		queue, err := h.queue.Unfinished(ctx, c.VCenter, c.VM)
		if err != nil {
			return h.releaseIfStopping(ctx, err)
		}
		last, err := h.journal.Last(ctx, c.VCenter, c.VM)
		if err != nil {
			return h.releaseIfStopping(ctx, err)
		}
		where, err := standing(last, c)
		if err != nil {
			return &events.RetryError{After: unknownVersionDelay, Err: err}
		}
		inQueue := queue.MayHold(c.RunID)
		if inQueue || where == running {
			held, unseen = true, time.Time{}
		} else if unseen.IsZero() {
			unseen = time.Now()
		}

		// A run that was seen and is not any more is most likely in a journal that this answer is older than. Who is
		// handed the cancel after a refusal that the journal does not take would not know that it was held.
		if !held || where != runUnknown || time.Since(unseen) > unseenFor {
			answered, err := h.answerCancel(ctx, c, queue, last, where, held && where == ended)
			if answered || err != nil {
				return err
			}
		}

		if pause.WaitOrWake(ctx, wake) != nil {
			return events.ErrReleased
		}
	}
}

// unseenFor is how long a run that was seen may be missing from the journal that is shown: longer than a leader that
// was deposed goes on answering.
const unseenFor = 15 * time.Second

// answerCancel reports whether a cancel is done with, and how; where it is not, its run goes on, or what was read is
// older than the truth. over: its run has ended while it was held, and its own last event has told how.
func (h *Handler) answerCancel(ctx context.Context, c *events.Cancel, queue events.VMQueue, last *events.Entry,
	where standingAt, over bool) (bool, error) {
	switch {
	case where == endedByThis, over:
		return true, nil
	case where == ended:
		return true, nothingToCancel(c, nil)
	case queue.MayHold(c.RunID):
		return false, nil
	case !queue.HasSeen(c.Place()):
		// The answers have not come as far as this cancel: its request may be in the stream. Unless it is this cancel
		// that is gone: somebody answered it.
		gone, err := h.queue.Gone(ctx, c.VCenter, c.VM, c.Place())
		if err == nil && gone {
			err = fmt.Errorf("cancel %d for vm %s has left the stream: %w", c.Seq, c.VM, events.ErrFenced)
		}
		return false, h.releaseIfStopping(ctx, err)
	case where == runUnknown:
		return true, nothingToCancel(c, lastSeqOf(last))
	}

	// An orphan, if its request has left the stream: nobody else may come and close it.
	point, err := readCheckpoint(last)
	if err != nil {
		return false, err
	}
	gone, err := h.queue.Gone(ctx, c.VCenter, c.VM, point.place(last))
	if err == nil && gone {
		// The read was older than the run's end.
		if err = h.closeOrphan(ctx, last, point); errors.Is(err, events.ErrFenced) {
			err = nil
		}
	}

	return false, h.releaseIfStopping(ctx, err)
}

// nothingToCancel refuses a cancel whose run is not under way. Where that is what the journal does not show, as it
// stands at an event, the refusal leans on it: if it has gone on since, the refusal is not stored, and the cancel is
// looked at again.
func nothingToCancel(c *events.Cancel, standing *uint64) error {
	return &events.RejectError{Code: events.NothingToCancel, IfLastSeq: standing, Message: fmt.Sprintf(
		"no run of vm %s for source %q, id %q is queued or running: it has ended, or the request was never taken", c.VM,
		c.Request.Source, c.Request.ID)}
}

// lastSeqOf is the sequence of the VM's last event, on which a refusal leans; 0 where it has none.
func lastSeqOf(last *events.Entry) *uint64 {
	var seq uint64
	if last != nil {
		seq = last.Seq
	}
	return &seq
}

// Where a run stands that a cancel names.
type standingAt int

const (
	runUnknown standingAt = iota
	running
	ended
	endedByThis // ended, by this very cancel
)

func standing(last *events.Entry, c *events.Cancel) (standingAt, error) {
	if last == nil {
		return runUnknown, nil
	}
	point, err := readCheckpoint(last)
	if err != nil {
		return runUnknown, err
	}
	switch past, ok := point.past(c.RunID); {
	case ok && past.Canceled != nil && *past.Canceled == c.Ref:
		return endedByThis, nil
	case ok:
		return ended, nil
	case last.Run.ID != c.RunID:
		return runUnknown, nil
	case !last.Kind.Last():
		return running, nil
	case last.Run.CanceledBy != nil && last.Run.CanceledBy.Source == c.Ref.Source && last.Run.CanceledBy.ID == c.Ref.ID:
		return endedByThis, nil
	}

	return ended, nil
}

// Sweep closes the runs whose requests have left the stream before they ended: nobody will be handed them again. vms
// are those that may have one. Where it cannot be told yet whether a request has left, it is looked at again, more and
// more rarely, until ctx ends.
func (h *Handler) Sweep(ctx context.Context, vms []string) error {
	for pause := newPause(sweepPause); len(vms) > 0; {
		open, err := h.sweepOnce(ctx, vms)
		if err != nil {
			return err
		}
		if vms = open; len(vms) == 0 {
			return nil
		}
		if pause.Wait(ctx) != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

const (
	sweepAtOnce = 32
	sweepPause  = 100 * time.Millisecond
)

// sweepOnce looks at each VM once, and returns those of which nothing could be told. One that fails is no matter of the
// others: it is left to who needs it, and to the next sweep.
func (h *Handler) sweepOnce(ctx context.Context, vms []string) (open []string, err error) {
	var group errgroup.Group
	group.SetLimit(sweepAtOnce) // each waits until the calls of the run's last owner must show
	var mu sync.Mutex
	for _, vm := range vms {
		group.Go(func() error {
			told, failed := h.sweep(ctx, vm)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case failed != nil && ctx.Err() != nil:
				err = failed
			case failed != nil:
				h.log.Error().Err(failed).Str("vm", vm).Msg("whether its last run is an orphan could not be told")
			case !told:
				open = append(open, vm)
			}
			return nil
		})
	}

	_ = group.Wait() // each says by itself what went wrong
	return open, err
}

// sweep closes a VM's run, if it is an orphan, and reports whether it could be told.
func (h *Handler) sweep(ctx context.Context, vm string) (told bool, err error) {
	queue, err := h.queue.Unfinished(ctx, h.VCenter, vm)
	if err != nil {
		return false, err
	}
	last, err := h.journal.Last(ctx, h.VCenter, vm)
	if err != nil {
		return false, err
	}
	if last == nil || last.Kind.Last() || queue.MayHold(last.Run.ID) {
		return true, nil
	}
	point, err := readCheckpoint(last)
	if err != nil {
		h.log.Error().Err(err).Str("vm", vm).Msg("an unfinished run was written by another version of guestflow: " +
			"left as it is")
		return true, nil
	}

	gone, err := h.queue.Gone(ctx, h.VCenter, vm, point.place(last))
	if err != nil || !gone {
		return false, err
	}
	if err := h.closeOrphan(ctx, last, point); err != nil && !errors.Is(err, events.ErrFenced) {
		return false, err
	}
	return true, nil
}
