package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

func (c *cli) deadlettersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deadletters",
		Short: "Look after the messages that were refused",
		Long: `The service keeps the messages that it refuses, with the reason, for GUESTFLOW_DEADLETTERS_MAX_AGE: list
shows them, show prints a whole message, replay publishes one again, drop deletes one. A run that failed
is no dead letter: see its events.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	type connected func(cmd *cobra.Command, conn *client.Client, args []string) error
	with := func(run connected) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			conn, err := c.dial(cmd.Context(), maxOutage)
			if err != nil {
				return err
			}
			defer conn.Close()
			return run(cmd, conn, args)
		}
	}
	var force bool
	replay := &cobra.Command{
		Use:   "replay SEQ...",
		Short: "Publish refused messages again",
		Long: `Publishes refused messages again, with their original bytes and headers, except headers for the NATS
server. A message that would be refused again needs --force. A message that held a secret was kept
without its data and cannot be replayed. The dead letter stays: drop deletes it.`,
		Args: cobra.MinimumNArgs(1),
		RunE: with(func(cmd *cobra.Command, conn *client.Client, args []string) error {
			return c.replay(cmd, conn, args, force)
		}),
	}
	replay.Flags().BoolVar(&force, "force", false, "publish also what this command would refuse")
	cmd.AddCommand(
		&cobra.Command{
			Use:   "list [VM]",
			Short: "List refused messages",
			Args:  cobra.MaximumNArgs(1),
			RunE:  with(c.listDeadletters),
		},
		&cobra.Command{
			Use:   "show SEQ",
			Short: "Show a refused message whole",
			Args:  cobra.ExactArgs(1),
			RunE:  with(c.showDeadletter),
		},
		replay,
		&cobra.Command{
			Use:   "drop SEQ...",
			Short: "Delete refused messages",
			Args:  cobra.MinimumNArgs(1),
			RunE:  with(c.dropDeadletters),
		},
	)
	return cmd
}

// deadLetter describes a dead letter in JSON.
type deadLetter struct {
	Seq      uint64    `json:"sequence"`
	At       time.Time `json:"at"`
	VCenter  string    `json:"vcenter"`
	VM       string    `json:"vm,omitempty"`
	Code     string    `json:"code"`
	Reason   string    `json:"reason"`
	Subject  string    `json:"subject"`
	Sent     uint64    `json:"requestSequence,omitempty"`
	Withheld *withheld `json:"withheld,omitempty"`

	// Of show alone. Data is the message where it is JSON, DataBase64 where it is not.
	Headers    map[string][]string `json:"headers,omitempty"`
	Data       json.RawMessage     `json:"data,omitempty"`
	DataBase64 string              `json:"data_base64,omitempty"`
}

// withheld describes the data of a message that held a secret, and is kept without them.
type withheld struct {
	Field  string `json:"field,omitempty"`
	Size   string `json:"size"`
	SHA256 string `json:"sha256"`
}

func deadLetterOf(d *client.DeadLetter) deadLetter {
	l := deadLetter{
		Seq:     d.Seq,
		At:      d.At,
		VCenter: d.VCenter,
		Code:    d.Code,
		Reason:  d.Reason,
		Subject: d.Subject,
		Sent:    d.OriginalSeq,
	}
	if d.VM != "_" {
		l.VM = d.VM
	}
	if d.WithheldPath != "" {
		l.Withheld = &withheld{Size: d.Size, SHA256: d.SHA256}
		if d.WithheldPath != "-" {
			l.Withheld.Field = d.WithheldPath
		}
	}
	return l
}

func (c *cli) listDeadletters(cmd *cobra.Command, conn *client.Client, args []string) error {
	vm := ""
	if len(args) == 1 {
		if vm = args[0]; vm != "_" {
			if err := validVM(vm); err != nil {
				return err
			}
		}
	}
	all, err := conn.DeadLetters(cmd.Context(), c.vcenter, vm)
	if err != nil {
		return err
	}
	rows := [][]string{{"SEQ", "AGE", "VCENTER", "VM", "CODE", "REASON"}}
	for _, d := range all {
		if c.json {
			if err := c.printJSON(deadLetterOf(d)); err != nil {
				return err
			}
			continue
		}
		rows = append(
			rows,
			[]string{
				strconv.FormatUint(d.Seq, 10),
				shortDuration(time.Since(d.At)),
				flat(d.VCenter),
				flat(d.VM),
				flat(d.Code),
				flat(d.Reason),
			},
		)
	}
	switch {
	case c.json:
	case len(all) == 0:
		c.printf("there is no dead letter")
	default:
		c.table(rows, true, func(_, column int) colour {
			if column == 4 {
				return red
			}
			return plain
		})
	}
	return c.writeError()
}

// sequence reads an argument that names a dead letter.
func sequence(arg string) (uint64, error) {
	seq, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || seq == 0 {
		return 0, fmt.Errorf("%q is no sequence of a dead letter: guestflow deadletters list shows them", arg)
	}
	return seq, nil
}

func (c *cli) showDeadletter(cmd *cobra.Command, conn *client.Client, args []string) error {
	seq, err := sequence(args[0])
	if err != nil {
		return err
	}
	d, err := conn.DeadLetter(cmd.Context(), seq)
	if err != nil {
		return err
	}
	l := deadLetterOf(d)
	if c.json {
		l.Headers = d.Header
		switch {
		case json.Valid(d.Data):
			l.Data = d.Data
		case len(d.Data) > 0:
			l.DataBase64 = base64.StdEncoding.EncodeToString(d.Data)
		}
		return c.printJSON(l)
	}
	row := func(what, text string) { c.printf("%s %s", c.paint(dim, fmt.Sprintf("%-10s", what)), text) }
	row("sequence", strconv.FormatUint(d.Seq, 10))
	row("refused", d.At.Local().Format(time.RFC3339))
	row("code", c.paint(red, flat(d.Code)))
	row("reason", flat(d.Reason))
	row("subject", flat(d.Subject))
	for _, name := range slices.Sorted(maps.Keys(d.Header)) {
		for _, v := range d.Header[name] {
			row("header", flat(name+": "+v))
		}
	}
	switch {
	case l.Withheld != nil:
		row(
			"data",
			fmt.Sprintf("withheld, for a secret (%s): %s bytes, SHA-256 %s",
				or(flat(l.Withheld.Field), "its place is not known"), flat(d.Size), flat(d.SHA256)),
		)
	case json.Valid(d.Data):
		var pretty any = json.RawMessage(d.Data)
		b, err := json.MarshalIndent(pretty, "", "  ")
		if err != nil {
			return err
		}
		c.println(clean(string(b)))
	case utf8.Valid(d.Data):
		c.println(clean(string(d.Data)))
	default:
		row("data", fmt.Sprintf("%d bytes that are no text; --json shows them in base64", len(d.Data)))
	}
	return c.writeError()
}

func (c *cli) replay(cmd *cobra.Command, conn *client.Client, args []string, force bool) error {
	for _, arg := range args {
		seq, err := sequence(arg)
		if err != nil {
			return err
		}
		d, err := conn.DeadLetter(cmd.Context(), seq)
		if err != nil {
			return err
		}
		var reject *events.RejectError
		switch err := d.Replayable(); {
		case errors.As(err, &reject) && !force:
			return &exit{
				exitRejected,
				fmt.Errorf(
					"dead letter %d would be refused again: %w. Send a corrected request; or, where the service is "+
						"newer than this command, use --force",
					seq,
					err,
				),
			}
		case err != nil && reject == nil:
			return &exit{exitRejected, err}
		}
		stored, err := conn.Replay(cmd.Context(), d)
		if err != nil {
			return err
		}
		if c.json {
			done := map[string]any{"replayed": seq, "subject": d.Subject, "sequence": stored}
			if err := c.printJSON(done); err != nil {
				return err
			}
			continue
		}
		c.printf("dead letter %d is published again on %s; drop it with: guestflow deadletters drop %d", seq,
			flat(d.Subject), seq)
	}
	return c.writeError()
}

func (c *cli) dropDeadletters(cmd *cobra.Command, conn *client.Client, args []string) error {
	for _, arg := range args {
		seq, err := sequence(arg)
		if err != nil {
			return err
		}
		if err := conn.Drop(cmd.Context(), seq); err != nil {
			return err
		}
		if c.json {
			if err := c.printJSON(map[string]any{"dropped": seq}); err != nil {
				return err
			}
			continue
		}
		c.printf("dead letter %d is deleted", seq)
	}
	return c.writeError()
}
