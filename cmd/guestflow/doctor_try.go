package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/secretfile"
	"github.com/guestflow/guestflow/internal/vcapi"
)

const (
	tryTimeout     = 3 * time.Minute // of the whole trial
	tryTaskTimeout = time.Minute     // until a Task that the trial made has ended
	tryPause       = 500 * time.Millisecond
)

// The result of checking a belief.
const (
	confirmed    verdict = "confirmed"
	refuted      verdict = "refuted"
	notCheckable verdict = "not-checkable"
)

// What the trial may change in the guest, by --allow.
const (
	allowProcess = "process"
	allowAbort   = "abort"
	allowNetwork = "network"
)

// tryOptions are the flags of doctor --try.
type tryOptions struct {
	vm, secret string
	allow      []string
}

func (o *tryOptions) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(
		&o.vm,
		"try",
		"",
		"VM, given for it: check on it what guestflow believes of vCenter and no public page says; reads only, but "+
			"for --allow",
	)
	flags.StringVar(
		&o.secret,
		"try-secret",
		"",
		"with --try: secret with the credentials of the VM's guest, as requests name it; without it the guest is "+
			"not asked",
	)
	flags.StringSliceVar(
		&o.allow,
		"allow",
		nil,
		"with --try: what may be done to the guest: process starts /bin/true in it, abort calls "+
			"AbortCustomization_Task "+
			"(which ends a customization that is under way), network calls StartGuestNetwork_Task (which restarts "+
			"its network)",
	)
}

func (o *tryOptions) check() error {
	for _, what := range o.allow {
		if !slices.Contains([]string{allowProcess, allowAbort, allowNetwork}, what) {
			return fmt.Errorf("--allow %s: it is %s, %s or %s", what, allowProcess, allowAbort, allowNetwork)
		}
	}
	switch {
	case o.vm == "" && (o.secret != "" || len(o.allow) > 0):
		return errors.New("--try-secret and --allow go with --try VM")
	case o.vm == "":
		return nil
	case len(o.allow) > 0 && o.secret == "":
		return errors.New("--allow needs --try-secret: the guest's credentials")
	}
	return validVM(o.vm)
}

// trial is what the checks of the beliefs share.
type trial struct {
	*doctor
	tryOptions
	cfg        vcapi.Config
	vc         *vcapi.Client
	api        vcapi.About
	vmState    vcapi.VM
	auth       *vcapi.GuestAuth
	tasks      []vcapi.Task // of the VM, as far as vCenter shows them
	hasHistory bool         // vCenter gave its Task history, too
	results    map[string]vcapi.Task
}

// observation is the result of checking a belief, and what was seen.
type observation struct {
	verdict verdict
	what    string
}

func couldNotCheck(why string, args ...any) observation {
	return observation{notCheckable, fmt.Sprintf(why, args...)}
}

// belief is something that guestflow assumes about vCenter and that no public page confirms.
type belief struct {
	name        string
	text        string
	consequence string // what follows where it is refuted
	check       func(ctx context.Context, t *trial) observation
}

