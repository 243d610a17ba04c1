package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// taken waits until the service pulls requests: it says that it takes them a moment before.
func (s *site) taken() {
	s.t.Helper()
	conn, err := client.Dial(stream.Config{URL: s.url}, client.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	tick, late := time.NewTicker(10*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for open := (client.Consumers{}); open.OpenPulls == 0; {
		if open, err = conn.Consumers(s.t.Context(), "lab"); err != nil {
			s.t.Fatal(err)
		}
		select {
		case <-tick.C:
		case <-late:
			s.t.Fatal("nobody takes requests")
		}
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{ClockOffset: 30 * time.Second}).serve()
	s.taken()
	vm := s.vc.VMs()[0]
	r := s.read("doctor", "--vm", vm).want(t, 0)
	golden(t, "doctor", strings.ReplaceAll(r.out, vm, "VM"))
	for line := range strings.Lines(s.do("doctor").want(t, 0, `"verdict":"skipped"`).out) { // no VM is known
		var f finding
		if err := json.Unmarshal([]byte(line), &f); err != nil || f.About == "" || f.What == "" ||
			f.Verdict == warning && f.Cure == "" {
			t.Errorf("%s: %v", line, err)
		}
	}
	s.do("submit", "--vm", vm, "--check-only", "--wait").want(t, 0)
	s.read("doctor").want(t, 0, "privileges on "+vm+": all that the service needs")
}

// Everything that is wrong is named with its cure, and is exit code 1; nothing is changed by looking.
func TestDoctorFinds(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{APIVersion: "8.0.3.0"})
	vm := s.vc.VMs()[0]
	for name, test := range map[string]struct {
		set  map[string]string
		code int
		says []string
	}{
		"nothing has run yet": {nil, 0, []string{"warning  not there yet: stream GUESTFLOW_EVENTS, ",
			"start the service", "it has no customization check"}},
		"no streams, and none are made": {map[string]string{"GUESTFLOW_PROVISION": "false"}, 1,
			[]string{"broken   stream GUESTFLOW_EVENTS: is missing", "GUESTFLOW_PROVISION=true"}},
		"no NATS": {map[string]string{"NATS_URL": "nats://127.0.0.1:1"}, 1,
			[]string{"cannot connect to NATS", "logged in at"}},
		"wrong settings": {map[string]string{"NATS_URL": "http://x", "VCENTER_LAB_URL": ""}, 1,
			[]string{"VCENTER_LAB_URL: required", "NATS_URL:", "not checked"}},
		"wrong password": {map[string]string{"VCENTER_LAB_PASSWORD_FILE": "", "VCENTER_LAB_PASSWORD": "hunter2"}, 1,
			[]string{"InvalidLogin", "VCENTER_LAB_USERNAME (with its domain"}},
		"no CA": {map[string]string{"VCENTER_LAB_CA_FILE": ""}, 1, []string{"cure: set VCENTER_LAB_CA_FILE"}},
		"another thumbprint": {map[string]string{"VCENTER_LAB_THUMBPRINT": strings.Repeat("ab", 32)}, 1,
			[]string{"VCENTER_LAB_THUMBPRINT to the SHA-256"}},
		"no vCenter": {map[string]string{"VCENTER_LAB_URL": "https://127.0.0.1:1"}, 1,
			[]string{"whether this host may reach it"}},
	} {
		t.Run(name, func(t *testing.T) {
			env := maps.Clone(s.env)
			maps.Copy(env, test.set)
			(&site{t, s.url, s.vc, env}).read("doctor").want(t, test.code, test.says...)
		})
	}

	s.vc.Script(
		vcsim.Rule{
			Op:   "WaitForUpdatesEx",
			HTTP: &vcsim.Response{Status: 200, ContentType: "application/json", Body: `{"version":7}`},
		},
	)
	s.read("doctor", "--vm", vm).
		want(t, 1, "broken   the long poll does not show "+vm, "the answer is not understood", "version", "proxy")
	s.vc.ClearScript()

	s.vc.SetPrivileges(
		&vcsim.Privileges{
			Root: []string{"Sessions.ValidateSession"},
			VMs:  []string{"VirtualMachine.GuestOperations.Query"},
		},
	)
	s.read("doctor", "--vm", vm).
		want(t, 1, "VirtualMachine.Provisioning.ReadCustSpecs is missing on the "+
			"root folder", "VirtualMachine.Provisioning.Customize is missing on "+vm,
			"warning  privilege Global.CancelTask")
	s.read("doctor", "--vm", "vm-404404").want(t, 1, "privileges on vm-404404")
	if r := s.read("doctor", "--vm", vm); strings.Contains(r.out+r.err, s.vc.Password()) {
		t.Error("the password is printed")
	}
	for _, op := range []string{"AbortCustomization_Task", "CustomizeGuest_Task"} {
		if n := s.vc.Count(op, ""); n != 0 {
			t.Errorf("the doctor made %d %s", n, op)
		}
	}
}

// Requests that a service took before it was gone are told from those that nobody took.
func TestDoctorCountsRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{})
	provision(t, s.url)
	for _, vm := range s.vc.VMs()[:3] {
		s.publish(events.RequestSubject("lab", vm), "application/json", "{}")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	consumer, err := s.jetStream().Consumer(ctx, events.RequestsStream("lab"), events.RequestsConsumer("lab"))
	if err != nil {
		t.Fatal(err)
	}
	batch, err := consumer.Fetch(1, jetstream.FetchContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	for range batch.Messages() { // taken, and never acknowledged
	}
	s.read("doctor").
		want(t, 0, "warning  no service takes the requests for lab; waiting: 2, in progress: 1 (of a service that")
}

// The doctor's privileges are those that the roles are made of.
func TestDoctorKnowsTheRoles(t *testing.T) {
	t.Parallel()
	for file, list := range map[string][]privilege{"role-vm.txt": onVM, "role-root.txt": onRoot} {
		b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "vcenter", file))
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, p := range list {
			ids = append(ids, p.id)
		}
		slices.Sort(ids)
		if want := strings.Fields(string(b)); !slices.Equal(ids, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %v, the doctor asks for %v", file, want, ids)
		}
	}
}

// A long cure that several findings share is told once, and then referred to; a program gets it with each.
func TestDoctorTellsALongCureOnce(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ask the administrator ", 4)
	for asJSON, want := range map[bool]int{false: 1, true: 3} {
		var out bytes.Buffer
		d := &doctor{cli: &cli{screen: &screen{out: &out, json: asJSON}}}
		for range 3 {
			d.report(broken, long, "something")
			d.report(broken, "try again", "something else")
		}
		if got := strings.Count(out.String(), strings.TrimSpace(long)); got != want {
			t.Errorf("told %d times:\n%s", got, &out)
		}
		if got := strings.Count(out.String(), "try again"); got != 3 {
			t.Errorf("the short one was told %d times:\n%s", got, &out)
		}
	}
}
