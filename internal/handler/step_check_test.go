package handler

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// What becomes of each answer that the check may give: check_status, and the two reasons, each of which may be missing.
func TestCheckAnswers(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	secrets := secretsDir(t)
	for _, row := range []struct {
		name   string
		answer vcapi.Check
		codes  []events.Code // of the blockers
		asked  int           // how often, default once
		retry  bool
	}{
		{name: "supported", answer: vcapi.Check{Status: "SUPPORTED", SupportedGuestOS: &yes,
			SupportedPowerState: &yes}},
		{name: "supported, no reasons", answer: vcapi.Check{Status: "SUPPORTED"}},
		{name: "guest OS", answer: vcapi.Check{Status: "NOT_SUPPORTED", SupportedGuestOS: &no},
			codes: []events.Code{events.NotCustomizable}},
		{name: "power state", answer: vcapi.Check{Status: "NOT_SUPPORTED", SupportedGuestOS: &yes,
			SupportedPowerState: &no},
			codes: []events.Code{events.PowerState}},
		{name: "both", answer: vcapi.Check{Status: "NOT_SUPPORTED", SupportedGuestOS: &no, SupportedPowerState: &no},
			codes: []events.Code{events.NotCustomizable, events.PowerState}},
		{name: "neither, although both were looked at",
			answer: vcapi.Check{Status: "NOT_SUPPORTED", SupportedGuestOS: &yes, SupportedPowerState: &yes},
			codes:  []events.Code{events.NotCustomizable}, retry: true},
		{name: "no reason: asked again", answer: vcapi.Check{Status: "NOT_SUPPORTED"},
			codes: []events.Code{events.NotCustomizable}, asked: checkTries, retry: true},
		{name: "a status that is not known", answer: vcapi.Check{Status: "NEW_STATUS", SupportedGuestOS: &yes},
			codes: []events.Code{events.NotCustomizable}, retry: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.vm.check = row.answer
				run := w.run(`{"vm":"vm-42"}`)
				var codes []events.Code
				for _, b := range run.Check.Blockers {
					codes = append(codes, events.Code(b.Code))
				}
				if !slices.Equal(codes, row.codes) {
					w.t.Errorf("blockers %v, want %v", codes, row.codes)
				}
				state, status := events.Succeeded, events.StatusSucceeded
				if row.codes != nil {
					state, status = events.Failed, events.StatusFailed
					if run.Error == nil || run.Error.Code != row.codes[0] || run.Error.Retryable != row.retry {
						w.t.Errorf("error %+v", run.Error)
					}
				}

				c := run.Check
				if c.State != state || run.Status != status || c.Status != row.answer.Status ||
					c.SupportedGuestOS == nil != (row.answer.SupportedGuestOS == nil) ||
					c.SupportedPowerState == nil != (row.answer.SupportedPowerState == nil) {
					w.t.Errorf("run %s, check %+v", run.Status, c)
				}
				if asked := w.owners[0].seen["CheckCustomization"]; asked != max(row.asked, 1) {
					w.t.Errorf("asked %d times", asked)
				}
			})
		})
	}
}

// check.mode, and vCenters older than 9.0 that have no such check.
func TestCheckModes(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		mode, version string
		missing       bool // vCenter says that it has no such operation
		state         events.State
		asked         int
	}{
		{"auto", "9.0.0.0", false, events.Succeeded, 1},
		{"required", "9.1.0.0", false, events.Succeeded, 1},
		{"required", "10.0.0.0", false, events.Succeeded, 1},
		{"auto", "8.0.3.0", false, events.Unavailable, 0},
		{"auto", "9.0.0.0", true, events.Unavailable, 1},
		{"required", "8.0.3.0", false, events.Failed, 0},
		{"required", "9.0.0.0", true, events.Failed, 1},
		{"skip", "9.0.0.0", false, events.Skipped, 0},
		{"skip", "8.0.3.0", false, events.Skipped, 0},
	} {
		t.Run(fmt.Sprintf("%s %s %v", row.mode, row.version, row.missing), func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.vc.apiVersion = row.version
				if row.missing {
					w.vc.on(rule{op: "CheckCustomization", err: vcError("OPERATION_NOT_FOUND", 404, vcapi.Permanent)})
				}
				run := w.run(`{"vm":"vm-42","check":{"mode":"` + row.mode + `"}}`)
				if run.Check.State != row.state || w.owners[0].seen["CheckCustomization"] != row.asked {
					w.t.Errorf("check %+v, asked %d times", run.Check, w.owners[0].seen["CheckCustomization"])
				}
				if failed := run.Status == events.StatusFailed; failed != (row.state == events.Failed) ||
					failed && run.Error.Code != events.Unsupported {
					w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
				}
			})
		})
	}
}

// What is told before anything is changed, and ends nothing.
func TestWarnings(t *testing.T) {
	t.Parallel()
	codes := func(all []events.Remark) string {
		var list []string
		for _, r := range all {
			list = append(list, r.Code+" "+r.Field)
		}
		return strings.Join(list, ", ")
	}

	for want, vm := range map[string]vcapi.VM{
		"":                                      {},
		"PendingCustomization vm":               {PendingCustomization: "[ds] web-1/imcf-1"},
		"CloudInit vm":                          {CloudInit: true},
		"PendingCustomization vm, CloudInit vm": {PendingCustomization: "x", CloudInit: true},
	} {
		if got := codes(warningsOfVM(vm)); got != want {
			t.Errorf("%+v: warnings %q, want %q", vm, got, want)
		}
	}
}
