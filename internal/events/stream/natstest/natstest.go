// Package natstest runs nats-server with JetStream on disk inside the calling process: one server, or a cluster on
// loopback. Tests use it, and the demo does; the service never links it.
package natstest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// readyWait bounds how long a server may take to listen, and a cluster to elect its leaders, on a busy machine.
const readyWait = 60 * time.Second

// T is what StartServer and StartCluster need of *testing.T and *testing.B.
type T interface {
	Helper()
	TempDir() string
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Server is a nats-server with JetStream on disk. Its methods are not for concurrent use.
type Server struct {
	opts *server.Options
	srv  *server.Server
	said *log // nil where nobody asks what it says
}

// StartServer starts a server that is gone at the end of the test.
func StartServer(t T) *Server {
	t.Helper()
	s, err := Run(t.TempDir())
	if err != nil {
		t.Fatalf("start nats-server: %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Run starts a server on a free port of loopback; dir keeps its streams.
func Run(dir string) (*Server, error) { return RunAt("", dir) }

// RunAt is Run at an address, host:port; empty: a free port of loopback.
func RunAt(addr, dir string) (*Server, error) {
	opts := options("guestflow", dir)
	if addr != "" {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if opts.Host = host; port != "0" {
			if opts.Port, err = strconv.Atoi(port); err != nil {
				return nil, fmt.Errorf("port %q: %w", port, err)
			}
		}
	}
	s := &Server{opts: opts}
	if err := s.Start(); err != nil {
		return nil, err
	}
	return s, nil
}

func options(name, dir string) *server.Options {
	return &server.Options{
		ServerName: name, Host: "127.0.0.1", Port: server.RANDOM_PORT,
		JetStream: true, StoreDir: dir, JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 4 << 30,
		NoSigs: true, NoLog: true, NoSystemAccount: false, MaxControlLine: 4096,
	}
}

// Start starts a server that was stopped: on the same port, with the same streams.
func (s *Server) Start() error {
	if err := s.launch(); err != nil {
		return err
	}
	return s.ready()
}

func (s *Server) launch() error {
	opts := *s.opts // the server writes into its options
	srv, err := server.NewServer(&opts)
	if err != nil {
		return fmt.Errorf("nats-server %s: %w", s.opts.ServerName, err)
	}
	if s.said != nil {
		srv.SetLoggerV2(s.said, false, false, false)
	}
	srv.Start()
	s.srv = srv
	return nil
}

func (s *Server) ready() error {
	if !s.srv.ReadyForConnections(readyWait) {
		s.Stop()
		return fmt.Errorf("nats-server %s does not listen on %s:%d after %s", s.opts.ServerName, s.opts.Host,
			s.opts.Port, readyWait)
	}
	s.opts.Port = s.srv.Addr().(*net.TCPAddr).Port
	return nil
}

// Stop shuts the server down and waits until it is gone. Its port and its streams stay its own, for Start.
func (s *Server) Stop() {
	if s.srv == nil {
		return
	}
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
	s.srv = nil
}

// URL is where clients connect, also while the server is stopped.
func (s *Server) URL() string { return fmt.Sprintf("nats://%s:%d", s.opts.Host, s.opts.Port) }

// Cluster is several servers that replicate streams between them.
type Cluster struct {
	Servers []*Server
}

// StartCluster starts n servers that are gone at the end of the test.
func StartCluster(t T, n int) *Cluster {
	t.Helper()
	c, err := RunCluster(t.TempDir(), n)
	if err != nil {
		t.Fatalf("start nats-server cluster: %v", err)
	}
	t.Cleanup(c.Stop)
	return c
}

// RunCluster starts n servers on loopback and waits until they have a JetStream leader. dir keeps their streams.
func RunCluster(dir string, n int) (*Cluster, error) {
	ports, err := freePorts(n) // a JetStream cluster must be told all its routes beforehand
	if err != nil {
		return nil, err
	}
	var routes []*url.URL
	for _, p := range ports {
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprintf("127.0.0.1:%d", p)})
	}
	cluster, c := clusterName(), &Cluster{}
	for i, p := range ports {
		name := fmt.Sprintf("guestflow-%d", i+1)
		opts := options(name, filepath.Join(dir, name))
		opts.Cluster = server.ClusterOpts{Name: cluster, Host: "127.0.0.1", Port: p, PoolSize: oneRoute}
		opts.Routes = routes
		s := &Server{opts: opts}
		if err := s.launch(); err != nil {
			c.Stop()
			return nil, err
		}
		c.Servers = append(c.Servers, s)
	}
	for _, s := range c.Servers {
		if err := s.ready(); err != nil {
			c.Stop()
			return nil, err
		}
	}
	if err := c.WaitLeader(""); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// Stop shuts every server down.
func (c *Cluster) Stop() {
	for _, s := range c.Servers {
		s.Stop()
	}
}

// URL names all servers, comma separated.
func (c *Cluster) URL() string {
	var urls []string
	for _, s := range c.Servers {
		urls = append(urls, s.URL())
	}
	return strings.Join(urls, ",")
}

// WaitLeader waits until the stream has a leader; with "" until JetStream as a whole has one and every server follows
// it.
func (c *Cluster) WaitLeader(stream string) error {
	for end := time.Now().Add(readyWait); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if c.Leader(stream) != nil && (stream != "" || c.allCurrent()) {
			return nil
		}
	}
	return fmt.Errorf("stream %q has no leader after %s", stream, readyWait)
}

// Leader is the server that leads the stream at this moment, nil where none does; with "" the one that leads JetStream.
func (c *Cluster) Leader(stream string) *Server {
	for _, s := range c.Servers {
		if s.srv == nil {
			continue
		}
		if stream == "" && s.srv.JetStreamIsLeader() ||
			stream != "" && s.srv.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
			return s
		}
	}
	return nil
}

func (c *Cluster) allCurrent() bool {
	for _, s := range c.Servers {
		if s.srv == nil || !s.srv.JetStreamIsCurrent() ||
			s.srv.JetStreamClusterPeers() == nil && s.srv.JetStreamIsLeader() {
			return false
		}
		if s.srv.JetStreamIsLeader() && len(s.srv.JetStreamClusterPeers()) < len(c.Servers) {
			return false
		}
	}
	return true
}

// oneRoute is one connection between two servers, in the place of a pool. With the default pool of three about one in
// twenty clusters, whose servers all start at once, left some questions to JetStream without an answer for two minutes
// and more; with one connection none did.
const oneRoute = -1

// clusterName is each cluster's own: a server of another test, whose ports these were a moment ago, would else join,
// and be missed when it goes.
func clusterName() string { return "guestflow-" + rand.Text() }

func freePorts(n int) (ports []int, err error) {
	var open []net.Listener
	defer func() {
		for _, l := range open {
			err = errors.Join(err, l.Close())
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		open = append(open, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
