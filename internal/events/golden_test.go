package events

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/guestflow/guestflow/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func ptr[T any](v T) *T { return &v }

// wholeRun has every field of a run.
func wholeRun() *Run {
	at := func(minute int) *time.Time { return ptr(time.Date(2026, 1, 2, 3, minute, 5, 250_000_000, time.UTC)) }
	nics := []NIC{{MAC: "00:50:56:aa:bb:cc", Connected: true, Addresses: []string{"192.0.2.10"},
		IPConfig: []IPAddress{{IPAddress: "192.0.2.10", PrefixLength: 24, State: "preferred"}}}}
	guest := &Guest{Status: "FAILED", Error: "<no & nothing>", StartTime: at(1), EndTime: at(2)}
	return &Run{
		Run: RunID("lab", "vm-42", RequestRef{Source: "/provisioner", ID: "7f3c"}), N: 12, Process: "join-domain", VCenter: "lab", VM: "vm-42",
		VMName: "web-1", InstanceUUID: "503a2f0e-3e1f-4c0a-9d1e-0c1d2e3f4a5b", Request: &RequestRef{Source: "/provisioner", ID: "7f3c"},
		Status: StatusFailed, Owner: &Owner{Instance: "pod-a", Takeovers: 1}, AcceptedAt: at(0), Deadline: at(59), FinishedAt: at(9),
		Waiting: WaitingTools, WaitingFor: &WaitReason{Message: "no tools", VSphere: &VSphere{Name: "SERVICE_UNAVAILABLE", HTTPStatus: 503}},
		CanceledBy: &CanceledBy{Source: "/provisioner", ID: "7f3d", Reason: "no longer wanted"},
		Check: &Check{
			State: Succeeded, Status: "SUPPORTED", SupportedGuestOS: ptr(true), SupportedPowerState: ptr(false),
			Blockers:  []Remark{{Code: "PowerState", Message: "the VM is powered off"}},
			Warnings:  []Remark{{Code: "Unsupported", Message: "script text is dropped", Field: "customize.spec.identity.scriptText"}},
			StartedAt: at(0), FinishedAt: at(1),
		},
		Customize: &Customize{State: Failed, Task: "task-7", Progress: ptr(0), DecidedBy: "task", StartedAt: at(1), FinishedAt: at(2), Guest: guest, Reason: "r",
			NotRead: &WaitReason{Message: "m", VSphere: &VSphere{Name: "ERROR", HTTPStatus: 500}}},
		Network: &Network{State: Skipped, Task: "task-8", StartedAt: at(3), FinishedAt: at(4), Reason: "r"},
		Verify: &Verify{State: Failed, HostName: "web-1", NICs: nics, Gateways: []string{"192.0.2.1"}, DNS: []string{"192.0.2.2"},
			Mismatches:  []string{"hostName: web-2, not web-1"},
			NotCompared: []NotCompared{{Field: "customize.spec.nicSettingMap[0].adapter.gateway[0]", Reason: "the guest shows no routes"}},
			StartedAt:   at(4), FinishedAt: at(5)},
		Processes: []Process{{
			Name: "join-domain", State: Failed, PID: 4711, Owner: "root", ProcessName: "realm", Command: "/usr/sbin/realm join \"example.com\"",
			ExitCode: ptr(int64(0)), StartedAt: at(5), FinishedAt: at(6), Reason: "r",
		}},
		Observed: &Observed{
			At: *at(8), PowerState: "poweredOn", ToolsRunningStatus: "guestToolsRunning", ToolsVersion: "12389", HostName: "web-1", NICs: nics,
			Guest: guest, GuestLog: []string{"line"},
		},
		Error: &Error{
			Step: "process", Process: "join-domain", Code: ExitCode, Message: "exit code 1", Field: "processes[0]", Retryable: true, Waiting: WaitingTools,
			VSphere: &VSphere{
				Name: "InvalidGuestLogin", HTTPStatus: 500, Messages: []json.RawMessage{json.RawMessage(`{"id":"m"}`)}, LocalizedMessage: "m",
				Data: json.RawMessage(`{"a":1}`), Challenge: "c", Cause: &VSphere{Name: "GuestOperationsFault", LocalizedMessage: "c"},
			},
		},
		Requested: json.RawMessage(`{"vm":"vm-42"}`), Checkpoint: json.RawMessage(`{"version":1}`), Truncated: true,
	}
}

