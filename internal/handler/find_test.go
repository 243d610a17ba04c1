package handler

import (
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// A Task is made by a method as its name says, else the key of its description; what tells neither way is not taken for
// somebody else's.
func TestMadeBy(t *testing.T) {
	t.Parallel()
	const manager = "vm.GuestCustomizationManager."
	for _, row := range []struct {
		name, key string
		of        string // the method that made it, "" none of ours
		maybe     bool
	}{
		{name: "CustomizeGuest_Task", key: manager + "customize", of: customizeMethod},
		{name: "CustomizeGuest_Task", of: customizeMethod},
		{name: "customizeGuest", of: customizeMethod},
		{key: manager + "customize", of: customizeMethod},
		{key: manager + "customizeGuest", of: customizeMethod},
		{name: "Customize running guest", key: manager + "customize", of: customizeMethod},
		{key: manager + "startNetwork", of: networkMethod},
		{key: manager + "startGuestNetwork", of: networkMethod},
		{key: manager + "abortCustomization", of: abortMethod},
		{name: "StartGuestNetwork_Task", of: networkMethod},
		{name: "AbortCustomization_Task", of: abortMethod},
		{key: manager + "somethingNew", maybe: true},
		{maybe: true},
		{key: "guest.customize", maybe: true},
		{name: "CustomizeVM_Task", key: "VirtualMachine.customize"},
		{name: "CreateSnapshot_Task", key: "VirtualMachine.createSnapshot"},
		{key: "Drm.ExecuteVMotionLRO"},
	} {
		for _, method := range []string{customizeMethod, networkMethod, abortMethod} {
			yes, maybe := madeBy(vcapi.Task{Name: row.name, DescriptionID: row.key}, method)
			if yes != (row.of == method) || maybe != row.maybe {
				t.Errorf("%q, %q by %s: %v, maybe %v", row.name, row.key, method, yes, maybe)
			}
		}
	}
}

// namings are how a vCenter may name the Tasks of our methods.
var namings = map[string]func(string) (string, string){
	"by key": func(method string) (string, string) {
		return "", map[string]string{customizeMethod: "vm.GuestCustomizationManager.customize",
			networkMethod: "vm.GuestCustomizationManager.startNetwork"}[method]
	},
	"without _Task": func(method string) (string, string) { return strings.TrimSuffix(method, "_Task"), "" },
	"not at all":    func(string) (string, string) { return "", "" },
}

// The answer is lost, or the owner dies: the Task is found however vCenter names it, or it is said that nobody knows.
func TestTasksOfOtherNames(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, naming := range namings {
		for _, op := range []string{"CustomizeGuest", "StartGuestNetwork"} {
			for _, how := range []string{"lost answer", "crash"} {
				t.Run(name+"/"+op+"/"+how, func(t *testing.T) {
					t.Parallel()
					inBriefHarness(t, secrets, func(w *harness) {
						w.vc.naming = naming
						var plan []incident
						if how == "crash" {
							plan = crash(op + " landed")
						} else {
							w.vc.on(rule{op: op + " sent", times: 1, lost: "answer"})
						}
						run := w.run(brief, plan)
						w.wantEffects(calls[op], 1)
						if name != "not at all" {
							mustSucceed(w)
						} else if run.Error == nil || run.Error.Code != events.Uncertain {
							w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
						}
					})
				})
			}
		}
	}
}

// vCenter's clock is set back between the baseline and the call, and its Task has ended long ago when the next owner
// looks.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, back := range []time.Duration{time.Minute, 16 * time.Minute, time.Hour, 30 * 24 * time.Hour} {
		for op, act := range map[string]string{"CustomizeGuest": "customize", "StartGuestNetwork": "network"} {
			for _, tail := range []int{0, 1} { // without the intent, too
				t.Run(back.String()+"/"+op, func(t *testing.T) {
					t.Parallel()
					inBriefHarness(t, secrets, func(w *harness) {
						w.tail = tail
						req := w.request("order-1", `{"timeout":"2h",`+only(`"customize":` + spec[:len(spec)-1] +
							`,"timeout":"1h"},"network":{"timeout":"1h"}`)[1:])
						first := w.deliver(req, incident{point: "publish check.completed", do: "call",
							fn: func() { w.vc.change(func() { w.vc.offset -= back }) }},
							incident{point: op + " landed", do: "crash"})
						<-first.stopped
						w.loseTail()
						w.tail = 0
						<-time.After(40 * time.Minute)
						w.drive(req)
						mustSucceed(w)
						w.wantEffects(act, 1)
					})
				})
			}
		}
	}
}

