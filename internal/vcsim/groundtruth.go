package vcsim

import "github.com/vmware/govmomi/simulator"

// GroundTruth is the real state of a guest, whatever VMware Tools report.
type GroundTruth struct {
	HostName  string
	Addresses []string // of all NICs in their order
	Connected bool     // all virtual NICs
	// ExitCodes are those of the processes that have ended by themselves, by command line.
	ExitCodes map[string]int64
}

// GroundTruth reads the real state of the guest, past VMware Tools.
func (vm *VM) GroundTruth() GroundTruth {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	t := GroundTruth{HostName: vm.configured.hostName, Connected: true, ExitCodes: make(map[string]int64)}
	for _, mac := range vm.macs() {
		t.Addresses = append(t.Addresses, plainAddresses(vm.configured.addresses[mac])...)
	}

	now := vm.v.GuestNow()
	for _, p := range vm.procs {
		if p.ended(now) {
			t.ExitCodes[p.command] = p.exitCode
		}
	}

	ctx := vm.v.newContext()
	if obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine); ok {
		ctx.WithLock(obj, func() {
			for _, nic := range vm.nics(obj) {
				t.Connected = t.Connected && nic.Connected
			}
		})
	}

	return t
}
