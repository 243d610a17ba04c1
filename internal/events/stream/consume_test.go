package stream_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// A deep backlog, slow handlers and a short ack wait: heartbeats keep every request in hand, none is handed over before
// there is a place for it.
func TestConsumeSlowHandlers(t *testing.T) {
	t.Parallel()
	const places, requests = 4, 12
	ackWait := 1200 * time.Millisecond // its third is what a machine under load may stand still
	s := newStation(t, func(st *stream.Settings) { st.AckWait, st.MaxInFlight["lab"] = ackWait, places })
	for i := range requests {
		vm := "vm-" + strconv.Itoa(i)
		s.request(t, vm, "r")
	}
	var inHand, most, again atomic.Int64
	done := make(chan struct{}, requests)
	s.consume(t, func(_ context.Context, r *events.Request) error {
		n := inHand.Add(1)
		defer inHand.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if r.Delivered != 1 {
			again.Add(1)
		}
		<-time.After(2 * ackWait) // the work
		done <- struct{}{}
		return nil
	})
	for range requests {
		receive(t, done)
		if n := s.consumer(t).NumRedelivered; n != 0 {
			t.Errorf("%d requests were delivered again", n)
		}
	}
	s.gone(t, 0)
	if most.Load() != places || again.Load() != 0 {
		t.Errorf("%d at once, want %d; %d second deliveries", most.Load(), places, again.Load())
	}
}

// What a handler returns, or that it panics, decides when its request comes again; the next time it is acknowledged.
func TestConsumeVerdicts(t *testing.T) {
	t.Parallel()
	returns := func(err error) func() error { return func() error { return err } }
	tests := []struct {
		name    string
		verdict func() error
	}{
		{"released", returns(events.ErrReleased)},
		{"later", returns(&events.RetryError{After: 10 * time.Millisecond, Err: errors.New("busy")})},
		{"fenced: the ack wait passes", returns(events.ErrFenced)},
		{"any error: the ack wait passes", returns(errors.New("any"))},
		{"a panic, which costs its own request only: the ack wait passes", func() error { panic("broken") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStation(t, func(st *stream.Settings) { st.AckWait = 500 * time.Millisecond })
			got := make(chan *events.Request, 16)
			s.consume(t, func(_ context.Context, r *events.Request) error {
				got <- r
				if r.Delivered == 1 {
					return tt.verdict()
				}
				return nil
			})
			seq := s.request(t, "vm-1", "r1")
			for n := uint64(1); n <= 2; n++ {
				if r := receive(t, got); r.Delivered != n || r.Seq != seq || r.VM != "vm-1" || r.Ref.ID != "r1" ||
					r.RunID != events.RunID("lab", "vm-1", r.Ref) {
					t.Errorf("delivery %d: %+v", n, r)
				}
			}
			s.gone(t, 0)
			s.wantRefused(t, 0)
			if err := s.conn.Ready(testContext(t)); err != nil {
				t.Errorf("ready: %v", err)
			}
		})
	}
}

// The request in hand is delivered again (here: by a stray nak): nothing is started twice, and its end acknowledges the
// latest delivery.
func TestConsumeRedeliveryOfWhatIsInHand(t *testing.T) {
	t.Parallel()
	s := newStation(t, func(st *stream.Settings) { st.AckWait = 600 * time.Millisecond })
	var calls atomic.Int64
	release := make(chan struct{})
	end := sync.OnceFunc(func() { close(release) })
	begun := make(chan struct{}, 16)
	s.consume(t, func(context.Context, *events.Request) error {
		calls.Add(1)
		begun <- struct{}{}
		<-release
		return nil
	})
	t.Cleanup(end)
	answers := s.answers(t)
	s.request(t, "vm-1", "r1")
	receive(t, begun)
	first := receive(t, answers) // the first heartbeat
	if string(first.Data) != "+WPI" {
		t.Fatalf("first answer: %q", first.Data)
	}
	if err := s.Publish(first.Subject, []byte("-NAK")); err != nil {
		t.Fatal(err)
	}
	// The heartbeats go on, on the subject of the second delivery.
	for m := receive(t, answers); ; m = receive(t, answers) {
		if m.Subject != first.Subject && string(m.Data) == "+WPI" {
			break
		}
	}
	end()
	s.gone(t, 0)
	if n := calls.Load(); n != 1 {
		t.Errorf("handled %d times", n)
	}
}

