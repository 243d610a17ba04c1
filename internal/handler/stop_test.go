package handler

import (
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// count is how often a kind was stored.
func (w *harness) stored(kind events.Kind) (n int) {
	for _, e := range w.events() {
		if e.kind == kind {
			n++
		}
	}
	return n
}

// The Task has ended and the guest goes on: there is no Task to cancel, and the guest is aborted at once, however the
// Task ended and whoever hears the cancel.
func TestCancelAfterTheTask(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, fault := range map[string]*vcapi.Error{"succeeded": nil, "failed": toolsAway()} {
		for _, and := range []string{"", "takeover"} {
			t.Run(name+"/"+and, func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vm.outlasts = time.Hour
					w.vc.on(rule{op: "CustomizeGuest sent", times: 1, task: fault, goes: true})
					req := w.request("order-1", only(`"customize":`+named))
					var canceled time.Time
					w.later(90*time.Second, func() { canceled = time.Now(); w.cancel(req) })
					var plan []incident
					if and != "" {
						plan = []incident{{point: "CancelTask sent", do: "crash"}}
					}
					w.drive(req, plan)
					w.wantEnds("run.canceled")
					w.wantEffects("abort", 1)
					c := w.last().Customize
					if c.State != events.Canceled || c.Reason != "" {
						w.t.Errorf("customize is %s: %s", c.State, c.Reason)
					}
					if w.stored(events.CustomizeAborting) != 1 || w.stored(events.CustomizeAborted) != 1 {
						w.t.Errorf("events %v", w.kinds())
					}
					if took := w.last().FinishedAt.Sub(canceled); and == "" && took > 5*time.Second {
						w.t.Errorf("it took %s", took)
					}
				})
			})
		}
	}
}

// A refusal that will not change is not insisted on, and is what the run tells.
func TestRefusedAbort(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		name  string
		class vcapi.Class
		tries int // at most
	}{
		{"NotSupported", vcapi.Permanent, 1},
		{"InvalidState", vcapi.Transient, 1},
		{"GuestOperationsUnavailable", vcapi.Transient, 1},
		{"InvalidPowerState", vcapi.Permanent, 1},
		{"GuestPermissionDenied", vcapi.GuestCredentials, 1},
		{"CustomizationFault", vcapi.Transient, 1},
		{"TaskInProgress", vcapi.Transient, 4},
	} {
		for _, channel := range []string{"answer", "Task"} {
			t.Run(row.name+"/"+channel, func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vc.on(rule{op: "CancelTask sent", err: vcError("NotSupported", 500, vcapi.Permanent)})
					e := vcError(row.name, 500, row.class)
					r := rule{op: "AbortCustomization sent", err: e}
					if channel == "Task" {
						e.Status, e.Sent = 0, vcapi.Answered
						r.err, r.task, r.idle = nil, e, true
					}
					w.vc.on(r)
					req := w.request("a", only(customizeOnly))
					var canceled time.Time
					w.later(20*time.Second, func() { canceled = time.Now(); w.cancel(req) })
					w.drive(req)
					w.wantEnds("run.canceled")
					last := w.last()
					if c := last.Customize; c.State != events.Running || !strings.Contains(c.Reason, e.Message) {
						w.t.Errorf("customize is %s: %s", c.State, c.Reason)
					}
					if took := last.FinishedAt.Sub(canceled); took > 3*time.Second+100*time.Millisecond {
						w.t.Errorf("it took %s", took)
					}
					if n := w.stored(events.CustomizeAborting); n < 1 || n > row.tries {
						w.t.Errorf("%d times customize.aborting", n)
					}
					if n := w.stored(events.CustomizeAborted); n != 0 {
						w.t.Errorf("customize.aborted, although it was refused")
					}
				})
			})
		}
	}
}

// vCenter is away when a run is canceled: the run ends, and says so.
func TestStopWithoutVCenter(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, request := range []string{only(customizeOnly), only(networkOnly), only(processOnly)} {
		withHarness(t, secrets, func(w *harness) {
			w.vm.customize, w.vm.network = time.Hour, time.Hour
			w.vm.programs["/usr/bin/first"] = program{takes: time.Hour}
			req := w.request("a", request)
			w.later(20*time.Second, func() { w.vc.change(func() { w.vc.refusing = true }); w.cancel(req) })
			w.drive(req)
			w.wantEnds("run.canceled")
			last := w.last()
			var reason string
			switch {
			case last.Customize != nil:
				reason = last.Customize.Reason
			case last.Network != nil:
				reason = last.Network.Reason
			default:
				reason = last.Processes[0].Reason
			}

			if !strings.Contains(reason, "connection refused") {
				w.t.Errorf("reason %q", reason)
			}
		})
	}
}
