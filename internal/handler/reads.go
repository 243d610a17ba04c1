package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// patience is how long the first try of a read may be without an answer: then the run says that it waits, and the next
// ones have all their time.
const patience = 12 * time.Second

// retryRead repeats a read of vCenter until it is answered, the answer is one that will not pass, or ctx ends.
func retryRead[T any](ctx context.Context, s *step, read func(context.Context) (T, error)) (T, error) {
	for pause, tries := newPause(askPause), 1; ; tries++ {
		v, err := readOnce(ctx, s.run, tries == 1, read)
		if err == nil {
			s.run.vCenterAnswered()
			return v, nil
		}

		if err := s.pause(ctx, err, pause); err != nil {
			return v, err
		}
	}
}

func readOnce[T any](ctx context.Context, r *run, first bool, read func(context.Context) (T, error)) (T, error) {
	r.asking = true
	r.callBegins()
	if first {
		short, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
		defer cancel()
		ctx = short
	}

	return read(ctx)
}

// readDecisive makes the one read that decides, such as about a time that is over. Only a vCenter that is away is
// waited for; any other error is its word.
func readDecisive[T any](ctx context.Context, s *step, read func(context.Context) (T, error)) (T, error) {
	for pause, tries := newPause(askPause), 1; ; tries++ {
		v, err := readOnce(ctx, s.run, tries == 1, read)
		var said *vcapi.Error
		if err == nil || ctx.Err() == nil && (!errors.As(err, &said) || !s.run.isAway(ctx, said)) {
			s.run.vCenterAnswered()
			if said != nil && silent(said) && tries == 1 { // vCenter may have come back just before it was asked
				continue
			}
			return v, err
		}

		if err := s.pause(ctx, err, pause); err != nil {
			return v, err
		}
	}
}

// pause waits after an error that will pass, telling why; it fails with what an error that will not pass means, and
// when ctx ends.
func (s *step) pause(ctx context.Context, err error, b *backoff.Backoff) error {
	r := s.run
	if ctx.Err() != nil {
		return r.interrupted(ctx)
	}
	var v *vcapi.Error
	if !errors.As(err, &v) {
		return err // not vCenter's: an ended run, a fenced owner, an unreadable secret
	}
	why := s.absence(ctx, v)
	if why == "" {
		return s.failure(err)
	}
	if err := r.reportBlocked(why, err); err != nil {
		return err
	}
	if b.Wait(ctx) != nil {
		return r.interrupted(ctx)
	}
	return nil
}

// absence is what an error makes the run wait for; nothing, where it will not pass.
func (s *step) absence(ctx context.Context, v *vcapi.Error) events.Waiting {
	r := s.run
	switch {
	case r.isAway(ctx, v):
		return events.WaitingVCenterUnavailable
	case silent(v) && inGuest(v): // it is the guest that hangs
		return events.WaitingTools
	}

	return s.outcome(v).waiting
}

// callBegins notes that a call is about to be made: if vCenter gives it no answer, it is away since now.
func (r *run) callBegins() {
	if r.silentSince.IsZero() {
		r.silentSince = time.Now()
	}
}

// vCenterAnswered notes that vCenter answers.
func (r *run) vCenterAnswered() {
	r.silentSince = time.Time{}
	r.clock.goOn()
	r.telemetry.unblockedBy(events.WaitingVCenterUnavailable)
}

// isAway reports whether vCenter gives no answer of its own; then the steps' clock stands still, since the first call
// that got none. A call to the guest may hang in the guest: that vCenter is away is believed where it does not even
// tell its time.
func (r *run) isAway(ctx context.Context, v *vcapi.Error) bool {
	gone := silent(v)
	if gone && inGuest(v) && v.Sent != vcapi.NotSent {
		once, cancel := context.WithTimeout(ctx, patience)
		_, err := r.vc.Now(once)
		cancel()
		var said *vcapi.Error
		if gone = errors.As(err, &said) && silent(said); !gone {
			_, still := r.clock.stands()
			r.vCenterAnswered()
			return !still.IsZero() // it was away until now: what the guest did not answer is asked again
		}
	}

	if !gone {
		r.vCenterAnswered()
		return false
	}

	since := r.silentSince
	if since.IsZero() {
		since = time.Now()
	}
	r.clock.stop(since)
	return true
}

// silent reports whether an error is no answer of vCenter's own: none at all, that of a proxy before it or of its front
// end, or the refusal of our own login. What is known of a VM or a Task is then from before.
func silent(v *vcapi.Error) bool {
	login := v.Op == "Login" || v.Op == "POST session"
	switch {
	case v.Name == "InvalidLogin", login && v.Class == vcapi.SessionLost:
		return true
	case v.Status == 0:
		return v.Name == "" && v.Class == vcapi.Transient
	case v.FrontEnd():
		return v.Name == "" || !inGuest(v)
	}

	return v.Foreign
}

// inGuest reports whether an error is about a call that vCenter passes on to the guest or its host.
func inGuest(v *vcapi.Error) bool {
	switch v.Op {
	case "guest/customization check", "GET guest/customization", "CustomizeGuest_Task", "StartGuestNetwork_Task",
		"AbortCustomization_Task":
		return true
	}

	return v.Guest
}
