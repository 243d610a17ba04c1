package custspec

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// checkRules checks the values of a data object against vSphere's rules.
//
// Sources: the pages of the data objects (VI JSON), of their counterparts in REST (Vcenter Guest), "Customizing Guest
// Operating Systems" (vSphere Virtual Machine Administration), and what vCenter answered to others: InvalidArgument
// spec.identity.hostName for '_' and '.' (ansible 24225, 27096; terraform-provider-vsphere 689), nicsettings:adapter:ip
// and nicsettings:adapter:ipv6spec:ip for an address that the user is to be asked for (ansible 55560, govmomi 2998),
// spec.identity.userData.fullName where it is empty (govmomi 1897), Timezone for an index that Windows does not have
// (ansible 60152), NicSettingMismatch (ansible 27707).
func (c *checker) checkRules(name string, m map[string]any, at string) {
	switch name {
	case "CustomizationSpec":
		c.checkAdapters(m, at)
		c.checkIdentity(m, at)
	case "CustomizationGlobalIPSettings":
		c.checkAddresses(m["dnsServerList"], join(at, "dnsServerList"))
	case "CustomizationLinuxPrep":
		c.checkHostName(m["hostName"], join(at, "hostName"), false)
		c.checkLinuxTimeZone(m["timeZone"], join(at, "timeZone"))
		c.checkScript(m["scriptText"], join(at, "scriptText"))
	case "CustomizationUserData":
		c.checkHostName(m["computerName"], join(at, "computerName"), true)
		if m["fullName"] != nil && !isFilled(m["fullName"]) {
			c.refuse(join(at, "fullName"), "is empty: vCenter wants the user's full name")
		}
	case "CustomizationGuiUnattended":
		c.checkUnattended(m, at)
	case "CustomizationIdentification":
		c.checkDomainJoin(m, at)
	case "CustomizationIPSettings":
		c.checkIPv4Settings(m, at)
	case "CustomizationIPSettingsIpV6AddressSpec":
		c.checkIPv6Settings(m, at)
	case "CustomizationFixedIpV6":
		c.checkFixedIPv6(m, at)
	case "CustomizationUnknownName":
		c.refuse(
			at,
			"leaves the host name to be asked for, and nobody is asked here: "+
				"give a CustomizationFixedName, or CustomizationVirtualMachineName",
		)
	case "CustomizationUnknownIpGenerator":
		c.refuse(
			at,
			"leaves the address to be asked for, and nobody is asked here: "+
				"give a CustomizationFixedIp, or CustomizationDhcpIpGenerator",
		)
	case "CustomizationUnknownIpV6Generator":
		c.refuse(
			at,
			"leaves the address to be asked for, and nobody is asked here: "+
				"give a CustomizationFixedIpV6, or CustomizationDhcpIpV6Generator",
		)
	case "CustomizationCustomName", "CustomizationCustomIpGenerator", "CustomizationCustomIpV6Generator":
		c.warn(
			DoubtfulValue,
			at,
			"needs a program that vCenter's own configuration (vpxd.cfg, name-ip-generator) names, "+
				"else it fails with IpHostnameGeneratorError",
		)
	}
}

// checkIdentity warns of what the customization of a running guest is known to drop or not to support. (Customizing
// Guest Network Settings for Running Virtual Machines, vSphere Web Services SDK Programming Guide: Linux guests only.)
func (c *checker) checkIdentity(m map[string]any, at string) {
	at = join(at, "identity")
	identity, _ := m["identity"].(map[string]any)
	kind, _ := identity[typeName].(string)
	if kind != "" && kind != "CustomizationLinuxPrep" {
		c.warn(
			UnsupportedIdentity,
			at,
			"%.80s: the customization of a running guest supports Linux guests with CustomizationLinuxPrep; "+
				"vCenter may refuse this one",
			kind,
		)
	}

	for _, dropped := range [][2]string{
		{"password", "the guest's password stays as it is"},
		{"scriptText", "the script is not run"},
	} {
		if identity[dropped[0]] != nil {
			c.warn(
				IgnoredByGuest,
				join(at, dropped[0]),
				"the engine that customizes running guests is known to drop it: %s",
				dropped[1],
			)
		}
	}

	options, _ := m["options"].(map[string]any)
	if of, _ := options[typeName].(string); of == "CustomizationWinOptions" && kind == "CustomizationLinuxPrep" ||
		of == "CustomizationLinuxOptions" && strings.HasPrefix(kind, "CustomizationSysprep") {
		c.warn(
			DoubtfulValue,
			strings.TrimSuffix(at, "identity")+"options",
			"%s does not go with the identity %s",
			of,
			kind,
		)
	}
}

