package natstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// StartConfig starts a server with a configuration file, as nats-server -c does, but on loopback; it is gone at the end
// of the test. A port and a store_dir of its own are the file's to say. What edit (may be nil) changes is changed after
// the file was read.
func StartConfig(t T, file string, edit func(*server.Options)) *Server {
	t.Helper()
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatalf("nats-server configuration: %v", err)
	}
	opts.Host, opts.NoSigs, opts.NoLog = "127.0.0.1", true, true
	if edit != nil {
		edit(opts)
	}
	s := &Server{opts: opts, said: &log{}}
	if err := s.Start(); err != nil {
		t.Fatalf("start nats-server: %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

// User is who may log in to a server of StartUsers. Permissions is the file that grants what the user may do; empty:
// the user may do everything.
type User struct{ Name, Password, Permissions string }

// StartUsers is StartConfig for a server with these users.
func StartUsers(t T, users []User, edit func(*server.Options)) *Server {
	t.Helper()
	dir := t.TempDir()
	conf := fmt.Sprintf("port: -1\njetstream { store_dir: %q }\nauthorization { users: [\n", dir)
	for _, u := range users {
		permissions := ""
		if u.Permissions != "" {
			permissions = fmt.Sprintf(", permissions {\n include %q\n}", Included(t, dir, u.Permissions))
		}
		conf += fmt.Sprintf("{ user: %s, password: %s%s }\n", u.Name, u.Password, permissions)
	}
	file := filepath.Join(dir, "server.conf")
	if err := os.WriteFile(file, []byte(conf+"] }\n"), 0o600); err != nil {
		t.Fatalf("nats-server configuration: %v", err)
	}
	return StartConfig(t, file, edit)
}

// Included is the path of a file as a configuration in dir has to write it.
func Included(t T, dir, file string) string {
	t.Helper()
	whole, err := filepath.Abs(file)
	if err == nil {
		whole, err = filepath.Rel(dir, whole)
	}
	if err != nil {
		t.Fatalf("nats-server configuration: %v", err)
	}
	return whole
}

// Log is what a server of StartConfig has said so far that is not fine: its warnings and errors, one a line. A publish
// or a subscription that was refused is among them.
func (s *Server) Log() []string { return s.said.read() }

// log is a server.Logger that keeps warnings and errors.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(format string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l *log) read() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// Warnf, Errorf and Fatalf keep a line; the server's other lines are let go.
func (l *log) Warnf(format string, args ...any)  { l.add(format, args) }
func (l *log) Errorf(format string, args ...any) { l.add(format, args) }
func (l *log) Fatalf(format string, args ...any) { l.add(format, args) }
func (*log) Noticef(string, ...any)              {}
func (*log) Debugf(string, ...any)               {}
func (*log) Tracef(string, ...any)               {}
