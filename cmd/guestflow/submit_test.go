package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// A request from its flags to its exit code, in every way in which it can end, and what the other commands then say of
// it.
func TestRuns(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{VMs: 12})
	vms := s.vc.VMs()
	for _, vm := range vms {
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) {
			g.CustomizeTime, g.NetworkTime = 100*time.Millisecond, 50*time.Millisecond
		})
	}
	s.serve()

	t.Run("succeeds", func(t *testing.T) {
		t.Parallel()
		s := &site{t, s.url, s.vc, s.env}
		vm := vms[0]
		r := s.do(s.whole(vm, "--id", "r-1", "--wait")...).want(t, 0)
		all := cloudEvents(t, r.out)
		got := slices.DeleteFunc(kinds(all), func(k string) bool { return k == "customize.progressed" })
		want := []string{
			"run.accepted",
			"check.completed",
			"customize.starting",
			"customize.started",
			"customize.completed",
			"network.starting",
			"network.started",
			"network.completed",
			"verify.completed",
			"process.starting",
			"process.started",
			"process.exited",
			"run.succeeded",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if e := all[0]; e.Subject() != vm || e.Extensions()["causationid"] != "r-1" {
			t.Errorf("the first event is %v", e)
		}
		// Sent again it is not run again: its end is told.
		again := s.read(s.whole(vm, "--id", "r-1", "--wait")...).want(t, 0, "run.succeeded")
		golden(t, "submit", strings.ReplaceAll(again.out, vm, "VM"))
		if n := s.vc.Count("CustomizeGuest_Task", vm); n != 1 {
			t.Errorf("%d CustomizeGuest_Task", n)
		}
		golden(t, "status", strings.ReplaceAll(s.read("status", vm).want(t, 0).out, vm, "VM"))
		var v vmStatus
		if err := json.Unmarshal([]byte(s.do("status", vm).want(t, 0).out),
			&v); err != nil || v.Run == nil || v.Run.Customize.DecidedBy != "task" ||
			*v.Unfinished != 0 {
			t.Errorf("status in a pipe: %+v, %v", v, err)
		}
		// The same identity with other data is another thing.
		s.read("submit", "--vm", vm, "--check-only", "--id", "r-1", "--wait").want(t, 2, "DuplicateRequest")
		s.read("cancel", vm, "--id", "r-1", "--wait").want(t, 1, "run.succeeded")
		s.read("cancel", vm).want(t, 2, "no current run", "succeeded")
	})

	t.Run("fails", func(t *testing.T) {
		t.Parallel()
		s := &site{t, s.url, s.vc, s.env}
		vm := vms[1]
		r := s.read("submit", "--vm", vm, "--secret", "linux-root",
			"--run", "join-domain=/bin/sh -c 'exit 3'", "--id", "r-2", "--wait").want(t, 1)
		golden(t, "submit-failed", normalNIC(strings.ReplaceAll(r.out, vm, "VM")))
		golden(t, "status-failed", normalNIC(strings.ReplaceAll(s.read("status", vm).want(t, 0).out, vm, "VM")))
		s.read("watch", vm, "--since", "1h", "--until-end").want(t, 1, "run.accepted", "ExitCode")
	})

	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		s := &site{t, s.url, s.vc, s.env}
		vm := vms[2]
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
		w := s.begin(false, s.whole(vm, "--id", "r-3", "--wait", "--text")...)
		w.out.await(t, "customize.started")
		s.read("status", vm).want(t, 0, "running", "customize", "join-domain")
		// Another request waits for its turn; a third one finds the queue full.
		s.do("submit", "--vm", vm, "--check-only", "--id", "r-4").want(t, 0, `"run":`)
		s.do("submit", "--vm", vm, "--check-only", "--id", "r-5").want(t, 4, "as many unfinished requests")
		s.read("status", vm).want(t, 0, "2 of 2 unfinished", "r-4 from urn:guestflow:cli")
		s.read("status", "--only", "running").want(t, 0, vm, "2/2")
		s.read("cancel", vm, "--id", "r-4", "--reason", "no longer wanted").want(t, 0, "is stored")
		// watch begins where the current run does
		follow := s.begin(false, "watch", vm, "--until-end", "--text")
		follow.out.await(t, "customize.started")
		s.read("cancel", vm, "--wait").want(t, 0, "run.canceled")
		w.end().want(t, 3, "run.canceled", "urn:guestflow:cli")
		follow.end().want(t, 3, "run.accepted")
		s.read("submit", "--vm", vm, "--check-only", "--id", "r-4", "--wait").want(t, 3, "no longer wanted")
	})

	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		s := &site{t, s.url, s.vc, s.env}
		vm := vms[3]
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = 1500 * time.Millisecond })
		w := s.begin(true, s.whole(vm, "--wait")...)
		w.out.await(t, "\r⠙")
		r := w.end().want(t, 0, "\x1b[32mrun.succeeded", "customize ████", "%")
		if last := r.out[strings.LastIndex(r.out, "\r\x1b[K"):]; strings.ContainsAny(last, "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏") {
			t.Errorf("the line at the bottom stays: %q", last)
		}
		if _, accepted, _ := strings.Cut(r.out, "run.accepted"); strings.Contains(accepted, "waits for its turn") {
			t.Errorf("it waits for its turn again: %q", r.out)
		}
		s.begin(true, "status").end().want(t, 0, "\x1b[1mVM", vm)
		quiet := &site{t, s.url, s.vc, map[string]string{"NATS_URL": s.url, "NO_COLOR": "1"}}
		if r := quiet.begin(true, "status", "--vcenter", "lab").
			end().
			want(t, 0, vm); strings.Contains(
			r.out,
			"\x1b[3",
		) {
			t.Errorf("colours with NO_COLOR: %q", r.out)
		}
		if r := s.begin(true, "status", vm, "--json").end().want(t, 0); !json.Valid([]byte(r.out)) {
			t.Errorf("--json on a terminal: %q", r.out)
		}
	})

	t.Run("from a file", func(t *testing.T) {
		t.Parallel()
		s := &site{t, s.url, s.vc, s.env}
		vm := vms[4]
		all := cloudEvents(t, begin(t, s.env, false, data(vm), "submit", "-", "--wait").end().want(t, 0).out)
		if got := kinds(all); !slices.Equal(got, []string{"run.accepted", "check.completed", "run.succeeded"}) {
			t.Errorf("events %v", got)
		}
		whole := s.file(
			"event.json",
			`{"specversion":"1.0","type":"io.guestflow.customization.requested.v1","source":"/provisioning",`+
				`"id":"order-1","subject":"`+vm+`","datacontenttype":"application/json","data":`+data(vm)+`}`,
		)
		s.read("submit", whole, "--wait").want(t, 0, "order-1 from /provisioning", "run.succeeded")
		s.read("submit", whole, "--id", "order-2", "--wait").want(t, 0, "order-2 from /provisioning", "run.succeeded")
	})

	t.Run("interrupted and late", func(t *testing.T) {
		t.Parallel()
		s := &site{t, s.url, s.vc, s.env}
		vm := vms[5]
		s.vc.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
		w := s.begin(false, s.whole(vm, "--wait", "--text")...)
		w.out.await(t, "customize.started")
		w.stop()
		w.end().want(t, 4, "not waiting any more", "guestflow watch "+vm)
		s.read(append(s.whole(vm, "--wait"), "--wait-timeout", "50ms")...).want(t, 4, "no end within 50ms")
		s.read("cancel", vm, "--wait").want(t, 0)
	})

	t.Run("watch everything", func(t *testing.T) {
		t.Parallel()
		s := &site{t, s.url, s.vc, s.env}
		vm := vms[6]
		w := s.begin(false, "watch")
		lab := s.begin(false, "watch", "--vcenter", "lab", "--text", "--since", "1h")
		for !strings.Contains(w.out.String(), vm) { // until the watch listens
			s.do("submit", "--vm", vm, "--check-only", "--wait").want(t, 0)
		}
		w.stop()
		if len(cloudEvents(t, w.end().want(t, 0).out)) == 0 {
			t.Error("no events")
		}
		lab.out.await(t, vm)
		lab.stop()
		lab.end().want(t, 0)
	})
}

