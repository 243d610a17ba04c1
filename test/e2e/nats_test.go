package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// reach is one way to reach a NATS server.
type reach struct {
	url     string        // for the test itself
	login   []nats.Option // of the test itself
	env     []string      // the service's settings
	wrong   []wrong
	secrets []string // what no log may hold
}

// wrong are settings of the service with which it cannot work, and a word of what it says then; with "|" one of
// several.
type wrong struct {
	env  []string
	says string
}

func (w wrong) said(log string) bool {
	return slices.ContainsFunc(strings.Split(w.says, "|"), func(word string) bool {
		return strings.Contains(log, word)
	})
}

// Every setting of NATS against a server that asks for it: a whole run with the right value; with a wrong one the
// service says what is wrong, is not ready, and keeps its secrets.
func TestNATSSettings(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T) reach{
		"user and password": passwordReach, "nkey": nkeyReach, "credentials": credsReach, "CA": caReach,
		"client certificate": clientCertReach,
		"JetStream domain":   domainReach, "API prefix": apiPrefixReach, "inbox prefix": inboxReach,
		"several URLs": urlsReach,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := prepare(t)
			s := newHarness(t, r.url, vcsim.Options{VMs: 2}, r.login...)
			fastGuests(s.vc)
			quiet := func(p *service) {
				for _, secret := range r.secrets {
					if strings.Contains(p.log.String(), secret) {
						t.Errorf("the log holds %q:\n%s", secret, p.log)
					}
				}
			}
			for _, w := range r.wrong {
				p := s.launch(slices.Concat(r.env, w.env)...)
				s.until(fmt.Sprintf("%q in the log with %q", w.says, w.env), func() bool {
					return w.said(p.log.String())
				})
				if status, body := p.get("/readyz"); status == http.StatusOK {
					t.Errorf("ready with %q: %s", w.env, body)
				}
				p.kill()
				quiet(p)
			}
			p := s.start(r.env...)
			s.publish(s.vc.VMs()[0], "r-1", fullRequest("exit 0"))
			if e := s.ended("r-1"); e.kind != "run.succeeded" {
				t.Errorf("ended with %s: %s", e.kind, e.Data)
			}
			s.once("r-1", s.vc.VMs()[0])
			if err := p.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			quiet(p)
			if strings.Contains(p.log.String(), `"level":"error"`) {
				t.Errorf("errors in the log:\n%s", p.log)
			}
		})
	}
}

// configured starts a server with a configuration, a port and a folder of its own.
func configured(t *testing.T, text string) *natstest.Server {
	t.Helper()
	return natstest.StartConfig(t, write(t, "server.conf", "port: -1\n"+text), nil)
}

