package vcsim

import (
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// session is one login. Its token travels in the header vmware-api-session-id; the UserSession's key is another value,
// as on a real vCenter.
type session struct {
	token    string
	key      string // of vcsim's UserSession, "" for a session of REST alone
	user     string
	rest     bool // whether it serves REST
	created  time.Time
	accessed time.Time
}

// name is what a recorded call shows of its session: never the token where there is a key.
func (s *session) name() string {
	switch {
	case s == nil:
		return ""
	case s.key != "":
		return s.key
	}
	return s.token
}

// sessions are the living logins by token.
type sessions struct {
	mu  sync.Mutex
	all map[string]*session
}

func newSessions() *sessions { return &sessions{all: make(map[string]*session)} }

func (s *sessions) add(x session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[x.token] = &x
}

func (s *sessions) drop(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, token)
}

func (s *sessions) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.all)
}

// find is a copy of the session with a token, touched; nil where there is none.
func (s *sessions) find(token string, now time.Time) *session {
	s.mu.Lock()
	defer s.mu.Unlock()

	x := s.all[token]
	if x == nil {
		return nil
	}

	found := *x
	x.accessed = now
	return &found
}

// session is the living session with a token, nil where there is none or vcsim has ended it.
func (v *VCenter) session(token string) *session {
	if token == "" {
		return nil
	}
	s := v.sessions.find(token, v.Now())
	if s == nil {
		return nil
	}

	if s.key != "" && !v.keyAlive(s.key, s.user) {
		v.sessions.drop(token)
		return nil
	}

	return s
}

func (v *VCenter) keyAlive(key, user string) bool {
	m := v.reg.SessionManager()
	res := m.SessionIsActive(v.newContext(), &types.SessionIsActive{This: m.Self, SessionID: key, UserName: user})
	body, ok := res.(*methods.SessionIsActiveBody)
	return ok && body.Res != nil && body.Res.Returnval
}

// oneSession reports whether one session serves VI JSON and REST alike [getting-started guide 8.0: from 8.0 Update 3
// on].
func (v *VCenter) oneSession() bool { return !v.api.before("8.0.3.0") }

// openSession keeps a session that vcsim has just opened and gives it a token.
func (v *VCenter) openSession(key, user string) string {
	token := randomHex(40)
	now := v.Now()
	v.sessions.add(session{token: token, key: key, user: user, rest: v.oneSession(), created: now, accessed: now})
	return token
}

// restLogin opens a session for REST, and where one session serves both, for VI JSON too. It is "" where the login is
// refused.
func (v *VCenter) restLogin(user, password string) string {
	if user != v.opts.Username || password != v.opts.Password {
		return ""
	}

	if v.oneSession() {
		m := v.reg.SessionManager()
		reply := v.call("", "Login", &types.Login{This: m.Self, UserName: user, Password: password})
		if reply.key == "" {
			return ""
		}
		return v.openSession(reply.key, user)
	}

	token := randomHex(32)
	now := v.Now()
	v.sessions.add(session{token: token, user: user, rest: true, created: now, accessed: now})
	return token
}

// restLogout ends a session everywhere.
func (v *VCenter) restLogout(s *session) {
	v.sessions.drop(s.token)
	if s.key != "" {
		m := v.reg.SessionManager()
		ctx := v.newContext()
		ctx.Session = v.svc.Context.Session
		m.TerminateSession(ctx, &types.TerminateSession{This: m.Self, SessionId: []string{s.key}})
		v.changes.note(m.Self)
	}
}
