package vcapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	good := Config{URL: "https://vc.test", Username: "u", Password: func() (string, error) { return "p", nil }}
	tests := []struct {
		name   string
		change func(*Config)
		want   string // in the error; "" for none
	}{
		{"good", func(*Config) {}, ""},
		{"port and slash", func(c *Config) { c.URL = "https://vc.test:8443/" }, ""},
		{"IPv6", func(c *Config) { c.URL = "https://[fd00::1]:443" }, ""},
		{"thumbprint with colons", func(c *Config) { c.Thumbprint = strings.Repeat("AB:", 31) + "ab" }, ""},
		{"http", func(c *Config) { c.URL = "http://vc.test" }, "https"},
		{"no host", func(c *Config) { c.URL = "https://" }, "https"},
		{"path", func(c *Config) { c.URL = "https://vc.test/sdk" }, "nothing after"},
		{"query", func(c *Config) { c.URL = "https://vc.test?x" }, "nothing after"},
		{"user", func(c *Config) { c.URL = "https://u:secret@vc.test" }, "nothing"},
		{"garbage", func(c *Config) { c.URL = "https://vc test\x00" }, "url"},
		{"no user", func(c *Config) { c.Username = "" }, "username"},
		{"no password", func(c *Config) { c.Password = nil }, "password"},
		{"SHA-1 thumbprint", func(c *Config) { c.Thumbprint = strings.Repeat("AB:", 19) + "ab" }, "SHA-256"},
		{"odd thumbprint", func(c *Config) { c.Thumbprint = "xyz" }, "SHA-256"},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			tt.change(&cfg)
			c, err := New(cfg)

			if err == nil {
				req, err := c.request(context.Background(), &call{method: http.MethodGet, path: "/x"})
				if host := strings.TrimSuffix(strings.TrimPrefix(cfg.URL, "https://"), "/"); err != nil ||
					req.Host != host {
					t.Errorf("Host %q, want %q; %v", req.Host, host, err)
				}
			}

			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) ||
				strings.Contains(err.Error(), "secret")):
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// TestTrust: the server's certificate must be signed by a known root, or have the given thumbprint.
func TestTrust(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("StartGuestNetwork_Task", 200, `{"type":"Task","value":"task-1"}`)
	sum := sha256.Sum256(f.srv.Certificate().Raw)
	pin := fmt.Sprintf("%x", sum)
	empty := x509.NewCertPool()
	tests := []struct {
		name   string
		change func(*Config)
		ok     bool
	}{
		{"root", func(*Config) {}, true},
		{"system roots", func(c *Config) { c.RootCAs = nil }, false},
		{"other roots", func(c *Config) { c.RootCAs = empty }, false},
		{"pin", func(c *Config) { c.RootCAs, c.Thumbprint = empty, pin }, true},
		{"pin in capitals", func(c *Config) { c.RootCAs, c.Thumbprint = nil, strings.ToUpper(pin) }, true},
		{"other pin, though the root is known", func(c *Config) { c.Thumbprint = strings.Repeat("00", 32) }, false},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := f.config()
			tt.change(&cfg)
			c := newClient(t, cfg)
			_, err := c.About(context.Background())

			if tt.ok {
				_, acted := c.StartGuestNetwork(context.Background(), nil, "vm-1", testAuth)
				if err != nil || acted != nil {
					t.Errorf("refused: %v, %v", err, acted)
				}
				return
			}

			if e := asError(t, err); e.Class != Transient || !strings.Contains(e.Message, "certificate") {
				t.Errorf("got %v", err)
			}

			_, err = c.StartGuestNetwork(
				context.Background(),
				func(context.Context) error { t.Error("the fence was asked"); return nil },
				"vm-1",
				testAuth,
			)

			if e := asError(t, err); e.Sent != NotSent {
				t.Errorf("got %s: %v", e.Sent, err)
			}
		})
	}
}

