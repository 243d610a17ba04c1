package vcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func ptr[T any](v T) *T { return &v }

var at2015 = time.Date(2015, 1, 1, 22, 13, 5, 651e6, time.UTC) // of the pages' examples

func at2026(hour, minute, second int) time.Time {
	return time.Date(2026, 11, 20, hour, minute, second, 0, time.UTC)
}

// TestGolden sends each call to a server that answers as vCenter's documentation does, and compares the request on the
// wire and the decoded answer. testdata/<name>.request.json is what goes out (-update rewrites it),
// testdata/<name>.answer.json what vCenter sends.
func TestGolden(t *testing.T) {
	t.Parallel()
	spec := json.RawMessage(readFile(t, "linux_spec.json"))
	params := json.RawMessage(
		`[ {"_typeName":"OptionValue","key":"k1","value":{"_typeName":"string","_value":"a<b>&c"}} ]`,
	)
	ctx := context.Background()
	saml := GuestAuth{SAMLToken: "saml<token>"}
	tests := []struct {
		name   string
		key    string // of the fake
		status int
		call   func(c *Client) (any, error)
		want   any
	}{
		// The five calls of the seeds.
		{"check", "POST /api/vcenter/vm/vm-42/guest/customization", 200,
			func(c *Client) (any, error) { return c.CheckCustomization(ctx, "vm-42") },
			Check{Status: "NOT_SUPPORTED", SupportedGuestOS: ptr(true), SupportedPowerState: ptr(false)}},
		{
			"customization_status",
			"GET /api/vcenter/vm/vm-42/guest/customization",
			200,
			func(c *Client) (any, error) { return c.CustomizationStatus(ctx, "vm-42") },
			GuestCustomization{
				Status:    "FAILED",
				Error:     "ERR,254,network",
				StartTime: ptr(at2026(10, 0, 0)),
				EndTime:   ptr(at2026(10, 2, 0)),
			},
		},
		{
			"customize_guest",
			"CustomizeGuest_Task",
			200,
			func(c *Client) (any, error) { return c.CustomizeGuest(ctx, nil, "vm-42", testAuth, spec, params) },
			"task-12",
		},
		{"start_guest_network", "StartGuestNetwork_Task", 200,
			func(c *Client) (any, error) { return c.StartGuestNetwork(ctx, nil, "vm-42", testAuth) }, "task-13"},
		{
			"process_get",
			"POST /api/vcenter/vm/vm-42/guest/processes/4711",
			200,
			func(c *Client) (any, error) { return c.Process(ctx, "vm-42", testAuth, 4711) },
			Process{
				PID:      4711,
				Name:     "sh",
				Owner:    "root",
				Command:  `"/bin/sh" -c 'exit 0'`,
				Started:  at2026(10, 0, 0),
				Finished: ptr(at2026(10, 0, 2)),
				ExitCode: ptr(int64(0)),
			},
		},
		// The other acts and guest calls.
		{"abort_customization", "AbortCustomization_Task", 200,
			func(c *Client) (any, error) { return c.AbortCustomization(ctx, nil, "vm-42", saml) }, "task-14"},
		{
			"process_list",
			"POST /api/vcenter/vm/vm-42/guest/processes",
			200,
			func(c *Client) (any, error) { return c.Processes(ctx, "vm-42", saml) },
			[]Process{
				{PID: 1, Name: "systemd", Owner: "root", Command: "/sbin/init", Started: at2026(9, 0, 0)},
				{PID: 4711, Name: "sh", Owner: "root",
					Command: "sh", Started: at2026(10, 0, 0)},
			},
		},
		{"process_create", "POST /api/vcenter/vm/vm-42/guest/processes", 201,
			func(c *Client) (any, error) {
				return c.StartProcess(
					ctx,
					nil,
					"vm-42",
					testAuth,
					ProcessSpec{Path: "/bin/sh", Arguments: "-c 'exit 3' # gf:01J", WorkingDirectory: "/opt",
						Environment: map[string]string{"A": "b"}},
				)
			}, int64(4711)},
		{"process_delete", "POST /api/vcenter/vm/vm-42/guest/processes/4711", 204,
			func(c *Client) (any, error) { return nil, c.DeleteProcess(ctx, nil, "vm-42", testAuth, 4711) }, nil},
		// Guest processes of an older vCenter; the answer of get is the one of its page (seed 004).
		{
			"rest_process_get",
			"POST /rest/vcenter/vm/vm-42/guest/processes/4711",
			200,
			func(c *Client) (any, error) { return c.Process(ctx, "vm-42", testAuth, 4711) },
			Process{
				PID:      4711,
				Name:     "string",
				Owner:    "string",
				Command:  "string",
				Started:  at2015,
				Finished: &at2015,
				ExitCode: ptr(int64(1)),
			},
		},
		{"rest_process_list", "POST /rest/vcenter/vm/vm-42/guest/processes", 200,
			func(c *Client) (any, error) { return c.Processes(ctx, "vm-42", saml) },
			[]Process{{PID: 1, Name: "systemd", Owner: "root", Command: "/sbin/init", Started: at2026(9, 0, 0)}}},
		{"rest_process_create", "POST /rest/vcenter/vm/vm-42/guest/processes", 200,
			func(c *Client) (any, error) {
				return c.StartProcess(
					ctx,
					nil,
					"vm-42",
					testAuth,
					ProcessSpec{Path: "/bin/sh", Arguments: "-c 'exit 3' # gf:01J", WorkingDirectory: "/opt",
						Environment: map[string]string{"B": "c=d", "A": "b"}},
				)
			}, int64(4711)},
		{"rest_process_delete", "POST /rest/vcenter/vm/vm-42/guest/processes/4711", 200,
			func(c *Client) (any, error) { return nil, c.DeleteProcess(ctx, nil, "vm-42", testAuth, 4711) }, nil},
		{
			"guest_file",
			"InitiateFileTransferFromGuest",
			200,
			func(c *Client) (any, error) { return c.GuestFile(ctx, "vm-42", testAuth, "/var/log/<app>.log", 6) },
			[]byte("tail\xff\n"),
		},
		{"cancel_task", "POST /sdk/vim25/8.0.3.0/Task/task-12/CancelTask", 204,
			func(c *Client) (any, error) { return nil, c.CancelTask(ctx, nil, "task-12") }, nil},
		{
			"task",
			"GET /sdk/vim25/8.0.3.0/Task/task-12/info",
			200,
			func(c *Client) (any, error) { return c.Task(ctx, "task-12") },
			Task{
				ID:            "task-12",
				Name:          "CustomizeGuest_Task",
				DescriptionID: "vm.GuestCustomizationManager.customize",
				Entity:        "vm-42",
				State:         "running",
				UserName:      `VSPHERE.LOCAL\svc`,
				Progress:      ptr(0),
				Cancelable:    true,
				QueueTime:     at2026(10, 0, 0),
				StartTime:     ptr(at2026(10, 0, 1)),
			},
		},
		{
			"vm",
			"RetrievePropertiesEx",
			200,
			func(c *Client) (any, error) { return c.VM(ctx, "vm-42") },
			VM{
				Name:                 "web-1",
				InstanceUUID:         "5021-77",
				PowerState:           "poweredOn",
				ToolsRunningStatus:   "guestToolsRunning",
				ToolsVersion:         "12389",
				GuestFamily:          "linuxGuest",
				GuestID:              "ubuntu64Guest",
				HostName:             "web01",
				GuestOperationsReady: ptr(true),
				NICs: []NIC{
					{
						MAC:       "00:50:56:00:00:01",
						Connected: true,
						Device:    4000,
						Addresses: []string{"10.0.0.7", "fe80::1"},
						IPConfig: []Address{
							{IP: "10.0.0.7", Prefix: 24, State: "preferred"},
							{IP: "fe80::1", Prefix: 64, State: "unknown"},
						},
					},
					{MAC: "00:50:56:00:00:02", Device: 4001},
					{
						MAC:       "02:42:ac:11:00:01",
						Connected: true,
						Device:    -1,
						Addresses: []string{"172.17.0.1"},
						DNS:       []string{"172.17.0.2"},
					},
				},
				Cards: []Card{
					{Key: 4001, MAC: "00:50:56:00:00:02", Slot: 160},
					{Key: 4000, MAC: "00:50:56:00:00:01", Slot: 192, Connected: true},
				},
				Routes:   3,
				Gateways: []string{"10.0.0.1", "fe80::99"},
				DNS:      []string{"10.0.0.2", "10.0.0.3"},
				Customization: &GuestCustomization{
					Status:    "SUCCEEDED",
					StartTime: ptr(at2026(9, 0, 0)),
					EndTime:   ptr(at2026(9, 1, 0)),
				},
				PendingCustomization: "[ds] web-1/imcf-1",
				CloudInit:            true,
				RecentTasks:          []string{"task-11", "task-12"},
			},
		},
		{
			"current_time",
			"CurrentTime",
			200,
			func(c *Client) (any, error) { return c.Now(ctx) },
			at2026(10, 0, 0).Add(123456 * time.Microsecond),
		},
		{"session_is_active", "SessionIsActive", 200,
			func(c *Client) (any, error) { return c.SessionAlive(ctx, Session{Key: "52ab", UserName: "svc"}) }, true},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "8.0.3.0")
			body := ""
			if tt.want != nil {
				body = readFile(t, tt.name+".answer.json")
			}

			c := f.client(t)
			switch {
			case strings.HasPrefix(tt.name, "process_"):
				f.learnt(t, c, "/api")
			case strings.HasPrefix(tt.name, "rest_process_"):
				f.learnt(t, c, "/rest")
			}

			f.reply("GET /guestFile", 200, "head and tail\xff\n")
			f.reply(tt.key, tt.status, body)
			got, err := tt.call(c)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("decoded\n%+v\nwant\n%+v", got, tt.want)
			}

			var sent []request
			for _, r := range f.seen {
				if r.key == tt.key || !strings.Contains(tt.key, " ") && strings.HasSuffix(r.key, "/"+tt.key) {
					sent = append(sent, r)
				}
			}

			if len(sent) != 1 {
				t.Fatalf("%d requests, want one", len(sent))
			}

			wantGolden(t, tt.name+".request.json", golden(t, sent[0]))
		})
	}
}

