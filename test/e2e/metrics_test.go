package e2e

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// metric is a series' value as /metrics shows it, "" where it is not there. labels are in the order of their names, as
// Prometheus writes them.
func (p *service) metric(series string) string {
	p.t.Helper()
	status, body := p.get("/metrics")
	if status != http.StatusOK {
		return ""
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// shows waits until /metrics shows all these.
func (s *harness) shows(p *service, want map[string]string) {
	s.t.Helper()
	for series, value := range want {
		s.until(series+" "+value, func() bool { return p.metric(series) == value })
	}
}

// The metrics tell where the requests stand: in the stream, behind an earlier one of their VM, in a step, or waiting
// and for what; and what became of them.
func TestMetricsTellWhereRequestsStand(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{VisibilityLag: 200 * time.Millisecond})
	fastGuests(s.vc)
	vms := s.vc.VMs()
	slow := s.vc.VM(vms[0])
	slow.Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
	var lose sync.Once
	s.vc.OnCall(func(c vcsim.Call, phase vcsim.Phase) (action vcsim.Action) {
		if c.Op == "StartGuestNetwork_Task" && phase == vcsim.After { // done, and its answer is lost
			lose.Do(func() { action = vcsim.Drop })
		}
		return action
	})
	p := s.start()

	s.publish(vms[0], "slow", fullRequest("exit 0"))
	s.publish(vms[0], "behind", fullRequest("exit 0"))
	s.publish(vms[1], "wrong", map[string]any{"nonsense": true})
	s.await("slow", "customize.started")
	s.shows(p, map[string]string{
		`guestflow_requests_in_hand{vcenter="lab"}`:                             "2",
		`guestflow_requests_behind{vcenter="lab"}`:                              "1",
		`guestflow_runs_in_flight{step="customize",vcenter="lab"}`:              "1",
		`guestflow_queue_requests{state="taken",vcenter="lab"}`:                 "2",
		`guestflow_queue_requests{state="pending",vcenter="lab"}`:               "0",
		`guestflow_requests_refused_total{code="InvalidRequest",vcenter="lab"}`: "1",
		`guestflow_stream_messages{stream="GUESTFLOW_DEADLETTERS"}`:             "1",
		`guestflow_stream_messages{stream="GUESTFLOW_REQUESTS_lab"}`:            "2",
		`guestflow_stream_max_bytes{stream="GUESTFLOW_EVENTS"}`:                 "0",
		`guestflow_runs_started_total{vcenter="lab"}`:                           "1",
		`guestflow_nats_connected`:                                              "1",
	})
	if age := p.metric(`guestflow_queue_oldest_seconds{vcenter="lab"}`); age == "" || age == "0" {
		t.Errorf("the oldest request is %q seconds old", age)
	}
	s.vc.Stop()
	s.shows(p, map[string]string{`guestflow_runs_waiting{reason="vcenter-unavailable",vcenter="lab"}`: "1",
		`guestflow_vcenter_up{vcenter="lab"}`: "0"})
	s.vc.Resume()
	s.shows(p, map[string]string{`guestflow_runs_waiting{reason="vcenter-unavailable",vcenter="lab"}`: "0",
		`guestflow_vcenter_up{vcenter="lab"}`: "1"})

	s.publish(vms[2], "lost", fullRequest("exit 0"))
	if e := s.ended("lost"); e.kind != "run.succeeded" {
		t.Errorf("ended with %s", e.kind)
	}
	s.cancel(vms[0], "c-1", "slow")
	s.ended("slow")
	slow.Configure(func(g *vcsim.Guest) { g.CustomizeTime = 300 * time.Millisecond })
	s.ended("behind")
	s.emptied()
	s.shows(p, map[string]string{
		`guestflow_requests_in_hand{vcenter="lab"}`:                                       "0",
		`guestflow_requests_behind{vcenter="lab"}`:                                        "0",
		`guestflow_runs_in_flight{step="customize",vcenter="lab"}`:                        "0",
		`guestflow_queue_requests{state="taken",vcenter="lab"}`:                           "0",
		`guestflow_queue_oldest_seconds{vcenter="lab"}`:                                   "0",
		`guestflow_calls_adopted_total{act="network",vcenter="lab"}`:                      "1",
		`guestflow_calls_uncertain_total{act="network",vcenter="lab"}`:                    "0",
		`guestflow_runs_finished_total{code="Canceled",outcome="canceled",vcenter="lab"}`: "1",
		`guestflow_step_seconds_count{outcome="canceled",step="customize",vcenter="lab"}`: "1",
		`guestflow_step_seconds_count{outcome="succeeded",step="check",vcenter="lab"}`:    "3",
		`guestflow_run_seconds_count{outcome="canceled",vcenter="lab"}`:                   "1",
		`guestflow_queue_seconds_count{vcenter="lab"}`:                                    "3",
		`guestflow_takeovers_total{vcenter="lab"}`:                                        "0",
		`guestflow_stream_messages{stream="GUESTFLOW_REQUESTS_lab"}`:                      "0",
	})
	// Of the network start whose answer was lost nobody knows when it began.
	for _, step := range []string{"network", "process"} {
		if n := p.metric(`guestflow_end_to_event_seconds_count{step="` + step + `",vcenter="lab"}`); n == "" ||
			n == "0" {
			t.Errorf("no end of a %s was measured", step)
		}
	}
}
