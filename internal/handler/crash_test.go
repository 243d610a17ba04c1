package handler

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// runInHarness runs fn in a harness of its own.
type runInHarness func(t *testing.T, secrets Secrets, fn func(*harness))

// crashPoints are the crashPoints that an owner comes to in a run in which nothing happens to it.
func crashPoints(t *testing.T, secrets Secrets, data string, in runInHarness) []string {
	t.Helper()
	var all []string
	in(t, secrets, func(w *harness) {
		w.run(data)
		all = w.owners[0].trace
	})
	return all
}

// lastingPoints are the crashPoints at which something is stored or takes effect: to die at any other is to die at the
// next of these.
func lastingPoints(crashPoints []string) []string {
	return slices.DeleteFunc(slices.Clone(crashPoints), func(p string) bool {
		return !strings.HasPrefix(p, "publish ") && !strings.HasPrefix(p, "stored ") && !strings.Contains(p, " sent") &&
			!strings.Contains(p, " landed")
	})
}

// mustSucceed checks the end of a run that nothing may keep from its success.
func mustSucceed(w *harness) {
	w.t.Helper()
	if run := w.last(); run.Status != events.StatusSucceeded {
		w.t.Errorf("the run ended as %s", run.Status)
	}
}

func TestCrash(t *testing.T) {
	t.Parallel()
	crashEverywhere(t, secretsDir(t), withHarness, whole)
}

// crashEverywhere lets an owner die at each point of a run, on a journal of one replica and of three.
func crashEverywhere(t *testing.T, secrets Secrets, in runInHarness, request string) {
	t.Helper()
	for _, point := range crashPoints(t, secrets, request, in) {
		for _, replicas := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/replicas=%d", point, replicas), func(t *testing.T) {
				t.Parallel()
				in(t, secrets, func(w *harness) {
					w.replicate(replicas)
					w.atOnce = replicas > 1
					w.run(request, crash(point))
					mustSucceed(w)
				})
			})
		}
	}
}

// A call that is on its way when its owner dies lands later, and shows later still.
func TestCrashLateCall(t *testing.T) {
	t.Parallel()
	crashWithCallsInFlight(t, secretsDir(t), withHarness, whole)
}

// crashWithCallsInFlight lets an owner die with each of its calls on its way.
func crashWithCallsInFlight(t *testing.T, secrets Secrets, in runInHarness, request string) {
	t.Helper()
	for _, point := range crashPoints(t, secrets, request, in) {
		if !strings.Contains(point, " sent") {
			continue
		}
		for _, travel := range []time.Duration{0, time.Second, 9 * time.Second, 10 * time.Second} {
			for _, lag := range []time.Duration{0, 10 * time.Second, 29 * time.Second} {
				t.Run(fmt.Sprintf("%s/%s/%s", point, travel, lag), func(t *testing.T) {
					in(t, secrets, func(w *harness) {
						w.atOnce, w.vc.lag = true, lag
						w.run(request, []incident{{point: point, do: "late", after: travel}})
						mustSucceed(w)
					})
				})
			}
		}
	}
}

func TestCrashPairs(t *testing.T) {
	t.Parallel()
	crashTwice(t, secretsDir(t), inBriefHarness, brief)
}

// crashTwice lets an owner, and then the next one, die at each point where something is stored or takes effect.
func crashTwice(t *testing.T, secrets Secrets, in runInHarness, request string) {
	t.Helper()
	for n, first := range lastingPoints(crashPoints(t, secrets, request, in)) {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			var second []string
			in(t, secrets, func(w *harness) {
				w.run(request, crash(first))
				if len(w.owners) > 1 {
					second = lastingPoints(w.owners[1].trace)
				}
			})

			for m, second := range second {
				if !sampled(n, m) {
					continue
				}
				in(t, secrets, func(w *harness) {
					w.atOnce = true
					w.run(request, crash(first), crash(second))
					mustSucceed(w)
					if w.t.Failed() {
						w.t.Logf("crashes at %s and %s", first, second)
					}
				})
			}
		})
	}
}

// An owner stands still while the request is delivered to the next one, then goes on.
func TestPause(t *testing.T) {
	t.Parallel()
	pauseEverywhere(t, secretsDir(t), inBriefHarness, brief)
}

