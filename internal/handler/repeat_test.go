package handler

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// faulty is a request whose first customization ends with the general fault, and is aborted and repeated.
var faulty = only(`"verify":{"timeout":"5s","nicsConnected":false},"customize":` + named)

// inFaultyWorld is a harness in which that happens.
func inFaultyWorld(t *testing.T, secrets Secrets, fn func(w *harness)) {
	t.Helper()
	inBriefHarness(t, secrets, func(w *harness) {
		w.vm.faulty, w.allowRepeat = 1, true
		fn(w)
	})
}

// twice checks that the guest was customized once more, after an abort, and not oftener.
func (w *harness) twice() {
	w.t.Helper()
	mustSucceed(w)
	w.wantEffects("customize", 2)
	if w.vc.count(vmID, "abort") == 0 {
		w.t.Error("repeated without an abort")
	}
	aborted := false
	for i, e := range w.vc.effects {
		aborted = aborted || e.act == "abort"
		if e.act == "customize" && i > 0 && !aborted {
			w.t.Error("repeated before the abort")
		}
	}
}

func TestAbortAndRepeat(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, faulty, inFaultyWorld)) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			plans := [][]incident{crash(point), {{point: point, do: "term"}},
				{{point: point, do: "pause", after: 46 * time.Second}}}
			if strings.Contains(point, " sent") {
				plans[2] = []incident{{point: point, do: "late", after: 10 * time.Second}}
			}
			for _, plan := range plans {
				for _, lag := range []time.Duration{0, 29 * time.Second} {
					inFaultyWorld(t, secrets, func(w *harness) {
						w.replicate(3)
						w.atOnce, w.vc.lag = lag > 0, lag
						w.run(faulty, plan)
						w.twice()
						if w.t.Failed() {
							w.t.Logf("%s, lag %s", plan[0].do, lag)
						}
					})
				}
			}
		})
	}
}

func TestAbortAndRepeatCrashPairs(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for n, first := range lastingPoints(crashPoints(t, secrets, faulty, inFaultyWorld)) {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			var second []string
			inFaultyWorld(t, secrets, func(w *harness) {
				w.run(faulty, crash(first))
				if len(w.owners) > 1 {
					second = lastingPoints(w.owners[1].trace)
				}
			})

			for m, second := range second {
				if !sampled(n, m) {
					continue
				}
				inFaultyWorld(t, secrets, func(w *harness) {
					w.atOnce, w.vc.lag = true, 29*time.Second
					w.run(faulty, crash(first), crash(second))
					w.twice()
					if w.t.Failed() {
						w.t.Logf("crashes at %s and %s", first, second)
					}
				})
			}
		})
	}
}

// vCenter forgets everything while an abort is in doubt: it is made again, since it does no harm, and the run is not.
func TestAbortInDoubt(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range []string{"stored customize.aborting", "AbortCustomization sent", "AbortCustomization landed",
		"stored customize.aborted"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inFaultyWorld(t, secrets, func(w *harness) {
				w.vc.history, w.vc.forever = false, nil
				w.run(faulty, []incident{{point: point, do: "call, then crash", fn: w.vc.restartNow}})
				w.twice()
			})
		})
	}
}

// The abort's answer is lost, or it is refused for a while: it is made again, and the customization only once more.
func TestAbortUnanswered(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	rules := map[string]rule{
		"answer lost": {lost: "answer"},
		"call lost":   {lost: "call"},
		"travels":     {lost: "answer", delay: 9 * time.Second},
		"busy":        {err: vcError("TaskInProgress", 500, vcapi.Transient)},
		"Task busy":   {task: &vcapi.Error{Name: "TaskInProgress", Class: vcapi.Transient, Sent: vcapi.Answered}},
	}

	for name, r := range rules {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inFaultyWorld(t, secrets, func(w *harness) {
				r.op, r.times = "AbortCustomization sent", 1
				w.vc.on(r)
				w.run(faulty)
				w.twice()
			})
		})
	}

	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		inFaultyWorld(t, secrets, func(w *harness) {
			w.vc.on(rule{op: "AbortCustomization sent", err: vcError("NotSupported", 500, vcapi.Permanent)})
			run := w.run(faulty)
			if run.Status != events.StatusFailed || run.Error.Step != "customize" || run.Error.VSphere == nil ||
				run.Error.VSphere.Name != "NotSupported" {
				w.t.Errorf("error %+v", run.Error)
			}
			w.wantEffects("customize", 1)
		})
	})
}

