package vcsim

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// restCall is one REST call.
type restCall struct {
	r       *http.Request
	body    []byte
	session *session
	old     bool // under /rest: answers are wrapped, errors have the older form
}

// restOperation is an operation of REST: its name, and how it is carried out.
type restOperation struct {
	op    string
	open  bool // needs no session
	serve func(restCall) response
}

// restStatus are the HTTP statuses of the errors, by error_type [vAPI standard errors; guest processes].
var restStatus = map[string]int{
	"ALREADY_EXISTS":                http.StatusBadRequest,
	"ALREADY_IN_DESIRED_STATE":      http.StatusBadRequest,
	"CANCELED":                      http.StatusInternalServerError,
	"CONCURRENT_CHANGE":             http.StatusConflict,
	"ERROR":                         http.StatusInternalServerError,
	"FEATURE_IN_USE":                http.StatusBadRequest,
	"INTERNAL_SERVER_ERROR":         http.StatusInternalServerError,
	"INVALID_ARGUMENT":              http.StatusBadRequest,
	"INVALID_ELEMENT_CONFIGURATION": http.StatusBadRequest,
	"INVALID_ELEMENT_TYPE":          http.StatusBadRequest,
	"INVALID_REQUEST":               http.StatusBadRequest,
	"NOT_ALLOWED_IN_CURRENT_STATE":  http.StatusBadRequest,
	"NOT_FOUND":                     http.StatusNotFound,
	"OPERATION_NOT_FOUND":           http.StatusNotFound,
	"RESOURCE_BUSY":                 http.StatusInternalServerError,
	"RESOURCE_IN_USE":               http.StatusBadRequest,
	"RESOURCE_INACCESSIBLE":         http.StatusInternalServerError,
	"SERVICE_UNAVAILABLE":           http.StatusServiceUnavailable,
	"TIMED_OUT":                     http.StatusGatewayTimeout,
	"UNABLE_TO_ALLOCATE_RESOURCE":   http.StatusInternalServerError,
	"UNAUTHENTICATED":               http.StatusUnauthorized,
	"UNAUTHORIZED":                  http.StatusForbidden,
	"UNEXPECTED_INPUT":              http.StatusBadRequest,
	"UNSUPPORTED":                   http.StatusBadRequest,
	"UNVERIFIED_PEER":               http.StatusInternalServerError,
}

// restMessage is Vapi.Std.LocalizableMessage.
type restMessage struct {
	ID             string   `json:"id"`
	DefaultMessage string   `json:"default_message"`
	Args           []string `json:"args"`
}

// restErrorBody is Vapi.Std.Errors.Error.
type restErrorBody struct {
	ErrorType string        `json:"error_type"`
	Messages  []restMessage `json:"messages"`
	Data      any           `json:"data,omitempty"`
	Challenge string        `json:"challenge,omitempty"`
}

// restError is an error of REST with one message.
func restError(errorType, id, message string, data any, args ...string) response {
	status, ok := restStatus[errorType]
	if !ok {
		status = http.StatusInternalServerError
	}

	body := restErrorBody{
		ErrorType: errorType,
		Messages:  []restMessage{{ID: id, DefaultMessage: message, Args: append([]string{}, args...)}},
		Data:      data,
	}

	if errorType == "UNAUTHENTICATED" {
		// The guest's credentials and vCenter's session look the same, challenge included.
		body.Challenge = `Basic realm="vCenter"`
	}

	a := jsonResponse(status, body)
	a.fault = errorType
	return a
}

// oldRESTForm turns a response into that of /rest: {"value":…}, and
// {"type":"com.vmware.vapi.std.errors.…","value":{"messages":…}} for errors.
func oldRESTForm(a response) response {
	if a.status == http.StatusNoContent {
		return response{status: http.StatusOK}
	}

	if a.fault == "" {
		out := jsonResponse(http.StatusOK, map[string]json.RawMessage{"value": a.body})
		out.header = a.header
		return out
	}

	var body restErrorBody
	if json.Unmarshal(a.body, &body) != nil {
		return a
	}

	out := jsonResponse(a.status, struct {
		Type  string `json:"type"`
		Value any    `json:"value"`
	}{
		Type: "com.vmware.vapi.std.errors." + strings.ToLower(body.ErrorType),
		Value: struct {
			Messages []restMessage `json:"messages"`
			Data     any           `json:"data,omitempty"`
		}{body.Messages, body.Data},
	})

	out.fault = a.fault
	return out
}

