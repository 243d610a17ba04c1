package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// onServer is a site on a NATS server with a configuration of its own.
func onServer(t *testing.T, jetStream, more string) *site {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "nats.conf")
	conf := fmt.Sprintf("jetstream { store_dir: %q\n%s }\nport: -1\n%s\n", filepath.Join(dir, "js"), jetStream, more)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSiteOn(t, natstest.StartConfig(t, file, nil).URL(), vcsim.Options{})
	s.env["HTTP_ADDR"] = freeAddr(t) // where the doctor asks the service itself
	return s
}

// freeAddr is an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// jetStream is an administrator's own view.
func (s *site) jetStream() jetstream.JetStream {
	s.t.Helper()
	nc, err := nats.Connect(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		s.t.Fatal(err)
	}
	return js
}

// says waits until the doctor says all of it, and that something is broken.
func (s *site) says(texts ...string) {
	s.t.Helper()
	late := time.After(patience)
	for {
		r := s.read("doctor")
		missing := ""
		for _, text := range texts {
			if !strings.Contains(r.out, text) {
				missing = text
			}
		}
		if missing == "" && r.code == 1 {
			return
		}
		select {
		case <-late:
			s.t.Fatalf("exit code %d, %q is not said:\n%s", r.code, missing, r.out)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// shows waits until the service's metrics have a line.
func (s *site) shows(line string) {
	s.t.Helper()
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	late := time.After(patience)
	for {
		req, err := http.NewRequestWithContext(
			s.t.Context(),
			http.MethodGet,
			"http://"+s.env["HTTP_ADDR"]+"/metrics",
			nil,
		)
		if err != nil {
			s.t.Fatal(err)
		}
		resp, err := plain.Do(req)
		if err != nil {
			s.t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			s.t.Fatal(err)
		}
		if slices.Contains(strings.Split(string(body), "\n"), line) {
			return
		}
		select {
		case <-late:
			s.t.Fatalf("%s is not shown:\n%s", line, body)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A consumer is paused, then hands out one message at a time.
func TestDoctorFindsWhatIsDoneToAConsumer(t *testing.T) {
	t.Parallel()
	s := onServer(t, "", "").serve()
	js := s.jetStream()
	requests, durable := events.RequestsStream("lab"), events.RequestsConsumer("lab")
	if _, err := js.PauseConsumer(t.Context(), requests, durable, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	s.says("broken   consumer guestflow-requests-lab is paused until ",
		"cure: nats consumer resume GUESTFLOW_REQUESTS_lab guestflow-requests-lab",
		"is not ready: consumer guestflow-requests-lab is paused")
	s.shows(`guestflow_nats_trouble{reason="consumer-paused",vcenter="lab"} 1`)
	if r := s.read("doctor"); strings.Contains(r.out, "are being taken") {
		t.Errorf("it says that requests are being taken:\n%s", r.out)
	}
	if _, err := js.ResumeConsumer(t.Context(), requests, durable); err != nil {
		t.Fatal(err)
	}
	cons, err := js.Consumer(t.Context(), requests, durable)
	if err != nil {
		t.Fatal(err)
	}
	cfg := cons.CachedInfo().Config
	cfg.MaxAckPending = 1
	if _, err := js.UpdateConsumer(t.Context(), requests, cfg); err != nil {
		t.Fatal(err)
	}
	s.says(
		"broken   consumer guestflow-requests-lab hands out 1 messages at once",
		"--max-pending 64",
		"ok       the service at http://127.0.0.1:",
	)
}

// A stream is missing while a service runs that does not make it again.
func TestDoctorFindsAStreamThatIsGone(t *testing.T) {
	t.Parallel()
	s := onServer(t, "", "")
	ready := s.serve // makes the streams, and ends with this part of the test
	t.Run("made", func(t *testing.T) { s.t = t; ready() })
	s.t = t
	s.env["GUESTFLOW_PROVISION"] = "false"
	s.serve()
	s.taken()
	s.env["GUESTFLOW_PROVISION"] = "true"
	if err := s.jetStream().DeleteStream(t.Context(), events.EventsStream); err != nil {
		t.Fatal(err)
	}
	s.says("broken   missing: stream GUESTFLOW_EVENTS", "cure: the service runs, and makes them again within seconds",
		"is not ready: stream GUESTFLOW_EVENTS is missing")
}

// The events, the dead letters and the requests are removed under a service that runs: it makes them again, and the
// next request succeeds.
func TestStreamsThatAreRemovedAreMadeAgain(t *testing.T) {
	t.Parallel()
	s := onServer(t, "", "").serve()
	s.taken()
	js := s.jetStream()
	for _, stream := range []string{events.EventsStream, events.DeadlettersStream, events.RequestsStream("lab")} {
		if err := js.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
	}
	late := time.After(patience)
	for s.read("doctor").code != 0 {
		select {
		case <-late:
			t.Fatal(s.read("doctor").out)
		case <-time.After(100 * time.Millisecond):
		}
	}
	s.do("submit", "--vm", s.vc.VMs()[0], "--check-only", "--wait").want(t, 0)
}

// A server that takes small messages only: said, and a request whose events can never be stored is rejected.
func TestDoctorFindsASmallMaxPayload(t *testing.T) {
	t.Parallel()
	s := onServer(t, "", "max_payload: 16384").serve()
	s.shows(`guestflow_nats_trouble{reason="max-payload",vcenter=""} 1`)
	s.says("broken   the server takes messages of 16384 bytes (max_payload)", "cure: set max_payload to 1MB")
	vm := s.vc.VMs()[0]
	data := fmt.Sprintf(
		`{"vm":%q,"guest":{"credentials":{"secretRef":"linux-root"}},`+
			`"customize":{"spec":{"_typeName":"CustomizationSpec",`+
			`"identity":{"_typeName":"CustomizationLinuxPrep","domain":"example.test",`+
			`"hostName":{"_typeName":"CustomizationFixedName","name":"web-1"}},`+
			`"globalIPSettings":{"_typeName":"CustomizationGlobalIPSettings"},`+
			`"nicSettingMap":[{"_typeName":"CustomizationAdapterMapping",`+
			`"adapter":{"_typeName":"CustomizationIPSettings","ip":{"_typeName":"CustomizationDhcpIpGenerator"}}}]},`+
			`"configParams":[{"_typeName":"OptionValue","key":"k","value":{"_typeName":"string","_value":%q}}]}}`,
		vm,
		strings.Repeat("y", 15000),
	)
	file := filepath.Join(t.TempDir(), "request.json")
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	s.do("submit", file, "--wait").want(t, exitRejected, "max_payload")
	s.do("submit", "--vm", vm, "--check-only", "--wait").want(t, 0) // the VM's queue is free
}

// A store that is full: what waits is told by the service and by the doctor, and a publisher is told what to do.
func TestDoctorFindsAFullStore(t *testing.T) {
	t.Parallel()
	s := onServer(t, "max_file_store: 8KB", "")
	s.env["GUESTFLOW_DRAIN_TIMEOUT"] = "100ms" // what is in hand cannot be given back
	s.serve()
	s.taken()
	for _, vm := range s.vc.VMs() { // the first runs fill it
		_ = s.do("submit", "--vm", vm, "--check-only")
	}
	s.shows(`guestflow_nats_trouble{reason="no-storage",vcenter="lab"} 1`)
	s.says("is not ready: vm ", "JetStream: insufficient resources (10023)",
		"cure: make room for JetStream: raise max_file_store")
	for i := range 8 { // and what is left of it
		s.publishOn(fmt.Sprintf("guestflow.rejections.lab.vm-%d", i), make([]byte, 1000))
	}
	s.do("submit", "--vm", s.vc.VMs()[0], "--check-only").
		want(t, exitOther, "JetStream has no storage left", "10023", "max_file_store")
}

// An account that may hold no more.
func TestDoctorFindsAnAccountsLimit(t *testing.T) {
	t.Parallel()
	s := onServer(t, "", `accounts { A { jetstream: { max_file: 1MB, max_mem: 0 }, users: [{user: a, password: a}] } }
no_auth_user: a`).serve()
	for i := range 20 {
		s.publishOn(fmt.Sprintf("guestflow.rejections.lab.vm-%d", i), make([]byte, 60_000))
	}
	s.says("JetStream has no storage left for this account", "cure: raise the account's limit (max_file)")
}

// publishOn publishes as whoever may; what is not stored is not.
func (s *site) publishOn(subject string, data []byte) {
	_, _ = s.jetStream().Publish(s.t.Context(), subject, data)
}

// Somebody else takes requests from the service's consumer, and does nothing with them.
func TestDoctorFindsWhatNobodyHolds(t *testing.T) {
	t.Parallel()
	s := onServer(t, "", "")
	s.env["GUESTFLOW_ACK_WAIT"] = "6s"
	s.serve()
	s.taken()
	if r := s.read("doctor"); strings.Contains(r.out, "nobody says to be at work on") {
		t.Errorf("nothing is in hand:\n%s", r.out)
	}
	cons, err := s.jetStream().Consumer(t.Context(), events.RequestsStream("lab"), events.RequestsConsumer("lab"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	batch, err := cons.Fetch(20, jetstream.FetchContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range s.vc.VMs() { // the two take turns
		s.do("submit", "--vm", vm, "--check-only").want(t, 0)
	}
	select {
	case <-batch.Messages():
	case <-ctx.Done():
		t.Fatal("the other one got nothing")
	}
	r := s.read("doctor")
	if !strings.Contains(r.out, "warning  guestflow-requests-lab has delivered ") ||
		!strings.Contains(r.out, "messages on which no service works") {
		t.Errorf("it does not say so:\n%s", r.out)
	}
}

// Who fills the queue, and which VM stands still.
func TestDoctorLooksIntoTheQueue(t *testing.T) {
	t.Parallel()
	s := onServer(t, "", "")
	t.Run("made", func(t *testing.T) { s.t = t; s.serve() })
	s.t = t
	for i := range 12 {
		source := "/flood"
		if i == 0 {
			source = "/other"
		}
		vm := fmt.Sprintf("vm-%d", i)
		s.publish(events.RequestSubject("lab", vm), "application/cloudevents+json", fmt.Sprintf(
			`{"specversion":"1.0","type":"io.guestflow.customization.requested.v1","source":%q,"id":"%d",`+
				`"data":{"vm":%q}}`,
			source,
			i,
			vm,
		))
	}
	s.publishOn("guestflow.events.lab.vm-3.run.accepted", []byte("not an event"))
	s.says("sources of the 12 requests in the queue of lab: /flood 11, /other 1",
		"broken   the requests for vm-3 cannot be handled",
		"nats stream rmm GUESTFLOW_EVENTS 1")
}
