package handler

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// ends are the kinds of the last events of the journal's runs, in order.
func (w *harness) ends() []string {
	return slices.DeleteFunc(w.kinds(), func(k string) bool { return !events.Kind(k).Last() })
}

func (w *harness) wantEnds(want ...string) {
	w.t.Helper()
	if got := w.ends(); !slices.Equal(got, want) {
		w.t.Errorf("runs ended as %v, want %v", got, want)
	}
}

func (w *harness) wantEffects(act string, want int) {
	w.t.Helper()
	if got := w.vc.count(vmID, act); got != want {
		w.t.Errorf("%s took effect %d times, want %d", act, got, want)
	}
}

// runTurns delivers a request, the next one and a copy of the first, in another order than the stream's: the two run
// one after another in the stream's order, and the copy does nothing.
func (w *harness) runTurns() {
	w.t.Helper()
	a, b := w.request("a", brief), w.request("b", only(networkOnly))
	copyOfA := w.request("a", brief)
	owners := []*replica{w.deliver(copyOfA), w.deliver(b), w.deliver(a)}
	for _, o := range owners {
		w.await(o)
		if o.err != nil {
			w.t.Errorf("request %d: %v", o.req.Seq, o.err)
		}
	}

	w.wantEnds("run.succeeded", "run.succeeded")
	w.wantEffects("customize", 1)
	w.wantEffects("network", 2)
	w.wantEffects("process first", 1)
	all := w.events()
	if all[0].run.ID != a.RunID || all[len(all)-1].run.ID != b.RunID {
		w.t.Error("not in the stream's order")
	}
	for _, e := range all {
		if e.run.Owner.Takeovers != 0 {
			w.t.Fatalf("%s %s: taken over from its healthy owner", e.kind, e.id)
		}
	}
}

func TestTurns(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), (*harness).runTurns)
}

// An ended run's request comes again, also after a later run: nothing happens. Other data under its name is refused.
func TestRepeat(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, between := range []int{0, 1, 31} {
		for _, other := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d runs between/other data %v", between, other), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					w.drive(w.request("a", only(networkOnly)))
					for i := range between {
						w.drive(w.request(fmt.Sprintf("b%d", i), `{"vm":"vm-42"}`))
					}
					before := len(w.kinds())
					data := only(networkOnly)
					if other {
						data = only(customizeOnly)
					}
					again := w.request("a", data)
					w.drive(again)
					if got := len(w.kinds()); got != before {
						w.t.Errorf("%d events more", got-before)
					}
					w.wantEffects("network", 1)
					w.wantEffects("customize", 0)
					if refused := len(w.rejected) == 1 &&
						w.rejected[0].Code == events.DuplicateRequest; refused != other {
						w.t.Errorf("rejected: %v", w.rejected)
					}
				})
			})
		}
	}
}

// What the run before made is shown late: the next run, taken over, must not take it for its own.
func TestPastTaskIsNotAdopted(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, only(networkOnly), inBriefHarness)) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.vc.lag, w.vm.network, w.atOnce = 29*time.Second, time.Second, true
				w.drive(w.request("a", only(networkOnly)))
				w.drive(w.request("b", only(networkOnly)), crash(point))
				w.wantEnds("run.succeeded", "run.succeeded")
				w.wantEffects("network", 2)
			})
		})
	}
}

func TestExpired(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		a, b := w.request("a", only(networkOnly)), w.request("b", brief)
		b.Expires = time.Now().Add(5 * time.Second) // the network takes ten
		w.deliver(a)
		o := w.deliver(b)
		w.await(o)
		var reject *events.RejectError
		if !errors.As(o.err, &reject) || reject.Code != events.Expired {
			w.t.Errorf("answer %v", o.err)
		}
		w.wantEffects("customize", 0)
	})
}

