package e2e

import (
	"fmt"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// refuse answers the next calls of op with a fault, times times; 0: all.
func (l *scenario) refuse(op string, times int, fault types.BaseMethodFault) {
	l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: op, Times: times, Fault: fault})
}

// proxy answers the next calls of op as a proxy before a vCenter that is starting does.
func (l *scenario) proxy(op string, times, status int) {
	l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: op, Times: times,
		HTTP: &vcsim.Response{Status: status, ContentType: "text/html",
			Body: "<html><title>Service Unavailable</title></html>"}})
}

// restError answers the next calls of op with an error of the REST API.
func (l *scenario) restError(op string, times int, name string) {
	l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: op, Times: times, RESTError: name})
}

// never is for a step that is not done, or is perhaps not done.
func (l *scenario) never(does *[2]int) { *does = [2]int{} }

// hostNameOf puts another host name into the spec.
func (l *scenario) hostNameOf(name map[string]any) {
	l.section("customize")["spec"].(map[string]any)["identity"].(map[string]any)["hostName"] = name
}

// secretHostName puts a host name into the spec that is a secret.
func (l *scenario) secretHostName() {
	l.hostName = fmt.Sprintf("sec-%d-ret", l.n)
	l.secret(l.id, "host", l.hostName)
	l.hostNameOf(map[string]any{"_typeName": "CustomizationFixedName", "name": map[string]any{"secretRef": l.id,
		"key": "host"}})
}

// lateTask loses the answer of op's first call, and shows its Task late.
func (l *scenario) lateTask(op string) bool {
	l.on(op, vcsim.After, 1, lose)
	return l.guest(func(g *vcsim.Guest) { g.Faults.TaskLag = time.Duration(100+l.rnd.IntN(700)) * time.Millisecond })
}

// holdUpdates has vCenter tell nothing of the VM for a while from op's first call on.
func (l *scenario) holdUpdates(op string) bool {
	l.then(op, vcsim.Before, 1, func() {
		l.vm.BlockUpdates()
		l.later(time.Duration(200+l.rnd.IntN(2000))*time.Millisecond, l.vm.UnblockUpdates)
	})
	return true
}

// adapter is one of the spec's.
func (l *scenario) adapter(n int) map[string]any {
	mapping := l.section("customize")["spec"].(map[string]any)["nicSettingMap"].([]any)[n].(map[string]any)
	return mapping["adapter"].(map[string]any)
}

