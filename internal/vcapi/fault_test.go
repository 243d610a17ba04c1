package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// outcome is how a response must be classified.
type outcome struct {
	name  string
	class Class
	sent  Sent
}

func (o outcome) check(t *testing.T, e *Error) {
	t.Helper()
	if got := (outcome{e.Name, e.Class, e.Sent}); got != o {
		t.Errorf("%v\ngot  %q %s, %s\nwant %q %s, %s", e, got.name, got.class, got.sent, o.name, o.class, o.sent)
	}
}

// restErrors are the statuses that the pages of check, get (000, 001) and processes get (004) list, each with the body
// that goes with it.
var restErrors = []struct {
	status int
	kind   string
	want   outcome
}{
	{401, "UNAUTHENTICATED", outcome{"UNAUTHENTICATED", SessionLost, Refused}},
	{403, "UNAUTHORIZED", outcome{"UNAUTHORIZED", Permanent, Refused}},
	{404, "NOT_FOUND", outcome{"NOT_FOUND", Permanent, Refused}},
	{503, "SERVICE_UNAVAILABLE", outcome{"SERVICE_UNAVAILABLE", Transient, Refused}},
	{400, "NOT_ALLOWED_IN_CURRENT_STATE", outcome{"NOT_ALLOWED_IN_CURRENT_STATE", Permanent, Refused}},
	{400, "UNSUPPORTED", outcome{"UNSUPPORTED", Permanent, Refused}},
	{500, "RESOURCE_BUSY", outcome{"RESOURCE_BUSY", Transient, Refused}},
	// "default": every error_type there is.
	{500, "ERROR", outcome{"ERROR", Transient, Unknown}},
	{400, "ALREADY_EXISTS", outcome{"ALREADY_EXISTS", Permanent, Refused}},
	{400, "ALREADY_IN_DESIRED_STATE", outcome{"ALREADY_IN_DESIRED_STATE", Permanent, Refused}},
	{500, "CANCELED", outcome{"CANCELED", Permanent, Unknown}},
	{409, "CONCURRENT_CHANGE", outcome{"CONCURRENT_CHANGE", Transient, Refused}},
	{400, "FEATURE_IN_USE", outcome{"FEATURE_IN_USE", Permanent, Refused}},
	{500, "INTERNAL_SERVER_ERROR", outcome{"INTERNAL_SERVER_ERROR", Transient, Unknown}},
	{400, "INVALID_ARGUMENT", outcome{"INVALID_ARGUMENT", Permanent, Refused}},
	{400, "INVALID_ELEMENT_CONFIGURATION", outcome{"INVALID_ELEMENT_CONFIGURATION", Permanent, Refused}},
	{400, "INVALID_ELEMENT_TYPE", outcome{"INVALID_ELEMENT_TYPE", Permanent, Refused}},
	{400, "INVALID_REQUEST", outcome{"INVALID_REQUEST", Permanent, Refused}},
	{404, "OPERATION_NOT_FOUND", outcome{"OPERATION_NOT_FOUND", Permanent, Refused}},
	{400, "RESOURCE_IN_USE", outcome{"RESOURCE_IN_USE", Transient, Refused}},
	{500, "RESOURCE_INACCESSIBLE", outcome{"RESOURCE_INACCESSIBLE", Transient, Unknown}},
	{504, "TIMED_OUT", outcome{"TIMED_OUT", Transient, Unknown}},
	{500, "UNABLE_TO_ALLOCATE_RESOURCE", outcome{"UNABLE_TO_ALLOCATE_RESOURCE", Permanent, Refused}},
	{400, "UNEXPECTED_INPUT", outcome{"UNEXPECTED_INPUT", Permanent, Refused}},
	{400, "UNVERIFIED_PEER", outcome{"UNVERIFIED_PEER", Permanent, Refused}},
}

func restBody(kind string) string {
	return `{"messages":[{"id":"com.vmware.x","default_message":"it failed","args":["a"],
		"params":{"p":{"i":1}},"localized":"es schlug fehl"},
		{"id":"cause","default_message":"because","args":[]}],"data":{"reason":"FILE_NOT_FOUND"},
		"error_type":"` + kind + `","challenge":"Basic realm=\"vCenter\""}`
}

