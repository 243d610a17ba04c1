package handler

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// What a step is made of, and that it is all: this one is here alone, and is registered by exampleKind. The tables that
// let owners die, stand still and be stopped at every point hold for it as for every other one.
//
// A step of the contract has a section of its own in the request and in the run, and kinds of its own. This one borrows
// those of a process that is named "example"; its Task stands where that has its command.

const exampleMethod = "SetExample_Task"

// exampleVC is the call of vCenter that the step makes.
type exampleVC interface {
	SetExample(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth) (task string, err error)
}

type exampleStep struct {
	*run
	step   *step
	status *events.Process
}

func newExampleStep(r *run, s *step) {
	i := slices.IndexFunc(r.state.Processes, func(p events.Process) bool { return p.Name == s.process })
	e := &exampleStep{run: r, step: s, status: &r.state.Processes[i]}
	s.timeout = 10 * time.Minute
	s.effect, s.read = e.effect(), e.read
	s.ended = func(ctx context.Context) (bool, error) { return r.taskOver(ctx, e.status.Command) }
	s.stop = func(s *step) error { return s.stopTask(e.status.Command, &e.status.Reason, nil) }
	s.end, s.fallback = events.ProcessExited, events.ProcessNotStarted
	s.privileges = map[string]string{"VirtualMachine.Config.Settings": "example"}
}

func (e *exampleStep) effect() *effect {
	made := e.taskEffect("example", exampleMethod, &e.status.Command, &e.status.StartedAt,
		func(ctx context.Context, fence vcapi.Fence, auth vcapi.GuestAuth) (string, error) {
			return e.vc.(exampleVC).SetExample(ctx, fence, e.vm, auth)
		})
	made.starting, made.started = events.ProcessStarting, events.ProcessStarted
	return made
}

func (e *exampleStep) read(ctx context.Context, s *step) error {
	task, err := s.followTask(ctx, e.status.Command, func(vcapi.WatchState) error { return nil })
	if err != nil {
		return err
	}
	failure, kind := s.taskFailure(task)
	if kind == passes {
		return &againError{err: failure.err}
	}
	return s.complete(failure)
}

var exampleKind = stepKind{name: "example", methods: []string{exampleMethod}, effects: []string{"example"},
	equip: newExampleStep}

// withExample adds the step to those that a handler knows.
func withExample(kinds []stepKind) []stepKind {
	i := slices.IndexFunc(kinds, func(k stepKind) bool { return k.name == events.StepProcess })
	process := kinds[i].equip
	kinds[i].equip = func(r *run, s *step) {
		if s.process == exampleKind.name {
			exampleKind.equip(r, s)
		} else {
			process(r, s)
		}
	}

	return append(kinds, exampleKind)
}

// SetExample is the call in the vCenter of the tests.
func (c *client) SetExample(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth) (string, error) {
	return call(ctx, c, fence, "SetExample", func(r rule) (string, error) {
		if _, err := c.guestTask(vm, auth); err != nil {
			return "", err
		}
		c.effect(vm, "example")
		return c.makeTask(vm, exampleMethod, 3*time.Second, r), nil
	})
}

// withItsExample is a request with the step between two others.
const withItsExample = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"network":{},` +
	`"processes":[{"name":"example","watch":{"pid":1}},{"name":"first","run":{"path":"/usr/bin/first"}}]}`

// inExampleHarness runs fn where the step is known, and holds that it is made once.
func inExampleHarness(t *testing.T, secrets Secrets, fn func(w *harness)) {
	t.Helper()
	inBriefHarness(t, secrets, func(w *harness) {
		w.known = withExample
		fn(w)
		w.wantEffects("example", 1)
	})
}

func TestExampleStep(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, table := range map[string]func(*testing.T, Secrets, runInHarness, string){
		"crash": crashEverywhere, "calls in flight": crashWithCallsInFlight, "two crashes": crashTwice,
		"pause": pauseEverywhere, "release": releaseEverywhere,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table(t, secrets, inExampleHarness, withItsExample)
		})
	}
}

// What a cancel does to it, what its refusals mean and which privileges it needs are its own too.
func TestExampleStepIsStopped(t *testing.T) {
	t.Parallel()
	inExampleHarness(t, secretsDir(t), func(w *harness) {
		req := w.request("order-1", withItsExample)
		w.drive(req, []incident{{point: "stored process.started", do: "call", fn: func() { w.cancel(req) }}})
		run := w.last()
		if p := run.Processes[0]; run.Status != events.StatusCanceled || p.State != events.Canceled {
			w.t.Errorf("the run ended as %s, its step as %s: %s", run.Status, p.State, p.Reason)
		}
		if e := run.Error; e == nil || e.Process != "example" {
			w.t.Errorf("error %+v", e)
		}
	})
}

func TestExampleStepIsRefused(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.known = withExample
		w.vc.on(rule{op: "SetExample sent", err: vcError("NeverHeardOf", 500, vcapi.Permanent)})
		if e := w.run(withItsExample).Error; e == nil || e.Code != events.ProcessNotStarted || e.Process != "example" {
			w.t.Errorf("error %+v", e)
		}
	})

	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.known = withExample
		w.vc.lacks = []string{"VirtualMachine.Config.Settings"}
		if e := w.run(withItsExample).Error; e == nil || e.Code != events.Unauthorized || e.Step != "check" {
			w.t.Errorf("error %+v", e)
		}
	})
}
