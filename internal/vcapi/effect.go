package vcapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"time"
)

// effect sends a call that changes the guest: once, on a connection of its own that is up before fence is asked. It never logs in and sends again.
func (c *Client) effect(ctx context.Context, fence Fence, l *login, build func(*session) (*call, error)) (*response, *call, error) {
	s, err := l.get(ctx)
	if err != nil {
		return nil, nil, asNotSent(err)
	}
	cl, err := build(s)
	if err != nil {
		return nil, nil, asNotSent(err)
	}
	cl.token = s.token
	c.secrets.addRecent(cl.secrets...) // the task's own error, much later, may still tell them
	resp, err := c.sendOnce(ctx, fence, cl)
	if err != nil {
		c.handleSessionLost(ctx, cl, s, err)
	}
	return resp, cl, err
}

// asNotSent is what an error before the act means for the act: it was not sent.
func asNotSent(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	before := *e
	before.Sent = NotSent
	return &before
}

// sendOnce dials, asks fence, writes the request, and awaits its answer. Until the first byte is written every error is NotSent; from then on only
// vCenter's own word can tell that nothing happened.
func (c *Client) sendOnce(ctx context.Context, fence Fence, cl *call) (resp *response, err error) {
	req, err := c.request(context.WithoutCancel(ctx), cl) // the connection's deadlines follow ctx, see below
	if err != nil {
		return nil, &Error{Op: cl.op, Host: c.host, Class: Permanent, Sent: NotSent, Message: err.Error(), Err: err}
	}
	req.GetBody, req.Close = nil, true
	var wire bytes.Buffer
	if err := req.Write(&wire); err != nil {
		return nil, c.completeError(cl, &Error{Class: Permanent, Sent: NotSent, Message: err.Error(), Err: err})
	}
	done := c.observe(ctx, cl)
	conn, tcp, err := c.dialEffect(ctx)
	if err != nil {
		e := c.transportError(cl, err)
		e.Sent = NotSent
		if ctx.Err() == nil {
			c.reachability.noteCall(e)
		}
		done(e)
		return nil, e
	}
	defer func() { _ = conn.Close() }()
	if fence != nil {
		if err := fence(ctx); err != nil {
			return nil, c.notSentError(cl, err)
		}
	}
	done = c.observe(ctx, cl) // what came before was the way to it
	began := time.Now()
	_ = conn.SetWriteDeadline(began.Add(c.cfg.TravelTime))
	_ = conn.SetReadDeadline(began.Add(c.responseTimeout))
	release := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer release()
	if ctx.Err() != nil {
		return nil, c.notSentError(cl, context.Cause(ctx))
	}
	defer func() { done(err) }()
	if _, err := conn.Write(wire.Bytes()); err != nil {
		return nil, c.noResponse(ctx, cl, fmt.Errorf("the request could not be sent whole: %w", err))
	}
	head := &io.LimitedReader{R: conn, N: maxHead}
	httpResp, err := readFinalResponse(bufio.NewReader(head), req)
	if err != nil && head.N <= 0 {
		err = fmt.Errorf("its head is larger than %d KiB", maxHead>>10)
	}
	head.N = math.MaxInt64 // the body has a limit of its own
	if err != nil {
		return nil, c.noResponse(ctx, cl, fmt.Errorf("the request was sent, its answer did not come: %w", err))
	}
	defer func() { _ = httpResp.Body.Close() }()
	c.reachability.noteCall(nil)
	if resp, err = c.readResponse(cl, httpResp); err == nil {
		_ = tcp.SetLinger(-1) // all is said: a farewell in order
	}
	return resp, err
}

// dialEffect opens the connection of one act. Its bytes are given up by the kernel when they stay unacknowledged for TravelTime, and thrown away when
// the connection is closed, even by this process's death: a call does not arrive long after its owner gave it up.
func (c *Client) dialEffect(ctx context.Context) (*tls.Conn, *net.TCPConn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no connection within %s", dialTimeout))
	defer cancel()
	dialer := net.Dialer{Control: userTimeout(c.cfg.TravelTime)}
	raw, err := dialer.DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil, nil, err
	}
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		_ = raw.Close()
		return nil, nil, fmt.Errorf("%s is not reached by TCP", c.addr)
	}
	conn := tls.Client(tcp, c.tls.Clone())
	if err = tcp.SetLinger(0); err == nil {
		err = conn.HandshakeContext(ctx)
	}
	if err != nil {
		_ = tcp.Close()
		return nil, nil, err
	}
	return conn, tcp, nil
}

// readFinalResponse passes over 1xx answers, which have no body.
func readFinalResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	const most = 8
	for range most {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("only interim answers")
}

// notSentError is the error of an act that its fence, or the end of ctx, kept from being sent.
func (c *Client) notSentError(cl *call, err error) *Error {
	e := &Error{Class: Transient, Sent: NotSent, Message: c.redact(cl, err.Error()), Err: c.redactError(cl, err)}
	return c.completeError(cl, e)
}

// noResponse is the error of an act whose answer did not come.
func (c *Client) noResponse(ctx context.Context, cl *call, err error) *Error {
	ended := ctx.Err() != nil
	if ended {
		err = errors.Join(context.Cause(ctx), err)
	}
	e := c.completeError(cl, &Error{Class: Transient, Sent: Unknown, Message: c.redact(cl, err.Error()), Err: c.redactError(cl, err)})
	if !ended && cl.guest == "" {
		c.reachability.noteCall(e)
	}
	return e
}
