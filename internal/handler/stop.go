package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// stopTime is how long a canceled run waits for what it stopped to stop.
const stopTime = 30 * time.Second

// stop stops, in vCenter, what a canceled run has under way. What cannot be stopped keeps its state and says why.
func (r *run) stop() error {
	s := r.current()
	if s.state == nil || *s.state != events.Running {
		return nil
	}
	r.stopping = true
	ctx, cancel := context.WithTimeout(r.life, stopTime+r.TravelTime+r.VisibilityLag)
	defer cancel()
	switch s.name {
	case "customize":
		c := r.state.Customize
		return r.stopTask(ctx, s, c.Task, &c.Reason, func() error { return r.abort(ctx, s) })
	case "network":
		return r.stopTask(ctx, s, r.state.Network.Task, &r.state.Network.Reason, nil)
	default:
		return r.stopProcess(ctx, s)
	}
}

// stopTask cancels a Task, or where vCenter does not let it be canceled uses the other way; then it waits for the Task's end.
func (r *run) stopTask(ctx context.Context, s *step, id string, reason *string, other func() error) error {
	err := r.insist(ctx, func(gate vcapi.Gate) error { return r.vc.CancelTask(ctx, gate, id) })
	if err != nil && !errors.Is(err, events.ErrFenced) {
		// It may have ended already: by a CancelTask without an answer, or by itself, which of a customization says nothing about the guest.
		t, unread := r.vc.Task(ctx, id)
		if unread == nil && taskEnded(t) && (other == nil || t.Err != nil && t.Err.Name == "RequestCanceled") {
			err = nil
		}
	}
	aborted := err != nil && other != nil
	if aborted {
		err = other()
	}
	if err != nil {
		*reason = fmt.Sprintf("it could not be stopped: %v", err)
		return onlyFenced(err)
	}
	end, err := r.followTask(ctx, s, id, func(vcapi.WatchState) error { return nil })
	switch {
	case err != nil:
		*reason = fmt.Sprintf("it was told to stop and has not ended within %s", stopTime)
		return onlyFenced(err)
	case end.State == "success" && !aborted: // it was quicker
		*s.state = events.Succeeded
	default:
		*s.state = events.Canceled
	}
	return nil
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
			err = r.insist(ctx, func(gate vcapi.Gate) error { return r.vc.DeleteProcess(ctx, gate, r.vm, auth, p.PID) })
		}
		var v *vcapi.Error
		if err != nil && (!errors.As(err, &v) || r.outcome(s, v).code != events.NotFound) { // not found: it has ended
			p.Reason = fmt.Sprintf("it could not be stopped: %v", err)
			return onlyFenced(err)
		}
		p.State = events.Canceled
	}
	return nil
}

// insist repeats a call that does no harm where it comes late or twice, since it names the very Task or process that it ends, until its answer is
// one that will not change.
func (r *run) insist(ctx context.Context, call func(vcapi.Gate) error) error {
	for pause := newBackoff(askPause); ; {
		err := call(r.owned())
		var v *vcapi.Error
		if !errors.As(err, &v) || permanent(err) || errors.Is(err, events.ErrFenced) {
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

// owned is the gate of such a call: it only asks whether the run is still ours.
func (r *run) owned() vcapi.Gate {
	mine, before := r.on, r.under
	return func(ctx context.Context) error { return r.journal.Holds(ctx, r.VCenter, r.vm, mine, before) }
}

// awaitAbort lets an abort come to its end, so that it does not reach into the VM's next run.
func (r *run) awaitAbort() error {
	if r.point.Aborting == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.life, stopTime)
	defer cancel()
	_, err := r.followTask(ctx, r.current(), r.point.Aborting, func(vcapi.WatchState) error { return nil })
	return onlyFenced(err)
}

// onlyFenced keeps of the errors of a stop only the one that ends everything.
func onlyFenced(err error) error {
	if errors.Is(err, events.ErrFenced) {
		return err
	}
	return nil
}
