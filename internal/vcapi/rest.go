package vcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
)

// newRESTCall builds a call under /api/vcenter/vm/{vm}.
func newRESTCall(op, method, vm, rest string, in any) (*call, error) {
	cl := &call{op: op, method: method, path: "/api/vcenter/vm/" + url.PathEscape(vm) + rest}
	if in == nil {
		return cl, nil
	}
	var err error
	cl.body, err = encode(in)
	return cl, err
}

// callREST makes a read over REST. The response may be bare, as under /api, or {"value":…}, as under /rest.
func (c *Client) callREST(ctx context.Context, out any, build func(*session) (*call, error)) error {
	var raw json.RawMessage
	var last *call
	err := c.read(ctx, c.restLogin, func(s *session) (*call, error) {
		var err error
		last, err = build(s)
		return last, err
	}, &raw)
	if err != nil {
		return err
	}
	return c.decode(last, &response{status: http.StatusOK, body: unwrap(raw)}, out)
}

// unwrap returns the value in {"value":…}. It returns an object with other members unchanged.
func unwrap(raw []byte) []byte {
	var members map[string]json.RawMessage
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) || json.Unmarshal(raw, &members) != nil ||
		len(members) != 1 ||
		members["value"] == nil {
		return raw
	}
	return members["value"]
}

// operationMissing reports whether an error says that vCenter does not offer the operation, rather than that its object
// does not exist: OPERATION_NOT_FOUND, a 404 with a page or an empty body, or a NOT_FOUND that names nothing, or only
// the URL. A NOT_FOUND of a VM or a pid names that.
//
// Source: bodies of vCenter 6.5 to 9.1 as people report them: com.vmware.vapi.rest.httpNotFound under /api,
// operationsForUrlNotFound under /rest.
func operationMissing(err error) bool {
	var e *Error
	switch {
	case !errors.As(err, &e):
		return false
	case e.Name == "OPERATION_NOT_FOUND":
		return true
	case e.Status != http.StatusNotFound || e.Name != "" && e.Name != "NOT_FOUND":
		return false
	}

	for _, raw := range e.Messages {
		var message struct {
			ID string `json:"id"`
		}
		_ = json.Unmarshal(raw, &message) // one that cannot be read names something else
		if message.ID != "com.vmware.vapi.rest.httpNotFound" &&
			message.ID != "com.vmware.vapi.rest.operationsForUrlNotFound" {
			return false
		}
	}

	return len(e.Data) == 0
}

// oldSession is the path of sessions on a vCenter without /api/session.
const oldSession = "/rest/com/vmware/cis/session"

// restAlive reports whether a token is a live REST session. Any response but 401 counts as alive: a server that has
// neither form does not refuse the token either.
//
// Source: Cis Session get, of /api and of /rest.
func (c *Client) restAlive(ctx context.Context, token string) (bool, error) {
	cl := &call{op: "GET session", method: http.MethodGet, path: "/api/session", token: token}
	_, err := c.roundTrip(ctx, c.reads, cl)
	if operationMissing(err) {
		cl.method, cl.path = http.MethodPost, oldSession+"?~action=get"
		_, err = c.roundTrip(ctx, c.reads, cl)
	}

	var e *Error
	switch {
	case err == nil:
		return true, nil
	case !errors.As(err, &e), e.Status == 0, e.Class == Transient:
		return false, err
	}

	return e.Status != http.StatusUnauthorized, nil
}
