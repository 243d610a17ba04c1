package vcapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// guestProcesses begins the op of the calls that log in to the guest: their 401 may be the guest's.
const guestProcesses = "guest/processes "

// credentials is the guest login in REST (Vcenter Vm Guest Credentials).
type credentials struct {
	Type        string `json:"type"`
	Interactive bool   `json:"interactive_session"`
	UserName    string `json:"user_name,omitempty"`
	Password    string `json:"password,omitempty"`
	SAMLToken   string `json:"saml_token,omitempty"`
}

func (a GuestAuth) rest() credentials {
	if a.SAMLToken != "" {
		return credentials{Type: "SAML_BEARER_TOKEN", Interactive: a.Interactive, UserName: a.Username, SAMLToken: a.SAMLToken}
	}
	return credentials{Type: "USERNAME_PASSWORD", Interactive: a.Interactive, UserName: a.Username, Password: a.Password}
}

// processCall builds one of the four calls, all of them POST with the guest's login in the body.
func processCall(vm string, auth GuestAuth, pid int64, action string, spec any) (*call, error) {
	path := "/guest/processes"
	if pid != 0 {
		path += "/" + strconv.FormatInt(pid, 10)
	}
	cl, err := restCall(guestProcesses+action, http.MethodPost, vm, path+"?action="+action, struct {
		Credentials credentials `json:"credentials"`
		Spec        any         `json:"spec,omitempty"`
	}{auth.rest(), spec})
	if err != nil {
		return nil, err
	}
	cl.secrets = auth.secrets()
	return cl, nil
}

// wireProcess is Info and Summary of Vcenter Vm Guest Processes.
type wireProcess struct {
	PID      int64    `json:"pid"`
	Name     string   `json:"name"`
	Owner    string   `json:"owner"`
	Command  string   `json:"command"`
	Started  wireTime `json:"started"`
	Finished wireTime `json:"finished"`
	ExitCode *int64   `json:"exit_code"`
}

func (w wireProcess) process() Process {
	p := Process{PID: w.PID, Name: w.Name, Owner: w.Owner, Command: w.Command, Finished: w.Finished.at, ExitCode: w.ExitCode, Started: time.Time{}}
	if w.Started.at != nil {
		p.Started = *w.Started.at
	}
	return p
}

// Processes lists the programs in the guest, those that ended within five minutes included, but without exit codes: get tells those.
//
// Errors: NOT_ALLOWED_IN_CURRENT_STATE (VM not running), UNSUPPORTED, UNAUTHENTICATED of class GuestCredentials or SessionLost, NOT_FOUND (VM),
// RESOURCE_BUSY, SERVICE_UNAVAILABLE (VMware Tools not running). Source: Vcenter Vm Guest Processes list (7.0.2.0).
func (c *Client) Processes(ctx context.Context, vm string, auth GuestAuth) ([]Process, error) {
	var list []wireProcess
	if err := c.rest(ctx, &list, func() (*call, error) { return processCall(vm, auth, 0, "list", nil) }); err != nil {
		return nil, err
	}
	processes := make([]Process, 0, len(list))
	for _, p := range list {
		processes = append(processes, p.process())
	}
	return processes, nil
}

// Process reads one program in the guest. NOT_FOUND means the VM, or that the guest knows no such pid: its record ended with the five minutes after
// its exit, or with a restart of VMware Tools, and the exit code is lost then. Other errors as of Processes.
//
// Source: Vcenter Vm Guest Processes get.
func (c *Client) Process(ctx context.Context, vm string, auth GuestAuth, pid int64) (Process, error) {
	var wire wireProcess
	if err := c.rest(ctx, &wire, func() (*call, error) { return processCall(vm, auth, pid, "get", nil) }); err != nil {
		return Process{}, err
	}
	wire.PID = pid
	return wire.process(), nil
}

// StartProcess starts a program in the guest and returns its pid; it does not wait for its end. An act: see Client.
//
// Not idempotent: two calls start it twice. Errors as of Processes; INVALID_ARGUMENT (path or directory), NOT_FOUND (VM, or the program's file:
// data.reason), UNAUTHORIZED (guest user or privilege VirtualMachine.GuestOperations.Execute), UNABLE_TO_ALLOCATE_RESOURCE (it did not start).
//
// Source: Vcenter Vm Guest Processes create (7.0.2.0).
func (c *Client) StartProcess(ctx context.Context, gate Gate, vm string, auth GuestAuth, p ProcessSpec) (pid int64, err error) {
	ans, cl, err := c.act(ctx, gate, c.restLogin, func(*session) (*call, error) {
		return processCall(vm, auth, 0, "create", struct {
			Path             string            `json:"path"`
			Arguments        string            `json:"arguments,omitempty"`
			WorkingDirectory string            `json:"working_directory,omitempty"`
			Environment      map[string]string `json:"environment_variables,omitempty"`
		}{p.Path, p.Arguments, p.WorkingDirectory, p.Environment})
	})
	if err != nil {
		return 0, err
	}
	var number json.Number // bare, or as a string
	if err := json.Unmarshal(unwrap(ans.body), &number); err != nil {
		return 0, c.notUnderstood(cl, ans, err)
	}
	if pid, err = number.Int64(); err != nil || pid <= 0 {
		return 0, c.notUnderstood(cl, ans, fmt.Errorf("it is no process id: %s", words(ans.body)))
	}
	return pid, nil
}

// DeleteProcess ends a program in the guest (SIGTERM, then SIGKILL). An act: see Client. NOT_FOUND where it has ended long ago; else as Processes.
//
// Source: Vcenter Vm Guest Processes delete.
func (c *Client) DeleteProcess(ctx context.Context, gate Gate, vm string, auth GuestAuth, pid int64) error {
	_, _, err := c.act(ctx, gate, c.restLogin, func(*session) (*call, error) { return processCall(vm, auth, pid, "delete", nil) })
	return err
}
