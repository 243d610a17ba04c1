package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// scenario is one run of TestTruth: how its guest and its vCenter behave, what is asked for, and what must therefore
// come out.
type scenario struct {
	n     int
	rnd   *rand.Rand
	id    string // the request's
	vc    *vcsim.VCenter
	vm    *vcsim.VM
	names []string // of the behaviours
	data  map[string]any

	hostName  string
	addresses [2]string
	// the guest shows all of the spec beforehand, from an earlier customization: what it shows then proves nothing
	again       bool
	partly      bool // it shows the host name beforehand
	secret      func(name, key, value string)
	atOnce      bool // the guest shows its new identity after CustomizeGuest_Task, else after StartGuestNetwork_Task
	moves       bool // the guest's status follows
	network     bool
	twice       bool // it is published twice
	statusTells bool // the run's outcome hangs on the guest's status
	looked      bool // the guest is looked at after a Task's error

	// The truth.
	fails      map[string][]string // by step, the codes with which it may fail
	either     map[string][]string // the same, where success is as honest
	decided    []string            // of which one is customize.decidedBy
	customized [2]int              // at least, at most
	started    [2]int              // the network
	aborts     [2]int
	processes  [2]int
	exit       int64 // of the process

	mu    sync.Mutex
	over  bool
	hooks []*hook
}

// hook does something at the nth call (0: each) of an operation; after it, at the nth that was not refused.
type hook struct {
	op    string
	phase vcsim.Phase
	nth   int
	do    func(n int, c vcsim.Call) vcsim.Action
	seen  int
}

const (
	short = 2 * time.Second // a step's time where it must run out
	ever  = time.Hour       // longer than any test
)

// order is that of a run's steps.
var order = []string{"check", "customize", "network", "verify", "process"}

// on makes do run at the nth call of op, on the call's own goroutine.
func (l *scenario) on(op string, phase vcsim.Phase, nth int, do func(n int, c vcsim.Call) vcsim.Action) {
	l.hooks = append(l.hooks, &hook{op: op, phase: phase, nth: nth, do: do})
}

// then is on for what changes nothing about the call itself.
func (l *scenario) then(op string, phase vcsim.Phase, nth int, do func()) {
	l.on(op, phase, nth, func(int, vcsim.Call) vcsim.Action {
		do()
		return vcsim.Proceed
	})
}

// called is told of every call for the VM.
func (l *scenario) called(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
	action := vcsim.Proceed
	for _, h := range l.hooks {
		if h.op != c.Op || h.phase != phase || phase == vcsim.After && c.Fault != "" {
			continue
		}
		l.mu.Lock()
		h.seen++
		n := h.seen
		l.mu.Unlock()
		if h.nth == 0 || h.nth == n {
			if h.do(n, c) == vcsim.Drop {
				action = vcsim.Drop
			}
		}
	}
	return action
}

// unapplied is what must come out where a Task succeeds and changed nothing: a guest that shows the spec all the same
// is as asked for.
func (l *scenario) unapplied() bool {
	if l.again {
		return true
	}
	return l.fail("verify", "VerifyMismatch", "StepTimeout")
}

// proven is what must come out where a Task fails with fault although all is applied, and the guest's own status does
// not tell: a change shows it, and nothing else does. The general fault, and the want of tools, are for an abort and a
// second attempt.
func (l *scenario) proven(fault types.BaseMethodFault) bool {
	l.decided = []string{"verify"}
	if !l.again {
		return true
	}
	l.decided = []string{"task"}
	l.verifyWithin(short)
	if passes := slices.ContainsFunc(passing, func(p types.BaseMethodFault) bool { return p == fault }); !passes {
		l.customized, l.aborts = [2]int{2, 2}, [2]int{1, 1}
	}
	return l.fail("customize", "CustomizationFailed", "Unavailable", "ToolsNotRunning", "InvalidState")
}

func (l *scenario) fail(step string, codes ...string) bool {
	l.fails[step] = append(l.fails[step], codes...)
	return true
}

// faults are what the guest does wrong so far.
func (l *scenario) faults() (f vcsim.Faults) {
	l.guest(func(g *vcsim.Guest) { f = g.Faults })
	return f
}

// section is a part of the request.
func (l *scenario) section(name string) map[string]any {
	s, ok := l.data[name].(map[string]any)
	if !ok {
		s = map[string]any{}
		l.data[name] = s
	}
	return s
}

