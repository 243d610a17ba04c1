package vcsim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// exitRecordTime is how long VMware Tools keep the exit record of a process [open-vm-tools
// VIX_TOOLS_EXITED_PROGRAM_REAP_TIME].
const exitRecordTime = 5 * time.Minute

// process is a process in a guest, by the guest's clock.
type process struct {
	pid      int64
	name     string
	owner    string
	command  string
	started  time.Time
	until    time.Time // when it ends, zero for never
	exitCode int64
	orphaned bool // VMware Tools were restarted since: its end will not be known
}

// ended reports whether it has ended.
func (p *process) ended(now time.Time) bool { return !p.until.IsZero() && !now.Before(p.until) }

// listed reports whether VMware Tools still show the process.
func (p *process) listed(now time.Time) bool {
	return !p.ended(now) || !p.orphaned && now.Before(p.until.Add(exitRecordTime))
}

// processInfo is Vcenter.Vm.Guest.Processes.Info, and with a PID its Summary.
type processInfo struct {
	PID      int64  `json:"pid,omitempty"`
	Name     string `json:"name"`
	Owner    string `json:"owner"`
	Command  string `json:"command"`
	Started  string `json:"started"`
	Finished string `json:"finished,omitempty"`
	ExitCode *int64 `json:"exit_code,omitempty"`
}

func (p *process) info(now time.Time) processInfo {
	i := processInfo{Name: p.name, Owner: p.owner, Command: p.command, Started: restTime(p.started)}
	if p.ended(now) && !p.orphaned {
		code := p.exitCode
		i.Finished, i.ExitCode = restTime(p.until.Truncate(time.Second)), &code
	}
	return i
}

func (p *process) summary() processInfo {
	return processInfo{PID: p.pid, Name: p.name, Owner: p.owner, Command: p.command, Started: restTime(p.started)}
}

// restTime is a date-time as REST writes it.
func restTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// processes are all that VMware Tools show, by process ID. vm.mu is held.
func (vm *VM) processes() []*process {
	now := vm.v.GuestNow()
	vm.procs = slices.DeleteFunc(vm.procs, func(p *process) bool { return !p.listed(now) })
	all := []*process{
		{pid: 1, name: "systemd", owner: "root", command: "/sbin/init", started: vm.booted},
		{pid: vm.toolsPID, name: "vmtoolsd", owner: "root", command: "/usr/bin/vmtoolsd", started: vm.toolsAt},
	}

	all = append(all, vm.procs...)
	slices.SortStableFunc(all, func(a, b *process) int { return cmp.Compare(a.pid, b.pid) })
	return all
}

// process is the newest process with an ID, nil where VMware Tools show none. vm.mu is held.
func (vm *VM) process(pid int64) *process {
	var found *process
	for _, p := range vm.processes() {
		if p.pid == pid {
			found = p
		}
	}
	return found
}

// processSpec is Vcenter.Vm.Guest.Processes.CreateSpec.
type processSpec struct {
	Path             string          `json:"path"`
	Arguments        string          `json:"arguments"`
	WorkingDirectory string          `json:"working_directory"`
	Environment      json.RawMessage `json:"environment_variables"`
	StartMinimized   *bool           `json:"start_minimized"`
}

// readable reports whether the environment has the form of the call's API: under /rest it is a list of pairs.
func (s processSpec) readable(old bool) bool {
	if len(s.Environment) == 0 {
		return true
	}

	var variables any = new(map[string]string)
	if old {
		variables = new([]struct {
			Key   *string `json:"key"`
			Value *string `json:"value"`
		})
	}

	dec := json.NewDecoder(bytes.NewReader(s.Environment))
	dec.DisallowUnknownFields()
	return dec.Decode(variables) == nil
}

