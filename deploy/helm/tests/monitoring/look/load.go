package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// world is everything that runs: NATS and a simulated vCenter, two replicas, two Prometheus.
type world struct {
	bin, out  string   // binaries; logs and pages
	dir       string   // what is gone at the end
	settings  []string // of the service and the command, as the sandbox prints them
	vms       []vm
	replicas  []*replica
	proms     []*prom
	processes []*exec.Cmd
}

type vm struct {
	ID          string `json:"vm"`
	Ends        string `json:"ends"`
	RequestFile string `json:"requestFile"`
}

type replica struct {
	name, addr string
	cmd        *exec.Cmd
}

const scrape = 5 * time.Second

func start(ctx context.Context, bin, chart, out string) (w *world, err error) {
	w = &world{bin: bin, out: out}
	if w.dir, err = os.MkdirTemp("", "guestflow-look-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	if err := w.sandbox(ctx); err != nil {
		return nil, err
	}
	for _, name := range []string{"guestflow-a", "guestflow-b"} {
		addr, err := free(ctx)
		if err != nil {
			return nil, err
		}
		r := &replica{name: name, addr: addr}
		w.replicas = append(w.replicas, r)
		if err := w.serve(ctx, r); err != nil {
			return nil, err
		}
	}
	for _, native := range []bool{true, false} {
		if err := w.prometheus(ctx, chart, native); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// begin starts a process that stop ends.
func (w *world) begin(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.processes = append(w.processes, cmd)
	return nil
}

func (w *world) stop() {
	for _, cmd := range w.processes {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	_ = os.RemoveAll(w.dir)
}

func (w *world) sandbox(ctx context.Context) error {
	addr, err := free(ctx)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "guestflow"), "sandbox", "--json", "--no-service", "--listen",
		addr, "--dir", filepath.Join(w.dir, "sandbox"))
	cmd.Stderr = os.Stderr
	says, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := w.begin(cmd); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(says, 1<<20).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("guestflow sandbox ended before it was ready: %w", err)
	}
	var is struct {
		Settings []string `json:"settings"`
		VMs      []vm     `json:"vms"`
	}
	if err := json.Unmarshal(line, &is); err != nil {
		return err
	}
	w.settings, w.vms = is.Settings, is.VMs
	return nil
}

// serve starts a replica, again where it ran before, and waits until it is ready.
func (w *world) serve(ctx context.Context, r *replica) error {
	log, err := os.OpenFile(filepath.Join(w.out, r.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.CommandContext(ctx, filepath.Join(w.bin, "consumer"))
	r.cmd.Env = append(append(os.Environ(), w.settings...), "HTTP_ADDR="+r.addr, "GUESTFLOW_INSTANCE="+r.name,
		"GUESTFLOW_EVENTS_MAX_BYTES=20000000",
		"VCENTER_LAB_MAX_IN_FLIGHT=12")
	r.cmd.Stderr = log
	if err := w.begin(r.cmd); err != nil {
		return err
	}
	return answers(ctx, "http://"+r.addr+"/readyz")
}

func (w *world) prometheus(ctx context.Context, chart string, native bool) error {
	addr, err := free(ctx)
	if err != nil {
		return err
	}
	p := &prom{name: map[bool]string{true: "native", false: "classic"}[native], url: "http://" + addr}
	config := fmt.Sprintf("global: {scrape_interval: %s, evaluation_interval: %s, scrape_native_histograms: "+
		"%t}\nrule_files: [%q]\n"+
		"storage: {exemplars: {max_exemplars: 1000}}\nscrape_configs: [{job_name: guestflow, static_configs: "+
		"[{targets: [%q, %q]}]}]\n",
		scrape, scrape, native, filepath.Join(chart, "alerts.yaml"), w.replicas[0].addr, w.replicas[1].addr)
	file := filepath.Join(w.dir, p.name+".yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(w.out, "prometheus-"+p.name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "prometheus"), "--config.file="+file,
		"--storage.tsdb.path="+filepath.Join(w.dir, p.name),
		"--web.listen-address="+addr)
	cmd.Stderr = log
	if err := w.begin(cmd); err != nil {
		return err
	}
	w.proms = append(w.proms, p)
	return answers(ctx, p.url+"/-/ready")
}

// load asks for every VM's run again and again, cancels the one that does not end, lets a replica crash half-way, and
// starts it again.
func (w *world) load(ctx context.Context, lasts time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	crash, again := time.After(lasts/2), (<-chan time.Time)(nil)
	round := time.NewTicker(20 * time.Second)
	defer round.Stop()
	for n := 1; ; n++ {
		w.round(ctx, n)
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil
			}
			return ctx.Err()
		case <-crash:
			crash = nil
			_ = w.replicas[0].cmd.Process.Kill()
			again = time.After(30 * time.Second)
		case <-again:
			again = nil
			if err := w.serve(ctx, w.replicas[0]); err != nil {
				return err
			}
		case <-round.C:
		}
	}
}

// round sends a request for each VM. One that is not taken, since the VM has two already, is part of the load.
func (w *world) round(ctx context.Context, n int) {
	id := fmt.Sprintf("look-%d", n)
	for _, vm := range w.vms {
		_ = w.command(ctx, "submit", vm.RequestFile, "--source", "/look", "--id", id)
		if strings.HasPrefix(vm.Ends, "run.canceled") {
			_ = w.command(ctx, "cancel", vm.ID, "--source", "/look", "--id", id, "--reason", "the load goes on")
			// other data: refused
			_ = w.command(ctx, "submit", "--vm", vm.ID, "--check-only", "--source", "/look", "--id", id)
		}
	}
}

func (w *world) command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "guestflow"), args...)
	cmd.Env = append(os.Environ(), w.settings...)
	return cmd.Run()
}

// free is an address of this host on which nobody listens.
func free(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// answers waits until a URL answers with 200.
func answers(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
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
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", url, ctx.Err())
		case <-tick.C:
		}
	}
}