func (l *scenario) process() map[string]any { return l.data["processes"].([]any)[0].(map[string]any) }

func (l *scenario) guest(f func(*vcsim.Guest)) bool {
	l.vm.Configure(f)
	return true
}

// program is what the process does in the guest.
func (l *scenario) program(p vcsim.Program) {
	l.exit = p.ExitCode
	l.guest(func(g *vcsim.Guest) { g.Programs["/opt/join"] = p })
}

// one is one of all.
func one[T any](l *scenario, all ...T) T { return all[l.rnd.IntN(len(all))] }

// verifyWithin sets verify.timeout, unless a longer one is needed.
func (l *scenario) verifyWithin(d time.Duration) {
	v := l.section("verify")
	if was, ok := v["timeout"].(string); ok {
		if longer, err := time.ParseDuration(was); err == nil && longer >= d {
			return
		}
	}
	v["timeout"] = d.String()
}

// passing are faults that say nothing of what happened in the guest; broken are the engine's own, of which none is
// general.
var (
	passing = []types.BaseMethodFault{&types.SystemError{Reason: "timed out"}, new(types.Timedout),
		new(types.HostCommunication)}
	broken = []types.BaseMethodFault{new(types.LinuxVolumeNotClean), new(types.NicSettingMismatch),
		new(types.IpHostnameGeneratorError)}
)

// behaviour is one way to behave. set answers false where it does not go together with what the scenario has already.
type behaviour struct {
	name string
	set  func(*scenario) bool
}

// slots are the behaviours, by the part of a run in which they show: a scenario has at most one of each slot, set in
// this order.
var slots = [5][]behaviour{
	slices.Concat(customizing, customizingMore), slices.Concat(starting, startingMore), slices.Concat(showing,
		showingMore), slices.Concat(running, runningMore),
	slices.Concat(always, alwaysMore),
}