func TestReleases(t *testing.T) {
	t.Parallel()
	for apiVersion, want := range map[string]string{
		"9.2.0.0": "9.1.1.0", "9.1.1.0": "9.1.1.0", "9.0.0.0": "9.0.0.0", "8.0.3.5": "8.0.3.1",
		"8.0.3.0": "8.0.3.0", "8.0.3": "8.0.3.0",
		"8.0.2.0": "8.0.2.0", "8.0.1.0": "8.0.1.0",
		"10.0": "9.1.1.0", "7.0.3.0": "8.0.1.0", "": "8.0.1.0", "x": "8.0.1.0",
	} {
		if got := releaseFor(apiVersion); got != want {
			t.Errorf("%q is spoken to as %s, want %s", apiVersion, got, want)
		}
	}
}

// TestDiscover: by hello where there is one, by the property where it can be read, else by the method.
func TestDiscover(t *testing.T) {
	t.Parallel()
	const content = `{"about":{"name":"VC","apiVersion":"8.0.3.0","instanceUuid":"u"},` +
		`"sessionManager":{"type":"SessionManager","value":"SM"}}`
	tests := []struct {
		name    string
		prepare func(f *fake)
		release string // "": it fails
	}{
		{"hello", func(f *fake) {
			f.reply(helloPath, 200, `{"api_release":"8.0.2.0"}`)
			f.reply("GET /sdk/vim25/8.0.2.0/ServiceInstance/ServiceInstance/content", 200, content)
		}, "8.0.2.0"},
		{"hello knows none", func(f *fake) { f.reply(helloPath, 200, `{"api_release":""}`) }, "8.0.3.0"},
		{"hello says something new", func(f *fake) { f.reply(helloPath, 200, `{"api_release":"../../x"}`) }, "8.0.3.0"},
		{"hello is no JSON", func(f *fake) { f.reply(helloPath, 200, `<html>`) }, "8.0.3.0"},
		{"hello wants a login", func(f *fake) { f.reply(helloPath, 401, ``) }, "8.0.3.0"},
		{
			"hello's release does not work",
			func(f *fake) { f.reply(helloPath, 200, `{"api_release":"9.0.0.0"}`) },
			"8.0.3.0",
		},
		{"method only", func(f *fake) {
			f.reply(contentPath, 405, ``)
			f.reply("POST /sdk/vim25/8.0.1.0/ServiceInstance/ServiceInstance/RetrieveServiceContent", 200, content)
		}, "8.0.3.0"},
		{"no vCenter", func(f *fake) { f.reply(contentPath, 200, `{"hello":"world"}`) }, ""},
		{"nothing", func(f *fake) { f.reply(contentPath, 404, `404 page not found`) }, ""},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "8.0.3.0")
			f.reply(contentPath, 200, content)
			tt.prepare(f)
			c := f.client(t)
			v, err := c.discover(context.Background())

			if tt.release == "" {
				if err == nil {
					t.Errorf("learnt %+v", v)
				}
				return
			}

			if err != nil {
				t.Fatal(err)
			}

			about, err := c.About(context.Background())
			if v.release != tt.release || err != nil ||
				about != (About{Name: "VC", APIVersion: "8.0.3.0", InstanceUUID: "u"}) {
				t.Errorf("release %s, about %+v, %v", v.release, about, err)
			}
		})
	}
}

// expiring makes CurrentTime and check answer only to a session of the newest login.
func expiring(f *fake, newest *atomic.Int32) {
	f.handle("CurrentTime", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(sessionHeader) != fmt.Sprintf("vim-token-%d", newest.Load()) {
			writeJSON(w, 500, `{"_typeName":"NotAuthenticated","privilegeId":"System.View"}`)
			return
		}
		writeJSON(w, 200, `"2026-11-20T10:00:00Z"`)
	})
}

