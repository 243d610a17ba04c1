package custspec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/vim25/types"
)

// whole is a spec with nothing to say of it.
const whole = `{"_typeName":"CustomizationSpec","identity":{"_typeName":"CustomizationLinuxPrep",
	"domain":"example.test","hwClockUTC":true,"timeZone":"Europe/Berlin",
"hostName":{"_typeName":"CustomizationFixedName","name":"web-1"}},"options":{"_typeName":"CustomizationLinuxOptions"},
"globalIPSettings":{"_typeName":"CustomizationGlobalIPSettings","dnsServerList":["10.0.0.2","2001:db8::2"],
"dnsSuffixList":["example.test"]},
"nicSettingMap":[{"_typeName":"CustomizationAdapterMapping","macAddress":"00:50:56:00:00:01",
"adapter":{"_typeName":"CustomizationIPSettings",
"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.11"},"subnetMask":"255.255.255.0",
"gateway":["10.0.0.1"],"dnsDomain":"example.test",
"ipV6Spec":{"_typeName":"CustomizationIPSettingsIpV6AddressSpec","ip":[{"_typeName":"CustomizationFixedIpV6",
"ipAddress":"2001:db8::11","subnetMask":64},
{"_typeName":"CustomizationAutoIpV6Generator"}],"gateway":["fe80::1"]}}}]}`

const (
	prep = "identity"
	nic  = "nicSettingMap.0.adapter"
)

// changed is whole with one place changed: a path of members and indexes, and its new value; nil takes the member out.
func changed(t *testing.T, path string, to any) any {
	t.Helper()
	tree := decode(json.RawMessage(whole))
	steps := strings.Split(path, ".")
	at := tree

	for _, step := range steps[:len(steps)-1] {
		switch v := at.(type) {
		case map[string]any:
			at = v[step]
		case []any:
			at = v[int(step[0]-'0')]
		}
	}

	last := steps[len(steps)-1]
	switch v := at.(type) {
	case map[string]any:
		v[last] = to
		if to == nil {
			delete(v, last)
		}
	case []any:
		v[int(last[0]-'0')] = to
	default:
		t.Fatalf("no %s", path)
	}

	return tree
}

func says(findings []Finding) string {
	var list []string
	for _, f := range findings {
		list = append(list, strings.TrimSpace(f.Code+" "+f.String()))
	}
	return strings.Join(list, "\n")
}