// An unfinished run whose request has left the stream is closed by the next one, at whichever point it stood.
func TestOrphan(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			for _, late := range []bool{false, true} {
				if late && !strings.Contains(point, " sent") {
					continue
				}
				inBriefHarness(t, secrets, func(w *harness) {
					w.vc.lag = 29 * time.Second
					plan := crash(point)
					if late {
						plan = []incident{{point: point, do: "late", after: 10 * time.Second}}
					}
					a := w.request("a", brief)
					o := w.deliver(a, plan...)
					<-o.stopped
					w.line.Remove(a.Seq)
					begun := len(w.kinds()) > 0
					closed := !begun || w.newest("run.succeeded") != nil
					done := map[string]int{}
					for _, act := range calls {
						done[act] = w.vc.count(vmID, act)
					}
					w.drive(w.request("b", brief))
					switch {
					case !begun:
						w.wantEnds("run.succeeded")
					case closed:
						w.wantEnds("run.succeeded", "run.succeeded")
					default:
						w.wantEnds("run.failed", "run.succeeded")
					}

					for op, act := range calls {
						want := done[act] + 1
						if late && strings.HasPrefix(point, op) {
							want++
						}
						w.wantEffects(act, want)
					}

					for _, e := range w.events() {
						if e.kind == events.RunFailed && e.run.Error.Code != events.Orphaned {
							w.t.Errorf("error %v", e.run.Error)
						}
					}
				})
			}
		})
	}
}

// How this build's checkpoints begin, and those of a build that nobody here knows.
const (
	ours    = `"checkpoint":{"version":2`
	unknown = `"checkpoint":{"version":99`
)

// Another version of guestflow wrote the journal, of the run itself or of the one before it: what this build does not
// know is handed back untouched, what it knows goes on, and is written as its own version from then on.
func TestCheckpointVersions(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for version, known := range map[string]bool{"0": false, "1": true, "2": true, "3": false, "99": false} {
		for _, of := range []string{"this run", "the run before"} {
			t.Run(version+" "+of, func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					req := w.request("a", brief)
					if of == "this run" {
						first := w.deliver(req, crash("stored check.completed")...)
						<-first.stopped
					} else {
						w.drive(req)
						req = w.request("b", only(networkOnly))
					}

					last, before := w.rewrite(ours, `"checkpoint":{"version":`+version), len(w.kinds())
					if !known {
						o := w.deliver(req)
						w.await(o)
						var retry *events.RetryError
						if !errors.As(o.err, &retry) || len(w.kinds()) != before {
							w.t.Errorf("answer %v, events %v", o.err, w.kinds()[before:])
						}
						w.restore(last)
					}

					w.drive(req)
					mustSucceed(w)
					for _, e := range w.events()[before:] {
						if !strings.Contains(string(e.data), ours) {
							w.t.Errorf("%s has checkpoint %s", e.kind, e.run.Checkpoint)
						}
					}
				})
			})
		}
	}
}

func TestCancelQueued(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		a, b := w.request("a", only(networkOnly)), w.request("b", brief)
		w.cancel(b)
		w.deliver(a)
		w.drive(b)
		w.wantEnds("run.succeeded", "run.canceled")
		w.wantEffects("customize", 0)
		if last := w.last(); last.N != 1 || last.CanceledBy == nil || last.CanceledBy.ID != "cancel-b" {
			w.t.Errorf("n %d, canceled by %v", last.N, last.CanceledBy)
		}
	})
}

// A cancel at any point: what is under way is stopped, nothing more is begun, and nothing takes effect after the last
// event.
func TestCancel(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range crashPoints(t, secrets, whole, withHarness) {
		for _, and := range []string{"", "crash"} {
			t.Run(point+"/"+and, func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					var req *events.Request
					plan := []incident{{point: point, do: "call", fn: func() { w.cancel(req) }}}
					if and != "" {
						plan[0].do = "call, then crash"
					}
					req = w.request("order-1", whole)
					w.drive(req, plan)
					last := w.last()
					tooLate := strings.Contains(point, "exited #2") || strings.Contains(point, "run.succeeded") ||
						// How often a process is asked for varies: this run had no such point, and no cancel.
						len(w.owners[0].met) == 0 ||
						// Between the last look and the last event.
						last.FinishedAt.Sub(w.owners[0].met[0].at) < 5*latency
					if last.Status != events.StatusCanceled && (!tooLate || last.Status != events.StatusSucceeded) {
						w.t.Errorf("the run ended as %s", last.Status)
					}
					for _, p := range last.Processes {
						if p.State == events.Running || p.State == events.Starting {
							w.t.Errorf("process %s is %s: %s", p.Name, p.State, p.Reason)
						}
					}
				})
			})
		}
	}
}

// The signal of a cancel is lost: it is looked for before each intent all the same.
func TestCancelUnheard(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for point, act := range map[string]string{
		"CheckCustomization": "customize", "publish customize.completed": "network",
		"publish network.completed": "process first",
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.noWake = true
				req := w.request("order-1", brief)
				w.drive(req, []incident{{point: point, do: "call", fn: func() { w.cancel(req) }}})
				w.wantEnds("run.canceled")
				w.wantEffects(act, 0)
			})
		})
	}
}