func TestRESTErrors(t *testing.T) {
	t.Parallel()
	if len(restErrors) != 25 || len(restErrorKinds) != 25 {
		t.Errorf("%d rows and %d kinds, the page lists 25 types", len(restErrors), len(restErrorKinds))
	}

	for _, tt := range restErrors {
		t.Run(tt.kind, func(t *testing.T) {
			t.Parallel()
			e := decodeError(tt.status, []byte(restBody(tt.kind)), redactor{})
			tt.want.check(t, e)
			if e.Message != "es schlug fehl; because" || len(e.Messages) != 2 ||
				string(e.Data) != `{"reason":"FILE_NOT_FOUND"}` ||
				e.Challenge != `Basic realm="vCenter"` {
				t.Errorf(
					"message %q, %d messages, data %s, challenge %q",
					e.Message,
					len(e.Messages),
					e.Data,
					e.Challenge,
				)
			}

			// The same in the envelope of /rest, as that spelled it.
			snake := strings.ToLower(tt.kind)
			old := decodeError(
				tt.status,
				[]byte(`{"type":"com.vmware.vapi.std.errors.`+snake+`","value":{"messages":[{"args":[],`+
					`"default_message":"This failed.","id":"x"}]}}`),
				redactor{},
			)

			tt.want.check(t, old)
			if old.Message != "This failed." {
				t.Errorf("message %q", old.Message)
			}

			camel := ""
			for _, word := range strings.Split(snake, "_") {
				camel += strings.ToUpper(word[:1]) + word[1:]
			}

			tt.want.check(
				t,
				decodeError(tt.status,
					[]byte(`{"type":"com.vmware.vapi.std.errors.`+camel+`","value":{"messages":[{"id":"x"}]}}`),
					redactor{}),
			)
		})
	}
}

// TestVIMFaults: each fault of the pages of CustomizeGuest_Task and StartGuestNetwork_Task (002, 003), and those around
// them.
func TestVIMFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		class Class
		sent  Sent
	}{
		{"TaskInProgress", Transient, Refused},
		{"InvalidPowerState", Permanent, Refused},
		{"InvalidState", Transient, Refused},
		{"InvalidGuestLogin", GuestCredentials, Refused},
		{"GuestPermissionDenied", GuestCredentials, Refused},
		{"CustomizationFault", Transient, Refused},

		{"CustomizationPending", Transient, Refused},
		{"UnexpectedCustomizationFault", Transient, Refused},
		{"UncustomizableGuest", Permanent, Refused},
		{"NicSettingMismatch", Permanent, Refused},
		{"LinuxVolumeNotClean", Permanent, Refused},
		{"MissingLinuxCustResources", Permanent, Refused},
		{"MissingWindowsCustResources", Permanent, Refused},
		{"MountError", Permanent, Refused},
		{"NoDisksToCustomize", Permanent, Refused},
		{"CannotDecryptPasswords", Permanent, Refused},
		{"IpHostnameGeneratorError", Permanent, Refused},
		{"VolumeEditorError", Permanent, Refused},

		{"InvalidVmState", Permanent, Refused},
		{"InvalidHostState", Transient, Refused},
		{"QuestionPending", Permanent, Refused},
		{"EncryptionKeyRequired", Permanent, Refused},

		{"GuestOperationsUnavailable", Transient, Refused},
		{"GuestComponentsOutOfDate", Permanent, Refused},
		{"GuestProcessNotFound", Permanent, Refused},
		{"OperationNotSupportedByGuest", Permanent, Refused},
		{"OperationDisabledByGuest", Permanent, Refused},
		{"TooManyGuestLogons", Transient, Refused},
		{"GuestAuthenticationChallenge", GuestCredentials, Refused},
		{"GuestMultipleMappings", GuestCredentials, Refused},
		{"GuestOperationsFault", Permanent, Refused},

		{"NotAuthenticated", SessionLost, Refused},
		{"NoPermission", Permanent, Refused},
		{"InvalidLogin", SessionLost, Refused},
		{"AuthenticationRequired", SessionLost, Refused},
		{"ManagedObjectNotFound", Permanent, Refused},
		{"InvalidArgument", Permanent, Refused},
		{"InvalidRequest", Permanent, Refused},
		{"InvalidType", Permanent, Refused},
		{"NotSupported", Permanent, Refused},
		{"NotImplemented", Permanent, Refused},
		{"MethodNotFound", Permanent, Refused},
		{"RestrictedVersion", Permanent, Refused},

		{"SystemError", Transient, Unknown},
		{"HostCommunication", Transient, Unknown},
		{"HostNotConnected", Transient, Unknown},
		{"HostNotReachable", Transient, Unknown},
		{"Timedout", Transient, Unknown},
		{"RequestCanceled", Permanent, Unknown},
		{"InvalidCollectorVersion", Transient, Unknown},
		{"VimFault", Permanent, Unknown},
		{"NeverHeardOfFault", Permanent, Unknown},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := outcome{tt.name, tt.class, tt.sent}
			bare := decodeError(
				500,
				[]byte(
					`{"_typeName":"`+tt.name+`","faultMessage":[{"_typeName":"LocalizableMessage","key":"k",`+
						`"message":"more"}],`+
						`"faultstring":"It failed."}`,
				),
				redactor{},
			)

			want.check(t, bare)
			if bare.Message != "It failed.; more" || bare.LocalizedMessage != "It failed." || len(bare.Messages) != 1 ||
				bare.Data != nil {
				t.Errorf(
					"message %q, localized %q, messages %s, data %s",
					bare.Message,
					bare.LocalizedMessage,
					bare.Messages,
					bare.Data,
				)
			}

			want.check(t, decodeError(500, []byte(`{"_typeName":"`+tt.name+`"}`), redactor{}))
			// As TaskInfo.error has it.
			wrapped := decodeError(
				0,
				[]byte(
					`{"_typeName":"LocalizedMethodFault",`+
						`"fault":{"_typeName":"`+tt.name+`","x":1},"localizedMessage":"In words."}`,
				),
				redactor{},
			)

			want.check(t, wrapped)
			if wrapped.Message != "In words." || string(wrapped.Data) != `{"x":1}` {
				t.Errorf("message %q, data %s", wrapped.Message, wrapped.Data)
			}
		})
	}
}

