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

// attempts is what is known of the attempts to make a step's effect.
type attempts struct {
	*run
	step    *step
	effect  *effect
	pause   *backoff.Backoff
	decided bool // the call is repeated, although one before it may have taken effect
	logins  int  // that were made because vCenter had turned a call away
	late    int  // calls that were not sent, since their proof of ownership was too old
}

// do is the only way to change a guest, and there is no shortcut through it: resolve what may be in flight, refuse,
// record the intent, send behind the fence, interpret the answer; until one of these says that it is over.
func (s *step) do(ctx context.Context) error {
	r := s.run
	a := &attempts{run: r, step: s, effect: s.effect, pause: newPause(askPause)}
	a.decided = r.point.Repeat == s.effect.key(s) // perhaps by an owner before us
	for {
		now, over, err := a.resolveInFlight(ctx)
		if over || err != nil {
			return err
		}
		intend, again, err := a.refuse(ctx)
		if err != nil {
			return err
		}
		if again {
			continue
		}
		from, err := a.recordIntent(now, intend)
		if err != nil {
			return err
		}
		err = a.send(from)
		if over, err := a.interpret(ctx, err); over || err != nil {
			return err
		}
	}
}

// resolveInFlight finds what has come of the calls that were made before, by an owner before us or by ourselves, once
// they have landed and must show. over: one has taken effect, and that is recorded. Else it gives what the next intent
// must hold.
func (a *attempts) resolveInFlight(ctx context.Context) (now intent, over bool, err error) {
	if err := a.waitInFlight(ctx, a.owner.retryAt); err != nil {
		return now, false, err
	}
	seen, err := retryRead(ctx, a.step, a.effect.find)
	if err == nil {
		err = a.step.checkLostEvents(ctx, &seen)
	}
	if err != nil {
		return now, false, err
	}

	switch {
	case seen.adopt != nil:
		seen.adopt()
		a.Meter.EffectFound(a.effect.name)
		return now, true, a.step.recordResult()
	case !seen.sure && (a.owner.inFlight || !a.decided):
		if err := a.step.uncertain(); err != nil {
			return now, false, err
		}
		a.decided = true
	case a.owner.inFlight && a.step.isFinal(a.owner.inFlightErr):
		a.owner.inFlight, a.point.Intent = false, nil
		return now, false, a.step.failure(a.owner.inFlightErr)
	}

	a.owner.answered()
	return seen.now, false, nil
}

// refuse does all that takes time before the call, then looks a last time whether the call may be made at all. again:
// what had to be done before it has changed the guest, so that everything is looked at once more.
func (a *attempts) refuse(ctx context.Context) (intend func(), again bool, err error) {
	if a.effect.before != nil {
		if done, err := a.effect.before(ctx); done || err != nil {
			return nil, done, err
		}
	}

	intend, err = a.effect.prepare(ctx)
	if err != nil {
		return nil, false, err
	}
	return intend, false, a.mayCall(ctx)
}

// recordIntent stores that the call is about to be made. The send window counts from before the intent is first sent,
// which it returns: a proof of ownership that took long to get is old when it comes.
func (a *attempts) recordIntent(now intent, intend func()) (from time.Time, err error) {
	intend()
	from = time.Now()
	now.Act, now.Process = a.effect.name, a.step.process
	a.point.Intent = &now
	*a.step.state = events.Starting
	told := a.announced()
	if err := a.record(a.effect.starting); err != nil {
		return from, err
	}
	a.setAnnounced(told) // once per change: the same answer again is no news
	return from, nil
}

// send makes the call, behind the fence.
func (a *attempts) send(from time.Time) error {
	a.telemetry.calledAt = time.Time{}
	a.callBegins()
	err := a.effect.call(a.lasting(), a.verifyOwner(from))
	if err == nil {
		a.telemetry.calledAt = time.Now()
	}
	return err
}

// interpret decides what the answer to the call means. over: it has taken effect, and that is recorded. Else the next
// attempt may begin.
func (a *attempts) interpret(ctx context.Context, err error) (over bool, _ error) {
	var v *vcapi.Error
	switch {
	case err == nil:
		return true, a.step.recordResult()
	case errors.Is(err, events.ErrFenced):
		return false, err
	case errors.Is(err, errLate):
		return false, a.tooLate(ctx)
	case !errors.As(err, &v) && !a.owner.inFlight: // the call was not begun
		return false, err
	case v == nil, v.Sent == vcapi.Unknown:
		a.owner.sentUnanswered(err, a.TravelTime+a.VisibilityLag, a.effect.lostMost)
		a.logger().Warn().Err(err).Str("step", a.step.name).
			Msg("no answer that tells whether the call took effect: looking once it must show")
		return false, nil
	}

	// vCenter's answer proves that nothing happened, or nothing was sent.
	a.owner.inFlight, a.point.Intent = false, nil
	if v.Class == vcapi.SessionLost && a.logins == 0 {
		a.logins++ // log in again, once, with an intent of its own
		return false, nil
	}

	if a.effect.refused != nil {
		if err := a.effect.refused(v); err != nil {
			return false, err
		}
	}

	return false, a.step.pause(ctx, err, a.pause)
}

