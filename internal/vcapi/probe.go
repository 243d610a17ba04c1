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

// What follows asks a vCenter how it speaks, where public pages do not say: for guestflow doctor --try. Nothing else
// needs it.

// StrangeSession shows how vCenter answers a REST call with a session that it does not know, as one that has expired
// is. An ask: nothing is changed. The error is that there was no answer, or a success.
func (c *Client) StrangeSession(ctx context.Context) (*Error, error) {
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

// idleWait is how long IdleWait lets vCenter wait for a change.
const idleWait = time.Second

// IdleWait shows what vCenter answers to a long poll in which nothing has changed: the HTTP status and the body. An
// ask; what it makes on vCenter, a property collector of its own and a filter, it takes down again.
//
// Source: VI JSON, PropertyCollector.WaitForUpdatesEx.
func (c *Client) IdleWait(ctx context.Context, vm string) (status int, body string, err error) {
	s, err := c.vimLogin.get(ctx)
	if err != nil {
		return 0, "", err
	}

	collector, err := c.cleaner.create(
		ctx,
		s,
		propertyCollector,
		"PropertyCollector",
		"CreatePropertyCollector",
		noParams,
		nil,
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
	filter, err := c.cleaner.create(
		ctx,
		s,
		of,
		"PropertyCollector",
		"CreateFilter",
		map[string]any{
			"partialUpdates": false,
			"spec": filterSpec{
				TypeName:  "PropertyFilterSpec",
				PropSet:   []propertySpec{propertiesOf(virtualMachine, []string{"name"})},
				ObjectSet: []objectSpec{{TypeName: "ObjectSpec", Obj: refTo(virtualMachine, vm)}},
			},
		},
		nil,
	)
	if err != nil {
		return 0, "", err
	}

	filter.markRemoved() // it goes with its collector
	const most = 5       // pages that tell of a change, before there is none
	in := map[string]any{
		"options": map[string]any{"_typeName": "WaitOptions", "maxWaitSeconds": int(idleWait / time.Second)},
	}
	for range most {
		cl, err := c.newVIMCall(s.service, of, "PropertyCollector", "WaitForUpdatesEx", in)
		if err != nil {
			return 0, "", err
		}

		cl.token = s.token
		resp, err := c.roundTrip(ctx, c.reads, cl)
		if err != nil {
			return 0, "", err
		}

		var set updateSet
		if err := c.decode(cl, resp, &set); err != nil {
			return 0, "", err
		}
		if len(set.FilterSet) == 0 {
			return resp.status, oneLine(resp.body), nil
		}

		in["version"] = set.Version
	}

	return 0, "", fmt.Errorf("the name of %s changes all the time", vm)
}