// TestOtherErrors: bodies that are no error of vCenter's, or half of one.
func TestOtherErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		status  int
		body    string
		want    outcome
		message string
	}{
		{"html page", 503, "<!DOCTYPE html><html><head><TITLE> Service &amp;\n down </TITLE></head>",
			outcome{"", Transient, Unknown}, "Service & down"},
		{"html without a title", 502, "<html>bad gateway</html>", outcome{"", Transient, Unknown},
			"<html>bad gateway</html>"},
		{"text", 504, "upstream request\n timeout", outcome{"", Transient, Unknown}, "upstream request timeout"},
		{"long text", 500, strings.Repeat("ä", 300), outcome{"", Transient, Unknown}, strings.Repeat("ä", 100) + "…"},
		{"empty", 503, "", outcome{"", Transient, Unknown}, "empty answer"},
		{"empty 401", 401, "", outcome{"", SessionLost, Unknown}, "empty answer"},
		{"empty 429", 429, "", outcome{"", Transient, Unknown}, "empty answer"},
		{"empty 404", 404, " \n", outcome{"", Permanent, Unknown}, "empty answer"},
		{"text 400", 400, "bad request", outcome{"", Permanent, Unknown}, "bad request"},
		{"truncated", 500, `{"_typeName":"TaskInProgress","fau`, outcome{"", Transient, Unknown},
			`{"_typeName":"TaskInProgress","fau`},
		{"no _typeName, but a fault's", 500, `{"faultMessage":[],"faultstring":"odd"}`,
			outcome{"", Transient, Unknown}, "odd"},
		{"array", 500, `[1]`, outcome{"", Transient, Unknown}, `[1]`},
		{"null", 500, `null`, outcome{"", Transient, Unknown}, `null`},
		{"other object", 500, `{"error":"x"}`, outcome{"", Transient, Unknown}, `{"error":"x"}`},
		{"odd members", 500, `{"_typeName":"TaskInProgress","faultMessage":{"a":1},"faultstring":7}`,
			outcome{"TaskInProgress", Transient, Refused}, ""},
		{"rest without error_type, 401", 401, `{"messages":[]}`, outcome{"UNAUTHENTICATED", SessionLost, Refused}, ""},
		{"rest without error_type, 403", 403, `{"messages":[],"error_type":null}`,
			outcome{"UNAUTHORIZED", Permanent, Refused}, ""},
		{"rest without error_type, 404", 404, `{"messages":[{"id":"gone"}]}`,
			outcome{"NOT_FOUND", Permanent, Refused}, "gone"},
		{"rest without error_type, 503", 503, `{"messages":[]}`,
			outcome{"SERVICE_UNAVAILABLE", Transient, Unknown}, ""},
		{
			"503 of the operation",
			503,
			`{"error_type":"SERVICE_UNAVAILABLE",` +
				`"messages":[{"id":"com.vmware.api.vcenter.vm.guest.tools_not_running","default_message":"no"}]}`,
			outcome{"SERVICE_UNAVAILABLE", Transient, Refused},
			"no",
		},
		{
			"503 of the endpoint",
			503,
			`{"error_type":"SERVICE_UNAVAILABLE",` +
				`"messages":[{"id":"com.vmware.vapi.endpoint.cis.ServiceUnavailable","default_message":"no"}]}`,
			outcome{"SERVICE_UNAVAILABLE", Transient, Unknown},
			"no",
		},
		{
			"503 of the endpoint, /rest",
			503,
			`{"type":"com.vmware.vapi.std.errors.service_unavailable","value":{"messages":[{"args":[],` +
				`"default_message":"no","id":"com.vmware.vapi.endpoint.cis.ServiceUnavailable"}]}}`,
			outcome{"SERVICE_UNAVAILABLE", Transient, Unknown},
			"no",
		},
		{"503 of nobody", 503, `{"error_type":"SERVICE_UNAVAILABLE","messages":[{"default_message":"no"}]}`,
			outcome{"SERVICE_UNAVAILABLE", Transient, Unknown}, "no"},
		{"rest without error_type, 400", 400, `{"messages":[{"default_message":"no"}]}`,
			outcome{"", Permanent, Refused}, "no"},
		{"rest without error_type, 500", 500, `{"messages":[{"default_message":"no"}]}`,
			outcome{"", Transient, Unknown}, "no"},
		{"rest, a type of the future", 500, `{"error_type":"NOT_INVENTED","messages":[]}`,
			outcome{"NOT_INVENTED", Transient, Unknown}, ""},
		{"rest 429", 429, `{"error_type":"UNAUTHORIZED","messages":[]}`,
			outcome{"UNAUTHORIZED", Transient, Refused}, ""},
		{"challenge that is no string", 401, `{"error_type":"UNAUTHENTICATED","challenge":{"a":1}}`,
			outcome{"UNAUTHENTICATED", SessionLost, Refused}, ""},
		{"fault with 401", 401, `{"_typeName":"NotAuthenticated","privilegeId":"System.View"}`,
			outcome{"NotAuthenticated", SessionLost, Refused}, ""},
		{"a type that is no fault", 500, `{"_typeName":"TaskInfo","key":"x"}`,
			outcome{"TaskInfo", Permanent, Unknown}, "key x"},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := decodeError(tt.status, []byte(tt.body), redactor{})
			tt.want.check(t, e)
			if e.Message != tt.message {
				t.Errorf("message %q, want %q", e.Message, tt.message)
			}
			if e.Error() == "" || !strings.Contains(e.Error(), fmt.Sprint(tt.status)) {
				t.Errorf("text %q does not tell the status", e)
			}
		})
	}
}

