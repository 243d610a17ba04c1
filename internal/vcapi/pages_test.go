package vcapi

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestMessagesStayWhole: the messages of a REST error are kept whole, with all members that the pages list (000, 001).
// The text for people is the localized one, else default_message, else the id.
func TestMessagesStayWhole(t *testing.T) {
	t.Parallel()
	const (
		params = `{"a":{"s":"text"},"b":{"dt":"2026-11-20T10:00:00.000Z","format":"SHORT_DATETIME"},` +
			`"c":{"i":-3},"d":{"d":1.25,"precision":2},` +
			`"e":{"l":{"id":"inner","params":{"x":{"l":{"id":"innermost","params":{}}}}}}}`
		first = `{"id":"com.vmware.first","default_message":"default","args":["vm-42", "2"],` +
			`"params":` + params + `,"localized":"lokalisiert"}`
		second = `{"id":"com.vmware.second","default_message":"the cause","args":[]}`
		third  = `{"id":"com.vmware.third","default_message":"","args":[],"params":null,"localized":null}`
	)

	for name, body := range map[string]string{
		"/api": `{"error_type":"NOT_FOUND","messages":[` + first + `,` + second + `,` + third + `]}`,
		"/rest": `{"type":"com.vmware.vapi.std.errors.not_found","value":{"error_type":"NOT_FOUND",` +
			`"messages":[` + first + `,` + second + `,` + third + `]}}`,
	} {
		e := decodeError(404, []byte(body), redactor{})
		if e.Message != "lokalisiert; the cause; com.vmware.third" {
			t.Errorf("%s: message %q", name, e.Message)
		}

		if want := []json.RawMessage{
			json.RawMessage(first),
			json.RawMessage(second),
			json.RawMessage(third),
		}; !reflect.DeepEqual(e.Messages, want) {
			t.Errorf("%s: messages %s", name, e.Messages)
		}

		if e.Data != nil || e.Challenge != "" {
			t.Errorf("%s: data %s, challenge %q, where there is none", name, e.Data, e.Challenge)
		}
	}
}

// TestCustomizationStatuses: each status of the page of GET guest/customization (001), with the members that it has,
// and without those that it may lack.
func TestCustomizationStatuses(t *testing.T) {
	t.Parallel()
	began, ended := at2026(10, 0, 0), at2026(10, 2, 0)
	const start, end = `"start_time":"2026-11-20T10:00:00.000Z"`, `"end_time":"2026-11-20T10:02:00.000Z"`
	for body, want := range map[string]GuestCustomization{
		`{"status":"IDLE"}`:                  {Status: "IDLE"},
		`{"status":"PENDING"}`:               {Status: "PENDING"},
		`{"status":"RUNNING",` + start + `}`: {Status: "RUNNING", StartTime: &began},
		`{"status":"SUCCEEDED",` + start + `,` + end + `}`: {
			Status: "SUCCEEDED", StartTime: &began, EndTime: &ended,
		},
		`{"status":"FAILED",` + start + `,` + end + `}`: {
			Status: "FAILED", StartTime: &began, EndTime: &ended,
		},
		`{"status":"FAILED","error":"no perl",` + start + `,` + end + `}`: {
			Status: "FAILED", Error: "no perl", StartTime: &began, EndTime: &ended,
		},
		`{"status":"FAILED","error":null,"start_time":null,"end_time":""}`: {Status: "FAILED"},
		`{"status":"OF_THE_FUTURE","more":1}`:                              {Status: "OF_THE_FUTURE"},
		`null`:                                                             {},
	} {
		f := newFake(t, "9.0.0.0")
		f.reply("GET /api/vcenter/vm/vm-1/guest/customization", 200, body)
		got, err := f.client(t).CustomizationStatus(context.Background(), "vm-1")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
}

// TestCheckForms: each form of the answer to the check (000). What is missing or null is not the same as false.
func TestCheckForms(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]Check{
		`{"check_status":"SUPPORTED","supported_guest_os":true,` +
			`"supported_power_state":true}`: {"SUPPORTED", ptr(true), ptr(true)},
		`{"check_status":"NOT_SUPPORTED",` +
			`"supported_guest_os":false}`: {"NOT_SUPPORTED", ptr(false), nil},
		`{"check_status":"NOT_SUPPORTED",` +
			`"supported_power_state":false}`: {"NOT_SUPPORTED", nil, ptr(false)},
		`{"check_status":"NOT_SUPPORTED","supported_guest_os":null,` +
			`"supported_power_state":null}`: {"NOT_SUPPORTED", nil, nil},
		`{"check_status":"NOT_SUPPORTED"}`: {"NOT_SUPPORTED", nil, nil},
	} {
		f := newFake(t, "9.0.0.0")
		f.reply("POST /api/vcenter/vm/vm-1/guest/customization", 200, body)
		got, err := f.client(t).CheckCustomization(context.Background(), "vm-1")
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", body, got, err)
		}

		if sent := f.of("/guest/customization"); len(sent) != 1 || sent[0].query != "action=check" ||
			sent[0].body != "" ||
			sent[0].header.Get(sessionHeader) == "" {
			t.Errorf("sent %+v", sent)
		}
	}
}

