package vcapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// The probes find out how a vCenter answers where public pages do not say. Only guestflow doctor --try uses them.

// ProbeUnknownSession returns the error with which vCenter answers a REST call in a session that it does not know, as
// one that has expired is. It changes nothing and may be repeated. The error is that there was no response, or a
// success.
func (c *Client) ProbeUnknownSession(ctx context.Context) (*Error, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	cl := &call{op: "GET session", method: http.MethodGet, path: "/api/session", token: hex.EncodeToString(id[:])}
	_, err := c.roundTrip(ctx, c.reads, cl)

	var e *Error
	switch {
	case err == nil:
		return nil, errors.New("GET /api/session takes a session that was never opened")
	case errors.As(err, &e) && e.Status != 0:
		return e, nil
	}

	return nil, err
}

// idleWait is how long ProbeIdlePoll lets vCenter wait for a change.
const idleWait = time.Second

// ProbeIdlePoll returns the HTTP status and the body with which vCenter answers a long poll in which nothing has
// changed. It may be repeated: it removes the property collector and the filter that it creates.
//
// Source: VI JSON, PropertyCollector.WaitForUpdatesEx.
func (c *Client) ProbeIdlePoll(ctx context.Context, vm string) (status int, body string, err error) {
	s, err := c.vimLogin.get(ctx)
	if err != nil {
		return 0, "", err
	}

	collector, err := c.cleaner.create(
		ctx, s, propertyCollector, "PropertyCollector", "CreatePropertyCollector", noParams, nil,
	)
	if err != nil {
		return 0, "", err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		c.cleaner.remove(ctx, collector)
	}()

	of := objectRef(collector.ref.Type, collector.ref.Value)
	filter, err := c.cleaner.create(ctx, s, of, "PropertyCollector", "CreateFilter", map[string]any{
		"partialUpdates": false,
		"spec": filterSpec{
			TypeName:  "PropertyFilterSpec",
			PropSet:   []propertySpec{propertiesOf(virtualMachine, []string{"name"})},
			ObjectSet: []objectSpec{{TypeName: "ObjectSpec", Obj: refTo(virtualMachine, vm)}},
		},
	}, nil)
	if err != nil {
		return 0, "", err
	}

	filter.markRemoved() // vCenter removes it with its collector

	resp, err := c.pollUntilIdle(ctx, s, of)
	switch {
	case err != nil:
		return 0, "", err
	case resp == nil:
		return 0, "", fmt.Errorf("the name of %s changes all the time", vm)
	}

	return resp.status, oneLine(resp.body), nil
}

// pollUntilIdle returns the first response of a collector without an update; nil where each of several has one.
func (c *Client) pollUntilIdle(ctx context.Context, s *session, collector objectFunc) (*response, error) {
	const most = 5
	in := map[string]any{"options": map[string]any{
		"_typeName": "WaitOptions", "maxWaitSeconds": int(idleWait / time.Second),
	}}
	for range most {
		cl, err := c.newVIMCall(s.service, collector, "PropertyCollector", "WaitForUpdatesEx", in)
		if err != nil {
			return nil, err
		}

		cl.token = s.token
		resp, err := c.roundTrip(ctx, c.reads, cl)
		if err != nil {
			return nil, err
		}

		var set updateSet
		if err := c.decode(cl, resp, &set); err != nil {
			return nil, err
		}
		if len(set.FilterSet) == 0 {
			return resp, nil
		}

		in["version"] = set.Version
	}

	return nil, nil
}
