package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for a thing: long, so that only what never happens fails.
const patience = 2 * time.Minute

// site is a NATS server and a simulated vCenter, and the environment in which service and command run.
type site struct {
	t   *testing.T
	url string
	vc  *vcsim.VCenter
	env map[string]string
}

func newSite(t *testing.T, opts vcsim.Options) *site {
	t.Helper()
	return newSiteOn(t, natstest.StartServer(t).URL(), opts)
}

// newSiteOn is a site on a NATS server that is there.
func newSiteOn(t *testing.T, url string, opts vcsim.Options) *site {
	t.Helper()
	vc, err := vcsim.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vc.Close)
	s := &site{t: t, url: url, vc: vc}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secrets", "lab", "linux-root")
	if err := os.MkdirAll(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{
		filepath.Join(secret, "username"): vcsim.DefaultGuestUsername,
		filepath.Join(secret, "password"): vcsim.DefaultGuestPassword,
		filepath.Join(dir, "password"):    vc.Password(),
		filepath.Join(dir, "ca.pem"):      string(vc.CAPEM()),
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.env = map[string]string{
		"NATS_URL":                   s.url,
		"GUESTFLOW_VCENTERS":         "lab",
		"GUESTFLOW_SECRETS_DIR":      filepath.Join(dir, "secrets"),
		"GUESTFLOW_INSTANCE":         "pod-a",
		"HTTP_ADDR":                  "127.0.0.1:0",
		"VCENTER_LAB_URL":            vc.URL(),
		"VCENTER_LAB_USERNAME":       vc.Username(),
		"VCENTER_LAB_PASSWORD_FILE":  filepath.Join(dir, "password"),
		"VCENTER_LAB_CA_FILE":        filepath.Join(dir, "ca.pem"),
		"VCENTER_LAB_SEND_WINDOW":    "2s",
		"VCENTER_LAB_TRAVEL_TIME":    "500ms",
		"VCENTER_LAB_VISIBILITY_LAG": "500ms",
	}
	return s
}

// serve runs the service until the end of the test.
func (s *site) serve() *site {
	s.t.Helper()
	cfg, err := app.LoadConfig(envconfig.MapLookuper(s.env))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	takes, ended := make(chan struct{}), make(chan error, 1)
	log := zerolog.New(&lookFor{text: "takes requests", found: sync.OnceFunc(func() { close(takes) })})
	go func() { ended <- app.Run(ctx, cfg, log) }()
	s.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			s.t.Errorf("the service: %v", err)
		}
	})
	select {
	case <-takes:
	case err := <-ended:
		s.t.Fatalf("the service ended: %v", err)
	case <-time.After(patience):
		s.t.Fatal("the service does not start")
	}
	return s
}

// lookFor is a log that waits for a text.
type lookFor struct {
	text  string
	found func()
}

func (l *lookFor) Write(b []byte) (int, error) {
	if strings.Contains(string(b), l.text) {
		l.found()
	}
	return len(b), nil
}

// result is what a command did.
type result struct {
	code     int
	out, err string
}

// buffer is written by a command and read by its test at once.
type buffer struct {
	mu     sync.Mutex
	b      bytes.Buffer
	change chan struct{}
}

func newBuffer() *buffer { return &buffer{change: make(chan struct{})} }

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.change)
	b.change = make(chan struct{})
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until the text is there.
func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	late := time.After(patience)
	for {
		b.mu.Lock()
		there, change := strings.Contains(b.b.String(), text), b.change
		b.mu.Unlock()
		if there {
			return
		}
		select {
		case <-change:
		case <-late:
			t.Fatalf("%q does not come; there is\n%s", text, b)
		}
	}
}

// running is a command at work.
type running struct {
	t        *testing.T
	out, err *buffer
	stop     context.CancelFunc
	code     chan int
}

// begin starts a command. tty: on a terminal.
func (s *site) begin(tty bool, args ...string) *running {
	s.t.Helper()
	return begin(s.t, s.env, tty, "", args...)
}

func begin(t *testing.T, env map[string]string, tty bool, in string, args ...string) *running {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	r := &running{t: t, out: newBuffer(), err: newBuffer(), stop: stop, code: make(chan int, 1)}
	con := console{
		in:    strings.NewReader(in),
		out:   r.out,
		err:   r.err,
		env:   envconfig.MapLookuper(maps.Clone(env)),
		tty:   tty,
		width: func() int { return 100 },
	}
	go func() { r.code <- run(ctx, args, con) }()
	return r
}

