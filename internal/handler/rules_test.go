package handler

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// An owner stands still before its intent, the next one takes over, and the journal loses that takeover: both intents
// find the sequence that they expect, one on top of the other. Only the read-back, by the IDs, tells the second owner
// that it does not stand on its own takeover.
func TestSequenceUsedAgain(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	rows := []struct{ request, look, starting, sent, act string }{
		{only(processOnly), "Processes", "publish process.starting", "StartProcess sent", "process first"},
		{only(networkOnly), "Session", "publish network.starting", "StartGuestNetwork sent", "network"},
	}
	for _, row := range rows {
		t.Run(row.act, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.vm.network = time.Second

				// No wait worth an event.
				w.settings.SendWindow, w.settings.TravelTime, w.settings.VisibilityLag = 300*time.Millisecond,
					300*time.Millisecond, 300*time.Millisecond
				looking, ready, sent := make(chan struct{}), make(chan struct{}), make(chan struct{})
				req := w.request("order-1", row.request)
				first := w.deliver(req,
					incident{point: row.look, do: "call", fn: func() { close(looking); <-ready }},
					incident{point: row.sent, do: "call", fn: func() { close(sent) }})
				<-looking
				second := w.deliver(req, incident{point: row.starting, do: "call", fn: func() {
					w.store.DropLast(1)
					close(ready)
					<-sent
				}})
				w.await(first)
				w.await(second)
				w.drive(req)
				mustSucceed(w)
				w.wantEffects(row.act, 1)
			})
		})
	}
}

// vCenter turns a call away because its session is gone, and before the answer comes another owner has taken over and
// called: whoever logs in anew begins with a look and an intent of its own, and never sends the call again.
func TestSessionLostAndOvertaken(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for op, act := range calls {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.atOnce, w.vm.customize, w.vm.network = true, time.Second, time.Second
				w.vc.on(rule{op: op + " sent", times: 1, fn: w.vc.expireSessions})
				w.run(brief, []incident{{point: op + " landed", do: "pause", after: 100 * time.Second}})
				mustSucceed(w)
				w.wantEffects(act, 1)
				if len(w.owners) < 2 {
					w.t.Error("nobody took over")
				}
			})
		})
	}
}

// A run without a check has as many events before its first act as any other: a journal that loses its last two still
// has the baseline.
func TestTailLossWithoutCheck(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, section := range []string{customizeOnly, networkOnly} {
		request := `{"check":{"mode":"skip"},` + only(section)[1:]
		for _, point := range lastingPoints(crashPoints(t, secrets, request, inBriefHarness)) {
			t.Run(section[:10]+point, func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					w.tail, w.atOnce = 2, true
					w.run(request, crash(point))
					mustSucceed(w)
				})
			})
		}
	}
}

// Who waits for its turn is woken by the end of the run before, however long that one took.
func TestFollowerIsWoken(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.vm.customize = 15 * time.Minute
		a, b := w.request("a", brief), w.request("b", `{"vm":"vm-42"}`)
		for _, o := range []*replica{w.deliver(b), w.deliver(a)} {
			w.await(o)
		}
		w.wantEnds("run.succeeded", "run.succeeded")
		var end, next time.Time
		for _, e := range w.events() {
			switch {
			case e.run.ID == a.RunID && e.kind.Last():
				end = e.at
			case e.run.ID == b.RunID && e.kind == events.RunAccepted:
				next = e.at
			}
		}

		if wait := next.Sub(end); wait > 100*time.Millisecond {
			w.t.Errorf("the next run began %s after the end of the one before", wait)
		}
	})
}

// Somebody else customized the VM, or an earlier run did, before this run was accepted: a takeover does not take that
// Task for its own.
func TestBaselineIsNotAdopted(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	request := only(networkOnly)
	for _, point := range lastingPoints(crashPoints(t, secrets, request, inBriefHarness)) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.vc.tasks = append(w.vc.tasks, &fakeTask{id: "task-9", name: "StartGuestNetwork_Task", vm: vmID,
					queued: time.Now(), takes: time.Second})
				<-time.After(2 * time.Second)
				w.run(request, crash(point))
				mustSucceed(w)
				w.wantEffects("network", 1)
				if task := w.last().Network.Task; task == "task-9" {
					w.t.Errorf("the run names %s, which was there before it", task)
				}
			})
		})
	}
}

// An owner has its proof of ownership, and stands still before it sends the call. Within the send window the call goes
// out, travels, and shows as late as it may: who took over meanwhile has waited for all three. Past the window it is
// not sent.
func TestOldProof(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	all := crashPoints(t, secrets, brief, inBriefHarness)
	for op, act := range calls {
		proof := ""
		for _, p := range all[:slices.Index(all, op+" sent")] {
			if strings.HasPrefix(p, "last") {
				proof = strings.Replace(p, "last", "last read", 1)
			}
		}
		for _, pause := range []time.Duration{4900 * time.Millisecond, 60 * time.Second} {
			t.Run(op+"/"+pause.String(), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					w.atOnce, w.vc.lag, w.vm.customize, w.vm.network = true, 29*time.Second, time.Second, time.Second
					w.vm.programs["/usr/bin/first"] = program{takes: 2 * time.Minute}
					w.run(brief, []incident{{point: proof, do: "pause", after: pause},
						{point: op + " sent", do: "late", after: 10 * time.Second}})
					mustSucceed(w)
					w.wantEffects(act, 1)
					met := w.owners[0].met
					if sent := len(met) == 2; sent != (pause < w.settings.SendWindow) {
						w.t.Errorf("met %+v", met)
					}
				})
			})
		}
	}
}

