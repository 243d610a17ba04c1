package handler

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// What decides about a customization, and what the run makes of it.
func TestOutcomeOfCustomize(t *testing.T) {
	t.Parallel()
	asks := func(sections string) string { return only(sections + `"customize":` + named + `,"network":{}`) }
	fault := func(r rule) func(*harness) {
		return func(w *harness) {
			r.op, r.times = "CustomizeGuest sent", 1
			if r.task == nil {
				r.task = &vcapi.Error{Name: "NicSettingMismatch", Message: "words", Class: vcapi.Permanent,
					Sent: vcapi.Answered}
			}
			w.vc.on(r)
		}
	}

	long := time.Now().Add(-100 * time.Hour)
	old := func(status string) *vcapi.GuestCustomization {
		return &vcapi.GuestCustomization{Status: status, StartTime: &long, EndTime: &long}
	}
	rows := []struct {
		name       string
		request    string // default: customize and network
		harness    func(w *harness)
		code       events.Code // empty: succeeded
		step       string
		vsphere    string
		decided    string
		customized int      // default 1
		aborted    int      // times
		mismatches []string // how each begins
		noVerify   bool
		took       time.Duration // at least
	}{
		{name: "the guest's own word", decided: "guest-status"},
		{name: "the Task alone", harness: func(w *harness) { w.vm.moves = false }, decided: "task"},
		{name: "the guest takes longer than its Task", harness: func(w *harness) { w.vm.outlasts = 90 * time.Second },
			decided: "guest-status", took: 150 * time.Second},
		{name: "the guest takes longer than its Task, and fails",
			harness: func(w *harness) { w.vm.outlasts, w.vm.lies = 90*time.Second, "FAILED" },
			decided: "guest-status", code: events.CustomizationFailed, step: "customize", took: 150 * time.Second},
		{name: "the guest takes longer than the step may",
			request: only(`"customize":` + named[:len(named)-1] + `,"timeout":"2m"}`),
			harness: func(w *harness) { w.vm.outlasts = time.Hour }, code: events.StepTimeout, step: "customize"},
		{name: "an old success, and the Task fails", harness: func(w *harness) {
			w.vm.guest, w.vm.moves = old("SUCCEEDED"), false
			fault(rule{})(w)
		}, decided: "task", code: events.CustomizationFailed, step: "customize", vsphere: "NicSettingMismatch"},
		{name: "an old failure, and the Task succeeds",
			harness: func(w *harness) { w.vm.guest, w.vm.moves = old("FAILED"), false }, decided: "task"},
		{name: "an old run that never ended, and the Task succeeds",
			harness: func(w *harness) { w.vm.guest, w.vm.moves = old("RUNNING"), false }, decided: "task"},
		{name: "the Task fails and the guest says that it succeeded", harness: fault(rule{goes: true}),
			decided: "guest-status"},
		{name: "the Task fails and the guest shows the spec", harness: func(w *harness) {
			w.vm.moves = false
			fault(rule{goes: true})(w)
		}, decided: "verify"},
		{name: "the Task fails and the guest shows the spec late", harness: func(w *harness) {
			w.vm.moves, w.vm.outlasts = false, 2*time.Minute
			fault(rule{goes: true})(w)
		}, decided: "verify", took: 3 * time.Minute},
		{name: "the Task fails and the guest shows the spec too late", harness: func(w *harness) {
			w.vm.moves, w.vm.outlasts = false, 4*time.Minute
			fault(rule{goes: true})(w)
		}, decided: "task", code: events.CustomizationFailed, step: "customize", vsphere: "NicSettingMismatch",
			took: 4 * time.Minute},
		{name: "the Task fails, the guest shows the spec, nobody asked to look", request: asks(`"verify":false,`),
			harness: func(w *harness) {
				w.vm.moves = false
				fault(rule{goes: true})(w)
			}, decided: "task", code: events.CustomizationFailed, step: "customize", vsphere: "NicSettingMismatch",
			noVerify: true},
		{name: "general fault", harness: func(w *harness) { w.vm.moves, w.vm.faulty = false, 1 }, decided: "task",
			customized: 2, aborted: 1},
		{name: "general fault twice", harness: func(w *harness) { w.vm.moves, w.vm.faulty = false, 2 }, customized: 2,
			aborted: 1, decided: "task",
			code: events.CustomizationFailed, step: "customize", vsphere: "CustomizationFault"},
		{name: "general fault, and the guest shows the spec", harness: func(w *harness) {
			w.vm.moves = false
			fault(rule{task: generalFault(), goes: true})(w)
		}, decided: "verify"},
		{name: "general fault, and the guest says that it succeeded",
			harness: fault(rule{task: generalFault(), goes: true}), decided: "guest-status"},
		{name: "general fault, no engine in the guest", harness: func(w *harness) {
			w.vm.moves = false
			e := generalFault()
			e.Message = "This VM " + noEngine
			fault(rule{task: e})(w)
		}, decided: "task", code: events.CustomizationFailed, step: "customize", vsphere: "CustomizationFault"},
		{name: "general fault, and the second attempt is not answered", harness: func(w *harness) {
			w.vm.moves, w.vm.faulty = false, 1
			w.vc.on(rule{op: "CustomizeGuest sent", times: 1})
			w.vc.on(rule{op: "CustomizeGuest sent", times: 1, lost: "answer", delay: 9 * time.Second})
			w.vc.lag = 29 * time.Second
		}, decided: "task", customized: 2, aborted: 1},
		{name: "the guest shows nothing of it", harness: func(w *harness) {
			w.vm.ignores, w.vm.hostName = true,
				"template.example.com"
		}, decided: "guest-status",
			code: events.VerifyMismatch, step: "verify", took: 4 * time.Minute,
			mismatches: []string{"host name: want web-7, the guest shows template", "address: want 10.0.0.7 on NIC",
				"the guest shows no NIC"}},
		{name: "the guest shows nothing of it, nobody asked", request: asks(`"verify":false,`),
			harness: func(w *harness) { w.vm.ignores = true }, decided: "guest-status", noVerify: true},
		{name: "the host name alone is not asked for", request: asks(`"verify":{"hostName":false,"timeout":"10s"},`),
			harness: func(w *harness) {
				w.later(90*time.Second,
					func() { w.vc.change(func() { w.vm.hostName = "x" }) })
			},
			decided: "guest-status"},
		{name: "the guest reports its new host name late", harness: func(w *harness) {
			w.vm.ignores = true
			w.later(4*time.Minute,
				func() { w.vc.change(func() { w.vm.show(json.RawMessage(specOf(named))); w.vm.connect() }) })
		}, decided: "guest-status", took: 4*time.Minute - time.Second},
		{name: "a NIC stays off", request: only(`"verify":{"timeout":"10s"},"customize":` + named),
			decided: "guest-status", code: events.VerifyMismatch, step: "verify",
			mismatches: []string{"NIC 00:50:56:00:00:01 is not connected"}},
		{name: "a NIC stays off, and need not be on", request: only(`"verify":{"nicsConnected":false},"customize":` +
			named), decided: "guest-status"},
		{name: "vCenter is away all the time", request: asks(`"verify":{"timeout":"30s"},`), decided: "guest-status",
			code: events.DeadlineExceeded, step: "verify",
			harness: func(w *harness) {
				w.slow = onKind("network.completed", func() { w.vc.change(func() { w.vc.refusing = true }) })
			}},
	}

	secrets := secretsDir(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.allowRepeat = row.customized > 1
				if row.harness != nil {
					row.harness(w)
				}
				if row.request == "" {
					row.request = asks("")
				}
				run := w.run(row.request)
				if row.code == "" {
					mustSucceed(w)
				} else if run.Error == nil || run.Error.Code != row.code || run.Error.Step != row.step {
					w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
				} else if got := run.Error.VSphere; (got == nil) != (row.vsphere == "") ||
					got != nil && got.Name != row.vsphere {
					w.t.Errorf("vsphere %+v, want %q", got, row.vsphere)
				}

				if run.Customize.DecidedBy != row.decided {
					w.t.Errorf("decided by %q, want %q", run.Customize.DecidedBy, row.decided)
				}
				w.wantEffects("customize", max(row.customized, 1))
				w.wantEffects("abort", row.aborted)
				if (run.Verify == nil) != row.noVerify {
					w.t.Errorf("verify %+v", run.Verify)
				}
				if run.Verify != nil {
					got := run.Verify.Mismatches
					if !slices.EqualFunc(got, row.mismatches, strings.HasPrefix) {
						w.t.Errorf("mismatches %q", got)
					}
					for _, m := range got {
						if !strings.Contains(run.Error.Message, m) {
							w.t.Errorf("the error does not name %q: %s", m, run.Error.Message)
						}
					}
				}

				if took := run.FinishedAt.Sub(*run.AcceptedAt); took < row.took {
					w.t.Errorf("it took %s, want at least %s", took, row.took)
				}
			})
		})
	}
}

