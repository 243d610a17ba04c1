package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// stale makes reads come from replicas that have not caught up: of the requests stream by so much, of the events stream
// by so much. Each third read is answered by the one that is current, as on a cluster of three of which two are behind.
func (w *harness) stale(requests, journal time.Duration) {
	w.line.Lag(turns(requests))
	w.store.Lag(turns(journal))
}

// turns answers two reads of three from a view that is so far behind.
func turns(behind time.Duration) func(n int) time.Duration {
	return func(n int) time.Duration {
		if n%3 == 0 {
			return 0
		}
		return behind
	}
}

// behind answers every read from a view that is so old, until the moment comes at which that replica has caught up: it
// then misses nothing.
func behind(since time.Time, until time.Duration) func(int) time.Duration {
	return func(int) time.Duration {
		if time.Since(since) < until {
			return time.Since(since)
		}
		return 0
	}
}

// views are how far behind the replicas are on which the tables run again: a little, which is what a server has to
// catch up with, and for longer than any run takes.
var views = map[string]struct{ requests, journal time.Duration }{
	"requests stream":         {requests: 2 * long},
	"requests, a few seconds": {requests: 3 * time.Second},
	"events stream":           {journal: 300 * time.Millisecond},
	"both":                    {requests: time.Hour, journal: 400 * time.Millisecond},
}

// onViews runs fn for each of the views.
func onViews(t *testing.T, secrets Secrets, fn func(w *harness)) {
	t.Helper()
	for name, v := range views {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.stale(v.requests, v.journal)
				fn(w)
			})
		})
	}
}

// The tables of crashes, alone and in pairs, on views that are older than the truth: every run ends as it does on
// current ones.
func TestCrashOnStaleViews(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			onViews(t, secrets, func(w *harness) {
				w.atOnce = true
				w.run(brief, crash(point))
				mustSucceed(w)
			})
		})
	}
}

func TestCrashPairsOnStaleViews(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	all := lastingPoints(crashPoints(t, secrets, brief, inBriefHarness))
	for n, first := range all {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			step := 6 // with itself, the second owner's, and every sixth behind it
			if *allSchedules {
				step = 1
			}
			for m := n; m < len(all); m += step {
				inBriefHarness(t, secrets, func(w *harness) {
					w.atOnce = true
					w.stale(time.Hour, 400*time.Millisecond)
					w.run(brief, crash(first), crash(all[m]))
					mustSucceed(w)
					if w.t.Failed() {
						w.t.Logf("crashes at %s and %s", first, all[m])
					}
				})
			}
		})
	}
}

// afterOneThatLeft lets a request come and leave the stream, and returns a time after that, a second ago: a view of
// then shows the stream empty, and that something was in it.
func (w *harness) afterOneThatLeft() time.Time {
	w.request("earlier", `{"vm":"vm-42"}`)
	w.line.Remove(1)
	<-time.After(time.Second)
	begun := time.Now()
	<-time.After(time.Second)
	return begun
}

// Somebody sweeps while a run is under way, and the replica that answers him has not seen its request: for a moment, or
// for longer than the run takes. The owner keeps its run.
func TestSweepOnStaleViews(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, catchesUp := range []time.Duration{500 * time.Millisecond, 10 * time.Second, 2 * time.Hour} {
		for _, point := range lastingPoints(crashPoints(t, secrets, brief, inBriefHarness)) {
			t.Run(fmt.Sprintf("%s/%s", point, catchesUp), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					begun := w.afterOneThatLeft()
					swept := make(chan error, 1)
					req := w.request("order-1", brief)
					w.deliver(req, incident{point: point, do: "call", fn: func() {
						w.line.Lag(behind(begun, time.Since(begun)+catchesUp))
						go func() { swept <- w.sweep() }()
					}})
					w.await(w.owners[0])
					if err := <-swept; err != nil {
						w.t.Error(err)
					}
					mustSucceed(w)
					if last := w.last(); last.Owner.Takeovers != 0 {
						w.t.Errorf("%d takeovers", last.Owner.Takeovers)
					}
				})
			})
		}
	}
}

// An orphan is closed all the same, once the replicas have caught up.
func TestOrphanOnStaleViews(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	onViews(t, secrets, func(w *harness) {
		w.orphan(brief, "CustomizeGuest landed")
		for range 2 { // each hour: on an old view of the journal there is no run yet
			if err := w.sweep(); err != nil {
				w.t.Error(err)
			}
			<-time.After(time.Hour)
		}

		w.wantEnds("run.failed")
		if last := w.last(); last.Error == nil || last.Error.Code != events.Orphaned || last.Customize.Task == "" {
			w.t.Errorf("error %+v, customize %+v", last.Error, last.Customize)
		}
	})
}

