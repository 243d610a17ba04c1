package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// The steps' clock stands still when it is told to, also from a time on that has passed, and what it bounds ends by it.
func TestStepClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c stepClock
		began := time.Now()
		ctx, cancel := c.within(t.Context(), time.Minute, errStepTime)
		defer cancel()
		<-time.After(50 * time.Second)
		c.stop(time.Now().Add(-20 * time.Second))
		<-time.After(time.Hour)
		if ctx.Err() != nil {
			t.Fatal("it ended while the clock stood still")
		}
		c.stop(time.Now()) // is no news
		c.goOn()
		c.goOn()
		if end, ok := ctx.Deadline(); !ok || time.Until(end) != 30*time.Second {
			t.Errorf("the deadline is in %s", time.Until(end))
		}
		<-ctx.Done()
		if took := time.Since(began); took != 50*time.Second+time.Hour+30*time.Second {
			t.Errorf("it ended after %s", took)
		}
		if !errors.Is(context.Cause(ctx), errStepTime) {
			t.Errorf("it ended by %v", context.Cause(ctx))
		}
		if stood, still := c.stands(); stood != time.Hour+20*time.Second || !still.IsZero() {
			t.Errorf("it stood still for %s, since %s", stood, still)
		}
	})
}

// hasty is a request for every step, none of which has more than two minutes.
const hasty = `{"vm":"vm-42","timeout":"2h","guest":{"credentials":{"secretRef":"linux-root"},"readyTimeout":"1m"},` +
	`"customize":` + namedIn2m + `,` +
	`"network":{"timeout":"1m"},"verify":{"timeout":"1m"},"processes":[{"name":"first","timeout":"2m","run":` +
	`{"path":"/usr/bin/first"}}]}`

const namedIn2m = `{"timeout":"2m","spec":{"identity":{"_typeName":"CustomizationLinuxPrep","hostName":` +
	`{"_typeName":"CustomizationFixedName","name":"web-7"}},` +
	`"nicSettingMap":[{"macAddress":"00:50:56:00:00:01","adapter":{"ip":{"_typeName":"CustomizationFixedIp",` +
	`"ipAddress":"10.0.0.7"}}}]}}`

// aways are the ways in which a vCenter gives no answer of its own.
var aways = map[string]func(v *fakeVC, away bool){
	"refused":       func(v *fakeVC, away bool) { v.refusing = away },
	"silent":        func(v *fakeVC, away bool) { v.silent = away },
	"503 of a page": func(v *fakeVC, away bool) { v.page = away },
	"reads alone":   func(v *fakeVC, away bool) { v.noReads = away },
	"poll alone":    func(v *fakeVC, away bool) { v.noPoll = away },
	"login refused": func(v *fakeVC, away bool) { v.refused = away },
}

// awayFor makes vCenter go away when an event is stored, for so long.
func (w *harness) awayFor(how func(*fakeVC, bool), at events.Kind, d time.Duration) {
	gone := false
	w.slow = onKind(string(at), func() {
		if gone {
			return
		}
		gone = true
		w.vc.change(func() { how(w.vc, true) })
		w.later(d, func() { w.vc.change(func() { how(w.vc, false) }) })
	})
}

// A vCenter that is away fails no run, however it is away, in whichever step, and although each step's time is over
// long before it is back.
func TestVCenterAwayFailsNoRun(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	kinds := []events.Kind{events.RunAccepted, events.CheckCompleted, events.CustomizeStarting,
		events.CustomizeStarted, events.CustomizeCompleted,
		events.NetworkStarted, events.NetworkCompleted, events.VerifyCompleted, events.ProcessStarted}
	for name, how := range aways {
		for _, point := range kinds {
			for _, takeover := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, after %s, takeover %v", name, point, takeover), func(t *testing.T) {
					t.Parallel()
					withHarness(t, secrets, func(w *harness) {
						// Nor has what the step waits for ended when vCenter is back; and tools forget how a process
						// ended.
						if !strings.HasSuffix(name, "alone") {
							switch point {
							case events.CustomizeStarted:
								w.vm.customize = 11 * time.Minute
							case events.NetworkStarted:
								w.vm.network = 10*time.Minute + 30*time.Second
							case events.ProcessStarted:
								w.vm.programs["/usr/bin/first"] = program{takes: 11 * time.Minute}
							}
						}

						w.awayFor(how, point, 10*time.Minute)
						var plan []incident
						if takeover {
							plan = crash("stored run.waiting")
						}
						run := w.run(hasty, plan)
						mustSucceed(w)
						for act, n := range map[string]int{"customize": 1, "network": 1, "process first": 1} {
							w.wantEffects(act, n)
						}
						if run.Verify.StartedAt == nil || run.Verify.FinishedAt == nil || run.Check.StartedAt == nil ||
							run.Check.FinishedAt == nil {
							w.t.Errorf("check %+v, verify %+v", run.Check, run.Verify)
						}
						w.waitsHaveReasons()
					})
				})
			}
		}
	}
}

