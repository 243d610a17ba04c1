// Demo shows guestflow at work: the service and the command, as they are built for production, on an embedded
// nats-server and a simulated vCenter. It sends three requests, shows what becomes of them, and ends by itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/guestflow/guestflow/sandbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run starts everything, shows it, and ends everything.
func run(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(self) // the service and the command are built beside the demo

	box, err := sandbox.Start(ctx, sandbox.Options{NoService: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.Close()) }()

	s, err := startService(ctx, filepath.Join(bin, "consumer"), box)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()

	return show(ctx, &stage{box: box, guestflow: filepath.Join(bin, "guestflow")})
}

// show is what the demo is for.
func show(ctx context.Context, s *stage) error {
	works, err := s.vm("run.succeeded")
	if err != nil {
		return err
	}
	fails, err := s.vm("run.failed ExitCode")
	if err != nil {
		return err
	}
	_, _ = fmt.Printf("Running on this machine: NATS, a simulated vCenter with %d VMs, and the guestflow service.\n",
		len(s.box.VMs()))

	s.title(
		"1. One request does the whole job on %s: check that the VM can be customized, customize its running guest,\n"+
			"   start its network, verify that the guest shows what was asked for, run a program in it.",
		works,
	)
	if err := s.command(ctx, 0, "submit", works+".json", "--id", "order-1", "--wait"); err != nil {
		return err
	}

	s.title(
		"2. The same request is sent again, as by a publisher that missed the answer. Nothing is done a second " +
			"time:\n" +
			"   the run and its tasks are those of the first.",
	)
	if err := s.command(ctx, 0, "submit", works+".json", "--id", "order-1"); err != nil {
		return err
	}
	if err := s.command(ctx, 0, "status", works); err != nil {
		return err
	}

	s.title("3. The same job on %s, where the program ends with exit code 3. The run fails, and says why;\n"+
		"   the exit code of the command is 1.", fails)
	if err := s.command(ctx, 1, "submit", fails+".json", "--id", "order-2", "--wait"); err != nil {
		return err
	}

	return s.conclude(works, fails)
}

// stage is where the demo plays: the sandbox, and the command that talks to it.
type stage struct {
	box       *sandbox.Sandbox
	guestflow string // the command's binary
}

// vm is the first VM whose request ends in this way.
func (s *stage) vm(ends string) (string, error) {
	for _, vm := range s.box.VMs() {
		if vm.Ends == ends {
			return vm.ID, nil
		}
	}
	return "", fmt.Errorf("the sandbox has no VM whose request ends with %s", ends)
}

func (s *stage) title(format string, args ...any) {
	_, _ = fmt.Printf("\n"+format+"\n\n", args...)
}

// command shows a command and runs it, where the VMs' requests are.
func (s *stage) command(ctx context.Context, wantCode int, args ...string) error {
	line := "guestflow " + strings.Join(args, " ")
	_, _ = fmt.Println("$ " + line)

	cmd := exec.CommandContext(ctx, s.guestflow, append(args, "--text")...)
	cmd.Dir = filepath.Dir(s.box.RequestFile(s.box.VMs()[0]))
	cmd.Env = append(os.Environ(), "NATS_URL="+s.box.NATSURL(), "GUESTFLOW_VCENTERS="+sandbox.VCenter)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		return fmt.Errorf("start %s: %w", line, err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", line, context.Cause(ctx))
	}
	if code := cmd.ProcessState.ExitCode(); code != wantCode {
		return fmt.Errorf("%s: exit code %d, expected %d", line, code, wantCode)
	}
	return nil
}

// conclude compares what was done to the guests with what was asked for: three requests, of which one is a repeat.
func (s *stage) conclude(vms ...string) error {
	for _, vm := range vms {
		e := s.box.Effects(vm)
		if e.Customizations != 1 || e.NetworkStarts != 1 || len(e.Processes) != 1 {
			return fmt.Errorf("the guest of %s was changed more or less than once: %+v", vm, e)
		}
	}
	_, _ = fmt.Printf(
		"\nThree requests were sent. In vCenter, each of the %d guests was customized once, its network started "+
			"once,\n"+
			"its program run once. To play with all %d VMs: bin/guestflow sandbox\n",
		len(vms),
		len(s.box.VMs()),
	)
	return nil
}

// service is the guestflow service as a process of its own.
type service struct {
	cmd    *exec.Cmd
	output *strings.Builder // its log; read it only when the process has ended
}

// startService starts the service, and returns when it takes requests.
func startService(ctx context.Context, binary string, box *sandbox.Sandbox) (*service, error) {
	s := &service{cmd: exec.Command(binary), output: &strings.Builder{}}
	s.cmd.Env = append(box.Env(), "GUESTFLOW_INSTANCE=demo")
	s.cmd.Stdout, s.cmd.Stderr = io.Discard, s.output
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	if err := waitReady(ctx, box.URL()+"/readyz"); err != nil {
		return nil, errors.Join(err, s.stop(), errors.New(s.output.String()))
	}
	return s, nil
}

// stop ends the service as Kubernetes would, and waits for it.
func (s *service) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("the service: %w\n%s", err, s.output)
	}
	return nil
}

// waitReady waits until a URL answers with 200.
func waitReady(ctx context.Context, url string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
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
		case <-ctx.Done():
			return fmt.Errorf("the service is not ready at %s: %w", url, context.Cause(ctx))
		}
	}
}