// startProcess starts a program; its response is the process ID. vm.mu is held.
func (vm *VM) startProcess(spec processSpec) response {
	invalid := func(reason, file string) response {
		return restError("INVALID_ARGUMENT", "com.vmware.api.vcenter.vm.guest.processes.invalid_path",
			fmt.Sprintf("The path %q is not valid.", file), map[string]string{"reason": reason, "file_path": file})
	}

	switch {
	case spec.Path == "":
		return invalid("FILE_NOT_FOUND", spec.Path)
	case len(spec.Path) > 4096:
		return invalid("PATH_TOO_LONG", spec.Path)
	case spec.WorkingDirectory != "" && !path.IsAbs(spec.WorkingDirectory):
		return invalid("NOT_A_DIRECTORY", spec.WorkingDirectory)
	case spec.StartMinimized != nil && vm.guest.Family != "windowsGuest":
		return restError(
			"INVALID_ARGUMENT",
			"com.vmware.api.vcenter.vm.guest.processes.start_minimized",
			"start_minimized is for Windows guests only.",
			nil,
		)
	}

	command := `"` + spec.Path + `"`
	if spec.Arguments != "" {
		command += " " + spec.Arguments
	}

	program, ok := vm.program(spec.Path, spec.Arguments)
	if !ok {
		return restError(
			"NOT_FOUND",
			"com.vmware.api.vcenter.vm.guest.file_not_found",
			fmt.Sprintf("File %s was not found.", spec.Path),
			map[string]string{"reason": "FILE_NOT_FOUND", "file_path": spec.Path},
		)
	}

	if program.Err != "" {
		return restError(
			program.Err,
			"com.vmware.api.vcenter.vm.guest.processes.create",
			"The program "+spec.Path+" could not be started.",
			nil,
		)
	}

	now := vm.v.GuestNow()
	p := &process{
		pid: vm.guest.NextPID, name: path.Base(spec.Path), owner: vm.guest.Username, command: command,
		started: now.Truncate(time.Second), exitCode: program.ExitCode,
	}

	if program.Duration >= 0 {
		p.until = now.Add(program.Duration)
	}

	vm.guest.NextPID++
	vm.procs = append(vm.procs, p)
	vm.effects.Processes = append(vm.effects.Processes, command)
	return jsonResponse(http.StatusCreated, p.pid)
}

// deleteProcess ends a process: SIGTERM is enough. vm.mu is held.
func (vm *VM) deleteProcess(p *process) {
	if now := vm.v.GuestNow(); !p.ended(now) && slices.Contains(vm.procs, p) {
		p.until, p.exitCode = now, 128+15
		vm.effects.Deleted = append(vm.effects.Deleted, p.pid)
	}
}

// program finds out how a command behaves: as configured, else as in a shell.
func (vm *VM) program(file, arguments string) (Program, bool) {
	plain := arguments
	if i := strings.LastIndex(" "+plain, " # "); i >= 0 {
		plain = strings.TrimSpace((" " + plain)[:i])
	}

	command := strings.TrimSpace(`"` + file + `" ` + plain)
	for _, key := range []string{command, plain, file} {
		if p, ok := vm.guest.Programs[key]; ok && key != "" {
			return p, true
		}
	}

	words := shellWords(arguments)
	switch strings.TrimPrefix(file, "/usr") {
	case "/bin/true", "/bin/echo":
		return Program{}, true
	case "/bin/false":
		return Program{ExitCode: 1}, true
	case "/bin/sleep":
		d, code := builtin(append([]string{"sleep"}, words...))
		return Program{Duration: d, ExitCode: code}, true
	case "/bin/sh", "/bin/bash":
		if len(words) >= 2 && strings.HasPrefix(words[0], "-") && strings.HasSuffix(words[0], "c") {
			d, code := script(words[1])
			return Program{Duration: d, ExitCode: code}, true
		}
		if len(words) > 0 {
			return Program{ExitCode: 127}, true // a script that is not there
		}
		return Program{}, true
	}

	return Program{}, false
}

// script interprets the few shell commands that examples use; any other is not found (127).
func script(text string) (takes time.Duration, code int64) {
	text = strings.NewReplacer("&&", ";", "\n", ";").Replace(text)
	for line := range strings.SplitSeq(text, ";") {
		words := shellWords(line)
		if len(words) == 0 {
			continue
		}

		if words[0] == "exit" {
			if len(words) > 1 {
				code, _ = strconv.ParseInt(words[1], 10, 64)
			}
			return takes, code & 0xff
		}

		d, c := builtin(words)
		takes, code = takes+d, c
	}

	return takes, code
}

func builtin(words []string) (takes time.Duration, code int64) {
	switch words[0] {
	case "true", ":", "echo", "printf":
		return 0, 0
	case "false":
		return 0, 1
	case "sleep":
		if len(words) < 2 {
			return 0, 1
		}
		s, err := strconv.ParseFloat(strings.TrimSuffix(words[1], "s"), 64)
		if err != nil || s < 0 {
			return 0, 1
		}
		return time.Duration(s * float64(time.Second)), 0
	}

	return 0, 127
}

// shellWords splits a line into words as a shell does, with quotes and comments, without expansion.
func shellWords(line string) []string {
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	for i, r := range line {
		switch {
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			in, quote = true, r
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		case r == '#' && !in && (i == 0 || line[i-1] == ' '):
			return words
		default:
			in = true
			word.WriteRune(r)
		}
	}

	if in {
		words = append(words, word.String())
	}

	return words
}