// TestFaultMembers: a fault's own members are kept, and it is reachable at any depth of wrapping.
func TestFaultMembers(t *testing.T) {
	t.Parallel()
	var err error = decodeError(500, []byte(`{"_typeName":"TaskInProgress",`+
		`"task":{"_typeName":"ManagedObjectReference","type":"Task","value":"task-7"}}`), redactor{})
	e := asError(t, fmt.Errorf("step customize: %w", err))
	if e.Name != "TaskInProgress" ||
		string(e.Data) != `{"task":{"_typeName":"ManagedObjectReference","type":"Task","value":"task-7"}}` {
		t.Errorf("%s, data %s", e.Name, e.Data)
	}

	for name, want := range map[string]bool{
		"InvalidPowerState": true, "InvalidState": true, "NoPermission": false, "NeverHeardOf": false,
	} {
		if got := decodeError(500, []byte(`{"_typeName":"`+name+`"}`), redactor{}).InvalidState(); got != want {
			t.Errorf("%s of the InvalidState family: %t", name, got)
		}
	}
}

// TestErrorText: the text reads "what, on what, why".
func TestErrorText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err  *Error
		want string
	}{
		{&Error{Op: "CustomizeGuest_Task", Host: "vc1", Status: 500, Name: "TaskInProgress", Message: "busy"},
			"CustomizeGuest_Task: vcenter vc1: TaskInProgress (HTTP 500): busy"},
		{
			&Error{Op: "hello", Host: "vc1", Status: 503, Message: "down"},
			"hello: vcenter vc1: HTTP 503 Service Unavailable: down",
		},
		{&Error{Op: "hello", Host: "vc1", Message: "EOF"}, "hello: vcenter vc1: no answer: EOF"},
		{&Error{Op: "hello", Host: "vc1", Sent: NotSent, Message: "refused"}, "hello: vcenter vc1: not sent: refused"},
		{&Error{Name: "InvalidState"}, "InvalidState"},
		{&Error{Status: 799}, "HTTP 799"},
	}

	for _, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}

	for _, text := range []string{Permanent.String(), Transient.String(), SessionLost.String(),
		GuestCredentials.String(), Class(9).String(),
		Unknown.String(), NotSent.String(), Refused.String(), Answered.String(), Sent(9).String()} {
		if text == "" {
			t.Error("a value without a name")
		}
	}
}

