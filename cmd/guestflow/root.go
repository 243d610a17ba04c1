package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// The exit codes. A command that waits for a run exits as the run ended.
const (
	exitOK       = 0
	exitFailed   = 1
	exitRejected = 2
	exitCanceled = 3
	exitOther    = 4 // NATS is away, the time is over, the command line is wrong
)

// console is where a command reads and writes.
type console struct {
	in       io.Reader
	out, err io.Writer
	env      envconfig.Lookuper
	tty      bool       // out is a terminal
	errTTY   bool       // err is one
	width    func() int // of the terminal
}

// exit ends the command with a code. If err is nil, no error is printed.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// cli is what all commands share.
type cli struct {
	console
	*screen
	server, vcenter string
	asJSON, asText  bool
}

// run is the command from its arguments to its exit code.
func run(ctx context.Context, args []string, con console) int {
	c := &cli{console: con, screen: &screen{out: con.out, err: con.err}}
	c.detectTerminal()
	root := c.root()
	root.SetArgs(args)
	root.SetIn(con.in)
	root.SetOut(con.out)
	root.SetErr(con.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code := exitOther
	var e *exit
	if errors.As(err, &e) {
		code, err = e.code, e.err
	} else {
		err = unknownCommand(cmd, err)
	}
	if err != nil {
		word := "error"
		if c.errColour {
			word = c.painted(red, word)
		}
		c.errorln(word + ": " + cmd.CommandPath() + ": " + clean(err.Error()))
	}
	return code
}

// unknownCommand adds suggestions to cobra's error about an unknown command, which has no type; other errors stay.
func unknownCommand(cmd *cobra.Command, err error) error {
	what, _, found := strings.Cut(err.Error(), " for ")
	name, unknown := strings.CutPrefix(what, "unknown command ")
	if !found || !unknown {
		return err
	}
	if near := cmd.SuggestionsFor(strings.Trim(name, `"`)); len(near) > 0 {
		return fmt.Errorf("%s: is it %s? See %s --help", what, strings.Join(near, " or "), cmd.CommandPath())
	}
	return fmt.Errorf("%s: see %s --help", what, cmd.CommandPath())
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "guestflow",
		Short: "Customize running vSphere guests, and see what becomes of it",
		Long: `Guestflow sends customization requests to the guestflow service over NATS JetStream, shows their events
as they are published, and finds out what is wrong.

On a terminal it writes for people; into a pipe it writes JSON, one object a line (--text and --json
choose). It finds NATS by the same settings as the service: NATS_URL, NATS_CREDS_FILE, NATS_NKEY_FILE,
NATS_USER with NATS_PASSWORD_FILE, NATS_CA_FILE, NATS_CERT_FILE with NATS_KEY_FILE, NATS_JS_DOMAIN,
NATS_JS_API_PREFIX, NATS_INBOX_PREFIX. If GUESTFLOW_VCENTERS names one vCenter, it is the default of
--vcenter.

Exit codes: 0 done (after --wait: succeeded), 1 failed, 2 rejected or invalid, 3 canceled, 4 anything
else.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		Version:           version,
		PersistentPreRunE: func(*cobra.Command, []string) error { return c.prepare() },
	}
	root.SetHelpFunc(c.help)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVar(
		&c.server,
		"server",
		"",
		"NATS servers, comma separated (default $NATS_URL, else nats://127.0.0.1:4222)",
	)
	flags.StringVar(&c.vcenter, "vcenter", "",
		"name of the vCenter, as the service calls it (default $GUESTFLOW_VCENTERS, where that is one)")
	flags.BoolVar(&c.asJSON, "json", false, "write JSON lines, also on a terminal")
	flags.BoolVar(&c.asText, "text", false, "write for people, also into a pipe")
	root.MarkFlagsMutuallyExclusive("json", "text")
	_ = root.RegisterFlagCompletionFunc(
		"vcenter",
		func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return c.configured(), cobra.ShellCompDirectiveNoFileComp
		},
	) // it fails only where the flag is not there
	root.AddCommand(c.submitCommand(), c.watchCommand(), c.statusCommand(), c.cancelCommand(), c.validateCommand(),
		c.deadlettersCommand(), c.doctorCommand(), c.sandboxCommand(), c.versionCommand(), c.manCommand())
	return root
}

// detectTerminal finds out what the output is written to.
func (c *cli) detectTerminal() {
	able := c.get("TERM") != "dumb"
	c.live, c.errLive = c.tty && able, c.errTTY && able
	c.colour, c.errColour = c.live && c.get("NO_COLOR") == "", c.errLive && c.get("NO_COLOR") == ""
	c.colours256 = strings.Contains(c.get("TERM"), "256color") || c.get("COLORTERM") != ""
	c.columns = c.width
}

// help prints the help of a command; on a terminal, its paragraphs are wrapped to the width.
func (c *cli) help(cmd *cobra.Command, _ []string) {
	about, usage := cmd.Long, strings.TrimSpace(cmd.UsageString())
	if about == "" {
		about = cmd.Short
	}
	if c.live {
		about = wrap(reflow(about), min(c.columns(), 110))
		before, rest, _ := strings.Cut(usage, "\nExamples:\n") // commands are for copying: they stay as they are
		examples, after, _ := strings.Cut(rest, "\n\n")
		if rest != "" {
			examples = "\nExamples:\n" + examples + "\n\n"
		}
		usage = wrap(before, c.columns()) + examples + wrap(after, c.columns())
	}
	c.println(strings.TrimSpace(about) + "\n\n" + usage)
}

// prepare chooses the form of the output, and checks the flags that all commands share.
func (c *cli) prepare() error {
	if c.asJSON {
		c.live, c.colour = false, false
	}
	c.json = c.asJSON || !c.tty && !c.asText
	if c.vcenter != "" && !events.ValidVCenter(c.vcenter) {
		return fmt.Errorf(
			"--vcenter %q is no name of a vCenter: 1 to 32 of a-z, 0-9 and '-', as in the service's GUESTFLOW_VCENTERS",
			c.vcenter)
	}
	return nil
}

// get returns an environment variable; empty means not set.
func (c *cli) get(key string) string {
	v, _ := c.env.Lookup(key)
	return strings.TrimSpace(v)
}

// Lookup implements envconfig.Lookuper. An empty variable is not set, as for the service.
func (c *cli) Lookup(key string) (string, bool) {
	v := c.get(key)
	return v, v != ""
}

// configured are the vCenters that the environment names.
func (c *cli) configured() (names []string) {
	for name := range strings.SplitSeq(c.get("GUESTFLOW_VCENTERS"), ",") {
		if name = strings.TrimSpace(name); events.ValidVCenter(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// oneVCenter is the vCenter of a command that needs exactly one.
func (c *cli) oneVCenter() (string, error) {
	names := c.configured()
	switch {
	case c.vcenter != "":
		return c.vcenter, nil
	case len(names) == 1:
		return names[0], nil
	case len(names) == 0:
		return "", errors.New(
			"which vCenter? Say --vcenter NAME, as the service calls it in its GUESTFLOW_VCENTERS, or set " +
				"GUESTFLOW_VCENTERS",
		)
	}
	return "", fmt.Errorf("which vCenter? GUESTFLOW_VCENTERS names %s: say one of them with --vcenter",
		strings.Join(names, ", "))
}

// nats says how to reach NATS.
func (c *cli) nats(ctx context.Context) (stream.Config, error) {
	var n app.NATS
	if err := envconfig.ProcessWith(ctx, &envconfig.Config{Target: &n, Lookuper: c}); err != nil {
		return stream.Config{}, err
	}
	if c.server != "" {
		n.URL = c.server
	}
	if n.JSDomain != "" && n.JSAPIPrefix != "" {
		return stream.Config{}, errors.New("NATS_JS_DOMAIN and NATS_JS_API_PREFIX: set one of them")
	}
	return n.Stream("guestflow command"), nil
}

// dial connects to NATS. maxOutage is how long NATS may be away later; 0: for ever.
func (c *cli) dial(ctx context.Context, maxOutage time.Duration) (*client.Client, error) {
	cfg, err := c.nats(ctx)
	if err != nil {
		return nil, err
	}
	return client.Dial(cfg, client.Options{MaxOutage: maxOutage, Notice: c.errorln})
}

// validVM checks an argument that names a VM.
func validVM(vm string) error {
	if !events.ValidVM(vm) {
		return errors.New(events.NotVM(vm))
	}
	return nil
}
