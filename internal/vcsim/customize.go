package vcsim

import (
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// guestCustomizationManagerRef is the singleton, with the name that a real vCenter gives it.
var guestCustomizationManagerRef = types.ManagedObjectReference{
	Type:  "VirtualMachineGuestCustomizationManager",
	Value: "GuestCustomizationManager",
}

// The names of the three methods and of their Tasks.
const (
	customizeGuest     = "CustomizeGuest_Task"
	startGuestNetwork  = "StartGuestNetwork_Task"
	abortCustomization = "AbortCustomization_Task"
)

// guestCustomizationManager is the VirtualMachineGuestCustomizationManager, which vcsim lacks.
type guestCustomizationManager struct {
	mo.VirtualMachineGuestCustomizationManager
	v *VCenter
}

func (v *VCenter) installGuestCustomizationManager() {
	m := &guestCustomizationManager{v: v}
	m.Self = guestCustomizationManagerRef
	v.reg.Put(m)
}

// CustomizeGuestTask customizes a running VM. Faults: ManagedObjectNotFound, InvalidPowerState, TaskInProgress,
// InvalidState (tools not running), InvalidGuestLogin, GuestPermissionDenied, InvalidArgument, UncustomizableGuest,
// NicSettingMismatch.
func (m *guestCustomizationManager) CustomizeGuestTask(
	ctx *simulator.Context, req *types.CustomizeGuest_Task,
) soap.HasFault {
	body := new(methods.CustomizeGuest_TaskBody)
	ref, fault := m.start(ctx, req.Vm, req.Auth, customizeGuest, &req.Spec)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	body.Res = &types.CustomizeGuest_TaskResponse{Returnval: ref}
	return body
}

// StartGuestNetworkTask starts the network in the guest, which shows what the last customization set.
func (m *guestCustomizationManager) StartGuestNetworkTask(
	ctx *simulator.Context, req *types.StartGuestNetwork_Task,
) soap.HasFault {
	body := new(methods.StartGuestNetwork_TaskBody)
	ref, fault := m.start(ctx, req.Vm, req.Auth, startGuestNetwork, nil)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	body.Res = &types.StartGuestNetwork_TaskResponse{Returnval: ref}
	return body
}

// AbortCustomizationTask ends a customization that runs, and frees the guest's lock.
func (m *guestCustomizationManager) AbortCustomizationTask(
	ctx *simulator.Context, req *types.AbortCustomization_Task,
) soap.HasFault {
	body := new(methods.AbortCustomization_TaskBody)
	ref, fault := m.start(ctx, req.Vm, req.Auth, abortCustomization, nil)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	body.Res = &types.AbortCustomization_TaskResponse{Returnval: ref}
	return body
}

// work is guest customization work on a VM: one Task.
type work struct {
	name   string
	task   *guestTask
	killed chan types.BaseMethodFault // how it is to end before its time; holds one
}

// kill ends work early; the first reason counts.
func (r *work) kill(why types.BaseMethodFault) {
	select {
	case r.killed <- why:
	default:
	}
}

// start checks whether a VM and its guest allow a method, and begins its Task.
func (m *guestCustomizationManager) start(
	ctx *simulator.Context,
	ref types.ManagedObjectReference,
	auth types.BaseGuestAuthentication,
	name string,
	spec *types.CustomizationSpec,
) (types.ManagedObjectReference, *soap.Fault) {
	none := types.ManagedObjectReference{}
	vm := m.v.VM(ref.Value)
	if vm == nil || ref.Type != "VirtualMachine" {
		return none, soapFaultOf(&types.ManagedObjectNotFound{Obj: ref})
	}

	vm.mu.Lock()
	defer vm.mu.Unlock()

	if fault := vm.refuse(auth, name, spec); fault != nil {
		return none, soapFaultOf(fault)
	}

	var then identity
	if spec != nil {
		var fault types.BaseMethodFault
		if then, fault = vm.identityOf(*spec); fault != nil {
			return none, soapFaultOf(fault)
		}
	}

	r := &work{name: name, killed: make(chan types.BaseMethodFault, 1)}
	user := ""
	if ctx.Session != nil {
		user = ctx.Session.UserName
	}

	ctx.WithLock(vm.ref, func() {
		r.task = m.v.tasks.newGuestTask(ctx, vm, name, descriptionID(name), user, vm.guest.Cancelable, func() bool {
			r.kill(new(types.RequestCanceled))
			return true
		})
	})

	plan := vm.plan(r, then)
	m.v.spawn(func() { vm.runTask(r, plan) })
	return r.task.Self, nil
}

// descriptionID is the VMODL key of a method's Task. That the keys have this form is a guess; clients match on the
// name.
func descriptionID(name string) string {
	switch name {
	case customizeGuest:
		return "vm.GuestCustomizationManager.customize"
	case startGuestNetwork:
		return "vm.GuestCustomizationManager.startNetwork"
	default:
		return "vm.GuestCustomizationManager.abortCustomization"
	}
}

// refuse is the fault with which vCenter refuses a method at once; nil where a Task begins. vm.mu is held.
func (vm *VM) refuse(
	auth types.BaseGuestAuthentication, name string, spec *types.CustomizationSpec,
) types.BaseMethodFault {
	if state := vm.power(); state != types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state}
	}
	if r := vm.current; r != nil && (name != abortCustomization || r.name == abortCustomization) {
		return &types.TaskInProgress{Task: r.task.Self}
	}
	if !vm.tools {
		return new(types.InvalidState)
	}
	if fault := vm.login(auth); fault != nil {
		return fault
	}
	if !vm.guest.Root {
		return new(types.GuestPermissionDenied)
	}
	if !vm.guest.Customizable || vm.guest.Family != string(types.VirtualMachineGuestOsFamilyLinuxGuest) {
		return &types.UncustomizableGuest{UncustomizableGuestOS: vm.guest.Family}
	}
	if spec == nil {
		return nil
	}

	switch spec.Identity.(type) {
	case *types.CustomizationLinuxPrep:
		return nil
	case nil:
		return &types.InvalidArgument{InvalidProperty: "spec.identity"}
	default: // Sysprep and cloud-init are of the right type, but not for this path
		return &types.UncustomizableGuest{UncustomizableGuestOS: vm.guest.Family}
	}
}

