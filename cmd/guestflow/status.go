package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

func (c *cli) statusCommand() *cobra.Command {
	var only []string
	cmd := &cobra.Command{
		Use:   "status [VM]",
		Short: "Show the state of a VM, or of all VMs as a table",
		Long: `Shows the state of a VM after its last event: its run with every step, why it waits or why it failed,
and the requests that wait for their turn. Without a VM it lists all VMs of the vCenter, or of all
vCenters if none is named.`,
		Example: `  guestflow status vm-42
  guestflow status --only running,failed`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return c.statusOfOne(cmd.Context(), args[0])
			}
			return c.statusOfAll(cmd.Context(), only)
		},
	}
	cmd.Flags().StringSliceVar(&only, "only", nil, "without a VM: only those with this status: "+
		"queued, running, succeeded, failed, canceled, unreadable")
	return cmd
}

// vmStatus describes a VM in JSON.
type vmStatus struct {
	VCenter string `json:"vcenter"`
	VM      string `json:"vm"`
	// Status is queued, that of the run, or unreadable.
	Status     string      `json:"status"`
	Step       string      `json:"step,omitempty"` // that a running run is in
	Unfinished *int        `json:"unfinished,omitempty"`
	Limit      *int        `json:"limit,omitempty"`
	Queue      []queued    `json:"queue,omitempty"`
	Event      events.Kind `json:"event,omitempty"` // the last one
	At         *time.Time  `json:"at,omitempty"`
	Run        *events.Run `json:"run,omitempty"` // as it stands after that
	Problem    string      `json:"problem,omitempty"`
}

type queued struct {
	Sequence uint64             `json:"sequence"`
	Request  *events.RequestRef `json:"request,omitempty"`
	Run      string             `json:"run,omitempty"`
	InHand   bool               `json:"inHand,omitempty"`
}

func statusOf(s *client.VMStatus) vmStatus {
	v := vmStatus{VCenter: s.VCenter, VM: s.VM, Status: "unknown"}
	if s.Unreadable != nil {
		v.Status, v.Problem = "unreadable", s.Unreadable.Error()
		return v
	}
	if s.Unfinished >= 0 {
		v.Unfinished, v.Limit = &s.Unfinished, &s.Limit
	}
	if s.Unfinished > 0 {
		v.Status = "queued"
	}
	if e := s.Last; e != nil {
		run, at := e.Run, e.Time()
		run.Checkpoint, run.Requested = nil, nil // guestflow's own; and it is in one event of the run alone
		v.Event, v.At, v.Run = e.Kind, &at, &run
		if !e.Last() || s.Unfinished <= 0 {
			v.Status = string(run.Status)
		}
		if !e.Last() {
			v.Step = currentStep(&run)
		}
	}
	for _, q := range s.Queue {
		one := queued{Sequence: q.Seq, Run: q.RunID}
		if q.RunID != "" {
			one.Request = &q.Ref
			one.InHand = s.Last != nil && !s.Last.Last() && s.Last.Run.ID == q.RunID
		}
		v.Queue = append(v.Queue, one)
	}
	return v
}

func (c *cli) statusOfOne(ctx context.Context, vm string) error {
	if err := validVM(vm); err != nil {
		return err
	}
	vcenter, err := c.oneVCenter()
	if err != nil {
		return err
	}
	conn, err := c.dial(ctx, maxOutage)
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := conn.Status(ctx, vcenter, vm)
	if err != nil {
		return err
	}
	if s.Last == nil && s.Unfinished <= 0 {
		return fmt.Errorf(
			"nothing is known of %s at %s: no request for it is in the queue, and no event in the journal (events "+
				"are kept for GUESTFLOW_EVENTS_MAX_AGE)",
			vm,
			vcenter,
		)
	}
	v := statusOf(s)
	if c.json {
		return c.printJSON(v)
	}
	c.printVM(v, time.Now())
	return c.writeError()
}

