package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// secret puts a secret for the guests of vCenter lab into the service's folder.
func (s *site) secret(name, user, password string) {
	s.t.Helper()
	dir := filepath.Join(s.env["GUESTFLOW_SECRETS_DIR"], "lab", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	for key, value := range map[string]string{"username": user, "password": password} {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// The trial, on a vCenter with one session for VI JSON and REST and the check, and on one with two and without it: by
// reading alone, and with all that can be allowed.
func TestDoctorTries(t *testing.T) {
	t.Parallel()
	for name, version := range map[string]string{"new": "9.0.0.0", "old": "8.0.2.0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, vcsim.Options{APIVersion: version})
			vm := s.vc.VMs()[0]
			reading := s.read("doctor", "--try", vm).want(t, 0)
			if e := s.vc.VM(vm).Effects(); e.Aborts+e.NetworkStarts+e.Customizations+len(e.Processes) != 0 {
				t.Errorf("reading had effects: %+v", e)
			}
			all := s.read("doctor", "--try", vm, "--try-secret", "linux-root", "--allow", "process,abort,network").
				want(t, 0)
			golden(t, "doctor-try-"+name, strings.ReplaceAll(reading.out+all.out, vm, "VM"))
			if strings.Contains(all.out, vcsim.DefaultGuestPassword) || strings.Contains(all.out, s.vc.Password()) {
				t.Error("a password is printed")
			}
			// As JSON, each belief is one finding.
			var beliefsTold int
			for line := range strings.Lines(s.do("doctor", "--try", vm).want(t, 0).out) {
				var f finding
				if err := json.Unmarshal([]byte(line), &f); err != nil || f.About != "try lab "+vm || f.What == "" {
					t.Errorf("%s: %v", line, err)
				}
				if f.Verdict == confirmed || f.Verdict == refuted || f.Verdict == notCheckable {
					beliefsTold++
				}
			}
			if beliefsTold != len(beliefs) {
				t.Errorf("%d of %d beliefs are told", beliefsTold, len(beliefs))
			}
		})
	}
}

// What a vCenter shows decides: each belief that a trial can check comes out either way.
func TestDoctorTryTellsWhatItSaw(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{}).serve()
	s.taken()
	id := s.vc.VMs()[0]
	vm := s.vc.VM(id)
	s.secret("linux-user", "someone", "else")
	try := func(more ...string) result {
		return s.read(append([]string{"doctor", "--try", id}, more...)...)
	}
	line := func(r result, name string) (verdict, seen string) {
		t.Helper()
		lines := strings.Split(r.out, "\n")
		for i, l := range lines {
			if fields := strings.Fields(l); len(fields) > 1 && fields[1] == name+":" {
				return fields[0], lines[i+1]
			}
		}
		t.Fatalf("nothing is told of %s: %s%s", name, r.out, r.err)
		return "", ""
	}
	check := func(r result, name, want, text string) {
		t.Helper()
		if got, seen := line(r, name); got != want || !strings.Contains(seen, text) {
			t.Errorf("%s is %s: %s; want %s and %q", name, got, seen, want, text)
		}
	}
	r := try().want(t, 0)
	check(r, "status-moves", "not-checkable", "no CustomizeGuest_Task")
	check(r, "engine-log", "not-checkable", "--try-secret")
	check(r, "marker", "not-checkable", "--try-secret")
	check(r, "script-text", "not-checkable", "takes a customization")
	check(try("--try-secret", "linux-root"), "marker", "not-checkable", "--allow process")

	// A customization whose status stays, then one whose status moves.
	s.do(s.whole(id, "--wait")...).want(t, 0)
	check(try(), "status-moves", "confirmed", "IDLE")
	check(try(), "task-names", "confirmed", "CustomizeGuest_Task is vm.GuestCustomizationManager.customize")
	vm.Configure(func(g *vcsim.Guest) { g.UpdatesStatus = true })
	s.do(s.whole(id, "--wait")...).want(t, 0)
	check(try(), "status-moves", "refuted", "SUCCEEDED, begun")
	s.do("submit", "--vm", id, "--check-only", "--wait").want(t, 0)

	// A guest user who is not root.
	vm.Configure(func(g *vcsim.Guest) { g.Username, g.Password, g.Root = "someone", "else", false })
	check(try("--try-secret", "linux-user"), "root", "not-checkable", "--allow abort")
	check(try("--try-secret", "linux-user", "--allow", "abort"), "root", "confirmed", "GuestPermissionDenied")
	vm.Configure(func(g *vcsim.Guest) { g.Root = true })
	check(try("--try-secret", "linux-user", "--allow", "abort"), "root", "refuted", "success")

	// Nothing in a guest that is off, and no VM that is not there.
	vm.PowerOff()
	check(try("--try-secret", "linux-user"), "one-at-a-time", "not-checkable", "poweredOff")
	s.read("doctor", "--try", "vm-404404").want(t, 1, "broken", "vm-404404")
	for _, wrong := range [][]string{
		{"--allow", "abort"},
		{"--try", id, "--allow", "abort"},
		{"--try", id, "--try-secret", "x", "--allow", "all"},
		{"--try", "a.b"},
	} {
		s.read(append([]string{"doctor"}, wrong...)...).want(t, 4)
	}
	s.read("doctor", "--try", id, "--try-secret", "nobody").want(t, 1, "secret nobody")
}
