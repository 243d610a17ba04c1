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

// checkTimeout bounds each group of checks; a check that gets no answer is a finding.
const checkTimeout = 30 * time.Second

// clockLimit is how much two clocks may differ without a warning.
const clockLimit = 5 * time.Second

// verdict is the result of a check.
type verdict string

const (
	passed  verdict = "ok"
	warning verdict = "warning" // the service works, and somebody should know
	broken  verdict = "broken"
	skipped verdict = "skipped" // could not be looked at
)

var verdictColours = map[verdict]colour{passed: green, warning: yellow, broken: red, skipped: dim}

// finding is the result of one check, as JSON shows it.
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
		Long: `Reads the service's settings from the environment and checks everything that the service needs, without
changing anything: NATS (connection, version, JetStream, streams and consumers, permissions, who takes
requests), each vCenter (certificate, login, API version, guest customization manager, privileges), and
the clocks. Run it where the service runs, as the same user. Exit code 1 if something is broken.`,
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

// doctor is one run of the checks.
type doctor struct {
	*cli
	cfg       app.Config
	vm        string
	subject   string
	broken    bool
	toldCures map[string]bool // cures that were printed
}

func (d *doctor) report(v verdict, cure, what string, args ...any) {
	f := finding{About: d.subject, Verdict: v, What: fmt.Sprintf(what, args...), Cure: cure}
	d.broken = d.broken || v == broken
	if d.json {
		_ = d.printJSON(f) // four strings; what cannot be written is seen at the end
		return
	}
	d.printf("  %s %s",
		d.paint(verdictColours[v], fmt.Sprintf("%-8s", v)),
		flat(f.What))
	if f.Cure = d.shortenRepeat(f.Cure); f.Cure != "" {
		d.printf("  %8s %s", "", d.paint(bold, "cure: ")+flat(f.Cure))
	}
}

// minRepeatedCure is the length from which on a cure is not printed twice.
const minRepeatedCure = 60

// shortenRepeat returns the cure, or, if it is long and was printed before, a reference to it.
func (d *doctor) shortenRepeat(cure string) string {
	if d.toldCures[cure] {
		return "the same as above"
	}
	if len(cure) > minRepeatedCure {
		if d.toldCures == nil {
			d.toldCures = map[string]bool{}
		}
		d.toldCures[cure] = true
	}
	return cure
}

func (d *doctor) section(about string) {
	d.subject = about
	if !d.json {
		d.printf("%s", d.paint(bold, about))
	}
}

func (c *cli) doctor(ctx context.Context, vm string) error {
	if vm != "" {
		if err := validVM(vm); err != nil {
			return err
		}
	}
	d := &doctor{cli: c, vm: vm}
	d.section("settings")
	var err error
	if d.cfg, err = app.LoadConfig(c.env); err != nil {
		for _, wrong := range settingErrors(err) {
			d.report(broken, "set it in the environment of the service, and of this command", "%s", wrong)
		}
	} else {
		d.report(passed, "", "all required settings are set; vCenters: %s",
			strings.Join(vcenterNames(d.cfg.VCenters), ", "))
	}
	if c.server != "" {
		d.cfg.NATS.URL = c.server
	}
	wrong := settingErrors(err)
	d.section("nats")
	var conn *client.Client
	if hasSetting(wrong, "NATS_") {
		d.report(skipped, "", "not checked: its settings are wrong")
	} else {
		conn = d.checkNATS(ctx)
	}
	if conn != nil {
		defer conn.Close()
	}
	for _, v := range d.cfg.VCenters {
		if c.vcenter != "" && c.vcenter != v.Name {
			continue
		}
		d.section("vcenter " + v.Name)
		if hasSetting(wrong, "VCENTER_"+strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_"))+"_") {
			d.report(skipped, "", "not checked: its settings are wrong")
			continue
		}
		timed, cancel := context.WithTimeout(ctx, checkTimeout)
		d.checkVCenter(timed, v, conn)
		cancel()
	}
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted")
	}
	if d.broken {
		return &exit{code: exitFailed}
	}
	return c.writeError()
}

func vcenterNames(vcenters []app.VCenter) (all []string) {
	for _, v := range vcenters {
		all = append(all, v.Name)
	}
	return all
}

