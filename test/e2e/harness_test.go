// Package e2e tests the whole system: the built service, a real nats-server, a simulated vCenter. README.md tells how.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
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

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
	"github.com/guestflow/guestflow/schemas"
)

// binary is the service as it ships, or with the race detector in it.
var binary string

var raceService = flag.Bool("race-service", false,
	"build the service with the race detector in it: a race that it finds ends the service, and fails the test")

func TestMain(m *testing.M) {
	natstest.Main()
	flag.Parse()
	dir, err := os.MkdirTemp("", "guestflow-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "consumer")
	build := exec.Command("go", "build", fmt.Sprintf("-race=%v", *raceService), "-o", binary, "../../cmd/consumer")
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
const patience = 5 * time.Minute

// ownInbox tells the tests' own questions from those of the service.
const ownInbox = "_INBOX_TEST"

// harness is a NATS server and a vCenter, and the settings of a service that works on them.
type harness struct {
	t       *testing.T
	url     string // NATS
	vcenter string // its name
	vc      *vcsim.VCenter
	conn    *nats.Conn
	js      jetstream.JetStream
	secrets string   // the folder
	more    canaries // secrets that are not in it
	env     []string

	mu     sync.Mutex
	heard  []event
	change chan struct{} // closed and made anew at each event
	react  func(event)   // called at each event, before who awaits it; may be nil
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
	at      time.Time // when it was heard
	seq     uint64    // in the events stream, where it was read from there
}

// runData is what these tests read of an event's data.
type runData struct {
	Run        string
	N          int
	VM         string
	Status     string
	Waiting    string
	WaitingFor struct {
		Message string `json:"message"`
	} `json:"waitingFor"`
	Request struct{ Source, ID string }
	Owner   struct {
		Instance  string
		Takeovers int
	}
	Check     struct{ State, Status string }
	Customize struct{ State, Task, DecidedBy string }
	Network   struct{ State, Task string }
	Verify    struct {
		State       string
		Mismatches  []string
		NotCompared []struct{ Field, Reason string }
	}
	Processes []struct {
		Name, State string
		PID         int64
		ExitCode    *int64
	}
	Error      struct{ Step, Code, Message string }
	FinishedAt time.Time
}

func newHarness(t *testing.T, natsURL string, opts vcsim.Options, login ...nats.Option) *harness {
	t.Helper()
	return newHarnessNamed(t, natsURL, "lab", opts, login...)
}

// newHarnessNamed is a harness whose vCenter has a name of its own: several of them share one NATS. login is how the
// test itself connects to it.
func newHarnessNamed(t *testing.T, natsURL, vcenter string, opts vcsim.Options, login ...nats.Option) *harness {
	t.Helper()
	vc, err := vcsim.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vc.Close)
	dir := t.TempDir()
	s := &harness{t: t, url: natsURL, vcenter: vcenter, vc: vc, secrets: filepath.Join(dir, "secrets"),
		change: make(chan struct{})}
	s.writeSecrets(vcenter)
	for name, content := range map[string]string{"vcenter-password": vc.Password(),
		"vcenter-ca.pem": string(vc.CAPEM())} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.env = []string{"NATS_URL=" + natsURL, "GUESTFLOW_VCENTERS=" + vcenter, "GUESTFLOW_SECRETS_DIR=" + s.secrets,
		"GUESTFLOW_ACK_WAIT=2s",
		"GORACE=halt_on_error=1 atexit_sleep_ms=0"}
	for key, value := range map[string]string{"URL": vc.URL(), "USERNAME": vc.Username(),
		"PASSWORD_FILE": filepath.Join(dir, "vcenter-password"),
		"CA_FILE":       filepath.Join(dir, "vcenter-ca.pem"), "SEND_WINDOW": "2s", "TRAVEL_TIME": "500ms",
		"VISIBILITY_LAG": "500ms"} {
		s.env = append(s.env, s.setting(key)+"="+value)
	}
	if s.conn, err = nats.Connect(natsURL, append(login, nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond),
		nats.CustomInboxPrefix(ownInbox))...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.conn.Close)
	if s.js, err = jetstream.New(s.conn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.checkNoSecrets)
	for _, subject := range []string{"guestflow.events." + vcenter + ".>", "guestflow.rejections." + vcenter + ".>"} {
		if _, err := s.conn.Subscribe(subject, s.hear); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

// setting is the name of a setting of the harness's vCenter.
func (s *harness) setting(key string) string {
	return "VCENTER_" + strings.ToUpper(strings.ReplaceAll(s.vcenter, "-", "_")) + "_" + key
}

// writeSecrets puts the guests' credentials where the service looks for them for a vCenter.
func (s *harness) writeSecrets(vcenter string) {
	s.t.Helper()
	guest := filepath.Join(s.secrets, vcenter, "linux-root")
	if err := os.MkdirAll(guest, 0o700); err != nil {
		s.t.Fatal(err)
	}
	for name, content := range map[string]string{"username": vcsim.DefaultGuestUsername,
		"password": vcsim.DefaultGuestPassword + "\n"} {
		if err := os.WriteFile(filepath.Join(guest, name), []byte(content), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// hear notes an event that was published: stored, or on its way to it, or about to be refused; stored tells what was
// stored.
func (s *harness) hear(m *nats.Msg) {
	e := s.read(m)
	s.check(e, m.Data)
	s.mu.Lock()
	react := s.react
	s.mu.Unlock()
	if react != nil {
		react(e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, e)
	close(s.change)
	s.change = make(chan struct{})
}

// read reads an event.
func (s *harness) read(m *nats.Msg) event {
	e := event{at: time.Now()}
	if err := json.Unmarshal(m.Data, &e); err != nil {
		s.t.Errorf("event on %s: %v", m.Subject, err)
		return e
	}
	if err := json.Unmarshal(e.Data, &e.run); err != nil {
		s.t.Errorf("data of event %s: %v", e.ID, err)
	}
	e.kind = strings.TrimSuffix(strings.TrimPrefix(e.Type, "io.guestflow.customization."), ".v1")
	return e
}

// check holds an event against what every event must be.
func (s *harness) check(e event, raw []byte) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(e.Data))
	if err != nil {
		s.t.Errorf("data of event %s: %v", e.ID, err)
	}
	if problems := schemas.CheckStrict("run.v1", doc); len(problems) > 0 {
		s.t.Errorf("event %s (%s) does not fit its schema: %v\n%s", e.ID, e.Type, problems, e.Data)
	}
	if strings.Contains(string(raw), vcsim.DefaultGuestPassword) || strings.Contains(string(raw), s.vc.Password()) {
		s.t.Errorf("event %s (%s) holds a password", e.ID, e.Type)
	}
}

// stored are the events of a VM that the events stream holds, read from its leader. A message that was refused was
// heard, but is not here.
func (s *harness) stored(vm string) []event {
	s.t.Helper()
	var all []event
	for from := uint64(1); ; {
		m := s.fetch(map[string]any{"seq": from, "next_by_subj": "guestflow.events." + s.vcenter + "." + vm + ".>"})
		if m == nil {
			return all
		}
		all = append(all, *m)
		from = m.seq + 1
	}
}

// everything are all events that the stream holds, by VM: one pass over many, for a server that has no followers.
func (s *harness) everything() map[string][]event {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	all := map[string][]event{}
	consumer, err := s.js.OrderedConsumer(ctx, "GUESTFLOW_EVENTS", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"guestflow.events." + s.vcenter + ".>"}})
	if err != nil {
		s.t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		s.t.Fatal(err)
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			s.t.Fatal(err)
		}
		meta, err := m.Metadata()
		if err != nil {
			s.t.Fatal(err)
		}
		e := s.read(&nats.Msg{Subject: m.Subject(), Data: m.Data()})
		e.seq = meta.Sequence.Stream
		all[e.run.VM] = append(all[e.run.VM], e)
		if meta.NumPending == 0 {
			return all
		}
	}
}

// storedOf are those of one request.
func (s *harness) storedOf(id, vm string) (of []event) {
	s.t.Helper()
	for _, e := range s.stored(vm) {
		if e.run.Request.ID == id {
			of = append(of, e)
		}
	}
	return of
}

// fetch asks the leader of the events stream for one event; nil where there is none.
func (s *harness) fetch(question map[string]any) *event {
	s.t.Helper()
	ask, err := json.Marshal(question)
	if err != nil {
		s.t.Fatal(err)
	}
	late := time.Now().Add(patience)
	for {
		// A lost answer, or a stream without a leader: asked again.
		reply, err := s.conn.Request("$JS.API.STREAM.MSG.GET.GUESTFLOW_EVENTS", ask, 2*time.Second)
		var answer struct {
			Message *struct {
				Seq     uint64 `json:"seq"`
				Subject string `json:"subject"`
				Data    []byte `json:"data"`
			} `json:"message"`
			Error *struct {
				Code    int `json:"code"`
				ErrCode int `json:"err_code"`
			} `json:"error"`
		}
		if err == nil {
			err = json.Unmarshal(reply.Data, &answer)
		}
		switch {
		case err == nil && answer.Message != nil:
			e := s.read(&nats.Msg{Subject: answer.Message.Subject, Data: answer.Message.Data})
			e.seq = answer.Message.Seq
			return &e
		case err == nil && answer.Error != nil && answer.Error.ErrCode == 10037:
			return nil
		case time.Now().After(late):
			s.t.Fatalf("read the events stream: %v, %+v", err, answer.Error)
		}
		s.soon()
	}
}

// soon lets a moment pass between two looks at something that tells nobody of its changes.
func (s *harness) soon() {
	t := time.NewTimer(20 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.t.Context().Done():
		s.t.Fatal("the test is over")
	}
}

// until looks again and again until fine is true.
func (s *harness) until(what string, fine func() bool) {
	s.t.Helper()
	for late := time.Now().Add(patience); !fine(); s.soon() {
		if time.Now().After(late) {
			s.t.Fatalf("%s: not after %s", what, patience)
		}
	}
}

// settled waits until the stream holds the last event of the request, and the requests stream is empty of it: what was
// heard may be less, where the connection of the one who hears was cut.
func (s *harness) settled(id, vm string) event {
	s.t.Helper()
	var end *event
	s.until("the end of "+id+" on "+vm, func() bool {
		end = s.fetch(map[string]any{"last_by_subj": "guestflow.events." + s.vcenter + "." + vm + ".>"})
		return end != nil && end.run.Request.ID == id && isLast(end.kind)
	})
	s.emptied()
	return *end
}

// emptied waits until no request and no cancel is left.
func (s *harness) emptied() {
	s.t.Helper()
	s.until("an empty requests stream", func() bool {
		ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Second)
		defer cancel()
		stream, err := s.js.Stream(ctx, "GUESTFLOW_REQUESTS_"+s.vcenter)
		return err == nil && stream.CachedInfo().State.Msgs == 0
	})
}