// TestSessionRenewedOnce: fifty goroutines meet an expired session, and one login serves them all.
func TestSessionRenewedOnce(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	var newest atomic.Int32
	newest.Store(1)
	expiring(f, &newest)
	cfg := f.config()
	var logins atomic.Int32
	cfg.OnLogin = func(err error) {
		if err != nil {
			t.Error(err)
		}
		logins.Add(1)
	}

	c := newClient(t, cfg)
	for round := int32(1); round <= 3; round++ {
		newest.Store(round)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := c.Now(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}

		wg.Wait()
		if logins.Load() != round {
			t.Fatalf("round %d: %d logins", round, logins.Load())
		}
	}

	session, err := c.Session(context.Background())
	if err != nil || session != (Session{Key: "key-of-vim-token-3", UserName: `VSPHERE.LOCAL\svc-guestflow`}) {
		t.Errorf("session %+v, %v", session, err)
	}
}

// TestSessionLostTwice: a session that is refused as soon as it is opened is an error, and not replaced over and over.
func TestSessionLostTwice(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("CurrentTime", 500, `{"_typeName":"NotAuthenticated"}`)
	_, err := f.client(t).Now(context.Background())
	outcome{"NotAuthenticated", SessionLost, Refused}.check(t, asError(t, err))
	f.wantCount(t, "Login", 2)
	f.wantCount(t, "CurrentTime", 2)
}

// TestOneSessionForBoth: from 8.0.3.0 on, one login serves VI JSON and REST; before that, each has its own, and also
// where a newer vCenter refuses the shared one.
func TestOneSessionForBoth(t *testing.T) {
	t.Parallel()
	const refused = `{"error_type":"UNAUTHENTICATED","messages":[]}`
	onlyOwn := func(f *fake) {
		f.handle("GET /api/session", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(sessionHeader) != "rest-token" {
				writeJSON(w, 401, refused)
				return
			}
			writeJSON(w, 200, `{}`)
		})
	}

	tests := []struct {
		name, apiVersion     string
		prepare              func(f *fake)
		token                string
		vimLogins, restLogin int
	}{
		{"9.0", "9.0.0.0", func(*fake) {}, "vim-token-1", 1, 0},
		{"8.0.3", "8.0.3.0", func(*fake) {}, "vim-token-1", 1, 0},
		{"8.0.2", "8.0.2.0", func(*fake) {}, "rest-token", 1, 1},
		{"8.0.1", "8.0.1.0", onlyOwn, "rest-token", 1, 1},
		{"9.0 that does not share", "9.0.0.0", onlyOwn, "rest-token", 2, 1},
		{
			"9.0 without GET session",
			"9.0.0.0",
			func(f *fake) { f.reply("GET /api/session", 404, ``) },
			"vim-token-1",
			1,
			0,
		},
		{
			"8.0.2, old form",
			"8.0.2.0",
			func(f *fake) { f.reply("POST /api/session", 200, `{"value":"rest-token"}`) },
			"rest-token",
			1,
			1,
		},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, tt.apiVersion)
			tt.prepare(f)
			f.reply("customization", 200, `{"status":"IDLE"}`)
			f.reply("CurrentTime", 200, `"2026-11-20T10:00:00Z"`)
			c := f.client(t)

			for range 3 {
				if _, err := c.CustomizationStatus(context.Background(), "vm-1"); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Now(context.Background()); err != nil {
					t.Fatal(err)
				}
			}

			for _, r := range f.of("customization") {
				if got := r.header.Get(sessionHeader); got != tt.token {
					t.Errorf("REST was called with %q, want %q", got, tt.token)
				}
			}

			f.wantCount(t, "/Login", tt.vimLogins)
			f.wantCount(t, "POST /api/session", tt.restLogin)
			if r := f.of("POST /api/session"); len(r) > 0 {
				user, password, ok := (&http.Request{Header: r[0].header}).BasicAuth()
				if !ok || user != testUser || password != testPassword {
					t.Errorf("logged in as %q with %q", user, password)
				}
			}

			c.Close(context.Background())
			f.wantCount(t, "Logout", tt.vimLogins)
			f.wantCount(t, "DELETE /api/session", tt.restLogin)
			c.Close(context.Background()) // again does nothing
			f.wantCount(t, "Logout", tt.vimLogins)
			if _, err := c.Now(context.Background()); !errors.Is(err, errClosed) {
				t.Errorf("a closed client says %v", err)
			}
		})
	}
}

