package events_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/guestflow/guestflow/internal/events"
)

// Inputs out of public reports, and others of their kind: what the request alone shows is refused, with its field and
// the rule.
func TestCasesAreRefused(t *testing.T) {
	t.Parallel()
	const (
		ip   = "customize.spec.nicSettingMap[0].adapter.ip"
		name = "customize.spec.identity.hostName.name"
	)
	for file, want := range map[string]struct {
		field, text string
		secret      bool
	}{
		"04-prefix-in-address.json": {ip + ".ipAddress",
			`give "10.0.0.11" here, and the prefix as subnetMask, "255.255.255.0"`, false},
		"04-300.json": {ip + ".ipAddress", "is not an IP address", false},
		"04-leading-zeros.json": {ip + ".ipAddress", `leading zeros, which some read as octal: give "10.0.0.11"`,
			false},
		"04-empty.json":            {ip + ".ipAddress", "is empty", false},
		"04-blank-at-the-end.json": {ip + ".ipAddress", `blanks around it: give "10.0.0.11"`, false},
		"04-empty-host-name.json":  {name, "is empty", false},
		"16-cloudinit.json": {"customize.spec.identity.userdata",
			`list "spec.identity.userdata" in customize.allowLiteral`, true},
		"16-environment.json": {"processes[0].run.environment.DB_PASSWORD",
			`list "run.environment.DB_PASSWORD" in processes[0].allowLiteral`, true},
		"16-sysprep.json": {"customize.spec.identity.value", `{"secretRef": "<name>", "key": "<key>"}`,
			true},
		"24-rest-spec.json": {"customize.spec", "is the specification of the REST API (configuration_spec)",
			false},
		"24-spec-item.json": {"customize.spec", "is a CustomizationSpecItem: give its member spec", false},
		"25-no-type.json": {"customize.spec.identity.hostName", `has no _typeName, which says what it is`,
			false},
		"25-unwrapped.json":    {"customize.spec.nicSettingMap", "must be an array, not an object", false},
		"25-depth.json":        {ip, "must be an object, not a string (PowerShell's ConvertTo-Json", false},
		"26-unknown-name.json": {"customize.spec.identity.hostName", "give a CustomizationFixedName", false},
		"26-unknown-ip.json":   {ip, "give a CustomizationFixedIp", false},
		"27-vmid.json":         {"vm", "vmId is there, and the field is called vm", false},
		"29-dots.json":         {name, `give "web-1", and "example.test" as domain`, false},
		"29-umlaut.json":       {name, `has 'ü' in it`, false},
		"29-underscore.json":   {name, `has '_' in it`, false},
		"29-digits.json":       {name, "digits alone", false},
		"29-length.json":       {name, "has 64 characters", false},
		"29-mask.json": {"customize.spec.nicSettingMap[0].adapter.subnetMask", "is not a subnet mask",
			false},
		"29-mask-as-prefix.json": {"customize.spec.nicSettingMap[0].adapter.subnetMask", `give "255.255.255.0"`,
			false},
		"29-time-zone.json":            {"customize.spec.identity.timeZone", "did you mean Europe/Berlin?", false},
		"29-time-zone-of-windows.json": {"customize.spec.identity.timeZone", "no name of the tz database", false},
		"29-mixed-mac.json": {"customize.spec.nicSettingMap", "either every entry has a macAddress or none",
			false},
		"27-vm-with-its-type.json":     {"vm", `is not a managed object ID: give "vm-42" alone`, false},
		"27-vm-of-powercli.json":       {"", "", false}, // it may be an ID: vCenter knows
		"27-vm-of-another-system.json": {"", "", false},
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			data := readCase(t, file)
			subject := subject
			var vm struct{ VM string }
			if json.Unmarshal(data, &vm) == nil && events.ValidVM(vm.VM) {
				subject = "guestflow.requests.lab." + vm.VM
			}
			_, err := events.DecodeRequest("lab", subject, nil, structured(string(data), ""))
			wantRefusal(t, err, want.field, want.text, want.secret)
		})
	}
}