// write puts a file into a new folder.
func write(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// jetStream is the configuration of one that keeps its streams in a folder of the test.
func jetStream(t *testing.T, more string) string {
	return fmt.Sprintf("jetstream { store_dir: %q\n %s }\n", t.TempDir(), more)
}

func passwordReach(t *testing.T) reach {
	g := guard(t, nil)
	const secret = "not-the-password"
	return reach{url: g.as("admin"), env: g.service("service"), secrets: []string{password("service"), secret},
		wrong: []wrong{
			{[]string{"NATS_PASSWORD_FILE=" + write(t, "password", secret)}, "Authorization Violation"},
			{[]string{"NATS_USER=nobody"}, "Authorization Violation"},
			{[]string{"NATS_PASSWORD_FILE=/nowhere/password"}, "NATS_PASSWORD_FILE: open /nowhere/password"},
			{[]string{"NATS_PASSWORD_FILE="}, "NATS_USER and NATS_PASSWORD_FILE: set both or none"},
		}}
}

// inboxReach is a service that may only hear its own inbox.
func inboxReach(t *testing.T) reach {
	g := guard(t, nil)
	return reach{url: g.as("admin"), env: g.service("service"), secrets: []string{password("service")}, wrong: []wrong{
		{[]string{"NATS_INBOX_PREFIX=_INBOX_other"}, "Permissions Violation for Subscription to \\\"_INBOX_other."},
		{[]string{"NATS_INBOX_PREFIX="}, "Permissions Violation for Subscription to \\\"_INBOX."},
	}}
}

func nkeyReach(t *testing.T) reach {
	user, seed := key(t, nkeys.PrefixByteUser)
	_, other := key(t, nkeys.PrefixByteUser)
	dir := t.TempDir()
	text := fmt.Sprintf("port: -1\n%sauthorization { users: [\n{ user: admin, password: admin }\n{ nkey: %s, "+
		"permissions {\n include %q\n} }\n] }\n",
		jetStream(t, ""), user, natstest.Included(t, dir, filepath.Join(permissionFiles, "service.conf")))
	file := filepath.Join(dir, "server.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := natstest.StartConfig(t, file, nil)
	return reach{url: as(s, "admin", "admin"),
		env: []string{"NATS_URL=" + s.URL(), "NATS_NKEY_FILE=" + write(t, "user.nk", seed),
			"NATS_INBOX_PREFIX=_INBOX_guestflow"},
		secrets: []string{strings.TrimSpace(seed), strings.TrimSpace(other)}, wrong: []wrong{
			{[]string{"NATS_NKEY_FILE=" + write(t, "user.nk", other)}, "Authorization Violation"},
			{[]string{"NATS_NKEY_FILE=" + write(t, "user.nk", "no seed")}, "NATS_NKEY_FILE: "},
			{[]string{"NATS_NKEY_FILE="}, "Authorization Violation"},
		}}
}

// key is a new nkey: its public part and its seed.
func key(t *testing.T, kind nkeys.PrefixByte) (public, seed string) {
	t.Helper()
	pair, err := nkeys.CreatePair(kind)
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	b, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return public, string(b) + "\n"
}

// tenancy is an operator's server: who may do what is in signed tokens.
type tenancy struct {
	t       *testing.T
	account nkeys.KeyPair
	server  *natstest.Server
}

func newTenancy(t *testing.T) *tenancy {
	t.Helper()
	pair := func(kind nkeys.PrefixByte) (nkeys.KeyPair, string) {
		k, err := nkeys.CreatePair(kind)
		if err != nil {
			t.Fatal(err)
		}
		public, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return k, public
	}
	operator, operatorID := pair(nkeys.PrefixByteOperator)
	account, accountID := pair(nkeys.PrefixByteAccount)
	_, systemID := pair(nkeys.PrefixByteAccount)
	sign := func(token string, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	oc := jwt.NewOperatorClaims(operatorID)
	oc.SystemAccount = systemID
	ac := jwt.NewAccountClaims(accountID)
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	return &tenancy{t: t, account: account, server: configured(t, fmt.Sprintf(
		"%soperator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\n",
		jetStream(t, ""), sign(oc.Encode(operator)), systemID, accountID, sign(ac.Encode(operator)), systemID,
		sign(jwt.NewAccountClaims(systemID).Encode(operator))))}
}

// creds is a credentials file of a user who may do what p says; everything where p is nil.
func (n *tenancy) creds(p *server.Permissions) (file, seed string) {
	n.t.Helper()
	public, seed := key(n.t, nkeys.PrefixByteUser)
	claims := jwt.NewUserClaims(public)
	if p != nil {
		claims.Pub.Allow.Add(p.Publish.Allow...)
		claims.Sub.Allow.Add(p.Subscribe.Allow...)
	}
	token, err := claims.Encode(n.account)
	if err != nil {
		n.t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(token, []byte(strings.TrimSpace(seed)))
	if err != nil {
		n.t.Fatal(err)
	}
	return write(n.t, "user.creds", string(text)), strings.TrimSpace(seed)
}

// credsReach is an operator's server; the service's token holds the same permissions as its file.
func credsReach(t *testing.T) reach {
	var may *server.Permissions
	guard(t, func(o *server.Options) { may = permissionsOf(o, "service") })
	n := newTenancy(t)
	own, seed := n.creds(may)
	admin, _ := n.creds(nil)
	foreign, other := newTenancy(t).creds(may)
	return reach{url: n.server.URL(), login: []nats.Option{nats.UserCredentials(admin)}, secrets: []string{seed, other},
		env: []string{"NATS_URL=" + n.server.URL(), "NATS_CREDS_FILE=" + own, "NATS_INBOX_PREFIX=_INBOX_guestflow"},
		wrong: []wrong{
			{[]string{"NATS_CREDS_FILE=" + foreign}, "Authorization Violation"},
			{[]string{"NATS_CREDS_FILE="}, "Authorization Violation"},
			{[]string{"NATS_CREDS_FILE=/nowhere/user.creds"}, "NATS_CREDS_FILE: open /nowhere/user.creds"},
			{[]string{"NATS_CREDS_FILE=" + write(t, "user.creds", "no credentials")}, "user.creds"},
		}}
}

// authority is a CA that signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, cert: &x509.Certificate{SerialNumber: big.NewInt(1),
		Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}}
	a.file, _ = a.sign(a.cert)
	return a
}

// sign makes a certificate and its key, and the CA's own at first.
func (a *authority) sign(c *x509.Certificate) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.key == nil {
		a.key = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return write(a.t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		write(a.t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})))
}

