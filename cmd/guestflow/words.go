package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

// event writes an event: the CloudEvent as it is, or a line for people.
func (s *screen) event(e *client.Event, who string) {
	if s.json {
		s.println(string(e.Line))
		return
	}
	if s.live && e.Kind == events.CustomizeProgressed {
		return // the line at the bottom shows it
	}
	at, n := "15:04:05.000", fmt.Sprintf("%3s  ", number(e.Run.N))
	if s.live && s.columns() < narrowScreen {
		at, n = "15:04:05", ""
	}
	s.printf("%s", strings.TrimRight(fmt.Sprintf("  %s  %s%s%s  %s", s.paint(dim, e.Time().Local().Format(at)), who, n,
		s.paint(kindColour(e.Kind), fmt.Sprintf("%-21s", e.Kind)), detail(e)), " "))
	if e.Kind == events.CheckCompleted {
		for _, line := range s.remarks(e.Run.Check) {
			s.printf("%s%s", strings.Repeat(" ", 4+len(at)+len(who)+len(n)-2), line)
		}
	}
}

// narrowScreen is where an event's line leaves out its number and the fractions of a second: the words need the room.
const narrowScreen = 100

func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func kindColour(k events.Kind) colour {
	switch k {
	case events.RunSucceeded:
		return green
	case events.RunFailed, events.KindRejected:
		return red
	case events.RunCanceled,
		events.RunWaiting,
		events.RunResumed,
		events.RunReleased,
		events.ProcessUnreachable,
		events.CustomizeAborting,
		events.CustomizeAborted:
		return yellow
	}
	return plain
}

func statusColour(s events.Status) colour {
	switch s {
	case events.StatusSucceeded:
		return green
	case events.StatusFailed, events.StatusRejected:
		return red
	case events.StatusCanceled:
		return yellow
	case events.StatusRunning:
		return cyan
	}
	return plain
}

func stateColour(s events.State) colour {
	switch s {
	case events.Succeeded:
		return green
	case events.Failed:
		return red
	case events.Canceled, events.Unavailable:
		return yellow
	case events.Running, events.Starting:
		return cyan
	case events.Skipped, events.Pending:
		return dim
	}
	return plain
}

// detail describes an event, except its kind, in one line.
func detail(e *client.Event) string {
	r := &e.Run
	switch step, _, _ := strings.Cut(string(e.Kind), "."); {
	case e.Kind == events.KindRejected:
		return errorWords(r)
	case step == "run":
		return runWords(e)
	case step == events.StepCheck && r.Check != nil:
		return flat(checkWords(r.Check))
	case e.Kind == events.CustomizeAborting && r.Customize != nil:
		return flat(r.Customize.Task)
	case e.Kind == events.CustomizeAborted, e.Kind == events.NetworkStarting:
		return ""
	case step == events.StepCustomize && r.Customize != nil:
		return flat(customizeWords(r.Customize))
	case step == events.StepNetwork && r.Network != nil:
		return flat(list(r.Network.Task, endWord(r.Network.State)))
	case step == events.StepVerify && r.Verify != nil:
		return flat(verifyWords(r.Verify))
	case step == events.StepProcess:
		return processDetail(e)
	}
	return ""
}

// runWords describes an event of the run as a whole.
func runWords(e *client.Event) string {
	r := &e.Run
	switch e.Kind {
	case events.RunAccepted, events.RunReleased, events.RunResumed:
		return flat(list(r.VMName, by(r.Owner)))
	case events.RunWaiting:
		return waitingWords(r)
	case events.RunSucceeded:
		return "in " + duration(r, e.Time())
	case events.RunFailed:
		return errorWords(r)
	case events.RunCanceled:
		if c := r.CanceledBy; c != nil {
			return flat(list("by "+c.Source, c.Reason))
		}
	}
	return ""
}

// errorWords is the error of a run.
func errorWords(r *events.Run) string {
	if r.Error == nil {
		return ""
	}
	return flat(string(r.Error.Code) + ": " + r.Error.Message)
}

// processDetail describes the process that an event is about.
func processDetail(e *client.Event) string {
	for _, p := range e.Run.Processes {
		if p.Name != e.Run.Process {
			continue
		}
		if e.Kind != events.ProcessStarting {
			p.Command = "" // process.starting has shown it
		}
		return flat(processWords(&p))
	}
	return flat(e.Run.Process)
}

// inPlace names the place of an error.
func inPlace(where string) string {
	if where == "" {
		return ""
	}
	return " in " + where
}

// list joins the parts that are not empty.
func list(parts ...string) string {
	var there []string
	for _, p := range parts {
		if p != "" {
			there = append(there, p)
		}
	}
	return strings.Join(there, ", ")
}

func by(o *events.Owner) string {
	switch {
	case o == nil:
		return ""
	case o.Takeovers == 1:
		return "by " + o.Instance + " after 1 takeover"
	case o.Takeovers > 1:
		return fmt.Sprintf("by %s after %d takeovers", o.Instance, o.Takeovers)
	}
	return "by " + o.Instance
}

// endWord is a final state; "" if the state is not final.
func endWord(s events.State) string {
	if s.Ended() {
		return string(s)
	}
	return ""
}

