package vcapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
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

// form is how a vCenter offers guest processes.
type form int32

const (
	apiForm  form = iota + 1 // under /api, since 7.0.2.0
	restForm                 // under /rest, on older ones: answers in {"value":…}, maps as lists of pairs
)

// other is the form to try where f is not there.
func (f form) other() form { return apiForm + restForm - f }

// environment is the environment of a program as the form writes maps, nil for none.
func (f form) environment(variables map[string]string) any {
	switch {
	case len(variables) == 0:
		return nil
	case f == apiForm:
		return variables
	}
	type pair struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	pairs := make([]pair, 0, len(variables))
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		pairs = append(pairs, pair{name, variables[name]})
	}
	return pairs
}

// processCall builds one of the four calls, all of them POST with the guest's login in the body.
func processCall(f form, vm string, auth GuestAuth, pid int64, action string, spec any) (*call, error) {
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
	if f == restForm {
		cl.path = "/rest" + strings.TrimPrefix(cl.path, "/api")
	}
	cl.guest, cl.secrets = vm, auth.secrets()
	return cl, nil
}

// askProcesses asks in the form that this vCenter is known to offer, at first /api; where the answer says that there is no such operation, in the other.
// It gives the form whose operation it was that answered, 0 where what came does not prove that there is one. That is remembered until the next login,
// so a vCenter that was updated is asked anew.
func (c *Client) askProcesses(ctx context.Context, vm string, auth GuestAuth, pid int64, action string, out any) (form, error) {
	var v *service
	var asked form
	ask := func(f form) error {
		return c.rest(ctx, out, func(s *session) (*call, error) {
			v = s.service
			asked = cmp.Or(f, form(v.processes.Load()), apiForm)
			return processCall(asked, vm, auth, pid, action, nil)
		})
	}
	err := ask(0)
	if first := err; saidOfProcesses(err) && notOffered(err) {
		if err = ask(asked.other()); notOffered(err) {
			v.processes.Store(0)
			return 0, first
		}
	}
	if !offered(err) {
		return 0, err
	}
	v.processes.Store(int32(asked))
	return asked, err
}

// saidOfProcesses reports whether an error came of the call itself, not of the login before it.
func saidOfProcesses(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.HasPrefix(e.Op, guestProcesses)
}

// offered reports whether an answer proves that the operation is there: a success, or an error that only the operation gives. What passes by itself may be
// a proxy's, or of services that are still starting, and proves nothing.
func offered(err error) bool {
	if err == nil {
		return true
	}
	var e *Error
	if !saidOfProcesses(err) || !errors.As(err, &e) || notOffered(err) {
		return false
	}
	_, known := restKinds[e.Name]
	return known && (e.Class == Permanent || e.Class == GuestCredentials)
}

// actOnProcesses acts in the form that this vCenter offers. Where that is not known, an ask on the same path finds it out first, whatever else it says:
// an act is not sent to see whether there is one.
func (c *Client) actOnProcesses(ctx context.Context, fence Fence, vm string, auth GuestAuth, pid int64, action string, spec func(form) any) (*answer, *call, error) {
	s, err := c.restLogin.get(ctx)
	if err != nil {
		return nil, nil, unsent(err)
	}
	f := form(s.service.processes.Load())
	if f == 0 {
		harmless := "list"
		if pid != 0 {
			harmless = "get"
		}
		if f, err = c.askProcesses(ctx, vm, auth, pid, harmless, nil); f == 0 {
			return nil, nil, unsent(err)
		}
	}
	ans, cl, err := c.act(ctx, fence, c.restLogin, func(now *session) (*call, error) {
		s = now
		return processCall(f, vm, auth, pid, action, spec(f))
	})
	if saidOfProcesses(err) && notOffered(err) {
		s.service.processes.Store(0)
	}
	return ans, cl, err
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
// RESOURCE_BUSY, SERVICE_UNAVAILABLE (VMware Tools not running). Source: Vcenter Vm Guest Processes list (7.0.2.0), and the older form of it under
// /rest. Privilege, of get too: VirtualMachine.GuestOperations.Query.
func (c *Client) Processes(ctx context.Context, vm string, auth GuestAuth) ([]Process, error) {
	var list []wireProcess
	if _, err := c.askProcesses(ctx, vm, auth, 0, "list", &list); err != nil {
		return nil, err
	}
	processes, said := make([]Process, 0, len(list)), c.known.veil(auth.secrets()...)
	for _, p := range list {
		p.Command = said.text(p.Command)
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
	if _, err := c.askProcesses(ctx, vm, auth, pid, "get", &wire); err != nil {
		return Process{}, err
	}
	wire.PID, wire.Command = pid, c.known.veil(auth.secrets()...).text(wire.Command)
	return wire.process(), nil
}

// StartProcess starts a program in the guest and returns its pid; it does not wait for its end. An act: see Client. Where it is not known
// whether this vCenter offers it under /api or under /rest, a list finds that out before fence is asked.
//
// Not idempotent: two calls start it twice. Errors as of Processes; INVALID_ARGUMENT (path or directory), NOT_FOUND (VM, or the program's file:
// data.reason), UNAUTHORIZED (guest user or privilege VirtualMachine.GuestOperations.Execute), UNABLE_TO_ALLOCATE_RESOURCE (it did not start).
//
// Source: Vcenter Vm Guest Processes create (7.0.2.0).
func (c *Client) StartProcess(ctx context.Context, fence Fence, vm string, auth GuestAuth, p ProcessSpec) (pid int64, err error) {
	ans, cl, err := c.actOnProcesses(ctx, fence, vm, auth, 0, "create", func(f form) any {
		return struct {
			Path             string `json:"path"`
			Arguments        string `json:"arguments,omitempty"`
			WorkingDirectory string `json:"working_directory,omitempty"`
			Environment      any    `json:"environment_variables,omitempty"`
		}{p.Path, p.Arguments, p.WorkingDirectory, f.environment(p.Environment)}
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

// DeleteProcess ends a program in the guest (SIGTERM, then SIGKILL). An act: see Client, and StartProcess. NOT_FOUND where it has ended long ago; else as
// Processes.
//
// Source: Vcenter Vm Guest Processes delete.
func (c *Client) DeleteProcess(ctx context.Context, fence Fence, vm string, auth GuestAuth, pid int64) error {
	_, _, err := c.actOnProcesses(ctx, fence, vm, auth, pid, "delete", func(form) any { return nil })
	return err
}
