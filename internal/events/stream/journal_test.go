package stream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// spy counts the refusals of a store, and may lose an answer.
type spy struct {
	stream.Store
	mu      sync.Mutex
	codes   map[int]int
	sent    int
	lose    int    // the answers of the next so many publishes that were stored are lost
	between func() // called where an answer was lost, before the loss is told
}

func newSpy(s stream.Store) *spy { return &spy{Store: s, codes: map[int]int{}} }

var errLost = errors.New("the answer was lost")

func (s *spy) Publish(ctx context.Context, m stream.Message) (stream.Ack, error) {
	ack, err := s.Store.Publish(ctx, m)
	var refused *stream.StoreError
	s.mu.Lock()
	s.sent++
	if errors.As(err, &refused) {
		s.codes[refused.Code]++
	}
	lost := err == nil && s.lose > 0
	if lost {
		s.lose--
	}
	s.mu.Unlock()
	if !lost {
		return ack, err
	}
	if s.between != nil {
		s.between()
	}
	return stream.Ack{}, errLost
}

func (s *spy) count(code int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.codes[code]
}

// onEachStore runs a test on every kind of store, since they answer the same append differently.
func onEachStore(t *testing.T, test func(t *testing.T, store stream.Store)) {
	t.Run("one server", func(t *testing.T) {
		t.Parallel()
		url := natstest.StartServer(t).URL()
		c := connect(t, url)
		provision(t, c, url, settings(1))
		test(t, c.Store())
	})
	t.Run("three servers", func(t *testing.T) {
		t.Parallel()
		cluster := natstest.StartCluster(t, 3)
		c := connect(t, cluster.URL())
		provision(t, c, cluster.URL(), settings(3))
		test(t, c.Store())
	})
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprintf("memory as %d", replicas), func(t *testing.T) {
			t.Parallel()
			test(t, memstore.New(memstore.Options{Replicas: replicas}).Client())
		})
	}
}

func journal(t *testing.T, s stream.Store) *stream.Journal {
	return stream.NewStoreJournal(s, events.Structured, testLog(t))
}

// appendOK appends event n of the VM's run and fails the test where it is refused.
func appendOK(t *testing.T, j *stream.Journal, after uint64, id string, vm string, n int) uint64 {
	t.Helper()
	seq, err := j.Append(testContext(t), after, id, events.RunWaiting, testAttrs, run(vm, n))
	if err != nil {
		t.Fatal(err)
	}
	if seq <= after {
		t.Fatalf("sequence %d is not behind %d", seq, after)
	}
	return seq
}

func TestAppendAndLast(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store stream.Store) {
		ctx := testContext(t)
		j := journal(t, store)
		last, err := j.Last(ctx, "lab", "vm-1")
		if err != nil || last != nil {
			t.Fatalf("last of a VM without events: %v, %v", last, err)
		}
		first := appendOK(t, j, 0, "id-1", "vm-1", 1)
		appendOK(t, j, 0, "other-vm", "vm-12", 1) // whose name only begins the same
		second := appendOK(t, j, first, "id-2", "vm-1", 2)
		last, err = j.Last(ctx, "lab", "vm-1")
		if err != nil {
			t.Fatal(err)
		}
		if last.Seq != second || last.MsgID != "id-2" || last.Kind != events.RunWaiting || last.Run.N != 2 ||
			last.Attrs != testAttrs || last.At.IsZero() {
			t.Errorf("last event: %+v", last)
		}
		if _, err := j.Append(ctx, first, "id-3", events.RunWaiting, testAttrs,
			run("vm-1", 2)); !errors.Is(err, events.ErrFenced) {
			t.Errorf("append on an old event: %v, want ErrFenced", err)
		}
		if _, err := j.Append(ctx, 0, "id-4", events.RunWaiting, testAttrs,
			run("vm-1", 1)); !errors.Is(err, events.ErrFenced) {
			t.Errorf("append as the first event: %v, want ErrFenced", err)
		}
		if _, err := j.Append(ctx, second+1000, "id-5", events.RunWaiting, testAttrs,
			run("vm-1", 3)); !errors.Is(err, events.ErrFenced) || !errors.Is(err, events.ErrForgotten) {
			t.Errorf("append on an event that the stream lost: %v, want ErrForgotten, which is an ErrFenced", err)
		}
		if _, err := j.Append(ctx, first, "id-6", events.RunWaiting, testAttrs,
			run("vm-1", 3)); errors.Is(err, events.ErrForgotten) {
			t.Errorf("append on an event that another one follows: %v", err)
		}
		if err := j.ConfirmNotReplaced(ctx, "lab", "vm-1", events.Mark{Seq: second, MsgID: "id-2"}); err != nil {
			t.Errorf("my event is the last one: %v", err)
		}
		if err := j.ConfirmNotReplaced(ctx, "lab", "vm-1",
			events.Mark{Seq: second, MsgID: "of a stream that was"}); !errors.Is(err, events.ErrFenced) {
			t.Errorf("another one has the sequence of mine: %v, want ErrFenced", err)
		}
		if since, err := j.CompleteSince(ctx); err != nil || since.IsZero() || since.After(last.At) {
			t.Errorf("reaches back to %s, %v; an event is of %s", since, err, last.At)
		}
		if _, err := j.Append(ctx, second, "id-1", events.RunWaiting, testAttrs,
			run("vm-1", 3)); !errors.Is(err, events.ErrFenced) {
			t.Errorf("append under a used ID: %v, want ErrFenced", err)
		}
	})
}

