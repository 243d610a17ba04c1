package events_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsbinding "github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/guestflow/guestflow/internal/events"
)

// wantRefusal fails the test unless err refuses a request for this field, with this in its message, and withholds its
// data or not, and quotes no secret; where neither is wanted the request must be taken.
func wantRefusal(t *testing.T, err error, field, text string, withhold bool) {
	t.Helper()
	if field == "" && text == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	var reject *events.RejectError
	if !errors.As(err, &reject) {
		t.Fatalf("error %v, want a *RejectError", err)
	}
	if reject.Code != events.InvalidRequest || reject.Field != field || !strings.Contains(reject.Message, text) ||
		reject.Withhold != withhold {
		t.Errorf("refused with %+v, want field %q and %q, withheld %v", reject, field, text, withhold)
	}
	if strings.Contains(reject.Error(), "hunter2") {
		t.Errorf("the refusal quotes the secret: %v", reject)
	}
}

// refusal is why a message is refused.
func refusal(t *testing.T, h map[string][]string, data []byte) *events.RejectError {
	t.Helper()
	_, err := events.DecodeRequest("lab", subject, h, data)
	var reject *events.RejectError
	if !errors.As(err, &reject) {
		t.Fatalf("error %v, want a *RejectError", err)
	}
	if reject.Code != events.InvalidRequest {
		t.Errorf("refused with %s", reject.Code)
	}
	return reject
}

func readCase(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "cases", name))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(b, []byte("vm-29"), []byte("vm-42"))
}

// Attributes that are not written as CloudEvents has them are refused, every one of them in one message, with how each
// is written.
func TestAttributesAreWrittenAsCloudEventsHasThem(t *testing.T) {
	t.Parallel()
	with := func(members string) []byte {
		return []byte(`{"specversion":"1.0","id":"7","source":"/a","type":"` + requestedType +
			`","data":{"vm":"vm-42"},` + members + `}`)
	}
	core := func(members string) []byte { return []byte(`{"data":{"vm":"vm-42"},` + members + `}`) }
	const rest = `"type":"` + requestedType + `"`
	binary := func(more ...string) map[string][]string {
		return header(append([]string{"ce-specversion", "1.0", "ce-id", "7", "ce-source", "/a", "ce-type",
			requestedType}, more...)...)
	}
	tests := []struct {
		name   string
		header map[string][]string
		data   []byte
		want   []string
	}{
		{"a request that expired", nil, readCase(t, "12-expiryTime.json"),
			[]string{`"correlationId" must be written "correlationid"`, `"expiryTime" must be written "expirytime"`}},
		{"snake case", nil, with(`"expiry_time":"2020-01-01T00:00:00Z","auth_id":"me"`),
			[]string{`"expiry_time" must be written "expirytime"`, `"authid"`}},
		{"a core attribute", nil, with(`"dataContentType":"application/json"`), []string{`"datacontenttype"`}},
		{"capitals", nil, with(`"TRACEPARENT":"x"`), []string{`"traceparent"`}},
		{"both forms", nil, with(`"expirytime":"2099-01-01T00:00:00Z","ExpiryTime":"2020-01-01T00:00:00Z"`),
			[]string{`"ExpiryTime" must be written "expirytime"`}},
		{"specVersion", nil, []byte(`{"specVersion":"1.0","id":"7","source":"/a",` + rest + `,"data":{"vm":"vm-42"}}`),
			[]string{`"specVersion" must be written "specversion"`}},
		{"Data", nil, []byte(`{"specversion":"1.0","id":"7","source":"/a",` + rest + `,"Data":{"vm":"vm-42"}}`),
			[]string{`"Data" must be written "data"`}},
		{"data-base64", nil, with(`"data-base64":"e30="`), []string{`"data_base64"`}},
		{"letters of no alphabet that is allowed", nil, with(`"ü":"x","":"y"`),
			[]string{`"ü" is not allowed`, `"" is not allowed`}},
		{"binary, with a dash", binary("ce-expiry-time", "2020-01-01T00:00:00Z"), []byte(`{"vm":"vm-42"}`),
			[]string{`"expiry-time" must be written "expirytime"`}},

		{"specversion as a number", nil, core(`"specversion":1.0,"id":"7","source":"/a",` + rest),
			[]string{`specversion is 1.0`, `write "1.0"`}},
		{"id as a number", nil, core(`"specversion":"1.0","id":7,"source":"/a",` + rest),
			[]string{`id is 7`, `write "7"`}},
		{"source as a boolean", nil, core(`"specversion":"1.0","id":"7","source":true,` + rest),
			[]string{`source is true`, `write "true"`}},
		{"all of them", nil,
			core(
				`"specversion":1,"id":7,"source":1,"type":1,"subject":42,"time":5,"dataschema":1,` +
					`"datacontenttype":false`),
			[]string{"specversion is", "id is", "source is", "type is", "subject is", "time is", "dataschema is",
				"datacontenttype is"}},
		{"id as an object", nil, core(`"specversion":"1.0","id":{},"source":"/a",` + rest),
			[]string{"id is not a string"}},
		{"data_base64 as a number", nil, with(`"data_base64":7`), []string{"data_base64 is no base64", "both there"}},

		{"data alone", nil, []byte(`{"vm":"vm-42","customize":{"spec":{}}}`), []string{"no specversion",
			"Data alone is not enough", "ce- headers"}},
		{"a line of no JSON", nil, []byte("{\n \"id\": 7,\n}"), []string{"line 3"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := refusal(t, tt.header, tt.data).Message
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("refused with %q, want %q", got, want)
				}
			}
		})
	}
	// Extensions may be integers and booleans, which JSON writes without quotes.
	if r, err := events.DecodeRequest("lab", subject, nil,
		with(`"sequence":7,"sampled":true,"correlationid":12`)); err != nil || r.Attrs.CorrelationID != "12" {
		t.Errorf("%+v, %v", r, err)
	}
}

