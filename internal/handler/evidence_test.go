package handler

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// toolsAway is how a Task ends whose guest could not be reached any more.
func toolsAway() *vcapi.Error {
	return &vcapi.Error{Name: "GuestOperationsUnavailable", Message: "words of vCenter about tools",
		Class: vcapi.Transient, Sent: vcapi.Answered}
}

// engineFaultOf is the general fault with the engine's own code in it.
func engineFaultOf(words string) *vcapi.Error {
	e := generalFault()
	e.Message = "An error occurred: " + words
	return e
}

// What the guest showed before the call is no effect of it, whoever judges: it counts only where it was seen to be
// something else before.
func TestShownBefore(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	shows := func(hostName string, addresses ...string) func(*harness) {
		return func(w *harness) {
			w.vm.hostName = hostName
			w.vm.nics = []vcapi.NIC{{MAC: "00:50:56:00:00:01", Connected: true, Addresses: addresses}}
		}
	}

	asked := shows("web-7", "10.0.0.7")
	ends := func(fault *vcapi.Error, goes bool) func(*harness) {
		return func(w *harness) { w.vc.on(rule{op: "CustomizeGuest sent", task: fault, idle: !goes, goes: goes}) }
	}
	shownLater := func(w *harness) { w.later(90*time.Second, func() { w.vc.change(func() { asked(w) }) }) }
	for _, row := range []struct {
		name    string
		before  func(*harness)
		end     []func(*harness)
		decided string
		vsphere string // "": succeeded
		calls   int    // Tasks of the customization
	}{
		{"a repeat succeeds", asked, nil, "task", "", 1},
		{"a repeat, the password could not be set", asked,
			[]func(*harness){ends(engineFaultOf("ERR,248,set password failed"), false)}, "task", "CustomizationFault",
			1},
		{"a repeat, the DNS could not be set", asked, []func(*harness){ends(engineFaultOf("ERR,252,DNS failed"),
			false)},
			"task", "CustomizationFault", 1},
		{"a repeat, tools away", asked, []func(*harness){ends(toolsAway(), false)}, "task",
			"GuestOperationsUnavailable",
			2},
		{"a repeat, general fault", asked, []func(*harness){ends(generalFault(), false)}, "task", "CustomizationFault",
			2},
		{"a repeat, another fault", asked, []func(*harness){ends(engineFault("words"), false)}, "task",
			"NicSettingMismatch", 1},
		{"another name before", shows("web-6", "10.0.0.7"), []func(*harness){ends(toolsAway(), true)}, "verify", "", 1},
		{"another address before", shows("web-7", "10.0.0.6"), []func(*harness){ends(toolsAway(), true)}, "verify", "",
			1},
		{"no name before", shows(""), []func(*harness){ends(toolsAway(), true)}, "verify", "", 1},
		{"the name before, and no address yet", shows("web-7"), []func(*harness){ends(toolsAway(), false), shownLater},
			"task", "GuestOperationsUnavailable", 2},
		{"the name before, and a link-local address", shows("web-7", "fe80::1", "169.254.1.1"),
			[]func(*harness){ends(toolsAway(), false), shownLater}, "task",
			"GuestOperationsUnavailable", 2},
		{"all of it before, and the address not settled yet", func(w *harness) {
			asked(w)
			w.vm.nics[0].Addresses = append(w.vm.nics[0].Addresses, "2001:db8::9")
			w.vm.nics[0].IPConfig = []vcapi.Address{{IP: "10.0.0.7", State: "tentative"}}
		}, []func(*harness){ends(toolsAway(), false), shownLater}, "task", "GuestOperationsUnavailable", 2},
		{"the name is told some seconds after tools began to run", shows(""),
			[]func(*harness){ends(toolsAway(), false), func(w *harness) {
				w.later(2*time.Second, func() { w.vc.change(func() { asked(w) }) })
			}}, "task", "GuestOperationsUnavailable", 2},
		{"what was before could not be read", shows("web-6"), []func(*harness){func(w *harness) {
			w.vc.on(rule{op: "CustomizeGuest sent", times: 1, task: toolsAway(), goes: true})

			// The last read before it.
			w.vc.on(rule{op: "Session", times: 1, fn: func() {
				w.vc.on(rule{op: "VM", times: 1,
					err: vcError("NoPermission", 500, vcapi.Permanent)})
			}})
		}}, "task", "", 2}, // by the repeat
		{"the engine says that it failed, and the guest shows the spec", shows("web-6"),
			[]func(*harness){ends(engineFaultOf("ERR,254,eth0"), true)}, "task",
			"CustomizationFault", 1},
	} {
		for _, takeover := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/takeover=%v", row.name, takeover), func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vm.moves, w.allowRepeat = false, true // this guest's engine moves no status
					row.before(w)
					for _, end := range row.end {
						end(w)
					}
					var plan []incident
					if takeover {
						plan = crash("stored customize.started")
					}
					run := w.run(only(`"verify":{"nicsConnected":false},"customize":`+named), plan)
					if run.Customize.DecidedBy != row.decided {
						w.t.Errorf("decided by %q, want %q", run.Customize.DecidedBy, row.decided)
					}
					if row.vsphere == "" {
						mustSucceed(w)
					} else if e := run.Error; e == nil || e.VSphere == nil || e.VSphere.Name != row.vsphere {
						w.t.Errorf("the run ended as %s: %+v", run.Status, e)
					}
					calls := 0
					for _, task := range w.vc.tasks {
						if task.name == "CustomizeGuest_Task" {
							calls++
						}
					}
					if calls != row.calls {
						w.t.Errorf("%d Tasks, want %d", calls, row.calls)
					}
				})
			})
		}
	}
}

