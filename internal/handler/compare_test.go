package handler

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

const mac1, mac2 = "00:50:56:00:00:01", "00:50:56:00:00:02"

// secretOf stands for a secrets folder with one secret for each of the values that the tests need.
func secretOf(t events.TextOrSecret) (string, error) {
	values := map[string]string{"host": "web01", "address": "10.0.0.7", "mask": "255.255.255.0", "gateway": "10.0.0.1",
		"mac": mac1, "none": "no address"}
	if v, ok := values[t.Key]; ok && t.SecretRef == "names" {
		return v, nil
	}
	return "", fmt.Errorf("secret %q, key %q: %w", t.SecretRef, t.Key, errors.New("no such file"))
}

// guest is a VM as its guest shows it, by and by.
type guest struct{ vcapi.VM }

func shows(host string) guest { return guest{vcapi.VM{HostName: host, Cards: twoCards()[:1]}} }

func (g guest) two() guest { g.Cards = twoCards(); return g }

// nic adds a NIC of device 4000, 4001 and so on, connected, each address as "10.0.0.7/24 preferred".
func (g guest) nic(device int32, addresses ...string) guest {
	n := vcapi.NIC{MAC: fmt.Sprintf("00:50:56:00:00:%02x", device-3999), Connected: true, Device: device}
	for _, a := range addresses {
		text, state, _ := strings.Cut(a, " ")
		ip, prefix, _ := strings.Cut(text, "/")
		n.Addresses = append(n.Addresses, ip)
		c := vcapi.Address{IP: ip, State: state}
		if _, err := fmt.Sscan(prefix, &c.Prefix); err == nil || state != "" {
			n.IPConfig = append(n.IPConfig, c)
		}
	}

	g.NICs = append(slices.Clone(g.NICs), n)
	return g
}

func (g guest) routes(gateways ...string) guest {
	g.Routes, g.Gateways = 1+len(gateways), gateways
	return g
}

func (g guest) servers(dns ...string) guest { g.DNS = dns; return g }

func (g guest) with(change func(*vcapi.VM)) guest {
	g.NICs, g.Cards = slices.Clone(g.NICs), slices.Clone(g.Cards)
	change(&g.VM)
	return g
}

// linux is a spec with a host name and adapters.
func linux(name string, adapters ...string) string {
	if name == "" {
		name = `{"_typeName":"CustomizationFixedName","name":"web01"}`
	}
	return `{"_typeName":"CustomizationSpec","identity":{"_typeName":"CustomizationLinuxPrep","hostName":` + name +
		`},"globalIPSettings":{"dnsServerList":["10.0.0.2"]},"nicSettingMap":[` + strings.Join(adapters, ",") + `]}`
}

func windows(name string) string {
	return `{"identity":{"_typeName":"CustomizationSysprep","userData":{"computerName":` + name + `}}}`
}

func fixed(address string) string {
	return `{"adapter":{"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"` + address +
		`"},"subnetMask":"255.255.255.0","gateway":["10.0.0.1"]}}`
}

func onMAC(mac, adapter string) string { return `{"macAddress":"` + mac + `",` + adapter[1:] }

// v6 is an adapter with a fixed address and generators of IPv6.
func v6(ip string, gateway string, generators ...string) string {
	return `{"adapter":{"ip":` + ip + `,"ipV6Spec":{"ip":[` + strings.Join(generators, ",") + `],"gateway":[` +
		gateway + `]}}}`
}

const (
	dhcp     = `{"adapter":{"ip":{"_typeName":"CustomizationDhcpIpGenerator"}}}`
	dhcpIP   = `{"_typeName":"CustomizationDhcpIpGenerator"}`
	fixedIP  = `{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.7"}`
	fixedIP6 = `{"_typeName":"CustomizationFixedIpV6","ipAddress":"2001:DB8::0:7","subnetMask":64}`
	vmNamed  = `{"_typeName":"CustomizationVirtualMachineName"}`
)