// waitsHaveReasons holds that each wait that was told says why.
func (w *harness) waitsHaveReasons() {
	w.t.Helper()
	for _, e := range w.events() {
		if told := e.run.Waiting != ""; told && (e.run.WaitingFor == nil || e.run.WaitingFor.Message == "") ||
			!told && e.run.WaitingFor != nil {
			w.t.Errorf("%s waits for %q: %+v", e.kind, e.run.Waiting, e.run.WaitingFor)
		}
	}
}

// What a vCenter that was away costs is given back, and no more: a guest that never shows what was asked for fails its
// run once its time is over.
func TestTimeGoesOnAfterAnOutage(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, how := range aways {
		// The other one tells: what is seen in time, and by the one read afterwards.
		if name == "reads alone" || name == "poll alone" {
			continue
		}
		for _, takeover := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, takeover %v", name, takeover), func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vm.ignores = true
					var plan []incident
					if takeover {
						plan = crash("stored run.waiting")
					}
					w.later(90*time.Second, func() { w.vc.change(func() { how(w.vc, true) }) }) // verify began at 70 s
					w.later(11*time.Minute+30*time.Second, func() { w.vc.change(func() { how(w.vc, false) }) })
					run := w.run(hasty, plan)
					if e := run.Error; e == nil || e.Code != events.VerifyMismatch || len(run.Verify.Mismatches) == 0 {
						w.t.Fatalf("error %+v", e)
					}
					took := run.Verify.FinishedAt.Sub(*run.Verify.StartedAt)

					// A call that was in the air when vCenter came back has its limit of 30 s, and then there is a
					// pause.
					most := 11*time.Minute + 5*time.Second + 30*time.Second + longestPause
					if took < 10*time.Minute+20*time.Second || took > most {
						w.t.Errorf("verify took %s, of which vCenter was away for 10m", took)
					}
				})
			})
		}
	}
}

// A mismatch is told only from what was read after the time: here the connection went silent before the guest came to
// show it, and nobody noticed.
func TestVerifyJudgesByAFreshRead(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vm.outlasts, w.vm.moves = 30*time.Second, false
		w.slow = onKind("customize.completed", func() { w.vc.change(func() { w.vc.mute = true }) })
		w.later(10*time.Minute, func() { w.vc.change(func() { w.vc.mute = false }) })
		w.run(only(`"verify":{"timeout":"1m","nicsConnected":false},"customize":` + namedIn2m))
		mustSucceed(w)
	})
}

// The same for a step: its Task has ended, and the long poll did not tell.
func TestStepTimeoutIsToldByAFreshRead(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		name    string
		request string
		harness func(w *harness)
	}{
		{name: "customize", request: `"customize":` + namedIn2m + `,"verify":false`, harness: func(w *harness) {
			w.slow = onKind("customize.started", func() { w.vc.change(func() { w.vc.mute = true }) })
			w.later(2*time.Minute+10*time.Second, func() { w.vc.change(func() { w.vc.mute = false }) })
		}},
		{name: "network", request: `"network":{"timeout":"1m"}`, harness: func(w *harness) {
			w.slow = onKind("network.started", func() { w.vc.change(func() { w.vc.mute = true }) })
			w.later(70*time.Second, func() { w.vc.change(func() { w.vc.mute = false }) })
		}},
		{name: "tools", request: `"network":{}`, harness: func(w *harness) {
			w.vm.tools = false
			w.slow = onKind("run.waiting", func() { w.vc.change(func() { w.vc.mute, w.vm.tools = true, true }) })
			w.later(302*time.Second, func() { w.vc.change(func() { w.vc.mute = false }) })
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				row.harness(w)
				w.run(only(row.request))
				mustSucceed(w)
			})
		})
	}
}

