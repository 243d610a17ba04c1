package vcapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// After a refused login the same password is not tried again for refusedBackoff, then for twice as long, up to
// refusedBackoffMax: vCenter locks accounts (by default after five failures in three minutes), and replicas share one.
const (
	refusedBackoff    = time.Minute
	refusedBackoffMax = 5 * time.Minute
)

// A login whose response was lost may have left a session that nobody can end. The next one waits for lostBackoff, then
// for twice as long, up to lostBackoffMax. vCenter has room for some 2,000 sessions and keeps an idle one for half an
// hour or longer: so at most 60 of these exist at a time.
const (
	lostBackoff    = time.Second
	lostBackoffMax = 30 * time.Second
)

// session is one login, and what vCenter said of itself just before it.
type session struct {
	token      string // travels in the header vmware-api-session-id
	name       Session
	service    *service
	logoutCall *call

	unnamedObjects    atomic.Int32 // objects that may exist under names that are not known, see cleaner
	historyCollectors atomic.Int32 // collectors of task histories that were created in it
}

// login keeps the one session of a protocol for all goroutines. Who finds it dead forgets it. The first who needs a
// session then logs in, while the others wait.
type login struct {
	c    *Client
	open func(ctx context.Context, password string) (*session, error)
	slot chan struct{} // held by the one who logs in

	mu      sync.Mutex
	current *session
	closed  bool

	lastErr   error // of the last try, for those who waited for it
	lastErrAt time.Time

	lostBackoff time.Duration // after a login whose response was lost
	lostUntil   time.Time     // no login is tried before then

	refused         error // with which vCenter refused refusedPassword
	refusedPassword string
	refusedBackoff  time.Duration
	refusedUntil    time.Time // the same password is not tried before then
}

func newLogin(c *Client, open func(context.Context, string) (*session, error)) *login {
	return &login{c: c, open: open, slot: make(chan struct{}, 1)}
}

var errClosed = errors.New("the client is closed")

// get returns the session, and logs in where there is none. The login goes on where ctx ends before it is done: its
// session is for the next caller.
func (l *login) get(ctx context.Context) (*session, error) {
	if s, err := l.cached(time.Time{}); s != nil || err != nil {
		return s, err
	}

	arrived := time.Now()
	select {
	case l.slot <- struct{}{}:
	case <-ctx.Done():
		return nil, l.c.noSessionError(context.Cause(ctx), Transient)
	}

	type result struct {
		s   *session
		err error
	}

	done := make(chan result)
	go func() {
		defer func() { <-l.slot }()
		own, release := detach(ctx, l.c.cleaner.lifetime)
		defer release()
		s, err := l.logIn(own, arrived)
		select {
		case done <- result{s, err}:
		case <-ctx.Done():
		}
	}()

	select {
	case r := <-done:
		return r.s, r.err
	case <-ctx.Done():
		return nil, l.c.noSessionError(context.Cause(ctx), Transient)
	}
}

// logIn opens a session for a caller who arrived at the given time. The caller holds slot.
func (l *login) logIn(ctx context.Context, arrived time.Time) (*session, error) {
	if s, err := l.cached(arrived); s != nil || err != nil {
		return s, err
	}

	password, err := l.c.cfg.Password()
	if err != nil {
		return nil, l.c.noSessionError(fmt.Errorf("read the password: %w", err), SessionLost)
	}
	l.c.secrets.addPermanent(password, base64.StdEncoding.EncodeToString([]byte(l.c.cfg.Username+":"+password)))
	if err := l.blocked(password); err != nil {
		return nil, err
	}

	s, err := l.open(ctx, password)
	return s, l.record(s, err, password)
}

// noSessionError is the error of a call for which no login was even tried.
func (c *Client) noSessionError(why error, class Class) *Error {
	e := &Error{Class: class, Sent: NotSent, Message: c.secrets.redactor().text(why.Error()), Err: why}
	return e.withCall("Login", "", c.host)
}

// cached returns the current session, or the error of a login that failed after the caller arrived.
func (l *login) cached(arrived time.Time) (*session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	switch {
	case l.closed:
		return nil, l.c.noSessionError(errClosed, Permanent)
	case l.current != nil:
		return l.current, nil
	case !arrived.IsZero() && l.lastErrAt.After(arrived):
		return nil, l.lastErr
	}
	return nil, nil
}

