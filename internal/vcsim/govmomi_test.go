package vcsim_test

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// TestGovmomi drives the whole way with govmomi's own client, over VI JSON and over SOAP: what it can do, other clients
// can.
func TestGovmomi(t *testing.T) {
	t.Parallel()
	for _, useJSON := range []bool{true, false} {
		t.Run(fmt.Sprintf("json=%t", useJSON), func(t *testing.T) {
			t.Parallel()
			v := start(t, vcsim.Options{ClockOffset: 3 * time.Hour})
			ctx := within(t)
			c := vimClient(t, v, useJSON)
			if c.ServiceContent.GuestCustomizationManager == nil || c.ServiceContent.About.ApiVersion != "9.0.0.0" {
				t.Fatalf("service content: %+v", c.ServiceContent.About)
			}

			sm := session.NewManager(c)
			if err := sm.Login(ctx, url.UserPassword(v.Username(), "wrong")); !fault.Is(err, &types.InvalidLogin{}) {
				t.Fatalf("wrong password: %v", err)
			}
			if err := sm.Login(ctx, url.UserPassword(v.Username(), v.Password())); err != nil {
				t.Fatal(err)
			}

			user, err := sm.UserSession(ctx)
			if err != nil || user == nil || user.UserName != v.Username() {
				t.Fatalf("session: %+v, %v", user, err)
			}

			active, err := methods.SessionIsActive(ctx, c, &types.SessionIsActive{
				This: *c.ServiceContent.SessionManager, SessionID: user.Key, UserName: user.UserName,
			})
			if err != nil || !active.Returnval {
				t.Fatalf("SessionIsActive: %+v, %v", active, err)
			}

			now, err := methods.GetCurrentTime(ctx, c)
			if err != nil || time.Until(*now) < 2*time.Hour {
				t.Fatalf("CurrentTime: %v, %v", now, err)
			}

			vm := first(v)
			name, password := vm.Credentials()
			guest := &types.NamePasswordAuthentication{Username: name, Password: password}
			lv, err := view.NewManager(c).
				CreateListView(ctx, []types.ManagedObjectReference{{Type: "VirtualMachine", Value: vm.ID()}})
			if err != nil {
				t.Fatal(err)
			}

			began, err := methods.CustomizeGuest_Task(ctx, c, &types.CustomizeGuest_Task{
				This: *c.ServiceContent.GuestCustomizationManager,
				Vm:   types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.ID()},
				Auth: guest,
				Spec: types.CustomizationSpec{
					Identity: &types.CustomizationLinuxPrep{
						HostName: &types.CustomizationVirtualMachineName{},
						Domain:   "example.test",
					},
					NicSettingMap: []types.CustomizationAdapterMapping{{
						Adapter: types.CustomizationIPSettings{Ip: &types.CustomizationDhcpIpGenerator{}},
					}},
				},
				ConfigParams: []types.BaseOptionValue{&types.OptionValue{Key: "k", Value: int32(5)}},
			})
			if err != nil {
				t.Fatal(err)
			}

			info, err := object.NewTask(c, began.Returnval).WaitForResult(ctx)
			if err != nil || info.State != types.TaskInfoStateSuccess || info.Name != "CustomizeGuest_Task" {
				t.Fatalf("task: %+v, %v", info, err)
			}
			if reason, ok := info.Reason.(*types.TaskReasonUser); !ok || reason.UserName != v.Username() {
				t.Errorf("reason: %+v", info.Reason)
			}

			network, err := methods.StartGuestNetwork_Task(ctx, c, &types.StartGuestNetwork_Task{
				This: *c.ServiceContent.GuestCustomizationManager, Vm: *info.Entity, Auth: guest,
			})
			if err != nil {
				t.Fatal(err)
			}

			// a filter over the list view shows the host name when the network has been started
			filter := new(property.WaitFilter)
			filter.Spec = types.PropertyFilterSpec{
				PropSet: []types.PropertySpec{
					{
						Type:    "VirtualMachine",
						PathSet: []string{"guest.hostName", "guest.net", "guest.customizationInfo"},
					},
				},
				ObjectSet: []types.ObjectSpec{
					{
						Obj:       lv.Reference(),
						SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "ListView", Path: "view"}},
					},
				},
			}

			err = property.WaitForUpdatesEx(
				ctx,
				property.DefaultCollector(c),
				filter,
				func(updates []types.ObjectUpdate) bool {
					for _, u := range updates {
						for _, p := range u.ChangeSet {
							if p.Name == "guest.hostName" && p.Val == vm.Name() {
								return true
							}
						}
					}
					return false
				},
			)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := object.NewTask(c, network.Returnval).WaitForResult(ctx); err != nil {
				t.Fatal(err)
			}

			var got mo.VirtualMachine
			if err := property.DefaultCollector(c).
				RetrieveOne(ctx, *info.Entity, []string{
					"recentTask", "guest", "config.instanceUuid",
				}, &got); err != nil {
				t.Fatal(err)
			}

			if !slices.Equal(got.RecentTask, []types.ManagedObjectReference{began.Returnval, network.Returnval}) {
				t.Errorf("recentTask: %v", got.RecentTask)
			}

			if g := got.Guest; g.IpAddress != "10.100.0.2" || g.Net[0].MacAddress != vm.MACs()[0] ||
				!g.Net[0].Connected ||
				!*g.GuestOperationsReady {
				t.Errorf("guest: %+v", g)
			}

			since := info.QueueTime
			hc, err := task.NewManager(c).CreateCollectorForTasks(ctx, types.TaskFilterSpec{
				Entity: &types.TaskFilterSpecByEntity{
					Entity:    *info.Entity,
					Recursion: types.TaskFilterSpecRecursionOptionSelf,
				},
				Time: &types.TaskFilterSpecByTime{
					TimeType:  types.TaskFilterSpecTimeOptionQueuedTime,
					BeginTime: &since,
				},
			})
			if err != nil {
				t.Fatal(err)
			}

			var read []types.TaskInfo
			for {
				page, err := hc.ReadNextTasks(ctx, 1)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				read = append(read, page...)
			}

			if len(read) != 2 || read[0].Key != began.Returnval.Value || read[1].Name != "StartGuestNetwork_Task" {
				t.Errorf("history: %+v", read)
			}
			if err := hc.Destroy(ctx); err != nil {
				t.Error(err)
			}
			if err := sm.Logout(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := methods.GetCurrentTime(ctx, c); !fault.Is(err, &types.NotAuthenticated{}) {
				t.Errorf("after logout: %v", err)
			}

			for _, call := range v.Calls() {
				if strings.Contains(call.Body, v.Password()) || strings.Contains(call.Body, password) {
					t.Errorf("%s is recorded with a password: %s", call.Op, call.Body)
				}
			}

			if n := v.Count("CustomizeGuest_Task", vm.ID()); n != 1 {
				t.Errorf("CustomizeGuest_Task was counted %d times", n)
			}
		})
	}
}

