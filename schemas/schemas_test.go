package schemas_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func decode(t *testing.T, s string) any {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// The examples are documentation; they are also complete: each field of a schema is in at least one.
func TestExamples(t *testing.T) {
	t.Parallel()
	for _, name := range []string{schemas.Requested, schemas.CancelRequested, schemas.Run} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := schemas.Source(name)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			doc := raw.(map[string]any)
			if doc["$id"] != schemas.URN(name) {
				t.Errorf("$id is %v, want %s", doc["$id"], schemas.URN(name))
			}
			shown := map[string]bool{}
			for i, example := range doc["examples"].([]any) {
				if p := schemas.Check(name, example); p != nil {
					t.Errorf("example %d: %v", i, p)
				}
				if p := schemas.CheckStrict(name, example); p != nil {
					t.Errorf("example %d, strict: %v", i, p)
				}
				for field := range example.(map[string]any) {
					shown[field] = true
				}
			}
			for field := range doc["properties"].(map[string]any) {
				if !shown[field] {
					t.Errorf("no example shows %s", field)
				}
			}
		})
	}
}

func TestCheckNamesTheField(t *testing.T) {
	t.Parallel()
	const creds = `"guest":{"credentials":{"secretRef":"root"}}`
	tests := []struct {
		name, schema, doc string
		want              []string
	}{
		{"vm alone", schemas.Requested, `{"vm":"vm-1"}`, nil},
		{"no vm", schemas.Requested, `{}`, []string{"vm: is required"}},
		{"not an object", schemas.Requested, `[]`, []string{"must be an object, not an array"}},
		{"unknown fields, all of them", schemas.Requested, `{"vm":"vm-1","verfy":{},"check":{"mod":"skip"}}`,
			[]string{"check.mod: is not a known field: is it mode?", "verfy: is not a known field: is it verify?"}},
		{"unknown field in an array", schemas.Requested,
			`{"vm":"vm-1",` + creds +
				`,"processes":[{"name":"a","run":{"path":"/a"}},{"nam":"b","run":{"path":"/b"}}]}`,
			[]string{"processes[1].nam: is not a known field: is it name?", "processes[1].name: is required"}},
		{"spec is open", schemas.Requested,
			`{"vm":"vm-1",` + creds + `,"customize":{"spec":{"identity":{"x":null},"more":[1]}}}`, nil},
		{"spec is no object", schemas.Requested, `{"vm":"vm-1",` + creds + `,"customize":{"spec":"s"}}`,
			[]string{"customize.spec: must be an object, not a string"}},
		{"spec without identity", schemas.Requested, `{"vm":"vm-1",` + creds + `,"customize":{"spec":{}}}`,
			[]string{"customize.spec.identity: is required"}},
		{"spec whose type is no text", schemas.Requested,
			`{"vm":"vm-1",` + creds + `,"customize":{"spec":{"_typeName":1,"identity":{}}}}`,
			[]string{`customize.spec._typeName: must be a string, not a number`}},
		{"duration", schemas.Requested, `{"vm":"vm-1","timeout":"1 hour"}`,
			[]string{"timeout: must be a duration such as 90s, 20m or 1h30m"}},
		{"duration as a number", schemas.Requested, `{"vm":"vm-1","timeout":90}`,
			[]string{"timeout: must be a string, not a number"}},
		{"enum", schemas.Requested, `{"vm":"vm-1","check":{"mode":"no"}}`,
			[]string{"check.mode: must be one of auto, required, skip"}},
		{"wild card for a VM", schemas.Requested, `{"vm":"*"}`,
			[]string{"vm: must be a managed object ID, such as vm-42"}},
		{"no credentials", schemas.Requested, `{"vm":"vm-1","network":{}}`, []string{"guest: is required"}},
		{"guest without credentials", schemas.Requested,
			`{"vm":"vm-1","guest":{},"processes":[{"name":"a","run":{"path":"/a"}}]}`, []string{
				"guest.credentials: is required"}},
		{"no process needs no credentials", schemas.Requested, `{"vm":"vm-1","processes":[]}`, nil},
		{"33 processes", schemas.Requested, `{"vm":"vm-1",` + creds + `,"processes":[` + strings.Repeat(
			`{"name":"a","run":{"path":"/a"}},`, 32) + `{"name":"a","run":{"path":"/a"}}]}`,
			[]string{"processes: must have at most 32 items, not 33"}},
		{"an environment's value is a string", schemas.Requested,
			`{"vm":"vm-1",` + creds + `,"processes":[{"name":"a","run":{"path":"/a","environment":{"A B":1}}}]}`,
			[]string{`processes[0].run.environment."A B": must be a string or object, not a number`}},
		{"cancel", schemas.CancelRequested, `{"vm":"vm-1","request":{"source":"/a"}}`,
			[]string{"request.id: is required"}},
		{"run is open to what it does not know", schemas.Run,
			`{"vcenter":"lab","status":"rejected","error":{"code":"Expired","message":"m","retryable":false,"new":1},` +
				`"new":1}`, nil},
		{"a rejection is no run", schemas.Run,
			`{"n":1,"vcenter":"lab","status":"rejected","error":{"code":"Expired","message":"m","retryable":false}}`,
			[]string{"n: must not be there"}},
		{"time", schemas.Run, `{"vcenter":"lab","status":"rejected","deadline":"soon","error":{"code":"Expired",` +
			`"message":"m","retryable":false}}`, []string{
			"deadline: must be an RFC 3339 time, such as 2026-01-02T15:04:05Z"}},
		{"no such schema", "nothing", `{}`, []string{`there is no schema "nothing"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, p := range schemas.Check(tt.schema, decode(t, tt.doc)) {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestStrictRefusesUnknownFields(t *testing.T) {
	t.Parallel()
	doc := decode(t, `{"vcenter":"lab","status":"rejected","error":{"code":"Expired","message":"m","retryable":false,`+
		`"new":1},"requested":{"any":1},"new":1}`)
	var got []string
	for _, p := range schemas.CheckStrict(schemas.Run, doc) {
		text, known, _ := strings.Cut(p.String(), ": known here are ")
		if !strings.Contains(known, ", message, ") && !strings.Contains(known, ", run, ") {
			t.Errorf("%s does not say which fields there are", p)
		}
		got = append(got, text)
	}
	if diff := cmp.Diff([]string{"error.new: is not a known field", "new: is not a known field"}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
