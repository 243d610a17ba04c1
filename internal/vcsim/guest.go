package vcsim

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Guest is how a VM's guest behaves. Durations are real time.
type Guest struct {
	// Username and Password are the guest's only account; SAMLToken, where set, is a bearer token that is accepted for
	// it.
	Username, Password, SAMLToken string
	// Root reports whether the account may act as root; without it guest customization is refused with
	// GuestPermissionDenied.
	Root bool
	// Engine reports whether the guest customization engine is installed; without it the Task fails with a
	// CustomizationFault.
	Engine bool
	// Family is the guest's family, "linuxGuest" or "windowsGuest".
	Family string
	// Supported is what the customization check says of the guest's operating system.
	Supported bool
	// Customizable reports whether CustomizeGuest_Task takes this guest; else UncustomizableGuest, whatever the check
	// said.
	Customizable bool

	// CustomizeFor, NetworkFor and AbortFor are how long the three Tasks run; BootFor is how long a guest takes from
	// power-on to running VMware Tools.
	CustomizeFor, NetworkFor, AbortFor, BootFor time.Duration
	// ReportAfter is how long VMware Tools take to report a new host name and new addresses (a real guest: up to 30 s).
	ReportAfter time.Duration
	// TaskError and NetworkError, where set, are how CustomizeGuest_Task and StartGuestNetwork_Task end.
	TaskError, NetworkError types.BaseMethodFault
	// AppliesAnyway makes a Task that ends with TaskError or NetworkError do its work all the same: a false failure.
	AppliesAnyway bool
	// IgnoreSpec makes CustomizeGuest_Task succeed and change nothing: a false success.
	IgnoreSpec bool
	// AppliesAtOnce shows the new host name and addresses at the end of CustomizeGuest_Task; else
	// StartGuestNetwork_Task or a reboot shows them.
	AppliesAtOnce bool
	// UpdatesStatus makes guest.customizationInfo, and the REST status, follow the customization: RUNNING, then
	// SUCCEEDED or FAILED.
	UpdatesStatus bool
	// Crash makes the engine die in the next customization: its Task ends with CustomizationFault, and the guest stays
	// Locked.
	Crash bool
	// Locked is the engine's lock in the guest: each customization fails until AbortCustomization_Task or a reboot.
	Locked bool
	// Cancelable reports whether CancelTask stops the three Tasks.
	Cancelable bool
	// Others are what the guest shows before the VM's NICs, such as bridges: their DeviceConfigId is -1.
	Others []types.GuestNicInfo
	// Faults are what this guest says and does that is not so.
	Faults Faults

	// NextPID is the process ID that the next program gets; it counts up from there. Processes with the same ID can be
	// made by setting it back.
	NextPID int64
	// Programs are the programs that the guest has, beside a few of every Linux (sh, bash, true, false, sleep, echo):
	// by `"<path>" <arguments>`, by the arguments alone, or by path, looked for in this order; a trailing comment (` #
	// …`) is not part of the arguments.
	Programs map[string]Program
	// Files are the contents of the files that can be read in the guest, by absolute path.
	Files map[string]string
}

// newGuest is a Linux guest in which everything works, quickly.
func newGuest() Guest {
	return Guest{
		Username: DefaultGuestUsername, Password: DefaultGuestPassword, Root: true,
		Engine: true, Family: string(types.VirtualMachineGuestOsFamilyLinuxGuest), Supported: true, Customizable: true,
		CustomizeFor: 50 * time.Millisecond, NetworkFor: 20 * time.Millisecond, AbortFor: 10 * time.Millisecond,
		Cancelable: true, NextPID: 2001,
	}
}

// Program is how a guest program behaves.
type Program struct {
	// For is how long it runs; less than nothing means until it is deleted.
	For time.Duration
	// ExitCode is what it ends with.
	ExitCode int64
	// Err, where set, is the error_type with which its start is refused, such as "UNABLE_TO_ALLOCATE_RESOURCE"; nothing
	// is started then.
	Err string
}

// Effects are what calls did to a VM, answered or not.
type Effects struct {
	Customizations, NetworkStarts, Aborts int // Tasks begun
	// Command lines started, in order, as the guest's process list shows them.
	Processes []string
	Deleted   []int64 // processes that were deleted while they ran
}