// TestGovmomiFaults sees that faults have their types, also in a Task.
func TestGovmomiFaults(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	v, c := vimSession(t, true)
	vm := first(v)
	vm.PowerOff()
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.ID()}
	begin := func() (*object.Task, error) {
		res, err := methods.StartGuestNetwork_Task(ctx, c, &types.StartGuestNetwork_Task{
			This: *c.ServiceContent.GuestCustomizationManager,
			Vm:   ref,
			Auth: &types.NamePasswordAuthentication{
				Username: vcsim.DefaultGuestUsername,
				Password: vcsim.DefaultGuestPassword,
			},
		})
		if err != nil {
			return nil, err
		}
		return object.NewTask(c, res.Returnval), nil
	}

	_, err := begin()
	var power *types.InvalidPowerState
	if _, is := fault.As(err, &power); !is || power.ExistingState != types.VirtualMachinePowerStatePoweredOff {
		t.Fatalf("powered off: %v", err)
	}
	if !soap.IsSoapFault(err) || !strings.Contains(err.Error(), "Powered off") {
		t.Errorf("words: %v", err)
	}

	vm.PowerOn()
	vm.Configure(func(g *vcsim.Guest) {
		g.NetworkError = &types.NicSettingMismatch{NumberOfNicsInSpec: 2, NumberOfNicsInVM: 1}
	})
	tk, err := begin()
	if err != nil {
		t.Fatal(err)
	}

	_, err = tk.WaitForResult(ctx)
	var failed task.Error
	if !errors.As(err, &failed) || !fault.Is(err, &types.NicSettingMismatch{}) {
		t.Errorf("task: %v", err)
	}
}

