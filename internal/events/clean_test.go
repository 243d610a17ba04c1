package events

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// hostile is what a broken or hostile vCenter, guest or publisher may write into any text.
const hostile = "a\x00b\x1b[2Jc\x07\r\nd\u009b1mé\u202egnp\u2066\u200f\x7f\xffz"

func TestClean(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain ü 日本 🙂": "plain ü 日本 🙂", "a\tb\r\nc": "a b  c", "\x1b[31mred": " [31mred", "a\u0085b\u009bc": "a b c",
		"\u202eevil\u202c \u2066x\u2069\u200e\u061c": "evil x",
		"\xff\xfea": "\ufffda", "a\u2028b\u2029c": "a b c", "": "",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q is cleaned to %q, want %q", in, got, want)
		}
	}
	if got := CleanLines("a\nb\x1b\u202ec\r\n"); got != "a\nb c \n" {
		t.Errorf("%q", got)
	}
}

// fill sets every text in v to s, but those of names; a list gets an item.
func fill(v reflect.Value, s string, but func(path string) bool, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		if strings.HasSuffix(path, strings.Repeat(".Cause", 6)) { // a cause has causes
			return
		}
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		fill(v.Elem(), s, but, path)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), s, but, path+"."+v.Type().Field(i).Name)
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			if !but(path) {
				v.SetBytes([]byte(`{"t":["` + strings.NewReplacer("\x00", `\u0000`, "\x1b", `\u001b`, "\x07", `\u0007`,
					"\r", `\r`, "\n", `\n`).Replace(s) + `",null],"n":null}`))
			}
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), s, but, path)
	case reflect.String:
		if !but(path) {
			v.SetString(s)
		}
	}
}

// Whatever others write into a text of an event, its readers see no control characters, no change of direction, no
// broken UTF-8 and no null, and guestflow can read its own event again. The texts are found by reflection: a new one
// that is not cleaned fails here.
func TestWhatOthersWroteIsClean(t *testing.T) {
	t.Parallel()
	ours := map[string]bool{"Run.ID": true, "Run.VCenter": true, "Run.VM": true, "Run.Requested": true,
		"Run.Checkpoint": true, "Run.Owner.Instance": true, "Run.Waiting": true, "Run.Error.Waiting": true,
		"Run.Error.Code": true, "Run.Error.Step": true, "Run.Error.Process": true, "Run.Customize.DecidedBy": true,
		// Identities: cleaned, they would be others. CloudEvents allows no control characters in them, and the
		// request's schema none in the names of processes.
		"Run.Request.Source": true, "Run.Request.ID": true, "Run.CanceledBy.Source": true, "Run.CanceledBy.ID": true,
		"Run.Processes.Name": true, "Run.Process": true}
	r := &Run{}
	fill(reflect.ValueOf(r).Elem(), hostile, func(path string) bool {
		return ours[path] || strings.HasSuffix(path, ".State") || path == "Run.Status"
	}, "Run")
	good := wholeRun()
	r.ID, r.N, r.VCenter, r.VM, r.Status, r.Owner.Instance = good.ID, 7, "lab", "vm-42", StatusFailed, "pod-a"
	r.Request, r.Requested, r.Checkpoint = good.Request, json.RawMessage(
		`{"vm":"vm-42","timeout":null,"customize":{"spec":{"a":null,"b":[null,1]}}}`), good.Checkpoint
	for _, mode := range []string{Structured, Binary} {
		h, data, err := EncodeEvent(time.Now(), RunFailed, Attributes{CorrelationID: "1", CausationID: "1"}, r, mode)
		if err != nil {
			t.Fatal(err)
		}
		e := decoded(t, h, data)
		each(t, "", dataOf(t, h, data))
		if got := e.Run.Error.Message; got != Clean(hostile) {
			t.Errorf("the message is %q", got)
		}
		if got, want := string(e.Run.Requested), `{"vm":"vm-42","customize":{"spec":{"b":[1]}}}`; got != want {
			t.Errorf("requested is %s, want %s", got, want)
		}
	}
}

