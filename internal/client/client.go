// Package client is what a person's tools do on NATS: publish requests and cancels, follow events, wait for an end, ask how things stand, look after
// dead letters. It needs no more permissions than the role of whoever uses it, and where NATS refuses one its errors name it.
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
	answerTimeout = 5 * time.Second // of one round trip to JetStream
	reconnectWait = 500 * time.Millisecond
	electionTime  = 15 * time.Second // a stream's next leader was there after 6 to 8 s
)

// Options of a connection.
type Options struct {
	// Patience is how long NATS may be away, once connected, before the connection is given up; 0: for ever.
	Patience time.Duration
	// Notice, where set, is told in one line when NATS goes away and when it is back.
	Notice func(string)
}

// Client is a connection to NATS. It is safe for concurrent use.
type Client struct {
	nc        *nats.Conn
	js        jetstream.JetStream
	apiPrefix string // of the JetStream API, "$JS.API." by default

	closed chan struct{} // with the connection

	mu       sync.Mutex
	watchers map[int]watcher
	next     int
}

// watcher is a call in hand, or a feed: a refusal by NATS that it is about ends it.
type watcher struct {
	about string // prefix of the subjects; "" of any
	end   context.CancelCauseFunc
}

// PermissionError is a publish or a subscription that NATS does not permit to this user.
type PermissionError struct {
	Subscribe bool
	Subject   string
}

// Error names the subject, and what has to be done.
func (e *PermissionError) Error() string {
	what := "publish on"
	if e.Subscribe {
		what = "subscribe to"
	}
	return fmt.Sprintf("NATS does not permit this user to %s %s: use other credentials (NATS_CREDS_FILE, NATS_USER), or have the permission added", what, e.Subject)
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

// Dial connects. Unlike the service it does not wait for NATS: an error says why it is not connected, and what to do.
func Dial(cfg stream.Config, opt Options) (*Client, error) {
	c := &Client{apiPrefix: jetstream.DefaultAPIPrefix, closed: make(chan struct{}), watchers: map[int]watcher{}}
	notice := opt.Notice
	if notice == nil {
		notice = func(string) {}
	}
	opts, err := cfg.Login(func(err error) { notice(err.Error()) })
	if err != nil {
		return nil, err
	}
	reconnects := -1
	if opt.Patience > 0 {
		reconnects = int(opt.Patience / reconnectWait)
	}
	opts = append(opts, nats.Name(cfg.Name), nats.Timeout(dialTimeout), nats.MaxReconnects(reconnects), nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait/4, reconnectWait), nats.PingInterval(10*time.Second), nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // nothing is sent late from a buffer: who publishes hears that it failed
		nats.DisconnectErrHandler(func(nc *nats.Conn, _ error) {
			if !nc.IsClosed() {
				notice("lost the connection to NATS, connecting again")
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { notice("connected to NATS again") }),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.failed(err) }))
	if c.nc, err = nats.Connect(cfg.URL, opts...); err != nil {
		return nil, &ConnectError{Cause: fmt.Errorf("%s: %w", redacted(cfg.URL), err), Cure: cureOf(err)}
	}
	switch {
	case cfg.JSDomain != "":
		c.apiPrefix = "$JS." + cfg.JSDomain + ".API."
		c.js, err = jetstream.NewWithDomain(c.nc, cfg.JSDomain, jetstream.WithDefaultTimeout(answerTimeout))
	case cfg.JSAPIPrefix != "":
		c.apiPrefix = strings.TrimSuffix(cfg.JSAPIPrefix, ".") + "."
		c.js, err = jetstream.NewWithAPIPrefix(c.nc, cfg.JSAPIPrefix, jetstream.WithDefaultTimeout(answerTimeout))
	default:
		c.js, err = jetstream.New(c.nc, jetstream.WithDefaultTimeout(answerTimeout))
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return c, nil
}

// Close ends the connection and everything on it.
func (c *Client) Close() {
	c.nc.Close()
	<-c.closed
}

// cureOf says what to do about a connection that could not be made.
func cureOf(err error) string {
	text := err.Error()
	switch {
	case errors.Is(err, nats.ErrAuthorization), strings.Contains(strings.ToLower(text), "authorization violation"):
		return "the server does not take this login: see NATS_CREDS_FILE, NATS_NKEY_FILE, or NATS_USER and NATS_PASSWORD_FILE"
	case strings.Contains(text, "x509:"), strings.Contains(text, "tls:"):
		return "see NATS_CA_FILE, and NATS_CERT_FILE with NATS_KEY_FILE where the server asks for a client certificate"
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return "server and client disagree on TLS: see the scheme of NATS_URL, and NATS_CA_FILE"
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return "a file that the settings name cannot be read"
	}
	return "is it running there? Set NATS_URL, or --server"
}

// redacted leaves user and password out of URLs.
func redacted(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		if at := strings.LastIndexByte(u, '@'); at >= 0 {
			scheme, _, _ := strings.Cut(u, "://")
			list[i] = scheme + "://***@" + u[at+1:]
		}
	}
	return strings.Join(list, ",")
}

var violation = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^"]+)"`)

// failed ends the calls that a refusal is about: NATS does not answer what it does not permit, and who waits would learn nothing but a time-out.
func (c *Client) failed(err error) {
	refusal := refusalOf(err)
	if refusal == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.watchers {
		if strings.HasPrefix(refusal.Subject, w.about) {
			w.end(refusal)
		}
	}
}

// refusalOf is what the connection says that it was refused; nil where err says something else.
func refusalOf(err error) *PermissionError {
	if err == nil {
		return nil
	}
	m := violation.FindStringSubmatch(err.Error())
	if m == nil {
		return nil
	}
	return &PermissionError{Subscribe: strings.EqualFold(m[1], "subscription"), Subject: m[2]}
}

// permitted is a context that ends, with the refusal as its cause, when NATS refuses something on a subject that begins with about.
func (c *Client) permitted(ctx context.Context, about string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.next
	c.next++
	c.watchers[id] = watcher{about, cancel}
	return ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, id)
		cancel(nil)
	}
}

// try makes one round trip: its error is NATS's refusal where there was one.
func try[T any](ctx context.Context, c *Client, f func(context.Context) (T, error)) (T, error) {
	watched, done := c.permitted(ctx, "")
	defer done()
	timed, cancel := context.WithTimeout(watched, answerTimeout)
	defer cancel()
	v, err := f(timed)
	if err == nil {
		return v, nil
	}
	var refused *PermissionError
	switch cause := context.Cause(timed); {
	case errors.As(cause, &refused):
		return v, refused
	case ctx.Err() != nil:
		return v, context.Cause(ctx)
	case errors.Is(err, nats.ErrConnectionClosed):
		return v, ErrAway
	case errors.Is(cause, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return v, fmt.Errorf("%w after %s", errNoAnswer, answerTimeout)
	}
	return v, err
}

// patiently is try for what may be asked again: a stream whose leader has gone answers nobody for some seconds.
func patiently[T any](ctx context.Context, c *Client, f func(context.Context) (T, error)) (T, error) {
	for began := time.Now(); ; {
		v, err := try(ctx, c, f)
		if !errors.Is(err, errNoAnswer) || time.Since(began) > electionTime {
			return v, err
		}
	}
}

var errNoAnswer = errors.New("NATS gave no answer")

// ErrAway says that NATS was away for longer than the client has patience.
var ErrAway = errors.New("NATS is away")
