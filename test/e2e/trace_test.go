package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// span is what these tests read of a span, as OTLP JSON has it.
type span struct {
	TraceID    string `json:"traceId"`
	SpanID     string `json:"spanId"`
	Parent     string `json:"parentSpanId"`
	Name       string `json:"name"`
	Kind       int    `json:"kind"`
	Start      string `json:"startTimeUnixNano"`
	End        string `json:"endTimeUnixNano"`
	Attributes []struct {
		Key   string `json:"key"`
		Value struct {
			Text   string `json:"stringValue"`
			Number string `json:"intValue"`
		} `json:"value"`
	} `json:"attributes"`
	Status struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"status"`
}

func (s span) attribute(key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.Text + a.Value.Number
		}
	}
	return ""
}

// The kinds of OTLP.
const (
	clientSpan   = 3
	producerSpan = 4
	consumerSpan = 5
)

// receiver is the OpenTelemetry Collector's OTLP receiver, in a process of its own.
type receiver struct {
	t    *testing.T
	url  string
	said *logBuffer
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	command := filepath.Join(t.TempDir(), "otlp")
	if said, err := exec.Command("go", "build", "-C", "../../tools/otlp", "-o", command, ".").CombinedOutput(); err !=
		nil {
		t.Fatalf("build the receiver: %v\n%s", err, said)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	r := &receiver{t: t, url: "http://" + addr, said: &logBuffer{}}
	cmd := exec.Command(command, addr)
	cmd.Stdout, cmd.Stderr = r.said, r.said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return r
}

// settings make a service send its traces here, soon.
func (r *receiver) settings() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + r.url, "OTEL_BSP_SCHEDULE_DELAY=50",
		"OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test"}
}

// spans are those that came so far.
func (r *receiver) spans() (all []span) {
	r.t.Helper()
	text := r.said.String()
	for line := range strings.Lines(text[:strings.LastIndex(text, "\n")+1]) {
		var batch struct {
			Resources []struct {
				Scopes []struct {
					Spans []span `json:"spans"`
				} `json:"scopeSpans"`
			} `json:"resourceSpans"`
		}
		if err := json.Unmarshal([]byte(line), &batch); err != nil {
			r.t.Fatalf("the receiver said %q: %v", line, err)
		}
		for _, resource := range batch.Resources {
			for _, scope := range resource.Scopes {
				all = append(all, scope.Spans...)
			}
		}
	}
	return all
}

// One trace goes from the publisher to the subscribers, also where the run's owner is killed in the middle: the run and
// each of its steps are one span, every call and every append stands under the step that made it, and every event names
// the append that stored it.
func TestTraceAcrossATakeover(t *testing.T) {
	t.Parallel()
	collector := newReceiver(t)
	s := newHarness(t, startNATS(t), vcsim.Options{})
	fastGuests(s.vc)
	vm := s.vc.VMs()[0]
	s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.NetworkTime = time.Second })
	parents := map[string]string{} // of the events
	sub, err := s.conn.SubscribeSync("guestflow.events.lab." + vm + ".>")
	if err != nil {
		t.Fatal(err)
	}
	first := s.start(collector.settings()...)
	const traceID, publisher = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	data := fullRequest("exit 0")
	data["vm"] = vm
	request, err := json.Marshal(map[string]any{"specversion": "1.0", "id": "r-1", "source": "/test",
		"type":        "io.guestflow.customization.requested.v1",
		"traceparent": "00-" + traceID + "-" + publisher + "-01", "tracestate": "vendor=kept", "data": data})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.js.Publish(t.Context(), "guestflow.requests.lab."+vm, request); err != nil {
		t.Fatal(err)
	}
	s.until("the first owner's spans", func() bool {
		return slices.ContainsFunc(collector.spans(), func(s span) bool { return s.Name == "append network.started" })
	})
	first.kill()
	second := s.start(collector.settings()...)
	end := s.ended("r-1")
	if end.kind != "run.succeeded" || end.run.Owner.Takeovers != 1 {
		t.Fatalf("ended with %s after %d takeovers", end.kind, end.run.Owner.Takeovers)
	}
	for _, of := range []string{"guestflow_step_seconds_bucket", "guestflow_run_seconds_bucket",
		"guestflow_vcenter_call_seconds_bucket", "guestflow_runs_finished_total"} {
		exemplar := regexp.MustCompile(`(?m)^` + of + `\{.*# \{trace_id="` + traceID + `"\}`)
		s.until("an exemplar of "+of, func() bool { // the last event is heard before its append is answered
			_, body := second.getOpenMetrics()
			return exemplar.MatchString(body)
		})
	}
	if err := second.stop(); err != nil { // which sends what is left
		t.Errorf("after SIGTERM: %v", err)
	}
	for range s.events("r-1") {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		parents[s.read(m).ID] = traceparent(t, m)
		if !strings.Contains(string(m.Data), `"tracestate":"vendor=kept"`) {
			t.Errorf("event without the request's tracestate: %s", m.Data)
		}
	}

	spans := collector.spans()
	byID, byName := map[string]span{}, map[string][]span{}
	for _, one := range spans {
		if one.TraceID != traceID {
			t.Errorf("span %s is in trace %s", one.Name, one.TraceID)
		}
		if twice, ok := byID[one.SpanID]; ok {
			t.Errorf("spans %s and %s have the same ID", twice.Name, one.Name)
		}
		byID[one.SpanID] = one
		byName[one.Name] = append(byName[one.Name], one)
	}
	for _, one := range spans {
		if _, ok := byID[one.Parent]; !ok && one.Name != "run" {
			t.Errorf("span %s has the parent %q, which nobody reported", one.Name, one.Parent)
		}
		if one.Start > one.End {
			t.Errorf("span %s ends before it begins", one.Name)
		}
	}
	only := func(name string) span {
		if len(byName[name]) != 1 {
			t.Fatalf("%d spans %s, want one; all: %v", len(byName[name]), name, names(spans))
		}
		return byName[name][0]
	}
	run := only("run")
	if run.Parent != publisher || run.Kind != consumerSpan || run.attribute("guestflow.vm") != vm ||
		run.attribute("guestflow.outcome") != "succeeded" ||
		run.attribute("guestflow.takeovers") != "1" || run.Status.Code != 0 {
		t.Errorf("the run's span is %+v", run)
	}
	for _, step := range []string{"queue", "check", "customize", "network", "verify", "process"} {
		if one := only(step); one.Parent != run.SpanID || one.Start < run.Start || one.End > run.End {
			t.Errorf("step %s: %+v is not within the run's span %+v", step, one, run)
		}
	}
	for call, step := range map[string]string{"CustomizeGuest_Task": "customize", "StartGuestNetwork_Task": "network"} {
		if one := only(call); one.Parent != only(step).SpanID || one.Kind != clientSpan ||
			one.attribute("server.address") != "lab" {
			t.Errorf("call %s: %+v", call, one)
		}
	}
	for id, parent := range parents {
		id16 := strings.Split(parent, "-")[2]
		one, ok := byID[id16]
		if !ok || !strings.HasPrefix(one.Name, "append ") || one.Kind != producerSpan ||
			parent != fmt.Sprintf("00-%s-%s-01", traceID, id16) {
			t.Errorf("event %s names %s, which is span %+v", id, parent, one)
		}
	}
	s.silent("what was traced", collector.said.String())
	s.once("r-1", vm)
}

