package stream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// watch has the connection look after its streams until the end of the test.
func (s *station) watch(t *testing.T) {
	t.Helper()
	during(t, s.conn.Watch)
}

// troubles are those of this reason.
func (s *station) troubles(t *testing.T, reason stream.Reason) (found []stream.Trouble) {
	t.Helper()
	all, err := s.conn.Troubles(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range all {
		if tr.Cure == "" || tr.What == "" {
			t.Errorf("a trouble without words: %+v", tr)
		}
		if tr.Reason == reason {
			found = append(found, tr)
		}
	}
	return found
}

// What an administrator does to streams and consumers of a service that runs is told with its cure, and says whether
// something stands still.
func TestTroubles(t *testing.T) {
	t.Parallel()
	requests, durable := events.RequestsStream("lab"), events.RequestsConsumer("lab")
	edit := func(change func(*jetstream.ConsumerConfig)) func(context.Context, *station) error {
		return func(ctx context.Context, s *station) error {
			cons, err := s.js.Consumer(ctx, requests, durable)
			if err != nil {
				return err
			}
			cfg := cons.CachedInfo().Config
			change(&cfg)
			_, err = s.js.UpdateConsumer(ctx, requests, cfg)
			return err
		}
	}
	tests := []struct {
		name   string
		do     func(ctx context.Context, s *station) error
		reason stream.Reason
		stops  bool
		cure   string
	}{
		{"a consumer is paused", func(ctx context.Context, s *station) error {
			_, err := s.js.PauseConsumer(ctx, requests, durable, time.Now().Add(time.Hour))
			return err
		}, stream.ConsumerPaused, true, "nats consumer resume GUESTFLOW_REQUESTS_lab guestflow-requests-lab"},
		{"fewer places", edit(func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1 }), stream.FewPlaces, false,
			"--max-pending 16"},
		{"more places", edit(func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1000 }), stream.Unfit, true,
			"nats consumer edit"},
		{"deliveries are limited", edit(func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 3 }), stream.Unfit, true,
			"nats consumer edit"},
		{"a consumer is removed",
			func(ctx context.Context, s *station) error { return s.js.DeleteConsumer(ctx, requests, durable) },
			stream.ConsumerMissing, true, "GUESTFLOW_PROVISION"},
		{"the events are removed",
			func(ctx context.Context, s *station) error { return s.js.DeleteStream(ctx, events.EventsStream) },
			stream.StreamMissing, true, "GUESTFLOW_PROVISION"},
		{"the dead letters are removed",
			func(ctx context.Context, s *station) error { return s.js.DeleteStream(ctx, events.DeadlettersStream) },
			stream.StreamMissing, true, "GUESTFLOW_PROVISION"},
		{"the requests are removed",
			func(ctx context.Context, s *station) error { return s.js.DeleteStream(ctx, requests) },
			stream.StreamMissing, true, "GUESTFLOW_PROVISION"},
		{"the journal drops what is old", func(ctx context.Context, s *station) error {
			st, err := s.js.Stream(ctx, events.EventsStream)
			if err != nil {
				return err
			}
			cfg := st.CachedInfo().Config
			cfg.MaxMsgs = 10
			_, err = s.js.UpdateStream(ctx, cfg)
			return err
		}, stream.Unfit, true, "nats stream edit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := natstest.StartServer(t)
			s := &station{client: dial(t, server.URL()), server: server, conn: connect(t, server.URL())}
			if err := s.conn.Provision(testContext(t), settings(1)); err != nil {
				t.Fatal(err)
			}
			if all, err := s.conn.Troubles(testContext(t)); err != nil || len(all) > 0 {
				t.Fatalf("troubles before: %v, %v", all, err)
			}
			if err := tt.do(testContext(t), s); err != nil {
				t.Fatal(err)
			}
			found := s.troubles(t, tt.reason)
			if len(found) != 1 || found[0].Blocks != tt.stops || !strings.Contains(found[0].Cure, tt.cure) {
				t.Errorf("troubles: %+v", found)
			}
			if err := s.conn.Ready(testContext(t)); (err != nil) != tt.stops {
				t.Errorf("ready: %v", err)
			}
		})
	}
}