// golden writes a request down, its body as it was sent.
func golden(t *testing.T, r request) []byte {
	t.Helper()
	var b bytes.Buffer
	method, path, _ := strings.Cut(r.key, " ")
	if r.query != "" {
		path += "?" + r.query
	}

	body := r.body
	if body == "" {
		body = "null"
	}

	if err := json.Compact(&bytes.Buffer{}, []byte(body)); err != nil {
		t.Fatalf("the body is no JSON: %v\n%s", err, r.body)
	}

	b.WriteString("{\"method\": " + quote(method) + ",\n \"path\": " + quote(path) + ",\n")
	for _, header := range []string{"Accept", "Content-Length", "Content-Type", "User-Agent", "Vmware-Api-Session-Id"} {
		b.WriteString(" " + quote(header) + ": " + quote(r.header.Get(header)) + ",\n")
	}

	b.WriteString(" \"body\":\n" + body + "\n}\n")
	return b.Bytes()
}

func quote(s string) string {
	b, _ := encode(s)
	return string(b)
}

func wantGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile("testdata/"+name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	if want := readFile(t, name); string(got) != want {
		t.Errorf("%s: sent\n%s\nwant\n%s", name, got, want)
	}
}

// TestSpecByteForByte: spec and configParams are sent byte for byte, with their white space and characters.
func TestSpecByteForByte(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("CustomizeGuest_Task", 200, `{"type":"Task","value":"task-1"}`)
	spec := json.RawMessage(
		"{ \"_typeName\" : \"CustomizationSpec\",\n\t\"big\": 12345678901234567890.10, " +
			"\"text\": \"<&>\\u003c\u2028ä\", \"text\": 1 }",
	)

	params := json.RawMessage("[\n]")
	if _, err := f.client(t).CustomizeGuest(context.Background(), nil, "vm-1", testAuth, spec, params); err != nil {
		t.Fatal(err)
	}

	body := f.of("CustomizeGuest_Task")[0].body
	if want := `,"spec":` + string(spec) + `,"configParams":` + string(params) + `}`; !strings.HasSuffix(body, want) {
		t.Errorf("body\n%s\ndoes not end in\n%s", body, want)
	}
}

