package vcsim

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// apply does the work of a Task in the guest. vm.mu is held.
func (vm *VM) apply(name string, then identity) {
	switch name {
	case customizeGuest:
		if then.hostName != "" {
			vm.configured.hostName = then.hostName
		}

		vm.configured = vm.configured.clone()
		maps.Copy(vm.configured.addresses, then.addresses)
		if then.addresses != nil {
			vm.configured.gateways, vm.configured.dns = then.gateways, then.dns
		}
		if vm.guest.AppliesAtOnce {
			vm.reportConfigured()
		}
	case startGuestNetwork:
		vm.reportConfigured()
	}
}

// reportConfigured lets VMware Tools report what is configured, after ReportDelay. vm.mu is held.
func (vm *VM) reportConfigured() {
	set := vm.configured.clone()
	if vm.guest.ReportDelay <= 0 {
		vm.reported = set
		vm.report()
		return
	}

	after, life := vm.guest.ReportDelay, vm.resets
	vm.v.spawn(func() {
		if !vm.v.pause(after) {
			return
		}

		vm.mu.Lock()
		defer vm.mu.Unlock()

		if vm.resets == life {
			vm.reported = set
			vm.report()
		}
	})
}

// dhcpAddress is the address that a NIC gets by DHCP. vm.mu is held.
func (vm *VM) dhcpAddress(mac string) string {
	return fmt.Sprintf("10.%d.%d.%d", 100+slices.Index(vm.macs(), mac), vm.n/250, vm.n%250+1)
}

// macs are the NICs' MAC addresses in bus order, in lower case.
func (vm *VM) macs() []string {
	var macs []string
	ctx := vm.v.newContext()
	if obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine); ok {
		ctx.WithLock(obj, func() {
			for _, card := range cardsOf(obj) {
				macs = append(macs, strings.ToLower(card.MacAddress))
			}
		})
	}
	return macs
}

// report writes what VMware Tools and vCenter know of the guest into the properties of the VM, where it differs. vm.mu
// is held.
func (vm *VM) report() {
	ctx := vm.v.newContext()
	obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine)
	if !ok {
		return
	}

	ctx.WithLock(obj, func() {
		g := types.GuestInfo{
			ToolsStatus:                     types.VirtualMachineToolsStatusToolsNotRunning,
			ToolsVersionStatus:              string(types.VirtualMachineToolsVersionStatusGuestToolsUnmanaged),
			ToolsVersionStatus2:             string(types.VirtualMachineToolsVersionStatusGuestToolsUnmanaged),
			ToolsRunningStatus:              string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning),
			ToolsVersion:                    "12448",
			ToolsInstallType:                string(types.VirtualMachineToolsInstallTypeGuestToolsTypeOpenVMTools),
			GuestFamily:                     vm.guest.Family,
			GuestId:                         "ubuntu64Guest",
			GuestFullName:                   "Ubuntu Linux (64-bit)",
			HostName:                        vm.reported.hostName,
			GuestState:                      string(types.VirtualMachineGuestStateNotRunning),
			GuestOperationsReady:            types.NewBool(false),
			InteractiveGuestOperationsReady: types.NewBool(false),
			CustomizationInfo:               &vm.info,
		}

		if vm.guest.Family == string(types.VirtualMachineGuestOsFamilyWindowsGuest) {
			g.GuestId, g.GuestFullName = "windows2022srvNext_64Guest", "Microsoft Windows Server 2025 (64-bit)"
		}

		if vm.tools {
			g.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
			g.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
			g.GuestState = string(types.VirtualMachineGuestStateRunning)
			g.GuestOperationsReady = types.NewBool(true)
		}

		g.Net = vm.nics(obj)
		g.IpStack = vm.stack(g.Net)
		for _, nic := range g.Net {
			if g.IpAddress == "" && len(nic.IpAddress) > 0 {
				g.IpAddress = nic.IpAddress[0]
			}
		}

		ctx.Update(obj, guestChanges(obj.Guest, &g))
	})
}

