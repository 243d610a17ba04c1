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

// act sends a call that changes the guest: once, on a connection of its own that is up before fence is asked. It never logs in and sends again.
func (c *Client) act(ctx context.Context, fence Fence, l *login, build func(*session) (*call, error)) (*answer, *call, error) {
	s, err := l.get(ctx)
	if err != nil {
		return nil, nil, unsent(err)
	}
	cl, err := build(s)
	if err != nil {
		return nil, nil, unsent(err)
	}
	cl.token = s.token
	c.known.lately(cl.secrets...) // the task's own error, much later, may still tell them
	ans, err := c.sendOnce(ctx, fence, cl)
	if err != nil {
		c.settle(ctx, cl, s, err)
	}
	return ans, cl, err
}

// unsent is what an error before the act means for the act: it was not sent.
func unsent(err error) error {
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
func (c *Client) sendOnce(ctx context.Context, fence Fence, cl *call) (ans *answer, err error) {
	req, err := c.request(context.WithoutCancel(ctx), cl) // the connection's deadlines follow ctx, see below
	if err != nil {
		return nil, &Error{Op: cl.op, Host: c.host, Class: Permanent, Sent: NotSent, Message: err.Error(), Err: err}
	}
	req.GetBody, req.Close = nil, true
	var wire bytes.Buffer
	if err := req.Write(&wire); err != nil {
		return nil, c.of(cl, &Error{Class: Permanent, Sent: NotSent, Message: err.Error(), Err: err})
	}
	done := c.calling(ctx, cl)
	conn, tcp, err := c.dialAct(ctx)
	if err != nil {
		e := c.unanswered(cl, err)
		e.Sent = NotSent
		if ctx.Err() == nil {
			c.presence.called(e)
		}
		done(e)
		return nil, e
	}
	defer func() { _ = conn.Close() }()
	if fence != nil {
		if err := fence(ctx); err != nil {
			return nil, c.held(cl, err)
		}
	}
	done = c.calling(ctx, cl) // what came before was the way to it
	began := time.Now()
	_ = conn.SetWriteDeadline(began.Add(c.cfg.TravelTime))
	_ = conn.SetReadDeadline(began.Add(c.answerWait))
	release := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer release()
	if ctx.Err() != nil {
		return nil, c.held(cl, context.Cause(ctx))
	}
	defer func() { done(err) }()
	if _, err := conn.Write(wire.Bytes()); err != nil {
		return nil, c.lost(ctx, cl, fmt.Errorf("the request could not be sent whole: %w", err))
	}
	head := &io.LimitedReader{R: conn, N: maxHead}
	resp, err := readResponse(bufio.NewReader(head), req)
	if err != nil && head.N <= 0 {
		err = fmt.Errorf("its head is larger than %d KiB", maxHead>>10)
	}
	head.N = math.MaxInt64 // the body has a limit of its own
	if err != nil {
		return nil, c.lost(ctx, cl, fmt.Errorf("the request was sent, its answer did not come: %w", err))
	}
	defer func() { _ = resp.Body.Close() }()
	c.presence.called(nil)
	if ans, err = c.answered(cl, resp); err == nil {
		_ = tcp.SetLinger(-1) // all is said: a farewell in order
	}
	return ans, err
}

// dialAct opens the connection of one act. Its bytes are given up by the kernel when they stay unacknowledged for TravelTime, and thrown away when
// the connection is closed, even by this process's death: a call does not arrive long after its owner gave it up.
func (c *Client) dialAct(ctx context.Context) (*tls.Conn, *net.TCPConn, error) {
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

// readResponse passes over 1xx answers, which have no body.
func readResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	const most = 8
	for range most {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errors.New("only interim answers")
}

// held is the error of an act that its fence, or the end of ctx, kept from being sent.
func (c *Client) held(cl *call, err error) *Error {
	e := &Error{Class: Transient, Sent: NotSent, Message: c.hide(cl, err.Error()), Err: c.clean(cl, err)}
	return c.of(cl, e)
}

// lost is the error of an act whose answer did not come.
func (c *Client) lost(ctx context.Context, cl *call, err error) *Error {
	ended := ctx.Err() != nil
	if ended {
		err = errors.Join(context.Cause(ctx), err)
	}
	e := c.of(cl, &Error{Class: Transient, Sent: Unknown, Message: c.hide(cl, err.Error()), Err: c.clean(cl, err)})
	if !ended && cl.guest == "" {
		c.presence.called(e)
	}
	return e
}
