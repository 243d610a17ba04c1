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

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

var (
	runs     = flag.Int("runs", 96, "how many runs TestTruth plays")
	firstRun = flag.Int("first-run", 0, "the number of the first of them: each number always draws the same")
	together = flag.Int("runs-at-once", 96, "how many runs TestTruth has in hand at once")
)

// However guests lie, hang, answer late and lose their VMware Tools: no run says that it succeeded where it did not,
// none that it failed where it succeeded, and nothing is done twice. The simulated guests know what is so.
func TestTruth(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{VMs: *together, NICs: 2})
	tr := &truth{harness: s, scenarios: map[string]*scenario{}, ends: map[string]chan event{}, rows: map[string]*row{}}
	s.react = tr.heard
	s.vc.OnCall(tr.called)
	s.start("GUESTFLOW_ACK_WAIT=30s", fmt.Sprintf("%s=%d", s.setting("MAX_IN_FLIGHT"), *together),
		s.setting("SEND_WINDOW")+"=20s",
		s.setting("TRAVEL_TIME")+"=1s", s.setting("VISIBILITY_LAG")+"=1s")
	free := make(chan string, *together)
	for _, vm := range s.vc.VMs() {
		free <- vm
	}
	begun := time.Now()
	numbers := make(chan int)
	var working sync.WaitGroup
	for range *together {
		working.Go(func() {
			for n := range numbers {
				vm := <-free
				tr.play(n, vm)
				free <- vm
			}
		})
	}
	for n := range *runs {
		numbers <- *firstRun + n
	}
	close(numbers)
	working.Wait()
	s.emptied()
	took := time.Since(begun)
	tr.journal()
	t.Logf("%d runs in %s: %d false successes, %d false failures, %d other faults; %d where either end is honest\n%s",
		*runs,
		took.Round(time.Second), tr.falseSuccesses, tr.falseFailures, tr.faults, tr.eithers, tr.table())
}

// A Task that somebody made before the run is not the run's, also where vCenter's history could not be read when the
// run began and can be later.
func TestOldTaskIsNotAdopted(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{VMs: 1})
	fastGuests(s.vc)
	p := s.start()
	vm := s.vc.VMs()[0]
	s.publish(vm, "r-1", fullRequest("exit 0"))
	s.ended("r-1")
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	// Nobody remembers the first run but vCenter's history.
	stream, err := s.js.Stream(t.Context(), "GUESTFLOW_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.vc.Advance(12 * time.Minute)
	s.vc.VM(vm).Reset()
	s.vc.Script(vcsim.Rule{Op: "CreateCollectorForTasks", Times: 1, Fault: new(types.InvalidState)})
	for _, op := range []string{"CustomizeGuest_Task", "StartGuestNetwork_Task"} {
		s.vc.Script(vcsim.Rule{Op: op, Times: 1, LoseCall: true})
	}
	s.start()
	again := fullRequest("exit 0")
	again["verify"] = map[string]any{"timeout": "30s"}
	s.publish(vm, "r-2", again)
	if e := s.ended("r-2"); e.kind != "run.succeeded" {
		t.Errorf("ended with %s: %+v", e.kind, e.run.Error)
	}
	s.once("r-2", vm)
}

// truth is TestTruth at work.
type truth struct {
	*harness
	mu        sync.Mutex
	scenarios map[string]*scenario  // by VM: the run that is on
	ends      map[string]chan event // by request, of those that are on
	rows      map[string]*row

	falseSuccesses, falseFailures, faults, eithers int
}

// row is what came of the runs with one behaviour, alone or with another.
type row struct {
	runs int
	by   map[string]int
}

// called lets the VM's scenario know of a call.
func (tr *truth) called(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
	tr.mu.Lock()
	l := tr.scenarios[c.VM]
	tr.mu.Unlock()
	if l == nil {
		return vcsim.Proceed
	}
	return l.called(c, phase)
}