// VM is a VM of a simulated vCenter, seen from its guest's side.
type VM struct {
	v    *VCenter
	ref  types.ManagedObjectReference
	name string
	n    int // its number, which its first address tells

	mu       sync.Mutex // comes before vcsim's locks
	guest    Guest
	effects  Effects
	powered  bool
	tools    bool
	boots    int // counted so that an old boot's timer does not start a new boot's tools
	lives    int // by Reset: what an earlier life left at work changes nothing
	booted   time.Time
	toolsPID int64
	toolsAt  time.Time
	set      identity // what the guest is configured to be
	shown    identity // what VMware Tools report
	info     types.GuestInfoCustomizationInfo
	run      *run   // the customization or network start that keeps the VM busy
	runs     []*run // all work in hand, aborts too
	procs    []*process

	removed *simulator.VirtualMachine // by Remove
}

// identity is a host name and addresses by MAC address in lower case.
type identity struct {
	hostName  string
	addresses map[string][]string
	gateways  []string // of its default routes
	dns       []string
}

func (id identity) clone() identity {
	id.addresses = maps.Clone(id.addresses)
	return id
}

// ID is the managed object ID.
func (vm *VM) ID() string { return vm.ref.Value }

// Name is the VM's name.
func (vm *VM) Name() string { return vm.name }

// Configure changes how the guest behaves from now on. What is running goes on as it began.
func (vm *VM) Configure(f func(*Guest)) {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	if vm.guest.Programs == nil {
		vm.guest.Programs = make(map[string]Program)
	}
	if vm.guest.Files == nil {
		vm.guest.Files = make(map[string]string)
	}

	f(&vm.guest)
	vm.report()
}

// Credentials are the guest's account.
func (vm *VM) Credentials() (username, password string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.guest.Username, vm.guest.Password
}

// Effects are what calls did to this VM so far.
func (vm *VM) Effects() Effects {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	e := vm.effects
	e.Processes, e.Deleted = slices.Clone(e.Processes), slices.Clone(e.Deleted)
	return e
}

// HostName is the host name that VMware Tools report.
func (vm *VM) HostName() string {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.shown.hostName
}

// Addresses are the addresses that VMware Tools report, of all NICs in their order; none while the guest is not
// running.
func (vm *VM) Addresses() []string {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	var all []string
	if vm.powered {
		for _, mac := range vm.macs() {
			all = append(all, plainAddresses(vm.shown.addresses[mac])...)
		}
	}
	return all
}

// MACs are the NICs' MAC addresses in bus order, in lower case.
func (vm *VM) MACs() []string {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.macs()
}

// PowerOff switches the VM off: what its guest was doing is gone, and Tasks at work in it fail.
func (vm *VM) PowerOff() { vm.setPower(types.VirtualMachinePowerStatePoweredOff) }

// PowerOn switches the VM on; VMware Tools run after BootFor.
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
	vm.killRuns()
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

// RebootGuest restarts the guest: all processes are gone, a customization at work fails, the engine's lock is gone, and
// what was set is shown.
func (vm *VM) RebootGuest() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if !vm.powered {
		return
	}
	vm.halt()
	vm.boot(vm.guest.BootFor)
}

// SetNICs connects or disconnects all virtual NICs, as an operator would.
func (vm *VM) SetNICs(connected bool) {
	ctx := vm.v.newContext()
	obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine)
	if !ok {
		return
	}

	ctx.WithLock(obj, func() {
		devices := slices.Clone(obj.Config.Hardware.Device)
		for i, d := range devices {
			if _, ok := d.(types.BaseVirtualEthernetCard); !ok {
				continue
			}

			card := reflect.New(reflect.TypeOf(d).Elem()) // a copy: others may be reading the old one
			card.Elem().Set(reflect.ValueOf(d).Elem())
			d = card.Interface().(types.BaseVirtualDevice)
			info := types.VirtualDeviceConnectInfo{StartConnected: true}
			if c := d.GetVirtualDevice().Connectable; c != nil {
				info = *c
			}

			info.Connected = connected
			d.GetVirtualDevice().Connectable = &info
			devices[i] = d
		}

		ctx.Update(obj, []types.PropertyChange{{Name: "config.hardware.device", Val: devices}})
	})

	vm.mu.Lock()
	defer vm.mu.Unlock()

	vm.report()
}

