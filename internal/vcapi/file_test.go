package vcapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

const fileToken = "52d1c5b0-token/+&1"

var fileQuery = "id=1&" + url.Values{"token": {fileToken}}.Encode()

// transferTo makes a fake name a URL for a file, of a size that it says.
func (f *fake) transferTo(u string, size int) {
	f.reply("InitiateFileTransferFromGuest", 200,
		fmt.Sprintf(`{"_typeName":"FileTransferInformation","size":%d,"url":%s}`, size, quote(u)))
}

// host is a TLS server beside vCenter, as an ESXi host is, with a certificate of its own for one name.
func host(t *testing.T, name string, h http.HandlerFunc) (u string, cert *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	leaf := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		DNSNames:              []string{name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}

	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}

	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12,
	}

	srv.StartTLS()
	t.Cleanup(srv.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "https://"), ":")
	return "https://localhost:" + port + "/guestFile?" + fileQuery, cert
}

// wantNoToken checks that nothing of an error tells the token of a file's URL, in any writing.
func wantNoToken(t *testing.T, err error) {
	t.Helper()
	e := asError(t, err)
	marshaled, _ := json.Marshal(e)
	said := fmt.Sprintf("%v %+v %s", e, *e, marshaled)

	for under := errors.Unwrap(err); under != nil; under = errors.Unwrap(under) {
		said += fmt.Sprintf("%v %+v", under, under)
	}

	for _, form := range []string{
		fileToken, url.QueryEscape(fileToken), url.PathEscape(fileToken), "52d1c5b0", quote(fileToken),
	} {
		if strings.Contains(said, form) {
			t.Errorf("the token is in the error: %s", said)
		}
	}
}

// TestGuestFileOfHost: the file comes from the host in the URL, if its certificate proves that it is that host.
func TestGuestFileOfHost(t *testing.T) {
	t.Parallel()
	content := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(sessionHeader) != "" || r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" ||
			r.URL.RawQuery != fileQuery {
			t.Errorf("asked with %v and ?%s", r.Header, r.URL.RawQuery)
		}
		_, _ = io.WriteString(w, "head, tail")
	}

	tests := []struct {
		name   string
		host   string // "*" or the name in the certificate of a host
		change func(cfg *Config, vc, host *x509.Certificate)
		ok     bool
	}{
		{"vCenter itself", "*", func(*Config, *x509.Certificate, *x509.Certificate) {}, true},
		{"vCenter itself, by thumbprint", "*", func(cfg *Config, vc, _ *x509.Certificate) {
			cfg.RootCAs, cfg.Thumbprint = nil, fmt.Sprintf("%x", sha256.Sum256(vc.Raw))
		}, true},
		{
			"a host of a known CA",
			"localhost",
			func(cfg *Config, _, host *x509.Certificate) { cfg.RootCAs.AddCert(host) },
			true,
		},
		{"a host of a foreign CA", "localhost", func(*Config, *x509.Certificate, *x509.Certificate) {}, false},
		{
			"a certificate for another name",
			"esx1.example.test",
			func(cfg *Config, _, host *x509.Certificate) { cfg.RootCAs.AddCert(host) },
			false,
		},
		{"a host, by vCenter's thumbprint", "localhost", func(cfg *Config, vc, host *x509.Certificate) {
			cfg.RootCAs.AddCert(host)
			cfg.Thumbprint = fmt.Sprintf("%x", sha256.Sum256(vc.Raw))
		}, false},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			f.handle("GET /guestFile", content)
			f.transferTo("https://*:443/guestFile?"+fileQuery, 10)
			cfg := f.config()
			var cert *x509.Certificate

			if tt.host != "*" {
				var u string
				u, cert = host(t, tt.host, content)
				f.transferTo(u, 10)
			}

			tt.change(&cfg, f.srv.Certificate(), cert)
			c := newClient(t, cfg)
			got, err := c.GuestFile(context.Background(), "vm-1", testAuth, "/var/log/app.log", 4)
			if tt.ok {
				if err != nil || string(got) != "tail" {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}

			e := asError(t, err)
			if e.Class != Transient || e.Op != "GET guest file" || !strings.Contains(e.Message, "certificate") ||
				!strings.HasPrefix(e.Endpoint, "GET https://localhost:") {
				t.Errorf("got %s, %s: %v", e.Class, e.Endpoint, err)
			}

			if cfg.Thumbprint == "" && !strings.Contains(e.Message, "CA of the ESXi hosts") {
				t.Errorf("it does not say what to do: %v", err)
			}
			if !c.Up() {
				t.Error("vCenter is down because of a host")
			}

			wantNoToken(t, err)
		})
	}
}