// restRoutes are the paths of REST. Actions differ in their query, see operation.
func (v *VCenter) restRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	none := func(http.ResponseWriter, *http.Request) {} // the mux only finds the pattern and fills in the path's values
	for _, pattern := range []string{
		"/api/session", "/rest/com/vmware/cis/session", "/api/vcenter/system",
		"/api/vcenter/vm/{vm}/guest/customization", "/api/vcenter/vm/{vm}/guest/operations",
		"/api/vcenter/vm/{vm}/guest/processes", "/api/vcenter/vm/{vm}/guest/processes/{pid}",
		"/rest/vcenter/vm/{vm}/guest/processes", "/rest/vcenter/vm/{vm}/guest/processes/{pid}",
	} {
		mux.HandleFunc(pattern, none)
	}
	return mux
}

func (v *VCenter) parseREST(r *http.Request, body []byte) parsedCall {
	c := restCall{r: r, body: body, old: strings.HasPrefix(r.URL.Path, "/rest/")}
	v.rest.ServeHTTP(&memoryWriter{header: make(http.Header)}, r) // sets r.Pattern and the path's values
	o := v.operation(r)
	x := parsedCall{
		call: Call{Op: o.op, VM: r.PathValue("vm"), Session: v.restSession(r).name()},
		fault: func(types.BaseMethodFault) response {
			return restError("ERROR", "vcsim.fault", "A fault was scripted for a call of REST.", nil)
		},
	}

	x.serve = func() response {
		c.session = v.restSession(r) // the one that lives when the call lands
		a := o.call(c)
		if c.old {
			return oldRESTForm(a)
		}
		return a
	}

	return x
}

// restSession is the living session of a request, if REST accepts it.
func (v *VCenter) restSession(r *http.Request) *session {
	s := v.session(r.Header.Get(sessionHeader))
	if s == nil || !s.rest {
		return nil
	}
	return s
}

func (o restOperation) call(c restCall) response {
	if c.session == nil && !o.open {
		return restError(
			"UNAUTHENTICATED",
			"com.vmware.vapi.endpoint.method.authentication.required",
			"Authentication required.",
			nil,
		)
	}
	return o.serve(c)
}

// operation finds the operation of a request.
func (v *VCenter) operation(r *http.Request) restOperation {
	query := r.URL.Query()
	action := query.Get("action")
	if strings.HasPrefix(r.URL.Path, "/rest/") {
		action = cmp.Or(action, query.Get("~action")) // as /rest itself spells it; the pages of processes say action
	}

	if v.opts.OnlyRest &&
		(r.Pattern == "/api/session" || strings.HasPrefix(r.Pattern, "/api/vcenter/vm/{vm}/guest/processes")) {
		return restOperation{op: r.Method + " " + r.URL.Path, open: true, serve: noSuchPath}
	}

	switch _, path, _ := strings.Cut(" "+r.Pattern, " "); r.Method + " " + path + " " + action {
	case "POST /api/session ", "POST /rest/com/vmware/cis/session ":
		return restOperation{op: "POST " + path, open: true, serve: v.serveLogin}
	case "GET /api/session ", "GET /rest/com/vmware/cis/session ", "POST /rest/com/vmware/cis/session get":
		return restOperation{op: "GET " + path, serve: v.serveSession}
	case "DELETE /api/session ", "DELETE /rest/com/vmware/cis/session ":
		return restOperation{op: "DELETE " + path, serve: v.serveLogout}
	case "POST /api/vcenter/system hello":
		if !v.api.before("8.0.2.0") {
			return restOperation{op: "system hello", open: true, serve: v.serveHello}
		}
		return v.notFound("system hello")
	case "POST /api/vcenter/vm/{vm}/guest/customization check":
		if !v.api.before("9.0.0.0") {
			return restOperation{op: "guest/customization check", serve: v.onVM((*VM).serveCheck)}
		}
		return v.notFound("guest/customization check")
	case "GET /api/vcenter/vm/{vm}/guest/customization ":
		return restOperation{op: "GET guest/customization", serve: v.onVM((*VM).serveStatus)}
	case "GET /api/vcenter/vm/{vm}/guest/operations ":
		return restOperation{op: "GET guest/operations", serve: v.onVM((*VM).serveOperations)}
	case "POST /api/vcenter/vm/{vm}/guest/processes create", "POST /rest/vcenter/vm/{vm}/guest/processes create":
		return restOperation{op: "guest/processes create", serve: v.onVM((*VM).serveCreate)}
	case "POST /api/vcenter/vm/{vm}/guest/processes list", "POST /rest/vcenter/vm/{vm}/guest/processes list":
		return restOperation{op: "guest/processes list", serve: v.onVM((*VM).serveList)}
	case "POST /api/vcenter/vm/{vm}/guest/processes/{pid} get", "POST /rest/vcenter/vm/{vm}/guest/processes/{pid} get":
		return restOperation{op: "guest/processes get", serve: v.onVM((*VM).serveGet)}
	case "POST /api/vcenter/vm/{vm}/guest/processes/{pid} delete",
		"POST /rest/vcenter/vm/{vm}/guest/processes/{pid} delete":
		return restOperation{op: "guest/processes delete", serve: v.onVM((*VM).serveDelete)}
	}

	return v.notFound(r.Method + " " + r.URL.Path)
}

