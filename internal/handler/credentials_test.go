package handler

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Guest credentials, of both types, from the files of a secret.
func TestGuestAuth(t *testing.T) {
	t.Parallel()
	s := secretFiles(t, map[string]string{"password/username": "root\n", "password/password": "pw \r\n\n",
		"token/saml-token": "<saml>\n", "mapped/saml-token": "t",
		"mapped/username": "root", "both/username": "root", "both/password": "pw", "both/saml-token": "t",
		"half/username": "root"})
	const user, saml = "USERNAME_PASSWORD", "SAML_BEARER_TOKEN"
	for _, row := range []struct {
		name, secret, kind string
		interactive        bool
		want               vcapi.GuestAuth
		missing            bool
	}{
		{name: "password, one line end dropped", secret: "password", kind: user,
			want: vcapi.GuestAuth{Username: "root", Password: "pw \r\n"}},
		{name: "password by its file", secret: "password",
			want: vcapi.GuestAuth{Username: "root", Password: "pw \r\n"}},
		{name: "interactive session", secret: "password", interactive: true,
			want: vcapi.GuestAuth{Username: "root", Password: "pw \r\n", Interactive: true}},
		{name: "token by its file, the guest maps the user", secret: "token",
			want: vcapi.GuestAuth{SAMLToken: "<saml>"}},
		{name: "token with a user", secret: "mapped", kind: saml,
			want: vcapi.GuestAuth{SAMLToken: "t", Username: "root"}},
		{name: "no interactive session with a token", secret: "token", interactive: true,
			want: vcapi.GuestAuth{SAMLToken: "<saml>"}},
		{name: "both files: the password", secret: "both", want: vcapi.GuestAuth{Username: "root", Password: "pw"}},
		{name: "both files, the token asked for", secret: "both", kind: saml,
			want: vcapi.GuestAuth{Username: "root", SAMLToken: "t"}},
		{name: "no password", secret: "half", missing: true},
		{name: "no token", secret: "password", kind: saml, missing: true},
		{name: "no user", secret: "token", kind: user, missing: true},
		{name: "no secret", secret: "nobody", missing: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			got, err := s.guestAuth(t.Context(), &events.CredentialsRef{SecretRef: row.secret, Type: row.kind},
				row.interactive)
			if row.missing {
				if !missing(err) {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}

			if diff := cmp.Diff(row.want, got); err != nil || diff != "" {
				t.Errorf("%v, -want +got:\n%s", err, diff)
			}
		})
	}
}

// A secret is read at each use, so that a rotated one works.
func TestRotatedSecret(t *testing.T) {
	t.Parallel()
	s := secretFiles(t, map[string]string{"root/username": "root", "root/password": "old"})
	for _, password := range []string{"old", "new"} {
		if err := os.WriteFile(filepath.Join(string(s), "root", "password"), []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
		if auth, err := s.guestAuth(t.Context(), &events.CredentialsRef{SecretRef: "root"}, false); err != nil ||
			auth.Password != password {
			t.Errorf("%s was not read: %v", password, err)
		}
	}
}

// hider is a vCenter that remembers what it is to hide.
type hider struct {
	VCenter
	held map[int][]string
	n    int
}

func (h *hider) Hide(values ...string) func() {
	h.n++
	n := h.n
	h.held[n] = values
	return func() { delete(h.held, n) }
}

// A secret that could be read once stays hidden where a later look at all of them is cut off: its mount hangs now.
func TestHiddenStaysHidden(t *testing.T) {
	t.Parallel()
	vc := &hider{held: map[int][]string{}}
	files := map[string]string{"root/username": "root", "root/password": "pw-of-root"}
	r := &run{Handler: &Handler{vc: vc, secrets: secretFiles(t, files)},
		spec: &events.RequestSpec{Guest: &events.GuestSpec{Credentials: &events.CredentialsRef{SecretRef: "root"}}}}
	cut, cancel := context.WithCancel(context.Background())
	cancel()
	for _, ctx := range []context.Context{context.Background(), cut, cut} {
		r.hide(ctx)
		if diff := cmp.Diff(map[int][]string{vc.n: {"pw-of-root"}}, vc.held); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// A secret that is no file with a secret in it ends the run before anything is done, with the reason and without the
// folder's path; nobody waits for it.
func TestSecretIsNoFile(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	at := func(name string) string { return filepath.Join(string(secrets), "linux-root", name) }
	for name, put := range map[string]func() error{
		"a named pipe": func() error { return syscall.Mkfifo(at("password"), 0o600) },
		"a folder":     func() error { return os.Mkdir(at("password"), 0o700) },
		"larger than 64 KiB": func() error {
			return os.WriteFile(at("password"),
				bytes.Repeat([]byte("x"), 64<<10+1), 0o600)
		},
		"no such file":            func() error { return nil },
		"too many levels of symb": func() error { return os.Symlink("password", at("password")) },
	} {
		if err := os.RemoveAll(at("password")); err != nil {
			t.Fatal(err)
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		withHarness(t, secrets, func(w *harness) {
			e := w.run(only(processOnly)).Error
			if e == nil || e.Code != events.UnknownSecret || e.Step != "check" || !strings.Contains(e.Message, name) ||
				strings.Contains(e.Message, string(secrets)) {
				w.t.Errorf("%s: %+v", name, e)
			}
		})
	}
}
