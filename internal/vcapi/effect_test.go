package vcapi

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// TestFence: the connection is open before the fence is asked, and nothing is written before the fence agrees.
func TestFence(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("StartGuestNetwork_Task", 200, `{"type":"Task","value":"task-1"}`)
	c := f.client(t)
	// With the server gone after the dial, the fence is still reached: the handshake was over before.
	asked := false
	task, err := c.StartGuestNetwork(context.Background(), func(context.Context) error {
		asked = true
		f.wantCount(t, "StartGuestNetwork_Task", 0)
		return nil
	}, "vm-1", testAuth)
	if err != nil || task != "task-1" || !asked {
		t.Errorf("got %q, %v, fence asked: %t", task, err, asked)
	}

	r := f.of("StartGuestNetwork_Task")
	if len(r) != 1 || r[0].proto != "HTTP/1.1" || r[0].header.Get("Content-Type") != "application/json" {
		t.Errorf("sent %+v", r)
	}

	for _, other := range f.of("content") {
		if other.remote == r[0].remote {
			t.Error("the act shared a connection with a read")
		}
	}
}

// TestEffectsResume: an effect has a connection of its own, but its handshake resumes the TLS session of one before,
// and the certificate counts as before.
func TestEffectsResume(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("StartGuestNetwork_Task", 200, `{"type":"Task","value":"task-1"}`)
	c := f.client(t)
	for range 3 {
		if _, err := c.StartGuestNetwork(context.Background(), nil, "vm-1", testAuth); err != nil {
			t.Fatal(err)
		}
	}

	remotes := make(map[string]bool)
	for _, r := range f.of("StartGuestNetwork_Task") {
		if remotes[r.remote] = true; !r.resumed {
			t.Error("an effect made a full handshake although the login had made one before")
		}
	}
	if len(remotes) != 3 {
		t.Errorf("3 effects used %d connections", len(remotes))
	}

	// A client that trusts another certificate does not get in by a session: the cache is its own.
	cfg := f.config()
	cfg.RootCAs = x509.NewCertPool()
	_, err := newClient(t, cfg).StartGuestNetwork(context.Background(), nil, "vm-1", testAuth)
	if e := asError(t, err); e.Sent != NotSent || len(f.of("StartGuestNetwork_Task")) != 3 {
		t.Errorf("got %s: %v", e.Sent, err)
	}
}

// TestFenceAfterDial: where vCenter is away, that is found out before the fence is asked, and nothing was sent.
func TestFenceAfterDial(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	c := f.client(t)
	if _, err := c.Session(context.Background()); err != nil {
		t.Fatal(err)
	}

	f.srv.Close()
	_, err := c.StartGuestNetwork(
		context.Background(),
		func(context.Context) error { t.Error("the fence was asked"); return nil },
		"vm-1",
		testAuth,
	)

	if e := asError(t, err); e.Sent != NotSent || e.Class != Transient {
		t.Errorf("got %s, %s: %v", e.Sent, e.Class, e)
	}
	if c.Up() {
		t.Error("a vCenter that refuses connections is up")
	}
}

