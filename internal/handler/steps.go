package handler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// stepKind is a kind of step that guestflow knows.
type stepKind struct {
	name    string
	methods []string              // of vCenter, that make the Tasks of its calls
	effects []string              // the names of its calls
	equip   func(r *run, s *step) // makes a step of a run all that it is
}

// stepKinds are all of them. Which of them a run has, and in which order, says events.Run.Steps.
func stepKinds() []stepKind {
	return []stepKind{
		{name: events.StepCheck, equip: newCheckStep},
		{name: events.StepCustomize, equip: newCustomizeStep,
			methods: []string{customizeMethod, abortMethod}, effects: []string{"customize", abortEffect}},
		{name: events.StepNetwork, equip: newNetworkStep, methods: []string{networkMethod},
			effects: []string{"network"}},
		{name: events.StepVerify, equip: newVerifyStep},
		{name: events.StepProcess, equip: newProcessStep, effects: []string{"process"}},
	}
}

// Effects are the names of the calls that change a guest.
func Effects() (names []string) {
	for _, kind := range stepKinds() {
		names = append(names, kind.effects...)
	}
	return names
}

// step is one of a run's steps, with all that is about it. It changes the guest by its effect, where it has one, then
// reads until its end is known; what the journal has recorded already is passed over.
type step struct {
	run      *run
	name     string
	process  string // in a process step: its name
	state    *events.State
	finished **time.Time // when it ended

	timeout      time.Duration // zero: the run's own; the step does not speak to the guest
	timeoutField string        // where the request says how long the step may take
	effect       *effect       // nil: it changes nothing
	begin        func(ctx context.Context, s *step) error
	read         func(ctx context.Context, s *step) error // waits for its end, and records it
	ended        func(ctx context.Context) (bool, error)  // one read: whether what the step waits for has ended
	stop         func(s *step) error                      // what a cancel does to what the step has under way

	end       events.Kind                         // the event of its end
	fallback  events.Code                         // of an answer of vCenter whose name tells nothing
	answer    func(*vcapi.Error, outcome) outcome // what an answer means in this step alone; nil: what it means in all
	outOfTime func(err error) error               // what its end for want of time is; nil: that error
	warnings  func() []events.Remark              // that the check tells
	// What the service's role must hold: the part of the request that needs it.
	privileges map[string]string
}

// effect is a call that changes the guest.
type effect struct {
	name              string      // in the intent
	starting, started events.Kind // started may be empty: its end is the next event
	// find looks whether the call has taken effect already.
	find func(ctx context.Context) (found, error)
	// prepare does all that takes time before the call: what vCenter, the guest and the secrets must be asked for. It
	// changes nothing of the run's state: intend, which it gives, puts in what the event of the intent shows. Its calls
	// live in ctx: once that has ended it has no result.
	prepare func(ctx context.Context) (intend func(), err error)
	// call makes the call that was prepared, and notes its result in the run's state.
	call func(ctx context.Context, fence vcapi.Fence) error
	// refused, where set, may have a way of its own to go on after vCenter's refusal of the call; nil: the usual one.
	refused func(v *vcapi.Error) error
	// repeated, where set, notes what a call needs that is repeated although the one before it may have taken effect.
	repeated func()
	// before, where set, does what must be done before the next call. It reports whether it did: then the effect is
	// looked for again.
	before func(ctx context.Context) (done bool, err error)
	// lostMost bounds the time between two attempts whose answers were lost.
	lostMost time.Duration
	// task says that the effect is a Task: vCenter's history can prove that it was never made.
	task bool
}

// key names the effect of a step in the checkpoint.
func (e *effect) key(s *step) string { return e.name + "/" + s.process }

// found is the answer to the question whether a call has taken effect.
type found struct {
	adopt func() // takes the effect that was found for the run's own; nil: none was found
	sure  bool   // none was found, and vCenter could still have shown it
	now   intent // what an intent stored now must hold, so that a later look can be sure
}

// plan makes the run's steps of what its state lists. An orphan whose request nobody knows any more has none: nothing
// of it can be done.
func (r *run) plan() {
	r.steps = nil
	if r.spec == nil {
		return
	}
	for _, of := range r.state.Steps() {
		i := slices.IndexFunc(r.kinds, func(k stepKind) bool { return k.name == of.Name })
		s := &step{run: r, name: of.Name, process: of.Process, state: of.State, finished: of.FinishedAt,
			timeoutField: of.Name + ".timeout"}
		r.kinds[i].equip(r, s)
		r.steps = append(r.steps, s)
	}
}

// currentStep is the step that the run stands in: the first that has not succeeded. A run that has no steps, or none
// left, stands in none of them.
func (r *run) currentStep() *step {
	for _, s := range r.steps {
		if *s.state != events.Succeeded && *s.state != events.Skipped && *s.state != events.Unavailable {
			return s
		}
	}

	return &step{run: r, name: "run"}
}

// accept fills in the run's first state: what was asked for is pending.
func (r *run) accept() {
	now := stamp(time.Now())
	deadline := now.Add(r.spec.Timeout.Or(events.DefaultTimeout))
	r.state.AcceptedAt, r.state.Deadline = &now, &deadline
	r.state.Plan(r.spec)
	r.plan()
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

// toEnd takes one step to its end.
func (s *step) toEnd(ctx context.Context) (err error) {
	r := s.run
	if s.state.Ended() && *s.state != events.Failed {
		return nil
	}
	ctx, leave := r.telemetry.enter(ctx, r.state.ID, s, s.stepSince())
	defer func() { leave(err) }()
	if *s.state == events.Failed {
		return &stepError{stored: r.state.Error}
	}
	r.state.Process = s.process
	if s.timeout == 0 { // it does not speak to the guest
		return s.read(ctx, s)
	}
	if *s.state != events.Running {
		if err := s.ready(ctx); err != nil {
			return err
		}
	}

	return s.inTime(ctx)
}

// againError says that an accepted call ended in an error that will pass, before it changed anything, or that is to be
// repeated at once: the effect begins again.
type againError struct {
	err    error
	atOnce bool
}

func (e *againError) Error() string { return e.err.Error() }

func (e *againError) Unwrap() error { return e.err }

// doAndRead makes the step's effect, unless the journal says that it was made, and waits for the end.
func (s *step) doAndRead(ctx context.Context) error {
	r := s.run
	for pause := newPause(askPause); ; {
		var err error
		switch {
		case *s.state == events.Running:
		case s.effect != nil:
			err = s.do(ctx)
		default:
			err = s.begin(ctx, s)
		}

		if err == nil {
			err = s.read(ctx, s)
		}
		var again *againError
		if !errors.As(err, &again) {
			return err
		}

		*s.state = events.Starting
		if again.atOnce {
			continue
		}
		pause.AtLeast(paceOf(len(r.point.Tasks)))
		if err := s.pause(ctx, again.err, pause); err != nil {
			return err
		}
	}
}

// complete records the end of a step, and how it ended.
func (s *step) complete(failure *stepError) error {
	r := s.run
	if failure == nil {
		*s.state = events.Succeeded
		return r.record(s.end)
	}

	*s.state = events.Failed
	r.state.Error = r.errorOf(failure)
	if err := r.record(s.end); err != nil {
		return err
	}
	return failure
}
