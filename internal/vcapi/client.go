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
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
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

// call is one request.
type call struct {
	op       string // for errors and OnCall; bounded
	method   string
	path     string // from the root, escaped
	body     []byte
	token    string // of the session; "" for calls that need none
	header   http.Header
	secrets  secrets // that travel in it
	noRetry  bool    // the transport may not repeat it on another connection
	timeout  time.Duration
	maxBytes int    // bytes of the answer; 0: maxBody
	guest    string // the VM, of a call that vCenter passes on to its guest: how long that takes says nothing about vCenter
	certHint string // what lets its server's certificate be trusted, where that is not vCenter's

	// inside, where set, finds an error in the body of a success.
	checkBody func(body []byte, s redactor) *Error
}

func (cl *call) endpoint() string {
	path, _, _ := strings.Cut(cl.path, "?")
	return cl.method + " " + path
}

// response is what a success holds.
type response struct {
	status int
	header http.Header
	body   []byte
}

// request builds the HTTP request of cl.
func (c *Client) request(ctx context.Context, cl *call) (*http.Request, error) {
	var body io.Reader
	if cl.body != nil {
		body = bytes.NewReader(cl.body)
	}
	req, err := http.NewRequestWithContext(ctx, cl.method, c.base+cl.path, body)
	if err != nil {
		return nil, fmt.Errorf("%s: vcenter %s: request: %w", cl.op, c.host, err)
	}
	for key, values := range cl.header {
		req.Header[key] = values
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	if cl.token != "" {
		req.Header.Set(sessionHeader, cl.token)
	}
	return req, nil
}

// roundTrip sends an ask and reads its answer. Anything but a 2xx is an *Error.
func (c *Client) roundTrip(ctx context.Context, hc *http.Client, cl *call) (resp *response, err error) {
	timeout := cl.timeout
	if timeout == 0 {
		timeout = c.cfg.CallTimeout
	}
	callCtx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	req, err := c.request(callCtx, cl)
	if err != nil {
		return nil, err
	}
	if cl.noRetry {
		req.GetBody = nil // a body that the transport cannot rewind is a body that it cannot send twice
	} else {
		req.Header["X-Idempotency-Key"] = nil // not sent: it lets net/http repeat an ask by POST that met a connection just closed by the server
	}
	done := c.observe(ctx, cl)
	defer func() { done(err) }()
	httpResp, err := hc.Do(req)
	if err != nil {
		failed := c.transportError(cl, err)
		if ctx.Err() == nil && hc != c.polls && (cl.guest == "" || failed.Sent == NotSent) { // the poll is a witness of its own
			c.reachability.noteCall(failed)
		}
		return nil, failed
	}
	defer func() { _ = httpResp.Body.Close() }()
	c.reachability.noteCall(nil)
	if resp, err = c.readResponse(cl, httpResp); err == nil && cl.checkBody != nil {
		if e := cl.checkBody(resp.body, c.redactorFor(cl)); e != nil {
			e.Status = resp.status
			return nil, c.completeError(cl, e)
		}
	}
	return resp, err
}

// observe begins to time a call, and to trace it where ctx is part of a trace; the function that it returns tells how the call ended. A call whose
// function is not called was none.
func (c *Client) observe(ctx context.Context, cl *call) func(error) {
	began := time.Now()
	var span trace.Span
	if c.cfg.Tracer != nil && trace.SpanContextFromContext(ctx).IsValid() { // the long poll is part of none
		ctx, span = c.cfg.Tracer.Start(ctx, cl.op, trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(attribute.String("server.address", c.host), attribute.String("http.request.method", cl.method)))
	}
	return func(err error) {
		if c.cfg.OnCall != nil {
			c.cfg.OnCall(ctx, cl.op, time.Since(began), err)
		}
		if span == nil {
			return
		}
		var e *Error
		if errors.As(err, &e) {
			name := cmp.Or(e.Name, http.StatusText(e.Status), "no answer")
			span.SetStatus(codes.Error, name)
			span.SetAttributes(attribute.String("error.type", name))
			if e.Status != 0 {
				span.SetAttributes(attribute.Int("http.response.status_code", e.Status))
			}
		}
		span.End()
	}
}

// readResponse reads an answer to its end and tells success from error.
func (c *Client) readResponse(cl *call, httpResp *http.Response) (*response, error) {
	most := cmp.Or(cl.maxBytes, maxBody)
	body, err := io.ReadAll(io.LimitReader(httpResp.Body, int64(most)+1))
	switch {
	case err != nil:
		e := &Error{Status: httpResp.StatusCode, Class: Transient, Foreign: true, Message: "the answer broke off: " + c.redact(cl, err.Error()), Err: c.redactError(cl, err)}
		return nil, c.completeError(cl, e)
	case len(body) > most:
		e := &Error{Status: httpResp.StatusCode, Class: byStatus(httpResp.StatusCode), Message: fmt.Sprintf("the answer is larger than %d MiB", most>>20), Err: ErrTooLarge}
		return nil, c.completeError(cl, e)
	case httpResp.StatusCode >= 300 && httpResp.StatusCode < 400:
		e := &Error{Status: httpResp.StatusCode, Class: Transient, Foreign: true, // vCenter does not redirect: something before it does, now
			Message: c.redact(cl, fmt.Sprintf("redirected to %q, which is not followed: set the URL of vCenter itself", httpResp.Header.Get("Location")))}
		return nil, c.completeError(cl, e)
	case httpResp.StatusCode < 200 || httpResp.StatusCode >= 300:
		e := decodeError(httpResp.StatusCode, body, c.redactorFor(cl))
		// REST answers with a bare 404 what it does not offer; VI JSON has no error without a body of its own.
		e.Foreign = e.Name == "" && e.LocalizedMessage == "" && len(e.Messages) == 0 && (e.Status >= 500 || strings.HasPrefix(cl.path, "/sdk/"))
		return nil, c.completeError(cl, e)
	}
	return &response{status: httpResp.StatusCode, header: httpResp.Header, body: bytes.TrimSpace(body)}, nil
}

// completeError completes an error of cl.
func (c *Client) completeError(cl *call, e *Error) *Error {
	e.Guest = cl.guest != ""
	return e.withCall(cl.op, cl.endpoint(), c.host)
}

// transportError makes an Error of what the transport said.
func (c *Client) transportError(cl *call, err error) *Error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without its text, which repeats method and URL
	}
	e := &Error{Class: Transient, Err: c.redactError(cl, err), Message: c.redact(cl, err.Error())}
	var dial *net.OpError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		e.Sent = NotSent
	case errors.As(err, &cert):
		e.Sent = NotSent
		e.Message += ": " + cmp.Or(cl.certHint, "set the CA file or the thumbprint of this vCenter")
	}
	return c.completeError(cl, e)
}