// customizingMore are those of a customization: refusals as the answer and as the Task's error, the engine's own codes,
// statuses, and what the spec asks for.
var customizingMore = []behaviour{
	{"general fault as the answer, once", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 1, one[types.BaseMethodFault](l, new(types.CustomizationFault),
			new(types.UnexpectedCustomizationFault)))
		l.verifyWithin(10 * time.Second)
		l.customized, l.aborts = [2]int{1, 1}, [2]int{1, 1}
		return true
	}},
	{"general fault as the answer, always", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 0, one[types.BaseMethodFault](l, new(types.CustomizationFault),
			new(types.UnexpectedCustomizationFault)))
		l.verifyWithin(short)
		l.customized, l.aborts, l.decided = [2]int{}, [2]int{0, 1}, []string{"task"}
		return l.fail("customize", "CustomizationFailed")
	}},
	{"a fault of the spec as the answer", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 0, one(l, broken...))
		l.never(&l.customized)
		l.decided = []string{"task"}
		return l.fail("customize", "CustomizationFailed", "InvalidRequest")
	}},
	{"InvalidArgument as the answer", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 0, &types.InvalidArgument{InvalidProperty: "spec.identity.hostName"})
		l.never(&l.customized)
		return l.fail("customize", "InvalidRequest")
	}},
	{"UncustomizableGuest as the answer", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.Customizable = false })
		l.never(&l.customized)
		return l.fail("customize", "NotCustomizable")
	}},
	{"GuestPermissionDenied as the answer", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.Root = false })
		l.never(&l.customized)
		return l.fail("customize", "GuestPermissionDenied")
	}},
	{"CustomizationPending as the answer, for a while", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 1+l.rnd.IntN(3), new(types.CustomizationPending))
		return true
	}},
	{"tools away as the answer, for a while", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 1+l.rnd.IntN(3), one[types.BaseMethodFault](l, new(types.InvalidState),
			new(types.GuestOperationsUnavailable), new(types.ToolsUnavailable)))
		return true
	}},
	{"tools away as the answer, for ever", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 0, one[types.BaseMethodFault](l, new(types.InvalidState),
			new(types.GuestOperationsUnavailable)))
		l.section("customize")["timeout"] = short.String()
		l.never(&l.customized)
		return l.fail("customize", "ToolsNotRunning", "InvalidState", "StepTimeout")
	}},
	{"SystemError as the answer, once", func(l *scenario) bool {
		l.refuse("CustomizeGuest_Task", 1, one[types.BaseMethodFault](l, &types.SystemError{Reason: "vpxd is busy"},
			new(types.HostCommunication)))
		return true
	}},
	{"a proxy's 503 to CustomizeGuest_Task, once", func(l *scenario) bool {
		l.proxy("CustomizeGuest_Task", 1, one(l, 502, 503, 504))
		return true
	}},
	{"CustomizeGuest_Task: two answers lost", func(l *scenario) bool {
		l.on("CustomizeGuest_Task", vcsim.Before, 1, lose)
		l.on("CustomizeGuest_Task", vcsim.After, 1, lose)
		return true
	}},
	{"CustomizeGuest_Task: answer lost, nothing applied", func(l *scenario) bool {
		l.on("CustomizeGuest_Task", vcsim.After, 1, lose)
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.IgnoreSpec = true })
		return l.unapplied()
	}},
	{"CustomizeGuest_Task: answer lost, Task fails", func(l *scenario) bool {
		l.moves = false
		l.on("CustomizeGuest_Task", vcsim.After, 1, lose)
		l.verifyWithin(short)
		fault := one(l, broken...)
		l.guest(func(g *vcsim.Guest) { g.TaskError = fault })
		l.decided = []string{"task"}
		return l.fail("customize", "CustomizationFailed")
	}},
	{"engine's own code, nothing applied", func(l *scenario) bool { return l.engine(false) }},
	// its word counts: something of the spec is missing
	{"engine's own code, all applied", func(l *scenario) bool { return l.engine(true) }},
	{"lock held by a crashed engine", func(l *scenario) bool {
		l.moves = false
		l.guest(func(g *vcsim.Guest) { g.Locked = true })
		l.verifyWithin(10 * time.Second)
		l.customized, l.aborts = [2]int{2, 2}, [2]int{1, 1}
		return true
	}},
	{"status RUNNING for ever, Task succeeds", func(l *scenario) bool {
		l.moves, l.statusTells = true, true
		l.verifyWithin(short)
		l.decided = []string{"task"}
		return l.guest(func(g *vcsim.Guest) { g.Faults.FinalStatus = "RUNNING" })
	}},
	{"status RUNNING for ever, Task succeeds, nothing applied", func(l *scenario) bool {
		l.moves, l.statusTells = true, true
		l.verifyWithin(short)
		l.decided = []string{"task"}
		l.guest(func(g *vcsim.Guest) { g.Faults.FinalStatus, g.IgnoreSpec = "RUNNING", true })
		return l.unapplied()
	}},
	{"status of an earlier run in microseconds, Task fails", func(l *scenario) bool {
		l.moves, l.decided = false, []string{"task"}
		l.verifyWithin(short)
		l.earlierWithin("SUCCEEDED", 123456*time.Microsecond)
		fault := one(l, append(broken[:len(broken):len(broken)], passing...)...)
		l.guest(func(g *vcsim.Guest) { g.TaskError = fault })
		return l.fail("customize", "CustomizationFailed", "Unavailable")
	}},
	{"status FAILED of an earlier run in microseconds", func(l *scenario) bool {
		l.moves = false
		l.earlierWithin("FAILED", 999999*time.Microsecond)
		return true
	}},
	{"status RUNNING of an earlier run in microseconds", func(l *scenario) bool {
		l.moves = false
		l.earlierWithin("RUNNING", 500*time.Microsecond)
		return true
	}},
	{"status in microseconds", func(l *scenario) bool {
		l.moves = true
		return l.guest(func(g *vcsim.Guest) { g.Faults.StatusPrecision = time.Microsecond })
	}},
	{"status in microseconds, FAILED", func(l *scenario) bool {
		l.moves, l.statusTells, l.decided = true, true, []string{"guest-status"}
		l.guest(func(g *vcsim.Guest) {
			g.Faults.StatusPrecision, g.Faults.FinalStatus, g.IgnoreSpec = time.Microsecond, "FAILED", true
		})
		return l.fail("customize", "CustomizationFailed")
	}},
	{"Task shown late, answer lost", func(l *scenario) bool { // within V
		return l.lateTask("CustomizeGuest_Task")
	}},
	{"updates held back during customization", func(l *scenario) bool {
		return l.holdUpdates("CustomizeGuest_Task")
	}},
	{"guest restarted during customization", func(l *scenario) bool {
		l.moves, l.looked = false, true
		l.verifyWithin(10 * time.Second)
		l.guest(func(g *vcsim.Guest) { g.CustomizeTime = ever })
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() {
			l.guest(func(g *vcsim.Guest) { g.CustomizeTime = 50 * time.Millisecond })
			l.vm.RebootGuest()
		})
		l.customized, l.aborts = [2]int{1, 2}, [2]int{0, 1}
		l.either["customize"] = []string{"ToolsNotRunning", "CustomizationFailed", "Uncertain"}
		return true
	}},
	{"power off before the customization", func(l *scenario) bool {
		l.section("guest")["readyTimeout"] = short.String()
		l.then("guest/customization check", vcsim.After, 1, l.vm.PowerOff)
		l.either["check"] = []string{"PowerState"} // where vCenter is asked again
		l.never(&l.customized)
		return l.fail("customize", "PowerState", "ToolsNotRunning")
	}},
	{"host name by a prefix", func(l *scenario) bool {
		base := l.hostName
		l.hostNameOf(map[string]any{"_typeName": "CustomizationPrefixName", "base": base})
		l.hostName = base + "1"
		l.before()
		return true
	}},
	{"host name by a prefix, not applied", func(l *scenario) bool {
		l.hostNameOf(map[string]any{"_typeName": "CustomizationPrefixName", "base": "other"})
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.Faults.KeepsHostName = true })
		return l.fail("verify", "VerifyMismatch", "StepTimeout")
	}},
	{"host name of the VM", func(l *scenario) bool {
		l.hostNameOf(map[string]any{"_typeName": "CustomizationVirtualMachineName"})
		l.hostName = l.vm.Name()
		l.before()
		return true
	}},
	{"host name by a secret", func(l *scenario) bool {
		l.secretHostName()
		l.before()
		return true
	}},
	{"host name by a secret, nothing applied", func(l *scenario) bool {
		l.secretHostName()
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.IgnoreSpec = true })
		// the host name was another before, also where the rest was so
		return l.fail("verify", "VerifyMismatch", "StepTimeout")
	}},
	{"address by DHCP", func(l *scenario) bool {
		l.adapter(1)["ip"] = map[string]any{"_typeName": "CustomizationDhcpIpGenerator"}
		l.addresses[0] = "" // the lease is the guest's to choose
		return true
	}},
	{"address by DHCP, none given", func(l *scenario) bool {
		if l.again && l.faults().IgnoresNetworkStart { // it keeps its lease, and shows what is asked for
			return false
		}
		l.adapter(1)["ip"] = map[string]any{"_typeName": "CustomizationDhcpIpGenerator"}
		l.addresses[0] = ""
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.Faults.NoDHCPLease = true })
		return l.fail("verify", "VerifyMismatch", "StepTimeout")
	}},
	{"addresses swapped between the NICs", func(l *scenario) bool {
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.Faults.SwapsAddresses = true })
		return l.fail("verify", "VerifyMismatch", "StepTimeout")
	}},
	{"one of two addresses not applied", func(l *scenario) bool {
		if l.partly {
			return false
		}
		l.verifyWithin(short)
		l.vm.SetShown("", map[int]string{0: l.addresses[0]})
		l.guest(func(g *vcsim.Guest) { g.Faults.KeepsAddresses = true })
		return l.fail("verify", "VerifyMismatch", "StepTimeout")
	}},
	{"Task canceled by a user", func(l *scenario) bool {
		l.moves = false
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.TaskError = new(types.RequestCanceled) })
		l.decided = []string{"task"}
		return l.fail("customize", "Canceled", "CustomizationFailed")
	}},
}

