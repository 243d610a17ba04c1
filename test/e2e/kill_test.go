package e2e

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// act is a call that changes a guest, and the events of its intent and its fact.
type act struct{ op, starting, started string }

var acts = []act{
	{"CustomizeGuest_Task", "customize.starting", "customize.started"},
	{"StartGuestNetwork_Task", "network.starting", "network.started"},
	{"guest/processes create", "process.starting", "process.started"},
}

// The service is killed with SIGKILL around each call that changes the guest and started again: the run succeeds, and
// everything was done once.
func TestKilledAroundEachAct(t *testing.T) {
	t.Parallel()
	type kill struct {
		act
		point string
	}
	var kills []kill
	for _, act := range acts {
		for _, point := range []string{"when the intent is stored", "before the call arrives",
			"with the call on its way", "with the call done and not answered", "when the fact is stored"} {
			kills = append(kills, kill{act, point})
		}
	}
	for _, k := range sample(kills) {
		act, point := k.act, k.point
		t.Run(act.op+"/"+point, func(t *testing.T) {
			t.Parallel()
			s := newHarness(t, startNATS(t), vcsim.Options{VisibilityLag: 200 * time.Millisecond})
			fastGuests(s.vc)
			vm := s.vc.VMs()[0]
			p := s.start()
			var once sync.Once
			s.vc.OnCall(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
				if c.Op != act.op {
					return vcsim.Proceed
				}
				action := vcsim.Proceed
				switch {
				case point == "before the call arrives" && phase == vcsim.Before,
					point == "with the call done and not answered" && phase == vcsim.After:
					once.Do(func() { p.kill(); action = vcsim.Drop })
				case point == "with the call on its way" && phase == vcsim.Before:
					once.Do(p.kill)
				}
				return action
			})
			s.publish(vm, "r-1", fullRequest("exit 0"))
			switch point {
			case "when the intent is stored":
				s.await("r-1", act.starting)
				p.kill()
			case "when the fact is stored":
				s.await("r-1", act.started)
				p.kill()
			default:
				<-p.done
			}
			s.start()
			if e := s.ended("r-1"); e.kind != "run.succeeded" || e.run.Owner.Takeovers == 0 {
				t.Errorf("ended with %s after %d takeovers: %+v; events: %v", e.kind, e.run.Owner.Takeovers,
					e.run.Error, kindsOf(s.events("r-1")))
			}
			s.once("r-1", vm)
		})
	}
}

// SIGTERM gives the run back in a moment: the next process goes on with it, and nothing is done twice.
func TestTerminatedInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"customize.started", "network.started", "process.started"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newHarness(t, startNATS(t), vcsim.Options{})
			vm := s.vc.VMs()[0]
			s.vc.VM(vm).Configure(func(g *vcsim.Guest) {
				g.CustomizeTime, g.NetworkTime = 2*time.Second, 2*time.Second
			})
			p := s.start()
			s.publish(vm, "r-1", fullRequest("sleep 3; exit 0"))
			s.await("r-1", kind)
			if err := p.stop(); err != nil {
				t.Errorf("after SIGTERM: %v", err)
			}
			s.await("r-1", "run.released")
			s.start()
			if e := s.ended("r-1"); e.kind != "run.succeeded" {
				t.Errorf("ended with %s: %+v", e.kind, e.run.Error)
			}
			if kinds := kindsOf(s.events("r-1")); !slices.Contains(kinds, "run.resumed") {
				t.Errorf("no run.resumed in %v", kinds)
			}
			s.once("r-1", vm)
		})
	}
}
