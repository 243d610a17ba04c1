package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// leastRole is what deploy/vcenter grants.
func leastRole(t *testing.T) *vcsim.Privileges {
	t.Helper()
	read := func(name string) []string {
		content, err := os.ReadFile("../../deploy/vcenter/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(content))
	}
	return &vcsim.Privileges{Root: read("role-root.txt"), VMs: read("role-vm.txt")}
}

// allBut is a list without one element.
func allBut(all []string, one string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == one })
}

// withNICs is the data of a request that connects NICs, too.
func withNICs() map[string]any {
	data := fullRequest("exit 0")
	data["network"] = map[string]any{"connectNics": true}
	data["verify"] = map[string]any{"timeout": "20s"}
	return data
}

// byStoredSpec is the data of a request that customizes by a specification that is stored in vCenter.
func byStoredSpec() map[string]any {
	data := fullRequest("exit 0")
	data["customize"] = map[string]any{"specName": "vcsim-linux"}
	data["verify"] = false
	return data
}

// loseCall loses a VM's next customization on its way, where nothing but a session that lives on can prove that it was
// lost: vCenter remembers no Task.
func (s *harness) loseCall(vm string) {
	s.vc.ForgetTasks()
	s.vc.ForgetHistory()
	s.vc.Script(vcsim.Rule{VM: vm, Op: "CustomizeGuest_Task", Times: 1, LoseCall: true})
}

// refused are the calls that vCenter refused for want of a privilege, by VM.
func (s *harness) refused() map[string][]string {
	all := map[string][]string{}
	for _, c := range s.vc.Calls() {
		if c.Fault == "NoPermission" || c.Fault == "UNAUTHORIZED" {
			all[c.VM] = append(all[c.VM], c.Op)
		}
	}
	return all
}

// With the roles that deploy/vcenter has, and nothing more, all that the service does is allowed: with a vCenter that
// has one session for everything, and with ones that have two, of which the oldest knows REST's processes in the older
// form alone.
func TestLeastRoleIsEnough(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"9.0.0.0", "8.0.2.0", "8.0.1.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s := newHarness(t, startNATS(t), vcsim.Options{APIVersion: version, OnlyRest: version == "8.0.1.0", VMs: 9,
				Privileges: leastRole(t)})
			briefGuests(s.vc)
			vms := s.vc.VMs()
			r := s.replicate(1)
			succeeded := func(id string) event {
				t.Helper()
				e := s.ended(id)
				if e.kind != "run.succeeded" {
					t.Errorf("%s ended with %s: %+v", id, e.kind, e.run.Error)
				}
				return e
			}

			s.loseCall(vms[0])
			s.publish(vms[0], "lost call", fullRequest("exit 0"))
			succeeded("lost call")
			s.settled("lost call", vms[0])
			s.once("lost call", vms[0])
			if s.vc.Count("SessionIsActive", "") == 0 {
				t.Error("the lost call was repeated without asking whether the session lives")
			}

			s.vc.VM(vms[1]).SetNICs(false)
			s.publish(vms[1], "nics", withNICs())
			s.publish(vms[2], "stored spec", byStoredSpec())
			s.publish(vms[3], "process", fullRequest("exit 0"))
			s.vc.VM(vms[4]).Configure(func(g *vcsim.Guest) { g.CustomizeTime = forEver })
			s.publish(vms[4], "cancel", fullRequest("exit 0"))
			s.vc.VM(vms[5]).Configure(func(g *vcsim.Guest) { g.CustomizeTime, g.Cancelable = forEver, false })
			s.publish(vms[5], "abort", fullRequest("exit 0"))
			s.publish(vms[6], "delete", fullRequest("sleep 3600"))
			s.vc.VM(vms[7]).Configure(func(g *vcsim.Guest) { // aborted, and customized once more
				g.Crash, g.Files["/var/log/vmware-gosc/instant_clone_customization.log"] = true, "said the engine\n"
			})
			crash := fullRequest("exit 3")
			crash["verify"] = map[string]any{"timeout": "1s"}
			s.publish(vms[7], "crash", crash)
			for id, at := range map[string]string{"cancel": "customize.started", "abort": "customize.started",
				"delete": "process.started"} {
				vm := s.await(id, at).run.VM
				s.cancel(vm, "cancel of "+id, id)
			}
			for _, id := range []string{"cancel", "abort", "delete"} {
				if e := s.ended(id); e.kind != "run.canceled" {
					t.Errorf("%s ended with %s: %s", id, e.kind, e.Data)
				}
			}
			if e := s.ended("crash"); e.run.Error.Code != "ExitCode" ||
				!strings.Contains(string(e.Data), "said the engine") {
				t.Errorf("crash ended with %s: %s", e.kind, e.Data)
			}
			succeeded("nics")
			if n := s.vc.Count("ReconfigVM_Task", vms[1]); n != 1 {
				t.Errorf("%d ReconfigVM_Task for NICs that were off, want 1", n)
			}
			succeeded("stored spec")
			pid := succeeded("process").run.Processes[0].PID
			s.settled("process", vms[3])
			s.publish(vms[3], "watch", map[string]any{"guest": fullRequest("")["guest"],
				"processes": []any{map[string]any{"name": "elsewhere", "watch": map[string]any{"pid": pid}}}})
			succeeded("watch")

			s.vc.VM(vms[8]).Configure(func(g *vcsim.Guest) { g.CustomizeTime = 2 * time.Second })
			s.publish(vms[8], "takeover", fullRequest("exit 0"))
			r.kill(s.await("takeover", "customize.started").run.Owner.Instance)
			if e := succeeded("takeover"); e.run.Owner.Takeovers != 1 {
				t.Errorf("the run was taken over %d times, want once", e.run.Owner.Takeovers)
			}
			s.settled("takeover", vms[8])
			s.once("takeover", vms[8])
			for _, instance := range instances {
				if p := r.replica(instance); p != nil {
					if err := p.stop(); err != nil {
						t.Errorf("after SIGTERM: %v", err)
					}
				}
			}

			if refused := s.refused(); len(refused) > 0 {
				t.Errorf("vCenter refused calls: %v", refused)
			}
			for op, vm := range map[string]string{"GetCustomizationSpec": "", "CancelTask": vms[4],
				"AbortCustomization_Task": vms[5],
				"guest/processes delete":  vms[6], "guest/processes get": vms[3], "guest/processes list": vms[3],
				"CreateCollectorForTasks": vms[8],
				"GET guest file":          vms[7]} {
				if s.vc.Count(op, vm) == 0 {
					t.Errorf("%s was not called for %q: this test does not show that it is allowed", op, vm)
				}
			}
		})
	}
}

