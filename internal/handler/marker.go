package handler

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// marker makes a process findable again: a comment at the end of its command line, which tools keep verbatim. The
// guest's shell ignores it.
func marker(run, process string) string { return "# gf:" + run + "." + process }

// marked is the argument string with the marker. On a line of its own where the arguments have several: it must not end
// up in a here-document. A backslash at the end would take the blank, or the line end, away from it: the shell reads
// two as the one that was sent.
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

// withMarker finds the process that was started with a marker. Where a shell runs it, the shell's own children may show
// the same command line for a moment: it is the one that tools keep verbatim, else the first that was started.
func withMarker(list []vcapi.Process, mark, command string) (found *vcapi.Process) {
	for i, shown := range list {
		switch {
		case !bears(shown.Command, mark):
		case shown.Command == command:
			return &list[i]
		case found == nil || shown.Started.Before(found.Started) ||
			shown.Started.Equal(found.Started) && shown.PID < found.PID:
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

// guestIdentity names the vmtoolsd and the pid 1 of a process list: when they are others than before, tools or the
// guest were restarted, and what had ended by then is forgotten. What a guest does not list, it lists neither time.
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