// Neither cancel nor SIGTERM nor the run's own time wait for a vCenter that is away.
func TestAwayHoldsNeitherCancelNorEnd(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, how := range aways {
		if name == "reads alone" || name == "poll alone" {
			continue
		}
		for _, point := range []events.Kind{events.RunAccepted, events.CustomizeStarted, events.NetworkCompleted,
			events.ProcessStarted} {
			t.Run(fmt.Sprintf("%s, after %s", name, point), func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vm.programs["/usr/bin/first"] = program{takes: 2 * time.Hour}
					w.awayFor(how, point, 100*time.Minute)
					req := w.request("order-1", hasty)
					w.later(30*time.Minute, func() { w.cancel(req) })
					w.drive(req)
					run := w.last()
					if run.Status != events.StatusCanceled || run.FinishedAt.Sub(*run.AcceptedAt) > 33*time.Minute {
						w.t.Errorf("the run ended as %s after %s", run.Status, run.FinishedAt.Sub(*run.AcceptedAt))
					}
				})

				withHarness(t, secrets, func(w *harness) {
					w.vm.programs["/usr/bin/first"] = program{takes: 3 * time.Hour}
					w.awayFor(how, point, 200*time.Minute)
					run := w.run(hasty)
					if run.Error == nil ||
						run.Error.Code != events.DeadlineExceeded && run.Error.Code != events.Unauthenticated ||
						run.Error.Waiting != events.WaitingVCenterUnavailable {
						w.t.Errorf("error %+v", run.Error)
					}
				})

				withHarness(t, secrets, func(w *harness) {
					if point == events.ProcessStarted {
						w.vm.programs["/usr/bin/first"] = program{takes: 11 * time.Minute}
					}
					w.awayFor(how, point, 10*time.Minute)
					req := w.request("order-1", hasty)
					o := w.deliver(req)
					<-time.After(8 * time.Minute)
					told := time.Now()
					o.term()
					w.await(o)
					if took := time.Since(told); took > w.settings.Drain {
						w.t.Errorf("SIGTERM took %s", took)
					}
					<-time.After(5 * time.Second)
					w.drive(req)
					mustSucceed(w)
				})
			})
		}
	}
}

// A guest that hangs is no vCenter that is away: the process's time goes on, and its end says for what it waited.
func TestHangingGuestIsNoOutage(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vm.programs["/usr/bin/first"] = program{takes: time.Hour}
		w.slow = onKind("process.started", func() { w.vc.on(rule{op: "Process", times: 0, hang: true}) })
		run := w.run(only(`"processes":[{"name":"first","timeout":"3m","run":{"path":"/usr/bin/first"}}]`))
		e := run.Error
		if e == nil || e.Code != events.StepTimeout || e.Waiting != events.WaitingTools ||
			!strings.Contains(e.Message, "VMware Tools") {
			w.t.Errorf("error %+v", e)
		}
		if got := strings.Join(w.kinds(), " "); !strings.HasSuffix(got,
			"process.started process.unreachable run.failed") {
			w.t.Errorf("events %s", got)
		}
		if took := run.FinishedAt.Sub(*run.AcceptedAt); took > 4*time.Minute {
			w.t.Errorf("it took %s", took)
		}
	})
}

