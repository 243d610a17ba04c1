package vcapi

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A login that was refused is not tried again with the same password for refusedPause, then for twice as long, up to refusedPauseMost: vCenter
// locks accounts (by default after five failures in three minutes), and several replicas share one.
const (
	refusedBackoff    = time.Minute
	refusedBackoffMax = 5 * time.Minute
)

// A login whose answer was lost may have left a session that nobody can name: the next is tried after lostPause, then after twice as long, up to
// lostPauseMost. vCenter has some 2,000 places for sessions, and keeps an idle one for half an hour or longer: at most 60 of these stay at a time.
const (
	lostBackoff    = time.Second
	lostBackoffMax = 30 * time.Second
)

const (
	opLogin     = "Login"
	opRESTLogin = "POST session"
)

// session is one login, and what vCenter said of itself just before it.
type session struct {
	token      string // travels in vmware-api-session-id
	name       Session
	service    *service
	logoutCall *call // what logs it out

	unnamedObjects    atomic.Int32 // things that may be there under names that nobody heard, see keeper
	historyCollectors atomic.Int32 // collectors of task histories that were made in it
}

// login keeps the one session of a protocol for all goroutines. Whoever finds it dead says so; the first who then needs it opens the next one,
// while the others wait.
type login struct {
	c    *Client
	open func(ctx context.Context, password string) (*session, error)
	slot chan struct{} // holds the one who logs in

	mu      sync.Mutex
	current *session
	closed  bool

	lastErr   error // of the last try, for those who waited for it
	lastErrAt time.Time

	lostBackoff time.Duration // after a login whose answer was lost …
	lostUntil   time.Time     // … none is tried before then

	refused         error // vCenter refused refusedPassword …
	refusedPassword string
	refusedBackoff  time.Duration
	refusedUntil    time.Time // … and is not asked again before then
}

func newLogin(c *Client, open func(context.Context, string) (*session, error)) *login {
	return &login{c: c, open: open, slot: make(chan struct{}, 1)}
}

var errClosed = errors.New("the client is closed")

// get gives the session, and opens one where there is none.
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
		case <-ctx.Done(): // the next one finds it
		}
	}()
	select {
	case r := <-done:
		return r.s, r.err
	case <-ctx.Done():
		return nil, l.c.noSessionError(context.Cause(ctx), Transient)
	}
}

// logIn opens a session, in the turn of one who arrived.
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

// noSessionError is the error where the login was not even tried.
func (c *Client) noSessionError(why error, class Class) *Error {
	e := &Error{Class: class, Sent: NotSent, Message: c.secrets.redactor().text(why.Error()), Err: why}
	return e.withCall("Login", "", c.host)
}

// cached gives the current session, or the error of a try that failed after the caller came.
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

// refusal is the error with which vCenter refused the last login, nil where it took it.
func (l *login) refusal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}

// record takes in what a login came to.
func (l *login) record(s *session, err error, password string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && l.closed {
		err = l.c.noSessionError(errClosed, Permanent)
		l.c.cleaner.logoutLater(s)
	}
	if err == nil {
		l.current, l.lastErr, l.refused, l.refusedBackoff, l.lostBackoff = s, nil, nil, 0, 0
		return nil
	}
	l.lastErr, l.lastErrAt = err, time.Now()
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	if (e.Op == opLogin || e.Op == opRESTLogin) && mayHaveCreated(e) { // there may be a session that nobody can end, until it has been idle for long enough
		l.lostBackoff = min(max(2*l.lostBackoff, lostBackoff), lostBackoffMax)
		l.lostUntil = time.Now().Add(l.lostBackoff)
	}
	if e.Class != SessionLost || e.Status == 0 {
		return err
	}
	if l.refusedBackoff = min(2*l.refusedBackoff, refusedBackoffMax); l.refusedBackoff == 0 || password != l.refusedPassword {
		l.refusedBackoff = refusedBackoff
	}
	l.refused, l.refusedPassword, l.refusedUntil = err, password, time.Now().Add(l.refusedBackoff)
	return err
}

// forget drops s, if it is still the current one. dead says that vCenter does not know it any more; else it is ended.
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

// forgetSession drops a session that is lost, for all that it served.
func (c *Client) forgetSession(s *session, dead bool) {
	c.vimLogin.forget(s, dead)
	c.restLogin.forget(s, true) // where it is VI JSON's as well, that login keeps it
}

