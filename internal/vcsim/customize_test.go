package vcsim_test

import (
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		before func(*vcsim.VM)
		edit   func(body string) string
		fault  string
		says   string
	}{
		{name: "powered off", before: (*vcsim.VM).PowerOff, fault: "InvalidPowerState", says: "(Powered off)"},
		{
			name: "tools down", before: (*vcsim.VM).ToolsDown, fault: "InvalidState",
			says: "not allowed in the current state",
		},
		{name: "wrong password", edit: replace(vcsim.DefaultGuestPassword, "wrong"), fault: "InvalidGuestLogin"},
		{name: "not root", before: configure(func(g *vcsim.Guest) { g.Root = false }), fault: "GuestPermissionDenied"},
		{
			name: "windows", before: configure(func(g *vcsim.Guest) { g.Family = "windowsGuest" }),
			fault: "UncustomizableGuest",
		},
		{
			name: "not customizable", before: configure(func(g *vcsim.Guest) { g.Customizable = false }),
			fault: "UncustomizableGuest",
		},
		{
			name:  "unknown VM",
			edit:  func(b string) string { return vmValue.ReplaceAllString(b, `"value":"vm-0"`) },
			fault: "ManagedObjectNotFound",
		},
		{
			name: "unknown type", edit: replace("CustomizationFixedIp", "CustomizationFixedIpp"),
			fault: "InvalidArgument", says: "spec",
		},
		{name: "no type", edit: replace(`"_typeName":"CustomizationFixedIp",`, ""), fault: "InvalidArgument"},
		{name: "not JSON", edit: func(b string) string { return b[1:] }, fault: "InvalidArgument"},
		{
			name:  "cloud-init",
			edit:  identity(`{"_typeName":"CustomizationCloudinitPrep","metadata":"instance-id: a"}`),
			fault: "UncustomizableGuest",
		},
		{
			name: "sysprep", edit: identity(`{"_typeName":"CustomizationSysprepText","value":"<unattend/>"}`),
			fault: "UncustomizableGuest",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v, c, vm := loggedIn(t, vcsim.Options{})
			body := customizeBody(vm, "web01", "10.0.0.7")
			if tc.before != nil {
				tc.before(vm)
			}
			if tc.edit != nil {
				body = tc.edit(body)
			}

			res := c.do("POST", gcmPath+"CustomizeGuest_Task", body)
			if res.status != http.StatusInternalServerError {
				t.Fatalf("status %d: %s", res.status, res.body)
			}

			mustContain(
				t,
				"fault",
				res.body,
				`{"_typeName":"`+tc.fault+`"`,
				`"faultMessage":[]`,
				`"faultstring":"`,
				tc.says,
			)

			calls := v.Calls()
			if last := calls[len(calls)-1]; last.Fault != tc.fault || last.Op != "CustomizeGuest_Task" ||
				strings.Contains(last.Body, vcsim.DefaultGuestPassword) {
				t.Errorf("recorded: %+v", last)
			}

			if e := vm.Effects(); e.Customizations != 0 {
				t.Errorf("effects: %+v", e)
			}
		})
	}
}