func TestConsumeRefuses(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	withPassword := map[string]any{"vm": "vm-1",
		"guest": map[string]any{"credentials": map[string]any{"secretRef": "root"}}, "customize": map[string]any{
			"spec": map[string]any{"identity": map[string]any{"password": map[string]any{
				"_typeName": "CustomizationPassword", "value": secret, "plainText": true}}},
		}}
	tests := []struct {
		name     string
		publish  func(s *station, t *testing.T) uint64
		vm       string
		code     events.Code
		field    string
		request  bool
		withheld bool
		header   map[string]string // of the dead letter
	}{
		{name: "no event", vm: "vm-1", code: events.InvalidRequest, header: map[string]string{
			"Guestflow-Original-Nats-Msg-Id": "mine", "X-Own": "kept",
			"Guestflow-Subject": "guestflow.requests.lab.vm-1"},
			publish: func(s *station, t *testing.T) uint64 {
				return s.send(t, &nats.Msg{Subject: "guestflow.requests.lab.vm-1", Data: []byte("hello"),
					Header: header("Nats-Msg-Id", "mine", "X-Own", "kept")})
			}},
		{name: "an unknown field", vm: "vm-1", code: events.InvalidRequest, field: "verfy", request: true,
			header: map[string]string{"Guestflow-Reason": "verfy: is not a known field: is it verify?"},
			publish: func(s *station, t *testing.T) uint64 {
				return s.publish(t, events.KindRequested, "vm-1", "r1", map[string]any{"vm": "vm-1", "verfy": 1})
			}},
		{name: "a subject that names no VM", vm: "", code: events.InvalidRequest, request: true,
			publish: func(s *station, t *testing.T) uint64 {
				return s.publish(t, events.KindRequested, "_x", "r1", map[string]any{"vm": "vm-1"})
			}},
		{name: "a literal password", vm: "vm-1", code: events.InvalidRequest,
			field: "customize.spec.identity.password.value", request: true, withheld: true,
			publish: func(s *station, t *testing.T) uint64 {
				return s.publish(t, events.KindRequested, "vm-1", "r1", withPassword)
			}},
		{name: "longer than events are kept", vm: "vm-1", code: events.InvalidRequest, field: "timeout", request: true,
			publish: func(s *station, t *testing.T) uint64 {
				return s.publish(t, events.KindRequested, "vm-1", "r1", map[string]any{"vm": "vm-1", "timeout": "720h"})
			}},
		{name: "by the handler", vm: "vm-1", code: events.Expired, request: true,
			publish: func(s *station, t *testing.T) uint64 {
				return s.request(t, "vm-1", "expired")
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStation(t, nil)
			s.consume(t, func(_ context.Context, r *events.Request) error {
				if r.Ref.ID != "expired" {
					t.Errorf("handled: %+v", r)
				}
				return &events.RejectError{Code: events.Expired, Message: "its time is over"}
			})
			told := s.heard(t, "guestflow.rejections.>")
			seq := tt.publish(s, t)
			m := receive(t, told)
			attrs, run := checkEvent(t, m.Header, m.Data)
			token := tt.vm
			if token == "" {
				token = "_"
			}
			if m.Subject != "guestflow.rejections.lab."+token || attrs["id"] != "rejected."+
				strconv.FormatUint(seq, 10) || attrs["source"] != "/guestflow/lab" {
				t.Errorf("rejection on %s: %v", m.Subject, attrs)
			}
			if run.Status != events.StatusRejected || run.VM != tt.vm || run.Error.Code != tt.code ||
				run.Error.Field != tt.field || (run.Request != nil) != tt.request {
				t.Errorf("rejection: %s", m.Data)
			}
			s.gone(t, 0)
			letters := s.stored(t, events.DeadlettersStream)
			if len(letters) != 1 {
				t.Fatalf("%d dead letters", len(letters))
			}
			letter := letters[0]
			if letter.Subject != "guestflow.deadletters.lab."+token ||
				letter.Header.Get("Guestflow-Code") != string(tt.code) ||
				letter.Header.Get("Guestflow-Sequence") != strconv.FormatUint(seq, 10) {
				t.Errorf("dead letter on %s: %v", letter.Subject, letter.Header)
			}
			for name, want := range tt.header {
				if got := letter.Header.Get(name); got != want {
					t.Errorf("header %s is %q, want %q", name, got, want)
				}
			}
			if tt.withheld {
				if len(letter.Data) != 0 || letter.Header.Get("Guestflow-Path") != tt.field ||
					letter.Header.Get("Guestflow-Size") == "" ||
					len(letter.Header.Get("Guestflow-Sha256")) != hex.EncodedLen(sha256.Size) {
					t.Errorf("dead letter of a secret: %v %s", letter.Header, letter.Data)
				}
				for _, stream := range []string{events.DeadlettersStream, events.EventsStream} {
					for _, m := range s.stored(t, stream) {
						if strings.Contains(string(m.Data), secret) {
							t.Errorf("stream %s holds the secret", stream)
						}
					}
				}
			} else if len(letter.Data) == 0 {
				t.Error("the dead letter has no data")
			}
		})
	}
}

