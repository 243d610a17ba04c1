package stream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

func streamConfig(t *testing.T, js jetstream.JetStream, name string) jetstream.StreamConfig {
	t.Helper()
	st, err := js.Stream(testContext(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return st.CachedInfo().Config
}

func consumerConfig(t *testing.T, js jetstream.JetStream, stream, name string) jetstream.ConsumerConfig {
	t.Helper()
	c, err := js.Consumer(testContext(t), stream, name)
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo().Config
}

// The contract's section 1, as the server has it afterwards.
func TestProvisionCreates(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	c, js := connect(t, s.URL()), dial(t, s.URL()).js
	if err := c.Ready(testContext(t)); err == nil {
		t.Error("ready before anything is there")
	}
	want := settings(1)
	want.EventsMaxBytes = 1 << 30
	want.MaxInFlight = map[string]int{"lab": 16, "prod": 64}
	for range 2 { // the second time finds it all in place
		if err := c.Provision(testContext(t), want); err != nil {
			t.Fatal(err)
		}
	}
	journal := streamConfig(t, js, "GUESTFLOW_EVENTS")
	if diff := cmp.Diff([]string{"guestflow.events.>", "guestflow.rejections.>"}, journal.Subjects); diff != "" ||
		journal.Retention != jetstream.LimitsPolicy ||
		journal.MaxAge != 720*time.Hour || journal.MaxBytes != 1<<30 || journal.Discard != jetstream.DiscardNew ||
		journal.Storage != jetstream.FileStorage ||
		journal.Duplicates != 2*time.Minute || !journal.AllowDirect || journal.MaxMsgsPerSubject > 0 {
		t.Errorf("events: %+v", journal)
	}
	dead := streamConfig(t, js, "GUESTFLOW_DEADLETTERS")
	if dead.Subjects[0] != "guestflow.deadletters.>" || dead.MaxAge != 168*time.Hour ||
		dead.Retention != jetstream.LimitsPolicy {
		t.Errorf("dead letters: %+v", dead)
	}
	for vcenter, places := range want.MaxInFlight {
		requests := streamConfig(t, js, "GUESTFLOW_REQUESTS_"+vcenter)
		if diff := cmp.Diff([]string{"guestflow.requests." + vcenter + ".*", "guestflow.cancels." + vcenter + ".*"},
			requests.Subjects); diff != "" ||
			requests.Retention != jetstream.WorkQueuePolicy || requests.Discard != jetstream.DiscardNew ||
			!requests.DiscardNewPerSubject ||
			requests.MaxMsgsPerSubject != 2 || requests.MaxMsgSize != 256<<10 || requests.MaxAge != 0 {
			t.Errorf("requests: %+v", requests)
		}
		for name, filter := range map[string]string{"guestflow-requests-" + vcenter: "guestflow.requests." + vcenter +
			".*", "guestflow-cancels-" + vcenter: "guestflow.cancels." + vcenter + ".*"} {
			cons := consumerConfig(t, js, "GUESTFLOW_REQUESTS_"+vcenter, name)
			places := places
			if strings.HasPrefix(name, "guestflow-cancels-") {
				places = 256
			}
			if cons.FilterSubject != filter || cons.AckPolicy != jetstream.AckExplicitPolicy || cons.MaxDeliver != -1 ||
				cons.MaxAckPending != places ||
				cons.AckWait != 30*time.Second || len(cons.BackOff) != 0 {
				t.Errorf("consumer %s: %+v", name, cons)
			}
		}
	}
	if err := c.Ready(testContext(t)); err != nil {
		t.Error(err)
	}
}

// Limits of its own are raised, never lowered; MaxAckPending and the ack wait follow.
func TestProvisionRaisesOnly(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	c, js := connect(t, s.URL()), dial(t, s.URL()).js
	apply := func(change func(*stream.Settings)) {
		t.Helper()
		st := settings(1)
		change(&st)
		if err := c.Provision(testContext(t), st); err != nil {
			t.Fatal(err)
		}
	}
	check := func(perVM int64, age time.Duration, bytes int64, places int, wait time.Duration) {
		t.Helper()
		requests, journal := streamConfig(t, js, "GUESTFLOW_REQUESTS_lab"), streamConfig(t, js, "GUESTFLOW_EVENTS")
		cons := consumerConfig(t, js, "GUESTFLOW_REQUESTS_lab", "guestflow-requests-lab")
		if requests.MaxMsgsPerSubject != perVM || journal.MaxAge != age || journal.MaxBytes != bytes ||
			cons.MaxAckPending != places || cons.AckWait != wait {
			t.Errorf("per VM %d, age %s, bytes %d, in flight %d, ack wait %s", requests.MaxMsgsPerSubject,
				journal.MaxAge, journal.MaxBytes, cons.MaxAckPending, cons.AckWait)
		}
	}
	apply(func(st *stream.Settings) { st.EventsMaxBytes = 1 << 20 })
	apply(func(st *stream.Settings) {
		st.QueuePerVM, st.EventsMaxAge, st.EventsMaxBytes, st.MaxInFlight["lab"], st.AckWait = 4, 800*time.Hour, 2<<20,
			32, time.Minute
	})
	check(4, 800*time.Hour, 2<<20, 32, time.Minute)
	apply(func(st *stream.Settings) {
		st.QueuePerVM, st.EventsMaxAge, st.EventsMaxBytes, st.MaxInFlight["lab"], st.AckWait = 1, 2*time.Hour, 1<<20, 8,
			10*time.Second
	})
	check(4, 800*time.Hour, 2<<20, 8, 10*time.Second)
	apply(func(*stream.Settings) {}) // without a limit of bytes
	check(4, 800*time.Hour, -1, 16, 30*time.Second)
}

// Replicas start at once; then again, in the middle of an upgrade, with settings that differ.
func TestProvisionByReplicasAtOnce(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	var replicas []*stream.Conn
	for range 6 {
		replicas = append(replicas, connect(t, s.URL()))
	}
	for _, upgrade := range []bool{false, true} {
		var all sync.WaitGroup
		begin := make(chan struct{})
		for i, c := range replicas {
			st := settings(1)
			if upgrade {
				st.QueuePerVM += i % 2
			}
			all.Go(func() {
				<-begin
				if err := c.Provision(testContext(t), st); err != nil {
					t.Errorf("replica %d: %v", i, err)
				}
			})
		}
		close(begin)
		all.Wait()
	}
	if got := streamConfig(t, dial(t, s.URL()).js, "GUESTFLOW_REQUESTS_lab").MaxMsgsPerSubject; got != 3 {
		t.Errorf("%d requests per VM, want the higher setting", got)
	}
}

// What an administrator made is never touched; everything that does not fit is named at once.
func TestProvisionNamesEveryDifference(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	c, js := connect(t, s.URL()), dial(t, s.URL()).js
	ctx := testContext(t)
	for _, cfg := range []jetstream.StreamConfig{
		{Name: "GUESTFLOW_EVENTS", Subjects: []string{"guestflow.events.lab.>"}, MaxAge: time.Hour,
			Storage: jetstream.MemoryStorage, MaxMsgs: 10, MaxMsgsPerSubject: 5, MaxMsgSize: 1000},
		{Name: "GUESTFLOW_REQUESTS_lab", Subjects: []string{"guestflow.requests.*.*", "guestflow.cancels.lab.*"},
			MaxAge: time.Hour, MaxMsgsPerSubject: 1, NoAck: true},
		{Name: "GUESTFLOW_DEADLETTERS", Subjects: []string{"guestflow.deadletters.>"}, MaxMsgsPerSubject: 3}, // fits
	} {
		if _, err := js.CreateStream(ctx, cfg); err != nil {
			t.Fatal(err)
		}
	}
	for _, cfg := range []jetstream.ConsumerConfig{
		{Durable: "guestflow-requests-lab", AckPolicy: jetstream.AckAllPolicy, MaxDeliver: 3,
			BackOff: []time.Duration{time.Second}, FilterSubject: "guestflow.requests.lab.vm-1",
			DeliverPolicy: jetstream.DeliverNewPolicy, HeadersOnly: true, InactiveThreshold: time.Hour},
		// fits
		{Durable: "guestflow-cancels-lab", AckPolicy: jetstream.AckExplicitPolicy,
			FilterSubject: "guestflow.cancels.lab.*"},
	} {
		if _, err := js.CreateConsumer(ctx, "GUESTFLOW_REQUESTS_lab", cfg); err != nil {
			t.Fatal(err)
		}
	}
	before := []any{streamConfig(t, js, "GUESTFLOW_EVENTS"), streamConfig(t, js, "GUESTFLOW_REQUESTS_lab"),
		consumerConfig(t, js, "GUESTFLOW_REQUESTS_lab", "guestflow-requests-lab")}
	var mismatch *stream.MismatchError
	if err := c.Provision(ctx, settings(1)); !errors.As(err, &mismatch) {
		t.Fatalf("provision: %v, want a *MismatchError", err)
	}
	want := []string{
		"stream GUESTFLOW_EVENTS: its subjects guestflow.events.lab.> do not cover guestflow.rejections.lab.*",
		"stream GUESTFLOW_EVENTS: storage is Memory, not File",
		"stream GUESTFLOW_EVENTS: max_msg_size is 1000, less than 327680",
		"stream GUESTFLOW_EVENTS: max_age is 1h0m0s, not 720h0m0s or more",
		"stream GUESTFLOW_EVENTS: it drops old messages when it is full: discard must be new",
		"stream GUESTFLOW_EVENTS: max_msgs_per_subject is 5: the journal needs all of them",
		"stream GUESTFLOW_REQUESTS_lab: retention is Limits, not WorkQueue",
		"stream GUESTFLOW_REQUESTS_lab: it does not acknowledge what is published (no_ack)",
		"stream GUESTFLOW_REQUESTS_lab: max_age is 1h0m0s, not unlimited",
		"stream GUESTFLOW_REQUESTS_lab: it drops old messages when it is full: discard must be new",
		"stream GUESTFLOW_REQUESTS_lab: discard_new_per_subject is not set",
		"stream GUESTFLOW_REQUESTS_lab: max_msgs_per_subject is 1, less than 2",
		`consumer guestflow-requests-lab: its filter is "guestflow.requests.lab.vm-1", not guestflow.requests.lab.*`,
		"consumer guestflow-requests-lab: ack policy is AckAll, not AckExplicit",
		"consumer guestflow-requests-lab: max_deliver is 3: it must be unlimited, or requests get lost",
		"consumer guestflow-requests-lab: max_ack_pending is 1000: it lets through more than the 16 " +
			"requests of MAX_IN_FLIGHT",
		"consumer guestflow-requests-lab: backoff is set: it replaces the ack wait",
		"consumer guestflow-requests-lab: deliver policy is new, not all",
		"consumer guestflow-requests-lab: it delivers headers only",
		"consumer guestflow-requests-lab: inactive_threshold is 1h0m0s: it is deleted while nobody pulls",
	}
	if diff := cmp.Diff(want, mismatch.Differences); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for _, text := range want {
		if !strings.Contains(mismatch.Error(), text) {
			t.Errorf("the error does not say %q", text)
		}
	}
	after := []any{streamConfig(t, js, "GUESTFLOW_EVENTS"), streamConfig(t, js, "GUESTFLOW_REQUESTS_lab"),
		consumerConfig(t, js, "GUESTFLOW_REQUESTS_lab", "guestflow-requests-lab")}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("an administrator's was changed -before +after\n%s", diff)
	}
}

func TestProvisionOff(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	c := connect(t, s.URL())
	off := settings(1)
	off.Provision = false
	var mismatch *stream.MismatchError
	if err := c.Provision(testContext(t), off); !errors.As(err, &mismatch) {
		t.Fatalf("provision: %v, want a *MismatchError", err)
	}
	want := []string{"stream GUESTFLOW_EVENTS: is missing", "stream GUESTFLOW_DEADLETTERS: is missing",
		"stream GUESTFLOW_REQUESTS_lab: is missing",
		"consumer guestflow-requests-lab: is missing, as its stream is",
		"consumer guestflow-cancels-lab: is missing, as its stream is"}
	if diff := cmp.Diff(want, mismatch.Differences); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if err := c.Provision(testContext(t), settings(1)); err != nil {
		t.Fatal(err)
	}
	off.QueuePerVM = 3
	if err := c.Provision(testContext(t), off); !errors.As(err, &mismatch) || len(mismatch.Differences) != 1 {
		t.Errorf("a limit that is too low, and not to be raised: %v", err)
	}
}

// A subject that belongs to another stream, and what the server cannot do, stop the start with the reason.
func TestProvisionCannotCreate(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	c, js := connect(t, s.URL()), dial(t, s.URL()).js
	if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "AUDIT",
		Subjects: []string{"guestflow.events.>"}}); err != nil {
		t.Fatal(err)
	}
	var mismatch *stream.MismatchError
	if err := c.Provision(testContext(t), settings(1)); !errors.As(err, &mismatch) ||
		!strings.Contains(err.Error(), "stream AUDIT has the subject") {
		t.Errorf("subject taken: %v", err)
	}
	if err := js.DeleteStream(testContext(t), "AUDIT"); err != nil {
		t.Fatal(err)
	}
	if err := c.Provision(testContext(t), settings(3)); !errors.As(err, &mismatch) ||
		!strings.Contains(err.Error(), "replicas") {
		t.Errorf("three replicas on one server: %v", err)
	}
	s.Stop()
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if err := c.Provision(ctx, settings(1)); err == nil || errors.As(err, &mismatch) {
		t.Errorf("without a server: %v, want an error that may pass", err)
	}
}

func TestConnectRefusesBadConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	tests := []struct {
		name string
		cfg  stream.Config
		text string
	}{
		{"credentials", stream.Config{CredsFile: missing}, "NATS credentials"},
		{"nkey", stream.Config{NKeyFile: junk}, "NATS nkey"},
		{"user without password", stream.Config{User: "u"}, "go together"},
		{"password", stream.Config{User: "u", PasswordFile: missing}, "NATS password"},
		{"CA", stream.Config{CAFile: missing}, "NATS CA"},
		{"CA without PEM", stream.Config{CAFile: junk}, "no PEM certificate"},
		{"certificate without key", stream.Config{CertFile: junk}, "go together"},
		{"certificate", stream.Config{CertFile: junk, KeyFile: junk}, "client certificate"},
		{"domain and prefix", stream.Config{JSDomain: "d", JSAPIPrefix: "p"}, "exclude each other"},
		{"URL", stream.Config{URL: "nats://%zz"}, "connect to NATS"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := stream.Connect(testContext(t), tt.cfg, zerolog.Nop())
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "junk\n") {
				t.Errorf("error %v, want %q", err, tt.text)
			}
		})
	}
}

// NATS that cannot be reached does not stop the start; each change of state is one line.
func TestConnectBeforeTheServerIsThere(t *testing.T) {
	t.Parallel()
	s := natstest.StartServer(t)
	s.Stop()
	lines := make(chan string, 1000)
	log := zerolog.New(writerFunc(func(b []byte) (int, error) {
		var line struct{ Message string }
		err := json.Unmarshal(bytes.TrimSpace(b), &line)
		lines <- line.Message
		return len(b), err
	}))
	c, err := stream.Connect(testContext(t), stream.Config{URL: s.URL()}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Connected() {
		t.Error("connected to nothing")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	up, down := 0, 0
	next := func(want string) {
		t.Helper()
		for {
			switch line := receive(t, lines); {
			case strings.HasPrefix(line, "connected to NATS"):
				up++
			case strings.HasPrefix(line, "lost the connection"):
				down++
			default:
				continue
			}
			if want == "up" && up > down || want == "down" && down == up {
				return
			}
		}
	}
	next("up")
	s.Stop()
	next("down")
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	next("up")
	if up != 2 || down != 1 {
		t.Errorf("%d times up and %d times down in the log", up, down)
	}
}

// A durable that somebody removes while the service runs is made again, and its requests are taken.
func TestRemovedConsumerComesBack(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	took := make(chan string, 1)
	s.consume(t, func(_ context.Context, r *events.Request) error { took <- r.VM; return nil })
	if err := s.js.DeleteConsumer(testContext(t), events.RequestsStream("lab"),
		events.RequestsConsumer("lab")); err != nil {
		t.Fatal(err)
	}
	s.request(t, "vm-1", "r1")
	receive(t, took)
}
