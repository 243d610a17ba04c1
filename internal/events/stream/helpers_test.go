package stream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/schemas"
)

const (
	requestedType = "io.guestflow.customization.requested.v1"
	subject       = "guestflow.requests.lab.vm-42"
)

// header makes headers of names and values.
func header(pairs ...string) nats.Header {
	h := nats.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h[pairs[i]] = append(h[pairs[i]], pairs[i+1])
	}
	return h
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testTimeout = 2 * time.Minute // of a whole test: only a broken one reaches it

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// client is a publisher's own connection, which shares nothing with guestflow's.
type client struct {
	*nats.Conn
	js jetstream.JetStream
}

func dial(t *testing.T, url string) client {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return client{nc, js}
}

func connect(t *testing.T, url string) *stream.Conn {
	t.Helper()
	return connectAs(t, stream.Config{URL: url, Name: t.Name()}, testLog(t))
}

func connectAs(t *testing.T, cfg stream.Config, log zerolog.Logger) *stream.Conn {
	t.Helper()
	c, err := stream.Connect(testContext(t), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// testLog writes into the test's log for as long as the test runs; the connection's own goroutines may outlive it by a
// moment.
func testLog(t *testing.T) zerolog.Logger {
	var mu sync.Mutex
	over := false
	t.Cleanup(func() { mu.Lock(); over = true; mu.Unlock() })
	return zerolog.New(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			t.Log(string(bytes.TrimSpace(b)))
		}
		return len(b), nil
	}))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func settings(replicas int) stream.Settings {
	return stream.Settings{
		Replicas: replicas, EventsMaxAge: 720 * time.Hour, DeadlettersMaxAge: 168 * time.Hour, QueuePerVM: 2,
		AckWait:     30 * time.Second,
		MaxInFlight: map[string]int{"lab": 16}, Provision: true,
	}
}

// provision makes the streams; at the end of the test every event in them is checked.
func provision(t *testing.T, c *stream.Conn, url string, s stream.Settings) {
	t.Helper()
	if err := c.Provision(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkStored(t, url) })
}

// checkStored holds every event in the stream against its schema, without tolerance for unknown fields.
func checkStored(t *testing.T, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout) // the test's own is over
	defer cancel()
	for _, m := range all(ctx, t, dial(t, url).js, events.EventsStream) {
		checkEvent(t, m.Header, m.Data)
	}
}

// all are the messages of a stream, oldest first.
func all(ctx context.Context, t *testing.T, js jetstream.JetStream, stream string) []*jetstream.RawStreamMsg {
	t.Helper()
	st, err := js.Stream(ctx, stream)
	if err != nil {
		t.Error(err)
		return nil
	}
	state := st.CachedInfo().State
	var msgs []*jetstream.RawStreamMsg
	for seq := state.FirstSeq; state.Msgs > 0 && seq <= state.LastSeq; seq++ {
		m, err := st.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Error(err)
			return nil
		}
		msgs = append(msgs, m)
	}
	return msgs
}

// checkEvent checks an event in either form and returns its attributes and its data.
func checkEvent(t *testing.T, h nats.Header, data []byte) (attrs map[string]string, run events.Run) {
	t.Helper()
	attrs = map[string]string{}
	if h.Get("Content-Type") == "application/cloudevents+json" {
		var e map[string]json.RawMessage
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		data = e["data"]
		delete(e, "data")
		for name, v := range e {
			var s string
			if err := json.Unmarshal(v, &s); err != nil {
				t.Errorf("attribute %s: %v", name, err)
			}
			attrs[name] = s
		}
	} else {
		for name, v := range h {
			if attr, ok := strings.CutPrefix(name, "ce-"); ok {
				attrs[attr] = v[0]
			}
		}
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if problems := schemas.CheckStrict(schemas.Run, doc); problems != nil {
		t.Errorf("event %s does not fit its schema: %v\n%s", attrs["id"], problems, data)
	}
	if attrs["dataschema"] != schemas.URN(schemas.Run) {
		t.Errorf("event %s: dataschema %q", attrs["id"], attrs["dataschema"])
	}
	if err := json.Unmarshal(data, &run); err != nil {
		t.Fatal(err)
	}
	if run.N > 0 && attrs["id"] != fmt.Sprintf("%s.%d", run.ID, run.N) {
		t.Errorf("event %s is number %d of run %s", attrs["id"], run.N, run.ID)
	}
	return attrs, run
}

// run is a run of the VM as it stands after its event number n.
func run(vm string, n int) *events.Run {
	ref := events.RequestRef{Source: "/test", ID: vm}
	return &events.Run{ID: events.RunID("lab", vm, ref), N: n, VCenter: "lab", VM: vm, Request: &ref,
		Status: events.StatusRunning}
}

var testAttrs = events.Attributes{CorrelationID: "corr-1", CausationID: "req-1"}

// publish publishes a request or a cancel for the VM and returns its stream sequence.
func (c client) publish(t *testing.T, kind events.Kind, vm, id string, data any) uint64 {
	t.Helper()
	b, err := json.Marshal(map[string]any{"specversion": "1.0", "id": id, "source": "/test", "type": events.Type(kind),
		"data": data})
	if err != nil {
		t.Fatal(err)
	}
	subject := events.RequestSubject("lab", vm)
	if kind == events.KindCancelRequested {
		subject = events.CancelSubject("lab", vm)
	}
	return c.send(t, &nats.Msg{Subject: subject, Data: b})
}

// request publishes the smallest request for the VM.
func (c client) request(t *testing.T, vm, id string) uint64 {
	t.Helper()
	return c.publish(t, events.KindRequested, vm, id, map[string]any{"vm": vm})
}

// cancel publishes a cancel of the VM's request.
func (c client) cancel(t *testing.T, vm, id, request string) uint64 {
	t.Helper()
	return c.publish(t, events.KindCancelRequested, vm, id, map[string]any{"vm": vm,
		"request": map[string]any{"source": "/test", "id": request}})
}

func (c client) send(t *testing.T, m *nats.Msg) uint64 {
	t.Helper()
	ack, err := c.js.PublishMsg(testContext(t), m)
	if err != nil {
		t.Fatal(err)
	}
	return ack.Sequence
}

// receive waits for the next value.
func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	late := time.NewTimer(testTimeout)
	defer late.Stop()
	select {
	case v := <-ch:
		return v
	case <-late.C:
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// until looks again and again until it is so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	late := time.NewTimer(testTimeout)
	defer late.Stop()
	for !so() {
		select {
		case <-again.C:
		case <-late.C:
			t.Fatalf("it never came: %s", what)
		}
	}
}
