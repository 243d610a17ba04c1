package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// NATS is away in the middle of runs, for several ack waits: the runs go on where they were, nothing is done twice, and
// the log tells it in few lines.
func TestNATSAway(t *testing.T) {
	t.Parallel()
	server := natstest.StartServer(t)
	s := newHarness(t, server.URL(), vcsim.Options{})
	for _, vm := range s.vc.VMs() {
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) {
			g.CustomizeTime, g.NetworkTime = time.Second, 100*time.Millisecond
		})
	}
	r := s.replicate(1)
	for _, vm := range s.vc.VMs() {
		s.publish(vm, vm, fullRequest("exit 0"))
	}
	for _, vm := range s.vc.VMs() {
		s.await(vm, "customize.started")
	}
	lines := func() (n int) {
		for _, instance := range instances {
			said := r.replica(instance).log.String()
			n += strings.Count(said, `"level":"warn"`) + strings.Count(said, `"level":"error"`)
		}
		return n
	}
	before := lines()
	server.Stop()
	outage := time.NewTimer(8 * time.Second)
	<-outage.C
	during := lines() - before
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	for _, vm := range s.vc.VMs() {
		s.settled(vm, vm)
		s.once(vm, vm)
		t.Logf("%s: %v", vm, kindsOf(s.stored(vm)))
	}
	t.Logf("%d warnings while NATS was away, of two replicas with %d runs in hand", during, len(s.vc.VMs()))
	// Once for each thing that a run waits for (an append, a look for cancels, its VM's last event), and a few about
	// the connection, however long it lasts.
	if most := 3*len(s.vc.VMs()) + 4*len(instances); during > most {
		t.Errorf("%d warnings while NATS was away, more than %d", during, most)
		for _, instance := range instances {
			t.Logf("%s:\n%s", instance, r.replica(instance).log)
		}
	}
}

// NATS that is not there when the service starts does not end it: it is not ready, and takes requests once NATS has
// come.
func TestStartsWithoutNATS(t *testing.T) {
	t.Parallel()
	server := natstest.StartServer(t)
	s := newHarness(t, server.URL(), vcsim.Options{})
	briefGuests(s.vc)
	server.Stop()
	p := s.launch()
	s.until("the service says that it waits for NATS", func() bool {
		return strings.Contains(p.log.String(), "cannot set up streams and consumers, trying again")
	})
	if status, _ := p.get("/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz without NATS: %d", status)
	}
	if status, _ := p.get("/livez"); status != http.StatusOK {
		t.Errorf("/livez without NATS: %d", status)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("the service is ready", func() bool {
		status, _ := p.get("/readyz")
		return status == http.StatusOK
	})
	vm := s.vc.VMs()[0]
	s.publish(vm, "r-1", fullRequest("exit 0"))
	s.settled("r-1", vm)
	s.once("r-1", vm)
}

// A vCenter that is away, or takes calls and does not answer, delays neither the service's start nor a run of another
// one; its own runs go on when it is back.
func TestDeadVCenterDelaysNoOther(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"stopped", "silent"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			url := startNATS(t)
			lab, dead := newHarnessNamed(t, url, "lab", vcsim.Options{}), newHarnessNamed(t, url, "dead",
				vcsim.Options{})
			briefGuests(lab.vc)
			briefGuests(dead.vc)
			lab.writeSecrets("dead")
			release := make(chan struct{})
			back := sync.OnceFunc(func() { close(release); dead.vc.Resume() })
			defer back()
			if how == "stopped" {
				dead.vc.Stop()
			} else {
				dead.vc.OnCall(func(vcsim.Call, vcsim.Phase) vcsim.Action {
					<-release
					return vcsim.Proceed
				})
			}
			env := []string{}
			for _, setting := range dead.env {
				if strings.HasPrefix(setting, "VCENTER_DEAD_") {
					env = append(env, setting)
				}
			}
			p := lab.start(append(env, "GUESTFLOW_VCENTERS=lab,dead")...)
			for i := range dead.vc.VMs() {
				dead.publish(dead.vc.VMs()[i], fmt.Sprintf("dead %d", i), fullRequest("exit 0"))
			}
			for i := range lab.vc.VMs() {
				lab.publish(lab.vc.VMs()[i], fmt.Sprintf("lab %d", i), fullRequest("exit 0"))
			}
			for i, vm := range lab.vc.VMs() {
				lab.settled(fmt.Sprintf("lab %d", i), vm)
				lab.once(fmt.Sprintf("lab %d", i), vm)
			}
			for i, vm := range dead.vc.VMs() {
				for _, e := range dead.stored(vm) {
					if e.kind != "run.accepted" && e.kind != "run.waiting" {
						t.Errorf("dead %d has got to %s", i, e.kind)
					}
				}
			}
			if how == "stopped" {
				if e := dead.await("dead 0", "run.waiting"); e.run.Waiting != "vcenter-unavailable" {
					t.Errorf("waiting for %q, want vcenter-unavailable", e.run.Waiting)
				}
				if _, body := p.get("/metrics"); !strings.Contains(body, `guestflow_vcenter_up{vcenter="dead"} 0`) {
					t.Error("guestflow_vcenter_up of the dead vCenter is not 0")
				}
			}
			if status, body := p.get("/readyz"); status != http.StatusOK {
				t.Errorf("/readyz: %d %s", status, body)
			}
			back()
			for i, vm := range dead.vc.VMs() {
				dead.settled(fmt.Sprintf("dead %d", i), vm)
				dead.once(fmt.Sprintf("dead %d", i), vm)
			}
		})
	}
}

