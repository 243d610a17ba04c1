package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/guestflow/guestflow/internal/events"
)

// HandleCancel holds a cancel until the run that it names has ended: the run's owner looks for it in the stream before the run is accepted and before each
// intent, and hears of it at once. A cancel whose run is unknown or ended is refused. The answer tells what becomes of the message, as with Handle.
func (h *Handler) HandleCancel(ctx context.Context, c *events.Cancel) error {
	wake, stop := h.line.Wake(c.VCenter, c.VM)
	defer stop()
	held, gone := false, 0
	for pause := newBackoff(turnPause); ; {
		// The queue first: a run that ends between the two reads is then in the journal.
		queued, err := h.line.Requests(ctx, c.VCenter, c.VM)
		if err != nil {
			return h.givenBack(ctx, err)
		}
		last, err := h.journal.Last(ctx, c.VCenter, c.VM)
		if err != nil {
			return h.givenBack(ctx, err)
		}
		inQueue := slices.ContainsFunc(queued, func(q events.Queued) bool { return q.Run == c.Run })
		where, err := standing(last, c)
		switch {
		case err != nil:
			return &events.RetryError{After: unknownVersionDelay, Err: err}
		case where == byThis, where == ended && held:
			return nil // its own last event has told how the run ended
		case where == unheardOf && !inQueue && held && gone < turnGoneReads:
			gone++ // refused when its turn came, or purged, if that is no stale read
		case where == ended, where == unheardOf && !inQueue:
			return &events.RejectError{Code: events.NothingToCancel, Message: fmt.Sprintf(
				"no run of vm %s for source %q, id %q is queued or running: it has ended, or the request was never taken", c.VM, c.Request.Source, c.Request.ID)}
		case where == running && !inQueue:
			// An orphan, if that is no stale read: nobody else may come and close it.
			if gone++; gone >= turnGoneReads {
				point, err := readCheckpoint(last)
				if err == nil {
					err = h.closeOrphan(ctx, last, point)
				}
				if err != nil {
					return h.givenBack(ctx, err)
				}
				continue
			}
		default:
			gone = 0
		}
		held = held || inQueue || where == running
		select {
		case <-wake:
			pause.reset()
		case <-pause.next():
		case <-ctx.Done():
			return events.ErrReleased
		}
	}
}

// Where a run stands that a cancel names.
type standingAt int

const (
	unheardOf standingAt = iota
	running
	ended
	byThis // ended, by this very cancel
)

func standing(last *events.Entry, c *events.Cancel) (standingAt, error) {
	if last == nil {
		return unheardOf, nil
	}
	point, err := readCheckpoint(last)
	if err != nil {
		return unheardOf, err
	}
	switch past, ok := point.past(c.Run); {
	case ok && past.Canceled != nil && *past.Canceled == c.Ref:
		return byThis, nil
	case ok:
		return ended, nil
	case last.Run.Run != c.Run:
		return unheardOf, nil
	case !last.Kind.Last():
		return running, nil
	case last.Run.CanceledBy != nil && last.Run.CanceledBy.Source == c.Ref.Source && last.Run.CanceledBy.ID == c.Ref.ID:
		return byThis, nil
	}
	return ended, nil
}

// Sweep closes the runs whose requests have left the stream before they ended: nobody will be handed them again. vms are those that may have one.
func (h *Handler) Sweep(ctx context.Context, vms []string) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(sweepAtOnce) // each waits until the calls of the run's last owner must show
	for _, vm := range vms {
		group.Go(func() error { return h.sweep(ctx, vm) })
	}
	return group.Wait()
}

const sweepAtOnce = 32

func (h *Handler) sweep(ctx context.Context, vm string) error {
	for gone := 0; ; {
		queued, err := h.line.Requests(ctx, h.VCenter, vm)
		if err != nil {
			return err
		}
		last, err := h.journal.Last(ctx, h.VCenter, vm)
		if err != nil {
			return err
		}
		if last == nil || last.Kind.Last() || slices.ContainsFunc(queued, func(q events.Queued) bool { return q.Run == last.Run.Run }) {
			return nil
		}
		point, err := readCheckpoint(last)
		if err != nil {
			h.log.Error().Err(err).Str("vm", vm).Msg("an unfinished run was written by another version of guestflow: left as it is")
			return nil
		}
		// Believed when it repeats itself: the run may be ending at this moment, its request already acknowledged.
		if gone++; gone < turnGoneReads {
			if err := sleepFor(ctx, turnPause); err != nil {
				return err
			}
			continue
		}
		if err := h.closeOrphan(ctx, last, point); err != nil && !errors.Is(err, events.ErrFenced) {
			return err
		}
		return nil
	}
}
