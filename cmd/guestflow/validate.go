package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

// valid is what is said of a file, in a pipe.
type valid struct {
	File  string `json:"file"`
	Valid bool   `json:"valid"`
	VM    string `json:"vm,omitempty"`
	Code  string `json:"code,omitempty"`
	Field string `json:"field,omitempty"`
	Error string `json:"error,omitempty"`

	Warnings []events.Remark `json:"warnings,omitempty"`
}

func (c *cli) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check requests without sending them",
		Long: `Checks files that hold a request, a cancel, or a request's data alone (- is standard input) with the service's own code, without NATS or vCenter. What is wrong is
named with its field, and so is, as a warning, what vCenter may refuse of a specification. Exit code 2 where a file is wrong, 4 where one cannot be read.`,
		Example: `  guestflow validate requests/*.json`,
		Args:    cobra.MinimumNArgs(1),
		RunE:    func(_ *cobra.Command, args []string) error { return c.validate(args) },
	}
}

func (c *cli) validate(files []string) error {
	bad := 0
	for _, file := range files {
		doc, err := c.read(file)
		if err != nil {
			return err
		}
		// The vCenter is no part of a request: any name does.
		m, err := client.New("any", doc, alone(doc))
		v := valid{File: called(file), Valid: err == nil}
		if err != nil {
			bad++
			var reject *events.RejectError
			v.Error = wrong(err).Error()
			if errors.As(err, &reject) {
				v.Code, v.Field, v.Error = string(reject.Code), reject.Field, reject.Message
			}
			c.note(clean(fmt.Sprintf("%s: %v", called(file), wrong(err))))
		} else {
			v.VM, v.Warnings = m.VM, m.Warnings
		}
		switch {
		case c.json:
			if err := c.object(v); err != nil {
				return err
			}
		case err == nil:
			c.say("%s: %s: %s", flat(called(file)), c.paint(green, "valid"), asks(m))
			c.warn(m.Warnings)
		}
	}
	if bad > 0 {
		return &exit{code: exitRejected}
	}
	return c.failed()
}

// warn tells what vCenter may refuse or pass over.
func (c *cli) warn(warnings []events.Remark) {
	for _, w := range warnings {
		c.say("  %s: %s", c.paint(yellow, "warning"), flat(strings.TrimPrefix(w.Field+": "+w.Message, ": ")))
	}
}

// alone is an identity for a request's data that has none.
func alone(doc []byte) (ref events.RequestRef) {
	if !client.IsCloudEvent(doc) {
		ref = events.RequestRef{Source: client.Source, ID: "validate"}
	}
	return ref
}

// asks tells what a message asks for.
func asks(m *client.Message) string {
	if m.Cancel {
		return "cancels a run of " + m.VM
	}
	asked, err := m.Sections()
	if err != nil || len(asked) == 0 {
		return m.VM + ": check"
	}
	return m.VM + ": check, " + flat(strings.Join(asked, ", "))
}
