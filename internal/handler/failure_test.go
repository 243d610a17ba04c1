package handler

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// only is a request for one section.
func only(section string) string {
	return `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},` + section + `}`
}

const (
	customizeOnly = `"customize":` + spec + `,"verify":{"nicsConnected":false}` // the network step connects them
	networkOnly   = `"network":{}`
	processOnly   = `"processes":[{"name":"first","run":{"path":"/usr/bin/first"}}]`
)

// refusal is a rule with which vCenter turns a call away.
func refusal(op, name string, status int, class vcapi.Class, times int) func(*harness) {
	return func(w *harness) {
		w.vc.on(rule{op: op + " sent", times: times, err: vcError(name, status, class)})
	}
}

func taskEnds(op, name string, class vcapi.Class, times int) func(*harness) {
	return func(w *harness) {
		w.vc.on(rule{op: op + " sent", times: times, task: &vcapi.Error{Name: name, Message: "words of vCenter about " +
			name, Class: class, Sent: vcapi.Answered}})
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	no := false
	rows := []struct {
		name    string
		request string // default: whole
		harness func(w *harness)
		step    string
		code    events.Code
		vsphere string
		retry   bool
		effects int
		kinds   string // the last three
	}{
		{name: "guest OS not supported", step: "check", code: events.NotCustomizable,
			kinds: "run.accepted check.completed run.failed",
			harness: func(w *harness) {
				w.vm.check = vcapi.Check{Status: "NOT_SUPPORTED", SupportedGuestOS: &no}
			}},
		{name: "supported, but not its guest OS", step: "check", code: events.NotCustomizable,
			kinds:   "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vm.check = vcapi.Check{Status: "SUPPORTED", SupportedGuestOS: &no} }},
		{name: "supported, but not in its power state", step: "check", code: events.PowerState,
			kinds:   "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vm.check = vcapi.Check{Status: "SUPPORTED", SupportedPowerState: &no} }},
		{name: "not supported, no reason", step: "check", code: events.NotCustomizable, retry: true,
			kinds:   "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vm.check = vcapi.Check{Status: "NOT_SUPPORTED"} }},
		{name: "powered off", step: "check", code: events.PowerState, kinds: "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vm.power = "poweredOff" }},
		{name: "unknown VM", step: "check", code: events.NotFound, vsphere: "ManagedObjectNotFound",
			kinds:   "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vm.gone = true }},
		{name: "no secret", request: strings.ReplaceAll(whole, "linux-root", "nobody"), step: "check",
			code:  events.UnknownSecret,
			kinds: "run.accepted check.completed run.failed"},
		{name: "no privilege, known beforehand", step: "check", code: events.Unauthorized,
			kinds:   "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vc.lacks = []string{"VirtualMachine.Provisioning.Customize"} }},
		{name: "check required, vCenter too old", request: `{"vm":"vm-42","check":{"mode":"required"}}`, step: "check",
			code:    events.Unsupported,
			kinds:   "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vc.apiVersion = "8.0.3.0" }},
		{name: "powered off after the check", step: "customize", code: events.PowerState, vsphere: "InvalidPowerState",
			kinds:   "check.completed customize.starting run.failed",
			harness: refusal("CustomizeGuest", "InvalidPowerState", 500, vcapi.Permanent, 0)},
		{name: "guest login refused", step: "customize", code: events.GuestLoginRefused, vsphere: "InvalidGuestLogin",
			kinds:   "check.completed customize.starting run.failed",
			harness: refusal("CustomizeGuest", "InvalidGuestLogin", 500, vcapi.GuestCredentials, 0)},
		{name: "guest user too weak", step: "customize", code: events.GuestPermissionDenied,
			vsphere: "GuestPermissionDenied",
			kinds:   "check.completed customize.starting run.failed",
			harness: refusal("CustomizeGuest", "GuestPermissionDenied", 500, vcapi.GuestCredentials, 0)},
		{name: "no privilege", step: "network", code: events.Unauthorized, vsphere: "NoPermission", effects: 1,
			kinds:   "customize.completed network.starting run.failed",
			harness: refusal("StartGuestNetwork", "NoPermission", 500, vcapi.Permanent, 0)},
		{name: "customization fails", step: "customize", code: events.CustomizationFailed,
			vsphere: "NicSettingMismatch", effects: 1,
			kinds:   "customize.progressed customize.completed run.failed",
			harness: taskEnds("CustomizeGuest", "NicSettingMismatch", vcapi.Permanent, 1)},
		{name: "an old success of the guest that could not be read before", step: "customize",
			code:    events.CustomizationFailed,
			vsphere: "NicSettingMismatch", effects: 1, kinds: "customize.progressed customize.completed run.failed",
			harness: func(w *harness) {
				w.vm.guest = &vcapi.GuestCustomization{Status: "SUCCEEDED", StartTime: &time.Time{}}
				w.vc.on(rule{op: "CustomizationStatus", times: 1, hang: true})
				taskEnds("CustomizeGuest", "NicSettingMismatch", vcapi.Permanent, 1)(w)
			}},
		{name: "the guest says that it failed", step: "customize", code: events.CustomizationFailed, effects: 1,
			kinds:   "customize.progressed customize.completed run.failed",
			harness: func(w *harness) { w.vm.lies = "FAILED" }},
		{name: "network fails", step: "network", code: events.NetworkFailed, vsphere: "SystemError", effects: 2,
			kinds:   "network.started network.completed run.failed",
			harness: taskEnds("StartGuestNetwork", "SystemError", vcapi.Permanent, 1)},
		{name: "exit code 3", step: "process", code: events.ExitCode, effects: 3,
			kinds:   "process.started process.exited run.failed",
			harness: func(w *harness) { w.vm.programs["/usr/bin/first"] = program{takes: time.Second, exit: 3} }},
		{name: "no such program", step: "process", code: events.ProcessNotStarted, vsphere: "NOT_FOUND", effects: 2,
			kinds:   "verify.completed process.starting run.failed",
			harness: func(w *harness) { delete(w.vm.programs, "/usr/bin/first") }},
		{name: "exit code lost", step: "process", code: events.ExitCodeUnknown, vsphere: "NOT_FOUND", effects: 3,
			kinds: "process.started process.exited run.failed", harness: func(w *harness) {
				w.vc.on(rule{op: "Process", times: 2, fn: func() { w.vc.restartGuest(w.vm) }})
			}},
		{name: "process takes too long",
			request: only(`"processes":[{"name":"first","timeout":"30s","run":{"path":"/usr/bin/first"}}]`),
			step:    "process",
			code:    events.StepTimeout, retry: true, effects: 1, kinds: "process.starting process.started run.failed",
			harness: func(w *harness) { w.vm.programs["/usr/bin/first"] = program{takes: time.Hour} }},
		{name: "customization takes too long", kinds: "customize.progressed customize.progressed run.failed",
			request: only(`"customize":` + spec[:len(spec)-1] + `,"timeout":"30s"}`), step: "customize",
			code: events.StepTimeout, retry: true, effects: 1},
		{name: "run takes too long", request: `{"timeout":"45s",` + whole[1:], step: "customize",
			code: events.DeadlineExceeded, retry: true, effects: 1,
			kinds: "customize.progressed customize.progressed run.failed"},
		{name: "busy for too long", request: only(`"customize":` + spec[:len(spec)-1] + `,"timeout":"5m"}`),
			step: "customize", code: events.Busy,
			vsphere: "TaskInProgress", retry: true, kinds: "customize.starting customize.starting run.failed",
			harness: refusal("CustomizeGuest", "TaskInProgress", 500, vcapi.Transient, 0)},
		{name: "in a state that is none of ours", step: "customize", code: events.InvalidState,
			vsphere: "InvalidVmState",
			kinds:   "check.completed customize.starting run.failed", harness: func(w *harness) {
				w.vc.on(rule{op: "CustomizeGuest sent", err: vcError("InvalidVmState", 500, vcapi.Permanent)})
			}},
		{name: "sessions that are lost again and again", request: only(`"network":{"timeout":"1m"}`), step: "network",
			code: events.StepTimeout, retry: true,
			vsphere: "NotAuthenticated", kinds: "network.starting network.starting run.failed",
			harness: refusal("StartGuestNetwork", "NotAuthenticated", 500, vcapi.SessionLost, 0)},
		{name: "tools say no for too long", request: only(`"network":{"timeout":"5m"}`), step: "network",
			code: events.InvalidState, retry: true,
			vsphere: "InvalidState", kinds: "network.starting network.starting run.failed",
			harness: refusal("StartGuestNetwork", "InvalidState", 500, vcapi.Transient, 0)},
		{name: "VM removed while its process runs", step: "process", code: events.NotFound,
			vsphere: "ManagedObjectNotFound", effects: 1,
			request: only(processOnly), kinds: "process.starting process.started run.failed",
			harness: func(w *harness) {
				w.vm.programs["/usr/bin/first"] = program{takes: time.Hour}
				w.later(20*time.Second, func() { w.vc.change(func() { w.vm.gone = true }) })
			}},
		{name: "VM removed while a process is watched", step: "process", code: events.NotFound,
			vsphere: "ManagedObjectNotFound",
			request: only(`"processes":[{"name":"old","watch":{"pid":77}}]`),
			kinds:   "check.completed process.started run.failed", harness: func(w *harness) {
				w.vm.procs = append(w.vm.procs, &fakeProc{pid: 77, command: "old", started: time.Now(),
					program: program{takes: time.Hour}})
				w.later(20*time.Second, func() { w.vc.change(func() { w.vm.gone = true }) })
			}},
		{name: "tools not ready", step: "customize", code: events.ToolsNotRunning, retry: true,
			kinds:   "check.completed run.waiting run.failed",
			harness: func(w *harness) { w.vm.tools = false }},
		{name: "tools not awaited",
			request: `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"},"readyTimeout":"0s"},` +
				`"customize":` + spec[:len(spec)-1] + `,"timeout":"1m"}}`, step: "customize",
			code:    events.ToolsNotRunning,
			retry:   true,
			kinds:   "run.accepted check.completed run.failed",
			harness: func(w *harness) { w.vm.tools = false }},
		{name: "VM removed while it is customized", step: "customize", code: events.NotFound, effects: 1,
			kinds: "customize.progressed customize.progressed run.failed", harness: func(w *harness) {
				w.later(20*time.Second, func() { w.vc.change(func() { w.vm.gone = true }) })
			}},
		{name: "vCenter away for good", request: `{"timeout":"20m",` + whole[1:], step: "check",
			code: events.DeadlineExceeded, retry: true,
			kinds: "run.accepted run.waiting run.failed", harness: func(w *harness) { w.vc.refusing = true }},
		{name: "vCenter silent for good", request: `{"timeout":"20m",` + whole[1:], step: "check",
			code: events.DeadlineExceeded, retry: true,
			kinds: "run.accepted run.waiting run.failed", harness: func(w *harness) { w.vc.silent = true }},
		{name: "vCenter away after a lost answer", request: only(networkOnly), step: "network", code: events.Uncertain,
			effects: 1,
			kinds:   "run.waiting run.waiting run.failed", harness: func(w *harness) {
				w.vc.on(rule{op: "StartGuestNetwork sent", times: 1, lost: "answer"})
				w.later(10*time.Second, func() { w.vc.change(func() { w.vc.refusing = true }) })
			}},
		{name: "a permanent error after a lost answer", request: only(networkOnly), step: "network",
			code: events.NetworkFailed, vsphere: "SystemError",
			kinds: "network.starting run.waiting run.failed", harness: func(w *harness) {
				e := vcError("SystemError", 500, vcapi.Permanent)
				e.Sent = vcapi.Unknown
				w.vc.on(rule{op: "StartGuestNetwork sent", err: e})
			}},
	}

	secrets := secretsDir(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				if row.harness != nil {
					row.harness(w)
				}
				if row.request == "" {
					row.request = whole
				}
				run := w.run(row.request)
				if run.Status != events.StatusFailed || run.Error == nil {
					w.t.Fatalf("the run ended as %s", run.Status)
				}
				e := run.Error
				if e.Step != row.step || e.Code != row.code || e.Retryable != row.retry {
					w.t.Errorf("error %s %s, retryable %v: %s", e.Step, e.Code, e.Retryable, e.Message)
				}
				if got := e.VSphere; (got == nil) != (row.vsphere == "") || got != nil && got.Name != row.vsphere {
					w.t.Errorf("vsphere %+v, want %q", got, row.vsphere)
				}
				if len(w.vc.effects) != row.effects {
					w.t.Errorf("effects %v", w.vc.effects)
				}
				kinds := w.kinds()
				if got := strings.Join(kinds[max(0, len(kinds)-3):], " "); !strings.HasSuffix(got, row.kinds) {
					w.t.Errorf("last events %s", got)
				}
				if run.Observed == nil && !w.vc.refusing && !w.vc.silent && !w.vm.gone {
					w.t.Error("nothing was observed")
				}
			})
		})
	}
}

// What passes is waited for, and told once.
func TestRetries(t *testing.T) {
	t.Parallel()
	rows := []struct {
		name    string
		request string
		harness func(w *harness)
		waiting []events.Waiting // those told, in order
	}{
		{name: "busy", harness: refusal("CustomizeGuest", "TaskInProgress", 500, vcapi.Transient, 4),
			waiting: []events.Waiting{events.WaitingResourceBusy}},
		{name: "busy with another task", waiting: []events.Waiting{events.WaitingResourceBusy},
			harness: func(w *harness) {
				w.vc.tasks = append(w.vc.tasks, &fakeTask{id: "task-7", name: "CreateSnapshot_Task", vm: vmID,
					queued: time.Now(), takes: time.Minute})
			}},
		// In between it is accepted.
		{name: "busy, told by the Task", harness: taskEnds("StartGuestNetwork", "TaskInProgress", vcapi.Transient, 2),
			waiting: []events.Waiting{events.WaitingResourceBusy, events.WaitingResourceBusy}},
		{name: "503 on a check", waiting: []events.Waiting{events.WaitingVCenterUnavailable},
			harness: func(w *harness) {
				w.vc.on(rule{op: "CheckCustomization", times: 3,
					err: vcError("SERVICE_UNAVAILABLE", 503, vcapi.Transient)})
			}},
		{name: "503 on a process", harness: refusal("StartProcess", "SERVICE_UNAVAILABLE", 503, vcapi.Transient, 3),
			waiting: []events.Waiting{events.WaitingTools}},
		{name: "tools away", waiting: []events.Waiting{events.WaitingTools}, harness: func(w *harness) {
			w.vm.tools = false
			w.later(2*time.Minute, func() { w.vc.change(func() { w.vm.tools = true }) })
		}},
		{name: "tools away while a process runs", request: only(processOnly), harness: func(w *harness) {
			w.vm.programs["/usr/bin/first"] = program{takes: 2 * time.Minute}
			w.later(10*time.Second, func() { w.vc.change(func() { w.vm.tools = false }) })
			w.later(time.Minute, func() { w.vc.change(func() { w.vm.tools = true }) })
		}},
		{name: "no answer from vCenter at first", waiting: []events.Waiting{events.WaitingVCenterUnavailable},
			harness: func(w *harness) {
				w.vc.refusing = true
				w.later(time.Minute, func() { w.vc.change(func() { w.vc.refusing = false }) })
			}},
		{name: "vCenter silent at first", waiting: []events.Waiting{events.WaitingVCenterUnavailable},
			harness: func(w *harness) {
				w.vc.silent = true
				w.later(time.Minute, func() { w.vc.change(func() { w.vc.silent = false }) })
			}},
		{name: "vCenter away while the guest is customized",
			waiting: []events.Waiting{events.WaitingVCenterUnavailable}, harness: func(w *harness) {
				w.later(20*time.Second, func() { w.vc.change(func() { w.vc.refusing = true }) })
				w.later(3*time.Minute, func() { w.vc.change(func() { w.vc.refusing = false }) })
			}},
		{name: "session lost", harness: func(w *harness) {
			for _, op := range []string{"CustomizeGuest sent", "StartGuestNetwork sent", "StartProcess sent"} {
				w.vc.on(rule{op: op, times: 1, fn: w.vc.expireSessions})
			}
		}},
		{name: "the guest's own status cannot be read", harness: func(w *harness) {
			w.vm.guest = &vcapi.GuestCustomization{Status: "SUCCEEDED", StartTime: &time.Time{}}
			w.vc.on(rule{op: "CustomizationStatus", times: 0, hang: true})
		}},
		{name: "password changed by the customization", waiting: []events.Waiting{events.WaitingGuestLogin},
			request: only(customizeOnly + "," + networkOnly),
			harness: refusal("StartGuestNetwork", "InvalidGuestLogin", 500, vcapi.GuestCredentials, 3)},
		{name: "password changed, told by the Task", waiting: []events.Waiting{events.WaitingGuestLogin,
			events.WaitingGuestLogin},
			request: only(customizeOnly + "," + networkOnly), harness: func(w *harness) {
				w.vm.network = 0
				w.vc.on(rule{op: "StartGuestNetwork sent", times: 2, idle: true,
					task: &vcapi.Error{Name: "InvalidGuestLogin", Class: vcapi.GuestCredentials, Sent: vcapi.Answered}})
			}},
		{name: "vCenter older than 9.0", harness: func(w *harness) { w.vc.apiVersion = "8.0.3.0" }},
		{name: "check skipped", request: `{"check":{"mode":"skip"},` + whole[1:]},
		{name: "slow journal", harness: func(w *harness) {
			slow := 0
			w.slow = func(_ int, m stream.Message) memstore.Fault { // slower than the send window, three times
				if strings.HasSuffix(m.Subject, ".customize.starting") && slow < 3 {
					slow++
					return memstore.Fault{Delay: 7 * time.Second}
				}
				return memstore.Fault{}
			}
		}},
	}

	secrets := secretsDir(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				if row.request == "" {
					row.request = whole
				}
				if row.harness != nil {
					row.harness(w)
				}
				w.run(row.request)
				mustSucceed(w)
				var told []events.Waiting
				for _, e := range w.events() {
					if e.kind == events.RunWaiting {
						told = append(told, e.run.Waiting)
					}
				}
				if !slices.Equal(told, row.waiting) {
					w.t.Errorf("waiting told %v, want %v", told, row.waiting)
				}
				if len(w.owners) != 1 {
					w.t.Errorf("%d owners", len(w.owners))
				}
			})
		})
	}
}