// What the guest shows is held against the spec; what is neither held nor refused is told.
func TestCompare(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	web := shows("web01").nic(4000, "10.0.0.7/24 preferred").routes("10.0.0.1")
	swapped := shows("web01").two().nic(4000, "192.168.5.7/24").nic(4001, "10.0.0.7/24").routes("10.0.0.1")
	rows := map[string]struct {
		spec   string
		asked  events.VerifySpec
		vm     guest
		name   string // of the VM
		want   []string
		untold []string // fields, each with a piece of its reason
	}{
		"nothing asked for":          {vm: shows("x").nic(4000)},
		"all as asked for":           {spec: linux("", fixed("10.0.0.7")), vm: web},
		"all as asked for, by MAC":   {spec: linux("", onMAC(mac1, fixed("10.0.0.7"))), vm: web},
		"the spec is no JSON object": {spec: `[]`, vm: web, untold: []string{"customize.spec: no object"}},
		"NICs too large to be read": {spec: linux("", fixed("10.0.0.7")),
			vm:     shows("web01").with(func(vm *vcapi.VM) { vm.Unread = []string{"guest.net"} }),
			untold: []string{"guest.net: too large"}},
		"wrong types": {spec: `{"identity":3,"nicSettingMap":{"a":1},"globalIPSettings":[]}`, vm: web,
			asked: events.VerifySpec{DNS: &yes},
			untold: []string{"customize.spec.identity: no object", "customize.spec.nicSettingMap: no array",
				"customize.spec.globalIPSettings: no object"}},
		"wrong types, deeper": {spec: linux(`{"_typeName":"CustomizationFixedName","name":["web01"]}`, `7`,
			`{"adapter":{"ip":"10.0.0.7"}}`), vm: web.two().nic(4001),
			untold: []string{"identity.hostName.name: no string", "nicSettingMap[0]: no object",
				"nicSettingMap[1].adapter.ip: no object"}},

		// host names
		"host name in other case, with a domain": {spec: linux(""),
			vm: shows("WEB01.dhcp.example.test").nic(4000)},
		"host name, the spec's has more": {spec: linux(`{"_typeName":"CustomizationFixedName",` +
			`"name":"Web01.example.org"}`), vm: web},
		"another host name": {spec: linux(""), vm: shows("web010").nic(4000),
			want: []string{"host name: want web01, the guest shows web010"}},
		"no host name": {spec: linux(""), vm: shows("").nic(4000),
			want: []string{"host name: want web01, the guest shows none"}},
		"another host name, nobody asked": {spec: linux(""), asked: events.VerifySpec{HostName: &no},
			vm: shows("x").nic(4000)},
		"an empty host name in the spec": {spec: linux(`{"_typeName":"CustomizationFixedName","name":" "}`), vm: web,
			untold: []string{"identity.hostName.name: empty"}},
		"no name in the spec's": {spec: linux(`{"_typeName":"CustomizationFixedName"}`), vm: web,
			untold: []string{"identity.hostName.name: empty"}},
		"an empty host name, nobody asked": {spec: linux(`{"_typeName":"CustomizationFixedName","name":""}`),
			asked: events.VerifySpec{HostName: &no}, vm: web},
		"a name to be asked for": {spec: linux(`{"_typeName":"CustomizationUnknownName"}`),
			vm: web, untold: []string{"identity.hostName: asked for"}},
		"a name that a program makes": {spec: linux(`{"_typeName":"CustomizationCustomName","argument":"x"}`), vm: web,
			untold: []string{"identity.hostName: program"}},
		"a kind of name that is not known": {spec: linux(`{"_typeName":"CustomizationFutureName"}`), vm: web,
			untold: []string{"identity.hostName: CustomizationFutureName"}},
		"case 02: prefix, and the template's name": {
			spec: linux(`{"_typeName":"CustomizationPrefixName","base":"web-"}`),
			vm:   shows("template").nic(4000),
			want: []string{"host name: want web- and a number, the guest shows template"}},
		"prefix and number": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":"web-"}`),
			vm: shows("WEB-12.example.test").nic(4000)},
		"prefix, hyphen and number": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":"web"}`),
			vm: shows("web-1").nic(4000)},
		"prefix without a number": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":"web"}`),
			vm: shows("web").nic(4000), want: []string{"host name: want web and a number"}},
		"prefix and words": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":"web-"}`),
			vm: shows("web-template").nic(4000), want: []string{"host name: want web- and a number"}},
		"prefix by a secret": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":` +
			`{"secretRef":"names","key":"host"}}`), vm: shows("x").nic(4000), want: []string{"host name: want the " +
			"value " +
			"of secret names, key host and a number, the guest shows x"}},
		"prefix with an underscore": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":"web_"}`),
			vm: shows("web1").nic(4000), untold: []string{"identity.hostName.base: not documented"}},
		"a prefix that leaves no place for numbers": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":"` +
			strings.Repeat("w", 62) + `"}`), vm: shows(strings.Repeat("w", 60) +
			"123").nic(4000), untold: []string{"identity.hostName.base: longer than 63"}},
		"such a prefix, and another name": {spec: linux(`{"_typeName":"CustomizationPrefixName","base":"` +
			strings.Repeat("w", 62) + `"}`), vm: shows("template").nic(4000), want: []string{"host name: want ww"}},
		"VM's name": {spec: linux(vmNamed), name: "Web-7",
			vm: shows("web-7.example.test").nic(4000)},
		"VM's name made unique": {spec: linux(vmNamed), name: "web-7",
			vm: shows("web-7-1").nic(4000)},
		"VM's name, another": {spec: linux(vmNamed), name: "web-7",
			vm:   shows("template").nic(4000),
			want: []string{"host name: want web-7, the VM's name, the guest shows template"}},
		"VM's name with dots": {spec: linux(vmNamed), name: "some.tld",
			vm: shows("sometld").nic(4000), untold: []string{"identity.hostName: some.tld"}},
		"VM's name with dots, as it is": {spec: linux(vmNamed), name: "some.tld",
			vm: shows("some.tld").nic(4000)},
		"VM's name with an underscore": {spec: linux(vmNamed), name: "web_7",
			vm: shows("web7").nic(4000), untold: []string{"identity.hostName: web_7"}},
		"VM's name with a blank": {spec: linux(vmNamed), name: "web 7",
			vm: shows("web-7").nic(4000), untold: []string{"identity.hostName: web 7"}},
		"VM's name with an escape": {spec: linux(vmNamed), name: "web%2f7",
			vm: shows("web").nic(4000), untold: []string{"identity.hostName: web%2f7"}},
		"VM's name of 64 characters": {spec: linux(vmNamed), name: strings.Repeat("w", 64),
			vm: shows(strings.Repeat("w", 63)).nic(4000), untold: []string{"identity.hostName: not documented"}},
		"VM's name of digits": {spec: linux(vmNamed), name: "0815",
			vm: shows("vm0815").nic(4000), untold: []string{"identity.hostName: not documented"}},
		"VM's name that nobody knows": {spec: linux(vmNamed), vm: shows("x").nic(4000),
			untold: []string{"identity.hostName: not known"}},
		"Windows": {spec: windows(`{"_typeName":"CustomizationFixedName","name":"WEB01"}`),
			vm: web},
		"Windows, another": {spec: windows(`{"_typeName":"CustomizationFixedName","name":"WEB01"}`),
			vm: shows("WIN-ABC").nic(4000), want: []string{"host name: want WEB01"}},
		"Windows, cut to 15 characters": {spec: windows(`{"_typeName":"CustomizationFixedName",` +
			`"name":"WEB-FRONTEND-PROD-1"}`), vm: shows("web-frontend-pr").nic(4000)},
		"Windows, VM's name of 16 characters": {spec: windows(vmNamed), name: "WEB-FRONTEND-PRO",
			vm: shows("web-frontend-pr").nic(4000), untold: []string{"computerName: not documented"}},
		"an answer file": {spec: `{"identity":{"_typeName":"CustomizationSysprepText","value":"<unattend/>"}}`, vm: web,
			untold: []string{"identity.value: answer file"}},
		"cloud-init": {spec: `{"identity":{"_typeName":"CustomizationCloudinitPrep","metadata":"a"}}`, vm: web,
			untold: []string{"identity.metadata: cloud-init"}},
		"an identity that is not known": {spec: `{"identity":{"_typeName":"CustomizationFuturePrep"}}`,
			vm: web, untold: []string{"customize.spec.identity: CustomizationFuturePrep"}},
		"case 05: host name by a secret, and another": {spec: linux(`{"_typeName":"CustomizationFixedName","name":`+
			`{"secretRef":"names","key":"host"}}`, fixed("10.0.0.7")), vm: shows("template").nic(4000,
			"169.254.7.7").routes("10.0.0.1"), want: []string{"host name: want the value of secret names, key host, " +
			"the " +
			"guest shows template", "address: want 10.0.0.7 on NIC 1 (" + mac1 + "), the guest does not show it"}},
		"host name by a secret": {spec: linux(`{"_typeName":"CustomizationFixedName","name":` +
			`{"secretRef":"names","key":"host"}}`), vm: web},
		"a secret that is gone": {spec: linux(`{"_typeName":"CustomizationFixedName","name":` +
			`{"secretRef":"names","key":"gone"}}`), vm: web, untold: []string{"identity.hostName.name: no such file"}},

		// addresses
		"case 01: addresses swapped": {spec: linux("", fixed("10.0.0.7"), fixed("192.168.5.7")), vm: swapped,
			want: []string{
				"address: want 10.0.0.7 on NIC 1 (" + mac1 + "), the guest does not show it there, but on NIC 2 (" +
					mac2 +
					")", "address: want 192.168.5.7 on NIC 2"}},
		"by order, which is not the guest's": {spec: linux("", fixed("192.168.5.7"), fixed("10.0.0.7")),
			vm: swapped.with(func(vm *vcapi.VM) { slices.Reverse(vm.NICs) })},
		"by order, which is not the keys'": {spec: linux("", fixed("10.0.0.7"), fixed("192.168.5.7")),
			vm: swapped.with(func(vm *vcapi.VM) {
				slices.Reverse(vm.Cards)
			})},
		"more adapters than NICs": {spec: linux("", fixed("10.0.0.7"), fixed("10.0.0.8"), dhcp), vm: web,
			want: []string{"address: want 10.0.0.8 on NIC 2, the VM has no such NIC",
				"address: want one by DHCP on NIC 3, the VM has no such NIC"}},
		"what is not the VM's": {spec: linux("", fixed("10.0.0.7")),
			vm: shows("web01").nic(4000, "10.0.0.9/24").with(func(vm *vcapi.VM) {
				vm.NICs = append(vm.NICs, vcapi.NIC{MAC: mac1, Connected: true, Device: vcapi.NoDevice,
					Addresses: []string{"10.0.0.7"}})
			}).routes("10.0.0.1"), want: []string{"address: want 10.0.0.7 on NIC 1"}},
		"what is not the VM's is off, and duplicate": {spec: linux("", fixed("10.0.0.7")),
			vm: web.with(func(vm *vcapi.VM) {
				vm.NICs = append(vm.NICs, vcapi.NIC{MAC: "02:42:00:00:00:01", Device: vcapi.NoDevice,
					IPConfig:  []vcapi.Address{{IP: "172.17.0.1", State: "duplicate"}},
					Addresses: []string{"172.17.0.1"}})
			})},
		"a guest that shows no devices": {spec: linux("", fixed("10.0.0.7")),
			vm: web.with(func(vm *vcapi.VM) { vm.NICs[0].Device, vm.NICs[0].MAC = 0, "00-50-56-00-00-01" })},
		"a device shown twice": {spec: linux("", fixed("10.0.0.7")),
			vm: shows("web01").nic(4000, "fe80::7").nic(4000, "10.0.0.7/24").routes("10.0.0.1")},
		"hardware not shown, one NIC": {spec: linux("", fixed("10.0.0.7")),
			vm: web.with(func(vm *vcapi.VM) { vm.Cards = nil })},
		"hardware not shown, two NICs": {spec: linux("", fixed("10.0.0.7"), dhcp),
			vm:     swapped.with(func(vm *vcapi.VM) { vm.Cards = nil }),
			untold: []string{"nicSettingMap[0].adapter.ip.ipAddress: right NIC", "nicSettingMap[1].adapter.ip: order"}},
		"hardware not shown, and nowhere": {spec: linux("", fixed("10.0.0.9"), dhcp),
			vm: swapped.with(func(vm *vcapi.VM) { vm.Cards = nil }), want: []string{"address: want 10.0.0.9"},
			untold: []string{"nicSettingMap[1].adapter.ip: order"}},
		"G13: MAC with dashes": {spec: linux("", onMAC("00-50-56-00-00-01", fixed("10.0.0.7"))), vm: web},
		"MAC on another NIC": {spec: linux("", onMAC(mac2, fixed("10.0.0.7"))), vm: web.two().nic(4001),
			want: []string{"address: want 10.0.0.7 on NIC " + mac2 +
				", the guest does not show it there, but on NIC 1"}},
		"MAC of no NIC": {spec: linux("", onMAC("00:50:56:00:00:99", fixed("10.0.0.7"))), vm: web,
			want: []string{"address: want 10.0.0.7 on NIC 00:50:56:00:00:99, the VM has no such NIC"}},
		"MAC that is none": {spec: linux("", onMAC("eth0", fixed("10.0.0.7"))), vm: web,
			want: []string{"address: want 10.0.0.7 on NIC eth0, the VM has no such NIC"}},
		"MAC by a secret": {spec: linux("",
			`{"macAddress":{"secretRef":"names","key":"mac"},`+fixed("10.0.0.8")[1:]), vm: web,
			want: []string{"address: want 10.0.0.8 on NIC the value of secret names, key mac, the guest does not " +
				"show it"}},
		"part of another address": {spec: linux("", fixed("10.0.0.7")),
			vm:   shows("web01").nic(4000, "10.0.0.77").routes("10.0.0.1"),
			want: []string{"address: want 10.0.0.7 on NIC 1"}},
		"address, nobody asked": {spec: linux("", fixed("10.0.0.9")),
			asked: events.VerifySpec{Addresses: &no}, vm: web},
		"case 04: with a prefix": {spec: linux("", fixed("10.0.0.11/24")),
			vm:   shows("web01").nic(4000, "169.254.7.7").routes("10.0.0.1"),
			want: []string{"address: want 10.0.0.11/24 on NIC 1 (" + mac1 + "), which is not an address"}},
		"case 04: leading zeros": {spec: linux("", fixed("010.000.000.011")),
			vm:   shows("web01").nic(4000, "10.0.0.11").routes("10.0.0.1"),
			want: []string{"address: want 010.000.000.011 on"}},
		"case 04: 300": {spec: linux("", fixed("10.0.0.300")), vm: web,
			want: []string{"address: want 10.0.0.300 on"}},
		"case 04: a space at the end": {spec: linux("", fixed("10.0.0.7 ")), vm: web,
			want: []string{"address: want 10.0.0.7  on"}},
		"case 04: empty": {spec: linux("", fixed("")), vm: web,
			want: []string{"address: want  on NIC 1"}},
		"no address in the spec's": {spec: linux("", `{"adapter":{"ip":{"_typeName":"CustomizationFixedIp"}}}`),
			vm: web, untold: []string{"adapter.ip.ipAddress: not there"}},
		"an address by a secret": {spec: linux("",
			v6(`{"_typeName":"CustomizationFixedIp","ipAddress":{"secretRef":"names","key":"address"}}`, "")), vm: web},
		"a secret that is no address": {spec: linux("",
			v6(`{"_typeName":"CustomizationFixedIp","ipAddress":{"secretRef":"names","key":"none"}}`,
				"")), vm: web, want: []string{"address: want the value of secret names, key none on NIC 1 (" + mac1 +
			"), which is not an address"}},
		"case 06: duplicate": {spec: linux("", fixed("10.0.0.7")),
			vm:   shows("web01").nic(4000, "10.0.0.7/24 duplicate").routes("10.0.0.1"),
			want: []string{"address: 10.0.0.7 on NIC 1 (" + mac1 + ") is in use elsewhere too (duplicate)"}},
		"case 06: tentative, IPv6": {spec: linux("", v6(fixedIP, "", fixedIP6)),
			vm:   shows("web01").nic(4000, "10.0.0.7/24", "2001:db8::7/64 tentative"),
			want: []string{"address: 2001:db8::7 on NIC 1 (" + mac1 + ") is not settled yet (tentative)"}},
		"duplicate, and nobody asked for": {vm: shows("x").nic(4000, "10.9.9.9/24 duplicate"),
			want: []string{"address: 10.9.9.9 on NIC 1"}},
		"duplicate, nobody looks": {asked: events.VerifySpec{Addresses: &no},
			vm: shows("x").nic(4000, "10.9.9.9/24 duplicate")},
		"tentative, link-local, unasked": {spec: linux("", fixed("10.0.0.7")),
			vm: shows("web01").nic(4000, "10.0.0.7/24", "fe80::7/64 tentative").routes("10.0.0.1")},
		"tentative, link-local, asked": {spec: linux("",
			v6(fixedIP, "", `{"_typeName":"CustomizationFixedIpV6","ipAddress":"fe80::7","subnetMask":64}`)),
			vm: shows("web01").nic(4000, "10.0.0.7/24", "fe80::7%2/64 tentative"), want: []string{"address: fe80::7"}},
		"invalid": {spec: linux("", fixed("10.0.0.7")),
			vm:   shows("web01").nic(4000, "10.0.0.7/24 invalid").routes("10.0.0.1"),
			want: []string{"address: 10.0.0.7 on NIC 1 (" + mac1 + ") is invalid, says the guest"}},
		"inaccessible": {spec: linux("", fixed("10.0.0.7")),
			vm:   shows("web01").nic(4000, "10.0.0.7/24 inaccessible").routes("10.0.0.1"),
			want: []string{"address: 10.0.0.7 on NIC 1 (" + mac1 + ") is inaccessible"}},
		"deprecated, unknown": {spec: linux("", v6(fixedIP, "", fixedIP6)),
			vm: shows("web01").nic(4000, "10.0.0.7/24 deprecated", "2001:db8::7/64 unknown")},
		"IPv6 in another notation": {spec: linux("", v6(fixedIP, "", fixedIP6)),
			vm: shows("web01").nic(4000, "10.0.0.7/24", "2001:0DB8:0000:0000:0000:0000:0000:0007/64")},
		"IPv4 mapped into IPv6": {spec: linux("", fixed("10.0.0.7")),
			vm:     shows("web01").nic(4000, "::ffff:10.0.0.7").routes("10.0.0.1"),
			untold: []string{"subnetMask: does not show the prefix"}},
		"IPv6 missing": {spec: linux("", v6(fixedIP, "", fixedIP6)), vm: web,
			want: []string{"address: want 2001:DB8::0:7 on NIC 1"}},
		"an address and its prefix in one": {spec: linux("", fixed("10.0.0.7")), vm: web.with(func(vm *vcapi.VM) {
			vm.NICs[0].Addresses, vm.NICs[0].IPConfig = []string{"10.0.0.7/24", "x"}, nil
		})},

		// where addresses come from
		"case 08: DHCP, link-local alone": {spec: linux("", dhcp),
			vm: shows("web01").nic(4000, "fe80::250:56ff:fe00:1/64 preferred", "169.254.3.4/16 preferred"),
			want: []string{"address: want one by DHCP on NIC 1 (" + mac1 +
				") that others can reach, the guest shows fe80::250:56ff:fe00:1, 169.254.3.4"}},
		"DHCP":                         {spec: linux("", dhcp), vm: shows("web01").nic(4000, "10.1.2.3/24 preferred")},
		"DHCP, a guest without states": {spec: linux("", dhcp), vm: shows("web01").nic(4000, "10.1.2.3")},
		"DHCP, no address": {spec: linux("", dhcp), vm: shows("web01").nic(4000),
			want: []string{"address: want one by DHCP on NIC 1 (" + mac1 +
				") that others can reach, the guest shows none"}},
		"DHCP, duplicate": {spec: linux("", dhcp), vm: shows("web01").nic(4000, "10.1.2.3/24 duplicate"),
			want: []string{"address: want one by DHCP on NIC 1 (" + mac1 +
				") that others can reach, the guest shows 10.1.2.3 (duplicate)", "address: 10.1.2.3"}},
		"DHCP, turned off": {spec: linux("", dhcp), asked: events.VerifySpec{AnyAddress: &no},
			vm: shows("web01").nic(4000)},
		"DHCP, on one of two": {spec: linux("", fixed("10.0.0.7"), dhcp), vm: web.two().nic(4001, "fe80::1"),
			want: []string{"address: want one by DHCP on NIC 2"}},
		"any address, explicitly": {spec: linux("", fixed("10.0.0.7")),
			asked: events.VerifySpec{AnyAddress: &yes}, vm: web.two().nic(4001, "fe80::1"),
			want: []string{"address: want one on NIC 2 (" + mac2 + ") that others can reach"}},
		"any address, no spec": {asked: events.VerifySpec{AnyAddress: &yes},
			vm: shows("x").nic(4000, "127.0.0.1"), want: []string{"address: want one on NIC 1"}},
		"any address, no NIC": {asked: events.VerifySpec{AnyAddress: &yes}, vm: guest{},
			want: []string{"address: want one on every NIC"}, untold: []string{"verify.nicsConnected: neither"}},
		"fixed and DHCP of IPv6": {spec: linux("",
			v6(fixedIP, "", `{"_typeName":"CustomizationDhcpIpV6Generator"}`)), vm: web,
			want: []string{"address: want one by DHCP on NIC 1"}},
		"fixed and DHCP of IPv6, there": {spec: linux("",
			v6(fixedIP, "", `{"_typeName":"CustomizationDhcpIpV6Generator"}`)), vm: shows("web01").nic(4000,
			"10.0.0.7/24",
			"2001:db8::1234/128 preferred")},
		"IPv6 that the guest makes": {spec: linux("", v6(dhcpIP, "",
			`{"_typeName":"CustomizationStatelessIpV6Generator"}`,
			`{"_typeName":"CustomizationAutoIpV6Generator"}`)), vm: web,
			untold: []string{"ipV6Spec.ip[0]: makes this address itself", "ipV6Spec.ip[1]: makes this address itself"}},
		"asked for, a program's, of the future": {spec: linux("",
			v6(`{"_typeName":"CustomizationUnknownIpGenerator"}`, "",
				`{"_typeName":"CustomizationUnknownIpV6Generator"}`,
				`{"_typeName":"CustomizationCustomIpV6Generator"}`,
				`{"_typeName":"CustomizationFutureIpV6Generator"}`),
			v6(`{"_typeName":"CustomizationCustomIpGenerator"}`,
				"")), vm: web.two().nic(4001),
			untold: []string{"[0].adapter.ip: asked for", "ipV6Spec.ip[0]: asked for", "ipV6Spec.ip[1]: program",
				"ipV6Spec.ip[2]: CustomizationFuture", "[1].adapter.ip: program"}},

		// prefix, gateway, DNS
		"another prefix": {spec: linux("", fixed("10.0.0.7")),
			vm:   shows("web01").nic(4000, "10.0.0.7/16").routes("10.0.0.1"),
			want: []string{"prefix: want /24 for 10.0.0.7 on NIC 1 (" + mac1 + "), the guest shows /16"}},
		"another prefix, IPv6": {spec: linux("", v6(fixedIP, "", fixedIP6)),
			vm:   shows("web01").nic(4000, "10.0.0.7", "2001:db8::7/128"),
			want: []string{"prefix: want /64 for 2001:DB8::0:7"}},
		"another prefix, nobody asks": {spec: linux("", fixed("10.0.0.7")), asked: events.VerifySpec{Prefix: &no},
			vm: shows("web01").nic(4000, "10.0.0.7/16").routes("10.0.0.1")},
		"a prefix not shown": {spec: linux("", fixed("10.0.0.7")),
			vm:     shows("web01").nic(4000, "10.0.0.7").routes("10.0.0.1"),
			untold: []string{"nicSettingMap[0].adapter.subnetMask: does not show the prefix"}},
		"a mask that is none": {spec: linux("",
			strings.Replace(fixed("10.0.0.7"), "255.255.255.0", "255.0.255.0",
				1)), vm: web, want: []string{"prefix: want that of 255.0.255.0 for 10.0.0.7"}},
		"a mask by a secret": {spec: linux("", strings.Replace(fixed("10.0.0.7"), `"255.255.255.0"`,
			`{"secretRef":"names","key":"mask"}`, 1)), vm: shows("web01").nic(4000, "10.0.0.7/8").routes("10.0.0.1"),
			want: []string{"prefix: want the value of secret names, key mask for 10.0.0.7"}},
		"another gateway": {spec: linux("", fixed("10.0.0.7")), vm: web.routes("10.0.0.254"),
			want: []string{"gateway: want 10.0.0.1, the guest's default route goes by 10.0.0.254"}},
		"another gateway, nobody asks": {spec: linux("", fixed("10.0.0.7")),
			asked: events.VerifySpec{Gateway: &no}, vm: web.routes("10.0.0.254")},
		"no gateway": {spec: linux("", fixed("10.0.0.7")), vm: web.routes(),
			want: []string{"gateway: want 10.0.0.1, the guest's default route goes by none"}},
		"no routes shown": {spec: linux("", fixed("10.0.0.7")),
			vm:     web.with(func(vm *vcapi.VM) { vm.Routes, vm.Gateways = 0, nil }),
			untold: []string{"gateway[0]: no routes"}},
		"a gateway that is none": {spec: linux("",
			strings.Replace(fixed("10.0.0.7"), "10.0.0.1", "10.0.0.1/24",
				1)), vm: web, want: []string{"gateway: want 10.0.0.1/24"}},
		"the second of two gateways": {spec: linux("",
			strings.Replace(fixed("10.0.0.7"), `["10.0.0.1"]`, `["10.0.0.9","10.0.0.1"]`, 1)), vm: web},
		"gateways of two NICs, the primary's": {spec: linux("", fixed("10.0.0.7"),
			strings.Replace(fixed("10.0.1.7"), "10.0.0.1\"", "10.0.1.1\"", 1)), vm: web.two().nic(4001,
			"10.0.1.7/24"), untold: []string{"nicSettingMap[1].adapter.gateway[0]: primary"}},
		"gateways of two NICs, one foreign": {spec: linux("", fixed("10.0.0.7"),
			strings.Replace(fixed("10.0.1.7"), "10.0.0.1\"", "10.0.1.1\"", 1)), vm: web.two().nic(4001,
			"10.0.1.7/24").routes("10.0.0.1", "10.9.9.9"), want: []string{"gateway: want 10.0.1.1"}},
		"gateway beside one by DHCP": {spec: linux("", fixed("10.0.0.7"), dhcp),
			vm: web.two().nic(4001, "10.5.5.5/24").routes("10.5.5.1", "10.0.0.1")},
		"gateway of IPv6": {spec: linux("", v6(fixedIP, `"2001:db8::1"`, fixedIP6)),
			vm: shows("web01").nic(4000, "10.0.0.7", "2001:db8::7/64").routes("fe80::1", "2001:DB8::1")},
		"gateway of IPv6, another": {spec: linux("", v6(fixedIP, `"2001:db8::1"`, fixedIP6)),
			vm:   shows("web01").nic(4000, "10.0.0.7", "2001:db8::7/64").routes("10.0.0.1", "fe80::1"),
			want: []string{"gateway: want 2001:db8::1, the guest's default route goes by fe80::1"}},
		"gateway of IPv6, with a zone": {spec: linux("", v6(fixedIP, `"fe80::1"`, fixedIP6)),
			vm: shows("web01").nic(4000, "10.0.0.7", "2001:db8::7/64").routes("fe80::1%eth0")},
		"gateway by a secret": {spec: linux("",
			strings.Replace(fixed("10.0.0.7"), `"10.0.0.1"`, `{"secretRef":"names","key":"gateway"}`,
				1)), vm: web.routes("10.0.0.9"),
			want: []string{"gateway: want the value of secret names, key gateway"}},
		"DNS is not asked for": {spec: linux("", fixed("10.0.0.7")), vm: web.servers("9.9.9.9")},
		"DNS": {spec: linux("", fixed("10.0.0.7")),
			asked: events.VerifySpec{DNS: &yes}, vm: web.servers("10.0.0.2")},
		"DNS of a NIC": {spec: linux("", fixed("10.0.0.7")),
			asked: events.VerifySpec{DNS: &yes},
			vm:    web.with(func(vm *vcapi.VM) { vm.NICs[0].DNS = []string{"10.0.0.2"} })},
		"another DNS server": {spec: linux("", fixed("10.0.0.7")),
			asked: events.VerifySpec{DNS: &yes}, vm: web.servers("9.9.9.9"),
			want: []string{"DNS: want 10.0.0.2, the guest shows 9.9.9.9"}},
		"a resolver of the guest's own": {spec: linux("", fixed("10.0.0.7")),
			asked: events.VerifySpec{DNS: &yes}, vm: web.servers("127.0.0.53"),
			untold: []string{"dnsServerList[0]: own resolver"}},
		"DNS not shown": {spec: linux("", fixed("10.0.0.7")),
			asked: events.VerifySpec{DNS: &yes}, vm: web, untold: []string{"dnsServerList[0]: no DNS servers"}},
		"an adapter's DNS servers are ignored": {spec: linux("",
			strings.Replace(fixed("10.0.0.7"), `"gateway"`, `"dnsServerList":["9.9.9.9"],"gateway"`,
				1)), asked: events.VerifySpec{DNS: &yes}, vm: web.servers("10.0.0.2"),
			untold: []string{"adapter.dnsServerList[0]: ignores"}},
		"an adapter's DNS servers, nobody asked": {spec: linux("",
			strings.Replace(fixed("10.0.0.7"), `"gateway"`, `"dnsServerList":["9.9.9.9"],"gateway"`, 1)), vm: web},

		// NICs
		"NIC off": {vm: shows("x").nic(4000).with(func(vm *vcapi.VM) { vm.NICs[0].Connected = false }),
			want: []string{"NIC " + mac1 + " is not connected"}},
		"NIC off, nobody asked": {asked: events.VerifySpec{NICsConnected: &no},
			vm: shows("x").nic(4000).with(func(vm *vcapi.VM) { vm.NICs[0].Connected = false })},
		"NIC that the guest does not show": {vm: shows("x").two().nic(4000),
			untold: []string{"verify.nicsConnected: " + mac2}},
		"NIC that the guest does not show, off": {
			vm:   shows("x").two().nic(4000).with(func(vm *vcapi.VM) { vm.Cards[1].Connected = false }),
			want: []string{"NIC " + mac2 + " is not connected"}},
		"no NIC shown where one is asked for": {spec: linux("", fixed("10.0.0.7")),
			vm: shows("web01").routes("10.0.0.1"), want: []string{"address: want 10.0.0.7 on NIC 1",
				"the guest shows no NIC"}},
		"no NIC shown where none is asked for": {vm: shows("x"), untold: []string{"verify.nicsConnected: " + mac1}},
		"no NIC shown, nor hardware":           {vm: guest{}, untold: []string{"verify.nicsConnected: neither"}},
	}

	for _, name := range slices.Sorted(maps.Keys(rows)) {
		row := rows[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := compare(expect([]byte(row.spec), secretOf), row.asked, row.vm.VM, row.name)
			if !slices.EqualFunc(c.mismatches, row.want, strings.HasPrefix) {
				t.Errorf("mismatches %q, want %q", c.mismatches, row.want)
			}
			fits := func(n events.NotCompared, want string) bool {
				field, reason, _ := strings.Cut(want, ": ")
				return strings.HasSuffix(n.Field, field) && strings.Contains(n.Reason, reason)
			}
			if !slices.EqualFunc(c.notCompared, row.untold, fits) {
				t.Errorf("not compared %q, want %q", c.notCompared, row.untold)
			}
		})
	}
}