// An act that is answered without a proof of its refusal, again and again: the run says so once, in vCenter's words,
// tries ever more rarely, and its end has them too.
func TestUnprovenRefusalsAreTold(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		op, name, request string
		status            int
	}{
		{"StartGuestNetwork", "SystemError", networkOnly, 500},
		{"StartGuestNetwork", "", networkOnly, 503},
		{"StartProcess", "INTERNAL_SERVER_ERROR", processOnly, 500},
		{"StartProcess", "ERROR", processOnly, 500},
		{"StartProcess", "TIMED_OUT", processOnly, 504},
		{"StartProcess", "RESOURCE_INACCESSIBLE", processOnly, 500},
	} {
		t.Run(row.op+" "+row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				e := vcError(row.name, row.status, vcapi.Transient)
				e.Sent = vcapi.Unknown
				w.vc.on(rule{op: row.op + " sent", err: e})
				run := w.run(only(row.request))
				if run.Error == nil || run.Error.Code != events.StepTimeout ||
					run.Error.Waiting != events.WaitingCallsInFlight ||
					run.Error.VSphere == nil || run.Error.VSphere.Name != row.name ||
					run.Error.VSphere.HTTPStatus != row.status {
					w.t.Errorf("error %+v", run.Error)
				}

				kinds := w.kinds()
				starting := len(slices.DeleteFunc(slices.Clone(kinds),
					func(k string) bool { return !strings.HasSuffix(k, ".starting") }))
				waiting := len(slices.DeleteFunc(slices.Clone(kinds),
					func(k string) bool { return k != "run.waiting" }))
				if starting > 6 || waiting != 1 {
					w.t.Errorf("events %v", kinds)
				}
				w.waitsHaveReasons()
			})
		})
	}
}

// Tools that are away while a process runs: process.unreachable says why, and so does the end of its time.
func TestUnreachableSaysWhy(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vm.programs["/usr/bin/first"] = program{takes: time.Hour}
		w.later(10*time.Second, func() { w.vc.change(func() { w.vm.tools = false }) })
		run := w.run(only(`"processes":[{"name":"first","timeout":"3m","run":{"path":"/usr/bin/first"}}]`))
		for _, e := range w.events() {
			if e.kind == events.ProcessUnreachable && (e.run.Waiting != events.WaitingTools ||
				e.run.WaitingFor.VSphere.Name != "SERVICE_UNAVAILABLE") {
				w.t.Errorf("%s waits for %q: %+v", e.kind, e.run.Waiting, e.run.WaitingFor)
			}
		}

		if e := run.Error; e == nil || e.Code != events.StepTimeout || e.VSphere == nil ||
			e.VSphere.Name != "SERVICE_UNAVAILABLE" ||
			e.Waiting != events.WaitingTools || !strings.Contains(e.Message, "VMware Tools") {
			w.t.Errorf("error %+v", run.Error)
		}
	})
}

// A VM that is powered off in the middle of its Task, which vCenter does not end: told at once, and the run ends when
// tools would not be awaited longer.
func TestPoweredOffInTheMiddle(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("back %v", back), func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.vm.customize = 10 * time.Minute
				w.later(30*time.Second, func() { w.vc.change(func() { w.vm.power = "poweredOff" }) })
				if back {
					w.later(2*time.Minute, func() { w.vc.change(func() { w.vm.power = poweredOn }) })
				}
				run := w.run(only(customizeOnly))
				told := slices.IndexFunc(w.events(), func(e event) bool { return e.kind == events.RunWaiting })
				if again := slices.Index(w.kinds()[told+1:], "run.waiting"); again >= 0 {
					w.t.Errorf("told again: %v", w.kinds())
				}
				if told < 0 || w.events()[told].at.Sub(w.events()[0].at) > 31*time.Second ||
					!strings.Contains(w.events()[told].run.WaitingFor.Message, "poweredOff") {
					w.t.Errorf("events %v", w.kinds())
				}
				if back {
					mustSucceed(w)
					return
				}
				if e := run.Error; e == nil || e.Code != events.PowerState || e.Waiting != events.WaitingTools ||
					run.FinishedAt.Sub(*run.AcceptedAt) > 6*time.Minute {
					w.t.Errorf("error %+v after %s", e, run.FinishedAt.Sub(*run.AcceptedAt))
				}
			})
		})
	}
}