// issue makes a certificate for a server at loopback, or for a client.
func (a *authority) issue(usage x509.ExtKeyUsage) (certFile, keyFile string) {
	return a.sign(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "guestflow"},
		NotAfter:    time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{usage}})
}

func caReach(t *testing.T) reach {
	ca := newAuthority(t)
	cert, key := ca.issue(x509.ExtKeyUsageServerAuth)
	s := configured(t, fmt.Sprintf("%stls { cert_file: %q, key_file: %q }\n", jetStream(t, ""), cert, key))
	return reach{url: s.URL(), login: []nats.Option{nats.RootCAs(ca.file)}, env: []string{"NATS_URL=" + s.URL(),
		"NATS_CA_FILE=" + ca.file}, wrong: []wrong{
		{[]string{"NATS_CA_FILE="}, "x509: certificate signed by unknown authority"},
		{[]string{"NATS_CA_FILE=" + newAuthority(t).file}, "x509: certificate signed by unknown authority"},
		{[]string{"NATS_CA_FILE=" + write(t, "ca.pem", "no PEM")}, "NATS_CA_FILE: "},
		{[]string{"NATS_CA_FILE=/nowhere/ca.pem"}, "NATS_CA_FILE: open /nowhere/ca.pem"},
	}}
}

func clientCertReach(t *testing.T) reach {
	ca, other := newAuthority(t), newAuthority(t)
	cert, key := ca.issue(x509.ExtKeyUsageServerAuth)
	client, clientKey := ca.issue(x509.ExtKeyUsageClientAuth)
	foreign, foreignKey := other.issue(x509.ExtKeyUsageClientAuth)
	s := configured(t, fmt.Sprintf("%stls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }\n",
		jetStream(t, ""), cert, key, ca.file))
	pem, err := os.ReadFile(clientKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(client, clientKey); err != nil {
		t.Fatal(err)
	}
	return reach{url: s.URL(), login: []nats.Option{nats.RootCAs(ca.file), nats.ClientCert(client, clientKey)},
		secrets: strings.Split(string(pem), "\n")[1:3],
		env: []string{"NATS_URL=tls" + strings.TrimPrefix(s.URL(), "nats"), "NATS_CA_FILE=" + ca.file,
			"NATS_CERT_FILE=" + client,
			"NATS_KEY_FILE=" + clientKey}, wrong: []wrong{
			{[]string{"NATS_CERT_FILE=", "NATS_KEY_FILE="},
				"tls: certificate required|closed by remote after TLS handshake"},
			{[]string{"NATS_CERT_FILE=" + foreign, "NATS_KEY_FILE=" + foreignKey},
				"tls: unknown certificate authority|closed by remote after TLS handshake"},
			{[]string{"NATS_KEY_FILE=" + foreignKey}, "private key does not match public key"},
			{[]string{"NATS_KEY_FILE="}, "NATS_CERT_FILE and NATS_KEY_FILE: set both or none"},
		}}
}

// domainReach is a leaf node without JetStream, whose hub has one in a domain.
func domainReach(t *testing.T) reach {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	hub := configured(t, fmt.Sprintf("server_name: hub\n%sleafnodes { host: 127.0.0.1, port: %d }\n",
		jetStream(t, "domain: hub"), port))
	leaf := configured(t,
		fmt.Sprintf("server_name: leaf\nleafnodes { remotes: [ { url: \"nats-leaf://127.0.0.1:%d\" } ] }\n", port))
	return reach{url: hub.URL(), env: []string{"NATS_URL=" + leaf.URL(), "NATS_JS_DOMAIN=hub"}, wrong: []wrong{
		{[]string{"NATS_JS_DOMAIN=nowhere"}, "no responders"},
		{[]string{"NATS_JS_API_PREFIX=x"}, "NATS_JS_DOMAIN and NATS_JS_API_PREFIX: set one of them"},
	}}
}

// apiPrefixReach is a service in an account without JetStream, which imports that of another one under a name of its
// own.
func apiPrefixReach(t *testing.T) reach {
	var exports, imports []string
	for _, subject := range []string{"$JS.ACK.>", "guestflow.rejections.>", "guestflow.deadletters.>"} {
		exports = append(exports, fmt.Sprintf("{ service: %q }", subject))
		imports = append(imports, fmt.Sprintf("{ service: { account: DATA, subject: %q } }", subject))
	}
	s := configured(t, fmt.Sprintf(`%saccounts {
  DATA { jetstream: enabled, users: [ { user: admin, password: admin } ], exports: [
    { service: "$JS.API.>", response_type: stream }, { service: "guestflow.events.>" }
    { stream: "guestflow.cancels.>" }
    %s ] }
  APP { users: [ { user: app, password: app } ], imports: [
    { service: { account: DATA, subject: "$JS.API.>" }, to: "JS.data.API.>" }
    { service: { account: DATA, subject: "guestflow.events.>" } }
    { stream: { account: DATA, subject: "guestflow.cancels.>" } }
    %s ] }
}
`, jetStream(t, ""), strings.Join(exports, "\n    "), strings.Join(imports, "\n    ")))
	return reach{url: as(s, "admin", "admin"), env: []string{"NATS_URL=" + s.URL(), "NATS_USER=app",
		"NATS_PASSWORD_FILE=" + write(t, "password", "app"),
		"NATS_JS_API_PREFIX=JS.data.API"}, wrong: []wrong{
		{[]string{"NATS_JS_API_PREFIX=JS.other.API"}, "no responders"},
		{[]string{"NATS_JS_API_PREFIX="}, "JetStream not enabled for account"},
	}}
}

// urlsReach is a cluster of which the first server does not answer.
func urlsReach(t *testing.T) reach {
	down := natstest.StartServer(t)
	down.Stop()
	up := natstest.StartServer(t)
	return reach{url: up.URL(), env: []string{"NATS_URL=" + down.URL() + ", " + up.URL()}, secrets: []string{"hush"},
		wrong: []wrong{
			{[]string{"NATS_URL=" + down.URL()}, "NATS cannot be reached"},
			{[]string{"NATS_URL=nats://me:hush@/," + up.URL()}, "NATS_URL: "},
		}}
}

// The server's password changes before the service's file does: the service keeps trying, and works once the file has
// followed.
func TestPasswordChangesUnderWay(t *testing.T) {
	t.Parallel()
	var o *server.Options
	g := guard(t, func(opts *server.Options) { o = opts })
	s := newHarness(t, g.as("admin"), vcsim.Options{VMs: 2})
	fastGuests(s.vc)
	file := write(t, "password", password("service"))
	p := s.start(append(g.service("service"), "NATS_PASSWORD_FILE="+file)...)
	g.Stop()
	for _, u := range o.Users {
		if u.Username == "service" {
			u.Password = "the-next-password"
		}
	}
	before := len(g.Log())
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("the third refusal of the old password", func() bool {
		n := 0
		for _, line := range g.Log()[before:] {
			if strings.Contains(line, "authentication error") {
				n++
			}
		}
		return n >= 3
	})
	if status, _ := p.get("/readyz"); status == http.StatusOK {
		t.Error("ready without NATS")
	}
	if err := os.WriteFile(file, []byte("the-next-password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.until("ready again", func() bool { status, _ := p.get("/readyz"); return status == http.StatusOK })
	s.publish(s.vc.VMs()[0], "r-1", fullRequest("exit 0"))
	if e := s.ended("r-1"); e.kind != "run.succeeded" {
		t.Errorf("ended with %s: %s", e.kind, e.Data)
	}
	if strings.Contains(p.log.String(), "the-next-password") || strings.Contains(p.log.String(), password("service")) {
		t.Errorf("the log holds a password:\n%s", p.log)
	}
}
