package memstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(n int) *events.Run {
	ref := events.RequestRef{Source: "/test", ID: "1"}
	return &events.Run{ID: events.RunID("lab", "vm-1", ref), N: n, VCenter: "lab", VM: "vm-1", Request: &ref,
		Status: events.StatusRunning}
}

func journal(s stream.Store) *stream.Journal {
	return stream.NewStoreJournal(s, events.Structured, zerolog.Nop())
}

func add(ctx context.Context, s stream.Store, after uint64, id string, n int) (uint64, error) {
	return journal(s).Append(ctx, after, id, events.RunWaiting, events.Attributes{}, run(n))
}

func TestFaults(t *testing.T) {
	t.Parallel()
	once := func(f memstore.Fault) func(int, stream.Message) memstore.Fault {
		return func(n int, _ stream.Message) memstore.Fault {
			if n == 1 {
				return f
			}
			return memstore.Fault{}
		}
	}
	tests := []struct {
		name      string
		fault     memstore.Fault
		published int // on one server; an append that arrives late is refused, and found
	}{
		{"none", memstore.Fault{}, 1},
		{"delay", memstore.Fault{Delay: time.Second}, 1},
		{"call lost", memstore.Fault{LoseCall: true}, 2},
		{"answer lost", memstore.Fault{LoseAnswer: true}, 2},
		{"stored late", memstore.Fault{Late: time.Minute}, 2},
		{"race lost, then nobody there", memstore.Fault{Refuse: stream.CodeLastSequenceRace}, 2},
		{"ID in process", memstore.Fault{Refuse: stream.CodeIDInProcess}, 2},
		{"stream full for a while", memstore.Fault{Refuse: stream.CodeSubjectFull}, 2},
		{"slower than a round trip", memstore.Fault{Delay: time.Hour}, 2},
	}
	for _, tt := range tests {
		for _, replicas := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d", tt.name, replicas), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := memstore.New(memstore.Options{Replicas: replicas})
					c := s.Client()
					c.OnPublish(once(tt.fault))
					seq, err := add(t.Context(), c, 0, "id", 1)
					if err != nil || seq != 1 {
						t.Fatalf("append: %d, %v", seq, err)
					}
					<-time.After(2 * time.Minute) // what was held up has arrived
					if n := len(s.All()); n != 1 {
						t.Errorf("%d events stored", n)
					}
					if c.Published() != tt.published {
						t.Errorf("published %d times, want %d", c.Published(), tt.published)
					}
				})
			})
		}
	}
}

// A dead owner's calls are not answered and store nothing; what it had stored is there for the next one.
func TestCrash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New(memstore.Options{})
		c := s.Client()
		if _, err := add(t.Context(), c, 0, "id-1", 1); err != nil {
			t.Fatal(err)
		}
		c.Crash()
		<-c.Crashed()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := add(ctx, c, 1, "id-2", 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("append of the dead: %v", err)
		}
		if n := len(s.All()); n != 1 {
			t.Errorf("%d events stored, want 1", n)
		}
		if last, err := journal(s.Client()).Last(t.Context(), "lab", "vm-1"); err != nil || last == nil {
			t.Errorf("last, for the next owner: %v, %v", last, err)
		}
	})
}

// After a loss of power the old sequences are used again: an owner with the old number passes the compare, its
// read-back finds out.
func TestDropLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New(memstore.Options{Replicas: 3})
		c := s.Client()
		for n := 1; n <= 3; n++ {
			if _, err := add(t.Context(), c, uint64(n-1), fmt.Sprint("id-", n), n); err != nil {
				t.Fatal(err)
			}
		}
		s.DropLast(1)
		if _, err := add(t.Context(), c, 3, "id-4", 4); !errors.Is(err, events.ErrFenced) {
			t.Errorf("append on what is gone: %v", err)
		}
		if seq, err := add(t.Context(), c, 2, "other-3", 3); err != nil || seq != 3 {
			t.Fatalf("append in its place: %d, %v", seq, err)
		}
		if seq, err := add(t.Context(), c, 3, "id-4", 4); err != nil || seq != 4 {
			t.Fatalf("append with the old number: %d, %v", seq, err)
		}
		j := journal(c)
		mine := events.Mark{Seq: 4, MsgID: "id-4"}
		if err := j.ConfirmLast(t.Context(), "lab", "vm-1", mine,
			events.Mark{Seq: 3, MsgID: "id-3"}); !errors.Is(err, events.ErrFenced) {
			t.Errorf("read-back: %v", err)
		}
		if err := j.ConfirmLast(t.Context(), "lab", "vm-1", mine, events.Mark{Seq: 3, MsgID: "other-3"}); err != nil {
			t.Errorf("read-back of its owner: %v", err)
		}
	})
}

