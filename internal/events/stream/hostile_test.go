package stream_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// Messages that look like the server's own words to a client (no body, a header Status) are refused as any other,
// requests and cancels, and hold no place.
func TestConsumeMessagesThatLookLikeTheServers(t *testing.T) {
	t.Parallel()
	const places = 2
	s := newStation(t, func(st *stream.Settings) { st.MaxInFlight["lab"] = places })
	canceled, began := make(chan string, 1), make(chan string, 1)
	s.consumeCancels(t, func(_ context.Context, c *events.Cancel) error { canceled <- c.VM; return nil })
	s.consume(t, func(_ context.Context, r *events.Request) error { began <- r.VM; return nil })

	statuses := []string{"100", "404", "408", "409", "423", "503", "400", "9"}
	for i, status := range statuses {
		for _, subject := range []string{"guestflow.requests.lab.vm-", "guestflow.cancels.lab.vm-"} {
			// 409 of a consumer that is deleted would end a consumer; pending counts would be believed.
			s.send(t, &nats.Msg{Subject: subject + strconv.Itoa(i), Header: header("Status", status, "Description",
				"Consumer Deleted", "Nats-Pending-Messages", "9", "Nats-Pin-Id", "x")})
		}
	}
	s.request(t, "vm-good", "r1")
	s.cancel(t, "vm-good", "c1", "r1")
	if vm := receive(t, began); vm != "vm-good" {
		t.Errorf("began %s", vm)
	}
	if vm := receive(t, canceled); vm != "vm-good" {
		t.Errorf("canceled %s", vm)
	}
	s.gone(t, 0)
	var rejected int
	for _, m := range s.stored(t, events.EventsStream) {
		if strings.HasPrefix(m.Subject, "guestflow.rejections.lab.") {
			rejected++
		}
	}
	if want := 2 * len(statuses); rejected != want {
		t.Errorf("%d rejections, want %d", rejected, want)
	}
	// Whoever reads the dead letters with a consumer of the usual kind gets each of them.
	cons, err := s.js.CreateConsumer(testContext(t), events.DeadlettersStream,
		jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	letters, err := cons.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer letters.Stop()
	var seen []string
	for range 2 * len(statuses) {
		m, err := letters.Next(jetstream.NextContext(testContext(t)))
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, m.Headers().Get("Guestflow-Original-Status"))
	}
	slices.Sort(seen)
	if seen = slices.Compact(seen); len(seen) != len(statuses) {
		t.Errorf("dead letters of the statuses %v", seen)
	}
}

// The stream is removed while requests are in hand and made anew: its sequences begin again. What was in hand is let
// go, silently; what comes under a sequence that was in hand is started, and no answer for the old one takes it away.
func TestConsumeStreamMadeAnew(t *testing.T) {
	t.Parallel()
	const requests = 3
	s := newStation(t, func(st *stream.Settings) { st.AckWait = 2 * time.Second })
	started, finish, ended := make(chan *events.Request, 16), make(chan struct{}), make(chan error, 16)
	s.consume(t, func(_ context.Context, r *events.Request) (err error) {
		started <- r
		if strings.HasPrefix(r.Ref.ID, "old") {
			<-finish
			err = map[string]error{"old-0": nil, "old-1": events.ErrReleased,
				"old-2": &events.RetryError{After: time.Hour}}[r.Ref.ID]
			ended <- err
			return err
		}
		ended <- nil
		return nil
	})
	publish := func(kind string) (first *events.Request) {
		for i := range requests {
			vm := fmt.Sprintf("vm-%s-%d", kind, i)
			s.request(t, vm, fmt.Sprintf("%s-%d", kind, i))
			first = receive(t, started)
			if !strings.HasPrefix(first.Ref.ID, kind) {
				t.Fatalf("started %s", first.Ref.ID)
			}
		}
		return first
	}
	before := publish("old")
	s.removeRequests(t)
	after := publish("new")
	if !after.Stream.After(before.Stream) || before.Stream.IsZero() {
		t.Errorf("the stream was made at %s, then at %s", before.Stream, after.Stream)
	}
	for range requests { // the new ones, which need none of the old ones' answers
		_ = receive(t, ended)
	}
	s.gone(t, 0)
	// in hand beyond the old ones' end
	block := s.request(t, "vm-9", "old-0")
	receive(t, started)
	close(finish)
	for range requests + 1 {
		_ = receive(t, ended)
	}
	s.gone(t, 0)
	if block != requests+1 {
		t.Errorf("sequence %d", block)
	}
}

