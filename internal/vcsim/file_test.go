package vcsim_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

const fileManagerPath = "/sdk/vim25/8.0.1.0/GuestFileManager/guestOperationsFileManager/"

// fileBody is an InitiateFileTransferFromGuest.
func fileBody(vm *vcsim.VM, auth, path string) string {
	return `{"vm":{"type":"VirtualMachine",` +
		`"value":"` + vm.ID() + `"},"auth":` + auth + `,"guestFilePath":"` + path + `"}`
}

// transfer begins one and gives the path of its URL.
func (c *rest) transfer(vm *vcsim.VM, path string, size int64) string {
	c.t.Helper()
	res := c.do("POST", fileManagerPath+"InitiateFileTransferFromGuest", fileBody(vm, auth(vm), path))
	var info struct {
		TypeName string `json:"_typeName"`
		Size     int64
		URL      string
	}

	err := json.Unmarshal([]byte(res.body), &info)
	if err != nil || res.status != http.StatusOK ||
		info.TypeName != "FileTransferInformation" || info.Size != size {
		c.t.Fatalf("transfer: %d %s (%v)", res.status, res.body, err)
	}

	uri, ok := strings.CutPrefix(info.URL, "https://*:443")
	if !ok {
		c.t.Fatalf("the URL is %q", info.URL)
	}

	return uri
}

func TestGuestFiles(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c, anybody := newREST(t, v), newREST(t, v)
	vm := first(v)
	vm.Configure(func(g *vcsim.Guest) { g.Files["/var/log/app.log"] = "one\ntwo\n" })
	initiate := fileManagerPath + "InitiateFileTransferFromGuest"

	if res := c.do("POST", initiate, fileBody(vm, auth(vm), "/var/log/app.log")); !strings.Contains(
		res.body, "NotAuthenticated",
	) {
		t.Errorf("without a session: %d %s", res.status, res.body)
	}

	c.login()
	c.want("GET", "/sdk/vim25/8.0.1.0/GuestOperationsManager/guestOperationsManager/fileManager", "", http.StatusOK,
		`{"_typeName":"ManagedObjectReference","type":"GuestFileManager","value":"guestOperationsFileManager"}`)

	uri := c.transfer(vm, "/var/log/app.log", 8)
	if res := anybody.do("POST", uri, ""); res.status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d %s", res.status, res.body)
	}
	if res := anybody.do("GET", uri, ""); res.status != http.StatusOK || res.body != "one\ntwo\n" { // the URL is enough
		t.Errorf("GET: %d %s", res.status, res.body)
	}

	for what, uri := range map[string]string{
		"again": uri, "another token": "/guestFile?id=1&token=x", "no token": "/guestFile",
	} {
		if res := anybody.do("GET", uri, ""); res.status != http.StatusNotFound {
			t.Errorf("%s: %d %s", what, res.status, res.body)
		}
	}

	old := c.transfer(vm, "/var/log/app.log", 8)
	v.Advance(11 * time.Minute)
	if res := anybody.do("GET", old, ""); res.status != http.StatusNotFound {
		t.Errorf("expired: %d %s", res.status, res.body)
	}

	wrong := strings.Replace(auth(vm), vcsim.DefaultGuestPassword, "wrong", 1)
	fault := func(body, name string, words ...string) {
		t.Helper()
		res := c.do("POST", initiate, body)
		if res.status != http.StatusInternalServerError {
			t.Errorf("%s: %d %s", name, res.status, res.body)
		}
		mustContain(t, name, res.body, append(words, `"_typeName":"`+name+`"`)...)
	}

	fault(fileBody(vm, wrong, "/var/log/app.log"), "InvalidGuestLogin")
	fault(fileBody(vm, auth(vm), "/none"), "FileNotFound", `"file":"/none"`)
	fault(fileBody(vm, auth(vm), "app.log"), "InvalidArgument", "guestFilePath")
	fault(strings.Replace(fileBody(vm, auth(vm), "/x"), vm.ID(), "vm-0", 1), "ManagedObjectNotFound")
	uri = c.transfer(vm, "/var/log/app.log", 8)
	vm.ToolsDown()
	fault(fileBody(vm, auth(vm), "/var/log/app.log"), "GuestOperationsUnavailable")
	if res := anybody.do("GET", uri, ""); res.status != http.StatusInternalServerError {
		t.Errorf("tools down: %d %s", res.status, res.body)
	}

	vm.PowerOff()
	fault(fileBody(vm, auth(vm), "/var/log/app.log"), "InvalidPowerState")

	_, token, _ := strings.Cut(uri, "token=")
	for _, call := range v.Calls() {
		if strings.Contains(call.Path, token) || strings.Contains(call.Body, "wrong") {
			t.Errorf("recorded with a secret: %s %s", call.Path, call.Body)
		}
	}

	if n := v.Count("InitiateFileTransferFromGuest", vm.ID()); n != 9 {
		t.Errorf("%d transfers counted", n)
	}
	if n := v.Count("GET guest file", vm.ID()); n != 4 { // that name this VM's transfer: those of spent URLs do not
		t.Errorf("%d files counted", n)
	}
}