// utf16Text is a text in UTF-16; order says where the low byte and the high byte of a unit go.
func utf16Text(text string, order [2]int) (wide []byte) {
	for _, unit := range utf16.Encode([]rune(text)) {
		two := [2]byte{byte(unit), byte(unit >> 8)}
		wide = append(wide, two[order[0]], two[order[1]])
	}
	return wide
}

// Each file of the folder is in a test.
func TestEveryCaseHasARow(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("spec_test.go")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/cases/*.json")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	others := []string{"12-expiryTime.json", "13-lower-case-rfc3339.json"}
	for _, file := range files {
		if name := filepath.Base(file); !bytes.Contains(source, []byte(`"`+name+`"`)) &&
			!slices.Contains(others, name) {
			t.Errorf("no test reads %s", name)
		}
	}
}

// What is not known is passed on, word for word, and warned of.
func TestUnknownIsAWarning(t *testing.T) {
	t.Parallel()
	r, err := events.DecodeRequest("lab", subject, nil, structured(string(readCase(t, "warnings.json")), ""))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range r.Warnings {
		got = append(got, w.Code+" "+w.Field)
	}
	want := []string{"UnknownType customize.spec.identity.hostName._typeName",
		"UnknownMember customize.spec.identity.timezone",
		"DoubtfulValue customize.spec.nicSettingMap[0].adapter.gateway[0]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if w := r.Warnings[1].Message; !strings.Contains(w, "did you mean timeZone?") {
		t.Errorf("%q names no member that is near", w)
	}
}

// A message may begin with the byte order mark, in both forms; one in UTF-16 is told what it is, also without a mark.
func TestByteOrderMarks(t *testing.T) {
	t.Parallel()
	const data = `{"vm":"vm-42"}`
	binary := header("ce-specversion", "1.0", "ce-id", "7", "ce-source", "/a", "ce-type", requestedType)
	report := readCase(t, "23-bom.json")
	for name, row := range map[string]struct {
		header  map[string][]string
		message []byte
		want    []byte
	}{
		"structured": {nil, append([]byte("\ufeff"), structured(data, "")...), []byte(data)},
		"binary":     {binary, []byte("\ufeff" + data), []byte(data)},
		"a file":     {binary, report, bytes.TrimPrefix(report, []byte("\ufeff"))},
	} {
		r, err := events.DecodeRequest("lab", subject, row.header, row.message)
		if err != nil || !bytes.Equal(r.Data, row.want) {
			t.Errorf("%s: %v, %q", name, err, r.Data)
		}
	}
	for name, order := range map[string][2]int{"little endian": {0, 1}, "big endian": {1, 0}} {
		for _, mark := range []string{"", "\ufeff"} {
			wide := utf16Text(mark+string(structured(data, "")), order)
			if got := refusal(t, nil, wide).Message; !strings.Contains(got, "UTF-16") ||
				!strings.Contains(got, "encode it as UTF-8") {
				t.Errorf("%s, mark %q: %q", name, mark, got)
			}
		}
	}
	if got := refusal(t, nil, readCase(t, "23-utf16.json")).Message; !strings.Contains(got, "UTF-16") {
		t.Error(got)
	}
}

// A literal that is no secret is let through where the request says so, and there alone.
func TestAllowLiteral(t *testing.T) {
	t.Parallel()
	process := func(allow string) string {
		return `{"vm":"vm-42",` + creds +
			`,"processes":[{"name":"a","run":{"path":"/a"}},{"name":"b","allowLiteral":[` + allow +
			`],"run":{"path":"/b",` +
			`"arguments":"--token abc","environment":{"DB_PASSWORD":"hunter2","DB_PASS":"hunter2",` +
			`"URL":"https://u:hunter2@example.test"}}}]}`
	}
	customize := func(allow string) string {
		return `{"vm":"vm-42",` + creds + `,"customize":{"allowLiteral":[` + allow +
			`],"spec":{"identity":{"_typeName":"CustomizationLinuxPrep",` +
			`"hostName":{"_typeName":"CustomizationVirtualMachineName"},` +
			`"password":{"_typeName":"CustomizationPassword","value":"hunter2","plainText":false}}},` +
			`"configParams":[{"_typeName":"OptionValue","key":"guestinfo.api-token","value":{"_typeName":"string",` +
			`"_value":"hunter2"}}]}}`
	}
	const all = `"run.arguments","run.environment.DB_PASSWORD","run.environment.DB_PASS","run.environment.URL"`
	for _, row := range []struct{ name, data, field string }{
		{"nothing listed", process(""), "processes[1].run.arguments"},
		{"one of them", process(`"run.environment.DB_PASSWORD"`), "processes[1].run.arguments"},
		{"all but one", process(strings.Replace(all, `"run.environment.DB_PASS",`, "", 1)),
			"processes[1].run.environment.DB_PASS"},
		{"all of them", process(all), ""},
		{"the whole path", process(`"processes[1].run.arguments"`), "processes[1].run.arguments"},
		{"in the other process", strings.Replace(process(""), `"name":"a"`, `"name":"a","allowLiteral":[`+all+`]`, 1),
			"processes[1].run.arguments"},
		{"customize: nothing", customize(""), "customize.spec.identity.password.value"},
		{"customize: the password", customize(`"spec.identity.password.value"`),
			"customize.configParams[0].value._value"},
		{"customize: both", customize(`"spec.identity.password.value","configParams[0].value._value"`), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			_, err := events.DecodeRequest("lab", subject, nil, structured(row.data, ""))
			wantRefusal(t, err, row.field, "", true)
		})
	}
}

// All literals are named at once, and a message that holds one is kept without its data whatever it is refused for, and
// in whatever encoding.
func TestLiteralSecretsAreWithheld(t *testing.T) {
	t.Parallel()
	const data = `{"vm":"vm-42",` + creds +
		`,"processes":[{"name":"a","run":{"path":"/a","environment":{"API_TOKEN":"hunter2","MYSQL_PWD":"hunter2"}}}]}`
	if e := refusal(t, nil, structured(data, "")); !strings.Contains(e.Message,
		"processes[0].run.environment.MYSQL_PWD: ") {
		t.Errorf("%v names one alone", e)
	}
	const userData = `{"vm":"vm-42",` + creds +
		`,"custmize":{},"customize":{"spec":{"identity":{"_typeName":"CustomizationCloudinitPrep","metadata":"",` +
		`"userdata":"#cloud-config\nchpasswd: {list: 'root:hunter2'}\n"}}}}`
	for name, message := range map[string][]byte{
		"another type":         bytes.Replace(structured(userData, ""), []byte("requested"), []byte("other"), 1),
		"an unknown field":     structured(userData, ""),
		"cut off":              structured(data, "")[:len(structured(data, ""))-9],
		"in UTF-16":            utf16Text("\ufeff"+string(structured(data, "")), [2]int{0, 1}),
		"in a word of its own": []byte(`{"passwd":"hunter2"`),
	} {
		if e := refusal(t, nil, message); !e.Withhold || strings.Contains(e.Error(), "hunter2") {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if e := refusal(t, nil, []byte(`{"vm":"vm-42","guest":{"credentials":{"secretRef":"a"}}`)); e.Withhold {
		t.Error("the name of a secret is no secret")
	}
}

func TestNotVM(t *testing.T) {
	t.Parallel()
	for vm, want := range map[string]string{
		"VirtualMachine:vm-42": `give "vm-42" alone`, "urn:vmomi:VirtualMachine:vm-42:0d1f": `give "vm-42" alone`,
		"web 1": "such as vm-42", "": "such as vm-42",
		"VirtualMachine:": "such as vm-42", "web-1.example.test": "govc ls -i",
	} {
		if got := events.NotVM(vm); !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", vm, got, want)
		}
	}
	for vm, want := range map[string]string{"vm-42": "", "VirtualMachine-vm-42": "seems to be vm-42", "guest-001": "",
		"VirtualMachine-": ""} {
		if got := events.HintVM(vm); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", vm, got, want)
		}
	}
}
