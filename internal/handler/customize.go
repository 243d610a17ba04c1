package handler

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Pace of customize.progressed: a change of state at once, else at most every progressTime or progressStep per cent.
const (
	progressTime = 10 * time.Second
	progressStep = 10
)

// The methods that make Tasks.
const (
	customizeMethod = "CustomizeGuest_Task"
	networkMethod   = "StartGuestNetwork_Task"
	abortMethod     = "AbortCustomization_Task"
)

// taskAct is an act whose effect is a Task: method makes it, and task and startedAt are where the run's state keeps it.
func (r *run) taskAct(name, method string, task *string, startedAt **time.Time,
	call func(ctx context.Context, gate vcapi.Fence, auth vcapi.GuestAuth) (string, error)) *act {
	var auth vcapi.GuestAuth
	made := func(id string) {
		*task = id
		r.point.Tasks = append(r.point.Tasks, id)
		r.newest = id
	}
	return &act{
		name: name,
		look: func(ctx context.Context) (sighting, error) {
			return r.lookForTask(ctx, name, method, func(t vcapi.Task) { made(t.ID) })
		},
		prepare: func(ctx context.Context) (intend func(), err error) {
			auth, err = r.guestAuth(ctx, name)
			return func() {
				if *startedAt == nil {
					now := stamp(time.Now())
					*startedAt = &now
				}
			}, err
		},
		call: func(ctx context.Context, gate vcapi.Fence) error {
			id, err := call(ctx, gate, auth)
			if err == nil {
				made(id)
			}
			return err
		},
	}
}

// customize is the act of customizing the running guest: CustomizeGuest_Task.
func (r *run) customize() *act {
	c := r.state.Customize
	var spec, params json.RawMessage
	var redact []string
	a := r.taskAct("customize", customizeMethod, &c.Task, &c.StartedAt, func(ctx context.Context, gate vcapi.Fence, auth vcapi.GuestAuth) (string, error) {
		auth.Redact = redact
		return r.vc.CustomizeGuest(ctx, gate, r.vm, auth, spec, params)
	})
	a.starting, a.started = events.CustomizeStarting, events.CustomizeStarted
	login := a.prepare
	a.prepare = func(ctx context.Context) (func(), error) {
		if err := r.readSpec(ctx, r.current()); err != nil {
			return nil, err
		}
		var specSecrets, paramSecrets []string
		var err error
		if spec, specSecrets, err = r.secrets.fill(ctx, r.spec); err != nil {
			return nil, r.noSecret(ctx, "customize", "customize.spec", err)
		}
		if params, paramSecrets, err = r.secrets.fill(ctx, r.asked.Customize.ConfigParams); err != nil {
			return nil, r.noSecret(ctx, "customize", "customize.configParams", err)
		}
		redact = slices.Concat(specSecrets, paramSecrets)
		begin, err := login(ctx)
		if err != nil {
			return nil, err
		}
		e := r.expected(ctx)
		asked := e.name()
		was, err := r.lookBefore(ctx, func(vm vcapi.VM) bool { return r.shownOther(e, vm) && !r.point.comesBy(asked) })
		was.Asked = asked
		if err != nil {
			return nil, err
		}
		return func() {
			begin()
			r.noteBefore(was)
		}, nil
	}
	a.refused = func(s *step, v *vcapi.Error) error {
		if r.kindOf(s, v) == engineBroken {
			return r.repeatAborted(r.failure(s, v))
		}
		return nil
	}
	return a
}

