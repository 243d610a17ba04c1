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

// guestProcessesOp begins the op of the calls that log in to the guest: a 401 of theirs may be the guest's.
const guestProcessesOp = "guest/processes "

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
		return credentials{
			Type:        "SAML_BEARER_TOKEN",
			Interactive: a.Interactive,
			UserName:    a.Username,
			SAMLToken:   a.SAMLToken,
		}
	}

	return credentials{
		Type:        "USERNAME_PASSWORD",
		Interactive: a.Interactive,
		UserName:    a.Username,
		Password:    a.Password,
	}
}

// processAPI is the form in which a vCenter offers guest processes.
type processAPI int32

const (
	processesUnderAPI processAPI = iota + 1 // under /api, since 7.0.2.0
	// processesUnderREST is under /rest, on older ones: responses in {"value":…}, maps as lists of pairs.
	processesUnderREST
)

// other is the form to try where f is not offered.
func (f processAPI) other() processAPI { return processesUnderAPI + processesUnderREST - f }

// environment is a program's environment as the form writes maps, nil for none.
func (f processAPI) environment(variables map[string]string) any {
	switch {
	case len(variables) == 0:
		return nil
	case f == processesUnderAPI:
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

// newProcessCall builds one of the four calls, each a POST with the guest's login in the body.
func newProcessCall(f processAPI, vm string, auth GuestAuth, pid int64, action string, spec any) (*call, error) {
	path := "/guest/processes"
	if pid != 0 {
		path += "/" + strconv.FormatInt(pid, 10)
	}

	cl, err := newRESTCall(guestProcessesOp+action, http.MethodPost, vm, path+"?action="+action, struct {
		Credentials credentials `json:"credentials"`
		Spec        any         `json:"spec,omitempty"`
	}{auth.rest(), spec})
	if err != nil {
		return nil, err
	}
	if f == processesUnderREST {
		cl.path = "/rest" + strings.TrimPrefix(cl.path, "/api")
	}

	cl.guest, cl.secrets = vm, auth.secrets()
	return cl, nil
}

// readProcesses makes a read in the form that this vCenter is known to offer, at first under /api. Where the error says
// that there is no such operation, it tries the other form. It returns the form that exists, 0 where the response does
// not prove one. That is remembered until the next login, so that an updated vCenter is tried anew.
func (c *Client) readProcesses(
	ctx context.Context, vm string, auth GuestAuth, pid int64, action string, out any,
) (processAPI, error) {
	var v *service
	var tried processAPI
	try := func(f processAPI) error {
		return c.callREST(ctx, out, func(s *session) (*call, error) {
			v = s.service
			tried = cmp.Or(f, processAPI(v.processAPI.Load()), processesUnderAPI)
			return newProcessCall(tried, vm, auth, pid, action, nil)
		})
	}

	err := try(0)
	if first := err; isProcessCallError(err) && operationMissing(err) {
		if err = try(tried.other()); operationMissing(err) {
			v.processAPI.Store(0)
			return 0, first
		}
	}

	if !operationExists(err) {
		return 0, err
	}

	v.processAPI.Store(int32(tried))
	return tried, err
}

// isProcessCallError reports whether an error is of the call itself, not of the login before it.
func isProcessCallError(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.HasPrefix(e.Op, guestProcessesOp)
}

// operationExists reports whether a response proves that the operation exists: a success, or an error that only the
// operation gives. A transient error may be a proxy's, or of services that are still starting, and proves nothing.
func operationExists(err error) bool {
	if err == nil {
		return true
	}
	var e *Error
	if !isProcessCallError(err) || !errors.As(err, &e) || operationMissing(err) {
		return false
	}

	_, known := restErrorKinds[e.Name]
	return known && (e.Class == Permanent || e.Class == GuestCredentials)
}

// changeProcesses makes an effect in the form that this vCenter offers. Where that is not known, a read on the same
// path finds it out first: an effect is never sent just to see whether it exists.
func (c *Client) changeProcesses(
	ctx context.Context,
	fence Fence,
	vm string,
	auth GuestAuth,
	pid int64,
	action string,
	spec func(processAPI) any,
) (*response, *call, error) {
	s, err := c.restLogin.get(ctx)
	if err != nil {
		return nil, nil, asNotSent(err)
	}

	f := processAPI(s.service.processAPI.Load())
	if f == 0 {
		harmless := "list"
		if pid != 0 {
			harmless = "get"
		}
		if f, err = c.readProcesses(ctx, vm, auth, pid, harmless, nil); f == 0 {
			return nil, nil, asNotSent(err)
		}
	}

	resp, cl, err := c.effect(ctx, fence, c.restLogin, func(now *session) (*call, error) {
		s = now
		return newProcessCall(f, vm, auth, pid, action, spec(f))
	})
	if isProcessCallError(err) && operationMissing(err) {
		s.service.processAPI.Store(0)
	}

	return resp, cl, err
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
	p := Process{
		PID:      w.PID,
		Name:     w.Name,
		Owner:    w.Owner,
		Command:  w.Command,
		Finished: w.Finished.at,
		ExitCode: w.ExitCode,
		Started:  time.Time{},
	}

	if w.Started.at != nil {
		p.Started = *w.Started.at
	}

	return p
}

// Processes lists the programs in the guest, with those that ended within five minutes, but without exit codes, for
// which see Process. It may be repeated.
//
// Errors: NOT_ALLOWED_IN_CURRENT_STATE (VM not running), UNSUPPORTED, UNAUTHENTICATED of class GuestCredentials or
// SessionLost, NOT_FOUND (VM), RESOURCE_BUSY, SERVICE_UNAVAILABLE (VMware Tools not running).
//
// Source: Vcenter Vm Guest Processes list (7.0.2.0), and the older form of it under /rest. Privilege:
// VirtualMachine.GuestOperations.Query.
func (c *Client) Processes(ctx context.Context, vm string, auth GuestAuth) ([]Process, error) {
	var list []wireProcess
	if _, err := c.readProcesses(ctx, vm, auth, 0, "list", &list); err != nil {
		return nil, err
	}

	processes, said := make([]Process, 0, len(list)), c.secrets.redactor(auth.secrets()...)
	for _, p := range list {
		p.Command = said.text(p.Command)
		processes = append(processes, p.process())
	}
	return processes, nil
}

// Process reads one program in the guest. It may be repeated. NOT_FOUND means that the VM does not exist or that the
// guest does not know the pid: its record ends five minutes after its exit, or with a restart of VMware Tools, and the
// exit code is lost then. Other errors as for Processes.
//
// Source: Vcenter Vm Guest Processes get. Privilege: VirtualMachine.GuestOperations.Query.
func (c *Client) Process(ctx context.Context, vm string, auth GuestAuth, pid int64) (Process, error) {
	var wire wireProcess
	if _, err := c.readProcesses(ctx, vm, auth, pid, "get", &wire); err != nil {
		return Process{}, err
	}
	wire.PID, wire.Command = pid, c.secrets.redactor(auth.secrets()...).text(wire.Command)
	return wire.process(), nil
}

// StartProcess starts a program in the guest and returns its pid; it does not wait for its end. An effect, see the
// package comment. Where it is not known whether this vCenter offers it under /api or under /rest, a list finds that
// out before the fence is tried.
//
// Not to be repeated: two calls start it twice. Errors as for Processes; INVALID_ARGUMENT (path or directory),
// NOT_FOUND (VM, or the program's file: data.reason), UNAUTHORIZED (guest user, or privilege
// VirtualMachine.GuestOperations.Execute), UNABLE_TO_ALLOCATE_RESOURCE (it did not start).
//
// Source: Vcenter Vm Guest Processes create (7.0.2.0).
func (c *Client) StartProcess(
	ctx context.Context, fence Fence, vm string, auth GuestAuth, p ProcessSpec,
) (pid int64, err error) {
	resp, cl, err := c.changeProcesses(ctx, fence, vm, auth, 0, "create", func(f processAPI) any {
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
	if err := json.Unmarshal(unwrap(resp.body), &number); err != nil {
		return 0, c.notUnderstood(cl, resp, err)
	}
	if pid, err = number.Int64(); err != nil || pid <= 0 {
		return 0, c.notUnderstood(cl, resp, fmt.Errorf("it is not a process ID: %s", oneLine(resp.body)))
	}

	return pid, nil
}

// DeleteProcess ends a program in the guest (SIGTERM, then SIGKILL). An effect, see the package comment and
// StartProcess; it may be repeated. NOT_FOUND where it ended long ago; other errors as for Processes.
//
// Source: Vcenter Vm Guest Processes delete.
func (c *Client) DeleteProcess(ctx context.Context, fence Fence, vm string, auth GuestAuth, pid int64) error {
	_, _, err := c.changeProcesses(ctx, fence, vm, auth, pid, "delete", func(processAPI) any { return nil })
	return err
}
