package handler

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/guestflow/guestflow/internal/events"
)

// expected is what a spec says that the guest will show. (VI JSON: CustomizationSpec.)
type expected struct {
	host     nameRule
	adapters []adapter
	dns      []setting // of the whole guest
	// unread is what the spec asks for and nobody can hold the guest against: it is told in each verify.completed.
	unread []events.NotCompared
}

// setting is one string of a spec.
type setting struct {
	field  string // where it stands in the request
	text   string
	secret string // how its secret is called, where it is one's value
	err    error  // why that cannot be read
}

// String is the setting as people may read it: a secret's value is its name.
func (s setting) String() string {
	if s.secret != "" {
		return "the value of " + s.secret
	}
	return s.text
}

// address is the setting as an IP address.
func (s setting) address() (netip.Addr, bool) {
	a, err := netip.ParseAddr(s.text)
	return plain(a), err == nil
}

// adapter is what one entry of nicSettingMap asks for.
type adapter struct {
	field    string
	mac      *setting // nil: it belongs to the NIC with this place in the VM's PCI slot order
	place    int
	fixed    []fixedAddress
	dhcp     string // the field that asks for DHCP, of either version; "" where none does
	gateways [][]setting
	dns      []setting
}

// fixedAddress is an address that the spec fixes, with the length of its prefix where it fixes that too.
type fixedAddress struct {
	setting
	prefix *setting // as the spec writes it: a mask, or a number
}

// bits is the length of the prefix that the spec asks for.
func (a fixedAddress) bits() (int, bool) {
	if a.prefix == nil {
		return 0, false
	}
	if n := 0; json.Unmarshal([]byte(a.prefix.text), &n) == nil {
		return n, n > 0 && n <= 128
	}
	mask, err := netip.ParseAddr(a.prefix.text)
	if err != nil || !mask.Is4() {
		return 0, false
	}
	b := mask.As4()
	bits := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n := 0
	for ; n < 32 && bits&(1<<31) != 0; n++ {
		bits <<= 1
	}
	return n, bits == 0 && n > 0
}

// specReader reads a spec, word by word: what it does not understand it notes, instead of taking it for nothing.
type specReader struct {
	secret func(events.TextOrSecret) (string, error)
	unread []events.NotCompared
}

func (r *specReader) untold(field, format string, args ...any) {
	r.unread = append(r.unread, events.NotCompared{Field: field, Reason: fmt.Sprintf(format, args...)})
}

