package events

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/guestflow/guestflow/schemas"
)

// wholeRun has every field of a run: it is the one that the golden events show.
func wholeRun() *Run {
	b, err := os.ReadFile("stream/testdata/golden/run-failed-structured.json")
	if err != nil {
		panic(err)
	}
	var message struct {
		Header map[string][]string
		Data   json.RawMessage
	}
	if err := json.Unmarshal(b, &message); err != nil {
		panic(err)
	}
	e, err := DecodeEvent(message.Header, message.Data)
	if err != nil {
		panic(err)
	}
	return &e.Run
}

// decoded is an event as it is read.
func decoded(t *testing.T, h map[string][]string, data []byte) *Event {
	t.Helper()
	e, err := DecodeEvent(h, data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// dataOf is an event's data as JSON.
func dataOf(t *testing.T, h map[string][]string, data []byte) any {
	t.Helper()
	env, err := decodeEnvelope(h, data)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(env.data))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// Only an event that is too large is cut, the caller's run stays whole, and run.accepted is as large as its request
// makes it.
func TestLargeEventsAreCut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", 4<<10) // 8 KiB
	big := func() *Run {
		r := wholeRun()
		r.Truncated = false
		r.Processes = slices.Repeat(r.Processes, 12)
		for i := range r.Processes {
			r.Processes[i].Command, r.Processes[i].Reason = long[:3<<10], ""
		}
		r.Check.Warnings[0].Message, r.Check.Blockers[0].Message = long, long
		r.Customize.Reason, r.Customize.Guest.Error, r.Network.Reason = long, long, long
		r.Verify.Mismatches, r.Observed.GuestLog = []string{long}, []string{long}
		r.Error.Message = long
		r.Error.VSphere.LocalizedMessage, r.Error.VSphere.Data = long, json.RawMessage(`"`+long+`"`)
		r.Error.VSphere.Messages = append(r.Error.VSphere.Messages, json.RawMessage(`"`+long+`"`))
		return r
	}
	read := func(k Kind, r *Run) (int, Run) {
		t.Helper()
		h, data, err := EncodeEvent(time.Now(), k, Attributes{}, r, Structured)
		if err != nil {
			t.Fatal(err)
		}
		if problems := schemas.CheckStrict(schemas.Run, dataOf(t, h, data)); problems != nil {
			t.Error(problems)
		}
		return len(data), decoded(t, h, data).Run
	}
	given := big()
	size, got := read(RunFailed, given)
	if size > MaxEvent || !got.Truncated {
		t.Errorf("the event has %d bytes, truncated %v", size, got.Truncated)
	}
	if n := len(got.Processes[11].Command); n > maxCommand || n < maxCommand-4 {
		t.Errorf("command line of %d bytes", n)
	}
	if n := len(got.Error.Message); n > maxMessage || n < maxMessage-4 {
		t.Errorf("message of %d bytes", n)
	}
	for i, raw := range []json.RawMessage{got.Error.VSphere.Messages[1], got.Error.VSphere.Data} {
		var text string
		if err := json.Unmarshal(raw, &text); err != nil || len(raw) > maxMessage || len(raw) < maxMessage/2 ||
			!strings.HasPrefix(long, strings.TrimSuffix(text, "…")) {
			t.Errorf("vSphere's own %d: %.40s of %d bytes, %v", i, raw, len(raw), err)
		}
	}
	if diff := cmp.Diff(big(), given); diff != "" {
		t.Errorf("the caller's run was changed: %s", diff)
	}
	accepted := big()
	accepted.Requested = json.RawMessage(`{"vm":"vm-42","source":"` + strings.Repeat("x", 100<<10) + `"}`)
	if _, got := read(RunAccepted, accepted); !bytes.Equal(got.Requested, accepted.Requested) {
		t.Errorf("run.accepted holds %d bytes of the request's %d", len(got.Requested), len(accepted.Requested))
	}
	if _, got := read(RunFailed,
		func() *Run {
			r := wholeRun()
			r.Truncated = false
			r.Error.Message = long[:maxMessage]
			return r
		}()); got.Truncated {
		t.Error("an event was cut whose words are short enough")
	}
	if _, got := read(RunFailed,
		func() *Run { r := wholeRun(); r.Truncated = false; r.Error.Message = long; return r }()); !got.Truncated {
		t.Error("a long message was not cut")
	}
	many := wholeRun() // of everything that others decide the number of
	many.Processes = slices.Repeat(many.Processes, 32)
	for i := range many.Processes {
		many.Processes[i].Command, many.Processes[i].Reason = long, long
	}
	many.Check.Blockers, many.Check.Warnings = slices.Repeat(many.Check.Blockers, 1000),
		slices.Repeat(many.Check.Warnings, 1000)
	many.Check.Blockers[0].Field, many.Verify.HostName, many.Processes[0].Owner = strings.Repeat(long, 10),
		strings.Repeat(long, 10), strings.Repeat(long, 10)
	many.Verify.Mismatches, many.Verify.NICs = slices.Repeat([]string{long}, 1000),
		slices.Repeat(many.Verify.NICs, 1000)
	many.Verify.NotCompared, many.Verify.Gateways = slices.Repeat([]NotCompared{{Field: long, Reason: long}},
		1000), slices.Repeat([]string{long}, 1000)
	many.Verify.NICs[0].IPConfig = slices.Repeat([]IPAddress{{IPAddress: long, State: long}}, 1000)
	many.Observed.GuestLog, many.Observed.NICs = slices.Repeat([]string{long}, 1000),
		slices.Repeat(many.Verify.NICs, 1000)
	many.Error.VSphere.Messages = slices.Repeat([]json.RawMessage{json.RawMessage(`"` + long[:2000] + `"`)}, 1000)
	if size, got := read(RunFailed, many); size > MaxEvent || !got.Truncated {
		t.Errorf("the event has %d bytes, truncated %v", size, got.Truncated)
	}
}

func TestPercentEncode(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"plain-~!": "plain-~!", "a b": "a%20b", `"%"`: "%22%25%22",
		"ü€\n": "%C3%BC%E2%82%AC%0A"} {
		if got := percentEncode(in); got != want {
			t.Errorf("%q is encoded as %q, want %q", in, got, want)
		}
	}
}