// The next request for the VM meets a run whose request it cannot see: whoever is right, a live run is not closed, and
// an orphan is not waited for.
func TestTurnsOnStaleViews(t *testing.T) {
	t.Parallel()
	onViews(t, secretsDir(t), (*harness).runTurns)
}

// A request whose run has ended comes back, its acknowledgement lost, while a later run of the VM is alive, or after
// it: it changes nothing.
func TestOlderRequestComesBack(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, between := range []int{0, remembered + 2} { // in the second case the journal no longer remembers it
		for _, point := range []string{"publish run.accepted", "stored run.accepted", "CustomizeGuest landed",
			"publish process.exited", "publish run.succeeded", ""} {
			t.Run(fmt.Sprintf("%d between/%s", between, point), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					a := w.request("a", only(networkOnly))
					w.drive(a)
					for i := range between {
						w.drive(w.request(fmt.Sprintf("between-%d", i), `{"vm":"vm-42"}`))
					}
					back := func() {
						w.line.Restore(a.Seq)
						w.deliver(a)
					}
					b := w.request("b", brief)
					if point == "" {
						w.drive(b)
						back()
					} else {
						w.deliver(b, incident{point: point, do: "call", fn: back})
					}

					for n := 0; ; n++ { // the last one may come while the others are waited for
						if n == len(w.owners) {
							break
						}
						w.await(w.owners[n])
					}

					if w.waiting(a) || w.waiting(b) {
						w.t.Error("a request is still in its stream")
					}
					mustSucceed(w)
					w.wantEffects("network", 2)
					w.wantEffects("customize", 1)
					for _, e := range w.events() {
						if e.run.Owner.Takeovers != 0 || e.kind == events.RunFailed {
							w.t.Fatalf("%s %s: %+v", e.kind, e.id, e.run.Error)
						}
					}
				})
			})
		}
	}
}

// The table of cancels on views of the requests stream that are older than the truth: nobody refuses a cancel whose
// request he cannot see yet.
func TestHandleCancelOnStaleViews(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	rows := map[string]func(w *harness, hold func(*events.Cancel) *hold){
		"its request is not seen yet": func(w *harness, hold func(*events.Cancel) *hold) {
			a := w.request("a", brief)
			h := hold(w.canceled(a, "c"))
			w.drive(a)
			if err := h.answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}
			w.wantEnds("run.canceled")
		},
		"its run is under way": func(w *harness, hold func(*events.Cancel) *hold) {
			a := w.request("a", brief)
			w.deliver(a)
			<-time.After(10 * time.Second)
			h := hold(w.canceled(a, "c"))
			w.await(w.owners[0])
			if err := h.answer(w); err != nil {
				w.t.Errorf("answer %v", err)
			}

			// Where the owner cannot see the cancel either, its run ends before it does.
			if last := w.last(); last.Owner.Takeovers != 0 || last.Status == events.StatusFailed {
				w.t.Errorf("%s after %d takeovers", last.Status, last.Owner.Takeovers)
			}
		},
		"unknown": func(w *harness, hold func(*events.Cancel) *hold) {
			w.drive(w.request("a", `{"vm":"vm-42"}`))
			if err := hold(w.canceled(&events.Request{Ref: events.RequestRef{Source: "/test", ID: "never"}},
				"c")).answer(w); !refused(err) {
				w.t.Errorf("answer %v", err)
			}
		},
		"answered by somebody else": func(w *harness, hold func(*events.Cancel) *hold) {
			w.drive(w.request("a", `{"vm":"vm-42"}`))
			c := w.canceled(&events.Request{Ref: events.RequestRef{Source: "/test", ID: "never"}}, "c")
			w.line.Remove(c.Seq)
			if err := hold(c).answer(w); !errors.Is(err, events.ErrFenced) {
				w.t.Errorf("answer %v", err)
			}
		},
	}

	for name, row := range rows {
		for _, catchesUp := range []time.Duration{0, time.Second, 3 * time.Minute} {
			t.Run(fmt.Sprintf("%s/%s", name, catchesUp), func(t *testing.T) {
				t.Parallel()
				inBriefHarness(t, secrets, func(w *harness) {
					begun := w.afterOneThatLeft()
					row(w, func(c *events.Cancel) *hold {
						w.line.Lag(behind(begun, time.Since(begun)+catchesUp))
						return w.hold(c)
					})
				})
			})
		}
	}
}

