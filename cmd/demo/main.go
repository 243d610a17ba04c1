// Demo shows guestflow at work on real parts, in one command: an embedded nats-server, a simulated vCenter and the service's own binary. It sends
// three requests, prints their events as they come, and ends by itself.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

func main() {
	consumer := flag.String("consumer", "bin/consumer", "the service's binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	err := run(ctx, *consumer, os.Stdout)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// want is one request of the demo, and how it is to end.
type want struct {
	vm, id, what, data, end string
}

func run(ctx context.Context, consumer string, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "guestflow-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	server, err := natstest.Run(filepath.Join(dir, "nats"))
	if err != nil {
		return err
	}
	defer server.Stop()
	vc, err := vcsim.Start(vcsim.Options{})
	if err != nil {
		return err
	}
	defer vc.Close()
	vms := vc.VMs()
	for _, id := range vms[:3] {
		vc.VM(id).Configure(func(g *vcsim.Guest) { g.CustomizeFor, g.NetworkFor = 3*time.Second, time.Second })
	}
	vc.VM(vms[2]).Configure(func(g *vcsim.Guest) { g.Supported = false })

	secrets, err := writeSecrets(dir, vc)
	if err != nil {
		return err
	}
	httpAddr, err := freeAddress()
	if err != nil {
		return err
	}
	service, err := startService(ctx, consumer, httpAddr, append(secrets, "NATS_URL="+server.URL(), "HTTP_ADDR="+httpAddr, "VCENTER_LAB_URL="+vc.URL(),
		"VCENTER_LAB_USERNAME="+vc.Username()), filepath.Join(dir, "consumer.log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.stop()) }()
	_, _ = fmt.Fprintf(out, "NATS at %s · simulated vCenter %q at %s · service at http://%s\n", server.URL(), "lab", vc.URL(), httpAddr)

	conn, err := nats.Connect(server.URL())
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	wants := []want{
		{vms[0], "demo-1", "customize, start the network, run a process", withProcess(vms[0], "exit 0"), "run.succeeded"},
		{vms[1], "demo-2", "the same, but the process exits with 3", withProcess(vms[1], "exit 3"), "run.failed"},
		{vms[2], "demo-3", "a guest that vCenter cannot customize", withProcess(vms[2], "exit 0"), "run.failed"},
	}
	for _, w := range wants {
		if err := show(ctx, out, conn, js, w); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(out, "\ndone: every request ended as expected; vCenter saw %d CustomizeGuest_Task, %d StartGuestNetwork_Task, %d processes started\n",
		vc.Count("CustomizeGuest_Task", ""), vc.Count("StartGuestNetwork_Task", ""), vc.Count("guest/processes create", ""))
	return nil
}

// withProcess is the data of a request that asks for everything; see schemas/requested.v1.json.
func withProcess(vm, script string) string {
	return fmt.Sprintf(`{
  "vm": %q,
  "guest": { "credentials": { "secretRef": "linux-root" } },
  "customize": { "spec": {
    "_typeName": "CustomizationSpec",
    "identity": { "_typeName": "CustomizationLinuxPrep", "domain": "example.test",
      "hostName": { "_typeName": "CustomizationFixedName", "name": "web-1" } },
    "globalIPSettings": { "_typeName": "CustomizationGlobalIPSettings", "dnsServerList": ["10.0.0.2"] },
    "nicSettingMap": [ { "_typeName": "CustomizationAdapterMapping", "adapter": { "_typeName": "CustomizationIPSettings",
      "ip": { "_typeName": "CustomizationFixedIp", "ipAddress": "10.0.0.7" }, "subnetMask": "255.255.255.0", "gateway": ["10.0.0.1"] } } ] } },
  "network": {},
  "processes": [ { "name": "join-domain", "run": { "path": "/bin/sh", "arguments": "-c '%s'" } } ]
}`, vm, script)
}

// show sends one request as any client would, subscribed first, and prints its events until the last one.
func show(ctx context.Context, out io.Writer, conn *nats.Conn, js jetstream.JetStream, w want) error {
	_, _ = fmt.Fprintf(out, "\n> request %s for %s: %s\n", w.id, w.vm, w.what)
	told := make(chan *nats.Msg, 64)
	for _, subject := range []string{"guestflow.events.lab." + w.vm + ".>", "guestflow.rejections.lab." + w.vm} {
		sub, err := conn.ChanSubscribe(subject, told)
		if err != nil {
			return err
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	event, err := json.Marshal(map[string]any{"specversion": "1.0", "id": w.id, "source": "/demo", "type": "io.guestflow.customization.requested.v1",
		"subject": w.vm, "datacontenttype": "application/json", "data": json.RawMessage(w.data)})
	if err != nil {
		return err
	}
	if _, err := js.PublishMsg(ctx, &nats.Msg{Subject: "guestflow.requests.lab." + w.vm, Data: event,
		Header: nats.Header{"Content-Type": {"application/cloudevents+json"}}}); err != nil {
		return fmt.Errorf("publish %s: %w", w.id, err)
	}
	for {
		select {
		case m := <-told:
			kind, err := printEvent(out, m.Data)
			if err != nil {
				return err
			}
			switch kind {
			case w.end:
				return nil
			case "run.succeeded", "run.failed", "run.canceled", "rejected":
				return fmt.Errorf("request %s ended with %s, expected %s", w.id, kind, w.end)
			}
		case <-ctx.Done():
			return fmt.Errorf("request %s: no last event: %w", w.id, context.Cause(ctx))
		}
	}
}

// printEvent writes one event as a line.
func printEvent(out io.Writer, event []byte) (kind string, err error) {
	var e struct {
		ID, Type string
		Time     time.Time
		Data     struct {
			VM        string
			Check     struct{ Status string }
			Customize struct {
				Task, DecidedBy string
				Progress        *int
			}
			Network   struct{ Task string }
			Processes []struct {
				PID      int64
				Command  string
				ExitCode *int64
			}
			Error struct{ Code, Message string }
		}
	}
	if err := json.Unmarshal(event, &e); err != nil {
		return "", fmt.Errorf("event: %w", err)
	}
	kind = strings.TrimSuffix(strings.TrimPrefix(e.Type, "io.guestflow.customization."), ".v1")
	detail := ""
	switch d := e.Data; kind {
	case "check.completed":
		detail = d.Check.Status
	case "customize.started", "customize.completed":
		detail = strings.TrimSpace(d.Customize.Task + " " + d.Customize.DecidedBy)
	case "customize.progressed":
		if d.Customize.Progress != nil {
			detail = fmt.Sprintf("%d %%", *d.Customize.Progress)
		}
	case "network.started":
		detail = d.Network.Task
	case "process.started":
		detail = fmt.Sprintf("pid %d: %s", d.Processes[0].PID, d.Processes[0].Command)
	case "process.exited":
		if code := d.Processes[0].ExitCode; code != nil {
			detail = fmt.Sprintf("exit code %d", *code)
		}
	case "run.failed":
		detail = d.Error.Code + ": " + d.Error.Message
	}
	_, n, _ := strings.Cut(e.ID, ".")
	_, err = fmt.Fprintf(out, "  %s  %-8s %2s  %-21s %s\n", e.Time.Format("15:04:05.000"), e.Data.VM, n, kind, detail)
	return kind, err
}

// writeSecrets puts what the service must know into files, as Kubernetes would mount them, and returns the settings that name them.
func writeSecrets(dir string, vc *vcsim.VCenter) ([]string, error) {
	guest := filepath.Join(dir, "secrets", "lab", "linux-root")
	if err := os.MkdirAll(guest, 0o700); err != nil {
		return nil, err
	}
	files := map[string]string{
		filepath.Join(guest, "username"): vcsim.DefaultGuestUsername, filepath.Join(guest, "password"): vcsim.DefaultGuestPassword,
		filepath.Join(dir, "vcenter-password"): vc.Password(), filepath.Join(dir, "vcenter-ca.pem"): string(vc.CAPEM()),
	}
	for name, content := range files {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	return []string{"GUESTFLOW_VCENTERS=lab", "GUESTFLOW_SECRETS_DIR=" + filepath.Join(dir, "secrets"),
		"VCENTER_LAB_PASSWORD_FILE=" + filepath.Join(dir, "vcenter-password"), "VCENTER_LAB_CA_FILE=" + filepath.Join(dir, "vcenter-ca.pem")}, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// service is the consumer as a process of its own.
type service struct {
	cmd *exec.Cmd
	log string
}

func startService(ctx context.Context, binary, httpAddr string, env []string, log string) (*service, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.Command(binary)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, file, file
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	s := &service{cmd: cmd, log: log}
	if err := waitReady(ctx, "http://"+httpAddr+"/readyz"); err != nil {
		return nil, errors.Join(err, s.stop(), s.said())
	}
	return s, nil
}

// stop ends the service as Kubernetes would, and waits for it.
func (s *service) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := s.cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("the service: %w", err), s.said())
	}
	return nil
}

// said is the service's log as an error.
func (s *service) said() error {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err
	}
	return errors.New(string(b))
}

func waitReady(ctx context.Context, url string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: not ready: %w", url, context.Cause(ctx))
		}
	}
}
