// Package sandbox runs guestflow whole in the calling process: a nats-server with JetStream, a simulated vCenter with
// VMs that succeed and fail in every way worth seeing, and the service. It is what `guestflow sandbox` starts, and what
// tests of other programs can start: what they publish is taken, checked, worked on and answered as in a data centre,
// and nothing leaves the machine.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// Options of a sandbox. The zero value is everything in this process, on free ports of 127.0.0.1.
type Options struct {
	NATS          string    // URL of a NATS with JetStream to use; empty: a nats-server of its own
	NATSListen    string    // host:port of its own nats-server
	VCenterListen string    // host:port of the simulated vCenter
	HTTPListen    string    // host:port of the service's /livez, /readyz, /metrics
	Dir           string    // keeps streams, secrets and the CA file; empty: a temporary folder, gone with Close
	NoService     bool      // only NATS and the simulated vCenter: Env has the settings for a service of your own
	Log           io.Writer // what the service logs; nil: nobody reads it
}

// VCenter is the name of the simulated vCenter: of its subjects, streams and settings.
const VCenter = "lab"

// Sandbox is a running sandbox. Its methods may be called from any goroutine.
type Sandbox struct {
	dir      string
	ownDir   bool
	nats     *natstest.Server // nil: somebody else's
	natsURL  string
	vc       *vcsim.VCenter
	httpAddr string
	vms      []VM

	stop   context.CancelFunc // of the service; nil where there is none
	failed chan error         // what the service ended with; closed
}

// Start starts a sandbox, and returns once the service takes requests.
func Start(ctx context.Context, o Options) (s *Sandbox, err error) {
	s = &Sandbox{dir: o.Dir, natsURL: o.NATS, httpAddr: o.HTTPListen}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("sandbox: %w", err), s.Close())
			s = nil
		}
	}()

	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "guestflow-sandbox-"); err != nil {
			return s, err
		}
		s.ownDir = true
	}

	if s.natsURL == "" {
		if o.NATSListen != "" { // else the server itself takes a port that is free
			if o.NATSListen, err = free(ctx, o.NATSListen); err != nil {
				return s, err
			}
		}
		if s.nats, err = natstest.RunAt(o.NATSListen, filepath.Join(s.dir, "nats")); err != nil {
			return s, err
		}
		s.natsURL = s.nats.URL()
	}

	if s.vc, err = vcsim.Start(vcsim.Options{Listen: o.VCenterListen, VMs: len(behaviours)}); err != nil {
		return s, err
	}

	s.vms = prepare(s.vc)
	if err := s.writeFiles(); err != nil {
		return s, err
	}
	if s.httpAddr, err = free(ctx, s.httpAddr); err != nil {
		return s, err
	}
	if !o.NoService {
		err = s.serve(ctx, o.Log)
	}

	return s, err
}

// serve starts the service, with the settings that anybody would give it.
func (s *Sandbox) serve(ctx context.Context, log io.Writer) error {
	env := map[string]string{}
	for _, setting := range s.Env() {
		key, value, _ := strings.Cut(setting, "=")
		env[key] = value
	}

	cfg, err := app.LoadConfig(envconfig.MapLookuper(env))
	if err != nil {
		return err
	}
	if log == nil {
		log = io.Discard
	}

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop, s.failed = stop, make(chan error, 1)
	go func() {
		defer close(s.failed)
		if err := app.Run(running, cfg, app.NewLogger(cfg, log)); err != nil {
			s.failed <- err
		}
	}()

	return s.ready(ctx)
}

// ready waits until the service takes requests.
func (s *Sandbox) ready(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/readyz", nil)
		if err != nil {
			return err
		}

		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}

		select {
		case <-tick.C:
		case err := <-s.failed:
			return fmt.Errorf("the service ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("the service is not ready: %w", context.Cause(ctx))
		}
	}
}

