package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

const (
	// stopTime is how long a canceled run waits for an answer to what stops it, and then for what it stopped to stop.
	stopTime = 30 * time.Second
	// insistTime is after how long an answer that may change is no longer asked for: with the pause before it that
	// makes three seconds at most.
	insistTime = time.Second
)

// stop stops, in vCenter, what a canceled run has under way. What cannot be stopped keeps its state and says why, in
// vCenter's words.
func (r *run) stop() error {
	s := r.currentStep()
	if s.state == nil || *s.state != events.Running {
		return nil
	}
	r.stopping = true
	if s.stop == nil { // it has nothing under way
		return nil
	}
	return s.stop(s)
}

// toStop is the time of one call that stops something: each has its own, so that what the first one used up is not
// missing for the next.
func (r *run) toStop() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(r.life, stopTime+r.TravelTime+r.VisibilityLag, errStopTime)
}

// reasonFor is an error in vCenter's words, also where the time for a better answer ended.
func (r *run) reasonFor(err error) string {
	var f *stepError
	switch {
	case errors.As(err, &f):
		return f.message
	case errors.Is(err, errStopTime) && r.blocked.by != nil:
		return fmt.Sprintf("%v: %v", err, r.blocked.by)
	}

	return err.Error()
}

// retryUntilFinal repeats a call that does no harm where it comes late or twice, since it names the very Task or
// process that it ends, until its answer is one that will not change: InvalidState does not, what has ended does not
// run again.
func (r *run) retryUntilFinal(ctx context.Context, call func(vcapi.Fence) error) error {
	for pause := newPause(askPause); ; {
		err := call(r.stillOwner())
		var v *vcapi.Error
		if !errors.As(err, &v) || permanent(err) || v.Sent == vcapi.Refused && v.InvalidState() ||
			errors.Is(err, events.ErrFenced) {
			return err
		}

		if lands := time.Now().Add(r.TravelTime); v.Sent == vcapi.Unknown && lands.After(r.owner.notBefore) {
			// It may still be on its way, also after one that was answered: the run does not end before.
			r.owner.notBefore = lands
		}

		if pause.Wait(ctx) != nil {
			return err
		}
	}
}

// stillOwner is the fence of such a call: it only asks whether the run is still ours. A journal that no longer has our
// last event never tells; the run's next event finds that out.
func (r *run) stillOwner() vcapi.Fence {
	mine, before := r.owner.last, r.owner.previous
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, r.SendWindow, errLate)
		defer cancel()
		return r.journal.ConfirmLast(ctx, r.VCenter, r.vm, mine, before)
	}
}

// awaitAbort lets an abort come to its end, so that it does not reach into the VM's next run.
func (r *run) awaitAbort() error {
	if r.point.Aborting == "" && !r.owner.abortInFlight {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(r.life, stopTime, errStopTime)
	defer cancel()
	s := r.currentStep()
	if r.point.Aborting == "" { // of an owner before us
		seen, err := retryRead(ctx, s, func(ctx context.Context) (found, error) {
			return r.findTask(ctx, "abort", abortMethod, func(t vcapi.Task) { r.point.Aborting = t.ID })
		})
		if err != nil || seen.adopt == nil {
			return onlyFenced(err)
		}
		seen.adopt()
	}

	_, err := s.followTask(ctx, r.point.Aborting, func(vcapi.WatchState) error { return nil })
	return onlyFenced(err)
}

// onlyFenced keeps of the errors of a stop only the one that ends everything.
func onlyFenced(err error) error {
	if errors.Is(err, events.ErrFenced) {
		return err
	}
	return nil
}