// checkHostName checks a host name against vSphere's rule: letters, digits and hyphens, not only digits.
func (c *checker) checkHostName(v any, at string, windows bool) {
	m, _ := v.(map[string]any)
	kind, member := m[typeName], "name"
	if kind == "CustomizationPrefixName" {
		member = "base"
	} else if kind != "CustomizationFixedName" {
		return
	}

	name, is := m[member].(string)
	if !is {
		return // missing, or the name of a secret
	}

	at = join(at, member)
	const rule = "letters, digits and hyphens, not digits alone, at most 63"
	odd := strings.IndexFunc(name, func(char rune) bool {
		return char != '-' && !isLetter(char) && !isDigit(char)
	})
	switch {
	case strings.TrimSpace(name) == "" && member == "name":
		c.refuse(at, "is empty: a host name is %s", rule)
	case odd >= 0 && member == "name":
		c.refuse(at, "%.80q has %q in it, and a host name is %s%s",
			name, []rune(name[odd:])[0], rule, hostNameHint(name, windows))
	case odd >= 0:
		c.warn(DoubtfulValue, at, "%.80q has %q in it, and a host name is %s", name, []rune(name[odd:])[0], rule)
	case len(name) > 63:
		c.refuse(at, "has %d characters, and a host name is %s", len(name), rule)
	case member == "name" && strings.Trim(name, "0123456789") == "":
		c.refuse(at, "%q is digits alone, and a host name is %s", name, rule)
	case strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-") && member == "name":
		c.warn(DoubtfulValue, at, "%q begins or ends with a hyphen, which host names do not", name)
	case windows && len(name) > 15:
		c.warn(DoubtfulValue, at, "%q has %d characters: Windows keeps the first 15", name, len(name))
	}
}

// hostNameHint says what to write where a name includes its domain.
func hostNameHint(name string, windows bool) string {
	first, domain, dotted := strings.Cut(name, ".")
	if !dotted || first == "" || domain == "" || windows || strings.Trim(first, "0123456789") == "" {
		return ""
	}
	return fmt.Sprintf(": give %.80q, and %.80q as domain", first, domain)
}

func isLetter(c rune) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func isDigit(c rune) bool { return c >= '0' && c <= '9' }

// checkScript checks a script against the page of its REST counterpart.
func (c *checker) checkScript(v any, at string) {
	s, _ := v.(string)
	if s != "" && !strings.HasPrefix(s, "#!") {
		c.warn(DoubtfulValue, at, "does not begin with #!, the line that names its interpreter")
	}
	if len(s) > 1500 {
		c.warn(DoubtfulValue, at, "has %d bytes: vCenters before 9.0 take at most 1500", len(s))
	}
}

// checkDomainJoin checks how a Windows guest joins a domain or a workgroup, against the page of that type.
func (c *checker) checkDomainJoin(m map[string]any, at string) {
	domain, workgroup := isFilled(m["joinDomain"]), isFilled(m["joinWorkgroup"])
	switch {
	case domain && workgroup:
		c.warn(DoubtfulValue, at, "has joinDomain and joinWorkgroup: a guest joins one of them")
	case domain && (!isFilled(m["domainAdmin"]) || m["domainAdminPassword"] == nil):
		c.warn(DoubtfulValue, at, "has joinDomain, which needs domainAdmin and domainAdminPassword")
	}
}

// isFilled reports whether v is present and not empty.
func isFilled(v any) bool {
	s, is := v.(string)
	return v != nil && (!is || strings.TrimSpace(s) != "")
}

// checkAdapters checks the adapters of a spec against each other.
func (c *checker) checkAdapters(m map[string]any, at string) {
	at = join(at, "nicSettingMap")
	list, _ := m["nicSettingMap"].([]any)
	seen, primary := map[string]int{}, -1
	with, without := -1, -1

	for i, item := range list {
		a, _ := item.(map[string]any)
		here := fmt.Sprintf("%s[%d]", at, i)
		if settings, _ := a["adapter"].(map[string]any); settings["primary"] == true {
			if primary >= 0 {
				c.warn(
					DoubtfulValue,
					here+".adapter.primary",
					"is true for nicSettingMap[%d] too: only one adapter is the primary",
					primary,
				)
			}

			primary = i
		}

		if !isFilled(a["macAddress"]) {
			without = i
			continue
		}

		with = i
		mac, is := a["macAddress"].(string)
		if !is {
			continue // the name of a secret
		}

		key := MAC(mac)
		if key == "" {
			c.refuse(here+".macAddress", "%.80q is no MAC address, such as 00:50:56:00:00:01", mac)
			continue
		}

		if first, twice := seen[key]; twice {
			c.warn(DoubtfulValue, here+".macAddress", "is that of nicSettingMap[%d] too", first)
		}

		seen[key] = i
	}

	if with >= 0 && without >= 0 {
		c.refuse(at, "either every entry has a macAddress or none: [%d] has one, [%d] has none", with, without)
	}
}