// beliefs are all of them, in the order in which they are checked. If a trial cannot check one, it says what could.
var beliefs = []belief{
	{
		"expired-session",
		"a REST call with a session that vCenter does not know is answered 401 UNAUTHENTICATED, message " +
			"com.vmware.vapi.endpoint.method.authentication.required",
		"guestflow goes by the status and the error_type; report it, please",
		expiredSession,
	},
	{
		"idle-poll",
		"a long poll in which nothing has changed is answered 200 with null, or 204",
		"guestflow takes an answer without updates for it; report it, please",
		idlePoll,
	},
	{
		"check-missing",
		"a vCenter before 9.0 answers its missing customization check 404 or 400 OPERATION_NOT_FOUND",
		"set check.mode to skip in requests to this vCenter",
		checkMissing,
	},
	{
		"task-names",
		"the Tasks' descriptionId is vm.GuestCustomizationManager.customize, .startNetwork, .abortCustomization",
		"guestflow goes by the name of the Task; report it, please",
		taskNames,
	},
	{
		"status-moves",
		"the guest's customization status is often not moved by CustomizeGuest_Task",
		"nothing: guestflow believes a status only where it began after the call",
		statusMoves,
	},
	{
		"engine-log",
		"the engine's log is in the Linux guest, at " + tryEngineLog,
		"observed.guestLog stays empty: look for the log elsewhere in the guest",
		tryLog,
	},
	{
		"one-at-a-time",
		"two guest operations at once on one VM may be answered RESOURCE_BUSY",
		"nothing: guestflow makes one at a time for each VM",
		oneAtATime,
	},
	{
		"marker",
		"a process list shows a command line word for word, with the marker by which guestflow finds its process " +
			"after a crash",
		"after a crash a process counts as Uncertain: set onUncertain in requests",
		marker,
	},
	{
		"root",
		"a guest user who cannot act as root is refused with GuestPermissionDenied",
		"nothing: the run fails with what vCenter says instead",
		notRoot,
	},
	{
		"script-text",
		"CustomizeGuest_Task runs scriptText",
		"",
		notCheckableHere("it takes a customization of the VM: send a request whose spec has scriptText, " +
			"and look in the guest"),
	},
	{
		"windows-fault",
		"CustomizeGuest_Task of a Windows guest or a cloud-init identity is answered UncustomizableGuest",
		"",
		notCheckableHere("it takes a customization of such a VM: send a request, and see error.vsphere.name"),
	},
	{
		"poll-holds-session",
		"a long poll under way keeps the session of VI JSON alive, and a separate one of REST not",
		"",
		notCheckableHere(
			"it takes longer than the session's idle time-out, half an hour or more; from 8.0.3 there is one session " +
				"for both",
		),
	},
}

const tryEngineLog = "/var/log/vmware-gosc/instant_clone_customization.log"

func notCheckableHere(why string) func(context.Context, *trial) observation {
	return func(context.Context, *trial) observation { return couldNotCheck("%s", why) }
}