// TestGuestFileAnswers: responses other than the file. None of them shows the token, and none costs the session.
func TestGuestFileAnswers(t *testing.T) {
	t.Parallel()
	echo := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(
				w, "<title>%s %s %s %s</title>", r.URL, r.URL.RawQuery, r.URL.Query().Get("token"), r.Host,
			)
		}
	}

	endless := func(w http.ResponseWriter, r *http.Request) {
		for block := make([]byte, 1<<20); r.Context().Err() == nil; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}

	tests := []struct {
		name  string
		h     http.HandlerFunc
		want  outcome
		words string // in the message
	}{
		{"expired", echo(404), outcome{"", Transient, Unknown}, ""},
		{"forbidden", echo(403), outcome{"", Transient, Unknown}, ""},
		{"unauthorized", echo(401), outcome{"", Transient, Unknown}, ""},
		{"REST's 401", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 401, restBody("UNAUTHENTICATED")) },
			outcome{"UNAUTHENTICATED", Transient, Refused}, ""},
		{"trouble", echo(500), outcome{"", Transient, Unknown}, ""},
		{"no content", answers(204, "", ""), outcome{"", Transient, Unknown}, "empty"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere?"+r.URL.RawQuery, http.StatusTemporaryRedirect)
		}, outcome{"", Permanent, Unknown}, "redirected"},
		{"reset", func(w http.ResponseWriter, _ *http.Request) { cut(w) }, outcome{"", Transient, Unknown}, ""},
		{"no HTTP", func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\n\r\n", r.URL)
			_ = conn.Close()
		}, outcome{"", Transient, Unknown}, ""},
		{"broken off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "head")
			_ = http.NewResponseController(w).Flush()
			cut(w)
		}, outcome{"", Transient, Unknown}, "broke off"},
		{"larger than was said", endless, outcome{"", Permanent, Unknown}, "not read beyond 8 MiB"},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			f.transferTo("https://*/guestFile?"+fileQuery, 10)
			f.handle("GET /guestFile", tt.h)
			cfg := f.config()
			var told []error
			var mu sync.Mutex
			cfg.OnCall = func(_ context.Context, op string, _ time.Duration, err error) {
				mu.Lock()
				defer mu.Unlock()
				if op == "GET guest file" {
					told = append(told, err)
				}
			}

			c := newClient(t, cfg)
			got, err := c.GuestFile(context.Background(), "vm-1", testAuth, "/var/log/app.log", 4)
			if got != nil {
				t.Errorf("got %q beside an error", got)
			}

			e := asError(t, err)
			tt.want.check(t, e)
			if !strings.Contains(e.Message, tt.words) {
				t.Errorf("it says %v", err)
			}

			wantNoToken(t, err)
			if len(told) != 1 {
				t.Fatalf("OnCall was told %d times", len(told))
			}

			wantNoToken(t, told[0])
			f.wantCount(t, "elsewhere", 0)
			f.wantCount(t, "GET /guestFile", 1)
			f.wantCount(t, "Login", 1)
		})
	}
}

