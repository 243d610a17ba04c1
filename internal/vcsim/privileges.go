package vcsim

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Privileges are what the login may do besides System.Anonymous, System.View and System.Read, which every custom role
// has [vim.AuthorizationManager]. Once they are set, a call that needs another one is refused, and so is every call
// whose privileges this simulator does not know (see required).
type Privileges struct {
	// Root are those on the root folder, which does not pass them on: for what is no part of the inventory, such as
	// sessions.
	Root []string
	// VMs are those on every VM.
	VMs []string
}

// systemPrivileges are in every role.
var systemPrivileges = []string{"System.Anonymous", "System.View", "System.Read"}

// need is the privileges of a call: on the root folder, and on the VM that the call is about.
type need struct{ root, vm []string }

func onRoot(privileges ...string) need { return need{root: privileges} }

func onVM(privileges ...string) need { return need{vm: privileges} }

// required are the calls that may be made with restricted privileges, by Call.Op, with what each needs.
// docs/operate/vcenter-role.md has the sources.
var required = map[string]need{
	"system hello":                        onRoot("System.Anonymous"),
	"GET ServiceInstance/content":         onRoot("System.Anonymous"),
	"RetrieveServiceContent":              onRoot("System.Anonymous"),
	"Login":                               onRoot("System.Anonymous"),
	"POST /api/session":                   onRoot("System.Anonymous"),
	"POST /rest/com/vmware/cis/session":   onRoot("System.Anonymous"),
	"GET /rest/com/vmware/cis/session":    {},
	"DELETE /rest/com/vmware/cis/session": {},
	"GET /api/session":                    {},
	"DELETE /api/session":                 {},
	"Logout":                              onRoot("System.View"),
	"CurrentTime":                         onRoot("System.View"),
	"SessionIsActive":                     onRoot("Sessions.ValidateSession"),
	"HasPrivilegeOnEntities":              {root: []string{"System.View"}, vm: []string{"System.Read"}},
	"GetCustomizationSpec":                onRoot("VirtualMachine.Provisioning.ReadCustSpecs"),
	"RetrievePropertiesEx":                onVM("System.Read"),
	"CreatePropertyCollector":             onRoot("System.View"),
	"CreateFilter":                        onRoot("System.View"),
	"WaitForUpdatesEx":                    onRoot("System.View"),
	"DestroyPropertyFilter":               {},
	"DestroyPropertyCollector":            onRoot("System.View"),
	"CreateListView":                      onRoot("System.View"),
	"ModifyListView":                      onRoot("System.View"),
	"DestroyView":                         onRoot("System.View"),
	"CreateCollectorForTasks":             onRoot("System.View"),
	"ReadNextTasks":                       {},
	"DestroyCollector":                    {},
	"GET Task/info":                       onVM("System.View"),
	"guest/customization check":           onVM("System.View"),
	"GET guest/customization":             onVM("System.View"),
	customizeGuest:                        onVM("VirtualMachine.Provisioning.Customize"),
	startGuestNetwork:                     onVM("VirtualMachine.Provisioning.Customize"),
	abortCustomization:                    onVM("VirtualMachine.Provisioning.Customize"),
	"ReconfigVM_Task": onVM(
		"VirtualMachine.Interact.DeviceConnection", "VirtualMachine.Config.EditDevice",
	),
	"CancelTask":                             onVM("Global.CancelTask"),
	"guest/processes create":                 onVM("VirtualMachine.GuestOperations.Execute"),
	"guest/processes delete":                 onVM("VirtualMachine.GuestOperations.Execute"),
	"guest/processes list":                   onVM("VirtualMachine.GuestOperations.Query"),
	"guest/processes get":                    onVM("VirtualMachine.GuestOperations.Query"),
	"GET GuestOperationsManager/fileManager": onRoot("System.View"),
	"InitiateFileTransferFromGuest":          onVM("VirtualMachine.GuestOperations.Query"),
	"GET guest file":                         {},
}

// permissions are what the login may do.
type permissions struct {
	mu     sync.Mutex
	held   *Privileges
	denied map[string][]string // by VM
}

// SetPrivileges restricts the login to some privileges from the next call on; nil lets it do everything again.
func (v *VCenter) SetPrivileges(p *Privileges) {
	v.rights.mu.Lock()
	defer v.rights.mu.Unlock()
	v.rights.held = p
}

// Deny takes privileges of the login away on one VM, on top of what SetPrivileges restricts. Without System.Read the
// VM's properties are missing for NoPermission, but for those that a filter shows.
func (v *VCenter) Deny(vm string, privileges ...string) {
	v.rights.mu.Lock()
	defer v.rights.mu.Unlock()
	if v.rights.denied == nil {
		v.rights.denied = make(map[string][]string)
	}
	v.rights.denied[vm] = append(v.rights.denied[vm], privileges...)
}

// has reports whether the login has a privilege on a VM, or where vm is "" on the root folder.
func (r *permissions) has(privilege, vm string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	switch {
	case vm != "" && slices.Contains(r.denied[vm], privilege):
		return false
	case r.held == nil || slices.Contains(systemPrivileges, privilege):
		return true
	case vm == "":
		return slices.Contains(r.held.Root, privilege)
	}
	return slices.Contains(r.held.VMs, privilege)
}

func (r *permissions) restricted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held != nil
}