// engine makes the Task end with a code of the guest customization engine.
func (l *scenario) engine(applied bool) bool {
	l.moves, l.decided = false, []string{"task"}
	l.verifyWithin(short)
	code := one(l, 248, 251, 252, 253, 254, 255)
	l.guest(func(g *vcsim.Guest) {
		g.TaskError, g.AppliesAnyway, g.Faults.Message = new(types.CustomizationFault), applied, fmt.Sprintf(
			"An error occurred while customizing VM: ERR,%d,the engine's words", code)
	})
	l.customized, l.aborts = [2]int{1, 2}, [2]int{0, 1}
	return l.fail("customize", "CustomizationFailed")
}

// startingMore are those of the network's start.
var startingMore = []behaviour{
	{"StartGuestNetwork_Task: a fault as the answer", func(l *scenario) bool {
		l.refuse("StartGuestNetwork_Task", 0, one[types.BaseMethodFault](l, new(types.CustomizationFault),
			new(types.UncustomizableGuest)))
		l.never(&l.started)
		return l.fail("network", "NetworkFailed", "NotCustomizable")
	}},
	{"StartGuestNetwork_Task: permission denied", func(l *scenario) bool {
		l.refuse("StartGuestNetwork_Task", 0, new(types.GuestPermissionDenied))
		l.never(&l.started)
		return l.fail("network", "GuestPermissionDenied")
	}},
	{"StartGuestNetwork_Task: tools away as the answer, for a while", func(l *scenario) bool {
		l.refuse("StartGuestNetwork_Task", 1+l.rnd.IntN(3), one[types.BaseMethodFault](l, new(types.InvalidState),
			new(types.GuestOperationsUnavailable)))
		return true
	}},
	{"StartGuestNetwork_Task: SystemError as the answer, once", func(l *scenario) bool {
		l.refuse("StartGuestNetwork_Task", 1, &types.SystemError{Reason: "vpxd is busy"})
		return true
	}},
	{"StartGuestNetwork_Task: a proxy's 503, once", func(l *scenario) bool {
		l.proxy("StartGuestNetwork_Task", 1, one(l, 502, 503, 504))
		return true
	}},
	{"StartGuestNetwork_Task: two answers lost", func(l *scenario) bool {
		l.on("StartGuestNetwork_Task", vcsim.Before, 1, lose)
		l.on("StartGuestNetwork_Task", vcsim.After, 1, lose)
		return true
	}},
	{"network Task shown late, answer lost", func(l *scenario) bool {
		return l.lateTask("StartGuestNetwork_Task")
	}},
	{"updates held back during the network's start", func(l *scenario) bool {
		return l.holdUpdates("StartGuestNetwork_Task")
	}},
	{"NIC goes off after the network's start", func(l *scenario) bool {
		if len(l.fails) > 0 || l.section("verify")["nicsConnected"] != nil {
			return false
		}
		l.verifyWithin(short)
		l.guest(func(g *vcsim.Guest) { g.NetworkTime = 300 * time.Millisecond })
		l.then("StartGuestNetwork_Task", vcsim.After, 1, func() { l.vm.SetNICs(false) })
		return l.fail("verify", "VerifyMismatch", "StepTimeout")
	}},
	{"NICs' reconfiguration refused for a while", func(l *scenario) bool {
		if len(l.fails) > 0 {
			return false
		}
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() { l.vm.SetNICs(false) })
		l.section("network")["connectNics"] = true
		l.refuse("ReconfigVM_Task", 1+l.rnd.IntN(2), one[types.BaseMethodFault](l, new(types.TaskInProgress),
			new(types.ConcurrentAccess)))
		return true
	}},
	{"NICs' reconfiguration: answer lost", func(l *scenario) bool {
		if len(l.fails) > 0 {
			return false
		}
		l.then("CustomizeGuest_Task", vcsim.After, 1, func() { l.vm.SetNICs(false) })
		l.section("network")["connectNics"] = true
		l.on("ReconfigVM_Task", one(l, vcsim.Before, vcsim.After), 1, lose)
		return true
	}},
}