// What a specification may not ask for is refused by its value, and the fault says so by its members alone.
func TestValuesRefused(t *testing.T) {
	t.Parallel()
	const noText = `,"faultMessage":[]}`
	argument := func(property string) string {
		return `{"_typeName":"InvalidArgument","invalidProperty":"` + property + `"` + noText
	}
	name := func(with string) func(string) string {
		return replace(`{"_typeName":"CustomizationFixedName","name":"web01"}`, with)
	}
	ip := func(with string) func(string) string {
		return replace(`{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.7"}`, with)
	}
	const hostName, address = "spec.identity.hostName", "spec.nicSettingMap[0].adapter.ip"

	for _, tc := range []struct {
		name string
		edit func(string) string
		want string
	}{
		{"underscore", replace("web01", "web_01"), argument(hostName)},
		{"dots", replace("web01", "web01.example.test"), argument(hostName)},
		{"umlaut", replace("web01", "müller"), argument(hostName)},
		{"blank", replace("web01", "web 01"), argument(hostName)},
		{"digits", replace("web01", "01"), argument(hostName)},
		{"no name", replace("web01", ""), argument(hostName)},
		{"64 characters", replace("web01", strings.Repeat("w", 64)), argument(hostName)},
		{"63 characters", replace("web01", strings.Repeat("w", 63)), ""},
		{"a name to be asked for", name(`{"_typeName":"CustomizationUnknownName"}`), argument(hostName)},
		{
			"a name by a program", name(`{"_typeName":"CustomizationCustomName"}`),
			`{"_typeName":"IpHostnameGeneratorError"`,
		},
		{"the VM's name", name(`{"_typeName":"CustomizationVirtualMachineName"}`), ""},
		{"an address to be asked for", ip(`{"_typeName":"CustomizationUnknownIpGenerator"}`), argument(address)},
		{
			"an address by a program", ip(`{"_typeName":"CustomizationCustomIpGenerator"}`),
			`{"_typeName":"IpHostnameGeneratorError"`,
		},
		{"a prefix", replace("10.0.0.7", "10.0.0.7/24"), argument(address)},
		{"300", replace("10.0.0.7", "10.0.0.300"), argument(address)},
		{"leading zeros", replace("10.0.0.7", "010.000.000.007"), argument(address)},
		{"no address", replace("10.0.0.7", ""), argument(address)},
		{"DHCP", ip(`{"_typeName":"CustomizationDhcpIpGenerator"}`), ""},
		{"no mask", replace("255.255.255.0", "255.255.0.255"), argument("spec.nicSettingMap[0].adapter.subnetMask")},
		{"a prefix as mask", replace("255.255.255.0", "24"), argument("spec.nicSettingMap[0].adapter.subnetMask")},
		{"another mask", replace("255.255.255.0", "255.255.252.0"), ""},
		{"time zone", replace("Europe/Berlin", "Europe/Berln"), argument("spec.identity.timeZone")},
		{"time zone, letter case", replace("Europe/Berlin", "europe/berlin"), argument("spec.identity.timeZone")},
		{"time zone of Windows", replace("Europe/Berlin", "110"), argument("spec.identity.timeZone")},
		{"another time zone", replace("Europe/Berlin", "US/Eastern"), ""},
		{
			"IPv6, to be asked for",
			replace(`"subnetMask"`, `"ipV6Spec":{"ip":[{"_typeName":"CustomizationUnknownIpV6Generator"}]},`+
				`"subnetMask"`),
			argument("spec.nicSettingMap[0].adapter.ipV6Spec.ip"),
		},
		{
			"IPv6, a prefix",
			replace(`"subnetMask"`, `"ipV6Spec":{"ip":[{"_typeName":"CustomizationFixedIpV6",`+
				`"ipAddress":"2001:db8::1/64","subnetMask":64}]},"subnetMask"`),
			argument("spec.nicSettingMap[0].adapter.ipV6Spec.ip"),
		},
		{
			"IPv6",
			replace(`"subnetMask"`, `"ipV6Spec":{"ip":[{"_typeName":"CustomizationFixedIpV6",`+
				`"ipAddress":"2001:db8::1","subnetMask":64}]},"subnetMask"`),
			"",
		},
		{
			"unknown NIC", replace("00:50:56:", "00:50:57:"),
			`{"_typeName":"NicSettingMismatch","numberOfNicsInSpec":1,"numberOfNicsInVM":1` + noText,
		},
		{
			"no NIC",
			func(b string) string { return nicSettings.ReplaceAllLiteralString(b, `"nicSettingMap":[]}`) },
			`{"_typeName":"NicSettingMismatch","numberOfNicsInSpec":0,"numberOfNicsInVM":1` + noText,
		},
		{"two NICs", replace(`"nicSettingMap":[`, `"nicSettingMap":[{"macAddress":"00:50:56:00:00:99",`+
			`"adapter":{"ip":{"_typeName":"CustomizationDhcpIpGenerator"}}},`),
			`{"_typeName":"NicSettingMismatch","numberOfNicsInSpec":2,"numberOfNicsInVM":1` + noText},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, c, vm := loggedIn(t, vcsim.Options{})
			res := c.do("POST", gcmPath+"CustomizeGuest_Task", tc.edit(customizeBody(vm, "web01", "10.0.0.7")))

			switch {
			case tc.want == "" && res.status != http.StatusOK:
				t.Errorf("status %d: %s", res.status, res.body)
			case tc.want != "" && (res.status != http.StatusInternalServerError ||
				!strings.HasPrefix(res.body, tc.want)):
				t.Errorf("status %d: %s, want %s", res.status, res.body, tc.want)
			}

			if e := vm.Effects(); (e.Customizations == 0) != (tc.want != "") {
				t.Errorf("effects: %+v", e)
			}
		})
	}
}