// A request of the new stream lies under a sequence whose old message is still in hand and is answered afterwards: the
// answer does not reach it.
func TestConsumeAnswersNoStranger(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	started, finish := make(chan string, 16), make(chan struct{})
	hold := make(chan struct{})
	s.consume(t, func(_ context.Context, r *events.Request) error {
		started <- r.Ref.ID
		if r.Ref.ID == "old" {
			<-finish
			return nil // acknowledged, if it still were its message
		}
		<-hold
		return nil
	})
	s.request(t, "vm-1", "old")
	receive(t, started)
	s.removeRequests(t)
	if seq := s.request(t, "vm-2", "new"); seq != 1 {
		t.Fatalf("sequence %d", seq)
	}
	if id := receive(t, started); id != "new" {
		t.Fatalf("started %s", id)
	}
	answers := s.answers(t)
	close(finish)
	close(hold)
	s.gone(t, 0)
	acks := 0
	for len(answers) > 0 {
		if m := <-answers; string(m.Data) == "+ACK" {
			acks++
		}
	}
	if acks != 1 {
		t.Errorf("%d acknowledgements, want the new request's only", acks)
	}
}

// A dead letter and a rejection of a message whose sequence an older stream had used are no repeats of that one's.
func TestRejectAfterStreamMadeAnew(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	s.consume(t, func(context.Context, *events.Request) error { return nil })
	for range 2 {
		s.send(t, &nats.Msg{Subject: "guestflow.requests.lab.vm-1", Data: []byte("junk")})
		s.gone(t, 0)
		s.removeRequests(t)
	}
	s.wantRefused(t, 2)
}

// The ack wait is made shorter, by another replica that starts with a new setting or by hand, while a request is in
// hand: its owner keeps it.
func TestConsumeAckWaitChanges(t *testing.T) {
	t.Parallel()
	s := newStation(t, func(st *stream.Settings) { st.AckWait = 6 * time.Second })
	var deliveries atomic.Int64
	begun, release := make(chan struct{}, 16), make(chan struct{})
	handle := func(context.Context, *events.Request) error {
		deliveries.Add(1)
		begun <- struct{}{}
		<-release
		return nil
	}
	s.consume(t, handle)
	s.request(t, "vm-1", "r")
	receive(t, begun)
	other := connect(t, s.server.URL())
	st := settings(1)
	st.AckWait = 1500 * time.Millisecond
	if err := other.Provision(testContext(t), st); err != nil {
		t.Fatal(err)
	}
	if wait := s.consumer(t).Config.AckWait; wait != st.AckWait {
		t.Errorf("the ack wait is %s", wait)
	}
	consumeOn(t, other, handle)
	answers := s.answers(t)
	for range 10 { // heartbeats, by the new ack wait
		receive(t, answers)
	}
	if info := s.consumer(t); info.NumRedelivered != 0 || deliveries.Load() != 1 {
		t.Errorf("delivered %d times, %d again: a healthy owner lost its request", deliveries.Load(),
			info.NumRedelivered)
	}
	close(release)
	s.gone(t, 0)
}

