package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/custspec"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// check asks everything that can be known before anything is changed, and tells all that speaks against the run at once.
func (r *run) check(ctx context.Context) error {
	s := &step{name: "check", state: &r.state.Check.State}
	c := r.state.Check
	if c.StartedAt == nil {
		now := stamp(time.Now())
		c.StartedAt = &now
	}
	*c = events.Check{State: events.Pending, StartedAt: c.StartedAt}
	var why *stepError // of the first blocker
	block := func(f *stepError, field string) {
		c.Blockers = append(c.Blockers, events.Remark{Code: string(f.code), Message: f.message, Field: field})
		if why == nil {
			why = f
		}
	}
	if err := r.checkSecrets(ctx, block); err != nil {
		return err
	}
	if err := r.readSpec(ctx, s); err != nil {
		var f *stepError
		if !errors.As(err, &f) || f.code != events.NotFound && f.code != events.Unauthorized {
			return err
		}
		f.message = fmt.Sprintf("vCenter %s gives no customization specification %q: %s", r.VCenter, r.asked.Customize.SpecName, f.message)
		block(f, "customize.specName")
	}
	warnings := r.checkSpec(block)
	vm, err := ask(ctx, r, s, r.readVM)
	var gone *stepError
	switch {
	case errors.As(err, &gone) && gone.code == events.NotFound, errors.As(err, &gone) && gone.code == events.Unauthorized:
		block(r.noVM(gone), "vm")
	case err != nil:
		return err
	default:
		if r.point.BaselineAt == nil {
			if _, err := ask(ctx, r, s, r.baseline); err != nil {
				return err
			}
		}
		if vm.PowerState != poweredOn {
			block(&stepError{step: "check", code: events.PowerState,
				message: fmt.Sprintf("vm %s is %s: only a running guest can be customized, power it on", r.vm, vm.PowerState)}, "vm")
		}
		r.checkAdapters(vm, block)
		c.Warnings = slices.Concat(warnings, warningsOfVM(vm), r.warningsOfProcesses())
		if err := r.checkPrivileges(ctx, s, block); err != nil {
			return err
		}
		if err := r.customizable(ctx, s, vm, block); err != nil {
			return err
		}
	}
	switch {
	case why != nil:
		c.State = events.Failed
		if n := len(c.Blockers) - 1; n > 0 {
			why.message += fmt.Sprintf(" (and %d more: see check.blockers)", n)
		}
		r.state.Error = r.errorOf(why)
	case c.State == events.Pending:
		c.State = events.Succeeded
	}
	now := stamp(time.Now())
	c.FinishedAt = &now
	if err := r.record(events.CheckCompleted); err != nil {
		return err
	}
	if why != nil {
		return why
	}
	return nil
}

// checkSecrets reads every secret that the request names, so that a missing one is known before anything is changed. It fails where ctx ends.
func (r *run) checkSecrets(ctx context.Context, block func(*stepError, string)) error {
	found := func(err error, field string) {
		var f *stepError
		if errors.As(err, &f) {
			block(f, field)
		}
	}
	credentials := func(c *events.CredentialsRef, field string) {
		if c == nil {
			return
		}
		auth, err := r.authOf(ctx, c, "check", field)
		found(err, field)
		if auth.SAMLToken != "" && r.asked.Guest != nil && r.asked.Guest.InteractiveSession {
			block(&stepError{step: "check", code: events.InvalidRequest, message: fmt.Sprintf("guest.interactiveSession needs user name and password, "+
				"and %s, secret %q, holds a token: leave out interactiveSession, or name a secret with a password", field, c.SecretRef)}, "guest.interactiveSession")
		}
	}
	tree := func(t json.RawMessage, field string) {
		if _, _, err := r.secrets.fill(ctx, t); err != nil {
			found(r.noSecret(ctx, "check", field, err), field)
		}
	}
	if r.asked.Guest != nil {
		credentials(r.asked.Guest.Credentials, "guest.credentials")
	}
	if c := r.asked.Customize; c != nil {
		tree(c.Spec, "customize.spec")
		tree(c.ConfigParams, "customize.configParams")
	}
	for i, p := range r.asked.Processes {
		credentials(p.Credentials, fmt.Sprintf("processes[%d].credentials", i))
		if p.Run == nil {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(p.Run.Environment)) {
			field := fmt.Sprintf("processes[%d].run.environment.%s", i, name)
			if _, err := r.secrets.text(ctx, p.Run.Environment[name]); err != nil {
				found(r.noSecret(ctx, "check", field, err), field)
			}
		}
	}
	if ctx.Err() != nil {
		return r.interrupted(ctx)
	}
	return nil
}

