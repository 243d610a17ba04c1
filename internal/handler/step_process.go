package handler

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// processTimeout is a process' timeout where the request names none.
const processTimeout = 10 * time.Minute

// identityTime is what a process's start time may cost before its start is recorded.
const identityTime = 2 * time.Second

// lostMostProcess bounds the time between two attempts whose answers were lost: a look must be sure (processReach)
// after it.
const lostMostProcess = 150 * time.Second

// Pace of the polling of a guest process: tools look once a second themselves, and keep an exit code for five minutes.
const (
	firstPoll   = time.Second
	longestPoll = 20 * time.Second
)

// processStep runs a program in the guest, or watches a process that was started elsewhere.
type processStep struct {
	*run
	step    *step
	program *events.ProcessSpec
	field   string // of the request
	status  *events.Process
}

func newProcessStep(r *run, s *step) {
	i := slices.IndexFunc(r.state.Processes, func(p events.Process) bool { return p.Name == s.process })
	p := &processStep{run: r, step: s, program: &r.spec.Processes[i], field: fmt.Sprintf("processes[%d]", i),
		status: &r.state.Processes[i]}
	s.timeout, s.timeoutField = p.program.Timeout.Or(processTimeout), "timeout of process "+s.process
	s.read, s.ended, s.stop, s.answer, s.warnings = p.read, p.ended, p.stop, p.answer, p.warnings
	s.end, s.fallback = events.ProcessExited, events.ProcessNotStarted

	s.privileges = map[string]string{mayQuery: "processes"}
	if p.program.Watch != nil {
		s.begin = p.watch
	} else {
		s.effect = p.start()
		s.privileges[mayExecute] = "processes"
	}
}

// mark is the marker that the program is started with; "" on Windows, where no shell would take it away from the
// program: a process is known by its pid and start time alone there. Where the guest does not say what it is, the path
// does.
func (p *processStep) mark() string {
	windows := p.seen.guestFamily == "windowsGuest"
	if p.seen.guestFamily == "" {
		windows = !strings.HasPrefix(p.program.Run.Path, "/")
	}
	if windows {
		return ""
	}
	return marker(p.state.ID, p.program.Name)
}

// sentMark is the marker that the process was started with, "" for none.
func (p *processStep) sentMark() string {
	if p.program.Run == nil || slices.Contains(p.point.Unmarked, p.program.Name) {
		return ""
	}
	return marker(p.state.ID, p.program.Name)
}

// warnings names a program that a crash would leave in doubt.
func (p *processStep) warnings() []events.Remark {
	if p.program.Run == nil || p.mark() != "" {
		return nil
	}
	return []events.Remark{{Code: "NoMarker", Field: p.field + ".run",
		Message: "no shell of a Windows guest takes a marker away from the program, so it is started without one: " +
			"where a crash or a lost answer hides whether it was started, the run ends as Uncertain"}}
}

// answer is what an answer of vCenter means for a process.
func (p *processStep) answer(v *vcapi.Error, o outcome) outcome {
	running := *p.step.state == events.Running
	starts := p.step.effect != nil && !running
	refused := o.code == events.InvalidRequest || o.code == events.NotFound && len(v.Data) > 0
	switch {
	case v.Class == vcapi.GuestCredentials:
	case v.Name == "SERVICE_UNAVAILABLE":
		return outcome{events.ToolsNotRunning, events.WaitingTools}
	case starts && v.Class == vcapi.Permanent && refused:
		return outcome{code: events.ProcessNotStarted} // a bad path, or a program that does not exist
	case running && o.code == events.ProcessNotStarted: // it was started: this is about the question
		o.code = events.Internal
	}

	return o
}

// start is the effect of starting a program in the guest: guest/processes create.
func (p *processStep) start() *effect {
	var auth vcapi.GuestAuth
	var environment map[string]string
	return &effect{
		name: "process", starting: events.ProcessStarting, started: events.ProcessStarted, lostMost: lostMostProcess,
		find: p.find,
		prepare: func(ctx context.Context) (intend func(), err error) {
			if auth, err = p.auth(ctx); err != nil {
				return nil, err
			}
			var secrets []string
			if environment, secrets, err = p.environment(ctx); err != nil {
				return nil, err
			}
			auth.Redact = append(auth.Redact, secrets...)
			return p.intend, nil
		},
		call: func(ctx context.Context, fence vcapi.Fence) error {
			var err error
			run := p.program.Run
			p.status.PID, err = p.vc.StartProcess(ctx, fence, p.vm, auth, vcapi.ProcessSpec{Path: run.Path,
				Arguments: argumentsOf(run, p.sentMark()), WorkingDirectory: run.WorkingDirectory,
				Environment: environment})
			if err != nil {
				return err
			}

			// Its start time makes its identity whole. It is worth one read, not a retry: the marker finds it too.
			ctx, cancel := context.WithTimeout(ctx, identityTime)
			defer cancel()
			if shown, err := p.vc.Process(ctx, p.vm, auth, p.status.PID); err == nil && p.is(shown) {
				p.note(shown)
			}
			return nil
		},
	}
}

