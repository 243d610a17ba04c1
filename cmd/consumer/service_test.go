package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/internal/events/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
	"github.com/guestflow/guestflow/schemas"
)

// binary is the service as it ships, but for the race detector in it.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "guestflow-consumer-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "consumer")
	build := exec.Command("go", "build", "-race", "-o", binary, ".")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the service:", err)
		os.Exit(1)
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// patience bounds every wait for a thing: long, so that only what never happens fails.
const patience = 90 * time.Second

// site is a NATS server and a vCenter, and the settings of a service that works on them.
type site struct {
	t    *testing.T
	url  string // NATS
	vc   *vcsim.VCenter
	conn *nats.Conn
	js   jetstream.JetStream
	env  []string

	mu     sync.Mutex
	heard  []event
	change chan struct{} // closed and made anew at each event
}

// event is what a subscriber reads.
type event struct {
	ID      string          `json:"id"`
	Type    string          `json:"type"`
	Source  string          `json:"source"`
	Subject string          `json:"subject"`
	Data    json.RawMessage `json:"data"`
	kind    string
	run     runData
}

// runData is what these tests read of an event's data.
type runData struct {
	Run       string
	N         int
	VM        string
	Status    string
	Waiting   string
	Request   struct{ Source, ID string }
	Owner     struct{ Takeovers int }
	Check     struct{ State, Status string }
	Customize struct{ State, Task, DecidedBy string }
	Network   struct{ State, Task string }
	Processes []struct {
		Name, State string
		PID         int64
		ExitCode    *int64
	}
	Error struct{ Step, Code, Message string }
}

func newSite(t *testing.T, natsURL string, opts vcsim.Options) *site {
	t.Helper()
	vc, err := vcsim.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vc.Close)
	s := &site{t: t, url: natsURL, vc: vc, change: make(chan struct{})}
	dir := t.TempDir()
	guest := filepath.Join(dir, "secrets", "lab", "linux-root")
	if err := os.MkdirAll(guest, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{filepath.Join(guest, "username"): vcsim.DefaultGuestUsername,
		filepath.Join(guest, "password"): vcsim.DefaultGuestPassword + "\n", filepath.Join(dir, "vcenter-password"): vc.Password(),
		filepath.Join(dir, "vcenter-ca.pem"): string(vc.CAPEM())} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.env = []string{"NATS_URL=" + natsURL, "GUESTFLOW_VCENTERS=lab", "GUESTFLOW_SECRETS_DIR=" + filepath.Join(dir, "secrets"), "GUESTFLOW_ACK_WAIT=2s",
		"VCENTER_LAB_URL=" + vc.URL(), "VCENTER_LAB_USERNAME=" + vc.Username(), "VCENTER_LAB_PASSWORD_FILE=" + filepath.Join(dir, "vcenter-password"),
		"VCENTER_LAB_CA_FILE=" + filepath.Join(dir, "vcenter-ca.pem"), "VCENTER_LAB_SEND_WINDOW=2s", "VCENTER_LAB_TRAVEL_TIME=500ms",
		"VCENTER_LAB_VISIBILITY_LAG=500ms", "GORACE=halt_on_error=1"}
	if s.conn, err = nats.Connect(natsURL, nats.MaxReconnects(-1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.conn.Close)
	if s.js, err = jetstream.New(s.conn); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"guestflow.events.>", "guestflow.rejections.>"} {
		if _, err := s.conn.Subscribe(subject, s.hear); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

// hear notes an event, checked as every event must be.
func (s *site) hear(m *nats.Msg) {
	var e event
	if err := json.Unmarshal(m.Data, &e); err != nil {
		s.t.Errorf("event on %s: %v", m.Subject, err)
		return
	}
	if err := json.Unmarshal(e.Data, &e.run); err != nil {
		s.t.Errorf("data of event %s: %v", e.ID, err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(e.Data))
	if err != nil {
		s.t.Errorf("data of event %s: %v", e.ID, err)
	}
	if problems := schemas.CheckStrict("run.v1", doc); len(problems) > 0 {
		s.t.Errorf("event %s (%s) does not fit its schema: %v\n%s", e.ID, e.Type, problems, e.Data)
	}
	if strings.Contains(string(m.Data), vcsim.DefaultGuestPassword) || strings.Contains(string(m.Data), s.vc.Password()) {
		s.t.Errorf("event %s (%s) holds a password", e.ID, e.Type)
	}
	e.kind = strings.TrimSuffix(strings.TrimPrefix(e.Type, "io.guestflow.customization."), ".v1")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, e)
	close(s.change)
	s.change = make(chan struct{})
}

// events are those heard so far of one request.
func (s *site) events(id string) []event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of(id)
}

func (s *site) of(id string) (of []event) {
	for _, e := range s.heard {
		if e.run.Request.ID == id {
			of = append(of, e)
		}
	}
	return of
}

// await waits until an event of the request is one of kinds.
func (s *site) await(id string, kinds ...string) event {
	s.t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		s.mu.Lock()
		of, change := s.of(id), s.change
		s.mu.Unlock()
		for _, e := range of {
			if slices.Contains(kinds, e.kind) {
				return e
			}
		}
		select {
		case <-change:
		case <-late.C:
			s.t.Fatalf("request %s: none of %v came; it has %v", id, kinds, kindsOf(of))
		}
	}
}

