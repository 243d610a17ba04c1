package vcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
)

// restCall builds a call under /api/vcenter/vm/{vm}.
func restCall(op, method, vm, rest string, in any) (*call, error) {
	cl := &call{op: op, method: method, path: "/api/vcenter/vm/" + url.PathEscape(vm) + rest}
	if in == nil {
		return cl, nil
	}
	var err error
	cl.body, err = encode(in)
	return cl, err
}

// rest asks REST. The answer may come bare, as /api sends it, or as {"value":…}, as /rest did.
func (c *Client) rest(ctx context.Context, out any, build func() (*call, error)) error {
	var raw json.RawMessage
	var last *call
	err := c.ask(ctx, c.restLogin, func(*session) (*call, error) {
		var err error
		last, err = build()
		return last, err
	}, &raw)
	if err != nil {
		return err
	}
	return c.decode(last, &answer{status: http.StatusOK, body: unwrap(raw)}, out)
}

// unwrap takes the value out of {"value":…}, and leaves what has other members as it is.
func unwrap(raw []byte) []byte {
	var members map[string]json.RawMessage
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) || json.Unmarshal(raw, &members) != nil || len(members) != 1 || members["value"] == nil {
		return raw
	}
	return members["value"]
}

// restAlive tells whether a token is a live REST session.
//
// Source: Cis Session get. Any answer but 401 counts as alive: a server that does not have the call does not refuse the token either.
func (c *Client) restAlive(ctx context.Context, token string) (bool, error) {
	cl := &call{op: "GET session", method: http.MethodGet, path: "/api/session", token: token}
	_, err := c.exchange(ctx, c.reads, cl)
	var e *Error
	switch {
	case err == nil:
		return true, nil
	case !errors.As(err, &e), e.Status == 0, e.Class == Transient:
		return false, err
	}
	return e.Status != http.StatusUnauthorized, nil
}