// environment is the program's, with the secrets that it names, which come apart too.
func (p *processStep) environment(ctx context.Context) (all map[string]string, secrets []string, err error) {
	all = make(map[string]string, len(p.program.Run.Environment))
	for name, t := range p.program.Run.Environment {
		value, err := p.secrets.text(ctx, t)
		if err != nil {
			return nil, nil, p.noSecret(ctx, p.step.name, "environment."+name, err)
		}
		if all[name] = value; t.SecretRef != "" {
			secrets = append(secrets, value)
		}
	}

	return all, secrets, nil
}

// intend notes what is about to be sent.
func (p *processStep) intend() {
	name, mark := p.program.Name, p.mark()
	p.point.Unmarked = slices.DeleteFunc(p.point.Unmarked, func(other string) bool { return other == name })
	if mark == "" {
		p.point.Unmarked = append(p.point.Unmarked, name)
	}
	p.status.Command = commandLine(p.program.Run, mark)
}

// is reports whether what the guest shows under the pid of the process is that process, and not another one that got
// its pid later: by our marker, else by the start time that was read at its beginning. Both times are the guest's, by
// the same call, so that a second between them is another process. Where none could be read, the command line must be
// the one that was sent; of a process that was started elsewhere nothing else is known.
func (p *processStep) is(shown vcapi.Process) bool {
	mark := p.sentMark()
	switch {
	case mark != "" && bears(shown.Command, mark):
		return true
	case p.status.StartedAt != nil && !shown.Started.IsZero():
		return sameTime(*p.status.StartedAt, shown.Started)
	case p.program.Run == nil:
		return true
	}

	return mark == "" && strings.TrimRight(shown.Command, " ") == commandLine(p.program.Run, "")
}

// note takes in what the guest shows of the process.
func (p *processStep) note(shown vcapi.Process) {
	p.status.ProcessName, p.status.Owner = shown.Name, shown.Owner
	if shown.Command != "" {
		p.status.Command = shown.Command
	}
	if p.status.StartedAt == nil && !shown.Started.IsZero() { // the first one read stays its identity
		started := shown.Started
		p.status.StartedAt = &started
	}
}

// auth reads the credentials for the process: its own, or the run's.
func (p *processStep) auth(ctx context.Context) (vcapi.GuestAuth, error) {
	if p.program.Credentials != nil {
		return p.authOf(ctx, p.program.Credentials, p.step.name, "processes["+p.program.Name+"].credentials")
	}
	return p.guestAuth(ctx, p.step.name)
}

// shown reads what the guest shows under the pid.
func (p *processStep) shown(ctx context.Context, pid int64) (vcapi.Process, error) {
	auth, err := p.auth(ctx)
	if err != nil {
		return vcapi.Process{}, err
	}
	p.callBegins()
	return p.vc.Process(ctx, p.vm, auth, pid)
}

// watch begins to watch a process that was started elsewhere: it must be there, and be the one that the request names.
func (p *processStep) watch(ctx context.Context, s *step) error {
	watch := p.program.Watch
	shown, err := retryRead(ctx, s, func(ctx context.Context) (vcapi.Process, error) { return p.shown(ctx, watch.PID) })
	if err != nil {
		return err
	}
	// The request's time comes from somewhere else: cut by one and rounded by the other, it is a whole second apart.
	if at := watch.StartedAt; at != nil && shown.Started.Sub(*at).Abs() > precision {
		return &stepError{step: s.name, process: s.process, code: events.NotFound, message: fmt.Sprintf(
			"pid %d was started at %s, the request names one of %s: another process has the pid now; correct "+
				"startedAt, "+
				"or leave it out to wait for that one",
			watch.PID, shown.Started.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))}
	}

	p.status.PID, *s.state = watch.PID, events.Running
	p.note(shown)
	return p.record(events.ProcessStarted)
}