// TestGuestFileURL: a URL that is not HTTPS, or not a URL, is not followed and not quoted.
func TestGuestFileURL(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "http://*/guestFile?" + fileQuery, "https:///guestFile?" + fileQuery,
		"guestFile?" + fileQuery, "https://*/%zz?" + fileQuery,
		"https://a b/?" + fileQuery, "file:///etc/passwd?" + fileQuery, "https://*\x00/?" + fileQuery} {
		f := newFake(t, "9.0.0.0")
		f.transferTo(u, 10)
		_, err := f.client(t).GuestFile(context.Background(), "vm-1", testAuth, "/var/log/app.log", 4)
		if e := asError(t, err); e.Class != Permanent || !strings.Contains(e.Message, "URL") {
			t.Errorf("%q: got %v", u, err)
		}
		wantNoToken(t, err)
		f.wantCount(t, "GET /guestFile", 0)
	}
}

// TestGuestFileAsked: what can happen before there is a URL: a vCenter without guest operations, a file that is too
// large, an expired session.
func TestGuestFileAsked(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := newFake(t, "9.0.0.0")
	f.reply(contentPath, 200,
		`{"about":{"apiVersion":"9.0.0.0"},"sessionManager":{"type":"SessionManager","value":"SessionManager"}}`)

	_, err := f.client(t).GuestFile(ctx, "vm-1", testAuth, "/var/log/app.log", 4)
	outcome{"NotSupported", Permanent, NotSent}.check(t, asError(t, err))

	f = newFake(t, "9.0.0.0")
	f.transferTo("https://*/guestFile?"+fileQuery, maxGuestFile+1)
	_, err = f.client(t).GuestFile(ctx, "vm-1", testAuth, "/var/log/app.log", 4)
	if e := asError(t, err); e.Class != Permanent || !strings.Contains(e.Message, "8388609 bytes") {
		t.Errorf("got %v", err)
	}

	wantNoToken(t, err)
	f.wantCount(t, "GET /guestFile", 0)

	f = newFake(t, "9.0.0.0")
	f.handle("InitiateFileTransferFromGuest", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(sessionHeader) != "vim-token-2" {
			writeJSON(w, 500, `{"_typeName":"NotAuthenticated"}`)
			return
		}
		writeJSON(w, 200, `{"size":4,"url":"https://*/guestFile?id=1&token=x"}`)
	})

	f.reply("GET /guestFile", 200, "tail")
	if got, err := f.client(t).
		GuestFile(ctx, "vm-1", testAuth, "/var/log/app.log", 100); err != nil ||
		string(got) != "tail" {
		t.Errorf("got %q, %v", got, err)
	}

	f.reply(
		"InitiateFileTransferFromGuest",
		500,
		`{"_typeName":"InvalidArgument","invalidProperty":"guestFilePath","faultstring":`+quote(
			"not "+testAuth.Password,
		)+`}`,
	)

	_, err = f.client(t).GuestFile(ctx, "vm-1", testAuth, "/var/log/app.log", 4)
	outcome{"InvalidArgument", Permanent, Refused}.check(t, asError(t, err))
	if strings.Contains(err.Error(), testAuth.Password) {
		t.Error(err)
	}
}