var goldenAttrs = Attributes{
	CorrelationID: "order 7/ü", CausationID: "7f3c", TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceState: "a=b",
	AuthType: "user", AuthID: "me@example.com",
}

// The golden files are what subscribers see, headers and all.
func TestGolden(t *testing.T) {
	t.Parallel()
	small := &Run{
		Run: RunID("lab", "vm-42", RequestRef{Source: "/p", ID: "1"}), N: 1, VCenter: "lab", VM: "vm-42", Request: &RequestRef{Source: "/p", ID: "1"},
		Status: StatusRunning,
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.FixedZone("", 3600))
	event := func(k Kind, mode string, attrs Attributes, run *Run) func() (*nats.Msg, error) {
		return func() (*nats.Msg, error) {
			j := NewStoreJournal(nil, mode, zerolog.Nop())
			m, err := j.message(at, 6, "owner.7", k, attrs, run)
			return &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}, err
		}
	}
	refused := Refused{
		VCenter: "lab", VM: "vm-42", Ref: RequestRef{Source: "/p", ID: "1"}, Attrs: Attributes{CorrelationID: "1", CausationID: "1"}, Seq: 99, At: at,
		Subject: RequestSubject("lab", "vm-42"), Data: []byte(`{"secret":"x"}`),
		Header: nats.Header{"Nats-Msg-Id": {"1"}, "nats-x": {"2"}, "Guestflow-Code": {"Old"}, "ce-id": {"1"}, "X-Many": {"a", "b"}},
	}
	why := &RejectError{Code: InvalidRequest, Field: "customize.sepc", Message: "is not a known field"}
	secret := &RejectError{Code: InvalidRequest, Field: "customize.spec.identity.password.value", Message: "holds a\nliteral password", Withhold: true}
	rejected := func(m Refused, mode string) func() (*nats.Msg, error) {
		return func() (*nats.Msg, error) { return rejection(m, why, mode, at) }
	}
	nameless := Refused{VCenter: "lab", Seq: 100, At: at, Subject: "guestflow.requests.lab.*"}
	tests := []struct {
		name string
		make func() (*nats.Msg, error)
	}{
		{"run-failed-structured", event(RunFailed, Structured, goldenAttrs, wholeRun())},
		{"run-failed-binary", event(RunFailed, Binary, goldenAttrs, wholeRun())},
		{"run-accepted", event(RunAccepted, Structured, Attributes{CorrelationID: "1", CausationID: "1"}, small)},
		{"rejected-structured", rejected(refused, Structured)},
		{"rejected-binary", rejected(refused, Binary)},
		{"rejected-nameless", rejected(nameless, Structured)},
		{"deadletter", func() (*nats.Msg, error) { return deadLetter(refused, why), nil }},
		{"deadletter-secret", func() (*nats.Msg, error) { return deadLetter(refused, secret), nil }},
		{"deadletter-nameless", func() (*nats.Msg, error) { return deadLetter(nameless, why), nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, err := tt.make()
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(tt.name, "r") {
				checkStrict(t, m)
			}
			got := printed(t, m)
			file := filepath.Join("testdata", "golden", tt.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("-want +got (run with -update where it is meant)\n%s", diff)
			}
		})
	}
}