// TestNoSpec: a spec that is not JSON is not sent.
func TestNoSpec(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	_, err := f.client(t).CustomizeGuest(context.Background(), nil, "vm-1", testAuth, json.RawMessage(`{"a":`), nil)
	if e := asError(t, err); e.Sent != NotSent || e.Class != Permanent {
		t.Errorf("got %s, %s", e.Sent, e.Class)
	}
	f.wantCount(t, "CustomizeGuest_Task", 0)
}

// TestLenientAnswers: the forms in which other vCenters, older prefixes and proxies give the same response.
func TestLenientAnswers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	create := func(c *Client) (any, error) {
		return c.StartProcess(ctx, nil, "vm-1", testAuth, ProcessSpec{Path: "x"})
	}
	list := func(c *Client) (any, error) { return c.Processes(ctx, "vm-1", testAuth) }
	status := func(c *Client) (any, error) { return c.CustomizationStatus(ctx, "vm-1") }
	alive := func(c *Client) (any, error) { return c.SessionAlive(ctx, Session{}) }
	tests := []struct {
		name   string
		key    string
		status int
		body   string
		call   func(c *Client) (any, error)
		want   any
	}{
		{"create in an envelope, 200", "processes", 200, `{"value": 7}`, create, int64(7)},
		{"create as a string", "processes", 201, `"7"`, create, int64(7)},
		{
			"get in an envelope, running",
			"7",
			200,
			`{"value":{"name":"sh","owner":"root","command":"sh","started":"2026-11-20T10:00:00.000Z",` +
				`"exit_code":null}}`,
			func(c *Client) (any, error) { return c.Process(ctx, "vm-1", testAuth, 7) },
			Process{PID: 7, Name: "sh", Owner: "root", Command: "sh",
				Started: at2026(10, 0, 0)},
		},
		{"list in an envelope", "processes", 200, `{"value":[]}`, list, []Process{}},
		{"list null", "processes", 200, `null`, list, []Process{}},
		{"status in an envelope", "GET /api/vcenter/vm/vm-1/guest/customization", 200,
			`{"value":{"status":"IDLE"}}`, status, GuestCustomization{Status: "IDLE"}},
		{"status with nulls", "GET /api/vcenter/vm/vm-1/guest/customization", 200,
			`{"status":"PENDING","start_time":null,"error":null}`, status, GuestCustomization{Status: "PENDING"}},
		{
			"check with nulls and news",
			"POST /api/vcenter/vm/vm-1/guest/customization",
			200,
			`{"check_status":"SUPPORTED","supported_guest_os":null,` +
				`"added_later":{}}`,
			func(c *Client) (any, error) { return c.CheckCustomization(ctx, "vm-1") },
			Check{Status: "SUPPORTED"},
		},
		{"time boxed", "CurrentTime", 200, `{"_typeName":"dateTime","_value":"2026-11-20T11:00:00+01:00"}`,
			func(c *Client) (any, error) { return c.Now(ctx) }, at2026(10, 0, 0)},
		{"active boxed", "SessionIsActive", 200, `{"_typeName":"boolean","_value":true}`, alive, true},
		{"active by 204", "SessionIsActive", 204, ``, alive, false},
		{
			"task by key only, odd members",
			"info",
			200,
			`{"key":"task-9","state":"success","progress":"x","result":{"_typeName":"NeverHeardOf"},` +
				`"queueTime":"garbage"}`,
			func(c *Client) (any, error) { return c.Task(ctx, "task-9") },
			Task{ID: "task-9", State: "success"},
		},
		{
			"vm without arrays, types unknown",
			"RetrievePropertiesEx",
			200,
			`{"objects":[{"obj":{"type":"VirtualMachine","value":"vm-1"},"propSet":[{"name":"name",` +
				`"val":"a"},{"name":"runtime.powerState",` +
				`"val":{"_typeName":"NewState","_value":"poweredOff"}},
			{"name":"guest.net","val":[{"_typeName":"GuestNicInfoExt","macAddress":"m","connected":true,
			"ipAddress":["1.2.3.4"]}]},
			{"name":"config.extraConfig","val":{"_typeName":"Odd"}},{"name":"x","val":{"_typeName":"Nope"}}],
			"missingSet":[{"path":"guest.customizationInfo","fault":{"fault":{"_typeName":"NoPermission"}}}]}]}`,
			func(c *Client) (any, error) { return c.VM(ctx, "vm-1") },
			VM{Name: "a", PowerState: "poweredOff", NICs: []NIC{{MAC: "m", Connected: true,
				Addresses: []string{"1.2.3.4"}}}},
		},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			f.reply(tt.key, tt.status, tt.body)
			got, err := tt.call(f.client(t))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("decoded\n%+v\nwant\n%+v", got, tt.want)
			}
		})
	}
}