// A VM whose queue is full refuses the next request, and leaves the other VMs alone.
func TestFullQueueLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	briefGuests(s.vc)
	full, others := s.vc.VMs()[:2], s.vc.VMs()[2:]
	for _, vm := range full {
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = forEver })
	}
	s.start("GUESTFLOW_QUEUE_PER_VM=2", "VCENTER_LAB_MAX_IN_FLIGHT=6")
	for _, vm := range full {
		s.publish(vm, vm+" 1", fullRequest("exit 0"))
		s.publish(vm, vm+" 2", fullRequest("exit 0"))
		_, err := s.tryPublish(vm, vm+" 3", fullRequest("exit 0"))
		if api := new(jetstream.APIError); !errors.As(err, &api) || api.ErrorCode != 10077 {
			t.Errorf("the third request for %s: %v, want 10077", vm, err)
		}
	}
	for _, vm := range full {
		s.await(vm+" 1", "customize.started")
	}
	for round := range 2 {
		for _, vm := range others {
			s.publish(vm, fmt.Sprintf("%s round %d", vm, round), map[string]any{"verify": false,
				"network": map[string]any{}, "guest": fullRequest("")["guest"]})
		}
	}
	for round := range 2 {
		for _, vm := range others {
			if e := s.ended(fmt.Sprintf("%s round %d", vm, round)); e.kind != "run.succeeded" {
				t.Errorf("%s ended with %s: %+v", vm, e.kind, e.run.Error)
			}
		}
	}
	for _, vm := range full {
		s.cancel(vm, "cancel "+vm, vm+" 1")
		briefGuests(s.vc)
		if e := s.ended(vm + " 2"); e.kind != "run.succeeded" {
			t.Errorf("%s 2 ended with %s: %+v", vm, e.kind, e.run.Error)
		}
	}
	s.emptied()
}

// MaxAckPending, the cap, follows the setting at the next start, up and down, also while requests are in hand.
func TestCapFollowsTheSetting(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	for _, vm := range s.vc.VMs() {
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = 500 * time.Millisecond })
	}
	for i, limit := range []int{4, 2, 8} {
		p := s.start(fmt.Sprintf("VCENTER_LAB_MAX_IN_FLIGHT=%d", limit))
		if i == 0 {
			for _, vm := range s.vc.VMs() {
				s.publish(vm, vm, fullRequest("exit 0"))
			}
			s.await(s.vc.VMs()[0], "customize.started")
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		consumer, err := s.js.Consumer(ctx, "GUESTFLOW_REQUESTS_lab", "guestflow-requests-lab")
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if have := consumer.CachedInfo().Config.MaxAckPending; have != limit {
			t.Errorf("MaxAckPending is %d, the setting says %d", have, limit)
		}
		if i == 2 {
			break
		}
		if err := p.stop(); err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}
	for _, vm := range s.vc.VMs() {
		s.settled(vm, vm)
		s.once(vm, vm)
	}
}

// A vCenter that is away for longer than a step may take fails no run, in whichever step it is: the steps' clocks stand
// still.
func TestVCenterAwayLongerThanASteps(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	briefGuests(s.vc)
	const limit, outage = "8s", 16 * time.Second
	steps := []struct{ step, after string }{{"customize", "customize.started"}, {"network", "network.started"},
		{"verify", "network.completed"}}
	vms := s.vc.VMs()[:len(steps)]
	s.vc.VM(vms[0]).Configure(func(g *vcsim.Guest) { g.CustomizeTime = outage - time.Second })
	s.vc.VM(vms[1]).Configure(func(g *vcsim.Guest) { g.NetworkTime = outage - time.Second })
	s.vc.VM(vms[2]).Configure(func(g *vcsim.Guest) { g.ReportDelay = outage - time.Second })
	s.start()
	for i, at := range steps {
		request := fullRequest("exit 0")
		section, _ := request[at.step].(map[string]any)
		if section == nil {
			section = map[string]any{}
		}
		section["timeout"] = limit
		request[at.step] = section
		s.publish(vms[i], vms[i], request)
	}
	for i, at := range steps {
		s.await(vms[i], at.after)
	}
	s.vc.Stop()
	for i := range steps {
		if e := s.await(vms[i], "run.waiting"); e.run.Waiting != "vcenter-unavailable" ||
			e.run.WaitingFor.Message == "" {
			t.Errorf("%s waits for %q: %q", vms[i], e.run.Waiting, e.run.WaitingFor.Message)
		}
	}
	away := time.NewTimer(outage)
	<-away.C
	s.vc.Resume()
	for _, vm := range vms {
		s.settled(vm, vm)
		s.once(vm, vm)
	}
}