// blocked is the error of an earlier login where it is too early for the next one; nil where it is not.
func (l *login) blocked(password string) error {
	l.mu.Lock()
	defer l.mu.Unlock()

	switch now := time.Now(); {
	case l.refused != nil && password == l.refusedPassword && now.Before(l.refusedUntil):
		return l.refused
	case now.Before(l.lostUntil):
		return l.lastErr
	}
	return nil
}

// refusal is the error with which vCenter refused the last login; nil where it accepted it.
func (l *login) refusal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}

// record stores the result of a login, and returns its error.
func (l *login) record(s *session, err error, password string) error {
	l.mu.Lock()
	defer l.mu.Unlock()

	if err == nil && l.closed {
		err = l.c.noSessionError(errClosed, Permanent)
		l.c.cleaner.logoutLater(s)
	}

	if err == nil {
		l.current, l.lastErr, l.refused = s, nil, nil
		l.refusedBackoff, l.lostBackoff = 0, 0
		return nil
	}

	l.lastErr, l.lastErrAt = err, time.Now()
	var e *Error
	if !errors.As(err, &e) {
		return err
	}

	if (e.Op == opLogin || e.Op == opRESTLogin) && mayHaveCreated(e) {
		l.lostBackoff = min(max(2*l.lostBackoff, lostBackoff), lostBackoffMax)
		l.lostUntil = time.Now().Add(l.lostBackoff)
	}

	if e.Class != SessionLost || e.Status == 0 {
		return err
	}

	l.refusedBackoff = min(2*l.refusedBackoff, refusedBackoffMax)
	if l.refusedBackoff == 0 || password != l.refusedPassword {
		l.refusedBackoff = refusedBackoff
	}

	l.refused, l.refusedPassword, l.refusedUntil = err, password, time.Now().Add(l.refusedBackoff)
	return err
}

// forget drops s, where it is still the current session. dead means that vCenter no longer knows it; else it is logged
// out.
func (l *login) forget(s *session, dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.current != s {
		return
	}
	l.current = nil
	if !dead {
		l.c.cleaner.logoutLater(s)
	}
}

// forgetSession drops a session of both protocols. dead is as for login.forget.
func (c *Client) forgetSession(s *session, dead bool) {
	c.vimLogin.forget(s, dead)
	c.restLogin.forget(s, true) // where the session is VI JSON's as well, that login ends it
}

// logout ends all sessions and keeps new ones from being opened.
func (c *Client) logout(ctx context.Context) {
	var left []*session
	for _, l := range []*login{c.restLogin, c.vimLogin} {
		select {
		case l.slot <- struct{}{}: // a login in flight is awaited
			defer func() { <-l.slot }()
		case <-ctx.Done():
		}

		l.mu.Lock()
		l.closed = true
		if l.current != nil {
			left = append(left, l.current)
		}

		l.current = nil
		l.mu.Unlock()
	}

	ended := make(map[*session]bool)
	for _, s := range append(left, c.cleaner.shutDown(ctx)...) {
		if ended[s] || s.logoutCall == nil {
			continue
		}
		ended[s] = true
		_, _ = c.roundTrip(ctx, c.reads, s.logoutCall) // best effort: a session that is not reached expires by itself
	}
}

// Session names the current VI JSON session, and logs in where there is none. It may be repeated.
func (c *Client) Session(ctx context.Context) (Session, error) {
	s, err := c.vimLogin.get(ctx)
	if err != nil {
		return Session{}, err
	}
	return s.name, nil
}

// SessionAlive reports whether vCenter still knows a session, this client's or another's. It may be repeated.
//
// Source: VI JSON, SessionManager.SessionIsActive. Privilege: Sessions.ValidateSession.
func (c *Client) SessionAlive(ctx context.Context, s Session) (bool, error) {
	var raw json.RawMessage
	err := c.callVIM(ctx, sessionManager, "SessionManager", "SessionIsActive", struct {
		SessionID string `json:"sessionID"`
		UserName  string `json:"userName"`
	}{s.Key, s.UserName}, &raw)
	if err != nil {
		return false, err
	}

	alive := anyBool(raw)
	return alive != nil && *alive, nil
}
