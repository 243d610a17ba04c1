package vcapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
)

const virtualMachine = "VirtualMachine"

// watchedVM are the properties that change while a run waits; vmProperties are all that a VM is read with.
var (
	// watchedVM are the properties that change while a run waits; vmProperties are all that are read of a VM.
	watchedVM = []string{
		"name",
		"runtime.powerState",
		"guest.toolsRunningStatus",
		"guest.toolsVersion",
		"guest.guestOperationsReady",
		"guest.guestFamily",
		"guest.hostName",
		"guest.net",
		"guest.ipStack",
		"guest.customizationInfo", // the last since vSphere API 7.0.2.0
	}
	vmProperties = append(
		[]string{
			"config.instanceUuid",
			"guest.guestId",
			"config.guestId",
			"config.tools.pendingCustomization",
			"config.extraConfig",
			"config.hardware.device",
			"recentTask",
		},
		watchedVM...)
)

// VM reads a virtual machine. vm is a managed object ID ("vm-42"). It may be repeated. Fault: ManagedObjectNotFound,
// where there is no such VM, or the account does not see it.
//
// Source: VI JSON, PropertyCollector.RetrievePropertiesEx; VirtualMachine, GuestInfo.
func (c *Client) VM(ctx context.Context, vm string) (VM, error) {
	all, err := c.retrieve(ctx, virtualMachine, vmProperties, vm)
	if err != nil {
		return VM{}, err
	}
	props, ok := all[vm]
	if !ok {
		return VM{}, objectNotFound(virtualMachine, vm).withCall("RetrievePropertiesEx", "", c.host)
	}
	return decodeVM(props, c.secrets.redactor()), nil
}

// decodeVM makes a VM of its properties, and redacts what its guest may repeat. What is missing or malformed stays
// empty.
func decodeVM(p properties, s redactor) VM {
	vm := VM{
		Name:                 anyString(p["name"]),
		InstanceUUID:         anyString(p["config.instanceUuid"]),
		PowerState:           anyString(p["runtime.powerState"]),
		ToolsRunningStatus:   anyString(p["guest.toolsRunningStatus"]),
		ToolsVersion:         anyString(p["guest.toolsVersion"]),
		GuestFamily:          anyString(p["guest.guestFamily"]),
		GuestID:              cmp.Or(anyString(p["guest.guestId"]), anyString(p["config.guestId"])),
		HostName:             anyString(p["guest.hostName"]),
		GuestOperationsReady: anyBool(p["guest.guestOperationsReady"]),
		Customization:        decodeCustomizationInfo(p["guest.customizationInfo"]),
		PendingCustomization: anyString(p["config.tools.pendingCustomization"]),
	}

	if vm.Customization != nil {
		vm.Customization.Error = s.text(vm.Customization.Error)
	}

	_ = json.Unmarshal(p[unreadKey], &vm.Unread) // our own
	forEachElement(p["guest.net"], func(raw json.RawMessage) { vm.NICs = append(vm.NICs, decodeNIC(raw)) })
	forEachElement(p["guest.ipStack"], func(raw json.RawMessage) { decodeStack(raw, &vm) })
	vm.Cards = decodeCards(p["config.hardware.device"])
	vm.CloudInit = hasCloudInit(p["config.extraConfig"])
	for _, ref := range decodeElements[moRef](p["recentTask"]) {
		if ref.Value != "" {
			vm.RecentTasks = append(vm.RecentTasks, ref.Value)
		}
	}

	return vm
}

// hasCloudInit reports whether the options of a VM (config.extraConfig) hold data for cloud-init.
func hasCloudInit(options json.RawMessage) bool {
	if !bytes.Contains(options, []byte("guestinfo.")) {
		return false // of dozens of options, and none of these: they need not be decoded
	}
	type option struct {
		Key   string          `json:"key"`
		Value json.RawMessage `json:"value"`
	}
	return slices.ContainsFunc(decodeElements[option](options), func(o option) bool {
		return (o.Key == "guestinfo.userdata" || o.Key == "guestinfo.metadata") && anyString(o.Value) != ""
	})
}

// decodeCustomizationInfo reads guest.customizationInfo (GuestInfoCustomizationInfo); nil where there is none.
func decodeCustomizationInfo(raw json.RawMessage) *GuestCustomization {
	var wire struct {
		Status    string   `json:"customizationStatus"`
		StartTime wireTime `json:"startTime"`
		EndTime   wireTime `json:"endTime"`
		ErrorMsg  string   `json:"errorMsg"`
	}

	if json.Unmarshal(raw, &wire) != nil || wire.Status == "" {
		return nil
	}

	return &GuestCustomization{
		Status:    strings.TrimPrefix(wire.Status, "TOOLSDEPLOYPKG_"),
		Error:     wire.ErrorMsg,
		StartTime: wire.StartTime.at,
		EndTime:   wire.EndTime.at,
	}
}
