package vcapi

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// TestMissingPrivileges: the call is about this client's own session, and what is not granted, or not in the response,
// is missing.
func TestMissingPrivileges(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply(
		"HasPrivilegeOnEntities",
		200,
		`[{"_typeName":"EntityPrivilege","entity":{"type":"VirtualMachine","value":"vm-1"},"privAvailability":[`+
			`{"_typeName":"PrivilegeAvailability","privId":"A.One",`+
			`"isGranted":true},{"_typeName":"PrivilegeAvailability","privId":"A.Two","isGranted":false}]}]`,
	)

	c := newClient(t, f.config())
	missing, err := c.MissingPrivileges(context.Background(), "vm-1", []string{"A.One", "A.Two", "A.Three"})
	if err != nil || !slices.Equal(missing, []string{"A.Two", "A.Three"}) {
		t.Errorf("missing %v, %v", missing, err)
	}

	asked := f.of("HasPrivilegeOnEntities")
	var body struct {
		Entity    []moRef  `json:"entity"`
		SessionID string   `json:"sessionId"`
		PrivID    []string `json:"privId"`
	}

	if err := json.Unmarshal([]byte(asked[0].body), &body); err != nil {
		t.Fatal(err)
	}

	session, err := c.Session(context.Background())
	if err != nil || body.SessionID != session.Key || body.SessionID == "" || len(body.Entity) != 1 ||
		body.Entity[0].Value != "vm-1" ||
		len(body.PrivID) != 3 {
		t.Errorf("asked %s, session %+v, %v", asked[0].body, session, err)
	}
}

// A VM that may not be read is not an empty one.
func TestVMThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	v, c := start(t, vcsim.Options{})
	vm := v.VMs()[0]
	v.Deny(vm, "System.Read", "System.View")
	_, err := c.VM(context.Background(), vm)

	if e := asError(t, err); e.Name != "NoPermission" || e.Class != Permanent ||
		!strings.Contains(string(e.Data), "System.") {
		t.Errorf("got %v with %s", err, e.Data)
	}
}