// login checks guest credentials. vm.mu is held.
func (vm *VM) login(auth types.BaseGuestAuthentication) types.BaseMethodFault {
	switch a := auth.(type) {
	case *types.NamePasswordAuthentication:
		if a.Username == vm.guest.Username && a.Password == vm.guest.Password {
			return nil
		}
	case *types.SAMLTokenAuthentication:
		if vm.guest.SAMLToken != "" && a.Token == vm.guest.SAMLToken &&
			(a.Username == "" || a.Username == vm.guest.Username) {
			return nil
		}
	}
	return new(types.InvalidGuestLogin)
}

// plan is how work will go. It is made when the work begins, so that a later Configure changes only later work.
type plan struct {
	duration      time.Duration
	fault         types.BaseMethodFault // how it ends, nil for success
	message       string
	applies       bool // whether the guest gets what was asked for
	updatesStatus bool // whether customizationInfo follows
	target        identity
	faults        Faults
	resets        int // of the VM's, see Reset
}

// plan records work on its VM and plans it. vm.mu is held.
func (vm *VM) plan(r *work, then identity) plan {
	g := &vm.guest
	p := plan{target: then}
	switch r.name {
	case customizeGuest:
		vm.effects.Customizations++
		p.duration, p.fault, p.updatesStatus = g.CustomizeTime, g.TaskError, g.UpdatesStatus
		p.applies = !g.IgnoreSpec && (p.fault == nil || g.AppliesAnyway)
		switch {
		case !g.Engine:
			p.fault, p.applies, p.updatesStatus = new(types.CustomizationFault), false, false
			p.message = "Guest Tools does not support Guest Customization. Please upgrade Guest Tools."
		case g.Locked:
			p.fault, p.applies, p.updatesStatus = new(types.CustomizationFault), false, false
			p.message = "An error occurred while customizing VM: ERR,243,lock is held by another customization."
		case g.Crash:
			p.fault, p.applies = new(types.CustomizationFault), false
			p.message = "An error occurred while customizing VM: the customization engine ended unexpectedly."
			g.Crash, g.Locked = false, true // locked from the beginning, as a lock file is
		}

		if p.updatesStatus {
			vm.setInfo("TOOLSDEPLOYPKG_RUNNING", "", true)
		}
	case startGuestNetwork:
		vm.effects.NetworkStarts++
		p.duration, p.fault = g.NetworkTime, g.NetworkError
		p.applies = p.fault == nil || g.AppliesAnyway
	case abortCustomization:
		vm.effects.Aborts++
		p.duration = g.AbortTime
		if vm.current != nil {
			vm.current.kill(new(types.CustomizationFault))
			vm.current = nil
		}
		g.Locked = false
	}

	vm.intercept(r.name, &p)
	if r.name != abortCustomization {
		vm.current = r
	}

	vm.allWork = append(vm.allWork, r)
	return p
}

// runTask carries work out, with progress, until it ends or is killed.
func (vm *VM) runTask(r *work, p plan) {
	tasks := vm.v.tasks
	tasks.update(r.task,
		types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateRunning},
		types.PropertyChange{Name: "info.startTime", Val: vm.v.Now()})

	fault, killed, closed := vm.progress(r, p)
	if closed {
		return
	}

	vm.mu.Lock()
	if vm.current == r {
		vm.current = nil
	}

	vm.allWork = slices.DeleteFunc(vm.allWork, func(x *work) bool { return x == r })
	vm.finishWork(r.name, p, fault, killed)
	vm.mu.Unlock()

	message := p.message
	if killed {
		message = ""
	}

	tasks.update(r.task, taskEnd(vm.v.Now(), fault, message)...)
}

// progress lets the time of the plan pass and updates the Task. fault is how the work ends, nil for success; killed,
// that it was ended early; closed, that the vCenter was.
func (vm *VM) progress(r *work, p plan) (fault types.BaseMethodFault, killed, closed bool) {
	const steps = 5
	for i := range steps {
		if i > 0 {
			progress := types.PropertyChange{Name: "info.progress", Val: int32(i * 100 / steps)}
			vm.v.tasks.update(r.task, progress)
		}

		t := time.NewTimer(p.duration / steps)
		select {
		case <-t.C:
		case fault = <-r.killed:
			t.Stop()
			return fault, true, false
		case <-vm.v.done:
			t.Stop()
			return nil, false, true
		}
	}

	return p.fault, false, false
}

// taskEnd is how a Task's info changes when it ends.
func taskEnd(now time.Time, fault types.BaseMethodFault, message string) []types.PropertyChange {
	changes := []types.PropertyChange{{Name: "info.completeTime", Val: now}}
	if fault == nil {
		return append(changes,
			types.PropertyChange{Name: "info.progress", Val: int32(100)},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
	}

	_, canceled := fault.(*types.RequestCanceled)
	localized := types.LocalizedMethodFault{Fault: fault, LocalizedMessage: faultText(fault, message)}
	return append(changes,
		types.PropertyChange{Name: "info.cancelled", Val: canceled},
		types.PropertyChange{Name: "info.error", Val: localized},
		types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
}