func replace(old, with string) func(string) string {
	return func(b string) string { return strings.Replace(b, old, with, 1) }
}

func configure(f func(*vcsim.Guest)) func(*vcsim.VM) {
	return func(vm *vcsim.VM) { vm.Configure(f) }
}

var (
	vmValue    = regexp.MustCompile(`"value":"vm-\d+"`)
	identities = regexp.MustCompile(`(?s)"identity":.*?"hwClockUTC":true\}`)
)

func identity(with string) func(string) string {
	return func(b string) string { return identities.ReplaceAllLiteralString(b, `"identity":`+with) }
}

// TestTaskEnds are the ways in which a customization's Task ends, and what the guest shows then.
func TestTaskEnds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		guest  func(*vcsim.Guest)
		state  string
		fault  string
		host   string // after StartGuestNetwork_Task
		status string
	}{
		{name: "well", guest: func(*vcsim.Guest) {}, state: "success", host: "web01", status: "IDLE"},
		{
			name: "well, told", guest: func(g *vcsim.Guest) { g.UpdatesStatus = true }, state: "success",
			host: "web01", status: "SUCCEEDED",
		},
		{
			name: "a lie", guest: func(g *vcsim.Guest) { g.IgnoreSpec = true }, state: "success",
			host: "template", status: "IDLE",
		},
		{
			name: "no engine", guest: func(g *vcsim.Guest) { g.Engine = false },
			state: "error", fault: "Guest Tools does not support Guest Customization", host: "template", status: "IDLE",
		},
		{
			name: "an error, told", guest: func(g *vcsim.Guest) {
				g.TaskError,
					g.UpdatesStatus = new(types.CustomizationFault), true
			},
			state: "error", fault: "CustomizationFault", host: "template", status: "FAILED",
		},
		{
			name: "a false failure, told", guest: func(g *vcsim.Guest) {
				g.TaskError, g.AppliesAnyway, g.UpdatesStatus = &types.SystemError{Reason: "timed out"}, true, true
			},
			state: "error", fault: "SystemError", host: "web01", status: "SUCCEEDED",
		},
		{
			name: "lock held", guest: func(g *vcsim.Guest) { g.Locked = true }, state: "error",
			fault: "ERR,243", host: "template", status: "IDLE",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, c, vm := loggedIn(t, vcsim.Options{GuestClockOffset: -time.Hour})
			vm.Configure(tc.guest)
			info := c.end(c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7")))
			if string(info.State) != tc.state || info.CompleteTime == nil ||
				info.Name != "CustomizeGuest_Task" || info.Entity.Value != vm.ID() ||
				(info.Progress == 100) != (tc.state == "success") {
				t.Fatalf("task: %+v", info)
			}
			if got := vm.HostName(); got != "template" {
				t.Errorf("host name before the network is started: %q", got)
			}

			if tc.fault != "" {
				said := fmt.Sprintf("%T %s", info.Error.Fault, info.Error.LocalizedMessage)
				mustContain(t, "error", said, tc.fault)
			}

			info = c.end(c.act("StartGuestNetwork_Task", onVM(vm)))
			if info.State != "success" || info.Name != "StartGuestNetwork_Task" {
				t.Fatalf("task: %+v", info)
			}
			if got := vm.HostName(); got != tc.host {
				t.Errorf("host name: %q", got)
			}
			if got := vm.Addresses(); slices.Equal(got, []string{"10.0.0.7"}) != (tc.host == "web01") {
				t.Errorf("addresses: %q", got)
			}
			if e := vm.Effects(); e.Customizations != 1 || e.NetworkStarts != 1 || e.Aborts != 0 {
				t.Errorf("effects: %+v", e)
			}

			mustContain(
				t,
				"status",
				c.do("GET", "/api/vcenter/vm/"+vm.ID()+"/guest/customization", "").body,
				`"status":"`+tc.status+`"`,
			)
		})
	}
}