// notFound is an operation that this vCenter does not offer.
func (v *VCenter) notFound(op string) restOperation {
	return restOperation{op: op, open: true, serve: func(restCall) response {
		return restError(
			"OPERATION_NOT_FOUND",
			"com.vmware.vapi.std.errors.operation_not_found",
			"The operation "+op+" was not found.",
			nil,
			op,
		)
	}}
}

// noSuchPath is the response for a path that is not served, whoever asks [bodies that people report of 7.0 to 9.1].
func noSuchPath(restCall) response {
	return restError("NOT_FOUND", "com.vmware.vapi.rest.httpNotFound", "Not found.", nil)
}

func (v *VCenter) serveLogin(c restCall) response {
	user, password, ok := c.r.BasicAuth()
	token := ""
	if ok {
		token = v.restLogin(user, password)
	}

	if token == "" {
		return restError(
			"UNAUTHENTICATED",
			"com.vmware.vapi.endpoint.method.authentication.failed",
			"Unable to authenticate user.",
			nil,
		)
	}

	return jsonResponse(http.StatusCreated, token)
}

func (v *VCenter) serveSession(c restCall) response {
	return jsonResponse(http.StatusOK, struct {
		User     string `json:"user"`
		Created  string `json:"created_time"`
		Accessed string `json:"last_accessed_time"`
	}{c.session.user, restTime(c.session.created), restTime(c.session.accessed)})
}

func (v *VCenter) serveLogout(c restCall) response {
	v.restLogout(c.session)
	return response{status: http.StatusNoContent}
}

// serveHello returns the first of the caller's releases that this vCenter knows, "" for none.
func (v *VCenter) serveHello(c restCall) response {
	var in struct {
		Releases []string `json:"api_releases"`
	}
	if json.Unmarshal(c.body, &in) != nil {
		return unexpectedInput()
	}
	release := ""
	if i := slices.IndexFunc(in.Releases, v.knows); i >= 0 {
		release = in.Releases[i]
	}
	return jsonResponse(http.StatusOK, map[string]string{"api_release": release})
}

// onVM finds the VM of a call and locks it.
func (v *VCenter) onVM(serve func(*VM, restCall) response) func(restCall) response {
	return func(c restCall) response {
		id := c.r.PathValue("vm")
		vm := v.VM(id)
		if vm == nil {
			return restError(
				"NOT_FOUND",
				"com.vmware.api.vcenter.vm.not_found",
				"Virtual machine with identifier '"+id+"' does not exist.",
				nil,
				id,
			)
		}

		vm.mu.Lock()
		defer vm.mu.Unlock()

		return serve(vm, c)
	}
}

// serveCheck is Vcenter.Vm.Guest.Customization.check.
func (vm *VM) serveCheck(restCall) response {
	out := struct {
		Status string `json:"check_status"`
		OS     *bool  `json:"supported_guest_os,omitempty"`
		Power  *bool  `json:"supported_power_state,omitempty"`
	}{Status: "NOT_SUPPORTED", OS: &vm.guest.Supported}

	if vm.guest.Supported {
		on := vm.power() == types.VirtualMachinePowerStatePoweredOn
		out.Power = &on
		if on {
			out.Status = "SUPPORTED"
		}
	}

	return jsonResponse(http.StatusOK, out)
}

// serveStatus is Vcenter.Vm.Guest.Customization.get: guest.customizationInfo in the words of REST.
func (vm *VM) serveStatus(restCall) response {
	moment := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return restTime(*t)
	}

	return jsonResponse(http.StatusOK, struct {
		Status string `json:"status"`
		Error  string `json:"error,omitempty"`
		Start  string `json:"start_time,omitempty"`
		End    string `json:"end_time,omitempty"`
	}{
		strings.TrimPrefix(vm.info.CustomizationStatus, statusPrefix), vm.info.ErrorMsg,
		moment(vm.info.StartTime), moment(vm.info.EndTime),
	})
}

