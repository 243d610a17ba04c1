package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// verifyStep waits until the guest shows what the spec says.
type verifyStep struct {
	*run
	status *events.Verify
}

func newVerifyStep(r *run, s *step) {
	v := &verifyStep{run: r, status: r.state.Verify}
	s.read, s.end = v.read, events.VerifyCompleted
}

// read waits until the guest shows what the spec says. Success that only a Task reports is what users of every peer
// complain of most.
func (v *verifyStep) read(ctx context.Context, s *step) error {
	if err := s.readSpecSince(ctx); err != nil {
		return err
	}
	e := v.expected(ctx)
	if n := v.spec.Network; n != nil && n.ConnectNICs {
		v.seen.cards = nil // they were read before that
	}
	within, cancel := v.time(ctx)
	defer cancel()
	good, err := s.shown(ctx, within, func(vm vcapi.VM) (bool, error) {
		if cardsAreOld(vm) {
			var err error
			if vm, err = retryRead(within, s, v.readVM); err != nil {
				return false, err
			}
		}

		v.compared(e, vm)
		return len(v.status.Mismatches) == 0, nil
	})

	now := stamp(time.Now())
	v.status.FinishedAt = &now
	switch {
	case err == nil && good:
		return s.complete(nil)
	case errors.Is(err, errLooked), errors.Is(err, errStepTime): // not even then could it be read
		return s.complete(s.timeError(events.StepTimeout,
			fmt.Sprintf("what the guest shows could not be read when its time (verify.timeout %s) was over",
				v.verifyTimeout())))
	case err != nil:
		v.status.FinishedAt = nil
		return err
	}

	failure := &stepError{step: s.name, code: events.VerifyMismatch, message: fmt.Sprintf(
		"after %s the guest does not show what was asked for: %s", v.verifyTimeout(),
		strings.Join(v.status.Mismatches, "; "))}
	failure.message += v.withoutNetwork()
	if v.spec.Customize != nil {
		failure.message += ": see the guest's own log, /var/log/vmware-gosc/instant_clone_customization.log"
	}
	if v.state.Waiting == events.WaitingTools && v.blocked.by != nil {
		failure.waiting = events.WaitingTools
		failure.message += fmt.Sprintf(", waiting for %s: %v", failure.waiting, v.blocked.by)
	}

	return s.complete(failure)
}

// time bounds the step, across takeovers too.
func (v *verifyStep) time(ctx context.Context) (context.Context, context.CancelFunc) {
	const key = "verify/"
	if v.point.Step != key || v.point.StepSince == nil {
		begun := v.beginPhase(key)
		v.point.Step, v.point.StepSince, v.point.StepStood = key, &begun.Since, begun.Stood
		v.status.StartedAt = &begun.Since
	}
	return v.clock.until(ctx, phase{Since: *v.point.StepSince, Stood: v.point.StepStood}.end(v.verifyTimeout()),
		errStepTime)
}

// compared puts what the guest shows, and how it compares, into the run's state.
func (v *verifyStep) compared(e expected, vm vcapi.VM) {
	c := v.compare(e, vm)
	v.status.Mismatches, v.status.NotCompared = c.mismatches, c.notCompared
	v.status.HostName, v.status.NICs, v.status.Gateways, v.status.DNS = e.hide(vm.HostName), nil,
		e.hideAll(vm.Gateways), e.hideAll(vm.DNS)
	for _, n := range c.nics {
		v.status.NICs = append(v.status.NICs, nicOf(e, n.NIC))
	}
}

// cardsAreOld reports whether the VM's hardware has to be read: after a takeover, since an owner before us has read it;
// and where the guest shows a NIC that was not there then.
func cardsAreOld(vm vcapi.VM) bool {
	return vm.Cards == nil || slices.ContainsFunc(vm.NICs, func(n vcapi.NIC) bool {
		return n.Device > 0 && !slices.ContainsFunc(vm.Cards, func(c vcapi.Card) bool { return c.Key == n.Device })
	})
}

// withoutNetwork says what a request that asks for no network step may lack: what a customization sets shows once the
// guest's network is started, and NICs may be off until then.
func (v *verifyStep) withoutNetwork() string {
	off := slices.ContainsFunc(v.status.NICs, func(n events.NIC) bool { return !n.Connected })
	switch {
	case v.spec.Network != nil && (v.spec.Network.ConnectNICs || !off), v.spec.Customize == nil && !off:
		return ""
	case v.spec.Network != nil:
		return `: the request does not ask for NICs to be connected: "network": {"connectNics": true}`
	case off:
		return `: the request asks for no network step: ` +
			`"network": {"connectNics": true} connects NICs and starts the guest's network`
	}

	return `: the request asks for no network step: "network": {} starts the guest's network with what was customized`
}

// compare holds what the guest shows against the spec, as far as the request asks for it.
func (v *verifyStep) compare(e expected, vm vcapi.VM) *comparison {
	var asked events.VerifySpec
	if v.spec.Verify != nil {
		asked = *v.spec.Verify
	}
	return compare(e, asked, vm, v.state.VMName)
}
