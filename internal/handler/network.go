package handler

import (
	"context"
	"errors"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// startNetwork is the act of starting the guest's network: StartGuestNetwork_Task.
func (r *run) startNetwork() *act {
	n := r.state.Network
	a := r.taskAct("network", networkMethod, &n.Task, &n.StartedAt, func(ctx context.Context, gate vcapi.Fence, auth vcapi.GuestAuth) (string, error) {
		return r.vc.StartGuestNetwork(ctx, gate, r.vm, auth)
	})
	a.starting, a.started = events.NetworkStarting, events.NetworkStarted
	login := a.prepare
	a.prepare = func(ctx context.Context) (func(), error) {
		if r.asked.Network.ConnectNICs {
			if err := r.connectNICs(ctx); err != nil {
				return nil, err
			}
		}
		begin, err := login(ctx)
		if err != nil {
			return nil, err
		}
		vm, unseen := askLate(ctx, r, r.current(), r.seenBefore)
		if ctx.Err() != nil {
			return nil, r.interrupted(ctx)
		}
		return func() {
			begin()
			r.noteBefore(before{Other: unseen == nil && !networkUp(vm), Asked: r.point.Asked})
		}, nil
	}
	return a
}

// connectNICs connects the virtual NICs that are not. That may be done again at any time without harm, so it has no intent of its own.
func (r *run) connectNICs(ctx context.Context) error {
	s := r.current()
	for pause := newBackoff(askPause); ; {
		nics, err := ask(ctx, r, s, func(ctx context.Context) (vcapi.NICs, error) { return r.vc.DisconnectedNICs(ctx, r.vm) })
		if err != nil || len(nics.Devices) == 0 {
			return err
		}
		if err := r.mayAct(ctx); err != nil { // that read may have taken long
			return err
		}
		task, err := r.vc.ConnectNICs(r.life, r.owned(), r.vm, nics)
		if err == nil {
			r.newest = task
			var end vcapi.Task
			if end, err = r.followTask(ctx, s, task, func(vcapi.WatchState) error { return nil }); err != nil {
				return err
			}
			err = r.harmless(s, end)
		}
		var failure *stepError
		if again := new(againError); err == nil || errors.Is(err, events.ErrFenced) || errors.As(err, &failure) && !errors.As(err, &again) {
			return err
		}
		var v *vcapi.Error
		if errors.As(err, &v) && v.Sent == vcapi.Unknown { // it may be on its way: until it has landed the run neither ends nor is released
			r.actFrom = time.Now().Add(r.TravelTime + r.VisibilityLag)
		}
		var again *againError
		if errors.As(err, &again) {
			err = again.err
		}
		if err := r.pause(ctx, s, err, pause); err != nil {
			return err
		}
	}
}

// networkStarted waits for the end of the Task. One that was cut off, by VMware Tools that went away, say, may have run: it is not simply done again.
func (r *run) networkStarted(ctx context.Context) error {
	s, n := r.current(), r.state.Network
	task, err := r.followTask(ctx, s, n.Task, func(vcapi.WatchState) error { return nil })
	if err != nil {
		return err
	}
	failure, kind := r.taskFailure(s, task)
	if kind == passes {
		return &againError{err: failure.err}
	}
	if task.CompleteTime != nil {
		r.endedAfter(task.CompleteTime.Sub(task.QueueTime))
	}
	if failure != nil && kind.mayHaveRun() {
		up, err := r.cameUp(ctx, s)
		if err != nil && !errors.Is(err, errLooked) && !errors.Is(err, errStepTime) && !errors.Is(err, errDeadline) { // for want of time a failure that is known is not dropped
			return err
		}
		if failure.message += ": it may have run, and is not repeated"; up {
			failure = nil
		}
	}
	now := stamp(time.Now())
	n.FinishedAt = &now
	return r.complete(events.NetworkCompleted, &n.State, failure)
}

// cameUp looks, after a Task whose error does not report whether it ran, whether the guest's network came up since the call.
func (r *run) cameUp(ctx context.Context, s *step) (up bool, err error) {
	if !r.point.Other || r.asked.Verify != nil && r.asked.Verify.Off {
		return false, nil
	}
	err = r.lookUntil(ctx, s, true, func(vm vcapi.VM) bool {
		up = networkUp(vm)
		return up
	})
	return up, err
}