// nics are the NICs as VMware Tools report them. The caller holds vm.mu and the lock of the VM.
func (vm *VM) nics(obj *simulator.VirtualMachine) []types.GuestNicInfo {
	nics := slices.Clone(vm.guest.OtherNICs)
	if !vm.powered || !vm.tools {
		nics = nil
	}

	for _, d := range obj.Config.Hardware.Device {
		card, ok := d.(types.BaseVirtualEthernetCard)
		if !ok || !vm.powered {
			continue
		}

		c := card.GetVirtualEthernetCard()
		mac := strings.ToLower(c.MacAddress)
		nic := types.GuestNicInfo{
			Network:        "VM Network",
			MacAddress:     mac,
			Connected:      c.Connectable == nil || c.Connectable.Connected,
			DeviceConfigId: c.Key,
		}

		if vm.tools {
			nic.IpAddress = plainAddresses(vm.reported.addresses[mac])
		}

		if len(nic.IpAddress) > 0 {
			nic.IpConfig = new(types.NetIpConfigInfo)
			for _, a := range vm.reported.addresses[mac] {
				nic.IpConfig.IpAddress = append(nic.IpConfig.IpAddress, ipConfig(a))
			}
		}

		nics = append(nics, nic)
	}

	return nics
}

// guestChanges are the properties in which two states of a guest differ.
func guestChanges(was, is *types.GuestInfo) []types.PropertyChange {
	if was == nil {
		was = new(types.GuestInfo)
	}

	info := *is.CustomizationInfo // a copy: the VM goes on changing its own
	var changes []types.PropertyChange
	differ := func(name string, old, now any) {
		if !reflect.DeepEqual(old, now) {
			changes = append(changes, types.PropertyChange{Name: name, Val: now})
		}
	}

	differ("guest.toolsStatus", was.ToolsStatus, is.ToolsStatus)
	differ("guest.toolsVersionStatus", was.ToolsVersionStatus, is.ToolsVersionStatus)
	differ("guest.toolsVersionStatus2", was.ToolsVersionStatus2, is.ToolsVersionStatus2)
	differ("guest.toolsRunningStatus", was.ToolsRunningStatus, is.ToolsRunningStatus)
	differ("guest.toolsVersion", was.ToolsVersion, is.ToolsVersion)
	differ("guest.toolsInstallType", was.ToolsInstallType, is.ToolsInstallType)
	differ("guest.guestFamily", was.GuestFamily, is.GuestFamily)
	differ("guest.guestId", was.GuestId, is.GuestId)
	differ("guest.guestFullName", was.GuestFullName, is.GuestFullName)
	differ("guest.hostName", was.HostName, is.HostName)
	differ("guest.ipAddress", was.IpAddress, is.IpAddress)
	differ("guest.net", was.Net, is.Net)
	differ("guest.ipStack", was.IpStack, is.IpStack)
	differ("guest.guestState", was.GuestState, is.GuestState)
	if old, now := was.GuestOperationsReady, *is.GuestOperationsReady; old == nil || *old != now {
		changes = append(changes, types.PropertyChange{Name: "guest.guestOperationsReady", Val: now})
	}

	if was.InteractiveGuestOperationsReady == nil {
		changes = append(
			changes,
			types.PropertyChange{
				Name: "guest.interactiveGuestOperationsReady",
				Val:  *is.InteractiveGuestOperationsReady,
			},
		)
	}

	if was.CustomizationInfo == nil || !reflect.DeepEqual(*was.CustomizationInfo, info) {
		changes = append(changes, types.PropertyChange{Name: "guest.customizationInfo", Val: info})
	}

	for _, c := range slices.Clone(changes) {
		switch p := path.Ext(c.Name); p {
		case ".toolsStatus", ".toolsRunningStatus", ".hostName", ".ipAddress", ".guestId", ".guestFullName":
			changes = append(changes, types.PropertyChange{Name: "summary.guest" + p, Val: c.Val})
		}
	}

	return changes
}
