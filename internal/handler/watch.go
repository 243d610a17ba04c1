package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

func (r *run) readVM(ctx context.Context) (vcapi.VM, error) {
	vm, err := r.vc.VM(ctx, r.vm)
	if err != nil {
		return vm, err
	}
	if was := r.state.InstanceUUID; was != "" && vm.InstanceUUID != "" && was != vm.InstanceUUID {
		s := r.currentStep()
		return vm, &stepError{step: s.name, process: s.process, code: events.NotFound, message: fmt.Sprintf(
			"%s is another VM now (%s, instance UUID %s) than when the run began (%s): vCenter gave its ID again; "+
				"see which VM is meant, then send a new request",
			r.vm, vm.Name, vm.InstanceUUID, was)}
	}

	r.noteVM(vm)
	return vm, nil
}

// shown waits until vCenter shows what fn wants of the VM. Where within, made of ctx, has ended first, one read made
// after that decides; errLooked: that one had no answer of use either.
func (s *step) shown(ctx, within context.Context, fn func(vcapi.VM) (bool, error)) (bool, error) {
	r := s.run
	err := s.watch(within, "", func(w vcapi.WatchState) (bool, error) { return fn(w.VM) })
	if err == nil || within.Err() == nil || ctx.Err() != nil {
		return err == nil, err
	}
	late, cancel := r.clock.within(ctx, overtime, errLooked) // no word about the step's own time
	defer cancel()
	vm, err := retryRead(late, s, r.readVM)
	if err != nil {
		return false, err
	}
	return fn(vm)
}

// watch follows the VM, and a Task where one is named, on the vCenter's one long poll until fn is done or fails. It
// makes no call of its own while the poll is answered. Where it is not, other calls may be: then the same is read, now
// and then.
func (s *step) watch(ctx context.Context, task string, fn func(vcapi.WatchState) (done bool, err error)) error {
	r := s.run
	power := &powerWatch{r: r, s: s, task: task}
	defer power.on()
	within := power.bound(ctx)
	defer func() { power.end(nil) }()
	see := func(w vcapi.WatchState) (bool, error) {
		if w.VMGone {
			return false, &stepError{step: s.name, process: s.process, code: events.NotFound,
				message: fmt.Sprintf("vm %s is no longer in vCenter %s: it was removed, or moved to another vCenter",
					r.vm, r.VCenter)}
		}

		if w.VM.Cards == nil { // the long poll does not carry the VM's hardware
			w.VM.Cards = r.seen.cards
		}
		done, err := fn(w)
		if done || err != nil {
			return done, err
		}
		return false, power.see(ctx, w.VM)
	}

	again := false
	for pause := newPause(askPause); ; {
		down, err := r.poll(within, task, see)
		switch {
		case errors.Is(err, errPowerOff):
			if err := power.decide(ctx); err != nil {
				return err
			}
			within = power.bound(ctx)
			continue
		case err != nil || down == nil:
			return err
		}

		// What the poll says may be from before vCenter came back: one read tells. Where reads are answered and the
		// poll goes on not to be, that is what the run waits for.
		if again {
			if err := r.reportBlocked(events.WaitingVCenterUnavailable, down); err != nil {
				return err
			}
		}

		again = true
		if done, err := s.pollByHand(ctx, task, see); done || err != nil {
			return err
		}
		_ = pause.Wait(within) // the next poll tells what has ended
		if ctx.Err() != nil {
			return r.interrupted(ctx)
		}
	}
}

// poll follows the long poll; down is why it is not answered.
func (r *run) poll(ctx context.Context, task string, see func(vcapi.WatchState) (bool, error)) (down, failed error) {
	err := r.vc.Watch(ctx, r.vm, task, func(w vcapi.WatchState) bool {
		if w.Down {
			if down = w.Err; down == nil {
				down = errPollDown
			}
			return true
		}

		r.vCenterAnswered()
		if r.state.Waiting == events.WaitingVCenterUnavailable {
			r.unblocked(events.WaitingVCenterUnavailable)
		}
		var done bool
		done, failed = see(w)
		return done || failed != nil
	})

	switch {
	case failed != nil:
		return nil, failed
	case errors.Is(context.Cause(ctx), errPowerOff):
		return nil, errPowerOff
	case err != nil && ctx.Err() != nil:
		return nil, r.interrupted(ctx)
	}

	return down, err
}

