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

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// identityTime is what a process's start time may cost before its fact is stored.
const identityTime = 2 * time.Second

// Pace of the polling of a guest process: tools look once a second themselves, and keep an exit code for five minutes.
const (
	firstPoll   = time.Second
	longestPoll = 20 * time.Second
)

// marker makes a process findable again: a comment at the end of its command line, which tools keep verbatim. The guest's shell ignores it.
func marker(run, process string) string { return "# gf:" + run + "." + process }

// marked is the argument string with the marker. On a line of its own where the arguments have several: it must not end up in a here-document. A
// backslash at the end would take the blank, or the line end, away from it: the shell reads two as the one that was sent.
func marked(arguments, mark string) string {
	if trailing := len(arguments) - len(strings.TrimRight(arguments, `\`)); trailing%2 == 1 {
		arguments += `\`
	}
	if strings.Contains(arguments, "\n") {
		return arguments + "\n" + mark
	}
	return arguments + " " + mark
}

// bears reports whether a command line ends in the marker.
func bears(command, mark string) bool {
	return strings.HasSuffix(strings.TrimRight(command, " '\""), mark)
}

// markOf is the marker that the program is started with; "" on Windows, where no shell would take it away from the program: a process is known by
// its pid and start time alone there. Where the guest does not say what it is, the path does.
func (r *run) markOf(asked *events.ProcessSpec) string {
	windows := r.guestFamily == "windowsGuest"
	if r.guestFamily == "" {
		windows = !strings.HasPrefix(asked.Run.Path, "/")
	}
	if windows {
		return ""
	}
	return marker(r.state.Run, asked.Name)
}

// sentMark is the marker that the process was started with, "" for none.
func (r *run) sentMark(asked *events.ProcessSpec) string {
	if asked.Run == nil || slices.Contains(r.point.Unmarked, asked.Name) {
		return ""
	}
	return marker(r.state.Run, asked.Name)
}

// startProcess is the act of starting a program in the guest: guest/processes create.
func (r *run) startProcess(asked *events.ProcessSpec, p *events.Process) *act {
	var auth vcapi.GuestAuth
	var environment map[string]string
	return &act{
		name: "process", starting: events.ProcessStarting, started: events.ProcessStarted,
		look: func(ctx context.Context) (sighting, error) { return r.lookForProcess(ctx, asked, p) },
		prepare: func(ctx context.Context) (intend func(), err error) {
			if auth, err = r.processAuth(ctx, asked); err != nil {
				return nil, err
			}
			environment = make(map[string]string, len(asked.Run.Environment))
			for name, t := range asked.Run.Environment {
				value, err := r.secrets.text(ctx, t)
				if err != nil {
					return nil, r.noSecret(ctx, "process", "environment."+name, err)
				}
				if environment[name] = value; t.SecretRef != "" {
					auth.Redact = append(auth.Redact, value)
				}
			}
			return func() {
				mark := r.markOf(asked)
				r.point.Unmarked = slices.DeleteFunc(r.point.Unmarked, func(name string) bool { return name == asked.Name })
				if mark == "" {
					r.point.Unmarked = append(r.point.Unmarked, asked.Name)
				}
				p.Command = commandLine(asked.Run, mark)
			}, nil
		},
		call: func(ctx context.Context, gate vcapi.Fence) error {
			var err error
			p.PID, err = r.vc.StartProcess(ctx, gate, r.vm, auth, vcapi.ProcessSpec{Path: asked.Run.Path,
				Arguments: argumentsOf(asked.Run, r.sentMark(asked)), WorkingDirectory: asked.Run.WorkingDirectory, Environment: environment})
			if err != nil {
				return err
			}
			// Its start time makes its identity whole. It is worth one read, not a retry: the marker finds it too.
			ctx, cancel := context.WithTimeout(ctx, identityTime)
			defer cancel()
			if shown, err := r.vc.Process(ctx, r.vm, auth, p.PID); err == nil && r.isProcess(asked, p, shown) {
				noteProcess(p, shown)
			}
			return nil
		},
	}
}

func argumentsOf(e *events.ExecSpec, mark string) string {
	if mark == "" {
		return e.Arguments
	}
	return marked(e.Arguments, mark)
}

// commandLine is what the guest will show of a program. (guest/processes: "path" arguments.)
func commandLine(e *events.ExecSpec, mark string) string {
	return strings.TrimRight(`"`+e.Path+`" `+argumentsOf(e, mark), " ")
}

// isProcess reports whether what the guest shows under the pid of p is that process, and not another one that got its pid later: by our marker, else by
// the start time that was read at its beginning. Where that could not be read, the command line must be the one that was sent; of a process that was
// started elsewhere nothing else is known.
func (r *run) isProcess(asked *events.ProcessSpec, p *events.Process, shown vcapi.Process) bool {
	mark := r.sentMark(asked)
	switch {
	case mark != "" && bears(shown.Command, mark):
		return true
	case p.StartedAt != nil && !shown.Started.IsZero():
		return sameTime(*p.StartedAt, shown.Started)
	case asked.Run == nil:
		return true
	}
	return mark == "" && strings.TrimRight(shown.Command, " ") == commandLine(asked.Run, "")
}

func noteProcess(p *events.Process, shown vcapi.Process) {
	p.ProcessName, p.Owner = shown.Name, shown.Owner
	if shown.Command != "" {
		p.Command = shown.Command
	}
	if p.StartedAt == nil && !shown.Started.IsZero() { // the first one read stays its identity
		started := shown.Started
		p.StartedAt = &started
	}
}

// processAuth reads the credentials for a process: its own, or the run's.
func (r *run) processAuth(ctx context.Context, asked *events.ProcessSpec) (vcapi.GuestAuth, error) {
	if asked.Credentials != nil {
		return r.authOf(ctx, asked.Credentials, "process", "processes["+asked.Name+"].credentials")
	}
	return r.guestAuth(ctx, "process")
}

// watchProcess begins to watch a process that was started elsewhere: it must be there, and be the one that the request names.
func (r *run) watchProcess(ctx context.Context, asked *events.ProcessSpec, p *events.Process) error {
	s := r.current()
	shown, err := ask(ctx, r, s, func(ctx context.Context) (vcapi.Process, error) {
		auth, err := r.processAuth(ctx, asked)
		if err != nil {
			return vcapi.Process{}, err
		}
		return r.vc.Process(ctx, r.vm, auth, asked.Watch.PID)
	})
	if err != nil {
		return err
	}
	if at := asked.Watch.StartedAt; at != nil && !sameTime(shown.Started, *at) {
		return &stepError{step: s.name, process: p.Name, code: events.NotFound, message: fmt.Sprintf(
			"pid %d was started at %s, the request names one of %s: another process has the pid now; correct startedAt, or leave it out to wait for that one", asked.Watch.PID,
			shown.Started.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))}
	}
	p.PID, p.State = asked.Watch.PID, events.Running
	noteProcess(p, shown)
	return r.record(events.ProcessStarted)
}

// lookForProcess looks in the guest for the process of the run: by its marker. One that is started without a marker cannot be told from another one
// of the same program, so it is never adopted: either none of that program has appeared since the intent, or it cannot be known.
func (r *run) lookForProcess(ctx context.Context, asked *events.ProcessSpec, p *events.Process) (sighting, error) {
	auth, err := r.processAuth(ctx, asked)
	if err != nil {
		return sighting{}, err
	}
	now, err := r.vc.Now(ctx)
	if err != nil {
		return sighting{}, err
	}
	list, err := r.vc.Processes(ctx, r.vm, auth)
	if err != nil {
		return sighting{}, err
	}
	guest := guestIdentity(list)
	s := sighting{sure: true, now: intent{At: now, Guest: guest}}
	if open := r.point.Intent; r.open && open != nil {
		age := now.Sub(open.At)
		s.sure = age >= 0 && age < processReach && guest == open.Guest
	}
	mark := r.markOf(asked)
	if r.open {
		mark = r.sentMark(asked)
	}
	if mark == "" {
		s.now.Alike = alike(list, asked.Run)
		s.sure = s.sure && !r.mayBeAmong(s.now.Alike, list, asked)
		return s, nil
	}
	if found := withMarker(list, mark, commandLine(asked.Run, mark)); found != nil {
		s.adopt = func() {
			p.PID = found.PID
			noteProcess(p, *found)
		}
		s.sure = true
	}
	return s, nil
}

// withMarker finds the process that was started with a marker. Where a shell runs it, the shell's own children may show the same command line for a
// moment: it is the one that tools keep verbatim, else the first that was started.
func withMarker(list []vcapi.Process, mark, command string) (found *vcapi.Process) {
	for i, shown := range list {
		switch {
		case !bears(shown.Command, mark):
		case shown.Command == command:
			return &list[i]
		case found == nil || shown.Started.Before(found.Started) || shown.Started.Equal(found.Started) && shown.PID < found.PID:
			found = &list[i]
		}
	}
	return found
}

// alike are the processes of a list that run the same program, by pid and start time.
func alike(list []vcapi.Process, e *events.ExecSpec) (same []string) {
	program := programName(e.Path)
	for _, shown := range list {
		if programName(shown.Name) == program || strings.TrimRight(shown.Command, " ") == commandLine(e, "") {
			same = append(same, identity(shown))
		}
	}
	return same
}

// programName is a program's file name as Windows compares it: without folder, case and extension.
func programName(path string) string {
	name := strings.ToLower(path[strings.LastIndexAny(path, `\/`)+1:])
	return strings.TrimSuffix(name, ".exe")
}

func identity(p vcapi.Process) string {
	return fmt.Sprintf("%d %s", p.PID, p.Started.UTC().Format(time.RFC3339))
}

// mayBeAmong reports whether a process without a marker may have been started already: one of its program has appeared since the intent; or, where no
// intent is known and an owner before us may have had one, one runs with the very command line and is none that this run knows of.
func (r *run) mayBeAmong(now []string, list []vcapi.Process, asked *events.ProcessSpec) bool {
	if open := r.point.Intent; r.open && open != nil {
		return slices.ContainsFunc(now, func(id string) bool { return !slices.Contains(open.Alike, id) })
	}
	if !r.tookOver && !r.open {
		return false
	}
	return slices.ContainsFunc(list, func(shown vcapi.Process) bool {
		return strings.TrimRight(shown.Command, " ") == commandLine(asked.Run, "") &&
			!slices.ContainsFunc(r.state.Processes, func(p events.Process) bool { return p.PID == shown.PID })
	})
}

// guestIdentity names the vmtoolsd and the pid 1 of a process list: when they are others than before, tools or the guest were restarted, and
// what had ended by then is forgotten. What a guest does not list, it lists neither time.
func guestIdentity(list []vcapi.Process) string {
	var who []string
	for _, p := range list {
		if p.PID == 1 || p.Name == "vmtoolsd" || strings.HasPrefix(p.Name, "vmtoolsd.") {
			who = append(who, fmt.Sprintf("%s %d %s", p.Name, p.PID, p.Started.UTC().Format(time.RFC3339)))
		}
	}
	slices.Sort(who)
	return strings.Join(who, ", ")
}

// exited waits for the end of a process. vSphere does not push it, so it is asked for, ever more rarely.
func (r *run) exited(ctx context.Context, asked *events.ProcessSpec, p *events.Process) error {
	s := r.current()
	poll, away := &backoff{first: firstPoll, cur: firstPoll}, false
	for {
		select {
		case <-poll.next():
		case <-ctx.Done():
			return r.interrupted(ctx)
		}
		poll.cur = min(poll.cur, longestPoll)
		auth, err := r.processAuth(ctx, asked)
		if err != nil {
			return err
		}
		r.calling()
		shown, err := r.vc.Process(ctx, r.vm, auth, p.PID)
		var v *vcapi.Error
		why := events.Waiting("")
		if errors.As(err, &v) && ctx.Err() == nil {
			why = r.absence(ctx, s, v)
		}
		switch {
		case err == nil:
			away = false
			r.heard()
			r.moves(r.waits)
			r.stillWaits(waitTold{})
			if !r.isProcess(asked, p, shown) {
				return r.exitLost(s, p, "its pid belongs to another process now, as far as the guest shows", nil)
			}
			noteProcess(p, shown)
			if shown.Finished == nil && shown.ExitCode == nil {
				continue
			}
			return r.exitedWith(s, asked, p, shown)
		case ctx.Err() != nil:
			return r.interrupted(ctx)
		case !errors.As(err, &v):
			return err
		case r.outcome(s, v).code == events.NotFound:
			if _, err := ask(ctx, r, s, r.readVM); err != nil { // the VM is gone, not the process
				return err
			}
			if asked.Watch != nil && len(asked.SuccessExitCodes) == 0 {
				return r.complete(events.ProcessExited, &p.State, nil) // its end is all that was asked for
			}
			return r.exitLost(s, p, "the guest no longer knows the process: VMware Tools keep an exit code for five minutes, and lose it when they are restarted", err)
		case why == "":
			return r.failure(s, err)
		case why != events.WaitingTools: // it is vCenter that does not tell
			if err := r.wait(why, err); err != nil {
				return err
			}
		case !away:
			away = true
			if err := r.unreachable(err); err != nil {
				return err
			}
		}
	}
}

func (r *run) exitedWith(s *step, asked *events.ProcessSpec, p *events.Process, shown vcapi.Process) error {
	p.FinishedAt, p.ExitCode = shown.Finished, shown.ExitCode
	if p.StartedAt != nil && p.FinishedAt != nil {
		r.endedAfter(p.FinishedAt.Sub(*p.StartedAt))
	}
	if asked.Watch != nil && len(asked.SuccessExitCodes) == 0 {
		return r.complete(events.ProcessExited, &p.State, nil)
	}
	if shown.ExitCode == nil {
		return r.exitLost(s, p, "the guest says that it ended, but not with which exit code", nil)
	}
	good := asked.SuccessExitCodes
	if len(good) == 0 {
		good = []int64{0}
	}
	if slices.ContainsFunc(good, func(code int64) bool { return sameExitCode(code, *shown.ExitCode) }) {
		return r.complete(events.ProcessExited, &p.State, nil)
	}
	return r.complete(events.ProcessExited, &p.State, &stepError{step: s.name, process: p.Name, code: events.ExitCode,
		message: fmt.Sprintf("process %s (pid %d) ended with exit code %s: see its own output in the guest", p.Name, p.PID, exitCodeText(*shown.ExitCode))})
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

func (r *run) exitLost(s *step, p *events.Process, why string, err error) error {
	return r.complete(events.ProcessExited, &p.State, &stepError{step: s.name, process: p.Name, code: events.ExitCodeUnknown, err: err,
		message: fmt.Sprintf("process %s (pid %d) has ended and its exit code is lost: %s; see in the guest what it did", p.Name, p.PID, why)})
}
