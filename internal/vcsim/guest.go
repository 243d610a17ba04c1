package vcsim

import (
	"maps"
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

	// CustomizeTime, NetworkTime and AbortTime are how long the three Tasks run; BootTime is how long a guest takes
	// from power-on to running VMware Tools.
	CustomizeTime, NetworkTime, AbortTime, BootTime time.Duration
	// ReportDelay is how long VMware Tools take to report a new host name and new addresses (a real guest: up to 30 s).
	ReportDelay time.Duration
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
	// OtherNICs are what the guest shows before the VM's NICs, such as bridges: their DeviceConfigId is -1.
	OtherNICs []types.GuestNicInfo
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
		CustomizeTime: 50 * time.Millisecond, NetworkTime: 20 * time.Millisecond, AbortTime: 10 * time.Millisecond,
		Cancelable: true, NextPID: 2001,
	}
}

// Program is how a guest program behaves.
type Program struct {
	// Duration is how long it runs; a negative one means until it is deleted.
	Duration time.Duration
	// ExitCode is what it ends with.
	ExitCode int64
	// Err, where set, is the error_type with which its start is refused, such as "UNABLE_TO_ALLOCATE_RESOURCE"; nothing
	// is started then.
	Err string
}

// Effects are what calls did to a VM, answered or not.
type Effects struct {
	Customizations, NetworkStarts, Aborts int // Tasks begun
	// Processes are the command lines that were started, in order, as the guest's process list shows them.
	Processes []string
	Deleted   []int64 // processes that were deleted while they ran
}

// VM is a VM of a simulated vCenter, seen from its guest's side.
type VM struct {
	v    *VCenter
	ref  types.ManagedObjectReference
	name string
	n    int // its number, which its first address tells

	mu         sync.Mutex // comes before vcsim's locks
	guest      Guest
	effects    Effects
	powered    bool
	tools      bool
	boots      int // counted so that an old boot's timer does not start a new boot's tools
	resets     int // by Reset: what an earlier life left at work changes nothing
	booted     time.Time
	toolsPID   int64
	toolsAt    time.Time
	configured identity // what the guest is configured to be
	reported   identity // what VMware Tools report
	info       types.GuestInfoCustomizationInfo
	current    *work   // the customization or network start that keeps the VM busy
	allWork    []*work // all work in hand, aborts too
	procs      []*process

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
	return vm.reported.hostName
}

// Addresses are the addresses that VMware Tools report, of all NICs in their order; none while the guest is not
// running.
func (vm *VM) Addresses() []string {
	vm.mu.Lock()
	defer vm.mu.Unlock()

	var all []string
	if vm.powered {
		for _, mac := range vm.macs() {
			all = append(all, plainAddresses(vm.reported.addresses[mac])...)
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
	vm.configured.hostName = name
	vm.reportConfigured()
}

// SetAddresses sets the addresses of one NIC and lets VMware Tools report them: "10.0.0.7", "10.0.0.7/16", "10.0.0.7/16
// duplicate".
func (vm *VM) SetAddresses(mac string, addresses ...string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.configured.addresses[strings.ToLower(mac)] = addresses
	vm.reportConfigured()
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