// TestEffectUnanswered: without an answer, an effect was not sent where it ended before the write, and else it is not
// known whether it took place. Why it ended is in the error.
func TestEffectUnanswered(t *testing.T) {
	t.Parallel()
	const op = "StartGuestNetwork_Task"
	fenced, drained := errors.New("fenced"), errors.New("drained")
	type scene struct {
		*fake
		*Client
		cancel context.CancelCauseFunc
	}
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } // until the client hangs up

	for _, row := range []struct {
		name    string
		prepare func(scene)
		fence   func(scene) error
		want    outcome
		calls   int
		is      func(error) bool // whether it says why
	}{
		{
			name:  "the fence refuses",
			fence: func(scene) error { return fenced },
			want:  outcome{"", Transient, NotSent},
			is: func(err error) bool {
				return errors.Is(err, fenced) && strings.Contains(err.Error(), "not sent: fenced")
			},
		},
		{
			name:  "its context ends before the write",
			fence: func(s scene) error { s.cancel(drained); return nil },
			want:  outcome{"", Transient, NotSent},
			is:    func(err error) bool { return errors.Is(err, drained) },
		},
		{
			name: "its context ends after the write",
			prepare: func(s scene) {
				s.handle(op, func(w http.ResponseWriter, r *http.Request) { s.cancel(drained); hang(w, r) })
			},
			want: outcome{"", Transient, Unknown}, calls: 1,
			is: func(err error) bool { return errors.Is(err, drained) },
		},
		{
			name:    "no response in time",
			prepare: func(s scene) { s.responseTimeout = 50 * time.Millisecond; s.handle(op, hang) },
			want:    outcome{"", Transient, Unknown}, calls: 1,
			is: func(err error) bool {
				var timeout net.Error
				return errors.As(err, &timeout) && timeout.Timeout()
			},
		},
		{
			name: "the login is cut",
			prepare: func(s scene) {
				s.handle("Login", func(w http.ResponseWriter, _ *http.Request) { cut(w) })
			},
			want: outcome{"", Transient, NotSent},
		},
		// Nobody can tell a request that died on the way from one whose answer did.
		{
			name:    "cut after the write",
			prepare: func(s scene) { s.handle(op, func(w http.ResponseWriter, _ *http.Request) { cut(w) }) },
			want:    outcome{"", Transient, Unknown}, calls: 1,
		},
		{
			name:  "cut before the write",
			fence: func(s scene) error { s.srv.CloseClientConnections(); return nil },
			want:  outcome{"", Transient, Unknown},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			s := scene{f, f.client(t), cancel}
			if row.prepare != nil {
				row.prepare(s)
			}
			var fence Fence
			if row.fence != nil {
				fence = func(context.Context) error { return row.fence(s) }
			}

			_, err := s.StartGuestNetwork(ctx, fence, "vm-1", testAuth)
			e := asError(t, err)
			row.want.check(t, e)
			if e.Err == nil || e.Status != 0 || row.is != nil && !row.is(err) {
				t.Errorf("HTTP %d, %v", e.Status, err)
			}
			f.wantCount(t, op, row.calls)
		})
	}
}

// TestEffectInterimResponses: a 100 or 103 before the response is skipped.
func TestEffectInterimResponses(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.handle("StartGuestNetwork_Task", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		writeJSON(w, 200, `{"type":"Task","value":"task-1"}`)
	})

	if task, err := f.client(t).
		StartGuestNetwork(context.Background(), nil, "vm-1", testAuth); task != "task-1" ||
		err != nil {
		t.Errorf("got %q, %v", task, err)
	}
}

// TestEndlessHead: a response whose headers or interim responses do not end is given up, for effects and for reads; of
// the effect it is not known whether it took place.
func TestEndlessHead(t *testing.T) {
	t.Parallel()
	const enough = 64 << 20 // far more than all buffers on the way hold
	for name, tt := range map[string]struct{ first, again string }{
		"header lines": {"HTTP/1.1 200 OK\r\n", "X-More: " + strings.Repeat("x", 1000) + "\r\n"},
		"one line":     {"HTTP/1.1 200 OK\r\nX-More: ", strings.Repeat("x", 1000)},
		"interim":      {"", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"},
		"interim, large": {
			"",
			"HTTP/1.1 103 Early Hints\r\n" + strings.Repeat("X-More: "+strings.Repeat("x", 1000)+"\r\n", 100) + "\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			c := f.client(t)
			var written atomic.Int64
			endless := func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				defer func() { _ = conn.Close() }()
				n, err := io.WriteString(conn, tt.first)

				for err == nil && written.Load() < enough {
					written.Add(int64(n))
					n, err = io.WriteString(conn, tt.again)
				}
			}

			for _, op := range []string{"StartGuestNetwork_Task", "CurrentTime", "WaitForUpdatesEx"} {
				f.handle(op, endless)
			}

			if _, err := c.Now(context.Background()); asError(t, err).Class != Transient {
				t.Errorf("an ask: %v", err)
			}

			_, err := c.StartGuestNetwork(context.Background(), nil, "vm-1", testAuth)
			if e := asError(t, err); e.Sent != Unknown || e.Class != Transient || e.Status != 0 {
				t.Errorf("an effect: %s, %v", e.Sent, err)
			}
			if written.Load() >= enough {
				t.Errorf("%d MiB were taken", written.Load()>>20)
			}
		})
	}
}

