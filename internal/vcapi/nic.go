package vcapi

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
)

// NoDevice is the deviceConfigId of what a guest shows and the VM does not have: bridges, tunnels, containers' ends.
const NoDevice = -1

// decodeNIC reads a GuestNicInfo. ipConfig knows more addresses than ipAddress, which is deprecated: both, each once.
func decodeNIC(raw json.RawMessage) NIC {
	var wire struct {
		MacAddress string          `json:"macAddress"`
		Connected  json.RawMessage `json:"connected"`
		IPAddress  json.RawMessage `json:"ipAddress"`
		Device     json.RawMessage `json:"deviceConfigId"`
		IPConfig   json.RawMessage `json:"ipConfig"`
		DNSConfig  json.RawMessage `json:"dnsConfig"`
	}

	_ = json.Unmarshal(raw, &wire)
	nic := NIC{MAC: wire.MacAddress, Device: anyInt32(wire.Device), DNS: decodeDNS(wire.DNSConfig)}
	if connected := anyBool(wire.Connected); connected != nil {
		nic.Connected = *connected
	}

	add := func(address string) {
		if address != "" && !slices.Contains(nic.Addresses, address) {
			nic.Addresses = append(nic.Addresses, address)
		}
	}

	forEachElement(wire.IPAddress, func(raw json.RawMessage) { add(anyString(raw)) })
	var config struct {
		IPAddress json.RawMessage `json:"ipAddress"`
	}
	_ = json.Unmarshal(wire.IPConfig, &config)
	forEachElement(config.IPAddress, func(raw json.RawMessage) {
		if a := decodeAddress(raw); a.IP != "" {
			add(a.IP)
			nic.IPConfig = append(nic.IPConfig, a)
		}
	})

	return nic
}

// decodeAddress reads a NetIpConfigInfoIpAddress. A prefix of no length is one that nobody knows: no address of a NIC
// has it.
func decodeAddress(raw json.RawMessage) Address {
	var wire struct {
		IPAddress, PrefixLength, State, Origin json.RawMessage
	}
	_ = json.Unmarshal(raw, &wire)
	return Address{
		IP:     anyString(wire.IPAddress),
		Prefix: int(max(0, anyInt32(wire.PrefixLength))),
		State:  anyString(wire.State),
		Origin: anyString(wire.Origin),
	}
}

// decodeStack takes a GuestStackInfo in: the routes and the DNS servers of the whole guest.
func decodeStack(raw json.RawMessage, vm *VM) {
	var wire struct {
		DNSConfig json.RawMessage `json:"dnsConfig"`
		Routes    struct {
			IPRoute json.RawMessage `json:"ipRoute"`
		} `json:"ipRouteConfig"`
	}

	_ = json.Unmarshal(raw, &wire)
	for _, server := range decodeDNS(wire.DNSConfig) {
		if !slices.Contains(vm.DNS, server) {
			vm.DNS = append(vm.DNS, server)
		}
	}

	forEachElement(wire.Routes.IPRoute, func(raw json.RawMessage) {
		var route struct {
			Network      json.RawMessage `json:"network"`
			PrefixLength json.RawMessage `json:"prefixLength"`
			Gateway      struct {
				IPAddress json.RawMessage `json:"ipAddress"`
			} `json:"gateway"`
		}

		_ = json.Unmarshal(raw, &route)
		vm.Routes++
		network, err := netip.ParseAddr(anyString(route.Network))
		gateway := anyString(route.Gateway.IPAddress)

		if err == nil && network.IsUnspecified() && anyInt32(route.PrefixLength) == 0 && gateway != "" &&
			!slices.Contains(vm.Gateways, gateway) {
			vm.Gateways = append(vm.Gateways, gateway)
		}
	})
}

// decodeDNS are the servers of a NetDnsConfigInfo.
func decodeDNS(raw json.RawMessage) (servers []string) {
	var wire struct {
		IPAddress json.RawMessage `json:"ipAddress"`
	}
	_ = json.Unmarshal(raw, &wire)
	forEachElement(wire.IPAddress, func(raw json.RawMessage) {
		if server := anyString(raw); server != "" {
			servers = append(servers, server)
		}
	})
	return servers
}

// decodeCards are the virtual network adapters among a VM's devices, in PCI slot order: that in which a customization
// hands its settings out (CustomizationAdapterMapping.macAddress). Where a slot is not told all stand by their keys,
// which vCenter gives in the order of their making.
func decodeCards(devices json.RawMessage) []Card {
	type device struct {
		Key         json.RawMessage `json:"key"`
		MAC         *string         `json:"macAddress"` // VirtualEthernetCard and its kinds have one
		Connectable struct {
			Connected json.RawMessage `json:"connected"`
		} `json:"connectable"`
		SlotInfo struct {
			PCISlotNumber json.RawMessage `json:"pciSlotNumber"`
		} `json:"slotInfo"`
	}

	all := decodeElements[device](devices)
	if all == nil {
		return nil // not known, which differs from no NICs
	}

	cards := []Card{}
	for _, wire := range all {
		if wire.MAC == nil {
			continue
		}

		card := Card{
			Key:  anyInt32(wire.Key),
			MAC:  strings.TrimSpace(*wire.MAC),
			Slot: max(0, anyInt32(wire.SlotInfo.PCISlotNumber)),
		}

		if connected := anyBool(wire.Connectable.Connected); connected != nil {
			card.Connected = *connected
		}

		cards = append(cards, card)
	}

	slotless := slices.ContainsFunc(cards, func(c Card) bool { return c.Slot == 0 })
	slices.SortStableFunc(cards, func(a, b Card) int {
		if slotless || a.Slot == b.Slot {
			return cmp.Compare(a.Key, b.Key)
		}
		return cmp.Compare(a.Slot, b.Slot)
	})

	return cards
}