var errPollDown = errors.New("vCenter does not answer the long poll")

// pollByHand reads once what the long poll would show.
func (s *step) pollByHand(ctx context.Context, task string, see func(vcapi.WatchState) (bool, error)) (bool, error) {
	r := s.run
	w, err := readOnce(ctx, r, true, func(ctx context.Context) (w vcapi.WatchState, err error) {
		w.VM, err = r.readVM(ctx)
		if w.VMGone = gone(err); w.VMGone || err != nil || task == "" {
			return w, ignored(err, w.VMGone)
		}
		t, err := r.vc.Task(ctx, task)
		w.Task, w.TaskGone = &t, gone(err)
		return w, ignored(err, w.TaskGone)
	})

	var v *vcapi.Error
	switch {
	case ctx.Err() != nil:
		return false, r.interrupted(ctx)
	case err == nil:
		r.silentSince = time.Time{}
		r.clock.goOn() // it still counts as one that waits: for the poll
		return see(w)
	case !errors.As(err, &v):
		return false, err
	}

	why := s.absence(ctx, v)
	if why == "" {
		why = events.WaitingVCenterUnavailable
	}
	return false, r.reportBlocked(why, err)
}

// gone reports whether vCenter says that there is no such object.
func gone(err error) bool {
	var v *vcapi.Error
	return errors.As(err, &v) && v.Name == "ManagedObjectNotFound"
}

func ignored(err error, ignore bool) error {
	if ignore {
		return nil
	}
	return err
}

// errPowerOff ends the wait for a Task on a VM that stays powered off.
var errPowerOff = errors.New("the VM is not powered on")

// powerWatch tells at once that a VM is powered off while something is waited for. A Task that vCenter does not end
// then is waited for as long as VMware Tools would be.
type powerWatch struct {
	r      *run
	s      *step
	task   string
	off    bool
	cancel context.CancelFunc
	end    context.CancelCauseFunc
}

// bound is ctx, with errPowerOff as one more end, for as long as nothing decides about that: over all polls, since the
// VM's time goes on between them.
func (p *powerWatch) bound(ctx context.Context) context.Context {
	ctx, p.end = context.WithCancelCause(ctx)
	return ctx
}

// see takes in what vCenter shows.
func (p *powerWatch) see(ctx context.Context, vm vcapi.VM) error {
	err := p.r.powerOf(vm)
	switch {
	case err == nil && !p.off:
		return nil
	case err == nil:
		p.on()
		p.r.unblocked(events.WaitingTools)
		return nil
	case !p.off && p.task != "":
		end := p.end
		limited, cancel := p.r.clock.within(ctx, p.limit(), errPowerOff)
		p.cancel = cancel
		context.AfterFunc(limited, func() {
			if cause := context.Cause(limited); errors.Is(cause, errPowerOff) {
				end(cause)
			}
		})
	}

	if p.off && p.r.state.Waiting == events.WaitingVCenterUnavailable {
		return nil // told already; both are so, and each in turn would be no news
	}
	p.off = true
	return p.r.reportBlocked(events.WaitingTools, err)
}

// on forgets that the VM was off.
func (p *powerWatch) on() {
	p.off = false
	if p.cancel != nil {
		p.cancel()
		p.cancel = nil
	}
}

func (p *powerWatch) limit() time.Duration {
	if p.r.spec == nil {
		return readyDefault
	}
	return p.r.spec.Guest.ReadyTimeout.Or(readyDefault)
}

// decide ends the wait, by one read made after the VM's time was over.
func (p *powerWatch) decide(ctx context.Context) error {
	p.on()
	vm, err := retryRead(ctx, p.s, p.r.readVM)
	if err != nil {
		return err
	}
	if off := p.r.powerOf(vm); off != nil {
		return &stepError{step: p.s.name, process: p.s.process, code: events.PowerState, waiting: events.WaitingTools,
			err: off,
			message: fmt.Sprintf("%v: it has been so for %s (guest.readyTimeout) in the middle of %s", off, p.limit(),
				p.task)}
	}
	return nil
}