// settingErrors splits an error of LoadConfig into its lines, each about one setting.
func settingErrors(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(strings.TrimPrefix(err.Error(), "settings: "), "\n")
}

func hasSetting(wrong []string, prefix string) bool {
	return slices.ContainsFunc(wrong, func(s string) bool { return strings.HasPrefix(s, prefix) })
}

// checkNATS checks NATS, and returns the connection; nil if it cannot connect.
func (d *doctor) checkNATS(ctx context.Context) *client.Client {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cfg := d.cfg.NATS.Stream("guestflow doctor")
	conn, err := client.Dial(cfg, client.Options{MaxOutage: time.Second})
	if err != nil {
		cure := "see the settings of NATS"
		var away *client.ConnectError
		if errors.As(err, &away) {
			cure, err = away.Cure+"; the server's log has its own view", away.Cause
		}
		d.report(broken, cure, "cannot connect to NATS: %v", err)
		return nil
	}
	s, err := conn.Server()
	if err != nil {
		d.report(broken, "", "%v", err)
		return conn
	}
	how := "without TLS"
	if s.TLS {
		how = "with TLS"
	}
	d.report(passed, "", "connected to %s, server %s, version %s, %s, round trip %s", s.URL, s.Name, s.Version, how,
		s.RTT.Round(10*time.Microsecond))
	var refused *client.PermissionError
	if err := conn.JetStream(ctx); err != nil && !errors.As(err, &refused) {
		d.report(broken,
			"enable JetStream in the server's configuration (jetstream {}), and for the account; or set NATS_JS_DOMAIN",
			"JetStream: %v", err)
		return conn
	}
	d.checkPermissions(ctx, conn)
	d.checkStorage(ctx, conn)
	d.checkStreams(ctx, conn, cfg)
	d.checkService(ctx)
	d.checkNATSClock(ctx, conn)
	for _, v := range d.cfg.VCenters {
		d.checkConsumers(ctx, conn, v.Name)
	}
	return conn
}

func (d *doctor) checkPermissions(ctx context.Context, conn *client.Client) {
	lacking, untried, err := conn.MissingPermissions(ctx,
		conn.ServicePermissions(vcenterNames(d.cfg.VCenters), d.cfg.Service.Provision))
	if err != nil {
		d.report(broken, "", "permissions: %v", err)
		return
	}
	for _, p := range lacking {
		what, list := "publish on", "publish"
		if p.Subscribe {
			what, list = "subscribe to", "subscribe"
		}
		d.report(
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
		d.report(
			skipped,
			"allow this user to publish on $SYS.REQ.USER.INFO, and the doctor sees these permissions, too; the "+
				"service does not need it",
			"permissions to publish on %s: the server does not tell this user what it may do, and only a message "+
				"that others hear would show it",
			strings.Join(untried, ", "),
		)
	case len(lacking) == 0:
		d.report(passed, "", "permissions: all that the service needs")
	}
}

func (d *doctor) checkNATSClock(ctx context.Context, conn *client.Client) {
	offset, giveOrTake, err := conn.Clock(ctx, events.EventsStream)
	if err != nil { // the stream's own finding says why
		return
	}
	d.reportClock("NATS", offset, giveOrTake,
		"run NTP on both hosts: expirytime, --since and the times in events are compared across them")
}

// reportClock reports how far another clock is from ours.
func (d *doctor) reportClock(whose string, offset, giveOrTake time.Duration, cure string) {
	v := passed
	if offset.Abs() > clockLimit+giveOrTake {
		v = warning
	} else {
		cure = ""
	}
	d.report(v, cure, "clock: %s is %s ours (± %s)", whose, clockOffset(offset), giveOrTake.Round(time.Millisecond))
}

func clockOffset(offset time.Duration) string {
	offset = offset.Round(time.Millisecond)
	if offset < 0 {
		return (-offset).String() + " behind"
	}
	return offset.String() + " ahead of"
}

// isCertificateError reports whether an error is about a certificate.
func isCertificateError(err error) bool {
	var verify *tls.CertificateVerificationError
	return errors.As(err, &verify) || strings.Contains(err.Error(), "thumbprint")
}