// customizing are those of a customization.
var customizing = []behaviour{
	{"nothing applied", func(l *scenario) bool {
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.IgnoreSpec = true })
		return l.unapplied()
	}},
	{"host name not applied", func(l *scenario) bool {
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.Faults.KeepsHostName = true })
		if l.partly {
			return true
		}
		return l.unapplied()
	}},
	{"address not applied", func(l *scenario) bool {
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.Faults.KeepsAddresses = true })
		return l.unapplied()
	}},
	{"NIC left disconnected", func(l *scenario) bool {
		l.verifyWithin(short)
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() { l.vm.SetNICs(false) })
		return l.fail("verify", "VerifyMismatch", "StepTimeout")
	}},
	{"NIC left disconnected, to be connected", func(l *scenario) bool {
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() { l.vm.SetNICs(false) })
		l.network = true
		l.section("network")["connectNics"] = true
		return true
	}},
	{"NIC left disconnected, not to be looked at", func(l *scenario) bool {
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() { l.vm.SetNICs(false) })
		l.section("verify")["nicsConnected"] = false
		return true
	}},
	{"Task fails, all applied", func(l *scenario) bool {
		l.atOnce, l.looked = true, true
		fault := one(l, append(slices.Clone(passing), new(types.CustomizationFault))...)
		l.guest(func(g *vcsim.Guest) { g.TaskError, g.AppliesAnyway = fault, true })
		if l.moves {
			l.statusTells, l.decided = true, []string{"guest-status"}
			return true
		}
		return l.proven(fault)
	}},
	{"Task fails, all applied, shown late", func(l *scenario) bool {
		l.atOnce, l.moves, l.looked = true, false, true
		fault := one(l, passing...)
		l.guest(func(g *vcsim.Guest) {
			g.TaskError, g.AppliesAnyway, g.ReportDelay = fault, true, time.Duration(500+
				l.rnd.IntN(1000))*time.Millisecond
		})
		return l.proven(fault)
	}},
	{"Task fails for want of tools, all applied", func(l *scenario) bool {
		l.atOnce, l.moves, l.looked = true, false, true
		fault := one[types.BaseMethodFault](l, new(types.GuestOperationsUnavailable), new(types.InvalidState),
			new(types.ToolsUnavailable))
		l.guest(func(g *vcsim.Guest) { g.TaskError, g.AppliesAnyway = fault, true })
		return l.proven(fault)
	}},
	{"Task fails, nothing applied", func(l *scenario) bool {
		l.verifyWithin(short)
		fault := one(l, append(slices.Clone(passing), broken...)...)
		l.guest(func(g *vcsim.Guest) { g.TaskError = fault })
		l.decided = []string{"task"}
		if l.moves {
			l.statusTells, l.decided = true, []string{"guest-status"}
		}
		return l.fail("customize", "CustomizationFailed", "Unavailable")
	}},
	{"Task fails once with the general fault", func(l *scenario) bool {
		l.moves, l.looked = false, true
		l.verifyWithin(10 * time.Second) // the first look takes all of it, the last one hardly any
		if l.rnd.IntN(2) == 0 {
			l.guest(func(g *vcsim.Guest) { g.Crash = true })
		} else {
			l.guest(func(g *vcsim.Guest) { g.TaskError = new(types.CustomizationFault) })
			l.then("CustomizeGuest_Task", vcsim.After, 1, func() {
				l.guest(func(g *vcsim.Guest) { g.TaskError = nil })
			})
		}
		l.customized, l.aborts = [2]int{2, 2}, [2]int{1, 1}
		return true
	}},
	{"Task fails twice with the general fault", func(l *scenario) bool {
		l.moves = false
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.TaskError = new(types.CustomizationFault) })
		l.customized, l.aborts = [2]int{2, 2}, [2]int{1, 1}
		return l.fail("customize", "CustomizationFailed")
	}},
	{"status FAILED, Task succeeds", func(l *scenario) bool {
		l.moves, l.statusTells, l.decided = true, true, []string{"guest-status"}
		l.guest(func(g *vcsim.Guest) { g.Faults.FinalStatus, g.IgnoreSpec = "FAILED", true })
		return l.fail("customize", "CustomizationFailed")
	}},
	{"status SUCCEEDED, Task fails, nothing applied", func(l *scenario) bool {
		l.moves, l.statusTells, l.decided = true, true, []string{"guest-status"}
		l.verifyWithin(short)
		fault := one(l, passing...)
		l.guest(func(g *vcsim.Guest) { g.Faults.FinalStatus, g.TaskError = "SUCCEEDED", fault })
		return l.unapplied()
	}},
	{"status SUCCEEDED, Task fails, all applied", func(l *scenario) bool {
		l.moves, l.statusTells, l.decided = true, true, []string{"guest-status"}
		fault := one(l, append(slices.Clone(passing), new(types.CustomizationFault))...)
		return l.guest(func(g *vcsim.Guest) { g.TaskError, g.AppliesAnyway = fault, true })
	}},
	{"status SUCCEEDED of an earlier run, Task fails", func(l *scenario) bool {
		l.moves, l.decided = false, []string{"task"}
		l.verifyWithin(short)
		l.earlier("SUCCEEDED")
		fault := one(l, append(slices.Clone(passing), broken...)...)
		l.guest(func(g *vcsim.Guest) { g.TaskError = fault })
		return l.fail("customize", "CustomizationFailed", "Unavailable")
	}},
	{"status FAILED of an earlier run", func(l *scenario) bool {
		l.earlier("FAILED")
		return true
	}},
	{"status FAILED, Task succeeds, status call fails from then on", func(l *scenario) bool {
		l.moves, l.statusTells, l.decided = true, true, []string{"guest-status"}
		l.data["verify"] = false
		l.guest(func(g *vcsim.Guest) { g.Faults.FinalStatus, g.IgnoreSpec = "FAILED", true })
		l.then("CustomizeGuest_Task", vcsim.Before, 1, func() {
			l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "GET guest/customization", RESTError: "INTERNAL_SERVER_ERROR"})
		})
		return l.fail("customize", "CustomizationFailed")
	}},
	{"guest works on after its Task", func(l *scenario) bool {
		l.moves, l.statusTells, l.atOnce, l.decided = true, true, true, []string{"guest-status"}
		return l.guest(func(g *vcsim.Guest) {
			g.Faults.WorkAfterTask = time.Duration(500+l.rnd.IntN(1500)) * time.Millisecond
		})
	}},
	{"guest works on after its Task, and fails", func(l *scenario) bool {
		l.moves, l.statusTells, l.decided = true, true, []string{"guest-status"}
		l.guest(func(g *vcsim.Guest) {
			g.Faults.WorkAfterTask, g.Faults.FinalStatus, g.IgnoreSpec = time.Second, "FAILED", true
		})
		return l.fail("customize", "CustomizationFailed")
	}},
	{"guest works on for ever", func(l *scenario) bool {
		l.moves, l.statusTells = true, true
		l.section("customize")["timeout"] = short.String()
		l.verifyWithin(30 * time.Second) // longer than the step takes: after verify.timeout the Task decides
		l.guest(func(g *vcsim.Guest) { g.Faults.FinalStatus = "RUNNING" })
		l.customized[0] = 0 // the time may be over before the call
		return l.fail("customize", "StepTimeout")
	}},
	{"Task given up, guest works on and succeeds", func(l *scenario) bool {
		l.atOnce, l.looked = true, true
		fault := one(l, passing...)
		l.guest(func(g *vcsim.Guest) {
			g.TaskError, g.AppliesAnyway, g.Faults.WorkAfterTask = fault, true, time.Second
		})
		if l.moves {
			l.statusTells, l.decided = true, []string{"guest-status"}
			return true
		}
		return l.proven(fault)
	}},
	{"Task hangs", func(l *scenario) bool {
		l.section("customize")["timeout"] = short.String()
		l.guest(func(g *vcsim.Guest) { g.CustomizeTime = ever })
		l.customized[0] = 0
		return l.fail("customize", "StepTimeout")
	}},
	{"Task slow", func(l *scenario) bool {
		return l.guest(func(g *vcsim.Guest) {
			g.CustomizeTime = time.Duration(1000+l.rnd.IntN(2000)) * time.Millisecond
		})
	}},
	{"tools restarted during customization", func(l *scenario) bool {
		l.moves, l.looked = false, true
		l.verifyWithin(10 * time.Second)
		l.guest(func(g *vcsim.Guest) { g.CustomizeTime = ever })
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() {
			l.guest(func(g *vcsim.Guest) { g.CustomizeTime = 50 * time.Millisecond })
			l.vm.ToolsDown() // the engine's end
			l.later(500*time.Millisecond, l.vm.ToolsUp)
		})
		l.customized, l.aborts = [2]int{1, 2}, [2]int{0, 1}
		l.either["customize"] = []string{"ToolsNotRunning", "CustomizationFailed", "Uncertain"}
		return true
	}},
	{"tools silent during customization", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.CustomizeTime = time.Second })
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() { l.silence(500 * time.Millisecond) })
		return true
	}},
	{"tools gone for good during customization", func(l *scenario) bool {
		l.section("customize")["timeout"] = short.String()
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.CustomizeTime = ever })
		l.then("CustomizeGuest_Task", vcsim.After, 1, l.vm.ToolsDown)
		l.customized[0] = 0
		return l.fail("customize", "StepTimeout", "ToolsNotRunning", "CustomizationFailed")
	}},
	{"CustomizeGuest_Task: answer lost", func(l *scenario) bool {
		l.on("CustomizeGuest_Task", vcsim.After, 1, lose)
		l.perhapsRepeat()
		return true
	}},
	{"CustomizeGuest_Task: call lost", func(l *scenario) bool {
		l.on("CustomizeGuest_Task", vcsim.Before, 1, lose)
		l.perhapsRepeat()
		return true
	}},
	{"CustomizeGuest_Task: busy for a while", func(l *scenario) bool {
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "CustomizeGuest_Task", Times: 1 + l.rnd.IntN(3),
			Fault: new(types.TaskInProgress)})
		return true
	}},
	{"CustomizeGuest_Task: busy for ever", func(l *scenario) bool {
		l.section("customize")["timeout"] = short.String()
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "CustomizeGuest_Task", Fault: new(types.TaskInProgress)})
		l.customized = [2]int{}
		return l.fail("customize", "StepTimeout", "Busy")
	}},
	{"Task turned away once", func(l *scenario) bool {
		l.moves = false
		l.guest(func(g *vcsim.Guest) { g.TaskError = new(types.TaskInProgress) })
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() { l.guest(func(g *vcsim.Guest) { g.TaskError = nil }) })
		l.customized = [2]int{2, 2} // Tasks; the first changes nothing
		return true
	}},
	{"VM removed during customization", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.CustomizeTime = ever })
		l.then("CustomizeGuest_Task", vcsim.After, 1, l.vm.Remove)
		return l.fail("customize", "NotFound")
	}},
	{"power off during customization", func(l *scenario) bool {
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.CustomizeTime = ever })
		l.then("CustomizeGuest_Task", vcsim.After, 1, l.vm.PowerOff)
		return l.fail("customize", "PowerState", "ToolsNotRunning", "CustomizationFailed")
	}},
	{"wrong guest password", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.Password = "another" })
		l.customized = [2]int{}
		return l.fail("customize", "GuestLoginRefused")
	}},
	{"no engine", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.Engine = false })
		return l.fail("customize", "CustomizationFailed")
	}},
}

