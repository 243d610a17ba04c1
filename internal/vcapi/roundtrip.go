package vcapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

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