// ErrTooLarge lies beneath the error of an answer of which more came than is read.
var ErrTooLarge = errors.New("the answer is too large")

// ErrNotUnderstood lies beneath the error of a success whose body is not what it should be: something on the way answers in vCenter's place, or part of
// vCenter does, while it starts.
var ErrNotUnderstood = errors.New("the answer is not understood")

func (c *Client) notUnderstood(cl *call, resp *response, why error) *Error {
	e := &Error{Status: resp.status, Class: Transient, Message: ErrNotUnderstood.Error() + ": " + c.redact(cl, why.Error()), Err: ErrNotUnderstood,
		Foreign: len(resp.body) > 0 && !json.Valid(resp.body)}
	return c.completeError(cl, e)
}

// read sends a call in a session of l and decodes its answer into out. A session that turns out to be dead is renewed, once.
func (c *Client) read(ctx context.Context, l *login, build func(*session) (*call, error), out any) error {
	for renewed := false; ; renewed = true {
		s, err := l.get(ctx)
		if err != nil {
			return err
		}
		cl, err := build(s)
		if err != nil {
			return err
		}
		cl.token = s.token
		resp, err := c.sendRead(ctx, cl)
		if err == nil {
			return c.decode(cl, resp, out)
		}
		c.handleSessionLost(ctx, cl, s, err)
		if classOf(err) != SessionLost || renewed {
			return err
		}
	}
}

// sendRead sends an ask over the connections that are for its kind.
func (c *Client) sendRead(ctx context.Context, cl *call) (resp *response, err error) {
	if cl.guest == "" {
		return c.roundTrip(ctx, c.reads, cl)
	}
	if none := c.guests.do(ctx, cl.guest, c.cfg.CallTimeout, func(ctx context.Context) { resp, err = c.roundTrip(ctx, c.guestCalls, cl) }); none != nil {
		return nil, c.completeError(cl, &Error{Class: Transient, Message: c.redact(cl, none.Error()), Err: none})
	}
	return resp, err
}

// handleSessionLost finds out what a 401 to a guest call was about (the guest's login, or our session), and forgets a session that is lost.
func (c *Client) handleSessionLost(ctx context.Context, cl *call, s *session, err error) {
	var e *Error
	if !errors.As(err, &e) || e.Class != SessionLost {
		return
	}
	if strings.HasPrefix(cl.op, guestProcessesOp) {
		switch alive, err := c.restAlive(ctx, s.token); {
		case err != nil:
			e.Class = Transient // cannot be told apart now
			return
		case alive:
			e.Class = GuestCredentials
			return
		}
	}
	c.forgetSession(s, strings.HasPrefix(cl.path, "/sdk/"))
}

func classOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Permanent
}

// decode reads an answer. An empty one and null leave out as it is.
func (c *Client) decode(cl *call, resp *response, out any) error {
	if out == nil || len(resp.body) == 0 || bytes.Equal(resp.body, []byte("null")) {
		return nil
	}
	if err := json.Unmarshal(resp.body, out); err != nil {
		return c.notUnderstood(cl, resp, err)
	}
	return nil
}

// Hide keeps secrets out of everything that vCenter or a guest says, whoever has sent them (the owner of a run before this one, say), until forget is
// called. Several may hide the same.
func (c *Client) Hide(values ...string) (forget func()) { return c.secrets.hold(values...) }

func (c *Client) redactorFor(cl *call) redactor { return c.secrets.redactor(cl.secrets...) }

func (c *Client) redact(cl *call, text string) string { return c.redactorFor(cl).text(text) }

// redactError gives err as it is, or, where a secret is in its text (net/http quotes what it cannot read), only its text without that.
func (c *Client) redactError(cl *call, err error) error {
	if text := c.redact(cl, err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}

// stringSet is a set of strings that grows until it is cleared.
type stringSet struct {
	mu      sync.Mutex
	members map[string]bool
}

func (n *stringSet) add(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.members == nil {
		n.members = make(map[string]bool)
	}
	n.members[name] = true
}

func (n *stringSet) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.members)
}

// without gives list without what is in the set.
func (n *stringSet) without(list []string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var rest []string
	for _, name := range list {
		if !n.members[name] {
			rest = append(rest, name)
		}
	}
	return rest
}
