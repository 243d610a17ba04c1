package handler

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// customizeTimeout is customize.timeout where the request names none.
const customizeTimeout = 20 * time.Minute

// Pace of customize.progressed: a change of state at once, else at most every progressTime or progressStep per cent.
const (
	progressTime = 10 * time.Second
	progressStep = 10
)

// The methods that make the Tasks of the step.
const (
	customizeMethod = "CustomizeGuest_Task"
	abortMethod     = "AbortCustomization_Task"
)

// abortEffect is the name of the abort in its intent.
const abortEffect = "abort"

// customizeStep customizes the running guest.
type customizeStep struct {
	*run
	step   *step
	status *events.Customize
	sends  customization
}

// customization is what the next call sends.
type customization struct {
	spec, params json.RawMessage
	secrets      []string // in it
}

func newCustomizeStep(r *run, s *step) {
	c := &customizeStep{run: r, step: s, status: r.state.Customize}
	s.timeout = r.spec.Customize.Timeout.Or(customizeTimeout)
	s.effect, s.read, s.outOfTime = c.effect(), c.read, c.outOfTime
	s.ended = func(ctx context.Context) (bool, error) { return r.taskOver(ctx, c.status.Task) }
	s.stop = func(s *step) error { return s.stopTask(c.status.Task, &c.status.Reason, c.abort) }
	s.end, s.fallback = events.CustomizeCompleted, events.CustomizationFailed
	s.privileges = map[string]string{mayCustomize: "customize"}
}

// effect customizes the running guest: CustomizeGuest_Task.
func (c *customizeStep) effect() *effect {
	e := c.taskEffect("customize", customizeMethod, &c.status.Task, &c.status.StartedAt,
		func(ctx context.Context, fence vcapi.Fence, auth vcapi.GuestAuth) (string, error) {
			auth.Redact = c.sends.secrets
			return c.vc.CustomizeGuest(ctx, fence, c.vm, auth, c.sends.spec, c.sends.params)
		})
	e.starting, e.started = events.CustomizeStarting, events.CustomizeStarted
	login := e.prepare
	e.prepare = func(ctx context.Context) (func(), error) { return c.prepare(ctx, login) }
	e.refused = func(v *vcapi.Error) error {
		if c.step.kindOf(v) == engineBroken {
			return c.repeatAborted(c.step.failure(v))
		}
		return nil
	}

	// Repeating a customization that may have begun is the vendor's procedure: abort, then again.
	e.repeated = func() { c.point.Abort = true }
	e.before = func(ctx context.Context) (bool, error) {
		if !c.point.Abort {
			return false, nil
		}
		return true, c.abort(ctx)
	}

	return e
}

// prepare fills the secrets into what is to be sent, and reads what there is of the guest before.
func (c *customizeStep) prepare(ctx context.Context, login func(context.Context) (func(), error)) (func(), error) {
	stored, err := c.step.readSpec(ctx)
	if err != nil {
		return nil, err
	}
	spec, specSecrets, err := c.secrets.fill(ctx, stored)
	if err != nil {
		return nil, c.noSecret(ctx, c.step.name, "customize.spec", err)
	}
	params, paramSecrets, err := c.secrets.fill(ctx, c.spec.Customize.ConfigParams)
	if err != nil {
		return nil, c.noSecret(ctx, c.step.name, "customize.configParams", err)
	}
	c.sends = customization{spec: spec, params: params, secrets: slices.Concat(specSecrets, paramSecrets)}
	begin, err := login(ctx)
	if err != nil {
		return nil, err
	}

	e := c.expected(ctx)
	asked := e.name()
	was, err := c.readBefore(ctx, func(vm vcapi.VM) bool {
		return c.showsOther(e, vm) && !c.point.comesBy(asked)
	})
	if err != nil {
		return nil, err
	}
	was.Asked = asked
	return func() {
		begin()
		c.keepBefore(was)
	}, nil
}