// absent reports whether a member is not there: null is read as absent.
func absent(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

func (r *specReader) object(raw json.RawMessage, field string) map[string]json.RawMessage {
	var members map[string]json.RawMessage
	if !absent(raw) && json.Unmarshal(raw, &members) != nil {
		r.untold(field, "it is no object")
	}
	return members
}

func (r *specReader) list(raw json.RawMessage, field string) []json.RawMessage {
	var elements []json.RawMessage
	if !absent(raw) && json.Unmarshal(raw, &elements) != nil {
		r.untold(field, "it is no array")
	}
	return elements
}

// text reads a string, or one that a secret stands for; nil where there is none. A number is a string too: prefix
// lengths are.
func (r *specReader) text(raw json.RawMessage, field string) *setting {
	if absent(raw) {
		return nil
	}
	s := setting{field: field}
	var t events.TextOrSecret
	var number json.Number
	switch {
	case json.Unmarshal(raw, &number) == nil && raw[0] != '"':
		s.text = number.String()
	case json.Unmarshal(raw, &t) != nil || raw[0] != '"' && t.SecretRef == "":
		r.untold(field, "it is no string")
		return nil
	default:
		s.text = t.Text
		if t.SecretRef != "" {
			s.secret = fmt.Sprintf("secret %s, key %s", t.SecretRef, t.Key)
			if s.text, s.err = r.secret(t); s.err != nil {
				r.untold(field, "%v", s.err)
				return nil
			}
		}
	}

	return &s
}

func (r *specReader) texts(raw json.RawMessage, field string) (all []setting) {
	for i, element := range r.list(raw, field) {
		if s := r.text(element, fmt.Sprintf("%s[%d]", field, i)); s != nil {
			all = append(all, *s)
		}
	}

	return all
}

func typeOf(members map[string]json.RawMessage) (name string) {
	_ = json.Unmarshal(members["_typeName"], &name)
	return name
}

const specField = "customize.spec"

// expect reads what a spec asks for. secret gives the value of a secret that stands for a string.
func expect(spec json.RawMessage, secret func(events.TextOrSecret) (string, error)) (e expected) {
	if absent(spec) {
		return e
	}
	r := &specReader{secret: secret}
	members := r.object(spec, specField)
	var linux bool
	e.host, linux = r.identity(members["identity"], specField+".identity")
	const nics = specField + ".nicSettingMap"
	for i, raw := range r.list(members["nicSettingMap"], nics) {
		e.adapters = append(e.adapters, r.adapter(raw, fmt.Sprintf("%s[%d]", nics, i), i))
	}
	const global = specField + ".globalIPSettings"
	e.dns = r.texts(r.object(members["globalIPSettings"], global)["dnsServerList"], global+".dnsServerList")
	if !linux { // CustomizationIPSettings.dnsServerList: a Linux guest ignores it
		for _, a := range e.adapters {
			e.dns = append(e.dns, a.dns...)
		}
	}

	e.unread = r.unread
	return e
}

// knownIdentities are those whose host name, where they have one, stands in a member of its own.
var knownIdentities = []string{"", "CustomizationLinuxPrep", "CustomizationSysprep", "CustomizationLinuxFlexPrep",
	"CustomizationWindowsFlexPrep"}

// identity reads what the guest will be called.
func (r *specReader) identity(raw json.RawMessage, field string) (rule nameRule, linux bool) {
	members := r.object(raw, field)
	kind := typeOf(members)
	switch kind {
	case "CustomizationSysprepText":
		r.untold(field+".value", "the computer name stands in an answer file, which is not read")
		return rule, false
	case "CustomizationCloudinitPrep":
		r.untold(field+".metadata", "host name and network stand in cloud-init's own text, which is not read")
		return rule, true
	}
	name, at := members["hostName"], field+".hostName"
	if user := members["userData"]; !absent(user) {
		name, at = r.object(user, field+".userData")["computerName"], field+".userData.computerName"
		rule.windows = true
	} else if absent(name) && !slices.Contains(knownIdentities, kind) {
		r.untold(field, "%s is not known here", kind)
	}

	if !absent(name) {
		r.name(&rule, r.object(name, at), at)
	}
	return rule, !rule.windows
}

// name reads a CustomizationName.
func (r *specReader) name(rule *nameRule, members map[string]json.RawMessage, field string) {
	rule.field = field
	switch kind := typeOf(members); kind {
	case "CustomizationVirtualMachineName":
		rule.kind = vmName
	case "CustomizationPrefixName":
		if base := r.text(members["base"], field+".base"); base != nil {
			rule.kind, rule.setting = prefixName, *base
		}
	case "CustomizationFixedName", "":
		switch fixed := r.text(members["name"], field+".name"); {
		case fixed != nil && strings.TrimSpace(fixed.text) != "":
			rule.kind, rule.setting = fixedName, *fixed
		case fixed != nil || kind != "" && absent(members["name"]):
			r.untold(field+".name", "it is empty")
		}
	case "CustomizationUnknownName":
		r.untold(field, "the spec leaves the name to be asked for")
	case "CustomizationCustomName":
		r.untold(field, "a program of vCenter's makes the name")
	default:
		r.untold(field, "%s is not known here", kind)
	}
}

// adapter reads a CustomizationAdapterMapping.
func (r *specReader) adapter(raw json.RawMessage, field string, place int) adapter {
	a := adapter{field: field, place: place}
	members := r.object(raw, field)
	if mac := r.text(members["macAddress"], field+".macAddress"); mac != nil && mac.text != "" {
		a.mac = mac
	}
	field += ".adapter"
	settings := r.object(members["adapter"], field)
	a.dns = r.texts(settings["dnsServerList"], field+".dnsServerList")
	r.generator(&a, settings["ip"], field+".ip", r.text(settings["subnetMask"], field+".subnetMask"))
	if via := r.texts(settings["gateway"], field+".gateway"); len(via) > 0 {
		a.gateways = append(a.gateways, via)
	}
	field += ".ipV6Spec"
	v6 := r.object(settings["ipV6Spec"], field)
	for i, raw := range r.list(v6["ip"], field+".ip") {
		r.generator(&a, raw, fmt.Sprintf("%s.ip[%d]", field, i), nil)
	}
	if via := r.texts(v6["gateway"], field+".gateway"); len(via) > 0 {
		a.gateways = append(a.gateways, via)
	}
	return a
}

// generator reads a CustomizationIpGenerator, or one of IPv6: where an adapter's address comes from.
func (r *specReader) generator(a *adapter, raw json.RawMessage, field string, mask *setting) {
	members := r.object(raw, field)
	switch kind := typeOf(members); kind {
	case "CustomizationDhcpIpGenerator", "CustomizationDhcpIpV6Generator":
		if a.dhcp == "" {
			a.dhcp = field
		}
	case "CustomizationStatelessIpV6Generator", "CustomizationAutoIpV6Generator":
		r.untold(field, "the guest makes this address itself")
	case "CustomizationUnknownIpGenerator", "CustomizationUnknownIpV6Generator":
		r.untold(field, "the spec leaves the address to be asked for")
	case "CustomizationCustomIpGenerator", "CustomizationCustomIpV6Generator":
		r.untold(field, "a program of vCenter's makes the address")
	case "CustomizationFixedIp", "CustomizationFixedIpV6", "":
		if absent(members["ipAddress"]) {
			if kind != "" {
				r.untold(field+".ipAddress", "it is not there")
			}
			return
		}

		if own := r.text(members["subnetMask"], field+".subnetMask"); own != nil {
			mask = own
		}
		if mask != nil && mask.text == "" {
			mask = nil
		}
		if ip := r.text(members["ipAddress"], field+".ipAddress"); ip != nil {
			a.fixed = append(a.fixed, fixedAddress{setting: *ip, prefix: mask})
		}
	default:
		r.untold(field, "%s is not known here", kind)
	}
}

// settings are all strings of the spec that were read.
func (e expected) settings() []setting {
	all := slices.Concat([]setting{e.host.setting}, e.dns)
	for _, a := range e.adapters {
		if a.mac != nil {
			all = append(all, *a.mac)
		}
		for _, f := range a.fixed {
			all = append(all, f.setting)
		}
		all = append(all, slices.Concat(a.gateways...)...)
		all = append(all, a.dns...)
	}

	return all
}

// hide is what the guest shows as events may tell it: what equals the value of a secret is not told.
func (e expected) hide(shown string) string {
	if h := e.host; h.kind == prefixName && h.secret != "" && len(shown) >= len(h.text) &&
		strings.EqualFold(shown[:len(h.text)], h.text) {
		return "(" + h.String() + ", and more)"
	}

	for _, s := range e.settings() {
		if s.secret == "" || s.text == "" {
			continue
		}
		want, fixed := s.address()
		got, err := netip.ParseAddr(shown)
		if strings.EqualFold(s.text, shown) || strings.EqualFold(firstLabel(s.text), firstLabel(shown)) && !fixed ||
			sameMAC(s.text, shown) || fixed && err == nil && want == plain(got) {
			return "(" + s.String() + ")"
		}
	}

	return shown
}

func (e expected) hideAll(shown []string) (all []string) {
	for _, s := range shown {
		all = append(all, e.hide(s))
	}
	return all
}

// plain is an address without its zone, and one of IPv4 as such: two notations of one address are the same.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
