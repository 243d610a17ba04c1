package vcapi

import (
	"context"
	"encoding/json"
)

// StartGuestNetwork starts StartGuestNetwork_Task on a running VM and returns the task; it does not wait for it. An act: see Client.
//
// Not idempotent: two calls make two tasks, and the guest's network restarts twice. vm is a managed object ID. Faults: TaskInProgress,
// InvalidPowerState, InvalidState (VMware Tools not running), InvalidGuestLogin, GuestPermissionDenied, CustomizationFault and its kinds.
//
// Source: VI JSON 8.0.2.0, VirtualMachineGuestCustomizationManager.StartGuestNetwork_Task. Privilege: VirtualMachine.Provisioning.Customize.
func (c *Client) StartGuestNetwork(ctx context.Context, gate Gate, vm string, auth GuestAuth) (task string, err error) {
	return c.startTask(ctx, gate, func(s *session) (*call, error) { return c.guestCall(s, "StartGuestNetwork_Task", vm, auth) })
}

// DisconnectedNICs are the virtual network adapters of a VM that are not connected, as vCenter shows them (config.hardware.device): what ConnectNICs
// is given.
func (c *Client) DisconnectedNICs(ctx context.Context, vm string) ([]json.RawMessage, error) {
	all, err := c.retrieve(ctx, virtualMachine, []string{"config.hardware.device"}, vm)
	if err != nil {
		return nil, err
	}
	var off []json.RawMessage
	each(all[vm]["config.hardware.device"], func(device json.RawMessage) {
		var nic struct {
			MAC         *string `json:"macAddress"` // VirtualEthernetCard and its kinds have one
			Connectable *struct {
				Connected bool `json:"connected"`
			} `json:"connectable"`
		}
		if json.Unmarshal(device, &nic) == nil && nic.MAC != nil && nic.Connectable != nil && !nic.Connectable.Connected {
			off = append(off, device)
		}
	})
	return off, nil
}

// ConnectNICs starts ReconfigVM_Task, which connects the given NICs now and at each power-on, and returns the task. It may be repeated: a NIC that is
// connected stays so. An act: see Client. Faults: TaskInProgress, InvalidPowerState, InvalidState, NoPermission, ManagedObjectNotFound.
//
// Source: VI JSON, VirtualMachine.ReconfigVM_Task. Privileges: VirtualMachine.Interact.DeviceConnection and
// VirtualMachine.Config.EditDevice.
func (c *Client) ConnectNICs(ctx context.Context, gate Gate, vm string, nics []json.RawMessage) (task string, err error) {
	type change struct {
		TypeName  string          `json:"_typeName"`
		Operation string          `json:"operation"`
		Device    json.RawMessage `json:"device"`
	}
	var changes []change
	for _, nic := range nics {
		on, err := connected(nic)
		if err != nil {
			return "", unsent(err)
		}
		changes = append(changes, change{"VirtualDeviceConfigSpec", "edit", on})
	}
	in := map[string]any{"spec": map[string]any{"_typeName": "VirtualMachineConfigSpec", "deviceChange": changes}}
	return c.startTask(ctx, gate, func(s *session) (*call, error) {
		return c.vimCall(s.service, at(virtualMachine, vm), virtualMachine, "ReconfigVM_Task", in)
	})
}

// connected is a device with its connection on, all else as vCenter wrote it.
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
