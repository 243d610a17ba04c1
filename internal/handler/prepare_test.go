package handler

import (
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// preparations are what an act asks for before its intent, each held up for some seconds.
var preparations = map[string]struct {
	request string
	act     string
	takes   time.Duration // so long, and some milliseconds
	slow    func(w *harness)
}{
	"the guest's own status": {only(customizeOnly), "customize", baselineTime, func(w *harness) {
		w.vc.on(rule{op: "CustomizationStatus", times: 1, hang: true})
	}},
	"the NICs that are off": {only(`"network":{"connectNics":true}`), "network", patience, func(w *harness) {
		w.vm.nics = []vcapi.NIC{{MAC: "00:50:56:00:00:01"}}
		w.vc.on(rule{op: "DisconnectedNICs", times: 1, hang: true})
	}},
	"the connection of the NICs": {only(`"network":{"connectNics":true}`), "network", 10 * time.Second,
		func(w *harness) {
			w.vm.nics = []vcapi.NIC{{MAC: "00:50:56:00:00:01"}}
			w.vc.connects = 10 * time.Second
		}},
}

// The run is canceled, its time ends, or its process is told to stop while an act is prepared: nothing is done to the
// guest that was not begun, and what was not read to its end is not taken for the guest's word.
func TestInterruptedPreparation(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, p := range preparations {
		t.Run(name+"/canceled", func(t *testing.T) {
			t.Parallel()
			// One that is not heard comes so late that who listens does not look for it before the intent.
			for noWake, after := range map[bool]time.Duration{false: 3 * time.Second, true: p.takes} {
				withHarness(t, secrets, func(w *harness) {
					w.noWake = noWake
					p.slow(w)
					req := w.request("order-1", p.request)
					w.later(after, func() { w.cancel(req) })
					w.drive(req)
					w.wantEnds("run.canceled")
					w.wantEffects(p.act, 0)
					if name == "the NICs that are off" {
						w.wantEffects("connect", 0)
					}
				})
			}
		})

		t.Run(name+"/out of time", func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				p.slow(w)
				run := w.run(`{"timeout":"3s",` + p.request[1:])
				if run.Error == nil || run.Error.Code != events.DeadlineExceeded {
					w.t.Errorf("error %+v", run.Error)
				}
				w.wantEffects(p.act, 0)
			})
		})

		t.Run(name+"/told to stop", func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.vm.lies = "FAILED"
				p.slow(w)
				req := w.request("order-1", p.request)
				w.later(3*time.Second, func() { w.owners[0].term() })
				w.drive(req)
				if w.newest("run.released") == nil {
					w.t.Error("not released")
				}
				w.wantEffects(p.act, 1)
				if p.act != "customize" {
					mustSucceed(w)
					return
				}
				if run := w.last(); run.Error == nil || run.Customize.DecidedBy != "guest-status" {
					w.t.Errorf("the guest says that it failed, and the run ended as %s, decided by %q", run.Status,
						run.Customize.DecidedBy)
				}
			})
		})
	}
}

// A run is canceled when its turn has come, and vCenter takes its time to show the Tasks that are there: it is not
// accepted any more.
func TestCanceledBeforeItIsAccepted(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.on(rule{op: "Tasks", times: 1, hang: true})
		req := w.request("order-1", brief)
		w.later(3*time.Second, func() { w.cancel(req) })
		w.drive(req)
		w.wantEnds("run.canceled")
		if last := w.last(); last.N != 1 || last.Customize != nil {
			w.t.Errorf("n %d, customize %+v", last.N, last.Customize)
		}
	})
}