// starting are those of the network's start.
var starting = []behaviour{
	{"network Task fails", func(l *scenario) bool {
		fault := one(l, append(slices.Clone(passing), new(types.CustomizationFault))...)
		l.guest(func(g *vcsim.Guest) { g.NetworkError = fault })
		return l.fail("network", "NetworkFailed", "Unavailable")
	}},
	{"network Task fails, network started", func(l *scenario) bool {
		if l.looked || len(l.fails) > 0 {
			return false
		}
		fault := one(l, append(slices.Clone(passing), new(types.CustomizationFault))...)
		l.guest(func(g *vcsim.Guest) { g.NetworkError, g.AppliesAnyway = fault, true })
		return l.fail("network", "NetworkFailed", "Unavailable")
	}},
	{"network Task fails once for want of tools", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.NetworkError = new(types.GuestOperationsUnavailable) })
		l.then("StartGuestNetwork_Task", vcsim.After, 1, func() {
			l.guest(func(g *vcsim.Guest) { g.NetworkError = nil })
		})
		// it may have run, and is not repeated: what the guest shows decides
		l.either["network"] = []string{"ToolsNotRunning"}
		return true
	}},
	{"network without effect", func(l *scenario) bool {
		if l.looked || l.atOnce { // what counts is shown before
			return false
		}
		if l.again && l.faults().NoDHCPLease { // it keeps its lease, and shows what is asked for
			return false
		}
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.Faults.IgnoresNetworkStart = true })
		return l.unapplied()
	}},
	{"StartGuestNetwork_Task: answer lost", func(l *scenario) bool {
		l.on("StartGuestNetwork_Task", vcsim.After, 1, lose)
		l.perhapsRepeat()
		return true
	}},
	{"StartGuestNetwork_Task: call lost", func(l *scenario) bool {
		l.on("StartGuestNetwork_Task", vcsim.Before, 1, lose)
		l.perhapsRepeat()
		return true
	}},
	{"network Task hangs", func(l *scenario) bool {
		l.section("network")["timeout"] = short.String()
		l.guest(func(g *vcsim.Guest) { g.NetworkTime = ever })
		l.started[0] = 0
		return l.fail("network", "StepTimeout")
	}},
	{"network Task slow", func(l *scenario) bool {
		return l.guest(func(g *vcsim.Guest) { g.NetworkTime = time.Duration(500+l.rnd.IntN(1500)) * time.Millisecond })
	}},
	{"guest login refused for a while", func(l *scenario) bool {
		return l.refuseLogins("StartGuestNetwork_Task", 1+l.rnd.IntN(3))
	}},
	{"guest login refused for ever", func(l *scenario) bool {
		l.section("network")["timeout"] = short.String()
		l.started = [2]int{}
		l.refuseLogins("StartGuestNetwork_Task", 0)
		return l.fail("network", "StepTimeout", "GuestLoginRefused")
	}},
	{"StartGuestNetwork_Task: busy for a while", func(l *scenario) bool {
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "StartGuestNetwork_Task", Times: 1 + l.rnd.IntN(3),
			Fault: new(types.TaskInProgress)})
		return true
	}},
	{"VM removed during the network's start", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.NetworkTime = ever })
		l.then("StartGuestNetwork_Task", vcsim.After, 1, l.vm.Remove)
		return l.fail("network", "NotFound", "ToolsNotRunning")
	}},
	{"power off during the network's start", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.NetworkTime = ever })
		l.then("StartGuestNetwork_Task", vcsim.After, 1, l.vm.PowerOff)
		return l.fail("network", "PowerState", "ToolsNotRunning", "NetworkFailed")
	}},
	{"tools silent during the network's start", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.NetworkTime = time.Second })
		l.then("StartGuestNetwork_Task", vcsim.After, 1, func() { l.silence(500 * time.Millisecond) })
		return true
	}},
}