// MAC addresses are one in every usual notation.
func TestSameMAC(t *testing.T) {
	t.Parallel()
	for _, one := range []string{mac1, "00-50-56-00-00-01", "0050.5600.0001", "005056000001", "0:50:56:0:0:1",
		" 00:50:56:00:00:01 ", "005056-000001"} {
		if !sameMAC(one, mac1) {
			t.Errorf("%q is not %s", one, mac1)
		}
	}
	for _, other := range []string{"", "00:50:56:00:00:02", "00:50:56:00:00", "00:50:56:00:00:01:02",
		"00:50:56:00:00:0g", "00-50:56-00:00-01", "::::::::::::", "0050560000010", "+0:50:56:00:00:01"} {
		if sameMAC(other, mac1) {
			t.Errorf("%q is %s", other, mac1)
		}
	}

	if sameMAC("", "") || !sameMAC("eth0", "eth0") {
		t.Error("what is no MAC address is its own text, nothing is none")
	}
}

// What equals the value of a secret is not shown, in whatever notation.
func TestHiddenSecrets(t *testing.T) {
	t.Parallel()
	e := expect([]byte(linux(`{"_typeName":"CustomizationFixedName","name":{"secretRef":"names","key":"host"}}`,
		`{"macAddress":{"secretRef":"names","key":"mac"},"adapter":{"ip":{"ipAddress":{"secretRef":"names",`+
			`"key":"address"}},"gateway":[{"secretRef":"names","key":"gateway"}]}}`)), secretOf)
	for _, text := range []string{"web01", "WEB01.example.test", "10.0.0.7", "::ffff:10.0.0.7", "10.0.0.1", mac1,
		"00-50-56-00-00-01"} {
		if got := e.hide(text); !strings.HasPrefix(got, "(the value of secret names, key ") {
			t.Errorf("%s is told as %s", text, got)
		}
	}

	for _, text := range []string{"", "web010", "10.0.0.70", "10.0.0.8", mac2} {
		if got := e.hide(text); got != text {
			t.Errorf("%q is told as %s", text, got)
		}
	}
	prefix := expect([]byte(linux(`{"_typeName":"CustomizationPrefixName","base":{"secretRef":"names","key":"host"}}`)),
		secretOf)
	if got := prefix.hide("WEB0117.example.test"); got != "(the value of secret names, key host, and more)" {
		t.Errorf("a secret prefix is told as %s", got)
	}
	vm := shows("web01").nic(4000, "10.0.0.7 duplicate", "169.254.1.1").routes("10.0.0.1").VM
	yes := true
	c := compare(e, events.VerifySpec{AnyAddress: &yes}, vm, "")
	for _, m := range c.mismatches {
		if strings.Contains(m, "web01") || strings.Contains(m, "10.0.0.") || strings.Contains(m, mac1) {
			t.Errorf("a secret is told: %s", m)
		}
	}
	if len(c.mismatches) != 2 {
		t.Errorf("mismatches %q", c.mismatches)
	}
}

