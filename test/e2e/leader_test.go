package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// The server that leads the events stream is killed with SIGKILL in the middle of runs, and comes back: the runs end
// well, nothing was done twice.
func TestStreamLeaderKilled(t *testing.T) {
	t.Parallel()
	cluster := natstest.StartProcesses(t, 3)
	const atOnce = 3 // runs, in different places when the leader dies
	points := []string{"customize.starting", "customize.started", "network.starting", "process.starting"}
	l := newLane(t, cluster.URL(), "lab", 3, atOnce*len(points))
	for _, point := range sample(points) {
		l.until("streams and consumers with all their copies", l.replicated)
		var once sync.Once
		killed := make(chan *natstest.Process, 1)
		var vms [atOnce]string
		for i := range vms {
			vms[i] = l.vm()
		}
		leader := cluster.Named(l.leader())
		l.listen(func(e event) {
			if e.run.VM == vms[0] && e.kind == point {
				once.Do(func() {
					leader.Kill()
					killed <- leader
				})
			}
		})
		begun := time.Now()
		for i, vm := range vms {
			l.publish(vm, fmt.Sprintf("%s %d", point, i), fullRequest("exit 0"))
		}
		down := <-killed
		for i, vm := range vms {
			l.settled(fmt.Sprintf("%s %d", point, i), vm)
		}
		t.Logf("leader killed at %s: the runs had ended after %s", point, time.Since(begun).Round(time.Millisecond))
		l.listen(nil)
		if err := down.Start(); err != nil {
			t.Fatal(err)
		}
		for i, vm := range vms {
			l.once(fmt.Sprintf("%s %d", point, i), vm)
			t.Logf("%s %d: %v", point, i, kindsOf(l.stored(vm)))
		}
	}
}

// leader is the name of the server that leads the events stream, leaderOf the one that leads a stream.
func (s *harness) leader() string { return s.leaderOf("GUESTFLOW_EVENTS") }

func (s *harness) leaderOf(name string) (leader string) {
	s.t.Helper()
	s.until("a leader of "+name, func() bool {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		defer cancel()
		stream, err := s.js.Stream(ctx, name)
		if err != nil || stream.CachedInfo().Cluster == nil {
			return false
		}
		leader = stream.CachedInfo().Cluster.Leader
		return leader != ""
	})
	return leader
}

// replicated reports whether the streams and consumers have leaders and followers that are current.
func (s *harness) replicated() bool {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	current := func(c *jetstream.ClusterInfo) bool {
		if c == nil || c.Leader == "" || len(c.Replicas) != 2 {
			return false
		}
		for _, r := range c.Replicas {
			if r.Offline || !r.Current {
				return false
			}
		}
		return true
	}
	for _, name := range []string{"GUESTFLOW_EVENTS", "GUESTFLOW_DEADLETTERS", "GUESTFLOW_REQUESTS_" + s.vcenter} {
		stream, err := s.js.Stream(ctx, name)
		if err != nil || !current(stream.CachedInfo().Cluster) {
			return false
		}
	}
	for _, name := range []string{"guestflow-requests-" + s.vcenter, "guestflow-cancels-" + s.vcenter} {
		consumer, err := s.js.Consumer(ctx, "GUESTFLOW_REQUESTS_"+s.vcenter, name)
		if err != nil || !current(consumer.CachedInfo().Cluster) {
			return false
		}
	}
	return true
}