// After a takeover the first act waits for the former owner's calls, and says so.
func TestCallsInFlightAreTold(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.run(only(networkOnly), crash("stored check.completed"))
		mustSucceed(w)
		if got := strings.Join(w.kinds(), " "); !strings.Contains(got, "run.resumed run.waiting network.starting") {
			w.t.Errorf("events %s", got)
		}
		for _, e := range w.events() {
			if (e.run.Waiting == events.WaitingCallsInFlight) != (e.kind == events.RunWaiting) {
				w.t.Errorf("%s waits for %q", e.kind, e.run.Waiting)
			}
		}
		w.waitsHaveReasons()
	})
}

// A vCenter that is silent is told of within 15 seconds, and what it says when it is back but refuses our login is told
// as well.
func TestSilenceIsToldSoon(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.silent = true
		w.later(5*time.Minute, func() { w.vc.change(func() { w.vc.silent, w.vc.refused = false, true }) })
		w.later(15*time.Minute, func() { w.vc.change(func() { w.vc.refused = false }) })
		w.run(only(networkOnly))
		mustSucceed(w)
		var told []string
		for _, e := range w.events() {
			if e.kind != events.RunWaiting {
				continue
			}
			if len(told) == 0 && e.at.Sub(w.events()[0].at) > 15*time.Second {
				w.t.Errorf("told after %s", e.at.Sub(w.events()[0].at))
			}
			name := ""
			if v := e.run.WaitingFor.VSphere; v != nil {
				name = v.Name
			}
			told = append(told, string(e.run.Waiting)+" "+name)
		}

		if want := []string{"vcenter-unavailable ", "vcenter-unavailable InvalidLogin"}; !slices.Equal(told, want) {
			w.t.Errorf("told %q, want %q", told, want)
		}
	})
}

// An error of the guest's own status is told, once, in the run's events, whatever it is; the others decide.
func TestGuestStatusNotRead(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.on(rule{op: "CustomizationStatus", err: vcError("RESOURCE_INACCESSIBLE", 500, vcapi.Transient)})
		run := w.run(only(customizeOnly))
		mustSucceed(w)
		if n := run.Customize.NotRead; n == nil || n.VSphere == nil || n.VSphere.Name != "RESOURCE_INACCESSIBLE" {
			w.t.Errorf("not read: %+v", n)
		}
	})
}

// What the guest says is heard although vCenter goes away at the very moment in which it is asked, before the call or
// after the Task's end.
func TestGuestsWordSurvivesAnOutage(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, moment := range []string{"before the call", "after the Task"} {
		for name, how := range aways {
			if name == "poll alone" {
				continue
			}
			t.Run(moment+", "+name, func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vm.lies, w.vm.quiet = "FAILED", true
					away := func() {
						w.vc.change(func() { how(w.vc, true) })
						w.later(10*time.Minute, func() { w.vc.change(func() { how(w.vc, false) }) })
					}
					if moment == "after the Task" {
						w.vc.on(rule{op: "CustomizationStatus", times: 1}) // that before the call
					}
					w.vc.on(rule{op: "CustomizationStatus", times: 1, fn: away})
					run := w.run(only(customizeOnly))
					if run.Error == nil || run.Error.Code != events.CustomizationFailed ||
						run.Customize.DecidedBy != "guest-status" {
						w.t.Errorf("decided by %s, error %+v", run.Customize.DecidedBy, run.Error)
					}
				})
			})
		}
	}
}

// The guest's own status alone hangs: that is no vCenter that is away, and holds nothing up.
func TestStatusAloneHangs(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vm.moves = false
		w.vc.on(rule{op: "CustomizationStatus", times: 0, hang: true})
		run := w.run(only(customizeOnly))
		mustSucceed(w)
		if slices.Contains(w.kinds(), "run.waiting") || run.Customize.NotRead == nil {
			w.t.Errorf("events %v, not read %+v", w.kinds(), run.Customize.NotRead)
		}
	})
}

