package vcsim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

const (
	unauthenticated = `{"error_type":"UNAUTHENTICATED",
		"messages":[{"id":"com.vmware.vapi.endpoint.method.authentication.required",
		"default_message":"Authentication required.","args":[]}],"challenge":"Basic realm=\"vCenter\""}`
	badGuestLogin = `{"error_type":"UNAUTHENTICATED",
		"messages":[{"id":"com.vmware.api.vcenter.vm.guest.invalid_guest_login",
		"default_message":"Failed to authenticate with the guest operating system using the supplied credentials.",
		"args":[]}],"challenge":"Basic realm=\"vCenter\""}`
	noTools = `{"error_type":"SERVICE_UNAVAILABLE",
		"messages":[{"id":"com.vmware.api.vcenter.vm.guest.tools_not_running",
		"default_message":"VMware Tools is not running in the virtual machine.","args":[]}]}`
	noVM = `{"error_type":"NOT_FOUND","messages":[{"id":"com.vmware.api.vcenter.vm.not_found",
		"default_message":"Virtual machine with identifier 'vm-0' does not exist.","args":["vm-0"]}]}`
)

func TestCheckAndStatus(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c := newREST(t, v)
	vm := first(v)
	path := "/api/vcenter/vm/" + vm.ID() + "/guest/customization"
	c.want("POST", path+"?action=check", "", http.StatusUnauthorized, unauthenticated)
	c.loginREST()
	c.want("POST", path+"?action=check", "", http.StatusOK,
		`{"check_status":"SUPPORTED","supported_guest_os":true,"supported_power_state":true}`)

	c.want("GET", path, "", http.StatusOK, `{"status":"IDLE"}`)
	c.want("POST", "/api/vcenter/vm/vm-0/guest/customization?action=check", "", http.StatusNotFound, noVM)
	c.want("GET", "/api/vcenter/vm/vm-0/guest/customization", "", http.StatusNotFound, noVM)
	c.want("GET", "/api/vcenter/vm/"+vm.ID()+"/guest/operations", "", http.StatusOK,
		`{"guest_operations_ready":true,"interactive_guest_operations_ready":false}`)

	vm.PowerOff()
	c.want("POST", path+"?action=check", "", http.StatusOK,
		`{"check_status":"NOT_SUPPORTED","supported_guest_os":true,"supported_power_state":false}`)

	c.want("GET", "/api/vcenter/vm/"+vm.ID()+"/guest/operations", "", http.StatusServiceUnavailable, noTools)
	vm.Configure(func(g *vcsim.Guest) { g.Supported = false })
	c.want("POST", path+"?action=check", "", http.StatusOK,
		`{"check_status":"NOT_SUPPORTED","supported_guest_os":false}`)

	began, ended := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC), time.Date(2026, 11, 20, 10, 1, 0, 0, time.UTC)
	vm.SetStatus("FAILED", "no perl", &began, &ended)
	c.want(
		"GET",
		path,
		"",
		http.StatusOK,
		`{"status":"FAILED","error":"no perl","start_time":"2026-11-20T10:00:00.000Z",`+
			`"end_time":"2026-11-20T10:01:00.000Z"}`,
	)

	if n := v.Count("guest/customization check", vm.ID()); n != 4 {
		t.Errorf("checks counted: %d", n)
	}
	if n := v.Count("GET guest/customization", vm.ID()); n != 2 {
		t.Errorf("reads of the status counted: %d", n)
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"8.0.1.0", "8.0.2.0", "8.0.3.0", "9.0.0.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			v := start(t, vcsim.Options{APIVersion: version})
			one := version >= "8.0.3.0"
			vim, api := newREST(t, v), newREST(t, v)
			res := vim.login()
			api.loginREST()
			var user struct{ Key, UserName string }

			if err := json.Unmarshal([]byte(res.body), &user); err != nil ||
				user.UserName != v.Username() || user.Key == vim.token || len(vim.token) != 40 {
				t.Errorf("login: %s (token %s), %v", res.body, vim.token, err)
			}

			works := func(c *rest, method, path string, want bool) {
				t.Helper()
				if res := c.do(method, path, ""); (res.status == http.StatusOK) != want {
					t.Errorf("%s %s: %d %s, want it to work: %t", method, path, res.status, res.body, want)
				}
			}

			const now = "/sdk/vim25/8.0.1.0/ServiceInstance/ServiceInstance/CurrentTime"
			works(vim, "POST", now, true)
			works(api, "GET", "/api/session", true)
			works(vim, "GET", "/api/session", one)
			works(api, "POST", now, one)

			check := api.do("POST", "/api/vcenter/vm/"+v.VMs()[0]+"/guest/customization?action=check", "")
			if (check.status == http.StatusOK) != (version >= "9.0.0.0") {
				t.Errorf("check: %d %s", check.status, check.body)
			}

			hello := newREST(
				t, v,
			).do("POST", "/api/vcenter/system?action=hello", `{"api_releases":["9.9.9.9","9.0.0.0","8.0.3.0",`+
				`"8.0.2.0"]}`)

			want := `{"api_release":"` + version + `"}`
			if version >= "8.0.2.0" && hello.body != want ||
				version < "8.0.2.0" && hello.status != http.StatusNotFound {
				t.Errorf("hello: %d %s", hello.status, hello.body)
			}

			known := map[string]int{
				"8.0.1.0": http.StatusOK,
				version:   http.StatusOK,
				"9.1.0.0": http.StatusNotFound,
				"1.2.3.4": http.StatusNotFound,
			}

			for release, status := range known {
				res := newREST(t, v).do("GET", "/sdk/vim25/"+release+"/ServiceInstance/ServiceInstance/content", "")
				if res.status != status {
					t.Errorf("release %s: %d", release, res.status)
				}
			}

			v.ExpireSessions()
			works(vim, "POST", now, false)
			works(api, "GET", "/api/session", false)
			vim.login()
			api.loginREST()
			works(vim, "POST", now, true)
			if res := api.do("DELETE", "/api/session", ""); res.status != http.StatusNoContent {
				t.Errorf("logout: %d %s", res.status, res.body)
			}

			works(api, "GET", "/api/session", false)
			works(api, "POST", now, false)
			works(vim, "POST", now, true)
		})
	}
}