// tooLate waits before the next attempt after one that was not sent, since its proof of ownership was too old.
func (a *attempts) tooLate(ctx context.Context) error {
	a.owner.inFlight = false
	if a.late++; a.late > 1 { // once is a process that stood still for a moment
		err := fmt.Errorf("%s was not sent: %w", a.effect.name, &slowWayError{a.SendWindow})
		if err := a.reportBlocked(events.WaitingVCenterUnavailable, err); err != nil {
			return err
		}
	}

	// A journal that is slow now is not helped by more appends. Where ctx ends, the next attempt says why.
	_ = a.pause.Wait(ctx)
	return nil
}

// mayCall looks whether the run may still act: nobody has canceled it, it has time left, and the process goes on. It is
// the last look before an intent: what takes time has been prepared before, so that it is not old when the call comes.
// That the run is still ours the intent's own append proves.
func (r *run) mayCall(ctx context.Context) error {
	if !r.stopping {
		by, err := r.canceledBy(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case by != nil:
			return &canceledError{by: *by}
		}
	}

	if ctx.Err() != nil {
		return r.interrupted(ctx)
	}
	return nil
}

// recordResult stores that the step's call has taken effect.
func (s *step) recordResult() error {
	r := s.run
	r.owner.effected()
	r.point.Intent, r.silentSince = nil, time.Time{}
	if r.point.Repeat == s.effect.key(s) {
		r.point.Repeat = ""
	}
	*s.state = events.Running
	if s.effect.started == "" {
		return nil
	}
	return r.record(s.effect.started)
}

// errLate is the fence's word for a proof of ownership that is too old to send a call on.
var errLate = errors.New("the proof of ownership is older than the send window")

// slowWayError is why one proof after the other is too old.
type slowWayError struct{ window time.Duration }

func (e *slowWayError) Error() string {
	return fmt.Sprintf("a connection to vCenter and the proof that the run is still ours take longer than "+
		"VCENTER_<NAME>_SEND_WINDOW (%s) together, time after time: "+
		"see the way to vCenter and to NATS, or lengthen it", e.window)
}

// verifyOwner is the fence, the last check before a call is sent: the VM's last event is our intent and stands on the
// event that we know, and from, before the intent was first sent, is no longer ago than the send window.
func (r *run) verifyOwner(from time.Time) vcapi.Fence {
	mine, before := r.owner.last, r.owner.previous
	return func(ctx context.Context) error {
		// The intent began the VM's journal anew: the wait of a takeover is due.
		if time.Now().Before(r.owner.notBefore) {
			return errLate
		}
		ctx, cancel := context.WithDeadlineCause(ctx, from.Add(r.SendWindow), errLate)
		defer cancel()
		if err := r.journal.ConfirmLast(ctx, r.VCenter, r.vm, mine, before); err != nil {
			if errors.Is(err, events.ErrFenced) || !errors.Is(context.Cause(ctx), errLate) {
				return err
			}
		}

		// The clock itself: where the process stood still, the deadline's timer may come after us.
		if time.Since(from) >= r.SendWindow {
			return errLate
		}
		r.owner.inFlight = true
		return nil
	}
}

// uncertain decides about a call of which nobody can tell any more whether it took effect.
func (s *step) uncertain() error {
	r := s.run
	r.Meter.EffectUncertain(s.effect.name)
	if r.spec.OnUncertain != "repeat" {
		message := "a crash or a lost answer hid whether the call was made, and vCenter can no longer tell: look at " +
			"the guest, then send a new request"
		if r.owner.inFlightErr != nil {
			message += ": " + r.owner.inFlightErr.Error()
		}
		r.owner.inFlight = false
		return &stepError{step: s.name, process: s.process, code: events.Uncertain, message: message,
			err: r.owner.inFlightErr, doubt: s.effect.name}
	}

	r.logger().Warn().Str("step", s.name).Msg("uncertain whether the call took effect: repeated, as the request asks")
	r.owner.inFlight, r.point.Repeat = false, s.effect.key(s)
	if s.effect.repeated != nil {
		s.effect.repeated()
	}
	return nil
}

// lostMost bounds the time between two attempts whose answers were lost.
const lostMost = 5 * time.Minute