// The status of an earlier customization is none of this run's, in whatever precision its times come by which channel.
func TestStatusInOtherPrecisions(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	precisions := map[string]func(time.Time) time.Time{
		"ns": cut(1), "µs": cut(time.Microsecond), "µs rounded": rounded(time.Microsecond),
		"ms":         cut(time.Millisecond),
		"ms rounded": rounded(time.Millisecond),
		"s":          cut(time.Second), "s rounded": rounded(time.Second),
	}

	for rest, asRead := range precisions {
		for push, asPushed := range precisions {
			t.Run(rest+" by REST, "+push+" pushed", func(t *testing.T) {
				t.Parallel()
				for _, status := range []string{"SUCCEEDED", "FAILED", "RUNNING"} {
					for _, fails := range []bool{false, true} {
						// By one channel alone, or by both.
						for _, unread := range []string{"", "CustomizationStatus", "VM"} {
							inBubble(t, secrets, func(w *harness) {
								w.vc.rest, w.vc.push, w.vm.moves = asRead, asPushed, false
								start := time.Now().Add(-time.Hour).Truncate(time.Second).Add(499999999)
								w.vm.guest = &vcapi.GuestCustomization{Status: status, StartTime: &start}
								if fails {
									w.vc.on(rule{op: "CustomizeGuest sent", times: 1,
										task: engineFault("ERR,253,eth0")})
								}
								if unread != "" {
									w.slow = onKind("check.completed",
										func() {
											w.vc.on(rule{op: unread, times: 1,
												err: vcError("SERVICE_UNAVAILABLE", 503, vcapi.Transient)})
										})
								}

								run := w.run(only(customizeOnly))
								if run.Customize.DecidedBy != "task" || fails != (run.Status == events.StatusFailed) {
									w.t.Errorf("old %s, Task fails: %v: the run ended as %s, decided by %q", status,
										fails, run.Status, run.Customize.DecidedBy)
								}
								if run.FinishedAt.Sub(*run.AcceptedAt) > 2*time.Minute {
									w.t.Errorf("old %s was waited for", status)
								}
							})
						}
					}
				}
			})
		}

		t.Run(rest+", a new status", func(t *testing.T) {
			t.Parallel()
			inBubble(t, secrets, func(w *harness) {
				w.vc.rest, w.vc.push = asRead, asRead
				start := time.Now().Add(-time.Minute)
				w.vm.guest = &vcapi.GuestCustomization{Status: "FAILED", StartTime: &start}
				run := w.run(only(customizeOnly))
				mustSucceed(w)
				if run.Customize.DecidedBy != "guest-status" {
					w.t.Errorf("decided by %s", run.Customize.DecidedBy)
				}
			})
		})
	}
}

// A guest whose status stays RUNNING after its Task's success is not waited for longer than verify.timeout: then the
// Task decides, and verify looks.
func TestGuestStaysRunning(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, shows := range []bool{true, false} {
		withHarness(t, secrets, func(w *harness) {
			w.vm.outlasts = 5 * time.Hour
			if shows {
				w.later(70*time.Second,
					func() { w.vc.change(func() { w.vm.show(json.RawMessage(specOf(named))); w.vm.connect() }) })
			}
			run := w.run(only(`"verify":{"timeout":"2m"},"customize":` + named))
			c := run.Customize
			if c.State != events.Succeeded || c.DecidedBy != "task" || c.Guest == nil || c.Guest.Status != "RUNNING" {
				w.t.Errorf("customize %+v", c)
			}
			if took := c.FinishedAt.Sub(*c.StartedAt); took < 3*time.Minute || took > 3*time.Minute+5*time.Second {
				w.t.Errorf("it took %s", took)
			}
			if shows {
				mustSucceed(w)
			} else if run.Error == nil || run.Error.Code != events.VerifyMismatch {
				w.t.Errorf("error %+v", run.Error)
			}
		})
	}
}