// printVM prints the state of one VM.
func (c *cli) printVM(v vmStatus, now time.Time) {
	row := func(what, text string) {
		if text != "" {
			c.printf("  %s %s", c.paint(dim, fmt.Sprintf("%-10s", what)), text)
		}
	}
	head := c.paint(bold, v.VM)
	if r := v.Run; r == nil {
		c.printf("%s at %s: %s", head, v.VCenter, v.Status)
	} else {
		if r.VMName != "" {
			head += " (" + flat(r.VMName) + ")"
		}
		c.printf("%s at %s: %s", head, v.VCenter,
			c.paint(statusColour(r.Status), string(r.Status))+clean(sinceWords(v, now)))
		row("run", r.ID)
		if r.Request != nil {
			row("request", flat(r.Request.ID+" from "+r.Request.Source))
		}
		row("owner", flat(strings.TrimPrefix(by(r.Owner), "by ")))
		row("waits", c.paint(yellow, waitingWords(r)))
		c.printSteps(r)
		if by := r.CanceledBy; by != nil {
			row("canceled", flat(list("by "+by.ID+" from "+by.Source, by.Reason)))
		}
		if r.Status != events.StatusSucceeded {
			for _, line := range c.failureLines(r, false) {
				c.printf("  %s", line)
			}
		}
	}
	switch waits := waitingRequests(v); {
	case len(v.Queue) == 0 && v.Unfinished != nil && *v.Unfinished > 0:
		row("queue", fmt.Sprintf("%d of %d unfinished requests", *v.Unfinished, *v.Limit))
	case len(waits) > 0:
		row("queue", fmt.Sprintf("%d of %d unfinished requests; these wait for their turn:", *v.Unfinished, *v.Limit))
		for _, q := range waits {
			text := "a message that cannot be read: it will be refused"
			if q.Request != nil {
				text = flat(q.Request.ID + " from " + q.Request.Source)
			}
			row("", text)
		}
	}
}

func waitingRequests(v vmStatus) []queued {
	return slices.DeleteFunc(slices.Clone(v.Queue), func(q queued) bool { return q.InHand })
}

// sinceWords says when a run began or ended, and its deadline.
func sinceWords(v vmStatus, now time.Time) string {
	r := v.Run
	if r.FinishedAt != nil {
		return fmt.Sprintf(" %s ago, in %s", shortDuration(now.Sub(*r.FinishedAt)), duration(r, *r.FinishedAt))
	}
	if r.AcceptedAt == nil {
		return ""
	}
	text := " for " + shortDuration(now.Sub(*r.AcceptedAt))
	if r.Deadline != nil {
		text += ", at most " + shortDuration(r.Deadline.Sub(now)) + " more"
	}
	return text
}

// printSteps prints every step of a run.
func (c *cli) printSteps(r *events.Run) {
	for _, s := range r.Steps() {
		text := flat(stepWords(r, s))
		if text != "" {
			text = strings.Repeat(" ", max(12-len(*s.State), 1)) + text
		}
		name, state := fmt.Sprintf("%-10s", s.Name), string(*s.State)
		c.printf("  %s %s%s", c.paint(dim, name), c.paint(stateColour(*s.State), state), text)
		if s.Name == events.StepCheck {
			for _, line := range c.remarks(r.Check) {
				c.printf("  %10s %s", "", line)
			}
		}
	}
}

// stepWords describes a step, except its state.
func stepWords(r *events.Run, s events.Step) string {
	switch s.Name {
	case events.StepCheck:
		return r.Check.Status
	case events.StepCustomize:
		at, guest := *r.Customize, ""
		if at.State.Ended() {
			at.State = "" // it is said already
		}
		if at.Guest != nil {
			guest = at.Guest.Error
		}
		return list(strings.TrimSuffix(customizeWords(&at), ", "), guest)
	case events.StepNetwork:
		return list(r.Network.Task, r.Network.Reason)
	case events.StepVerify:
		return verifyWords(r.Verify)
	case events.StepProcess:
		for i := range r.Processes {
			if p := &r.Processes[i]; p.Name == s.Process {
				return processWords(p)
			}
		}
	}
	return ""
}