// errorOverTheWire lets a server answer CustomizeGuest_Task (VI JSON) and processes get (REST) with the same bytes.
func TestErrorsOverTheWire(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("x", maxBody+1)
	tests := []struct {
		name string
		h    http.HandlerFunc
		want outcome
	}{
		{
			"fault",
			func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 500, `{"_typeName":"InvalidPowerState"}`) },
			outcome{"InvalidPowerState",
				Permanent, Refused},
		},
		{"fault as text/plain", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"_typeName":"InvalidPowerState"}`, http.StatusInternalServerError)
		}, outcome{"InvalidPowerState", Permanent, Refused}},
		{
			"rest error",
			func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 500, restBody("RESOURCE_BUSY")) },
			outcome{"RESOURCE_BUSY", Transient, Refused},
		},
		{"proxy page", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<title>502</title>"))
		}, outcome{"", Transient, Unknown}},
		{
			"rate limit",
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
			outcome{"", Transient, Unknown},
		},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.test/", http.StatusTemporaryRedirect)
		}, outcome{"", Transient, Unknown}},
		{"reset", func(w http.ResponseWriter, _ *http.Request) { cut(w) }, outcome{"", Transient, Unknown}},
		{
			"huge success",
			func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, huge) },
			outcome{"", Permanent, Unknown},
		},
		{
			"huge failure",
			func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 500, huge) },
			outcome{"", Transient, Unknown},
		},
		{"cut in the body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"_typeName":`))
			_ = http.NewResponseController(w).Flush()
			cut(w)
		}, outcome{"", Transient, Unknown}},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			c := f.client(t)
			f.learnt(t, c, "/api")
			f.handle("CustomizeGuest_Task", tt.h)
			f.handle("POST /api/vcenter/vm/vm-1/guest/processes", tt.h)
			f.handle("POST /api/vcenter/vm/vm-1/guest/processes/7", tt.h)
			f.handle("info", tt.h)
			_, err := c.CustomizeGuest(context.Background(), nil, "vm-1", testAuth, json.RawMessage(`{}`), nil)
			e := asError(t, err)
			tt.want.check(t, e)

			if e.Op != "CustomizeGuest_Task" ||
				!strings.HasPrefix(e.Endpoint, "POST /sdk/vim25/9.0.0.0/VirtualMachineGuestCustomizationManager/") ||
				e.Host != "127.0.0.1" {
				t.Errorf("op %q, endpoint %q, host %q", e.Op, e.Endpoint, e.Host)
			}

			_, err = c.StartProcess(context.Background(), nil, "vm-1", testAuth, ProcessSpec{Path: "/bin/true"})
			tt.want.check(t, asError(t, err))
			f.wantCount(t, "CustomizeGuest_Task", 1)
			f.wantCount(t, "guest/processes", 1)

			// The same to asks.
			for _, ask := range []func() error{
				func() error { _, err := c.Process(context.Background(), "vm-1", testAuth, 7); return err },
				func() error { _, err := c.Task(context.Background(), "task-1"); return err },
			} {
				if e := asError(t, ask()); e.Name != tt.want.name || e.Class != tt.want.class {
					t.Errorf("an ask got %q %s: %v", e.Name, e.Class, e)
				}
			}
		})
	}
}

