package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// step is one of a run's steps. It acts, where it changes the guest, then asks until its end is known; what the journal has recorded already
// is passed over.
type step struct {
	name    string
	process string // in a process step: its name
	state   *events.State
	timeout time.Duration // zero: the run's own; the step does not speak to the guest
	act     *act
	begin   func(ctx context.Context) error // in the place of act, where nothing is changed
	ask     func(ctx context.Context) error
	over    func(ctx context.Context) (bool, error) // one read that tells whether what the step waits for has ended
}

// timeoutField is where the request says how long the step may take.
func (s *step) timeoutField() string {
	if s.process != "" {
		return fmt.Sprintf("timeout of process %s", s.process)
	}
	return s.name + ".timeout"
}

// act is a call that changes the guest.
type act struct {
	name              string      // in the intent
	starting, started events.Kind // started may be empty: its end is the next event
	// look reports whether the call has taken effect already.
	look func(ctx context.Context) (sighting, error)
	// prepare does all that takes time before the call: what vCenter, the guest and the secrets must be asked for. It changes nothing of the run's
	// state: intend, which it gives, puts in what the event of the intent shows. Its calls live in ctx: once that has ended it has no result.
	prepare func(ctx context.Context) (intend func(), err error)
	// call makes the call that was prepared, and notes its fact in the run's state.
	call func(ctx context.Context, gate vcapi.Fence) error
	// refused, where set, may have a way of its own to go on after vCenter's refusal of the call; nil: the usual one.
	refused func(s *step, v *vcapi.Error) error
}

// key names the act of a step in the checkpoint.
func (a *act) key(s *step) string { return a.name + "/" + s.process }

// sighting is the answer to a look.
type sighting struct {
	adopt func() // takes the effect that was found for the run's own; nil: none was found
	sure  bool   // none was found, and vCenter could still have shown it
	now   intent // what an intent stored now must hold, so that a later look can be sure
}

// steps is the whole workflow, top to bottom.
func (r *run) steps() []*step {
	steps := []*step{{name: "check", state: &r.state.Check.State, ask: r.check}}
	if r.asked.Customize != nil {
		steps = append(steps, &step{name: "customize", state: &r.state.Customize.State, timeout: r.asked.Customize.Timeout.Or(20 * time.Minute),
			act: r.customize(), ask: r.customized,
			over: func(ctx context.Context) (bool, error) { return r.taskOver(ctx, r.state.Customize.Task) }})
	}
	if r.asked.Network != nil {
		steps = append(steps, &step{name: "network", state: &r.state.Network.State, timeout: r.asked.Network.Timeout.Or(5 * time.Minute),
			act: r.startNetwork(), ask: r.networkStarted,
			over: func(ctx context.Context) (bool, error) { return r.taskOver(ctx, r.state.Network.Task) }})
	}
	if r.state.Verify != nil {
		steps = append(steps, &step{name: "verify", state: &r.state.Verify.State, ask: r.verify})
	}
	for i := range r.state.Processes {
		asked, p := &r.asked.Processes[i], &r.state.Processes[i]
		s := &step{name: "process", process: p.Name, state: &p.State, timeout: asked.Timeout.Or(10 * time.Minute),
			ask:  func(ctx context.Context) error { return r.exited(ctx, asked, p) },
			over: func(ctx context.Context) (bool, error) { return r.processOver(ctx, asked, p) }}
		if asked.Watch != nil {
			s.begin = func(ctx context.Context) error { return r.watchProcess(ctx, asked, p) }
		} else {
			s.act = r.startProcess(asked, p)
		}
		steps = append(steps, s)
	}
	return steps
}

// accept fills in the run's first state: what was asked for is pending.
func (r *run) accept() {
	now := stamp(time.Now())
	deadline := now.Add(r.asked.Timeout.Or(events.DefaultTimeout))
	r.state.AcceptedAt, r.state.Deadline = &now, &deadline
	r.state.Plan(r.asked)
}

// current is the step that the run stands in: the first that has not succeeded.
func (r *run) current() *step {
	if r.asked == nil || r.state.Check == nil { // an orphan, or a run canceled in the queue: nothing of it can be acted on
		return &step{name: "run"}
	}
	for _, s := range r.steps() {
		if *s.state != events.Succeeded && *s.state != events.Skipped && *s.state != events.Unavailable {
			return s
		}
	}
	return &step{name: "run"}
}

// closeSteps gives every step that has not ended its last state: last for the one that the run ended in, skipped for
// those behind it. What ends with the run ends now; when a guest's process ended only the guest's clock tells.
func (r *run) closeSteps(last events.State) {
	for _, s := range r.state.Steps() {
		switch {
		case s.State.Ended():
			if *s.State == events.Failed || *s.State == events.Canceled {
				last = events.Skipped
			}
		case *s.State == events.Running && last == events.Canceled: // it could not be stopped, and says why
			last = events.Skipped
		default: // the first one is where the run ended, the others were not begun
			*s.State, last = last, events.Skipped
		}
		if s.Name != events.StepProcess {
			endsNow(*s.State, s.FinishedAt)
		}
	}
}

