package events_test

import (
	"testing"

	"github.com/guestflow/guestflow/internal/events"
)

// What a request has exactly one of is named, where both are there and where none is.
func TestExactlyOneOf(t *testing.T) {
	t.Parallel()
	const spec, name, run, watch = `"spec":{"identity":{"_typeName":"New"}}`, `"specName":"linux"`,
		`"run":{"path":"/a"}`, `"watch":{"pid":1}`
	for _, tt := range []struct{ name, data, field, text string }{
		{"both specs", `"customize":{` + spec + `,` + name + `}`, "customize", "specName"},
		{"neither spec", `"customize":{"timeout":"5m"}`, "customize", "specName"},
		{"a null spec", `"customize":{"spec":null}`, "customize", "specName"},
		{"the spec", `"customize":{` + spec + `}`, "", ""},
		{"the spec's name", `"customize":{` + name + `,"spec":null}`, "", ""},
		{"run and watch", `"processes":[{"name":"a",` + run + `,` + watch + `}]`, "processes[0]", "watch"},
		{"neither run nor watch", `"processes":[{"name":"a"}]`, "processes[0]", "watch"},
		{"run", `"processes":[{"name":"a",` + run + `}]`, "", ""},
		{"watch", `"processes":[{"name":"a",` + watch + `}]`, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := events.DecodeRequest("lab", subject, nil, structured(`{"vm":"vm-42",`+creds+`,`+tt.data+`}`, ""))
			wantRefusal(t, err, tt.field, tt.text, false)
		})
	}
}