// A vCenter that was restored from a backup gives the IDs of Tasks again: to the one that the run makes, of which no
// answer came.
func TestTaskIDsGivenAgain(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, ended := range []bool{false, true} { // the run before, or the baseline, named that ID
		inBriefHarness(t, secrets, func(w *harness) {
			if ended {
				w.drive(w.request("order-1", only(networkOnly)))
			} else {
				w.vc.tasks = append(w.vc.tasks, &fakeTask{id: "task-103", name: networkMethod, vm: vmID,
					queued: time.Now(), takes: time.Second})
			}

			<-time.After(5 * time.Minute)
			again := w.vc.tasks[0].id
			req := w.request("order-2", only(networkOnly))
			o := w.deliver(req, incident{point: "publish network.starting", do: "call", fn: func() {
				w.vc.restartNow()
				w.vc.change(func() { w.vc.tasks = nil })
			}}, incident{point: "StartGuestNetwork landed #2", do: "call, then crash",
				fn: func() { w.vc.change(func() { w.vc.tasks[0].id = again }) }})
			<-o.stopped
			w.drive(req)
			mustSucceed(w)
			if got := w.last().Network.Task; got != again {
				w.t.Errorf("the run names %s, want %s", got, again)
			}
			w.wantEffects("network", map[bool]int{true: 2, false: 1}[ended])
		})
	}
}

// A Task is known by its ID, in one vCenter, and by when it was queued, where that is known too.
func TestKnownTasks(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 10, 0, 0, 123456789, time.UTC)
	const uuid = "uuid-1"
	c := checkpoint{Baseline: []string{"task-1"}, BaselineNewest: &at, Instance: uuid,
		Tasks: []string{"task-2", "task-3"},
		Past: []pastRun{{Tasks: []string{"task-4@2026-11-20T10:00:00Z"}, Instance: uuid}, {Tasks: []string{"task-5"}},
			{Tasks: []string{"task-6"}, Instance: "uuid-0"}}}
	c.sawTask(vcapi.Task{ID: "task-3", QueueTime: at})
	later := at.Add(time.Hour)
	for _, row := range []struct {
		id       string
		queued   time.Time
		instance string
		want     bool
	}{
		{"task-1", at, uuid, true}, {"task-1", at.Add(-time.Hour), uuid, true}, {"task-1", later, uuid, false},
		{"task-1", at, "uuid-2", false}, {"task-1", at, "", true},
		{"task-2", later, uuid, true}, {"task-2", at, "uuid-2", false},
		{"task-3", at, uuid, true}, {"task-3", at.Truncate(time.Second), uuid, true}, {"task-3", later, uuid, false},
		{"task-3", time.Time{}, uuid, true},
		{"task-4", at, uuid, true}, {"task-4", later, uuid, false}, {"task-4", at, "uuid-2", false},
		{"task-5", later, uuid, true}, {"task-5", later, "uuid-2", true}, // of version 1: of whichever vCenter
		{"task-6", at, uuid, false}, {"task-6", at, "uuid-0", true},
		{"task-7", at, uuid, false}, {"task-", at, uuid, false},
	} {
		if got := c.known(vcapi.Task{ID: row.id, QueueTime: row.queued}, row.instance); got != row.want {
			t.Errorf("%s, queued at %s, of %q: known is %v", row.id, row.queued, row.instance, got)
		}
	}
	if c.sameTask(vcapi.Task{ID: "task-3", QueueTime: later}) || !c.sameTask(vcapi.Task{ID: "task-3", QueueTime: at}) ||
		!c.sameTask(vcapi.Task{ID: "task-8", QueueTime: at}) {
		t.Error("a Task is followed that has only got the ID, or one that is it is not")
	}
}