// MAC is a MAC address in one notation, whichever of the common ones s has; "" where s is not one.
func MAC(s string) string {
	if len(s) == 12 && !strings.ContainsAny(s, ":-.") {
		var pairs []string
		for pair := range slices.Chunk([]byte(s), 2) {
			pairs = append(pairs, string(pair))
		}
		s = strings.Join(pairs, ":")
	}

	mac, err := net.ParseMAC(strings.TrimSpace(s))
	if err != nil || len(mac) != 6 {
		return ""
	}

	return mac.String()
}

// CheckAdapters checks the adapters of a spec against the virtual NICs of its VM, given by their MAC addresses: vCenter
// answers NicSettingMismatch where their numbers differ.
func CheckAdapters(spec json.RawMessage, macs []string, at string) []Finding {
	m, _ := decode(spec).(map[string]any)
	list, is := m["nicSettingMap"].([]any)
	if !is && m["nicSettingMap"] != nil || m == nil {
		return nil // told already
	}

	at = join(at, "nicSettingMap")
	if len(list) != len(macs) {
		return []Finding{
			{
				Field: at,
				Message: fmt.Sprintf(
					"has %s, and the VM has %s (%s): vCenter wants one for each (NicSettingMismatch)",
					counted(len(list), "entry", "entries"),
					counted(len(macs), "NIC", "NICs"),
					strings.Join(macs, ", "),
				),
			},
		}
	}

	var found []Finding
	for i, item := range list {
		a, _ := item.(map[string]any)
		mac, _ := a["macAddress"].(string)
		if key := MAC(mac); key != "" && !slices.ContainsFunc(macs, func(has string) bool { return MAC(has) == key }) {
			found = append(found, Finding{Field: fmt.Sprintf("%s[%d].macAddress", at, i), Message: fmt.Sprintf(
				"%s is none of the VM's NICs: %s", mac, strings.Join(macs, ", "))})
		}
	}

	return found
}

func counted(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

// checkIPv4Settings checks the IPv4 settings of one adapter.
func (c *checker) checkIPv4Settings(m map[string]any, at string) {
	ip, _ := m["ip"].(map[string]any)
	fixed := ip[typeName] == "CustomizationFixedIp"
	var address netip.Addr
	if s, is := ip["ipAddress"].(string); is && fixed {
		address = c.checkFixedIP(s, join(at, "ip.ipAddress"))
	}

	mask, _ := m["subnetMask"].(string)
	bits := -1
	switch {
	case strings.TrimSpace(mask) != "":
		bits = c.checkMask(mask, join(at, "subnetMask"), fixed)
	case address.Is4() && !isSecret(m["subnetMask"]):
		c.warn(DoubtfulValue, join(at, "subnetMask"), "is missing beside a fixed address")
	}

	gateways, _ := m["gateway"].([]any)
	for i, v := range gateways {
		s, is := v.(string)
		if !is {
			continue
		}

		here := fmt.Sprintf("%s.gateway[%d]", at, i)
		gateway, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			c.refuse(here, "%s", notServerReason(s))
		case !gateway.Is4():
			c.warn(DoubtfulValue, here, "%s is no IPv4 address: gateways of IPv6 belong into ipV6Spec", gateway)
		case address.Is4() && bits >= 0 && !netip.PrefixFrom(address, bits).Masked().Contains(gateway):
			c.warn(
				DoubtfulValue,
				here,
				"%s is not in the subnet of the address, %s",
				gateway,
				netip.PrefixFrom(address, bits).Masked(),
			)
		case gateway == address:
			c.warn(DoubtfulValue, here, "%s is the adapter's own address", gateway)
		}
	}

	c.checkAddresses(m["dnsServerList"], join(at, "dnsServerList"))
}

// checkAddresses refuses what in a list of servers is not an address.
func (c *checker) checkAddresses(v any, at string) {
	list, _ := v.([]any)
	for i, item := range list {
		if s, is := item.(string); is {
			if _, err := netip.ParseAddr(s); err != nil {
				c.refuse(fmt.Sprintf("%s[%d]", at, i), "%s", notServerReason(s))
			}
		}
	}
}

// checkFixedIP checks and returns the address of a CustomizationFixedIp; the zero address where it is not one.
func (c *checker) checkFixedIP(s, at string) netip.Addr {
	address, err := netip.ParseAddr(s)
	if err != nil {
		c.refuse(at, "%s", notAddressReason(s, false))
		return netip.Addr{}
	}

	switch {
	case !address.Is4():
		c.warn(
			DoubtfulValue,
			at,
			"%s is no IPv4 address: a CustomizationFixedIpV6 in ipV6Spec gives one of IPv6",
			address,
		)
	case address.IsUnspecified(),
		address.IsMulticast(),
		address.IsLoopback(),
		address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		c.warn(DoubtfulValue, at, "%s is no address that an adapter can have", address)
	}

	return address
}

