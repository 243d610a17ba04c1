package handler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// A call's own limit holds while the steps' clock stands still.
func TestLimitOfACallWhileTheClockStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c stepClock
		ctx, cancel := c.within(t.Context(), 5*time.Second, errStepTime)
		defer cancel()
		c.stop(time.Now())
		call, done := context.WithTimeout(ctx, 30*time.Second)
		defer done()
		<-time.After(time.Hour)
		if call.Err() == nil {
			t.Error("a call of at most 30 s is not over after an hour")
		}
	})
}

// A VM that is off in the middle of its Task ends the run in its time, also where the long poll was down meanwhile.
func TestPowerOffAndPollDown(t *testing.T) {
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		w.vm.customize = 5 * time.Hour
		w.slow = onKind("customize.started", func() {
			w.later(5*time.Second, func() { w.vc.change(func() { w.vm.power = "poweredOff" }) })
			w.later(10*time.Second, func() { w.vc.change(func() { w.vc.noPoll = true }) })
			w.later(15*time.Second, func() { w.vc.change(func() { w.vc.noPoll = false }) })
		})
		run := w.run(`{"vm":"vm-42","timeout":"2h","guest":{"credentials":{"secretRef":"linux-root"},` +
			`"readyTimeout":"1m"},"customize":{"timeout":"1h","spec":{"identity":` +
			`{"_typeName":"CustomizationLinuxPrep","hostName":{"_typeName":"CustomizationFixedName","name":"web-7"}},` +
			`"nicSettingMap":[{"adapter":{"ip":{"_typeName":"CustomizationCustomIpGenerator"}}}]}}}`)
		took := run.FinishedAt.Sub(*run.AcceptedAt)
		t.Log(took, run.Error)
		if run.Error == nil || run.Error.Code != events.PowerState || took > 5*time.Minute {
			t.Errorf("%s after %s", run.Error.Code, took)
			t.Log(w.history())
		}
	})
}

const unnamedAddress = `{"timeout":"2m","spec":{"identity":{"_typeName":"CustomizationLinuxPrep","hostName":` +
	`{"_typeName":"CustomizationFixedName","name":"web-7"}},"nicSettingMap":[{"adapter":{"ip":` +
	`{"_typeName":"CustomizationCustomIpGenerator"}}}]}}`

// A call without an answer ends by its own limit, and the run goes on when vCenter is back.
func TestHungCallWhileTheClockStands(t *testing.T) {
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		w.vm.customize = 118 * time.Second
		w.slow = onKind("customize.started", func() {
			w.later(112*time.Second, func() { w.vc.change(func() { w.vc.refusing = true }) })
			w.later(114*time.Second, func() { w.vc.change(func() { w.vc.refusing, w.vc.silent = false, true }) })
			w.later(170*time.Second, func() { w.vc.change(func() { w.vc.silent = false }) })
		})
		run := w.run(`{"vm":"vm-42","timeout":"2h","guest":{"credentials":{"secretRef":"linux-root"},` +
			`"readyTimeout":"1m"},"verify":false,"customize":` + unnamedAddress + `}`)
		took := run.FinishedAt.Sub(*run.AcceptedAt)
		t.Log(took, run.Error)
		if took > 10*time.Minute {
			t.Error("hung")
			t.Log(w.history())
		}
	})
}

// The same, where VMware Tools are waited for.
func TestLastLookForTools(t *testing.T) {
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		w.vm.tools = false
		w.slow = onKind("run.waiting", func() {
			w.later(30*time.Second, func() {
				w.vc.on(rule{op: "VM",
					err: vcError("GenericVmConfigFault", 500, vcapi.Transient)})
			})
		})

		run := w.run(`{"vm":"vm-42","timeout":"2h","guest":{"credentials":{"secretRef":"linux-root"},` +
			`"readyTimeout":"1m"},"verify":false,"customize":` + unnamedAddress + `}`)
		t.Logf("%+v", run.Error)
		if run.Error == nil || run.Error.Code == events.Internal {
			t.Errorf("code %s", run.Error.Code)
			t.Log(w.history())
		}
	})
}

