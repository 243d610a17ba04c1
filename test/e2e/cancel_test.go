package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// forEver is a step that only a cancel ends.
const forEver = time.Hour

// A cancel of a queued run lets it end without a call when its turn comes; one of a running one stops it in vCenter,
// whatever it is at; one that has nothing to cancel is refused.
func TestCancels(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	briefGuests(s.vc)
	vms := s.vc.VMs()
	s.replicate(1)

	t.Run("queued", func(t *testing.T) {
		vm := vms[0]
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Second })
		s.publish(vm, "first", fullRequest("exit 0"))
		s.await("first", "customize.starting")
		s.publish(vm, "second", fullRequest("exit 0"))
		s.cancel(vm, "cancel second", "second")
		if e := s.ended("second"); e.kind != "run.canceled" || e.run.N != 1 || e.run.Customize.State != "" {
			t.Errorf("ended with %s: %s", e.kind, e.Data)
		}
		s.settled("second", vm)
		all := s.stored(vm)
		if n := len(all); n < 2 || all[n-1].run.Request.ID != "second" || all[n-2].kind != "run.succeeded" ||
			len(s.numbered("second", vm)) != 1 {
			t.Errorf("events: %v", kindsOf(all))
		}
		s.once("first", vm)
		// the first one's last event has the time when it was made, before it was stored
		for _, c := range s.vc.Calls() {
			if c.VM == vm && c.Time.After(all[len(all)-2].run.FinishedAt.Add(time.Millisecond)) {
				t.Errorf("%s was called for a run that was canceled in the queue", c.Op)
			}
		}
	})
	for n, test := range []struct {
		name, at string
		guest    func(*vcsim.Guest)
		script   string
		stopped  func(vcsim.Effects) bool
		state    func(runData) string
	}{
		{"customize", "customize.started", func(g *vcsim.Guest) { g.CustomizeTime = forEver }, "exit 0",
			func(e vcsim.Effects) bool { return e.Customizations == 1 && e.NetworkStarts == 0 && e.Aborts == 0 },
			func(r runData) string { return r.Customize.State }},
		{"customize, not cancelable", "customize.started", func(g *vcsim.Guest) {
			g.CustomizeTime, g.Cancelable = forEver, false
		}, "exit 0",
			func(e vcsim.Effects) bool { return e.Customizations == 1 && e.NetworkStarts == 0 && e.Aborts == 1 },
			func(r runData) string { return r.Customize.State }},
		{"network", "network.started", func(g *vcsim.Guest) { g.NetworkTime = forEver }, "exit 0",
			func(e vcsim.Effects) bool { return e.NetworkStarts == 1 && len(e.Processes) == 0 },
			func(r runData) string { return r.Network.State }},
		{"process", "process.started", func(*vcsim.Guest) {}, "sleep 3600",
			func(e vcsim.Effects) bool { return len(e.Processes) == 1 && len(e.Deleted) == 1 },
			func(r runData) string { return r.Processes[0].State }},
	} {
		t.Run(test.name, func(t *testing.T) {
			vm := vms[n+1]
			s.vc.VM(vm).Configure(test.guest)
			s.publish(vm, test.name, fullRequest(test.script))
			s.await(test.name, test.at)
			begun := time.Now()
			s.cancel(vm, "cancel "+test.name, test.name)
			e := s.ended(test.name)
			t.Logf("canceled after %s: %v", e.at.Sub(begun).Round(time.Millisecond), kindsOf(s.events(test.name)))
			if e.kind != "run.canceled" || test.state(e.run) != "canceled" || e.run.Error.Code != "Canceled" {
				t.Errorf("ended with %s, the step is %s: %s", e.kind, test.state(e.run), e.Data)
			}
			s.settled(test.name, vm)
			s.numbered(test.name, vm)
			if e := s.vc.VM(vm).Effects(); !test.stopped(e) {
				t.Errorf("in vCenter: %+v", e)
			}
			// The VM is free for the next one.
			briefGuests(s.vc)
			s.publish(vm, test.name+", afterwards", fullRequest("exit 0"))
			if e := s.ended(test.name + ", afterwards"); e.kind != "run.succeeded" {
				t.Errorf("the request that followed ended with %s: %+v", e.kind, e.run.Error)
			}
		})
	}
	for _, request := range []string{"nobody", "first", "second"} {
		t.Run("nothing to cancel: "+request, func(t *testing.T) {
			vm, id := vms[0], "cancel "+request+" too late"
			if request == "nobody" {
				vm = vms[6]
			}
			before := len(s.stored(vm))
			seq := s.cancel(vm, id, request)
			if e := s.ended(id); e.kind != "rejected" || e.run.Error.Code != "NothingToCancel" ||
				e.ID != fmt.Sprintf("rejected.%d", seq) {
				t.Errorf("%s %s: %+v", e.kind, e.ID, e.run.Error)
			}
			s.emptied()
			if after := len(s.stored(vm)); after != before {
				t.Errorf("the VM's journal has %d events, had %d", after, before)
			}
		})
	}
	t.Run("before its request", func(t *testing.T) {
		s.publish(vms[6], "nobody", fullRequest("exit 0")) // its cancel was refused: nobody knew of it
		if e := s.ended("nobody"); e.kind != "run.succeeded" {
			t.Errorf("ended with %s: %+v", e.kind, e.run.Error)
		}
		s.settled("nobody", vms[6])
		s.once("nobody", vms[6])
	})
}