// TestCredentialForms: the guest's login as VI JSON (002, 003) and REST (004) have it, of both types, with every member
// and without those that may lack.
func TestCredentialForms(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		auth      GuestAuth
		vim, rest string
	}{
		{GuestAuth{Username: "root", Password: "p"}, `{"_typeName":"NamePasswordAuthentication",` +
			`"interactiveSession":false,"username":"root","password":"p"}`,
			`{"type":"USERNAME_PASSWORD","interactive_session":false,"user_name":"root","password":"p"}`},
		{GuestAuth{Username: "root", Password: "p", Interactive: true},
			`{"_typeName":"NamePasswordAuthentication","interactiveSession":true,"username":"root","password":"p"}`,
			`{"type":"USERNAME_PASSWORD","interactive_session":true,"user_name":"root","password":"p"}`},
		{GuestAuth{SAMLToken: "t"}, `{"_typeName":"SAMLTokenAuthentication","interactiveSession":false,"token":"t"}`,
			`{"type":"SAML_BEARER_TOKEN","interactive_session":false,"saml_token":"t"}`},
		{GuestAuth{SAMLToken: "t", Username: "root", Password: "not used"},
			`{"_typeName":"SAMLTokenAuthentication","interactiveSession":false,"token":"t","username":"root"}`,
			`{"type":"SAML_BEARER_TOKEN","interactive_session":false,"user_name":"root","saml_token":"t"}`},
	} {
		vim, err := encode(row.auth.vim())
		if err != nil || string(vim) != row.vim {
			t.Errorf("VI JSON: %s, %v; want %s", vim, err, row.vim)
		}
		rest, err := encode(row.auth.rest())
		if err != nil || string(rest) != row.rest {
			t.Errorf("REST: %s, %v; want %s", rest, err, row.rest)
		}
	}
}

// TestProcessForms: each form of a process (004), in the envelope of /rest and without: one that runs, one that has
// ended, one whose end is half known.
func TestProcessForms(t *testing.T) {
	t.Parallel()
	const always = `"name":"sh","owner":"root","command":"sh -c x","started":"2015-01-01T22:13:05.651Z"`
	base := Process{Name: "sh", Owner: "root", Command: "sh -c x", Started: at2015}
	with := func(finished *time.Time, code *int64) Process {
		p := base
		p.Finished, p.ExitCode = finished, code
		return p
	}

	for body, want := range map[string]Process{
		`{` + always + `}`: base,
		`{` + always + `,"finished":null,"exit_code":null}`:                    base,
		`{` + always + `,"finished":"2015-01-01T22:13:05.651Z","exit_code":1}`: with(&at2015, ptr(int64(1))),
		`{` + always + `,"finished":"2015-01-01T22:13:05.651Z","exit_code":0}`: with(&at2015, ptr(int64(0))),
		`{` + always + `,"finished":"2015-01-01T22:13:05.651Z"}`:               with(&at2015, nil),
		`{` + always + `,"exit_code":-1073741510}`:                             with(nil, ptr(int64(-1073741510))),
		`{` + strings.Replace(always, `"started"`, `"started_else"`, 1) + `,"x":1}`: {
			Name: "sh", Owner: "root", Command: "sh -c x",
		},
	} {
		for _, form := range []string{body, `{"value":` + body + `}`} {
			var wire wireProcess
			if err := json.Unmarshal(unwrap([]byte(form)), &wire); err != nil ||
				!reflect.DeepEqual(wire.process(), want) {
				t.Errorf("%s: %+v, %v", form, wire.process(), err)
			}
		}
	}
}