// Times are those of RFC 3339, all of them and no others.
func TestTimestamps(t *testing.T) {
	t.Parallel()
	day := func(hour, minute, second int) time.Time {
		return time.Date(2024, 1, 2, hour, minute, second, 0, time.UTC)
	}
	newYear := time.Date(2017, 1, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2024-01-02T03:04:05Z": day(3, 4, 5), "2024-01-02t03:04:05z": day(3, 4, 5),
		"2024-01-02t03:04:05.500Z":  day(3, 4, 5).Add(time.Second / 2),
		"2024-01-02T03:04:05+01:00": day(2, 4, 5), "2024-01-02T03:04:05-00:00": day(3, 4, 5),
		"2016-12-31T23:59:60Z": newYear, "2016-12-31t23:59:60.25z": newYear, "2016-12-31T15:59:60-08:00": newYear,
		"2017-01-01T00:59:60+01:00": newYear,
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			r, err := events.DecodeRequest("lab", subject, nil, structured(`{"vm":"vm-42"}`, `,"time":"`+text+
				`","expirytime":"`+text+`"`))
			if err != nil || !r.Expires.Equal(want) {
				t.Errorf("expires %s, %v; want %s", r.Expires, err, want)
			}
		})
	}
	for _, text := range []string{"2024-01-02", "2024-01-02 03:04:05Z", "2024-01-02T03:04:05", "2024-01-02T03:04:60Z",
		"2016-12-31T23:59:61Z", "2024-01-02T3:04:05Z",
		"2024-01-02T03:04:05,5Z", "2024-02-30T03:04:05Z", "2024-01-02T24:00:00Z", "1704164645", "today", ""} {
		t.Run("no "+text, func(t *testing.T) {
			t.Parallel()
			for _, name := range []string{"time", "expirytime"} {
				got := refusal(t, nil, structured(`{"vm":"vm-42"}`, `,"`+name+`":"`+text+`"`)).Message
				if !strings.Contains(got, "attribute "+name+` is "`+text+
					`", which is no RFC 3339 time: write it as 2026-01-02T15:04:05Z`) {
					t.Errorf("refused with %q", got)
				}
			}
		})
	}
	// In the data, too.
	r, err := events.DecodeRequest("lab", subject, nil, structured(`{"vm":"vm-42",`+creds+
		`,"processes":[{"name":"a","watch":{"pid":7,"startedAt":"2016-12-31t23:59:60z"}}]}`, ""))
	if err != nil || !r.Spec.Processes[0].Watch.StartedAt.Equal(newYear) {
		t.Errorf("%+v, %v", r.Spec, err)
	}
	if _, err := events.DecodeRequest("lab", subject, nil, readCase(t, "13-lower-case-rfc3339.json")); err != nil {
		t.Error(err)
	}
}