// SetStatus sets guest.customizationInfo, such as an earlier customization left it. status is without the prefix
// TOOLSDEPLOYPKG_.
func (vm *VM) SetStatus(status, errorMsg string, start, end *time.Time) {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	vm.info = types.GuestInfoCustomizationInfo{
		CustomizationStatus: statusPrefix + status,
		ErrorMsg:            errorMsg,
		StartTime:           start,
		EndTime:             end,
	}

	vm.report()
}

// SetHostName sets the guest's host name and lets VMware Tools report it, as somebody in the guest would.
func (vm *VM) SetHostName(name string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.set.hostName = name
	vm.show()
}

// SetAddresses sets the addresses of one NIC and lets VMware Tools report them: "10.0.0.7", "10.0.0.7/16", "10.0.0.7/16
// duplicate".
func (vm *VM) SetAddresses(mac string, addresses ...string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.set.addresses[strings.ToLower(mac)] = addresses
	vm.show()
}

// SetExtraConfig sets config.extraConfig to one value, such as "guestinfo.userdata", which cloud-init reads.
func (vm *VM) SetExtraConfig(key, value string) {
	vm.update(
		types.PropertyChange{
			Name: "config.extraConfig",
			Val:  []types.BaseOptionValue{&types.OptionValue{Key: key, Value: value}},
		},
	)
}

// SetPendingCustomization sets config.tools.pendingCustomization, as a customization of the powered-off VM leaves it;
// "" for none.
func (vm *VM) SetPendingCustomization(file string) {
	vm.update(types.PropertyChange{Name: "config.tools.pendingCustomization", Val: file})
}

func (vm *VM) update(changes ...types.PropertyChange) {
	ctx := vm.v.newContext()
	if e := ctx.Map.Get(vm.ref); e != nil {
		ctx.Map.AtomicUpdate(ctx, e, changes)
	}
}

const statusPrefix = "TOOLSDEPLOYPKG_"

// setInfo moves guest.customizationInfo: to its beginning, or to its end. vm.mu is held.
func (vm *VM) setInfo(status, message string, begins bool) {
	precision := time.Second
	if p := vm.guest.Faults.StatusPrecision; p > 0 {
		precision = p
	}

	now := vm.v.GuestNow().Truncate(precision)
	next := types.GuestInfoCustomizationInfo{
		CustomizationStatus: status,
		ErrorMsg:            message,
		StartTime:           vm.info.StartTime,
		EndTime:             &now,
	}

	if begins {
		next.StartTime, next.EndTime = &now, nil
	}

	vm.info = next
	vm.report()
}

// follow brings a guest in line with its VM after clients changed it.
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

// followPower starts or stops the guest where the VM's power says otherwise. vm.mu is held.
func (vm *VM) followPower() {
	on := vm.power() == types.VirtualMachinePowerStatePoweredOn
	if on == vm.powered {
		return
	}

	vm.powered = on
	if on {
		vm.boot(vm.guest.BootFor)
		return
	}

	vm.halt()
	vm.report()
}

// halt ends all that runs in the guest. vm.mu is held.
func (vm *VM) halt() {
	vm.stopTools()
	vm.killRuns()
	vm.procs = nil
	vm.guest.Locked = false // the lock lies in memory: it does not outlive a boot
}

func (vm *VM) killRuns() {
	for _, r := range vm.runs {
		r.kill(new(types.GuestOperationsUnavailable))
	}
	vm.run = nil
}

// boot starts the guest. vm.mu is held.
func (vm *VM) boot(takes time.Duration) {
	vm.boots++
	vm.booted = vm.v.GuestNow().Truncate(time.Second)
	if takes <= 0 {
		vm.startTools()
		vm.shown = vm.set.clone()
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
			vm.shown = vm.set.clone()
			vm.report()
		}
	})
}

func (vm *VM) startTools() {
	vm.tools = true
	vm.toolsPID = max(vm.toolsPID+101, 701)
	vm.toolsAt = vm.v.GuestNow().Truncate(time.Second)
}