// Whatever is removed while the service runs is made again within seconds, with nobody in need of it.
func TestWatchMakesAgain(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	s.watch(t)
	for _, stream := range []string{events.EventsStream, events.DeadlettersStream, events.RequestsStream("lab")} {
		if err := s.js.DeleteStream(testContext(t), stream); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "all is there again", func() bool { return s.conn.Ready(testContext(t)) == nil })
	until(t, "and known to be", func() bool { return len(s.conn.LastTroubles()) == 0 })
}

// A store without room: what cannot be stored is told after a while, by everybody who waits for it, and is over by
// itself.
func TestTroublesOfAFullStore(t *testing.T) {
	t.Parallel()
	s := smallStation(t, "max_file_store: 8KB", "", nil)
	s.conn.SetPatience(time.Minute, time.Minute, time.Second)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	for i := 0; ; i++ { // until it is full
		if _, err := s.js.Publish(ctx, fmt.Sprintf("guestflow.deadletters.lab.vm-%d", i),
			make([]byte, 1000)); err != nil {
			break
		}
	}
	journal := stream.NewJournal(s.conn, events.Structured)
	stored := make(chan error, 1)
	go func() {
		_, err := journal.Append(ctx, 0, "id-1", events.RunAccepted, testAttrs, run("vm-1", 1))
		stored <- err
	}()
	var found []stream.Trouble
	until(t, "it is told", func() bool { found = s.troubles(t, stream.NoStorage); return len(found) > 0 })
	if !found[0].Blocks || found[0].VCenter != "lab" || !strings.Contains(found[0].What, "append run.accepted") ||
		!strings.Contains(found[0].What, "10023") {
		t.Errorf("trouble: %+v", found[0])
	}
	dead, err := s.js.Stream(ctx, events.DeadlettersStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Purge(ctx); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, stored); err != nil {
		t.Fatal(err)
	}
	if found := s.troubles(t, stream.NoStorage); len(found) > 0 {
		t.Errorf("still told: %v", found)
	}
}

// The server's max_payload is below what events may have: told, and nothing stands still.
func TestTroublesOfSmallMessages(t *testing.T) {
	t.Parallel()
	s := smallStation(t, "", "max_payload: 16384", nil)
	if found := s.troubles(t, stream.SmallPayload); len(found) != 1 || found[0].Blocks ||
		!strings.Contains(found[0].What, "16384") {
		t.Errorf("troubles: %+v", found)
	}
	if err := s.conn.Ready(testContext(t)); err != nil {
		t.Errorf("ready: %v", err)
	}
}

