package handler

import (
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// cureOf says what a person can do about an answer of vCenter that ends a step; "" where the answer says it itself.
func cureOf(step string, code events.Code, v *vcapi.Error) string {
	if cure, ok := curesByName[v.Name]; ok {
		return cure
	}
	if code == events.NotFound && step == "check" {
		return findVM
	}
	return cures[code]
}

// findVM is what helps where vCenter shows no VM: most who ask for one under a wrong ID have written its name, or a
// path.
const findVM = "a VM is named by its managed object ID, such as vm-42, and not by its name: the vSphere Client shows " +
	"it in the address of the VM's page, " +
	"govc prints it by govc ls -i vm/NAME. A VM that the service's role does not let it see looks the same " +
	"(docs/operate/vcenter-role.md)"

// curesByName are for answers whose code stands for others, too.
var curesByName = map[string]string{
	"NicSettingMismatch": "nicSettingMap needs one entry for each virtual NIC of the VM: change it, and send it " +
		"under a new id",
	"UNVERIFIED_PEER": "vCenter does not trust the certificate of the host or service that it had to speak to: " +
		"renew that certificate, or have vCenter trust its CA",
	"NotFound": "its name is in the vSphere Client under Policies and Profiles, VM Customization " +
		"Specifications",
}

// cures say what a person can do about a code.
var cures = map[events.Code]string{
	events.NotFound: "the VM was removed or moved to another vCenter meanwhile, or the service's role " +
		"on it was taken away",
	events.InvalidRequest: "vCenter does not take what the request says there: change it, and send it under a " +
		"new id",
	events.GuestLoginRefused:     "see the user name and the password in the secret that the request names",
	events.GuestPermissionDenied: "the guest user must be able to act as root",
	events.Unauthenticated:       "see the user name and the password with which the service logs in at this vCenter",
	events.Unauthorized:          "the service's vCenter role lacks a privilege: see docs/operate/vcenter-role.md",
	events.PowerState:            "power the VM on",
	events.InvalidState:          "see the VM's recent tasks in vCenter, and its VMware Tools",
	events.ToolsNotRunning:       "see that VMware Tools run in the guest",
	events.Busy:                  "see in vCenter's recent tasks who works on the VM",
	events.NotCustomizable:       "see the VM's guest OS and VMware Tools: docs/use/errors.md",
	events.CustomizationFailed:   "see observed.guestLog, or /var/log/vmware-gosc in the guest",
	events.NetworkFailed:         "see the guest's own log of its network, and whether VMware Tools run",
	events.ProcessNotStarted:     "see path, workingDirectory and arguments, and whether the guest's user may run it",
	events.CodeCanceled:          "somebody canceled it in vCenter, which shows who in the Task's details",
	events.Unsupported:           "update VMware Tools in the guest, or vCenter",
	events.CodeUnavailable:       "guestflow doctor looks at this vCenter; see its services and hosts",
	events.Internal:              "report it, with this event",
}
