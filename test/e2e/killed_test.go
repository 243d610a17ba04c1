package e2e

import (
	"flag"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

var kills = flag.Int("kills", 1, "how many servers TestServersKilledUnderLoad kills, one every ten seconds")

// Three servers, one killed every ten seconds under load, when the one before is current again; each time another
// process starts, and sweeps: it may be shown streams as they were. No run ends other than it would without: all
// succeed, everything was done once, in the stream's order.
func TestServersKilledUnderLoad(t *testing.T) {
	t.Parallel()
	const between = 10 * time.Second
	cluster := natstest.StartProcesses(t, 3)
	s := newHarness(t, cluster.URL(), vcsim.Options{VMs: 12, VisibilityLag: 100 * time.Millisecond})
	for _, id := range s.vc.VMs() {
		s.vc.VM(id).Configure(func(g *vcsim.Guest) {
			g.CustomizeTime, g.NetworkTime = 1500*time.Millisecond, 300*time.Millisecond
		})
	}
	r := s.replicate(3, "GUESTFLOW_ACK_WAIT=5s")
	s.until("streams and consumers with all their copies", s.replicated)

	var stop atomic.Bool
	var publishing sync.WaitGroup
	published := make([][]string, len(s.vc.VMs()))
	for i, vm := range s.vc.VMs() {
		publishing.Go(func() { published[i] = s.keepBusy(vm, &stop) })
	}
	begun := time.Now()
	for n := range *kills {
		pace := time.NewTimer(between)
		victim := cluster.Named(s.leaderOf([]string{"GUESTFLOW_REQUESTS_lab", "GUESTFLOW_EVENTS"}[n%2]))
		victim.Kill()
		<-pace.C // long enough for what it misses to be more than a few messages
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		sweeper := r.begin("sweeper")
		s.until("streams and consumers with all their copies", s.replicated)
		if err := sweeper.stop(); err != nil {
			t.Errorf("the process that swept, after SIGTERM: %v", err)
		}
	}
	stop.Store(true)
	publishing.Wait()
	s.emptied()

	runs, taken, ends := 0, 0, map[string]int{}
	all := s.everything()
	for i, vm := range s.vc.VMs() {
		of, order := map[string][]event{}, []string{}
		for _, e := range all[vm] {
			id := e.run.Request.ID
			if of[id] = append(of[id], e); len(of[id]) == 1 {
				order = append(order, id)
			}
			if isLast(e.kind) {
				ends[e.kind+" "+e.run.Error.Code]++
				taken += e.run.Owner.Takeovers
			}
		}
		if !slices.Equal(order, published[i]) {
			t.Errorf("%s: ran %v, the stream took %v", vm, order, published[i])
		}
		for _, id := range order {
			s.inOrder(id, vm, of[id])
			if last := of[id][len(of[id])-1]; last.kind != "run.succeeded" {
				t.Errorf("%s on %s ended with %s: %+v: %v", id, vm, last.kind, last.run.Error, kindsOf(of[id]))
			}
		}
		runs += len(order)
		if e := s.vc.VM(vm).Effects(); e.Customizations != len(order) || e.NetworkStarts != len(order) ||
			len(e.Processes) != len(order) {
			t.Errorf("%s: %d runs, customized %d times, its network started %d times, %d processes", vm, len(order),
				e.Customizations, e.NetworkStarts, len(e.Processes))
		}
	}
	t.Logf("%d servers killed in %s: %d runs, ends %v, %d takeovers", *kills, time.Since(begun).Round(time.Second),
		runs, ends, taken)
}

// keepBusy publishes one request for a VM after the other, as its queue has room, until stop is set; it returns their
// IDs. A publish without an answer is sent again: the stream may hold the request twice then, which is one run.
func (s *harness) keepBusy(vm string, stop *atomic.Bool) (ids []string) {
	for n := 0; !stop.Load(); n++ {
		id := fmt.Sprintf("%s-%d", vm, n)
		for {
			data := fullRequest("exit 0")
			data["vm"] = vm
			if _, err := s.sendWithin(2*time.Second, "guestflow.requests."+s.vcenter+"."+vm, vm, id, "requested",
				data); err == nil {
				ids = append(ids, id)
				break
			}
			// its queue is full, or nobody knows whether it was stored: it is sent until it is
			again := time.NewTimer(200 * time.Millisecond)
			<-again.C
		}
	}
	return ids
}