// The dead letters follow their setting, up and down; where the store has less to give they have a quarter of it, which
// is told.
func TestDeadlettersMaxBytes(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	with := func(n int64) func(*stream.Settings) { return func(s *stream.Settings) { s.DeadlettersMaxBytes = n } }
	maxBytes := func(s *station) int64 {
		st, err := s.js.Stream(testContext(t), events.DeadlettersStream)
		if err != nil {
			t.Fatal(err)
		}
		return st.CachedInfo().Config.MaxBytes
	}
	again := func(s *station, n int64) {
		t.Helper()
		set := settings(1)
		set.DeadlettersMaxBytes = n
		if err := s.conn.Provision(testContext(t), set); err != nil {
			t.Fatal(err)
		}
	}
	s := smallStation(t, "max_file_store: 100MB", "", nil) // as an older version made it: without a limit
	for _, step := range []struct{ set, min, max int64 }{
		{4 * mb, 4 * mb, 4 * mb}, {8 * mb, 8 * mb, 8 * mb}, {2 * mb, 2 * mb, 2 * mb}, {256 * mb, 20 * mb, 27 * mb},
		{256 * mb, 20 * mb, 27 * mb}, {0, 20 * mb, 27 * mb},
	} {
		again(s, step.set)
		if n := maxBytes(s); n < step.min || n > step.max {
			t.Errorf("with %d they may have %d", step.set, n)
		}
	}
	for name, s := range map[string]*station{
		"made":    smallStation(t, "max_file_store: 100MB", "", with(256*mb)),
		"changed": smallStation(t, "max_file_store: 100MB", "", nil),
	} {
		again(s, 256*mb)
		if n := maxBytes(s); n < 20*mb || n > 27*mb {
			t.Errorf("%s: of a store of 100 MB they may have %d", name, n)
		}
		if found := s.troubles(t, stream.SmallStore); len(found) != 1 || found[0].Blocks {
			t.Errorf("%s: %+v", name, found)
		}
	}
	// The oldest go first.
	s = smallStation(t, "", "", with(1*mb))
	for i := range 40 {
		if _, err := s.js.Publish(testContext(t), fmt.Sprintf("guestflow.deadletters.lab.vm-%d", i),
			make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := s.js.Stream(testContext(t), events.DeadlettersStream); err != nil || st.CachedInfo().
		State.Bytes > mb || st.CachedInfo().State.LastSeq != 40 {
		t.Errorf("dead letters: %v", err)
	}
}

// A server without a file store: nothing can be made, and it is said what to do.
func TestProvisionWithoutAFileStore(t *testing.T) {
	t.Parallel()
	s := settings(1)
	s.DeadlettersMaxBytes = 1 << 20
	conn := connect(t, configured(t, "max_file_store: 0", "").URL())
	conn.SetPatience(time.Minute, time.Minute, time.Second)
	ctx, stop := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	go func() { ended <- conn.Provision(ctx, s) }()
	until(t, "what is waited for is told, with its cure", func() bool {
		return slices.ContainsFunc(conn.LongWaits(), func(w stream.Trouble) bool {
			return w.Reason == stream.NoStorage && w.Cure != ""
		})
	})
	if err := conn.Ready(ctx); err == nil || !strings.Contains(err.Error(), "10047") {
		t.Errorf("ready: %v", err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// What is wrong is in the log once, with its cure, and once more when it is over.
func TestWatchTellsOnce(t *testing.T) {
	t.Parallel()
	server := natstest.StartServer(t)
	var mu sync.Mutex
	var lines []string
	log := zerolog.New(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, string(b))
		return len(b), nil
	}))
	conn := connectAs(t, stream.Config{URL: server.URL()}, log)
	s := stationOn(t, server, conn, nil)
	s.watch(t)
	said := func(level string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, line := range lines {
			if strings.Contains(line, "is paused") && strings.Contains(line, level) &&
				strings.Contains(line, "nats consumer resume") == (level == `"warn"`) {
				n++
			}
		}
		return n
	}
	ctx, stream, durable := testContext(t), events.RequestsStream("lab"), events.RequestsConsumer("lab")
	if _, err := s.js.PauseConsumer(ctx, stream, durable, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	until(t, "it is seen", func() bool { return len(conn.LastTroubles()) == 1 })
	// what follows tells that it was looked again
	if err := s.js.DeleteConsumer(ctx, stream, events.CancelsConsumer("lab")); err != nil {
		t.Fatal(err)
	}
	until(t, "it is made again",
		func() bool { _, err := s.js.Consumer(ctx, stream, events.CancelsConsumer("lab")); return err == nil })
	if _, err := s.js.ResumeConsumer(ctx, stream, durable); err != nil {
		t.Fatal(err)
	}
	until(t, "it is over", func() bool { return len(conn.LastTroubles()) == 0 })
	until(t, "that is said", func() bool { return said(`"info"`) == 1 })
	if n := said(`"warn"`); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// Pull requests that are not permitted are answered by nobody: that requests are not taken is told.
func TestTroublesOfSilentPulls(t *testing.T) {
	t.Parallel()
	s := smallStation(t, "", `no_auth_user: a
authorization {
  users: [ { user: a, password: a, permissions: { publish: { deny: "$JS.API.CONSUMER.MSG.NEXT.>" } } } ]
}`, nil)
	s.conn.SetPatience(time.Minute, time.Minute, time.Second)
	s.consume(t, func(context.Context, *events.Request) error { return nil })
	var told []stream.Trouble
	until(t, "it is told", func() bool { told = s.troubles(t, stream.NoAnswer); return len(told) > 0 })
	if !told[0].Blocks || told[0].VCenter != "lab" || !strings.Contains(told[0].What, "CONSUMER.MSG.NEXT") {
		t.Errorf("told: %+v", told)
	}
}