func TestNothingToSay(t *testing.T) {
	t.Parallel()
	if r := CheckJSON(json.RawMessage(whole), "spec"); len(r.Refused)+len(r.Warnings) > 0 {
		t.Errorf("%+v", r)
	}

	secret := map[string]any{"secretRef": "a", "key": "b"} // stands for any string
	for _, path := range []string{prep + ".domain", prep + ".timeZone", prep + ".hostName.name",
		nic + ".ip.ipAddress", nic + ".subnetMask", nic + ".gateway.0",
		"nicSettingMap.0.macAddress", "globalIPSettings.dnsServerList.0", nic + ".ipV6Spec.ip.0.ipAddress"} {
		if r := Check(changed(t, path, secret), ""); len(r.Refused)+len(r.Warnings) > 0 {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

// row is one thing that is wrong, and what is said of it: refused, or warned of where it begins with a code.
type row struct {
	path string
	to   any
	says string
}

func (r row) check(t *testing.T) {
	t.Helper()
	got := Check(changed(t, r.path, r.to), "spec")
	all, others := got.Refused, []Finding(nil)
	if code, _, _ := strings.Cut(r.says, " "); slices.Contains(
		[]string{UnknownType, UnknownMember, MissingMember, DoubtfulValue, UnsupportedIdentity, IgnoredByGuest},
		code,
	) {
		all, others = got.Warnings, got.Refused
	}

	if len(all) == 0 || len(others) > 0 || !strings.HasPrefix(says(all), r.says) {
		t.Errorf("%s = %v:\ngot %s\nand %s\nwant %s", r.path, r.to, says(all), says(others), r.says)
	}
}

func TestShape(t *testing.T) {
	t.Parallel()
	type object = map[string]any
	number := func(s string) json.Number { return json.Number(s) }
	for _, r := range []row{
		{
			"identity", "@{…}",
			"spec.identity: must be an object, " +
				"not a string (PowerShell's ConvertTo-Json makes strings of what is nested deeper than its -Depth",
		},
		{"identity", []any{}, "spec.identity: must be an object, not an array"},
		{"identity", object{"_typeName": 1}, "spec.identity._typeName: must be a string, not"},
		{
			"identity._typeName", "CustomizationFixedName",
			"spec.identity._typeName: is CustomizationFixedName, " +
				"which does not belong here: give one of CustomizationCloudinitPrep",
		},
		{"identity._typeName", nil, "spec.identity: has no _typeName, " +
			"which says what it is: one of CustomizationCloudinitPrep, CustomizationLinuxFlexPrep, " +
			"CustomizationLinuxPrep, CustomizationSysprep, CustomizationSysprepText, " +
			"CustomizationWindowsFlexPrep; it looks like \"_typeName\": \"CustomizationLinuxPrep\""},
		{
			"identity._typeName", "CustomizationLinuxprep",
			"UnknownType spec.identity._typeName: \"CustomizationLinuxprep\" is no type that this guestflow " +
				"knows here (did you mean CustomizationLinuxPrep?)",
		},
		{"identity._typeName", "CustomizationFuture", "UnknownType spec.identity._typeName"},
		{
			"identity._typeName", "CustomizationIdentitySettings",
			"UnknownType spec.identity._typeName: CustomizationIdentitySettings stands for its kinds",
		},
		{
			"_typeName", "CustomizationFixedIp",
			"spec._typeName: is CustomizationFixedIp, which does not belong here: give CustomizationSpec",
		},
		{"_typeName", "CustomizationSpecc", "UnknownType spec._typeName"},
		{"identity.hostName", object{"name": "web-1"}, "spec.identity.hostName: has no _typeName, " +
			"which says what it is: one of CustomizationCustomName, CustomizationFixedName, " +
			"CustomizationPrefixName, CustomizationVirtualMachineName; " +
			"it looks like \"_typeName\": \"CustomizationFixedName\""},
		{"identity.hostName", nil, "spec.identity.hostName: is required"},
		{"identity.hostName", "web-1", "spec.identity.hostName: must be an object, not a string"},
		{
			"identity.hostName", object{"_typeName": "CustomizationFixedName", "Name": "web-1"},
			"spec.identity.hostName.name: is required: Name is there, but VI JSON calls it name",
		},
		{"identity.domain", number("7"), "spec.identity.domain: must be a string, not a number: put it into quotes"},
		{"identity.domain", object{"_typeName": "string"}, "spec.identity.domain: must be a string, not an object"},
		{"identity.domain", nil, "MissingMember spec.identity.domain"},
		{
			"identity.timezone", "UTC",
			"UnknownMember spec.identity.timezone: is no member of CustomizationLinuxPrep that this guestflow " +
				"knows (did you mean timeZone?)",
		},
		{
			"identity.nothingLikeIt", "UTC",
			"UnknownMember spec.identity.nothingLikeIt: is no member of CustomizationLinuxPrep that this " +
				"guestflow knows; it is passed on",
		},
		{
			"identity.hwClockUTC", "true",
			"spec.identity.hwClockUTC: must be true or false, not a string: leave out the quotes",
		},
		{
			"identity.hwClockUTC", object{"secretRef": "a", "key": "b"},
			"spec.identity.hwClockUTC: must be true or false, not a secret",
		},
		{
			"nicSettingMap", object{"adapter": object{}},
			"spec.nicSettingMap: must be an array, not an object: put [ ] around it (in PowerShell @( )",
		},
		{"nicSettingMap.0", nil, "spec.nicSettingMap[0]: must be an object, not null"},
		{"nicSettingMap.0", "@{…}", "spec.nicSettingMap[0]: must be an object, not a string (PowerShell"},
		{"globalIPSettings", nil, "MissingMember spec.globalIPSettings"},
		{
			"globalIPSettings.dnsServerList", "10.0.0.2",
			"spec.globalIPSettings.dnsServerList: must be an array, not a string: put [ ] around it",
		},
		{
			"globalIPSettings.dnsServerList.0", number("10"),
			"spec.globalIPSettings.dnsServerList[0]: must be a string, not a number",
		},
		{nic, nil, "spec.nicSettingMap[0].adapter: is required"},
		{nic + ".ip", nil, "spec.nicSettingMap[0].adapter.ip: is required"},
		{nic + ".ip", "10.0.0.11", "spec.nicSettingMap[0].adapter.ip: must be an object, not a string"},
		{
			nic + ".ip", object{"_typeName": "CustomizationFixedIpV6"},
			"spec.nicSettingMap[0].adapter.ip._typeName: is CustomizationFixedIpV6, which does not belong here",
		},
		{
			nic + ".netBIOS", "on",
			"DoubtfulValue spec.nicSettingMap[0].adapter.netBIOS: \"on\" is none of the values that are known: " +
				"enableNetBIOSViaDhcp",
		},
		{
			nic + ".ipV6Spec.ip.0.subnetMask", "64",
			"spec.nicSettingMap[0].adapter.ipV6Spec.ip[0].subnetMask: must be an integer, " +
				"not a string: leave out the quotes",
		},
		{
			nic + ".ipV6Spec.ip.0.subnetMask", number("64.0"),
			"spec.nicSettingMap[0].adapter.ipV6Spec.ip[0].subnetMask: must be an integer, not a number",
		},
		{
			nic + ".ipV6Spec.ip.0.subnetMask", number("3000000000"),
			"spec.nicSettingMap[0].adapter.ipV6Spec.ip[0].subnetMask: must be an integer, " +
				"not a number out of its range",
		},
		{"encryptionKey", number("1"), "spec.encryptionKey: must be an array of bytes, not a number"},
	} {
		r.check(t)
	}

	if r := Check([]any{}, "spec"); says(r.Refused) != "spec: must be an object, not an array" {
		t.Errorf("%+v", r)
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	type object = map[string]any
	name := func(s string) object { return object{"_typeName": "CustomizationFixedName", "name": s} }
	const host, ip = "spec.identity.hostName.name: ", "spec.nicSettingMap[0].adapter.ip.ipAddress: "
	windows := func(change func(identity object)) object {
		identity, _ := decode(json.RawMessage(`{"_typeName":"CustomizationSysprep",
			"guiUnattended":{"timeZone":110,"autoLogon":false,"autoLogonCount":0},
			"userData":{"fullName":"f","orgName":"o","productId":"",
			"computerName":{"_typeName":"CustomizationFixedName","name":"WEB-1"}},
			"identification":{"joinWorkgroup":"w"}}`)).(object)
		change(identity)
		return identity
	}

	in := func(member, name string, v any) func(object) {
		return func(identity object) { identity[member].(object)[name] = v }
	}
	for _, r := range []row{
		{"identity.hostName", name("web_1"), host + `"web_1" has '_' in it`},
		{
			"identity.hostName", name("web-1.example.test"),
			host + `"web-1.example.test" has '.' in it, and a host name is letters, digits and hyphens, ` +
				`not digits alone, at most 63: give "web-1", and "example.test" as domain`,
		},
		{
			"identity.hostName", name("10.0.0.1"),
			host + `"10.0.0.1" has '.' in it, and a host name is letters, digits and hyphens, not digits alone, ` +
				`at most 63`,
		},
		{"identity.hostName", name("müller"), host + `"müller" has 'ü' in it`},
		{"identity.hostName", name("web 1"), host + `"web 1" has ' ' in it`},
		{"identity.hostName", name("12345"), host + `"12345" is digits alone`},
		{"identity.hostName", name(""), host + "is empty"},
		{"identity.hostName", name("  "), host + "is empty"},
		{"identity.hostName", name(strings.Repeat("w", 64)), host + "has 64 characters"},
		{"identity.hostName", name("-web"), "DoubtfulValue " + host + `"-web" begins or ends with a hyphen`},
		{
			"identity.hostName", object{"_typeName": "CustomizationPrefixName", "base": "web_"},
			"DoubtfulValue spec.identity.hostName.base",
		},
		{
			"identity.hostName", object{"_typeName": "CustomizationUnknownName"},
			"spec.identity.hostName: leaves the host name to be asked for",
		},
		{
			"identity.hostName", object{"_typeName": "CustomizationCustomName"},
			"DoubtfulValue spec.identity.hostName: needs a program",
		},
		{
			"identity.timeZone", "Europe/Berln",
			`spec.identity.timeZone: "Europe/Berln" is no name of the tz database, ` +
				`such as Europe/Berlin (did you mean Europe/Berlin?)`,
		},
		{
			"identity.timeZone", "europe/berlin",
			`spec.identity.timeZone: "europe/berlin" is no name of the tz database, ` +
				`such as Europe/Berlin (did you mean Europe/Berlin?)`,
		},
		{"identity.timeZone", "110", `spec.identity.timeZone: "110" is an index of Windows`},
		{"identity.timeZone", "W. Europe Standard Time", "spec.identity.timeZone: "},
		{"identity.scriptText", "echo", "DoubtfulValue spec.identity.scriptText: does not begin with #!"},

		{nic + ".ip.ipAddress", "10.0.0.300", ip + `"10.0.0.300" is not an IP address`},
		{
			nic + ".ip.ipAddress", "10.0.0.11/24",
			ip + `"10.0.0.11/24" is an address with its prefix: give "10.0.0.11" here, ` +
				`and the prefix as subnetMask, "255.255.255.0"`,
		},
		{
			nic + ".ip.ipAddress", "10.0.0.11/240",
			ip + `"10.0.0.11/240" is not an address, and a prefix belongs into subnetMask`,
		},
		{
			nic + ".ip.ipAddress", "010.000.000.011",
			ip + `"010.000.000.011" has leading zeros, which some read as octal: give "10.0.0.11"`,
		},
		{nic + ".ip.ipAddress", "10.0.0.11 ", ip + `"10.0.0.11 " has blanks around it: give "10.0.0.11"`},
		{nic + ".ip.ipAddress", "", ip + "is empty"},
		{nic + ".ip.ipAddress", "\t", ip + "is empty"},
		{nic + ".ip.ipAddress", "web-1", ip + `"web-1" is not an IP address`},
		{nic + ".ip.ipAddress", "2001:db8::1", "DoubtfulValue " + ip + "2001:db8::1 is no IPv4 address"},
		{
			nic + ".ip.ipAddress", "224.0.0.1",
			"DoubtfulValue " + ip + "224.0.0.1 is no address that an adapter can have",
		},
		{
			nic + ".ip", object{"_typeName": "CustomizationUnknownIpGenerator"},
			"spec.nicSettingMap[0].adapter.ip: leaves the address to be asked for",
		},
		{
			nic + ".subnetMask", "24",
			`spec.nicSettingMap[0].adapter.subnetMask: "24" is not a subnet mask, ` +
				`such as 255.255.255.0: give "255.255.255.0"`,
		},
		{
			nic + ".subnetMask", "/22",
			`spec.nicSettingMap[0].adapter.subnetMask: "/22" is not a subnet mask, ` +
				`such as 255.255.255.0: give "255.255.252.0"`,
		},
		{
			nic + ".subnetMask", "255.0.255.0",
			`spec.nicSettingMap[0].adapter.subnetMask: "255.0.255.0" is not a subnet mask`,
		},
		{
			nic + ".subnetMask", "0.0.0.255",
			`spec.nicSettingMap[0].adapter.subnetMask: "0.0.0.255" is not a subnet mask`,
		},
		{
			nic + ".subnetMask", nil,
			"DoubtfulValue spec.nicSettingMap[0].adapter.subnetMask: is missing beside a fixed address",
		},
		{
			nic + ".subnetMask", "",
			"DoubtfulValue spec.nicSettingMap[0].adapter.subnetMask: is missing beside a fixed address",
		},
		{
			nic + ".gateway", []any{"10.0.1.1"},
			"DoubtfulValue spec.nicSettingMap[0].adapter.gateway[0]: 10.0.1.1 is not in the subnet of the " +
				"address, 10.0.0.0/24",
		},
		{
			nic + ".gateway", []any{"10.0.0.11"},
			"DoubtfulValue spec.nicSettingMap[0].adapter.gateway[0]: 10.0.0.11 is the adapter's own address",
		},
		{nic + ".gateway", []any{"gw"}, "spec.nicSettingMap[0].adapter.gateway[0]: \"gw\" is not an IP address"},
		{
			nic + ".gateway", []any{"10.0.0.1/24"},
			"spec.nicSettingMap[0].adapter.gateway[0]: \"10.0.0.1/24\" is an address with its prefix: give " +
				"\"10.0.0.1\" here",
		},
		{
			nic + ".gateway", []any{""},
			"spec.nicSettingMap[0].adapter.gateway[0]: is empty: give the address, or leave it out",
		},
		{
			nic + ".gateway", []any{"fe80::1"},
			"DoubtfulValue spec.nicSettingMap[0].adapter.gateway[0]: fe80::1 is no IPv4 address",
		},
		{
			nic + ".dnsServerList", []any{"dns"},
			"spec.nicSettingMap[0].adapter.dnsServerList[0]: \"dns\" is not an IP address",
		},
		{
			"globalIPSettings.dnsServerList", []any{"dns.example.test"},
			"spec.globalIPSettings.dnsServerList[0]: \"dns.example.test\" is not an IP address",
		},
		{
			nic + ".ipV6Spec.ip.0.ipAddress", "2001:db8::1/64",
			`spec.nicSettingMap[0].adapter.ipV6Spec.ip[0].ipAddress: "2001:db8::1/64" is an address with its ` +
				`prefix: give "2001:db8::1" here, and the prefix as subnetMask, 64`,
		},
		{
			nic + ".ipV6Spec.ip.0.ipAddress", "2001:db8:::1",
			`spec.nicSettingMap[0].adapter.ipV6Spec.ip[0].ipAddress: "2001:db8:::1" is not an IP address`,
		},
		{
			nic + ".ipV6Spec.ip.0.ipAddress", "10.0.0.1",
			"DoubtfulValue spec.nicSettingMap[0].adapter.ipV6Spec.ip[0].ipAddress",
		},
		{
			nic + ".ipV6Spec.ip.0.subnetMask", json.Number("129"),
			"spec.nicSettingMap[0].adapter.ipV6Spec.ip[0].subnetMask: is 129",
		},
		{
			nic + ".ipV6Spec.ip.1._typeName", "CustomizationUnknownIpV6Generator",
			"spec.nicSettingMap[0].adapter.ipV6Spec.ip[1]: leaves the address to be asked for",
		},
		{
			nic + ".ipV6Spec.gateway", []any{"10.0.0.1"},
			"DoubtfulValue spec.nicSettingMap[0].adapter.ipV6Spec.gateway[0]",
		},
		{
			"nicSettingMap.0.macAddress", "00:50:56:00:01",
			`spec.nicSettingMap[0].macAddress: "00:50:56:00:01" is no MAC address`,
		},
		{"options._typeName", "CustomizationWinOptions", "MissingMember spec.options.changeSID"},

		{
			"identity", windows(in("guiUnattended", "timeZone", "Europe/Berlin")),
			"spec.identity.guiUnattended.timeZone: must be an integer, not a string",
		},
	} {
		r.check(t)
	}

	for _, r := range []struct {
		identity any
		refused  string
		warned   string
	}{
		{
			windows(in("guiUnattended", "timeZone", json.Number("21"))),
			"spec.identity.guiUnattended.timeZone: 21 is none of Microsoft's time zone index values", "",
		},
		{
			windows(in("guiUnattended", "timeZone", json.Number("-2147483584"))), "",
			"spec.identity.guiUnattended.timeZone: -2147483584 is none",
		},
		{
			windows(in("guiUnattended", "autoLogon", true)), "",
			"spec.identity.guiUnattended.autoLogon: needs a password",
		},
		{windows(in("userData", "fullName", " ")), "spec.identity.userData.fullName: is empty", ""},
		{
			windows(in("userData", "computerName", name("WEB_1"))),
			"spec.identity.userData.computerName.name: \"WEB_1\" has '_' in it", "",
		},
		{windows(in("userData", "computerName", name("A234567890123456"))), "", "keeps the first 15"},
		{windows(in("identification", "joinDomain", "example.test")), "", "has joinDomain and joinWorkgroup"},
		{
			windows(func(m object) { m["identification"] = object{"joinDomain": "example.test"} }), "",
			"needs domainAdmin and domainAdminPassword",
		},
	} {
		got := Check(changed(t, "identity", r.identity), "spec")
		if !strings.HasPrefix(says(got.Refused), r.refused) || r.refused == "" && len(got.Refused) > 0 ||
			!strings.Contains(says(got.Warnings), r.warned) ||
			!strings.Contains(says(got.Warnings), "UnsupportedIdentity spec.identity: ") {
			t.Errorf(
				"refused %s, warned %s, want %q and %q", says(got.Refused), says(got.Warnings), r.refused, r.warned,
			)
		}
	}
}

// Names of the tz database, its old ones too, are all taken.
func TestTimeZones(t *testing.T) {
	t.Parallel()
	for _, zone := range append(strings.Fields(tzNames), "", "US/Pacific-New") {
		if r := Check(changed(t, "identity.timeZone", zone), ""); len(r.Refused)+len(r.Warnings) > 0 {
			t.Errorf("%s: %+v", zone, r)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	password := map[string]any{
		"_typeName": "CustomizationPassword",
		"value":     map[string]any{"secretRef": "a", "key": "b"},
		"plainText": true,
	}

	row{
		"identity.password",
		password,
		"IgnoredByGuest spec.identity.password: the engine that customizes running guests is known to drop it",
	}.check(t)

	row{
		"identity.scriptText",
		"#!/bin/sh\n" + strings.Repeat("#", 1500),
		"DoubtfulValue spec.identity.scriptText: has 1510 bytes",
	}.check(t)

	row{
		"identity",
		map[string]any{"_typeName": "CustomizationCloudinitPrep", "metadata": "instance-id: i"},
		"UnsupportedIdentity spec.identity: CustomizationCloudinitPrep",
	}.check(t)

	many := map[string]any{"_typeName": "CustomizationGlobalIPSettings"}
	for i := range 1000 {
		many[fmt.Sprintf("unknown-%d", i)] = 1
	}

	r := Check(changed(t, "globalIPSettings", many), "spec")
	if n := len(r.Warnings); n != maxWarnings+1 || !strings.Contains(r.Warnings[n-1].Message, "976 more warnings") {
		t.Errorf("%d warnings, the last is %+v", n, r.Warnings[n-1])
	}
}

func TestAdapters(t *testing.T) {
	t.Parallel()
	mapping := func(macs ...string) any {
		var list []any
		for _, mac := range macs {
			m := map[string]any{
				"adapter": map[string]any{"ip": map[string]any{"_typeName": "CustomizationDhcpIpGenerator"}},
			}
			if mac != "" {
				m["macAddress"] = mac
			}
			list = append(list, m)
		}
		return changed(t, "nicSettingMap", list)
	}

	const a, b = "00:50:56:00:00:0a", "00:50:56:00:00:0b"
	for _, r := range []struct {
		spec            any
		refused, warned string
	}{
		{mapping("", ""), "", ""},
		{mapping(a, b), "", ""},
		{mapping("00-50-56-00-00-0A", "0050.5600.000b"), "", ""},
		{mapping("00505600000a", b), "", ""},
		{
			mapping(a, ""),
			"spec.nicSettingMap: either every entry has a macAddress or none: [0] has one, [1] has none", "",
		},
		{
			mapping("", a),
			"spec.nicSettingMap: either every entry has a macAddress or none: [1] has one, [0] has none", "",
		},
		{
			mapping(a, "00-50-56-00-00-0A"), "",
			"DoubtfulValue spec.nicSettingMap[1].macAddress: is that of nicSettingMap[0] too",
		},
	} {
		got := Check(r.spec, "spec")
		if says(got.Refused) != r.refused || says(got.Warnings) != r.warned {
			t.Errorf(
				"refused %s, warned %s, want %q and %q", says(got.Refused), says(got.Warnings), r.refused, r.warned,
			)
		}
	}

	for _, r := range []struct {
		spec any
		macs []string
		want string
	}{
		{mapping("", ""), []string{a, b}, ""},
		{mapping(b, "00-50-56-00-00-0A"), []string{a, b}, ""},
		{
			mapping(), []string{a},
			"spec.nicSettingMap: has 0 entries, " +
				"and the VM has 1 NIC (" + a + "): vCenter wants one for each (NicSettingMismatch)",
		},
		{mapping("", ""), []string{a}, "spec.nicSettingMap: has 2 entries, and the VM has 1 NIC"},
		{mapping(""), nil, "spec.nicSettingMap: has 1 entry, and the VM has 0 NICs"},
		{
			mapping("00:50:56:00:00:0c"), []string{a},
			"spec.nicSettingMap[0].macAddress: 00:50:56:00:00:0c is none of the VM's NICs: " + a,
		},
		{changed(t, "nicSettingMap", nil), nil, ""},
		{changed(t, "nicSettingMap", "x"), []string{a}, ""}, // told already
	} {
		b, err := json.Marshal(r.spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := says(CheckAdapters(b, r.macs, "spec")); !strings.HasPrefix(got, r.want) || r.want == "" && got != "" {
			t.Errorf("%v: %q, want %q", r.macs, got, r.want)
		}
	}
}

func TestParams(t *testing.T) {
	t.Parallel()
	for params, want := range map[string]string{
		`[{"_typeName":"OptionValue","key":"k","value":{"_typeName":"string","_value":"v"}},{"key":"k",` +
			`"value":{"_typeName":"int","_value":5}}]`: "",
		`[{"key":"k","value":{"_typeName":"string","_value":{"secretRef":"a","key":"b"}}}]`: "",
		`[{"key":"k","value":"v"}]`: `DoubtfulValue p[0].value: is a string ` +
			`without its type`,
		`[{"key":"k","value":{"_value":"v"}}]`: `p[0].value: has no _typeName, ` +
			`which says what it is`,
		`[{"key":"k","value":{"_typeName":"String",` +
			`"_value":"v"}}]`: `UnknownType p[0].value._typeName: "String" is no type that this guestflow knows ` +
			`here (did you mean string?)`,
		`[{"key":"k","value":{"_typeName":"int",` +
			`"_value":"5"}}]`: `p[0].value._value: must be what _typeName says, int, not a string`,
		`[{"key":"k","value":{"_typeName":"string",` +
			`"_value":5}}]`: `p[0].value._value: must be what _typeName says, string, not a number`,
		`[{"key":"k","value":{"_typeName":"string"}}]`: `MissingMember p[0].value._value`,
		`[{"_typeName":"CustomizationFixedName",` +
			`"key":"k"}]`: `p[0]._typeName: is CustomizationFixedName, which does not belong here`,
		`{"key":"k","value":{"_typeName":"string","_value":"v"}}`: `p: must be an array, not an object`,
	} {
		got := CheckParams(decode(json.RawMessage(params)), "p")
		if s := says(append(got.Refused, got.Warnings...)); !strings.HasPrefix(s, want) || want == "" && s != "" {
			t.Errorf("%s: %q, want %q", params, s, want)
		}
	}
}

func TestForeign(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]string{
		`{"configuration_spec":{}}`:                               "REST API",
		`{"name":"a","spec":{"configuration_spec":{}}}`:           "REST API",
		`{"linux_config":{}}`:                                     "a part of the specification of the REST API",
		`{"info":{"name":"a"},"spec":{"identity":{}}}`:            "CustomizationSpecItem: give its member spec",
		`{"_typeName":"CustomizationSpecItem"}`:                   "CustomizationSpecItem",
		`{"vm":{},"auth":{},"spec":{}}`:                           "the body of CustomizeGuest_Task",
		`{"spec":{"identity":{}}}`:                                "has the CustomizationSpec in its member spec",
		`{"_vimtype":"vim.vm.customization.Specification"}`:       "pyVmomi",
		`"<ConfigRoot><_type>vim.CustomizationSpecItem</_type/>"`: "import it into vCenter",
		`"identity:\n  _typeName: CustomizationLinuxPrep"`:        "YAML",
		`{"identity":{}}`:                                         "",
		`{}`:                                                      "",
		`7`:                                                       "",
	} {
		if got := Foreign(decode(json.RawMessage(doc))); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", doc, got, want)
		}
	}

	for text, want := range map[string]string{
		"<a/>": "it is XML, and JSON is wanted", "---\na: 1": "YAML", "# c\nvm: vm-1": "YAML", "- a": "YAML",
		"hello": "", "{": "", "": "", " \n": "", "hello: world": "YAML",
	} {
		if got := ForeignText([]byte(text)); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// What is made of govmomi's own types, with everything that they can hold, has the right shape; and one value of
// another kind anywhere in it is refused, as govmomi's decoder refuses it.
func TestShapeAsGovmomi(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	kinds := []any{"text", json.Number("5"), true, []any{}, map[string]any{}}
	refused := 0

	for range 400 {
		var b bytes.Buffer
		spec := reflect.New(reflect.TypeFor[types.CustomizationSpec]()).Elem()
		fill(random, spec, 0)
		if err := types.NewJSONEncoder(&b).Encode(spec.Interface()); err != nil {
			t.Fatal(err)
		}

		tree := decode(b.Bytes())
		for _, f := range Check(tree, "").Refused {
			if strings.Contains(f.Message, "must be") || strings.Contains(f.Message, "_typeName") ||
				strings.Contains(f.Message, "is required") {
				t.Fatalf("%s\n%v", b.Bytes(), f)
			}
		}

		for _, w := range Check(tree, "").Warnings {
			if w.Code == UnknownMember || w.Code == UnknownType {
				t.Fatalf("%s\n%v", b.Bytes(), w)
			}
		}

		spoil(random, tree, kinds[random.IntN(len(kinds))])
		spoiled, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}

		var into types.CustomizationSpec
		if err := types.NewJSONDecoder(bytes.NewReader(spoiled)).
			Decode(&into); err == nil ||
			strings.Contains(err.Error(), "invalid discriminator") {
			continue
		}

		refused++
		if r := Check(tree, ""); len(r.Refused) == 0 {
			t.Fatalf("not refused, as govmomi does: %s", spoiled)
		}
	}

	if refused < 100 {
		t.Errorf("govmomi refused %d only", refused)
	}
}

// fill gives a value of govmomi's types everything that it can hold.
func fill(random *rand.Rand, v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32:
		v.SetInt(int64(random.IntN(100)))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(random, v.Elem(), depth)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte{1, 2})
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1+random.IntN(2), 3))
		for i := range v.Len() {
			fill(random, v.Index(i), depth)
		}
	case reflect.Interface:
		if v.NumMethod() == 0 {
			v.Set(reflect.ValueOf("text"))
			return
		}

		of := dataTypes[strings.TrimPrefix(v.Type().Name(), "Base")].kinds
		name := of[random.IntN(len(of))]
		kind, _ := types.TypeFunc()(name)
		value := reflect.New(kind)
		fill(random, value.Elem(), depth+1)
		v.Set(value)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(random, v.Field(i), depth+1)
		}
	}
}

// spoil puts a value of another kind into one place of a tree.
func spoil(random *rand.Rand, tree, by any) {
	for {
		switch v := tree.(type) {
		case map[string]any:
			names := slices.Sorted(maps.Keys(v))
			if len(names) == 0 {
				return
			}
			name := names[random.IntN(len(names))]
			if name == "_typeName" {
				continue
			}

			if random.IntN(3) == 0 || !isTree(v[name]) {
				v[name] = by
				return
			}

			tree = v[name]
		case []any:
			if len(v) == 0 {
				return
			}

			i := random.IntN(len(v))
			if random.IntN(3) == 0 || !isTree(v[i]) {
				v[i] = by
				return
			}

			tree = v[i]
		}
	}
}

func isTree(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) > 1
	case []any:
		return len(v) > 0
	}
	return false
}