// Its NICs can be looked at where nothing is customized.
func TestVerifyWithoutCustomize(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, on := range []bool{true, false} {
		withHarness(t, secrets, func(w *harness) {
			w.vm.cards = twoCards()
			w.vm.nics = []vcapi.NIC{{MAC: "00:50:56:00:00:01", Connected: on, Device: 4000},
				{MAC: "00:50:56:00:00:02", Connected: on, Device: 4001}}
			run := w.run(`{"vm":"vm-42","verify":{"timeout":"10s"}}`)
			switch {
			case on:
				mustSucceed(w)
			case run.Error == nil || run.Error.Code != events.VerifyMismatch || len(run.Verify.Mismatches) != 2:
				w.t.Errorf("error %+v, verify %+v", run.Error, run.Verify)
			}
		})
	}
}

// The Task has ended and the guest has not: the process is told to stop, or the run canceled, while it waits for the
// guest's end.
func TestInterruptedWaitForTheGuest(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	request := only(customizeOnly)
	t.Run("told to stop", func(t *testing.T) {
		t.Parallel()
		withHarness(t, secrets, func(w *harness) {
			w.vm.outlasts = 150 * time.Second
			req := w.request("order-1", request)
			o := w.deliver(req)
			<-time.After(3 * time.Minute)
			o.term()
			w.await(o)
			if w.newest("run.released") == nil {
				w.t.Error("not released")
			}
			w.drive(req)
			mustSucceed(w)
			if c := w.last().Customize; c.DecidedBy != "guest-status" || c.Guest == nil ||
				c.Guest.Status != "SUCCEEDED" {
				w.t.Errorf("customize %+v", c)
			}
		})
	})

	t.Run("dies", func(t *testing.T) {
		t.Parallel()
		withHarness(t, secrets, func(w *harness) {
			w.vm.outlasts = 150 * time.Second
			w.run(request, crash("Watch #2"))
			mustSucceed(w)
			if c := w.last().Customize; c.DecidedBy != "guest-status" {
				w.t.Errorf("decided by %s", c.DecidedBy)
			}
		})
	})

	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		withHarness(t, secrets, func(w *harness) {
			w.vm.outlasts = 150 * time.Second
			req := w.request("order-1", request)
			w.later(3*time.Minute, func() { w.cancel(req) })
			w.drive(req)
			w.wantEnds("run.canceled")
			w.wantEffects("abort", 1)
			if c := w.last().Customize; c.State != events.Canceled {
				w.t.Errorf("customize is %s, although the guest had not ended and was aborted", c.State)
			}
		})
	})
}

// specOf is the spec of a customize section.
func specOf(section string) string {
	return strings.TrimSuffix(strings.TrimPrefix(section, `{"spec":`), "}")
}

// onKind calls fn when the first event of a kind is published.
func onKind(kind string, fn func()) func(int, stream.Message) memstore.Fault {
	var once sync.Once
	return func(_ int, m stream.Message) memstore.Fault {
		if strings.HasSuffix(m.Subject, "."+kind) {
			once.Do(fn)
		}
		return memstore.Fault{}
	}
}
