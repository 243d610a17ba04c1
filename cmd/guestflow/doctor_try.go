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
	tryTime     = 3 * time.Minute // of the whole trial
	tryTaskTime = time.Minute     // until a Task that the trial made has ended
	tryPause    = 500 * time.Millisecond
)

// How a belief came out.
const (
	confirmed verdict = "confirmed"
	refuted   verdict = "refuted"
	unseen    verdict = "not-checkable"
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

// trial is what the beliefs are checked on.
type trial struct {
	*doctor
	tryOptions
	cfg   vcapi.Config
	vc    *vcapi.Client
	api   vcapi.About
	on    vcapi.VM
	auth  *vcapi.GuestAuth
	tasks []vcapi.Task // of the VM, as far as vCenter shows them
	told  bool         // vCenter gave its Task history, too
	made  map[string]vcapi.Task
}

// found is how a belief came out, and what was seen.
type found struct {
	verdict verdict
	what    string
}

func sawNothing(why string, args ...any) found { return found{unseen, fmt.Sprintf(why, args...)} }

// belief is one thing that guestflow takes for true of vCenter, and that no public page says for sure.
type belief struct {
	name string
	text string
	so   string // what follows where it is refuted
	look func(ctx context.Context, t *trial) found
}

// beliefs are all of them, in the order in which they are checked. What a trial cannot check is told as such, with what
// would.
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
		notHere("it takes a customization of the VM: send a request whose spec has scriptText, and look in the guest"),
	},
	{
		"windows-fault",
		"CustomizeGuest_Task of a Windows guest or a cloud-init identity is answered UncustomizableGuest",
		"",
		notHere("it takes a customization of such a VM: send a request, and see error.vsphere.name"),
	},
	{
		"poll-holds-session",
		"a long poll under way keeps the session of VI JSON alive, and a separate one of REST not",
		"",
		notHere(
			"it takes longer than the session's idle time-out, half an hour or more; from 8.0.3 there is one session " +
				"for both",
		),
	},
}

const tryEngineLog = "/var/log/vmware-gosc/instant_clone_customization.log"

func notHere(why string) func(context.Context, *trial) found {
	return func(context.Context, *trial) found { return sawNothing("%s", why) }
}