// find looks in the guest for the process of the run: by its marker. One that is started without a marker cannot be
// told from another one of the same program, so it is never adopted: either none of that program has appeared since the
// intent, or it cannot be known.
func (p *processStep) find(ctx context.Context) (found, error) {
	auth, err := p.auth(ctx)
	if err != nil {
		return found{}, err
	}
	now, err := p.vc.Now(ctx)
	if err != nil {
		return found{}, err
	}
	list, err := p.vc.Processes(ctx, p.vm, auth)
	if err != nil {
		return found{}, err
	}

	guest := guestIdentity(list)
	f := found{sure: true, now: intent{At: now, Guest: guest}}
	if open := p.point.Intent; p.owner.inFlight && open != nil {
		age := now.Sub(open.At)
		f.sure = age >= 0 && age < processReach && guest == open.Guest
	}

	mark := p.mark()
	if p.owner.inFlight {
		mark = p.sentMark()
	}
	if mark == "" {
		f.now.Alike = alike(list, p.program.Run)
		f.sure = f.sure && !p.mayBeAmong(f.now.Alike, list)
		return f, nil
	}

	if shown := withMarker(list, mark, commandLine(p.program.Run, mark)); shown != nil {
		f.sure = true
		f.adopt = func() {
			p.status.PID = shown.PID
			p.note(*shown)
		}
	}

	return f, nil
}

// mayBeAmong reports whether a process without a marker may have been started already: one of its program has appeared
// since the intent; or, where no intent is known and an owner before us may have had one, one runs with the very
// command line and is none that this run knows of.
func (p *processStep) mayBeAmong(now []string, list []vcapi.Process) bool {
	if open := p.point.Intent; p.owner.inFlight && open != nil {
		return slices.ContainsFunc(now, func(id string) bool { return !slices.Contains(open.Alike, id) })
	}
	if !p.owner.tookOver && !p.owner.inFlight {
		return false
	}
	return slices.ContainsFunc(list, func(shown vcapi.Process) bool {
		known := func(other events.Process) bool { return other.PID == shown.PID }
		return strings.TrimRight(shown.Command, " ") == commandLine(p.program.Run, "") &&
			!slices.ContainsFunc(p.state.Processes, known)
	})
}

// read waits for the end of a process. vSphere does not push it, so it is asked for, ever more rarely.
func (p *processStep) read(ctx context.Context, s *step) error {
	pause, away := backoff.New(firstPoll, longestPoll), false
	for {
		if pause.Wait(ctx) != nil {
			return p.interrupted(ctx)
		}

		shown, err := p.shown(ctx, p.status.PID)
		var v *vcapi.Error
		switch {
		case err == nil:
			away = false
			if over, err := p.showsUp(s, shown); over || err != nil {
				return err
			}
		case ctx.Err() != nil:
			return p.interrupted(ctx)
		case !errors.As(err, &v):
			return err
		default:
			if over, err := p.notShown(ctx, s, v, err, &away); over || err != nil {
				return err
			}
		}
	}
}

// showsUp takes in what the guest shows. It reports whether the step is over.
func (p *processStep) showsUp(s *step, shown vcapi.Process) (over bool, err error) {
	p.vCenterAnswered()
	p.telemetry.unblocked()
	p.setAnnounced(announcement{})
	if !p.is(shown) {
		return true, p.exitLost(s, "its pid belongs to another process now, as far as the guest shows", nil)
	}
	p.note(shown)
	if shown.Finished == nil && shown.ExitCode == nil {
		return false, nil
	}
	return true, p.exited(s, shown)
}

// notShown takes in why the guest does not show the process. It reports whether the step is over.
func (p *processStep) notShown(ctx context.Context, s *step, v *vcapi.Error, err error, away *bool) (over bool,
	_ error) {
	why := s.absence(ctx, v)
	switch {
	case s.outcome(v).code == events.NotFound:
		if _, err := retryRead(ctx, s, p.readVM); err != nil { // the VM is gone, not the process
			return true, err
		}
		if p.endIsEnough() {
			return true, s.complete(nil)
		}
		return true, p.exitLost(s, "the guest no longer knows the process: VMware Tools keep an exit code for five "+
			"minutes, "+
			"and lose it when they are restarted", err)
	case why == "":
		return true, s.failure(err)
	case why != events.WaitingTools: // it is vCenter that does not tell
		return false, p.reportBlocked(why, err)
	case !*away:
		*away = true
		return false, p.unreachable(err)
	}

	return false, nil
}