// A run is stopped by its owner at once, also where JetStream hands the cancel to somebody else, who only holds it. On
// a replicated stream the owner hears of the cancel before it is stored.
func TestCancelIsHeardByTheOwner(t *testing.T) {
	t.Parallel()
	for _, copies := range []int{1, 3} {
		t.Run(fmt.Sprintf("R%d", copies), func(t *testing.T) {
			t.Parallel()
			if copies == 1 {
				cancelHeard(t, startNATS(t), copies)
				return
			}
			cancelHeard(t, natstest.StartCluster(t, copies).URL(), copies)
		})
	}
}

func cancelHeard(t *testing.T, natsURL string, copies int) {
	t.Helper()
	s := newHarness(t, natsURL, vcsim.Options{})
	for _, vm := range s.vc.VMs() {
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = forEver })
	}
	s.start("GUESTFLOW_INSTANCE=owner", "GUESTFLOW_ACK_WAIT=30s", fmt.Sprintf("GUESTFLOW_STREAM_REPLICAS=%d", copies))
	for _, vm := range s.vc.VMs() {
		s.publish(vm, vm, fullRequest("exit 0"))
		s.await(vm, "customize.started")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	consumer, err := s.js.Consumer(ctx, "GUESTFLOW_REQUESTS_lab", "guestflow-cancels-lab")
	if err != nil {
		t.Fatal(err)
	}
	// The server hands the cancels to whoever asks, in turn: to the service, and to this test, which plays the other
	// replica.
	taken := make(chan jetstream.Msg, len(s.vc.VMs()))
	consuming, err := consumer.Consume(func(m jetstream.Msg) { taken <- m }, jetstream.PullMaxMessages(1))
	if err != nil {
		t.Fatal(err)
	}
	defer consuming.Stop()
	for _, vm := range s.vc.VMs() {
		begun := time.Now()
		s.cancel(vm, "cancel "+vm, vm)
		if e := s.ended(vm); e.kind != "run.canceled" || e.run.Owner.Instance != "owner" || e.run.Owner.Takeovers != 0 {
			t.Errorf("ended with %s: %+v", e.kind, e.run.Owner)
		}
		t.Logf("canceled after %s", time.Since(begun).Round(time.Millisecond))
	}
	consuming.Stop()
	<-consuming.Closed()
	if len(taken) == 0 {
		t.Fatal("the service got every cancel")
	}
	for range len(taken) {
		if err := (<-taken).Nak(); err != nil {
			t.Error(err)
		}
	}
	s.until("the cancel is acknowledged", func() bool {
		info, err := consumer.Info(ctx)
		return err == nil && info.NumAckPending == 0 && info.NumPending == 0
	})
	for _, vm := range s.vc.VMs() {
		if refused := s.events("cancel " + vm); len(refused) > 0 {
			t.Errorf("a cancel that did its work was refused: %+v", refused[0].run.Error)
		}
	}
}