// printed is a message as a golden file has it.
func printed(t *testing.T, m *nats.Msg) []byte {
	t.Helper()
	out := map[string]any{"subject": m.Subject, "header": m.Header, "data": string(m.Data)}
	if json.Valid(m.Data) {
		out["data"] = json.RawMessage(m.Data)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(out); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func checkStrict(t *testing.T, m *nats.Msg) {
	t.Helper()
	env, err := decodeEnvelope(m.Header, m.Data)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(env.data))
	if err != nil {
		t.Fatal(err)
	}
	if problems := schemas.CheckStrict(schemas.Run, doc); problems != nil {
		t.Error(problems)
	}
}

// What is written is what is read, in both forms.
func TestEventsAreReadAsWritten(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{Structured, Binary} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			m, err := NewStoreJournal(nil, mode, zerolog.Nop()).message(time.Now(), 6, "owner.7", RunFailed, goldenAttrs, wholeRun())
			if err != nil {
				t.Fatal(err)
			}
			e, err := readEntry(&Stored{Subject: m.Subject, Seq: 7, Header: m.Header, Data: m.Data})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&Entry{Seq: 7, MsgID: "owner.7", Kind: RunFailed, Attrs: goldenAttrs, Run: *wholeRun()}, e); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
	for name, s := range map[string]*Stored{
		"no event": {Data: []byte("x")}, "no run": {Header: nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"1"}, "ce-source": {"/"}, "ce-type": {"t"}}, Data: []byte("[]")},
	} {
		if e, err := readEntry(s); err == nil {
			t.Errorf("%s: read as %+v", name, e)
		}
	}
}

// Only an event that is too large is cut, the caller's run stays whole, and run.accepted is as large as its request makes it.
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
	j := NewStoreJournal(nil, Structured, zerolog.Nop())
	read := func(k Kind, r *Run) (int, Run) {
		t.Helper()
		m, err := j.message(time.Now(), 0, "id", k, Attributes{}, r)
		if err != nil {
			t.Fatal(err)
		}
		checkStrict(t, &nats.Msg{Header: m.Header, Data: m.Data})
		e, err := readEntry(&Stored{Header: m.Header, Data: m.Data})
		if err != nil {
			t.Fatal(err)
		}
		return len(m.Data), e.Run
	}
	given := big()
	size, got := read(RunFailed, given)
	if size > maxEvent || !got.Truncated {
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
		if err := json.Unmarshal(raw, &text); err != nil || len(raw) > maxMessage || len(raw) < maxMessage/2 || !strings.HasPrefix(long, strings.TrimSuffix(text, "…")) {
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
	if _, got := read(RunFailed, func() *Run { r := wholeRun(); r.Truncated = false; r.Error.Message = long[:maxMessage]; return r }()); got.Truncated {
		t.Error("an event was cut whose words are short enough")
	}
	if _, got := read(RunFailed, func() *Run { r := wholeRun(); r.Truncated = false; r.Error.Message = long; return r }()); !got.Truncated {
		t.Error("a long message was not cut")
	}
	many := wholeRun() // of everything that others decide the number of
	many.Processes = slices.Repeat(many.Processes, 32)
	for i := range many.Processes {
		many.Processes[i].Command, many.Processes[i].Reason = long, long
	}
	many.Check.Blockers, many.Check.Warnings = slices.Repeat(many.Check.Blockers, 1000), slices.Repeat(many.Check.Warnings, 1000)
	many.Check.Blockers[0].Field, many.Verify.HostName, many.Processes[0].Owner = strings.Repeat(long, 10), strings.Repeat(long, 10), strings.Repeat(long, 10)
	many.Verify.Mismatches, many.Verify.NICs = slices.Repeat([]string{long}, 1000), slices.Repeat(many.Verify.NICs, 1000)
	many.Verify.NotCompared, many.Verify.Gateways = slices.Repeat([]NotCompared{{Field: long, Reason: long}}, 1000), slices.Repeat([]string{long}, 1000)
	many.Verify.NICs[0].IPConfig = slices.Repeat([]IPAddress{{IPAddress: long, State: long}}, 1000)
	many.Observed.GuestLog, many.Observed.NICs = slices.Repeat([]string{long}, 1000), slices.Repeat(many.Verify.NICs, 1000)
	many.Error.VSphere.Messages = slices.Repeat([]json.RawMessage{json.RawMessage(`"` + long[:2000] + `"`)}, 1000)
	if size, got := read(RunFailed, many); size > maxEvent || !got.Truncated {
		t.Errorf("the event has %d bytes, truncated %v", size, got.Truncated)
	}
}

func TestPercentEncode(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"plain-~!": "plain-~!", "a b": "a%20b", `"%"`: "%22%25%22", "ü€\n": "%C3%BC%E2%82%AC%0A"} {
		if got := percentEncode(in); got != want {
			t.Errorf("%q is encoded as %q, want %q", in, got, want)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern, filter string
		want            bool
	}{
		{"a.>", "a.b.>", true}, {"a.b.>", "a.b.>", true}, {">", "a.b", true}, {"a.*.>", "a.b.>", true}, {"a.*", "a.*", true}, {"a.*", "a.b", true},
		{"a.b", "a.*", false}, {"a.*", "a.>", false}, {"a.>", "a", false}, {"a.b.c", "a.b", false}, {"a.b", "a.b.c", false}, {"b.>", "a.b", false},
	}
	for _, tt := range tests {
		if got := covers(tt.pattern, tt.filter); got != tt.want {
			t.Errorf("%s covers %s: %v", tt.pattern, tt.filter, got)
		}
	}
}

func TestNewEnough(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"2.10.29": false, "2.11.0": true, "2.11.0-RC.1": true, "v2.15.2": true, "3.0.0": true, "1.99.0": false, "custom": true} {
		if got := newEnough(version); got != want {
			t.Errorf("%s is new enough: %v", version, got)
		}
	}
}

