package handler

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// comparison is what the guest shows, held against a spec. What is neither compared nor refused is told: silence is no
// consent.
type comparison struct {
	e           expected
	asked       events.VerifySpec
	vm          vcapi.VM
	nics        []shownNIC
	sure        bool // the order of nics is known
	mismatches  []string
	notCompared []events.NotCompared
}

func on(b *bool) bool { return b == nil || *b }

// compare holds what the guest shows against e, as far as asked.
func compare(e expected, asked events.VerifySpec, vm vcapi.VM, name string) *comparison {
	c := &comparison{e: e, asked: asked, vm: vm}
	c.nics, c.sure = nicsOfVM(vm)
	for _, u := range e.unread {
		if c.asks(u.Field) {
			c.notCompared = append(c.notCompared, u)
		}
	}

	if on(asked.HostName) {
		c.note(e.host.field, e.host.compare(vm.HostName, name, e.hide))
	}
	if slices.Contains(vm.Unread, "guest.net") { // thousands of addresses on the NICs of one guest
		c.untold("guest.net", "what the guest shows of its NICs is too large to be read: nothing of its addresses "+
			"and NICs was compared")
		return c
	}

	for i := range e.adapters {
		c.adapter(&e.adapters[i])
	}
	c.gateways()
	if c.asked.DNS != nil && *c.asked.DNS {
		c.dns()
	}
	if asked.AnyAddress != nil && *asked.AnyAddress {
		c.everyAddress()
	}
	if on(asked.Addresses) {
		c.states()
	}
	if on(asked.NICsConnected) {
		c.connected()
	}
	return c
}

// asks reports whether the request wants a field of the spec compared.
func (c *comparison) asks(field string) bool {
	switch {
	case strings.Contains(field, ".identity"):
		return on(c.asked.HostName)
	case strings.Contains(field, ".dnsServerList"):
		return c.asked.DNS != nil && *c.asked.DNS
	case strings.Contains(field, ".gateway"):
		return on(c.asked.Gateway)
	case strings.Contains(field, ".subnetMask"):
		return on(c.asked.Prefix)
	case strings.Contains(field, ".nicSettingMap"):
		return on(c.asked.Addresses)
	}
	return true
}

func (c *comparison) differs(format string, args ...any) {
	c.mismatches = append(c.mismatches, fmt.Sprintf(format, args...))
}

func (c *comparison) untold(field, format string, args ...any) {
	c.notCompared = append(c.notCompared, events.NotCompared{Field: field, Reason: fmt.Sprintf(format, args...)})
}

func (c *comparison) note(field string, h held) {
	if h.mismatch != "" {
		c.differs("%s", h.mismatch)
	}
	if h.untold != "" {
		c.untold(field, "%s", h.untold)
	}
}

// nicOf is the NIC that an adapter's settings belong to: by its MAC address, else by its place in PCI slot order. nil:
// the VM has none.
func (c *comparison) nicOf(a *adapter) *shownNIC {
	if a.mac == nil {
		if a.place < len(c.nics) {
			return &c.nics[a.place]
		}
		return nil
	}

	for i := range c.nics {
		if sameMAC(a.mac.text, c.nics[i].MAC) {
			return &c.nics[i]
		}
	}
	return nil
}

// name is how people may find a NIC.
func (c *comparison) name(n *shownNIC) string {
	if n.MAC == "" {
		return "without a MAC address"
	}
	return c.e.hide(n.MAC)
}

// where says which NIC is meant.
func (c *comparison) where(a *adapter, nic *shownNIC) string {
	switch {
	case a.mac != nil:
		return " on NIC " + a.mac.String()
	case nic != nil && c.sure:
		return fmt.Sprintf(" on NIC %d (%s)", a.place+1, c.name(nic))
	}

	return fmt.Sprintf(" on NIC %d", a.place+1)
}

// adapter holds the addresses of one adapter against its NIC.
func (c *comparison) adapter(a *adapter) {
	nic := c.nicOf(a)
	for _, want := range a.fixed {
		if a.mac == nil && !c.sure {
			c.anywhere(a, want)
			continue
		}

		c.address(a, nic, want)
	}

	if a.dhcp == "" || c.asked.AnyAddress != nil {
		return
	}
	switch {
	case a.mac == nil && !c.sure:
		c.untold(a.dhcp, "the order of the VM's NICs is not known")
	case nic == nil:
		c.differs("address: want one by DHCP%s, the VM has no such NIC", c.where(a, nic))
	default:
		c.reachable(nic, " by DHCP"+c.where(a, nic), func(s shownAddress) bool {
			return !slices.ContainsFunc(a.fixed, func(f fixedAddress) bool { // that one says nothing of DHCP
				want, ok := f.address()
				return ok && want == s.ip
			})
		})
	}
}

