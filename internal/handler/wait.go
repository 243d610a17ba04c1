package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

const (
	// patience is how long the first try of a read may be without an answer: then the run says that it waits, and the next ones have all their time.
	patience = 12 * time.Second
	// tellFrom is how long a wait for calls in flight must be to be worth an event.
	tellFrom = time.Second
	// overtime is what a step gets, once its time is over, to take in an end that one more read has shown.
	overtime = 30 * time.Second
	// readyDefault is guest.readyTimeout where the request names none.
	readyDefault = 5 * time.Minute
	// lostMost bounds the time between two attempts whose answers were lost.
	lostMost = 5 * time.Minute
)

// blocked is what is known of why a run cannot move.
type blocked struct {
	told []string // the names of the reasons that events have told of the present wait
	by   error    // what the run waited for last
}

// retryRead repeats a read of vCenter until it is answered, the answer is one that will not pass, or ctx ends.
func retryRead[T any](ctx context.Context, r *run, s *step, read func(context.Context) (T, error)) (T, error) {
	for pause, tries := newBackoff(askPause), 1; ; tries++ {
		v, err := readOnce(ctx, r, tries == 1, read)
		if err == nil {
			r.heard()
			return v, nil
		}
		if err := r.pause(ctx, s, err, pause); err != nil {
			return v, err
		}
	}
}

func readOnce[T any](ctx context.Context, r *run, first bool, read func(context.Context) (T, error)) (T, error) {
	r.asking = true
	r.calling()
	if first {
		short, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
		defer cancel()
		ctx = short
	}
	return read(ctx)
}

// readDecisive makes the one read that decides, such as about a time that is over. Only a vCenter that is away is waited for; any other error is its word.
func readDecisive[T any](ctx context.Context, r *run, s *step, read func(context.Context) (T, error)) (T, error) {
	for pause, tries := newBackoff(askPause), 1; ; tries++ {
		v, err := readOnce(ctx, r, tries == 1, read)
		var said *vcapi.Error
		if err == nil || ctx.Err() == nil && (!errors.As(err, &said) || !r.away(ctx, said)) {
			r.heard()
			if said != nil && silent(said) && tries == 1 { // vCenter may have come back just before it was asked
				continue
			}
			return v, err
		}
		if err := r.pause(ctx, s, err, pause); err != nil {
			return v, err
		}
	}
}

// pause waits after an error that will pass, telling why; it fails with what an error that will not pass means, and when ctx ends.
func (r *run) pause(ctx context.Context, s *step, err error, b *backoff) error {
	if ctx.Err() != nil {
		return r.interrupted(ctx)
	}
	var v *vcapi.Error
	if !errors.As(err, &v) {
		return err // not vCenter's: an ended run, a fenced owner, an unreadable secret
	}
	why := r.absence(ctx, s, v)
	if why == "" {
		return r.failure(s, err)
	}
	if err := r.wait(why, err); err != nil {
		return err
	}
	select {
	case <-b.next():
		return nil
	case <-ctx.Done():
		return r.interrupted(ctx)
	}
}

// absence is what an error makes the run wait for; nothing, where it will not pass.
func (r *run) absence(ctx context.Context, s *step, v *vcapi.Error) events.Waiting {
	switch {
	case r.away(ctx, v):
		return events.WaitingVCenterUnavailable
	case silent(v) && inGuest(v): // it is the guest that hangs
		return events.WaitingTools
	}
	return r.outcome(s, v).waiting
}

// calling notes that a call is about to be made: if vCenter gives it no answer, it is away since now.
func (r *run) calling() {
	if r.silentSince.IsZero() {
		r.silentSince = time.Now()
	}
}

// heard notes that vCenter answers.
func (r *run) heard() {
	r.silentSince = time.Time{}
	r.clock.goOn()
	r.telemetry.unblockedBy(events.WaitingVCenterUnavailable)
}