// A request that nobody can go on with is refused, and told, instead of coming round for ever.
func TestConsumeRefusesWhatNobodyCanHandle(t *testing.T) {
	t.Parallel()
	spec := map[string]any{"_typeName": "CustomizationSpec", "identity": map[string]any{"_typeName": "New"},
		"pad": strings.Repeat("x", 15800)}
	for name, row := range map[string]struct {
		consume func(ctx context.Context, c *stream.Conn, calls *atomic.Int64) error
		calls   int64
		text    string
	}{
		"its handler panics": {func(ctx context.Context, c *stream.Conn, calls *atomic.Int64) error {
			return c.Consume(ctx, "lab", func(context.Context, *events.Request) error {
				calls.Add(1)
				panic("broken")
			})
		}, 3, "panicked"},
		"guestflow panics as it reads it": {func(ctx context.Context, c *stream.Conn, _ *atomic.Int64) error {
			return c.ConsumeUnreadable(ctx)
		}, 0, "panicked"},
		"the server can never store its event": {func(ctx context.Context, c *stream.Conn, calls *atomic.Int64) error {
			journal := stream.NewJournal(c, events.Structured)
			return c.Consume(ctx, "lab", func(ctx context.Context, r *events.Request) error {
				calls.Add(1)
				accepted := run("vm-1", 1)
				accepted.Requested = r.Data
				_, err := journal.Append(ctx, 0, "id", events.RunAccepted, testAttrs, accepted)
				return err
			})
		}, 1, "max_payload"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := smallStation(t, "", "max_payload: 16384",
				func(st *stream.Settings) { st.AckWait = 200 * time.Millisecond })
			var calls atomic.Int64
			during(t, func(ctx context.Context) { _ = row.consume(ctx, s.conn, &calls) })
			s.publish(t, events.KindRequested, "vm-1", "r1", map[string]any{"vm": "vm-1",
				"guest":     map[string]any{"credentials": map[string]any{"secretRef": "x"}},
				"customize": map[string]any{"spec": spec}})
			s.gone(t, 0)
			if s.wantRefused(t, 1); t.Failed() {
				return
			}
			told := s.stored(t, events.EventsStream)[0]
			if _, run := checkEvent(t, told.Header, told.Data); run.Error.Code != events.Internal ||
				!strings.Contains(run.Error.Message, row.text) || strings.Contains(run.Error.Message, "broken") {
				t.Errorf("rejection: %+v", run.Error)
			}
			if n := calls.Load(); n != row.calls {
				t.Errorf("handled %d times, want %d", n, row.calls)
			}
		})
	}
}

// raw publishes as a client of its own making does: header is what it sends as the block of headers, whatever that is.
func raw(t *testing.T, url, subject, header, data string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	said := bufio.NewReader(conn)
	if _, err := said.ReadString('\n'); err != nil { // INFO
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"headers\":true}\r\nHPUB %s %d %d\r\n%s%s\r\nPING\r\n", subject,
		len(header), len(header)+len(data), header, data)
	if line, err := said.ReadString('\n'); err != nil || !strings.HasPrefix(line, "PONG") {
		t.Fatalf("%s: %q, %v", header, line, err)
	}
}

// Headers that no client library would write are refused as any other message, also while a good request of the same VM
// waits behind them.
func TestConsumeBrokenHeaders(t *testing.T) {
	t.Parallel()
	s := newStation(t, func(st *stream.Settings) { st.QueuePerVM = 10 })
	headers := []string{"NATS/1.0 100 Idle Heartbeat\r\n\r\n", "NATS/1.0 409 Consumer Deleted\r\n\r\n",
		"NATS/1.0\r\nno colon\r\n\r\n", "not a header at all", "NATS/1.0\r\n: no name\r\n\r\n", "\r\n\r\n"}
	for _, h := range headers {
		raw(t, s.server.URL(), "guestflow.requests.lab.vm-1", h, "")
	}
	until(t, "all are stored", func() bool { return s.left(t) == uint64(len(headers)) })
	line, err := s.conn.RequestQueue().Unfinished(testContext(t), "lab", "vm-1")
	if err != nil || len(line.Requests) != len(headers) {
		t.Errorf("the line: %v, %v", line, err)
	}
	began := make(chan string, 1)
	s.consume(t, func(_ context.Context, r *events.Request) error { began <- r.Ref.ID; return nil })
	s.request(t, "vm-1", "good")
	receive(t, began)
	s.gone(t, 0)
	if n := len(s.stored(t, events.DeadlettersStream)); n != len(headers) {
		t.Errorf("%d dead letters", n)
	}
}