// A refusal that is delivered again, because its acknowledgement was lost, is told and kept once.
func TestRejectTwice(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	m := stream.RefusedMessage{VCenter: "lab", VM: "vm-1", Seq: 7, Subject: "guestflow.requests.lab.vm-1",
		Data: []byte("x")}
	for range 2 {
		if err := s.conn.Reject(testContext(t), m,
			&events.RejectError{Code: events.InvalidRequest, Message: "m"}); err != nil {
			t.Fatal(err)
		}
	}
	s.wantRefused(t, 1)
}

// At the end of its context Consume takes nothing more, tells its handlers to stop, waits for them, and gives what they
// give back to the next one.
func TestConsumeDrains(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	begun, release := make(chan context.Context, 1), make(chan struct{})
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() {
		done <- s.conn.Consume(ctx, "lab", func(ctx context.Context, _ *events.Request) error {
			begun <- ctx
			<-release
			return events.ErrReleased
		})
	}()
	s.request(t, "vm-1", "r1")
	handling := receive(t, begun)
	cancel()
	select {
	case err := <-done:
		t.Fatalf("consume ended (%v) before its handler", err)
	default:
	}
	if handling.Err() == nil {
		t.Error("the handler is not told to stop")
	}
	close(release)
	if err := receive(t, done); err != nil {
		t.Fatal(err)
	}
	got := make(chan uint64, 1)
	consumeOn(t, connect(t, s.server.URL()),
		func(_ context.Context, r *events.Request) error { got <- r.Delivered; return nil })
	if n := receive(t, got); n != 2 {
		t.Errorf("delivery %d after the drain, want 2", n)
	}
	s.gone(t, 0)
}

// The server goes away while requests are in hand and comes back: the handlers finish, nothing is lost, and what comes
// later is taken.
func TestConsumeThroughRestart(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	begun, release := make(chan string, 16), make(chan struct{})
	s.consume(t, func(_ context.Context, r *events.Request) error {
		begun <- r.Ref.ID
		<-release
		return nil
	})
	s.request(t, "vm-1", "before")
	receive(t, begun)
	s.server.Stop()
	until(t, "the connections are lost", func() bool { return !s.conn.Connected() && !s.IsConnected() })
	if err := s.conn.Ready(testContext(t)); err == nil {
		t.Error("ready without a server")
	}
	if err := s.server.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the publisher is connected again", s.IsConnected)
	close(release)
	s.request(t, "vm-2", "after")
	if id := receive(t, begun); id != "after" {
		t.Errorf("request %q", id)
	}
	s.gone(t, 0)
}

