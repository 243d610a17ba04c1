package handler

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The answer to an append is lost, the append is lost, or it is held up on its way and stored later.
func TestLostAppend(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range crashPoints(t, secrets, brief, inBriefHarness) {
		if !strings.HasPrefix(point, "publish ") {
			continue
		}
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			for _, f := range []incident{{do: "lose"}, {do: "fail"}, {do: "hold", after: time.Millisecond},
				{do: "hold", after: time.Minute}} {
				for _, replicas := range []int{1, 3} {
					inBriefHarness(t, secrets, func(w *harness) {
						w.replicate(replicas)
						f.point = point
						w.run(brief, []incident{f})
						mustSucceed(w)
						if len(w.owners) != 1 {
							w.t.Errorf("%d owners: a lost answer fenced its own owner", len(w.owners))
						}
						if w.t.Failed() {
							w.t.Logf("append %s at %s after %s, %d replicas", f.do, point, f.after, replicas)
						}
					})
				}
			}
		})
	}
}

var calls = map[string]string{"CustomizeGuest": "customize", "StartGuestNetwork": "network",
	"StartProcess": "process first"}

// A call takes effect and its answer never comes, or it is lost on the way: the owner itself finds out which.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for op := range calls {
		for _, lost := range []string{"answer", "call"} {
			for _, travel := range []time.Duration{0, 10 * time.Second} {
				for _, lag := range []time.Duration{0, 29 * time.Second} {
					for _, history := range []bool{true, false} {
						t.Run(fmt.Sprintf("%s/%s/travel=%s/lag=%s/history=%v", op, lost, travel, lag, history),
							func(t *testing.T) {
								t.Parallel()
								withHarness(t, secrets, func(w *harness) {
									w.vc.lag, w.vc.history = lag, history
									w.vc.on(rule{op: op + " sent", times: 2, lost: lost, delay: travel})
									w.run(brief)
									mustSucceed(w)
									if len(w.owners) != 1 {
										w.t.Errorf("%d owners", len(w.owners))
									}
								})
							})
					}
				}
			}
		}
	}
}

// The answer is lost, and then the owner dies or is told to stop while it waits to look.
func TestLostAnswerThenGone(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for op, act := range calls {
		for _, lost := range []string{"answer", "call"} {
			t.Run(op+"/"+lost, func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vc.lag = 29 * time.Second
					w.vc.on(rule{op: op + " sent", times: 1, lost: lost, delay: 9 * time.Second})
					req := w.request("order-1", brief)
					first := w.deliver(req)
					starting := strings.Fields(act)[0] + ".starting"
					for w.newest(starting) == nil {
						<-time.After(time.Second)
					}
					first.term()
					w.await(first)
					if w.newest("run.released") != nil {
						w.t.Error("released with a call in the air")
					}
					w.drive(req)
					mustSucceed(w)
				})
			})
		}
	}
}

// vCenter's clock, and the guest's, are theirs.
func TestClocks(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, offset := range []time.Duration{-2 * time.Hour, -5 * time.Second, 5 * time.Second, 2 * time.Hour} {
		for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
			t.Run(fmt.Sprintf("%s/%s", offset, point), func(t *testing.T) {
				inBriefHarness(t, secrets, func(w *harness) {
					w.vc.offset, w.vc.guestOffset = offset, -offset
					w.run(brief, crash(point))
					mustSucceed(w)
				})
			})
		}
	}
}

// A journal loses its newest one or two events as its last owner dies.
func TestTailLoss(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, tail := range []int{1, 2} {
		for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
			t.Run(fmt.Sprintf("%d/%s", tail, point), func(t *testing.T) {
				for _, lag := range []time.Duration{0, 29 * time.Second} {
					inBriefHarness(t, secrets, func(w *harness) {
						w.tail, w.atOnce, w.vc.lag = tail, true, lag
						w.run(brief, crash(point))
						mustSucceed(w)
					})
					if !strings.Contains(point, " sent") {
						continue
					}
					inBriefHarness(t, secrets, func(w *harness) {
						w.tail, w.atOnce, w.vc.lag = tail, true, lag
						w.run(brief, []incident{{point: point, do: "late", after: 10 * time.Second}})
						mustSucceed(w)
					})
				}
			})
		}
	}
}

// Without the waits the same histories do things twice: it is the waits that keep them from it.
func TestWaitsMatter(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	histories := map[string]func(w *harness){
		"late call, takeover": func(w *harness) {
			w.run(brief, []incident{{point: "CustomizeGuest sent", do: "late", after: 9 * time.Second}})
		},
		"late call, answer lost": func(w *harness) {
			w.vc.on(rule{op: "CustomizeGuest sent", times: 1, lost: "answer", delay: 9 * time.Second})
			w.run(brief)
		},
		"shown late": func(w *harness) {
			w.run(brief, crash("StartProcess landed"))
		},
	}

	for name, history := range histories {
		for _, waits := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/waits=%v", name, waits), func(t *testing.T) {
				t.Parallel()
				found := problemsOf(t, secrets, func(w *harness) {
					w.atOnce, w.vc.lag, w.vm.customize, w.vm.network = true, 29*time.Second, time.Second, time.Second
					if !waits {
						w.settings.TravelTime, w.settings.VisibilityLag = 0, 0
						w.settings.SendWindow = 20 * latency
					}
					history(w)
				})

				if twice := strings.Contains(strings.Join(found, "\n"), "took effect 2 times"); twice == waits {
					t.Errorf("problems: %q", found)
				}
			})
		}
	}
}
