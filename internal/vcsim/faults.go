package vcsim

import (
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Faults are how a guest differs from what it and vCenter say of it. The zero value has none.
type Faults struct {
	// KeepsHostName and KeepsAddresses make a customization leave these as they are and tell nobody.
	KeepsHostName, KeepsAddresses bool
	// IgnoresNetworkStart makes StartGuestNetwork_Task succeed and do nothing.
	IgnoresNetworkStart bool
	// FinalStatus is the status that the next customizations end with where UpdatesStatus is set, without the prefix:
	// "SUCCEEDED", "FAILED", or "RUNNING" for a status that never ends. Empty: as it went.
	FinalStatus string
	// Message is the localized text of TaskError, such as "ERR,252,DNS could not be set"; empty: vCenter's own words.
	Message string
	// NoDHCPLease makes NICs that are to get their address by DHCP stay with a link-local one.
	NoDHCPLease bool
	// SwapsAddresses gives the addresses of the first two NICs to each other.
	SwapsAddresses bool
	// StatusPrecision is how finely guest.customizationInfo is pushed; the REST call tells milliseconds. Zero: a
	// second.
	StatusPrecision time.Duration
	// TaskLag is how long a new Task on this VM stays out of recentTask and of the history, beside
	// Options.VisibilityLag.
	TaskLag time.Duration
	// WorkAfterTask is how long the guest goes on after the end of CustomizeGuest_Task: only then its work is done, and
	// its status ends.
	WorkAfterTask time.Duration
}

// intercept bends a plan by the guest's Faults. vm.mu is held.
func (vm *VM) intercept(name string, p *plan) {
	p.faults, p.resets = vm.guest.Faults, vm.resets
	if p.faults.KeepsHostName {
		p.target.hostName = ""
	}
	if p.faults.KeepsAddresses {
		p.target.addresses = nil
	}

	if macs := vm.macs(); name == customizeGuest && p.faults.SwapsAddresses && len(macs) > 1 {
		a := p.target.addresses
		a[macs[0]], a[macs[1]] = a[macs[1]], a[macs[0]]
	}

	if p.fault != nil && p.message == "" {
		p.message = p.faults.Message
	}
	if name == startGuestNetwork && p.faults.IgnoresNetworkStart {
		p.applies = false
	}
}

// finishWork applies work to the guest and ends its status: at once, or WorkAfterTask later. vm.mu is held.
func (vm *VM) finishWork(name string, p plan, fault types.BaseMethodFault, killed bool) {
	end := func() {
		if vm.resets != p.resets {
			return
		}
		if !killed && p.applies {
			vm.apply(name, p.target)
		}

		done := fault == nil || p.applies && !killed
		switch says := p.faults.FinalStatus; {
		case !p.updatesStatus, says == "RUNNING" && !killed:
		case says == "SUCCEEDED" && !killed, says == "" && done:
			vm.setInfo(statusPrefix+"SUCCEEDED", "", false)
		case says == "FAILED" && fault == nil:
			vm.setInfo(statusPrefix+"FAILED", "The guest says so.", false)
		default:
			vm.setInfo(statusPrefix+"FAILED", faultText(fault, p.message), false)
		}
	}

	if killed || name != customizeGuest || p.faults.WorkAfterTask <= 0 {
		end()
		return
	}

	boot := vm.boots
	vm.v.spawn(func() {
		if !vm.v.pause(p.faults.WorkAfterTask) {
			return
		}
		vm.mu.Lock()
		defer vm.mu.Unlock()
		if vm.powered && vm.boots == boot {
			end()
		}
	})
}

// SetShown puts the guest into the state that an earlier customization left, and lets VMware Tools report it at once: a
// host name, where it is not empty, and addresses by the number of their NIC.
func (vm *VM) SetShown(hostName string, addresses map[int]string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	vm.configured = vm.configured.clone()
	if hostName != "" {
		vm.configured.hostName = hostName
	}

	macs := vm.macs()
	for n, address := range addresses {
		vm.configured.addresses[macs[n]] = []string{address}
	}

	vm.reported = vm.configured.clone()
	vm.report()
}

// BlockUpdates keeps changes of the VM, and of Tasks on it, out of the property collectors' updates, as a busy vCenter
// does. Reads of properties show them all the same. UnblockUpdates ends it.
func (vm *VM) BlockUpdates() { vm.v.changes.block(vm.ref, true) }

// UnblockUpdates ends what BlockUpdates began: the updates come.
func (vm *VM) UnblockUpdates() { vm.v.changes.block(vm.ref, false) }

// updatesBlocked reports whether updates of an object are held back.
func (v *VCenter) updatesBlocked(ref types.ManagedObjectReference) bool {
	if ref.Type == "Task" {
		v.tasks.mu.Lock()
		info, ok := v.tasks.infos[ref.Value]
		v.tasks.mu.Unlock()
		if !ok || info.Entity == nil {
			return false
		}
		ref = *info.Entity
	}
	return v.changes.isBlocked(ref)
}

// ForgetProcess lets a process disappear without a trace.
func (vm *VM) ForgetProcess(pid int64) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.procs = slices.DeleteFunc(vm.procs, func(p *process) bool { return p.pid == pid })
}

// ReusePID gives the process ID of a process, which disappears, to another one that ends at once with its own exit
// code.
func (vm *VM) ReusePID(pid, code int64) {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	for i, p := range vm.procs {
		if p.pid == pid {
			started := p.started.Add(time.Second)
			vm.procs[i] = &process{
				pid:      pid,
				name:     "other",
				owner:    p.owner,
				command:  `"/usr/bin/other"`,
				started:  started,
				until:    started,
				exitCode: code,
			}
		}
	}
}

// Remove takes the VM out of the inventory, as if somebody had deleted it. Reset puts it back.
func (vm *VM) Remove() {
	ctx := vm.v.newContext()
	obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine)
	if !ok {
		return
	}

	ctx.Map.Remove(ctx, vm.ref)
	vm.mu.Lock()
	defer vm.mu.Unlock()

	vm.removed = obj
	vm.powered = false
	vm.halt()
}

// Reset puts the VM and its guest into their first state: without faults, running, connected, not customized, with no
// effects and no rules. No work may be in flight, except what is left from before an earlier Reset.
func (vm *VM) Reset() {
	vm.v.clearScriptOf(vm.ID())
	vm.mu.Lock()
	if vm.removed != nil {
		vm.v.reg.Put(vm.removed)
		vm.removed = nil
	}

	vm.mu.Unlock()
	vm.UnblockUpdates()
	vm.SetNICs(true)
	vm.update(powerChanges(types.VirtualMachinePowerStatePoweredOn)...)
	vm.mu.Lock()
	defer vm.mu.Unlock()

	vm.resets++
	vm.halt()
	vm.guest, vm.effects = newGuest(), Effects{}
	vm.info = types.GuestInfoCustomizationInfo{CustomizationStatus: statusPrefix + "IDLE"}
	vm.configured = vm.template()
	vm.powered = true
	vm.boot(0)
}

// SpawnProcess starts a process in the guest that nobody asked vCenter for, until it is deleted; command is its command
// line.
func (vm *VM) SpawnProcess(command string) (pid int64) {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	pid = vm.guest.NextPID
	vm.guest.NextPID++
	vm.procs = append(
		vm.procs,
		&process{
			pid:     pid,
			name:    "own",
			owner:   vm.guest.Username,
			command: command,
			started: vm.v.GuestNow().Truncate(time.Second),
		},
	)

	return pid
}