// showing are those of what a guest shows.
var showing = []behaviour{
	{"shown late", func(l *scenario) bool {
		// VMware Tools go on to show what was there before: nobody could tell
		if l.looked || l.again && len(l.fails) > 0 {
			return false
		}
		return l.guest(func(g *vcsim.Guest) { g.ReportDelay = time.Duration(500+l.rnd.IntN(1500)) * time.Millisecond })
	}},
	{"shown too late", func(l *scenario) bool {
		// VMware Tools go on to show what was there before: nobody could tell
		if l.looked || l.again && len(l.fails) > 0 {
			return false
		}
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.ReportDelay = ever })
		return l.unapplied()
	}},
}

// running are those of a process.
var running = []behaviour{
	{"exit code 3", func(l *scenario) bool {
		l.program(vcsim.Program{ExitCode: 3})
		return l.fail("process", "ExitCode")
	}},
	{"exit code 3, asked for", func(l *scenario) bool {
		l.program(vcsim.Program{ExitCode: 3})
		l.process()["successExitCodes"] = []int{0, 3}
		return true
	}},
	{"process slow", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: time.Duration(500+l.rnd.IntN(2500)) * time.Millisecond,
			ExitCode: one(l, int64(0), 0, 7)})
		if l.exit != 0 {
			return l.fail("process", "ExitCode")
		}
		return true
	}},
	{"process hangs", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: -1})
		l.process()["timeout"] = short.String()
		l.processes[0] = 0 // the time may be over before the call
		return l.fail("process", "StepTimeout")
	}},
	{"process vanishes", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: -1})
		l.first(func() { l.vm.ForgetProcess(firstPID) })
		return l.fail("process", "ExitCodeUnknown")
	}},
	{"pid reused", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: -1})
		code := one(l, int64(0), 0, 1)
		// not before its identity is known
		l.then("guest/processes get", vcsim.After, 2, func() { l.vm.ReusePID(firstPID, code) })
		return l.fail("process", "ExitCodeUnknown")
	}},
	{"processes create: answer lost", func(l *scenario) bool {
		l.on("guest/processes create", vcsim.After, 1, lose)
		l.perhapsRepeat()
		return true
	}},
	{"processes create: call lost", func(l *scenario) bool {
		l.on("guest/processes create", vcsim.Before, 1, lose)
		l.perhapsRepeat()
		return true
	}},
	{"process's answers lost", func(l *scenario) bool {
		op, times := one(l, "guest/processes get", "guest/processes list"), 1+l.rnd.IntN(3)
		l.on(op, one(l, vcsim.Before, vcsim.After), 0, func(n int, c vcsim.Call) vcsim.Action {
			if n <= times {
				return vcsim.Drop
			}
			return vcsim.Proceed
		})
		return true
	}},
	{"tools silent while a process runs", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: 500 * time.Millisecond, ExitCode: one(l, int64(0), 3)})
		away := 2 + l.rnd.IntN(3)
		l.then("guest/processes create", vcsim.After, 1, l.vm.HangTools)
		l.then("guest/processes get", vcsim.Before, away, l.vm.UnhangTools)
		if l.exit != 0 {
			return l.fail("process", "ExitCode")
		}
		return true
	}},
	{"tools restarted while a process runs", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: 500 * time.Millisecond})
		l.first(func() {
			l.vm.ToolsDown()
			l.vm.ToolsUp()
		})
		return l.fail("process", "ExitCodeUnknown")
	}},
	{"tools gone while a process runs", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: 500 * time.Millisecond})
		l.process()["timeout"] = short.String()
		l.processes[0] = 0 // the time may be over before the call
		l.first(l.vm.ToolsDown)
		return l.fail("process", "StepTimeout", "ToolsNotRunning")
	}},
	{"guest restarted while a process runs", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: -1})
		l.first(l.vm.RebootGuest)
		return l.fail("process", "ExitCodeUnknown")
	}},
	{"power off while a process runs", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: -1})
		l.first(l.vm.PowerOff)
		return l.fail("process", "PowerState", "ExitCodeUnknown")
	}},
	{"VM removed while a process runs", func(l *scenario) bool {
		l.program(vcsim.Program{Duration: -1})
		l.first(l.vm.Remove)
		return l.fail("process", "NotFound", "ExitCodeUnknown")
	}},
	{"no such program", func(l *scenario) bool {
		l.process()["run"] = map[string]any{"path": "/opt/missing", "arguments": ""}
		l.processes = [2]int{}
		return l.fail("process", "ProcessNotStarted")
	}},
	{"program does not start", func(l *scenario) bool {
		l.program(vcsim.Program{Err: "UNABLE_TO_ALLOCATE_RESOURCE"})
		l.processes = [2]int{}
		return l.fail("process", "ProcessNotStarted")
	}},
	{"processes: guest login refused for a while", func(l *scenario) bool {
		return l.refuseLogins("guest/processes list", 1+l.rnd.IntN(3))
	}},
	{"processes: guest login refused for ever", func(l *scenario) bool {
		l.process()["timeout"] = short.String()
		l.processes = [2]int{}
		l.refuseLogins("guest/processes list", 0)
		return l.fail("process", "StepTimeout", "GuestLoginRefused")
	}},
}