// try checks the beliefs on a VM.
func (c *cli) try(ctx context.Context, o tryOptions) error {
	name, err := c.oneVCenter()
	if err != nil {
		return err
	}
	cfg, err := app.LoadConfig(c.env)
	at := slices.IndexFunc(cfg.VCenters, func(v app.VCenter) bool { return v.Name == name })
	if at < 0 || about(apart(err), "VCENTER_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"_") {
		return fmt.Errorf("vCenter %s is not set up as the service needs it: guestflow doctor says what is wrong", name)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	t := &trial{
		doctor:     &doctor{cli: c, cfg: cfg},
		tryOptions: o,
		cfg:        cfg.VCenters[at].Client(),
		made:       map[string]vcapi.Task{},
	}
	t.cfg.CallTimeout = callTime
	t.chapter("try " + name + " " + o.vm)
	if t.vc, err = vcapi.New(t.cfg); err != nil {
		return err
	}
	defer t.vc.Close(context.WithoutCancel(ctx))
	if err := t.begin(ctx, name); err != nil {
		t.find(broken, "guestflow doctor --vm "+o.vm+" looks at the way to vCenter, the login and the privileges", "%v",
			err)
		return &exit{code: exitFailed}
	}
	t.acts(ctx)
	t.tasks, t.told, _ = t.vc.Tasks(ctx, o.vm, time.Time{}) // none: what asks for them says so
	for _, b := range beliefs {
		t.tell(b, b.look(ctx, t))
	}
	if t.broken {
		return &exit{code: exitFailed}
	}
	return c.failed()
}

// begin reads what all beliefs need.
func (t *trial) begin(ctx context.Context, vcenter string) (err error) {
	if t.api, err = t.vc.About(ctx); err != nil {
		return err
	}
	if t.on, err = t.vc.VM(ctx, t.tryOptions.vm); err != nil {
		return err
	}
	t.find(fine, "", "%s, API %s; %s is %s, VMware Tools %s, guest %s", t.api.Name, t.api.APIVersion, t.tryOptions.vm,
		t.on.PowerState, or(t.on.ToolsRunningStatus, "not known"), or(t.on.GuestFamily, "not known"))
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

// tell writes one belief and how it came out.
func (t *trial) tell(b belief, s found) {
	cure := ""
	if s.verdict == refuted {
		cure = b.so
	}
	if t.json {
		_ = t.object(
			finding{About: t.about, Verdict: s.verdict, What: b.name + ": " + b.text + ": " + s.what, Cure: cure},
		) // what cannot be written is seen at the end
		return
	}
	col := map[verdict]colour{confirmed: green, refuted: yellow, unseen: dim}[s.verdict]
	t.say("  %s %s", t.paint(col, fmt.Sprintf("%-13s", s.verdict)), t.paint(bold, b.name)+": "+b.text)
	t.say("  %13s seen: %s", "", flat(s.what))
	if cure != "" {
		t.say("  %13s %s", "", t.paint(bold, "so: ")+flat(cure))
	}
}

func (t *trial) allowed(what string) bool { return slices.Contains(t.allow, what) }

// free is the gate of an act that is allowed.
func free(context.Context) error { return nil }

// acts makes the Tasks that are allowed, and waits for their ends.
func (t *trial) acts(ctx context.Context) {
	for _, a := range []struct {
		what, name string
		call       func(context.Context, vcapi.Fence, string, vcapi.GuestAuth) (string, error)
	}{{allowAbort, "AbortCustomization_Task", t.vc.AbortCustomization}, {allowNetwork, "StartGuestNetwork_Task", t.vc.StartGuestNetwork}} {
		if !t.allowed(a.what) {
			continue
		}
		id, err := a.call(ctx, free, t.tryOptions.vm, *t.auth)
		var task vcapi.Task
		if err == nil {
			task, err = t.ended(ctx, id)
		}
		var refusal *vcapi.Error
		switch {
		case errors.As(err, &refusal):
			task.Name, task.State, task.Err = a.name, "refused", refusal
		case err != nil:
			t.find(odd, "", "%s: %v", a.name, err)
			continue
		}
		t.made[a.name] = task
		t.find(fine, "", "%s was called: %s", a.name, taskWords(task))
	}
}

func taskWords(task vcapi.Task) string {
	words := list(task.ID, task.State)
	if task.Err != nil {
		words += ": " + task.Err.Error()
	}
	return words
}

// ended waits for the end of a Task.
func (t *trial) ended(ctx context.Context, id string) (vcapi.Task, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, tryTaskTime, fmt.Errorf("%s has not ended within %s", id, tryTaskTime))
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

func expiredSession(ctx context.Context, t *trial) found {
	const want = "com.vmware.vapi.endpoint.method.authentication.required"
	e, err := t.vc.ProbeUnknownSession(ctx)
	if err != nil {
		return sawNothing("%v", err)
	}
	messages := make([]string, len(e.Messages))
	for i, m := range e.Messages {
		messages[i] = string(m)
	}
	what := fmt.Sprintf("%d %s, messages %s", e.Status, or(e.Name, "without a name"),
		or(strings.Join(messages, " "), "none"))
	if e.Status == 401 && e.Name == "UNAUTHENTICATED" && strings.Contains(what, want) {
		return found{confirmed, what}
	}
	return found{refuted, what}
}

func idlePoll(ctx context.Context, t *trial) found {
	status, body, err := t.vc.ProbeIdlePoll(ctx, t.tryOptions.vm)
	if err != nil {
		return sawNothing("%v", err)
	}
	what := fmt.Sprintf("%d with %s", status, or(body, "an empty body"))
	if status == 204 || body == "null" {
		return found{confirmed, what}
	}
	return found{refuted, what}
}

func checkMissing(ctx context.Context, t *trial) found {
	if major, _, _ := strings.Cut(t.api.APIVersion, "."); len(major) > 1 || major >= "9" {
		return sawNothing("this vCenter, API %s, has the check", t.api.APIVersion)
	}
	_, err := t.vc.CheckCustomization(ctx, t.tryOptions.vm)
	var e *vcapi.Error
	switch {
	case err == nil:
		return found{refuted, "it has the check"}
	case !errors.As(err, &e) || e.Status == 0:
		return sawNothing("%v", err)
	case (e.Status == 404 || e.Status == 400) && e.Name == "OPERATION_NOT_FOUND":
		return found{confirmed, e.Error()}
	}
	return found{refuted, e.Error()}
}

// descriptionIDs are what each Task is believed to be described by.
var descriptionIDs = map[string]string{
	"CustomizeGuest_Task":     "vm.GuestCustomizationManager.customize",
	"StartGuestNetwork_Task":  "vm.GuestCustomizationManager.startNetwork",
	"AbortCustomization_Task": "vm.GuestCustomizationManager.abortCustomization",
}

func taskNames(_ context.Context, t *trial) found {
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
		return sawNothing("vCenter shows no such Task of the VM%s: --allow abort makes one, a customization another",
			t.history())
	}
	return found{out, strings.Join(all, ", ")}
}

// history says where vCenter shows less than all Tasks.
func (t *trial) history() string {
	if t.told {
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

func statusMoves(ctx context.Context, t *trial) found {
	const clocks = 5 * time.Minute // between the guest's clock and vCenter's
	last := t.lastCustomization()
	if last.ID == "" {
		return sawNothing(
			"vCenter shows no CustomizeGuest_Task of the VM that has ended%s: customize it, then try again within "+
				"ten minutes",
			t.history(),
		)
	}
	status, err := t.vc.CustomizationStatus(ctx, t.tryOptions.vm)
	if err != nil {
		return sawNothing("%v", err)
	}
	what := fmt.Sprintf("%s ended (%s), the guest's status is %s", last.ID, last.State, status.Status)
	if status.StartTime == nil {
		return found{confirmed, what + ", without a start"}
	}
	what += ", begun " + status.StartTime.UTC().
		Format(time.RFC3339) +
		", the Task was queued " + last.QueueTime.UTC().
		Format(time.RFC3339)
	if status.StartTime.Before(last.QueueTime.Add(-clocks)) || status.StartTime.After(last.CompleteTime.Add(clocks)) {
		return found{confirmed, what}
	}
	return found{refuted, what}
}

// needsGuest says what is missing to ask the guest; "" where nothing is.
func (t *trial) needsGuest() string {
	switch {
	case t.auth == nil:
		return "the guest's credentials are needed: --try-secret"
	case t.on.PowerState != "poweredOn":
		return "the VM is " + t.on.PowerState
	case t.on.ToolsRunningStatus != "" && t.on.ToolsRunningStatus != "guestToolsRunning":
		return "VMware Tools do not run: " + t.on.ToolsRunningStatus
	}
	return ""
}

func tryLog(ctx context.Context, t *trial) found {
	const enough = 64 << 10
	if why := t.needsGuest(); why != "" {
		return sawNothing("%s", why)
	}
	content, err := t.vc.GuestFile(ctx, t.tryOptions.vm, *t.auth, tryEngineLog, enough)
	var e *vcapi.Error
	last := t.lastCustomization()
	switch {
	case err == nil:
		return found{confirmed, fmt.Sprintf("it is there, %d bytes of it were read", len(content))}
	case errors.As(err, &e) && e.Name == "FileNotFound" && last.State == "success":
		return found{refuted, fmt.Sprintf("it is not there, and %s customized the guest", last.ID)}
	case errors.As(err, &e) && e.Name == "FileNotFound":
		return sawNothing("it is not there; vCenter shows no Task that customized this guest")
	}
	return sawNothing("%v", err)
}

// oneAtATime lists the guest's processes by two sessions at once, for one session's client makes one guest call at a
// time.
func oneAtATime(ctx context.Context, t *trial) found {
	const rounds = 8
	if why := t.needsGuest(); why != "" {
		return sawNothing("%s", why)
	}
	other, err := vcapi.New(t.cfg)
	if err != nil {
		return sawNothing("%v", err)
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
		return found{confirmed, what}
	case failed != nil:
		return sawNothing("%s; %v", what, failed)
	}
	return found{refuted, what}
}

func marker(ctx context.Context, t *trial) found {
	const path = "/bin/true"
	switch why := t.needsGuest(); {
	case why != "":
		return sawNothing("%s", why)
	case !t.allowed(allowProcess):
		return sawNothing("it takes a process in the guest: --allow process starts %s", path)
	case t.on.GuestFamily != "" && t.on.GuestFamily != "linuxGuest":
		return sawNothing("guestflow puts a marker into the command lines of Linux guests alone, and this one is %s",
			t.on.GuestFamily)
	}
	mark := "# gf:try-" + strings.ToLower(rand.Text())
	pid, err := t.vc.StartProcess(ctx, free, t.tryOptions.vm, *t.auth, vcapi.ProcessSpec{Path: path, Arguments: mark})
	if err != nil {
		return sawNothing("%v", err)
	}
	all, err := t.vc.Processes(ctx, t.tryOptions.vm, *t.auth)
	if err != nil {
		return sawNothing("%v", err)
	}
	for _, p := range all {
		if p.PID == pid {
			what := "pid " + strconv.FormatInt(pid, 10) + " is " + p.Command
			if p.Command == `"`+path+`" `+mark {
				return found{confirmed, what}
			}
			return found{refuted, what}
		}
	}
	return found{refuted, fmt.Sprintf("pid %d, just started, is not in the list of %d processes", pid, len(all))}
}

func notRoot(_ context.Context, t *trial) found {
	task, called := t.made["AbortCustomization_Task"]
	switch {
	case t.auth == nil || t.auth.Username == "root":
		return sawNothing("it takes a guest user who is not root: --try-secret with such a one, and --allow abort")
	case !called:
		return sawNothing("it takes a call with the guest's credentials: --allow abort")
	case task.Err == nil:
		return found{refuted, "AbortCustomization_Task as " + t.auth.Username + ": " + taskWords(task)}
	case task.Err.Name == "GuestPermissionDenied":
		return found{confirmed, "AbortCustomization_Task as " + t.auth.Username + ": " + taskWords(task)}
	}
	return sawNothing("AbortCustomization_Task as %s: %s", t.auth.Username, taskWords(task))
}