// The run has ended, canceled by this cancel, and the request has left: a replica of the events stream that does not
// show the end yet is no reason to tell the publisher that there was nothing to cancel.
func TestCancelOnAnOldJournal(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		begun := time.Now()
		<-time.After(time.Second)
		a := w.request("a", brief)
		w.deliver(a)
		<-time.After(10 * time.Second)
		c := w.canceled(a, "c")
		w.await(w.owners[0])
		w.wantEnds("run.canceled")
		w.store.Lag(behind(begun, time.Hour))
		for range 3 { // however often it is delivered to somebody who reads from that replica
			h := w.hold(c)
			if err := h.answer(w); !refused(err) || !w.line.Has(c.Seq) {
				w.t.Fatalf("answer %v, which can be stored", err)
			}
		}

		w.store.Lag(nil)
		if err := w.hold(c).answer(w); err != nil {
			w.t.Errorf("answer %v", err)
		}
	})
}

// A cancel was held while its run was under way, and the run ends otherwise. A replica of the events stream that does
// not show the run for a moment does not make who holds it forget that: its publisher is not told that there was
// nothing to cancel.
func TestHeldCancelOnAnOldJournal(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		begun := w.afterOneThatLeft()
		a := w.request("a", brief)
		w.deliver(a, incident{point: "stored run.succeeded", do: "call", fn: func() {
			w.line.Lag(nil)
			w.store.Lag(behind(begun, time.Since(begun)+5*time.Second))
		}})
		<-time.After(10 * time.Second)
		w.line.Lag(behind(begun, time.Hour)) // the owner cannot see the cancel
		h := w.hold(w.canceled(a, "c"))
		if err := h.answer(w); err != nil {
			w.t.Errorf("answer %v", err)
		}
		w.wantEnds("run.succeeded")
	})
}

// A request is delivered again after its expirytime, to somebody who is shown a journal without its run: it is not
// refused, for its run is under way.
func TestExpiredOnAnOldJournal(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		begun := time.Now()
		<-time.After(time.Second)
		a := w.request("a", brief)
		a.Expires = time.Now().Add(5 * time.Second)
		o := w.deliver(a, crash("CustomizeGuest landed")...)
		<-o.stopped
		<-time.After(ackWait)
		w.store.Lag(behind(begun, time.Hour))
		w.await(w.deliver(a))
		if !w.waiting(a) || len(w.rejected) > 0 {
			w.t.Fatalf("refused: %v", w.rejected)
		}
		w.store.Lag(nil)
		w.drive(a)
		mustSucceed(w)
	})
}

// The requests stream was made anew, and the request in hand went with it; another one has its sequence. It is not that
// one's turn, and the run of the one that is gone is an orphan.
func TestRequestsStreamAnew(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		a := w.request("a", brief)
		o := w.deliver(a, crash("CustomizeGuest landed")...)
		<-o.stopped
		held := *o.req // by somebody who got it before
		<-time.After(time.Second)
		w.line.Anew()
		<-time.After(time.Second)
		b := w.request("b", only(networkOnly))
		if b.Seq != a.Seq {
			w.t.Fatalf("sequence %d", b.Seq)
		}
		_, h := w.bystander()
		if err := h.Handle(context.Background(), &held); !errors.Is(err, events.ErrFenced) {
			w.t.Errorf("answer %v", err)
		}
		w.drive(b)
		w.wantEnds("run.failed", "run.succeeded")
		for _, e := range w.events() {
			if e.kind == events.RunFailed && e.run.Error.Code != events.Orphaned {
				w.t.Errorf("error %+v", e.run.Error)
			}
		}
		w.wantEffects("customize", 1)
		w.wantEffects("network", 1)
	})
}

// The requests stream lost its end to a power failure, with the request of a run in it, and uses the sequences again:
// the VM is not stuck until they are used up.
func TestRequestsStreamLostItsEnd(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		for _, id := range []string{"x", "y"} {
			w.line.Remove(w.request(id, brief).Seq)
		}
		a := w.request("a", brief)
		o := w.deliver(a, crash("CustomizeGuest landed")...)
		<-o.stopped
		w.line.DropLast(1)
		<-time.After(2 * time.Minute)
		b := w.request("b", only(networkOnly))
		if b.Seq != a.Seq {
			w.t.Fatalf("sequence %d", b.Seq)
		}
		w.drive(b)
		w.wantEnds("run.failed", "run.succeeded")
	})
}

