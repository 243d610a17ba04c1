package handler

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
)

// forget removes the events stream and makes it again; other VMs' events come first.
func (w *harness) forget() {
	w.anew = true
	w.store.Anew(1000)
}

// The new stream's sequences come to the one that an owner of old knows: what it stores next does not pass for the
// successor of an event that is another owner's.
func TestSequencesOfANewJournal(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.anew = true
		w.vm.customize = 10 * time.Minute
		req := w.request("order-1", only(customizeOnly))
		old := w.deliver(req)
		<-time.After(time.Minute)
		last := w.newest(">").Seq
		w.store.Anew(last - 3)
		next := w.deliver(req)
		<-time.After(time.Minute) // it has accepted, checked, and ended uncertain: it is at that sequence
		if now := w.newest(">"); now.Seq != last {
			w.t.Errorf("sequence %d, want %d: %v", now.Seq, last, w.kinds())
		}
		w.await(old)
		if !errors.Is(old.err, events.ErrFenced) {
			w.t.Errorf("answer %v", old.err)
		}
		w.await(next)
		w.wantEnds("run.failed")
		w.wantEffects("customize", 1)
	})
}

// The events stream is removed and made again in the middle of a run, at whichever point: its owner goes on with
// run.resumed as the first event of the new history, n goes on, and before its next act it waits as who takes over.
func TestJournalAnew(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				var before []event
				req := w.request("order-1", brief)
				w.drive(req, []incident{{point: point, do: "call", fn: func() {
					before = w.events()
					w.forget()
				}}})
				all := w.events()
				if point == "stored run.succeeded" { // nobody is left to say anything
					if len(all) != 0 {
						w.t.Errorf("events %v", w.kinds())
					}
					return
				}

				mustSucceed(w)
				if len(before) == 0 || len(all) == 0 {
					return
				}
				if first := all[0]; first.kind != events.RunResumed || first.run.N != len(before)+1 ||
					first.run.Owner.Takeovers != 0 || first.run.Status != events.StatusRunning {
					w.t.Errorf("%s n=%d of owner %+v is the first event, behind %d", first.kind, first.run.N,
						first.run.Owner, len(before))
				}
				for _, e := range w.vc.effects {
					if since := e.at.Sub(all[0].at); since > 0 && since < 45*time.Second {
						w.t.Errorf("%s took effect %s after the journal was begun again", e.act, since)
					}
				}
			})
		})
	}
}

// Meanwhile the request is delivered to somebody else, who finds no event of it: one of the two goes on, the other one
// is fenced, and nothing is done twice.
func TestJournalAnewAndDeliveredAgain(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		for _, after := range []time.Duration{0, 2 * latency, 20 * time.Second} {
			t.Run(fmt.Sprintf("%s/%s", point, after), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					req := w.request("order-1", brief)
					w.deliver(req, incident{point: point, do: "call", fn: func() {
						w.forget()
						w.later(after, func() {
							if w.waiting(req) {
								w.deliver(req)
							}
						})
					}})
					<-time.After(long)
					if ends := w.ends(); len(ends) > 1 || len(ends) == 0 && point != "stored run.succeeded" {
						w.t.Errorf("ends %v", ends)
					}
				})
			})
		}
	}
}

// All replicas are away for longer than events are kept, with a run in any state; its request still waits. It is not
// done again: it is begun where vCenter proves that nothing was done, else it is uncertain, and the request decides.
func TestEventsAgedOut(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		if point == "stored run.succeeded" {
			continue // its acknowledgement was lost, too
		}
		for _, decision := range []string{"fail", "repeat"} {
			for _, history := range []string{"reaches back", "is younger", "cannot be read"} {
				t.Run(fmt.Sprintf("%s/%s/history %s", point, decision, history), func(t *testing.T) {
					t.Parallel()
					inBriefHarness(t, secrets, func(w *harness) {
						w.begin(memstore.Options{MaxAge: time.Hour})
						w.vc.history, w.allowRepeat = history != "cannot be read", decision == "repeat"
						if history == "is younger" {
							w.vc.forever = nil
						}
						proves := history == "reaches back"
						req := w.request("order-1", `{"onUncertain":"`+decision+`",`+brief[1:])
						o := w.deliver(req, crash(point)...)
						<-o.stopped
						<-time.After(2 * time.Hour)
						w.store.Age(len(w.store.All()))
						done := w.vc.count(vmID, "customize")
						w.drive(req)
						switch last := w.last(); {
						case done == 0 && proves, decision == "repeat":
							mustSucceed(w)
							w.wantEffects("customize", done+1)
							if aborts := w.vc.count(vmID, "abort"); aborts != 1 && (done > 0 || !proves) {
								w.t.Errorf("%d aborts before the repetition", aborts)
							}
						case last.Error == nil || last.Error.Code != events.Uncertain || last.Error.Step != "customize":
							w.t.Errorf("the run ended as %s: %+v", last.Status, last.Error)
						case !slices.Equal(w.pointOf("run.failed").Doubt, []string{"customize"}):
							w.t.Errorf("doubt %v", w.pointOf("run.failed").Doubt)
						default:
							w.wantEffects("customize", done)
						}
					})
				})
			}
		}
	}
}

// Of a guest process nothing can be proved once its run's events have aged out; a run that only asks is done again.
func TestEventsAgedOutOfProcessAndCheck(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, row := range map[string]struct {
		data string
		code events.Code
	}{
		"process": {only(processOnly), events.Uncertain},
		"check":   {`{"vm":"vm-42"}`, ""},
		"watch": {`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"processes":[{"name":"w",` +
			`"watch":{"pid":1}}],"timeout":"1m"}`, events.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.begin(memstore.Options{MaxAge: time.Hour})
				req := w.request("order-1", row.data)
				<-time.After(2 * time.Hour) // never delivered: but who knows?
				w.drive(req)
				last := w.last()
				if code := errorCode(last); code != row.code {
					w.t.Errorf("the run ended as %s: %+v", last.Status, last.Error)
				}
			})
		})
	}
}

func errorCode(r *events.Run) events.Code {
	if r.Error == nil {
		return ""
	}
	return r.Error.Code
}

// A request is delivered again without any event of it, for its owner died before the first: a Task that is newer than
// the request and that no run names may be its own (the journal may have lost its end), any other is not.
func TestRedeliveredWithoutEvents(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, row := range map[string]struct {
		task      string
		ago       time.Duration // before the request
		uncertain bool
	}{
		"none":                         {},
		"a newer one of ours":          {"CustomizeGuest_Task", -time.Second, true},
		"a newer one of another kind":  {"PowerOnVM_Task", -time.Second, false},
		"an older one":                 {"CustomizeGuest_Task", time.Hour, false},
		"a newer one without its name": {"", -time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				<-time.After(2 * time.Hour)
				req := w.request("order-1", brief)
				if row.task != "" || row.uncertain {
					w.vc.change(func() {
						w.vc.tasks = append(w.vc.tasks,
							&fakeTask{id: "task-x", name: row.task, vm: vmID, queued: time.Now().Add(-row.ago),
								takes: time.Second, aside: true})
					})
				}

				w.drive(req, crash("publish run.accepted"))
				if code := errorCode(w.last()); (code == events.Uncertain) != row.uncertain {
					w.t.Errorf("the run ended as %s: %+v", w.last().Status, w.last().Error)
				}
			})
		})
	}
}
