package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Pace of customize.progressed: a change of state at once, else at most every progressTime or progressStep per cent.
const (
	progressTime = 10 * time.Second
	progressStep = 10
)

// taskAct is an act whose effect is a Task: method makes it, and task and startedAt are where the run's state keeps it.
func (r *run) taskAct(name, method string, task *string, startedAt **time.Time,
	call func(ctx context.Context, gate vcapi.Gate, auth vcapi.GuestAuth) (string, error)) *act {
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
		call: func(ctx context.Context, gate vcapi.Gate) error {
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
	a := r.taskAct("customize", "CustomizeGuest_Task", &c.Task, &c.StartedAt, func(ctx context.Context, gate vcapi.Gate, auth vcapi.GuestAuth) (string, error) {
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
		read, start := r.guestBefore(ctx)
		return func() {
			begin()
			r.point.GuestRead, r.point.GuestStart = read, start
		}, nil
	}
	return a
}

// readSpec reads the spec that the run customizes with: the request's own, or the one of that name in vCenter.
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
	r.spec = spec
	return err
}

// guestBefore reads what the guest says of its last customization, so that an old success is not taken for this run's. Its failure costs only
// this channel: the Task still tells.
func (r *run) guestBefore(ctx context.Context) (read bool, start *time.Time) {
	before, err := r.guestStatus(ctx)
	return err == nil, before.StartTime
}

// guestStatus reads the guest's own word: by the call that is made for it, or, where that fails, as the VM's properties show it.
func (r *run) guestStatus(ctx context.Context) (vcapi.GuestCustomization, error) {
	once, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	g, err := r.vc.CustomizationStatus(once, r.vm)
	if err == nil {
		return g, nil
	}
	other, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	if vm, unread := r.vc.VM(other, r.vm); unread == nil && vm.Customization != nil {
		return *vm.Customization, nil
	}
	return g, err
}

// ofThisRun tells whether the guest's status speaks of this run: of a customization that started after the one read before the call.
func (r *run) ofThisRun(g *vcapi.GuestCustomization) bool {
	return r.point.GuestRead && g != nil && g.StartTime != nil && (r.point.GuestStart == nil || g.StartTime.After(*r.point.GuestStart))
}

// customized waits for the end of the customization and decides how it ended: by the guest's own word where it speaks of this run, else by
// the Task's.
func (r *run) customized(ctx context.Context) error {
	s, c := r.current(), r.state.Customize
	var toldAt time.Time
	told := -progressStep
	task, err := r.followTask(ctx, s, c.Task, func(w vcapi.WatchState) error {
		guest := false
		if r.ofThisRun(w.VM.Customization) {
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
	})
	if err != nil {
		return err
	}
	failure, err := r.taskFailure(s, task)
	lost := r.lostTools(s, task)
	switch {
	case lost: // how far the guest came nobody knows: it is not simply done again
		failure = r.failure(s, fmt.Errorf("%s: %w", task.ID, task.Err))
	case err != nil:
		return err
	}
	decided := "task"
	if task.CompleteTime != nil {
		r.endedAfter(task.CompleteTime.Sub(task.QueueTime))
	}
	g, err := r.guestAfter(ctx)
	if err != nil {
		return err
	}
	if failure != nil && !guestEnded(g.Status) && (lost || r.mayHaveBegun(s, task)) {
		shown, err := r.inPlace(ctx, s)
		switch {
		case err != nil:
			return err
		case shown:
			decided, failure = "verify", nil
		case (lost || general(task)) && !r.point.Aborted: // once, as the vendor has it
			r.point.Aborted, r.point.Abort = true, true
			return &againError{err: failure, atOnce: true}
		}
	}
	if r.ofThisRun(&g) {
		c.Guest = guestOf(&g)
		switch g.Status {
		case "FAILED":
			decided = "guest-status"
			failure = &stepError{step: s.name, code: events.CustomizationFailed, err: failureBeneath(failure),
				message: fmt.Sprintf("the guest says that its customization failed: %s", orNone(g.Error))}
			if words, retryable := engineWords(g.Error); words != "" {
				failure.message, failure.retryable = failure.message+": "+words, retryable
			}
		case "SUCCEEDED":
			decided, failure = "guest-status", nil
		}
	}
	now := stamp(time.Now())
	c.DecidedBy, c.FinishedAt = decided, &now
	if failure == nil {
		done := 100
		c.Progress = &done
	}
	return r.complete(events.CustomizeCompleted, &c.State, failure)
}

// general tells whether a Task ended with the fault that the engine gives for anything, such as a lock left by a crash: the one that the vendor's
// procedure, abort and repeat, is for.
func general(t vcapi.Task) bool {
	return t.Err != nil && (t.Err.Name == "CustomizationFault" || t.Err.Name == "UnexpectedCustomizationFault") &&
		!strings.Contains(t.Err.Message, noEngine)
}

// lostTools tells whether a Task ended because VMware Tools could not be reached.
func (r *run) lostTools(s *step, t vcapi.Task) bool {
	return t.Err != nil && r.outcome(s, t.Err).waiting == events.WaitingTools
}

// mayHaveBegun tells whether the guest may have been changed although its Task ended in an error.
func (r *run) mayHaveBegun(s *step, t vcapi.Task) bool {
	if t.Err == nil || general(t) {
		return true
	}
	switch r.outcome(s, t.Err).code {
	case events.CodeUnavailable, events.CodeCanceled, events.Internal:
		return true
	case events.CustomizationFailed:
		return !strings.Contains(t.Err.Message, noEngine)
	}
	return false
}

// guestAfter reads the guest's word once the Task has ended; empty where it does not speak of this run. A guest that still runs has the rest of
// the step's time to come to its own end.
func (r *run) guestAfter(ctx context.Context) (vcapi.GuestCustomization, error) {
	g, _ := r.guestStatus(ctx) // nothing, where it cannot be read
	switch {
	case ctx.Err() != nil:
		return g, r.interrupted(ctx)
	case !r.ofThisRun(&g):
		return vcapi.GuestCustomization{}, nil // this channel is silent, the others tell
	case guestEnded(g.Status):
		return g, nil
	}
	r.endedAt = time.Time{} // the guest ends later than its Task, and its clock is another
	err := r.watch(ctx, r.current(), "", func(w vcapi.WatchState) (bool, error) {
		if r.ofThisRun(w.VM.Customization) {
			g = *w.VM.Customization
		}
		return guestEnded(g.Status), nil
	})
	return g, err
}

func guestEnded(status string) bool { return status == "SUCCEEDED" || status == "FAILED" }

// taskFailure is why a Task that has ended did not succeed; nil where it did. A Task that was turned away for a while, such as by a busy VM, has
// changed nothing: an againError.
func (r *run) taskFailure(s *step, t vcapi.Task) (*stepError, error) {
	if t.State == "success" {
		return nil, nil
	}
	if t.Err == nil {
		return &stepError{step: s.name, code: unnamed[s.name], message: fmt.Sprintf("%s %s ended in state %s without a fault", t.Name, t.ID, t.State)}, nil
	}
	err := fmt.Errorf("%s: %w", t.ID, t.Err) // which names its method
	switch r.outcome(s, t.Err).waiting {
	case events.WaitingResourceBusy, events.WaitingTools, events.WaitingGuestLogin:
		return nil, &againError{err: err}
	}
	return r.failure(s, err), nil
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
// harmless, so a crash in it is followed by another one.
func (r *run) abort(ctx context.Context, s *step) error {
	var auth vcapi.GuestAuth
	aborting := events.Starting
	err := r.do(ctx, &step{name: s.name, state: &aborting, timeout: s.timeout, act: &act{
		name: "abort", starting: events.CustomizeStarting, started: events.CustomizeProgressed,
		look: func(ctx context.Context) (sighting, error) {
			now, err := r.vc.Now(ctx)
			return sighting{sure: true, now: intent{At: now, Newest: r.newest}}, err
		},
		prepare: func(ctx context.Context) (intend func(), err error) {
			auth, err = r.guestAuth(ctx, "customize")
			return func() {}, err
		},
		call: func(ctx context.Context, gate vcapi.Gate) error {
			task, err := r.vc.AbortCustomization(ctx, gate, r.vm, auth)
			if err == nil {
				r.point.Aborting, r.newest = task, task
			}
			return err
		},
	}})
	if err != nil {
		return err
	}
	end, err := r.followTask(ctx, s, r.point.Aborting, func(vcapi.WatchState) error { return nil })
	if err != nil {
		return err
	}
	r.point.Aborting = ""
	if f, err := r.taskFailure(s, end); err != nil {
		return err
	} else if f != nil {
		return f
	}
	r.point.Abort = false
	return nil
}