// TestTerminatedSession ends a session from another one, by its key, as an owner that takes over does.
func TestTerminatedSession(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	old, owner := newREST(t, v), newREST(t, v)
	var user struct{ Key string }
	if err := json.Unmarshal([]byte(old.login().body), &user); err != nil {
		t.Fatal(err)
	}

	owner.login()
	active := `{"sessionID":"` + user.Key + `","userName":"` + v.Username() + `"}`
	const sm = "/sdk/vim25/8.0.3.0/SessionManager/SessionManager/"
	owner.want("POST", sm+"SessionIsActive", active, http.StatusOK, `true`)
	owner.want("POST", sm+"TerminateSession", `{"sessionId":["`+user.Key+`"]}`, http.StatusNoContent, "")
	owner.want("POST", sm+"SessionIsActive", active, http.StatusOK, `false`)
	vm := first(v)
	old.want(
		"POST",
		gcmPath+"CustomizeGuest_Task",
		customizeBody(vm, "web01", "10.0.0.7"),
		http.StatusInternalServerError,
		`{"_typeName":"NotAuthenticated","object":{"_typeName":"ManagedObjectReference",
			"type":"VirtualMachineGuestCustomizationManager",
		  "value":"GuestCustomizationManager"},"privilegeId":"System.View","faultMessage":[],
		"faultstring":"The session is not authenticated."}`,
	)

	old.want("GET", "/api/session", "", http.StatusUnauthorized, unauthenticated)
	if e := vm.Effects(); e.Customizations != 0 {
		t.Errorf("effects: %+v", e)
	}
}

func TestWrongLogin(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c := newREST(t, v)
	c.want(
		"POST",
		"/sdk/vim25/8.0.3.0/SessionManager/SessionManager/Login",
		`{"userName":"`+v.Username()+`","password":"wrong"}`,
		http.StatusInternalServerError,
		`{"_typeName":"InvalidLogin","faultMessage":[],`+
			`"faultstring":"Cannot complete login due to an incorrect user name or password."}`,
	)

	if res := c.do("POST", "/api/session", ""); res.status != http.StatusUnauthorized {
		t.Errorf("without credentials: %d %s", res.status, res.body)
	}

	for _, call := range v.Calls() {
		if strings.Contains(call.Body, "wrong") {
			t.Errorf("recorded with a password: %s", call.Body)
		}
	}
}