// logout ends all sessions and keeps new ones from being opened.
func (c *Client) logout(ctx context.Context) {
	var left []*session
	for _, l := range []*login{c.restLogin, c.vimLogin} {
		select {
		case l.slot <- struct{}{}: // a login on its way is waited for
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
		_, _ = c.roundTrip(ctx, c.reads, s.logoutCall) // best effort: what is not reached expires by itself
	}
}

// loginVIM opens a VI JSON session.
//
// The token is a header of the answer; UserSession.key in its body is a name, not the token. Source: VI JSON getting started, SessionManager.Login.
func (c *Client) loginVIM(ctx context.Context, password string) (s *session, err error) {
	defer func() { c.reportLogin(err) }()
	v, err := c.discover(ctx)
	if err != nil {
		return nil, err
	}
	cl, err := c.newVIMCall(v, sessionManager, "SessionManager", "Login", struct {
		UserName string `json:"userName"`
		Password string `json:"password"`
	}{c.cfg.Username, password})
	if err != nil {
		return nil, err
	}
	cl.noRetry = true
	resp, err := c.roundTrip(ctx, c.reads, cl)
	if err != nil {
		return nil, err
	}
	var user struct {
		Key      string `json:"key"`
		UserName string `json:"userName"`
	}
	token := resp.header.Get(sessionHeader)
	if token == "" {
		return nil, c.notUnderstood(cl, resp, errors.New("the login was taken, but came without the header "+sessionHeader))
	}
	c.secrets.addToken(token)
	s = &session{token: token, service: v}
	if s.logoutCall, err = c.newVIMCall(v, sessionManager, "SessionManager", "Logout", noParams); err != nil {
		return nil, err
	}
	s.logoutCall.token = token
	if err := c.decode(cl, resp, &user); err != nil {
		c.cleaner.logoutLater(s) // it is there all the same
		return nil, err
	}
	// What was found out about the one before may be otherwise in the one that answers now: it was updated, restored, or restarted with more of itself.
	c.unsupportedProps.clear()
	about := v.content.About
	if product := about.InstanceUUID + " " + about.APIVersion + " " + about.Build; product != c.product {
		c.product = product
		c.separateSessions.Store(false)
	}
	s.name = Session{Key: user.Key, UserName: cmp.Or(user.UserName, c.cfg.Username)}
	return s, nil
}

// oneSession is the release from which on a VI JSON session may be used on REST. Source: getting started, Unified Management and Automation Session.
const oneSession = "8.0.3.0"

// loginREST finds a session for REST: VI JSON's, where vCenter is new enough and takes it; else one of its own.
//
// Source: Cis Session create; where /api does not have it, that of /rest.
func (c *Client) loginREST(ctx context.Context, password string) (s *session, err error) {
	var v *session
	for fresh := false; ; fresh = true {
		if v, err = c.vimLogin.get(ctx); err != nil {
			return nil, err
		}
		if c.separateSessions.Load() || !atLeast(v.service.content.About.APIVersion, oneSession) {
			break
		}
		alive, err := c.restAlive(ctx, v.token)
		if err != nil {
			return nil, err
		}
		if alive {
			return v, nil
		}
		if fresh {
			break // one just made is not taken here
		}
		c.vimLogin.forget(v, false) // it has expired, or is not taken here: the next tells which
	}
	defer func() { c.reportLogin(err) }()
	cl := &call{op: opRESTLogin, method: http.MethodPost, path: "/api/session", noRetry: true, header: http.Header{}}
	cl.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.cfg.Username+":"+password)))
	resp, err := c.roundTrip(ctx, c.reads, cl)
	if operationMissing(err) {
		cl.path = oldSession
		resp, err = c.roundTrip(ctx, c.reads, cl)
	}
	if err != nil {
		return nil, err
	}
	var token string
	if err := json.Unmarshal(unwrap(resp.body), &token); err != nil || token == "" {
		return nil, c.notUnderstood(cl, resp, errors.New("the login was taken, but its answer is no session id"))
	}
	c.secrets.addToken(token)
	c.separateSessions.Store(atLeast(v.service.content.About.APIVersion, oneSession))
	return &session{token: token, name: v.name, service: v.service,
		logoutCall: &call{op: "DELETE session", method: http.MethodDelete, path: cl.path, token: token}}, nil
}

func (c *Client) reportLogin(err error) {
	if c.cfg.OnLogin != nil {
		c.cfg.OnLogin(err)
	}
}

// Session names the current VI JSON session, and logs in where there is none.
func (c *Client) Session(ctx context.Context) (Session, error) {
	s, err := c.vimLogin.get(ctx)
	if err != nil {
		return Session{}, err
	}
	return s.name, nil
}

// SessionAlive reports whether vCenter still knows a session, this client's or another's. It needs the privilege Sessions.ValidateSession.
//
// Source: VI JSON, SessionManager.SessionIsActive.
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