func TestBusyAbortAndCrash(t *testing.T) {
	t.Parallel()
	_, c, vm := loggedIn(t, vcsim.Options{})
	vm.Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
	body := customizeBody(vm, "web01", "10.0.0.7")
	busy := c.act("CustomizeGuest_Task", body)

	for _, method := range []string{"CustomizeGuest_Task", "StartGuestNetwork_Task"} {
		c.want(
			"POST",
			gcmPath+method,
			body,
			http.StatusInternalServerError,
			`{"_typeName":"TaskInProgress","task":{"_typeName":"ManagedObjectReference","type":"Task",`+
				`"value":"`+busy+`"},
			  "faultstring":"Another task is already in progress.","faultMessage":[]}`,
		)
	}

	if info := c.end(c.act("AbortCustomization_Task", onVM(vm))); info.State != "success" {
		t.Fatalf("abort: %+v", info)
	}
	if info := c.end(busy); info.State != "error" || vm.HostName() != "template" {
		t.Fatalf("aborted: %+v", info)
	}

	vm.Configure(func(g *vcsim.Guest) { g.CustomizeTime, g.Crash = time.Millisecond, true })
	for range 2 { // the crash, then the lock that it left
		if info := c.end(c.act("CustomizeGuest_Task", body)); info.State != "error" {
			t.Fatalf("crash: %+v", info)
		}
	}

	c.end(c.act("AbortCustomization_Task", onVM(vm)))
	if info := c.end(c.act("CustomizeGuest_Task", body)); info.State != "success" {
		t.Fatalf("after the abort: %+v", info)
	}
	if e := vm.Effects(); e.Customizations != 4 || e.Aborts != 2 || e.NetworkStarts != 0 {
		t.Errorf("effects: %+v", e)
	}
}

// TestInterrupted are ends of a customization that come from outside.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		by    func(c *rest, vm *vcsim.VM, task string)
		fault any
	}{
		"power off": {
			by:    func(_ *rest, vm *vcsim.VM, _ string) { vm.PowerOff() },
			fault: new(types.GuestOperationsUnavailable),
		},
		"reboot": {
			by:    func(_ *rest, vm *vcsim.VM, _ string) { vm.RebootGuest() },
			fault: new(types.GuestOperationsUnavailable),
		},
		"cancel": {by: func(c *rest, _ *vcsim.VM, task string) {
			c.want("POST", "/sdk/vim25/8.0.1.0/Task/"+task+"/CancelTask", "", http.StatusNoContent, "")
		}, fault: new(types.RequestCanceled)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, c, vm := loggedIn(t, vcsim.Options{})
			vm.Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
			task := c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7"))
			tc.by(c, vm, task)
			info := c.end(task)

			if info.Error == nil || reflect.TypeOf(info.Error.Fault) != reflect.TypeOf(tc.fault) ||
				info.Cancelled != (name == "cancel") {
				t.Errorf("task: %+v", info)
			}

			cancel := "/sdk/vim25/8.0.1.0/Task/" + task + "/CancelTask"
			if res := c.do("POST", cancel, ""); res.status != http.StatusInternalServerError {
				t.Errorf("cancel of what has ended: %d %s", res.status, res.body)
			}
		})
	}
}

