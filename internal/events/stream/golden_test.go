package stream

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

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func ptr[T any](v T) *T { return &v }

// wholeRun has every field of a run.
func wholeRun() *events.Run {
	at := func(minute int) *time.Time { return ptr(time.Date(2026, 1, 2, 3, minute, 5, 250_000_000, time.UTC)) }
	nics := []events.NIC{{MAC: "00:50:56:aa:bb:cc", Connected: true, Addresses: []string{"192.0.2.10"},
		IPConfig: []events.IPAddress{{IPAddress: "192.0.2.10", PrefixLength: 24, State: "preferred"}}}}
	guest := &events.Guest{Status: "FAILED", Error: "<no & nothing>", StartTime: at(1), EndTime: at(2)}
	return &events.Run{
		ID: events.RunID("lab", "vm-42", events.RequestRef{Source: "/provisioner", ID: "7f3c"}), N: 12,
		Process: "join-domain", VCenter: "lab", VM: "vm-42",
		VMName: "web-1", InstanceUUID: "503a2f0e-3e1f-4c0a-9d1e-0c1d2e3f4a5b",
		Request: &events.RequestRef{Source: "/provisioner", ID: "7f3c"},
		Status:  events.StatusFailed, Owner: &events.Owner{Instance: "pod-a", Takeovers: 1}, AcceptedAt: at(0),
		Deadline: at(59), FinishedAt: at(9),
		Waiting: events.WaitingTools, WaitingFor: &events.WaitReason{Message: "no tools",
			VSphere: &events.VSphere{Name: "SERVICE_UNAVAILABLE", HTTPStatus: 503}},
		CanceledBy: &events.CanceledBy{Source: "/provisioner", ID: "7f3d", Reason: "no longer wanted"},
		Check: &events.Check{
			State: events.Succeeded, Status: "SUPPORTED", SupportedGuestOS: ptr(true), SupportedPowerState: ptr(false),
			Blockers: []events.Remark{{Code: "PowerState", Message: "the VM is powered off"}},
			Warnings: []events.Remark{{Code: "Unsupported", Message: "script text is dropped",
				Field: "customize.spec.identity.scriptText"}},
			StartedAt: at(0), FinishedAt: at(1),
		},
		Customize: &events.Customize{State: events.Failed, Task: "task-7", Progress: ptr(0), DecidedBy: "task",
			StartedAt: at(1), FinishedAt: at(2), Guest: guest, Reason: "r",
			NotRead: &events.WaitReason{Message: "m", VSphere: &events.VSphere{Name: "ERROR", HTTPStatus: 500}}},
		Network: &events.Network{State: events.Skipped, Task: "task-8", StartedAt: at(3), FinishedAt: at(4),
			Reason: "r"},
		Verify: &events.Verify{State: events.Failed, HostName: "web-1", NICs: nics, Gateways: []string{"192.0.2.1"},
			DNS:        []string{"192.0.2.2"},
			Mismatches: []string{"hostName: web-2, not web-1"},
			NotCompared: []events.NotCompared{{Field: "customize.spec.nicSettingMap[0].adapter.gateway[0]",
				Reason: "the guest shows no routes"}},
			StartedAt: at(4), FinishedAt: at(5)},
		Processes: []events.Process{{
			Name: "join-domain", State: events.Failed, PID: 4711, Owner: "root", ProcessName: "realm",
			Command:  "/usr/sbin/realm join \"example.com\"",
			ExitCode: ptr(int64(0)), StartedAt: at(5), FinishedAt: at(6), Reason: "r",
		}},
		Observed: &events.Observed{
			At: *at(8), PowerState: "poweredOn", ToolsRunningStatus: "guestToolsRunning", ToolsVersion: "12389",
			HostName: "web-1", NICs: nics,
			Guest: guest, GuestLog: []string{"line"},
		},
		Error: &events.Error{
			Step: "process", Process: "join-domain", Code: events.ExitCode, Message: "exit code 1",
			Field: "processes[0]", Retryable: true, Waiting: events.WaitingTools,
			VSphere: &events.VSphere{
				Name: "InvalidGuestLogin", HTTPStatus: 500, Messages: []json.RawMessage{json.RawMessage(`{"id":"m"}`)},
				LocalizedMessage: "m",
				Data:             json.RawMessage(`{"a":1}`), Challenge: "c", Cause: &events.VSphere{
					Name:             "GuestOperationsFault",
					LocalizedMessage: "c"},
			},
		},
		Requested: json.RawMessage(`{"vm":"vm-42"}`), Checkpoint: json.RawMessage(`{"version":1}`), Truncated: true,
	}
}

var goldenAttrs = events.Attributes{
	CorrelationID: "order 7/ü", CausationID: "7f3c",
	TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceState: "a=b",
	AuthType: "user", AuthID: "me@example.com",
}

