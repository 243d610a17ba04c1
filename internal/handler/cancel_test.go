package handler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// bystander is a handler in a process of its own, which has no request in hand.
func (w *harness) bystander(plan ...incident) (*replica, *Handler) {
	o := &replica{w: w, req: &events.Request{}, plan: plan, seen: map[string]int{}, stopped: make(chan struct{})}
	s := w.settings
	s.Instance = "pod-bystander"
	log := zerolog.Nop()
	return o, New(s, &client{fakeVC: w.vc, o: o}, stream.NewStoreJournal(&replicaStore{w.store.Client(), o},
		events.Structured, log),
		&replicaQueue{w.line, o}, w.secrets, log)
}

// hold is one delivery of a cancel in the hands of one handler.
type hold struct {
	o        *replica
	stop     func()
	finished chan struct{}
	err      error     // set before finished is closed
	at       time.Time // when
}

// canceled puts a cancel of req into the stream and reads it back, as its delivery would.
func (w *harness) canceled(req *events.Request, id string) *events.Cancel {
	w.t.Helper()
	data := map[string]any{"vm": vmID, "request": req.Ref, "reason": "no longer needed"}
	seq, err := w.line.Publish(events.KindCancelRequested, vmID, events.RequestRef{Source: "/test", ID: id}, data)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := w.line.DeliverCancel(seq)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// hold hands a cancel to a handler of its own, and acknowledges it where the answer says so.
func (w *harness) hold(c *events.Cancel, plan ...incident) *hold {
	o, h := w.bystander(plan...)
	ctx, stop := context.WithCancel(context.Background())
	held := &hold{o: o, stop: stop, finished: make(chan struct{})}
	go func() {
		defer close(held.finished)
		held.err = h.HandleCancel(ctx, c)
		held.at = time.Now()
		stop()
		var reject *events.RejectError
		if o.alive() && (held.err == nil || errors.As(held.err, &reject) && w.stands(reject)) {
			w.line.Remove(c.Seq)
		}
	}()
	go func() { // a cancel that is held for good must not hold the test
		select {
		case <-w.over:
			stop()
		case <-ctx.Done():
		}
	}()
	return held
}

// answer waits for the end of a hold.
func (h *hold) answer(w *harness) error {
	w.t.Helper()
	select {
	case <-h.finished:
		return h.err
	case <-time.After(long):
		w.t.Errorf("the cancel was held for %s", long)
		return nil
	}
}

// refused reports whether err refuses a cancel because there is nothing to cancel.
func refused(err error) bool {
	var reject *events.RejectError
	return errors.As(err, &reject) && reject.Code == events.NothingToCancel
}

// What becomes of a cancel, by where its run stands.
func TestHandleCancel(t *testing.T) {
	t.Parallel()
	rows := map[string]func(w *harness){
		"queued": func(w *harness) {
			a, b := w.request("a", only(networkOnly)), w.request("b", brief)
			h := w.hold(w.canceled(b, "c"))
			w.deliver(a)
			w.drive(b)
			if err := h.answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}
			w.wantEnds("run.succeeded", "run.canceled")
			if end := w.newest("run.canceled"); h.at.Before(end.At) {
				w.t.Errorf("acknowledged %s before the run's last event", end.At.Sub(h.at))
			}
			w.wantEffects("customize", 0)
		},
		"unknown": func(w *harness) {
			w.drive(w.request("a", `{"vm":"vm-42"}`))
			h := w.hold(w.canceled(&events.Request{Ref: events.RequestRef{Source: "/test", ID: "never"}}, "c"))
			if err := h.answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
		},
		"unknown, an empty journal": func(w *harness) {
			h := w.hold(w.canceled(&events.Request{Ref: events.RequestRef{Source: "/test", ID: "never"}}, "c"))
			if err := h.answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
			w.drive(w.request("a", `{"vm":"vm-42"}`))
		},
		"ended": func(w *harness) {
			a := w.request("a", only(networkOnly))
			w.drive(a)
			if err := w.hold(w.canceled(a, "c")).answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
			w.wantEnds("run.succeeded")
		},
		"ended, and the next one runs": func(w *harness) {
			a := w.request("a", `{"vm":"vm-42"}`)
			w.drive(a)
			b := w.request("b", brief)
			w.deliver(b)
			<-time.After(10 * time.Second)
			if err := w.hold(w.canceled(a, "c")).answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
			w.await(w.owners[len(w.owners)-1])
			w.wantEnds("run.succeeded", "run.succeeded")
		},
		"before its request": func(w *harness) {
			c := w.canceled(&events.Request{Ref: events.RequestRef{Source: "/test", ID: "a"}}, "c")
			if err := w.hold(c).answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
			w.drive(w.request("a", brief))
			w.wantEnds("run.succeeded")
		},
		"before its request, and not handed out yet": func(w *harness) {
			c := w.canceled(&events.Request{Ref: events.RequestRef{Source: "/test", ID: "a"}}, "c")
			w.drive(w.request("a", brief))
			w.wantEnds("run.canceled")
			if err := w.hold(c).answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}
			w.wantEffects("customize", 0)
		},
		"published twice": func(w *harness) {
			a := w.request("a", brief)
			w.deliver(a)
			<-time.After(10 * time.Second)
			one, two := w.hold(w.canceled(a, "c")), w.hold(w.canceled(a, "c"))
			for _, h := range []*hold{one, two} {
				if err := h.answer(w); err != nil {
					w.t.Errorf("answer %v", err)
				}
			}
			if err := w.hold(w.canceled(a, "c")).answer(w); err != nil { // and once more, afterwards
				w.t.Errorf("answer to the third %v", err)
			}
			w.wantEnds("run.canceled")
		},
		"two cancels for one run": func(w *harness) {
			a := w.request("a", brief)
			w.deliver(a)
			<-time.After(10 * time.Second)
			first, second := w.hold(w.canceled(a, "c1")), w.hold(w.canceled(a, "c2"))
			for _, h := range []*hold{first, second} {
				if err := h.answer(w); err != nil {
					w.t.Errorf("answer %v", err)
				}
			}
			w.wantEnds("run.canceled")
			if by := w.last().CanceledBy; by == nil || by.ID != "c1" {
				w.t.Errorf("canceled by %+v", by)
			}
		},
		"too late": func(w *harness) { // held while the run went on, which ended by itself
			a := w.request("a", only(processOnly))
			var h *hold
			w.drive(a, []incident{{point: "publish process.exited", do: "call",
				fn: func() { h = w.hold(w.canceled(a, "c")); <-time.After(time.Second) }}})
			if err := h.answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}
			w.wantEnds("run.succeeded")
		},
		"delivered again after its run was canceled": func(w *harness) {
			a := w.request("a", brief)
			w.deliver(a)
			<-time.After(10 * time.Second)
			c := w.canceled(a, "c")
			h := w.hold(c, incident{point: "last #2", do: "crash"}) // sees the run under way, and dies
			<-h.o.stopped
			w.await(w.owners[0])
			w.wantEnds("run.canceled")
			if err := w.hold(c).answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}
		},
		"delivered again after its run was canceled and the next one began": func(w *harness) {
			a, b := w.request("a", brief), w.request("b", brief)
			w.deliver(a)
			w.deliver(b)
			<-time.After(10 * time.Second)
			c := w.canceled(a, "c")
			h := w.hold(c, incident{point: "last #2", do: "crash"})
			<-h.o.stopped
			w.await(w.owners[0])
			<-time.After(ackWait)
			if err := w.hold(c).answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}
			w.await(w.owners[1])
			w.wantEnds("run.canceled", "run.succeeded")
		},
		"the process is told to stop": func(w *harness) {
			a := w.request("a", brief)
			w.deliver(a)
			h := w.hold(w.canceled(w.request("b", brief), "c"))
			<-time.After(time.Second)
			h.stop()
			if err := h.answer(w); !errors.Is(err, events.ErrReleased) {
				w.t.Errorf("answer %v", err)
			}
			w.line.Remove(2) // b, so that nothing is left to do
		},
		"its run is an orphan": func(w *harness) {
			a := w.request("a", brief)
			o := w.deliver(a, crash("CustomizeGuest landed")...)
			<-o.stopped
			w.line.Remove(a.Seq)
			if err := w.hold(w.canceled(a, "c")).answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}
			w.wantEnds("run.failed")
			if last := w.last(); last.Error == nil || last.Error.Code != events.Orphaned || last.Customize.Task == "" {
				w.t.Errorf("error %+v, customize %+v", last.Error, last.Customize)
			}
		},
		"its request expires in the queue": func(w *harness) {
			a, b := w.request("a", only(networkOnly)), w.request("b", brief)
			b.Expires = time.Now().Add(time.Second)
			h := w.hold(w.canceled(b, "c"))
			w.deliver(a)
			w.drive(b)
			if err := h.answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
			w.wantEnds("run.succeeded")
		},
		"its request is purged from the queue": func(w *harness) {
			a, b := w.request("a", only(networkOnly)), w.request("b", brief)
			w.deliver(a)
			h := w.hold(w.canceled(b, "c"))
			<-time.After(time.Second)
			w.line.Remove(b.Seq)
			if err := h.answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
			w.await(w.owners[0])
		},
		"its run was written by another version": func(w *harness) {
			a := w.request("a", brief)
			o := w.deliver(a, crash("stored check.completed")...)
			<-o.stopped
			last := w.rewrite(ours, unknown)
			var retry *events.RetryError
			if err := w.hold(w.canceled(a, "c")).answer(w); !errors.As(err, &retry) {
				w.t.Errorf("answer %v", err)
			}
			w.restore(last)
			w.drive(a)
			w.wantEnds("run.canceled")
		},
	}

	secrets := secretsDir(t)
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, row)
		})
	}
}