// away reports whether vCenter gives no answer of its own; then the steps' clock stands still, since the first call that got none. A call to the guest
// may hang in the guest: that vCenter is away is believed where it does not even tell its time.
func (r *run) away(ctx context.Context, v *vcapi.Error) bool {
	gone := silent(v)
	if gone && inGuest(v) && v.Sent != vcapi.NotSent {
		once, cancel := context.WithTimeout(ctx, patience)
		_, err := r.vc.Now(once)
		cancel()
		var said *vcapi.Error
		if gone = errors.As(err, &said) && silent(said); !gone {
			_, still := r.clock.stands()
			r.heard()
			return !still.IsZero() // it was away until now: what the guest did not answer is asked again
		}
	}
	if !gone {
		r.heard()
		return false
	}
	since := r.silentSince
	if since.IsZero() {
		since = time.Now()
	}
	r.clock.stop(since)
	return true
}

// silent reports whether an error is no answer of vCenter's own: none at all, that of a proxy before it or of its front end, or the refusal of our own
// login. What is known of a VM or a Task is then from before.
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
	case "guest/customization check", "GET guest/customization", "CustomizeGuest_Task", "StartGuestNetwork_Task", "AbortCustomization_Task":
		return true
	}
	return v.Guest
}

// waitTold is what events have told of a wait.
type waitTold struct {
	why    events.Waiting
	reason *events.WaitReason
	names  []string
}

func (r *run) toldWait() waitTold {
	return waitTold{r.state.Waiting, r.state.WaitingFor, r.blocked.told}
}

func (r *run) stillWaits(w waitTold) {
	r.state.Waiting, r.state.WaitingFor, r.blocked.told = w.why, w.reason, w.names
}

// wait tells that the run cannot move, and why: once per reason, and per name that vCenter gives it.
func (r *run) wait(why events.Waiting, err error) error {
	r.blocked.by = err
	r.telemetry.blockedBy(why)
	if !r.news(why, err) || r.owner.last.Seq == 0 || r.state.N == 0 {
		return nil // told already, or there is no run yet to tell it of
	}
	r.tells(why, err)
	return r.record(events.RunWaiting)
}

// news reports whether a wait, or its reason, was not told yet.
func (r *run) news(why events.Waiting, err error) bool {
	name := reasonName(err)
	return r.state.Waiting != why || name != "" && !slices.Contains(r.blocked.told, name)
}

// tells puts a wait into the run's state.
func (r *run) tells(why events.Waiting, err error) {
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
	r.tells(events.WaitingTools, err)
	return r.record(events.ProcessUnreachable)
}

