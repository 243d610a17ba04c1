package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

// maxOutage is how long NATS may be away while a command waits.
const maxOutage = time.Minute

type submitFlags struct {
	vm, secret, spec, specName, timeout string
	network, connectNICs, checkOnly     bool
	runs                                []string
	id, source                          string
	wait                                bool
	waitTimeout                         time.Duration
}

// requestFlags are the flags that describe a request, which a file otherwise does.
var requestFlags = []string{
	"vm", "secret", "spec", "spec-name", "network", "connect-nics", "run", "timeout", "check-only",
}

func (c *cli) submitCommand() *cobra.Command {
	var f submitFlags
	cmd := &cobra.Command{
		Use:   "submit [FILE|-]",
		Short: "Send a request, and wait for its end with --wait",
		Long: `Sends a request: a FILE (or - for standard input) that holds a whole CloudEvent or the data of a request
alone, or one made from the flags. It is checked first with the service's own code: what the service
would refuse is not sent.

With --wait it shows the events of the run until the end, and the exit code says how it ended: 0
succeeded, 1 failed, 2 rejected, 3 canceled, 4 anything else. A request that was sent before (the same
--source and --id, and the same data) is not run again: --wait then shows the events of its run.`,
		Example: `  guestflow submit request.json --wait
  guestflow submit --vm vm-42 --check-only --wait
  guestflow submit --vm vm-42 --secret linux-root --spec spec.json --network \
    --run 'join-domain=/usr/sbin/realm join example.test' --wait`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.submit(cmd, f, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.vm, "vm", "", "managed object ID of the VM, such as vm-42")
	flags.StringVar(&f.secret, "secret", "", "name of the secret that holds the guest's credentials")
	flags.StringVar(&f.spec, "spec", "", "customize: file with a CustomizationSpec in VI JSON")
	flags.StringVar(&f.specName, "spec-name", "", "customize: name of a specification that is stored in vCenter")
	flags.BoolVar(&f.network, "network", false, "start the guest's network")
	flags.BoolVar(&f.connectNICs, "connect-nics", false, "connect NICs that are not, then start the guest's network")
	flags.StringArrayVar(&f.runs, "run", nil,
		"run a program: 'name=/path args' (repeatable; a path with spaces in double quotes)")
	flags.StringVar(&f.timeout, "timeout", "", "of the run, such as 90s or 1h30m (default 1h)")
	flags.BoolVar(&f.checkOnly, "check-only", false, "only ask vCenter whether the VM can be customized")
	flags.StringVar(&f.id, "id", "", "CloudEvents id of the request (default the file's, else a new one)")
	flags.StringVar(&f.source, "source", "",
		"CloudEvents source of the request (default the file's, else "+client.Source+")")
	flags.BoolVar(&f.wait, "wait", false, "wait for the end; the exit code says how it ended")
	flags.DurationVar(&f.waitTimeout, "wait-timeout", 0,
		"give up waiting after this time (default never); the request goes on")
	return cmd
}

func (c *cli) submit(cmd *cobra.Command, f submitFlags, args []string) error {
	vcenter, err := c.oneVCenter()
	if err != nil {
		return err
	}
	doc, name, err := c.document(cmd, f, args)
	if err != nil {
		return err
	}
	ref := events.RequestRef{Source: f.source, ID: f.id}
	whole := client.IsCloudEvent(doc)
	known := whole || f.id != "" // else the id is new, and so is the run
	if !whole {
		ref = withDefaults(ref)
	}
	m, err := client.New(vcenter, doc, ref)
	if err == nil && m.Cancel {
		return fmt.Errorf("%s is a cancel: guestflow cancel sends one", name)
	}
	if err != nil {
		return &exit{exitRejected, fmt.Errorf("%s: %w. Nothing was sent", name, plainError(err))}
	}
	if !c.json {
		c.warn(m.Warnings)
	}
	conn, err := c.dial(cmd.Context(), maxOutage)
	if err != nil {
		return err
	}
	defer conn.Close()
	return c.send(cmd.Context(), conn, m, sending{wait: f.wait, timeout: f.waitTimeout, known: known, code: outcome})
}

// withDefaults fills in the source and the id that the command line does not give.
func withDefaults(ref events.RequestRef) events.RequestRef {
	if ref.Source == "" {
		ref.Source = client.Source
	}
	if ref.ID == "" {
		ref.ID = strings.ToLower(rand.Text())
	}
	return ref
}

// plainError is the error about a document, without the code InvalidRequest, which says nothing more.
func plainError(err error) error {
	var reject *events.RejectError
	if !errors.As(err, &reject) || reject.Code != events.InvalidRequest {
		return err
	}
	if reject.Field == "" {
		return errors.New(reject.Message)
	}
	return fmt.Errorf("%s: %s", reject.Field, reject.Message)
}

// document returns the request of the command line, and its name for errors.
func (c *cli) document(cmd *cobra.Command, f submitFlags, args []string) (doc []byte, name string, err error) {
	var said []string
	for _, flag := range requestFlags {
		if cmd.Flags().Changed(flag) {
			said = append(said, "--"+flag)
		}
	}
	switch {
	case len(args) == 1 && len(said) > 0:
		return nil, "", fmt.Errorf("a file holds the whole request: leave out %s, or the file",
			strings.Join(said, ", "))
	case len(args) == 1:
		doc, err = c.read(args[0])
		return doc, displayName(args[0]), err
	case len(said) == 0:
		return nil, "", errors.New(
			"nothing to send: name a file (- for standard input), or say --vm and what is to be done; see guestflow " +
				"submit --help",
		)
	}
	doc, err = c.fromFlags(f)
	return doc, "request", err
}

// displayName is the name of a file in errors.
func displayName(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

func (c *cli) read(file string) ([]byte, error) {
	if file == "-" {
		b, err := io.ReadAll(c.in)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return b, nil
	}
	return os.ReadFile(file)
}

// object is a JSON object.
type object map[string]any

// fromFlags makes the data of a request; see schemas/requested.v1.json.
func (c *cli) fromFlags(f submitFlags) ([]byte, error) {
	if f.vm == "" {
		return nil, errors.New("--vm is missing: the VM's managed object ID, such as vm-42")
	}
	if err := validVM(f.vm); err != nil {
		return nil, fmt.Errorf("--vm: %w", err)
	}
	data, err := c.stepsFromFlags(f)
	if err != nil {
		return nil, err
	}

	switch steps := len(data); {
	case f.checkOnly && steps > 0:
		return nil, errors.New("--check-only changes nothing in the guest: " +
			"leave out --spec, --spec-name, --network, --connect-nics and --run")
	case !f.checkOnly && steps == 0:
		return nil, fmt.Errorf("what is to be done with %s? "+
			"Say --spec, --spec-name, --network, --connect-nics or --run; "+
			"or --check-only to do nothing but ask vCenter", f.vm)
	case steps > 0 && f.secret == "":
		return nil, errors.New("--secret is missing: the name of the secret with the guest's credentials, " +
			"a folder in the service's GUESTFLOW_SECRETS_DIR")
	}

	data["vm"] = f.vm
	if f.timeout != "" {
		data["timeout"] = f.timeout
	}
	if f.secret != "" {
		data["guest"] = object{"credentials": object{"secretRef": f.secret}}
	}
	return json.Marshal(data)
}

// stepsFromFlags makes the sections of a request that are steps.
func (c *cli) stepsFromFlags(f submitFlags) (object, error) {
	data := object{}
	switch {
	case f.spec != "" && f.specName != "":
		return nil, errors.New("--spec and --spec-name exclude each other")
	case f.spec != "":
		spec, err := c.read(f.spec)
		if err != nil {
			return nil, fmt.Errorf("--spec: %w", err)
		}
		if spec, err = client.JSON(spec); err != nil {
			return nil, fmt.Errorf("--spec %s: %w", displayName(f.spec), err)
		}
		data["customize"] = object{"spec": json.RawMessage(spec)}
	case f.specName != "":
		data["customize"] = object{"specName": f.specName}
	}

	switch {
	case f.connectNICs:
		data["network"] = object{"connectNics": true}
	case f.network:
		data["network"] = object{}
	}

	var processes []object
	for _, run := range f.runs {
		name, path, arguments, err := program(run)
		if err != nil {
			return nil, err
		}
		exec := object{"path": path}
		if arguments != "" {
			exec["arguments"] = arguments
		}
		processes = append(processes, object{"name": name, "run": exec})
	}
	if len(processes) > 0 {
		data["processes"] = processes
	}
	return data, nil
}

// program reads name=/path args.
func program(run string) (name, path, arguments string, err error) {
	name, rest, ok := strings.Cut(run, "=")
	rest = strings.TrimSpace(rest)
	if quoted, found := strings.CutPrefix(rest, `"`); found {
		path, arguments, found = strings.Cut(quoted, `"`)
		ok = ok && found
	} else {
		path, arguments, _ = strings.Cut(rest, " ")
	}
	if !ok || name == "" || path == "" {
		return "", "", "", fmt.Errorf(
			"--run %q is not 'name=/path args', such as 'join=/usr/sbin/realm join example.test'", run)
	}
	return name, path, strings.TrimSpace(arguments), nil
}

// sending is how a message is sent.
type sending struct {
	wait    bool
	timeout time.Duration
	known   bool // it may have been sent before
	code    func(*client.Event) int
}

// sent describes a stored message in JSON.
type sent struct {
	VCenter string            `json:"vcenter"`
	VM      string            `json:"vm"`
	Request events.RequestRef `json:"request"`
	Run     string            `json:"run"`
	Subject string            `json:"subject"`
	Seq     uint64            `json:"sequence"`
}

// send publishes a message, and with --wait shows its events until the end.
func (c *cli) send(ctx context.Context, conn *client.Client, m *client.Message, how sending) error {
	if how.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, how.timeout, fmt.Errorf("no end within %s", how.timeout))
		defer cancel()
	}
	var wait *client.Wait
	if how.wait {
		var err error
		if wait, err = conn.Await(ctx, m, how.known); err != nil {
			return err
		}
		defer wait.Stop()
	}
	seq, err := conn.Publish(ctx, m)
	if err != nil {
		return err
	}
	if c.json && !how.wait {
		return c.printJSON(sent{m.VCenter, m.VM, m.Ref, m.Run, m.Subject, seq})
	}
	if !c.json {
		c.printf("%s %s from %s for %s at %s is stored; run %s", messageKind(m),
			c.paint(bold, flat(m.Ref.ID)), flat(m.Ref.Source), c.paint(bold, m.VM), m.VCenter, m.Run)
	}
	if !how.wait {
		c.printf("follow it with: guestflow watch %s --vcenter %s", m.VM, m.VCenter)
		return nil
	}

	end, err := c.waitForEnd(ctx, wait, seq)
	if err != nil {
		return fmt.Errorf("%w: not waiting any more. The %s is stored and goes on: "+
			"guestflow watch %s --vcenter %s shows it; if there are no events, guestflow doctor says why",
			err, messageKind(m), m.VM, m.VCenter)
	}
	c.explainEnd(end)
	if code := how.code(end); code != exitOK {
		return &exit{code: code}
	}
	return c.writeError()
}

// messageKind is what texts call a message.
func messageKind(m *client.Message) string {
	if m.Cancel {
		return "cancel"
	}
	return "request"
}

// waitForEnd shows the events of a message's run until its final event, which it returns.
func (c *cli) waitForEnd(ctx context.Context, wait *client.Wait, seq uint64) (*client.Event, error) {
	p := c.startProgress("waits for its turn")
	defer p.stop()
	end, err := wait.UntilEnd(ctx, seq, func(e *client.Event) {
		if e.Last() || e.Kind == events.KindRejected {
			p.stop()
		} else {
			p.see(e)
		}
		c.event(e, "")
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	return end, err
}

// explainEnd prints why a run did not succeed.
func (c *cli) explainEnd(end *client.Event) {
	if c.json || end.Kind == events.RunSucceeded {
		return
	}
	for _, line := range c.failureLines(&end.Run, true) {
		c.printf("  %s", line)
	}
}

// outcome is the exit code for the final event of a request.
func outcome(e *client.Event) int {
	switch e.Kind {
	case events.RunSucceeded:
		return exitOK
	case events.RunFailed:
		return exitFailed
	case events.KindRejected:
		return exitRejected
	case events.RunCanceled:
		return exitCanceled
	}
	return exitOther
}