// checkPrivileges looks whether the service's login may do on the VM what is asked for. A vCenter that does not tell is believed that it may.
func (r *run) checkPrivileges(ctx context.Context, s *step, block func(*stepError, string)) error {
	fields := map[string]string{} // by privilege: the part of the request that needs it
	if r.asked.Network != nil {
		fields[mayCustomize] = "network"
		if r.asked.Network.ConnectNICs {
			fields[mayConnect], fields[mayEdit] = "network.connectNics", "network.connectNics"
		}
	}
	if r.asked.Customize != nil {
		fields[mayCustomize] = "customize"
	}
	for _, p := range r.asked.Processes {
		fields[mayQuery] = "processes"
		if p.Run != nil {
			fields[mayExecute] = "processes"
		}
	}
	if len(fields) == 0 {
		return nil
	}
	wanted := slices.Sorted(maps.Keys(fields))
	missing, err := ask(ctx, r, s, func(ctx context.Context) ([]string, error) {
		missing, err := r.vc.MissingPrivileges(ctx, r.vm, wanted)
		if permanent(err) {
			return nil, nil
		}
		return missing, err
	})
	for _, privilege := range missing {
		block(&stepError{step: "check", code: events.Unauthorized, message: fmt.Sprintf(
			"the service's login at vCenter %s lacks the privilege %s on vm %s: add it to its role", r.VCenter, privilege, r.vm)}, fields[privilege])
	}
	return err
}

// What the service's role must hold on the VM, by the pages of the calls that need it; docs/operate/vcenter-role.md has all.
const (
	mayCustomize = "VirtualMachine.Provisioning.Customize"
	mayConnect   = "VirtualMachine.Interact.DeviceConnection"
	mayEdit      = "VirtualMachine.Config.EditDevice" // to be connected at power-on is a setting of the NIC
	mayExecute   = "VirtualMachine.GuestOperations.Execute"
	mayQuery     = "VirtualMachine.GuestOperations.Query"
)

// customizable puts vCenter's own check (9.0 and later) into the run.
func (r *run) customizable(ctx context.Context, s *step, vm vcapi.VM, block func(*stepError, string)) error {
	c, mode := r.state.Check, r.asked.Check.Mode
	if mode == "skip" {
		c.State = events.Skipped
		return nil
	}
	about, err := ask(ctx, r, s, r.vc.About)
	if err != nil {
		return err
	}
	lacking := func() {
		c.State = events.Unavailable
		if mode == "required" {
			block(&stepError{step: "check", code: events.Unsupported, message: fmt.Sprintf(
				"vCenter %s speaks vSphere API %s, the check needs 9.0: update it, or ask for check.mode auto or skip", r.VCenter, about.APIVersion)}, "check.mode")
		}
	}
	if olderThan9(about.APIVersion) {
		lacking()
		return nil
	}
	var answer vcapi.Check
	for pause, tries := newBackoff(askPause), 1; ; tries++ {
		answer, err = ask(ctx, r, s, func(ctx context.Context) (vcapi.Check, error) { return r.vc.CheckCustomization(ctx, r.vm) })
		var f *stepError
		switch {
		case errors.As(err, &f) && f.code == events.Unsupported:
			lacking()
			return nil
		case errors.As(err, &f) && (f.code == events.NotFound || f.code == events.Unauthorized):
			block(r.noVM(f), "vm")
			return nil
		case err != nil:
			return err
		}
		// NOT_SUPPORTED without a reason: vCenter did not come far enough to tell. It is asked a few times more.
		if answer.Status == "SUPPORTED" || answer.SupportedGuestOS != nil || answer.SupportedPowerState != nil || tries == checkTries {
			break
		}
		select {
		case <-pause.next():
		case <-ctx.Done():
			return r.interrupted(ctx)
		}
	}
	c.Status, c.SupportedGuestOS, c.SupportedPowerState = answer.Status, answer.SupportedGuestOS, answer.SupportedPowerState
	power := answer.SupportedPowerState != nil && !*answer.SupportedPowerState
	system := answer.SupportedGuestOS != nil && !*answer.SupportedGuestOS
	if answer.Status == "SUPPORTED" && !power && !system { // each of the three may say no
		return nil
	}
	if system {
		block(&stepError{step: "check", code: events.NotCustomizable, message: fmt.Sprintf(
			"vCenter says that the guest OS of vm %s cannot be customized: see the guest OS that is set on the VM; a running guest is a Linux that VMware's guest OS customization supports", r.vm)}, "vm")
	}
	if power && vm.PowerState == poweredOn { // else that is said already
		block(&stepError{step: "check", code: events.PowerState, message: fmt.Sprintf(
			"vCenter says that vm %s cannot be customized in its power state: see it in vCenter, and send the request again", r.vm)}, "vm")
	}
	if !power && !system {
		block(&stepError{step: "check", code: events.NotCustomizable, retryable: true, message: fmt.Sprintf(
			"vCenter says %s of vm %s, and no reason: see the VM's guest OS, VMware Tools and host", answer.Status, r.vm)}, "vm")
	}
	return nil
}

