package vcsim

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// guestCustomizationManagerRef is the singleton as a real vCenter names it.
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
	ctx *simulator.Context,
	req *types.CustomizeGuest_Task,
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
	ctx *simulator.Context,
	req *types.StartGuestNetwork_Task,
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
	ctx *simulator.Context,
	req *types.AbortCustomization_Task,
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

// run is guest customization work on a VM: one Task.
type run struct {
	name   string
	task   *guestTask
	killed chan types.BaseMethodFault // how it is to end before its time; holds one
}

// kill ends a run early; the first reason counts.
func (r *run) kill(why types.BaseMethodFault) {
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
		return none, faulted(&types.ManagedObjectNotFound{Obj: ref})
	}

	vm.mu.Lock()
	defer vm.mu.Unlock()

	if fault := vm.refuse(auth, name, spec); fault != nil {
		return none, faulted(fault)
	}

	var then identity
	if spec != nil {
		var fault types.BaseMethodFault
		if then, fault = vm.identityOf(*spec); fault != nil {
			return none, faulted(fault)
		}
	}

	r := &run{name: name, killed: make(chan types.BaseMethodFault, 1)}
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

	plan := vm.begin(r, then)
	m.v.spawn(func() { vm.work(r, plan) })
	return r.task.Self, nil
}

// descriptionID is the VMODL key of a method's task. That the keys look so is a belief; clients match on the name.
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

// refuse is the fault with which vCenter refuses a method at once, nil where it begins a Task. vm.mu is held.
func (vm *VM) refuse(
	auth types.BaseGuestAuthentication,
	name string,
	spec *types.CustomizationSpec,
) types.BaseMethodFault {
	if state := vm.power(); state != types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state}
	}
	if r := vm.run; r != nil && (name != abortCustomization || r.name == abortCustomization) {
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

// plan is how a run will go, settled when it begins so that a later Configure changes later runs only.
type plan struct {
	takes         time.Duration
	fault         types.BaseMethodFault // how it ends, nil for success
	message       string
	applies       bool // whether the guest gets what was asked for
	updatesStatus bool // whether customizationInfo follows
	then          identity
	faults        Faults
	life          int // of the VM's, see Reset
}

// begin notes a run on its VM and plans it. vm.mu is held.
func (vm *VM) begin(r *run, then identity) plan {
	g := &vm.guest
	p := plan{then: then}
	switch r.name {
	case customizeGuest:
		vm.effects.Customizations++
		p.takes, p.fault, p.updatesStatus = g.CustomizeFor, g.TaskError, g.UpdatesStatus
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
		p.takes, p.fault = g.NetworkFor, g.NetworkError
		p.applies = p.fault == nil || g.AppliesAnyway
	case abortCustomization:
		vm.effects.Aborts++
		p.takes = g.AbortFor
		if vm.run != nil {
			vm.run.kill(new(types.CustomizationFault))
			vm.run = nil
		}
		g.Locked = false
	}

	vm.intercept(r.name, &p)
	if r.name != abortCustomization {
		vm.run = r
	}

	vm.runs = append(vm.runs, r)
	return p
}

// work carries a run out, with progress, until it ends or is killed.
func (vm *VM) work(r *run, p plan) {
	tasks := vm.v.tasks
	tasks.update(r.task,
		types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateRunning},
		types.PropertyChange{Name: "info.startTime", Val: vm.v.Now()})

	const steps = 5
	fault := p.fault
	killed := false
	for i := range steps {
		if i > 0 {
			tasks.update(r.task, types.PropertyChange{Name: "info.progress", Val: int32(i * 100 / steps)})
		}

		t := time.NewTimer(p.takes / steps)
		select {
		case <-t.C:
			continue
		case fault = <-r.killed:
			killed = true
		case <-vm.v.done:
			t.Stop()
			return
		}

		t.Stop()
		break
	}

	vm.mu.Lock()
	if vm.run == r {
		vm.run = nil
	}

	for i, x := range vm.runs {
		if x == r {
			vm.runs = append(vm.runs[:i:i], vm.runs[i+1:]...)
			break
		}
	}

	vm.finish(r.name, p, fault, killed)
	vm.mu.Unlock()

	changes := []types.PropertyChange{{Name: "info.completeTime", Val: vm.v.Now()}}
	if fault == nil {
		changes = append(changes,
			types.PropertyChange{Name: "info.progress", Val: int32(100)},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
	} else {
		message := p.message
		if killed {
			message = ""
		}

		_, canceled := fault.(*types.RequestCanceled)
		changes = append(
			changes,
			types.PropertyChange{Name: "info.cancelled", Val: canceled},
			types.PropertyChange{
				Name: "info.error",
				Val:  types.LocalizedMethodFault{Fault: fault, LocalizedMessage: text(fault, message)},
			},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError},
		)
	}

	tasks.update(r.task, changes...)
}

// linkLocal is the address that a NIC gives itself where nobody gives it one.
const linkLocal = "169.254.7.7"