// readSpec reads the spec that the run customizes with: the request's own, or the one of that name in vCenter. That one is pinned by its digest: what was
// changed after the check is not what the check saw, nor what the guest was customized with.
func (r *run) readSpec(ctx context.Context, s *step) error {
	if r.spec != nil || r.asked.Customize == nil {
		return nil
	}
	name := r.asked.Customize.SpecName
	if name == "" {
		r.spec = r.asked.Customize.Spec
		return nil
	}
	spec, err := ask(ctx, r, s, func(ctx context.Context) (json.RawMessage, error) { return r.vc.StoredSpec(ctx, name) })
	if err != nil {
		return err
	}
	digest := digestOf(spec)
	if r.point.Spec != "" && r.point.Spec != digest {
		return &stepError{step: s.name, code: events.InvalidState, retryable: true, message: fmt.Sprintf(
			"the customization specification %q was changed in vCenter %s after the run's check: send a new request", name, r.VCenter)}
	}
	r.point.Spec, r.spec = digest, spec
	return nil
}

// readSpecSince is readSpec once the guest was customized: where the stored spec has changed since, or is gone, nothing is known of what the guest should show.
func (r *run) readSpecSince(ctx context.Context, s *step) error {
	err := r.readSpec(ctx, s)
	var f *stepError
	if errors.As(err, &f) && r.asked.Customize.SpecName != "" {
		r.specGone = f.message
		return nil
	}
	return err
}

// digestOf names the content of a spec, but its passwords: vCenter keeps them under a key of its own, and may write them otherwise each time.
func digestOf(spec json.RawMessage) string {
	var tree any
	if json.Unmarshal(spec, &tree) == nil {
		dropPasswords(tree)
		if canonical, err := json.Marshal(tree); err == nil {
			spec = canonical
		}
	}
	sum := sha256.Sum256(spec)
	return hex.EncodeToString(sum[:])
}

func dropPasswords(tree any) {
	switch t := tree.(type) {
	case []any:
		for _, element := range t {
			dropPasswords(element)
		}
	case map[string]any:
		delete(t, "encryptionKey")
		if t["_typeName"] == "CustomizationPassword" {
			delete(t, "value")
		}
		for _, member := range t {
			dropPasswords(member)
		}
	}
}

// guestStatus reads the guest's own word: by the call that is made for it, or, where that fails, as the VM's properties show it.
func (r *run) guestStatus(ctx context.Context) (vcapi.GuestCustomization, error) {
	once, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	g, err := r.vc.CustomizationStatus(once, r.vm)
	if err == nil {
		return g, nil
	}
	r.notRead(ctx, err)
	other, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	if vm, unread := r.vc.VM(other, r.vm); unread == nil && vm.Customization != nil {
		return *vm.Customization, nil
	}
	return g, err
}

// customized waits for the end of the customization and decides how it ended: by the guest's own word where it speaks of this run, else by the Task's;
// where that failed, by what the guest shows, if it has changed to what is asked for.
func (r *run) customized(ctx context.Context) error {
	s, c := r.current(), r.state.Customize
	task, err := r.followTask(ctx, s, c.Task, r.tellProgress())
	var failure *stepError
	kind := unknownEnd
	switch {
	case errors.As(err, &failure) && failure.code == events.Uncertain: // vCenter has forgotten it. The guest may still tell.
	case err != nil:
		return err
	default:
		failure, kind = r.taskFailure(s, task)
	}
	if kind == passes {
		return &againError{err: failure.err}
	}
	if task.CompleteTime != nil {
		r.endedAfter(task.CompleteTime.Sub(task.QueueTime))
	}
	g, shown, err := r.afterwards(ctx, s, failure != nil, failure != nil && kind.mayHaveRun())
	unread := errors.Is(err, errLooked) // the last look had no answer of use: the others tell, and nothing is repeated on that
	inTime := !unread && !errors.Is(err, errStepTime) && !errors.Is(err, errDeadline)
	if err != nil && !unread && (inTime || failure == nil) { // a failure that is known is not dropped for want of time to look further
		return err
	}
	decided := "task"
	switch {
	case g.Status == "FAILED":
		decided, failure = "guest-status", r.guestFailure(s, &g, failure)
	case g.Status == "SUCCEEDED":
		decided, failure = "guest-status", nil
	case failure == nil:
	case shown:
		decided, failure = "verify", nil
	case inTime && r.clock.now().Before(r.stepEnd(s)) && (kind == engineBroken || kind == toolsLost): // nothing is begun in overtime
		if again := r.repeatAborted(failure); again != nil {
			return again
		}
	}
	if g.Status != "" {
		c.Guest = guestOf(&g)
	}
	return r.decide(decided, failure)
}