// What the publisher does not sample is not reported, and its events hand on the request's own traceparent.
func TestUnsampled(t *testing.T) {
	t.Parallel()
	collector := newReceiver(t)
	s := newHarness(t, startNATS(t), vcsim.Options{})
	fastGuests(s.vc)
	vms := s.vc.VMs()
	sub, err := s.conn.SubscribeSync("guestflow.events.lab." + vms[0] + ".run.succeeded")
	if err != nil {
		t.Fatal(err)
	}
	p := s.start(collector.settings()...)
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	request :=
		`{"specversion":"1.0","id":"r-1","source":"/test","type":"io.guestflow.customization.requested.v1",` +
			`"traceparent":"` + parent + `","data":{"vm":"` + vms[0] + `"}}`
	if _, err := s.js.Publish(t.Context(), "guestflow.requests.lab."+vms[0], []byte(request)); err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if got := traceparent(t, m); got != parent {
		t.Errorf("traceparent %s, want %s", got, parent)
	}
	s.publish(vms[1], "r-2", map[string]any{}) // in no trace: it is the beginning of one
	s.ended("r-2")
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	for _, one := range collector.spans() {
		if one.TraceID == "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Errorf("span %s is reported", one.Name)
		}
	}
	if !slices.Contains(names(collector.spans()), "run") {
		t.Error("a run in no trace is not reported")
	}
}

// A collector that does not answer costs no run, and the log says so once.
func TestCollectorAway(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	fastGuests(s.vc)
	p := s.start("OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY=20",
		"OTEL_EXPORTER_OTLP_TIMEOUT=100")
	for i, vm := range s.vc.VMs()[:2] {
		id := fmt.Sprintf("r-%d", i)
		s.publish(vm, id, fullRequest("exit 0"))
		if e := s.ended(id); e.kind != "run.succeeded" {
			t.Errorf("ended with %s", e.kind)
		}
	}
	const warning = "traces cannot be sent"
	s.until("the warning", func() bool { return strings.Contains(p.log.String(), warning) })
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(p.log.String(), warning); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, p.log)
	}
}

func names(spans []span) (all []string) {
	for _, s := range spans {
		all = append(all, s.Name)
	}
	return all
}

func traceparent(t *testing.T, m *nats.Msg) string {
	t.Helper()
	var e struct {
		TraceParent string `json:"traceparent"`
	}
	if err := json.Unmarshal(m.Data, &e); err != nil {
		t.Fatal(err)
	}
	return e.TraceParent
}

// getOpenMetrics reads the metrics in the form that has exemplars.
func (p *service) getOpenMetrics() (int, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+p.addr+"/metrics", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}
