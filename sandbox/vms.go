package sandbox

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// VM is a ready-made VM of the simulated vCenter.
type VM struct {
	ID      string          // managed object ID
	Name    string          // in vCenter
	Shows   string          // what it is there for
	Ends    string          // how its request ends: run.succeeded, or run.failed and the error's code
	Request json.RawMessage // a request that shows it: the data of a requested event
}

// guestSecret is the secret with the guests' credentials.
const guestSecret = "linux-root"

// program is what every request runs in its guest at the end.
const program = "/usr/bin/join-domain"

// behaviour makes a VM's guest, or vCenter about it, worth seeing.
type behaviour struct {
	shows, ends string
	guest       func(*vcsim.Guest)
	rules       []vcsim.Rule                    // how vCenter answers about it
	vm          func(*vcsim.VM)                 // once
	each        func(*vcsim.VCenter, *vcsim.VM) // when a run begins with its check, so that every try shows the same
	started     func(*vcsim.VM)                 // when its process has started
	request     func(request map[string]any)    // where the usual request does not show it
}

var behaviours = []behaviour{
	{shows: "all is well; without the network step it would end as VerifyMismatch", ends: "run.succeeded"},
	{
		shows: "slow: half a minute, with progress",
		ends:  "run.succeeded",
		guest: func(g *vcsim.Guest) { g.CustomizeTime = 30 * time.Second },
	},
	{shows: "the guest lies: its Task succeeds, its host name stays what it was", ends: "run.failed VerifyMismatch",
		guest: func(g *vcsim.Guest) { g.Faults.KeepsHostName = true }},
	{shows: "a NIC is left disconnected (cure: network.connectNics)", ends: "run.failed VerifyMismatch",
		each: func(_ *vcsim.VCenter, m *vcsim.VM) { m.SetNICs(false) }},
	{
		shows: "VMware Tools are away, and come back after 8 s",
		ends:  "run.succeeded",
		each:  func(_ *vcsim.VCenter, m *vcsim.VM) { awayFor(8*time.Second, m) },
	},
	{
		shows: "the guest refuses the login",
		ends:  "run.failed GuestLoginRefused",
		guest: func(g *vcsim.Guest) { g.Password = "another one" },
	},
	{shows: "the process in the guest exits with 3", ends: "run.failed ExitCode",
		guest: func(g *vcsim.Guest) { g.Programs[program] = vcsim.Program{Duration: time.Second, ExitCode: 3} }},
	{shows: "the answer to CustomizeGuest_Task is lost: the Task is found, and made once", ends: "run.succeeded",
		rules: []vcsim.Rule{{Op: "CustomizeGuest_Task", LoseResponse: true}}},
	{
		shows: "vCenter says that the Task failed, and the guest was customized",
		ends:  "run.succeeded",
		guest: func(g *vcsim.Guest) {
			g.TaskError, g.AppliesAnyway, g.AppliesAtOnce = &types.CustomizationFault{}, true, true
		},
		each: func(_ *vcsim.VCenter, m *vcsim.VM) { m.SetHostName("template") },
	}, // what it showed before would prove nothing
	{shows: "the customization engine crashes and leaves its lock: aborted, and repeated once", ends: "run.succeeded",
		each: func(_ *vcsim.VCenter, m *vcsim.VM) { m.Configure(func(g *vcsim.Guest) { g.Crash = true }) }},
	{
		shows: "vCenter says for some seconds that the VM is busy",
		ends:  "run.succeeded",
		each: func(v *vcsim.VCenter, m *vcsim.VM) {
			v.Script(vcsim.Rule{VM: m.ID(), Op: "CustomizeGuest_Task", Times: 3, Fault: &types.TaskInProgress{}})
		},
	},
	{
		shows: "the customization engine is not installed in the guest",
		ends:  "run.failed CustomizationFailed",
		guest: func(g *vcsim.Guest) { g.Engine = false },
	},
	{shows: "a guest OS that cannot be customized: known before anything is done", ends: "run.failed NotCustomizable",
		guest: func(g *vcsim.Guest) { g.Supported = false }},
	{shows: "powered off", ends: "run.failed PowerState", vm: (*vcsim.VM).PowerOff},
	{shows: "the process outlasts its time", ends: "run.failed StepTimeout",
		guest:   func(g *vcsim.Guest) { g.Programs[program] = vcsim.Program{Duration: time.Hour} },
		request: func(r map[string]any) { r["processes"].([]any)[0].(map[string]any)["timeout"] = "5s" }},
	{shows: "the guest forgets the process's exit code: VMware Tools are restarted", ends: "run.failed ExitCodeUnknown",
		guest: func(g *vcsim.Guest) { g.Programs[program] = vcsim.Program{Duration: time.Hour} },
		each: func(v *vcsim.VCenter, m *vcsim.VM) {
			v.Script(vcsim.Rule{VM: m.ID(), Op: "guest/processes get", Skip: 2, Times: 1, RESTError: "NOT_FOUND"})
		}},
	{shows: "a cancel: it works for an hour until it is told to stop", ends: "run.canceled",
		guest: func(g *vcsim.Guest) { g.Programs[program] = vcsim.Program{Duration: time.Hour} },
		request: func(r map[string]any) {
			r["processes"].([]any)[0].(map[string]any)["timeout"] = "1h"
			r["timeout"] = "2h"
		}},
	{
		shows:   "VMware Tools go away in mid-process: process.unreachable, and on when they are back after 5 s",
		ends:    "run.succeeded",
		guest:   func(g *vcsim.Guest) { g.Programs[program] = vcsim.Program{Duration: 8 * time.Second} },
		started: func(m *vcsim.VM) { awayFor(5*time.Second, m) },
	},
}

