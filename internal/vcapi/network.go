package vcapi

import "context"

// StartGuestNetwork starts StartGuestNetwork_Task on a running VM and returns the task; it does not wait for it. An act: see Client.
//
// Not idempotent: two calls make two tasks, and the guest's network restarts twice. vm is a managed object ID. Faults: TaskInProgress,
// InvalidPowerState, InvalidState (VMware Tools not running), InvalidGuestLogin, GuestPermissionDenied, CustomizationFault and its kinds.
//
// Source: VI JSON 8.0.2.0, VirtualMachineGuestCustomizationManager.StartGuestNetwork_Task. Privilege: VirtualMachine.Provisioning.Customize.
func (c *Client) StartGuestNetwork(ctx context.Context, gate Gate, vm string, auth GuestAuth) (task string, err error) {
	return c.startTask(ctx, gate, func(s *session) (*call, error) { return c.guestCall(s, "StartGuestNetwork_Task", vm, auth) })
}