// try checks the beliefs on a VM.
func (c *cli) try(ctx context.Context, o tryOptions) error {
	name, err := c.oneVCenter()
	if err != nil {
		return err
	}
	cfg, err := app.LoadConfig(c.env)
	at := slices.IndexFunc(cfg.VCenters, func(v app.VCenter) bool { return v.Name == name })
	if at < 0 || hasSetting(settingErrors(err), "VCENTER_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"_") {
		return fmt.Errorf("vCenter %s is not set up as the service needs it: guestflow doctor says what is wrong", name)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	t := &trial{
		doctor:     &doctor{cli: c, cfg: cfg},
		tryOptions: o,
		cfg:        cfg.VCenters[at].Client(),
		results:    map[string]vcapi.Task{},
	}
	t.cfg.CallTimeout = callTimeout
	t.section("try " + name + " " + o.vm)
	if t.vc, err = vcapi.New(t.cfg); err != nil {
		return err
	}
	defer t.vc.Close(context.WithoutCancel(ctx))
	if err := t.prepare(ctx, name); err != nil {
		t.report(broken,
			"guestflow doctor --vm "+o.vm+" checks the connection to vCenter, the login and the privileges", "%v",
			err)
		return &exit{code: exitFailed}
	}
	t.makeTasks(ctx)
	t.tasks, t.hasHistory, _ = t.vc.Tasks(ctx, o.vm, time.Time{}) // none: what asks for them says so
	for _, b := range beliefs {
		t.reportBelief(b, b.check(ctx, t))
	}
	if t.broken {
		return &exit{code: exitFailed}
	}
	return c.writeError()
}

// prepare reads what all checks need.
func (t *trial) prepare(ctx context.Context, vcenter string) (err error) {
	if t.api, err = t.vc.About(ctx); err != nil {
		return err
	}
	if t.vmState, err = t.vc.VM(ctx, t.tryOptions.vm); err != nil {
		return err
	}
	t.report(passed, "", "%s, API %s; %s is %s, VMware Tools %s, guest %s",
		t.api.Name, t.api.APIVersion, t.tryOptions.vm,
		t.vmState.PowerState, or(t.vmState.ToolsRunningStatus, "not known"), or(t.vmState.GuestFamily, "not known"))
	if t.secret == "" {
		return nil
	}
	var auth vcapi.GuestAuth
	for key, into := range map[string]*string{"username": &auth.Username, "password": &auth.Password} {
		if *into, err = secretfile.Read(ctx,
			filepath.Join(t.doctor.cfg.Service.SecretsDir, vcenter, t.secret, key)); err != nil {
			return fmt.Errorf("secret %s: %w", t.secret, err)
		}
	}
	t.vc.Hide(auth.Password)
	t.auth = &auth
	return nil
}

// reportBelief prints a belief and its result.
func (t *trial) reportBelief(b belief, s observation) {
	cure := ""
	if s.verdict == refuted {
		cure = b.consequence
	}
	if t.json {
		_ = t.printJSON(
			finding{About: t.subject, Verdict: s.verdict, What: b.name + ": " + b.text + ": " + s.what, Cure: cure},
		) // what cannot be written is seen at the end
		return
	}
	col := map[verdict]colour{confirmed: green, refuted: yellow, notCheckable: dim}[s.verdict]
	t.printf("  %s %s", t.paint(col, fmt.Sprintf("%-13s", s.verdict)), t.paint(bold, b.name)+": "+b.text)
	t.printf("  %13s seen: %s", "", flat(s.what))
	if cure != "" {
		t.printf("  %13s %s", "", t.paint(bold, "so: ")+flat(cure))
	}
}

func (t *trial) allowed(what string) bool { return slices.Contains(t.allow, what) }

// alwaysAllowed is a vcapi.Fence that lets every call pass.
func alwaysAllowed(context.Context) error { return nil }

// makeTasks makes the Tasks that --allow permits, and waits for their ends.
func (t *trial) makeTasks(ctx context.Context) {
	for _, a := range []struct {
		what, name string
		call       func(context.Context, vcapi.Fence, string, vcapi.GuestAuth) (string, error)
	}{
		{allowAbort, "AbortCustomization_Task", t.vc.AbortCustomization},
		{allowNetwork, "StartGuestNetwork_Task", t.vc.StartGuestNetwork},
	} {
		if !t.allowed(a.what) {
			continue
		}
		id, err := a.call(ctx, alwaysAllowed, t.tryOptions.vm, *t.auth)
		var task vcapi.Task
		if err == nil {
			task, err = t.waitTask(ctx, id)
		}
		var refusal *vcapi.Error
		switch {
		case errors.As(err, &refusal):
			task.Name, task.State, task.Err = a.name, "refused", refusal
		case err != nil:
			t.report(warning, "", "%s: %v", a.name, err)
			continue
		}
		t.results[a.name] = task
		t.report(passed, "", "%s was called: %s", a.name, taskWords(task))
	}
}

func taskWords(task vcapi.Task) string {
	words := list(task.ID, task.State)
	if task.Err != nil {
		words += ": " + task.Err.Error()
	}
	return words
}

// waitTask waits for the end of a Task.
func (t *trial) waitTask(ctx context.Context, id string) (vcapi.Task, error) {
	late := fmt.Errorf("%s has not ended within %s", id, tryTaskTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, tryTaskTimeout, late)
	defer cancel()
	for {
		task, err := t.vc.Task(ctx, id)
		if err != nil || task.State == "success" || task.State == "error" {
			return task, err
		}
		if err := backoff.Sleep(ctx, tryPause); err != nil {
			return task, err
		}
	}
}

func expiredSession(ctx context.Context, t *trial) observation {
	const want = "com.vmware.vapi.endpoint.method.authentication.required"
	e, err := t.vc.ProbeUnknownSession(ctx)
	if err != nil {
		return couldNotCheck("%v", err)
	}
	messages := make([]string, len(e.Messages))
	for i, m := range e.Messages {
		messages[i] = string(m)
	}
	what := fmt.Sprintf("%d %s, messages %s", e.Status, or(e.Name, "without a name"),
		or(strings.Join(messages, " "), "none"))
	if e.Status == 401 && e.Name == "UNAUTHENTICATED" && strings.Contains(what, want) {
		return observation{confirmed, what}
	}
	return observation{refuted, what}
}

func idlePoll(ctx context.Context, t *trial) observation {
	status, body, err := t.vc.ProbeIdlePoll(ctx, t.tryOptions.vm)
	if err != nil {
		return couldNotCheck("%v", err)
	}
	what := fmt.Sprintf("%d with %s", status, or(body, "an empty body"))
	if status == 204 || body == "null" {
		return observation{confirmed, what}
	}
	return observation{refuted, what}
}

func checkMissing(ctx context.Context, t *trial) observation {
	if major, _, _ := strings.Cut(t.api.APIVersion, "."); len(major) > 1 || major >= "9" {
		return couldNotCheck("this vCenter, API %s, has the check", t.api.APIVersion)
	}
	_, err := t.vc.CheckCustomization(ctx, t.tryOptions.vm)
	var e *vcapi.Error
	switch {
	case err == nil:
		return observation{refuted, "it has the check"}
	case !errors.As(err, &e) || e.Status == 0:
		return couldNotCheck("%v", err)
	case (e.Status == 404 || e.Status == 400) && e.Name == "OPERATION_NOT_FOUND":
		return observation{confirmed, e.Error()}
	}
	return observation{refuted, e.Error()}
}

// descriptionIDs are the descriptionId that guestflow assumes for each Task.
var descriptionIDs = map[string]string{
	"CustomizeGuest_Task":     "vm.GuestCustomizationManager.customize",
	"StartGuestNetwork_Task":  "vm.GuestCustomizationManager.startNetwork",
	"AbortCustomization_Task": "vm.GuestCustomizationManager.abortCustomization",
}

func taskNames(_ context.Context, t *trial) observation {
	out, all := confirmed, []string{}
	for _, task := range t.tasks {
		want, ours := descriptionIDs[task.Name]
		if !ours && !strings.HasPrefix(task.DescriptionID, "vm.GuestCustomizationManager.") {
			continue
		}
		if !ours || task.DescriptionID != want {
			out = refuted
		}
		if what := or(task.Name, "no name") + " is " + or(task.DescriptionID,
			"not described"); !slices.Contains(all, what) {
			all = append(all, what)
		}
	}
	if len(all) == 0 {
		return couldNotCheck("vCenter shows no such Task of the VM%s: --allow abort makes one, a customization another",
			t.history())
	}
	return observation{out, strings.Join(all, ", ")}
}

// history says so if vCenter does not show all Tasks.
func (t *trial) history() string {
	if t.hasHistory {
		return ""
	}
	return " (of the last ten minutes: it gives no history)"
}

// lastCustomization is the latest CustomizeGuest_Task of the VM that has ended.
func (t *trial) lastCustomization() (last vcapi.Task) {
	for _, task := range t.tasks {
		if task.Name == "CustomizeGuest_Task" && task.CompleteTime != nil {
			last = task
		}
	}
	return last
}

func statusMoves(ctx context.Context, t *trial) observation {
	const clocks = 5 * time.Minute // between the guest's clock and vCenter's
	last := t.lastCustomization()
	if last.ID == "" {
		return couldNotCheck(
			"vCenter shows no CustomizeGuest_Task of the VM that has ended%s: customize it, then try again within "+
				"ten minutes",
			t.history(),
		)
	}
	status, err := t.vc.CustomizationStatus(ctx, t.tryOptions.vm)
	if err != nil {
		return couldNotCheck("%v", err)
	}
	what := fmt.Sprintf("%s ended (%s), the guest's status is %s", last.ID, last.State, status.Status)
	if status.StartTime == nil {
		return observation{confirmed, what + ", without a start"}
	}
	what += fmt.Sprintf(", begun %s, the Task was queued %s",
		status.StartTime.UTC().Format(time.RFC3339), last.QueueTime.UTC().Format(time.RFC3339))
	if status.StartTime.Before(last.QueueTime.Add(-clocks)) || status.StartTime.After(last.CompleteTime.Add(clocks)) {
		return observation{confirmed, what}
	}
	return observation{refuted, what}
}

// needsGuest says what is missing to ask the guest; "" if nothing is.
func (t *trial) needsGuest() string {
	switch {
	case t.auth == nil:
		return "the guest's credentials are needed: --try-secret"
	case t.vmState.PowerState != "poweredOn":
		return "the VM is " + t.vmState.PowerState
	case t.vmState.ToolsRunningStatus != "" && t.vmState.ToolsRunningStatus != "guestToolsRunning":
		return "VMware Tools do not run: " + t.vmState.ToolsRunningStatus
	}
	return ""
}

func tryLog(ctx context.Context, t *trial) observation {
	const enough = 64 << 10
	if why := t.needsGuest(); why != "" {
		return couldNotCheck("%s", why)
	}
	content, err := t.vc.GuestFile(ctx, t.tryOptions.vm, *t.auth, tryEngineLog, enough)
	var e *vcapi.Error
	last := t.lastCustomization()
	switch {
	case err == nil:
		return observation{confirmed, fmt.Sprintf("it is there, %d bytes of it were read", len(content))}
	case errors.As(err, &e) && e.Name == "FileNotFound" && last.State == "success":
		return observation{refuted, fmt.Sprintf("it is not there, and %s customized the guest", last.ID)}
	case errors.As(err, &e) && e.Name == "FileNotFound":
		return couldNotCheck("it is not there; vCenter shows no Task that customized this guest")
	}
	return couldNotCheck("%v", err)
}

// oneAtATime lists the guest's processes with two clients at once: one client makes one guest call at a time.
func oneAtATime(ctx context.Context, t *trial) observation {
	const rounds = 8
	if why := t.needsGuest(); why != "" {
		return couldNotCheck("%s", why)
	}
	other, err := vcapi.New(t.cfg)
	if err != nil {
		return couldNotCheck("%v", err)
	}
	defer other.Close(context.WithoutCancel(ctx))
	other.Hide(t.auth.Password)
	var busy, other200 int
	var failed error
	for range rounds {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, vc := range []*vcapi.Client{t.vc, other} {
			wg.Go(func() { _, errs[i] = vc.Processes(ctx, t.tryOptions.vm, *t.auth) })
		}
		wg.Wait()
		for _, err := range errs {
			var e *vcapi.Error
			switch {
			case err == nil:
				other200++
			case errors.As(err, &e) && (e.Name == "RESOURCE_BUSY" || e.Name == "TaskInProgress"):
				busy++
			default:
				failed = err
			}
		}
	}
	what := fmt.Sprintf("of %d process lists, two at a time, %d were answered and %d were refused as busy", 2*rounds,
		other200, busy)
	switch {
	case busy > 0:
		return observation{confirmed, what}
	case failed != nil:
		return couldNotCheck("%s; %v", what, failed)
	}
	return observation{refuted, what}
}

func marker(ctx context.Context, t *trial) observation {
	const path = "/bin/true"
	switch why := t.needsGuest(); {
	case why != "":
		return couldNotCheck("%s", why)
	case !t.allowed(allowProcess):
		return couldNotCheck("it takes a process in the guest: --allow process starts %s", path)
	case t.vmState.GuestFamily != "" && t.vmState.GuestFamily != "linuxGuest":
		return couldNotCheck("guestflow puts a marker into the command lines of Linux guests alone, and this one is %s",
			t.vmState.GuestFamily)
	}
	mark := "# gf:try-" + strings.ToLower(rand.Text())
	spec := vcapi.ProcessSpec{Path: path, Arguments: mark}
	pid, err := t.vc.StartProcess(ctx, alwaysAllowed, t.tryOptions.vm, *t.auth, spec)
	if err != nil {
		return couldNotCheck("%v", err)
	}
	all, err := t.vc.Processes(ctx, t.tryOptions.vm, *t.auth)
	if err != nil {
		return couldNotCheck("%v", err)
	}
	for _, p := range all {
		if p.PID == pid {
			what := "pid " + strconv.FormatInt(pid, 10) + " is " + p.Command
			if p.Command == `"`+path+`" `+mark {
				return observation{confirmed, what}
			}
			return observation{refuted, what}
		}
	}
	return observation{refuted, fmt.Sprintf("pid %d, just started, is not in the list of %d processes", pid, len(all))}
}

func notRoot(_ context.Context, t *trial) observation {
	task, called := t.results["AbortCustomization_Task"]
	switch {
	case t.auth == nil || t.auth.Username == "root":
		return couldNotCheck("it takes a guest user who is not root: --try-secret with such a one, and --allow abort")
	case !called:
		return couldNotCheck("it takes a call with the guest's credentials: --allow abort")
	case task.Err == nil:
		return observation{refuted, "AbortCustomization_Task as " + t.auth.Username + ": " + taskWords(task)}
	case task.Err.Name == "GuestPermissionDenied":
		return observation{confirmed, "AbortCustomization_Task as " + t.auth.Username + ": " + taskWords(task)}
	}
	return couldNotCheck("AbortCustomization_Task as %s: %s", t.auth.Username, taskWords(task))
}
