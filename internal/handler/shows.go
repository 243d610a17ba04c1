package handler

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"github.com/guestflow/guestflow/internal/vcapi"
)

// shownNIC is a NIC of the VM as the guest shows it.
type shownNIC struct {
	vcapi.NIC
	shown bool // the guest shows it at all; else only its card is known
}

// shownAddress is one address of a NIC.
type shownAddress struct {
	vcapi.Address
	ip netip.Addr
}

// addresses are those that can be read, each with what the guest tells of it.
func (n shownNIC) addresses() (all []shownAddress) {
	for _, text := range n.Addresses {
		a := shownAddress{Address: vcapi.Address{IP: text}}
		var err error
		if prefix, wrong := netip.ParsePrefix(text); wrong == nil {
			a.ip, a.Prefix = prefix.Addr(), prefix.Bits()
		} else if a.ip, err = netip.ParseAddr(text); err != nil {
			continue
		}

		a.ip = plain(a.ip)
		if i := slices.IndexFunc(n.IPConfig, func(c vcapi.Address) bool { return c.IP == text }); i >= 0 {
			a.Address = n.IPConfig[i]
		}
		all = append(all, a)
	}

	return all
}

// reachable reports whether others can reach the NIC under this address.
func (a shownAddress) reachable() bool {
	switch a.State {
	case "duplicate", "tentative", "invalid", "inaccessible":
		return false
	}

	return !a.ip.IsLinkLocalUnicast() && !a.ip.IsLoopback() && !a.ip.IsUnspecified() && !a.ip.IsMulticast()
}

// nicsOfVM are the NICs of the VM in PCI slot order, each with what the guest shows of it; sure says that this order is
// known. What the guest shows beside them, such as bridges and containers' ends, is left out: it has no device. Where
// the VM's hardware was not shown, the guest's order stands.
func nicsOfVM(vm vcapi.VM) (nics []shownNIC, sure bool) {
	of := func(card *vcapi.Card) (found []vcapi.NIC) {
		for _, n := range vm.NICs {
			switch {
			case n.Device == vcapi.NoDevice:
			case card == nil, n.Device != 0 && n.Device == card.Key, n.Device == 0 && sameMAC(n.MAC, card.MAC):
				found = append(found, n)
			}
		}

		return found
	}

	if vm.Cards == nil {
		for _, n := range of(nil) {
			nics = append(nics, shownNIC{NIC: n, shown: true})
		}
		return nics, len(nics) == 1
	}

	for i := range vm.Cards {
		card := &vm.Cards[i]
		nic := shownNIC{NIC: vcapi.NIC{MAC: card.MAC, Connected: card.Connected, Device: card.Key}}
		for _, n := range of(card) { // a guest may show one device several times
			if !nic.shown {
				nic.Connected, nic.shown = n.Connected, true
			}
			for _, a := range n.Addresses {
				if !slices.Contains(nic.Addresses, a) {
					nic.Addresses = append(nic.Addresses, a)
				}
			}

			nic.IPConfig = append(nic.IPConfig, n.IPConfig...)
			nic.DNS = append(nic.DNS, n.DNS...)
		}

		nics = append(nics, nic)
	}

	return nics, true
}

// sameMAC reports whether two texts are one MAC address.
func sameMAC(a, b string) bool {
	first, ok := macOf(a)
	second, good := macOf(b)
	if !ok || !good {
		return a == b && a != ""
	}
	return first == second
}

// macOf reads a MAC address in any usual notation: 00:50:56:aa:bb:01, 00-50-56-AA-BB-01, 0050.56aa.bb01, 005056aabb01,
// 0:50:56:aa:bb:1.
func macOf(text string) (mac [6]byte, ok bool) {
	text = strings.TrimSpace(text)
	var groups []string
	if i := strings.IndexAny(text, ":-."); i >= 0 {
		groups = strings.Split(text, text[i:i+1])
	} else {
		groups = []string{text}
	}

	width := 12 / len(groups) // digits of a group
	if width*len(groups) != 12 || width < 2 {
		return mac, false
	}
	digits := ""
	for _, g := range groups {
		if width == 2 && len(g) == 1 {
			g = "0" + g
		}
		if len(g) != width {
			return mac, false
		}
		digits += g
	}

	bytes, err := hex.DecodeString(digits)
	if err != nil {
		return mac, false
	}
	copy(mac[:], bytes)
	return mac, true
}