func (vm *VM) serveOperations(restCall) response {
	if !vm.tools {
		return toolsNotRunning()
	}
	return jsonResponse(
		http.StatusOK, map[string]bool{"guest_operations_ready": true, "interactive_guest_operations_ready": false},
	)
}

func unexpectedInput() response {
	return restError(
		"INVALID_ARGUMENT",
		"com.vmware.vapi.rest.unexpected_input",
		"The request's body is not what the operation takes.",
		nil,
	)
}

func toolsNotRunning() response {
	return restError(
		"SERVICE_UNAVAILABLE",
		"com.vmware.api.vcenter.vm.guest.tools_not_running",
		"VMware Tools is not running in the virtual machine.",
		nil,
	)
}

// loginToGuest decodes the body of a call on processes, and checks whether the guest can be reached and accepts the
// caller; where ok is false, a is the refusal.
func (vm *VM) loginToGuest(c restCall, in any) (a response, ok bool) {
	if state := vm.power(); state != types.VirtualMachinePowerStatePoweredOn {
		return restError(
			"NOT_ALLOWED_IN_CURRENT_STATE",
			"com.vmware.api.vcenter.vm.guest.power_state",
			"The operation is not allowed in the current state of the virtual machine ("+powerWords[state]+").",
			nil,
		), false
	}

	if !vm.tools {
		return toolsNotRunning(), false
	}

	var auth struct {
		Credentials *struct {
			Type     string `json:"type"`
			User     string `json:"user_name"`
			Password string `json:"password"`
			Token    string `json:"saml_token"`
		} `json:"credentials"`
	}

	if json.Unmarshal(c.body, &auth) != nil || auth.Credentials == nil ||
		in != nil && json.Unmarshal(c.body, in) != nil {
		return unexpectedInput(), false
	}

	creds := auth.Credentials
	known := false
	switch creds.Type {
	case "USERNAME_PASSWORD":
		known = vm.login(&types.NamePasswordAuthentication{Username: creds.User, Password: creds.Password}) == nil
	case "SAML_BEARER_TOKEN":
		known = vm.login(&types.SAMLTokenAuthentication{Username: creds.User, Token: creds.Token}) == nil
	}

	if !known {
		return restError("UNAUTHENTICATED", "com.vmware.api.vcenter.vm.guest.invalid_guest_login",
			"Failed to authenticate with the guest operating system using the supplied credentials.", nil), false
	}

	return response{}, true
}

func (vm *VM) serveCreate(c restCall) response {
	var in struct {
		Spec processSpec `json:"spec"`
	}
	if refusal, ok := vm.loginToGuest(c, &in); !ok {
		return refusal
	}
	if !in.Spec.readable(c.old) {
		return unexpectedInput()
	}
	return vm.startProcess(in.Spec)
}

func (vm *VM) serveList(c restCall) response {
	if refusal, ok := vm.loginToGuest(c, nil); !ok {
		return refusal
	}
	out := []processInfo{}
	for _, p := range vm.processes() {
		out = append(out, p.summary())
	}
	return jsonResponse(http.StatusOK, out)
}

func (vm *VM) serveGet(c restCall) response {
	p, refusal := vm.find(c)
	if p == nil {
		return refusal
	}
	return jsonResponse(http.StatusOK, p.info(vm.v.GuestNow()))
}

func (vm *VM) serveDelete(c restCall) response {
	p, refusal := vm.find(c)
	if p == nil {
		return refusal
	}
	vm.deleteProcess(p)
	return response{status: http.StatusNoContent}
}

// find is the process that a call names; nil, with the refusal, where there is none or the guest cannot be reached.
func (vm *VM) find(c restCall) (*process, response) {
	if refusal, ok := vm.loginToGuest(c, nil); !ok {
		return nil, refusal
	}

	text := c.r.PathValue("pid")
	pid, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, restError(
			"INVALID_ARGUMENT",
			"com.vmware.vapi.rest.unexpected_input",
			"The process ID "+url.PathEscape(text)+" is not a number.",
			nil,
		)
	}

	p := vm.process(pid)
	if p == nil {
		return nil, restError(
			"NOT_FOUND",
			"com.vmware.api.vcenter.vm.guest.processes.not_found",
			"Process "+text+" was not found.",
			map[string]int64{"pid": pid},
			text,
		)
	}

	return p, response{}
}
