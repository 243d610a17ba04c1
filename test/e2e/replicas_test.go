package e2e

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// replicas are two services on one harness. Whichever is killed can be started again.
type replicas struct {
	*harness
	env []string

	mu   sync.Mutex
	live map[string]*service // by GUESTFLOW_INSTANCE
}

var instances = []string{"a", "b"}

// fastTakeover are settings under which a takeover takes little more than three seconds.
func (s *harness) fastTakeover() []string {
	return []string{"GUESTFLOW_ACK_WAIT=1s", s.setting("SEND_WINDOW") + "=2s", s.setting("TRAVEL_TIME") + "=200ms",
		s.setting("VISIBILITY_LAG") + "=200ms"}
}

// replicate starts two replicas, on streams with as many copies as said.
func (s *harness) replicate(copies int, env ...string) *replicas {
	s.t.Helper()
	r := &replicas{harness: s, env: append(append(s.fastTakeover(), fmt.Sprintf("GUESTFLOW_STREAM_REPLICAS=%d",
		copies)), env...), live: map[string]*service{}}
	r.both()
	return r
}

// both starts those that are not running.
func (r *replicas) both() {
	r.t.Helper()
	for _, instance := range instances {
		if r.replica(instance) == nil {
			r.begin(instance)
		}
	}
}

// begin starts one replica.
func (r *replicas) begin(instance string) *service {
	r.t.Helper()
	p := r.start(append(slices.Clone(r.env), "GUESTFLOW_INSTANCE="+instance)...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[instance] = p
	return p
}

// replica is the one of that name, nil where it is not running.
func (r *replicas) replica(instance string) *service {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[instance]
}

// kill ends a replica as a crash does.
func (r *replicas) kill(instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.live[instance]; p != nil {
		p.kill()
		delete(r.live, instance)
	}
}

// gone forgets a replica that was stopped.
func (r *replicas) gone(instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, instance)
}

// holder is the replica that has a request in hand, also before its first event: "" where none has.
func (r *replicas) holder() string {
	for _, instance := range instances {
		p := r.replica(instance)
		if p == nil {
			continue
		}
		if _, body := p.get("/metrics"); strings.Contains(body, fmt.Sprintf("guestflow_requests_in_hand{vcenter=%q} 1",
			r.vcenter)) {
			return instance
		}
	}
	return ""
}

// other is the replica's counterpart.
func other(instance string) string {
	if instance == instances[0] {
		return instances[1]
	}
	return instances[0]
}

// keptUp reports whether a call keeps the connection to vCenter and the long poll going, whatever runs there are.
func keptUp(c vcsim.Call) bool {
	switch c.Op {
	case "WaitForUpdatesEx", "Login", "Logout", "system hello", "POST /api/session", "DELETE /api/session",
		"CancelWaitForUpdates",
		"RetrieveServiceContent", "GET ServiceInstance/content", "CreatePropertyCollector", "DestroyPropertyCollector",
		"CreateListView", "DestroyView",
		"CreateFilter":
		return true
	}
	return false
}

// briefGuests makes every guest quick, but so that each of the three acts takes longer than a call.
func briefGuests(vc *vcsim.VCenter) {
	for _, id := range vc.VMs() {
		vc.VM(id).Configure(func(g *vcsim.Guest) {
			g.CustomizeTime, g.NetworkTime = 200*time.Millisecond, 100*time.Millisecond
		})
	}
}

// crash is one point at which the owner of a run is killed.
type crash struct {
	name string
	kind string // when an event of this kind is heard: it is on its way to the stream, or stored
	n    int    // of progress events, of which a run has more or fewer: its number in the run
	// when its call of this operation with the number nth arrives, which is lost; or, with effect, has taken effect,
	// and its answer is lost
	op    string
	nth   int
	phase vcsim.Phase
}

// lane is a harness with two replicas on which one case is tried after the other, each with a VM of its own.
type lane struct {
	*replicas
	free []string // VMs

	mu     sync.Mutex
	onCall func(vcsim.Call, vcsim.Phase) vcsim.Action
}

func newLane(t *testing.T, natsURL, vcenter string, copies, vms int) *lane {
	t.Helper()
	s := newHarnessNamed(t, natsURL, vcenter, vcsim.Options{VMs: vms, VisibilityLag: 100 * time.Millisecond})
	briefGuests(s.vc)
	l := &lane{free: s.vc.VMs()}
	s.vc.OnCall(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		l.mu.Lock()
		hook := l.onCall
		l.mu.Unlock()
		if hook == nil || keptUp(c) {
			return vcsim.Proceed
		}
		return hook(c, phase)
	})
	l.replicas = s.replicate(copies)
	return l
}

// hook sets what is called at each call that a run makes, nil for nothing.
func (l *lane) hook(f func(vcsim.Call, vcsim.Phase) vcsim.Action) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onCall = f
}

// listen sets what is called at each event, nil for nothing.
func (l *lane) listen(f func(event)) {
	l.harness.mu.Lock()
	defer l.harness.mu.Unlock()
	l.react = f
}

// vm takes a VM that had no run yet.
func (l *lane) vm() string {
	l.t.Helper()
	if len(l.free) == 0 {
		l.t.Fatal("no VM left: give the lane more of them")
	}
	vm := l.free[0]
	l.free = l.free[1:]
	return vm
}