// The customization cannot be canceled as a Task: it is aborted.
func TestCancelAborts(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.on(rule{op: "CancelTask sent", err: vcError("NotSupported", 500, vcapi.Permanent)})
		req := w.request("a", whole)
		w.later(20*time.Second, func() { w.cancel(req) })
		w.drive(req)
		w.wantEnds("run.canceled")
		w.wantEffects("abort", 1)
		if c := w.last().Customize; c.State != events.Canceled {
			w.t.Errorf("customize is %s: %s", c.State, c.Reason)
		}
	})
}

// The answer to the call is lost and the run canceled: its last event waits until it is known whether there is
// something to stop.
func TestCancelWithLostAnswer(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.lag = 29 * time.Second
		w.vm.customize = 10 * time.Minute
		w.vc.on(rule{op: "CustomizeGuest sent", times: 1, lost: "answer", delay: 9 * time.Second})
		req := w.request("a", whole)
		w.later(5*time.Second, func() { w.cancel(req) })
		w.drive(req)
		w.wantEnds("run.canceled")
		if c := w.last().Customize; c.State != events.Canceled || c.Task == "" {
			w.t.Errorf("customize is %+v", c)
		}
		if w.vc.tasks[0].canceled.IsZero() {
			w.t.Error("its Task goes on")
		}
	})
}

// What stops a canceled run's Task or process has no answer and travels: it is told again, and the run does not end
// before the first has landed.
func TestStopUnanswered(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	stops := map[string]struct{ data, call string }{
		"customize": {only(customizeOnly), "CancelTask"},
		"network":   {only(networkOnly), "CancelTask"},
		"process":   {only(processOnly), "DeleteProcess"},
	}
	for step, s := range stops {
		for name, r := range map[string]rule{
			"travels":     {lost: "answer", delay: 9 * time.Second},
			"answer lost": {lost: "answer"},
			"call lost":   {lost: "call"},
		} {
			// Refused at the second attempt: the first one lands on something that still runs.
			for _, goesOn := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/%v", step, name, goesOn), func(t *testing.T) {
					t.Parallel()
					inBriefHarness(t, secrets, func(w *harness) {
						w.vm.customize, w.vm.network = 10*time.Minute, 10*time.Minute
						w.vm.programs["/usr/bin/first"] = program{takes: 10 * time.Minute}
						first := r
						first.op, first.times = s.call+" sent", 1
						w.vc.on(first)
						if goesOn {
							w.vc.on(rule{op: s.call, times: 1})
							w.vc.on(rule{op: s.call, err: vcError("NotSupported", 500, vcapi.Permanent)})
							w.vc.on(rule{op: "AbortCustomization", err: vcError("NotSupported", 500, vcapi.Permanent)})
						}
						req := w.request("a", s.data)
						w.later(20*time.Second, func() { w.cancel(req) })
						w.drive(req)
						w.wantEnds("run.canceled")
						if !goesOn {
							last := w.last()
							states := map[string]func() (events.State, string){
								"customize": func() (events.State, string) {
									return last.Customize.State,
										last.Customize.Reason
								},
								"network": func() (events.State, string) {
									return last.Network.State,
										last.Network.Reason
								},
								"process": func() (events.State, string) {
									return last.Processes[0].State,
										last.Processes[0].Reason
								},
							}

							if state, reason := states[step](); state != events.Canceled || reason != "" {
								w.t.Errorf("%s is %s: %s", step, state, reason)
							}
						}
					})
				})
			}
		}
	}
}

// The run is canceled while nobody has it, and nothing is left to be begun: it is canceled all the same.
func TestCancelBetweenOwners(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range []string{"stored process.started", "stored customize.started"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.noWake, w.cancelReadDelay = true, 3*time.Second
				data := only(processOnly)
				if strings.Contains(point, "customize") {
					data = only(customizeOnly)
				}
				req := w.request("a", data)
				o := w.deliver(req, crash(point)...)
				<-o.stopped
				w.cancel(req)
				<-time.After(2 * time.Minute) // what it waited for has ended
				w.drive(req)
				w.wantEnds("run.canceled")
			})
		})
	}
}

