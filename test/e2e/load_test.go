package e2e

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

var requests = flag.Int("requests", 200, "how many requests TestManyRequests publishes, five for each VM")

// Many requests for many VMs over two replicas: per VM one after the other, in the order of the stream, never more
// runs at once than the cap, and each ends once.
func TestManyRequests(t *testing.T) {
	t.Parallel()
	const perVM, publishers = 5, 8
	vms := *requests / perVM
	limit := max(vms/3, 1)
	s := newHarness(t, startNATS(t), vcsim.Options{VMs: vms})
	for _, id := range s.vc.VMs() {
		s.vc.VM(id).Configure(func(g *vcsim.Guest) {
			g.CustomizeTime, g.NetworkTime = 50*time.Millisecond, 20*time.Millisecond
		})
	}
	r := s.replicate(1, fmt.Sprintf("GUESTFLOW_QUEUE_PER_VM=%d", perVM), fmt.Sprintf("%s=%d",
		s.setting("MAX_IN_FLIGHT"), limit), "GUESTFLOW_ACK_WAIT=30s")
	var mu sync.Mutex
	inOrder := map[string][]string{} // by VM: ids, as the stream took them
	begun := time.Now()
	var publishing sync.WaitGroup
	for p := range publishers {
		publishing.Go(func() {
			for n := range perVM {
				for i, vm := range s.vc.VMs() {
					if i%publishers != p {
						continue
					}
					id, data := fmt.Sprintf("%s-%d", vm, n), fullRequest("exit 0")
					delete(data, "processes")
					if _, err := s.tryPublish(vm, id, data); err != nil {
						t.Errorf("publish %s: %v", id, err)
						return
					}
					mu.Lock()
					inOrder[vm] = append(inOrder[vm], id)
					mu.Unlock()
				}
			}
		})
	}
	publishing.Wait()
	s.emptied()
	took := time.Since(begun)

	type edge struct {
		seq   uint64
		delta int
	}
	var edges []edge
	all := s.everything()
	owners, kinds, runs := map[string]int{}, map[string]int{}, 0
	for vm, want := range inOrder {
		var ran []string
		open := "" // the run that was accepted and has not ended
		of := map[string][]event{}
		for _, e := range all[vm] {
			of[e.run.Request.ID] = append(of[e.run.Request.ID], e)
			kinds[e.kind]++
			switch {
			case e.kind == "run.accepted":
				if open != "" {
					t.Errorf("%s: %s was accepted before %s had ended", vm, e.run.Request.ID, open)
				}
				open, ran = e.run.Request.ID, append(ran, e.run.Request.ID)
				edges = append(edges, edge{seq: e.seq, delta: 1})
			case open != e.run.Request.ID:
				t.Errorf("%s: event %s of %s while %q was open", vm, e.kind, e.run.Request.ID, open)
			case isLast(e.kind):
				if e.kind != "run.succeeded" {
					t.Errorf("%s: %s ended with %s: %+v", vm, open, e.kind, e.run.Error)
				}
				open = ""
				runs++
				owners[e.run.Owner.Instance]++
				edges = append(edges, edge{seq: e.seq, delta: -1})
			}
		}
		if !slices.Equal(ran, want) {
			t.Errorf("%s: ran %v, the stream took %v", vm, ran, want)
		}
		for _, id := range want {
			s.inOrder(id, vm, of[id])
		}
		if e := s.vc.VM(vm).Effects(); e.Customizations != perVM || e.NetworkStarts != perVM {
			t.Errorf("%s was customized %d times, its network started %d times: want %d", vm, e.Customizations,
				e.NetworkStarts, perVM)
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return int(a.seq) - int(b.seq) })
	now, most := 0, 0
	for _, e := range edges {
		now += e.delta
		most = max(most, now)
	}
	if most > limit {
		t.Errorf("%d runs at once, the cap is %d", most, limit)
	}
	if runs != vms*perVM {
		t.Errorf("%d runs ended, want %d", runs, vms*perVM)
	}
	if len(owners) != 2 {
		t.Errorf("the runs were shared like this: %v", owners)
	}
	calls, total := map[string]int{}, 0
	for _, c := range s.vc.Calls() {
		calls[c.Op]++
		if c.Op != "WaitForUpdatesEx" {
			total++
		}
		if c.VM != "" && c.Fault != "" {
			t.Errorf("%s for %s was answered with %s: two runs at once?", c.Op, c.VM, c.Fault)
		}
	}
	var lines []string
	for _, op := range slices.Sorted(maps.Keys(calls)) {
		lines = append(lines, fmt.Sprintf("%8.3f %s", float64(calls[op])/float64(runs), op))
	}
	t.Logf("%d runs in %s (%.1f a second), by replica %v, at most %d at once of %d; events %v", runs,
		took.Round(time.Millisecond),
		float64(runs)/took.Seconds(), owners, most, limit, kinds)
	t.Logf("calls to vCenter per run: %.2f without the long poll; in all:\n%s", float64(total)/float64(runs),
		strings.Join(lines, "\n"))
	for _, instance := range instances {
		if err := r.replica(instance).stop(); err != nil {
			t.Errorf("replica %s after SIGTERM: %v", instance, err)
		}
	}
}