// One event is one run, whichever of the Go SDK's modes its publisher has: the structured one, the binary one as its
// NATS binding writes it (values as they are), and the binary one of the specification (percent-encoded).
func TestOneIdentityInEveryForm(t *testing.T) {
	t.Parallel()
	for _, ref := range []events.RequestRef{
		{Source: "/pipe%20line/7", ID: "d-1"}, {Source: "/a", ID: "50%-1"}, {Source: "/a", ID: "100%"},
		{Source: "/a", ID: "%zz"}, {Source: "/pipe%20line/7", ID: "d%201"},
		{Source: "/%C3%BC", ID: "7"}, {Source: "/a%25b", ID: "7"}, {Source: "/a%22", ID: "x"}, {
			Source: "https://ci.example.com/job?a=b#c", ID: "a b"},
		{Source: "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", ID: "ü"}, {Source: "/a", ID: "plain"},
		{Source: "//[2001:db8::1]/x", ID: `"quoted"`}, {Source: "/a", ID: "%FF"},
	} {
		t.Run(ref.Source+" "+ref.ID, func(t *testing.T) {
			t.Parallel()
			e := event.New()
			e.SetID(ref.ID)
			e.SetSource(ref.Source)
			e.SetType(requestedType)
			e.SetSubject("vm-42")
			e.SetTime(time.Now())
			e.SetExtension("correlationid", ref.ID)
			if err := e.SetData(event.ApplicationJSON, map[string]string{"vm": "vm-42"}); err != nil {
				t.Fatal(err)
			}
			var body bytes.Buffer
			sdk, err := natsbinding.WriteMsg(binding.WithForceBinary(t.Context()), binding.ToMessage(&e), &body)
			if err != nil {
				t.Fatal(err)
			}
			encoded := map[string][]string{}
			for name, values := range sdk {
				encoded[name] = []string{events.PercentEncode(values[0])}
			}
			wants(t, "binary as the SDK writes it", ref, sdk, body.Bytes())
			wants(t, "binary of the specification", ref, encoded, body.Bytes())

			var whole bytes.Buffer
			h, err := natsbinding.WriteMsg(binding.WithForceStructured(context.Background()), binding.ToMessage(&e),
				&whole)
			if err != nil {
				t.Fatal(err)
			}
			wants(t, "structured", ref, h, whole.Bytes())
		})
	}
}

func wants(t *testing.T, form string, ref events.RequestRef, h map[string][]string, data []byte) {
	t.Helper()
	r, err := events.DecodeRequest("lab", subject, h, data)
	if err != nil || r.Ref != ref || r.Attrs.CorrelationID != ref.ID || r.RunID != events.RunID("lab", "vm-42", ref) {
		t.Errorf("%s: %+v of %q, %v", form, r.Ref, h, err)
	}
}

// Where nothing in a message shows that it is not encoded, it is: the specification's reading holds. What shows it
// counts for the whole message.
func TestBinaryValuesAreReadAsOneEncoderWroteThem(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ source, id, wantSource, wantID string }{
		"encoded":                     {"/a%2Fb", "x%20y", "/a/b", "x y"},
		"a broken escape in the id":   {"/a%2Fb", "50%-1", "/a%2Fb", "50%-1"},
		"a source that is none":       {"/a%20b", "x%20y", "/a%20b", "x%20y"},
		"a source that is one before": {"/a%2520b", "x%20y", "/a%20b", "x y"},
		"a source that never was one": {"/a b", "x%20y", "/a b", "x y"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := events.DecodeRequest("lab", subject, header("ce-specversion", "1.0", "ce-type", requestedType,
				"ce-source", tt.source, "ce-id", tt.id), []byte(`{"vm":"vm-42"}`))
			if want := (events.RequestRef{Source: tt.wantSource, ID: tt.wantID}); err != nil || r.Ref != want {
				t.Errorf("%+v, %v; want %+v", r.Ref, err, want)
			}
		})
	}
	h := map[string][]string{}
	head, body, _ := strings.Cut(string(readCase(t, "14-percent-in-binary.txt")), "\n\n")
	for line := range strings.Lines(head) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		h[name] = []string{value}
	}
	r, err := events.DecodeRequest("lab", subject, h, []byte(body))
	if want := (events.RequestRef{Source: "/pipe%20line/7", ID: "d-1"}); err != nil || r.Ref != want {
		t.Errorf("%+v, %v", r.Ref, err)
	}
	_ = refusal(t, header("ce-specversion", "1.0", "ce-type", requestedType, "ce-source", "/a", "ce-id", "a%0Ab"),
		[]byte(`{"vm":"vm-42"}`)) // with a line end in it
}

// Whatever a publisher means, its encoding by the specification is read as it was, where the source is a URI reference.
func FuzzPercentEncoded(f *testing.F) {
	f.Add("/pipe%20line/7", "50%-1")
	f.Add("/a", "ü ")
	f.Fuzz(func(t *testing.T, source, id string) {
		doc, err := json.Marshal(map[string]any{"specversion": "1.0", "type": requestedType, "source": source, "id": id,
			"data": map[string]string{"vm": "vm-42"}})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := events.DecodeRequest("lab", subject, nil, doc)
		if err != nil || !events.IsURIReference(whole.Ref.Source) {
			return
		}
		h := header("ce-specversion", "1.0", "ce-type", requestedType, "ce-source",
			events.PercentEncode(whole.Ref.Source), "ce-id", events.PercentEncode(whole.Ref.ID))
		r, err := events.DecodeRequest("lab", subject, h, []byte(`{"vm":"vm-42"}`))
		if err != nil || r.Ref != whole.Ref {
			t.Errorf("%+v, %v; want %+v", r.Ref, err, whole.Ref)
		}
		if _, err := url.PathUnescape(h["ce-id"][0]); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	})
}
