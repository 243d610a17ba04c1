package handler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/guestflow/guestflow/internal/events"
)

// end writes the run's last event, or gives the run back. No last event is written while a call may be outstanding.
func (r *run) end(why error) error {
	defer r.Meter.InStep("run")()
	var canceled *canceledError
	var failed *stepError
	switch {
	case errors.Is(why, events.ErrFenced):
		return why
	case errors.Is(why, errDrain):
		return r.release()
	case why == nil, errors.As(why, &canceled), errors.As(why, &failed):
	case errors.Is(why, errDeadline):
		failed = r.deadlineExceeded()
	case r.life.Err() != nil:
		return events.ErrReleased
	default:
		failed = r.currentStep().failure(why)
	}

	if why != nil { // a run that succeeded has recorded the result of every call
		if err := r.quiet(canceled != nil); err != nil {
			return err
		}
	}

	if err := r.awaitAbort(); err != nil {
		return err
	}
	r.doubtsRepeated()

	last := r.conclude(canceled, failed)
	if r.asking && last != events.RunSucceeded {
		r.observe()
	}
	now := stamp(time.Now())
	r.state.FinishedAt, r.state.Process, r.point.Intent = &now, "", nil
	if err := r.record(last); err != nil {
		return r.silentIfStopping(err)
	}
	r.telemetry.ended(trace.SpanFromContext(r.life), &r.state)
	return nil
}

// deadlineExceeded is the end of a run whose time is over.
func (r *run) deadlineExceeded() *stepError {
	timeout := r.state.Deadline.Sub(*r.state.AcceptedAt)
	f := r.currentStep().timeError(events.DeadlineExceeded, fmt.Sprintf("the run's time is over (timeout %s)", timeout))
	if known := r.point.Failed; known != nil { // it was to be aborted and repeated
		return &stepError{stored: changedError(known, "; "+f.message)}
	}
	return f
}

