package fakevc

import (
	"fmt"
	"strings"
)

// property is a property of a VM as VI JSON writes it; "" where the VM has none. The caller holds Server.mu.
func (g *guest) property(path string) string {
	text := func(s string) string { return fmt.Sprintf(`{"_typeName":"string","_value":%q}`, s) }
	switch path {
	case "name":
		return text("web-" + g.number())
	case "config.instanceUuid":
		return text("5021e2cd-0000-4000-8000-000000" + g.number())
	case "runtime.powerState":
		return `{"_typeName":"VirtualMachinePowerState","_value":"poweredOn"}`
	case "guest.toolsRunningStatus":
		return text("guestToolsRunning")
	case "guest.toolsVersion":
		return text("12389")
	case "guest.guestFamily":
		return text("linuxGuest")
	case "guest.guestId", "config.guestId":
		return text("ubuntu64Guest")
	case "guest.hostName":
		return text(g.host)
	case "guest.guestOperationsReady":
		return `{"_typeName":"boolean","_value":true}`
	case "guest.net":
		return fmt.Sprintf(guestNet, g.ip, g.ip)
	case "guest.ipStack":
		return fmt.Sprintf(guestStack, g.host)
	case "guest.customizationInfo":
		return g.customizationInfo()
	case "config.hardware.device":
		return hardware
	case "config.extraConfig":
		return extraConfig
	case "recentTask":
		return g.recentTasks()
	}
	return ""
}

func (g *guest) customizationInfo() string {
	if g.customized.IsZero() {
		return `{"_typeName":"GuestInfoCustomizationInfo","customizationStatus":"TOOLSDEPLOYPKG_IDLE"}`
	}
	return fmt.Sprintf(`{"_typeName":"GuestInfoCustomizationInfo","customizationStatus":"TOOLSDEPLOYPKG_SUCCEEDED",`+
		`"startTime":%q,"endTime":%q}`, stamp(g.customized), stamp(g.customized))
}

func (g *guest) recentTasks() string {
	var refs []string
	for _, t := range g.tasks {
		refs = append(refs, string(ref("Task", t.id)))
	}
	return `{"_typeName":"ArrayOfManagedObjectReference","_value":[` + strings.Join(refs, ",") + `]}`
}

const guestNet = `{"_typeName":"ArrayOfGuestNicInfo","_value":[{"_typeName":"GuestNicInfo","network":"VM Network",` +
	`"ipAddress":["%s"],"macAddress":"00:50:56:00:00:01","connected":true,"deviceConfigId":4000,"ipConfig":` +
	`{"_typeName":"NetIpConfigInfo","ipAddress":[{"_typeName":"NetIpConfigInfoIpAddress","ipAddress":"%s",` +
	`"prefixLength":24,"state":"preferred"},{"_typeName":"NetIpConfigInfoIpAddress","ipAddress":"fe80::1",` +
	`"prefixLength":64,"state":"unknown"}]}}]}`

const guestStack = `{"_typeName":"ArrayOfGuestStackInfo","_value":[{"_typeName":"GuestStackInfo","dnsConfig":` +
	`{"_typeName":"NetDnsConfigInfo","dhcp":false,"hostName":"%s","domainName":"example.test",` +
	`"ipAddress":["10.0.0.2"],"searchDomain":["example.test"]},"ipRouteConfig":{"_typeName":"NetIpRouteConfigInfo",` +
	`"ipRoute":[{"_typeName":"NetIpRouteConfigInfoIpRoute","network":"0.0.0.0","prefixLength":0,"gateway":` +
	`{"_typeName":"NetIpRouteConfigInfoGateway","ipAddress":"10.0.0.1","device":"0"}}]}}]}`

// hardware and extraConfig are as large as those of a usual VM: a dozen devices, 40 options.
var hardware, extraConfig = devices(), options()

func devices() string {
	list := []string{`{"_typeName":"VirtualVmxnet3","key":4000,"deviceInfo":{"_typeName":"Description","label":` +
		`"Network adapter 1","summary":"VM Network"},"controllerKey":100,"unitNumber":7,"addressType":"assigned",` +
		`"macAddress":"00:50:56:00:00:01","wakeOnLanEnabled":true,"connectable":{"_typeName":` +
		`"VirtualDeviceConnectInfo","startConnected":true,"allowGuestControl":true,"connected":true,"status":"ok"},` +
		`"slotInfo":{"_typeName":"VirtualDevicePciBusSlotInfo","pciSlotNumber":192}}`}
	for i := range 11 {
		list = append(list, fmt.Sprintf(`{"_typeName":"VirtualPCIController","key":%d,"deviceInfo":{"_typeName":`+
			`"Description","label":"Controller %d","summary":"Controller %d"},"controllerKey":100,"unitNumber":%d,`+
			`"busNumber":%d,"device":[%d,%d]}`, 100+i, i, i, i, i, 500+i, 600+i))
	}
	return `{"_typeName":"ArrayOfVirtualDevice","_value":[` + strings.Join(list, ",") + `]}`
}

func options() string {
	var list []string
	for i := range 40 {
		list = append(list, fmt.Sprintf(`{"_typeName":"OptionValue","key":"pciBridge%d.virtualDev","value":`+
			`{"_typeName":"string","_value":"pcieRootPort-%d"}}`, i, i))
	}
	return `{"_typeName":"ArrayOfOptionValue","_value":[` + strings.Join(list, ",") + `]}`
}
