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

// checkStep reads everything that can be known before anything is changed, and tells all that speaks against the run at
// once.
type checkStep struct {
	*run
	step   *step
	status *events.Check
	why    *stepError // of the first blocker
}

func newCheckStep(r *run, s *step) {
	c := &checkStep{run: r, step: s, status: r.state.Check}
	s.read, s.end = c.read, events.CheckCompleted
}

// read makes the check.
func (c *checkStep) read(ctx context.Context, s *step) error {
	started := c.status.StartedAt
	if started == nil {
		now := stamp(time.Now())
		started = &now
	}

	*c.status, c.why = events.Check{State: events.Pending, StartedAt: started}, nil
	if err := c.checkSecrets(ctx); err != nil {
		return err
	}
	if err := c.checkStoredSpec(ctx); err != nil {
		return err
	}
	warnings := c.checkSpec()
	if err := c.checkVM(ctx, warnings); err != nil {
		return err
	}

	now := stamp(time.Now())
	c.status.FinishedAt = &now
	if c.why != nil {
		if n := len(c.status.Blockers) - 1; n > 0 {
			c.why.message += fmt.Sprintf(" (and %d more: see check.blockers)", n)
		}
		return s.complete(c.why)
	}

	if c.status.State != events.Pending { // vCenter's own check was not made
		return c.record(s.end)
	}
	return s.complete(nil)
}

// block notes what speaks against the run.
func (c *checkStep) block(f *stepError, field string) {
	c.status.Blockers = append(c.status.Blockers, events.Remark{Code: string(f.code), Message: f.message, Field: field})
	if c.why == nil {
		c.why = f
	}
}

// checkStoredSpec reads the spec that the request names, where it is stored in vCenter.
func (c *checkStep) checkStoredSpec(ctx context.Context) error {
	_, err := c.step.readSpec(ctx)
	var f *stepError
	if !errors.As(err, &f) || f.code != events.NotFound && f.code != events.Unauthorized {
		return err
	}
	f.message = fmt.Sprintf("vCenter %s gives no customization specification %q: %s", c.VCenter,
		c.spec.Customize.SpecName, f.message)
	c.block(f, "customize.specName")
	return nil
}

// checkVM looks at the VM, and at what may be done to it.
func (c *checkStep) checkVM(ctx context.Context, warnings []events.Remark) error {
	vm, err := retryRead(ctx, c.step, c.readVM)
	var f *stepError
	switch {
	case errors.As(err, &f) && (f.code == events.NotFound || f.code == events.Unauthorized):
		c.block(c.noVM(f), "vm")
		return nil
	case err != nil:
		return err
	}

	if c.point.BaselineAt == nil {
		if _, err := retryRead(ctx, c.step, c.baseline); err != nil {
			return err
		}
	}

	if vm.PowerState != poweredOn {
		c.block(&stepError{step: c.step.name, code: events.PowerState,
			message: fmt.Sprintf("vm %s is %s: only a running guest can be customized, power it on", c.vm,
				vm.PowerState)}, "vm")
	}

	c.checkAdapters(vm)
	c.status.Warnings = slices.Concat(warnings, warningsOfVM(vm))
	for _, s := range c.steps {
		if s.warnings != nil {
			c.status.Warnings = append(c.status.Warnings, s.warnings()...)
		}
	}

	if err := c.checkPrivileges(ctx); err != nil {
		return err
	}
	return c.customizable(ctx, vm)
}

// checkSecrets reads every secret that the request names, so that a missing one is known before anything is changed. It
// fails where ctx ends.
func (c *checkStep) checkSecrets(ctx context.Context) error {
	if guest := c.spec.Guest; guest != nil {
		c.checkCredentials(ctx, guest.Credentials, "guest.credentials")
	}
	if customize := c.spec.Customize; customize != nil {
		c.checkTree(ctx, customize.Spec, "customize.spec")
		c.checkTree(ctx, customize.ConfigParams, "customize.configParams")
	}

	for i, p := range c.spec.Processes {
		c.checkCredentials(ctx, p.Credentials, fmt.Sprintf("processes[%d].credentials", i))
		if p.Run == nil {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(p.Run.Environment)) {
			field := fmt.Sprintf("processes[%d].run.environment.%s", i, name)
			if _, err := c.secrets.text(ctx, p.Run.Environment[name]); err != nil {
				c.noSecretFor(c.noSecret(ctx, c.step.name, field, err), field)
			}
		}
	}

	if ctx.Err() != nil {
		return c.interrupted(ctx)
	}
	return nil
}