// TestSecretsStayInside: where a server echoes all that it was sent, no password, token or session ID gets into an
// error.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	c := f.client(t)
	const windows, env = "Sysprep\"pw<&>ä", "env secret/1"
	auth := GuestAuth{Username: "root", Password: "guest pw\"<1>&ü", Redact: []string{env, "saml-token-42"}}
	spec := json.RawMessage(
		`{"identity":{"password":{"_typeName":"CustomizationPassword","plainText":true,"value":` + quote(
			windows,
		) + `}}}`,
	)

	secret := []string{testPassword, windows, env, auth.Password, "vim-token-1", "saml-token-42"}
	echoes := map[string]func(w http.ResponseWriter, everything string){
		"fault": func(w http.ResponseWriter, all string) {
			writeJSON(
				w,
				500,
				`{"_typeName":"InvalidArgument","invalidProperty":`+quote(all)+`,"faultstring":`+quote(
					all,
				)+`,"faultMessage":[{"key":"k",`+
					`"message":`+quote(all)+`}],`+quote(all)+`:1}`,
			)
		},
		"rest": func(w http.ResponseWriter, all string) {
			writeJSON(
				w,
				400,
				`{"error_type":"INVALID_ARGUMENT","messages":[{"default_message":`+quote(all)+`,"args":[`+quote(
					all,
				)+`]}],`+
					`"data":{"x":[`+quote(all)+`]},"challenge":`+quote(all)+`}`,
			)
		},
		"text": func(w http.ResponseWriter, all string) { http.Error(w, all, http.StatusInternalServerError) },
		"page": func(w http.ResponseWriter, all string) {
			http.Error(w, "<title>"+all+"</title>", http.StatusBadGateway)
		},
		"success": func(w http.ResponseWriter, all string) { writeJSON(w, 200, `{"x":`+quote(all)+`}`) },
		"redirect": func(w http.ResponseWriter, all string) {
			w.Header().Set("Location", quote(all))
			w.WriteHeader(http.StatusFound)
		},
		"status line": func(w http.ResponseWriter, all string) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			_, _ = conn.Write([]byte("HTTP/1.1 " + strings.ReplaceAll(all, "\n", " ") + "\r\n\r\n"))
			_ = conn.Close()
		},
		"task": nil,
	}

	for name, echo := range echoes {
		t.Run(name, func(t *testing.T) {
			h := func(w http.ResponseWriter, _ *http.Request) { echo(w, strings.Join(secret, " ")) }
			var errs []error
			if echo == nil { // the task's own error, read later
				f.reply("CustomizeGuest_Task", 200, `{"type":"Task","value":"task-1"}`)
				f.reply(
					"info",
					200,
					`{"key":"task-1","state":"error","error":{"fault":{"_typeName":"CustomizationFault","x":`+quote(
						windows+auth.Password,
					)+`},`+
						`"localizedMessage":`+quote(strings.Join(secret, " "))+`}}`,
				)

				if _, err := c.CustomizeGuest(context.Background(), nil, "vm-1", auth, spec, nil); err != nil {
					t.Fatal(err)
				}

				task, err := c.Task(context.Background(), "task-1")
				if err != nil {
					t.Fatal(err)
				}

				errs = append(errs, task.Err)
			} else {
				f.handle("CustomizeGuest_Task", h)
				f.handle("StartGuestNetwork_Task", h)
				f.handle("POST /api/vcenter/vm/vm-1/guest/processes/7", h)
				f.handle("POST /api/vcenter/vm/vm-1/guest/processes", h)
				_, err := c.CustomizeGuest(context.Background(), nil, "vm-1", auth, spec, nil)
				errs = append(errs, err)
				_, err = c.StartGuestNetwork(
					context.Background(), nil, "vm-1", GuestAuth{Username: "root", SAMLToken: "saml-token-42"},
				)

				errs = append(errs, err)
				_, err = c.StartProcess(
					context.Background(),
					nil,
					"vm-1",
					auth,
					ProcessSpec{Path: "x", Environment: map[string]string{"A": env}},
				)

				errs = append(errs, err)
				if name != "success" { // an ask that finds nothing it knows in a success is no error
					_, err = c.Process(context.Background(), "vm-1", auth, 7)
					errs = append(errs, err)
				}
			}

			for _, err := range errs {
				e := asError(t, err)
				said := fmt.Sprintf(
					"%v %+v %s %s %s %s %s", e, *e, e.Message, e.Messages, e.Data, e.Challenge, e.LocalizedMessage,
				)

				for under := errors.Unwrap(err); under != nil; under = errors.Unwrap(under) {
					said += under.Error()
				}

				marshaled, _ := json.Marshal(e)
				said += string(marshaled)
				for _, s := range append(secret, quote(windows), quote(auth.Password)) {
					if strings.Contains(said, strings.Trim(s, `"`)) {
						t.Errorf("%s is in the error: %s", s, said)
					}
				}
			}
		})
	}
}

// TestSecretsDoNotBreakErrors: a password that is also a word of the protocol leaves the error readable.
func TestSecretsDoNotBreakErrors(t *testing.T) {
	t.Parallel()
	e := decodeError(500, []byte(`{"_typeName":"TaskInProgress","faultstring":"the Task is in progress"}`),
		secrets{"TaskInProgress", "Task"}.redactor())

	outcome{"TaskInProgress", Transient, Refused}.check(t, e)
	if e.Message != "the *** is in progress" {
		t.Errorf("message %q", e.Message)
	}

	e = decodeError(401, []byte(`{"error_type":"UNAUTHENTICATED","messages":[{"default_message":"x"}]}`),
		secrets{"UNAUTHENTICATED", "x"}.redactor())

	outcome{"UNAUTHENTICATED", SessionLost, Refused}.check(t, e)
}

// TestCredentialsHide: no way of printing credentials shows a secret.
func TestCredentialsHide(t *testing.T) {
	t.Parallel()
	for _, auth := range []GuestAuth{
		{Username: "root", Password: "s3cret", Redact: []string{"s3cret"}},
		{Username: "root", SAMLToken: "s3cret"},
	} {
		p := ProcessSpec{
			Path:        "/bin/sh",
			Arguments:   "-c x",
			Environment: map[string]string{"B": "s3cret", "A": "s3cret"},
		}

		marshaled, err := json.Marshal(struct{ A GuestAuth }{auth})
		if err != nil {
			t.Fatal(err)
		}

		said := fmt.Sprintf(
			"%v %+v %#v %s %v %+v %#v %v %s", auth, auth, auth, auth, p, p, p, []any{auth, &auth, p}, marshaled,
		)

		if strings.Contains(said, "s3cret") || !strings.Contains(said, "root") ||
			!strings.Contains(said, "A="+hidden+" B="+hidden) {
			t.Errorf("it says %s", said)
		}
	}
}

