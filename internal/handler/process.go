package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// marked is the argument string with the marker. On a line of its own where the arguments have several: it must not end up in a here-document.
func marked(arguments, mark string) string {
	if strings.Contains(arguments, "\n") {
		return arguments + "\n" + mark
	}
	return arguments + " " + mark
}

// startProcess is the act of starting a program in the guest: guest/processes create.
func (r *run) startProcess(asked *events.AskedProcess, p *events.Process) *act {
	mark := marker(r.state.Run, p.Name)
	return &act{
		name: "process", starting: events.ProcessStarting, started: events.ProcessStarted,
		look: func(ctx context.Context) (sighting, error) { return r.lookForProcess(ctx, asked, p, mark) },
		intend: func(context.Context) error {
			p.Command = commandLine(asked.Run, mark)
			return nil
		},
		call: func(ctx context.Context, gate vcapi.Gate) error {
			auth, err := r.processAuth(ctx, asked)
			if err != nil {
				return err
			}
			environment := make(map[string]string, len(asked.Run.Environment))
			for name, t := range asked.Run.Environment {
				value, err := r.secrets.text(ctx, t)
				if err != nil {
					return r.noSecret(ctx, "process", "environment."+name, err)
				}
				if environment[name] = value; t.SecretRef != "" {
					auth.Redact = append(auth.Redact, value)
				}
			}
			p.PID, err = r.vc.StartProcess(ctx, gate, r.vm, auth, vcapi.ProcessSpec{Path: asked.Run.Path, Arguments: marked(asked.Run.Arguments, mark),
				WorkingDirectory: asked.Run.WorkingDirectory, Environment: environment})
			if err != nil {
				return err
			}
			// Its start time makes its identity whole. It is worth one read, not a retry: the marker finds it too.
			ctx, cancel := context.WithTimeout(ctx, identityTime)
			defer cancel()
			if shown, err := r.vc.Process(ctx, r.vm, auth, p.PID); err == nil {
				noteProcess(p, shown)
			}
			return nil
		},
	}
}

// commandLine is what the guest will show of a program. (guest/processes: "path" arguments, run by the guest's shell.)
func commandLine(e *events.AskedExec, mark string) string {
	return fmt.Sprintf("%q %s", e.Path, marked(e.Arguments, mark))
}

func noteProcess(p *events.Process, shown vcapi.Process) {
	p.ProcessName, p.Owner = shown.Name, shown.Owner
	if shown.Command != "" {
		p.Command = shown.Command
	}
	if !shown.Started.IsZero() {
		started := shown.Started
		p.StartedAt = &started
	}
}

// processAuth reads the credentials for a process: its own, or the run's.
func (r *run) processAuth(ctx context.Context, asked *events.AskedProcess) (vcapi.GuestAuth, error) {
	if asked.Credentials != nil {
		return r.authOf(ctx, asked.Credentials, "process", "processes["+asked.Name+"].credentials")
	}
	return r.guestAuth(ctx, "process")
}

// watchProcess begins to watch a process that was started elsewhere: it must be there, and be the one that the request names.
func (r *run) watchProcess(ctx context.Context, asked *events.AskedProcess, p *events.Process) error {
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
	if at := asked.Watch.StartedAt; at != nil && !shown.Started.Equal(*at) {
		return &stepError{step: s.name, process: p.Name, code: events.NotFound, message: fmt.Sprintf(
			"pid %d was started at %s, the request names one of %s: another process has the pid now", asked.Watch.PID,
			shown.Started.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))}
	}
	p.PID, p.State = asked.Watch.PID, events.Running
	noteProcess(p, shown)
	return r.record(events.ProcessStarted)
}

// lookForProcess looks in the guest for a process with the run's marker.
func (r *run) lookForProcess(ctx context.Context, asked *events.AskedProcess, p *events.Process, mark string) (sighting, error) {
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
	for _, shown := range list {
		if strings.HasSuffix(strings.TrimRight(shown.Command, " '\""), mark) {
			s.adopt = func() {
				p.PID = shown.PID
				noteProcess(p, shown)
			}
			return s, nil
		}
	}
	if open := r.point.Intent; r.open && open != nil {
		age := now.Sub(open.At)
		s.sure = age >= 0 && age < processReach && guest == open.Guest
	}
	return s, nil
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
func (r *run) exited(ctx context.Context, asked *events.AskedProcess, p *events.Process) error {
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
		shown, err := r.vc.Process(ctx, r.vm, auth, p.PID)
		var v *vcapi.Error
		switch {
		case err == nil:
			away, r.state.Waiting = false, ""
			r.moves(r.waits)
			if p.StartedAt != nil && !shown.Started.IsZero() && !shown.Started.Equal(*p.StartedAt) {
				return r.exitLost(s, p, "its pid belongs to another process now", nil)
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
		case r.outcome(s, v).waiting == "":
			return r.failure(s, err)
		case r.outcome(s, v).waiting != events.WaitingTools: // it is vCenter that does not tell
			if err := r.wait(r.outcome(s, v).waiting, err); err != nil {
				return err
			}
		case !away:
			away, r.lastErr = true, err
			if err := r.record(events.ProcessUnreachable); err != nil {
				return err
			}
		}
	}
}

func (r *run) exitedWith(s *step, asked *events.AskedProcess, p *events.Process, shown vcapi.Process) error {
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
	if slices.Contains(good, *shown.ExitCode) {
		return r.complete(events.ProcessExited, &p.State, nil)
	}
	return r.complete(events.ProcessExited, &p.State, &stepError{step: s.name, process: p.Name, code: events.ExitCode,
		message: fmt.Sprintf("process %s (pid %d) ended with exit code %d: see its own output in the guest", p.Name, p.PID, *shown.ExitCode)})
}

func (r *run) exitLost(s *step, p *events.Process, why string, err error) error {
	return r.complete(events.ProcessExited, &p.State, &stepError{step: s.name, process: p.Name, code: events.ExitCodeUnknown, err: err,
		message: fmt.Sprintf("process %s (pid %d) has ended and its exit code is lost: %s", p.Name, p.PID, why)})
}