// heard passes a last event on, and keeps no other.
func (tr *truth) heard(e event) {
	tr.harness.mu.Lock()
	tr.harness.heard = nil
	tr.harness.mu.Unlock()
	if !isLast(e.kind) && e.kind != "rejected" {
		return
	}
	tr.mu.Lock()
	end := tr.ends[e.run.Request.ID]
	delete(tr.ends, e.run.Request.ID)
	tr.mu.Unlock()
	if end != nil {
		end <- e
	}
}

// play takes a run to its end, judges it, and makes its VM ready for the next.
func (tr *truth) play(n int, vm string) {
	guest := tr.vc.VM(vm)
	l := draw(n, tr.vc, guest, tr.secret)
	end := make(chan event, 1)
	tr.mu.Lock()
	tr.scenarios[vm], tr.ends[l.id] = l, end
	tr.mu.Unlock()
	_, err := tr.tryPublish(vm, l.id, l.data)
	// the copy of a run before is not gone yet
	for until := time.Now().Add(patience); err != nil && strings.Contains(err.Error(), "10077") &&
		time.Now().Before(until); {
		tr.soon()
		_, err = tr.tryPublish(vm, l.id, l.data)
	}
	if err != nil {
		tr.t.Errorf("publish %s: %v", l.id, err)
		return
	}
	if l.twice {
		// also where the run has ended by then, or the queue is full: it changes nothing
		_, _ = tr.tryPublish(vm, l.id, l.data)
	}
	var e event
	select {
	case e = <-end:
	case <-time.After(patience):
		tr.t.Errorf("%s (%s) on %s did not end: %v", l.id, strings.Join(l.names, " + "), vm,
			kindsOf(tr.storedOf(l.id, vm)))
		return
	}
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	tr.judge(l, e)
	tr.mu.Lock()
	delete(tr.scenarios, vm)
	tr.mu.Unlock()
	guest.Reset()
}