const poweredOn = "poweredOn"

// checkTries is how often a check without a reason is asked for.
const checkTries = 3

func olderThan9(apiVersion string) bool {
	major, _, _ := strings.Cut(apiVersion, ".")
	return len(major) == 1 && major < "9"
}

// checkSpec holds the spec against VI JSON and vSphere's rules. What the request alone shows was refused before; a stored one is read here first, and
// what vCenter would refuse of it is a blocker.
func (r *run) checkSpec(block func(*stepError, string)) []events.Remark {
	asked := r.asked.Customize
	if asked == nil || asked.SpecName == "" || r.spec == nil {
		return r.req.Warnings
	}
	const at = "customize.specName"
	report := custspec.CheckJSON(r.spec, "")
	for _, f := range report.Refused {
		block(&stepError{step: "check", code: events.InvalidRequest,
			message: fmt.Sprintf("customization specification %q of vCenter %s: %s: change it there, or give customize.spec", asked.SpecName, r.VCenter, f)}, at)
	}
	var stored []events.Remark
	for _, w := range events.Remarks(report.Warnings) {
		stored = append(stored, events.Remark{Code: w.Code, Field: at, Message: strings.TrimPrefix(w.Field+": "+w.Message, ": ")})
	}
	return slices.Concat(r.req.Warnings, stored)
}

// checkAdapters holds the spec's adapters against the VM's NICs, where vCenter shows them.
func (r *run) checkAdapters(vm vcapi.VM, block func(*stepError, string)) {
	if r.spec == nil || vm.Cards == nil {
		return
	}
	var macs []string
	for _, card := range vm.Cards {
		macs = append(macs, card.MAC)
	}
	at, stored := "customize.spec", r.asked.Customize.SpecName
	if stored != "" {
		at = ""
	}
	for _, f := range custspec.CheckAdapters(r.spec, macs, at) {
		field, message := f.Field, f.String()
		if stored != "" {
			field, message = "customize.specName", fmt.Sprintf("customization specification %q of vCenter %s: %s", stored, r.VCenter, f)
		}
		block(&stepError{step: "check", code: events.InvalidRequest, message: message}, field)
	}
}

// noVM is the end of a run whose VM vCenter does not show, with what may be wrong with its ID.
func (r *run) noVM(why *stepError) *stepError {
	f := &stepError{step: "check", code: why.code, err: why.err, message: fmt.Sprintf("vm %s in vCenter %s: %s", r.vm, r.VCenter, why.message)}
	if hint := events.HintVM(r.vm); hint != "" && why.code == events.NotFound {
		f.message += ": " + hint
	}
	return f
}

// warningsOfProcesses names the programs that a crash would leave in doubt.
func (r *run) warningsOfProcesses() (w []events.Remark) {
	for i := range r.asked.Processes {
		asked := &r.asked.Processes[i]
		if asked.Run == nil || r.markOf(asked) != "" {
			continue
		}
		w = append(w, events.Remark{Code: "NoMarker", Field: fmt.Sprintf("processes[%d].run", i), Message: "no shell of a Windows guest takes a marker away from the program, so " +
			"it is started without one: where a crash or a lost answer hides whether it was started, the run ends as Uncertain"})
	}
	return w
}

func warningsOfVM(vm vcapi.VM) []events.Remark {
	var w []events.Remark
	if vm.PendingCustomization != "" {
		w = append(w, events.Remark{Code: "PendingCustomization", Field: "vm",
			Message: "a customization for the next power-on is pending on the VM (" + vm.PendingCustomization + "): it will change the guest again"})
	}
	if vm.CloudInit {
		w = append(w, events.Remark{Code: "CloudInit", Field: "vm",
			Message: "the VM carries cloud-init data (guestinfo.userdata or guestinfo.metadata): cloud-init may write the network too, and the last one wins"})
	}
	return w
}
