package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

// validation describes a checked file in JSON.
type validation struct {
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
		Long: `Checks files that hold a request, a cancel, or the data of a request alone (- is standard input) with
the service's own code, without NATS or vCenter. It names the field that is wrong, and warns of what
vCenter may refuse in a specification. Exit code 2 if a file is wrong, 4 if one cannot be read.`,
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
		m, err := client.New("any", doc, defaultIdentity(doc))
		v := validation{File: displayName(file), Valid: err == nil}
		if err != nil {
			bad++
			var reject *events.RejectError
			v.Error = plainError(err).Error()
			if errors.As(err, &reject) {
				v.Code, v.Field, v.Error = string(reject.Code), reject.Field, reject.Message
			}
			c.errorln(clean(fmt.Sprintf("%s: %v", displayName(file), plainError(err))))
		} else {
			v.VM, v.Warnings = m.VM, m.Warnings
		}
		switch {
		case c.json:
			if err := c.printJSON(v); err != nil {
				return err
			}
		case err == nil:
			c.printf("%s: %s: %s", flat(displayName(file)), c.paint(green, "valid"), requestSummary(m))
			c.warn(m.Warnings)
		}
	}
	if bad > 0 {
		return &exit{code: exitRejected}
	}
	return c.writeError()
}

// warn prints what vCenter may refuse or ignore.
func (c *cli) warn(warnings []events.Remark) {
	for _, w := range warnings {
		c.printf("  %s: %s", c.paint(yellow, "warning"), flat(strings.TrimPrefix(w.Field+": "+w.Message, ": ")))
	}
}

// defaultIdentity is the identity for a document without one: the data of a request alone.
func defaultIdentity(doc []byte) (ref events.RequestRef) {
	if !client.IsCloudEvent(doc) {
		ref = events.RequestRef{Source: client.Source, ID: "validate"}
	}
	return ref
}

// requestSummary says what a message asks for.
func requestSummary(m *client.Message) string {
	if m.Cancel {
		return "cancels a run of " + m.VM
	}
	asked, err := m.Sections()
	if err != nil || len(asked) == 0 {
		return m.VM + ": check"
	}
	return m.VM + ": check, " + flat(strings.Join(asked, ", "))
}