// address holds one fixed address, and its prefix, against a NIC.
func (c *comparison) address(a *adapter, nic *shownNIC, want fixedAddress) {
	ip, readable := want.address()
	var found *shownAddress
	if nic != nil && readable {
		all := nic.addresses()
		if i := slices.IndexFunc(all, func(s shownAddress) bool { return s.ip == ip }); i >= 0 {
			found = &all[i]
		}
	}

	if on(c.asked.Addresses) {
		switch {
		case !readable:
			c.differs("address: want %s%s, which is not an address", want, c.where(a, nic))
		case nic == nil:
			c.differs("address: want %s%s, the VM has no such NIC", want, c.where(a, nic))
		case found == nil:
			c.differs("address: want %s%s, the guest does not show it%s", want, c.where(a, nic), c.elsewhere(ip, nic))
		case found.State == "invalid" || found.State == "inaccessible":
			c.differs("address: %s%s is %s, says the guest", want, c.where(a, nic), found.State)
		}
	}

	if !on(c.asked.Prefix) || want.prefix == nil || found == nil {
		return
	}
	bits, ok := want.bits()
	switch {
	case !ok:
		c.differs("prefix: want that of %s for %s%s, which is none", want.prefix, want, c.where(a, nic))
	case found.Prefix == 0:
		c.untold(want.prefix.field, "the guest does not show the prefix of %s", want)
	case found.Prefix != bits:
		wanted := fmt.Sprintf("/%d", bits)
		if want.prefix.secret != "" {
			wanted = want.prefix.String()
		}
		c.differs("prefix: want %s for %s%s, the guest shows /%d", wanted, want, c.where(a, nic), found.Prefix)
	}
}

// elsewhere says on which NIC an address is that is missing on its own.
func (c *comparison) elsewhere(ip netip.Addr, but *shownNIC) string {
	for i := range c.nics {
		nic := &c.nics[i]
		if nic != but && slices.ContainsFunc(nic.addresses(), func(s shownAddress) bool { return s.ip == ip }) {
			return fmt.Sprintf(" there, but on NIC %d (%s)", i+1, c.name(nic))
		}
	}

	return ""
}

// anywhere looks for an address of which nobody can tell on which NIC it should be.
func (c *comparison) anywhere(a *adapter, want fixedAddress) {
	if !on(c.asked.Addresses) {
		return
	}
	ip, readable := want.address()
	for i := range c.nics {
		if readable && slices.ContainsFunc(c.nics[i].addresses(), func(s shownAddress) bool { return s.ip == ip }) {
			c.untold(want.field, "the guest shows it, and whether on the right NIC is not known: vCenter does not "+
				"show the VM's hardware")
			return
		}
	}

	c.address(a, nil, want)
}

// reachable wants an address on a NIC that others can reach.
func (c *comparison) reachable(nic *shownNIC, what string, counts func(shownAddress) bool) {
	all := nic.addresses()
	if slices.ContainsFunc(all, func(s shownAddress) bool { return s.reachable() && counts(s) }) {
		return
	}
	var shown []string
	for _, s := range all {
		text := c.e.hide(s.IP)
		if s.State != "" && s.State != "preferred" && s.State != "unknown" {
			text += " (" + s.State + ")"
		}
		shown = append(shown, text)
	}
	c.differs("address: want one%s that others can reach, the guest shows %s", what,
		orNothing(strings.Join(shown, ", ")))
}

// everyAddress wants such an address on every NIC.
func (c *comparison) everyAddress() {
	if len(c.nics) == 0 {
		c.differs("address: want one on every NIC, the guest shows no NIC")
	}
	for i := range c.nics {
		c.reachable(&c.nics[i], fmt.Sprintf(" on NIC %d (%s)", i+1, c.name(&c.nics[i])),
			func(shownAddress) bool { return true })
	}
}

// states tells what the guest itself says against its addresses, wanted or not. A link-local address that is not
// settled is only wrong where the spec asks for it: it stays so on a NIC that is off.
func (c *comparison) states() {
	for i := range c.nics {
		for _, s := range c.nics[i].addresses() {
			switch {
			case s.State == "duplicate":
				c.differs("address: %s on NIC %d (%s) is in use elsewhere too (duplicate), says the guest",
					c.e.hide(s.IP), i+1, c.name(&c.nics[i]))
			case s.State == "tentative" && (!s.ip.IsLinkLocalUnicast() || c.fixes(s.ip)):
				c.differs("address: %s on NIC %d (%s) is not settled yet (tentative), says the guest", c.e.hide(s.IP),
					i+1, c.name(&c.nics[i]))
			}
		}
	}
}

func (c *comparison) fixes(ip netip.Addr) bool {
	return slices.ContainsFunc(c.e.adapters, func(a adapter) bool {
		return slices.ContainsFunc(a.fixed, func(f fixedAddress) bool {
			want, ok := f.address()
			return ok && want == ip
		})
	})
}

