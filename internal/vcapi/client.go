// Package vcapi is what guestflow says to one vCenter, and what it hears back: VI JSON (/sdk/vim25), the REST API (/api, or
// its older form /rest), and one long poll.
//
// A call either asks or acts. To ask is to read: it may be repeated, and a session that has expired is renewed once on the way. An act changes the
// guest: it is sent at most once, on a connection of its own, and what is known about it afterwards is in Error.Sent. Every error that vCenter or
// the way to it causes is an *Error.
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
	connections   = 64        // at once, for asks
	maxHead       = 256 << 10 // bytes of status line and header lines, interim answers included
	maxBody       = 4 << 20   // bytes of one answer; vCenter's own are far below it (pages of 100)
)

// Client speaks to one vCenter. It is safe for use by many goroutines, which share its sessions.
type Client struct {
	cfg  Config
	host string // as in the URL: for errors, and the name in the certificate
	addr string // host:port, to dial
	base string // https://host, with the port only where the URL has one: proxies compare the Host header
	tls  *tls.Config

	reads      *http.Client // keep-alive
	guestCalls *http.Client // of calls that go to guests, see guests
	polls      *http.Client // the long poll's own connection
	files      *http.Client // guests' files, each on a connection of its own, from vCenter or from an ESXi host

	vimLogin         *login        // VI JSON
	restLogin        *login        // REST; the same session as VI JSON's where vCenter takes it for both
	separateSessions atomic.Bool   // vCenter refused VI JSON's session on REST, although it is new enough
	secrets          secretStore   // secrets that were in use
	cleaner          *cleaner      // of all that is made on vCenter
	historySlots     chan struct{} // a place for each collector of task histories
	product          string        // which vCenter it was at the last login
	unsupportedProps stringSet     // properties that this vCenter does not have, as far as was seen since the last login

	guests          *guestLimiter
	poller          *poller
	reachability    reachability
	responseTimeout time.Duration // how long the answer to an act is awaited
}

// New checks cfg and makes a Client. It dials nothing. Errors name the field that is wrong.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("vcenter url %q: %w", cfg.URL, errors.Unwrap(err))
	case u.Scheme != "https" || u.Hostname() == "":
		return nil, fmt.Errorf("vcenter url %q: want https://host[:port]", u.Redacted())
	case (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return nil, fmt.Errorf("vcenter url %q: want https://host[:port] and nothing after or before the host", u.Redacted())
	case cfg.Username == "":
		return nil, errors.New("vcenter username: is empty")
	case cfg.Password == nil:
		return nil, errors.New("vcenter password: no way to read it was given")
	}
	setDefault(&cfg.TravelTime, 10*time.Second)
	setDefault(&cfg.CallTimeout, 30*time.Second)
	setDefault(&cfg.PollWait, 30*time.Second)
	setDefault(&cfg.PollGrace, 15*time.Second)
	port := u.Port()
	if port == "" {
		port = "443"
	}
	c := &Client{cfg: cfg, host: cmp.Or(cfg.Name, u.Hostname()), addr: net.JoinHostPort(u.Hostname(), port), base: "https://" + u.Host, responseTimeout: time.Minute,
		historySlots: make(chan struct{}, maxHistoryReads)}
	if c.tls, err = tlsConfig(cfg, u.Hostname()); err != nil {
		return nil, err
	}
	c.reads, c.guestCalls, c.polls, c.files = c.httpClient(connections), c.httpClient(fastGuestSlots+slowGuestSlots), c.httpClient(connections), c.fileClient()
	c.cleaner, c.guests = newCleaner(c), newGuestLimiter()
	c.vimLogin, c.restLogin = newLogin(c, c.loginVIM), newLogin(c, c.loginREST)
	c.poller, c.reachability.onChange = newPoller(c), cfg.OnAnswer
	return c, nil
}

func setDefault(d *time.Duration, to time.Duration) {
	if *d <= 0 {
		*d = to
	}
}

// tlsConfig always verifies: against the roots, or, where a thumbprint is given, against nothing but that one certificate.
func tlsConfig(cfg Config, host string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs, ServerName: host, NextProtos: []string{"http/1.1"}}
	if cfg.Thumbprint == "" {
		return t, nil
	}
	pin, err := hex.DecodeString(strings.ReplaceAll(cfg.Thumbprint, ":", ""))
	if err != nil || len(pin) != sha256.Size {
		return nil, fmt.Errorf("vcenter thumbprint %q: want the SHA-256 of the server's certificate, 64 hex digits, with or without colons", cfg.Thumbprint)
	}
	// Chain and host name are not looked at, because the pin is stricter than both: VerifyConnection, which runs on every handshake, resumed ones
	// included, lets exactly one certificate through.
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

// httpClient is for asks: HTTP/1.1, no proxy, no redirect.
func (c *Client) httpClient(connections int) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:     c.tls.Clone(),
			TLSHandshakeTimeout: dialTimeout,
			MaxConnsPerHost:     connections,      // more asks at once wait here: vCenter has its limits
			MaxIdleConnsPerHost: connections,      // fewer, and calls close and dial again
			IdleConnTimeout:     30 * time.Second, // below what load balancers close idle connections after

			MaxResponseHeaderBytes: maxHead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// fileClient is for guests' files: certificates are verified in the same way, but for the host that the URL names.
func (c *Client) fileClient() *http.Client {
	t := c.tls.Clone()
	t.ServerName = ""
	hc := c.httpClient(connections)
	hc.Transport = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     t,
		TLSHandshakeTimeout: dialTimeout,
		DisableKeepAlives:   true, // the next file may be at another host
		DisableCompression:  true, // what is counted is what comes

		MaxResponseHeaderBytes: maxHead,
	}
	return hc
}

// Close logs out every session that the Client opened, within ctx and five seconds. The Client cannot be used afterwards.
func (c *Client) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer c.cleaner.endLifetime()
	c.logout(ctx)
	c.reads.CloseIdleConnections()
	c.guestCalls.CloseIdleConnections()
	c.polls.CloseIdleConnections()
}
