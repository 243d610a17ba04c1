package vcsim

import (
	"cmp"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// firstSlot and slotStep are the PCI slot numbers that vSphere gives to the NICs of a new VM.
const firstSlot, slotStep = 160, 32

// cardsOf are a VM's virtual NICs in PCI slot order, "the first virtual network adapter on the PCI bus" first: that in
// which a specification without MAC addresses is handed out. (CustomizationAdapterMapping.macAddress.)
func cardsOf(obj *simulator.VirtualMachine) []*types.VirtualEthernetCard {
	var cards []*types.VirtualEthernetCard
	for _, d := range obj.Config.Hardware.Device {
		if nic, ok := d.(types.BaseVirtualEthernetCard); ok {
			cards = append(cards, nic.GetVirtualEthernetCard())
		}
	}
	slices.SortStableFunc(cards, func(a, b *types.VirtualEthernetCard) int { return cmp.Compare(slotOf(a), slotOf(b)) })
	return cards
}

func slotOf(c *types.VirtualEthernetCard) int32 {
	if slot, ok := c.SlotInfo.(*types.VirtualDevicePciBusSlotInfo); ok {
		return slot.PciSlotNumber
	}
	return c.Key
}

// SetSlots gives the VM's NICs, in the order of their device keys, other PCI slot numbers.
func (vm *VM) SetSlots(slots ...int32) {
	ctx := vm.v.newContext()
	obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine)
	if !ok {
		return
	}

	ctx.WithLock(obj, func() {
		devices, n := slices.Clone(obj.Config.Hardware.Device), 0
		for i, d := range devices {
			if _, ok := d.(types.BaseVirtualEthernetCard); !ok || n == len(slots) {
				continue
			}

			card := reflect.New(reflect.TypeOf(d).Elem()) // a copy: others may be reading the old one
			card.Elem().Set(reflect.ValueOf(d).Elem())
			device := card.Interface().(types.BaseVirtualDevice)
			device.GetVirtualDevice().SlotInfo = &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: slots[n]}
			devices[i] = device
			n++
		}

		ctx.Update(obj, []types.PropertyChange{{Name: "config.hardware.device", Val: devices}})
	})
}

// An address of an identity is written as "10.0.0.7", "10.0.0.7/16" or "10.0.0.7/16 duplicate": with its prefix and its
// state where they are not the usual.

func plainAddress(text string) string {
	text, _, _ = strings.Cut(text, " ")
	text, _, _ = strings.Cut(text, "/")
	return text
}

func plainAddresses(all []string) (plain []string) {
	for _, text := range all {
		plain = append(plain, plainAddress(text))
	}
	return plain
}

// ipConfig is an address as a guest tells of it.
func ipConfig(text string) types.NetIpConfigInfoIpAddress {
	rest, state, _ := strings.Cut(text, " ")
	_, length, _ := strings.Cut(rest, "/")
	c := types.NetIpConfigInfoIpAddress{
		IpAddress:    plainAddress(text),
		PrefixLength: 24,
		Origin:       "manual",
		State:        cmp.Or(state, "preferred"),
	}

	if strings.Contains(c.IpAddress, ":") {
		c.PrefixLength = 64
	}
	if n, err := strconv.ParseInt(length, 10, 32); err == nil {
		c.PrefixLength = int32(n)
	}

	return c
}

// withMask is an address with the prefix of a subnet mask.
func withMask(address, mask string) string {
	m := net.IPMask(net.ParseIP(mask).To4())
	if bits, of := m.Size(); of > 0 {
		return address + "/" + strconv.Itoa(bits)
	}
	return address
}

// stack is the guest's network beyond its NICs: a default route for each gateway, a route for each address, the DNS
// servers. vm.mu is held.
func (vm *VM) stack(nics []types.GuestNicInfo) []types.GuestStackInfo {
	if !vm.powered || !vm.tools {
		return nil
	}

	routes := new(types.NetIpRouteConfigInfo)
	add := func(network string, bits int, gateway string) {
		routes.IpRoute = append(
			routes.IpRoute,
			types.NetIpRouteConfigInfoIpRoute{Network: network, PrefixLength: int32(bits),
				Gateway: types.NetIpRouteConfigInfoGateway{IpAddress: gateway, Device: "0"}},
		)
	}

	for _, gateway := range vm.reported.gateways {
		if strings.Contains(gateway, ":") {
			add("::", 0, gateway)
		} else {
			add("0.0.0.0", 0, gateway)
		}
	}

	for _, nic := range nics {
		if nic.IpConfig == nil {
			continue
		}

		for _, a := range nic.IpConfig.IpAddress {
			if ip, err := netip.ParseAddr(a.IpAddress); err == nil {
				if p, err := ip.Prefix(int(a.PrefixLength)); err == nil {
					add(p.Addr().String(), p.Bits(), "")
				}
			}
		}
	}

	dns := &types.NetDnsConfigInfo{HostName: vm.reported.hostName, IpAddress: slices.Clone(vm.reported.dns)}
	return []types.GuestStackInfo{{DnsConfig: dns, IpRouteConfig: routes}}
}

// SetGateways sets the gateways of the guest's default routes and lets VMware Tools report them.
func (vm *VM) SetGateways(gateways ...string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.configured.gateways = gateways
	vm.reportConfigured()
}

// SetDNS sets the guest's DNS servers and lets VMware Tools report them.
func (vm *VM) SetDNS(servers ...string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.configured.dns = servers
	vm.reportConfigured()
}
