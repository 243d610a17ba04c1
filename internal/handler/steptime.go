package handler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// overtime is what a step gets, once its time is over, to take in an end that one more read has shown.
const overtime = 30 * time.Second

// inTime takes a step to its end within its time. That this is over is told only from one read made after it: what was
// seen before may be old, and a vCenter that was away gives its time back.
func (s *step) inTime(ctx context.Context) error {
	r := s.run
	for {
		within, cancel := s.stepTime(ctx)
		err := s.doAndRead(within)
		cancel()
		if !errors.Is(err, errStepTime) {
			return outOfTime(s, err)
		}

		// What was waited for is told as it was before one more read.
		late := s.timeError(events.StepTimeout, fmt.Sprintf("the step's time is over (%s %s)", s.timeoutField,
			s.timeout))
		isOver := s.ended
		if *s.state != events.Running {
			isOver = r.answers
		}
		ended, err := readDecisive(ctx, s, isOver)
		switch {
		case ctx.Err() != nil:
			return r.interrupted(ctx)
		case errors.Is(err, events.ErrFenced):
			return err
		case gone(err), errors.As(err, new(*stepError)): // the VM is none, or another one, now
			return s.failure(err)
		case err == nil && ended:
			return s.overtime(ctx, late)
		case !r.clock.now().Before(s.stepEnd()):
			return s.tooLate(late)
		}
	}
}

// overtime takes in the end that one more read has shown.
func (s *step) overtime(ctx context.Context, late *stepError) error {
	r := s.run
	ctx, cancel := r.clock.within(ctx, overtime, errStepTime)
	defer cancel()
	if err := s.doAndRead(ctx); !errors.Is(err, errStepTime) {
		return outOfTime(s, err)
	}
	return s.tooLate(late)
}

// tooLate is the end of a step whose time is over. A customization that had failed, and was to be repeated, ends by
// that.
func (s *step) tooLate(late *stepError) error {
	r := s.run
	if r.point.Failed == nil {
		return late
	}
	return outOfTime(s, errStepTime)
}

// outOfTime is the error of a step whose time may be over.
func outOfTime(s *step, err error) error {
	if s.outOfTime == nil {
		return err
	}
	return s.outOfTime(err)
}

// answers is a read that tells no end.
func (r *run) answers(ctx context.Context) (bool, error) {
	_, err := r.readVM(ctx)
	return false, err
}

// stepSince is when a step began, by an owner before us perhaps.
func (s *step) stepSince() time.Time {
	r := s.run
	if r.point.StepSince != nil && r.point.Step == s.name+"/"+s.process {
		return *r.point.StepSince
	}
	return time.Now()
}

// stepTime bounds a step, across takeovers too.
func (s *step) stepTime(ctx context.Context) (context.Context, context.CancelFunc) {
	r := s.run
	if key := s.name + "/" + s.process; r.point.Step != key || r.point.StepSince == nil {
		begun := r.beginPhase(key)
		r.point.Step, r.point.StepSince, r.point.StepStood = key, &begun.Since, begun.Stood
	}

	return r.clock.until(ctx, s.stepEnd(), errStepTime)
}

// stepEnd is when, by the steps' clock, the time of s is over.
func (s *step) stepEnd() time.Time {
	r := s.run
	return phase{Since: *r.point.StepSince, Stood: r.point.StepStood}.end(s.timeout)
}

// beginPhase is a phase that begins now.
func (r *run) beginPhase(name string) phase {
	now := time.Now()
	return phase{Step: name, Since: stamp(now), Stood: max(0, now.Sub(r.clock.now()))}
}

func (p phase) end(limit time.Duration) time.Time { return p.Since.Add(limit - p.Stood) }

// saveClock puts into the checkpoint what the steps' clock shows.
func (r *run) saveClock() {
	stood, still := r.clock.stands()
	r.point.Stood, r.point.Still = stood, nil
	if !still.IsZero() {
		at := stamp(still)
		r.point.Still = &at
	}
}

// restoreClock takes over the clock of the owner before. Between the two it went, unless the last event says that
// vCenter was away.
func (r *run) restoreClock(last *events.Entry) {
	var still time.Time
	if r.point.Still != nil {
		still = *r.point.Still
	}
	switch away := last.Run.Waiting == events.WaitingVCenterUnavailable; {
	case away && still.IsZero():
		still = last.At
	case !away && !still.IsZero():
		r.point.Stood += max(0, last.At.Sub(still))
		still = time.Time{}
	}

	r.clock.set(r.point.Stood, still)
	if !still.IsZero() { // it goes on, in the event of the takeover too
		r.state.Waiting, r.state.WaitingFor = events.WaitingVCenterUnavailable, last.Run.WaitingFor
		r.telemetry.blockedBy(events.WaitingVCenterUnavailable)
	}
}
