package vcapi

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the golden requests in testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testUser     = "svc-guestflow@vsphere.local"
	testPassword = "vc-pässword<&>\"1"
	contentPath  = "GET /sdk/vim25/8.0.1.0/ServiceInstance/ServiceInstance/content"
	helloPath    = "POST /api/vcenter/system"
)

// request is one that the fake has seen.
type request struct {
	key    string // method and path, without the query
	query  string
	header http.Header
	body   string
	proto  string
	remote string
	// The TLS handshake of its connection resumed an earlier session.
	resumed bool
}

// fake is a TLS server that answers with raw bytes, as a vCenter might. Keys are a method and the path, or the path's
// last element.
type fake struct {
	t    *testing.T
	srv  *httptest.Server
	mu   sync.Mutex
	seen []request
	on   map[string]http.HandlerFunc
}

func newFake(t *testing.T, apiVersion string) *fake {
	t.Helper()
	f := &fake{t: t, on: make(map[string]http.HandlerFunc)}
	f.srv = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.srv.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are what some tests are about
	f.srv.StartTLS()
	t.Cleanup(f.srv.Close)
	f.reply(helloPath, 404, ``)
	content := `{"_typeName":"ServiceContent","rootFolder":{"type":"Folder","value":"group-d1"},
		"unknownMember":{"_typeName":"NeverHeardOf"},
		"propertyCollector":{"_typeName":"ManagedObjectReference","type":"PropertyCollector",
		"value":"propertyCollector"},
		"viewManager":{"type":"ViewManager","value":"ViewManager"},"taskManager":{"type":"TaskManager",
		"value":"TaskManager"},
		"about":{"_typeName":"AboutInfo","name":"VMware vCenter Server",
		"apiVersion":"` + apiVersion + `","instanceUuid":"11111111-2222-3333-4444-555555555555"},
		"sessionManager":{"type":"SessionManager","value":"SessionManager"},
		"authorizationManager":{"type":"AuthorizationManager","value":"AuthorizationManager"},
		"guestOperationsManager":{"type":"GuestOperationsManager","value":"guestOperationsManager"},
		"guestCustomizationManager":{"type":"VirtualMachineGuestCustomizationManager",
		"value":"GuestCustomizationManager"}}`

	f.reply(contentPath, 200, content)
	logins := 0
	f.handle("Login", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		logins++
		token := fmt.Sprintf("vim-token-%d", logins)
		f.mu.Unlock()
		w.Header().Set("Vmware-Api-Session-Id", token)
		writeJSON(
			w,
			200,
			`{"_typeName":"UserSession",`+
				`"key":"key-of-`+token+`","userName":"VSPHERE.LOCAL\\svc-guestflow","fullName":"x"}`,
		)
	})

	f.reply("Logout", 204, "")
	f.reply("fileManager", 200,
		`{"_typeName":"ManagedObjectReference","type":"GuestFileManager","value":"guestOperationsFileManager"}`)

	f.reply("GET /api/session", 200, `{"user":"svc","created_time":"2026-11-20T10:00:00Z"}`)
	f.reply("POST /api/session", 201, `"rest-token"`)
	f.reply("DELETE /api/session", 204, "")
	return f
}

func writeJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func (f *fake) handle(key string, h http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on[key] = h
}

func (f *fake) reply(key string, status int, body string) {
	f.handle(key, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, status, body) })
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	key := r.Method + " " + r.URL.EscapedPath()
	f.mu.Lock()
	f.seen = append(f.seen, request{key, r.URL.RawQuery, r.Header.Clone(), string(body), r.Proto, r.RemoteAddr,
		r.TLS.DidResume})
	h := f.on[key]
	if h == nil {
		h = f.on[key[strings.LastIndexByte(key, '/')+1:]]
	}

	f.mu.Unlock()
	if h == nil {
		writeJSON(w, 404, `{"error_type":"NOT_FOUND","messages":[]}`)
		return
	}

	r.Body = io.NopCloser(strings.NewReader(string(body)))
	h(w, r)
}

// of returns the requests whose path ends in name.
func (f *fake) of(name string) (list []request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.seen {
		if strings.HasSuffix(r.key, name) {
			list = append(list, r)
		}
	}
	return list
}

// last is the newest request whose path ends in name.
func (f *fake) last(name string) request {
	all := f.of(name)
	return all[len(all)-1]
}

func (f *fake) wantCount(t *testing.T, name string, want int) {
	t.Helper()
	if got := len(f.of(name)); got != want {
		t.Errorf("%s was called %d times, want %d", name, got, want)
	}
}

func (f *fake) config() Config {
	roots := x509.NewCertPool()
	roots.AddCert(f.srv.Certificate())
	return Config{
		URL:      f.srv.URL,
		Username: testUser,
		Password: func() (string, error) { return testPassword, nil },
		RootCAs:  roots,
	}
}

func (f *fake) client(t *testing.T) *Client {
	t.Helper()
	return newClient(t, f.config())
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}

	c.poller.firstPause = 5 * time.Millisecond

	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c.Close(ctx)
	})

	return c
}

// learnt lets a client find out that the fake offers guest processes under a prefix, /api or /rest, and forgets the
// requests for that.
func (f *fake) learnt(t *testing.T, c *Client, prefix string) {
	t.Helper()
	f.reply("POST "+prefix+"/vcenter/vm/vm-0/guest/processes", 200, `[]`)
	if _, err := c.Processes(context.Background(), "vm-0", testAuth); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = slices.DeleteFunc(f.seen, func(r request) bool { return strings.HasSuffix(r.key, "/processes") })
}

func asError(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want an *Error", err, err)
	}
	return e
}

// cut resets a connection, so that it is no end of file.
func cut(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}

	if inner, ok := conn.(interface{ NetConn() net.Conn }); ok {
		if tcp, ok := inner.NetConn().(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
			return
		}
	}

	_ = conn.Close()
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	body, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

var testAuth = GuestAuth{Username: "root", Password: "guest-pw<1>"}

// whyDown is why vCenter cannot be used: it refused the login, the long poll is down, or the last call was not
// answered.
func whyDown(c *Client) error {
	if refused := c.loginRefusal(); refused != nil {
		return refused
	}
	c.reachability.mu.Lock()
	defer c.reachability.mu.Unlock()
	return c.reachability.reason()
}