// A cancel at any point of an abort and repeat: nothing is left under way.
func TestAbortAndRepeatCanceled(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	done := false // with all that the run does to the guest, and the looking at it
	for _, point := range lastingPoints(crashPoints(t, secrets, faulty, inFaultyWorld)) {
		done = done || point == "publish verify.completed"
		for _, do := range []string{"call", "call, then crash"} {
			t.Run(point+"/"+do, func(t *testing.T) {
				t.Parallel()
				inFaultyWorld(t, secrets, func(w *harness) {
					req := w.request("order-1", faulty)
					w.drive(req, []incident{{point: point, do: do, fn: func() { w.cancel(req) }}})
					if last := w.last(); last.Status != events.StatusCanceled &&
						(!done || last.Status != events.StatusSucceeded) {
						w.t.Errorf("the run ended as %s", last.Status)
					}
					if got := w.vc.count(vmID, "customize"); got > 2 {
						w.t.Errorf("customized %d times", got)
					}
					end := w.newest("run.canceled")
					for _, task := range w.vc.tasks {
						if end != nil && task.end().After(end.At) {
							w.t.Errorf("%s %s goes on after the last event", task.name, task.id)
						}
					}
				})
			})
		}
	}
}

// The owner dies after its abort, which takes long, and the run's time is over when the next one takes over: the
// abort's Task, which no event names, has come to its end before the last event, so that it does not reach into the
// VM's next run.
func TestAbortOutlivesItsOwner(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, canceled := range []bool{false, true} {
		inFaultyWorld(t, secrets, func(w *harness) {
			w.vc.aborts = 100 * time.Second
			timeout := "90s"
			if canceled {
				timeout = "1h"
			}
			req := w.request("order-1", `{"timeout":"`+timeout+`",`+faulty[1:])
			o := w.deliver(req, crash("AbortCustomization landed")...)
			<-o.stopped
			if canceled {
				w.cancel(req)
			}
			<-time.After(30 * time.Second)
			w.drive(req)
			end := w.last()
			if canceled != (end.Status == events.StatusCanceled) || end.Status == events.StatusSucceeded {
				w.t.Errorf("the run ended as %s", end.Status)
			}
			if !canceled && (end.Error.Code != events.CustomizationFailed || end.Error.VSphere == nil ||
				end.Error.VSphere.Name != "CustomizationFault") {
				w.t.Errorf("error %+v", end.Error)
			}
			w.wantEffects("abort", 1)
			for _, task := range w.vc.tasks {
				if task.end().After(*end.FinishedAt) {
					w.t.Errorf("%s goes on after the last event", task.name)
				}
			}
		})
	}
}

// "onUncertain": "repeat" is decided once for a call, whoever goes on: the owner after an abort does not abort again,
// although vCenter's answer tells as little as before.
func TestRepeatIsDecidedOnce(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range []string{"stored customize.aborted", "Session", "publish customize.starting"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.allowRepeat = true
				w.vc.naming = func(string) (string, string) { return "", "" } // nobody can tell whose a Task is
				w.run(`{"onUncertain":"repeat",`+only(customizeOnly)[1:], crash("CustomizeGuest landed"),
					crash("stored customize.aborted"), crash(point))
				mustSucceed(w)
				w.wantEffects("customize", 2)
				w.wantEffects("abort", 1)
			})
		})
	}
}

