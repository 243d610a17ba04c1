package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// fastGuests makes every guest customize in a moment.
func fastGuests(vc *vcsim.VCenter) {
	for _, id := range vc.VMs() {
		vc.VM(id).Configure(func(g *vcsim.Guest) {
			g.CustomizeTime, g.NetworkTime = 300*time.Millisecond, 100*time.Millisecond
		})
	}
}

func TestRequestToExitCode(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	fastGuests(s.vc)
	p := s.start()
	vm := s.vc.VMs()[0]
	s.publish(vm, "r-1", fullRequest("exit 0"))
	if e := s.ended("r-1"); e.kind != "run.succeeded" {
		t.Fatalf("ended with %s: %s", e.kind, e.Data)
	}
	var kinds []string
	for _, k := range kindsOf(s.events("r-1")) {
		if k != "customize.progressed" {
			kinds = append(kinds, k)
		}
	}
	want := []string{"run.accepted", "check.completed", "customize.starting", "customize.started",
		"customize.completed", "network.starting", "network.started",
		"network.completed", "verify.completed", "process.starting", "process.started", "process.exited",
		"run.succeeded"}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	s.once("r-1", vm)
	end := s.ended("r-1").run
	if end.Check.Status != "SUPPORTED" || end.Customize.State != "succeeded" || end.Network.State != "succeeded" ||
		*end.Processes[0].ExitCode != 0 {
		t.Errorf("the last event says %+v", end)
	}
	if status, body := p.get("/metrics"); status != http.StatusOK ||
		!strings.Contains(body, `guestflow_runs_finished_total{code="",outcome="succeeded",vcenter="lab"} 1`) ||
		!strings.Contains(body, `guestflow_vcenter_up{vcenter="lab"} 1`) {
		t.Errorf("/metrics: %d\n%s", status, body)
	}
	if status, _ := p.get("/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d", status)
	}
	if err := p.stop(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func TestFailuresAreNamed(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	fastGuests(s.vc)
	vms := s.vc.VMs()
	s.vc.VM(vms[1]).Configure(func(g *vcsim.Guest) { g.Supported = false })
	s.vc.VM(vms[2]).PowerOff()
	s.vc.VM(vms[3]).Configure(func(g *vcsim.Guest) { g.Password = "another" })
	s.vc.VM(vms[4]).Configure(func(g *vcsim.Guest) { g.Engine = false })
	s.start()
	unknown := fullRequest("exit 0")
	unknown["guest"] = map[string]any{"credentials": map[string]any{"secretRef": "nobody"}}
	for _, test := range []struct {
		name, vm   string
		data       map[string]any
		step, code string
	}{
		{"exit code", vms[0], fullRequest("exit 3"), "process", "ExitCode"},
		{"guest OS", vms[1], fullRequest("exit 0"), "check", "NotCustomizable"},
		{"powered off", vms[2], fullRequest("exit 0"), "check", "PowerState"},
		{"guest login", vms[3], fullRequest("exit 0"), "customize", "GuestLoginRefused"},
		{"no engine", vms[4], fullRequest("exit 0"), "customize", "CustomizationFailed"},
		{"no such VM", "vm-404404", fullRequest("exit 0"), "check", "NotFound"},
		{"no such secret", vms[5], unknown, "check", "UnknownSecret"},
	} {
		t.Run(test.name, func(t *testing.T) {
			id := "failing " + test.name
			s.publish(test.vm, id, test.data)
			e := s.ended(id)
			if e.kind != "run.failed" || e.run.Error.Step != test.step || e.run.Error.Code != test.code {
				t.Errorf("ended with %s, error %+v; want step %s, code %s", e.kind, e.run.Error, test.step, test.code)
			}
		})
	}
}

// While a guest customizes, its run makes no call of its own: the one long poll of the vCenter tells.
func TestWaitingMakesNoCall(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	vm := s.vc.VMs()[0]
	s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = 4 * time.Second })
	s.start()
	s.publish(vm, "r-1", fullRequest("exit 0"))
	s.await("r-1", "customize.started")
	s.await("r-1", "customize.progressed") // the poll knows the Task by now
	count := func() (n int) {
		for _, c := range s.vc.Calls() {
			if c.Op != "WaitForUpdatesEx" {
				n++
			}
		}
		return n
	}
	before := count()
	var during int
	// The Task's end is seen in vCenter itself: right before the run hears of it.
	for seen := false; !seen; {
		s.mu.Lock()
		change := s.change
		s.mu.Unlock()
		for _, e := range s.events("r-1") {
			seen = seen || e.kind == "customize.completed"
		}
		if !seen {
			during = count() - before
			<-change
		}
	}
	if during != 0 {
		t.Errorf("%d calls beside the long poll while the guest customized", during)
	}
	s.ended("r-1")
}