// moved ends a wait that no event ends.
func (r *run) moved(why events.Waiting) {
	r.telemetry.unblockedBy(why)
	if r.state.Waiting == why {
		r.stillWaits(waitTold{})
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

// inTime takes a step to its end within its time. That this is over is told only from one read made after it: what was seen before may be old, and a
// vCenter that was away gives its time back.
func (r *run) inTime(ctx context.Context, s *step) error {
	for {
		within, cancel := r.stepTime(ctx, s)
		err := r.doAndRead(within, s)
		cancel()
		if !errors.Is(err, errStepTime) {
			return outOfTime(s, err)
		}

		// What was waited for is told as it was before one more read.
		late := r.timeError(events.StepTimeout, s, fmt.Sprintf("the step's time is over (%s %s)", s.timeoutField, s.timeout))
		isOver := s.ended
		if *s.state != events.Running {
			isOver = r.answers
		}
		ended, err := readDecisive(ctx, r, s, isOver)
		switch {
		case ctx.Err() != nil:
			return r.interrupted(ctx)
		case errors.Is(err, events.ErrFenced):
			return err
		case gone(err), errors.As(err, new(*stepError)): // the VM is none, or another one, now
			return r.failure(s, err)
		case err == nil && ended:
			return r.overtime(ctx, s, late)
		case !r.clock.now().Before(r.stepEnd(s)):
			return r.tooLate(s, late)
		}
	}
}

// overtime takes in the end that one more read has shown.
func (r *run) overtime(ctx context.Context, s *step, late *stepError) error {
	ctx, cancel := r.clock.within(ctx, overtime, errStepTime)
	defer cancel()
	if err := r.doAndRead(ctx, s); !errors.Is(err, errStepTime) {
		return outOfTime(s, err)
	}
	return r.tooLate(s, late)
}

// tooLate is the end of a step whose time is over. A customization that had failed, and was to be repeated, ends by that.
func (r *run) tooLate(s *step, late *stepError) error {
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
func (r *run) stepSince(s *step) time.Time {
	if r.point.StepSince != nil && r.point.Step == s.name+"/"+s.process {
		return *r.point.StepSince
	}
	return time.Now()
}

// stepTime bounds a step, across takeovers too.
func (r *run) stepTime(ctx context.Context, s *step) (context.Context, context.CancelFunc) {
	if key := s.name + "/" + s.process; r.point.Step != key || r.point.StepSince == nil {
		begun := r.begun(key)
		r.point.Step, r.point.StepSince, r.point.StepStood = key, &begun.Since, begun.Stood
	}
	return r.clock.until(ctx, r.stepEnd(s), errStepTime)
}

// stepEnd is when, by the steps' clock, the time of s is over.
func (r *run) stepEnd(s *step) time.Time {
	return phase{Since: *r.point.StepSince, Stood: r.point.StepStood}.end(s.timeout)
}

// begun is a phase that begins now.
func (r *run) begun(name string) phase {
	now := time.Now()
	return phase{Step: name, Since: stamp(now), Stood: max(0, now.Sub(r.clock.now()))}
}

func (p phase) end(limit time.Duration) time.Time { return p.Since.Add(limit - p.Stood) }

// keepTime puts into the checkpoint what the steps' clock shows.
func (r *run) keepTime() {
	stood, still := r.clock.stands()
	r.point.Stood, r.point.Still = stood, nil
	if !still.IsZero() {
		at := stamp(still)
		r.point.Still = &at
	}
}

// goOnTiming takes over the clock of the owner before. Between the two it went, unless the last event says that vCenter was away.
func (r *run) goOnTiming(last *events.Entry) {
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

// endsWait reports whether an event tells that the run waits no longer. One that changes its owner does not where vCenter is away: the next owner must
// know. Neither does the progress of a Task whose VM is off, nor an intent.
func (r *run) endsWait(k events.Kind) bool {
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
		return r.telemetry.blocked != events.WaitingResourceBusy && r.telemetry.blocked != events.WaitingGuestLogin && r.telemetry.blocked != events.WaitingTools
	}
	return true
}

// ready waits for VMware Tools before a step that speaks to the guest.
func (r *run) ready(ctx context.Context, s *step) error {
	vm, err := retryRead(ctx, r, s, r.readVM)
	if err != nil {
		return err
	}
	if toolsReady(vm) {
		r.point.Ready = nil
		return nil
	}
	limit := r.asked.Guest.ReadyTimeout.Or(readyDefault)
	if limit == 0 {
		return r.notReady(s, vm, limit)
	}
	if err := r.wait(events.WaitingTools, r.noTools(vm)); err != nil {
		return err
	}
	if key := s.name + "/" + s.process; r.point.Ready == nil || r.point.Ready.Step != key {
		begun := r.begun(key)
		r.point.Ready = &begun
	}
	within, cancel := r.clock.until(ctx, r.point.Ready.end(limit), errStepTime)
	defer cancel()
	shown, err := r.shown(ctx, within, s, func(now vcapi.VM) (bool, error) {
		vm = now
		return toolsReady(now), nil
	})
	if err == nil && !shown || errors.Is(err, errLooked) {
		err = r.notReady(s, vm, limit)
	}
	if err == nil {
		r.point.Ready = nil
		r.moved(events.WaitingTools)
	}
	return err
}

// noTools is why nothing can be asked of the guest.
func (r *run) noTools(vm vcapi.VM) error {
	if err := r.powerOf(vm); err != nil {
		return err
	}
	return fmt.Errorf("VMware Tools are not ready in vm %s: vCenter shows %s", r.vm, orNothing(vm.ToolsRunningStatus))
}

func (r *run) notReady(s *step, vm vcapi.VM, limit time.Duration) *stepError {
	f := &stepError{step: s.name, process: s.process, code: events.ToolsNotRunning, retryable: true, waiting: events.WaitingTools,
		message: fmt.Sprintf("VMware Tools did not get ready within %s (guest.readyTimeout): see that they run in the guest", limit)}
	if err := r.powerOf(vm); err != nil {
		f.code, f.retryable, f.message = events.PowerState, false, err.Error()
	}
	return f
}

func toolsReady(vm vcapi.VM) bool {
	running := vm.ToolsRunningStatus == "guestToolsRunning" || vm.ToolsRunningStatus == "guestToolsExecutingScripts"
	return running && (vm.GuestOperationsReady == nil || *vm.GuestOperationsReady)
}

func (r *run) readVM(ctx context.Context) (vcapi.VM, error) {
	vm, err := r.vc.VM(ctx, r.vm)
	if err != nil {
		return vm, err
	}
	if was := r.state.InstanceUUID; was != "" && vm.InstanceUUID != "" && was != vm.InstanceUUID {
		s := r.stands()
		return vm, &stepError{step: s.name, process: s.process, code: events.NotFound, message: fmt.Sprintf(
			"%s is another VM now (%s, instance UUID %s) than when the run began (%s): vCenter gave its ID again; see which VM is meant, then send a new request",
			r.vm, vm.Name, vm.InstanceUUID, was)}
	}
	r.noteVM(vm)
	return vm, nil
}

// shown waits until vCenter shows what fn wants of the VM. Where within, made of ctx, has ended first, one read made after that decides; errLooked: that one
// had no answer of use either.
func (r *run) shown(ctx, within context.Context, s *step, fn func(vcapi.VM) (bool, error)) (bool, error) {
	err := r.watch(within, s, "", func(w vcapi.WatchState) (bool, error) { return fn(w.VM) })
	if err == nil || within.Err() == nil || ctx.Err() != nil {
		return err == nil, err
	}
	late, cancel := r.clock.within(ctx, overtime, errLooked) // no word about the step's own time
	defer cancel()
	vm, err := retryRead(late, r, s, r.readVM)
	if err != nil {
		return false, err
	}
	return fn(vm)
}

// watch follows the VM, and a Task where one is named, on the vCenter's one long poll until fn is done or fails. It makes no call of its own while the
// poll is answered. Where it is not, other calls may be: then the same is read, now and then.
func (r *run) watch(ctx context.Context, s *step, task string, fn func(vcapi.WatchState) (done bool, err error)) error {
	power := &powerWatch{r: r, s: s, task: task}
	defer power.on()
	within := power.bound(ctx)
	defer func() { power.end(nil) }()
	see := func(w vcapi.WatchState) (bool, error) {
		if w.VMGone {
			return false, &stepError{step: s.name, process: s.process, code: events.NotFound,
				message: fmt.Sprintf("vm %s is no longer in vCenter %s: it was removed, or moved to another vCenter", r.vm, r.VCenter)}
		}
		if w.VM.Cards == nil { // the long poll does not carry the VM's hardware
			w.VM.Cards = r.seen.cards
		}
		done, err := fn(w)
		if done || err != nil {
			return done, err
		}
		return false, power.see(ctx, w.VM)
	}
	again := false
	for pause := newBackoff(askPause); ; {
		down, err := r.poll(within, task, see)
		switch {
		case errors.Is(err, errPowerOff):
			if err := power.decide(ctx); err != nil {
				return err
			}
			within = power.bound(ctx)
			continue
		case err != nil || down == nil:
			return err
		}
		// What the poll says may be from before vCenter came back: one read tells. Where reads are answered and the poll goes
		// on not to be, that is what the run waits for.
		if again {
			if err := r.wait(events.WaitingVCenterUnavailable, down); err != nil {
				return err
			}
		}
		again = true
		if done, err := r.pollByHand(ctx, s, task, see); done || err != nil {
			return err
		}
		select {
		case <-pause.next():
		case <-within.Done(): // the next poll tells what has ended
		}
		if ctx.Err() != nil {
			return r.interrupted(ctx)
		}
	}
}

// poll follows the long poll; down is why it is not answered.
func (r *run) poll(ctx context.Context, task string, see func(vcapi.WatchState) (bool, error)) (down, failed error) {
	err := r.vc.Watch(ctx, r.vm, task, func(w vcapi.WatchState) bool {
		if w.Down {
			if down = w.Err; down == nil {
				down = errPollDown
			}
			return true
		}
		r.heard()
		if r.state.Waiting == events.WaitingVCenterUnavailable {
			r.moved(events.WaitingVCenterUnavailable)
		}
		var done bool
		done, failed = see(w)
		return done || failed != nil
	})
	switch {
	case failed != nil:
		return nil, failed
	case errors.Is(context.Cause(ctx), errPowerOff):
		return nil, errPowerOff
	case err != nil && ctx.Err() != nil:
		return nil, r.interrupted(ctx)
	}
	return down, err
}

var errPollDown = errors.New("vCenter does not answer the long poll")

// pollByHand reads once what the long poll would show.
func (r *run) pollByHand(ctx context.Context, s *step, task string, see func(vcapi.WatchState) (bool, error)) (bool, error) {
	w, err := readOnce(ctx, r, true, func(ctx context.Context) (w vcapi.WatchState, err error) {
		w.VM, err = r.readVM(ctx)
		if w.VMGone = gone(err); w.VMGone || err != nil || task == "" {
			return w, ignored(err, w.VMGone)
		}
		t, err := r.vc.Task(ctx, task)
		w.Task, w.TaskGone = &t, gone(err)
		return w, ignored(err, w.TaskGone)
	})
	var v *vcapi.Error
	switch {
	case ctx.Err() != nil:
		return false, r.interrupted(ctx)
	case err == nil:
		r.silentSince = time.Time{}
		r.clock.goOn() // it still counts as one that waits: for the poll
		return see(w)
	case !errors.As(err, &v):
		return false, err
	}
	why := r.absence(ctx, s, v)
	if why == "" {
		why = events.WaitingVCenterUnavailable
	}
	return false, r.wait(why, err)
}

// gone reports whether vCenter says that there is no such object.
func gone(err error) bool {
	var v *vcapi.Error
	return errors.As(err, &v) && v.Name == "ManagedObjectNotFound"
}

func ignored(err error, ignore bool) error {
	if ignore {
		return nil
	}
	return err
}

// errPowerOff ends the wait for a Task on a VM that stays powered off.
var errPowerOff = errors.New("the VM is not powered on")

// powerWatch tells at once that a VM is powered off while something is waited for. A Task that vCenter does not end then is waited for as long as
// VMware Tools would be.
type powerWatch struct {
	r      *run
	s      *step
	task   string
	off    bool
	cancel context.CancelFunc
	end    context.CancelCauseFunc
}

// bound is ctx, with errPowerOff as one more end, for as long as nothing decides about that: over all polls, since the VM's time goes on between them.
func (p *powerWatch) bound(ctx context.Context) context.Context {
	ctx, p.end = context.WithCancelCause(ctx)
	return ctx
}

// see takes in what vCenter shows.
func (p *powerWatch) see(ctx context.Context, vm vcapi.VM) error {
	err := p.r.powerOf(vm)
	switch {
	case err == nil && !p.off:
		return nil
	case err == nil:
		p.on()
		p.r.moved(events.WaitingTools)
		return nil
	case !p.off && p.task != "":
		end := p.end
		limited, cancel := p.r.clock.within(ctx, p.limit(), errPowerOff)
		p.cancel = cancel
		context.AfterFunc(limited, func() {
			if cause := context.Cause(limited); errors.Is(cause, errPowerOff) {
				end(cause)
			}
		})
	}
	if p.off && p.r.state.Waiting == events.WaitingVCenterUnavailable {
		return nil // told already; both are so, and each in turn would be no news
	}
	p.off = true
	return p.r.wait(events.WaitingTools, err)
}

// on forgets that the VM was off.
func (p *powerWatch) on() {
	p.off = false
	if p.cancel != nil {
		p.cancel()
		p.cancel = nil
	}
}

func (p *powerWatch) limit() time.Duration {
	if p.r.asked == nil {
		return readyDefault
	}
	return p.r.asked.Guest.ReadyTimeout.Or(readyDefault)
}

// decide ends the wait, by one read made after the VM's time was over.
func (p *powerWatch) decide(ctx context.Context) error {
	p.on()
	vm, err := retryRead(ctx, p.r, p.s, p.r.readVM)
	if err != nil {
		return err
	}
	if off := p.r.powerOf(vm); off != nil {
		return &stepError{step: p.s.name, process: p.s.process, code: events.PowerState, waiting: events.WaitingTools, err: off,
			message: fmt.Sprintf("%v: it has been so for %s (guest.readyTimeout) in the middle of %s", off, p.limit(), p.task)}
	}
	return nil
}