// A failure that is known is told, whatever time is left to look at the guest, to abort and to repeat; where there is
// time, all of it is done.
func TestKnownFailureIsTold(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	request := func(run, step string) string {
		return `{"timeout":"` + run + `",` + only(`"customize":` + named[:len(named)-1] + `,"timeout":"` + step +
			`"}`)[1:]
	}
	for _, row := range []struct {
		name      string
		run, step string
		takes     time.Duration // the Task
		code      events.Code
		calls     int
	}{
		{"plenty of time", "1h", "20m", time.Minute, events.CustomizationFailed, 2},
		{"time for the look, the abort and the repeat", "1h", "4m", time.Minute, events.CustomizationFailed, 2},
		{"time for the look and the abort", "1h", "2m", 70 * time.Second, events.StepTimeout, 2},
		{"time for nothing", "1h", "61s", time.Minute, events.CustomizationFailed, 1},
		{"the run's time is over first", "61s", "20m", time.Minute, events.CustomizationFailed, 1},
		{"the run's time is over in the repeat", "2m", "20m", 70 * time.Second, events.DeadlineExceeded, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.vm.moves, w.vm.faulty, w.allowRepeat, w.vm.customize = false, 2, true, row.takes
				run := w.run(request(row.run, row.step))
				e := run.Error
				if e == nil || e.Code != row.code || e.VSphere == nil || e.VSphere.Name != "CustomizationFault" ||
					e.Step != "customize" {
					w.t.Errorf("the run ended as %s: %+v", run.Status, e)
				}
				w.wantEffects("customize", row.calls)
				if completed := strings.Contains(strings.Join(w.kinds(), " "),
					"customize.completed"); completed != (row.code == events.CustomizationFailed) {
					w.t.Errorf("events %v", w.kinds())
				}
			})
		})
	}
}

// One fault means the same as the answer of the call and as the end of its Task.
func TestGeneralFaultAsTheAnswer(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	request := only(`"verify":{"timeout":"5s","nicsConnected":false},"customize":` + named)
	for _, name := range []string{"CustomizationFault", "UnexpectedCustomizationFault"} {
		for _, row := range []struct {
			words  string
			times  int
			aborts int
			ends   string
		}{
			{"words", 1, 1, "run.succeeded"},
			{"words", 2, 1, "run.failed"},
			{"This VM " + noEngine, 0, 0, "run.failed"},
			{"ERR,252,DNS", 0, 0, "run.failed"},
			{"ERR,243,lock", 1, 1, "run.succeeded"},
		} {
			for _, channel := range []string{"answer", "Task"} {
				t.Run(fmt.Sprintf("%s %s %d/%s", name, row.words, row.times, channel), func(t *testing.T) {
					t.Parallel()
					withHarness(t, secrets, func(w *harness) {
						w.vm.moves, w.allowRepeat = false, true
						e := vcError(name, 500, vcapi.Transient)
						e.Message = row.words
						r := rule{op: "CustomizeGuest sent", times: row.times}
						if channel == "answer" {
							r.err = e
						} else {
							e.Status, e.Sent = 0, vcapi.Answered
							r.task = e
						}

						w.vc.on(r)
						run := w.run(request)
						w.wantEnds(row.ends)
						w.wantEffects("abort", row.aborts)
						if row.ends == "run.failed" && (run.Error.Code != events.CustomizationFailed ||
							run.Error.VSphere == nil || run.Error.VSphere.Name != name) {
							w.t.Errorf("error %+v", run.Error)
						}
					})
				})
			}
		}
	}
}

// A run has customized the guest a moment ago, and VMware Tools have not reported it yet: the next one, which asks for
// the same, has not done it.
func TestShownByTheRunBefore(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		wait time.Duration // between the runs
		name string        // that the next one asks for
		ends events.Status
	}{
		{0, "web-7", events.StatusFailed},
		{time.Minute, "web-7", events.StatusFailed},
		{10 * time.Minute, "web-7", events.StatusSucceeded}, // whoever renamed the guest meanwhile
		{0, "web-8", events.StatusSucceeded},
	} {
		withHarness(t, secrets, func(w *harness) {
			w.vm.moves, w.vm.ignores, w.allowRepeat = false, true, true
			request := func(name, verify string) string {
				return only(`"verify":` + verify + `,"customize":` + strings.Replace(named, "web-7", name, 1))
			}
			w.drive(w.request("order-1", request("web-7", "false")))
			mustSucceed(w)
			<-time.After(row.wait)
			w.vc.on(rule{op: "CustomizeGuest sent", task: toolsAway(), idle: true})
			reported := 90 * time.Second // after the first one
			if row.wait < reported {
				reported -= row.wait
			}
			w.later(reported, func() {
				w.vc.change(func() { w.vm.show(json.RawMessage(specOf(strings.Replace(named, "web-7", row.name, 1)))) })
			})
			w.drive(w.request("order-2", request(row.name, `{"nicsConnected":false,"addresses":false}`)))
			if run := w.last(); run.Status != row.ends {
				w.t.Errorf("%s after %s: the run ended as %s, decided by %s", row.name, row.wait, run.Status,
					run.Customize.DecidedBy)
			}
		})
	}
}