// A last look that gets no answer of use is no word about the step's time.
func TestLastLookIsNotTheStepsTime(t *testing.T) {
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		w.vm.outlasts = 10 * time.Minute
		w.slow = onKind("customize.started", func() {
			w.later(100*time.Second, func() {
				w.vc.on(rule{op: "VM",
					err: vcError("GenericVmConfigFault", 500, vcapi.Transient)})
			})
			w.later(155*time.Second, func() { w.vc.change(func() { w.vc.rules = nil }) })
		})

		run := w.run(`{"vm":"vm-42","timeout":"2h","guest":{"credentials":{"secretRef":"linux-root"},` +
			`"readyTimeout":"1m"},"verify":{"timeout":"1m"},"customize":` +
			strings.Replace(unnamedAddress, "2m", "20m", 1) + `}`)
		t.Logf("%s %+v", run.FinishedAt.Sub(*run.AcceptedAt), run.Error)
		if run.Error != nil && run.Error.Code == events.StepTimeout {
			t.Errorf("code %s", run.Error.Code)
			t.Log(w.history())
		}
	})
}

// For the race detector: a cancel is looked for while the run takes its state anew.
func TestCancelHeardWhileTheJournalIsMadeAnew(t *testing.T) {
	secrets := secretsDir(t)
	inBriefHarness(t, secrets, func(w *harness) {
		other := *w.request("order-2", brief)
		w.line.Remove(other.Seq)
		w.cancel(&other)
		req := w.request("order-1", brief)
		w.drive(req, []incident{{point: "stored customize.started", do: "call", fn: func() { w.forget() }}})
	})
}

// Who connects NICs while the journal is made anew does not ask it for ever.
func TestConnectNICsInAJournalMadeAnew(t *testing.T) {
	secrets := secretsDir(t)
	inBriefHarness(t, secrets, func(w *harness) {
		w.vm.nics = []vcapi.NIC{{MAC: "00:50:56:00:00:01", Device: 4000}}
		req := w.request("order-1",
			`{"vm":"vm-42","timeout":"30m","guest":{"credentials":{"secretRef":"linux-root"}},"network":`+
				`{"connectNics":true},"verify":false}`)
		o := w.deliver(req, incident{point: "ConnectNICs", do: "call", fn: func() { w.forget() }})
		select {
		case <-o.finished:
			w.line.Remove(req.Seq)
			t.Log(w.history())
		case <-time.After(2 * time.Hour):
			t.Error("it hangs, an hour and a half after the run's time is over")
			t.Log(w.history())
			o.term()
			<-o.finished
		}
	})
}

type poisoned struct{ Journal }

func (p poisoned) Last(ctx context.Context, vcenter, vm string) (*events.Entry, error) {
	if vm == "vm-13" {
		<-time.After(time.Second)
		return nil, errors.New("event 7 of stream GUESTFLOW_EVENTS cannot be read")
	}
	return p.Journal.Last(ctx, vcenter, vm)
}

// One VM whose journal cannot be read keeps no other's orphan open.
func TestSweepBesideAnUnreadableJournal(t *testing.T) {
	secrets := secretsDir(t)
	inBriefHarness(t, secrets, func(w *harness) {
		w.orphan(brief, "stored customize.started")
		for round := range 3 {
			_, h := w.bystander()
			h.journal = poisoned{h.journal}
			err := h.Sweep(context.Background(), []string{vmID, "vm-13"})
			t.Log(round, err, w.kinds())
			<-time.After(time.Hour)
		}

		if last := w.newest(">"); !w.read(*last).kind.Last() {
			t.Error("the orphan is still open")
		}
	})
}