// TestEffectSessionLost: an effect whose session is gone is not sent again; the next one logs in first.
func TestEffectSessionLost(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.handle("StartGuestNetwork_Task", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(sessionHeader) != "vim-token-2" {
			writeJSON(
				w,
				500,
				`{"_typeName":"NotAuthenticated","object":{"type":"VirtualMachine","value":"vm-1"},`+
					`"privilegeId":"System.View","faultMessage":[]}`,
			)
			return
		}

		writeJSON(w, 200, `{"type":"Task","value":"task-1"}`)
	})

	c := f.client(t)
	_, err := c.StartGuestNetwork(context.Background(), nil, "vm-1", testAuth)
	outcome{"NotAuthenticated", SessionLost, Refused}.check(t, asError(t, err))
	f.wantCount(t, "StartGuestNetwork_Task", 1)
	f.wantCount(t, "Login", 1)
	if task, err := c.StartGuestNetwork(context.Background(), nil, "vm-1", testAuth); task != "task-1" || err != nil {
		t.Errorf("the second got %q, %v", task, err)
	}

	f.wantCount(t, "Login", 2)
}

// TestGuest401: the 401 of a guest process call is of the guest's login or of the session; asking for the session shows
// which.
func TestGuest401(t *testing.T) {
	t.Parallel()
	const refused = `{"error_type":"UNAUTHENTICATED","messages":[{"default_message":"no","args":[]}]}`
	calls := map[string]func(c *Client) error{
		"get": func(c *Client) error { _, err := c.Process(context.Background(), "vm-1", testAuth, 7); return err },
		"create": func(c *Client) error {
			_, err := c.StartProcess(context.Background(), nil, "vm-1", testAuth, ProcessSpec{})
			return err
		},
	}

	for name, call := range calls {
		t.Run(name+" guest", func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			c := f.client(t)
			f.learnt(t, c, "/api")
			f.reply("7", 401, refused)
			f.reply("processes", 401, refused)
			outcome{"UNAUTHENTICATED", GuestCredentials, Refused}.check(t, asError(t, call(c)))
			f.wantCount(t, "Login", 1)
		})

		t.Run(name+" session", func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			expired := func(ok string) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get(sessionHeader) == "vim-token-1" && len(f.of("Login")) == 1 &&
						len(f.of("GET /api/session")) > 0 &&
						len(f.of("/processes"))+len(f.of("/7")) > 0 {
						writeJSON(w, 401, refused)
						return
					}
					writeJSON(w, 200, ok)
				}
			}

			c := f.client(t)
			f.learnt(t, c, "/api")
			f.handle("GET /api/session", expired(`{}`))
			f.handle("7", expired(`{"name":"sh"}`))
			f.handle("processes", expired(`7`))
			err := call(c)

			if name == "get" { // an ask goes on with a new session
				if err != nil {
					t.Error(err)
				}
				f.wantCount(t, "/7", 2)
				f.wantCount(t, "Login", 2)
				return
			}

			outcome{"UNAUTHENTICATED", SessionLost, Refused}.check(t, asError(t, err))
			f.wantCount(t, "/processes", 1)
			f.wantCount(t, "Login", 1)
		})

		t.Run(name+" cannot tell", func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			var asked atomic.Int32
			f.handle("GET /api/session", func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1) == 1 { // whether the session serves REST too
					writeJSON(w, 200, `{}`)
					return
				}
				cut(w)
			})

			c := f.client(t)
			f.learnt(t, c, "/api")
			f.reply("7", 401, refused)
			f.reply("processes", 401, refused)
			outcome{"UNAUTHENTICATED", Transient, Refused}.check(t, asError(t, call(c)))
			f.wantCount(t, "Login", 1)
		})
	}
}

