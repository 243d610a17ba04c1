package vcsim_test

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

const noPermission = `{"_typeName":"NoPermission","object":{"_typeName":"ManagedObjectReference","type":"TYPE",
	"value":"ID"},"privilegeId":"PRIVILEGE",
 "missingPrivileges":[{"_typeName":"NoPermissionEntityPrivileges",
"entity":{"_typeName":"ManagedObjectReference","type":"TYPE","value":"ID"},
  "privilegeIds":["PRIVILEGE"]}],"faultMessage":[],"faultstring":"Permission to perform this operation was denied."}`

// A call without its privilege is refused in the form of its protocol, and changes nothing; a call without a session
// still says that first.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{Privileges: new(vcsim.Privileges)})
	vm := first(v)
	c := newREST(t, v)
	const processes = "/guest/processes?action=list"
	on := "/api/vcenter/vm/" + vm.ID()
	body := `{"credentials":` + credentials(vm) + `}`

	if res := c.do("POST", gcmPath+"StartGuestNetwork_Task", onVM(vm)); !strings.Contains(
		res.body, "NotAuthenticated",
	) {
		t.Errorf("VI JSON without a session: %d %s", res.status, res.body)
	}

	if res := c.do("POST", on+processes, body); res.status != http.StatusUnauthorized {
		t.Errorf("REST without a session: %d %s", res.status, res.body)
	}

	c.login()
	fault := func(kind, id, privilege string) string {
		return strings.NewReplacer("TYPE", kind, "ID", id, "PRIVILEGE", privilege).Replace(noPermission)
	}
	c.want("POST", gcmPath+"StartGuestNetwork_Task", onVM(vm), 500,
		fault("VirtualMachine", vm.ID(), "VirtualMachine.Provisioning.Customize"))

	const manager = "/sdk/vim25/8.0.1.0/CustomizationSpecManager/CustomizationSpecManager/"
	c.want("POST", manager+"GetCustomizationSpec", `{"name":"vcsim-linux"}`, 500,
		fault("Folder", "group-d1", "VirtualMachine.Provisioning.ReadCustSpecs"))

	c.want(
		"POST",
		on+processes,
		body,
		403,
		`{"error_type":"UNAUTHORIZED","messages":[{"id":"vapi.security.authorization.permission.denied",
	 "default_message":"Permission to perform this operation was denied. `+
			`Required privilege: VirtualMachine.GuestOperations.Query",
	 "args":["VirtualMachine.GuestOperations.Query"]}]}`,
	)

	old := c.do("POST", "/rest/vcenter/vm/"+vm.ID()+"/guest/processes/1?action=get", body)
	if old.status != 403 ||
		!strings.HasPrefix(old.body, `{"type":"com.vmware.vapi.std.errors.unauthorized","value":{"messages":[`) {
		t.Errorf("the older form: %d %s", old.status, old.body)
	}

	if res := c.do("POST", manager+"DoesCustomizationSpecExist", `{"name":"vcsim-linux"}`); !strings.Contains(
		res.body, "DoesCustomizationSpecExist",
	) ||
		!strings.Contains(res.body, "NoPermission") {
		t.Errorf("a call that the table does not have: %d %s", res.status, res.body)
	}

	if res := c.do("GET", on+"/guest/nothing", ""); res.status != http.StatusNotFound {
		t.Errorf("a path that is not served: %d %s", res.status, res.body)
	}
	if res := c.do("GET", on+"/guest/customization", ""); res.status != http.StatusOK {
		t.Errorf("System.View is in every role: %d %s", res.status, res.body)
	}
	if e := vm.Effects(); e.NetworkStarts != 0 {
		t.Errorf("refused calls took effect: %+v", e)
	}

	v.SetPrivileges(&vcsim.Privileges{Root: []string{"VirtualMachine.GuestOperations.Query"}}) // the wrong object
	if res := c.do("POST", on+processes, body); res.status != http.StatusForbidden {
		t.Errorf("a VM's privilege on the root folder: %d %s", res.status, res.body)
	}

	v.SetPrivileges(&vcsim.Privileges{VMs: []string{"VirtualMachine.GuestOperations.Query"}})
	if res := c.do("POST", on+processes, body); res.status != http.StatusOK {
		t.Errorf("with the privilege: %d %s", res.status, res.body)
	}

	v.SetPrivileges(nil)
	exists := manager + "DoesCustomizationSpecExist"
	if res := c.do("POST", exists, `{"name":"vcsim-linux"}`); res.status != http.StatusOK {
		t.Errorf("with all privileges: %d %s", res.status, res.body)
	}
}