// TestExpiredReads is the other way in which a vCenter tells a reader that the session is gone.
func TestExpiredReads(t *testing.T) {
	t.Parallel()
	for _, missing := range []bool{false, true} {
		v, c, _ := loggedIn(t, vcsim.Options{MissingNotAuthenticated: missing})
		v.ExpireSessions()
		res := c.do("POST", "/sdk/vim25/8.0.3.0/PropertyCollector/propertyCollector/RetrievePropertiesEx",
			`{"specSet":[{"propSet":[{"type":"VirtualMachine","pathSet":["name"]}],
			  "objectSet":[{"obj":{"type":"VirtualMachine","value":"`+v.VMs()[0]+`"}}]}],"options":{}}`)
		mustContain(t, "answer", res.body, "NotAuthenticated")
		if strings.Contains(res.body, "missingSet") != missing {
			t.Errorf("%d %s", res.status, res.body)
		}
	}
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{GuestClockOffset: -24 * time.Hour})
	c := newREST(t, v)
	c.loginREST()
	vm := first(v)
	vm.Configure(func(g *vcsim.Guest) {
		g.NextPID = 4711
		g.Programs["/opt/join"] = vcsim.Program{Duration: -1}
		g.Programs["/opt/full"] = vcsim.Program{Err: "UNABLE_TO_ALLOCATE_RESOURCE"}
		g.Programs["-c 'deploy now'"] = vcsim.Program{ExitCode: 42}
	})

	path := "/api/vcenter/vm/" + vm.ID() + "/guest/processes"
	create := func(program, arguments string) response {
		t.Helper()
		args, err := json.Marshal(arguments)
		if err != nil {
			t.Fatal(err)
		}

		return c.do(
			"POST",
			path+"?action=create",
			`{"credentials":`+credentials(vm)+`,"spec":{"path":"`+program+`","arguments":`+string(args)+`}}`,
		)
	}

	creds := `{"credentials":` + credentials(vm) + `}`
	get := func(pid int) map[string]any {
		t.Helper()
		res := c.do("POST", path+"/"+strconv.Itoa(pid)+"?action=get", creds)
		if res.status != http.StatusOK {
			t.Fatalf("get %d: %d %s", pid, res.status, res.body)
		}
		var p map[string]any
		if err := json.Unmarshal([]byte(res.body), &p); err != nil {
			t.Fatal(err)
		}
		return p
	}

	if res := create("/bin/sh", "-c 'exit 3' # gf:01"); res.status != http.StatusCreated || res.body != "4711" {
		t.Fatalf("create: %d %s", res.status, res.body)
	}

	p := get(4711)
	if p["command"] != `"/bin/sh" -c 'exit 3' # gf:01` || p["name"] != "sh" || p["owner"] != "root" ||
		p["exit_code"] != 3.0 ||
		p["finished"] == nil {
		t.Errorf("process: %v", p)
	}

	if at, err := time.Parse(time.RFC3339, fmt.Sprint(p["started"])); err != nil || time.Since(at) < 23*time.Hour {
		t.Errorf("started by our clock: %v, %v", p["started"], err)
	}

	for i, tc := range []struct {
		program, arguments string
		code               float64
	}{
		{"/bin/true", "", 0}, {"/usr/bin/false", "", 1}, {
			"/bin/bash", `-c "echo hi && false"`, 1,
		}, {"/bin/sh", "-c 'deploy now' # gf:02", 42},
		{"/bin/sh", "-c 'no-such-command; exit 7'", 7}, {"/bin/sh", "-c no-such-command", 127},
	} {
		if res := create(tc.program, tc.arguments); res.status != http.StatusCreated {
			t.Fatalf("create %s: %d %s", tc.program, res.status, res.body)
		}
		if p := get(4712 + i); p["exit_code"] != tc.code {
			t.Errorf("%s %s: %v", tc.program, tc.arguments, p)
		}
	}

	create("/opt/join", "") // 4718, runs until it is deleted
	if p := get(4718); p["finished"] != nil || p["exit_code"] != nil || p["command"] != `"/opt/join"` {
		t.Errorf("running: %v", p)
	}

	create("/bin/sleep", "600") // 4719
	var list []struct {
		PID           int64
		Name, Command string
		ExitCode      *int64 `json:"exit_code"`
	}

	res := c.do("POST", path+"?action=list", creds)
	if err := json.Unmarshal([]byte(res.body), &list); err != nil || len(list) != 11 ||
		list[0].PID != 1 || list[1].Name != "vmtoolsd" || list[2].ExitCode != nil {
		t.Fatalf("list: %s, %v", res.body, err)
	}

	tools := list[1].PID

	v.Advance(4 * time.Minute)
	if p := get(4711); p["exit_code"] != 3.0 {
		t.Errorf("after four minutes: %v", p)
	}

	v.Advance(61 * time.Second)
	gone := func(pid string) string {
		return `{"error_type":"NOT_FOUND","messages":[{"id":"com.vmware.api.vcenter.vm.guest.processes.not_found",
			"default_message":"Process ` + pid + ` was not found.","args":["` + pid + `"]}],"data":{"pid":` + pid + `}}`
	}

	c.want("POST", path+"/4711?action=get", creds, http.StatusNotFound, gone("4711"))
	c.want("POST", path+"/4718?action=delete", creds, http.StatusNoContent, "")
	if p := get(4718); p["exit_code"] != 143.0 {
		t.Errorf("deleted: %v", p)
	}

	vm.ToolsDown()
	c.want("POST", path+"/4719?action=get", creds, http.StatusServiceUnavailable, noTools)
	vm.ToolsUp()

	// Its exit record died with the tools.
	c.want("POST", path+"/4718?action=get", creds, http.StatusNotFound, gone("4718"))
	if p := get(4719); p["finished"] != nil {
		t.Errorf("running through a restart of the tools: %v", p)
	}

	v.Advance(10 * time.Minute)
	c.want("POST", path+"/4719?action=get", creds, http.StatusNotFound, gone("4719")) // nobody saw its end
	res = c.do("POST", path+"?action=list", creds)
	if err := json.Unmarshal([]byte(res.body), &list); err != nil || len(list) != 2 || list[1].PID == tools {
		t.Errorf("list after a restart of the tools (%d before): %s, %v", tools, res.body, err)
	}

	vm.PowerOff()
	if res := c.do("POST", path+"?action=list", creds); res.status != http.StatusBadRequest ||
		!strings.Contains(res.body, "NOT_ALLOWED_IN_CURRENT_STATE") {
		t.Errorf("powered off: %d %s", res.status, res.body)
	}

	if e := vm.Effects(); len(e.Processes) != 9 || e.Processes[3] != `"/bin/bash" -c "echo hi && false"` ||
		len(e.Deleted) != 1 {
		t.Errorf("effects: %+v", e)
	}
}

