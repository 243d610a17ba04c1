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

// verifyTimeout is how long the guest may take to show what the spec says.
func (r *run) verifyTimeout() time.Duration {
	if r.asked.Verify == nil {
		return defaultVerify
	}
	return r.asked.Verify.Timeout.Or(defaultVerify)
}

const defaultVerify = 3 * time.Minute

// expected is what the run's spec says that the guest will show; nothing, where one that is stored in vCenter was not read.
func (r *run) expected(ctx context.Context) expected {
	spec := r.spec
	if spec == nil && r.asked != nil && r.asked.Customize != nil {
		spec = r.asked.Customize.Spec
	}
	e := expect(spec, func(t events.TextOrSecret) (string, error) { return r.secrets.text(ctx, t) })
	if r.specGone != "" {
		e.unread = append(e.unread, events.NotCompared{Field: "customize.specName", Reason: r.specGone})
	}
	return e
}

// compare holds what the guest shows against the spec, as far as the request asks for it.
func (r *run) compare(e expected, vm vcapi.VM) *comparison {
	var asked events.VerifySpec
	if r.asked.Verify != nil {
		asked = *r.asked.Verify
	}
	return compare(e, asked, vm, r.state.VMName)
}

// verified puts what the guest shows, and how it compares, into the run's state.
func (r *run) verified(e expected, vm vcapi.VM) {
	v, c := r.state.Verify, r.compare(e, vm)
	v.Mismatches, v.NotCompared = c.mismatches, c.notCompared
	v.HostName, v.NICs, v.Gateways, v.DNS = e.hide(vm.HostName), nil, e.hideAll(vm.Gateways), e.hideAll(vm.DNS)
	for _, n := range c.nics {
		v.NICs = append(v.NICs, nicOf(e, n.NIC))
	}
}

// nicOf is a NIC as events show it.
func nicOf(e expected, n vcapi.NIC) events.NIC {
	nic := events.NIC{MAC: e.hide(n.MAC), Connected: n.Connected, Addresses: e.hideAll(n.Addresses)}
	for _, a := range n.IPConfig {
		nic.IPConfig = append(nic.IPConfig, events.IPAddress{IPAddress: e.hide(a.IP), PrefixLength: a.Prefix, State: a.State})
	}
	return nic
}

// verify waits until the guest shows what the spec says. Success that only a Task reports is what users of every peer complain of most.
func (r *run) verify(ctx context.Context) error {
	s, v := r.current(), r.state.Verify
	if err := r.readSpecSince(ctx, s); err != nil {
		return err
	}
	e := r.expected(ctx)
	if n := r.asked.Network; n != nil && n.ConnectNICs {
		r.cards = nil // they were read before that
	}
	within, cancel := r.verifyTime(ctx)
	defer cancel()
	good, err := r.shown(ctx, within, s, func(vm vcapi.VM) (bool, error) {
		if cardsAreOld(vm) {
			var err error
			if vm, err = ask(within, r, s, r.readVM); err != nil {
				return false, err
			}
		}
		r.verified(e, vm)
		return len(v.Mismatches) == 0, nil
	})
	now := stamp(time.Now())
	v.FinishedAt = &now
	switch {
	case err == nil && good:
		return r.complete(events.VerifyCompleted, &v.State, nil)
	case errors.Is(err, errLooked), errors.Is(err, errStepTime): // not even then could it be read
		return r.complete(events.VerifyCompleted, &v.State,
			r.timeError(events.StepTimeout, s, fmt.Sprintf("what the guest shows could not be read when its time (verify.timeout %s) was over", r.verifyTimeout())))
	case err != nil:
		v.FinishedAt = nil
		return err
	}
	failure := &stepError{step: s.name, code: events.VerifyMismatch, message: fmt.Sprintf(
		"after %s the guest does not show what was asked for: %s", r.verifyTimeout(), strings.Join(v.Mismatches, "; "))}
	failure.message += r.withoutNetwork()
	if r.asked.Customize != nil {
		failure.message += ": see the guest's own log, /var/log/vmware-gosc/instant_clone_customization.log"
	}
	if r.state.Waiting == events.WaitingTools && r.lastErr != nil {
		failure.waiting = events.WaitingTools
		failure.message += fmt.Sprintf(", waiting for %s: %v", failure.waiting, r.lastErr)
	}
	return r.complete(events.VerifyCompleted, &v.State, failure)
}

// cardsAreOld reports whether the VM's hardware has to be read: after a takeover, since an owner before us has read it; and where the guest shows a NIC
// that was not there then.
func cardsAreOld(vm vcapi.VM) bool {
	return vm.Cards == nil || slices.ContainsFunc(vm.NICs, func(n vcapi.NIC) bool {
		return n.Device > 0 && !slices.ContainsFunc(vm.Cards, func(c vcapi.Card) bool { return c.Key == n.Device })
	})
}

// withoutNetwork says what a request that asks for no network step may lack: what a customization sets shows once the guest's network is started, and
// NICs may be off until then.
func (r *run) withoutNetwork() string {
	off := slices.ContainsFunc(r.state.Verify.NICs, func(n events.NIC) bool { return !n.Connected })
	switch {
	case r.asked.Network != nil && (r.asked.Network.ConnectNICs || !off), r.asked.Customize == nil && !off:
		return ""
	case r.asked.Network != nil:
		return `: the request does not ask for NICs to be connected: "network": {"connectNics": true}`
	case off:
		return `: the request asks for no network step: "network": {"connectNics": true} connects NICs and starts the guest's network`
	}
	return `: the request asks for no network step: "network": {} starts the guest's network with what was customized`
}

// errLooked ends a look at the guest that found nothing.
var errLooked = errors.New("looked long enough")