// A vCenter that is silent does not keep a run from being accepted: its time must run. The baseline is then the check's
// to read.
func TestAcceptedWithoutBaseline(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.vc.silent = true
		w.later(time.Minute, func() { w.vc.change(func() { w.vc.silent = false }) })
		w.vc.tasks = append(w.vc.tasks, &fakeTask{id: "task-9", name: "CreateSnapshot_Task", vm: vmID,
			queued: time.Now(), takes: time.Second})
		begun := time.Now()
		w.run(only(networkOnly))
		mustSucceed(w)
		if took := w.newest("run.accepted").At.Sub(begun); took > 6*time.Second {
			w.t.Errorf("accepted after %s", took)
		}
		if c := w.pointOf("run.accepted"); c.BaselineAt != nil {
			w.t.Errorf("baseline %v of a silent vCenter", c.Baseline)
		}
		if c := w.pointOf("check.completed"); c.BaselineAt == nil || !slices.Equal(c.Baseline, []string{"task-9"}) {
			w.t.Errorf("baseline %v, of %v", c.Baseline, c.BaselineAt)
		}
	})
}

// The second owner has looked, found nothing, and stands still; the third looks and calls. The second never calls under
// the first one's intent, and cannot store its own any more.
func TestThreeOwners(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.atOnce, w.vm.customize = true, time.Second
		w.run(only(customizeOnly), crash("stored customize.starting"),
			[]incident{{point: "CustomizationStatus", do: "pause", after: 100 * time.Second}})
		mustSucceed(w)
		if len(w.owners) != 3 {
			w.t.Errorf("%d owners", len(w.owners))
		}
	})
}

// A takeover's append is long on its way. The owner before stores an intent meanwhile, proves it and calls, and the
// journal loses that intent: the wait counts from the answer to the append, since until then the other one could prove
// its ownership.
func TestSlowTakeover(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.vc.lag = 29 * time.Second
		w.vm.programs["/usr/bin/first"] = program{takes: 2 * time.Minute}
		looking, ready := make(chan struct{}), make(chan struct{})
		req := w.request("order-1", only(processOnly))
		first := w.deliver(req,
			incident{point: "Processes", do: "call", fn: func() { close(looking); <-ready }},
			incident{point: "StartProcess sent", do: "late", after: 10 * time.Second})
		<-looking
		second := w.deliver(req, incident{point: "publish run.resumed", do: "call", fn: func() {
			<-time.After(8 * time.Second)
			close(ready)
			<-first.stopped
			w.store.DropLast(1)
			<-time.After(5 * time.Second)
		}})
		w.await(second)
		w.line.Remove(req.Seq)
		mustSucceed(w)
		w.wantEffects("process first", 1)
	})
}

// A way to vCenter on which every proof of ownership grows too old: nothing is sent, and the run says what it waits
// for, once.
func TestSlowWay(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, times := range []int{4, 0} {
		withHarness(t, secrets, func(w *harness) {
			w.vc.on(rule{op: "StartGuestNetwork", times: times, fn: func() { <-time.After(6 * time.Second) }})
			run := w.run(only(`"network":{"timeout":"2m"}`))
			waits := 0
			for _, e := range w.events() {
				if e.kind == events.RunWaiting {
					waits++
					if f := e.run.WaitingFor; f == nil || !strings.Contains(f.Message, "SEND_WINDOW (5s)") {
						w.t.Errorf("waiting for %+v", f)
					}
				}
			}

			if waits != 1 {
				w.t.Errorf("%d times run.waiting: %v", waits, w.kinds())
			}
			if times > 0 {
				mustSucceed(w)
			} else if e := run.Error; e == nil || e.Code != events.StepTimeout || !strings.Contains(e.Message,
				"SEND_WINDOW") || w.vc.count(vmID, "network") != 0 {
				w.t.Errorf("error %+v, %d effects", e, w.vc.count(vmID, "network"))
			}
		})
	}
}

// An answer that does not prove a refusal, and names something that passes, is no end: the call is made again once it
// is sure that none took effect.
func TestUnprovenAnswerThatPasses(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for op := range calls {
		inBriefHarness(t, secrets, func(w *harness) {
			w.vc.on(rule{op: op + " sent", times: 2, err: &vcapi.Error{Name: "ToolsUnavailable", Message: "tools",
				Status: 500, Class: vcapi.Permanent, Sent: vcapi.Unknown}})
			w.run(brief)
			mustSucceed(w)
		})
	}
}