// An abort of which nobody can tell whether it was made leaves no doubt about the customization that had failed before
// it, which the VM's next run would inherit. It does where that one was to be repeated because nobody could tell.
func TestAbortInDoubtAtTheEnd(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, doubtful := range map[string]bool{"after a failure": false, "after a doubt": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.allowRepeat, w.vc.history, w.vc.forever = true, false, nil
				data, plan, want := faulty, []incident(nil), []string(nil)
				if doubtful {
					data, want = `{"onUncertain":"repeat",`+only(customizeOnly)[1:], []string{"customize"}
					plan = []incident{{point: "CustomizeGuest landed", do: "call, then crash", fn: w.vc.restartNow}}
				} else {
					w.vm.faulty = 1
				}

				req := w.request("order-1", data)
				w.vc.on(rule{op: "AbortCustomization sent", lost: "answer", fn: func() {
					w.later(time.Second, w.vc.restartNow)
					w.later(2*time.Second, func() { w.cancel(req) })
				}})
				w.drive(req, plan)
				w.wantEnds("run.canceled")
				if got := w.pointOf("run.canceled").Doubt; !slices.Equal(got, want) {
					w.t.Errorf("doubt about %v, want %v", got, want)
				}
			})
		})
	}
}

// A call that was to be repeated, since nobody could tell whether it took effect, is in doubt until a repetition has
// taken effect, whoever ends the run, and whatever came of the abort before it.
func TestDoubtOfARepetition(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	inDoubt := func(w *harness, effect, want string) {
		w.wantEnds(want)
		if got := w.pointOf(want).Doubt; !slices.Equal(got, []string{effect}) {
			w.t.Errorf("doubt about %v, want %s", got, effect)
		}
		if e := w.last().Error; want == "run.failed" && e.Code != events.Uncertain {
			w.t.Errorf("error %+v", e)
		}
	}
	crashPoints := []string{"stored customize.aborting", "AbortCustomization landed", "stored customize.aborted"}
	for _, point := range crashPoints {
		for _, end := range []string{"run.canceled", "run.failed"} {
			t.Run(point+"/"+end, func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					w.allowRepeat, w.vc.history, w.vc.forever = true, false, nil
					timeout := map[string]string{"run.canceled": "1h", "run.failed": "80s"}[end]
					req := w.request("order-1",
						`{"timeout":"`+timeout+`","onUncertain":"repeat",`+only(customizeOnly)[1:])
					lost := incident{point: "CustomizeGuest landed", do: "call, then crash", fn: w.vc.restartNow}
					dies := incident{point: point, do: "call, then crash", fn: func() {
						if end == "run.canceled" {
							w.cancel(req)
						}
					}}
					w.drive(req, []incident{lost}, []incident{dies})
					inDoubt(w, "customize", end)
				})
			})
		}
	}
	t.Run("the repetition takes effect, and a later step fails", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			w.allowRepeat, w.vc.history, w.vc.forever = true, false, nil
			w.vm.programs["/usr/bin/first"] = program{takes: time.Second, exit: 1}
			lost := incident{point: "CustomizeGuest landed", do: "call, then crash", fn: w.vc.restartNow}
			w.run(`{"onUncertain":"repeat",`+brief[1:], []incident{lost})
			if e := w.last().Error; e == nil || e.Code != events.ExitCode || len(w.pointOf("run.failed").Doubt) != 0 {
				w.t.Errorf("error %+v", e)
			}
			w.wantEffects("customize", 2)
		})
	})
	t.Run("the repetition is refused", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			w.allowRepeat = true
			lost := incident{point: "StartProcess landed", do: "call, then crash", fn: func() {
				w.vc.restartGuest(w.vm)
				w.vc.on(rule{op: "StartProcess", err: vcError("GuestPermissionDenied", 500, vcapi.Permanent)})
			}}
			w.run(`{"onUncertain":"repeat",`+only(processOnly)[1:], []incident{lost})
			inDoubt(w, "process", "run.failed")
			w.wantEffects("process first", 1)
		})
	})
}
