package vcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// moRef names a managed object on the wire.
type moRef struct {
	TypeName string `json:"_typeName,omitempty"`
	Type     string `json:"type"`
	Value    string `json:"value"`
}

func refTo(kind, id string) moRef {
	return moRef{TypeName: "ManagedObjectReference", Type: kind, Value: id}
}

// objectFunc finds the managed object to call in what the vCenter said of itself; nil where it has none.
type objectFunc func(*service) *moRef

func objectRef(kind, id string) objectFunc {
	ref := refTo(kind, id)
	return func(*service) *moRef { return &ref }
}

var (
	sessionManager    objectFunc = func(v *service) *moRef { return v.content.SessionManager }
	propertyCollector objectFunc = func(v *service) *moRef { return v.content.PropertyCollector }
	viewManager       objectFunc = func(v *service) *moRef { return v.content.ViewManager }
	taskManager       objectFunc = func(v *service) *moRef { return v.content.TaskManager }
	customizer        objectFunc = func(v *service) *moRef { return v.content.GuestCustomizationManager }
	guestOperations   objectFunc = func(v *service) *moRef { return v.content.GuestOperationsManager }
	specManager       objectFunc = func(v *service) *moRef { return v.content.CustomizationSpecManager }
	authorizer        objectFunc = func(v *service) *moRef { return v.content.AuthorizationManager }
	serviceInstance              = objectRef("ServiceInstance", "ServiceInstance")
)

var noParams = struct{}{} // the parameters of a method that has none

// vimPath is POST /sdk/vim25/{release}/{MoType}/{moId}/{Method}, or GET …/{property}. Brackets, which some moIds have
// (session[…]), are not escaped.
func vimPath(release string, ref moRef, member string) string {
	return "/sdk/vim25/" + release + "/" + pathEscape(ref.Type) + "/" + pathEscape(ref.Value) + "/" + member
}

func pathEscape(segment string) string {
	return strings.NewReplacer("%5B", "[", "%5D", "]").Replace(url.PathEscape(segment))
}

// newVIMCall builds a call on obj: of a method where in is not nil, else the read of a property. kind is the type in
// the path; where it is "", the type of obj is used.
func (c *Client) newVIMCall(v *service, obj objectFunc, kind, member string, in any) (*call, error) {
	ref := obj(v)
	if ref == nil || ref.Value == "" {
		e := &Error{
			Name:  "NotSupported",
			Class: Permanent,
			Sent:  NotSent,
			Message: fmt.Sprintf("this vCenter (API %s) has no %s: its ServiceContent names none",
				v.content.About.APIVersion, kind),
		}
		return nil, e.withCall(member, "", c.host)
	}

	path := *ref
	if kind != "" {
		path.Type = kind
	}

	cl := &call{op: member, method: http.MethodGet, path: vimPath(v.release, path, member)}
	if in == nil {
		cl.op = "GET " + path.Type + "/" + member
		return cl, nil
	}

	cl.method = http.MethodPost
	if kind == "PropertyCollector" {
		cl.checkBody = sessionLostIn
	}

	var err error
	cl.body, err = encode(in)
	return cl, err
}

// callVIM makes a read in VI JSON: the method member of obj with the parameters in, or, where in is nil, the property
// member.
func (c *Client) callVIM(ctx context.Context, obj objectFunc, kind, member string, in, out any) error {
	return c.read(
		ctx,
		c.vimLogin,
		func(s *session) (*call, error) { return c.newVIMCall(s.service, obj, kind, member, in) },
		out,
	)
}

// callVIMIn is callVIM within one session, which it does not renew: for objects that exist only in their session.
func (c *Client) callVIMIn(ctx context.Context, s *session, obj objectFunc, kind, member string, in, out any) error {
	cl, err := c.newVIMCall(s.service, obj, kind, member, in)
	if err != nil {
		return err
	}

	cl.token = s.token
	resp, err := c.roundTrip(ctx, c.reads, cl)
	if err != nil {
		return err
	}
	return c.decode(cl, resp, out)
}

// encode writes JSON without escapes for HTML. A json.RawMessage inside v is compacted; as v itself it is returned
// unchanged.
func encode(v any) ([]byte, error) {
	if raw, ok := v.(json.RawMessage); ok {
		return raw, nil
	}

	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// Now is the time by vCenter's clock. It may be repeated.
//
// Source: VI JSON, ServiceInstance.CurrentTime.
func (c *Client) Now(ctx context.Context) (time.Time, error) {
	var raw json.RawMessage
	if err := c.callVIM(ctx, serviceInstance, "", "CurrentTime", noParams, &raw); err != nil {
		return time.Time{}, err
	}

	now := anyTime(raw)
	if now == nil {
		e := &Error{Status: http.StatusOK, Class: Permanent, Message: "the answer is not a time: " + oneLine(raw)}
		return time.Time{}, e.withCall("CurrentTime", "POST ServiceInstance/ServiceInstance/CurrentTime", c.host)
	}
	return *now, nil
}
