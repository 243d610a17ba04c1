package vcapi

import (
	"context"
	"encoding/json"
	"errors"
)

// StartGuestNetwork starts StartGuestNetwork_Task on a running VM and returns the Task; it does not wait for it. An
// effect, see the package comment.
//
// Not to be repeated: two calls make two Tasks, and the guest's network restarts twice. vm is a managed object ID.
// Faults: TaskInProgress, InvalidPowerState, InvalidState (VMware Tools not running), InvalidGuestLogin,
// GuestPermissionDenied, CustomizationFault and its subtypes.
//
// Source: VI JSON 8.0.2.0, VirtualMachineGuestCustomizationManager.StartGuestNetwork_Task. Privilege:
// VirtualMachine.Provisioning.Customize.
func (c *Client) StartGuestNetwork(
	ctx context.Context, fence Fence, vm string, auth GuestAuth,
) (task string, err error) {
	return c.startTask(
		ctx, fence, func(s *session) (*call, error) { return c.guestCall(s, "StartGuestNetwork_Task", vm, auth) },
	)
}

// NICs are virtual network adapters of a VM, as vCenter wrote them (config.hardware.device), with the version of the
// configuration that they were read from.
type NICs struct {
	ChangeVersion string
	Devices       []json.RawMessage
}

// DisconnectedNICs are the virtual network adapters of a VM that are not connected, as ConnectNICs takes them. It may
// be repeated.
//
// Source: VI JSON, VirtualMachine.config, VirtualDeviceConnectInfo.connected.
func (c *Client) DisconnectedNICs(ctx context.Context, vm string) (off NICs, err error) {
	all, err := c.retrieve(ctx, virtualMachine, []string{"config.changeVersion", "config.hardware.device"}, vm)
	if err != nil {
		return NICs{}, err
	}

	off.ChangeVersion = anyString(all[vm]["config.changeVersion"])
	forEachElement(all[vm]["config.hardware.device"], func(device json.RawMessage) {
		var nic struct {
			MAC         *string `json:"macAddress"` // VirtualEthernetCard and its kinds have one
			Connectable *struct {
				Connected bool `json:"connected"`
			} `json:"connectable"`
		}

		if json.Unmarshal(device, &nic) == nil && nic.MAC != nil && nic.Connectable != nil &&
			!nic.Connectable.Connected {
			off.Devices = append(off.Devices, device)
		}
	})

	return off, nil
}

// ConnectNICs starts ReconfigVM_Task, which connects the given NICs now and at each power-on, and returns the Task. An
// effect, see the package comment; it may be repeated: a NIC that is connected stays so.
//
// Faults: TaskInProgress, InvalidPowerState, InvalidState, NoPermission, ManagedObjectNotFound; ConcurrentAccess where
// the configuration changed since the NICs were read. A device is sent whole, so the call would undo that change: read
// the NICs again.
//
// Source: VI JSON, VirtualMachine.ReconfigVM_Task, VirtualMachineConfigSpec.changeVersion ("the changes will only be
// applied if the current changeVersion matches"). Privileges: VirtualMachine.Interact.DeviceConnection and
// VirtualMachine.Config.EditDevice.
func (c *Client) ConnectNICs(ctx context.Context, fence Fence, vm string, nics NICs) (task string, err error) {
	type change struct {
		TypeName  string          `json:"_typeName"`
		Operation string          `json:"operation"`
		Device    json.RawMessage `json:"device"`
	}

	var changes []change
	for _, nic := range nics.Devices {
		on, err := connected(nic)
		if err != nil {
			return "", asNotSent(err)
		}
		changes = append(changes, change{"VirtualDeviceConfigSpec", "edit", on})
	}

	spec := map[string]any{"_typeName": "VirtualMachineConfigSpec", "deviceChange": changes}
	if nics.ChangeVersion != "" {
		spec["changeVersion"] = nics.ChangeVersion
	}

	task, err = c.startTask(ctx, fence, func(s *session) (*call, error) {
		return c.newVIMCall(
			s.service,
			objectRef(virtualMachine, vm),
			virtualMachine,
			"ReconfigVM_Task",
			map[string]any{"spec": spec},
		)
	})

	if e := (*Error)(nil); errors.As(err, &e) && e.Name == "ConcurrentAccess" {
		e.Sent = Refused // of this method it says that nothing was applied
	}

	return task, err
}

// connected is a device with its connection switched on, and all else as vCenter wrote it.
func connected(device json.RawMessage) (json.RawMessage, error) {
	var members, connectable map[string]json.RawMessage
	if err := json.Unmarshal(device, &members); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(members["connectable"], &connectable); err != nil {
		return nil, err
	}

	connectable["connected"], connectable["startConnected"] = json.RawMessage("true"), json.RawMessage("true")
	var err error
	if members["connectable"], err = json.Marshal(connectable); err != nil {
		return nil, err
	}

	return json.Marshal(members)
}