// Kinds and types are each other's reverse, and every kind of an event out fits into a subject as two tokens.
func TestSubjectsAndTypes(t *testing.T) {
	t.Parallel()
	if got := kindOf(Type(RunAccepted)); got != RunAccepted {
		t.Errorf("kind %q", got)
	}
	for _, typ := range []string{"", "io.guestflow.customization.x", "com.example.run.accepted.v1"} {
		if got := kindOf(typ); got != "" {
			t.Errorf("type %q is of kind %q", typ, got)
		}
	}
	got := map[string]string{
		"request": RequestSubject("lab", "vm-1"), "cancel": CancelSubject("lab", "vm-1"), "event": EventSubject("lab", "vm-1", RunAccepted),
		"history": History("lab", "vm-1"), "rejection": RejectionSubject("lab", "_"), "deadletter": DeadletterSubject("lab", "_"),
	}
	want := map[string]string{
		"request": "guestflow.requests.lab.vm-1", "cancel": "guestflow.cancels.lab.vm-1", "event": "guestflow.events.lab.vm-1.run.accepted",
		"history": "guestflow.events.lab.vm-1.>", "rejection": "guestflow.rejections.lab._", "deadletter": "guestflow.deadletters.lab._",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for name, want := range map[string]bool{"lab": true, "l": true, "a-b": true, "-a": false, "a-": false, "Lab": false, "a.b": false, "": false, strings.Repeat("a", 33): false} {
		if ValidVCenter(name) != want {
			t.Errorf("vCenter name %q: %v", name, !want)
		}
	}
	for name, want := range map[string]bool{"vm-42": true, "VM_1": true, "*": false, ">": false, "a.b": false, "": false, "_": false, strings.Repeat("v", 81): false} {
		if ValidVM(name) != want {
			t.Errorf("VM %q: %v", name, !want)
		}
	}
}

func TestAppendHeaders(t *testing.T) {
	t.Parallel()
	h := appendHeader(nats.Header{}, "id", 7, History("lab", "vm-1"))
	want := nats.Header{
		jetstream.MsgIDHeader: {"id"}, jetstream.ExpectedLastSubjSeqHeader: {"7"}, jetstream.ExpectedLastSubjSeqSubjHeader: {"guestflow.events.lab.vm-1.>"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("-want +got\n%s (%v)", diff, slices.Sorted(maps.Keys(h)))
	}
	if s := fmt.Sprint(&StoreError{Code: CodeWrongLastSequence, Description: "wrong last sequence: 7"}); s != "JetStream: wrong last sequence: 7 (10071)" {
		t.Error(s)
	}
}