// stopTools stops VMware Tools, which forget the exit records that they kept. vm.mu is held.
func (vm *VM) stopTools() {
	vm.tools = false
	now := vm.v.GuestNow()
	vm.procs = slices.DeleteFunc(vm.procs, func(p *process) bool { return p.ended(now) })
	for _, p := range vm.procs {
		p.orphaned = true // goes on in the guest, but nobody will tell how it ends
	}
}

// apply does a Task's work in the guest. vm.mu is held.
func (vm *VM) apply(name string, then identity) {
	switch name {
	case customizeGuest:
		if then.hostName != "" {
			vm.set.hostName = then.hostName
		}

		vm.set = vm.set.clone()
		maps.Copy(vm.set.addresses, then.addresses)
		if then.addresses != nil {
			vm.set.gateways, vm.set.dns = then.gateways, then.dns
		}
		if vm.guest.AppliesAtOnce {
			vm.show()
		}
	case startGuestNetwork:
		vm.show()
	}
}

// show lets VMware Tools report what is set, after ReportAfter. vm.mu is held.
func (vm *VM) show() {
	set := vm.set.clone()
	if vm.guest.ReportAfter <= 0 {
		vm.shown = set
		vm.report()
		return
	}

	after, life := vm.guest.ReportAfter, vm.lives
	vm.v.spawn(func() {
		if !vm.v.pause(after) {
			return
		}

		vm.mu.Lock()
		defer vm.mu.Unlock()

		if vm.lives == life {
			vm.shown = set
			vm.report()
		}
	})
}

// leased is the address that a NIC gets by DHCP. vm.mu is held.
func (vm *VM) leased(mac string) string {
	return fmt.Sprintf("10.%d.%d.%d", 100+slices.Index(vm.macs(), mac), vm.n/250, vm.n%250+1)
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

// macs are the NICs' MAC addresses in bus order, in lower case.
func (vm *VM) macs() []string {
	var macs []string
	ctx := vm.v.newContext()
	if obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine); ok {
		ctx.WithLock(obj, func() {
			for _, card := range cardsOf(obj) {
				macs = append(macs, strings.ToLower(card.MacAddress))
			}
		})
	}
	return macs
}

// report writes what VMware Tools and vCenter know of the guest into the VM's properties, where it differs from what
// stands there. vm.mu is held.
func (vm *VM) report() {
	ctx := vm.v.newContext()
	obj, ok := ctx.Map.Get(vm.ref).(*simulator.VirtualMachine)
	if !ok {
		return
	}

	ctx.WithLock(obj, func() {
		g := types.GuestInfo{
			ToolsStatus:                     types.VirtualMachineToolsStatusToolsNotRunning,
			ToolsVersionStatus:              string(types.VirtualMachineToolsVersionStatusGuestToolsUnmanaged),
			ToolsVersionStatus2:             string(types.VirtualMachineToolsVersionStatusGuestToolsUnmanaged),
			ToolsRunningStatus:              string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning),
			ToolsVersion:                    "12448",
			ToolsInstallType:                string(types.VirtualMachineToolsInstallTypeGuestToolsTypeOpenVMTools),
			GuestFamily:                     vm.guest.Family,
			GuestId:                         "ubuntu64Guest",
			GuestFullName:                   "Ubuntu Linux (64-bit)",
			HostName:                        vm.shown.hostName,
			GuestState:                      string(types.VirtualMachineGuestStateNotRunning),
			GuestOperationsReady:            types.NewBool(false),
			InteractiveGuestOperationsReady: types.NewBool(false),
			CustomizationInfo:               &vm.info,
		}

		if vm.guest.Family == string(types.VirtualMachineGuestOsFamilyWindowsGuest) {
			g.GuestId, g.GuestFullName = "windows2022srvNext_64Guest", "Microsoft Windows Server 2025 (64-bit)"
		}

		if vm.tools {
			g.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
			g.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
			g.GuestState = string(types.VirtualMachineGuestStateRunning)
			g.GuestOperationsReady = types.NewBool(true)
		}

		g.Net = vm.nics(obj)
		g.IpStack = vm.stack(g.Net)
		for _, nic := range g.Net {
			if g.IpAddress == "" && len(nic.IpAddress) > 0 {
				g.IpAddress = nic.IpAddress[0]
			}
		}

		ctx.Update(obj, guestChanges(obj.Guest, &g))
	})
}