// always are those of the whole run.
var always = []behaviour{
	{"status call fails", func(l *scenario) bool {
		if l.statusTells {
			return false
		}
		l.statusFails()
		return true
	}},
	{"status call answers with a page", func(l *scenario) bool {
		if l.statusTells {
			return false
		}
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "GET guest/customization",
			HTTP: &vcsim.Response{Status: 502, ContentType: "text/html",
				Body: "<html><title>Bad Gateway</title></html>"}})
		l.decided = append(l.decided, "task", "guest-status")
		return true
	}},
	{"every answer late", func(l *scenario) bool {
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), DelayResponse: 100 * time.Millisecond})
		return true
	}},
	{"sessions end", func(l *scenario) bool { // those of all runs
		l.then(one(l, "guest/customization check", "CustomizeGuest_Task", "guest/processes create"),
			one(l, vcsim.Before, vcsim.After), 1, l.vc.ExpireSessions)
		return true
	}},
	{"check refused for a while", func(l *scenario) bool {
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "guest/customization check", Times: 1 + l.rnd.IntN(2),
			RESTError: one(l, "SERVICE_UNAVAILABLE", "RESOURCE_BUSY", "INTERNAL_SERVER_ERROR")})
		return true
	}},
	{"tools not running at first", func(l *scenario) bool {
		l.vm.HangTools()
		l.then("guest/customization check", vcsim.After, 1, func() { l.later(200*time.Millisecond, l.vm.UnhangTools) })
		return true
	}},
}

