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
	// insistTime is after how long an answer that may change is no longer asked for: with the pause before it that makes three seconds at most.
	insistTime = time.Second
)

// stop stops, in vCenter, what a canceled run has under way. What cannot be stopped keeps its state and says why, in vCenter's words.
func (r *run) stop() error {
	s := r.current()
	if s.state == nil || *s.state != events.Running {
		return nil
	}
	r.stopping = true
	switch s.name {
	case "customize":
		c := r.state.Customize
		return r.stopTask(s, c.Task, &c.Reason, &c.FinishedAt, func(ctx context.Context) error { return r.abort(ctx, s) })
	case "network":
		n := r.state.Network
		return r.stopTask(s, n.Task, &n.Reason, &n.FinishedAt, nil)
	default:
		ctx, cancel := r.toStop()
		defer cancel()
		return r.stopProcess(ctx, s)
	}
}

// toStop is the time of one call that stops something: each has its own, so that what the first one used up is not missing for the next.
func (r *run) toStop() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(r.life, stopTime+r.TravelTime+r.VisibilityLag, errStopTime)
}

// stopTask cancels a Task, or where vCenter does not let it be canceled uses the other way; then it waits for the Task's end.
func (r *run) stopTask(s *step, id string, reason *string, finished **time.Time, other func(context.Context) error) error {
	ctx, cancel := r.toStop()
	defer cancel()
	err := r.insist(ctx, func(gate vcapi.Fence) error { return r.vc.CancelTask(ctx, gate, id) })
	if err != nil && !errors.Is(err, events.ErrFenced) {
		// It may have ended already: by a CancelTask without an answer, or by itself, which of a customization says nothing about the guest.
		t, unread := r.vc.Task(ctx, id)
		if unread == nil && taskEnded(t) && (other == nil || t.Err != nil && t.Err.Name == "RequestCanceled") {
			err = nil
		}
	}
	aborted := err != nil && other != nil && !errors.Is(err, events.ErrFenced)
	if aborted {
		own, done := r.toStop()
		err = other(own)
		done()
	}
	if err != nil {
		*reason = "it could not be stopped: " + r.why(err)
		return onlyFenced(err)
	}
	stopped, done := context.WithTimeoutCause(r.life, stopTime, errStopTime)
	defer done()
	end, err := r.followTask(stopped, s, id, func(vcapi.WatchState) error { return nil })
	switch {
	case err != nil:
		*reason = fmt.Sprintf("it was told to stop and has not ended within %s", stopTime)
		return onlyFenced(err)
	case end.State == "success" && !aborted: // it was quicker
		*s.state = events.Succeeded
	default:
		*s.state = events.Canceled
	}
	endsNow(*s.state, finished)
	return nil
}

// why is an error in vCenter's words, also where the time for a better answer ended.
func (r *run) why(err error) string {
	var f *stepError
	switch {
	case errors.As(err, &f):
		return f.message
	case errors.Is(err, errStopTime) && r.lastErr != nil:
		return fmt.Sprintf("%v: %v", err, r.lastErr)
	}
	return err.Error()
}

// stopProcess deletes the guest process that the run waits for.
func (r *run) stopProcess(ctx context.Context, s *step) error {
	for i := range r.state.Processes {
		p := &r.state.Processes[i]
		if p.Name != s.process {
			continue
		}
		if s.act == nil {
			p.Reason = "it was started elsewhere, and goes on"
			return nil
		}
		asked := &r.asked.Processes[i]
		auth, err := r.processAuth(ctx, asked)
		if err == nil {
			// Its pid may be another's by now, which is not ours to end.
			if shown, unread := r.vc.Process(ctx, r.vm, auth, p.PID); unread == nil && !r.isProcess(asked, p, shown) {
				p.Reason = "its pid belongs to another process now, as far as the guest shows: nothing was stopped"
				p.State = events.Canceled
				return nil
			}
			err = r.insist(ctx, func(gate vcapi.Fence) error { return r.vc.DeleteProcess(ctx, gate, r.vm, auth, p.PID) })
		}
		var v *vcapi.Error
		if err != nil && (!errors.As(err, &v) || r.outcome(s, v).code != events.NotFound) { // not found: it has ended
			p.Reason = fmt.Sprintf("it could not be stopped: %v", err)
			return onlyFenced(err)
		}
		p.State = events.Canceled
		if shown, unread := r.vc.Process(ctx, r.vm, auth, p.PID); unread == nil && r.isProcess(asked, p, shown) {
			p.FinishedAt = shown.Finished // as the guest tells, if it does
		}
	}
	return nil
}

// insist repeats a call that does no harm where it comes late or twice, since it names the very Task or process that it ends, until its answer is
// one that will not change: InvalidState does not, what has ended does not run again.
func (r *run) insist(ctx context.Context, call func(vcapi.Fence) error) error {
	for pause := newBackoff(askPause); ; {
		err := call(r.owned())
		var v *vcapi.Error
		if !errors.As(err, &v) || permanent(err) || v.Sent == vcapi.Refused && v.InvalidState() || errors.Is(err, events.ErrFenced) {
			return err
		}
		if lands := time.Now().Add(r.TravelTime); v.Sent == vcapi.Unknown && lands.After(r.actFrom) {
			r.actFrom = lands // it may still be on its way, also after one that was answered: the run does not end before
		}
		select {
		case <-pause.next():
		case <-ctx.Done():
			return err
		}
	}
}

// owned is the gate of such a call: it only asks whether the run is still ours. A journal that no longer has our last event never tells; the run's next
// event finds that out.
func (r *run) owned() vcapi.Fence {
	mine, before := r.on, r.under
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, r.SendWindow, errLate)
		defer cancel()
		return r.journal.Holds(ctx, r.VCenter, r.vm, mine, before)
	}
}

// awaitAbort lets an abort come to its end, so that it does not reach into the VM's next run.
func (r *run) awaitAbort() error {
	if r.point.Aborting == "" && !r.abortOpen {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(r.life, stopTime, errStopTime)
	defer cancel()
	s := r.current()
	if r.point.Aborting == "" { // of an owner before us
		seen, err := ask(ctx, r, s, func(ctx context.Context) (sighting, error) {
			return r.lookForTask(ctx, "abort", abortMethod, func(t vcapi.Task) { r.point.Aborting = t.ID })
		})
		if err != nil || seen.adopt == nil {
			return onlyFenced(err)
		}
		seen.adopt()
	}
	_, err := r.followTask(ctx, s, r.point.Aborting, func(vcapi.WatchState) error { return nil })
	return onlyFenced(err)
}

// onlyFenced keeps of the errors of a stop only the one that ends everything.
func onlyFenced(err error) error {
	if errors.Is(err, events.ErrFenced) {
		return err
	}
	return nil
}