// gateways holds the guest's default routes against the adapters' gateways. An adapter's are in order of preference:
// one of them is enough. A guest with fewer default routes than adapters ask for is none that failed: the primary NIC's
// gateway may be the only one (CustomizationIPSettings.primary).
func (c *comparison) gateways() {
	if !on(c.asked.Gateway) {
		return
	}
	for _, v4 := range []bool{true, false} {
		var wanted, missing [][]setting
		var shown []netip.Addr
		for _, text := range c.vm.Gateways {
			if ip, err := netip.ParseAddr(text); err == nil && plain(ip).Is4() == v4 {
				shown = append(shown, plain(ip))
			}
		}

		foreign := slices.Clone(shown)
		for _, a := range c.e.adapters {
			for _, via := range a.gateways {
				if first, ok := via[0].address(); ok && first.Is4() != v4 || !ok && !v4 {
					continue // what cannot be read is told once
				}
				wanted = append(wanted, via)
				met := false
				for _, s := range via {
					ip, _ := s.address()
					met = met || slices.Contains(shown, ip)
					foreign = slices.DeleteFunc(foreign, func(f netip.Addr) bool { return f == ip })
				}

				if !met {
					missing = append(missing, via)
				}
			}
		}

		for _, via := range missing {
			switch {
			case c.vm.Routes == 0:
				c.untold(via[0].field, "the guest shows no routes")
			case len(missing) < len(wanted) && len(foreign) == 0:
				c.untold(via[0].field, "the guest's only default route goes by the gateway of another NIC, as where "+
					"that is the primary one")
			default:
				c.differs("gateway: want %s, the guest's default route goes by %s", via[0], orNothing(c.hideAll(shown)))
			}
		}
	}
}

func (c *comparison) hideAll(all []netip.Addr) string {
	var texts []string
	for _, ip := range all {
		texts = append(texts, ip.String())
	}
	return strings.Join(c.e.hideAll(texts), ", ")
}

// dns holds the guest's DNS servers against the spec's. A resolver of the guest's own, on a loopback address, hides
// them.
func (c *comparison) dns() {
	var shown []netip.Addr
	stub := false
	add := func(servers []string) {
		for _, text := range servers {
			if ip, err := netip.ParseAddr(text); err == nil {
				shown = append(shown, plain(ip))
				stub = stub || ip.IsLoopback()
			}
		}
	}

	add(c.vm.DNS)
	for _, nic := range c.nics {
		add(nic.DNS)
	}
	for _, a := range c.e.adapters {
		for _, want := range a.dns {
			if !c.e.host.windows {
				c.untold(want.field, "a Linux guest ignores an adapter's own DNS servers: those of globalIPSettings "+
					"count")
			}
		}
	}

	for _, want := range c.e.dns {
		ip, readable := want.address()
		switch {
		case !readable:
			c.differs("DNS: want %s, which is not an address", want)
		case slices.Contains(shown, ip):
		case len(shown) == 0:
			c.untold(want.field, "the guest shows no DNS servers")
		case stub:
			c.untold(want.field, "the guest shows only its own resolver")
		default:
			c.differs("DNS: want %s, the guest shows %s", want, c.hideAll(shown))
		}
	}
}

// connected wants every NIC of the VM connected. Of one that the guest does not show, the VM's hardware tells.
func (c *comparison) connected() {
	wanted := slices.ContainsFunc(c.e.adapters, func(a adapter) bool { return len(a.fixed) > 0 || a.dhcp != "" })
	silent := !slices.ContainsFunc(c.nics, func(n shownNIC) bool { return n.shown })
	for i := range c.nics {
		nic := &c.nics[i]
		switch {
		case !nic.Connected:
			c.differs("NIC %s is not connected", c.name(nic))
		case !nic.shown && !(silent && wanted):
			c.untold("verify.nicsConnected", "NIC %s: the guest does not show it; in the VM's hardware it is connected",
				c.name(nic))
		}
	}

	switch {
	case silent && wanted:
		c.differs("the guest shows no NIC")
	case len(c.nics) == 0:
		c.untold("verify.nicsConnected", "neither the guest nor the VM's hardware shows a NIC")
	}
}

// evidence is what of the spec's host name and fixed addresses can be seen in the guest: by field, whether it is shown.
// Of two such readings, one from before a call and one from after it, only what became true speaks for the call.
func (e expected) evidence(vm vcapi.VM, vmName string) map[string]bool {
	seen := map[string]bool{}
	if h := e.host.compare(vm.HostName, vmName, e.hide); e.host.kind != noName && h.untold == "" {
		seen[e.host.field] = h.mismatch == ""
	}
	no := false
	for _, a := range e.adapters {
		for _, f := range a.fixed {
			one := expected{adapters: []adapter{{field: a.field, mac: a.mac, place: a.place, fixed: []fixedAddress{f}}}}
			c := compare(one, events.VerifySpec{Prefix: &no, AnyAddress: &no, NICsConnected: &no}, vm, "")
			seen[f.field] = len(c.mismatches) == 0
		}
	}

	return seen
}
