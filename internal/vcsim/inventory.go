package vcsim

import (
	"fmt"
	"slices"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// inventory is the VMs by managed object ID.
type inventory struct {
	mu    sync.Mutex
	vms   map[string]*VM
	order []string // of the ready-made ones
}

// makeVMs makes the ready-made VMs and gives each a guest. The tasks of their making stay in the history alone, as
// those of an older vCenter would.
func (v *VCenter) makeVMs() error {
	dc := v.reg.Any("Datacenter").(*simulator.Datacenter)
	cluster := v.reg.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	folder := v.reg.Get(dc.VmFolder).(*simulator.Folder)
	tasks := make([]*simulator.Task, v.opts.VMs)

	for i := range tasks {
		config := types.VirtualMachineConfigSpec{
			Name:    fmt.Sprintf("guest-%03d", i+1),
			GuestId: string(types.VirtualMachineGuestOsIdentifierUbuntu64Guest),
			Files:   &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0]"},
		}

		for nic := range v.opts.NICs {
			config.DeviceChange = append(config.DeviceChange, &types.VirtualDeviceConfigSpec{
				Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: newCard(i*v.opts.NICs+nic, nic),
			})
		}

		ctx := v.newContext()
		ctx.Session = v.svc.Context.Session // vcsim's events name a user
		req := &types.CreateVM_Task{This: folder.Self, Config: config, Pool: *cluster.ResourcePool}
		res, ok := folder.CreateVMTask(ctx, req).(*methods.CreateVM_TaskBody)
		if !ok || res.Res == nil {
			return fmt.Errorf("vcsim: make VM %s: refused", config.Name)
		}

		tasks[i] = v.reg.Get(res.Res.Returnval).(*simulator.Task)
		// It holds the folder's lock until its VM is made. Only then the next one: Tasks and VMs are numbered by one
		// counter, and each start shall give the same IDs.
		v.newContext().WithLock(folder.Self, func() {})
	}

	for i, task := range tasks {
		task.Wait() // by polling: only after all were begun
		ref, ok := task.Info.Result.(types.ManagedObjectReference)
		if !ok {
			return fmt.Errorf("vcsim: make VM %d: %+v", i+1, task.Info.Error)
		}

		ctx := v.newContext()
		ctx.Map.AtomicUpdate(ctx, ctx.Map.Get(ref), powerChanges(types.VirtualMachinePowerStatePoweredOn))
		v.inv.order = append(v.inv.order, ref.Value)
		v.VM(ref.Value).SetNICs(true)
	}

	v.tasks.forgetTasks()
	return nil
}

// newCard is the n-th NIC of a vCenter, and the unit-th of its VM.
func newCard(n, unit int) *types.VirtualVmxnet3 {
	card := new(types.VirtualVmxnet3)
	card.Key = int32(4000 + unit)
	card.ControllerKey = 100
	card.UnitNumber = types.NewInt32(int32(7 + unit))
	card.Backing = &types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "VM Network"},
	}
	card.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true, Status: "ok"}
	card.SlotInfo = &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: int32(firstSlot + slotStep*unit)}
	card.AddressType = "assigned"
	card.MacAddress = fmt.Sprintf("00:50:56:%02x:%02x:%02x", n>>16&0x3f, n>>8&0xff, n&0xff)
	return card
}

// VMs are the managed object IDs of the ready-made VMs, in the order of their making.
func (v *VCenter) VMs() []string {
	v.inv.mu.Lock()
	defer v.inv.mu.Unlock()
	return slices.Clone(v.inv.order)
}

// VM is the VM with a managed object ID, nil where there is none. VMs that clients made get a guest, too.
func (v *VCenter) VM(id string) *VM {
	v.inv.mu.Lock()
	defer v.inv.mu.Unlock()

	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: id}
	obj, ok := v.reg.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil
	}
	if vm := v.inv.vms[id]; vm != nil {
		return vm
	}

	vm := &VM{v: v, ref: ref, n: len(v.inv.vms) + 1, guest: newGuest()}
	ctx := v.newContext()
	ctx.WithLock(ref, func() { vm.name = obj.Name })
	vm.info.CustomizationStatus = "TOOLSDEPLOYPKG_IDLE"
	vm.configured = vm.template()
	v.inv.vms[id] = vm
	vm.mu.Lock()
	defer vm.mu.Unlock()

	if vm.power() == types.VirtualMachinePowerStatePoweredOn {
		vm.powered = true
		vm.boot(0)
	} else {
		vm.report()
	}

	return vm
}

// template is what a guest is before anybody customizes it.
func (vm *VM) template() identity {
	id := identity{hostName: "template", addresses: make(map[string][]string)}
	for i, mac := range vm.macs() {
		id.addresses[mac] = []string{fmt.Sprintf("10.%d.%d.%d", i, vm.n/250, vm.n%250+1)}
	}
	return id
}
