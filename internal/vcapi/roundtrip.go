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
	op       string // names the call in errors and for OnCall; one of a bounded set
	method   string
	path     string // from the root, escaped
	body     []byte
	token    string // of the session; "" for calls that need none
	header   http.Header
	secrets  secrets // that travel in it
	noRetry  bool    // the transport must not repeat it on another connection
	timeout  time.Duration
	maxBytes int // the largest response body; 0 means Client.maxBody
	// The VM, where vCenter passes the call on to a guest: how long that takes says nothing about vCenter.
	guest    string
	certHint string // how to make its server's certificate trusted, where that server is not vCenter

	// checkBody, where set, finds an error in the body of a successful response.
	checkBody func(body []byte, s redactor) *Error
}

func (cl *call) endpoint() string {
	path, _, _ := strings.Cut(cl.path, "?")
	return cl.method + " " + path
}

// response is a successful HTTP response, read to its end.
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

// roundTrip sends a read and reads its response. Anything but a 2xx is an *Error.
func (c *Client) roundTrip(ctx context.Context, hc *http.Client, cl *call) (resp *response, err error) {
	timeout := cmp.Or(cl.timeout, c.cfg.CallTimeout)
	callCtx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("no answer within %s: %w", timeout, context.DeadlineExceeded))
	defer cancel()

	req, err := c.request(callCtx, cl)
	if err != nil {
		return nil, err
	}

	if cl.noRetry {
		req.GetBody = nil // the transport cannot send twice a body that it cannot rewind
	} else {
		// The nil value keeps the header from being sent. That it is there lets net/http repeat a POST which met a
		// connection that the server had just closed.
		req.Header["X-Idempotency-Key"] = nil
	}

	done := c.observe(ctx, cl)
	defer func() { done(err) }()

	httpResp, err := hc.Do(req)
	if err != nil {
		failed := c.transportError(cl, err)
		// The poll reports for itself. A call to a guest counts only where it did not get as far as vCenter.
		if ctx.Err() == nil && hc != c.polls && (cl.guest == "" || failed.Sent == NotSent) {
			c.reachability.noteCall(failed)
		}
		return nil, failed
	}
	defer func() { _ = httpResp.Body.Close() }()
	c.reachability.noteCall(nil)

	resp, err = c.readResponse(cl, httpResp)
	if err != nil || cl.checkBody == nil {
		return resp, err
	}

	if e := cl.checkBody(resp.body, c.redactorFor(cl)); e != nil {
		e.Status = resp.status
		return nil, c.completeError(cl, e)
	}

	return resp, nil
}

