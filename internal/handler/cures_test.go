package handler

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Whatever vCenter answers, in whichever step: a run that ends by it says what to do, after vCenter's own words.
func TestEveryFailureSaysWhatToDo(t *testing.T) {
	t.Parallel()
	names := append(slices.Collect(maps.Keys(byName)), "ALREADY_EXISTS", "ERROR", "CustomizationFault",
		"NicSettingMismatch", "SystemError", "HostNotConnected", "NeverHeardOf", "")
	for _, name := range names {
		for _, where := range []string{"check", "customize", "network", "process"} {
			_, s := stepOf(t, where, events.Starting)
			v := vcError(name, 500, vcapi.Permanent)
			f := s.failure(v)
			if !strings.HasPrefix(f.message, v.Error()+": ") {
				t.Errorf("%q in step %s (%s): %s", name, where, f.code, f.message)
			}
		}
	}

	// A password is nothing that helps where a certificate is not trusted.
	_, s := stepOf(t, "process", events.Running)
	if f := s.failure(vcError("UNVERIFIED_PEER", 500, vcapi.Permanent)); f.code != events.Unauthenticated ||
		!strings.Contains(f.message, "certificate") || strings.Contains(f.message, "password") {
		t.Errorf("%+v", f)
	}
	_, s = stepOf(t, "customize", events.Running)
	if f := s.failure(&vcapi.Error{Name: "NoPermission", Class: vcapi.Permanent,
		Data: []byte(`{"privilegeId":"VirtualMachine.Provisioning.Customize"}`)}); !strings.Contains(f.message,
		"the privilege VirtualMachine.Provisioning.Customize") {
		t.Errorf("%+v", f)
	}
}

// Who writes a VM's name, or a path, where its managed object ID belongs is told what that is and where to find it.
func TestNotFoundSaysWhatAnIDIs(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.vm.gone = true
		run := w.run(`{"vm":"vm-42"}`)
		for _, text := range []string{run.Error.Message, run.Check.Blockers[0].Message} {
			if !strings.Contains(text, "managed object ID, such as vm-42") ||
				!strings.Contains(text, "vSphere Client") || !strings.Contains(text, "govc") {
				w.t.Errorf("it says %q", text)
			}
		}
	})

	inBriefHarness(t, secretsDir(t), func(w *harness) {
		w.vc.on(rule{op: "StoredSpec", err: vcError("NotFound", 500, vcapi.Permanent)})
		run := w.run(`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"customize":{"specName":"web"}}`)
		if text := run.Error.Message; !strings.Contains(text, "VM Customization Specifications") ||
			strings.Contains(text, "managed object ID") {
			w.t.Errorf("it says %q", text)
		}
	})
}

// A fault's cause is in the event, under its own name, and in the message.
func TestCausesAreTold(t *testing.T) {
	t.Parallel()
	inBriefHarness(t, secretsDir(t), func(w *harness) {
		cause := &vcapi.Error{Name: "GuestComponentsOutOfDate", LocalizedMessage: "too old",
			Data:  json.RawMessage(`{"x":null,"y":1}`),
			Cause: &vcapi.Error{Name: "HostCommunication"}}
		w.vc.on(rule{op: "StartGuestNetwork", err: &vcapi.Error{Host: "vc", Status: 500, Name: "UncustomizableGuest",
			Class: vcapi.Permanent, Sent: vcapi.Refused, Cause: cause}})
		v := w.run(only(networkOnly)).Error.VSphere
		if v == nil || v.Cause == nil || v.Cause.Name != "GuestComponentsOutOfDate" ||
			v.Cause.LocalizedMessage != "too old" || string(v.Cause.Data) != `{"y":1}` ||
			v.Cause.Cause == nil || v.Cause.Cause.Name != "HostCommunication" {
			w.t.Errorf("%+v", v)
		}
	})
}