func TestReads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New(memstore.Options{})
		c := s.Client()
		for n := 1; n <= 2; n++ {
			if _, err := add(t.Context(), c, uint64(n-1), fmt.Sprint("id-", n), n); err != nil {
				t.Fatal(err)
			}
		}
		j := journal(c)
		c.StaleReads(1)
		for _, want := range []uint64{1, 2} {
			if last, err := j.Last(t.Context(), "lab", "vm-1"); err != nil || last.Seq != want {
				t.Errorf("last: %+v, %v; want %d", last, err, want)
			}
		}
		c.LoseReads(3)
		if last, err := j.Last(t.Context(), "lab", "vm-1"); err != nil || last.Seq != 2 {
			t.Errorf("last, after lost answers: %+v, %v", last, err)
		}
		c.StaleReads(2)
		if _, err := j.Append(t.Context(), 1, "other", events.RunWaiting, events.Attributes{},
			run(2)); !errors.Is(err, events.ErrFenced) {
			t.Errorf("append that is refused, while the reader lags: %v", err)
		}
	})
}

// The window over, a single server and three answer alike: by the sequence.
func TestWindow(t *testing.T) {
	t.Parallel()
	for _, replicas := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			s := memstore.New(memstore.Options{Replicas: replicas, Window: time.Minute})
			c := s.Client()
			if _, err := add(t.Context(), c, 0, "id", 1); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
			if seq, err := add(t.Context(), c, 0, "id", 1); err != nil || seq != 1 {
				t.Errorf("the same append long after: %d, %v", seq, err)
			}
		})
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New(memstore.Options{})
		q := s.Queue("lab", 30*time.Second)
		publish := func(kind events.Kind, vm, id string, data any) uint64 {
			t.Helper()
			seq, err := q.Publish(kind, vm, events.RequestRef{Source: "/test", ID: id}, data)
			if err != nil {
				t.Fatal(err)
			}
			return seq
		}
		ch, stop := q.Wake("lab", "vm-1")
		defer stop()
		first := publish(events.KindRequested, "vm-1", "1", map[string]any{"vm": "vm-1"})
		second := publish(events.KindRequested, "vm-1", "2", map[string]any{"vm": "vm-1"})
		publish(events.KindCancelRequested, "vm-1", "c", map[string]any{"vm": "vm-1",
			"request": map[string]any{"source": "/test", "id": "2"}})
		<-ch
		if _, err := add(t.Context(), s.Client(), 0, "id", 1); err != nil {
			t.Fatal(err)
		}
		<-ch
		if head, err := q.Oldest(t.Context(), "lab", "vm-1"); err != nil || head.Seq != first {
			t.Errorf("head %+v, %v", head, err)
		}
		in, err := q.Unfinished(t.Context(), "lab", "vm-1")
		if r := in.Requests; err != nil || len(r) != 2 || r[1].Seq != second || r[1].Ref.ID != "2" ||
			len(in.Cancels) != 1 {
			t.Errorf("waiting %+v, %v", in, err)
		}
		if cancels, err := q.Cancels(t.Context(), "lab", "vm-1"); err != nil || len(cancels) != 1 ||
			cancels[0].Request.ID != "2" {
			t.Errorf("cancels %+v, %v", cancels, err)
		}

		// The first owner dies with the first request in hand and gives the second one back; the next owner gets both.
		type delivery struct {
			owner     string
			seq, many uint64
			after     time.Duration
		}
		begun := time.Now()
		got := make(chan delivery, 16)
		dead, living := s.Client(), s.Client()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{}, 2)
		go func() {
			q.Consume(ctx, dead, func(_ context.Context, r *events.Request) error {
				got <- delivery{"dead", r.Seq, r.Delivered, time.Since(begun)}
				if r.Seq == second {
					return &events.RetryError{After: time.Minute, Err: errors.New("busy")}
				}
				<-dead.Crashed()
				return nil // counts for nothing
			})
			ended <- struct{}{}
		}()
		synctest.Wait()
		go func() {
			q.Consume(ctx, living, func(_ context.Context, r *events.Request) error {
				got <- delivery{"living", r.Seq, r.Delivered, time.Since(begun)}
				return nil
			})
			ended <- struct{}{}
		}()
		dead.Crash()
		<-ended
		var all []delivery
		for range 4 {
			all = append(all, <-got)
		}
		synctest.Wait()
		want := map[delivery]bool{
			{"dead", first, 1, 0}: true, {"dead", second, 1, 0}: true, {"living", first, 2, 30 * time.Second}: true,
			{"living", second, 2, time.Minute}: true,
		}
		for _, d := range all {
			if !want[d] {
				t.Errorf("delivery %+v", d)
			}
		}
		if q.Len() != 1 { // the cancel
			t.Errorf("%d messages are left", q.Len())
		}
		cancel()
		<-ended
	})
}