// An answer is lost, and the append is sent again: one server refuses it, three call it a duplicate. Both mean: stored,
// once.
func TestAppendAfterLostAnswer(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store stream.Store) {
		lossy := newSpy(store)
		lossy.lose = 2
		j := journal(t, lossy)
		first := appendOK(t, j, 0, "id-1", "vm-1", 1)
		if last, err := j.Last(testContext(t), "lab", "vm-1"); err != nil || last.Seq != first {
			t.Fatalf("last event: %+v, %v; want %d", last, err, first)
		}
		if lossy.sent != 2 && lossy.sent != 3 { // 2 where the refusal of the second attempt led to the stored one
			t.Errorf("sent %d times", lossy.sent)
		}
		appendOK(t, j, first, "id-2", "vm-1", 2)
	})
}

// The answer is lost, and before the append is sent again another owner has gone on: it was stored all the same, at its
// place.
func TestAppendOvertakenAfterLostAnswer(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store stream.Store) {
		j := journal(t, store)
		first := appendOK(t, j, 0, "id-1", "vm-1", 1)
		lossy := newSpy(store)
		lossy.lose = 1
		overtaken := uint64(0)
		lossy.between = func() { overtaken = appendOK(t, j, first+1, "other", "vm-1", 3) }
		mine := appendOK(t, journal(t, lossy), first, "mine", "vm-1", 2)
		if mine != first+1 || overtaken != first+2 {
			t.Errorf("events at %d, %d, %d: want three in a row", first, mine, overtaken)
		}
		if _, err := j.Append(testContext(t), mine, "late", events.RunWaiting, testAttrs,
			run("vm-1", 3)); !errors.Is(err, events.ErrFenced) {
			t.Errorf("append on my overtaken event: %v, want ErrFenced", err)
		}
	})
}

// Many owners race for each step of several VMs, every append is sent twice at once (as a retry that meets its first
// attempt): no step is won twice, nothing that was acknowledged is missing, and nothing is stored that nobody won.
func TestRace(t *testing.T) {
	t.Parallel()
	const writers, vms, minRounds, maxRounds = 6, 2, 30, 1500
	onEachStore(t, func(t *testing.T, store stream.Store) {
		s := newSpy(store)
		_, inMemory := store.(*memstore.Client)
		replicated := strings.Contains(t.Name(), "three")
		enough := func(round int) bool {
			if round < minRounds {
				return false
			}
			if replicated && !inMemory { // until each of the three refusals was seen
				return s.count(stream.CodeWrongLastSequence) > 0 && s.count(stream.CodeLastSequenceRace) > 0 &&
					s.count(stream.CodeIDInProcess) > 0
			}
			return true
		}
		round := 0
		after := map[string]uint64{}
		for ; !enough(round) && round < maxRounds; round++ {
			for vm := range vms {
				vm := fmt.Sprintf("vm-%d", vm)
				after[vm] = raceStep(t, s, vm, round+1, writers, after[vm])
			}
		}
		t.Logf("%d rounds of %d writers on %d VMs, refusals: %v", round, writers, vms, s.codes)
		if !enough(round) {
			t.Errorf("not every refusal was seen in %d rounds: %v", round, s.codes)
		}
		for vm := range vms {
			if got := chain(t, store, fmt.Sprintf("vm-%d", vm)); got != round {
				t.Errorf("vm-%d has %d events after %d steps", vm, got, round)
			}
		}
	})
}

