package handler

import (
	"context"
	"errors"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// networkTimeout is network.timeout where the request names none.
const networkTimeout = 5 * time.Minute

// networkMethod makes the Task of the step.
const networkMethod = "StartGuestNetwork_Task"

// networkStep connects the VM's NICs, where the request asks for it, and starts the guest's network.
type networkStep struct {
	*run
	step   *step
	status *events.Network
}

func newNetworkStep(r *run, s *step) {
	n := &networkStep{run: r, step: s, status: r.state.Network}
	s.timeout = r.spec.Network.Timeout.Or(networkTimeout)
	s.effect, s.read = n.effect(), n.read
	s.ended = func(ctx context.Context) (bool, error) { return r.taskOver(ctx, n.status.Task) }
	s.stop = func(s *step) error { return s.stopTask(n.status.Task, &n.status.Reason, nil) }
	s.end, s.fallback = events.NetworkCompleted, events.NetworkFailed

	s.privileges = map[string]string{mayCustomize: "network"}
	if r.spec.Network.ConnectNICs {
		s.privileges[mayConnect], s.privileges[mayEdit] = "network.connectNics", "network.connectNics"
	}
}

// effect starts the guest's network: StartGuestNetwork_Task.
func (n *networkStep) effect() *effect {
	e := n.taskEffect("network", networkMethod, &n.status.Task, &n.status.StartedAt,
		func(ctx context.Context, fence vcapi.Fence, auth vcapi.GuestAuth) (string, error) {
			return n.vc.StartGuestNetwork(ctx, fence, n.vm, auth)
		})
	e.starting, e.started = events.NetworkStarting, events.NetworkStarted
	login := e.prepare
	e.prepare = func(ctx context.Context) (func(), error) {
		if n.spec.Network.ConnectNICs {
			if err := n.connectNICs(ctx); err != nil {
				return nil, err
			}
		}

		begin, err := login(ctx)
		if err != nil {
			return nil, err
		}
		vm, unseen := readDecisive(ctx, n.step, n.readVMBefore)
		if ctx.Err() != nil {
			return nil, n.interrupted(ctx)
		}
		return func() {
			begin()
			n.keepBefore(before{Other: unseen == nil && !networkUp(vm), Asked: n.point.Asked})
		}, nil
	}

	return e
}

// connectNICs connects the virtual NICs that are not. That may be done again at any time without harm, so it has no
// intent of its own.
func (n *networkStep) connectNICs(ctx context.Context) error {
	for pause := newPause(askPause); ; {
		nics, err := retryRead(ctx, n.step, func(ctx context.Context) (vcapi.NICs, error) {
			return n.vc.DisconnectedNICs(ctx, n.vm)
		})
		if err != nil || len(nics.Devices) == 0 {
			return err
		}
		if err := n.mayCall(ctx); err != nil { // that read may have taken long
			return err
		}

		over, err := n.connect(ctx, nics)
		if over {
			return err
		}
		if err := n.step.pause(ctx, err, pause); err != nil {
			return err
		}
	}
}

// connect makes one attempt, and waits for its Task. over: what has come of it will not pass.
func (n *networkStep) connect(ctx context.Context, nics vcapi.NICs) (over bool, err error) {
	task, err := n.vc.ConnectNICs(n.lasting(), n.stillOwner(), n.vm, nics)
	if err == nil {
		n.seen.newestTask = task
		end, unknown := n.step.followTask(ctx, task, func(vcapi.WatchState) error { return nil })
		if unknown != nil {
			return true, unknown
		}
		err = n.step.harmless(end)
	}

	var failure *stepError
	again := new(againError)
	passes := errors.As(err, &again)
	if err == nil || errors.Is(err, events.ErrFenced) || errors.As(err, &failure) && !passes {
		return true, err
	}

	var v *vcapi.Error
	if errors.As(err, &v) && v.Sent == vcapi.Unknown {
		// It may be on its way: until it has landed the run neither ends nor is released.
		n.owner.notBefore = time.Now().Add(n.TravelTime + n.VisibilityLag)
	}

	if passes {
		err = again.err
	}
	return false, err
}

// read waits for the end of the Task. One that was cut off, by VMware Tools that went away, say, may have run: it is
// not simply done again.
func (n *networkStep) read(ctx context.Context, s *step) error {
	task, err := s.followTask(ctx, n.status.Task, func(vcapi.WatchState) error { return nil })
	if err != nil {
		return err
	}
	failure, kind := s.taskFailure(task)
	if kind == passes {
		return &againError{err: failure.err}
	}
	if task.CompleteTime != nil {
		n.telemetry.ranFor(task.CompleteTime.Sub(task.QueueTime))
	}
	if failure != nil && kind.mayHaveRun() {
		up, err := n.cameUp(ctx)
		if err != nil && !isTimeOver(err) { // for want of time a failure that is known is not dropped
			return err
		}
		if failure.message += ": it may have run, and is not repeated"; up {
			failure = nil
		}
	}

	now := stamp(time.Now())
	n.status.FinishedAt = &now
	return s.complete(failure)
}

// cameUp looks, after a Task whose error does not report whether it ran, whether the guest's network came up since the
// call.
func (n *networkStep) cameUp(ctx context.Context) (up bool, err error) {
	if !n.point.Other || n.spec.Verify != nil && n.spec.Verify.Off {
		return false, nil
	}
	err = n.step.lookUntil(ctx, true, func(vm vcapi.VM) bool {
		up = networkUp(vm)
		return up
	})

	return up, err
}