// A replica that is behind shows the stream as it was, a moment ago or long ago; what it does not show it calls gone
// only where it has seen it.
func TestQueueLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := memstore.New(memstore.Options{}).Queue("lab", 30*time.Second)
		publish := func(id string) *events.Request {
			t.Helper()
			seq, err := q.Publish(events.KindRequested, "vm-1", events.RequestRef{Source: "/test", ID: id},
				map[string]any{"vm": "vm-1"})
			if err != nil {
				t.Fatal(err)
			}
			r, err := q.Deliver(seq)
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Minute)
			return r
		}
		want := func(what string, r *events.Request, head uint64, gone bool) {
			t.Helper()
			h, err := q.Oldest(t.Context(), "lab", "vm-1")
			if err != nil || (h == nil) != (head == 0) || h != nil && h.Seq != head {
				t.Errorf("%s: head %+v, %v; want %d", what, h, err, head)
			}
			if got, err := q.Gone(t.Context(), "lab", "vm-1", r.Place()); err != nil || got != gone {
				t.Errorf("%s: gone %v, %v", what, got, err)
			}
		}
		a, b := publish("a"), publish("b")
		q.Remove(a.Seq)
		<-time.After(time.Minute)
		want("a, now", a, b.Seq, true)
		want("b, now", b, b.Seq, false)
		behind := 90 * time.Second // b is there, a not yet removed
		q.Lag(func(int) time.Duration { return behind })
		want("a, before it was removed", a, a.Seq, false)
		behind = 150 * time.Second // b is not there yet
		want("b, before it was stored", b, a.Seq, false)
		behind = time.Hour
		want("a, before there was anything", a, 0, false)
		q.Lag(nil)
		q.Restore(a.Seq)
		want("a, back", a, a.Seq, false)
		q.Anew()
		want("a, of a stream that is no more", a, 0, true)
		c := publish("c")
		want("c, where a was", c, c.Seq, false)
		want("a, whose place is another's", a, c.Seq, true)
	})
}

func TestQueueByHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := memstore.New(memstore.Options{}).Queue("lab", 30*time.Second)
		seq, err := q.Publish(events.KindRequested, "vm-1", events.RequestRef{Source: "/test", ID: "1"},
			map[string]any{"vm": "vm-1"})
		if err != nil {
			t.Fatal(err)
		}
		for n := uint64(1); n <= 2; n++ {
			if r, err := q.Deliver(seq); err != nil || r.Delivered != n || r.Seq != seq {
				t.Errorf("delivery %d: %+v, %v", n, r, err)
			}
			q.Settle(seq, events.ErrReleased)
		}
		q.Settle(seq, &events.RejectError{Code: events.Expired})
		if q.Len() != 0 {
			t.Errorf("%d messages are left", q.Len())
		}
		if _, err := q.Deliver(seq); err == nil {
			t.Error("delivered what is gone")
		}
	})
}