// checkCredentials reads the guest credentials that the request names.
func (c *checkStep) checkCredentials(ctx context.Context, named *events.CredentialsRef, field string) {
	if named == nil {
		return
	}
	auth, err := c.authOf(ctx, named, c.step.name, field)
	c.noSecretFor(err, field)
	if auth.SAMLToken != "" && c.spec.Guest != nil && c.spec.Guest.InteractiveSession {
		c.block(&stepError{step: c.step.name, code: events.InvalidRequest,
			message: fmt.Sprintf("guest.interactiveSession needs user name and password, and %s, secret %q, holds a "+
				"token: "+
				"leave out interactiveSession, or name a secret with a password", field,
				named.SecretRef)}, "guest.interactiveSession")
	}
}

// checkTree reads the secrets that a tree of JSON names.
func (c *checkStep) checkTree(ctx context.Context, tree json.RawMessage, field string) {
	if _, _, err := c.secrets.fill(ctx, tree); err != nil {
		c.noSecretFor(c.noSecret(ctx, c.step.name, field, err), field)
	}
}

// noSecretFor notes that a secret cannot be read.
func (c *checkStep) noSecretFor(err error, field string) {
	var f *stepError
	if errors.As(err, &f) {
		c.block(f, field)
	}
}

// checkPrivileges looks whether the service's login may do on the VM what the run's steps need. A vCenter that does not
// tell is believed that it may.
func (c *checkStep) checkPrivileges(ctx context.Context) error {
	fields := map[string]string{} // by privilege: the part of the request that needs it
	for _, s := range slices.Backward(c.steps) {
		maps.Copy(fields, s.privileges)
	}
	if len(fields) == 0 {
		return nil
	}
	wanted := slices.Sorted(maps.Keys(fields))
	missing, err := retryRead(ctx, c.step, func(ctx context.Context) ([]string, error) {
		missing, err := c.vc.MissingPrivileges(ctx, c.vm, wanted)
		if permanent(err) {
			return nil, nil
		}
		return missing, err
	})

	for _, privilege := range missing {
		c.block(&stepError{step: c.step.name, code: events.Unauthorized, message: fmt.Sprintf(
			"the service's login at vCenter %s lacks the privilege %s on vm %s: add it to its role", c.VCenter,
			privilege, c.vm)},
			fields[privilege])
	}
	return err
}

// What the service's role must hold on the VM, by the pages of the calls that need it; docs/operate/vcenter-role.md has
// all.
const (
	mayCustomize = "VirtualMachine.Provisioning.Customize"
	mayConnect   = "VirtualMachine.Interact.DeviceConnection"
	mayEdit      = "VirtualMachine.Config.EditDevice" // to be connected at power-on is a setting of the NIC
	mayExecute   = "VirtualMachine.GuestOperations.Execute"
	mayQuery     = "VirtualMachine.GuestOperations.Query"
)

// customizable puts vCenter's own check (9.0 and later) into the run.
func (c *checkStep) customizable(ctx context.Context, vm vcapi.VM) error {
	if c.spec.Check.Mode == "skip" {
		c.status.State = events.Skipped
		return nil
	}

	about, err := retryRead(ctx, c.step, c.vc.About)
	if err != nil {
		return err
	}
	if olderThan9(about.APIVersion) {
		c.lacksCheck(about)
		return nil
	}

	answer, err := c.askVCenter(ctx)
	var f *stepError
	switch {
	case errors.As(err, &f) && f.code == events.Unsupported:
		c.lacksCheck(about)
		return nil
	case errors.As(err, &f) && (f.code == events.NotFound || f.code == events.Unauthorized):
		c.block(c.noVM(f), "vm")
		return nil
	case err != nil:
		return err
	}

	c.takeAnswer(answer, vm)
	return nil
}

// lacksCheck notes that this vCenter cannot check.
func (c *checkStep) lacksCheck(about vcapi.About) {
	c.status.State = events.Unavailable
	if c.spec.Check.Mode == "required" {
		c.block(&stepError{step: c.step.name, code: events.Unsupported, message: fmt.Sprintf(
			"vCenter %s speaks vSphere API %s, the check needs 9.0: update it, or ask for check.mode auto or skip",
			c.VCenter, about.APIVersion)}, "check.mode")
	}
}

// askVCenter asks for vCenter's own check. NOT_SUPPORTED without a reason: vCenter did not come far enough to tell. It
// is asked a few times more.
func (c *checkStep) askVCenter(ctx context.Context) (vcapi.Check, error) {
	for pause, tries := newPause(askPause), 1; ; tries++ {
		answer, err := retryRead(ctx, c.step, func(ctx context.Context) (vcapi.Check, error) {
			return c.vc.CheckCustomization(ctx, c.vm)
		})
		reason := answer.SupportedGuestOS != nil || answer.SupportedPowerState != nil
		if err != nil || answer.Status == "SUPPORTED" || reason || tries == checkTries {
			return answer, err
		}
		if pause.Wait(ctx) != nil {
			return answer, c.interrupted(ctx)
		}
	}
}