// nics are the NICs as VMware Tools report them. vm.mu and the VM's own lock are held.
func (vm *VM) nics(obj *simulator.VirtualMachine) []types.GuestNicInfo {
	nics := slices.Clone(vm.guest.Others)
	if !vm.powered || !vm.tools {
		nics = nil
	}

	for _, d := range obj.Config.Hardware.Device {
		card, ok := d.(types.BaseVirtualEthernetCard)
		if !ok || !vm.powered {
			continue
		}

		c := card.GetVirtualEthernetCard()
		mac := strings.ToLower(c.MacAddress)
		nic := types.GuestNicInfo{
			Network:        "VM Network",
			MacAddress:     mac,
			Connected:      c.Connectable == nil || c.Connectable.Connected,
			DeviceConfigId: c.Key,
		}

		if vm.tools {
			nic.IpAddress = plainAddresses(vm.shown.addresses[mac])
		}

		if len(nic.IpAddress) > 0 {
			nic.IpConfig = new(types.NetIpConfigInfo)
			for _, a := range vm.shown.addresses[mac] {
				nic.IpConfig.IpAddress = append(nic.IpConfig.IpAddress, ipConfig(a))
			}
		}

		nics = append(nics, nic)
	}

	return nics
}

// guestChanges are the properties in which two states of a guest differ.
func guestChanges(was, is *types.GuestInfo) []types.PropertyChange {
	if was == nil {
		was = new(types.GuestInfo)
	}

	info := *is.CustomizationInfo // a copy: the VM goes on changing its own
	var changes []types.PropertyChange
	differ := func(name string, old, now any) {
		if !reflect.DeepEqual(old, now) {
			changes = append(changes, types.PropertyChange{Name: name, Val: now})
		}
	}

	differ("guest.toolsStatus", was.ToolsStatus, is.ToolsStatus)
	differ("guest.toolsVersionStatus", was.ToolsVersionStatus, is.ToolsVersionStatus)
	differ("guest.toolsVersionStatus2", was.ToolsVersionStatus2, is.ToolsVersionStatus2)
	differ("guest.toolsRunningStatus", was.ToolsRunningStatus, is.ToolsRunningStatus)
	differ("guest.toolsVersion", was.ToolsVersion, is.ToolsVersion)
	differ("guest.toolsInstallType", was.ToolsInstallType, is.ToolsInstallType)
	differ("guest.guestFamily", was.GuestFamily, is.GuestFamily)
	differ("guest.guestId", was.GuestId, is.GuestId)
	differ("guest.guestFullName", was.GuestFullName, is.GuestFullName)
	differ("guest.hostName", was.HostName, is.HostName)
	differ("guest.ipAddress", was.IpAddress, is.IpAddress)
	differ("guest.net", was.Net, is.Net)
	differ("guest.ipStack", was.IpStack, is.IpStack)
	differ("guest.guestState", was.GuestState, is.GuestState)
	if old, now := was.GuestOperationsReady, *is.GuestOperationsReady; old == nil || *old != now {
		changes = append(changes, types.PropertyChange{Name: "guest.guestOperationsReady", Val: now})
	}

	if was.InteractiveGuestOperationsReady == nil {
		changes = append(
			changes,
			types.PropertyChange{
				Name: "guest.interactiveGuestOperationsReady",
				Val:  *is.InteractiveGuestOperationsReady,
			},
		)
	}

	if was.CustomizationInfo == nil || !reflect.DeepEqual(*was.CustomizationInfo, info) {
		changes = append(changes, types.PropertyChange{Name: "guest.customizationInfo", Val: info})
	}

	for _, c := range slices.Clone(changes) {
		switch p := path.Ext(c.Name); p {
		case ".toolsStatus", ".toolsRunningStatus", ".hostName", ".ipAddress", ".guestId", ".guestFullName":
			changes = append(changes, types.PropertyChange{Name: "summary.guest" + p, Val: c.Val})
		}
	}

	return changes
}