// TestSimulatedGuestFile reads files of a simulated guest.
func TestSimulatedGuestFile(t *testing.T) {
	t.Parallel()
	v, c := start(t, vcsim.Options{VMs: 3})
	ctx, vms := patience(t), v.VMs()
	huge := strings.Repeat("line of a log\n", maxGuestFile/14)

	for _, vm := range vms {
		v.VM(vm).Configure(func(g *vcsim.Guest) {
			g.Files["/var/log/app.log"] = "first\nsecond\nthird\n"
			g.Files["/var/log/huge.log"] = huge
			g.Files["/var/log/larger.log"] = huge + strings.Repeat("x", 14)
			g.Files["/var/log/empty.log"] = ""
		})
	}

	for _, tt := range []struct {
		path string
		most int
		want string
	}{
		{"/var/log/app.log", 6, "third\n"}, {
			"/var/log/app.log", 100, "first\nsecond\nthird\n",
		}, {"/var/log/app.log", 19, "first\nsecond\nthird\n"},
		{"/var/log/app.log", 0, ""}, {"/var/log/app.log", -1, ""}, {"/var/log/empty.log", 10, ""}, {
			"/var/log/huge.log", 20, "a log\nline of a log\n",
		},
	} {
		if got, err := c.GuestFile(ctx, vms[0], simAuth, tt.path, tt.most); err != nil || string(got) != tt.want {
			t.Errorf("%s, %d: got %q, %v", tt.path, tt.most, got, err)
		}
	}

	before := v.Count("GET guest file", "")
	_, err := c.GuestFile(ctx, vms[0], simAuth, "/var/log/larger.log", 20)
	if e := asError(t, err); e.Class != Permanent || !strings.Contains(e.Message, "bytes") {
		t.Errorf("got %v", err)
	}

	_, err = c.GuestFile(ctx, vms[0], simAuth, "/var/log/none.log", 20)
	if e := asError(t, err); e.Name != "FileNotFound" || e.Class != Permanent {
		t.Errorf("got %v", err)
	}

	_, err = c.GuestFile(ctx, vms[0], simAuth, "app.log", 20)
	outcome{"InvalidArgument", Permanent, Refused}.check(t, asError(t, err))
	_, err = c.GuestFile(
		ctx, vms[0], GuestAuth{Username: "root", Password: "wrong-guest-password"}, "/var/log/app.log", 20,
	)

	outcome{"InvalidGuestLogin", GuestCredentials, Refused}.check(t, asError(t, err))
	_, err = c.GuestFile(ctx, "vm-404", simAuth, "/var/log/app.log", 20)
	outcome{"ManagedObjectNotFound", Permanent, Refused}.check(t, asError(t, err))
	v.VM(vms[1]).PowerOff()
	_, err = c.GuestFile(ctx, vms[1], simAuth, "/var/log/app.log", 20)
	outcome{"InvalidPowerState", Permanent, Refused}.check(t, asError(t, err))
	v.VM(vms[2]).ToolsDown()
	_, err = c.GuestFile(ctx, vms[2], simAuth, "/var/log/app.log", 20)
	outcome{"GuestOperationsUnavailable", Transient, Refused}.check(t, asError(t, err))
	if n := v.Count("GET guest file", ""); n != before {
		t.Errorf("%d files were fetched beside an error", n-before)
	}

	for _, call := range v.Calls() {
		if call.Op == "GET guest file" &&
			(call.Session != "" || call.Path != "/guestFile?id=1&token=***" || call.VM != vms[0]) {
			t.Errorf("fetched by %+v", call)
		}
	}

	// A cut on the way is an error that may pass, and the next transfer has a URL of its own.
	v.Script(vcsim.Rule{Op: "GET guest file", Times: 1, LoseResponse: true})
	if _, err := c.GuestFile(ctx, vms[0], simAuth, "/var/log/app.log", 6); asError(t, err).Class != Transient {
		t.Errorf("got %v", err)
	}
	if got, err := c.GuestFile(ctx, vms[0], simAuth, "/var/log/app.log", 6); err != nil || string(got) != "third\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if n := v.Count("Login", ""); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// TestTail: it keeps the end, in whatever pieces it is written.
func TestTail(t *testing.T) {
	t.Parallel()
	const text = "the quick brown fox jumps over the lazy dog"
	for limit := range len(text) + 3 {
		for piece := 1; piece <= len(text); piece++ {
			got := tail{limit: limit}
			for rest := text; rest != ""; {
				n := min(piece, len(rest))
				if wrote, err := got.Write([]byte(rest[:n])); wrote != n || err != nil {
					t.Fatal(wrote, err)
				}
				rest = rest[n:]
			}

			if want := text[max(len(text)-limit, 0):]; string(got.kept) != want {
				t.Fatalf("most %d, pieces of %d: got %q, want %q", limit, piece, got.kept, want)
			}
		}
	}
}