// TestReconfigureNIC sees that an operator's change of a NIC reaches the guest.
func TestReconfigureNIC(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	v, c := vimSession(t, true)
	vm := first(v)
	vm.SetNICs(false)
	o := object.NewVirtualMachine(c, types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.ID()})
	devices, err := o.Device(ctx)
	if err != nil {
		t.Fatal(err)
	}

	nic := devices.SelectByType((*types.VirtualEthernetCard)(nil))[0]
	if nic.GetVirtualDevice().Connectable.Connected {
		t.Fatal("the NIC is still connected")
	}

	nic.GetVirtualDevice().Connectable.Connected = true
	if err := o.EditDevice(ctx, nic); err != nil {
		t.Fatal(err)
	}

	err = property.Wait(
		ctx,
		property.DefaultCollector(c),
		o.Reference(),
		[]string{"guest.net"},
		func(changes []types.PropertyChange) bool {
			for _, p := range changes {
				if net, ok := p.Val.(types.ArrayOfGuestNicInfo); ok && len(net.GuestNicInfo) == 1 {
					n := net.GuestNicInfo[0]
					return n.Connected && len(n.IpAddress) == 1 && n.MacAddress == vm.MACs()[0]
				}
			}
			return false
		},
	)
	if err != nil {
		t.Fatal(err)
	}

	// a client's power-off reaches the guest, too
	off, err := o.PowerOff(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := off.Wait(ctx); err != nil {
		t.Fatal(err)
	}

	err = property.Wait(
		ctx,
		property.DefaultCollector(c),
		o.Reference(),
		[]string{"guest.toolsRunningStatus"},
		func(changes []types.PropertyChange) bool {
			return changes[0].Val == string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
		},
	)
	if err != nil {
		t.Fatal(err)
	}
}

// TestWhatElseClientsRead are reads that a client of customizations makes beside the great ones.
func TestWhatElseClientsRead(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	v, c := vimSession(t, true)
	specs := object.NewCustomizationSpecManager(c)
	item := types.CustomizationSpecItem{
		Info: types.CustomizationSpecInfo{Name: "web", Type: "Linux"},
		Spec: types.CustomizationSpec{
			Identity: &types.CustomizationLinuxPrep{
				HostName: &types.CustomizationFixedName{Name: "web01"},
				Domain:   "example.test",
			},
		},
	}

	if err := specs.CreateCustomizationSpec(ctx, item); err != nil {
		t.Fatal(err)
	}
	if there, err := specs.DoesCustomizationSpecExist(ctx, "web"); err != nil || !there {
		t.Errorf("spec exists: %t, %v", there, err)
	}

	got, err := specs.GetCustomizationSpec(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}

	prep, ok := got.Spec.Identity.(*types.CustomizationLinuxPrep)
	if name, fixed := prep.HostName.(*types.CustomizationFixedName); !ok || !fixed || name.Name != "web01" {
		t.Errorf("spec: %+v", got)
	}

	vm := first(v)
	vm.SetExtraConfig("guestinfo.userdata", "I2Nsb3VkLWNvbmZpZw==")
	vm.SetPendingCustomization("imcf-1")
	var o mo.VirtualMachine
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.ID()}

	if err := property.DefaultCollector(c).
		RetrieveOne(ctx, ref, []string{
			"name", "config.extraConfig", "config.tools.pendingCustomization",
		}, &o); err != nil {
		t.Fatal(err)
	}

	if o.Name != vm.Name() || o.Config.Tools.PendingCustomization != "imcf-1" ||
		o.Config.ExtraConfig[0].GetOptionValue().Key != "guestinfo.userdata" {
		t.Errorf("VM: %+v", o.Config)
	}
}