// The golden files are what subscribers see, headers and all.
func TestGolden(t *testing.T) {
	t.Parallel()
	small := &events.Run{
		ID: events.RunID("lab", "vm-42", events.RequestRef{Source: "/p", ID: "1"}), N: 1, VCenter: "lab", VM: "vm-42",
		Request: &events.RequestRef{Source: "/p", ID: "1"},
		Status:  events.StatusRunning,
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.FixedZone("", 3600))
	event := func(k events.Kind, mode string, attrs events.Attributes, run *events.Run) func() (*nats.Msg, error) {
		return func() (*nats.Msg, error) {
			j := NewStoreJournal(nil, mode, zerolog.Nop())
			m, err := j.message(at, 6, "owner.7", k, attrs, run)
			return &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}, err
		}
	}
	refused := RefusedMessage{
		VCenter: "lab", VM: "vm-42", Ref: events.RequestRef{Source: "/p", ID: "1"},
		Attrs: events.Attributes{CorrelationID: "1", CausationID: "1"}, Seq: 99, At: at,
		Subject: events.RequestSubject("lab", "vm-42"), Data: []byte(`{"secret":"x"}`),
		Header: nats.Header{"Nats-Msg-Id": {"1"}, "nats-x": {"2"}, "Guestflow-Code": {"Old"}, "ce-id": {"1"},
			"X-Many": {"a", "b"}},
	}
	why := &events.RejectError{Code: events.InvalidRequest, Field: "customize.sepc", Message: "is not a known field"}
	secret := &events.RejectError{Code: events.InvalidRequest, Field: "customize.spec.identity.password.value",
		Message: "holds a\nliteral password", Withhold: true}
	rejected := func(m RefusedMessage, mode string) func() (*nats.Msg, error) {
		return func() (*nats.Msg, error) { return rejection(m, why, mode, at) }
	}
	nameless := RefusedMessage{VCenter: "lab", Seq: 100, At: at, Subject: "guestflow.requests.lab.*"}
	tests := []struct {
		name string
		make func() (*nats.Msg, error)
	}{
		{"run-failed-structured", event(events.RunFailed, events.Structured, goldenAttrs, wholeRun())},
		{"run-failed-binary", event(events.RunFailed, events.Binary, goldenAttrs, wholeRun())},
		{"run-accepted", event(events.RunAccepted, events.Structured,
			events.Attributes{CorrelationID: "1", CausationID: "1"}, small)},
		{"rejected-structured", rejected(refused, events.Structured)},
		{"rejected-binary", rejected(refused, events.Binary)},
		{"rejected-nameless", rejected(nameless, events.Structured)},
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
	data := m.Data
	if m.Header.Get("ce-specversion") == "" {
		var e struct{ Data json.RawMessage }
		if err := json.Unmarshal(m.Data, &e); err != nil {
			t.Fatal(err)
		}
		data = e.Data
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
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
	for _, mode := range []string{events.Structured, events.Binary} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			m, err := NewStoreJournal(nil, mode, zerolog.Nop()).message(time.Now(), 6, "owner.7", events.RunFailed,
				goldenAttrs, wholeRun())
			if err != nil {
				t.Fatal(err)
			}
			e, err := readEntry(&Stored{Subject: m.Subject, Seq: 7, Header: m.Header, Data: m.Data})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&events.Entry{Seq: 7, MsgID: "owner.7", Kind: events.RunFailed, Attrs: goldenAttrs,
				Run: *wholeRun()}, e); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
	for name, s := range map[string]*Stored{
		"no event": {Data: []byte("x")}, "no run": {Header: nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"1"},
			"ce-source": {"/"}, "ce-type": {"t"}}, Data: []byte("[]")},
	} {
		if e, err := readEntry(s); err == nil {
			t.Errorf("%s: read as %+v", name, e)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern, filter string
		want            bool
	}{
		{"a.>", "a.b.>", true}, {"a.b.>", "a.b.>", true}, {">", "a.b", true}, {"a.*.>", "a.b.>", true},
		{"a.*", "a.*", true}, {"a.*", "a.b", true},
		{"a.b", "a.*", false}, {"a.*", "a.>", false}, {"a.>", "a", false}, {"a.b.c", "a.b", false},
		{"a.b", "a.b.c", false}, {"b.>", "a.b", false},
	}
	for _, tt := range tests {
		if got := covers(tt.pattern, tt.filter); got != tt.want {
			t.Errorf("%s covers %s: %v", tt.pattern, tt.filter, got)
		}
	}
}

func TestNewEnough(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"2.10.29": false, "2.11.0": true, "2.11.0-RC.1": true, "v2.15.2": true,
		"3.0.0": true, "1.99.0": false, "custom": true} {
		if got := newEnough(version); got != want {
			t.Errorf("%s is new enough: %v", version, got)
		}
	}
}

func TestAppendHeaders(t *testing.T) {
	t.Parallel()
	h := appendHeader(nats.Header{}, "id", 7, events.History("lab", "vm-1"))
	want := nats.Header{
		jetstream.MsgIDHeader: {"id"}, jetstream.ExpectedLastSubjSeqHeader: {"7"},
		jetstream.ExpectedLastSubjSeqSubjHeader: {"guestflow.events.lab.vm-1.>"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("-want +got\n%s (%v)", diff, slices.Sorted(maps.Keys(h)))
	}
	if s := fmt.Sprint(&StoreError{Code: CodeWrongLastSequence,
		Description: "wrong last sequence: 7"}); s != "JetStream: wrong last sequence: 7 (10071)" {
		t.Error(s)
	}
}
