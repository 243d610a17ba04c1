package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// What each of vCenter's standard errors, and each fault of the pages of CustomizeGuest_Task and
// StartGuestNetwork_Task, means for a run: in the check, and in a step of each kind. Classes are those that vcapi gives
// them (vcapi.TestRESTErrors, vcapi.TestVIMFaults).
func TestOutcomeOfEachError(t *testing.T) {
	t.Parallel()
	const (
		busy, tools, away = events.WaitingResourceBusy, events.WaitingTools, events.WaitingVCenterUnavailable
		permanent, pass   = vcapi.Permanent, vcapi.Transient
	)
	everywhere := func(code events.Code, waiting events.Waiting) [4]outcome {
		o := outcome{code, waiting}
		return [4]outcome{o, o, o, o}
	}
	unknown := [4]outcome{{code: events.Internal}, {code: events.CustomizationFailed}, {code: events.NetworkFailed},
		{code: events.ProcessNotStarted}}
	badRequest := everywhere(events.InvalidRequest, "")
	badRequest[3] = outcome{code: events.ProcessNotStarted} // a bad path or folder
	noTools := everywhere(events.CodeUnavailable, away)
	noTools[3] = outcome{events.ToolsNotRunning, tools}
	engine := [4]outcome{{code: events.Internal}, {code: events.CustomizationFailed}, {code: events.NetworkFailed},
		{code: events.ProcessNotStarted}}
	steps := []string{"check", "customize", "network", "process"}
	for _, row := range []struct {
		name  string
		class vcapi.Class
		want  [4]outcome // in check, customize, network, process
	}{
		{"ERROR", pass, everywhere(events.CodeUnavailable, away)},
		{"ALREADY_EXISTS", permanent, unknown},
		{"ALREADY_IN_DESIRED_STATE", permanent, unknown},
		{"CANCELED", permanent, everywhere(events.CodeCanceled, "")},
		{"CONCURRENT_CHANGE", pass, everywhere(events.Busy, busy)},
		{"FEATURE_IN_USE", permanent, unknown},
		{"INTERNAL_SERVER_ERROR", pass, everywhere(events.CodeUnavailable, away)},
		{"INVALID_ARGUMENT", permanent, badRequest},
		{"INVALID_ELEMENT_CONFIGURATION", permanent, badRequest},
		{"INVALID_ELEMENT_TYPE", permanent, badRequest},
		{"INVALID_REQUEST", permanent, badRequest},
		{"NOT_ALLOWED_IN_CURRENT_STATE", permanent, everywhere(events.PowerState, "")},
		{"NOT_FOUND", permanent, everywhere(events.NotFound, "")},
		{"OPERATION_NOT_FOUND", permanent, everywhere(events.Unsupported, "")},
		{"RESOURCE_BUSY", pass, everywhere(events.Busy, busy)},
		{"RESOURCE_IN_USE", pass, everywhere(events.Busy, busy)},
		{"RESOURCE_INACCESSIBLE", pass, everywhere(events.CodeUnavailable, away)},
		{"SERVICE_UNAVAILABLE", pass, noTools},
		{"TIMED_OUT", pass, everywhere(events.CodeUnavailable, away)},
		{"UNABLE_TO_ALLOCATE_RESOURCE", permanent, unknown},
		{"UNAUTHENTICATED", vcapi.SessionLost, everywhere(events.Unauthenticated, away)},
		{"UNAUTHORIZED", permanent, everywhere(events.Unauthorized, "")},
		{"UNEXPECTED_INPUT", permanent, badRequest},
		{"UNSUPPORTED", permanent, everywhere(events.Unsupported, "")},
		{"UNVERIFIED_PEER", permanent, everywhere(events.Unauthenticated, "")},

		{"TaskInProgress", pass, everywhere(events.Busy, busy)},
		{"InvalidPowerState", permanent, everywhere(events.PowerState, "")},
		{"InvalidState", pass, everywhere(events.InvalidState, tools)},
		{"InvalidGuestLogin", vcapi.GuestCredentials, everywhere(events.GuestLoginRefused, "")},
		{"GuestPermissionDenied", vcapi.GuestCredentials, everywhere(events.GuestPermissionDenied, "")},
		{"CustomizationFault", pass, engine},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			for i, name := range steps {
				_, s := stepOf(t, name, events.Starting)
				if got := s.outcome(vcError(row.name, 500, row.class)); got != row.want[i] {
					t.Errorf("in step %s: got %+v, want %+v", name, got, row.want[i])
				}
			}
		})
	}

	// What is answered to a question about a process that runs says nothing about its start.
	for _, name := range []string{"ALREADY_EXISTS", "ALREADY_IN_DESIRED_STATE", "FEATURE_IN_USE",
		"UNABLE_TO_ALLOCATE_RESOURCE", "NEVER_HEARD_OF"} {
		_, s := stepOf(t, "process", events.Running)
		if got := s.outcome(vcError(name, 500, vcapi.Permanent)); got.code != events.Internal {
			t.Errorf("%s of a running process: %+v", name, got)
		}
	}

	// The 401 of a guest operation is the guest's, not that of the service's own login.
	_, s := stepOf(t, "process", events.Starting)
	if got := s.outcome(vcError("UNAUTHENTICATED", 401, vcapi.GuestCredentials)); got.code != events.GuestLoginRefused {
		t.Errorf("a guest login refused: %+v", got)
	}
}