func TestRebootShowsWhatIsSet(t *testing.T) {
	t.Parallel()
	v, c, vm := loggedIn(t, vcsim.Options{})
	c.end(c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7")))
	vm.RebootGuest()
	if got := vm.HostName(); got != "web01" {
		t.Errorf("host name: %q", got)
	}

	vm.PowerOff()
	if got := vm.Addresses(); len(got) != 0 {
		t.Errorf("addresses of a VM that is off: %q", got)
	}

	other := v.VM(v.VMs()[1])
	other.Configure(func(g *vcsim.Guest) { g.AppliesAtOnce = true })
	c.end(c.act("CustomizeGuest_Task", customizeBody(other, "web02", "10.0.0.8")))
	if got := other.HostName(); got != "web02" {
		t.Errorf("host name at once: %q", got)
	}
}

// TestNICsByBusOrder customizes two NICs without naming them.
func TestNICsByBusOrder(t *testing.T) {
	t.Parallel()
	_, c, vm := loggedIn(t, vcsim.Options{NICs: 2})
	vm.Configure(func(g *vcsim.Guest) { g.AppliesAtOnce = true })
	nic := func(ip string) string {
		return `{"adapter":{"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"` + ip + `"}}}`
	}
	body := nicSettings.ReplaceAllLiteralString(
		customizeBody(vm, "web01", "10.0.0.7"), `"nicSettingMap":[`+nic("10.1.0.1")+`,`+nic("10.2.0.1")+`]}`,
	)

	c.end(c.act("CustomizeGuest_Task", body))
	if got := vm.Addresses(); !slices.Equal(got, []string{"10.1.0.1", "10.2.0.1"}) {
		t.Errorf("addresses: %q", got)
	}

	mixed := strings.Replace(body, `{"adapter"`, `{"macAddress":"`+vm.MACs()[0]+`","adapter"`, 1)
	mustContain(t, "mixed", c.do("POST", gcmPath+"CustomizeGuest_Task", mixed).body, `"InvalidArgument"`, "macAddress")
}

var nicSettings = regexp.MustCompile(`(?s)"nicSettingMap":\[.*?\}\}\]\}`)

// What a guest may show, and how a Task may be told, that took guestflow in once.
func TestFaults(t *testing.T) {
	t.Parallel()
	_, c, vm := loggedIn(t, vcsim.Options{NICs: 2})
	vm.SetShown("web01", map[int]string{1: "10.0.0.9"})
	if got := vm.Addresses(); vm.HostName() != "web01" || len(got) != 2 || got[1] != "10.0.0.9" {
		t.Errorf("shown beforehand: %s %q", vm.HostName(), got)
	}

	vm.Configure(func(g *vcsim.Guest) {
		g.TaskError, g.Faults.Message, g.Faults.TaskLag = new(types.CustomizationFault), "ERR,252,DNS", time.Hour
		g.Faults.StatusPrecision, g.UpdatesStatus = time.Microsecond, true
	})

	task := c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7"))
	if info := c.end(task); info.Error == nil || info.Error.LocalizedMessage != "ERR,252,DNS" {
		t.Errorf("task: %+v", info)
	}

	if recent := c.do("GET", "/sdk/vim25/8.0.1.0/VirtualMachine/"+vm.ID()+"/recentTask", "").body; strings.Contains(
		recent, task,
	) {
		t.Errorf("a Task that is shown in an hour: %s", recent)
	}

	vm.Configure(func(g *vcsim.Guest) {
		g.TaskError, g.Faults, g.AppliesAtOnce = nil, vcsim.Faults{SwapsAddresses: true}, true
	})
	c.end(c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7")))
	if info := c.end(c.act("StartGuestNetwork_Task", onVM(vm))); info.State != "success" {
		t.Errorf("the network's start, swapped: %+v", info)
	}

	if got := vm.Addresses(); len(got) != 2 || got[0] != "10.0.1.9" || got[1] != "10.0.0.7" ||
		!slices.Contains(vm.GroundTruth().Addresses, "10.0.0.7") {
		t.Errorf("swapped: %q, %+v", got, vm.GroundTruth())
	}
}
