package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// readyDefault is guest.readyTimeout where the request names none.
const readyDefault = 5 * time.Minute

// ready waits for VMware Tools before a step that speaks to the guest.
func (s *step) ready(ctx context.Context) error {
	r := s.run
	vm, err := retryRead(ctx, s, r.readVM)
	if err != nil {
		return err
	}
	if toolsReady(vm) {
		r.point.Ready = nil
		return nil
	}

	limit := r.spec.Guest.ReadyTimeout.Or(readyDefault)
	if limit == 0 {
		return s.notReady(vm, limit)
	}
	if err := r.reportBlocked(events.WaitingTools, r.noTools(vm)); err != nil {
		return err
	}
	if key := s.name + "/" + s.process; r.point.Ready == nil || r.point.Ready.Step != key {
		begun := r.beginPhase(key)
		r.point.Ready = &begun
	}

	within, cancel := r.clock.until(ctx, r.point.Ready.end(limit), errStepTime)
	defer cancel()
	shown, err := s.shown(ctx, within, func(now vcapi.VM) (bool, error) {
		vm = now
		return toolsReady(now), nil
	})

	if err == nil && !shown || errors.Is(err, errLooked) {
		err = s.notReady(vm, limit)
	}
	if err == nil {
		r.point.Ready = nil
		r.unblocked(events.WaitingTools)
	}
	return err
}

// noTools is why nothing can be asked of the guest.
func (r *run) noTools(vm vcapi.VM) error {
	if err := r.powerOf(vm); err != nil {
		return err
	}
	return fmt.Errorf("VMware Tools are not ready in vm %s: vCenter shows %s", r.vm, orNothing(vm.ToolsRunningStatus))
}

func (s *step) notReady(vm vcapi.VM, limit time.Duration) *stepError {
	r := s.run
	f := &stepError{step: s.name, process: s.process, code: events.ToolsNotRunning, retryable: true,
		waiting: events.WaitingTools,
		message: fmt.Sprintf("VMware Tools did not get ready within %s (guest.readyTimeout): see that they run in "+
			"the guest", limit)}
	if err := r.powerOf(vm); err != nil {
		f.code, f.retryable, f.message = events.PowerState, false, err.Error()
	}
	return f
}

func toolsReady(vm vcapi.VM) bool {
	running := vm.ToolsRunningStatus == "guestToolsRunning" || vm.ToolsRunningStatus == "guestToolsExecutingScripts"
	return running && (vm.GuestOperationsReady == nil || *vm.GuestOperationsReady)
}
