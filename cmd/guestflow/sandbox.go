package main

import (
	"io"
	"log"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/sandbox"
)

func (c *cli) sandboxCommand() *cobra.Command {
	var o sandbox.Options
	var logFile string
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Run NATS, a simulated vCenter and the service, to try everything without a data centre",
		Long: `Runs a nats-server with JetStream, a simulated vCenter named lab and the guestflow service in this
process, until Ctrl-C. It prints a list of its VMs: each succeeds or fails in its own way.

The parts can be used alone: --nats uses your own NATS, --no-service starts no service and prints the
settings for your own, and the --…listen flags say where each part listens. Its data is removed at the
end, unless --dir names a folder.`,
		Example: `  guestflow sandbox
  guestflow sandbox --listen 127.0.0.1:14222 --no-service --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			log.SetOutput(
				io.Discard,
			) // of this process: govmomi's simulator writes there of each call to an object that is gone
			if logFile != "" {
				file, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
				if err != nil {
					return err
				}
				defer file.Close()
				o.Log = io.Writer(file)
			}
			if o.NATS == "" {
				o.NATS = c.server
			}
			s, err := sandbox.Start(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := c.introduce(s, o); err != nil {
				return firstError(err, s.Close())
			}
			select {
			case <-cmd.Context().Done():
			case err = <-s.Done():
			}
			return firstError(err, s.Close())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.NATS, "nats", "", "URL of a NATS with JetStream to use, in the place of one of its own")
	flags.StringVar(&o.NATSListen, "listen", "127.0.0.1:4222", "where its nats-server listens")
	flags.StringVar(&o.VCenterListen, "vcenter-listen", "",
		"where the simulated vCenter listens (default a free port of 127.0.0.1)")
	flags.StringVar(&o.HTTPListen, "http-listen", "",
		"where the service answers /livez, /readyz, /metrics (default a free port of 127.0.0.1)")
	flags.StringVar(&o.Dir, "dir", "", "folder for streams, secrets and requests (default one that is gone at the end)")
	flags.BoolVar(&o.NoService, "no-service", false, "only NATS and the simulated vCenter")
	flags.StringVar(&logFile, "log", "", "file for the service's log (default none)")
	return cmd
}

// introduce prints what runs, and how to try it.
func (c *cli) introduce(s *sandbox.Sandbox, o sandbox.Options) error {
	type vm struct {
		ID      string `json:"vm"`
		Name    string `json:"name"`
		Shows   string `json:"shows"`
		Ends    string `json:"ends"`
		Request string `json:"requestFile"`
	}
	var vms []vm
	rows := [][]string{{"VM", "ENDS", "WHAT IT SHOWS"}}
	for _, m := range s.VMs() {
		vms = append(vms, vm{m.ID, m.Name, m.Shows, m.Ends, s.RequestFile(m)})
		rows = append(rows, []string{m.ID, m.Ends, m.Shows})
	}
	if c.json {
		return c.printJSON(
			map[string]any{
				"nats":     s.NATSURL(),
				"vcenter":  s.VCenterURL(),
				"caFile":   s.CAFile(),
				"http":     s.URL(),
				"settings": s.Env(),
				"vms":      vms,
			},
		)
	}
	c.printf("NATS      %s", s.NATSURL())
	c.printf("vCenter   %s, simulated, called %s", s.VCenterURL(), sandbox.VCenter)
	if !o.NoService {
		c.printf("service   %s", s.URL())
	}
	c.printf("")
	c.table(rows, true, func(row, column int) colour {
		switch {
		case column != 1:
			return plain
		case strings.HasPrefix(rows[row][1], "run.succeeded"):
			return green
		case strings.HasPrefix(rows[row][1], "run.canceled"):
			return yellow
		}
		return red
	})
	c.printf("")
	if o.NoService {
		c.printf("A service of yours works on it with these settings:")
		for _, setting := range s.Env() {
			c.println("  export " + setting)
		}
		return nil
	}
	first := s.VMs()[0]
	c.printf("Try one, in another terminal (each VM has its request beside this one):")
	c.println("  export NATS_URL=" + s.NATSURL() + " GUESTFLOW_VCENTERS=" + sandbox.VCenter)
	c.println("  guestflow submit " + s.RequestFile(first) + " --wait")
	c.println("  guestflow watch")
	c.printf("Ctrl-C ends it.")
	return nil
}

// firstError is err, or the error of the clean-up.
func firstError(err, end error) error {
	if err != nil {
		return err
	}
	return end
}