// Close ends everything: the service gives back what it has in hand first.
func (s *Sandbox) Close() error {
	var wrong []error
	if s.stop != nil {
		s.stop()
		for err := range s.failed {
			wrong = append(wrong, err)
		}
	}

	if s.vc != nil {
		s.vc.Close()
	}
	if s.nats != nil {
		s.nats.Stop()
	}
	if s.ownDir {
		wrong = append(wrong, os.RemoveAll(s.dir))
	}

	return errors.Join(wrong...)
}

// Done is closed when the service has ended by itself; the error is why. Nil, for ever silent, with Options.NoService.
func (s *Sandbox) Done() <-chan error { return s.failed }

// NATSURL is where to publish requests and read events.
func (s *Sandbox) NATSURL() string { return s.natsURL }

// VCenterURL is the simulated vCenter; CAFile has the CA certificate of its TLS.
func (s *Sandbox) VCenterURL() string { return s.vc.URL() }

// CAFile is the path of the simulated vCenter's CA certificate, in PEM.
func (s *Sandbox) CAFile() string { return filepath.Join(s.dir, "vcenter-ca.pem") }

// URL is the service's /livez, /readyz and /metrics.
func (s *Sandbox) URL() string { return "http://" + s.httpAddr }

// RequestFile is the path of a file with the VM's Request.
func (s *Sandbox) RequestFile(vm VM) string { return filepath.Join(s.dir, "requests", vm.ID+".json") }

// VMs are the ready-made VMs.
func (s *Sandbox) VMs() []VM { return s.vms }

// Effects are what was done to a VM so far, answered or not.
type Effects struct {
	Customizations, NetworkStarts, Aborts int
	Processes                             []string // command lines
}

// Effects of a VM, by its managed object ID; zero where there is no such VM.
func (s *Sandbox) Effects(vm string) Effects {
	m := s.vc.VM(vm)
	if m == nil {
		return Effects{}
	}
	e := m.Effects()
	return Effects{e.Customizations, e.NetworkStarts, e.Aborts, e.Processes}
}

// Env are the settings with which a service works on this sandbox, as KEY=value. The times are short: in a sandbox
// nobody wants to wait.
func (s *Sandbox) Env() []string {
	return []string{
		"NATS_URL=" + s.natsURL,
		"HTTP_ADDR=" + s.httpAddr,
		"GUESTFLOW_VCENTERS=" + VCenter,
		"GUESTFLOW_INSTANCE=sandbox",
		"GUESTFLOW_SECRETS_DIR=" + filepath.Join(s.dir, "secrets"),
		"GUESTFLOW_ACK_WAIT=5s",
		"VCENTER_LAB_URL=" + s.vc.URL(),
		"VCENTER_LAB_USERNAME=" + s.vc.Username(),
		"VCENTER_LAB_PASSWORD_FILE=" + filepath.Join(s.dir, "vcenter-password"),
		"VCENTER_LAB_CA_FILE=" + s.CAFile(),
		"VCENTER_LAB_SEND_WINDOW=2s",
		"VCENTER_LAB_TRAVEL_TIME=1s",
		"VCENTER_LAB_VISIBILITY_LAG=1s",
	}
}

// writeFiles puts what the service must know into files, as Kubernetes would mount them.
func (s *Sandbox) writeFiles() error {
	guest := filepath.Join(s.dir, "secrets", VCenter, guestSecret)
	if err := os.MkdirAll(guest, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "requests"), 0o700); err != nil {
		return err
	}

	for _, vm := range s.vms {
		if err := os.WriteFile(s.RequestFile(vm), append(vm.Request, '\n'), 0o600); err != nil {
			return err
		}
	}

	for name, content := range map[string]string{
		filepath.Join(guest, "username"):         vcsim.DefaultGuestUsername,
		filepath.Join(guest, "password"):         vcsim.DefaultGuestPassword,
		filepath.Join(s.dir, "vcenter-password"): s.vc.Password(), s.CAFile(): string(s.vc.CAPEM()),
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			return err
		}
	}

	return nil
}

// free is an address at which nobody listens: the one that is asked for, or any.
func free(ctx context.Context, addr string) (string, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