// Codes that end a run and that no other test asks for.
func TestRareCodes(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		name, step string
		harness    func(w *harness)
		code       events.Code
		retry      bool
	}{
		{name: "vCenter refuses the service's login", step: "check", code: events.Unauthenticated,
			harness: func(w *harness) {
				for _, op := range []string{"Now", "VM"} {
					w.vc.on(rule{op: op, err: vcError("InvalidLogin", 500, vcapi.SessionLost)})
				}
			}},
		{name: "a Task ends because its host is away", step: "network", code: events.CodeUnavailable, retry: true,
			harness: taskEnds("StartGuestNetwork", "HostNotReachable", vcapi.Transient, 1)},
		{name: "an answer that nobody knows", step: "check", code: events.Internal,
			harness: func(w *harness) {
				w.vc.on(rule{op: "CheckCustomization",
					err: vcError("", 400, vcapi.Permanent)})
			}},
		{name: "vCenter finds the request wrong", step: "network", code: events.InvalidRequest,
			harness: refusal("StartGuestNetwork", "InvalidArgument", 500, vcapi.Permanent, 0)},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				row.harness(w)
				run := w.run(only(networkOnly))
				if e := run.Error; run.Status != events.StatusFailed || e == nil || e.Code != row.code ||
					e.Step != row.step || e.Retryable != row.retry {
					w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
				}
			})
		})
	}
}

// The first failure ends the run: what was before it stays, what was to come is skipped.
func TestLaterStepsAreSkipped(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		taskEnds("StartGuestNetwork", "SystemError", vcapi.Permanent, 1)(w)
		run := w.run(whole)
		got := []events.State{run.Check.State, run.Customize.State, run.Network.State, run.Verify.State,
			run.Processes[0].State, run.Processes[1].State}
		want := []events.State{events.Succeeded, events.Succeeded, events.Failed, events.Skipped, events.Skipped,
			events.Skipped}
		if !slices.Equal(got, want) {
			w.t.Errorf("states %v, want %v", got, want)
		}
		first := w.events()[0].run // what was asked for is pending at first
		for _, got := range []events.State{first.Check.State, first.Customize.State, first.Network.State,
			first.Processes[1].State} {
			if got != events.Pending {
				w.t.Errorf("a state at first is %s", got)
			}
		}
	})
}

// Tools that go away while a process runs are told once per absence, on the process, and the wait goes on.
func TestUnreachableProcess(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vm.programs["/usr/bin/first"] = program{takes: 4 * time.Minute}
		for i := range 4 { // away, back, away, back
			w.later(time.Duration(i+1)*40*time.Second, func() { w.vc.change(func() { w.vm.tools = i%2 == 1 }) })
		}
		run := w.run(only(processOnly))
		mustSucceed(w)
		if got := strings.Join(w.kinds(), " "); !strings.HasSuffix(got,
			"process.started process.unreachable process.unreachable process.exited run.succeeded") {
			w.t.Errorf("events %s", got)
		}
		if p := run.Processes[0]; p.ExitCode == nil || *p.ExitCode != 0 {
			w.t.Errorf("process %+v", p)
		}
		for _, e := range w.events() { // only process.* events are about one process
			if named := e.run.Process != ""; named != strings.HasPrefix(string(e.kind), "process.") {
				w.t.Errorf("%s names process %q", e.kind, e.run.Process)
			}
		}
	})
}

// Every event of a run carries what its request brought along.
func TestEventsCarryTheRequestsAttributes(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.run(`{"vm":"vm-42"}`)
		before := len(w.store.All())
		req := w.request("order-2", only(networkOnly))
		delivery, err := w.line.Deliver(req.Seq)
		if err != nil {
			w.t.Fatal(err)
		}
		delivery.Attrs = events.Attributes{CorrelationID: "order-7", CausationID: "order-2", TraceParent: "tp",
			TraceState: "ts", AuthType: "user", AuthID: "me"}
		if _, h := w.bystander(); h.Handle(context.Background(), delivery) != nil {
			w.t.Error("not acknowledged")
		}
		w.line.Remove(req.Seq)
		mustSucceed(w)
		all := w.store.All()[before:]
		for i, m := range all {
			var ce map[string]any
			if err := json.Unmarshal(m.Data, &ce); err != nil {
				w.t.Fatal(err)
			}
			delete(ce, "time")
			_, requested := ce["data"].(map[string]any)["requested"]
			if requested != (i == 0) {
				w.t.Errorf("event %d holds the request: %v", i+1, requested)
			}
			delete(ce, "data")
			kind := strings.TrimPrefix(m.Subject, "guestflow.events.lab.vm-42.")
			want := map[string]any{"specversion": "1.0", "id": fmt.Sprintf("%s.%d", req.RunID, i+1),
				"source": "/guestflow/lab", "subject": vmID,
				"type": "io.guestflow.customization." + kind + ".v1", "datacontenttype": "application/json",
				"dataschema":    "urn:guestflow:schema:run.v1",
				"correlationid": "order-7", "causationid": "order-2", "traceparent": "tp", "tracestate": "ts",
				"authtype": "user", "authid": "me"}
			if !maps.Equal(ce, want) {
				w.t.Errorf("attributes %v, want %v", ce, want)
			}
		}

		if len(all) != 6 {
			w.t.Errorf("%d events", len(all))
		}
	})
}
