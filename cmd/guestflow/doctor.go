package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

// doctorTime bounds each group of questions: what does not answer is a finding.
const doctorTime = 30 * time.Second

// clockLimit is what two clocks may differ before it is worth a word.
const clockLimit = 5 * time.Second

// verdict is how bad a finding is.
type verdict string

const (
	fine    verdict = "ok"
	odd     verdict = "warning" // the service works, and somebody should know
	broken  verdict = "broken"
	skipped verdict = "skipped" // could not be looked at
)

// finding is one thing that the doctor has looked at.
type finding struct {
	About   string  `json:"about"` // settings, nats, vcenter lab
	Verdict verdict `json:"verdict"`
	What    string  `json:"what"`
	Cure    string  `json:"cure,omitempty"`
}

func (c *cli) doctorCommand() *cobra.Command {
	var vm string
	var try tryOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what keeps the service from working, with the cure",
		Long: `Reads the service's settings from the environment and looks at everything that it needs, without changing anything: NATS (reachable, version, JetStream,
streams and consumers, permissions, who takes requests), each vCenter (certificate, login, API version, guest customization manager, privileges), and
the clocks. Run it where the service runs, as who it runs. Exit code 1 where something is broken.`,
		Example: `  guestflow doctor
  guestflow doctor --vm vm-42 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := try.check(); err != nil {
				return err
			}
			if try.vm != "" {
				return c.try(cmd.Context(), try)
			}
			return c.doctor(cmd.Context(), vm)
		},
	}
	try.flags(cmd)
	cmd.Flags().StringVar(&vm, "vm", "", "VM on which the privileges are looked at (default one that had a run)")
	return cmd
}

// doctor is one examination.
type doctor struct {
	*cli
	cfg    app.Config
	vm     string
	about  string
	broken bool
	cured  map[string]bool // the cures that were told
}

func (d *doctor) find(v verdict, cure, what string, args ...any) {
	f := finding{About: d.about, Verdict: v, What: fmt.Sprintf(what, args...), Cure: cure}
	d.broken = d.broken || v == broken
	if d.json {
		_ = d.object(f) // four strings; what cannot be written is seen at the end
		return
	}
	d.say("  %s %s",
		d.paint(map[verdict]colour{fine: green, odd: yellow, broken: red, skipped: dim}[v], fmt.Sprintf("%-8s", v)),
		flat(f.What))
	if f.Cure = d.once(f.Cure); f.Cure != "" {
		d.say("  %8s %s", "", d.paint(bold, "cure: ")+flat(f.Cure))
	}
}

// longCure is from how many bytes on a cure is told once, and then referred to.
const longCure = 60

// once is a cure as it is told to people.
func (d *doctor) once(cure string) string {
	if d.cured[cure] {
		return "the same as above"
	}
	if len(cure) > longCure {
		if d.cured == nil {
			d.cured = map[string]bool{}
		}
		d.cured[cure] = true
	}
	return cure
}

func (d *doctor) chapter(about string) {
	d.about = about
	if !d.json {
		d.say("%s", d.paint(bold, about))
	}
}

func (c *cli) doctor(ctx context.Context, vm string) error {
	if vm != "" {
		if err := validVM(vm); err != nil {
			return err
		}
	}
	d := &doctor{cli: c, vm: vm}
	d.chapter("settings")
	var err error
	if d.cfg, err = app.LoadConfig(c.env); err != nil {
		for _, wrong := range apart(err) {
			d.find(broken, "set it in the environment of the service, and of this command", "%s", wrong)
		}
	} else {
		d.find(fine, "", "all that is needed is set; vCenters: %s", strings.Join(names(d.cfg.VCenters), ", "))
	}
	if c.server != "" {
		d.cfg.NATS.URL = c.server
	}
	wrong := apart(err)
	d.chapter("nats")
	var conn *client.Client
	if about(wrong, "NATS_") {
		d.find(skipped, "", "not looked at: its settings are wrong")
	} else {
		conn = d.nats(ctx)
	}
	if conn != nil {
		defer conn.Close()
	}
	for _, v := range d.cfg.VCenters {
		if c.vcenter != "" && c.vcenter != v.Name {
			continue
		}
		d.chapter("vcenter " + v.Name)
		if about(wrong, "VCENTER_"+strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_"))+"_") {
			d.find(skipped, "", "not looked at: its settings are wrong")
			continue
		}
		timed, cancel := context.WithTimeout(ctx, doctorTime)
		d.lookAt(timed, v, conn)
		cancel()
	}
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted")
	}
	if d.broken {
		return &exit{code: exitFailed}
	}
	return c.failed()
}

func names(vcenters []app.VCenter) (all []string) {
	for _, v := range vcenters {
		all = append(all, v.Name)
	}
	return all
}

// apart are the lines of an error about settings: one setting each.
func apart(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(strings.TrimPrefix(err.Error(), "settings: "), "\n")
}

func about(wrong []string, prefix string) bool {
	return slices.ContainsFunc(wrong, func(s string) bool { return strings.HasPrefix(s, prefix) })
}

// nats looks at NATS. It returns the connection, nil where there is none.
func (d *doctor) nats(ctx context.Context) *client.Client {
	ctx, cancel := context.WithTimeout(ctx, doctorTime)
	defer cancel()
	cfg := reach(d.cfg.NATS, "guestflow doctor")
	conn, err := client.Dial(cfg, client.Options{MaxOutage: time.Second})
	if err != nil {
		cure := "see the settings of NATS"
		var away *client.ConnectError
		if errors.As(err, &away) {
			cure, err = away.Cure+"; the server's log has its own view", away.Cause
		}
		d.find(broken, cure, "cannot connect to NATS: %v", err)
		return nil
	}
	s, err := conn.Server()
	if err != nil {
		d.find(broken, "", "%v", err)
		return conn
	}
	how := "without TLS"
	if s.TLS {
		how = "with TLS"
	}
	d.find(fine, "", "connected to %s, server %s, version %s, %s, round trip %s", s.URL, s.Name, s.Version, how,
		s.RTT.Round(10*time.Microsecond))
	var refused *client.PermissionError
	if err := conn.JetStream(ctx); err != nil && !errors.As(err, &refused) {
		d.find(broken,
			"enable JetStream in the server's configuration (jetstream {}), and for the account; or set NATS_JS_DOMAIN",
			"JetStream: %v", err)
		return conn
	}
	d.permissions(ctx, conn)
	d.storage(ctx, conn)
	d.streams(ctx, conn, cfg)
	d.service(ctx)
	d.clockOfNATS(ctx, conn)
	for _, v := range d.cfg.VCenters {
		d.takers(ctx, conn, v.Name)
	}
	return conn
}

func (d *doctor) permissions(ctx context.Context, conn *client.Client) {
	lacking, untried, err := conn.MissingPermissions(ctx,
		conn.ServicePermissions(names(d.cfg.VCenters), d.cfg.Service.Provision))
	if err != nil {
		d.find(broken, "", "permissions: %v", err)
		return
	}
	for _, p := range lacking {
		what, list := "publish on", "publish"
		if p.Subscribe {
			what, list = "subscribe to", "subscribe"
		}
		d.find(
			broken,
			fmt.Sprintf("add %q to the %s permissions of the service's user (deploy/nats has them all)", p.Subject,
				list),
			"permissions: this user may not %s %s",
			what,
			p.Subject,
		)
	}
	switch {
	case len(untried) > 0:
		d.find(
			skipped,
			"allow this user to publish on $SYS.REQ.USER.INFO, and the doctor sees these permissions, too; the "+
				"service does not need it",
			"permissions to publish on %s: the server does not tell this user what it may do, and only a message "+
				"that others hear would show it",
			strings.Join(untried, ", "),
		)
	case len(lacking) == 0:
		d.find(fine, "", "permissions: all that the service needs")
	}
}

func (d *doctor) clockOfNATS(ctx context.Context, conn *client.Client) {
	offset, giveOrTake, err := conn.Clock(ctx, events.EventsStream)
	if err != nil { // the stream's own finding says why
		return
	}
	d.clock("NATS", offset, giveOrTake,
		"run NTP on both hosts: expirytime, --since and the times in events are compared across them")
}

// clock tells how far another clock is from ours.
func (d *doctor) clock(whose string, offset, giveOrTake time.Duration, cure string) {
	v := fine
	if offset.Abs() > clockLimit+giveOrTake {
		v = odd
	} else {
		cure = ""
	}
	d.find(v, cure, "clock: %s is %s ours (± %s)", whose, ahead(offset), giveOrTake.Round(time.Millisecond))
}

func ahead(offset time.Duration) string {
	offset = offset.Round(time.Millisecond)
	if offset < 0 {
		return (-offset).String() + " behind"
	}
	return offset.String() + " ahead of"
}

// certificate reports whether an error is about a certificate.
func certificate(err error) bool {
	var verify *tls.CertificateVerificationError
	return errors.As(err, &verify) || strings.Contains(err.Error(), "thumbprint")
}
