package handler

import (
	"context"
	"errors"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// verifyTimeout is how long the guest may take to show what the spec says.
func (r *run) verifyTimeout() time.Duration {
	if r.spec.Verify == nil {
		return defaultVerify
	}
	return r.spec.Verify.Timeout.Or(defaultVerify)
}

const defaultVerify = 3 * time.Minute

// errLooked ends a look at the guest that found nothing.
var errLooked = errors.New("looked long enough")

// lookUntil looks at the VM until see is satisfied, for verify.timeout at most: after a failed Task for half of what is
// left, too.
func (s *step) lookUntil(ctx context.Context, failed bool, see func(vcapi.VM) bool) error {
	r := s.run
	limit := r.verifyTimeout()
	if due, ok := ctx.Deadline(); ok && failed {
		limit = min(limit, time.Until(due)/2)
	}
	within, cancel := r.clock.within(ctx, limit, errLooked)
	defer cancel()
	_, err := s.shown(ctx, within, func(vm vcapi.VM) (bool, error) { return see(vm), nil })
	return err
}

// nicOf is a NIC as events show it.
func nicOf(e expected, n vcapi.NIC) events.NIC {
	nic := events.NIC{MAC: e.hide(n.MAC), Connected: n.Connected, Addresses: e.hideAll(n.Addresses)}
	for _, a := range n.IPConfig {
		nic.IPConfig = append(nic.IPConfig, events.IPAddress{IPAddress: e.hide(a.IP), PrefixLength: a.Prefix,
			State: a.State})
	}

	return nic
}
