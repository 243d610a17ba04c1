// Package vcapi is guestflow's client of one vCenter. It speaks VI JSON (/sdk/vim25) and REST (/api, or its older form
// /rest), and watches all VMs and Tasks of its runs with one long poll.
//
// There are two kinds of calls. A read may be repeated, and renews an expired session once on the way. An effect
// changes something: it is sent at most once, on a connection of its own, after the caller's Fence; Error.Sent says
// what is known about it when it failed. Every error that vCenter or the network causes is an *Error.
//
// client.go holds the Client, roundtrip.go reads, effect.go effects, session.go logins, cleaner.go what is left on
// vCenter; vijson.go and rest.go build calls, fault.go decodes errors. Each API has a file of its own:
// customization.go, network.go, process.go, file.go, task.go, vm.go, privilege.go. The long poll begins in poller.go.
package vcapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	userAgent     = "guestflow"
	sessionHeader = "vmware-api-session-id"
	dialTimeout   = 10 * time.Second
	connections   = 64        // open at once, for reads
	maxHead       = 256 << 10 // bytes of a status line and headers, interim responses included
	maxBody       = 4 << 20   // bytes of one response; vCenter's own are far smaller (pages of 100)
)

// Client speaks to one vCenter. It is safe for use by many goroutines, which share its sessions.
type Client struct {
	cfg  Config
	host string // as in the URL: for errors, and the name in the certificate
	addr string // host:port, to dial
	base string // https://host, with the port only where the URL has one: proxies compare the Host header
	tls  *tls.Config

	reads      *http.Client // keep-alive
	guestCalls *http.Client // for calls that vCenter passes on to guests, see guestLimiter
	polls      *http.Client // the long poll has a connection of its own
	files      *http.Client // for guests' files, each on a connection of its own, from vCenter or from an ESXi host

	vimLogin         *login        // VI JSON
	restLogin        *login        // REST; shares the session of VI JSON where vCenter accepts it for both
	separateSessions atomic.Bool   // vCenter refused VI JSON's session on REST, although its release should accept it
	secrets          secretStore   // secrets that were in use
	cleaner          *cleaner      // removes what was created on vCenter
	historySlots     chan struct{} // one for each task history that is being read
	product          string        // which vCenter answered the last login
	unsupportedProps stringSet     // properties that this vCenter was seen not to have, since the last login

	guests          *guestLimiter
	poller          *poller
	reachability    reachability
	responseTimeout time.Duration // how long an effect waits for its response
	maxBody         int           // bytes of one response
}

// New checks cfg and makes a Client. It dials nothing. Errors name the field that is wrong.
func New(cfg Config) (*Client, error) {
	u, err := checkConfig(cfg)
	if err != nil {
		return nil, err
	}

	setDefault(&cfg.TravelTime, 10*time.Second)
	setDefault(&cfg.CallTimeout, 30*time.Second)
	setDefault(&cfg.PollWait, 30*time.Second)
	setDefault(&cfg.PollGrace, 15*time.Second)

	c := &Client{
		cfg:             cfg,
		host:            cmp.Or(cfg.Name, u.Hostname()),
		addr:            net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")),
		base:            "https://" + u.Host,
		responseTimeout: time.Minute,
		maxBody:         maxBody,
		historySlots:    make(chan struct{}, maxHistoryReads),
		guests:          newGuestLimiter(),
	}

	if c.tls, err = tlsConfig(cfg, u.Hostname()); err != nil {
		return nil, err
	}

	c.reads = c.httpClient(connections)
	c.guestCalls = c.httpClient(fastGuestSlots + slowGuestSlots)
	c.polls = c.httpClient(connections)
	c.files = c.fileClient()

	c.cleaner = newCleaner(c)
	c.vimLogin, c.restLogin = newLogin(c, c.loginVIM), newLogin(c, c.loginREST)
	c.poller, c.reachability.onChange = newPoller(c), cfg.OnAnswer
	return c, nil
}

// checkConfig parses the URL and checks what has no default.
func checkConfig(cfg Config) (*url.URL, error) {
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("vcenter url %q: %w", cfg.URL, errors.Unwrap(err))
	case u.Scheme != "https" || u.Hostname() == "":
		return nil, fmt.Errorf("vcenter url %q: want https://host[:port]", u.Redacted())
	case (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return nil, fmt.Errorf(
			"vcenter url %q: want https://host[:port] and nothing after or before the host", u.Redacted(),
		)
	case cfg.Username == "":
		return nil, errors.New("vcenter username: is empty")
	case cfg.Password == nil:
		return nil, errors.New("vcenter password: Config.Password, which reads it, is not set")
	}

	return u, nil
}

func setDefault(d *time.Duration, to time.Duration) {
	if *d <= 0 {
		*d = to
	}
}

// tlsConfig always verifies the server: against the roots or, where a thumbprint is given, against that one
// certificate.
func tlsConfig(cfg Config, host string) (*tls.Config, error) {
	t := &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    cfg.RootCAs,
		ServerName: host,
		NextProtos: []string{"http/1.1"},
		// Every effect dials. A resumed handshake spares vCenter its signature, and this end the check of a chain that
		// it has checked: the certificate must still be valid, and in these roots.
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}

	if cfg.Thumbprint == "" {
		return t, nil
	}

	pin, err := hex.DecodeString(strings.ReplaceAll(cfg.Thumbprint, ":", ""))
	if err != nil || len(pin) != sha256.Size {
		return nil, fmt.Errorf("vcenter thumbprint %q: want the SHA-256 of the server's certificate, "+
			"64 hex digits, with or without colons", cfg.Thumbprint)
	}

	// Chain and host name are not checked, because the pin is stricter than both: VerifyConnection runs on every
	// handshake, resumed ones included, and accepts exactly one certificate.
	pinned := true
	t.InsecureSkipVerify = pinned
	t.VerifyConnection = func(state tls.ConnectionState) error {
		sum := sha256.Sum256(state.PeerCertificates[0].Raw)
		if !bytes.Equal(sum[:], pin) {
			return fmt.Errorf("the server's certificate has the SHA-256 thumbprint %X, not the one that is set", sum)
		}
		return nil
	}

	return t, nil
}

// httpClient is for reads: HTTP/1.1, no proxy, no redirect.
func (c *Client) httpClient(connections int) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:     c.tls.Clone(),
			TLSHandshakeTimeout: dialTimeout,
			MaxConnsPerHost:     connections,      // further reads wait here: vCenter has its limits
			MaxIdleConnsPerHost: connections,      // with fewer, calls would close and dial again
			IdleConnTimeout:     30 * time.Second, // shorter than load balancers keep idle connections

			MaxResponseHeaderBytes: maxHead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// fileClient is for guests' files. Certificates are verified in the same way, but for the host that the URL names.
func (c *Client) fileClient() *http.Client {
	t := c.tls.Clone()
	t.ServerName = ""

	hc := c.httpClient(connections)
	hc.Transport = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     t,
		TLSHandshakeTimeout: dialTimeout,
		DisableKeepAlives:   true, // the next file may be at another host
		DisableCompression:  true, // the limit is on the bytes that arrive

		MaxResponseHeaderBytes: maxHead,
	}

	return hc
}

// Close logs out every session that the Client opened, within ctx and five seconds. The Client cannot be used
// afterwards.
func (c *Client) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer c.cleaner.endLifetime()

	c.logout(ctx)
	c.reads.CloseIdleConnections()
	c.guestCalls.CloseIdleConnections()
	c.polls.CloseIdleConnections()
}