// observe begins to time a call, and to trace it where ctx is part of a trace. The caller reports the end of the call
// to the function that observe returns; where it does not, nothing is reported.
func (c *Client) observe(ctx context.Context, cl *call) func(error) {
	began := time.Now()
	var span trace.Span
	if c.cfg.Tracer != nil && trace.SpanContextFromContext(ctx).IsValid() { // the long poll is part of no trace
		ctx, span = c.cfg.Tracer.Start(ctx, cl.op,
			trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(
				attribute.String("server.address", c.host),
				attribute.String("http.request.method", cl.method)))
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

// readResponse reads a response to its end and distinguishes success from error.
func (c *Client) readResponse(cl *call, httpResp *http.Response) (*response, error) {
	limit := cmp.Or(cl.maxBytes, c.maxBody)
	body, err := io.ReadAll(io.LimitReader(httpResp.Body, int64(limit)+1))

	switch status := httpResp.StatusCode; {
	case err != nil:
		e := &Error{Status: status, Class: Transient, Foreign: true, Err: c.redactError(cl, err)}
		e.Message = "the answer broke off: " + c.redact(cl, err.Error())
		return nil, c.completeError(cl, e)
	case len(body) > limit:
		e := &Error{Status: status, Class: byStatus(status), Err: ErrTooLarge}
		e.Message = fmt.Sprintf("the answer is larger than %d MiB", limit>>20)
		return nil, c.completeError(cl, e)
	case status >= 300 && status < 400:
		e := &Error{Status: status, Class: Transient, Foreign: true} // vCenter does not redirect: a proxy does, for now
		e.Message = c.redact(cl, fmt.Sprintf("redirected to %q, which is not followed: set the URL of vCenter itself",
			httpResp.Header.Get("Location")))
		return nil, c.completeError(cl, e)
	case status < 200 || status >= 300:
		e := decodeError(status, body, c.redactorFor(cl))
		// REST answers a bare 404 for operations that it does not offer; an error of VI JSON always has a body.
		unnamed := e.Name == "" && e.LocalizedMessage == "" && len(e.Messages) == 0
		e.Foreign = unnamed && (status >= 500 || strings.HasPrefix(cl.path, "/sdk/"))
		return nil, c.completeError(cl, e)
	}

	return &response{status: httpResp.StatusCode, header: httpResp.Header, body: bytes.TrimSpace(body)}, nil
}

// completeError fills in which call an error belongs to.
func (c *Client) completeError(cl *call, e *Error) *Error {
	e.Guest = cl.guest != ""
	return e.withCall(cl.op, cl.endpoint(), c.host)
}

// transportError is the Error of a call that got no response.
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

// ErrTooLarge is wrapped by the error of a response that is larger than the client reads.
var ErrTooLarge = errors.New("the answer is too large")

// ErrNotUnderstood is wrapped by the error of a successful response whose body has not the expected form: a proxy
// answers in vCenter's place, or a part of vCenter does while it starts.
var ErrNotUnderstood = errors.New("the answer is not understood")

func (c *Client) notUnderstood(cl *call, resp *response, why error) *Error {
	return c.completeError(cl, &Error{
		Status:  resp.status,
		Class:   Transient,
		Message: ErrNotUnderstood.Error() + ": " + c.redact(cl, why.Error()),
		Err:     ErrNotUnderstood,
		Foreign: len(resp.body) > 0 && !json.Valid(resp.body),
	})
}

// read sends a call in a session of l and decodes its response into out. It renews a session that has expired, once.
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

// sendRead sends a read over the connections for its kind: calls to guests have their own.
func (c *Client) sendRead(ctx context.Context, cl *call) (resp *response, err error) {
	if cl.guest == "" {
		return c.roundTrip(ctx, c.reads, cl)
	}
	noSlot := c.guests.do(ctx, cl.guest, c.cfg.CallTimeout, func(ctx context.Context) {
		resp, err = c.roundTrip(ctx, c.guestCalls, cl)
	})
	if noSlot != nil {
		return nil, c.completeError(cl, &Error{Class: Transient, Message: c.redact(cl, noSlot.Error()), Err: noSlot})
	}
	return resp, err
}

// handleSessionLost forgets a session that vCenter no longer knows. Where the call went to a guest, it first finds out
// what its 401 was about, the guest's login or this session, and sets the class of err.
func (c *Client) handleSessionLost(ctx context.Context, cl *call, s *session, err error) {
	var e *Error
	if !errors.As(err, &e) || e.Class != SessionLost {
		return
	}

	if strings.HasPrefix(cl.op, guestProcessesOp) {
		switch alive, err := c.restAlive(ctx, s.token); {
		case err != nil:
			e.Class = Transient // which of the two it was cannot be found out now
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

// decode decodes a response into out. An empty body and null leave out unchanged.
func (c *Client) decode(cl *call, resp *response, out any) error {
	if out == nil || len(resp.body) == 0 || bytes.Equal(resp.body, []byte("null")) {
		return nil
	}
	var err error
	if own, ok := out.(bodyDecoder); ok {
		err = own.decodeBody(resp.body)
	} else {
		err = json.Unmarshal(resp.body, out)
	}
	if err != nil {
		return c.notUnderstood(cl, resp, err)
	}
	return nil
}

// bodyDecoder decodes a body in a way of its own.
type bodyDecoder interface{ decodeBody(body []byte) error }