// TestRESTSessionRenewed: an expired REST session is renewed once, as VI JSON's is.
func TestRESTSessionRenewed(t *testing.T) {
	t.Parallel()
	for _, apiVersion := range []string{"8.0.2.0", "9.0.0.0"} {
		f := newFake(t, apiVersion)
		var calls atomic.Int32
		f.handle("customization", func(w http.ResponseWriter, _ *http.Request) {
			if calls.Add(1) == 2 {
				writeJSON(w, 401, `{"error_type":"UNAUTHENTICATED","messages":[]}`)
				return
			}
			writeJSON(w, 200, `{"status":"IDLE"}`)
		})

		c := f.client(t)
		for range 3 {
			if _, err := c.CustomizationStatus(context.Background(), "vm-1"); err != nil {
				t.Fatal(err)
			}
		}

		if calls.Load() != 4 {
			t.Errorf("%s: %d calls", apiVersion, calls.Load())
		}

		c.Close(context.Background())
		logins, logouts := len(f.of("Login")), len(f.of("Logout"))
		if apiVersion == "9.0.0.0" && (logins != 2 || logouts != 2) { // the first one may still be alive in VI JSON
			t.Errorf("%d logins, %d logouts", logins, logouts)
		}
		if apiVersion == "8.0.2.0" && len(f.of("POST /api/session")) != 2 {
			t.Errorf("%d REST logins", len(f.of("POST /api/session")))
		}
	}
}

// TestWrongPassword: a login that vCenter refused is not tried again with the same password for a while, however many
// ask; a new password is tried at once.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("CurrentTime", 200, `"2026-11-20T10:00:00Z"`)
	right := f.on["Login"]
	f.handle("Login", func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(f.last("Login").body, "right") {
			writeJSON(
				w,
				500,
				`{"_typeName":"InvalidLogin",`+
					`"faultstring":"Cannot complete login due to an incorrect user name or password."}`,
			)
			return
		}

		right(w, r)
	})

	var password atomic.Value
	password.Store("wrong")
	cfg := f.config()
	cfg.Password = func() (string, error) { return password.Load().(string), nil }
	c := newClient(t, cfg)
	var wg sync.WaitGroup

	for range 20 {
		wg.Go(func() {
			_, err := c.Now(context.Background())
			if e := asError(t, err); e.Name != "InvalidLogin" || e.Class != SessionLost {
				t.Errorf("got %v", err)
			}
		})
	}

	wg.Wait()
	f.wantCount(t, "Login", 1)
	if c.Up() {
		t.Error("up, although vCenter refuses the login")
	}

	password.Store("right")
	if _, err := c.Now(context.Background()); err != nil {
		t.Error(err)
	}

	f.wantCount(t, "Login", 2)
	if !c.Up() {
		t.Error("not up, although vCenter has taken the login")
	}
}

// newTestLogin is a login whose sessions are opened by open.
func newTestLogin(t *testing.T, open func(context.Context, string) (*session, error)) *login {
	t.Helper()
	c, err := New(Config{URL: "https://vc.test", Username: "u", Password: func() (string, error) { return "p", nil }})
	if err != nil {
		t.Fatal(err)
	}
	return newLogin(c, open)
}

// TestRefusedBackoff: the pause after refusals grows up to its limit, and ends with a success.
func TestRefusedBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refuse, tries := true, 0
		l := newTestLogin(t, func(context.Context, string) (*session, error) {
			tries++
			if refuse {
				return nil, &Error{Name: "InvalidLogin", Status: 500, Class: SessionLost}
			}
			return &session{token: "t"}, nil
		})

		for _, wait := range []time.Duration{
			0, time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute, 5 * time.Minute,
		} {
			before := tries
			if wait > 0 {
				<-time.After(wait - time.Second)
				if _, err := l.get(context.Background()); err == nil || tries != before {
					t.Errorf("%d tries within %s", tries-before, wait)
				}
				<-time.After(2 * time.Second)
			}

			if _, err := l.get(context.Background()); err == nil || tries != before+1 {
				t.Errorf("%d tries after %s, %v", tries-before, wait, err)
			}
		}

		refuse = false
		<-time.After(6 * time.Minute)
		if s, err := l.get(context.Background()); err != nil || s.token != "t" {
			t.Errorf("got %v, %v", s, err)
		}
	})
}

