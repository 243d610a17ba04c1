// Package fakevc is a vCenter for benchmarks: it answers at once, over TLS, the calls that guestflow makes, and counts
// them. Its sessions, long polls, Tasks and guest processes behave as vCenter's do. It has every VM that is asked for,
// and no faults; internal/vcsim is the one for tests of behavior, and too slow for this.
package fakevc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What the service logs in with, at vCenter and in the guests.
const (
	Username      = "svc@vsphere.local"
	Password      = "vcenter-password"
	GuestUsername = "root"
	GuestPassword = "guest-password"
)

const sessionHeader = "vmware-api-session-id"

// Server is the fake vCenter.
type Server struct {
	handshakes, resumed atomic.Int64 // of TLS

	vim map[string]answerFunc

	mu         sync.Mutex
	sessions   map[string]bool
	vms        map[string]*guest
	tasks      map[string]*task
	views      map[string]*view
	collectors map[string]*collector
	histories  map[string][]*task // by collector: what it still has to give
	nextID     int
	calls      map[string]int
	hold       bool // Tasks that customize do not end by themselves
	held       []*task
	ends       map[string]time.Time // by VM: when its held Task ended
	recording  bool
	record     []Call
}

// Call is a call that was recorded.
type Call struct {
	At     time.Time
	Op     string
	Method string
	Path   string // with the query
	Body   string
}

// Effects is what was done to a VM.
type Effects struct{ Customized, NetworkStarted, Processes int }

// Stats is what was counted since the start, or since the last reset.
type Stats struct {
	Calls      map[string]int // by operation
	Handshakes int64
	Resumed    int64 // of the handshakes: those that resumed an earlier session
	VMs        map[string]Effects
}

// New makes a vCenter with every VM that is asked for.
func New() *Server {
	s := &Server{
		sessions:   map[string]bool{},
		vms:        map[string]*guest{},
		tasks:      map[string]*task{},
		views:      map[string]*view{},
		collectors: map[string]*collector{},
		histories:  map[string][]*task{},
		calls:      map[string]int{},
		ends:       map[string]time.Time{},
	}
	s.vim = s.vimMethods()
	return s
}

// Serve answers over TLS on l until l is closed.
func (s *Server) Serve(l net.Listener, c *Certificate) error {
	server := &http.Server{
		Handler:           s,
		TLSConfig:         c.config(&s.handshakes, &s.resumed),
		TLSNextProto:      noHTTP2,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          silent,
	}
	return server.ServeTLS(l, "", "")
}

// fault is an error of vCenter's.
type fault struct {
	status int
	name   string
}

func (f *fault) Error() string { return f.name }

// request is one call.
type request struct {
	*http.Request
	op   string
	kind string // of the managed object
	id   string // of the managed object, or of the VM
	body []byte
}

// decode reads the body into v.
func (r *request) decode(v any) error {
	if err := json.Unmarshal(r.body, v); err != nil {
		return &fault{http.StatusBadRequest, "InvalidArgument"}
	}
	return nil
}

// ServeHTTP answers one call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	call := &request{Request: r, body: body}
	answer := s.route(call)
	if answer == nil {
		http.NotFound(w, r)
		return
	}
	if err := s.admit(call); err != nil {
		writeFault(w, err)
		return
	}
	text, err := answer(call, w)
	if err != nil {
		writeFault(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text)
}

func writeFault(w http.ResponseWriter, err error) {
	status, name := http.StatusInternalServerError, err.Error()
	if f := new(fault); errors.As(err, &f) {
		status = f.status
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"_typeName":%q,"error_type":%q,"messages":[]}`, name, name)
}

// open are the calls that need no session.
var open = map[string]bool{"hello": true, "content": true, "Login": true}

// admit counts a call, and refuses one without a session.
func (s *Server) admit(r *request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[r.op]++
	if !open[r.op] && !s.sessions[r.Header.Get(sessionHeader)] {
		return &fault{http.StatusUnauthorized, "NotAuthenticated"}
	}
	if s.recording && !shared[r.op] {
		s.record = append(s.record, Call{time.Now(), r.op, r.Method, r.URL.RequestURI(), string(r.body)})
	}
	return nil
}

// shared are the calls that are made for many runs together: they belong to no run's record.
var shared = map[string]bool{
	"hello": true, "content": true, "Login": true, "Logout": true, "GET session": true,
	"CreatePropertyCollector": true, "CreateListView": true, "ModifyListView": true, "CreateFilter": true,
	"WaitForUpdatesEx": true, "DestroyPropertyCollector": true, "DestroyView": true, "DestroyPropertyFilter": true,
}

// answerFunc answers a call.
type answerFunc func(*request, http.ResponseWriter) ([]byte, error)

// route finds what answers a call, and names the call.
func (s *Server) route(r *request) answerFunc {
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/sdk/vim25/"):
		parts := strings.Split(strings.TrimPrefix(path, "/sdk/vim25/"), "/")
		if len(parts) != 4 {
			return nil
		}
		r.kind, r.id, r.op = parts[1], parts[2], parts[3]
		return s.vim[r.op]
	case path == "/api/vcenter/system":
		r.op = "hello"
		return constant(`{"api_release":"` + release + `"}`)
	case path == "/api/session":
		r.op = r.Method + " session"
		return constant(`{"user":"` + Username + `"}`)
	case strings.HasPrefix(path, "/api/vcenter/vm/"):
		return s.routeREST(r, strings.TrimPrefix(path, "/api/vcenter/vm/"))
	}
	return nil
}

func constant(text string) answerFunc {
	return func(*request, http.ResponseWriter) ([]byte, error) { return []byte(text), nil }
}

// newID makes the id of a managed object. The caller holds mu.
func (s *Server) newID(kind string) string {
	s.nextID++
	return fmt.Sprintf("%s-%d", kind, s.nextID)
}