func TestLine(t *testing.T) {
	t.Parallel()
	s := newStation(t, func(st *stream.Settings) { st.QueuePerVM = 3 })
	ctx, line := testContext(t), s.conn.RequestQueue()
	if head, err := line.Oldest(ctx, "lab", "vm-1"); err != nil || head != nil {
		t.Errorf("head of nothing: %+v, %v", head, err)
	}
	first := s.request(t, "vm-1", "r1")
	s.request(t, "vm-11", "other")
	broken := s.publish(t, events.KindRequested, "vm-1", "r2", map[string]any{"vm": "vm-2"})
	third := s.request(t, "vm-1", "r3")
	cancel := s.publish(t, events.KindCancelRequested, "vm-1", "c1", map[string]any{"vm": "vm-1",
		"request": map[string]any{"source": "/test", "id": "r3"}, "reason": "why"})
	s.publish(t, events.KindCancelRequested, "vm-1", "c2", map[string]any{"vm": "vm-1"}) // cannot be read
	if head, err := line.Oldest(ctx, "lab", "vm-1"); err != nil || head == nil || head.Seq != first ||
		head.Ref.ID != "r1" {
		t.Errorf("head: %+v, %v; want %d", head, err, first)
	}
	in, err := line.Unfinished(ctx, "lab", "vm-1")
	if err != nil {
		t.Fatal(err)
	}
	ref := func(id string) events.RequestRef { return events.RequestRef{Source: "/test", ID: id} }
	want := []events.QueuedRequest{
		{Seq: first, Ref: ref("r1"), RunID: events.RunID("lab", "vm-1", ref("r1"))}, {Seq: broken}, {Seq: third,
			Ref: ref("r3"), RunID: events.RunID("lab", "vm-1", ref("r3"))},
	}
	if diff := cmp.Diff(want, in.Requests, cmpopts.IgnoreFields(events.QueuedRequest{}, "At")); diff != "" {
		t.Errorf("requests -want +got\n%s", diff)
	}
	if len(in.Cancels) != 2 || in.Cancels[0].Seq != cancel {
		t.Errorf("places of cancels: %+v", in.Cancels)
	}
	if !in.MayHold("anybody's, for one of them cannot be read") {
		t.Error("a message that cannot be read may be anybody's")
	}
	cancels, err := line.Cancels(ctx, "lab", "vm-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(cancels) != 1 || cancels[0].Seq != cancel || cancels[0].Request != ref("r3") ||
		cancels[0].Ref != ref("c1") || cancels[0].Reason != "why" ||
		cancels[0].RunID != events.RunID("lab", "vm-1", ref("r3")) {
		t.Errorf("cancels: %+v", cancels)
	}
}

func TestWake(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	line := s.conn.RequestQueue()
	ch, stop := line.Wake("lab", "vm-1")
	second, stopSecond := line.Wake("lab", "vm-1")
	other, stopOther := line.Wake("lab", "vm-2")
	defer stopOther()
	// A round trip, so that the server knows the subscriptions.
	if _, err := line.Oldest(testContext(t), "lab", "vm-1"); err != nil {
		t.Fatal(err)
	}
	j := stream.NewJournal(s.conn, events.Structured)
	seq, err := j.Append(testContext(t), 0, "id-1", events.RunAccepted, testAttrs, run("vm-1", 1))
	if err != nil {
		t.Fatal(err)
	}
	receive(t, ch)
	receive(t, second)
	stopSecond()
	s.cancel(t, "vm-1", "c1", "r3")
	receive(t, ch)
	stop()
	if _, err := j.Append(testContext(t), seq, "id-2", events.RunSucceeded, testAttrs, run("vm-1", 2)); err != nil {
		t.Fatal(err)
	}
	s.cancel(t, "vm-2", "c1", "r3")
	receive(t, other) // behind the event of vm-1, whose waiters have left
	select {
	case <-ch:
		t.Error("woken after stop")
	case <-second:
		t.Error("woken after stop")
	default:
	}
}