func each(t *testing.T, at string, v any) {
	switch v := v.(type) {
	case nil:
		t.Errorf("%s is null", at)
	case string:
		if v != Clean(v) || !utf8.ValidString(v) {
			t.Errorf("%s: %q", at, v)
		}
	case []any:
		for i, item := range v {
			each(t, fmt.Sprintf("%s[%d]", at, i), item)
		}
	case map[string]any:
		for name, item := range v {
			each(t, at+"."+name, Clean(name))
			each(t, at+"."+name, item)
		}
	}
}

// A rejection tells its publisher's own words back, to whoever reads rejections.
func TestRejectionsAreClean(t *testing.T) {
	t.Parallel()
	why := &RejectError{Code: InvalidRequest, Field: hostile, Message: hostile}
	h, data, err := EncodeRejection(Rejection{VCenter: "lab", VM: "vm-42", Seq: 7}, why, time.Now(), Structured)
	if err != nil {
		t.Fatal(err)
	}
	each(t, "", dataOf(t, h, data))
}

// JSON of vCenter is cut, not left out, and stays JSON that guestflow reads again: whatever its form.
func TestJSONIsCut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", 4<<10)
	nested := func(n int) string { return strings.Repeat(`{"a":[`, n) + strings.Repeat("]}", n) }
	many := func(item string, n int) string {
		return strings.Join(slices.Collect(func(yield func(string) bool) {
			for i := range n {
				if !yield(strings.ReplaceAll(item, "#", fmt.Sprint(i))) {
					return
				}
			}
		}), ",")
	}
	tests := []struct{ name, in, want string }{ // want: how it begins; "" where nothing is left
		{"short", `{"b":1.50,"a":"x"}`, `{"b":1.50,"a":"x"}`}, // the order and numbers as they were
		{"a long text", `{"reason":"FILE_NOT_FOUND","path":"` + long + `","pid":7}`,
			`{"reason":"FILE_NOT_FOUND","path":"üü`},
		{"a text", `"` + long + `"`, `"üü`},
		{"many members", `{` + many(`"m#":#`, 5000) + `}`, `{"m0":0,"m1":1,`},
		{"many items", `{"list":[` + many(`"item #"`, 5000) + `]}`, `{"list":["item 0","item 1",`},
		{"many long items", `[` + many(`{"id":"#","text":"`+long+`"}`, 50) + `]`, `[{"id":"0","text":"ü`},
		{"a long name", `{"` + long + `":1}`, `{"üü`},
		{"deep", nested(500), `{"a":[{"a":[{"a":`},
		{"deep and long", `{"text":"` + long + `","deep":` + nested(500) + `}`, `{"text":"üü`},
		{"nulls", `{"a":null,"b":[null,{"c":null}]}`, `{"b":[{}]}`},
		{"null", `null`, ""},
		{"nothing", ``, ""},
		{"a name twice", `{"a":{"b":1,"b":2},"a":3}`, `{"a":{"b":1}}`},
		{"names that are one when clean", `{"a\u0000":1,"a ":2}`, `{"a ":1}`},
		{"no JSON", `<html>`, `"<html>"`},
		{"control characters", `{"k\u001b":"v\u202e\n"}`, `{"k ":"v "}`},
		{"broken UTF-8", "{\"a\":\"\xff\",\"b\":\"\\ud800\"}", `{"a":"�","b":"�"}`},
	}
	for _, tt := range tests {
		for _, l := range limitsOf {
			got, wasCut := shortJSON(json.RawMessage(tt.in), l.message)
			if l.message == maxMessage && (!strings.HasPrefix(string(got), tt.want) ||
				(tt.want == "") != (got == nil)) {
				t.Errorf("%s is cut to %.60s, want %q", tt.name, got, tt.want)
			}
			if l.message == maxMessage && wasCut != (len(tt.in) > maxMessage) {
				t.Errorf("%s: cut %v", tt.name, wasCut)
			}
			if len(got) > l.message {
				t.Errorf("%s has %d bytes", tt.name, len(got))
			}
			if got == nil {
				continue
			}
			if _, err := strictJSON(got); err != nil {
				t.Errorf("%s cannot be read again: %v: %s", tt.name, err, got)
			}
			if len(tt.in) > maxMessage && l.message == maxMessage && !strings.HasPrefix(tt.name, "deep") &&
				len(got) < maxMessage/16 {
				t.Errorf("%s: %d bytes are left of %d", tt.name, len(got), len(tt.in))
			}
		}
	}
	r := wholeRun()
	r.Truncated = false
	for range 6 {
		r.Error.VSphere = &VSphere{Name: "Outer", Cause: r.Error.VSphere}
	}
	h, data, err := EncodeEvent(time.Now(), RunFailed, Attributes{CorrelationID: "1", CausationID: "1"}, r, Structured)
	if err != nil {
		t.Fatal(err)
	}
	e := decoded(t, h, data)
	causes := 0
	for v := e.Run.Error.VSphere; v != nil; v = v.Cause {
		causes++
	}
	if causes != maxCauses+1 || !e.Run.Truncated {
		t.Errorf("%d causes, truncated %v", causes, e.Run.Truncated)
	}
}