func TestProcessesRefused(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c := newREST(t, v)
	vm := first(v)
	path := "/api/vcenter/vm/" + vm.ID() + "/guest/processes"
	creds := credentials(vm)
	body := func(spec string) string { return `{"credentials":` + creds + `,"spec":` + spec + `}` }
	c.want("POST", path+"?action=create", body(`{"path":"/bin/true"}`), http.StatusUnauthorized, unauthenticated)
	c.loginREST()
	wrong := strings.Replace(body(`{"path":"/bin/true"}`), vcsim.DefaultGuestPassword, "wrong", 1)
	c.want("POST", path+"?action=create", wrong, http.StatusUnauthorized, badGuestLogin)
	if res := c.do("GET", "/api/session", ""); res.status != http.StatusOK { // which tells the two apart
		t.Errorf("session: %d %s", res.status, res.body)
	}

	c.want("POST", "/api/vcenter/vm/vm-0/guest/processes?action=list", `{"credentials":`+creds+`}`,
		http.StatusNotFound, noVM)

	c.want(
		"POST",
		path+"?action=create",
		body(`{"path":"/opt/none"}`),
		http.StatusNotFound,
		`{"error_type":"NOT_FOUND","messages":[{"id":"com.vmware.api.vcenter.vm.guest.file_not_found",
			"default_message":"File /opt/none was not found.","args":[]}],
		  "data":{"reason":"FILE_NOT_FOUND","file_path":"/opt/none"}}`,
	)

	for _, spec := range []string{
		`{"path":""}`, `{"path":"/bin/true","working_directory":"here"}`,
		`{"path":"/bin/true","start_minimized":true}`, `7`,
	} {
		if res := c.do("POST", path+"?action=create", body(spec)); res.status != http.StatusBadRequest ||
			!strings.Contains(res.body, "INVALID_ARGUMENT") {
			t.Errorf("%s: %d %s", spec, res.status, res.body)
		}
	}

	vm.Configure(func(g *vcsim.Guest) { g.SAMLToken = "assertion" })
	token := `{"credentials":{"type":"SAML_BEARER_TOKEN","saml_token":"assertion"}}`
	if res := c.do("POST", path+"?action=list", token); res.status != http.StatusOK {
		t.Errorf("token: %d %s", res.status, res.body)
	}

	if e := vm.Effects(); len(e.Processes) != 0 {
		t.Errorf("effects: %+v", e)
	}
}

// TestOldForm is the older /rest form: answers wrapped in value, errors with a type.
func TestOldForm(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c := newREST(t, v)
	vm := first(v)
	path := "/rest/vcenter/vm/" + vm.ID() + "/guest/processes/"
	creds := `{"credentials":` + credentials(vm) + `}`
	c.want(
		"POST",
		path+"1?action=get",
		creds,
		http.StatusUnauthorized,
		`{"type":"com.vmware.vapi.std.errors.unauthenticated","value":{"messages":[
		{"id":"com.vmware.vapi.endpoint.method.authentication.required",
		"default_message":"Authentication required.","args":[]}]}}`,
	)

	c.loginREST()
	res := c.do("POST", path+"1?action=get", creds)
	mustContain(t, "process", res.body, `{"value":{`, `"name":"systemd"`)
	c.want(
		"POST",
		path+"99?action=get",
		creds,
		http.StatusNotFound,
		`{"type":"com.vmware.vapi.std.errors.not_found","value":{"messages":[
		{"id":"com.vmware.api.vcenter.vm.guest.processes.not_found",
		"default_message":"Process 99 was not found.","args":["99"]}],"data":{"pid":99}}}`,
	)
}