// notServerReason says why the text for a gateway or a server is not an IP address, and what to write.
func notServerReason(s string) string {
	if strings.TrimSpace(s) == "" {
		return "is empty: give the address, or leave it out"
	}
	return notAddressReason(s, false)
}

// notAddressReason says why a text is not an IP address, and what to write.
func notAddressReason(s string, v6 bool) string {
	trimmed := strings.TrimSpace(s)
	if trimmed == "" {
		return "is empty: give the address, or CustomizationDhcpIpGenerator"
	}
	if _, err := netip.ParseAddr(trimmed); err == nil {
		return fmt.Sprintf("%.80q has blanks around it: give %q", s, trimmed)
	}

	if address, prefix, has := strings.Cut(trimmed, "/"); has {
		p, err := netip.ParsePrefix(trimmed)
		switch {
		case err == nil && p.Addr().Is4() && !v6:
			return fmt.Sprintf(
				"%.80q is an address with its prefix: give %q here, and the prefix as subnetMask, %q",
				s,
				address,
				dottedMask(p.Bits()),
			)
		case err == nil:
			return fmt.Sprintf(
				"%.80q is an address with its prefix: give %q here, and the prefix as subnetMask, %s",
				s,
				address,
				prefix,
			)
		}

		return fmt.Sprintf("%.80q is not an address, and a prefix belongs into subnetMask", s)
	}

	if plain := withoutLeadingZeros(trimmed); plain != "" {
		return fmt.Sprintf("%.80q has leading zeros, which some read as octal: give %q", s, plain)
	}

	return fmt.Sprintf("%.80q is not an IP address", s)
}

// withoutLeadingZeros is an IPv4 address without leading zeros; "" where s is not one.
func withoutLeadingZeros(s string) string {
	parts := strings.Split(s, ".")
	for i, part := range parts {
		if parts[i] = strings.TrimLeft(part, "0"); parts[i] == "" && part != "" {
			parts[i] = "0"
		}
	}

	if address, err := netip.ParseAddr(strings.Join(parts, ".")); err == nil && address.Is4() {
		return address.String()
	}
	return ""
}

// checkMask checks an IPv4 subnet mask and returns the length of its prefix, -1 where it is not one. A mask beside an
// address that is not fixed is not used.
func (c *checker) checkMask(s, at string, fixed bool) int {
	address, err := netip.ParseAddr(s)
	if err == nil && address.Is4() {
		for bits := range 33 {
			if dottedMask(bits) == address.String() {
				if bits == 0 && fixed {
					c.warn(DoubtfulValue, at, "0.0.0.0 puts every address into the subnet")
				}
				return bits
			}
		}
	}

	should := ""
	if p, err := netip.ParsePrefix("0.0.0.0/" + strings.TrimPrefix(strings.TrimSpace(s), "/")); err == nil {
		should = fmt.Sprintf(": give %q", dottedMask(p.Bits()))
	}

	message := fmt.Sprintf("%.80q is not a subnet mask, such as 255.255.255.0%s", s, should)
	if fixed {
		c.refuse(at, "%s", message)
	} else {
		c.warn(DoubtfulValue, at, "%s", message)
	}

	return -1
}

// dottedMask is the subnet mask of a prefix length.
func dottedMask(bits int) string { return net.IP(net.CIDRMask(bits, 32)).String() }

// checkFixedIPv6 checks an IPv6 address and the length of its prefix.
func (c *checker) checkFixedIPv6(m map[string]any, at string) {
	if s, is := m["ipAddress"].(string); is {
		switch address, err := netip.ParseAddr(s); {
		case err != nil:
			c.refuse(join(at, "ipAddress"), "%s", notAddressReason(s, true))
		case !address.Is6() || address.Is4In6() || address.Zone() != "":
			c.warn(DoubtfulValue, join(at, "ipAddress"), "%.80q is no plain IPv6 address", s)
		}
	}

	bits, is := m["subnetMask"].(json.Number)
	if n, err := bits.Int64(); is && err == nil && (n < 1 || n > 128) {
		c.refuse(join(at, "subnetMask"), "is %d: the length of an IPv6 prefix is 1 to 128, usually 64", n)
	}
}

// checkIPv6Settings checks the IPv6 settings of one adapter.
func (c *checker) checkIPv6Settings(m map[string]any, at string) {
	list, _ := m["gateway"].([]any)
	for i, v := range list {
		if s, is := v.(string); is {
			if a, err := netip.ParseAddr(s); err != nil || a.Is4() {
				c.warn(DoubtfulValue, fmt.Sprintf("%s.gateway[%d]", at, i), "%.80q is no IPv6 address", s)
			}
		}
	}
}