// vCenter, or the guest, forgot what an unanswered call made: it cannot be known, and the request decides.
func TestUncertain(t *testing.T) {
	t.Parallel()
	forgets := map[string]func(w *harness){
		"vCenter restarted, no history": func(w *harness) { w.vc.history = false; w.vc.restartNow() },
		"eleven minutes, no history": func(w *harness) {
			w.vc.history = false
			<-time.After(11 * time.Minute)
		},
		"eleven minutes, an older Task still runs": func(w *harness) {
			w.vc.history = false
			<-time.After(11 * time.Minute)
		},
		"clock set back":  func(w *harness) { w.vc.change(func() { w.vc.offset -= time.Hour }) },
		"guest restarted": func(w *harness) { w.vc.restartGuest(w.vm) },
		"five minutes":    func(w *harness) { <-time.After(5*time.Minute + 10*time.Second) },
	}

	rows := []struct {
		call, forgets string
		certain       bool // that there was none
	}{
		{"CustomizeGuest", "vCenter restarted, no history", false},
		{"CustomizeGuest", "eleven minutes, no history", false},
		{"CustomizeGuest", "eleven minutes, an older Task still runs", false},
		{"CustomizeGuest", "clock set back", false},
		{"CustomizeGuest", "guest restarted", true},
		{"CustomizeGuest", "five minutes", true},
		{"StartGuestNetwork", "vCenter restarted, no history", false},
		{"StartProcess", "guest restarted", false},
		{"StartProcess", "five minutes", false},
		{"StartProcess", "vCenter restarted, no history", true},
	}

	secrets := secretsDir(t)
	for _, row := range rows {
		for _, decision := range []string{"fail", "repeat"} {
			for _, point := range []string{row.call + " landed", row.call + " sent"} {
				t.Run(point+"/"+row.forgets+"/"+decision, func(t *testing.T) {
					t.Parallel()
					inBubble(t, secrets, func(w *harness) {
						w.vm.moves = false
						w.allowRepeat = true
						w.vc.forever = nil
						if strings.HasSuffix(row.forgets, "still runs") {
							w.vc.tasks = append(w.vc.tasks,
								&fakeTask{id: "task-7", name: "ExportVm", vm: vmID, queued: time.Now(),
									takes: 2 * time.Hour, aside: true})
							<-time.After(time.Second)
						}

						req := w.request("a", `{"onUncertain":"`+decision+`",`+brief[1:])
						first := w.deliver(req, crash(point)...)
						<-first.stopped
						forgets[row.forgets](w)
						w.drive(req)
						did := strings.HasSuffix(point, "landed")
						want := 1
						switch {
						case row.certain, did && row.forgets == "clock set back":
							// A Task is known by its ID, not by its time.
							mustSucceed(w)
						case decision == "repeat":
							mustSucceed(w)
							if did && w.vc.count(vmID, calls[row.call]) == 2 {
								want = 2
							}
						default:
							if last := w.last(); last.Status != events.StatusFailed ||
								last.Error.Code != events.Uncertain {
								w.t.Errorf("the run ended as %s: %v", last.Status, last.Error)
							}
							if !did {
								want = 0
							}
						}

						w.wantEffects(calls[row.call], want)
						if aborts := w.vc.count(vmID, "abort"); aborts > 0 && row.call != "CustomizeGuest" {
							w.t.Errorf("%d aborts", aborts)
						}
					})
				})
			}
		}
	}
}

// A run ended without knowing whether its customization began. The next one, taken over, finds a Task that may be that
// one.
func TestDoubtIsPassedOn(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, decision := range []string{"fail", "repeat"} {
		t.Run(decision, func(t *testing.T) {
			t.Parallel()
			inBubble(t, secrets, func(w *harness) {
				w.vm.moves, w.vc.history, w.vc.forever = false, false, nil
				a := w.request("a", only(customizeOnly))
				o := w.deliver(a, crash("CustomizeGuest sent")...)
				<-o.stopped
				w.vc.expireSessions()
				w.drive(a)
				w.wantEnds("run.failed")
				b := w.request("b", `{"onUncertain":"`+decision+`",`+only(customizeOnly)[1:])
				o = w.deliver(b, crash("publish customize.starting")...)
				<-o.stopped
				w.vc.change(func() { // a's, at last
					w.vc.tasks = append(w.vc.tasks, &fakeTask{id: "task-late", name: "CustomizeGuest_Task", vm: vmID,
						queued: time.Now(), takes: time.Second})
				})
				w.drive(b)
				if decision == "fail" {
					w.wantEnds("run.failed", "run.failed")
					w.wantEffects("customize", 0)
				} else {
					w.wantEnds("run.failed", "run.succeeded")
					w.wantEffects("customize", 1)
					w.wantEffects("abort", 1)
				}
			})
		})
	}
}