// endIsEnough reports whether the end of the process is all that was asked for.
func (p *processStep) endIsEnough() bool {
	return p.program.Watch != nil && len(p.program.SuccessExitCodes) == 0
}

// exited ends the step with what the process ended with.
func (p *processStep) exited(s *step, shown vcapi.Process) error {
	p.status.FinishedAt, p.status.ExitCode = shown.Finished, shown.ExitCode
	if p.status.StartedAt != nil && shown.Finished != nil {
		p.telemetry.ranFor(shown.Finished.Sub(*p.status.StartedAt))
	}
	if p.endIsEnough() {
		return s.complete(nil)
	}
	if shown.ExitCode == nil {
		return p.exitLost(s, "the guest says that it ended, but not with which exit code", nil)
	}
	good := p.program.SuccessExitCodes
	if len(good) == 0 {
		good = []int64{0}
	}
	if slices.ContainsFunc(good, func(code int64) bool { return sameExitCode(code, *shown.ExitCode) }) {
		return s.complete(nil)
	}
	return s.complete(&stepError{step: s.name, process: s.process, code: events.ExitCode,
		message: fmt.Sprintf("process %s (pid %d) ended with exit code %s: see its own output in the guest",
			s.process, p.status.PID, exitCodeText(*shown.ExitCode))})
}

func (p *processStep) exitLost(s *step, why string, err error) error {
	message := fmt.Sprintf("process %s (pid %d) has ended and its exit code is lost: %s; see in the guest what it did",
		s.process, p.status.PID, why)
	return s.complete(&stepError{step: s.name, process: s.process, code: events.ExitCodeUnknown, err: err,
		message: message})
}

// ended reports whether the process has ended, or the guest no longer knows it.
func (p *processStep) ended(ctx context.Context) (bool, error) {
	auth, err := p.auth(ctx)
	if err != nil {
		return false, err
	}
	shown, err := p.vc.Process(ctx, p.vm, auth, p.status.PID)
	var v *vcapi.Error
	if errors.As(err, &v) && byName[v.Name].code == events.NotFound {
		return true, nil
	}
	return err == nil && (shown.Finished != nil || shown.ExitCode != nil || !p.is(shown)), err
}

// stop deletes the process.
func (p *processStep) stop(s *step) error {
	ctx, cancel := p.toStop()
	defer cancel()
	if s.effect == nil {
		p.status.Reason = "it was started elsewhere, and goes on"
		return nil
	}

	auth, err := p.auth(ctx)
	if err == nil {
		// Its pid may be another's by now, which is not ours to end.
		if shown, unread := p.vc.Process(ctx, p.vm, auth, p.status.PID); unread == nil && !p.is(shown) {
			p.status.Reason = "its pid belongs to another process now, as far as the guest shows: nothing was stopped"
			*s.state = events.Canceled
			return nil
		}

		err = p.retryUntilFinal(ctx, func(fence vcapi.Fence) error {
			return p.vc.DeleteProcess(ctx, fence, p.vm, auth,
				p.status.PID)
		})
	}

	var v *vcapi.Error
	if err != nil && (!errors.As(err, &v) || s.outcome(v).code != events.NotFound) { // not found: it has ended
		p.status.Reason = fmt.Sprintf("it could not be stopped: %v", err)
		return onlyFenced(err)
	}

	*s.state = events.Canceled
	if shown, unread := p.vc.Process(ctx, p.vm, auth, p.status.PID); unread == nil && p.is(shown) {
		p.status.FinishedAt = shown.Finished // as the guest tells, if it does
	}
	return nil
}

// sameExitCode compares the 32 bits of an exit code: Windows' own, such as 3221225477, come with and without a sign.
func sameExitCode(a, b int64) bool {
	return a == b || isExitCode(a) && isExitCode(b) && a&math.MaxUint32 == b&math.MaxUint32
}

func isExitCode(code int64) bool { return code >= math.MinInt32 && code <= math.MaxUint32 }

// exitCodeText shows an exit code, and as the field writes it where it is one of Windows' own errors.
func exitCodeText(code int64) string {
	if bits := code & math.MaxUint32; isExitCode(code) && bits > math.MaxInt32 {
		return fmt.Sprintf("%d (0x%08X)", code, bits)
	}
	return strconv.FormatInt(code, 10)
}
