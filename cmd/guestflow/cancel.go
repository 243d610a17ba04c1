package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

type cancelFlags struct {
	id, source, reason string
	wait               bool
	waitTimeout        time.Duration
}

func (c *cli) cancelCommand() *cobra.Command {
	var f cancelFlags
	cmd := &cobra.Command{
		Use:   "cancel VM",
		Short: "Cancel a VM's run, or a request that waits for its turn",
		Long: `Cancels the current run of a VM, or the request that --id and --source name. What vCenter can stop is
stopped. A request that waits for its turn ends without a call to vCenter when its turn comes.

With --wait the exit code is 0 canceled, 1 ended in another way, 2 there was nothing to cancel, 4
anything else.`,
		Example: `  guestflow cancel vm-42 --wait
  guestflow cancel vm-42 --source /provisioning --id order-4711`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.cancel(cmd.Context(), args[0], f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.id, "id", "", "CloudEvents id of the request to cancel (default: that of the VM's current run)")
	flags.StringVar(&f.source, "source", "",
		"CloudEvents source of that request (with --id; default "+client.Source+")")
	flags.StringVar(&f.reason, "reason", "", "why, for people: it is published")
	flags.BoolVar(&f.wait, "wait", false, "wait for the end of the run")
	flags.DurationVar(&f.waitTimeout, "wait-timeout", 0, "give up waiting after this time (default never)")
	return cmd
}

func (c *cli) cancel(ctx context.Context, vm string, f cancelFlags) error {
	if err := validVM(vm); err != nil {
		return err
	}
	vcenter, err := c.oneVCenter()
	if err != nil {
		return err
	}
	request := events.RequestRef{Source: f.source, ID: f.id}
	switch {
	case request.ID == "" && request.Source != "":
		return fmt.Errorf("--source %s names no request: say --id too", request.Source)
	case request.ID != "" && request.Source == "":
		request.Source = client.Source
	}
	conn, err := c.dial(ctx, maxOutage)
	if err != nil {
		return err
	}
	defer conn.Close()
	if request.ID == "" {
		if request, err = currentRequest(ctx, conn, vcenter, vm); err != nil {
			return err
		}
	}
	m, err := client.NewCancel(vcenter, vm, request, withDefaults(events.RequestRef{}), f.reason)
	if err != nil {
		return &exit{exitRejected, plainError(err)}
	}
	return c.send(
		ctx,
		conn,
		m,
		sending{wait: f.wait, timeout: f.waitTimeout, known: true, code: func(e *client.Event) int {
			switch e.Kind {
			case events.RunCanceled:
				return exitOK
			case events.KindRejected:
				return exitRejected
			}
			return exitFailed
		}},
	)
}

// currentRequest is the request of a VM's current run.
func currentRequest(ctx context.Context, conn *client.Client, vcenter, vm string) (events.RequestRef, error) {
	e, err := conn.LastEvent(ctx, vcenter, vm)
	hint := fmt.Sprintf(
		"a request that waits for its turn is canceled with --source and --id: guestflow status %s --vcenter %s "+
			"shows them",
		vm,
		vcenter,
	)
	switch {
	case err != nil:
		return events.RequestRef{}, err
	case e == nil:
		return events.RequestRef{}, &exit{
			exitRejected,
			fmt.Errorf("%s at %s has no run to cancel; %s", vm, vcenter, hint),
		}
	case e.Last() || e.Run.Request == nil:
		return events.RequestRef{}, &exit{
			exitRejected,
			fmt.Errorf("%s at %s has no current run: the last one has %s; %s", vm, vcenter, e.Run.Status, hint),
		}
	}
	return *e.Run.Request, nil
}
