package vcapi

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
)

const (
	opLogin     = "Login"
	opRESTLogin = "POST session"
)

// loginVIM opens a VI JSON session. The token is a header of the response; UserSession.key in its body is a name, not
// the token.
//
// Source: VI JSON getting started, SessionManager.Login.
func (c *Client) loginVIM(ctx context.Context, password string) (s *session, err error) {
	defer func() { c.reportLogin(err) }()
	v, err := c.discover(ctx)
	if err != nil {
		return nil, err
	}

	cl, err := c.newVIMCall(v, sessionManager, "SessionManager", opLogin, struct {
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

	token := resp.header.Get(sessionHeader)
	if token == "" {
		return nil, c.notUnderstood(
			cl, resp, errors.New("the login succeeded, but its answer lacks the header "+sessionHeader),
		)
	}

	c.secrets.addToken(token)
	s = &session{token: token, service: v}
	if s.logoutCall, err = c.newVIMCall(v, sessionManager, "SessionManager", "Logout", noParams); err != nil {
		return nil, err
	}

	s.logoutCall.token = token

	var user struct {
		Key      string `json:"key"`
		UserName string `json:"userName"`
	}

	if err := c.decode(cl, resp, &user); err != nil {
		c.cleaner.logoutLater(s) // it exists all the same
		return nil, err
	}

	s.name = Session{Key: user.Key, UserName: cmp.Or(user.UserName, c.cfg.Username)}
	c.resetFindings(v)
	return s, nil
}

// resetFindings drops what was found out about the vCenter before the login: it may have been updated, restored, or
// restarted with more services since.
func (c *Client) resetFindings(v *service) {
	c.unsupportedProps.clear()
	about := v.content.About
	if product := about.InstanceUUID + " " + about.APIVersion + " " + about.Build; product != c.product {
		c.product = product
		c.separateSessions.Store(false)
	}
}

// oneSession is the first release in which a VI JSON session may be used on REST.
//
// Source: getting started, Unified Management and Automation Session.
const oneSession = "8.0.3.0"

// loginREST finds a session for REST: that of VI JSON, where vCenter accepts it, else one of its own.
func (c *Client) loginREST(ctx context.Context, password string) (*session, error) {
	v, shared, err := c.sharedSession(ctx)
	if err != nil || shared {
		return v, err
	}
	return c.openREST(ctx, password, v)
}

// sharedSession finds out whether REST accepts the session of VI JSON. It returns that session in any case.
func (c *Client) sharedSession(ctx context.Context) (v *session, shared bool, err error) {
	for renewed := false; ; renewed = true {
		if v, err = c.vimLogin.get(ctx); err != nil {
			return nil, false, err
		}
		if c.separateSessions.Load() || !atLeast(v.service.content.About.APIVersion, oneSession) {
			return v, false, nil
		}

		alive, err := c.restAlive(ctx, v.token)
		if err != nil {
			return nil, false, err
		}
		if alive || renewed { // a new session that REST refuses is not accepted there at all
			return v, alive, nil
		}

		c.vimLogin.forget(v, false) // it has expired, or is not accepted on REST: the next one shows which
	}
}

// openREST opens a session of REST's own, beside the VI JSON session v.
//
// Source: Cis Session create; where /api does not have it, that of /rest.
func (c *Client) openREST(ctx context.Context, password string, v *session) (s *session, err error) {
	defer func() { c.reportLogin(err) }()
	cl := &call{op: opRESTLogin, method: http.MethodPost, path: "/api/session", noRetry: true, header: http.Header{}}
	credentials := c.cfg.Username + ":" + password
	cl.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(credentials)))

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
		return nil, c.notUnderstood(cl, resp, errors.New("the login succeeded, but its answer is not a session ID"))
	}

	c.secrets.addToken(token)
	c.separateSessions.Store(atLeast(v.service.content.About.APIVersion, oneSession))
	return &session{
		token: token, name: v.name, service: v.service,
		logoutCall: &call{op: "DELETE session", method: http.MethodDelete, path: cl.path, token: token},
	}, nil
}

func (c *Client) reportLogin(err error) {
	if c.cfg.OnLogin != nil {
		c.cfg.OnLogin(err)
	}
}