// rewrite changes the journal's newest event, and gives it as it was.
func (w *harness) rewrite(from, to string) *stream.Stored {
	w.t.Helper()
	last := w.newest(">")
	changed := *last
	changed.Data = []byte(strings.Replace(string(last.Data), from, to, 1))
	w.restore(&changed)
	return last
}

// restore puts m in the place of the journal's newest event.
func (w *harness) restore(m *stream.Stored) {
	w.t.Helper()
	w.store.DropLast(1)
	if _, err := w.journal.Publish(context.Background(),
		stream.Message{Subject: m.Subject, Header: m.Header, Data: m.Data}); err != nil {
		w.t.Fatal(err)
	}
}

// A cancel is held from any point of its run on, by a process that may die: it is acknowledged after the run's last
// event, or refused where the run had ended before.
func TestHandleCancelAtEveryPoint(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		for _, dies := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/dies=%v", point, dies), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					req := w.request("order-1", brief)
					var c *events.Cancel
					var h *hold
					w.drive(req, []incident{{point: point, do: "call", fn: func() {
						c = w.canceled(req, "c")
						if dies {
							h = w.hold(c, incident{point: "last", do: "crash"})
						} else {
							h = w.hold(c)
						}
					}}})
					if dies {
						<-time.After(ackWait)
						h = w.hold(c)
					}
					err := h.answer(w)
					last := w.last()
					switch {
					case last.Status == events.StatusCanceled && err != nil:
						w.t.Errorf("answer %v to the cancel that ended the run", err)
					case last.Status == events.StatusSucceeded && err != nil && !refused(err):
						w.t.Errorf("answer %v to a cancel that came too late", err)
					case last.Status == events.StatusFailed:
						w.t.Errorf("the run failed: %+v", last.Error)
					}

					if last.FinishedAt != nil && h.at.Before(*last.FinishedAt) {
						w.t.Errorf("acknowledged before the last event")
					}
				})
			})
		}
	}
}

// A cancel comes between the look for one and the append that begins the run, whoever hears of it.
func TestCancelJustMissed(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, noWake := range []bool{false, true} {
		t.Run(fmt.Sprintf("noWake=%v", noWake), func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.noWake = noWake
				req := w.request("order-1", brief)
				w.drive(req, []incident{{point: "publish run.accepted", do: "call", fn: func() { w.cancel(req) }}})
				w.wantEnds("run.canceled")
				if len(w.vc.effects) > 0 {
					w.t.Errorf("effects %v", w.vc.effects)
				}
			})
		})
	}
}
