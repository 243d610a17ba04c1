package stream_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// station is a server with streams, a publisher, and a guestflow that consumes.
type station struct {
	client
	server *natstest.Server
	conn   *stream.Conn
}

// newStation is a station on a server of its own, with settings that change has changed; change may be nil.
func newStation(t *testing.T, change func(*stream.Settings)) *station {
	t.Helper()
	server := natstest.StartServer(t)
	return stationOn(t, server, connect(t, server.URL()), change)
}

// smallStation is a station on a server with a configuration of its own.
func smallStation(t *testing.T, jetStream, more string, change func(*stream.Settings)) *station {
	t.Helper()
	server := configured(t, jetStream, more)
	return stationOn(t, server, connect(t, server.URL()), change)
}

// stationOn is a station on this server, whose guestflow has this connection.
func stationOn(t *testing.T, server *natstest.Server, conn *stream.Conn, change func(*stream.Settings)) *station {
	t.Helper()
	s := settings(1)
	if change != nil {
		change(&s)
	}
	provision(t, conn, server.URL(), s)
	return &station{client: dial(t, server.URL()), server: server, conn: conn}
}

// configured is a server with this in the section jetstream of its configuration, and more behind it.
func configured(t *testing.T, jetStream, more string) *natstest.Server {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "nats.conf")
	conf := fmt.Sprintf("jetstream { store_dir: %q\n%s }\nport: -1\n%s\n", dir+"/js", jetStream, more)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return natstest.StartConfig(t, file, nil)
}

// during runs f until the end of the test, which ends its context and waits for it.
func during(t *testing.T, f func(ctx context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

// consume hands requests to handle until the end of the test.
func (s *station) consume(t *testing.T, handle func(ctx context.Context, r *events.Request) error) {
	t.Helper()
	consumeOn(t, s.conn, handle)
}

func consumeOn(t *testing.T, c *stream.Conn, handle func(ctx context.Context, r *events.Request) error) {
	t.Helper()
	during(t, func(ctx context.Context) {
		if err := c.Consume(ctx, "lab", handle); err != nil {
			t.Errorf("consume: %v", err)
		}
	})
}

// consumeCancels hands cancels to handle until the end of the test.
func (s *station) consumeCancels(t *testing.T, handle func(ctx context.Context, c *events.Cancel) error) {
	t.Helper()
	during(t, func(ctx context.Context) { _ = s.conn.ConsumeCancels(ctx, "lab", handle) })
}

// left is how many requests and cancels are in the stream.
func (s *station) left(t *testing.T) uint64 {
	t.Helper()
	st, err := s.js.Stream(testContext(t), events.RequestsStream("lab"))
	if err != nil {
		t.Fatal(err)
	}
	return st.CachedInfo().State.Msgs
}

// gone waits until the stream holds n messages: right after a confirmed acknowledgement it may still show one that is
// gone.
func (s *station) gone(t *testing.T, n uint64) {
	t.Helper()
	until(t, fmt.Sprintf("%d messages are left in the stream", n), func() bool { return s.left(t) == n })
}

func (s *station) consumer(t *testing.T) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := s.js.Consumer(testContext(t), events.RequestsStream("lab"), events.RequestsConsumer("lab"))
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo()
}

// removeRequests deletes the requests' stream and waits until it and its consumer are there again.
func (s *station) removeRequests(t *testing.T) {
	t.Helper()
	if err := s.js.DeleteStream(testContext(t), events.RequestsStream("lab")); err != nil {
		t.Fatal(err)
	}
	until(t, "stream and consumer are there again", func() bool {
		_, err := s.js.Consumer(testContext(t), events.RequestsStream("lab"), events.RequestsConsumer("lab"))
		return err == nil
	})
}

// stored are the messages of a stream, oldest first.
func (s *station) stored(t *testing.T, stream string) []*jetstream.RawStreamMsg {
	t.Helper()
	return all(testContext(t), t, s.js, stream)
}

// wantRefused fails the test unless n dead letters are stored and n rejections, and no other event.
func (s *station) wantRefused(t *testing.T, n int) {
	t.Helper()
	for _, stream := range []string{events.DeadlettersStream, events.EventsStream} {
		if got := len(s.stored(t, stream)); got != n {
			t.Errorf("stream %s holds %d, want %d", stream, got, n)
		}
	}
}

// answers are what the consumers answer to the server from now on.
func (s *station) answers(t *testing.T) <-chan *nats.Msg {
	t.Helper()
	return s.heard(t, "$JS.ACK.>")
}

// heard is what is published on a subject from now on.
func (s *station) heard(t *testing.T, subject string) <-chan *nats.Msg {
	t.Helper()
	heard := make(chan *nats.Msg, 100)
	sub, err := s.ChanSubscribe(subject, heard)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return heard
}