// Kinds and types are each other's reverse, and every kind of an event out fits into a subject as two tokens.
func TestSubjectsAndTypes(t *testing.T) {
	t.Parallel()
	if got := KindOf(Type(RunAccepted)); got != RunAccepted {
		t.Errorf("kind %q", got)
	}
	for _, typ := range []string{"", "io.guestflow.customization.x", "com.example.run.accepted.v1"} {
		if got := KindOf(typ); got != "" {
			t.Errorf("type %q is of kind %q", typ, got)
		}
	}
	got := map[string]string{
		"request": RequestSubject("lab", "vm-1"), "cancel": CancelSubject("lab", "vm-1"),
		"event":   EventSubject("lab", "vm-1", RunAccepted),
		"history": History("lab", "vm-1"), "rejection": RejectionSubject("lab", ""),
		"deadletter": DeadletterSubject("lab", ""),
	}
	want := map[string]string{
		"request": "guestflow.requests.lab.vm-1", "cancel": "guestflow.cancels.lab.vm-1",
		"event":   "guestflow.events.lab.vm-1.run.accepted",
		"history": "guestflow.events.lab.vm-1.>", "rejection": "guestflow.rejections.lab._",
		"deadletter": "guestflow.deadletters.lab._",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for name, want := range map[string]bool{"lab": true, "l": true, "a-b": true, "-a": false, "a-": false, "Lab": false,
		"a.b": false, "": false, strings.Repeat("a", 33): false} {
		if ValidVCenter(name) != want {
			t.Errorf("vCenter name %q: %v", name, !want)
		}
	}
	for name, want := range map[string]bool{"vm-42": true, "VM_1": true, "*": false, ">": false, "a.b": false,
		"": false, "_": false, strings.Repeat("v", 81): false} {
		if ValidVM(name) != want {
			t.Errorf("VM %q: %v", name, !want)
		}
	}
}
