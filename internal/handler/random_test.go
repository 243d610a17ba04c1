package handler

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

var histories = flag.Uint64("histories", 200, "how many random histories TestRandomHistories plays")

// Whatever comes together: up to three faults for each of up to four owners, lost answers, lost sessions, late and
// long-unseen calls. No call travels longer than the travel time, in all.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	usual := lastingPoints(crashPoints(t, secrets, brief, inBriefHarness))
	every := crashPoints(t, secrets, brief, inBriefHarness)
	for part := range uint64(8) {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			succeeded := 0
			for seed := part; seed < *histories; seed += 8 {
				inBriefHarness(t, secrets, func(w *harness) {
					rnd := rand.New(rand.NewPCG(seed, 1))
					one := func(ds ...time.Duration) time.Duration { return ds[rnd.IntN(len(ds))] }
					w.vc.lag = one(0, 5*time.Second, 29*time.Second)
					w.vm.customize, w.vm.network = one(0, 5*time.Second, time.Minute), one(0, 10*time.Second)
					w.atOnce, w.vc.history = rnd.IntN(2) == 0, rnd.IntN(4) > 0
					w.replicate(1 + 2*rnd.IntN(2))
					w.vc.offset = one(0, 0, -time.Hour, time.Hour)
					stale := false
					var plans [][]incident
					for range 1 + rnd.IntN(4) {
						var plan []incident
						for range 1 + rnd.IntN(3) {
							from := usual
							if rnd.IntN(3) == 0 {
								from = every
							}
							f := incident{point: from[rnd.IntN(len(from))], do: "crash"}
							switch rnd.IntN(7) {
							case 0, 1:
								f.do, f.after, stale = "pause",
									one(time.Second, 6*time.Second, 20*time.Second, 44*time.Second, 46*time.Second,
										2*time.Minute, 2*time.Hour), true
								if strings.Contains(f.point, " sent") {
									f.after = one(time.Second, 5*time.Second)
								}
							case 2:
								f.do = "term"
							case 3:
								if strings.HasPrefix(f.point, "publish ") {
									f.do, f.after = []string{"lose", "fail", "hold"}[rnd.IntN(3)],
										one(time.Millisecond, 3*time.Second, time.Minute)
								}
							}

							if f.do == "crash" && strings.Contains(f.point, " sent") {
								f.do, f.after = "late", one(0, 9*time.Second, 10*time.Second)
							}
							plan = append(plan, f)
						}

						plans = append(plans, plan)
					}

					if !stale && rnd.IntN(3) == 0 {
						w.tail = 1 // with a living stale owner nothing closes this hole
					}
					for op := range calls {
						switch rnd.IntN(6) {
						case 0:
							w.vc.on(rule{op: op + " sent", times: 1, lost: "answer", delay: one(0, 4*time.Second)})
						case 1:
							w.vc.on(rule{op: op + " sent", times: 1, lost: "call"})
						case 2:
							w.vc.on(rule{op: op + " sent", times: 1, fn: w.vc.expireSessions})
						}
					}

					run := w.run(brief, plans...)
					switch {
					case run.Status == events.StatusSucceeded:
						succeeded++
					case run.Error == nil ||
						run.Error.Code != events.Uncertain && run.Error.Code != events.DeadlineExceeded &&
							run.Error.Code != events.StepTimeout && run.Error.Code != events.ExitCodeUnknown:
						w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
					}

					if w.t.Failed() {
						w.t.Logf("seed %d: lag %s, tail %d, history %v, %+v", seed, w.vc.lag, w.tail, w.vc.history,
							plans)
					}
				})

				if t.Failed() {
					return
				}
			}

			t.Logf("%d succeeded", succeeded)
		})
	}
}
