// Package client is the other side of the service: it publishes requests and cancels, follows events, waits for the
// end of a run, reads the state of VMs and queues, and looks after dead letters. It needs no permission beyond those
// of its user's role; where NATS refuses something, the error names the subject.
package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events/stream"
)

const (
	dialTimeout   = 5 * time.Second
	callTimeout   = 5 * time.Second // of one round trip to JetStream
	reconnectWait = 500 * time.Millisecond
	electionTime  = 15 * time.Second // a stream's next leader was there after 6 to 8 s
)

// Options of a connection.
type Options struct {
	// MaxOutage is how long NATS may be away, once connected, before the connection is given up; 0: for ever.
	MaxOutage time.Duration
	// Notice, if set, is called with one line when NATS goes away and when it is back.
	Notice func(string)
}

// Client is a connection to NATS. It is safe for concurrent use.
type Client struct {
	nc        *nats.Conn
	js        jetstream.JetStream
	apiPrefix string // of the JetStream API, "$JS.API." by default

	closed chan struct{} // closed with the connection

	mu       sync.Mutex
	watchers map[int]watcher
	next     int // key of the next watcher
}

// watcher waits for refusals by NATS.
type watcher struct {
	prefix string // of the subjects that it waits for; "" waits for all
	end    context.CancelCauseFunc
}

// PermissionError is a publish or a subscription that NATS does not permit to this user.
type PermissionError struct {
	Subscribe bool
	Subject   string
}

// isPermission reports whether err is a PermissionError.
func isPermission(err error) bool {
	var refused *PermissionError
	return errors.As(err, &refused)
}

// Error names the subject, and what has to be done.
func (e *PermissionError) Error() string {
	what := "publish on"
	if e.Subscribe {
		what = "subscribe to"
	}
	return fmt.Sprintf("NATS does not permit this user to %s %s: "+
		"use other credentials (NATS_CREDS_FILE, NATS_USER), or have the permission added", what, e.Subject)
}

// ConnectError says why a client is not connected.
type ConnectError struct {
	Cause error // begins with the servers' addresses
	Cure  string
}

func (e *ConnectError) Error() string {
	return fmt.Sprintf("cannot connect to NATS at %v: %s", e.Cause, e.Cure)
}

func (e *ConnectError) Unwrap() error { return e.Cause }

// Dial connects to NATS. Unlike the service it does not wait for NATS: the error says why it cannot connect, and what
// to do.
func Dial(cfg stream.Config, opt Options) (*Client, error) {
	if opt.Notice == nil {
		opt.Notice = func(string) {}
	}
	login, err := cfg.Login(func(err error) { opt.Notice(err.Error()) })
	if err != nil {
		return nil, err
	}

	c := &Client{closed: make(chan struct{}), watchers: map[int]watcher{}}
	c.nc, err = nats.Connect(cfg.URL, append(login, c.connectOptions(cfg.Name, opt)...)...)
	if err != nil {
		return nil, &ConnectError{Cause: fmt.Errorf("%s: %w", redactURLs(cfg.URL), err), Cure: connectCure(err)}
	}

	timeout := jetstream.WithDefaultTimeout(callTimeout)
	switch {
	case cfg.JSDomain != "":
		c.apiPrefix = "$JS." + cfg.JSDomain + ".API."
		c.js, err = jetstream.NewWithDomain(c.nc, cfg.JSDomain, timeout)
	case cfg.JSAPIPrefix != "":
		c.apiPrefix = strings.TrimSuffix(cfg.JSAPIPrefix, ".") + "."
		c.js, err = jetstream.NewWithAPIPrefix(c.nc, cfg.JSAPIPrefix, timeout)
	default:
		c.apiPrefix = jetstream.DefaultAPIPrefix
		c.js, err = jetstream.New(c.nc, timeout)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return c, nil
}

// connectOptions say how the connection is kept.
func (c *Client) connectOptions(name string, opt Options) []nats.Option {
	reconnects := -1
	if opt.MaxOutage > 0 {
		reconnects = int(opt.MaxOutage / reconnectWait)
	}
	return []nats.Option{
		nats.Name(name),
		nats.Timeout(dialTimeout),
		nats.MaxReconnects(reconnects),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait/4, reconnectWait),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // a publish while NATS is away fails at once, and is not sent later from a buffer
		nats.DisconnectErrHandler(func(nc *nats.Conn, _ error) {
			if !nc.IsClosed() {
				opt.Notice("lost the connection to NATS, connecting again")
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { opt.Notice("connected to NATS again") }),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.endRefused(err) }),
	}
}