// TestNotUnderstood: a success without a usable body is an error; of an effect it is then not known whether it took
// place.
func TestNotUnderstood(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	calls := map[string]func(c *Client) error{
		"StartGuestNetwork_Task": func(c *Client) error {
			_, err := c.StartGuestNetwork(ctx, nil, "vm-1", testAuth)
			return err
		},
		"processes": func(c *Client) error {
			_, err := c.StartProcess(ctx, nil, "vm-1", testAuth, ProcessSpec{Path: "x"})
			return err
		},
		"CurrentTime": func(c *Client) error { _, err := c.Now(ctx); return err },
		"info":        func(c *Client) error { _, err := c.Task(ctx, "task-1"); return err },
	}

	for _, tt := range []struct{ name, key, body string }{
		{"task ref", "StartGuestNetwork_Task", `{"type":"Task"}`},
		{"task ref missing", "StartGuestNetwork_Task", `null`},
		{"task ref broken", "StartGuestNetwork_Task", `{"type":`},
		{"pid", "processes", `"abc"`},
		{"pid zero", "processes", `0`},
		{"time", "CurrentTime", `"noon"`},
		{"info", "info", `{}`},
		{"html", "info", `<html>`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			f.reply(tt.key, 200, tt.body)
			e := asError(t, calls[tt.key](f.client(t)))
			if e.Sent != Unknown || e.Status != 200 {
				t.Errorf("got %s, HTTP %d: %v", e.Sent, e.Status, e)
			}
		})
	}
}