// decide ends the customization.
func (r *run) decide(by string, failure *stepError) error {
	c, now := r.state.Customize, stamp(time.Now())
	c.DecidedBy, c.FinishedAt, r.point.Failed = by, &now, nil
	if failure == nil {
		done := 100
		c.Progress = &done
	}
	return r.complete(events.CustomizeCompleted, &c.State, failure)
}

// tellProgress tells a Task's progress at its pace, and the guest's status where it speaks of this run.
func (r *run) tellProgress() func(vcapi.WatchState) error {
	c := r.state.Customize
	var toldAt time.Time
	told := -progressStep
	return func(w vcapi.WatchState) error {
		guest := false
		if r.point.began(w.VM.Customization) {
			g := guestOf(w.VM.Customization)
			guest = c.Guest == nil || c.Guest.Status != g.Status
			c.Guest = g
		}
		p := 0
		if w.Task.Progress != nil {
			p = *w.Task.Progress
			c.Progress = w.Task.Progress
		}
		if !guest && (p == max(told, 0) || p < told+progressStep && time.Since(toldAt) < progressTime) {
			return nil
		}
		told, toldAt = p, time.Now()
		return r.record(events.CustomizeProgressed)
	}
}

// afterwards looks at the guest once the Task has ended. g is the guest's own status where it speaks of this run: one that has not ended is waited for. shown tells,
// where it is asked for, whether the guest has changed to what is asked for: its NICs do not count, they come with the network. Both have verify.timeout;
// after a failed Task at most half of what is left of the step, so that an abort and a repeat fit into the rest.
func (r *run) afterwards(ctx context.Context, s *step, failed, look bool) (g vcapi.GuestCustomization, shown bool, err error) {
	g, _ = askLate(ctx, r, s, r.guestStatus) // nothing, where it cannot be read although vCenter is there
	if ctx.Err() != nil {
		return g, false, r.interrupted(ctx)
	}
	if !r.point.began(&g) {
		g = vcapi.GuestCustomization{} // this channel is silent, the others tell
	}
	if err := r.readSpecSince(ctx, s); err != nil {
		return g, false, err
	}
	e := r.expected(ctx)
	look = look && r.point.Other && r.state.Verify != nil
	if guestEnded(g.Status) || g.Status == "" && !look {
		return g, false, nil
	}
	r.endedAt = time.Time{} // the guest ends later than its Task, and its clock is another
	see := func(vm vcapi.VM) bool {
		if r.point.began(vm.Customization) {
			g = *vm.Customization
		}
		shown = look && r.shownAll(e, vm)
		return guestEnded(g.Status) || shown && g.Status == ""
	}
	err = r.lookUntil(ctx, s, failed, see)
	return g, shown, err
}

// lookUntil looks at the VM until see is satisfied, for verify.timeout at most: after a failed Task for half of what is left, too.
func (r *run) lookUntil(ctx context.Context, s *step, failed bool, see func(vcapi.VM) bool) error {
	limit := r.verifyTimeout()
	if due, ok := ctx.Deadline(); ok && failed {
		limit = min(limit, time.Until(due)/2)
	}
	within, cancel := r.clock.within(ctx, limit, errLooked)
	defer cancel()
	_, err := r.shown(ctx, within, s, func(vm vcapi.VM) (bool, error) { return see(vm), nil })
	return err
}

func guestEnded(status string) bool { return status == "SUCCEEDED" || status == "FAILED" }