// Each privilege of the roles is needed: without it a run ends, or goes on, as docs/operate/vcenter-role.md says. What
// a request needs on its VM is found out before anything is changed; taken away after that, it is found by the call.
func TestEachPrivilegeIsNeeded(t *testing.T) {
	t.Parallel()
	const customize, connect, edit = "VirtualMachine.Provisioning.Customize",
		"VirtualMachine.Interact.DeviceConnection", "VirtualMachine.Config.EditDevice"
	const execute, query = "VirtualMachine.GuestOperations.Execute", "VirtualMachine.GuestOperations.Query"
	tests := []struct {
		name  string
		lacks []string
		late  bool // taken away when the privileges have been looked at
		data  map[string]any
		step  string // in which the run fails
		calls []string
		did   func(vcsim.Effects) bool
	}{
		{name: "customize", lacks: []string{customize}, data: fullRequest("exit 0"), step: "check"},
		{name: "network", lacks: []string{customize}, data: map[string]any{"guest": fullRequest("")["guest"],
			"network": map[string]any{}}, step: "check"},
		{name: "process", lacks: []string{execute}, data: fullRequest("exit 0"), step: "check"},
		{name: "look for the process", lacks: []string{query}, data: fullRequest("exit 0"), step: "check"},
		{name: "nics", lacks: []string{connect}, data: withNICs(), step: "check"},
		{name: "the VM is not seen", lacks: []string{"System.View", "System.Read"}, data: fullRequest("exit 0"),
			step: "check"},
		{name: "customize, late", lacks: []string{customize}, late: true, data: fullRequest("exit 0"),
			step: "customize", calls: []string{"CustomizeGuest_Task"}},
		{name: "process, late", lacks: []string{execute}, late: true, data: fullRequest("exit 0"), step: "process",
			calls: []string{"guest/processes create"},
			did:   func(e vcsim.Effects) bool { return e.Customizations == 1 && len(e.Processes) == 0 }},
		{name: "look for the process, late", lacks: []string{query}, late: true, data: fullRequest("exit 0"),
			step:  "process",
			calls: []string{"guest/processes list", "InitiateFileTransferFromGuest"},
			did:   func(e vcsim.Effects) bool { return e.Customizations == 1 && len(e.Processes) == 0 }},
		{name: "nics, late", lacks: []string{connect}, late: true, data: withNICs(), step: "network",
			calls: []string{"ReconfigVM_Task"},
			did:   func(e vcsim.Effects) bool { return e.Customizations == 1 && e.NetworkStarts == 0 }},
		{name: "nics at power-on", lacks: []string{edit}, data: withNICs(), step: "check"},
	}
	role := leastRole(t)
	s := newHarness(t, startNATS(t), vcsim.Options{VMs: len(tests) + 4, Privileges: role})
	briefGuests(s.vc)
	vms := s.vc.VMs()
	var mu sync.Mutex
	late := map[string][]string{}
	s.vc.OnCall(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		mu.Lock()
		defer mu.Unlock()
		if lacks := late[c.VM]; c.Op == "guest/customization check" && phase == vcsim.Before && lacks != nil {
			s.vc.Deny(c.VM, lacks...)
			delete(late, c.VM)
		}
		return vcsim.Proceed
	})
	s.start()
	for i, test := range tests {
		if test.late {
			mu.Lock()
			late[vms[i]] = test.lacks
			mu.Unlock()
		} else {
			s.vc.Deny(vms[i], test.lacks...)
		}
		if slices.Contains(test.lacks, connect) || slices.Contains(test.lacks, edit) {
			s.vc.VM(vms[i]).SetNICs(false)
		}
		s.publish(vms[i], test.name, test.data)
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := s.ended(test.name)
			if e.kind != "run.failed" || e.run.Error.Step != test.step || e.run.Error.Code != "Unauthorized" {
				t.Fatalf("ended with %s: %+v", e.kind, e.run.Error)
			}
			did := s.vc.VM(vms[i]).Effects()
			if test.step == "check" {
				if !slices.ContainsFunc(s.blockers(test.name), func(b blocker) bool {
					return b.Code == "Unauthorized" && b.Field != ""
				}) {
					t.Errorf("blockers: %+v", s.blockers(test.name))
				}
				if !slices.ContainsFunc(test.lacks, func(p string) bool {
					return strings.Contains(e.run.Error.Message, p)
				}) {
					t.Errorf("it does not name the privilege: %s", e.run.Error.Message)
				}
			}
			if refused := s.refused()[vms[i]]; test.calls != nil && !slices.Equal(slices.Compact(refused), test.calls) {
				t.Errorf("refused calls: %v, want %v", refused, test.calls)
			}
			if test.did == nil && fmt.Sprint(did) != fmt.Sprint(vcsim.Effects{}) || test.did != nil && !test.did(did) {
				t.Errorf("in vCenter: %+v", did)
			}
		})
	}

	vms = vms[len(tests):]
	for i, test := range []struct {
		name, at string
		guest    func(*vcsim.Guest)
		ended    func(e event) bool
	}{
		{"cancel of a customization", "customize.started", func(g *vcsim.Guest) { g.CustomizeTime = forEver },
			func(e event) bool {
				return e.run.Customize.State == "canceled" && s.vc.VM(vms[0]).Effects().Aborts == 1
			}},
		{"cancel of a network start", "network.started", func(g *vcsim.Guest) { g.NetworkTime = forEver },
			func(e event) bool {
				return e.run.Network.State == "running" && strings.Contains(string(e.Data), "could not be stopped")
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.vc.Deny(vms[i], "Global.CancelTask")
			s.vc.VM(vms[i]).Configure(test.guest)
			s.publish(vms[i], t.Name(), fullRequest("exit 0"))
			s.await(t.Name(), test.at)
			s.cancel(vms[i], "cancel of "+t.Name(), t.Name())
			if e := s.ended(t.Name()); e.kind != "run.canceled" || !test.ended(e) {
				t.Errorf("ended with %s: %s", e.kind, e.Data)
			}
		})
	}
	t.Run("stored specification", func(t *testing.T) {
		s.vc.SetPrivileges(&vcsim.Privileges{Root: allBut(role.Root, "VirtualMachine.Provisioning.ReadCustSpecs"),
			VMs: role.VMs})
		s.publish(vms[2], t.Name(), byStoredSpec())
		e := s.ended(t.Name())
		if e.kind != "run.failed" || e.run.Error.Step != "check" || e.run.Error.Code != "Unauthorized" {
			t.Errorf("ended with %s: %+v", e.kind, e.run.Error)
		}
		if b := s.blockers(t.Name()); len(b) != 1 || b[0].Field != "customize.specName" {
			t.Errorf("blockers: %+v", b)
		}
	})
	t.Run("lost call", func(t *testing.T) {
		s.vc.SetPrivileges(&vcsim.Privileges{Root: allBut(role.Root, "Sessions.ValidateSession"), VMs: role.VMs})
		s.loseCall(vms[3])
		s.publish(vms[3], t.Name(), fullRequest("exit 0"))
		e := s.ended(t.Name())
		if e.kind != "run.failed" || e.run.Error.Code != "Uncertain" || s.vc.VM(vms[3]).Effects().Customizations != 0 {
			t.Errorf("ended with %s: %+v", e.kind, e.run.Error)
		}
	})
}

type blocker struct{ Code, Message, Field string }

// blockers are those of a request's check.
func (s *harness) blockers(id string) []blocker {
	s.t.Helper()
	var data struct {
		Check struct{ Blockers []blocker }
	}
	if err := json.Unmarshal(s.await(id, "check.completed").Data, &data); err != nil {
		s.t.Fatal(err)
	}
	return data.Check.Blockers
}
