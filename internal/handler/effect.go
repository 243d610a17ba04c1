package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// do is the only way to change a guest: look, prepare, intend, read back, call, record. There is no shortcut through it.
func (r *run) do(ctx context.Context, s *step) error {
	pause, logins, late := newBackoff(askPause), 0, 0
	decided := r.point.Repeat == s.effect.key(s) // perhaps by an owner before us
	for {
		// What an owner before us, or we ourselves, may have sent has landed and shows before we look.
		if err := r.landed(ctx, r.notBefore); err != nil {
			return err
		}
		seen, err := retryRead(ctx, r, s, s.effect.find)
		if err == nil {
			err = r.foundLost(ctx, s, &seen)
		}
		if err != nil {
			return err
		}
		switch {
		case seen.adopt != nil:
			seen.adopt()
			r.Meter.Adopted(s.effect.name)
			return r.fact(s)
		case !seen.sure && (r.open || !decided):
			if err := r.uncertain(s); err != nil {
				return err
			}
			decided = true
		case r.open && r.isFinal(s, r.doubt):
			r.open, r.point.Intent = false, nil
			return r.failure(s, r.doubt)
		}
		r.open, r.doubt = false, nil
		if s.effect.before != nil {
			if done, err := s.effect.before(ctx); err != nil {
				return err
			} else if done {
				continue
			}
		}
		intend, err := s.effect.prepare(ctx)
		if err != nil {
			return err
		}
		if err := r.mayAct(ctx); err != nil {
			return err
		}
		intend()
		// T counts from before the intent is first sent: a proof of ownership that took long to get is old when it comes.
		from := time.Now()
		seen.now.Act, seen.now.Process = s.effect.name, s.process
		r.point.Intent = &seen.now
		*s.state = events.Starting
		told := r.toldWait()
		if err := r.record(s.effect.starting); err != nil {
			return err
		}
		r.stillWaits(told) // once per change: the same answer again is no news
		r.acted = time.Time{}
		r.calling()
		err = s.effect.call(r.life, r.gate(from))
		var v *vcapi.Error
		switch {
		case err == nil:
			r.acted = time.Now()
			return r.fact(s)
		case errors.Is(err, events.ErrFenced):
			return err
		case errors.Is(err, errLate): // nothing was sent: prove anew
			r.open = false
			if late++; late > 1 { // once is a process that stood still for a moment
				if err := r.wait(events.WaitingVCenterUnavailable, fmt.Errorf("%s was not sent: %w", s.effect.name, &slowWayError{r.SendWindow})); err != nil {
					return err
				}
			}
			select {
			case <-pause.next(): // a journal that is slow now is not helped by more appends
			case <-ctx.Done():
			}
			continue
		case !errors.As(err, &v) && !r.open: // the call was not begun
			return err
		case v == nil, v.Sent == vcapi.Unknown:
			r.lostAnswer(s, err)
			r.logger().Warn().Err(err).Str("step", s.name).Msg("no answer that tells whether the call took effect: looking once it must show")
			continue
		}
		// vCenter's answer proves that nothing happened, or nothing was sent.
		r.open, r.point.Intent = false, nil
		if v.Class == vcapi.SessionLost && logins == 0 {
			logins++ // log in again, once, with an intent of its own
			continue
		}
		if s.effect.refused != nil {
			if err := s.effect.refused(v); err != nil {
				return err
			}
		}
		if err := r.pause(ctx, s, err, pause); err != nil {
			return err
		}
	}
}

// mayAct looks whether the run may still act: nobody has canceled it, it has time left, and the process goes on. It is the last look before an
// intent: what takes time has been prepared before, so that it is not old when the act comes. That the run is still ours the intent's own append proves.
func (r *run) mayAct(ctx context.Context) error {
	if !r.stopping {
		by, err := r.canceledBy(r.ctx)
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

// fact stores that the step's call has taken effect.
func (r *run) fact(s *step) error {
	r.open, r.doubt, r.lookOn, r.point.Intent = false, nil, false, nil
	if r.point.Repeat == s.effect.key(s) {
		r.point.Repeat = ""
	}
	r.lost, r.notBefore, r.unheard = 0, time.Time{}, time.Time{}
	*s.state = events.Running
	if s.effect.started == "" {
		return nil
	}
	return r.record(s.effect.started)
}

// errLate is the gate's word for a proof of ownership that is too old to send a call on.
var errLate = errors.New("the proof of ownership is older than the send window")

// slowWayError is why one proof after the other is too old.
type slowWayError struct{ window time.Duration }

func (e *slowWayError) Error() string {
	return fmt.Sprintf("a connection to vCenter and the proof that the run is still ours take longer than VCENTER_<NAME>_SEND_WINDOW (%s) together, time after time: "+
		"see the way to vCenter and to NATS, or lengthen it", e.window)
}

// gate makes the last check before a call is sent: the VM's last event is our intent and stands on the event that we know, and from, before the
// intent was first sent, is no longer ago than the send window.
func (r *run) gate(from time.Time) vcapi.Fence {
	mine, before := r.on, r.under
	return func(ctx context.Context) error {
		if time.Now().Before(r.actFrom) { // the intent began the VM's journal anew: the wait of a takeover is due
			return errLate
		}
		ctx, cancel := context.WithDeadlineCause(ctx, from.Add(r.SendWindow), errLate)
		defer cancel()
		if err := r.journal.ConfirmLast(ctx, r.VCenter, r.vm, mine, before); err != nil {
			if errors.Is(err, events.ErrFenced) || !errors.Is(context.Cause(ctx), errLate) {
				return err
			}
		}
		if time.Since(from) >= r.SendWindow { // the clock itself: where the process stood still, the deadline's timer may come after us
			return errLate
		}
		r.open = true
		return nil
	}
}

// uncertain decides about a call of which nobody can tell any more whether it took effect.
func (r *run) uncertain(s *step) error {
	r.Meter.Uncertain(s.effect.name)
	if r.asked.OnUncertain != "repeat" {
		message := "a crash or a lost answer hid whether the call was made, and vCenter can no longer tell: look at the guest, then send a new request"
		if r.doubt != nil {
			message += ": " + r.doubt.Error()
		}
		r.open = false
		return &stepError{step: s.name, process: s.process, code: events.Uncertain, message: message, err: r.doubt, doubt: s.effect.name}
	}
	r.logger().Warn().Str("step", s.name).Msg("uncertain whether the call took effect: repeated, as the request asks")
	r.open, r.point.Repeat = false, s.effect.key(s)
	if s.effect.repeated != nil {
		s.effect.repeated()
	}
	return nil
}