// read waits for the end of the customization and decides how it ended: by the guest's own word where it speaks of this
// run, else by the Task's; where that failed, by what the guest shows, if it has changed to what is asked for.
func (c *customizeStep) read(ctx context.Context, s *step) error {
	task, err := s.followTask(ctx, c.status.Task, c.tellProgress())
	var failure *stepError
	kind := unknownEnd
	switch {
	case errors.As(err, &failure) && failure.code == events.Uncertain:
		// vCenter has forgotten it. The guest may still tell.
	case err != nil:
		return err
	default:
		failure, kind = s.taskFailure(task)
	}

	if kind == passes {
		return &againError{err: failure.err}
	}
	if task.CompleteTime != nil {
		c.telemetry.ranFor(task.CompleteTime.Sub(task.QueueTime))
	}

	seen, err := c.afterwards(ctx, failure != nil, failure != nil && kind.mayHaveRun())
	if err != nil && (failure == nil && !errors.Is(err, errLooked) || !isTimeOver(err)) {
		return err // but a failure that is known is not dropped for want of time to look further
	}
	if err == nil && failure != nil && !seen.decides() && c.mayRepeat(kind) {
		if again := c.repeatAborted(failure); again != nil {
			return again
		}
	}

	return c.judge(seen, failure)
}

// mayRepeat reports whether a Task that ended so is aborted and repeated: nothing is begun in overtime.
func (c *customizeStep) mayRepeat(kind faultKind) bool {
	return (kind == engineBroken || kind == toolsLost) && c.clock.now().Before(c.step.stepEnd())
}

// judge ends the customization by the most specific word there is about it.
func (c *customizeStep) judge(seen guestSeen, failure *stepError) error {
	by := "task"
	switch {
	case seen.status.Status == "FAILED":
		by, failure = "guest-status", c.guestFailure(&seen.status, failure)
	case seen.status.Status == "SUCCEEDED":
		by, failure = "guest-status", nil
	case failure != nil && seen.shows:
		by, failure = "verify", nil
	}

	if seen.status.Status != "" {
		c.status.Guest = guestOf(&seen.status)
	}
	return c.decide(by, failure)
}

// decide ends the customization.
func (c *customizeStep) decide(by string, failure *stepError) error {
	now := stamp(time.Now())
	c.status.DecidedBy, c.status.FinishedAt, c.point.Failed = by, &now, nil
	if failure == nil {
		done := 100
		c.status.Progress = &done
	}

	return c.step.complete(failure)
}

// tellProgress tells a Task's progress at its pace, and the guest's status where it speaks of this run.
func (c *customizeStep) tellProgress() func(vcapi.WatchState) error {
	var toldAt time.Time
	told := -progressStep
	return func(w vcapi.WatchState) error {
		guest := false
		if c.point.began(w.VM.Customization) {
			g := guestOf(w.VM.Customization)
			guest = c.status.Guest == nil || c.status.Guest.Status != g.Status
			c.status.Guest = g
		}

		p := 0
		if w.Task.Progress != nil {
			p = *w.Task.Progress
			c.status.Progress = w.Task.Progress
		}

		if !guest && (p == max(told, 0) || p < told+progressStep && time.Since(toldAt) < progressTime) {
			return nil
		}
		told, toldAt = p, time.Now()
		return c.record(events.CustomizeProgressed)
	}
}

// guestSeen is what there is to see of the guest after a customization.
type guestSeen struct {
	status vcapi.GuestCustomization // its own, where it speaks of this run
	shows  bool                     // it has changed to what is asked for
}

// decides reports whether it decides about the customization.
func (g guestSeen) decides() bool { return g.shows || guestEnded(g.status.Status) }