// guestFailure is the failure of which the guest itself tells; beneath it is the Task's, where that failed too.
func (r *run) guestFailure(s *step, g *vcapi.GuestCustomization, task *stepError) *stepError {
	f := &stepError{step: s.name, code: events.CustomizationFailed, err: failureBeneath(task),
		message: "the guest says that its customization failed: " + orNone(g.Error)}
	words, retryable := engineWords(g.Error)
	f.retryable = retryable
	f.message += ": " + cmp.Or(words, cures[f.code])
	return f
}

// repeatAborted begins the vendor's procedure, once: abort, then again. nil: that was done already.
func (r *run) repeatAborted(failure *stepError) error {
	if r.point.Aborted {
		return nil
	}
	r.point.Aborted, r.point.Abort, r.point.Failed = true, true, r.errorOf(failure)
	return &againError{err: failure, atOnce: true}
}

// outOfTime keeps the failure of a customization that was to be repeated, where the step's or the run's time is over before the repeat has ended.
func (r *run) outOfTime(s *step, err error) error {
	known := r.point.Failed
	if known == nil || s.name != "customize" || !errors.Is(err, errStepTime) && !errors.Is(err, errDeadline) {
		return err
	}
	f := &stepError{stored: changedError(known, "; there was no time left to abort and repeat it")}
	if *s.state != events.Running { // no repeat is under way
		return r.decide("task", f)
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

// abort ends a customization whose state nobody knows, as the vendor's procedure has it before a second attempt: AbortCustomization_Task kills the
// engine in the guest and frees its lock. (Recovering from Guest Network Customization Errors, Web Services SDK Programming Guide.) Once more is
// harmless, so a crash in it is followed by another one, unless its Task is found.
func (r *run) abort(ctx context.Context, s *step) error {
	var auth vcapi.GuestAuth
	made := func(task string) {
		r.point.Aborting, r.newest = task, task
		r.point.Tasks = append(r.point.Tasks, task)
	}
	aborting, since := events.Starting, time.Now()
	err := r.do(ctx, &step{name: s.name, state: &aborting, timeout: s.timeout, act: &act{
		name: "abort", starting: events.CustomizeAborting, // customize.aborted tells its end, and there is no event in between
		look: func(ctx context.Context) (sighting, error) {
			seen, err := r.lookForTask(ctx, "abort", abortMethod, func(t vcapi.Task) { made(t.ID) })
			seen.sure = true
			return seen, err
		},
		prepare: func(ctx context.Context) (intend func(), err error) {
			auth, err = r.guestAuth(ctx, "customize")
			return func() {}, err
		},
		call: func(ctx context.Context, gate vcapi.Fence) error {
			task, err := r.vc.AbortCustomization(ctx, gate, r.vm, auth)
			if err == nil {
				made(task)
			}
			return err
		},
		refused: func(s *step, v *vcapi.Error) error {
			if r.stopping && (r.kindOf(s, v) != passes || time.Since(since) > insistTime) {
				return r.failure(s, v)
			}
			return nil
		},
	}})
	if err != nil {
		r.abortOpen = r.abortOpen || r.open // it may be at work: the run does not end before it has
		return r.notAborted(err)
	}
	end, err := r.followTask(ctx, s, r.point.Aborting, func(vcapi.WatchState) error { return nil })
	if err != nil {
		return err
	}
	r.point.Aborting = ""
	if err := r.harmless(s, end); err != nil {
		return r.notAborted(err)
	}
	r.point.Abort, r.abortOpen, r.lookOn = false, false, false // what was not answered before has come to its end
	return r.record(events.CustomizeAborted)
}

// notAborted tells, of an abort that did not come about, also what it was for.
func (r *run) notAborted(err error) error {
	var f *stepError
	if known := r.point.Failed; known != nil && errors.As(err, &f) && f.stored == nil {
		f.message += fmt.Sprintf("; the customization, which had failed (%s), was to be aborted and repeated", known.Message)
	}
	return err
}