// TestLoginShared: those who wait for a login that fails get its error; the next one tries again. Where one gives up,
// its login goes on and serves the others.
func TestLoginShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		broken := &Error{Class: Transient, Message: "down"}
		l := newTestLogin(t, func(ctx context.Context, _ string) (*session, error) {
			tries++
			select {
			case <-time.After(time.Second):
				return nil, broken
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})

		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := l.get(context.Background()); !errors.Is(err, broken) {
					t.Errorf("got %v", err)
				}
			})
		}

		wg.Wait()
		if tries != 1 {
			t.Errorf("%d tries", tries)
		}

		// A caller that gives up while it logs in, and one that waits for it.
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() {
			if _, err := l.get(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})

		synctest.Wait()
		wg.Go(func() {
			if _, err := l.get(context.Background()); !errors.Is(err, broken) {
				t.Errorf("got %v", err)
			}
		})

		synctest.Wait()
		waiting, stop := context.WithCancelCause(context.Background())
		enough := errors.New("enough")
		wg.Go(func() {
			_, err := l.get(waiting)
			if e := asError(t, err); !errors.Is(err, enough) || e.Sent != NotSent {
				t.Errorf("got %v", err)
			}
		})

		synctest.Wait()
		stop(enough)
		synctest.Wait()
		cancel()
		wg.Wait()
		if tries != 2 {
			t.Errorf("%d tries", tries)
		}
	})
}

// TestLoginWithoutSession: logins that succeed without a session, and a password that cannot be read.
func TestLoginWithoutSession(t *testing.T) {
	t.Parallel()
	f := newFake(t, "8.0.2.0")
	f.reply("POST /api/session", 201, `{}`)
	_, err := f.client(t).CustomizationStatus(context.Background(), "vm-1")
	if e := asError(t, err); e.Op != "POST session" || !strings.Contains(e.Message, "not a session ID") {
		t.Errorf("got %v", err)
	}

	f.reply("Login", 200, `{"key":"k"}`)
	_, err = f.client(t).Now(context.Background())
	if e := asError(t, err); e.Op != "Login" || !strings.Contains(e.Message, sessionHeader) {
		t.Errorf("got %v", err)
	}

	unreadable := errors.New("open /var/run/secrets/vc: no such file")
	cfg := f.config()
	cfg.Password = func() (string, error) { return "", unreadable }
	_, err = newClient(t, cfg).Now(context.Background())
	if e := asError(t, err); !errors.Is(err, unreadable) || e.Sent != NotSent || e.Class != SessionLost {
		t.Errorf("got %v", err)
	}
}

// TestOnAnswer: whether vCenter answers is reported once per change, with the reason.
func TestOnAnswer(t *testing.T) {
	t.Parallel()
	v, err := vcsim.Start(vcsim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	v.Stop()
	told := make(chan error, 100)
	c := newClient(
		t,
		Config{
			URL:        v.URL(),
			Username:   v.Username(),
			Password:   func() (string, error) { return v.Password(), nil },
			Thumbprint: v.Thumbprint(),
			OnAnswer:   func(why error) { told <- why },
		},
	)

	for _, stopped := range []bool{true, true, false, false, true} {
		if stopped {
			v.Stop()
			v.CutConnections()
		} else {
			v.Resume()
		}

		if _, err := c.Now(context.Background()); (err != nil) != stopped || c.Up() == stopped {
			t.Errorf("stopped %t: %v, up %t", stopped, err, c.Up())
		}
	}

	close(told)
	var all []bool
	for why := range told {
		all = append(all, why == nil)
	}

	if !slices.Equal(all, []bool{false, true, false}) {
		t.Errorf("told %v", all)
	}
}