// checkPrivileges makes a call check the login's privileges before it takes effect. A call without a living session is
// left to find that out itself.
func (v *VCenter) checkPrivileges(x parsedCall, r *http.Request, body []byte) parsedCall {
	serve := x.serve
	x.serve = func() response {
		fault := v.missingPrivilege(x.call)
		if fault == nil || !v.loggedIn(r) {
			return serve()
		}
		return v.refuseCall(x, r, body, fault)
	}
	return x
}

// missingPrivilege is the fault for a call that the login may not make, nil where it may.
func (v *VCenter) missingPrivilege(c Call) *types.NoPermission {
	n, known := required[c.Op]
	if !known && v.rights.restricted() && !strings.Contains(c.Op, " /") {
		// A path that is not served is not there for anybody.
		n = onRoot("what " + c.Op + " needs is not in vcsim's table of required privileges")
	}

	fault := new(types.NoPermission)
	look := func(entity types.ManagedObjectReference, vm string, privileges []string) {
		var missing []string
		for _, p := range privileges {
			if !v.rights.has(p, vm) {
				missing = append(missing, p)
			}
		}

		if len(missing) == 0 {
			return
		}

		fault.MissingPrivileges = append(
			fault.MissingPrivileges, types.NoPermissionEntityPrivileges{Entity: entity, PrivilegeIds: missing},
		)

		if fault.Object == nil {
			fault.Object, fault.PrivilegeId = &entity, missing[0]
		}
	}

	look(v.content.RootFolder, "", n.root)
	if c.VM != "" {
		look(types.ManagedObjectReference{Type: "VirtualMachine", Value: c.VM}, c.VM, n.vm)
	}
	if fault.Object == nil {
		return nil
	}

	return fault
}

func (v *VCenter) loggedIn(r *http.Request) bool {
	switch {
	case strings.HasPrefix(r.URL.Path, vijsonPrefix):
		s := v.session(r.Header.Get(sessionHeader))
		return s != nil && s.key != ""
	case strings.HasPrefix(r.URL.Path, vim25.Path):
		c, err := r.Cookie(soap.SessionCookieName)
		return err == nil && v.keyAlive(c.Value, v.opts.Username)
	}
	return v.restSession(r) != nil
}

const permissionDenied = "Permission to perform this operation was denied."

// refuseCall writes a NoPermission as each protocol does. RetrievePropertiesEx succeeds, with the fault as the reason
// for every missing property.
func (v *VCenter) refuseCall(x parsedCall, r *http.Request, body []byte, fault *types.NoPermission) response {
	switch {
	case strings.HasPrefix(r.URL.Path, vijsonPrefix):
		if req, err := v.decode(v.content.PropertyCollector, x.call.Op, body); err == nil {
			if ask, ok := req.(*types.RetrievePropertiesEx); ok {
				return valueResponse(allMissing(ask, fault))
			}
		}
		return jsonFaultWithText(fault, permissionDenied)
	case strings.HasPrefix(r.URL.Path, vim25.Path):
		return x.fault(fault)
	}

	// The ID is a belief, the rest is Vapi.Std.Errors.Unauthorized.
	a := restError(
		"UNAUTHORIZED",
		"vapi.security.authorization.permission.denied",
		permissionDenied+" Required privilege: "+fault.PrivilegeId,
		nil,
		fault.PrivilegeId,
	)

	if strings.HasPrefix(r.URL.Path, "/rest/") {
		return oldRESTForm(a)
	}

	return a
}

// allMissing is the result of a read of properties none of which may be shown.
func allMissing(ask *types.RetrievePropertiesEx, fault *types.NoPermission) types.RetrieveResult {
	var res types.RetrieveResult
	for _, spec := range ask.SpecSet {
		for _, o := range spec.ObjectSet {
			content := types.ObjectContent{Obj: o.Obj}
			for _, p := range spec.PropSet {
				for _, path := range p.PathSet {
					content.MissingSet = append(content.MissingSet, types.MissingProperty{
						Path: path, Fault: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: permissionDenied},
					})
				}
			}

			res.Objects = append(res.Objects, content)
		}
	}

	return res
}

// authorizationManager is vcsim's, with the permissions of the login.
type authorizationManager struct {
	*simulator.AuthorizationManager
	rights *permissions
}

func (v *VCenter) installAuthorizationManager() {
	v.reg.Put(
		&authorizationManager{v.reg.Get(*v.content.AuthorizationManager).(*simulator.AuthorizationManager), &v.rights},
	)
}

// HasPrivilegeOnEntities returns which privileges the login has on VMs; for other objects those of the root folder
// count. Fault: NoPermission, where System.Read on one of them is missing.
func (m *authorizationManager) HasPrivilegeOnEntities(req *types.HasPrivilegeOnEntities) soap.HasFault {
	body := &methods.HasPrivilegeOnEntitiesBody{Res: new(types.HasPrivilegeOnEntitiesResponse)}
	for _, e := range req.Entity {
		vm := ""
		if e.Type == "VirtualMachine" {
			vm = e.Value
		}

		if read := "System.Read"; !m.rights.has(read, vm) {
			return &methods.HasPrivilegeOnEntitiesBody{
				Fault_: simulator.Fault(permissionDenied, &types.NoPermission{Object: &e, PrivilegeId: read}),
			}
		}

		entity := types.EntityPrivilege{Entity: e}
		for _, id := range req.PrivId {
			entity.PrivAvailability = append(
				entity.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: m.rights.has(id, vm)},
			)
		}

		body.Res.Returnval = append(body.Res.Returnval, entity)
	}

	return body
}
