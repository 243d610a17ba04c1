package handler

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// orphan leaves a run unfinished at a point, and its request out of the stream.
func (w *harness) orphan(data, point string) *events.Request {
	w.t.Helper()
	req := w.request("order-1", data)
	o := w.deliver(req, crash(point)...)
	<-o.stopped
	w.line.Remove(req.Seq)
	return req
}

func (w *harness) sweep(plan ...incident) error {
	_, h := w.bystander(plan...)
	return h.Sweep(context.Background(), []string{vmID})
}

// pointOf is the checkpoint of an event.
func (w *harness) pointOf(what string) checkpoint {
	w.t.Helper()
	var c checkpoint
	m := w.newest(what)
	if m == nil {
		w.t.Fatalf("no %s", what)
	}
	if err := json.Unmarshal(w.read(*m).run.Checkpoint, &c); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// An orphan at any point is closed, and what its last call did is found, once it must show.
func TestSweep(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		if point == "publish run.accepted" || strings.HasSuffix(point, "run.succeeded") {
			continue
		}
		for _, late := range []bool{false, true} {
			if late && !strings.Contains(point, " sent") {
				continue
			}
			name := point
			if late {
				name += "/late"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					w.vc.lag = 29 * time.Second
					req := w.request("order-1", brief)
					plan := crash(point)
					if late {
						plan = []incident{{point: point, do: "late", after: 10 * time.Second}}
					}
					o := w.deliver(req, plan...)
					<-o.stopped
					w.line.Remove(req.Seq)
					begun := time.Now()
					if err := w.sweep(); err != nil {
						w.t.Error(err)
					}
					w.wantEnds("run.failed")
					last := w.last()
					if last.Status != events.StatusFailed {
						return
					}
					if last.Error.Code != events.Orphaned {
						w.t.Errorf("error %+v", last.Error)
					}
					if took := w.newest("run.failed").At.Sub(begun); took < 45*time.Second {
						w.t.Errorf("closed after %s: a call of its owner may still have landed", took)
					}
					if last.Observed == nil {
						w.t.Error("nothing was observed")
					}
					for op, act := range calls {
						if w.vc.count(vmID, act) == 0 || !strings.HasPrefix(point, op) {
							continue
						}
						shown := map[string]bool{
							"customize": last.Customize.Task != "", "network": last.Network.Task != "",
							"process first": last.Processes[0].PID != 0,
						}
						if !shown[act] {
							w.t.Errorf("%s took effect, and the last event does not show it", act)
						}
					}
				})
			})
		}
	}
}

// What the sweep leaves alone.
func TestSweepLeavesAlone(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	t.Run("a run whose request is in the queue", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			req := w.request("order-1", brief)
			o := w.deliver(req, crash("stored customize.starting")...)
			<-o.stopped
			before := len(w.kinds())
			if err := w.sweep(); err != nil {
				w.t.Error(err)
			}
			if got := len(w.kinds()); got != before {
				w.t.Errorf("%d events more", got-before)
			}
			w.drive(req)
			mustSucceed(w)
		})
	})

	t.Run("a run under way", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			w.deliver(w.request("order-1", brief))
			for range 20 {
				if err := w.sweep(); err != nil {
					w.t.Error(err)
				}
				<-time.After(5 * time.Second)
			}

			w.await(w.owners[0])
			mustSucceed(w)
			if n := w.last().Owner.Takeovers; n != 0 {
				w.t.Errorf("%d takeovers", n)
			}
		})
	})

	t.Run("a VM without a journal, an ended run", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			_, h := w.bystander()
			if err := h.Sweep(context.Background(), []string{vmID}); err != nil {
				w.t.Error(err)
			}
			w.run(brief)
			if err := h.Sweep(context.Background(), []string{vmID}); err != nil {
				w.t.Error(err)
			}
			mustSucceed(w)
		})
	})

	t.Run("a run of another version", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			w.orphan(brief, "stored check.completed")
			last := w.rewrite(ours, unknown)
			if err := w.sweep(); err != nil {
				w.t.Error(err)
			}
			if got := w.kinds(); !slices.Equal(got, []string{"run.accepted", "check.completed"}) {
				w.t.Errorf("events %v", got)
			}
			w.restore(last)
			if err := w.sweep(); err != nil {
				w.t.Error(err)
			}
			w.wantEnds("run.failed")
		})
	})
}

// The owner ends its run while somebody sweeps, or hears a cancel for it, at whichever point: its end stands, and
// nothing more is said of it.
func TestSweepAsTheRunEnds(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range []string{"publish run.succeeded", "stored run.succeeded", "publish process.exited"} {
		for after := time.Duration(0); after < 8*latency; after += latency / 2 {
			inBriefHarness(t, secrets, func(w *harness) {
				swept := make(chan error, 1)
				req := w.request("order-1", brief)
				w.drive(req, []incident{{point: point, do: "call", fn: func() {
					w.later(after, func() { swept <- w.sweep() })
				}}})
				if err := <-swept; err != nil {
					w.t.Error(err)
				}
				mustSucceed(w)
				if last := w.last(); last.Owner.Takeovers != 0 {
					w.t.Errorf("taken over %s after %s", after, point)
				}
			})
		}
	}
}

// The stream loses the request before the run has ended, while its owner lives: either the owner ends the run, or who
// closes it fences the owner.
func TestSweepOfALivingOwner(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		if point == "publish run.accepted" {
			continue
		}
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.vc.lag = 29 * time.Second
				req := w.request("order-1", brief)
				swept := make(chan error, 1)
				o := w.deliver(req, incident{point: point, do: "call", fn: func() {
					w.line.Remove(req.Seq)
					go func() { swept <- w.sweep() }()
				}})
				if err := <-swept; err != nil {
					w.t.Error(err)
				}
				w.await(o)
				if ends := w.ends(); len(ends) != 1 {
					w.t.Errorf("ends %v", ends)
				}
			})
		})
	}
}

// forgetful is a journal that no longer has the event with which the run began.
type forgetful struct{ Journal }

func (forgetful) RequestData(context.Context, string, string, string, uint64) (json.RawMessage, error) {
	return nil, nil
}

// What an orphan asked for is read from its run.accepted; where that is gone nobody can look what its last call did,
// and its end says so: the next run does not take a Task that appears for its own.
func TestOrphanWithoutItsRequest(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.orphan(only(customizeOnly), "CustomizeGuest sent")
		_, h := w.bystander()
		h.journal = forgetful{h.journal}
		if err := h.Sweep(context.Background(), []string{vmID}); err != nil {
			w.t.Error(err)
		}
		if e := w.last().Error; e == nil || e.Code != events.Uncertain || e.Retryable {
			w.t.Errorf("error %+v", e)
		}
		if w.newest("run.failed") == nil {
			return
		}
		if doubt := w.pointOf("run.failed").Doubt; !slices.Equal(doubt, []string{"customize"}) {
			w.t.Errorf("doubt %v", doubt)
		}
	})
}