// pauseEverywhere lets an owner stand still at each point, for as long as each rule allows, and longer.
func pauseEverywhere(t *testing.T, secrets Secrets, in runInHarness, request string) {
	t.Helper()
	for n, point := range crashPoints(t, secrets, request, in) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			for m, pause := range []time.Duration{2 * time.Second, 7 * time.Second, 31 * time.Second, 46 * time.Second,
				100 * time.Second, 2 * time.Hour} {
				if strings.Contains(point, " sent") && pause > settings.TravelTime {
					continue // its call is on its way: none travels longer
				}
				for i, atOnce := range []bool{false, true} {
					if !sampled(n, m+i) {
						continue
					}
					in(t, secrets, func(w *harness) {
						w.atOnce = atOnce
						w.run(request, []incident{{point: point, do: "pause", after: pause}})
						mustSucceed(w)
						if w.t.Failed() {
							w.t.Logf("paused at %s for %s, at once: %v", point, pause, atOnce)
						}
					})
				}
			}
		})
	}
}

// The process is told to stop at any point: the run is given back in time and goes on elsewhere.
func TestRelease(t *testing.T) {
	t.Parallel()
	releaseEverywhere(t, secretsDir(t), inBriefHarness, brief)
}

// releaseEverywhere tells the process to stop at each point.
func releaseEverywhere(t *testing.T, secrets Secrets, in runInHarness, request string) {
	t.Helper()
	for _, point := range crashPoints(t, secrets, request, in) {
		t.Run(point, func(t *testing.T) {
			in(t, secrets, func(w *harness) {
				w.run(request, []incident{{point: point, do: "term"}})
				mustSucceed(w)
				all := w.events()
				if took := all[len(all)-1].at.Sub(all[0].at); w.newest("run.released") != nil && took > 90*time.Second {
					w.t.Errorf("it took %s: the next owner waited, although no call was outstanding", took)
				}
			})
		})
	}
}

// Only the very next delivery may trust that its owner let go of the run with no call outstanding.
func TestReleaseIsTrustedOnce(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		req := w.request("order-1", brief)
		first := w.deliver(req, incident{point: "publish check.completed", do: "term"})
		w.await(first)
		if w.newest("run.released") == nil {
			w.t.Fatal("not released")
		}
		if _, err := w.line.Deliver(req.Seq); err != nil { // to an owner that dies at once
			w.t.Fatal(err)
		}
		w.drive(req)
		mustSucceed(w)
		if wait := w.newest("customize.starting").At.Sub(w.newest("run.resumed").At); wait < 45*time.Second {
			w.t.Errorf("the first act came %s after the takeover", wait)
		}
	})
}

// vCenter is silent when the run is accepted, so the check reads the baseline.
func TestCrashWithoutBaseline(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	silent := func(w *harness) {
		w.vc.silent = true
		w.later(10*time.Second, func() { w.vc.change(func() { w.vc.silent = false }) })
	}
	var all []string
	inBriefHarness(t, secrets, func(w *harness) {
		silent(w)
		w.run(brief)
		all = lastingPoints(w.owners[0].trace)
	})
	for _, tail := range []int{0, 1} {
		for _, point := range all {
			t.Run(fmt.Sprintf("%s/tail=%d", point, tail), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					w.atOnce, w.tail = true, tail
					silent(w)
					w.run(brief, crash(point))
					mustSucceed(w)
				})
			})
		}
	}
}

// A call that does not end within the drain time is given up, not its outcome: the run is given back without the mark
// that would let the next owner trust that nothing is under way.
func TestDrainTakesTooLong(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vc.on(rule{op: "StartGuestNetwork sent", times: 1, delay: time.Minute})
		w.settings.TravelTime = 2 * time.Minute
		req := w.request("a", only(networkOnly))
		begun := time.Now()
		o := w.deliver(req, incident{point: "StartGuestNetwork sent", do: "term"})
		w.await(o)
		if took := time.Since(begun); took < w.settings.Drain || took > w.settings.Drain+time.Second ||
			!errors.Is(o.err, events.ErrReleased) {
			w.t.Errorf("given back after %s: %v", took, o.err)
		}
		if last := w.kinds(); last[len(last)-1] != "network.starting" {
			w.t.Errorf("events %v", last)
		}
		w.drive(req)
		mustSucceed(w)
		w.wantEffects("network", 1)
	})
}