// waitingWords says what a run waits for, and why.
func waitingWords(r *events.Run) string {
	words := string(r.Waiting)
	switch r.Waiting {
	case events.WaitingTools:
		words += ": VMware Tools do not answer in the guest"
	case events.WaitingResourceBusy:
		words += ": vCenter says that the VM is busy with another task"
	case events.WaitingGuestLogin:
		words += ": the guest refuses the login, as it does right after a customization"
	case events.WaitingVCenterUnavailable:
		words += ": vCenter does not answer"
	case events.WaitingCallsInFlight:
		words += ": a call made before may still take effect"
	}
	if r.WaitingFor != nil {
		words += ": " + flat(r.WaitingFor.Message)
	}
	return words
}

func checkWords(c *events.Check) string {
	count := func(n int, one string) string {
		switch n {
		case 0:
			return ""
		case 1:
			return "1 " + one
		}
		return fmt.Sprintf("%d %ss", n, one)
	}
	what := c.Status
	if what == "" && c.State != events.Succeeded && c.State != events.Pending {
		what = string(c.State)
	}
	return list(what, count(len(c.Blockers), "blocker"), count(len(c.Warnings), "warning"))
}

// remarks are the blockers and warnings of a check, a line each.
func (s *screen) remarks(c *events.Check) (lines []string) {
	if c == nil {
		return nil
	}
	add := func(kind string, col colour, list []events.Remark) {
		for _, r := range list {
			at := ""
			if r.Field != "" {
				at = " (" + r.Field + ")"
			}
			lines = append(lines, s.paint(col, kind)+" "+flat(r.Code+at+": "+r.Message))
		}
	}
	add("blocker", red, c.Blockers)
	add("warning", yellow, c.Warnings)
	return lines
}

func customizeWords(c *events.Customize) string {
	progress, guest, decided := "", "", ""
	if c.Progress != nil && !c.State.Ended() {
		progress = fmt.Sprintf("%d %%", *c.Progress)
	}
	if c.Guest != nil && c.Guest.Status != "" && c.Guest.Status != "IDLE" {
		guest = "guest " + c.Guest.Status
	}
	if c.DecidedBy != "" {
		decided = "decided by " + c.DecidedBy
	}
	return list(c.Task, progress, guest, endWord(c.State), decided, c.Reason)
}

func verifyWords(v *events.Verify) string {
	all := slices.Clone(v.Mismatches)
	if len(all) == 0 {
		all = []string{list(v.HostName, nicWords(v.NICs))}
	}
	for _, n := range v.NotCompared {
		all = append(all, fmt.Sprintf("not compared: %s: %s", n.Field, n.Reason))
	}
	return strings.Join(all, "; ")
}

func nicWords(nics []events.NIC) string {
	var all []string
	for _, n := range nics {
		what := strings.Join(n.Addresses, " ")
		if what == "" {
			what = "no address"
		}
		if !n.Connected {
			what = "not connected"
		}
		all = append(all, n.MAC+" "+what)
	}
	return strings.Join(all, ", ")
}

func processWords(p *events.Process) string {
	command, _, _ := strings.Cut(p.Command, " # gf:") // what guestflow finds its process by; the JSON has it
	what := list(command, p.Reason)
	switch {
	case p.ExitCode != nil:
		what = fmt.Sprintf("exit code %d", *p.ExitCode)
	case p.PID != 0:
		what = list(fmt.Sprintf("pid %d", p.PID), what)
	}
	if what == "" {
		return p.Name
	}
	return p.Name + ": " + what
}

// duration is how long a run took; until at, if it has not ended.
func duration(r *events.Run, at time.Time) string {
	if r.AcceptedAt == nil {
		return "0s"
	}
	if r.FinishedAt != nil {
		at = *r.FinishedAt
	}
	return shortDuration(at.Sub(*r.AcceptedAt))
}

// shortDuration is a duration as people say it: 4.6s, 1m12s, 3h20m.
func shortDuration(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// failureLines say why a run did not succeed, and what was seen of the guest. messageShown: the error's message has
// been printed already.
func (s *screen) failureLines(r *events.Run, messageShown bool) (lines []string) {
	e := r.Error
	add := func(what, text string) {
		if text = flat(text); text != "" {
			lines = append(lines, s.paint(dim, fmt.Sprintf("%-10s", what))+" "+text)
		}
	}
	if e != nil && e.Code != events.CodeCanceled {
		step := e.Step
		if e.Process != "" {
			step += " " + e.Process
		}
		if messageShown {
			add("where", list(step, e.Field))
		} else {
			lines = append(
				lines,
				s.paint(dim, fmt.Sprintf("%-10s", "error"))+" "+s.paint(red, flat(string(e.Code)))+clean(
					inPlace(list(step, e.Field)),
				),
			)
			add("", e.Message)
		}
		if v := e.VSphere; v != nil {
			status := ""
			if v.HTTPStatus != 0 {
				status = fmt.Sprintf("HTTP %d", v.HTTPStatus)
			}
			add("vCenter", list(v.Name, status, v.LocalizedMessage))
		}
		retry := "no: something has to be changed first"
		if e.Retryable {
			retry = "yes: a new request may succeed with nothing changed"
		}
		add("try again", retry)
	}
	if o := r.Observed; o != nil {
		tools := ""
		if o.ToolsRunningStatus != "" {
			tools = strings.TrimSpace(o.ToolsRunningStatus + " " + o.ToolsVersion)
		}
		add("seen", list(o.PowerState, tools, o.HostName, nicWords(o.NICs)))
		for i, line := range o.GuestLog {
			what := ""
			if i == 0 {
				what = "guest log"
			}
			add(what, line)
		}
	}
	return lines
}
