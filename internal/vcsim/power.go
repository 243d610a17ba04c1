package vcsim

import (
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// PowerOff switches the VM off: what its guest was doing is gone, and Tasks at work in it fail.
func (vm *VM) PowerOff() { vm.setPower(types.VirtualMachinePowerStatePoweredOff) }

// PowerOn switches the VM on; VMware Tools run after BootTime.
func (vm *VM) PowerOn() { vm.setPower(types.VirtualMachinePowerStatePoweredOn) }

func (vm *VM) setPower(state types.VirtualMachinePowerState) {
	vm.update(powerChanges(state)...)
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.followPower()
}

// ToolsDown stops VMware Tools: guest calls answer 503, and the exit records of processes are gone. Work of the
// customization engine fails.
func (vm *VM) ToolsDown() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.stopTools()
	vm.killWork()
	vm.report()
}

// ToolsUp starts VMware Tools in a guest that runs.
func (vm *VM) ToolsUp() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.powered && !vm.tools {
		vm.startTools()
		vm.report()
	}
}

// RebootGuest restarts the guest: all processes end, a customization in progress fails, the engine's lock is gone, and
// what was configured is reported.
func (vm *VM) RebootGuest() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if !vm.powered {
		return
	}
	vm.halt()
	vm.boot(vm.guest.BootTime)
}

// follow brings a guest in line with its VM after a client changed the VM.
func (v *VCenter) follow(id string) {
	v.inv.mu.Lock()
	vm := v.inv.vms[id]
	v.inv.mu.Unlock()
	if vm == nil {
		return
	}

	vm.mu.Lock()
	defer vm.mu.Unlock()

	vm.followPower()
	vm.report()
}

// followPower starts or stops the guest where the VM's power state requires it. vm.mu is held.
func (vm *VM) followPower() {
	on := vm.power() == types.VirtualMachinePowerStatePoweredOn
	if on == vm.powered {
		return
	}

	vm.powered = on
	if on {
		vm.boot(vm.guest.BootTime)
		return
	}

	vm.halt()
	vm.report()
}

// halt ends all that runs in the guest. vm.mu is held.
func (vm *VM) halt() {
	vm.stopTools()
	vm.killWork()
	vm.procs = nil
	vm.guest.Locked = false // the lock lies in memory: it does not outlive a boot
}

func (vm *VM) killWork() {
	for _, r := range vm.allWork {
		r.kill(new(types.GuestOperationsUnavailable))
	}
	vm.current = nil
}

// boot starts the guest. vm.mu is held.
func (vm *VM) boot(takes time.Duration) {
	vm.boots++
	vm.booted = vm.v.GuestNow().Truncate(time.Second)
	if takes <= 0 {
		vm.startTools()
		vm.reported = vm.configured.clone()
		vm.report()
		return
	}

	vm.report()
	boot := vm.boots
	vm.v.spawn(func() {
		if !vm.v.pause(takes) {
			return
		}

		vm.mu.Lock()
		defer vm.mu.Unlock()

		if vm.boots == boot && vm.powered {
			vm.startTools()
			vm.reported = vm.configured.clone()
			vm.report()
		}
	})
}

func (vm *VM) startTools() {
	vm.tools = true
	vm.toolsPID = max(vm.toolsPID+101, 701)
	vm.toolsAt = vm.v.GuestNow().Truncate(time.Second)
}

// stopTools stops VMware Tools, which lose the exit records that they kept. vm.mu is held.
func (vm *VM) stopTools() {
	vm.tools = false
	now := vm.v.GuestNow()
	vm.procs = slices.DeleteFunc(vm.procs, func(p *process) bool { return p.ended(now) })
	for _, p := range vm.procs {
		p.orphaned = true // goes on in the guest, but nobody will tell how it ends
	}
}

// HangTools keeps VMware Tools from answering, as in a very busy guest: guest calls are refused, but what runs in the
// guest goes on, a customization too, and exit codes are kept. UnhangTools ends it.
func (vm *VM) HangTools() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.tools = false
	vm.report()
}

// UnhangTools ends what HangTools began: the same VMware Tools answer again.
func (vm *VM) UnhangTools() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.tools = vm.powered
	vm.report()
}

// power is the VM's power state.
func (vm *VM) power() types.VirtualMachinePowerState {
	state := types.VirtualMachinePowerStatePoweredOff
	ctx := vm.v.newContext()
	if obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine); ok {
		ctx.WithLock(obj, func() { state = obj.Runtime.PowerState })
	}
	return state
}

func powerChanges(state types.VirtualMachinePowerState) []types.PropertyChange {
	return []types.PropertyChange{
		{Name: "runtime.powerState", Val: state},
		{Name: "summary.runtime.powerState", Val: state},
	}
}