func isLast(kind string) bool {
	return kind == "run.succeeded" || kind == "run.failed" || kind == "run.canceled"
}

// events are those heard so far of one request.
func (s *harness) events(id string) []event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of(id)
}

func (s *harness) of(id string) (of []event) {
	for _, e := range s.heard {
		if e.run.Request.ID == id {
			of = append(of, e)
		}
	}
	return of
}

// await waits until an event of the request is one of kinds.
func (s *harness) await(id string, kinds ...string) event {
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
func (s *harness) ended(id string) event {
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

// publish sends a request as any client would, and returns its stream sequence.
func (s *harness) publish(vm, id string, data map[string]any) uint64 {
	s.t.Helper()
	seq, err := s.tryPublish(vm, id, data)
	if err != nil {
		s.t.Fatalf("publish %s: %v", id, err)
	}
	return seq
}

func (s *harness) tryPublish(vm, id string, data map[string]any) (uint64, error) {
	data["vm"] = vm
	return s.send("guestflow.requests."+s.vcenter+"."+vm, vm, id, "requested", data)
}

// cancel sends a cancel for a request, under an id of its own.
func (s *harness) cancel(vm, id, request string) uint64 {
	s.t.Helper()
	seq, err := s.send("guestflow.cancels."+s.vcenter+"."+vm, vm, id, "cancel.requested",
		map[string]any{"vm": vm, "request": map[string]any{"source": "/test", "id": request},
			"reason": "not wanted any more"})
	if err != nil {
		s.t.Fatalf("publish cancel %s: %v", id, err)
	}
	return seq
}

func (s *harness) send(subject, vm, id, kind string, data map[string]any) (uint64, error) {
	return s.sendWithin(patience, subject, vm, id, kind, data)
}

func (s *harness) sendWithin(limit time.Duration, subject, vm, id, kind string, data map[string]any) (uint64, error) {
	body, err := json.Marshal(map[string]any{"specversion": "1.0", "id": id, "source": "/test",
		"type":    "io.guestflow.customization." + kind + ".v1",
		"subject": vm, "datacontenttype": "application/json", "data": data})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	ack, err := s.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: body,
		Header: nats.Header{"Content-Type": {"application/cloudevents+json"}}})
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// fullRequest is the data of a request that asks for everything.
func fullRequest(script string) map[string]any {
	return map[string]any{
		"guest": map[string]any{"credentials": map[string]any{"secretRef": "linux-root"}},
		"customize": map[string]any{"spec": map[string]any{
			"_typeName": "CustomizationSpec",
			"identity": map[string]any{"_typeName": "CustomizationLinuxPrep", "domain": "example.test",
				"hostName": map[string]any{"_typeName": "CustomizationFixedName", "name": "web-1"}},
			"globalIPSettings": map[string]any{"_typeName": "CustomizationGlobalIPSettings"},
			"nicSettingMap": []any{map[string]any{"_typeName": "CustomizationAdapterMapping",
				"adapter": map[string]any{"_typeName": "CustomizationIPSettings",
					"ip":         map[string]any{"_typeName": "CustomizationFixedIp", "ipAddress": "10.0.0.7"},
					"subnetMask": "255.255.255.0"}}},
		}},
		"network": map[string]any{},
		"processes": []any{map[string]any{"name": "join", "run": map[string]any{"path": "/bin/sh", "arguments": "-c '" +
			script + "'"}}},
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

	mu   sync.Mutex
	said map[string]string // over HTTP, by path
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
func (s *harness) start(env ...string) *service {
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
func (s *harness) launch(env ...string) *service {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	p := &service{t: s.t, addr: l.Addr().String(), log: &logBuffer{}, done: make(chan struct{}),
		said: map[string]string{}}
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
		p.listen()
		p.kill()
		for what, said := range p.said {
			s.silent(what, said)
		}
		s.silent("the log of the service", p.log.String())
		if said := p.log.String(); strings.Contains(said, "DATA RACE") || s.t.Failed() {
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
	p.listen()
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
func (s *harness) once(id, vm string) {
	s.t.Helper()
	all := s.numbered(id, vm)
	if len(all) == 0 || all[len(all)-1].kind != "run.succeeded" {
		s.t.Errorf("%s on %s did not succeed: %v", id, vm, kindsOf(all))
	}
	if e := s.vc.VM(vm).Effects(); e.Customizations != 1 || e.NetworkStarts != 1 || len(e.Processes) != 1 {
		s.t.Errorf("the guest %s was customized %d times, its network started %d times, its processes are %q: want "+
			"one of each; events: %v",
			vm, e.Customizations, e.NetworkStarts, e.Processes, kindsOf(all))
	}
}

// numbered checks what must hold of the events of every run that has ended: their numbers have no gaps, and there is
// one last event, at the end.
func (s *harness) numbered(id, vm string) []event {
	s.t.Helper()
	var all []event
	s.until("the end of "+id+" on "+vm+" is stored", func() bool { // its last event is heard a moment before
		all = s.storedOf(id, vm)
		return slices.ContainsFunc(all, func(e event) bool { return isLast(e.kind) })
	})
	s.inOrder(id, vm, all)
	return all
}

// inOrder is numbered for events that were read already.
func (s *harness) inOrder(id, vm string, all []event) {
	s.t.Helper()
	for i, e := range all {
		if e.run.N != i+1 || e.ID != fmt.Sprintf("%s.%d", e.run.Run, e.run.N) {
			s.t.Errorf("event %d of %s is %s: ids must count from 1 without gaps", i+1, id, e.ID)
		}
		if isLast(e.kind) != (i == len(all)-1) {
			s.t.Errorf("%s on %s: want one last event, and nothing behind it: %v", id, vm, kindsOf(all))
		}
	}
}

// startNATS is a NATS server of the test's own.
func startNATS(t *testing.T) string {
	t.Helper()
	return natstest.StartServer(t).URL()
}
