package vcsim_test

import (
	"testing"

	"github.com/guestflow/guestflow/internal/vcsim"
)

func TestCustomizeThenNetwork(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c := newREST(t, v)
	c.login()
	vm := first(v)

	info := c.end(c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7")))
	if info.State != "success" || info.Name != "CustomizeGuest_Task" || info.Entity.Value != vm.ID() || info.Progress != 100 {
		t.Fatalf("task: %+v", info)
	}
	if got := vm.HostName(); got != "template" {
		t.Errorf("host name before the network is started: %q", got)
	}
	info = c.end(c.act("StartGuestNetwork_Task", onVM(vm)))
	if info.State != "success" || info.Name != "StartGuestNetwork_Task" {
		t.Fatalf("task: %+v", info)
	}
	if got := vm.HostName(); got != "web01" {
		t.Errorf("host name: %q", got)
	}
	if got := vm.Addresses(); len(got) != 1 || got[0] != "10.0.0.7" {
		t.Errorf("addresses: %q", got)
	}
	if e := vm.Effects(); e.Customizations != 1 || e.NetworkStarts != 1 || e.Aborts != 0 {
		t.Errorf("effects: %+v", e)
	}
}