// quiet makes sure that nothing takes effect after the run's last event.
func (r *run) quiet(canceled bool) error {
	if err := r.resolveBeforeEnd(); err != nil || !canceled {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	return r.resolveBeforeEnd() // what stopped it may have no answer
}

// conclude puts the end of the run into its state, and gives the kind of its last event.
func (r *run) conclude(canceled *canceledError, failed *stepError) events.Kind {
	switch {
	case canceled != nil:
		by := canceled.by
		r.state.Status = events.StatusCanceled
		r.state.CanceledBy = &events.CanceledBy{Source: by.Ref.Source, ID: by.Ref.ID, Reason: by.Reason}
		in := r.currentStep()
		r.state.Error = &events.Error{Step: in.name, Process: in.process, Code: events.CodeCanceled,
			Message: canceled.Error()}
		r.closeSteps(events.Canceled)
		return events.RunCanceled
	case failed != nil:
		r.state.Status = events.StatusFailed
		r.state.Error = r.errorOf(failed)
		if failed.doubt != "" {
			r.point.Doubt = append(r.point.Doubt, failed.doubt)
		} else if len(r.point.Doubt) > 0 {
			r.state.Error.Code, r.state.Error.Retryable = events.Uncertain, false
			r.state.Error.Message += fmt.Sprintf(
				"; and nobody can tell whether the last call of step %s took effect: look at the guest",
				r.point.Doubt[0])
		}

		r.closeSteps(events.Failed)
		return events.RunFailed
	}

	r.state.Status = events.StatusSucceeded
	r.closeSteps(events.Skipped)
	return events.RunSucceeded
}

// silentIfStopping turns the process's end in the middle of an append into silence: whether it was stored is the next
// owner's to read.
func (r *run) silentIfStopping(err error) error {
	if err != nil && r.life.Err() != nil && !errors.Is(err, events.ErrFenced) {
		return events.ErrReleased
	}
	return err
}

// release gives the run back in the middle. The mark lets the very next delivery act at once; it may only be set where
// no call is outstanding.
func (r *run) release() error {
	if !r.owner.quiet() {
		return events.ErrReleased
	}
	r.point.Released = &release{Seq: r.req.Seq, At: moment(r.req.At), Delivered: r.req.Delivered}
	r.state.Process, r.point.Intent = "", nil
	if err := r.record(events.RunReleased); err != nil {
		return r.silentIfStopping(err)
	}
	return events.ErrReleased
}

// resolveBeforeEnd waits, before a last event, until no call can take effect unseen any more, and looks what it did:
// our own that has no answer, or one of an owner before us, whose intent a journal that lost its tail need not show.
func (r *run) resolveBeforeEnd() error {
	if r.owner.quiet() {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.lasting(), max(0, time.Until(r.owner.notBefore))+settleTime)
	defer cancel()
	if err := r.waitInFlight(ctx, time.Time{}); err != nil {
		return cmp.Or(onlyFenced(err), events.ErrReleased)
	}

	s := r.currentStep()
	switch {
	case s.effect == nil:
		if r.owner.inFlight { // an orphan whose request is gone too: nobody can look
			r.noteUncertain(r.point.Intent.Act)
		}
	case *s.state == events.Running, s.state.Ended():
		// The result of its call is recorded: what was outstanding only stops it, and has landed.
	case r.owner.inFlight && r.point.Intent != nil && r.point.Intent.Act == abortEffect:
		// It is no question what it did: awaitAbort lets it end.
	default:
		return s.lookBeforeEnd(ctx)
	}

	r.owner.inFlight = false
	return nil
}

// lookBeforeEnd looks, until ctx ends, whether the last call of a step has taken effect.
func (s *step) lookBeforeEnd(ctx context.Context) error {
	r := s.run
	for pause := newPause(askPause); ; {
		seen, err := s.effect.find(ctx)
		switch {
		case err == nil && seen.adopt != nil:
			seen.adopt()
			r.Meter.EffectFound(s.effect.name)
			return r.silentIfStopping(s.recordResult())
		case err == nil:
			if !seen.sure {
				r.noteUncertain(s.effect.name)
			}
			r.owner.inFlight = false
			return nil
		case !r.owner.inFlight:
			return nil // nothing was known to be under way, and the wait is over
		}

		if err := r.reportBlocked(events.WaitingVCenterUnavailable, err); err != nil {
			return r.silentIfStopping(err)
		}
		if pause.Wait(ctx) != nil {
			if r.life.Err() != nil {
				return events.ErrReleased
			}
			r.noteUncertain(s.effect.name)
			r.owner.inFlight = false
			return nil
		}
	}
}

// noteUncertain notes that nobody can report whether a call took effect.
func (r *run) noteUncertain(effect string) {
	r.Meter.EffectUncertain(effect)
	r.point.Doubt = append(r.point.Doubt, effect)
}

// doubtsRepeated notes that the call which was to be repeated, since nobody could tell whether it took effect, is in
// doubt as before: no repetition has taken effect.
func (r *run) doubtsRepeated() {
	effect, _, repeated := strings.Cut(r.point.Repeat, "/")
	if repeated && !slices.Contains(r.point.Doubt, effect) {
		r.point.Doubt = append(r.point.Doubt, effect)
	}
}

// settleTime bounds the last look of a run that is about to end while its vCenter does not answer.
const settleTime = 30 * time.Second

// observe notes what vCenter shows of the VM now.
func (r *run) observe() {
	ctx, cancel := context.WithTimeout(r.lasting(), observeTime)
	defer cancel()
	r.state.Observed = &events.Observed{At: stamp(time.Now())} // that vCenter shows nothing is to be seen too
	vm, err := r.vc.VM(ctx, r.vm)
	if err != nil {
		return
	}
	r.noteVM(vm)
	e := r.expected(ctx)
	o := &events.Observed{At: stamp(time.Now()), PowerState: vm.PowerState, ToolsRunningStatus: vm.ToolsRunningStatus,
		ToolsVersion: vm.ToolsVersion,
		HostName:     e.hide(vm.HostName), Guest: guestOf(vm.Customization)}
	for _, n := range vm.NICs {
		o.NICs = append(o.NICs, nicOf(e, n))
	}
	o.GuestLog = r.readEngineLog()
	r.state.Observed = o
}

const observeTime = 5 * time.Second