// TestNoCustomizationManager: a vCenter without guest customization says so, and nothing is sent.
func TestNoCustomizationManager(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply(contentPath, 200,
		`{"about":{"apiVersion":"9.0.0.0"},"sessionManager":{"type":"SessionManager","value":"SessionManager"}}`)

	_, err := f.client(t).CustomizeGuest(context.Background(), nil, "vm-1", testAuth, json.RawMessage(`{}`), nil)
	outcome{"NotSupported", Permanent, NotSent}.check(t, asError(t, err))
	if !strings.Contains(err.Error(), guestCustomizationManager) {
		t.Errorf("it says %v", err)
	}
}

// TestOnCall: every call is reported, with a bounded label and its error.
func TestOnCall(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("StartGuestNetwork_Task", 500, `{"_typeName":"TaskInProgress"}`)
	cfg := f.config()
	told := make(chan string, 16)
	cfg.OnCall = func(_ context.Context, endpoint string, took time.Duration, err error) {
		if took < 0 {
			t.Error("negative time")
		}
		if err != nil {
			endpoint += "!"
		}
		told <- endpoint
	}

	c := newClient(t, cfg)
	_, _ = c.StartGuestNetwork(context.Background(), nil, "vm-1", testAuth)
	// No call.
	_, _ = c.StartGuestNetwork(context.Background(), func(context.Context) error { return io.EOF }, "vm-1", testAuth)
	for _, want := range []string{"hello!", "GET ServiceInstance/content", "Login", "StartGuestNetwork_Task!"} {
		if got := <-told; got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}

	if len(told) > 0 {
		t.Errorf("told of %q too", <-told)
	}
}

// TestConnectNICsVersion: NICs are connected only in the configuration that they were read from: what an administrator
// changed meanwhile is not undone. Where a vCenter does not tell its version, none is sent.
func TestConnectNICsVersion(t *testing.T) {
	t.Parallel()
	v, c := start(t, vcsim.Options{APIVersion: "9.0.0.0", VMs: 1})
	ctx, vm := patience(t), v.VMs()[0]
	v.VM(vm).SetNICs(false)
	stale, err := c.DisconnectedNICs(ctx, vm)
	if err != nil || len(stale.Devices) != 1 {
		t.Fatalf("%d NICs, %v", len(stale.Devices), err)
	}

	task, err := c.ConnectNICs(ctx, nil, vm, stale) // somebody's change
	if err != nil {
		t.Fatal(err)
	}

	until(t, c, vm, task, ended)
	v.VM(vm).SetNICs(false)
	_, err = c.ConnectNICs(ctx, nil, vm, stale)
	outcome{"ConcurrentAccess", Transient, Refused}.check(t, asError(t, err))
	fresh, err := c.DisconnectedNICs(ctx, vm)
	if err != nil || fresh.ChangeVersion == "" || fresh.ChangeVersion == stale.ChangeVersion {
		t.Errorf("version %q, then %q, %v", stale.ChangeVersion, fresh.ChangeVersion, err)
	}
	if task, err = c.ConnectNICs(ctx, nil, vm, fresh); err != nil {
		t.Fatal(err)
	}
	if s := until(t, c, vm, task, ended); s.Task.State != "success" {
		t.Errorf("task %+v", s.Task)
	}

	f := newFake(t, "9.0.0.0")
	f.reply("ReconfigVM_Task", 200, `{"type":"Task","value":"task-1"}`)
	if _, err := f.client(t).
		ConnectNICs(ctx, nil, "vm-1", NICs{Devices: fresh.Devices}); err != nil ||
		strings.Contains(f.of("ReconfigVM_Task")[0].body, "changeVersion") {
		t.Errorf("%v, sent %s", err, f.of("ReconfigVM_Task")[0].body)
	}
}
