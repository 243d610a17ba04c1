package handler

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// engineFault is how a Task ends whose engine gave a code.
func engineFault(words string) *vcapi.Error {
	return &vcapi.Error{Name: "NicSettingMismatch", Message: "An error occurred: " + words, Class: vcapi.Permanent,
		Sent: vcapi.Answered}
}

func TestEngineCodes(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for words, want := range map[string]struct {
		says  string
		retry bool
	}{
		"ERR,243,Lock held":      {"code 243: another customization holds its lock", true},
		"ERR,245,config":         {"code 245: it could not read its configuration", true},
		"ERR,252,resolv.conf":    {"code 252: the guest's DNS settings", false},
		"ERR, 253, eth0":         {"code 253: a NIC could not be set up", false},
		"ERR,17,nobody knows":    {"ERR,17,nobody knows", false},
		"TERR,243,of else, 1243": {"TERR,243", false},
	} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			for _, told := range []string{"Task", "guest"} {
				withHarness(t, secrets, func(w *harness) {
					if told == "Task" {
						w.vc.on(rule{op: "CustomizeGuest sent", times: 1, task: engineFault(words)})
					} else {
						w.vm.lies, w.vm.saying = "FAILED", words
					}
					e := w.run(only(customizeOnly)).Error
					if e == nil || e.Code != events.CustomizationFailed || !strings.Contains(e.Message, want.says) ||
						e.Retryable != want.retry {
						w.t.Errorf("by its %s: error %+v", told, e)
					}
					if explained := strings.Contains(e.Message,
						"the customization engine in the guest ended"); explained != strings.HasPrefix(want.says,
						"code") {
						w.t.Errorf("message %s", e.Message)
					}
				})
			}
		})
	}
}

// What the service's login may not do is told before anything is changed, all of it at once, each with the part of the
// request that needs it.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	all := []string{mayCustomize, mayConnect, mayEdit, mayExecute, mayQuery}
	watch := only(`"processes":[{"name":"first","watch":{"pid":1}}]`)
	for _, row := range []struct {
		name, request string
		lacks         []string
		fields        []string
	}{
		{"everything asked for", strings.Replace(whole, `"network":{}`, `"network":{"connectNics":true}`, 1), all,
			[]string{"network.connectNics", "processes", "processes", "network.connectNics", "customize"}},
		{"the network alone", only(networkOnly), all, []string{"network"}},
		{"a watched process", watch, all, []string{"processes"}},
		{"nothing that is needed", only(networkOnly), []string{mayConnect, mayEdit, mayExecute, mayQuery}, nil},
		{"a check alone", `{"vm":"vm-42"}`, all, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.vc.lacks = row.lacks
				run := w.run(row.request)
				var fields []string
				for _, b := range run.Check.Blockers {
					if b.Code != string(events.Unauthorized) {
						w.t.Errorf("blocker %+v", b)
					}
					fields = append(fields, b.Field)
				}

				if !slices.Equal(fields, row.fields) {
					w.t.Errorf("blockers of %v, want %v", fields, row.fields)
				}
				if row.fields != nil && (run.Status != events.StatusFailed || run.Error.Code != events.Unauthorized ||
					len(w.vc.effects) > 0) {
					w.t.Errorf("status %s, error %+v, effects %v", run.Status, run.Error, w.vc.effects)
				}
				if row.fields == nil {
					mustSucceed(w)
				}
			})
		})
	}

	t.Run("vCenter does not tell", func(t *testing.T) {
		t.Parallel()
		withHarness(t, secrets, func(w *harness) {
			w.vc.lacks = all
			w.vc.on(rule{op: "MissingPrivileges", err: vcError("NoPermission", 500, vcapi.Permanent)})
			w.run(only(networkOnly))
			mustSucceed(w)
		})
	})

	t.Run("vCenter is away for a moment", func(t *testing.T) {
		t.Parallel()
		withHarness(t, secrets, func(w *harness) {
			w.vc.on(rule{op: "MissingPrivileges", times: 3, err: vcError("", 503, vcapi.Transient)})
			w.run(only(networkOnly))
			mustSucceed(w)
		})
	})
}