// FuzzCheck: no spec makes the reader fail, or say much more than it was given; what it says is text.
func FuzzCheck(f *testing.F) {
	f.Add([]byte(whole))
	f.Add(
		[]byte(
			`{"identity":{"_typeName":"CustomizationSysprep"},` +
				`"nicSettingMap":[{"adapter":{"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"1.2.3.4/33"}}}]}`,
		),
	)

	f.Add([]byte(`{"identity":{"hostName":[],"\u0000":1},"nicSettingMap":{}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		tree := decode(doc)
		first, second := Check(tree, "spec"), Check(tree, "spec")
		if diff := cmp.Diff(first, second); diff != "" {
			t.Errorf("not the same twice: %s", diff)
		}
		if len(first.Warnings) > maxWarnings+1 {
			t.Errorf("%d warnings", len(first.Warnings))
		}

		for _, found := range append(first.Refused, first.Warnings...) {
			if !strings.HasPrefix(found.Field, "spec") || found.Message == "" || len(found.Message) > 1000+len(doc) {
				t.Errorf("%+v", found)
			}
		}

		CheckAdapters(doc, []string{"00:50:56:00:00:01"}, "spec")
		CheckParams(tree, "spec")
		Foreign(tree)
		for _, in := range []func(string) string{InUserData, InAnswerFile, InCommand, InValue, ForeignTextOf} {
			in(string(doc))
		}
	})
}

func ForeignTextOf(s string) string { return ForeignText([]byte(s)) }
