package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/client"
)

func (c *cli) watchCommand() *cobra.Command {
	var since time.Duration
	var untilEnd bool
	cmd := &cobra.Command{
		Use:   "watch [VM]",
		Short: "Show events as they come: of one VM, of one vCenter, of everything",
		Long: `Shows events as they are published, until it is interrupted: of one VM (from the beginning of its
current run), of one vCenter (--vcenter), or of everything. Into a pipe it writes the CloudEvents as
they are, one a line. The events are read from JetStream, so none is missed when NATS was away for a
while.`,
		Example: `  guestflow watch vm-42
  guestflow watch --vcenter lab --since 1h
  guestflow watch --json | jq 'select(.type | endswith(".run.failed.v1")) | .data.error'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm := ""
			if len(args) == 1 {
				vm = args[0]
			}
			return c.watch(cmd.Context(), vm, since, untilEnd)
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "begin with what was published this long ago, such as 1h")
	cmd.Flags().BoolVar(&untilEnd, "until-end", false, "of one VM: stop when a run has ended, "+
		"with the exit code of submit --wait")
	return cmd
}

func (c *cli) watch(ctx context.Context, vm string, since time.Duration, untilEnd bool) (err error) {
	vcenter := c.vcenter
	if vm != "" {
		if err := validVM(vm); err != nil {
			return err
		}
		if vcenter, err = c.oneVCenter(); err != nil {
			return err
		}
	} else if untilEnd {
		return errors.New("--until-end is for one VM: name it")
	}
	if since < 0 {
		return fmt.Errorf("--since %s is negative", since)
	}
	conn, err := c.dial(ctx, 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	from := client.Start{}
	if since > 0 {
		from.Time = time.Now().Add(-since)
	} else if vm != "" {
		if from.Seq, err = conn.RunStart(ctx, vcenter, vm); err != nil {
			return err
		}
	}
	feed, err := conn.Follow(ctx, client.Filters(vcenter, vm), from)
	if err != nil {
		return err
	}
	defer feed.Stop()
	p := c.startProgress("waits for events")
	defer p.stop()
	for {
		e, err := feed.Next(ctx)
		if ctx.Err() != nil {
			return nil // to be interrupted is how it ends
		}
		if err != nil {
			return err
		}
		p.see(e)
		c.event(e, c.who(e, vcenter, vm))
		if c.writeError() != nil { // who read the pipe is gone: head, for one
			return nil
		}
		if untilEnd && e.Last() {
			p.stop()
			c.explainEnd(e)
			if code := outcome(e); code != exitOK {
				return &exit{code: code}
			}
			return nil
		}
	}
}

// who is whom an event is about, as far as the command line does not say.
func (c *cli) who(e *client.Event, vcenter, vm string) string {
	who := e.Run.VM
	if who == "" {
		who = "-"
	}
	switch {
	case vm != "":
		return ""
	case vcenter == "":
		who = e.Run.VCenter + "/" + who
	}
	return fmt.Sprintf("%-14s ", flat(who))
}