// afterwards looks at the guest once the Task has ended. The guest's own status, where it speaks of this run and has
// not ended, is waited for. Where look asks for it, so is what the guest shows: its NICs do not count, they come with
// the network. Both have verify.timeout; after a failed Task at most half of what is left of the step, so that an abort
// and a repeat fit into the rest.
func (c *customizeStep) afterwards(ctx context.Context, failed, look bool) (seen guestSeen, err error) {
	// Nothing, where it cannot be read although vCenter is there.
	seen.status, _ = readDecisive(ctx, c.step, c.guestStatus)
	if ctx.Err() != nil {
		return seen, c.interrupted(ctx)
	}
	if !c.point.began(&seen.status) {
		seen.status = vcapi.GuestCustomization{} // this channel is silent, the others tell
	}
	if err := c.step.readSpecSince(ctx); err != nil {
		return seen, err
	}
	e := c.expected(ctx)
	look = look && c.point.Other && c.state.Verify != nil
	if guestEnded(seen.status.Status) || seen.status.Status == "" && !look {
		return seen, nil
	}

	c.telemetry.endedAt = time.Time{} // the guest ends later than its Task, and its clock is another
	err = c.step.lookUntil(ctx, failed, func(vm vcapi.VM) bool {
		if c.point.began(vm.Customization) {
			seen.status = *vm.Customization
		}
		seen.shows = look && c.showsAll(e, vm)
		return guestEnded(seen.status.Status) || seen.shows && seen.status.Status == ""
	})

	return seen, err
}

func guestEnded(status string) bool { return status == "SUCCEEDED" || status == "FAILED" }

// guestFailure is the failure of which the guest itself tells; beneath it is the Task's, where that failed too.
func (c *customizeStep) guestFailure(g *vcapi.GuestCustomization, task *stepError) *stepError {
	f := &stepError{step: c.step.name, code: events.CustomizationFailed, err: failureBeneath(task),
		message: "the guest says that its customization failed: " + orNone(g.Error)}
	words, retryable := engineWords(g.Error)
	f.retryable = retryable
	f.message += ": " + cmp.Or(words, cures[f.code])
	return f
}

// repeatAborted begins the vendor's procedure, once: abort, then again. nil: that was done already.
func (c *customizeStep) repeatAborted(failure *stepError) error {
	if c.point.Aborted {
		return nil
	}
	c.point.Aborted, c.point.Abort, c.point.Failed = true, true, c.errorOf(failure)
	return &againError{err: failure, atOnce: true}
}

// outOfTime keeps the failure of a customization that was to be repeated, where the step's or the run's time is over
// before the repeat has ended.
func (c *customizeStep) outOfTime(err error) error {
	known := c.point.Failed
	if known == nil || !errors.Is(err, errStepTime) && !errors.Is(err, errDeadline) {
		return err
	}
	f := &stepError{stored: changedError(known, "; there was no time left to abort and repeat it")}
	if *c.step.state != events.Running { // no repeat is under way
		return c.decide("task", f)
	}
	f.stored = changedError(known, "; it was aborted and repeated, and the repeat did not end in time")
	f.stored.Code, f.stored.Retryable = events.StepTimeout, true
	if errors.Is(err, errDeadline) {
		f.stored.Code = events.DeadlineExceeded
	}
	return f
}

// changedError is e with more to say.
func changedError(e *events.Error, more string) *events.Error {
	other := *e
	other.Message += more
	return &other
}

func failureBeneath(f *stepError) error {
	if f == nil {
		return nil
	}
	return f.err
}

func orNone(s string) string {
	if s == "" {
		return "it gives no reason"
	}
	return s
}

// abort ends a customization whose state nobody knows, as the vendor's procedure has it before a second attempt:
// AbortCustomization_Task kills the engine in the guest and frees its lock. (Recovering from Guest Network
// Customization Errors, Web Services SDK Programming Guide.) Once more is harmless, so a crash in it is followed by
// another one, unless its Task is found.
func (c *customizeStep) abort(ctx context.Context) error {
	aborting := events.Starting
	s := &step{run: c.run, name: c.step.name, state: &aborting, timeout: c.step.timeout,
		timeoutField: c.step.timeoutField,
		fallback:     c.step.fallback}
	s.effect = c.abortEffect(s)
	if err := s.do(ctx); err != nil {
		// It may be at work: the run does not end before it has.
		c.owner.abortInFlight = c.owner.abortInFlight || c.owner.inFlight
		return c.notAborted(err)
	}

	end, err := s.followTask(ctx, c.point.Aborting, func(vcapi.WatchState) error { return nil })
	if err != nil {
		return err
	}
	c.point.Aborting = ""
	if err := s.harmless(end); err != nil {
		return c.notAborted(err)
	}
	c.point.Abort, c.owner.abortInFlight = false, false
	c.owner.lookAgain = false // what was not answered before has come to its end
	return c.record(events.CustomizeAborted)
}