// endsNow dates the end of a step that has ended, unless it was skipped or is dated already.
func endsNow(state events.State, finished **time.Time) {
	if *finished == nil && state.Ended() && state != events.Skipped {
		now := stamp(time.Now())
		*finished = &now
	}
}

// step takes one step to its end.
func (r *run) step(s *step) (err error) {
	if s.state.Ended() && *s.state != events.Failed {
		return nil
	}
	leave := r.enter(s)
	defer func() { leave(err) }()
	if *s.state == events.Failed {
		return &stepError{stored: r.state.Error}
	}
	r.state.Process = s.process
	if s.timeout == 0 { // it does not speak to the guest
		return s.ask(r.ctx)
	}
	if *s.state != events.Running {
		if err := r.ready(r.ctx, s); err != nil {
			return err
		}
	}
	return r.inTime(s)
}

// againError says that an accepted call ended in an error that will pass, before it changed anything, or that is to be repeated at once: the act
// begins again.
type againError struct {
	err    error
	atOnce bool
}

func (e *againError) Error() string { return e.err.Error() }

func (e *againError) Unwrap() error { return e.err }

// doAndAsk acts, unless the journal says that it was done, and waits for the end.
func (r *run) doAndAsk(ctx context.Context, s *step) error {
	for pause := newBackoff(askPause); ; {
		var err error
		switch {
		case *s.state == events.Running:
		case s.act != nil:
			err = r.do(ctx, s)
		default:
			err = s.begin(ctx)
		}
		if err == nil {
			err = s.ask(ctx)
		}
		var again *againError
		if !errors.As(err, &again) {
			return err
		}
		*s.state = events.Starting
		if again.atOnce {
			continue
		}
		if err := r.pause(ctx, s, again.err, pause); err != nil {
			return err
		}
	}
}

// do is the only way to change a guest: look, prepare, intend, read back, call, record. There is no shortcut through it.
func (r *run) do(ctx context.Context, s *step) error {
	pause, logins, late := newBackoff(askPause), 0, 0
	decided := r.point.Repeat == s.act.key(s) // perhaps by an owner before us
	for {
		// What an owner before us, or we ourselves, may have sent has landed and shows before we look.
		if err := r.landed(ctx, r.notBefore); err != nil {
			return err
		}
		seen, err := ask(ctx, r, s, s.act.look)
		if err == nil {
			err = r.foundLost(ctx, s, &seen)
		}
		if err != nil {
			return err
		}
		switch {
		case seen.adopt != nil:
			seen.adopt()
			r.Meter.Adopted(s.act.name)
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
		if r.point.Abort && s.act.name == "customize" {
			if err := r.abort(ctx, s); err != nil {
				return err
			}
			continue
		}
		intend, err := s.act.prepare(ctx)
		if err != nil {
			return err
		}
		if err := r.mayAct(ctx); err != nil {
			return err
		}
		intend()
		// T counts from before the intent is first sent: a proof of ownership that took long to get is old when it comes.
		from := time.Now()
		seen.now.Act, seen.now.Process = s.act.name, s.process
		r.point.Intent = &seen.now
		*s.state = events.Starting
		told := r.toldWait()
		if err := r.record(s.act.starting); err != nil {
			return err
		}
		r.stillWaits(told) // once per change: the same answer again is no news
		r.acted = time.Time{}
		r.calling()
		err = s.act.call(r.life, r.gate(from))
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
				if err := r.wait(events.WaitingVCenterUnavailable, fmt.Errorf("%s was not sent: %w", s.act.name, &slowWayError{r.SendWindow})); err != nil {
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
		if s.act.refused != nil {
			if err := s.act.refused(s, v); err != nil {
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
	if r.point.Repeat == s.act.key(s) {
		r.point.Repeat = ""
	}
	r.lost, r.notBefore, r.unheard = 0, time.Time{}, time.Time{}
	*s.state = events.Running
	if s.act.started == "" {
		return nil
	}
	return r.record(s.act.started)
}

// complete stores the end of a step: k, and how it ended.
func (r *run) complete(k events.Kind, state *events.State, failure *stepError) error {
	if failure == nil {
		*state = events.Succeeded
		return r.record(k)
	}
	*state = events.Failed
	r.state.Error = r.errorOf(failure)
	if err := r.record(k); err != nil {
		return err
	}
	return failure
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
		if err := r.journal.Holds(ctx, r.VCenter, r.vm, mine, before); err != nil {
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
	r.Meter.Uncertain(s.act.name)
	if r.asked.OnUncertain != "repeat" {
		message := "a crash or a lost answer hid whether the call was made, and vCenter can no longer tell: look at the guest, then send a new request"
		if r.doubt != nil {
			message += ": " + r.doubt.Error()
		}
		r.open = false
		return &stepError{step: s.name, process: s.process, code: events.Uncertain, message: message, err: r.doubt, doubt: s.act.name}
	}
	r.logger().Warn().Str("step", s.name).Msg("uncertain whether the call took effect: repeated, as the request asks")
	r.open, r.point.Abort, r.point.Repeat = false, s.act.name == "customize", s.act.key(s)
	return nil
}