// Close ends the connection and everything on it.
func (c *Client) Close() {
	c.nc.Close()
	<-c.closed
}

// connectCure says what to do when the client cannot connect.
func connectCure(err error) string {
	text := err.Error()
	switch {
	case errors.Is(err, nats.ErrAuthorization), strings.Contains(strings.ToLower(text), "authorization violation"):
		return "the server does not accept this login: " +
			"see NATS_CREDS_FILE, NATS_NKEY_FILE, or NATS_USER and NATS_PASSWORD_FILE"
	case strings.Contains(text, "x509:"), strings.Contains(text, "tls:"):
		return "see NATS_CA_FILE, and NATS_CERT_FILE with NATS_KEY_FILE where the server asks for a client certificate"
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return "server and client disagree on TLS: see the scheme of NATS_URL, and NATS_CA_FILE"
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return "a file that the settings name cannot be read"
	}
	return "is it running there? Set NATS_URL, or --server"
}

// redactURLs replaces user and password in URLs.
func redactURLs(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		if at := strings.LastIndexByte(u, '@'); at >= 0 {
			scheme, _, _ := strings.Cut(u, "://")
			list[i] = scheme + "://***@" + u[at+1:]
		}
	}
	return strings.Join(list, ",")
}

var permissionsViolation = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^"]+)"`)

// endRefused ends the calls that a refusal is about. NATS does not answer what it does not permit: without this, a
// caller would get nothing but a time-out.
func (c *Client) endRefused(err error) {
	refusal := refusalOf(err)
	if refusal == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.watchers {
		if strings.HasPrefix(refusal.Subject, w.prefix) {
			w.end(refusal)
		}
	}
}

// refusalOf reads a refusal out of an error of the connection; nil if err is about something else.
func refusalOf(err error) *PermissionError {
	if err == nil {
		return nil
	}
	m := permissionsViolation.FindStringSubmatch(err.Error())
	if m == nil {
		return nil
	}
	return &PermissionError{Subscribe: strings.EqualFold(m[1], "subscription"), Subject: m[2]}
}

// watchRefusals returns a context that ends when NATS refuses something on a subject with this prefix; the refusal is
// its cause. Call the returned function when the call is over.
func (c *Client) watchRefusals(ctx context.Context, prefix string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.next
	c.next++
	c.watchers[id] = watcher{prefix, cancel}
	return ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, id)
		cancel(nil)
	}
}

// call makes one round trip. If NATS refuses it, the error is the PermissionError.
func call[T any](ctx context.Context, c *Client, f func(context.Context) (T, error)) (T, error) {
	watched, done := c.watchRefusals(ctx, "")
	defer done()
	timed, cancel := context.WithTimeout(watched, callTimeout)
	defer cancel()

	v, err := f(timed)
	if err == nil {
		return v, nil
	}
	switch cause := context.Cause(timed); {
	case isPermission(cause):
		return v, cause
	case ctx.Err() != nil:
		return v, context.Cause(ctx)
	case errors.Is(err, nats.ErrConnectionClosed):
		return v, ErrAway
	case errors.Is(cause, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return v, fmt.Errorf("%w after %s", errNoResponse, callTimeout)
	}
	return v, err
}

// retry repeats a call that may be made twice, while there is no response: a stream that has lost its leader does not
// answer for some seconds.
func retry[T any](ctx context.Context, c *Client, f func(context.Context) (T, error)) (T, error) {
	for began := time.Now(); ; {
		v, err := call(ctx, c, f)
		if !errors.Is(err, errNoResponse) || time.Since(began) > electionTime {
			return v, err
		}
	}
}

var errNoResponse = errors.New("NATS gave no answer")

// ErrAway means that NATS was away for longer than Options.MaxOutage.
var ErrAway = errors.New("NATS is away")