// abortEffect is the call; customize.aborted tells its end, and there is no event in between.
func (c *customizeStep) abortEffect(s *step) *effect {
	var auth vcapi.GuestAuth
	since := time.Now()
	made := func(task string) {
		c.point.Aborting, c.seen.newestTask = task, task
		c.point.Tasks = append(c.point.Tasks, task)
	}

	return &effect{
		name: abortEffect, starting: events.CustomizeAborting, task: true, lostMost: lostMost,
		find: func(ctx context.Context) (found, error) {
			seen, err := c.findTask(ctx, abortEffect, abortMethod, func(t vcapi.Task) { made(t.ID) })
			seen.sure = true
			return seen, err
		},
		prepare: func(ctx context.Context) (intend func(), err error) {
			auth, err = c.guestAuth(ctx, c.step.name)
			return func() {}, err
		},
		call: func(ctx context.Context, fence vcapi.Fence) error {
			task, err := c.vc.AbortCustomization(ctx, fence, c.vm, auth)
			if err == nil {
				made(task)
			}
			return err
		},
		refused: func(v *vcapi.Error) error {
			if c.stopping && (s.kindOf(v) != passes || time.Since(since) > insistTime) {
				return s.failure(v)
			}
			return nil
		},
	}
}

// notAborted tells, of an abort that did not come about, also what it was for.
func (c *customizeStep) notAborted(err error) error {
	var f *stepError
	if known := c.point.Failed; known != nil && errors.As(err, &f) && f.stored == nil {
		f.message += fmt.Sprintf("; the customization, which had failed (%s), was to be aborted and repeated",
			known.Message)
	}
	return err
}

// guestStatus reads the guest's own word: by the call that is made for it, or, where that fails, as the VM's properties
// show it.
func (c *customizeStep) guestStatus(ctx context.Context) (vcapi.GuestCustomization, error) {
	once, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	g, err := c.vc.CustomizationStatus(once, c.vm)
	if err == nil {
		return g, nil
	}
	c.notRead(ctx, err)
	other, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	if vm, unread := c.vc.VM(other, c.vm); unread == nil && vm.Customization != nil {
		return *vm.Customization, nil
	}
	return g, err
}

// notRead notes, once, why the guest's own word on its customization could not be read: the others decide then.
func (c *customizeStep) notRead(ctx context.Context, err error) {
	if c.status.NotRead != nil || ctx.Err() != nil {
		return
	}
	c.status.NotRead = reasonOf(err)
	c.logger().Warn().Err(err).Msg("the guest's own status cannot be read: the Task and what the guest shows decide")
}

// readBefore reads what there is of the guest before a call. other reports whether a VM shows something else than what
// the call is to bring about. Where something cannot be read, it costs only this evidence: the Task still tells.
func (c *customizeStep) readBefore(ctx context.Context, other func(vcapi.VM) bool) (before, error) {
	// A vCenter that is away is waited for, or its evidence would be missing later.
	vm, unseen := readDecisive(ctx, c.step, c.readVMBefore)
	status, unread := readDecisive(ctx, c.step, c.guestStatus)
	if ctx.Err() != nil { // what was not read to its end is not what was there
		return before{}, c.interrupted(ctx)
	}
	return before{GuestRead: unread == nil, GuestStart: status.StartTime, Other: unseen == nil && other(vm)}, nil
}