// Dead letters cannot be stored, and events can: junk is refused without, says so, and holds no place for good.
func TestJunkWithoutDeadLetters(t *testing.T) {
	t.Parallel()
	const junk, places = 10, 3
	server := natstest.StartServer(t)
	var lost atomic.Int64
	conn := connectAs(t, stream.Config{URL: server.URL(),
		Hooks: stream.Hooks{NotKept: func(string) { lost.Add(1) }}}, testLog(t))
	s := stationOn(t, server, conn, func(st *stream.Settings) { st.MaxInFlight["lab"] = places })
	conn.SetPatience(100*time.Millisecond, time.Minute, time.Minute)
	if err := s.js.DeleteStream(testContext(t), events.DeadlettersStream); err != nil {
		t.Fatal(err)
	}
	for i := range junk {
		s.send(t, &nats.Msg{Subject: "guestflow.requests.lab.vm-" + strconv.Itoa(i), Data: []byte("junk")})
	}
	began := make(chan string, 1)
	s.consume(t, func(_ context.Context, r *events.Request) error { began <- r.Ref.ID; return nil })
	s.request(t, "vm-good", "good")
	receive(t, began)
	s.gone(t, 0)
	told := s.stored(t, events.EventsStream)
	if len(told) != junk || lost.Load() != junk {
		t.Fatalf("%d rejections, %d counted", len(told), lost.Load())
	}
	if _, run := checkEvent(t, told[0].Header, told[0].Data); !strings.Contains(run.Error.Message,
		"could not be kept as a dead letter") {
		t.Errorf("rejection: %s", run.Error.Message)
	}
}

// Nothing can be stored: junk waits, and is kept and told once there is room.
func TestJunkOfAFullStore(t *testing.T) {
	t.Parallel()
	s := smallStation(t, "max_file_store: 40KB", "", nil)
	s.conn.SetPatience(10*time.Millisecond, time.Minute, time.Second)
	const junk = 5
	for i := range junk {
		s.send(t, &nats.Msg{Subject: "guestflow.requests.lab.vm-" + strconv.Itoa(i), Data: []byte("junk")})
	}
	filler, err := s.js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other"}})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.js.Publish(testContext(t), "other", make([]byte, 1000))
	}
	s.consume(t, func(context.Context, *events.Request) error { return nil })
	until(t, "all are in hand", func() bool { return s.consumer(t).NumAckPending == junk })
	var told []stream.Trouble
	until(t, "it is told", func() bool { told = s.troubles(t, stream.NoStorage); return len(told) > 0 })
	if !strings.Contains(told[0].What, "keep a dead letter") || !told[0].Blocks || s.left(t) != junk {
		t.Errorf("%d are left, told: %+v", s.left(t), told)
	}
	if err := filler.Purge(testContext(t)); err != nil {
		t.Fatal(err)
	}
	s.gone(t, 0)
	s.wantRefused(t, junk)
}

// Many cancels that wait for the ends of their runs keep no other from being taken.
func TestCancelsThatWaitLeaveOthersTheirPlaces(t *testing.T) {
	t.Parallel()
	s := newStation(t, func(st *stream.Settings) { st.MaxInFlight["lab"] = 2 })
	held, other, hold := make(chan struct{}, 64), make(chan struct{}, 1), make(chan struct{})
	s.consumeCancels(t, func(_ context.Context, c *events.Cancel) error {
		if c.VM == "vm-other" {
			other <- struct{}{}
			return nil
		}
		held <- struct{}{}
		<-hold
		return nil
	})
	t.Cleanup(func() { close(hold) })
	const waiting = 40
	cancelRun := func(vm string) {
		s.cancel(t, vm, "c1", "r1")
	}
	for i := range waiting {
		cancelRun("vm-" + strconv.Itoa(i))
	}
	for range waiting {
		receive(t, held)
	}
	cancelRun("vm-other")
	receive(t, other)
}