// awayFor lets VMware Tools not answer for a while.
func awayFor(d time.Duration, m *vcsim.VM) {
	m.HangTools()
	time.AfterFunc(d, m.UnhangTools)
}

// prepare gives the VMs of a simulated vCenter their behaviours.
func prepare(v *vcsim.VCenter) []VM {
	var all []VM
	each, started := map[string]func(){}, map[string]func(){}
	for i, id := range v.VMs() {
		b, m := behaviours[i], v.VM(id)
		m.Configure(func(g *vcsim.Guest) {
			g.CustomizeTime, g.NetworkTime = 3*time.Second, time.Second
			g.Programs[program] = vcsim.Program{Duration: 2 * time.Second}
			g.Files = map[string]string{
				"/var/log/vmware-gosc/instant_clone_customization.log": "INFO the sandbox's guest was here\n",
			}
			if b.guest != nil {
				b.guest(g)
			}
		})

		for _, rule := range b.rules {
			rule.VM = id
			v.Script(rule)
		}

		if b.vm != nil {
			b.vm(m)
		}
		if b.each != nil {
			each[id] = func() { b.each(v, m) }
		}
		if b.started != nil {
			started[id] = func() { b.started(m) }
		}

		all = append(all, VM{ID: id, Name: m.Name(), Shows: b.shows, Ends: b.ends, Request: requestFor(id, i, b)})
	}

	v.OnCall(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		if begin := each[c.VM]; begin != nil && phase == vcsim.Before && c.Op == "guest/customization check" {
			begin()
		}
		if has := started[c.VM]; has != nil && phase == vcsim.After && c.Op == "guest/processes create" &&
			c.Status == http.StatusCreated {
			has()
		}
		return vcsim.Proceed
	})

	return all
}

// requestFor asks for everything: customize, start the network, verify, run a process.
func requestFor(vm string, n int, b behaviour) json.RawMessage {
	request := map[string]any{
		"vm":    vm,
		"guest": map[string]any{"credentials": map[string]any{"secretRef": guestSecret}},
		"customize": map[string]any{"spec": map[string]any{
			"_typeName": "CustomizationSpec",
			"identity": map[string]any{"_typeName": "CustomizationLinuxPrep", "domain": "example.test",
				"hostName": map[string]any{"_typeName": "CustomizationFixedName", "name": fmt.Sprintf("web-%d", n+1)}},
			"globalIPSettings": map[string]any{
				"_typeName":     "CustomizationGlobalIPSettings",
				"dnsServerList": []any{"10.0.0.2"},
			},
			"nicSettingMap": []any{
				map[string]any{"_typeName": "CustomizationAdapterMapping", "adapter": map[string]any{
					"_typeName": "CustomizationIPSettings",
					"ip": map[string]any{
						"_typeName": "CustomizationFixedIp",
						"ipAddress": fmt.Sprintf("10.0.0.%d", n+11),
					},
					"subnetMask": "255.255.255.0",
					"gateway":    []any{"10.0.0.1"},
				}},
			},
		}},
		"network": map[string]any{},
		"verify":  map[string]any{"timeout": "10s"},
		"processes": []any{
			map[string]any{
				"name": "join-domain",
				"run":  map[string]any{"path": program, "arguments": "--domain example.test"},
			},
		},
	}

	if b.request != nil {
		b.request(request)
	}

	data, err := json.MarshalIndent(request, "", "  ")
	if err != nil {
		panic(err) // maps and strings
	}

	return data
}