// ended waits for the request's last event.
func (s *site) ended(id string) event {
	s.t.Helper()
	return s.await(id, "run.succeeded", "run.failed", "run.canceled", "rejected")
}

func kindsOf(events []event) []string {
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, e.kind)
	}
	return kinds
}

// publish sends a request as any client would.
func (s *site) publish(vm, id string, data map[string]any) {
	s.t.Helper()
	data["vm"] = vm
	body, err := json.Marshal(map[string]any{"specversion": "1.0", "id": id, "source": "/test", "type": "io.guestflow.customization.requested.v1",
		"subject": vm, "datacontenttype": "application/json", "data": data})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	_, err = s.js.PublishMsg(ctx, &nats.Msg{Subject: "guestflow.requests.lab." + vm, Data: body,
		Header: nats.Header{"Content-Type": {"application/cloudevents+json"}}})
	if err != nil {
		s.t.Fatalf("publish %s: %v", id, err)
	}
}

// whole is the data of a request that asks for everything.
func whole(script string) map[string]any {
	return map[string]any{
		"guest": map[string]any{"credentials": map[string]any{"secretRef": "linux-root"}},
		"customize": map[string]any{"spec": map[string]any{
			"_typeName": "CustomizationSpec",
			"identity": map[string]any{"_typeName": "CustomizationLinuxPrep", "domain": "example.test",
				"hostName": map[string]any{"_typeName": "CustomizationFixedName", "name": "web-1"}},
			"globalIPSettings": map[string]any{"_typeName": "CustomizationGlobalIPSettings"},
			"nicSettingMap": []any{map[string]any{"_typeName": "CustomizationAdapterMapping", "adapter": map[string]any{"_typeName": "CustomizationIPSettings",
				"ip": map[string]any{"_typeName": "CustomizationFixedIp", "ipAddress": "10.0.0.7"}, "subnetMask": "255.255.255.0"}}},
		}},
		"network":   map[string]any{},
		"processes": []any{map[string]any{"name": "join", "run": map[string]any{"path": "/bin/sh", "arguments": "-c '" + script + "'"}}},
	}
}

// service is the binary, running.
type service struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
	log  *logBuffer
	done chan struct{}
	err  error
}

// logBuffer is what a process has written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs the service and waits until it is ready.
func (s *site) start(env ...string) *service {
	s.t.Helper()
	p := s.launch(env...)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		if status, _ := p.get("/readyz"); status == http.StatusOK {
			return p
		}
		select {
		case <-tick.C:
		case <-p.done:
			s.t.Fatalf("the service ended before it was ready: %v\n%s", p.err, p.log)
		case <-late.C:
			s.t.Fatalf("the service did not get ready:\n%s", p.log)
		}
	}
}

// launch runs the service.
func (s *site) launch(env ...string) *service {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	p := &service{t: s.t, addr: l.Addr().String(), log: &logBuffer{}, done: make(chan struct{})}
	_ = l.Close()
	p.cmd = exec.Command(binary)
	p.cmd.Env = append(append(slices.Clone(s.env), "HTTP_ADDR="+p.addr), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	s.t.Cleanup(func() {
		p.kill()
		if said := p.log.String(); strings.Contains(said, "DATA RACE") || strings.Contains(said, vcsim.DefaultGuestPassword) ||
			strings.Contains(said, s.vc.Password()) || s.t.Failed() {
			s.t.Errorf("log of the service:\n%s", said)
		}
	})
	return p
}

// kill ends the service as a crash does.
func (p *service) kill() {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("SIGKILL: %v", err)
	}
	<-p.done
}

// stop ends the service as Kubernetes does.
func (p *service) stop() error {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatalf("SIGTERM: %v", err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatal("the service does not end at SIGTERM")
	}
	return p.err
}

func (p *service) get(path string) (status int, body string) {
	resp, err := http.Get("http://" + p.addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body)
	return resp.StatusCode, b.String()
}

// once checks what must hold of a request that succeeded, whatever happened on the way.
func (s *site) once(id, vm string) {
	s.t.Helper()
	all := s.events(id)
	last := 0
	for i, e := range all {
		if e.run.N != i+1 || e.ID != fmt.Sprintf("%s.%d", e.run.Run, e.run.N) {
			s.t.Errorf("event %d of %s is %s: ids must count from 1 without gaps", i+1, id, e.ID)
		}
		if e.kind == "run.succeeded" || e.kind == "run.failed" || e.kind == "run.canceled" {
			last++
		}
	}
	if last != 1 {
		s.t.Errorf("%d last events, want one: %v", last, kindsOf(all))
	}
	if e := s.vc.VM(vm).Effects(); e.Customizations != 1 || e.NetworkStarts != 1 || len(e.Processes) != 1 {
		s.t.Errorf("the guest was customized %d times, its network started %d times, its processes are %q: want one of each; events: %v",
			e.Customizations, e.NetworkStarts, e.Processes, kindsOf(all))
	}
}

// startNATS is a NATS server of the test's own.
func startNATS(t *testing.T) string {
	t.Helper()
	return natstest.StartServer(t).URL()
}