// Another vCenter stands behind the name, or another VM behind the ID, when the run goes on: nothing is done to it.
func TestAnotherVCenter(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		name, point string
		change      func(w *harness)
		code        events.Code
	}{
		{"vCenter, before the call", "stored check.completed", func(w *harness) { w.vc.instance = "uuid-2" },
			events.NotFound},
		{"vCenter, with a call in doubt", "CustomizeGuest sent",
			func(w *harness) { w.vc.instance, w.vc.tasks = "uuid-2", nil }, events.Uncertain},
		{"VM, before the call", "stored check.completed", func(w *harness) { w.vm.uuid = "5013" }, events.NotFound},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				req := w.request("order-1", only(customizeOnly))
				o := w.deliver(req, crash(row.point)...)
				<-o.stopped
				w.vc.change(func() { row.change(w); w.vc.sessions = map[string]bool{} })
				w.drive(req)
				if run := w.last(); run.Error == nil || run.Error.Code != row.code {
					w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
				}
				w.wantEffects("customize", 0)
			})
		})
	}

	t.Run("the earlier vCenter's Tasks", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			w.drive(w.request("order-1", only(networkOnly)))
			again := w.last().Network.Task
			w.vc.change(func() { w.vc.instance, w.vc.tasks, w.vc.sessions = "uuid-2", nil, map[string]bool{} })
			w.vc.on(rule{op: "StartGuestNetwork sent", times: 1, lost: "answer"})
			w.slow = onKind("network.starting", func() {
				w.later(time.Second, func() {
					w.vc.change(func() {
						w.vc.tasks[0].id, w.vc.tasks[0].stamp = again,
							time.Time{}
					})
				})
			})

			w.drive(w.request("order-2", only(networkOnly)))
			mustSucceed(w)
			w.wantEffects("network", 2)
		})
	})
}

// A Task is shown later than its call, by the long poll or everywhere: it is gone only once it must show. vCenter's
// history counts.
func TestTaskShownLate(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, lag := range []time.Duration{time.Second, 5 * time.Second, 29 * time.Second} {
		for _, everywhere := range []bool{false, true} {
			for _, op := range []string{"", "CustomizeGuest sent"} { // with the answer, and without it
				t.Run(lag.String(), func(t *testing.T) {
					t.Parallel()
					inBriefHarness(t, secrets, func(w *harness) {
						w.vc.watchLag = lag
						if everywhere {
							w.vc.lag = lag
						}
						if op != "" {
							w.vc.on(rule{op: op, times: 1, lost: "answer"})
						}
						w.run(brief)
						mustSucceed(w)
						w.wantEffects("customize", 1)
					})
				})
			}
		}
	}

	t.Run("never", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			w.vm.customize = time.Hour
			w.later(10*time.Minute, func() { w.vc.change(func() { w.vc.tasks = nil }) })
			run := w.run(only(customizeOnly))
			if run.Error == nil || run.Error.Code != events.Uncertain {
				w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
			}
			if took := run.FinishedAt.Sub(*run.AcceptedAt); took > 12*time.Minute {
				w.t.Errorf("it took %s", took)
			}
		})
	})
}

// A lost answer, and a Task that is shown later than it may be: meanwhile vCenter is busy with that very Task. Each
// round looks again.
func TestBusyWithOurOwnTask(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for op, act := range map[string]string{"CustomizeGuest": "customize", "StartGuestNetwork": "network"} {
		for _, takeover := range []bool{false, true} {
			inBriefHarness(t, secrets, func(w *harness) {
				w.vm.customize, w.vm.network = 3*time.Minute, 3*time.Minute
				w.vc.lag = 60 * time.Second // V is 30 s
				var plan []incident
				if takeover {
					plan = crash(op + " landed")
					w.atOnce = true
				} else {
					w.vc.on(rule{op: op + " sent", times: 1, lost: "answer"})
				}

				w.run(brief, plan)
				mustSucceed(w)
				w.wantEffects(act, 1)
			})
		}
	}
}

// The same where the guest's status moves: what the first call, of which there is no answer, has done to it is not what
// was there before.
func TestBusyWithOurOwnTaskAndItsStatus(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vm.customize, w.vm.lies = 3*time.Minute, "FAILED"
		w.vc.lag = 60 * time.Second
		w.vc.on(rule{op: "CustomizeGuest sent", times: 1, lost: "answer"})
		run := w.run(only(customizeOnly))
		if run.Error == nil || run.Customize.DecidedBy != "guest-status" {
			w.t.Errorf("the guest says that it failed, and the run ended as %s, decided by %q", run.Status,
				run.Customize.DecidedBy)
		}
		w.wantEffects("customize", 1)
	})
}