func FuzzDecodeError(f *testing.F) {
	f.Add(
		500,
		[]byte(
			`{"_typeName":"LocalizedMethodFault","fault":{"_typeName":"TaskInProgress","task":{"type":"Task",`+
				`"value":"task-1"},`+
				`"faultMessage":[{"key":"k"}]},"localizedMessage":"m"}`,
		),
	)

	f.Add(500, []byte(`{"_typeName":"InvalidPowerState","faultCause":{"fault":{"_typeName":"VimFault"}}}`))
	f.Add(503, []byte(`<title>x</title>`))
	f.Add(401, []byte(restBody("UNAUTHENTICATED")))
	f.Add(404, []byte(`{"type":"com.vmware.vapi.std.errors.not_found","value":{"messages":[]}}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		e := decodeError(status, body, secrets{"hunter2", "x"}.redactor())
		if strings.Contains(e.Message, "hunter2") || strings.Contains(string(e.Data), "hunter2") {
			t.Errorf("a secret in %+v", e)
		}
		if e.Error() == "" {
			t.Error("no text")
		}
		if e.Data != nil && !json.Valid(e.Data) {
			t.Errorf("data is no JSON: %s", e.Data)
		}
	})
}

func FuzzDecodeProcess(f *testing.F) {
	f.Add([]byte(`{"name":"sh","owner":"root","command":"x","started":"2026-11-20T10:00:00Z","exit_code":0}`))
	f.Add([]byte(`{"value":{"exit_code":1,"finished":null}}`))
	f.Add([]byte(`{"value":`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var wire wireProcess
		if json.Unmarshal(unwrap(body), &wire) != nil {
			return
		}
		p := wire.process()
		if p.ExitCode != nil && wire.ExitCode == nil {
			t.Error("an exit code from nowhere")
		}
	})
}

// A fault without a text says in the error's message what its members say: what helps is nowhere else.
func TestFaultsWithoutText(t *testing.T) {
	t.Parallel()
	const ref = `{"_typeName":"ManagedObjectReference","type":"%s","value":"%s"}`
	tests := []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"InvalidArgument", 500,
			`{"_typeName":"InvalidArgument","faultMessage":[],"invalidProperty":"spec.identity.hostName"}`,
			"invalidProperty spec.identity.hostName"},
		{
			"InvalidArgument with half a text",
			500,
			`{"_typeName":"InvalidArgument","faultstring":"A specified parameter was not correct.",` +
				`"invalidProperty":"spec.identity"}`,
			"A specified parameter was not correct (invalidProperty spec.identity)",
		},
		{
			"InvalidArgument with its text",
			500,
			`{"_typeName":"InvalidArgument",` +
				`"faultstring":"A specified parameter was not correct: spec.identity",` +
				`"invalidProperty":"spec.identity"}`,
			"A specified parameter was not correct: spec.identity",
		},
		{"NicSettingMismatch", 500,
			`{"_typeName":"NicSettingMismatch","numberOfNicsInSpec":2,"numberOfNicsInVM":1}`,
			"adapters: 2 in the spec, 1 on the VM"},
		{"TaskInProgress", 500,
			`{"_typeName":"TaskInProgress","task":` + fmt.Sprintf(ref, "Task", "task-7") + `}`, "task task-7"},
		{"InvalidPowerState", 500,
			`{"_typeName":"InvalidPowerState","requestedState":"poweredOn","existingState":"poweredOff"}`,
			"existingState poweredOff, requestedState poweredOn"},
		{
			"InvalidPowerState with types",
			500,
			`{"_typeName":"InvalidPowerState","existingState":{"_typeName":"VirtualMachinePowerState",` +
				`"_value":"suspended"}}`,
			"existingState suspended",
		},
		{
			"NoPermission",
			500,
			`{"_typeName":"NoPermission","object":` + fmt.Sprintf(
				ref, "VirtualMachine", "vm-42",
			) + `,"privilegeId":"VirtualMachine.Provisioning.Customize"}`,
			"object vm-42, privilegeId VirtualMachine.Provisioning.Customize",
		},
		{"ManagedObjectNotFound", 500,
			`{"_typeName":"ManagedObjectNotFound","obj":` + fmt.Sprintf(ref, "VirtualMachine", "vm-9") + `}`,
			"obj vm-9"},
		{"UncustomizableGuest", 500,
			`{"_typeName":"UncustomizableGuest","uncustomizableGuestOS":"darwin19_64Guest"}`,
			"uncustomizableGuestOS darwin19_64Guest"},
		{"GuestProcessNotFound", 500, `{"_typeName":"GuestProcessNotFound","pid":4711}`, "pid 4711"},
		{"SystemError", 500, `{"_typeName":"SystemError","reason":"out of memory"}`, "reason out of memory"},
		{"MissingParameters", 500,
			`{"_typeName":"InvalidVmConfig","property":"x","list":{"_typeName":"ArrayOfString","_value":["a","b"]}}`,
			"list a b, property x"},
		{
			"as a Task's error",
			0,
			`{"_typeName":"LocalizedMethodFault","fault":{"_typeName":"NicSettingMismatch",` +
				`"numberOfNicsInSpec":2,"numberOfNicsInVM":1},"localizedMessage":""}`,
			"adapters: 2 in the spec, 1 on the VM",
		},
		{
			"a key alone",
			500,
			`{"_typeName":"X","faultMessage":[{"key":"com.vmware.x","arg":[{"key":"1",` +
				`"value":{"_typeName":"string","_value":"disk-1"}},{"key":"2","value":7}]}]}`,
			"com.vmware.x: disk-1 7",
		},
		{
			"no session ID",
			500,
			`{"_typeName":"GuestAuthenticationChallenge","serverChallenge":{"_typeName":"SSPIAuthentication",` +
				`"sspiToken":"x"},"sessionID":77}`,
			"",
		},
		{"no session", 500, `{"_typeName":"NotAuthenticated","privilegeId":"System.View"}`, ""},
		{"REST: a file", 404,
			`{"error_type":"NOT_FOUND","messages":[],"data":{"reason":"FILE_NOT_FOUND","file_path":"/usr/bin/x"}}`,
			"file_path /usr/bin/x, reason FILE_NOT_FOUND"},
		{"REST: a pid", 404, `{"error_type":"NOT_FOUND","messages":[],"data":{"pid":4711}}`, "pid 4711"},
		{"REST: an id and its arguments", 500,
			`{"error_type":"ERROR","messages":[{"id":"com.vmware.vapi.x","args":["vm-42"]}]}`,
			"com.vmware.vapi.x: vm-42"},
		{"a text of no end", 500, `{"_typeName":"SystemError","reason":"` + strings.Repeat("x", 5000) + `"}`,
			"reason " + strings.Repeat("x", 200) + "…"},
		{"a number that is large", 500, `{"_typeName":"X","size":12345678901}`, "size 12345678901"},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if e := decodeError(tt.status, []byte(tt.body), redactor{}); e.Message != tt.want ||
				!strings.Contains(e.Error(), tt.want) {
				t.Errorf("%v\nmessage %q, want %q", e, e.Message, tt.want)
			}
		})
	}
}

// A fault's cause is told, in both forms that are documented for it, with the cause's own cause; no secret is in it
// either.
func TestCauses(t *testing.T) {
	t.Parallel()
	const tools = `{"_typeName":"GuestComponentsOutOfDate","faultstring":"Tools are too old for hunter2.",` +
		`"x":1,"faultCause":{"_typeName":"HostCommunication"}}`
	for name, cause := range map[string]string{
		"bare": tools,
		"localized": `{"_typeName":"LocalizedMethodFault",` +
			`"fault":` + tools + `,"localizedMessage":"Tools are too old for hunter2."}`,
		"localized, untyped":  `{"fault":` + tools + `,"localizedMessage":"Tools are too old for hunter2."}`,
		"localized, all text": `{"fault":` + tools + `}`,
	} {
		for form, body := range map[string]string{
			"answer": `{"_typeName":"CustomizationFault","faultMessage":[],"faultCause":` + cause + `}`,
			"task": `{"_typeName":"LocalizedMethodFault","fault":{"_typeName":"CustomizationFault",` +
				`"faultCause":` + cause + `}}`,
		} {
			e := decodeError(500, []byte(body), secrets{"hunter2"}.redactor())
			c := e.Cause
			if e.Name != "CustomizationFault" || c == nil || c.Name != "GuestComponentsOutOfDate" ||
				c.LocalizedMessage != "Tools are too old for ***." ||
				string(c.Data) != `{"x":1}` ||
				c.Cause == nil ||
				c.Cause.Name != "HostCommunication" ||
				c.Cause.Cause != nil {
				t.Errorf("%s as %s: %+v", name, form, c)
			}

			if want := "caused by GuestComponentsOutOfDate: Tools are too old for ***.; caused by " +
				"HostCommunication"; e.Message != want {
				t.Errorf("%s as %s: message %q, want %q", name, form, e.Message, want)
			}
		}
	}

	endless := `{"_typeName":"A"}`
	for range 100 {
		endless = `{"_typeName":"A","faultCause":` + endless + `}`
	}

	n := 0
	for c := decodeError(500, []byte(endless), redactor{}).Cause; c != nil; c = c.Cause {
		n++
	}

	if n != maxCauses {
		t.Errorf("%d causes are followed", n)
	}

	for _, odd := range []string{`null`, `7`, `{}`, `"x"`, `[]`} {
		if c := decodeError(500, []byte(`{"_typeName":"A","faultCause":`+odd+`}`), redactor{}).Cause; c != nil {
			t.Errorf("%s is taken for %+v", odd, c)
		}
	}
}