// count is that of all behaviours.
var count = func() (n int) {
	for _, s := range slots {
		n += len(s)
	}
	return n
}()

// firstPID is the pid of a new guest's first program.
const firstPID = 2001

func lose(int, vcsim.Call) vcsim.Action { return vcsim.Drop }

// first runs do once the process runs: before its identity is read, or after.
func (l *scenario) first(do func()) {
	l.then(one(l, "guest/processes create", "guest/processes get"), vcsim.After, 1, do)
}

// earlier leaves a status of a customization that was an hour ago, earlierWithin one whose start has a fraction of a
// second.
func (l *scenario) earlier(status string) { l.earlierWithin(status, 0) }

func (l *scenario) earlierWithin(status string, fraction time.Duration) {
	start := l.vc.GuestNow().Add(-time.Hour).Truncate(time.Second).Add(fraction)
	end := start.Add(time.Minute)
	if status == "RUNNING" {
		l.vm.SetStatus(status, "", &start, nil)
		return
	}
	l.vm.SetStatus(status, "", &start, &end)
}

// silence makes VMware Tools fall silent for d.
func (l *scenario) silence(d time.Duration) {
	l.vm.HangTools()
	l.later(d, l.vm.UnhangTools)
}

// later runs do after d, unless the run has ended by then.
func (l *scenario) later(d time.Duration, do func()) {
	time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.over {
			do()
		}
	})
}

// perhapsRepeat asks for a repeat of what is uncertain; nothing is, since vCenter can tell.
func (l *scenario) perhapsRepeat() {
	if l.rnd.IntN(2) == 0 {
		l.data["onUncertain"] = "repeat"
	}
}