// TestOnlyRest is a vCenter that has processes and sessions under /rest alone.
func TestOnlyRest(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"8.0.2.0", "9.0.0.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			v := start(t, vcsim.Options{APIVersion: version, OnlyRest: true})
			c := newREST(t, v)
			vm := first(v)
			const notFound = `{"error_type":"NOT_FOUND","messages":[{"id":"com.vmware.vapi.rest.httpNotFound",` +
				`"default_message":"Not found.","args":[]}]}`
			api, old := "/api/vcenter/vm/"+vm.ID()+"/guest/processes", "/rest/vcenter/vm/"+vm.ID()+"/guest/processes"
			creds := `{"credentials":` + credentials(vm) + `}`
			absent := func() {
				t.Helper()
				for _, action := range []string{"?action=list", "?action=create", "/1?action=get", "/1?action=delete"} {
					c.want("POST", api+action, creds, http.StatusNotFound, notFound)
				}
				for _, method := range []string{"GET", "POST", "DELETE"} {
					c.want(method, "/api/session", "", http.StatusNotFound, notFound)
				}
			}

			absent()

			const sessions = "/rest/com/vmware/cis/session"
			if res := c.do("POST", sessions, ""); res.status != http.StatusUnauthorized {
				t.Errorf("without credentials: %d %s", res.status, res.body)
			}
			if res := c.do("POST", sessions+"?~action=get", ""); res.status != http.StatusUnauthorized {
				t.Errorf("without a session: %d %s", res.status, res.body)
			}

			var login struct{ Value string }
			c.loginAt(sessions, http.StatusOK, &login)
			c.token = login.Value
			mustContain(t, "session", c.do("POST", sessions+"?~action=get", "").body, `{"value":{"user":"`+v.Username())
			absent()

			create := func(environment string) response {
				return c.do(
					"POST",
					old+"?action=create",
					`{"credentials":`+credentials(vm)+`,"spec":{"path":"/bin/sleep","arguments":"600",
					"environment_variables":`+environment+`}}`,
				)
			}

			if res := create(`{"A":"b"}`); res.status != http.StatusBadRequest ||
				!strings.Contains(res.body, "com.vmware.vapi.std.errors.invalid_argument") {
				t.Errorf("a map: %d %s", res.status, res.body)
			}

			if res := create(`[{"key":"A","value":"b"}]`); res.status != http.StatusOK || res.body != `{"value":2001}` {
				t.Errorf("pairs: %d %s", res.status, res.body)
			}

			mustContain(t, "list", c.do("POST", old+"?action=list", creds).body, `{"value":[{"pid":1,`, `"pid":2001`)
			mustContain(t, "get", c.do("POST", old+"/2001?~action=get", creds).body, `{"value":{"name":"sleep"`)
			c.want("POST", old+"/2001?action=delete", creds, http.StatusOK, "")
			if e := vm.Effects(); len(e.Processes) != 1 || len(e.Deleted) != 1 {
				t.Errorf("effects: %+v", e)
			}

			vm.ToolsDown()
			mustContain(
				t,
				"tools down",
				c.do("POST", old+"?action=list", creds).body,
				`"type":"com.vmware.vapi.std.errors.service_unavailable"`,
			)

			if n := v.Count("guest/processes create", vm.ID()); n != 2 {
				t.Errorf("%d creates counted", n)
			}
			if res := c.do("DELETE", sessions, ""); res.status != http.StatusOK {
				t.Errorf("logout: %d %s", res.status, res.body)
			}
			if res := c.do("POST", old+"?action=list", creds); res.status != http.StatusUnauthorized {
				t.Errorf("after the logout: %d %s", res.status, res.body)
			}
		})
	}
}

// TestEnvironmentForms: /api takes maps, not the pairs of /rest.
func TestEnvironmentForms(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c := newREST(t, v)
	c.loginREST()
	vm := first(v)

	for environment, status := range map[string]int{
		`{"A":"b"}`: http.StatusCreated, `null`: http.StatusCreated,
		`[{"key":"A","value":"b"}]`: http.StatusBadRequest,
	} {
		res := c.do("POST", "/api/vcenter/vm/"+vm.ID()+"/guest/processes?action=create",
			`{"credentials":`+credentials(vm)+`,"spec":{"path":"/bin/true","environment_variables":`+environment+`}}`)
		if res.status != status {
			t.Errorf("%s: %d %s", environment, res.status, res.body)
		}
	}
}