// A run does not end while an abort of its own, whose answer was lost, may be at work.
func TestOwnAbortIsWaitedFor(t *testing.T) {
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		w.vm.faulty, w.vm.moves, w.vm.ignores = 1, false, true
		w.vc.aborts = 55 * time.Second
		w.vc.on(rule{op: "AbortCustomization sent", times: 1, lost: "answer"})
		run := w.run(`{"vm":"vm-42","timeout":"2h","guest":{"credentials":{"secretRef":"linux-root"}},"verify":false,` +
			`"customize":` + strings.Replace(unnamedAddress, "2m", "75s", 1) + `}`)
		for _, task := range w.vc.tasks {
			if task.name == abortMethod && task.end().After(*run.FinishedAt) {
				t.Errorf("the run ended %s before its abort: %+v", task.end().Sub(*run.FinishedAt), run.Error)
				t.Log(w.history())
			}
		}
	})
}

// The newest Task of a baseline stays known where its time comes in another precision.
func TestNewestTaskInOtherPrecisions(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	c := checkpoint{Baseline: []string{"task-1"}, BaselineNewest: &at}
	if !c.known(vcapi.Task{ID: "task-1", Name: customizeMethod, QueueTime: at.Add(901 * time.Microsecond)}, "") {
		t.Error("it would be adopted as the run's own")
	}
}

// Another's Task of the baseline, whose time the history rounds, is not adopted.
func TestForeignTaskRounded(t *testing.T) {
	secrets := secretsDir(t)
	inBriefHarness(t, secrets, func(w *harness) {
		<-time.After(time.Minute)
		foreign := &fakeTask{id: "task-50", name: customizeMethod, vm: vmID, queued: time.Now().Add(-30 * time.Second),
			takes: time.Second, aside: true}
		foreign.stamp = foreign.queued.Add(123400 * time.Nanosecond)
		w.vc.change(func() { w.vc.tasks = append(w.vc.tasks, foreign) })
		w.later(10*time.Second, func() { w.vc.change(func() { foreign.stamp = foreign.queued.Add(time.Millisecond) }) })
		run := w.run(brief, crash("stored customize.starting"))
		t.Log(run.Status, run.Customize.Task, "customizations:", w.vc.count(vmID, "customize"))
	})
}

// A Task of this run, or of one before, is the same one where its time comes in another precision.
func TestTaskMarkInOtherPrecisions(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 999_600_000, time.UTC)
	c := checkpoint{Tasks: []string{"task-1"}}
	c.sawTask(vcapi.Task{ID: "task-1", QueueTime: at})
	rounded := vcapi.Task{ID: "task-1", Name: customizeMethod, QueueTime: at.Round(time.Millisecond)}
	if !c.sameTask(rounded) {
		t.Error("it is no longer followed")
	}
	if past := (checkpoint{Past: []pastRun{{Tasks: c.Tasks}}}); !past.known(rounded, "") {
		t.Error("the next run would adopt it")
	}
}

// A run that is turned away for hours names each Task that it made in each of its events: they stay few, and so do
// those of the runs before it, so that its events can be stored.
func TestTurnedAwayForHours(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		busy := &vcapi.Error{Name: "TaskInProgress", Class: vcapi.Transient, Sent: vcapi.Answered}
		w.vc.on(rule{op: "CustomizeGuest sent", task: busy})
		w.vm.customize = 0
		const hours = `{"timeout":"2h55m","vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},` +
			`"customize":{"timeout":"2h50m",`
		for n := range 3 {
			w.drive(w.request(fmt.Sprint("order-", n), hours+spec[1:]+`}`))
			if e := w.last().Error; e == nil || e.Step != "customize" {
				w.t.Errorf("error %+v", e)
			}
		}

		for _, e := range w.events() {
			if len(e.data) > 24<<10 {
				w.t.Fatalf("%s %s has %d bytes", e.kind, e.id, len(e.data))
			}
		}
		if tasks := len(w.pointOf("run.failed").Tasks); tasks < 64 || tasks > 200 {
			w.t.Errorf("%d Tasks", tasks)
		}
		if past := w.pointOf("run.failed").Past; len(past) != 2 || len(past[0].Tasks) > 16 || len(past[1].Tasks) > 64 {
			w.t.Errorf("runs before %v", past)
		}
	})
}