// refuseLogins makes the guest refuse its password from the first call of op on, times times; 0: for ever.
func (l *scenario) refuseLogins(op string, times int) bool {
	l.then(op, vcsim.Before, 1, func() { l.guest(func(g *vcsim.Guest) { g.Password = "not yet" }) })
	if times > 0 {
		l.then(op, vcsim.Before, 1+times, func() {
			l.guest(func(g *vcsim.Guest) { g.Password = vcsim.DefaultGuestPassword })
		})
	}
	return true
}

func (l *scenario) statusFails() {
	l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "GET guest/customization", RESTError: one(l, "INTERNAL_SERVER_ERROR",
		"SERVICE_UNAVAILABLE", "UNAUTHORIZED")})
	l.decided = append(l.decided, "task", "guest-status")
}

// before leaves the guest as an earlier customization with the same spec did, or one with the same host name.
func (l *scenario) before() {
	addresses := map[int]string{}
	if l.again {
		addresses = map[int]string{0: l.addresses[0], 1: l.addresses[1]}
	}
	if !l.partly {
		return
	}
	l.vm.SetShown(l.hostName, addresses)
	if l.rnd.IntN(2) == 0 {
		l.earlier("SUCCEEDED")
	}
}

// draw makes the nth scenario on a VM that is as new.
func draw(n int, vc *vcsim.VCenter, vm *vcsim.VM, secret func(name, key, value string)) *scenario {
	l := &scenario{n: n, rnd: rand.New(rand.NewPCG(uint64(n), 11)), id: fmt.Sprintf("scenario-%d", n), vc: vc, vm: vm,
		secret:   secret,
		hostName: fmt.Sprintf("host-%d", n), addresses: [2]string{fmt.Sprintf("172.%d.%d.%d", 16+n>>16&7, n>>8&255,
			n&255), fmt.Sprintf("172.%d.%d.%d", 24+n>>16&7, n>>8&255, n&255)},
		fails: map[string][]string{}, either: map[string][]string{}, customized: [2]int{1, 1}, started: [2]int{1,
			1}, processes: [2]int{1, 1}}
	l.data = fullRequest("exit 0")
	spec := l.section("customize")["spec"].(map[string]any)
	spec["identity"].(map[string]any)["hostName"].(map[string]any)["name"] = l.hostName
	adapters := []any{}
	for _, address := range l.addresses {
		adapters = append(adapters, map[string]any{"_typeName": "CustomizationAdapterMapping",
			"adapter": map[string]any{"_typeName": "CustomizationIPSettings",
				"ip":         map[string]any{"_typeName": "CustomizationFixedIp", "ipAddress": address},
				"subnetMask": "255.255.255.0"}})
	}
	spec["nicSettingMap"] = adapters
	l.process()["run"] = map[string]any{"path": "/opt/join", "arguments": "--quiet"}
	l.data["verify"] = map[string]any{}
	l.program(vcsim.Program{})
	l.atOnce, l.moves = l.rnd.IntN(2) == 0, l.rnd.IntN(3) == 0
	l.again = l.rnd.IntN(2) == 0
	l.partly = l.again || l.rnd.IntN(6) == 0
	l.before()
	l.network = !l.atOnce || l.rnd.IntN(4) > 0

	var drawn [5]*behaviour
	for range []int{0, 1, 1, 1, 2, 2, 2, 2, 2, 3}[l.rnd.IntN(10)] {
		n := l.rnd.IntN(count)
		for s := range slots {
			if n < len(slots[s]) {
				drawn[s] = &slots[s][n]
				break
			}
			n -= len(slots[s])
		}
	}
	l.network = l.network || drawn[1] != nil
	for _, b := range drawn {
		if b != nil && b.set(l) {
			l.names = append(l.names, b.name)
		}
	}
	if !l.atOnce {
		l.network = true
	}
	if !l.network {
		delete(l.data, "network")
		l.started = [2]int{}
	}
	l.guest(func(g *vcsim.Guest) { g.AppliesAtOnce, g.UpdatesStatus = l.atOnce, l.moves })
	if len(l.names) == 0 {
		l.names = []string{"honest"}
	}
	for i := range l.names {
		if l.again {
			l.names[i] += " (again)"
		}
	}
	if len(l.decided) == 0 {
		l.decided = []string{"task", "guest-status"}
	}
	return l
}