// A long poll whose answers are not understood: the run says which, and goes on by reads.
func TestPollIsNotUnderstood(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.pollErr = &vcapi.Error{Op: "WaitForUpdatesEx", Host: "vc", Status: 200, Class: vcapi.Transient,
			Message: "the answer is not understood: json: cannot unmarshal number into Go struct field " +
				"updateSet.version of type string"}
		run := w.run(whole)
		mustSucceed(w)
		first := slices.IndexFunc(w.events(), func(e event) bool { return e.kind == events.RunWaiting })
		if first < 0 || !strings.Contains(w.events()[first].run.WaitingFor.Message, "updateSet.version") {
			w.t.Errorf("events %v", w.kinds())
		}
		if took := run.FinishedAt.Sub(*run.AcceptedAt); took > 5*time.Minute {
			w.t.Errorf("it took %s", took)
		}
	})
}

// An act whose answer is lost because vCenter goes away at that moment: while its call may still land the step's time
// runs out, and is given back.
func TestTimeIsGivenBackToAnAct(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, how := range aways {
		if name == "poll alone" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.vc.on(rule{op: "StartGuestNetwork sent", times: 1, err: noAnswer("StartGuestNetwork"), fn: func() {
					w.vc.change(func() { how(w.vc, true) })
					w.later(10*time.Minute, func() { w.vc.change(func() { how(w.vc, false) }) })
				}})
				w.run(only(`"network":{"timeout":"20s"}`))
				mustSucceed(w)
				w.wantEffects("network", 1)
			})
		})
	}
}

// A VM that is off when verify's time is over: the mismatch says so.
func TestVerifyOfAVMThatIsOff(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.slow = onKind("network.completed", func() {
			w.vc.change(func() {
				w.vm.power, w.vm.hostName,
					w.vm.nics = "poweredOff", "", nil
			})
		})

		run := w.run(hasty)
		if e := run.Error; e == nil || e.Code != events.VerifyMismatch || e.Waiting != events.WaitingTools ||
			!strings.Contains(e.Message, "poweredOff") {
			w.t.Errorf("error %+v", e)
		}
		if !slices.Contains(w.kinds(), "run.waiting") {
			w.t.Errorf("events %v", w.kinds())
		}
	})
}

// A run that is canceled while vCenter is away, with a call in flight, says what it still waits for.
func TestEndSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.on(rule{op: "StartGuestNetwork sent", times: 1, err: noAnswer("StartGuestNetwork"),
			fn: func() { w.vc.change(func() { w.vc.refusing = true }) }})
		req := w.request("order-1", only(networkOnly))
		w.later(5*time.Second, func() { w.cancel(req) })
		w.drive(req)
		if run := w.last(); run.Status != events.StatusCanceled || run.FinishedAt.Sub(*run.AcceptedAt) > 2*time.Minute {
			w.t.Errorf("the run ended as %s after %s", run.Status, run.FinishedAt.Sub(*run.AcceptedAt))
		}
		if got := strings.Join(w.kinds(), " "); !strings.HasSuffix(got,
			"network.starting run.waiting run.waiting run.canceled") {
			w.t.Errorf("events %s", got)
		}
		w.waitsHaveReasons()
	})
}

// A VM that was removed while its act was turned away all the step's time: the one read after it tells.
func TestRemovedWhileTurnedAway(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		refusal("StartGuestNetwork", "TaskInProgress", 500, vcapi.Transient, 0)(w)
		w.later(58*time.Second, func() {
			w.vc.on(rule{op: "VM",
				fn: func() { w.vc.change(func() { w.vm.gone = true }) }})
		})
		run := w.run(only(`"network":{"timeout":"1m"}`))
		if run.Error == nil || run.Error.Code != events.NotFound {
			w.t.Errorf("error %+v", run.Error)
		}
	})
}

// A long poll that has not noticed yet that vCenter is back is no wait: nothing is told in the words of what is over.
func TestWaitThatIsOverIsNotTold(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.slow = onKind("customize.started", func() {
			w.vc.change(func() { w.vc.pollErr = vcError("ServiceUnavailable", 503, vcapi.Transient) })
			w.later(200*time.Millisecond, func() { w.vc.change(func() { w.vc.pollErr = nil }) })
		})
		w.run(only(customizeOnly))
		mustSucceed(w)
		if w.stored(events.RunWaiting) != 0 {
			w.t.Errorf("events %v", w.kinds())
		}
	})
}
