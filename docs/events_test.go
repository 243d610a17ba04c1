package docs_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	diff "github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/sethvargo/go-envconfig"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/vcsim"
	"github.com/guestflow/guestflow/sandbox"
	"github.com/guestflow/guestflow/schemas"
)

const (
	eventsPage = "use/events.md"

	prefix = "io.guestflow.customization."
	wide   = 150 // an example's lines are broken beyond this
)

// stage is a sandbox on which every kind of event comes about: two replicas, and a second vCenter whose VM loses its
// tools at the right moment.
type stage struct {
	t    *testing.T
	box  *sandbox.Sandbox
	prod *vcsim.VCenter
	env  map[string]string
	js   jetstream.JetStream
	seen map[string]json.RawMessage // the first event of each kind, of the runs that the page shows
	want map[string]string          // kind: id of the request whose run shows it
}

func newStage(t *testing.T) *stage {
	t.Helper()
	dir := t.TempDir()
	s := &stage{t: t, box: start(t, sandbox.Options{Dir: dir, NoService: true}), env: map[string]string{},
		seen: map[string]json.RawMessage{}}
	prod, err := vcsim.Start(vcsim.Options{VMs: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(prod.Close)
	s.prod = prod
	for _, setting := range s.box.Env() {
		key, value, _ := strings.Cut(setting, "=")
		s.env[key] = value
	}
	secrets, ca := filepath.Join(dir, "secrets"), filepath.Join(dir, "prod.pem")
	if err := os.CopyFS(filepath.Join(secrets, "prod"), os.DirFS(filepath.Join(secrets, sandbox.VCenter))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, prod.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	maps.Copy(s.env, map[string]string{"GUESTFLOW_VCENTERS": sandbox.VCenter + ",prod", "VCENTER_PROD_URL": prod.URL(),
		"VCENTER_PROD_USERNAME": prod.Username(),
		"VCENTER_PROD_PASSWORD": prod.Password(), "VCENTER_PROD_CA_FILE": ca})
	nc := connect(t, s.box.NATSURL())
	if s.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs a replica; the result ends it.
func (s *stage) serve(instance string) (end func()) {
	s.t.Helper()
	env := maps.Clone(s.env)
	env["GUESTFLOW_INSTANCE"], env["HTTP_ADDR"] = instance, "127.0.0.1:0"
	cfg, err := app.LoadConfig(envconfig.MapLookuper(env))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx, cfg, app.NewLogger(cfg, io.Discard)) }()
	done := false
	end = func() {
		if done {
			return
		}
		done = true
		stop()
		if err := <-ended; err != nil {
			s.t.Errorf("%s: %v", instance, err)
		}
	}
	s.t.Cleanup(end)
	return end
}

// publish sends a message as soon as its stream is there, and returns it as the page shows it.
func (s *stage) publish(subject, kind, id, vm, data string) json.RawMessage {
	s.t.Helper()
	event := json.RawMessage(fmt.Sprintf(`{"specversion":"1.0","type":"%s%s.v1","source":"/provisioning","id":%q,`+
		`"subject":%q,"datacontenttype":"application/json","data":%s}`,
		prefix, kind, id, vm, data))
	m := &nats.Msg{Subject: subject, Data: event, Header: nats.Header{"Content-Type": {"application/cloudevents+json"}}}
	if _, err := s.js.PublishMsg(patient(s.t), m, jetstream.WithRetryAttempts(600),
		jetstream.WithRetryWait(100*time.Millisecond)); err != nil {
		s.t.Fatal(err)
	}
	return event
}

// until reads the journal until there is an event of this kind of this request.
func (s *stage) until(events jetstream.MessagesContext, id, kind string) {
	s.t.Helper()
	for {
		m, err := events.Next(jetstream.NextContext(patient(s.t)))
		if err != nil {
			s.t.Fatalf("no %s of %s: %v", kind, id, err)
		}
		var e struct {
			Type string
			Data struct{ Request struct{ ID string } }
		}
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			s.t.Fatal(err)
		}
		got := strings.TrimSuffix(strings.TrimPrefix(e.Type, prefix), ".v1")
		if from := cmp.Or(s.want[got], "order-1"); from == e.Data.Request.ID && s.seen[got] == nil {
			s.seen[got] = m.Data()
		}
		if e.Data.Request.ID == id && got == kind {
			return
		}
	}
}

// journal reads all events from the first on.
func (s *stage) journal() jetstream.MessagesContext {
	s.t.Helper()
	cons, err := s.js.OrderedConsumer(patient(s.t), "GUESTFLOW_EVENTS", jetstream.OrderedConsumerConfig{})
	if err != nil {
		s.t.Fatal(err)
	}
	messages, err := cons.Messages()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(messages.Stop)
	return messages
}

// play has every kind of event come about.
func (s *stage) play() {
	s.t.Helper()
	s.want = map[string]string{"run.released": "order-2", "run.resumed": "order-2", "run.canceled": "order-2",
		"run.failed": "order-3", "run.waiting": "order-4",
		"process.unreachable": "order-5", "rejected": "order-6", "customize.aborting": "order-7",
		"customize.aborted": "order-7"}
	vms := map[string]sandbox.VM{}
	for _, vm := range s.box.VMs() {
		if _, twice := vms[vm.Ends]; !twice {
			vms[vm.Ends] = vm
		}
		if strings.Contains(vm.Shows, "busy") {
			vms["busy"] = vm
		}
		if strings.Contains(vm.Shows, "aborted") {
			vms["aborted"] = vm
		}
	}
	request := func(id string, vm sandbox.VM) json.RawMessage {
		return s.publish("guestflow.requests.lab."+vm.ID, "requested", id, vm.ID, string(vm.Request))
	}
	processes := func(vm string) string {
		return fmt.Sprintf(`{"vm":%q,"guest":{"credentials":{"secretRef":"linux-root"}},`+
			`"processes":[{"name":"join-domain","run":{"path":"/usr/bin/join-domain"}}]}`, vm)
	}
	// A replica that is drained gives its run back; another takes it over; the run is canceled.
	first := s.serve("pod-a")
	canceled := vms["run.canceled"].ID
	s.publish("guestflow.requests.lab."+canceled, "requested", "order-2", canceled, processes(canceled))
	journal := s.journal()
	s.until(journal, "order-2", "process.started")
	s.serve("pod-b")
	first()
	s.until(journal, "order-2", "run.resumed")
	s.seen["cancel.requested"] = s.publish("guestflow.cancels.lab."+canceled, "cancel.requested", "cancel-1", canceled,
		fmt.Sprintf(`{"vm":%q,"request":{"source":"/provisioning","id":"order-2"},"reason":"no longer wanted"}`,
			canceled))
	s.until(journal, "order-2", "run.canceled")

	request("order-3", vms["run.failed ExitCode"])
	request("order-4", vms["busy"])
	aborted := vms["aborted"].ID
	s.publish("guestflow.requests.lab."+aborted, "requested", "order-7", aborted,
		fmt.Sprintf(`{"vm":%q,"guest":{"credentials":{"secretRef":"linux-root"}},`+
			`"customize":{"spec":{"identity":{"_typeName":"CustomizationLinuxPrep",`+
			`"hostName":{"_typeName":"CustomizationFixedName","name":"web-7"},"domain":"example.com"},`+
			`"globalIPSettings":{},`+
			`"nicSettingMap":[{"adapter":{"ip":{"_typeName":"CustomizationDhcpIpGenerator"}}}]}},"verify":false}`,
			aborted))
	guest := s.prod.VM(s.prod.VMs()[0])
	guest.Configure(func(g *vcsim.Guest) { g.Programs["/usr/bin/join-domain"] = vcsim.Program{Duration: time.Hour} })
	s.publish("guestflow.requests.prod."+guest.ID(), "requested", "order-5", guest.ID(), processes(guest.ID()))
	s.until(journal, "order-5", "process.started")
	guest.HangTools()
	s.until(journal, "order-5", "process.unreachable")
	s.publish("guestflow.cancels.prod."+guest.ID(), "cancel.requested", "cancel-2", guest.ID(),
		fmt.Sprintf(`{"vm":%q,"request":{"source":"/provisioning","id":"order-5"}}`, guest.ID()))
	guest.UnhangTools()
	well := vms["run.succeeded"]
	s.publish("guestflow.requests.lab."+well.ID, "requested", "order-6", well.ID,
		fmt.Sprintf(`{"vm":%q,"customise":{}}`, well.ID))
	s.until(journal, "order-6", "rejected")
	s.seen["requested"] = request("order-1", well)
	s.until(journal, "order-1", "run.succeeded")
	for id, kind := range map[string]string{"order-3": "run.failed", "order-4": "run.waiting",
		"order-7": "customize.aborted"} {
		if s.seen[kind] == nil {
			s.until(journal, id, kind)
		}
	}
}

// pretty writes JSON with its members in their order, on one line where that is short enough.
func pretty(t *testing.T, raw json.RawMessage, indent string) string {
	t.Helper()
	var flat bytes.Buffer
	if err := json.Compact(&flat, raw); err != nil {
		t.Fatal(err)
	}
	line := flat.String()
	if len(indent)+len(line) < wide || !strings.ContainsAny(line[:1], "{[") {
		return line
	}
	d := json.NewDecoder(strings.NewReader(line))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	inner, items := indent+"  ", []string{}
	for d.More() {
		name := ""
		if line[0] == '{' {
			key, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			name = fmt.Sprintf("%q: ", key)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		if name == `"checkpoint": ` {
			continue // guestflow's own
		}
		items = append(items, inner+name+pretty(t, value, inner))
	}
	return line[:1] + "\n" + strings.Join(items, ",\n") + "\n" + indent + line[len(line)-1:]
}

var example = regexp.MustCompile("(?s)```json\n(.*?)\n```")

// changing is what differs from run to run, and stable what stands for it.
var changing = []struct {
	what   *regexp.Regexp
	stable string
}{
	{regexp.MustCompile(`"\d{4}-\d\d-\d\dT[^"]+"`), `"TIME"`},
	{regexp.MustCompile(`task-\d+`), "TASK"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`), "UUID"},
	{regexp.MustCompile(`"progress":\d+`), `"progress":0`},
	{regexp.MustCompile(`"n":\d+`), `"n":0`},
	{regexp.MustCompile(`\b[a-z2-7]{26}\b`), `RUN`}, // it is made of the VM's ID too
	{regexp.MustCompile(`("id":"RUN|"id":"rejected)\.\d+`), `$1.0`},
	// whether a process that was told to stop is read once more before its run's end
	{regexp.MustCompile(`("command":"(?:[^"\\]|\\.)*","startedAt":"TIME"),"finishedAt":"TIME"`), `$1`},
	// the guest's status and the Task's progress come side by side
	{regexp.MustCompile(`,"guest":\{"status":"RUNNING","startTime":"TIME"\}`), ``},
}

func stable(t *testing.T, raw string) string {
	t.Helper()
	var flat bytes.Buffer
	if err := json.Compact(&flat, []byte(raw)); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	text := flat.String()
	for _, c := range changing {
		text = c.what.ReplaceAllString(text, c.stable)
	}
	return text
}

// Every kind of event is on the page, as a run on the sandbox produced it.
func TestEvents(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.play()
	page := read(t, eventsPage)
	shown := sections(page, "### ")
	kinds := constants(t, "Kind")
	if got := slices.Sorted(maps.Keys(shown)); !slices.Equal(got, kinds) {
		t.Errorf("the page has %s, the contract %s", got, kinds)
	}
	for _, kind := range kinds {
		got, text := s.seen[kind], shown[kind]
		if got == nil || text == "" {
			t.Errorf("%s: no event (%t) or no section (%t)", kind, got == nil, text == "")
			continue
		}
		fresh := pretty(t, got, "")
		old := example.FindStringSubmatch(text)
		if old == nil {
			t.Fatalf("%s has no example", kind)
		}
		if *update && stable(t, fresh) != stable(t, old[1]) {
			before, _, _ := strings.Cut(text, old[0])
			before = "\n### `" + kind + "`\n" + before
			page = strings.Replace(page, before+old[0], before+"```json\n"+fresh+"\n```", 1)
			continue
		}
		valid(t, kind, old[1])
		if differ := diff.Diff(stable(t, old[1]), stable(t, fresh)); differ != "" {
			t.Errorf("%s: the page has another event than a run (go test ./docs -run TestEvents -update writes it): "+
				"-page +run\n%s", kind, differ)
		}
	}
	if *update {
		if err := os.WriteFile(eventsPage, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// valid holds an example against the schema of its data.
func valid(t *testing.T, kind, text string) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	schema := schemas.Run
	switch kind {
	case "requested":
		schema = schemas.Requested
	case "cancel.requested":
		schema = schemas.CancelRequested
	}
	e := doc.(map[string]any)
	if e["type"] != prefix+kind+".v1" {
		t.Errorf("%s: type %v", kind, e["type"])
	}
	for _, p := range schemas.CheckStrict(schema, e["data"]) {
		t.Errorf("%s: %s", kind, p)
	}
}
