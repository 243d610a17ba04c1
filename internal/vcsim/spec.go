package vcsim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// linkLocal is the address that a NIC gives itself where nobody gives it one.
const linkLocal = "169.254.7.7"

// identityOf is what a spec asks of this VM's guest. Faults: InvalidArgument, NicSettingMismatch,
// IpHostnameGeneratorError. vm.mu is held.
func (vm *VM) identityOf(spec types.CustomizationSpec) (identity, types.BaseMethodFault) {
	id := identity{addresses: make(map[string][]string), dns: slices.Clone(spec.GlobalIPSettings.DnsServerList)}
	prep := spec.Identity.(*types.CustomizationLinuxPrep)
	if fault := hostNameFault(prep.HostName); fault != nil {
		return id, fault
	}
	if fault := timeZoneFault(prep.TimeZone); fault != nil {
		return id, fault
	}

	switch n := prep.HostName.(type) {
	case *types.CustomizationFixedName:
		id.hostName = n.Name
	case *types.CustomizationPrefixName:
		id.hostName = n.Base + "1"
	case *types.CustomizationVirtualMachineName:
		id.hostName = vm.name
	}

	macs, fault := vm.adapterMACs(spec.NicSettingMap)
	if fault != nil {
		return id, fault
	}

	for i, s := range spec.NicSettingMap {
		if fault := adapterFault(i, s.Adapter); fault != nil {
			return id, fault
		}
		vm.addAdapter(&id, macs[i], s.Adapter)
	}

	return id, nil
}

// adapterMACs are the MAC addresses of the NICs that the adapter settings are for: all settings name their NIC, or none
// does and they are in bus order. vm.mu is held.
func (vm *VM) adapterMACs(settings []types.CustomizationAdapterMapping) ([]string, types.BaseMethodFault) {
	macs := vm.macs()
	named := 0
	for _, s := range settings {
		if s.MacAddress != "" {
			named++
		}
	}

	if named > 0 && named < len(settings) {
		return nil, &types.InvalidArgument{InvalidProperty: "spec.nicSettingMap.macAddress"}
	}

	mismatch := &types.NicSettingMismatch{
		NumberOfNicsInSpec: int32(len(settings)),
		NumberOfNicsInVM:   int32(len(macs)),
	}

	if len(settings) != len(macs) {
		return nil, mismatch
	}
	if named == 0 {
		return macs, nil
	}

	var inOrder []string
	for _, s := range settings {
		mac := strings.ToLower(s.MacAddress)
		if !slices.Contains(macs, mac) {
			return nil, mismatch
		}
		inOrder = append(inOrder, mac)
	}

	return inOrder, nil
}

// addAdapter adds to id what the settings of one adapter ask for. vm.mu is held.
func (vm *VM) addAdapter(id *identity, mac string, adapter types.CustomizationIPSettings) {
	addGateway := func(gateways []string) {
		if len(gateways) > 0 && !slices.Contains(id.gateways, gateways[0]) {
			id.gateways = append(id.gateways, gateways[0])
		}
	}

	addAddress := func(address string) { id.addresses[mac] = append(id.addresses[mac], address) }

	switch ip := adapter.Ip.(type) {
	case *types.CustomizationFixedIp:
		addAddress(withMask(ip.IpAddress, adapter.SubnetMask))
		addGateway(adapter.Gateway)
	default:
		address := vm.dhcpAddress(mac)
		if vm.guest.Faults.NoDHCPLease {
			address = linkLocal
		}
		addAddress(address)
	}

	if v6 := adapter.IpV6Spec; v6 != nil {
		for _, ip := range v6.Ip {
			if fixed, ok := ip.(*types.CustomizationFixedIpV6); ok {
				addAddress(fmt.Sprintf("%s/%d", fixed.IpAddress, fixed.SubnetMask))
			}
		}
		addGateway(v6.Gateway)
	}
}