// What is denied on one VM is denied there alone; vCenter tells so when it is asked.
func TestDeniedOnOneVM(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	v.Deny(v.VMs()[0], "System.View", "System.Read", "VirtualMachine.Provisioning.Customize")
	c := newREST(t, v)
	c.login()
	granted := func(id string) string {
		return c.do(
			"POST",
			"/sdk/vim25/8.0.1.0/AuthorizationManager/AuthorizationManager/HasPrivilegeOnEntities",
			`{"entity":[{"type":"VirtualMachine",`+
				`"value":"`+id+`"}],"sessionId":"any","privId":["VirtualMachine.Provisioning.Customize"]}`,
		).body
	}

	read := func(id string) string {
		return c.do(
			"POST",
			"/sdk/vim25/8.0.1.0/PropertyCollector/propertyCollector/RetrievePropertiesEx",
			`{"specSet":[{"_typeName":"PropertyFilterSpec","propSet":[{"_typeName":"PropertySpec",
				"type":"VirtualMachine","pathSet":["name"]}],
			 "objectSet":[{"_typeName":"ObjectSpec","obj":{"type":"VirtualMachine",
			"value":"`+id+`"}}]}],"options":{"_typeName":"RetrieveOptions"}}`,
		).body
	}

	denied, other := v.VMs()[0], v.VMs()[1]
	if body := read(denied); !strings.Contains(body, `"missingSet"`) || !strings.Contains(body, `"path":"name"`) ||
		!strings.Contains(body, `"NoPermission"`) ||
		strings.Contains(body, `"propSet"`) {
		t.Errorf("properties of the VM: %s", body)
	}

	check := "/api/vcenter/vm/" + denied + "/guest/customization?action=check"
	if res := c.do("POST", check, ""); res.status != http.StatusForbidden {
		t.Errorf("check: %d %s", res.status, res.body)
	}

	if body := read(other); !strings.Contains(body, "guest-002") {
		t.Errorf("properties of the other VM: %s", body)
	}
	if body := granted(other); !strings.Contains(body, `"isGranted":true`) {
		t.Errorf("privileges on the other VM: %s", body)
	}

	v.Deny(other, "VirtualMachine.Provisioning.Customize") // the question itself needs System.Read
	if body := granted(other); !strings.Contains(body, `"isGranted":false`) {
		t.Errorf("privileges on the other VM, without: %s", body)
	}
	if body := granted(denied); !strings.Contains(body, "NoPermission") {
		t.Errorf("privileges on a VM that is not seen: %s", body)
	}
}

// The roles can be made as the document says: vCenter knows their privileges. (The simulator refuses those that it does
// not know.)
func TestRolesCanBeMade(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	v, c := vimSession(t, false)
	m := object.NewAuthorizationManager(c)
	for _, name := range []string{"root", "vm"} {
		content, err := os.ReadFile("../../deploy/vcenter/role-" + name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.AddRole(ctx, "guestflow-"+name, strings.Fields(string(content))); err != nil {
			t.Errorf("role %s: %v", name, err)
		}
	}

	if _, err := m.AddRole(ctx, "mistyped", []string{"VirtualMachine.Provisioning.Customise"}); err == nil {
		t.Error("a privilege that there is not was taken")
	}

	roles, err := m.RoleList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if role := roles.ByName("guestflow-vm"); role == nil || !slices.Contains(role.Privilege, "System.Read") {
		t.Errorf("the role as vCenter has it: %+v", role)
	}

	v.SetPrivileges(new(vcsim.Privileges)) // over SOAP too
	_, err = methods.SessionIsActive(
		ctx, c, &types.SessionIsActive{This: *c.ServiceContent.SessionManager, SessionID: "any", UserName: "any"},
	)
	if !fault.Is(err, &types.NoPermission{}) {
		t.Errorf("SOAP without the privilege: %v", err)
	}
}