// showingMore are those of what a guest shows.
var showingMore = []behaviour{
	{"shown, then gone, then shown again", func(l *scenario) bool {
		if l.looked || len(l.fails) > 0 {
			return false
		}
		l.guest(func(g *vcsim.Guest) { g.ReportDelay = 300 * time.Millisecond })
		l.then("guest/customization check", vcsim.After, 1, func() { l.silence(150 * time.Millisecond) })
		return true
	}},
	{"host name not compared", func(l *scenario) bool {
		if len(l.fails) > 0 || l.looked {
			return false
		}
		l.section("verify")["hostName"] = false
		return true
	}},
	{"another address beside", func(l *scenario) bool {
		if l.addresses[0] == "" || len(l.fails) > 0 || l.looked || !l.network {
			return false
		}
		macs := l.vm.MACs()
		first := l.addresses
		l.then("StartGuestNetwork_Task", vcsim.After, 1, func() {
			l.vm.SetAddresses(macs[0], first[0], "fe80::250:56ff:fe00:1")
		})
		l.addresses[0] = "" // more than the spec's
		return true
	}},
}

// runningMore are those of a process.
var runningMore = []behaviour{
	{"exit code with the other sign", func(l *scenario) bool {
		codes := one(l, [2]int64{3221225477, -1073741819}, [2]int64{-1, 4294967295})
		l.program(vcsim.Program{ExitCode: codes[0]})
		l.process()["successExitCodes"] = []int64{codes[1]}
		return true
	}},
	{"processes create: busy for a while", func(l *scenario) bool {
		l.restError("guest/processes create", 1+l.rnd.IntN(3), "RESOURCE_BUSY")
		return true
	}},
	{"processes create: tools away for a while", func(l *scenario) bool {
		l.restError("guest/processes create", 1+l.rnd.IntN(3), "SERVICE_UNAVAILABLE")
		return true
	}},
	{"processes create: tools away for ever", func(l *scenario) bool {
		l.restError("guest/processes create", 0, "SERVICE_UNAVAILABLE")
		l.process()["timeout"] = short.String()
		l.never(&l.processes)
		return l.fail("process", "ToolsNotRunning", "StepTimeout")
	}},
	{"processes create: an error without proof, once", func(l *scenario) bool {
		l.restError("guest/processes create", 1, one(l, "INTERNAL_SERVER_ERROR", "TIMED_OUT"))
		return true
	}},
	{"processes create: a proxy's 503, once", func(l *scenario) bool {
		l.proxy("guest/processes create", 1, one(l, 502, 503, 504))
		return true
	}},
	{"processes create: not allowed", func(l *scenario) bool {
		l.restError("guest/processes create", 0, "UNAUTHORIZED")
		l.never(&l.processes)
		return l.fail("process", "Unauthorized", "GuestPermissionDenied")
	}},
	{"processes create: two answers lost", func(l *scenario) bool {
		l.on("guest/processes create", vcsim.Before, 1, lose)
		l.on("guest/processes create", vcsim.After, 1, lose)
		return true
	}},
	{"process: get busy for a while", func(l *scenario) bool {
		l.restError("guest/processes get", 1+l.rnd.IntN(3), one(l, "RESOURCE_BUSY", "SERVICE_UNAVAILABLE"))
		return true
	}},
	{"process: get answered by a proxy for a while", func(l *scenario) bool {
		l.proxy("guest/processes get", 1+l.rnd.IntN(3), one(l, 429, 502, 503, 504))
		return true
	}},
	{"the same program runs beside", func(l *scenario) bool {
		l.then("guest/customization check", vcsim.After, 1, func() { l.vm.SpawnProcess(`"/opt/join" --quiet`) })
		return true
	}},
	{"two processes, the second fails", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.Programs["/opt/second"] = vcsim.Program{ExitCode: 9} })
		l.data["processes"] = append(l.data["processes"].([]any), map[string]any{"name": "second",
			"run": map[string]any{"path": "/opt/second"}})
		l.processes = [2]int{2, 2}
		return l.fail("process", "ExitCode")
	}},
	{"arguments end in a backslash", func(l *scenario) bool {
		l.process()["run"] = map[string]any{"path": "/opt/join", "arguments": `--dir /srv/data\`}
		return true
	}},
}

// alwaysMore are those of the whole run.
var alwaysMore = []behaviour{
	{"status call hangs once", func(l *scenario) bool {
		if l.statusTells {
			return false
		}
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "GET guest/customization", Times: 1, Delay: 6 * time.Second})
		l.decided = append(l.decided, "task", "guest-status")
		return true
	}},
	{"check says SUPPORTED and that the guest OS is not", func(l *scenario) bool {
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "guest/customization check",
			HTTP: &vcsim.Response{Status: 200, ContentType: "application/json",
				Body: `{"check_status":"SUPPORTED","supported_guest_os":false,"supported_power_state":true}`}})
		l.customized, l.aborts, l.started, l.processes = [2]int{}, [2]int{}, [2]int{}, [2]int{}
		return l.fail("check", "NotCustomizable")
	}},
	{"check says NOT_SUPPORTED", func(l *scenario) bool {
		l.guest(func(g *vcsim.Guest) { g.Supported = false })
		return l.fail("check", "NotCustomizable")
	}},
	{"check says nothing at first", func(l *scenario) bool {
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "guest/customization check", Times: 1 + l.rnd.IntN(2),
			HTTP: &vcsim.Response{Status: 200, ContentType: "application/json",
				Body: `{"check_status":"NOT_SUPPORTED"}`}})
		return true
	}},
	{"check is not allowed", func(l *scenario) bool {
		l.restError("guest/customization check", 0, "UNAUTHORIZED")
		return l.fail("check", "Unauthorized")
	}},
	{"cloud-init data on the VM", func(l *scenario) bool {
		l.vm.SetExtraConfig("guestinfo.userdata", "I2Nsb3VkLWNvbmZpZwo=")
		return true
	}},
	{"property reads answered by a proxy for a while", func(l *scenario) bool {
		l.proxy("RetrievePropertiesEx", 1+l.rnd.IntN(4), one(l, 429, 502, 503, 504))
		return true
	}},
	{"property reads late", func(l *scenario) bool {
		l.vc.Script(vcsim.Rule{VM: l.vm.ID(), Op: "RetrievePropertiesEx", DelayResponse: 200 * time.Millisecond})
		return true
	}},
	{"updates held back all the time, in pieces", func(l *scenario) bool {
		for _, op := range []string{"guest/customization check", "CustomizeGuest_Task", "StartGuestNetwork_Task",
			"guest/processes create"} {
			l.then(op, vcsim.After, 1, func() {
				l.vm.BlockUpdates()
				l.later(400*time.Millisecond, l.vm.UnblockUpdates)
			})
		}
		return true
	}},
	{"published twice", func(l *scenario) bool {
		l.twice = true
		return true
	}},
}