// identityOf is what a spec asks of this VM's guest. Faults: InvalidArgument, NicSettingMismatch. vm.mu is held.
func (vm *VM) identityOf(spec types.CustomizationSpec) (identity, types.BaseMethodFault) {
	id := identity{addresses: make(map[string][]string), dns: slices.Clone(spec.GlobalIPSettings.DnsServerList)}
	prep := spec.Identity.(*types.CustomizationLinuxPrep)
	if fault := wrongName(prep.HostName); fault != nil {
		return id, fault
	}
	if fault := wrongTimeZone(prep.TimeZone); fault != nil {
		return id, fault
	}

	switch n := prep.HostName.(type) {
	case *types.CustomizationFixedName:
		id.hostName = n.Name
	case *types.CustomizationPrefixName:
		id.hostName = n.Base + "1"
	case *types.CustomizationVirtualMachineName:
		id.hostName = vm.name
	}

	macs := vm.macs()
	named := 0
	for _, s := range spec.NicSettingMap {
		if s.MacAddress != "" {
			named++
		}
	}

	if named > 0 && named < len(spec.NicSettingMap) { // all by MAC address or all by bus order
		return id, &types.InvalidArgument{InvalidProperty: "spec.nicSettingMap.macAddress"}
	}

	mismatch := &types.NicSettingMismatch{
		NumberOfNicsInSpec: int32(len(spec.NicSettingMap)),
		NumberOfNicsInVM:   int32(len(macs)),
	}

	if len(spec.NicSettingMap) != len(macs) {
		return id, mismatch
	}

	for i, s := range spec.NicSettingMap {
		mac := macs[i]
		if named > 0 {
			mac = strings.ToLower(s.MacAddress)
			if !contains(macs, mac) {
				return id, mismatch
			}
		}

		if fault := wrongSettings(i, s.Adapter); fault != nil {
			return id, fault
		}

		switch ip := s.Adapter.Ip.(type) {
		case *types.CustomizationFixedIp:
			id.addresses[mac] = append(id.addresses[mac], withMask(ip.IpAddress, s.Adapter.SubnetMask))
			if len(s.Adapter.Gateway) > 0 && !slices.Contains(id.gateways, s.Adapter.Gateway[0]) {
				id.gateways = append(id.gateways, s.Adapter.Gateway[0])
			}
		default:
			address := vm.leased(mac)
			if vm.guest.Faults.NoDHCPLease {
				address = linkLocal
			}
			id.addresses[mac] = append(id.addresses[mac], address)
		}

		if v6 := s.Adapter.IpV6Spec; v6 != nil {
			for _, ip := range v6.Ip {
				if fixed, ok := ip.(*types.CustomizationFixedIpV6); ok {
					id.addresses[mac] = append(
						id.addresses[mac],
						fmt.Sprintf("%s/%d", fixed.IpAddress, fixed.SubnetMask),
					)
				}
			}

			if len(v6.Gateway) > 0 && !slices.Contains(id.gateways, v6.Gateway[0]) {
				id.gateways = append(id.gateways, v6.Gateway[0])
			}
		}
	}

	return id, nil
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if strings.EqualFold(s, one) {
			return true
		}
	}
	return false
}

// faulted is a fault as vCenter answers it at once.
func faulted(fault types.BaseMethodFault) *soap.Fault {
	return simulator.Fault(text(fault, ""), fault)
}

func notAuthenticated(object types.ManagedObjectReference) *types.NotAuthenticated {
	return &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &object, PrivilegeId: "System.View"}}
}

// text is a fault in words for people; said counts where it is not empty.
func text(fault types.BaseMethodFault, said string) string {
	switch {
	case said != "":
		return said
	case fault == nil:
		return ""
	}

	if words := vCenterText(fault); words != "" {
		return words
	}
	return "A fault occurred: " + faultName(fault)
}

// vCenterText is a fault in vCenter's own words, "" where they are not known.
func vCenterText(fault types.BaseMethodFault) string {
	switch f := fault.(type) {
	case *types.InvalidPowerState:
		return fmt.Sprintf(
			"The attempted operation cannot be performed in the current state (%s).",
			powerWords[f.ExistingState],
		)
	case *types.TaskInProgress:
		return "Another task is already in progress."
	case *types.InvalidState:
		return "The operation is not allowed in the current state."
	case *types.InvalidGuestLogin:
		return "Failed to authenticate with the guest operating system using the supplied credentials."
	case *types.GuestPermissionDenied:
		return "Permission to perform this operation was denied."
	case *types.GuestOperationsUnavailable:
		return "The guest operations agent could not be contacted."
	case *types.ManagedObjectNotFound:
		return fmt.Sprintf(
			"The object '%s:%s' has already been deleted or has not been completely created",
			f.Obj.Type,
			f.Obj.Value,
		)
	case *types.InvalidArgument:
		return "A specified parameter was not correct: " + f.InvalidProperty
	case *types.UncustomizableGuest:
		return fmt.Sprintf(
			"Customization of the guest operating system '%s' is not supported in this configuration.",
			f.UncustomizableGuestOS,
		)
	case *types.NicSettingMismatch:
		return fmt.Sprintf(
			"The customization specification has %d NICs, but the virtual machine has %d.",
			f.NumberOfNicsInSpec,
			f.NumberOfNicsInVM,
		)
	case *types.CustomizationFault:
		return "An error occurred while customizing the virtual machine."
	case *types.RequestCanceled:
		return "The task was canceled by a user."
	case *types.NotAuthenticated:
		return "The session is not authenticated."
	case *types.InvalidLogin:
		return "Cannot complete login due to an incorrect user name or password."
	}

	return ""
}

var powerWords = map[types.VirtualMachinePowerState]string{
	types.VirtualMachinePowerStatePoweredOn:  "Powered on",
	types.VirtualMachinePowerStatePoweredOff: "Powered off",
	types.VirtualMachinePowerStateSuspended:  "Suspended",
}

// faultName is a fault's _typeName.
func faultName(fault any) string {
	t := reflect.TypeOf(fault)
	if t == nil {
		return ""
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Name()
}