// end waits for the command's end.
func (r *running) end() result {
	defer r.stop()
	code := <-r.code
	return result{code, r.out.String(), r.err.String()}
}

// do runs a command whose output is a pipe.
func (s *site) do(args ...string) result { s.t.Helper(); return s.begin(false, args...).end() }

// read runs a command whose output is for people.
func (s *site) read(args ...string) result {
	s.t.Helper()
	return s.begin(false, append(args, "--text")...).end()
}

// want fails where a command ended otherwise.
func (r result) want(t *testing.T, code int, texts ...string) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d, want %d\n%s\n%s", r.code, code, r.out, r.err)
	}
	for _, text := range texts {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("%q is not in\n%s\n%s", text, r.out, r.err)
		}
	}
	return r
}

// cloudEvents reads lines as the SDK does.
func cloudEvents(t *testing.T, out string) (all []event.Event) {
	t.Helper()
	for line := range strings.Lines(out) {
		e := event.New()
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if err := e.Validate(); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

func kinds(all []event.Event) (k []string) {
	for _, e := range all {
		k = append(k, strings.TrimSuffix(strings.TrimPrefix(e.Type(), "io.guestflow.customization."), ".v1"))
	}
	return k
}

// changing is what is different in each run, and what it is replaced by.
var changing = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\d\d:\d\d:\d\d\.\d{3}`), "HH:MM:SS.mmm"},
	{regexp.MustCompile(`(mmm) +\d+`), "$1   N"},
	{regexp.MustCompile(`\b[a-z2-7]{26}\b`), "RUN"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`(task)-\d+`), "$1-N"},
	{regexp.MustCompile(`[\d.]+(m\d+)?(µ|m)?s( (ago|ahead|behind|more|of)|$|,|\))`), "TIME$3"},
	{regexp.MustCompile(`± [\d.]+(µ|m)?s?`), "± TIME"},
	{regexp.MustCompile(`(in|for|trip) [\d.]+(µ|m)?s`), "$1 TIME"},
	{regexp.MustCompile(`is TIME (ahead of|behind)`), "is TIME ahead of"},
	{regexp.MustCompile(`version \d+\.\d+\.\d+`), "version N"},
	{regexp.MustCompile(`open pulls: \d+`), "open pulls: N"},
}

// golden compares what does not change with testdata/<name>.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(got) {
		if strings.Contains(line, "customize.progressed") {
			continue // how many there are is the clock's choice
		}
		for _, c := range changing {
			line = c.what.ReplaceAllString(line, c.by)
		}
		lines = append(lines, line)
	}
	got = strings.Join(lines, "")
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update writes it:\n%s", file, diff)
	}
}

// publish sends a message as anybody may.
func (s *site) publish(subject, contentType string, data string) {
	s.t.Helper()
	nc, err := nats.Connect(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.RequestMsg(
		&nats.Msg{Subject: subject, Data: []byte(data), Header: nats.Header{"Content-Type": {contentType}}},
		patience); err != nil {
		s.t.Fatal(err)
	}
}

const spec = `{"_typeName":"CustomizationSpec","identity":{"_typeName":"CustomizationLinuxPrep","domain":"example.test",
"hostName":{"_typeName":"CustomizationFixedName","name":"web-1"}},
"globalIPSettings":{"_typeName":"CustomizationGlobalIPSettings","dnsServerList":["10.0.0.2"]},
"nicSettingMap":[{"_typeName":"CustomizationAdapterMapping","adapter":{"_typeName":"CustomizationIPSettings",
"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.7"},
"subnetMask":"255.255.255.0","gateway":["10.0.0.1"]}}]}`

// file writes a file of the test.
func (s *site) file(name, content string) string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// whole are the flags of a request that asks for everything.
func (s *site) whole(vm string, more ...string) []string {
	s.t.Helper()
	return append(
		[]string{
			"submit",
			"--vm",
			vm,
			"--secret",
			"linux-root",
			"--spec",
			s.file("spec.json", spec),
			"--network",
			"--run",
			"join-domain=/bin/sh -c 'exit 0'",
		},
		more...)
}

func data(vm string) string { return fmt.Sprintf(`{"vm":%q}`, vm) }
