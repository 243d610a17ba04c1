package events_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/schemas"
)

const (
	requestedType = "io.guestflow.customization.requested.v1"
	subject       = "guestflow.requests.lab.vm-42"
	creds         = `"guest":{"credentials":{"secretRef":"root"}}`
)

func header(pairs ...string) map[string][]string {
	h := map[string][]string{}
	for i := 0; i < len(pairs); i += 2 {
		h[pairs[i]] = append(h[pairs[i]], pairs[i+1])
	}
	return h
}

// structured is a request's CloudEvent around data; more are further members, each with a comma in front.
func structured(data, more string) []byte {
	return []byte(`{"specversion":"1.0","id":"7","source":"/provisioner","type":"` + requestedType + `","data":` +
		data + more + `}`)
}

func TestDecodeRequestForms(t *testing.T) {
	t.Parallel()
	const data = `{"vm":"vm-42","timeout":"45m"}`
	binary := []string{"ce-specversion", "1.0", "ce-id", "7", "ce-source", "/provisioner", "ce-type", requestedType}
	want := events.Attributes{CorrelationID: "7", CausationID: "7"}
	tests := []struct {
		name   string
		header map[string][]string
		data   []byte
		attrs  events.Attributes
		ref    events.RequestRef
	}{
		{"structured, by its content type", header("Content-Type", "application/cloudevents+json; charset=UTF-8"),
			structured(data, ""), want, events.RequestRef{}},
		{"structured, the content type in another case", header("CONTENT-TYPE", "Application/CloudEvents+JSON"),
			structured(data, ""), want, events.RequestRef{}},
		{"structured, by default", nil, structured(data, ""), want, events.RequestRef{}},
		{"structured goes before binary headers", header(append(binary, "Content-Type",
			"application/cloudevents+json")...), structured(data, ""), want, events.RequestRef{}},
		{"structured with base64", nil, []byte(`{"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(data)) +
			`","specversion":"1.0","id":"7","source":"/provisioner","type":"` + requestedType + `"}`), want,
			events.RequestRef{}},
		{"structured with extensions", nil,
			structured(data,
				`,"correlationid":"c","traceparent":"tp","tracestate":"ts","authtype":"user","authid":"me",`+
					`"number":1,"flag":true,"subject":"vm-42","time":"2026-01-02T03:04:05Z","nothing":null`),
			events.Attributes{CorrelationID: "c", CausationID: "7", TraceParent: "tp", TraceState: "ts",
				AuthType: "user", AuthID: "me"}, events.RequestRef{}},
		{"a source keeps its spelling", nil, []byte(`{"specversion":"1.0","id":"ü 7","source":"/a b/ü%20","type":"` +
			requestedType + `","data":` + data + `}`),
			events.Attributes{CorrelationID: "ü 7", CausationID: "ü 7"},
			events.RequestRef{Source: "/a b/ü%20", ID: "ü 7"}},
		{"binary", header(binary...), []byte(data), want, events.RequestRef{}},
		{"binary, letter case", header("CE-SpecVersion", "1.0", "Ce-Id", "7", "cE-source", "/provisioner", "ce-TYPE",
			requestedType), []byte(data), want, events.RequestRef{}},
		{"binary, percent-encoded", header("ce-specversion", "1.0", "ce-id", "%C3%BC%207", "ce-source", "/a+b",
			"ce-type", requestedType, "ce-correlationid", "100%25", "ce-datacontenttype", "application/vnd.x+json"),
			[]byte(data), events.Attributes{CorrelationID: "100%", CausationID: "ü 7"},
			events.RequestRef{Source: "/a+b", ID: "ü 7"}},
		{"binary, the data's type as content type", header(append(binary, "Content-Type", "application/json")...),
			[]byte(data), want, events.RequestRef{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := events.DecodeRequest("lab", subject, tt.header, tt.data)
			if err != nil {
				t.Fatal(err)
			}
			ref := tt.ref
			if ref == (events.RequestRef{}) {
				ref = events.RequestRef{Source: "/provisioner", ID: "7"}
			}
			if r.Ref != ref || r.VM != "vm-42" || r.VCenter != "lab" || r.RunID != events.RunID("lab", "vm-42", ref) ||
				!r.Expires.IsZero() {
				t.Errorf("request: %+v", r)
			}
			if diff := cmp.Diff(tt.attrs, r.Attrs); diff != "" {
				t.Errorf("attributes -want +got\n%s", diff)
			}
			if r.Spec.VM != "vm-42" || r.Spec.Timeout.Or(0) != 45*time.Minute || string(r.Data) != data {
				t.Errorf("asked: %+v, data %s", r.Spec, r.Data)
			}
		})
	}
}

func TestDecodeRequestData(t *testing.T) {
	t.Parallel()
	const spec = `{"_typeName":"CustomizationSpec", "identity":{"_typeName":"CustomizationNew","z":1.0, "a":null,` +
		` "n":12345678901234567890, "h":"<&>"}}`
	r, err := events.DecodeRequest("lab", subject, nil, structured(`{"vm":"vm-42","timeout":null,
		"check":{"mode":null},"onUncertain":"repeat",`+creds+`,
		"customize":{"spec":`+spec+`,"timeout":"1h30m"},"network":{},"processes":[
		{"name":"a","run":{"path":"/bin/a","environment":{"A":"1","B":null}},"successExitCodes":[0,3]},
		{"name":"b","run":{"path":"/bin/b"}}]}`,
		`,"expirytime":"2026-01-02T03:04:05.5+01:00"`))
	if err != nil {
		t.Fatal(err)
	}
	if string(r.Spec.Customize.Spec) != spec {
		t.Errorf("spec is %s, want it word for word", r.Spec.Customize.Spec)
	}
	want := events.RequestSpec{
		VM: "vm-42", OnUncertain: "repeat", Guest: &events.GuestSpec{
			Credentials: &events.CredentialsRef{SecretRef: "root"}},
		Customize: &events.CustomizeSpec{Spec: json.RawMessage(spec), Timeout: events.Duration(90 * time.Minute)},
		Network:   &events.NetworkSpec{},
		Processes: []events.ProcessSpec{
			{Name: "a", Run: &events.ExecSpec{Path: "/bin/a",
				Environment: map[string]events.TextOrSecret{"A": {Text: "1"}}}, SuccessExitCodes: []int64{0, 3}},
			{Name: "b", Run: &events.ExecSpec{Path: "/bin/b"}},
		},
	}
	if diff := cmp.Diff(want, r.Spec); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if !r.Expires.Equal(time.Date(2026, 1, 2, 2, 4, 5, 500_000_000, time.UTC)) {
		t.Errorf("expires %s", r.Expires)
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	digest := func(data string) string {
		t.Helper()
		r, err := events.DecodeRequest("lab", subject, nil, structured(data, ""))
		if err != nil {
			t.Fatal(err)
		}
		return r.Digest
	}
	first := digest(`{"vm":"vm-42",` + creds +
		`,"network":{"timeout":"5m"},"customize":{"spec":{"identity":{"_typeName":"New","n":1.0}}}}`)
	// printf '%s%s' '{"customize":{"spec":{"identity":{"_typeName":"New","n":1.0}}},' \
	//   '"guest":{"credentials":{"secretRef":"root"}},"network":{"timeout":"5m"},"vm":"vm-42"}' | sha256sum
	if want := "a60fc70d2bd9f4577db6d2d083f7f54786be2af23a29b4bdfbe18d4f877b18b3"; first != want {
		t.Errorf("digest %s, want %s", first, want)
	}
	same := digest(`{ "customize":{"spec":{"identity":{"_typeName":"New","n":1.0}}}, "network":{"timeout":"5m"}, ` +
		creds + `, "vm":"vm-42", "onUncertain":null }`)
	if same != first {
		t.Error("the order of fields, blanks and nulls must not change the digest")
	}
	if digest(`{"vm":"vm-42",`+creds+
		`,"network":{"timeout":"5m"},"customize":{"spec":{"identity":{"_typeName":"New","n":1}}}}`) == first {
		t.Error("a number written otherwise must change the digest")
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	t.Parallel()
	const (
		envelope      = `"specversion":"1.0","id":"7","source":"/provisioner","type":"` + requestedType + `"`
		token         = `{"secretRef":"a","type":"SAML_BEARER_TOKEN"}`
		needsPassword = "needs user name and password, and "
		inSpec        = "customize.spec.identity.a[0]"
	)
	secret := func(ref string) []byte {
		return structured(`{"vm":"vm-42",`+creds+`,"customize":{"spec":{"identity":{"_typeName":"New","a":[`+ref+
			`]}}}}`, "")
	}
	tests := []struct {
		name, subject string
		header        map[string][]string
		data          []byte
		field, text   string
	}{
		{"no JSON", "", nil, []byte("hello"), "", "not valid JSON"},
		{"empty", "", nil, nil, "", "not valid JSON"},
		{"no object", "", nil, []byte(`[1]`), "", "not a JSON object"},
		{"a member twice", "", nil, []byte(`{` + envelope + `,"id":"8","data":{"vm":"vm-42"}}`), "",
			"id is there twice"},
		{"a field twice", "", nil, structured(`{"vm":"vm-42","vm":"vm-42"}`, ""), "", "data.vm is there twice"},
		{"a field twice, deeper", "", nil,
			structured(`{"vm":"vm-42","processes":[{"name":"a"},{"run":{"path":"a","path":"b"}}]}`, ""), "",
			"data.processes[1].run.path is there twice"},
		{"not UTF-8", "", nil, structured("{\"vm\":\"vm-42\xff\"}", ""), "", "UTF-8"},
		{"a batch", "", header("Content-Type", "application/cloudevents-batch+json"), []byte(`[]`), "",
			"not supported"},
		{"another format", "", header("Content-Type", "application/cloudevents+xml", "ce-specversion", "1.0"), nil, "",
			"not supported"},
		{"specversion 0.3", "", nil, []byte(strings.Replace(string(structured(`{"vm":"vm-42"}`, "")), `"1.0"`, `"0.3"`,
			1)), "", "specversion"},
		{"no id", "", nil, []byte(`{"specversion":"1.0","source":"/a","type":"` + requestedType +
			`","data":{"vm":"vm-42"}}`), "", "attribute id is missing"},
		{"no source", "", header("ce-specversion", "1.0", "ce-id", "7", "ce-type", requestedType),
			[]byte(`{"vm":"vm-42"}`), "", "attribute source is missing"},
		{"an id with a line end", "", nil, []byte(`{"specversion":"1.0","id":"a\nb","source":"/a","type":"` +
			requestedType + `","data":{"vm":"vm-42"}}`), "", "control characters"},
		{"an id that is too long", "", header("ce-specversion", "1.0", "ce-id", strings.Repeat("x", 1025), "ce-source",
			"/a", "ce-type", requestedType), []byte(`{"vm":"vm-42"}`), "", "longer than 1024"},
		{"an attribute that is an object", "", nil, structured(`{"vm":"vm-42"}`, `,"ext":{}`), "",
			`"ext" is not a string`},
		{"a bad attribute name", "", nil, structured(`{"vm":"vm-42"}`, `,"my-ext":"1"`), "",
			`attribute "my-ext" must be written "myext"`},
		{"two ids", "", header("ce-specversion", "1.0", "ce-id", "7", "CE-ID", "8", "ce-source", "/a", "ce-type",
			requestedType), []byte(`{"vm":"vm-42"}`), "", "two values"},
		{"bad base64", "", nil, []byte(`{` + envelope + `,"data_base64":"!"}`), "", "no base64"},
		{"data twice", "", nil, []byte(`{` + envelope + `,"data_base64":"e30=","data":{}}`), "", "both there"},
		{"data of another type", "", nil, structured(`"<vm/>"`, `,"datacontenttype":"application/xml"`), "",
			"data must be JSON"},
		{"another type of event", "", nil, []byte(strings.Replace(string(structured(`{"vm":"vm-42"}`, "")), "requested",
			"cancel.requested", 1)), "", "type is"},
		{"no data", "", nil, []byte(`{` + envelope + `}`), "", "no data"},
		{"null as data", "", nil, structured(`null`, ""), "", "no data"},
		{"data is no object", "", nil, structured(`"vm-42"`, ""), "", "not a JSON object"},
		{"another VM in the subject", "guestflow.requests.lab.vm-1", nil, structured(`{"vm":"vm-42"}`, ""), "vm",
			"is vm-42, but the message's subject names vm-1"},
		{"another VM in the CloudEvent's subject", "", nil, structured(`{"vm":"vm-42"}`, `,"subject":"vm-1"`), "",
			"the CloudEvent's subject"},
		{"a wild card as VM", "guestflow.requests.lab.*", nil, structured(`{"vm":"vm-42"}`, ""), "",
			"managed object ID"},
		{"unknown fields", "", nil, structured(`{"vm":"vm-42","verfy":{},"check":{"mod":1}}`, ""), "check.mod",
			"is not a known field: is it mode?; verfy: is not a known field: is it verify?"},
		{"another letter case", "", nil, structured(`{"vm":"vm-42","Timeout":"5m"}`, ""), "Timeout",
			"not a known field"},
		{"null for what is required", "", nil, structured(`{"vm":null}`, ""), "vm", "is required"},
		{"no credentials", "", nil, structured(`{"vm":"vm-42","customize":{"spec":{"identity":{"_typeName":"New"}}}}`,
			""), "guest.credentials", "is required for customize"},
		{"no credentials but a guest", "", nil, structured(`{"vm":"vm-42","guest":{"readyTimeout":"0s"},"network":{}}`,
			""), "guest.credentials", "is required for network"},
		{"a process's name twice", "", nil, structured(`{"vm":"vm-42",`+creds+
			`,"processes":[{"name":"a","run":{"path":"/a"}},{"name":"a","run":{"path":"/a"}}]}`, ""),
			"processes[1].name", "name of processes[0]"},
		{"a duration that overflows", "", nil, structured(`{"vm":"vm-42","timeout":"9999999999h"}`, ""), "timeout",
			"too long"},
		{"no time at all", "", nil, structured(`{"vm":"vm-42",`+creds+
			`,"processes":[{"name":"a","run":{"path":"/a"},"timeout":"0s"}]}`, ""), "processes[0].timeout",
			"more than 0s"},
		{"an interactive session with a token", "", nil, structured(`{"vm":"vm-42","guest":{"credentials":`+token+
			`,"interactiveSession":true},"network":{}}`, ""), "guest.interactiveSession", needsPassword},
		{"an interactive session with a process's own token", "", nil, structured(`{"vm":"vm-42",`+
			`"guest":{"credentials":{"secretRef":"a"},"interactiveSession":true},"processes":[{"name":"a",`+
			`"run":{"path":"/a"},"credentials":`+token+`}]}`, ""), "guest.interactiveSession", needsPassword},
		{"a secret without a key", "", nil, secret(`{"secretRef":"a"}`), inSpec, ""},
		{"a secret with one member more", "", nil, secret(`{"secretRef":"a","key":"b","c":1}`), inSpec, ""},
		{"a secret's name that is a path", "", nil, secret(`{"secretRef":"../b","key":"c"}`), inSpec, ""},
		{"a secret's name that is no text", "", nil, secret(`{"secretRef":1,"key":"c"}`), inSpec, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := tt.subject
			if s == "" {
				s = subject
			}
			r, err := events.DecodeRequest("lab", s, tt.header, tt.data)
			wantRefusal(t, err, tt.field, tt.text, false)
			if r == nil || r.VCenter != "lab" {
				t.Errorf("what could be read: %+v", r)
			}
		})
	}
}

func TestLiteralPasswordIsWithheld(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	spec := func(password string) string {
		return `{"vm":"vm-42",` + creds +
			`,"customize":{"spec":{"identity":{"_typeName":"CustomizationLinuxPrep",` +
			`"hostName":{"_typeName":"CustomizationVirtualMachineName"},"password":` + password + `}}}}`
	}
	const literal = `{"_typeName":"CustomizationPassword","value":"` + secret + `","plainText":true}`
	tests := []struct {
		name        string
		data        []byte
		header      map[string][]string
		field, text string
	}{
		{"in the spec", structured(spec(literal), ""), nil, "customize.spec.identity.password.value",
			"literal password"},
		{"without its type", structured(spec(`{"value":"`+secret+`","plainText":true}`), ""), nil,
			"customize.spec.identity.password.value", "literal password"},
		{"without plainText", structured(spec(`{"_typeName":"CustomizationPassword","value":"`+secret+`"}`), ""), nil,
			"customize.spec.identity.password.value", "literal password"},
		{"as an object",
			structured(spec(`{"_typeName":"CustomizationPassword","value":{"_typeName":"string","_value":"`+secret+
				`"},"plainText":true}`), ""), nil,
			"customize.spec.identity.password.value", "literal password"},
		{"in a list", structured(spec(`{"_typeName":"CustomizationPassword","value":["`+secret+`"]}`), ""), nil,
			"customize.spec.identity.password.value", "literal password"},
		{"as a number", structured(spec(`{"_typeName":"CustomizationPassword","value":123456}`), ""), nil,
			"customize.spec.identity.password.value", "literal password"},
		{"in other letters", structured(spec(`{"_typeName":"CustomizationPassword","Value":"`+secret+`"}`), ""), nil,
			"customize.spec.identity.password.Value", "literal password"},
		{"bare", structured(spec(`"`+secret+`"`), ""), nil, "customize.spec.identity.password", "literal password"},
		{"beside the name of a secret",
			structured(spec(`{"_typeName":"CustomizationPassword","value":{"secretRef":"a","key":"b","x":"`+secret+
				`"}}`), ""), nil,
			"customize.spec.identity.password.value", "literal password"},
		{"in a field that nobody knows",
			structured(`{"vm":"vm-42","guest":{"credentials":{"secretRef":"a","password":"`+secret+`"}}}`, ""), nil,
			"guest.credentials.password", "is not a known field"},
		{"outside the spec, beside another fault", structured(`{"vm":1,"x":[`+literal+`]}`, ""), nil, "x[0].value",
			"literal password"},
		{"in an event of another type", []byte(strings.Replace(string(structured(spec(literal), "")), "requested",
			"other", 1)), nil, "", "type is"},
		{"in binary form", []byte(spec(literal)), header("ce-specversion", "1.0", "ce-id", "7", "ce-source", "/a",
			"ce-type", requestedType), "customize.spec.identity.password.value", "literal password"},
		{"in base64", []byte(`{"specversion":"1.0","id":"7","source":"/a","type":"other","data_base64":"` +
			base64.StdEncoding.EncodeToString([]byte(spec(literal))) + `"}`), nil, "", "type is"},
		{"in a message that is cut off", structured(spec(literal), "")[:360], nil, "", "not valid JSON"},
		{"in a field that is there twice", structured(`{"vm":"vm-42","customize":{"spec":{"password":`+literal+
			`,"password":1}}}`, ""), nil, "", "twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := events.DecodeRequest("lab", subject, tt.header, tt.data)
			wantRefusal(t, err, tt.field, tt.text, true)
		})
	}
	if _, err := events.DecodeRequest("lab", subject, nil,
		structured(
			spec(
				`{"_typeName":"CustomizationPassword","value":{"secretRef":"root","key":"password"},"plainText":true}`),
			"")); err != nil {
		t.Errorf("a reference to a secret: %v", err)
	}
}

func TestSchemaExamplesDecode(t *testing.T) {
	t.Parallel()
	b, err := schemas.Source(schemas.Requested)
	if err != nil {
		t.Fatal(err)
	}
	var schema struct{ Examples []json.RawMessage }
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	for i, example := range schema.Examples {
		if _, err := events.DecodeRequest("lab", subject, nil, structured(string(example), "")); err != nil {
			t.Errorf("example %d: %v", i, err)
		}
	}
}

func TestDecodeCancel(t *testing.T) {
	t.Parallel()
	cancel := func(data string) []byte {
		return []byte(strings.Replace(string(structured(data, "")), "requested", "cancel.requested", 1))
	}
	const at = "guestflow.cancels.lab.vm-42"
	got, err := events.DecodeCancel("lab", at, nil,
		cancel(`{"vm":"vm-42","request":{"source":"/p","id":"1"},"reason":"no longer wanted"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &events.Cancel{
		VCenter: "lab", VM: "vm-42", RunID: events.RunID("lab", "vm-42", events.RequestRef{Source: "/p", ID: "1"}),
		Ref: events.RequestRef{Source: "/provisioner", ID: "7"}, Request: events.RequestRef{Source: "/p", ID: "1"},
		Reason: "no longer wanted",
		Attrs:  events.Attributes{CorrelationID: "7", CausationID: "7"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for name, data := range map[string][]byte{
		"no JSON": []byte("x"), "a request": structured(`{"vm":"vm-42"}`, ""),
		"no id":      cancel(`{"vm":"vm-42","request":{"source":"/p"}}`),
		"another VM": cancel(`{"vm":"vm-1","request":{"source":"/p","id":"1"}}`), "no object": cancel(`1`),
	} {
		var reject *events.RejectError
		if _, err := events.DecodeCancel("lab", at, nil, data); !errors.As(err, &reject) {
			t.Errorf("%s: %v, want a *RejectError", name, err)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		or   time.Duration // with a default of a minute
		text string        // of an error
	}{
		{`"90s"`, 90 * time.Second, ""}, {`"1h30m"`, 90 * time.Minute, ""}, {`"0s"`, 0, ""}, {`"0"`, 0, ""},
		{`null`, time.Minute, ""},
		{`"-1s"`, 0, "negative"}, {`"-0s"`, 0, "negative"}, {`"90"`, 0, "not a duration"}, {`""`, 0, "not a duration"},
		{`90`, 0, "a duration is a string"}, {`"9999999999h"`, 0, "not a duration"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			t.Parallel()
			var d events.Duration
			err := json.Unmarshal([]byte(tt.in), &d)
			if tt.text != "" {
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Fatalf("error %v, want %q", err, tt.text)
				}
				return
			}
			if err != nil || d.Or(time.Minute) != tt.or {
				t.Errorf("%s, %v; want %s", d.Or(time.Minute), err, tt.or)
			}
		})
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"90s", "1h30m", "0s", "-1s", "1.5h", "9223372036s", "1ns", "µs"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := events.ParseDuration(s)
		if err != nil {
			return
		}
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var again events.Duration
		if err := json.Unmarshal(b, &again); err != nil || again != d {
			t.Fatalf("%q is %v, written %s, read again %v, %v", s, d, b, again, err)
		}
		if d.Or(-1) < 0 {
			t.Fatalf("%q is negative: %v", s, d.Or(-1))
		}
	})
}

// Whatever comes in: no panic, an error is a refusal, and what is taken is whole and says the same when it is read
// again from its own data.
func FuzzDecodeRequest(f *testing.F) {
	f.Add("Content-Type", "application/cloudevents+json", "", structured(`{"vm":"vm-42"}`, ""))
	f.Add("ce-specversion", "1.0", requestedType, []byte(`{"vm":"vm-42","timeout":null}`))
	f.Add("", "", "", structured(`{"vm":"vm-42",`+creds+
		`,"customize":{"spec":{"identity":{"a":1e400}}},"processes":[{"name":"a","run":{"path":"/a"}}]}`, `,"x":1`))
	f.Add("", "", "", []byte(`{"data":{"a":{"a":1,"a":2}},"specversion":"1.0"`))
	f.Fuzz(func(t *testing.T, name, value, typ string, data []byte) {
		h := map[string][]string{name: {value}}
		if typ != "" {
			for k, v := range map[string]string{"ce-type": typ, "ce-id": "7", "ce-source": "/a"} {
				h[k] = []string{v}
			}
		}
		r, err := events.DecodeRequest("lab", subject, h, data)
		var reject *events.RejectError
		if err != nil && !errors.As(err, &reject) {
			t.Fatalf("error %T %v, want a refusal", err, err)
		}
		if r == nil {
			t.Fatal("no request")
		}
		if err != nil {
			return
		}
		if r.VM != "vm-42" || r.Spec.VM != r.VM || r.Ref.ID == "" || r.Ref.Source == "" || len(r.RunID) != 26 ||
			len(r.Digest) != 64 {
			t.Fatalf("incomplete: %+v", r)
		}
		again, err := events.DecodeRequest("lab", subject, header("ce-specversion", "1.0", "ce-id", "7", "ce-source",
			"/a", "ce-type", requestedType), r.Data)
		if err != nil || again.Digest != r.Digest {
			t.Fatalf("read again: %+v, %v", again, err)
		}
	})
}