// raceStep lets the writers race for one step and returns the sequence of the winner's event.
func raceStep(t *testing.T, s stream.Store, vm string, n, writers int, after uint64) uint64 {
	t.Helper()
	ctx := testContext(t)
	j := stream.NewStoreJournal(s, events.Structured, zerolog.Nop())
	type result struct {
		writer int
		seq    uint64
		err    error
	}
	results := make(chan result)
	begin := make(chan struct{})
	for w := range writers {
		for range 2 {
			go func() {
				<-begin
				seq, err := j.Append(ctx, after, fmt.Sprintf("%s.%d.%d", vm, n, w), events.RunWaiting, testAttrs,
					run(vm, n))
				results <- result{w, seq, err}
			}()
		}
	}
	close(begin)
	won := map[int]uint64{}
	lost := map[int]bool{}
	for range 2 * writers {
		switch r := <-results; {
		case r.err == nil:
			if old, again := won[r.writer]; again && old != r.seq {
				t.Errorf("%s step %d: writer %d was told %d and %d", vm, n, r.writer, old, r.seq)
			}
			won[r.writer] = r.seq
		case errors.Is(r.err, events.ErrFenced):
			lost[r.writer] = true
		default:
			t.Errorf("%s step %d: %v", vm, n, r.err)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%s step %d was won by %d writers: %v", vm, n, len(won), won)
	}
	for w, seq := range won {
		if lost[w] {
			t.Errorf("%s step %d: writer %d was told that it won and that it lost", vm, n, w)
		}
		after = seq
	}
	return after
}

// chain walks the VM's history and returns its length; events are numbered without gaps, from 1.
func chain(t *testing.T, s stream.Store, vm string) int {
	t.Helper()
	ctx := testContext(t)
	for n, from := 0, uint64(1); ; n++ {
		m, err := s.NextBySubject(ctx, events.History("lab", vm), from)
		for err != nil { // a server that has just been started again may not answer yet
			if backoff.Sleep(ctx, 10*time.Millisecond) != nil {
				t.Fatal(err)
			}
			m, err = s.NextBySubject(ctx, events.History("lab", vm), from)
		}
		if m == nil {
			return n
		}
		if _, r := checkEvent(t, m.Header, m.Data); r.N != n+1 {
			t.Fatalf("%s: event %d of the history says that it is number %d", vm, n+1, r.N)
		}
		from = m.Seq + 1
	}
}

// The server goes away in the middle of appends and comes back: none is lost, none is there twice.
func TestAppendThroughRestart(t *testing.T) {
	t.Parallel()
	const appends, writers = 200, 4
	tests := []struct {
		name  string
		start func(t *testing.T) (url string, replicas int, restart func() error)
	}{
		{"one server", func(t *testing.T) (string, int, func() error) {
			s := natstest.StartServer(t)
			return s.URL(), 1, func() error { s.Stop(); return s.Start() }
		}},
		{"the leader of three", func(t *testing.T) (string, int, func() error) {
			c := natstest.StartCluster(t, 3)
			return c.URL(), 3, func() error {
				leader := c.Leader(events.EventsStream)
				if leader == nil {
					return c.WaitLeader(events.EventsStream)
				}
				leader.Stop()
				if err := c.WaitLeader(events.EventsStream); err != nil {
					return err
				}
				return leader.Start()
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			url, replicas, restart := tt.start(t)
			c := connect(t, url)
			provision(t, c, url, settings(replicas))
			j := stream.NewJournal(c, events.Structured)
			halfway := make(chan struct{}, writers)
			var all sync.WaitGroup
			for w := range writers {
				all.Go(func() {
					vm := fmt.Sprintf("vm-%d", w)
					after := uint64(0)
					for n := 1; n <= appends; n++ {
						seq, err := j.Append(ctx, after, fmt.Sprintf("%s.%d", vm, n), events.RunWaiting, testAttrs,
							run(vm, n))
						if err != nil {
							t.Errorf("%s event %d: %v", vm, n, err)
							return
						}
						after = seq
						if n == appends/4 {
							halfway <- struct{}{}
						}
					}
				})
			}
			for range writers {
				receive(t, halfway)
			}
			if err := restart(); err != nil {
				t.Fatal(err)
			}
			all.Wait()
			for w := range writers {
				if n := chain(t, c.Store(), fmt.Sprintf("vm-%d", w)); n != appends {
					t.Errorf("vm-%d: %d events stored of %d", w, n, appends)
				}
			}
		})
	}
}

// An append that cannot be stored says so when its time is over.
func TestAppendGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	c := connect(t, s.URL())
	s.Stop()
	ctx, cancel := context.WithCancelCause(testContext(t))
	gone := errors.New("the run's time is over")
	retrying := newSpy(c.Store())
	tried := make(chan struct{}, 1)
	j := journal(t, hook{retrying, func() {
		select {
		case tried <- struct{}{}:
		default:
		}
	}})
	go func() { <-tried; cancel(gone) }()
	if _, err := j.Append(ctx, 0, "id", events.RunAccepted, testAttrs, run("vm-1", 1)); !errors.Is(err, gone) ||
		errors.Is(err, events.ErrFenced) {
		t.Errorf("append: %v, want %v", err, gone)
	}
}

// hook is called after each publish.
type hook struct {
	stream.Store
	after func()
}

func (h hook) Publish(ctx context.Context, m stream.Message) (stream.Ack, error) {
	defer h.after()
	return h.Store.Publish(ctx, m)
}