// takeAnswer puts vCenter's answer into the run. Each of the three may say no.
func (c *checkStep) takeAnswer(answer vcapi.Check, vm vcapi.VM) {
	c.status.Status, c.status.SupportedGuestOS, c.status.SupportedPowerState =
		answer.Status, answer.SupportedGuestOS, answer.SupportedPowerState
	power := answer.SupportedPowerState != nil && !*answer.SupportedPowerState
	system := answer.SupportedGuestOS != nil && !*answer.SupportedGuestOS
	if system {
		c.block(&stepError{step: c.step.name, code: events.NotCustomizable, message: fmt.Sprintf(
			"vCenter says that the guest OS of vm %s cannot be customized: see the guest OS that is set on the VM; "+
				"a running guest is a Linux that VMware's guest OS customization supports", c.vm)}, "vm")
	}

	if power && vm.PowerState == poweredOn { // else that is said already
		c.block(&stepError{step: c.step.name, code: events.PowerState, message: fmt.Sprintf(
			"vCenter says that vm %s cannot be customized in its power state: see it in vCenter, and send the "+
				"request again",
			c.vm)}, "vm")
	}

	if answer.Status != "SUPPORTED" && !power && !system {
		c.block(&stepError{step: c.step.name, code: events.NotCustomizable, retryable: true, message: fmt.Sprintf(
			"vCenter says %s of vm %s, and no reason: see the VM's guest OS, VMware Tools and host", answer.Status,
			c.vm)}, "vm")
	}
}

const poweredOn = "poweredOn"

// checkTries is how often a check without a reason is asked for.
const checkTries = 3

func olderThan9(apiVersion string) bool {
	major, _, _ := strings.Cut(apiVersion, ".")
	return len(major) == 1 && major < "9"
}

// checkSpec holds the spec against VI JSON and vSphere's rules. What the request alone shows was refused before; a
// stored one is read here first, and what vCenter would refuse of it is a blocker.
func (c *checkStep) checkSpec() []events.Remark {
	asked := c.spec.Customize
	if asked == nil || asked.SpecName == "" || c.customSpec.json == nil {
		return c.req.Warnings
	}
	const at = "customize.specName"
	report := custspec.CheckJSON(c.customSpec.json, "")
	for _, f := range report.Refused {
		c.block(&stepError{step: c.step.name, code: events.InvalidRequest,
			message: fmt.Sprintf("customization specification %q of vCenter %s: %s: change it there, or give "+
				"customize.spec", asked.SpecName, c.VCenter, f)}, at)
	}

	var stored []events.Remark
	for _, w := range events.Remarks(report.Warnings) {
		stored = append(stored, events.Remark{Code: w.Code, Field: at,
			Message: strings.TrimPrefix(w.Field+": "+w.Message, ": ")})
	}

	return slices.Concat(c.req.Warnings, stored)
}

// checkAdapters holds the spec's adapters against the VM's NICs, where vCenter shows them.
func (c *checkStep) checkAdapters(vm vcapi.VM) {
	if c.customSpec.json == nil || vm.Cards == nil {
		return
	}
	var macs []string
	for _, card := range vm.Cards {
		macs = append(macs, card.MAC)
	}
	at, stored := "customize.spec", c.spec.Customize.SpecName
	if stored != "" {
		at = ""
	}
	for _, f := range custspec.CheckAdapters(c.customSpec.json, macs, at) {
		field, message := f.Field, f.String()
		if stored != "" {
			field, message = "customize.specName", fmt.Sprintf("customization specification %q of vCenter %s: %s",
				stored, c.VCenter, f)
		}

		c.block(&stepError{step: c.step.name, code: events.InvalidRequest, message: message}, field)
	}
}

// noVM is the end of a run whose VM vCenter does not show, with what may be wrong with its ID.
func (c *checkStep) noVM(why *stepError) *stepError {
	f := &stepError{step: c.step.name, code: why.code, err: why.err,
		message: fmt.Sprintf("vm %s in vCenter %s: %s", c.vm, c.VCenter, why.message)}
	if hint := events.HintVM(c.vm); hint != "" && why.code == events.NotFound {
		f.message += ": " + hint
	}
	return f
}

func warningsOfVM(vm vcapi.VM) []events.Remark {
	var w []events.Remark
	if vm.PendingCustomization != "" {
		w = append(w, events.Remark{Code: "PendingCustomization", Field: "vm",
			Message: "a customization for the next power-on is pending on the VM (" + vm.PendingCustomization +
				"): it will change the guest again"})
	}

	if vm.CloudInit {
		w = append(w, events.Remark{Code: "CloudInit", Field: "vm",
			Message: "the VM carries cloud-init data (guestinfo.userdata or guestinfo.metadata): cloud-init may " +
				"write the network too, and the last one wins"})
	}

	return w
}
