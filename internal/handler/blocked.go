package handler

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// tellFrom is how long a wait for calls in flight must be to be worth an event.
const tellFrom = time.Second

// blocked is what is known of why a run cannot move.
type blocked struct {
	told []string // the names of the reasons that events have told of the present wait
	by   error    // what the run waited for last
}

// announcement is what events have told of a wait.
type announcement struct {
	why    events.Waiting
	reason *events.WaitReason
	names  []string
}

func (r *run) announced() announcement {
	return announcement{r.state.Waiting, r.state.WaitingFor, r.blocked.told}
}

func (r *run) setAnnounced(w announcement) {
	r.state.Waiting, r.state.WaitingFor, r.blocked.told = w.why, w.reason, w.names
}

// reportBlocked tells that the run cannot move, and why: once per reason, and per name that vCenter gives it.
func (r *run) reportBlocked(why events.Waiting, err error) error {
	r.blocked.by = err
	r.telemetry.blockedBy(why)
	if !r.isNews(why, err) || r.owner.last.Seq == 0 || r.state.N == 0 {
		return nil // told already, or there is no run yet to tell it of
	}
	r.announce(why, err)
	return r.record(events.RunWaiting)
}

// isNews reports whether a wait, or its reason, was not told yet.
func (r *run) isNews(why events.Waiting, err error) bool {
	name := reasonName(err)
	return r.state.Waiting != why || name != "" && !slices.Contains(r.blocked.told, name)
}

// announce puts a wait into the run's state.
func (r *run) announce(why events.Waiting, err error) {
	if r.state.Waiting != why {
		r.blocked.told = nil
	}
	r.blocked.told = append(slices.Clone(r.blocked.told), reasonName(err))
	r.state.Waiting, r.state.WaitingFor = why, reasonOf(err)
}

// unreachable tells, once per absence, that the guest cannot be asked about its process, and why.
func (r *run) unreachable(err error) error {
	r.blocked.by = err
	r.telemetry.blockedBy(events.WaitingTools)
	r.announce(events.WaitingTools, err)
	return r.record(events.ProcessUnreachable)
}

// unblocked ends a wait that no event ends.
func (r *run) unblocked(why events.Waiting) {
	r.telemetry.unblockedBy(why)
	if r.state.Waiting == why {
		r.setAnnounced(announcement{})
	}
}

func reasonOf(err error) *events.WaitReason {
	if err == nil {
		return nil
	}
	reason := &events.WaitReason{Message: err.Error()}
	var v *vcapi.Error
	if errors.As(err, &v) {
		reason.VSphere = vsphereOf(v)
	}
	return reason
}

// reasonName is by what one reason is told from another; its words may change each time.
func reasonName(err error) string {
	var v *vcapi.Error
	var off *powerError
	switch {
	case errors.As(err, &v) && silent(v) && v.Name == "":
		return ""
	case errors.As(err, &v):
		return fmt.Sprintf("%s %d", v.Name, v.Status)
	case errors.As(err, &off):
		return off.state
	}

	return ""
}

// powerError is a VM that is not powered on.
type powerError struct{ vm, state string }

func (e *powerError) Error() string {
	return fmt.Sprintf("vm %s is %s: power it on", e.vm, e.state)
}

// powerOf is why nothing can happen in a VM's guest; nil where it is powered on, or does not say.
func (r *run) powerOf(vm vcapi.VM) error {
	if vm.PowerState == "" || vm.PowerState == poweredOn {
		return nil
	}
	return &powerError{r.vm, vm.PowerState}
}

// unblocks reports whether an event tells that the run waits no longer. One that changes its owner does not where
// vCenter is away: the next owner must know. Neither does the progress of a Task whose VM is off, nor an intent.
func (r *run) unblocks(k events.Kind) bool {
	switch k {
	case events.RunWaiting, events.ProcessUnreachable:
		return false
	case events.RunReleased, events.RunResumed:
		_, still := r.clock.stands()
		return still.IsZero()
	case events.CustomizeProgressed:
		return r.telemetry.blocked != events.WaitingTools
	case events.CustomizeStarting, events.CustomizeAborting, events.NetworkStarting, events.ProcessStarting:
		// An intent moves nothing yet: what turned the call before away may turn this one away too.
		return r.telemetry.blocked != events.WaitingResourceBusy && r.telemetry.blocked != events.WaitingGuestLogin &&
			r.telemetry.blocked != events.WaitingTools
	}
	return true
}