// judge holds the end of a run against the truth.
func (tr *truth) judge(l *scenario, e event) {
	falsely, wrong := "", l.wrong(e)
	ended := "succeeded"
	if e.kind != "run.succeeded" {
		ended = e.run.Error.Code
	}
	step, codes := l.mustFailIn()
	switch {
	case e.kind == "run.succeeded" && step != "":
		falsely = "false success"
	case e.kind == "run.succeeded":
		if claims := l.untrue(e); len(claims) > 0 {
			falsely = "false success"
			wrong = append(wrong, claims...)
		}
	case slices.Contains(l.either[e.run.Error.Step], ended):
	case step == "":
		falsely = "false failure"
	case e.run.Error.Step != step || !slices.Contains(codes, ended):
		wrong = append(wrong, fmt.Sprintf("want step %s, code %v", step, codes))
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, name := range l.names {
		r := tr.rows[name]
		if r == nil {
			r = &row{by: map[string]int{}}
			tr.rows[name] = r
		}
		r.runs++
		r.by[ended]++
		if falsely != "" {
			r.by[strings.ToUpper(falsely)]++
		}
	}
	switch falsely {
	case "false success":
		tr.falseSuccesses++
	case "false failure":
		tr.falseFailures++
	}
	if len(l.either) > 0 {
		tr.eithers++
	}
	if falsely == "" && len(wrong) > 0 {
		tr.faults++
	}
	if falsely != "" || len(wrong) > 0 {
		tr.t.Errorf("%s (%s) on %s: %s ended with %s %+v, decidedBy %q, effects %+v; %s\n%v", l.id,
			strings.Join(l.names, " + "), l.vm.ID(), falsely,
			e.kind, e.run.Error, e.run.Customize.DecidedBy, l.vm.Effects(), strings.Join(wrong,
				"; "), kindsOf(tr.storedOf(l.id, l.vm.ID())))
	}
}

// mustFailIn is the step in which the run must fail, and the codes with which it may; "" where it must succeed.
func (l *scenario) mustFailIn() (string, []string) {
	for _, step := range order {
		if codes := l.fails[step]; len(codes) > 0 {
			return step, codes
		}
	}
	return "", nil
}

// wrong is what must not be so, however the run ended.
func (l *scenario) wrong(e event) (wrong []string) {
	reached := len(order)
	if e.kind != "run.succeeded" {
		reached = slices.Index(order, e.run.Error.Step)
	}
	effects := l.vm.Effects()
	for _, c := range []struct {
		step string
		is   int
		want [2]int
	}{
		{"customize", effects.Customizations, l.customized}, {"customize", effects.Aborts, l.aborts}, {"network",
			effects.NetworkStarts, l.started},
		{"process", len(effects.Processes), l.processes},
	} {
		if slices.Index(order, c.step) > reached {
			c.want = [2]int{}
		}
		if c.is < c.want[0] || c.is > c.want[1] {
			wrong = append(wrong, fmt.Sprintf("%s was done %d times, want %d to %d", c.step, c.is, c.want[0],
				c.want[1]))
		}
	}
	if by := e.run.Customize.DecidedBy; by != "" && !slices.Contains(l.decided, by) {
		wrong = append(wrong, fmt.Sprintf("customize was decided by %s, want %v", by, l.decided))
	}
	if e.run.Customize.State == "succeeded" && e.run.Customize.DecidedBy == "" {
		wrong = append(wrong, "customize was decided by nothing")
	}
	return wrong
}

// untrue is what a run that succeeded claims and is not so in the guest.
func (l *scenario) untrue(e event) (claims []string) {
	so := l.vm.GroundTruth()
	if so.HostName != l.hostName {
		claims = append(claims, fmt.Sprintf("the guest's host name is %q, not %s", so.HostName, l.hostName))
	}
	if l.addresses[0] != "" && !slices.Equal(so.Addresses, l.addresses[:]) {
		claims = append(claims, fmt.Sprintf("the guest's addresses are %v, not %v", so.Addresses, l.addresses))
	}
	if l.section("verify")["nicsConnected"] == nil && !so.Connected {
		claims = append(claims, "a NIC is not connected")
	}
	effects := l.vm.Effects()
	if e.run.Customize.State == "succeeded" && effects.Customizations == 0 {
		claims = append(claims, "the guest was not customized")
	}
	if e.run.Network.State == "succeeded" && effects.NetworkStarts == 0 {
		claims = append(claims, "the guest's network was not started")
	}
	for _, p := range e.run.Processes {
		code, ended := int64(0), false
		for command, c := range so.ExitCodes {
			if strings.Contains(command, e.run.Run+"."+p.Name) {
				code, ended = c, true
			}
		}
		if !ended || p.State != "succeeded" || p.ExitCode == nil || *p.ExitCode != code || code != l.exit {
			claims = append(claims, fmt.Sprintf("process %+v: the guest's record is %v", p, so.ExitCodes))
		}
	}
	return claims
}

// journal checks what the stream holds of all runs.
func (tr *truth) journal() {
	of := map[string][]event{}
	for vm, all := range tr.everything() {
		for _, e := range all {
			of[vm+" "+e.run.Request.ID] = append(of[vm+" "+e.run.Request.ID], e)
		}
	}
	if len(of) != *runs {
		tr.t.Errorf("the stream holds events of %d runs, want %d", len(of), *runs)
	}
	for key, events := range of {
		vm, id, _ := strings.Cut(key, " ")
		tr.inOrder(id, vm, events)
	}
}

// table is behaviours by outcomes. A run with two behaviours is in two rows.
func (tr *truth) table() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(tr.rows)) {
		r := tr.rows[name]
		var outcomes []string
		for _, o := range slices.Sorted(maps.Keys(r.by)) {
			outcomes = append(outcomes, fmt.Sprintf("%s %d", o, r.by[o]))
		}
		fmt.Fprintf(&b, "%6d %-50s %s\n", r.runs, name, strings.Join(outcomes, ", "))
	}
	return b.String()
}