// The last event of a run that did not succeed holds the end of the engine's log, where the engine worked and its log
// can be read.
func TestEngineLog(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	fails := func(w *harness) {
		w.vc.on(rule{op: "CustomizeGuest sent", times: 1, task: engineFault("ERR,253,eth0")})
	}
	long := strings.Repeat("2026-11-21 INFO something was done to the guest\n", 1000)
	for name, row := range map[string]struct {
		request string
		harness func(w *harness)
		want    []string // the last lines
	}{
		"fails": {only(customizeOnly), func(w *harness) { fails(w); w.vm.log = "one\ntwo\n" }, []string{"one", "two"}},
		"a long log, with a password": {only(customizeOnly),
			func(w *harness) { fails(w); w.vm.log = long + "login as root with guest-secret\nend\n" },
			[]string{"login as root with ***", "end"}},
		"no log":    {only(customizeOnly), fails, nil},
		"empty log": {only(customizeOnly), func(w *harness) { fails(w); w.vm.log = "\n" }, nil},
		"no engine worked": {only(customizeOnly), func(w *harness) {
			w.vm.log = "of an earlier run\n"
			w.vm.check = vcapi.Check{Status: "NOT_SUPPORTED"}
		}, nil},
		"fails in the network": {only(networkOnly), func(w *harness) {
			w.vc.on(rule{op: "StartGuestNetwork sent", times: 1, task: engineFault("ERR,244,ifup")})
			w.vm.log = "ifup\n"
		}, []string{"ifup"}},
		"cannot be read": {only(customizeOnly), func(w *harness) {
			fails(w)
			w.vm.log = "one\n"
			w.vc.on(rule{op: "GuestFile", hang: true})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				row.harness(w)
				run := w.run(row.request)
				if run.Status != events.StatusFailed || run.Observed == nil {
					w.t.Fatalf("status %s, observed %+v", run.Status, run.Observed)
				}
				got := run.Observed.GuestLog
				if len(got) > logLines || !slices.Equal(got[max(0, len(got)-len(row.want)):], row.want) ||
					row.want == nil && got != nil {
					w.t.Errorf("log %q", got)
				}
			})
		})
	}
}

// No secret that the request names is in the log that is published, also where another owner publishes it; where one
// cannot be read, no log is.
func TestEngineLogHoldsNoSecret(t *testing.T) {
	t.Parallel()
	request := `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"customize":{` +
		`"spec":{"identity":{"_typeName":"CustomizationLinuxPrep","hostName":{"_typeName":"CustomizationCustomName"},` +
		`"x":{"secretRef":"keys","key":"spec"}},` + anyNIC + `},` +
		`"configParams":[{"key":"a","value":{"_typeName":"string","_value":{"secretRef":"keys","key":"params"}}}]},` +
		`"processes":[{"name":"first","run":{"path":"/usr/bin/first","environment":{"TOKEN":{"secretRef":"keys",` +
		`"key":"environment"}}}}]}`
	for _, plan := range [][]incident{nil, crash("stored customize.started"),
		{{point: "stored customize.started", do: "call, then crash"}}} {
		dir := secretsDir(t)
		keys := filepath.Join(string(dir), "keys")
		if err := os.Mkdir(keys, 0o700); err != nil {
			t.Fatal(err)
		}
		var secrets []string
		for _, key := range []string{"spec", "params", "environment"} {
			secrets = append(secrets, "canary-"+key)
			if err := os.WriteFile(filepath.Join(keys, key), []byte("canary-"+key), 0o600); err != nil {
				t.Fatal(err)
			}
		}

		withHarness(t, dir, func(w *harness) {
			lost := len(plan) == 1 && plan[0].do != "crash"
			if lost {
				plan[0].fn = func() { _ = os.Remove(filepath.Join(keys, "params")) }
			}
			w.vm.log = strings.Join(secrets, "\n")
			w.vc.on(rule{op: "CustomizeGuest sent", times: 1, task: engineFault("ERR,253,eth0")})
			run := w.run(request, plan)
			want := []string{"***", "***", "***"}
			if lost {
				want = nil
			}
			if run.Status != events.StatusFailed || run.Observed == nil || !slices.Equal(run.Observed.GuestLog, want) {
				w.t.Errorf("status %s, observed %+v", run.Status, run.Observed)
			}
		})
	}
}