// undisturbed takes one run to its end, and returns its events and its calls in order.
func (l *lane) undisturbed() (kinds, calls []string) {
	l.t.Helper()
	var mu sync.Mutex
	l.hook(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		mu.Lock()
		defer mu.Unlock()
		if phase == vcsim.Before {
			calls = append(calls, c.Op)
		}
		return vcsim.Proceed
	})
	vm := l.vm()
	l.publish(vm, "undisturbed", fullRequest("exit 0"))
	l.settled("undisturbed", vm)
	l.hook(nil)
	l.once("undisturbed", vm)
	mu.Lock()
	defer mu.Unlock()
	return kindsOf(l.stored(vm)), calls
}

// try kills the owner of a new run at the point, and reports whether the run came there. The other replica takes the
// run to its end by itself.
func (l *lane) try(c crash) (vm string, reached bool) {
	l.t.Helper()
	vm = l.vm()
	var once sync.Once
	var killed string
	kill := func(owner string) {
		once.Do(func() {
			killed = owner
			l.kill(owner)
		})
	}
	var mu sync.Mutex
	calls := 0
	l.hook(func(call vcsim.Call, phase vcsim.Phase) vcsim.Action {
		if call.Op != c.op || phase != c.phase {
			return vcsim.Proceed
		}
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls == c.nth {
			if owner := l.holder(); owner != "" {
				kill(owner)
				return vcsim.Drop
			}
		}
		return vcsim.Proceed
	})
	l.listen(func(e event) {
		if e.run.VM == vm && e.kind == c.kind && (c.n == 0 || e.run.N == c.n) {
			kill(e.run.Owner.Instance)
		}
	})
	l.publish(vm, c.name, fullRequest("exit 0"))
	end := l.settled(c.name, vm)
	l.hook(nil)
	l.listen(nil)
	l.once(c.name, vm)
	// Behind process.exited the last event is the very next thing that a run does: the signal may come after it.
	if killed != "" && c.kind != "process.exited" && !isLast(c.kind) && end.run.Owner.Instance == killed {
		l.t.Errorf("%s: the killed replica %s ended the run: %+v", c.name, killed, end.run.Owner)
	}
	l.both()
	return vm, killed != ""
}

var everyPoint = flag.Bool("every-point", false, "kill and stop owners at each point of a run, not at every fourth")

// sample is every fourth of the cases of a test that tries many, or all of them.
func sample[T any](cases []T) (some []T) {
	for i, c := range cases {
		if *everyPoint || i%4 == 0 {
			some = append(some, c)
		}
	}
	return some
}

// The replica that owns a run is killed at every append and at every call of a whole run, and after each call that
// changes the guest. The other one takes the run to its end: everything was done once, and the run ended once.
func TestOwnerKilledAtEveryPoint(t *testing.T) {
	t.Parallel()
	cluster := natstest.StartCluster(t, 3)
	first := newLane(t, cluster.URL(), "lane-0", 3, 1)
	kinds, calls := first.undisturbed()
	for _, instance := range instances {
		first.kill(instance)
	}
	t.Logf("events of a run: %v", kinds)
	t.Logf("calls of a run: %v", calls)
	var cases []crash
	for n, kind := range kinds {
		c := crash{name: fmt.Sprintf("event %d %s", n+1, kind), kind: kind}
		if kind == "customize.progressed" {
			c.n = n + 1
		}
		cases = append(cases, c)
	}
	seen := map[string]int{}
	for _, op := range calls {
		seen[op]++
		cases = append(cases, crash{name: fmt.Sprintf("call %s %d", op, seen[op]), op: op, nth: seen[op],
			phase: vcsim.Before})
	}
	cases = sample(cases)
	for _, act := range acts {
		cases = append(cases, crash{name: "effect of " + act.op, op: act.op, nth: 1, phase: vcsim.After})
	}
	inLanes(t, 5, func(t *testing.T, n int) {
		l := newLane(t, cluster.URL(), fmt.Sprintf("lane-%d", n+1), 3, 2*(len(cases)/5+1))
		tried := map[string]string{}
		for k := n; k < len(cases); k += 5 {
			begun := time.Now()
			vm, reached := l.try(cases[k])
			if !reached { // some calls are made in the first run of a process only
				for _, instance := range instances {
					l.kill(instance)
				}
				l.both()
				vm, reached = l.try(cases[k])
			}
			tried[cases[k].name] = vm
			switch {
			case reached:
				t.Logf("%s: %d events, %s", cases[k].name, len(l.stored(vm)), time.Since(begun).Round(time.Millisecond))
			case slices.ContainsFunc(acts, func(a act) bool { return a.op == cases[k].op }), cases[k].kind != "" &&
				cases[k].n == 0:
				t.Errorf("%s: this run did not come there", cases[k].name)
			default: // how often a process is polled, and a Task tells its progress, differs from run to run
				t.Logf("%s: this run did without it", cases[k].name)
			}
		}
		for name, vm := range tried { // nothing came late
			l.once(name, vm)
		}
	})
}

// inLanes runs f in n subtests at once, also where there are fewer processors: they wait for most of their time.
func inLanes(t *testing.T, n int, f func(t *testing.T, n int)) {
	t.Helper()
	var lanes sync.WaitGroup
	for i := range n {
		lanes.Go(func() { t.Run(fmt.Sprintf("lane %d", i+1), func(t *testing.T) { f(t, i) }) })
	}
	lanes.Wait()
}
