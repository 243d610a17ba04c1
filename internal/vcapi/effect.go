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

// effect sends a call that changes something, once, on a connection of its own that is open before the fence is asked.
// It never logs in and sends again.
func (c *Client) effect(
	ctx context.Context, fence Fence, l *login, build func(*session) (*call, error),
) (*response, *call, error) {
	s, err := l.get(ctx)
	if err != nil {
		return nil, nil, asNotSent(err)
	}

	cl, err := build(s)
	if err != nil {
		return nil, nil, asNotSent(err)
	}

	cl.token = s.token
	c.secrets.addRecent(cl.secrets...) // the Task's own error, much later, may still quote them

	resp, err := c.sendOnce(ctx, fence, cl)
	if err != nil {
		c.handleSessionLost(ctx, cl, s, err)
	}

	return resp, cl, err
}

// asNotSent is an error from before the effect, as the error of the effect: that was not sent.
func asNotSent(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	before := *e
	before.Sent = NotSent
	return &before
}

// sendOnce dials, asks the fence, writes the request, and waits for its response. Until the first byte is written every
// error is NotSent; from then on only vCenter's own word can prove that nothing happened.
func (c *Client) sendOnce(ctx context.Context, fence Fence, cl *call) (resp *response, err error) {
	req, wire, err := c.encodeRequest(ctx, cl)
	if err != nil {
		return nil, err
	}

	conn, tcp, err := c.connect(ctx, cl)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if fence != nil {
		if err := fence(ctx); err != nil {
			return nil, c.notSentError(cl, err)
		}
	}

	done := c.observe(ctx, cl) // the call begins here; what came before was the way to it
	began := time.Now()
	_ = conn.SetWriteDeadline(began.Add(c.cfg.TravelTime))
	_ = conn.SetReadDeadline(began.Add(c.responseTimeout))
	release := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer release()
	if ctx.Err() != nil {
		return nil, c.notSentError(cl, context.Cause(ctx))
	}

	defer func() { done(err) }()
	if _, err := conn.Write(wire); err != nil {
		return nil, c.noResponse(ctx, cl, fmt.Errorf("the request could not be sent whole: %w", err))
	}

	httpResp, err := readHead(conn, req)
	if err != nil {
		return nil, c.noResponse(ctx, cl, fmt.Errorf("the request was sent, its answer did not come: %w", err))
	}
	defer func() { _ = httpResp.Body.Close() }()
	c.reachability.noteCall(nil)

	if resp, err = c.readResponse(cl, httpResp); err == nil {
		_ = tcp.SetLinger(-1) // the exchange is complete: close the connection in the usual way
	}

	return resp, err
}

// encodeRequest is the request of cl, and its bytes. It is without ctx, whose end the connection's deadlines follow.
func (c *Client) encodeRequest(ctx context.Context, cl *call) (*http.Request, []byte, error) {
	req, err := c.request(context.WithoutCancel(ctx), cl)
	if err != nil {
		return nil, nil, &Error{
			Op:      cl.op,
			Host:    c.host,
			Class:   Permanent,
			Sent:    NotSent,
			Message: err.Error(),
			Err:     err,
		}
	}

	req.GetBody, req.Close = nil, true
	var wire bytes.Buffer
	if err := req.Write(&wire); err != nil {
		return nil, nil, c.completeError(cl, &Error{Class: Permanent, Sent: NotSent, Message: err.Error(), Err: err})
	}

	return req, wire.Bytes(), nil
}

// connect opens the connection of an effect; its error says that nothing was sent.
func (c *Client) connect(ctx context.Context, cl *call) (*tls.Conn, *net.TCPConn, error) {
	done := c.observe(ctx, cl)
	conn, tcp, err := c.dialEffect(ctx)
	if err == nil {
		return conn, tcp, nil
	}

	e := c.transportError(cl, err)
	e.Sent = NotSent
	if ctx.Err() == nil {
		c.reachability.noteCall(e)
	}

	done(e)
	return nil, nil, e
}

// dialEffect opens the connection of an effect. The kernel gives its bytes up when they stay unacknowledged for
// TravelTime, and throws them away when the connection is closed, even by this process's death: so a call cannot arrive
// long after its owner gave it up.
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

// readHead reads a response up to its body, which has a limit of its own.
func readHead(conn io.Reader, req *http.Request) (*http.Response, error) {
	head := &io.LimitedReader{R: conn, N: maxHead}
	resp, err := readFinalResponse(bufio.NewReader(head), req)
	if err != nil && head.N <= 0 {
		err = fmt.Errorf("its headers are larger than %d KiB", maxHead>>10)
	}
	head.N = math.MaxInt64
	return resp, err
}

// readFinalResponse skips 1xx responses, which have no body.
func readFinalResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	const most = 8
	for range most {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("only interim answers (1xx) came")
}

// notSentError is the error of an effect that its fence, or the end of ctx, kept from being sent.
func (c *Client) notSentError(cl *call, err error) *Error {
	e := &Error{Class: Transient, Sent: NotSent, Message: c.redact(cl, err.Error()), Err: c.redactError(cl, err)}
	return c.completeError(cl, e)
}

// noResponse is the error of an effect that was sent, at least in part, and whose response did not come.
func (c *Client) noResponse(ctx context.Context, cl *call, err error) *Error {
	ended := ctx.Err() != nil
	if ended {
		err = errors.Join(context.Cause(ctx), err)
	}

	e := &Error{Class: Transient, Sent: Unknown, Message: c.redact(cl, err.Error()), Err: c.redactError(cl, err)}
	e = c.completeError(cl, e)
	if !ended && cl.guest == "" {
		c.reachability.noteCall(e)
	}
	return e
}