// normalNIC replaces a guest's own MAC and addresses.
func normalNIC(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if at := strings.Index(line, "seen "); at >= 0 {
			line = line[:at] + "seen WHAT\n"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "")
}

// What is wrong is found before anything is sent: NATS is not even needed.
func TestCheckedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	env := map[string]string{"NATS_URL": "nats://127.0.0.1:1", "GUESTFLOW_VCENTERS": "lab"}
	const cloudEvent = `{"specversion":"1.0","source":"/a","id":"1","type":"io.guestflow.customization.`
	password := `{"vm":"vm-42","customize":{"spec":{"identity":{"password":{"plainText":true,"value":"hunter2"}}}}}`
	expired := cloudEvent + `requested.v1","expirytime":"2020-01-01T00:00:00Z","data":{"vm":"vm-42"}}`
	another := `{"specversion":"1.0","source":"/a","id":"1","type":"com.example.other","data":{"vm":"vm-42"}}`
	cancel := cloudEvent + `cancel.requested.v1","data":{"vm":"vm-42","request":{"source":"/a","id":"2"}}}`
	large := `{"vm":"vm-42","customize":{"specName":"` + strings.Repeat("x", 300<<10) + `"}}`
	noCredentials := `{"vm":"vm-42","network":{}}`
	for _, test := range []struct {
		name, in, args string // args: after "guestflow"
		code           int
		says           string
	}{
		{"unknown field", `{"vm":"vm-42","custmize":{}}`, "submit -", 2, "custmize: is not a known field"},
		{"no vm", `{}`, "submit -", 2, "vm: is required"},
		{"no JSON", "{\n\n]", "submit -", 2, "line 3"},
		{"a password", password, "submit -", 2, "customize.spec.identity.password.value: holds a literal password"},
		{"no credentials", noCredentials, "submit -", 2, "guest.credentials: is required for network"},
		{"expired", expired, "submit -", 2, "has passed"},
		{"another type", another, "submit -", 2, "type is"},
		{"a cancel", cancel, "submit -", 4, "guestflow cancel"},
		{"too large", large, "submit -", 2, "too large"},
		{"nothing", "", "submit", 4, "nothing to send"},
		{"nothing to do", "", "submit --vm vm-42", 4, "--check-only"},
		{"no secret", "", "submit --vm vm-42 --network", 4, "--secret is missing"},
		{"no run", "", "submit --vm vm-42 --secret s --run x", 4, "is not 'name=/path args'"},
		{"check and more", "", "submit --vm vm-42 --secret s --check-only --network", 4, "changes nothing"},
		{"two specs", "", "submit --vm vm-42 --secret s --spec x --spec-name y", 4, "exclude each other"},
		{"file and flags", "", "submit x.json --vm vm-42", 4, "leave out --vm"},
		{"timeout", "", "submit --vm vm-42 --check-only --timeout soon", 2, "timeout: must be a duration"},
		{"vm", "", "submit --vm web*1 --check-only", 4, "not a managed object ID"},
		{"vcenter", "", "submit --vm vm-42 --check-only --vcenter LAB", 4, "no name of a vCenter"},
		{"flag", "", "submit --nonsense", 4, "see guestflow submit --help"},
		{"command", "", "nonsense", 4, "unknown command"},
		{"json and text", "", "version --json --text", 4, "json text"},
		{"NATS away", data("vm-42"), "submit -", 4, "Set NATS_URL, or --server"},
		{"only", "", "status --only nonsense", 4, "one of queued"},
		{"until end of what", "", "watch --until-end", 4, "name it"},
		{"source alone", "", "cancel vm-42 --source /a", 4, "say --id too"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := begin(t, env, false, test.in, strings.Fields(test.args)...).end().want(t, test.code, test.says)
			if strings.Contains(r.out+r.err, "hunter2") {
				t.Error("a secret is printed")
			}
		})
	}
	none := map[string]string{}
	begin(t, none, false, "", "status", "vm-42").end().want(t, 4, "Say --vcenter NAME")
	begin(t, map[string]string{"GUESTFLOW_VCENTERS": "lab, prod"}, false, "", "cancel", "vm-42").end().
		want(t, 4, "names lab, prod")
}

// A publish for a vCenter without a service says so, and names those that have one.
func TestNobodyServes(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{}).serve()
	s.do("submit", "--vm", "vm-42", "--check-only", "--vcenter", "prod").
		want(t, 4, "no service for vCenter prod has started", "The vCenters with a service are: lab")
	s.do("status", "vm-404").want(t, 4, "nothing is known of vm-404")
	s.do("status").want(t, 0)
	s.read("status").want(t, 0, "no VM has")
	s.do("status", "vm-1", "--vcenter", "prod").want(t, 4, "no stream GUESTFLOW_REQUESTS_prod")
	s.do("cancel", "vm-404").want(t, 2, "no run to cancel")
}
