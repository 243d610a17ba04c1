package natstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// processEnv holds the settings of the server that a process is to be.
const processEnv = "GUESTFLOW_NATSTEST_SERVER"

// Processes is a cluster like Cluster, but each server is a process of its own, so that it can be killed as a crash
// does it. The program starts itself again for each: its main function, or TestMain, begins with Main.
type Processes struct {
	Servers []*Process
}

// Process is one server of Processes. Its methods are not for concurrent use.
type Process struct {
	settings processSettings

	cmd   *exec.Cmd
	stdin io.Closer // while it is open the server runs: it ends with the program that started it
	ended chan struct{}
}

type processSettings struct {
	Name, Dir string
	Cluster   string
	Port, Hub int // for clients, and for the other servers
	Routes    []int
}

// Main is a server, and never returns, in a process that StartProcesses started; in every other it does nothing.
func Main() {
	text, ok := os.LookupEnv(processEnv)
	if !ok {
		return
	}
	if err := serve(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(text string) error {
	var p processSettings
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return fmt.Errorf("%s: %w", processEnv, err)
	}
	opts := options(p.Name, p.Dir)
	opts.Port = p.Port
	opts.Cluster = server.ClusterOpts{Name: p.Cluster, Host: opts.Host, Port: p.Hub, PoolSize: oneRoute}
	for _, port := range p.Routes {
		opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprintf("%s:%d", opts.Host, port)})
	}
	s := &Server{opts: opts}
	if err := s.Start(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	s.Stop()
	return err
}

// StartProcesses starts n servers that are gone at the end of the test. Their streams and ports stay theirs when they
// are killed.
func StartProcesses(t T, n int) *Processes {
	t.Helper()
	ports, err := freePorts(2 * n)
	if err != nil {
		t.Fatalf("start nats-server processes: %v", err)
	}
	dir, cluster, c := t.TempDir(), clusterName(), &Processes{}
	t.Cleanup(func() {
		for _, p := range c.Servers {
			p.Kill()
		}
	})
	for i := range n {
		name := fmt.Sprintf("guestflow-%d", i+1)
		p := &Process{settings: processSettings{Name: name, Dir: filepath.Join(dir, name), Cluster: cluster,
			Port: ports[i], Hub: ports[n+i], Routes: ports[n:]}}
		c.Servers = append(c.Servers, p)
		if err := p.Start(); err != nil {
			t.Fatalf("start nats-server processes: %v", err)
		}
	}
	return c
}

// URL names all servers, comma separated.
func (c *Processes) URL() string {
	var urls []string
	for _, p := range c.Servers {
		urls = append(urls, p.URL())
	}
	return strings.Join(urls, ",")
}

// Named is the server that calls itself so, as JetStream names its leaders; nil where there is none.
func (c *Processes) Named(name string) *Process {
	for _, p := range c.Servers {
		if p.settings.Name == name {
			return p
		}
	}
	return nil
}

// URL is where clients connect, also while the server is killed.
func (p *Process) URL() string { return fmt.Sprintf("nats://127.0.0.1:%d", p.settings.Port) }

// Start starts the server, at the beginning or after Kill, and waits until it listens.
func (p *Process) Start() error {
	text, err := json.Marshal(p.settings)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("nats-server process %s: %w", p.settings.Name, err)
	}
	p.cmd = exec.Command(self)
	p.cmd.Env = append(os.Environ(), processEnv+"="+string(text))
	said := new(strings.Builder)
	p.cmd.Stderr = said
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return fmt.Errorf("nats-server process %s: %w", p.settings.Name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("nats-server process %s: %w", p.settings.Name, err)
	}
	ended, cmd := make(chan struct{}), p.cmd
	p.ended = ended
	go func() {
		_ = cmd.Wait() // its end is asked for, or shows as a server that does not listen
		close(ended)
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(readyWait)
	defer late.Stop()
	for {
		if c, err := net.Dial("tcp", strings.TrimPrefix(p.URL(), "nats://")); err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("nats-server process %s ended: %s", p.settings.Name, said)
		case <-late.C:
			p.Kill()
			return fmt.Errorf("nats-server process %s does not listen at %s after %s", p.settings.Name, p.URL(),
				readyWait)
		case <-tick.C:
		}
	}
}

// Kill ends the server with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return
	}
	<-p.ended
	_ = p.stdin.Close()
	p.cmd = nil
}