func (c *cli) statusOfAll(ctx context.Context, only []string) error {
	for _, s := range only {
		if !slices.Contains([]string{"queued", "running", "succeeded", "failed", "canceled", "unreadable"}, s) {
			return fmt.Errorf("--only %s: one of queued, running, succeeded, failed, canceled, unreadable", s)
		}
	}
	conn, err := c.dial(ctx, maxOutage)
	if err != nil {
		return err
	}
	defer conn.Close()
	vcenters, err := c.vcentersOf(ctx, conn)
	if err != nil {
		return err
	}
	var all []vmStatus
	for _, vcenter := range vcenters {
		fleet, err := conn.ListVMs(ctx, vcenter)
		if err != nil {
			return err
		}
		for _, s := range fleet {
			if v := statusOf(s); len(only) == 0 || slices.Contains(only, v.Status) {
				all = append(all, v)
			}
		}
	}
	if !c.json {
		c.printVMs(all, time.Now())
		return c.writeError()
	}
	for _, v := range all {
		if err := c.printJSON(v); err != nil {
			return err
		}
	}
	return c.writeError()
}

// vcentersOf are the vCenters of the command: that of --vcenter, else all that have a requests stream.
func (c *cli) vcentersOf(ctx context.Context, conn *client.Client) ([]string, error) {
	if c.vcenter != "" {
		return []string{c.vcenter}, nil
	}
	names, err := conn.VCenters(ctx)
	var refused *client.PermissionError
	if configured := c.configured(); errors.As(err, &refused) && len(configured) > 0 {
		return configured, nil // who may not list streams may know their names
	}
	if err == nil && len(names) == 0 {
		return nil, errors.New(
			"no guestflow service has started on this NATS: it has no requests stream; see guestflow doctor",
		)
	}
	slices.Sort(names)
	return names, err
}

// printVMs prints the VMs as a table.
func (c *cli) printVMs(all []vmStatus, now time.Time) {
	if len(all) == 0 {
		c.printf("no VM has a request or a run")
		return
	}
	rows := [][]string{{"VCENTER", "VM", "NAME", "STATUS", "SINCE", "QUEUE", "WHAT"}}
	for _, v := range all {
		row := []string{v.VCenter, v.VM, "-", v.Status, "-", "-", flat(v.Problem)}
		if v.Unfinished != nil {
			row[5] = fmt.Sprintf("%d/%d", *v.Unfinished, *v.Limit)
		}
		if r := v.Run; r != nil {
			row[2] = or(flat(r.VMName), "-")
			switch {
			case r.FinishedAt != nil:
				row[4] = shortDuration(now.Sub(*r.FinishedAt))
			case r.AcceptedAt != nil:
				row[4] = shortDuration(now.Sub(*r.AcceptedAt))
			}
			row[6] = summary(v)
		}
		rows = append(rows, row)
	}
	column := 3 // the status
	if vcenters := len(
		slices.CompactFunc(slices.Clone(all), func(a, b vmStatus) bool { return a.VCenter == b.VCenter }),
	); vcenters == 1 {
		for i := range rows { // the words need the room more
			rows[i] = rows[i][1:]
		}
		column--
	}
	c.table(rows, false, func(row, at int) colour {
		if at == column {
			return statusColour(events.Status(all[row-1].Status))
		}
		return plain
	})
}

// summary says what a run does, or why it ended.
func summary(v vmStatus) string {
	r := v.Run
	switch {
	case r.FinishedAt == nil:
		step := v.Step
		if c := r.Customize; v.Step == events.StepCustomize && c != nil && c.Progress != nil {
			step += fmt.Sprintf(" %d %%", *c.Progress)
		}
		if r.Waiting != "" {
			step = list(step, "waits: "+string(r.Waiting))
		}
		return step
	case r.Error != nil && v.Status != "queued":
		return flat(string(r.Error.Code) + ": " + r.Error.Message)
	}
	return ""
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