// Evidence is by field, so that what was shown before a call can be told from what came after it.
func TestEvidence(t *testing.T) {
	t.Parallel()
	const host, ip1, ip2 = "customize.spec.identity.hostName.name",
		"customize.spec.nicSettingMap[0].adapter.ip.ipAddress", "customize.spec.nicSettingMap[1].adapter.ip.ipAddress"
	e := expect([]byte(linux("", fixed("10.0.0.7"), fixed("10.0.0.8"))), secretOf)
	rows := map[string]struct {
		vm   guest
		want map[string]bool
	}{
		"nothing":    {shows("template").two(), map[string]bool{host: false, ip1: false, ip2: false}},
		"the name":   {shows("web01").two(), map[string]bool{host: true, ip1: false, ip2: false}},
		"one of two": {shows("x").two().nic(4000, "10.0.0.7"), map[string]bool{host: false, ip1: true, ip2: false}},
		"swapped": {shows("web01").two().nic(4000, "10.0.0.8").nic(4001, "10.0.0.7"),
			map[string]bool{host: true, ip1: false, ip2: false}},
		"all": {shows("web01").two().nic(4000, "10.0.0.7").nic(4001, "10.0.0.8"),
			map[string]bool{host: true, ip1: true, ip2: true}},
	}

	for name, row := range rows {
		if got := e.evidence(row.vm.VM, "vm"); !maps.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
		r := &run{state: events.Run{VMName: "vm"}}
		if all := !slices.Contains(slices.Collect(maps.Values(row.want)), false); r.showsAll(e, row.vm.VM) != all {
			t.Errorf("%s: all shown: %v", name, !all)
		}
	}

	unknown := expect([]byte(linux(vmNamed)), secretOf)
	if got := unknown.evidence(shows("sometld").VM, "some.tld"); len(got) != 0 {
		t.Errorf("a name that nobody can compare is evidence: %v", got)
	}
}