// The requests stream is made anew, or loses its end, on a server whose clock is behind: a request that is new there
// has a lower sequence and an earlier time than that of the VM's last run. It is run all the same, whether that run has
// ended or is an orphan.
func TestNewRequestLooksOlder(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, what := range []string{"made anew", "lost its end"} {
		for _, before := range []string{"ended", "orphan"} {
			// The last one: to before the streams were made.
			for _, behind := range []time.Duration{2 * time.Minute, 10 * time.Minute, 90 * time.Minute} {
				t.Run(fmt.Sprintf("%s/%s/%s behind", what, before, behind), func(t *testing.T) {
					t.Parallel()
					inBriefHarness(t, secrets, func(w *harness) {
						<-time.After(time.Hour)
						lost := w.request("lost", only(networkOnly))
						w.line.Remove(lost.Seq)
						a := w.request("a", brief)
						if before == "orphan" {
							o := w.deliver(a, crash("CustomizeGuest landed")...)
							<-o.stopped
						} else {
							w.drive(a)
						}

						w.line.Clock(-behind)
						if what == "made anew" {
							w.line.Anew()
						} else {
							w.line.DropEnd(lost.Seq)
						}
						b := w.request("b", only(networkOnly))
						if b.Seq >= a.Seq {
							w.t.Fatalf("sequence %d, behind %d", b.Seq, a.Seq)
						}
						w.later(behind+2*time.Minute, func() { // other VMs' requests come, and go
							for range 3 {
								other := events.RequestRef{Source: "/test", ID: "of another VM"}
								seq, err := w.line.Publish(events.KindRequested, "vm-1", other,
									json.RawMessage(`{"vm":"vm-1"}`))
								if err != nil {
									w.t.Error(err)
								}
								w.line.Remove(seq)
							}
						})

						w.drive(b)
						mustSucceed(w)
						networks := 2
						if before == "orphan" {
							networks = 1
						}
						w.wantEffects("network", networks)
						w.wantEffects("customize", 1)
					})
				})
			}
		}
	}
}

// Both streams are made anew in the middle of a run, and its owner dies: the VM's next request, whose sequence is lower
// than that of the run's own, closes the orphan and begins. The run's acceptance went with the old events stream.
func TestOrphanInNewStreams(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		for _, id := range []string{"x", "y", "z"} {
			w.drive(w.request(id, only(networkOnly)))
		}
		a := w.request("a", brief)
		o := w.deliver(a, incident{point: "CustomizeGuest sent", do: "call", fn: func() {
			w.anew = true
			w.store.Anew(0)
			w.line.Anew()
		}}, incident{point: "StartGuestNetwork landed", do: "crash"})
		<-o.stopped
		<-time.After(time.Minute)

		b := w.request("b", only(networkOnly))
		if b.Seq >= a.Seq {
			w.t.Fatalf("sequence %d, behind %d", b.Seq, a.Seq)
		}
		w.drive(b)
		w.wantEnds("run.failed", "run.succeeded")
		w.wantEffects("customize", 1)
		w.wantEffects("network", 5)
	})
}

// A release is trusted by the very next delivery of the same message, not by that of one which has its sequence by now.
func TestReleaseNamesItsStream(t *testing.T) {
	t.Parallel()
	at := time.Now()
	r := &release{Seq: 7, At: &at, Delivered: 1}
	for want, req := range map[bool]*events.Request{true: {Seq: 7, At: at, Delivered: 2},
		false: {Seq: 7, At: at.Add(time.Second), Delivered: 2}} {
		if r.followedBy(req) != want {
			t.Errorf("%+v: %v", req, !want)
		}
	}

	if (*release)(nil).followedBy(&events.Request{}) {
		t.Error("nothing was released")
	}
}

// Messages of the VM that this build cannot read may be anybody's: an unfinished run is no orphan while one of them is
// in the queue.
func TestUnreadableMayBeAnybodys(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, who := range []string{"sweep", "cancel"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				a := w.orphan(brief, "CustomizeGuest landed") // its copy, in the words of a later version
				again := w.request("a", strings.Replace(brief, `{"vm"`, `{"ofALaterVersion":true,"vm"`, 1))
				before := len(w.kinds())
				held := make(chan struct{})
				if who == "sweep" {
					if err := w.sweep(); err != nil {
						w.t.Error(err)
					}
					close(held)
				} else {
					h := w.hold(w.canceled(a, "c"))
					<-time.After(time.Hour)
					go func() { <-h.finished; close(held) }()
				}

				if got := len(w.kinds()); got != before {
					w.t.Errorf("%d events more", got-before)
				}
				w.line.Remove(again.Seq)
				if err := w.sweep(); err != nil {
					w.t.Error(err)
				}
				<-held
				w.wantEnds("run.failed")
			})
		})
	}
}
