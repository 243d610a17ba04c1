package handler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
)

// A stored specification is read before anything is done: what vCenter would refuse of it ends the run in the check,
// with all of it named; what it may refuse is a warning. The guest is not touched.
func TestStoredSpecIsRead(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	const asks = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"verify":false,"customize":` +
		`{"specName":`
	for name, want := range map[string]string{
		"asks for the name":    "identity.hostName: leaves the host name to be asked for",
		"asks for the address": "nicSettingMap[0].adapter.ip: leaves the address to be asked for",
		"underscore":           `identity.hostName.name: "web_1" has '_' in it`,
		"prefix":               `nicSettingMap[0].adapter.ip.ipAddress: "10.0.0.11/24" is an address with its prefix`,
		"no type":              "identity.hostName: has no _typeName",
	} {
		withHarness(t, secrets, func(w *harness) {
			run := w.run(asks + `"` + name + `"}}`)
			if run.Error == nil || run.Error.Code != events.InvalidRequest || run.Error.Step != "check" ||
				len(run.Check.Blockers) != 1 {
				w.t.Fatalf("%s: %+v, %+v", name, run.Error, run.Check)
			}
			b := run.Check.Blockers[0]
			if b.Code != string(events.InvalidRequest) || b.Field != "customize.specName" ||
				!strings.Contains(b.Message, `"`+name+`"`) || !strings.Contains(b.Message, want) {
				w.t.Errorf("%s: %+v", name, b)
			}
			if run.Customize.State != events.Skipped {
				w.t.Errorf("customize is %s", run.Customize.State)
			}
		})
	}

	withHarness(t, secrets, func(w *harness) {
		run := w.run(asks + `"linux"}}`)
		if run.Status != events.StatusSucceeded || len(run.Check.Warnings) == 0 {
			w.t.Fatalf("%+v", run)
		}
		for _, warning := range run.Check.Warnings {
			if warning.Field != "customize.specName" || !strings.Contains(warning.Message, ": ") {
				w.t.Errorf("%+v", warning)
			}
		}
	})
}

// What the request's own spec is warned of is in the check.
func TestWarningsOfTheRequest(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		run := w.run(`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"customize":` + spec + `}`)
		var fields []string
		for _, warning := range run.Check.Warnings {
			fields = append(fields, warning.Code+" "+warning.Field)
		}
		want := "DoubtfulValue customize.spec.identity.hostName, MissingMember customize.spec.identity.domain, " +
			"DoubtfulValue customize.spec.nicSettingMap[0].adapter.ip, MissingMember customize.spec.globalIPSettings"
		if got := strings.Join(fields, ", "); got != want {
			w.t.Errorf("warnings %s, want %s", got, want)
		}
	})
}

// Which kind of login a secret holds, its files tell: an interactive session with a token is a blocker, wherever the
// request names it.
func TestInteractiveSessionWithTokenFile(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	dir := filepath.Join(string(secrets), "token")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "saml-token"), []byte("saml"), 0o600); err != nil {
		t.Fatal(err)
	}
	for request, where := range map[string]string{
		`{"vm":"vm-42","guest":{"credentials":{"secretRef":"token"},"interactiveSession":true},` +
			`"network":{}}`: "guest.credentials",
		`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"},"interactiveSession":true},` +
			`"processes":[{"name":"p","run":{"path":"/a"},` +
			`"credentials":{"secretRef":"token"}}]}`: "processes[0].credentials",
	} {
		withHarness(t, secrets, func(w *harness) {
			run := w.run(request)
			if run.Error == nil || run.Error.Code != events.InvalidRequest || len(run.Check.Blockers) != 1 ||
				run.Check.Blockers[0].Field != "guest.interactiveSession" ||
				!strings.Contains(run.Check.Blockers[0].Message, where) {
				w.t.Errorf("%+v, %+v", run.Error, run.Check)
			}
		})
	}
}

// An ID as other programs write it is told beside vCenter's answer that there is no such VM.
func TestNoSuchVMHint(t *testing.T) {
	t.Parallel()
	r := &checkStep{run: &run{vm: "VirtualMachine-vm-42", Handler: &Handler{}}, step: &step{name: events.StepCheck}}
	if f := r.noVM(&stepError{code: events.NotFound, message: "not found"}); !strings.HasSuffix(f.message,
		"not found: the managed object ID seems to be vm-42, without its type before it") {
		t.Error(f.message)
	}
	r.vm = "vm-42"
	if f := r.noVM(&stepError{code: events.NotFound, message: "not found"}); !strings.HasSuffix(f.message,
		": not found") {
		t.Error(f.message)
	}
}

// The spec's adapters are held against the VM's NICs before anything is done; where vCenter does not show those,
// vCenter decides.
func TestAdaptersAgainstNICs(t *testing.T) {
	t.Parallel()
	const (
		host = `"identity":{"_typeName":"CustomizationLinuxPrep","domain":"d","hostName":` +
			`{"_typeName":"CustomizationCustomName"}}`
		ip = `"adapter":{"ip":{"_typeName":"CustomizationCustomIpGenerator"}}`
	)
	secrets := secretsDir(t)
	for _, row := range []struct {
		name, customize, field, says string
		hidden                       bool
	}{
		{"one for each", `{"spec":{` + host + `,"nicSettingMap":[{` + ip + `}]}}`, "", "", false},
		{"none", `{"spec":{` + host + `}}`, "customize.spec.nicSettingMap",
			"has 0 entries, and the VM has 1 NIC (00:50:56:00:00:01)", false},
		{"more", `{"spec":{` + host + `,"nicSettingMap":[{` + ip + `},{` + ip + `}]}}`, "customize.spec.nicSettingMap",
			"has 2 entries, and the VM has 1 NIC", false},
		{"another's MAC", `{"spec":{` + host + `,"nicSettingMap":[{"macAddress":"00:50:56:00:00:99",` + ip + `}]}}`,
			"customize.spec.nicSettingMap[0].macAddress", "none of the VM's NICs", false},
		{"its own, in another notation", `{"spec":{` + host + `,"nicSettingMap":[{"macAddress":"00-50-56-00-00-01",` +
			ip + `}]}}`, "", "", false},
		{"stored, none", `{"specName":"no adapters"}`, "customize.specName",
			`"no adapters" of vCenter lab: nicSettingMap: has 0 entries`, false},
		{"none, and vCenter does not show the hardware", `{"spec":{` + host + `}}`, "", "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				if row.hidden {
					w.vm.cards = nil
				}
				run := w.run(only(`"verify":false,"customize":` + row.customize))
				if row.field == "" {
					mustSucceed(w)
					return
				}
				if run.Error == nil || run.Error.Code != events.InvalidRequest || len(run.Check.Blockers) != 1 {
					w.t.Fatalf("%+v, %+v", run.Error, run.Check)
				}
				if b := run.Check.Blockers[0]; b.Field != row.field || !strings.Contains(b.Message, row.says) {
					w.t.Errorf("%+v", b)
				}
			})
		})
	}
}