// FuzzExpect reads any spec, and compares it with any text that a guest shows, without an end of its own; nothing that
// a spec fixes passes in silence.
func FuzzExpect(f *testing.F) {
	f.Add([]byte(linux("", fixed("10.0.0.7"), dhcp)), "web01", "10.0.0.7/24", mac1)
	f.Add([]byte(linux(vmNamed, onMAC("0050.5600.0001", v6(fixedIP, `"fe80::1%eth0"`, fixedIP6)))), "some.tld",
		"::ffff:10.0.0.7", "00-50-56-00-00-01")
	f.Add([]byte(windows(`{"_typeName":"CustomizationPrefixName","base":"`+strings.Repeat("é", 40)+`"}`)),
		strings.Repeat("é", 7), "x", "")
	f.Add([]byte(linux(`{"_typeName":"CustomizationFixedName","name":{"secretRef":"names","key":"host"}}`,
		`{"adapter":{"ip":{"ipAddress":5},"subnetMask":{}}}`)), "", "fe80::1%", "::")
	f.Add([]byte(`{"identity":{"hostName":null},"nicSettingMap":[null,{"adapter":{"ipV6Spec":{"ip":[null]}}}]}`), ".",
		"/", "-")
	f.Fuzz(func(t *testing.T, spec []byte, host, address, mac string) {
		yes := true
		vm := vcapi.VM{HostName: host, Cards: []vcapi.Card{{Key: 1, MAC: mac}}, Routes: 1, Gateways: []string{address},
			DNS: []string{address},
			NICs: []vcapi.NIC{{MAC: mac, Device: 1, Addresses: []string{address},
				IPConfig: []vcapi.Address{{IP: address, Prefix: 24}}}}}
		e := expect(spec, secretOf)
		c := compare(e, events.VerifySpec{DNS: &yes}, vm, host)
		for _, a := range e.adapters {
			for _, fixed := range a.fixed {
				if _, ok := fixed.address(); !ok && len(c.mismatches) == 0 {
					t.Errorf("%q, which is no address, passes", fixed.text)
				}
			}
		}

		_ = e.evidence(vm, host)
		if mac != "" && !sameMAC(mac, mac) {
			t.Errorf("%q is not itself", mac)
		}
	})
}