// A request that guestflow takes makes events that guestflow reads: what cannot be told again is refused.
func TestWhatIsTakenCanBeTold(t *testing.T) {
	t.Parallel()
	const linux = `"identity":{"_typeName":"CustomizationLinuxPrep","domain":"example.test",` +
		`"hostName":{"_typeName":"CustomizationFixedName","name":"web-1"}},"globalIPSettings":{},"nicSettingMap":[]`
	nested := func(n int) string {
		return `{"vm":"vm-42","guest":{"credentials":{"secretRef":"a"}},"customize":{"spec":{` + linux + `,"a":` +
			strings.Repeat("[", n) + strings.Repeat("]", n) + `}}}`
	}
	encoded := func(data string) string {
		return `{"specversion":"1.0","id":"7","source":"/a","type":"` + Type(KindRequested) + `","data_base64":"` +
			base64.StdEncoding.EncodeToString([]byte(data)) + `"}`
	}
	for name, message := range map[string]string{
		"deep": encoded(nested(9_996)), "deeper than most": encoded(nested(200)), "not so deep": encoded(nested(20)),
		"no UTF-8 in base64": encoded(
			"{\"vm\":\"vm-42\",\"guest\":{\"credentials\":{\"secretRef\":\"a\"}},\"customize\":{\"spec\":{" + linux +
				",\"a\":\"\xff\"}}}"),
		"a name with a line": encoded(
			`{"vm":"vm-42","guest":{"credentials":{"secretRef":"a"}},` +
				`"processes":[{"name":"a\nb","run":{"path":"/a"}}]}`),
		"a name that turns": encoded(
			`{"vm":"vm-42","guest":{"credentials":{"secretRef":"a"}},"processes":[{"name":"a\u202eb",` +
				`"run":{"path":"/a"}}]}`),
	} {
		req, err := DecodeRequest("lab", RequestSubject("lab", "vm-42"), nil, []byte(message))
		var reject *RejectError
		if err != nil {
			if !errors.As(err, &reject) || reject.Code != InvalidRequest || name == "not so deep" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		run := &Run{ID: req.RunID, N: 1, VCenter: "lab", VM: "vm-42", Request: &req.Ref, Status: StatusRunning,
			Requested: req.Data}
		for _, p := range req.Spec.Processes {
			run.Processes = append(run.Processes, Process{Name: p.Name, State: Pending})
		}
		h, data, err := EncodeEvent(time.Now(), RunAccepted, req.Attrs, run, Structured)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e, err := DecodeEvent(h, data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, p := range e.Run.Processes {
			if p.Name != req.Spec.Processes[i].Name {
				t.Errorf("%s: process %q is told as %q", name, req.Spec.Processes[i].Name, p.Name)
			}
			if p.Name != Clean(p.Name) {
				t.Errorf("%s: process %q is not fit to be shown", name, p.Name)
			}
		}
	}
}

// A guest's clock may show what no time in JSON can: the event is written without it.
func TestTimesThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	r, late := wholeRun(), time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	r.Processes[0].StartedAt, r.Processes[0].FinishedAt, r.Customize.Guest.StartTime, r.Observed.Guest.EndTime = &late,
		&late, &late, &late
	h, data, err := EncodeEvent(time.Now(), RunFailed, Attributes{CorrelationID: "1", CausationID: "1"}, r, Structured)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := DecodeEvent(h, data); err != nil || e.Run.Processes[0].StartedAt != nil {
		t.Errorf("%+v, %v", e, err)
	}
}
