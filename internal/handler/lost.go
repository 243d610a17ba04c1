package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// lost is what a run begins with that may have had events before: they have aged out, or the events stream was made
// anew, or lost its end.
type lost struct {
	At time.Time `json:"at"` // when the request was stored: nothing was done for it before
	// All says that the journal does not reach back to there, so that whatever was done has no event. Else its request
	// was delivered before, and its events are there, unless the journal lost them to a power failure.
	All bool `json:"all,omitempty"`
}

const (
	// young is how old a request may be that comes for the first time without a look at how far the journal reaches
	// back.
	young = time.Minute
	// clocksDiffer is how far NATS' clock and ours may differ; clocksApart how far they and vCenter's may have run
	// apart while a request waited for so long that its events are gone.
	clocksDiffer = time.Second
	clocksApart  = 2 * time.Minute
)

// mayHaveBegun reports whether a request without any event may be one whose run began before; nil: surely not. It was
// delivered before, or the journal does not reach back to when it was stored.
func (h *Handler) mayHaveBegun(ctx context.Context, req *events.Request) (*lost, error) {
	if req.Delivered <= 1 && time.Since(req.At) < young {
		return nil, nil
	}
	since, err := h.journal.CompleteSince(ctx)
	if err != nil {
		return nil, err
	}
	all := req.At.Before(since)
	if req.Delivered <= 1 && !all {
		return nil, nil
	}
	return &lost{At: req.At.UTC(), All: all}, nil
}

// errForgotten is why a run whose events may be gone is in doubt.
var errForgotten = errors.New("the events of this run from before are gone, and vCenter does not prove that nothing " +
	"was done")

// checkLostEvents decides, before the first call of a run whose earlier events may be gone, whether it was made before:
// then what is seen is not sure.
func (s *step) checkLostEvents(ctx context.Context, seen *found) error {
	r := s.run
	if r.point.Lost == nil || seen.adopt != nil {
		r.point.Lost = nil // what was found shows how far the run came
		return nil
	}

	nothing, err := retryRead(ctx, s, func(ctx context.Context) (bool, error) { return s.provesNothingDone(ctx) })
	if err != nil {
		return err
	}
	if !nothing {
		seen.sure, r.owner.inFlightErr = false, errForgotten
	}
	r.point.Lost = nil
	return nil
}

// provesNothingDone reports whether vCenter shows no Task of ours on the VM that is newer than the request and that no
// run names; where the whole journal of the run may be gone, whether it proves that there was none: its history reaches
// back behind the request. Of guest processes nothing can be proved: tools forget them.
func (s *step) provesNothingDone(ctx context.Context) (bool, error) {
	r := s.run
	now, err := r.vc.Now(ctx)
	if err != nil {
		return false, err
	}
	since := now.Add(-time.Since(r.point.Lost.At) - clocksDiffer) // by vCenter's clock
	if r.point.Lost.All {
		since = since.Add(-clocksApart)
	}
	tasks, history, err := r.vc.Tasks(ctx, r.vm, since)
	if err != nil {
		return false, err
	}
	older := false
	for _, t := range tasks {
		switch {
		case t.QueueTime.Before(since):
			older = true
		case r.mayBeOurs(t) && !r.point.namedSecrets(t):
			return false, nil
		}
	}

	switch {
	case !r.point.Lost.All:
		return true, nil
	case !s.effect.task || !history:
		return false, nil
	case older:
		return true, nil
	}

	return proof(r.vc.AnyTaskBefore(ctx, since))
}

// mayBeOurs reports whether a Task is, or may be, of a method that a run calls to change the guest.
func (h *Handler) mayBeOurs(t vcapi.Task) bool {
	return slices.ContainsFunc(h.kinds, func(kind stepKind) bool {
		return slices.ContainsFunc(kind.methods, func(method string) bool {
			yes, maybe := madeBy(t, method)
			return yes || maybe
		})
	})
}

// namedSecrets reports whether a run of this VM names the Task.
func (c *checkpoint) namedSecrets(t vcapi.Task) bool {
	other := *c
	other.Baseline = nil
	return other.known(t, c.Instance)
}

// restartJournal begins the VM's journal again, which is gone, with this run as it stands: the events stream was made
// anew, or emptied. Whoever else goes on there was before us, which fences us, or is refused. Who owned the run there
// nobody can tell any more: hence the whole wait of a takeover, before the next call and before a last event.
func (r *run) restartJournal(ctx context.Context, k events.Kind) error {
	r.logger().Warn().Str("event", string(k)).Msg("the VM's journal is gone: this run goes on in a new one")
	r.owner.last, r.owner.previous = events.Mark{}, events.Mark{}
	r.point.Accepted = 0 // that event is gone too
	state, point := r.state, r.point
	r.state.Status, r.state.FinishedAt, r.state.Error, r.state.CanceledBy = events.StatusRunning, nil, nil, nil
	r.point.Doubt = nil
	err := r.append(ctx, events.RunResumed)
	n := r.state.N
	r.state, r.point = state, point
	r.state.N = n
	if err != nil {
		return err
	}
	r.owner.tookOver = true
	r.owner.notBefore = r.afterOthersCalls()
	if !k.Last() {
		return nil
	}
	if err := sleepUntil(ctx, r.owner.notBefore); err != nil {
		return fmt.Errorf("wait until calls of another owner must have landed: %w", err)
	}
	return nil
}
