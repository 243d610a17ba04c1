package vcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
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

// releases are those of the public VI JSON specification (9.1.1.0) that have VI JSON at all, which ships since 8.0 Update 1; the newest first.
var releases = []string{"9.1.1.0", "9.1.0.0", "9.0.0.0", "8.0.3.1", "8.0.3.0", "8.0.2.0", "8.0.1.0"}

const oldestRelease = "8.0.1.0"

// service is what a vCenter says of itself before any login: how to speak to it, and where its managers are.
type service struct {
	release    string // of the schema, in the path
	content    serviceContent
	processAPI atomic.Int32 // the form of guest processes that it offers, 0 while that is not known
}

// serviceContent is what is needed of vim.ServiceInstanceContent.
type serviceContent struct {
	About struct {
		Name         string `json:"name"`
		APIVersion   string `json:"apiVersion"`
		InstanceUUID string `json:"instanceUuid"`
		Build        string `json:"build"`
	} `json:"about"`
	SessionManager            *moRef `json:"sessionManager"`
	PropertyCollector         *moRef `json:"propertyCollector"`
	ViewManager               *moRef `json:"viewManager"`
	TaskManager               *moRef `json:"taskManager"`
	GuestCustomizationManager *moRef `json:"guestCustomizationManager"`
	GuestOperationsManager    *moRef `json:"guestOperationsManager"`
	CustomizationSpecManager  *moRef `json:"customizationSpecManager"`
	AuthorizationManager      *moRef `json:"authorizationManager"`
}

// objectFunc finds the managed object to call, by what the vCenter said of itself.
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

// vimPath is POST /sdk/vim25/{release}/{MoType}/{moId}/{Method}, or GET …/{property}. Brackets, which moIds such as session[…] have, go unescaped.
func vimPath(release string, ref moRef, member string) string {
	return "/sdk/vim25/" + release + "/" + pathEscape(ref.Type) + "/" + pathEscape(ref.Value) + "/" + member
}

func pathEscape(segment string) string {
	return strings.NewReplacer("%5B", "[", "%5D", "]").Replace(url.PathEscape(segment))
}

// newVIMCall builds a call on obj: a method where in is not nil, else the read of a property. kind, where not "", is the type in the path.
func (c *Client) newVIMCall(v *service, obj objectFunc, kind, member string, in any) (*call, error) {
	ref := obj(v)
	if ref == nil || ref.Value == "" {
		e := &Error{Name: "NotSupported", Class: Permanent, Sent: NotSent,
			Message: "this vCenter (API " + v.content.About.APIVersion + ") has no " + kind + ": its ServiceContent names none"}
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

// callVIM asks in VI JSON: the method member of obj with the parameters in, or, where in is nil, the property member.
func (c *Client) callVIM(ctx context.Context, obj objectFunc, kind, member string, in, out any) error {
	return c.read(ctx, c.vimLogin, func(s *session) (*call, error) { return c.newVIMCall(s.service, obj, kind, member, in) }, out)
}

// callVIMIn is vim within one session, which it does not renew: for what lives and dies with its session.
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

// encode writes JSON as it is, without escapes for HTML. A json.RawMessage in v is compacted: what must go word for word is put in by hand.
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

// discover finds out which release to speak, and where the managers are. It needs no login.
//
// hello (8.0.2 and newer) chooses the release; else the content is read as 8.0.1.0, the oldest VI JSON, and about.apiVersion tells.
// Source: Vcenter System hello; VI JSON, ServiceInstance.
func (c *Client) discover(ctx context.Context) (*service, error) {
	var chosen struct {
		Release string `json:"api_release"`
	}
	body, err := encode(map[string]any{"api_releases": releases})
	if err != nil {
		return nil, err
	}
	cl := &call{op: "hello", method: http.MethodPost, path: "/api/vcenter/system?action=hello", body: body}
	resp, err := c.roundTrip(ctx, c.reads, cl)
	switch e := (*Error)(nil); {
	case err == nil:
		_ = json.Unmarshal(unwrap(resp.body), &chosen) // not understood is as good as not known
	case errors.As(err, &e) && e.Status == 0:
		return nil, err // nobody answers: no use in asking the next thing
	}
	if slices.Contains(releases, chosen.Release) {
		content, err := c.serviceContent(ctx, chosen.Release)
		if err == nil {
			return &service{release: chosen.Release, content: *content}, nil
		}
	}
	content, err := c.serviceContent(ctx, oldestRelease)
	if err != nil {
		return nil, err
	}
	return &service{release: releaseFor(content.About.APIVersion), content: *content}, nil
}

// releaseFor is the newest release known here that is not newer than apiVersion.
func releaseFor(apiVersion string) string {
	for _, release := range releases {
		if atLeast(apiVersion, release) {
			return release
		}
	}
	return oldestRelease
}

// serviceContent reads ServiceInstance.content; where the property cannot be read, by the method that does the same.
func (c *Client) serviceContent(ctx context.Context, release string) (*serviceContent, error) {
	v := &service{release: release}
	var content serviceContent
	read := func(member string, in any) error {
		cl, err := c.newVIMCall(v, serviceInstance, "", member, in)
		if err != nil {
			return err
		}
		resp, err := c.roundTrip(ctx, c.reads, cl)
		if err != nil {
			return err
		}
		if err := c.decode(cl, resp, &content); err != nil {
			return err
		}
		if content.SessionManager == nil {
			return c.notUnderstood(cl, resp, errors.New("no sessionManager: is this a vCenter, 8.0 Update 1 or newer?"))
		}
		return nil
	}
	err := read("content", nil)
	if e := (*Error)(nil); err != nil && (!errors.As(err, &e) || e.Status != 0) {
		err = read("RetrieveServiceContent", noParams)
	}
	if err != nil {
		return nil, err
	}
	return &content, nil
}

// atLeast compares dotted versions by their numbers.
func atLeast(version, want string) bool {
	have, need := strings.Split(version, "."), strings.Split(want, ".")
	for i, n := range need {
		number := 0
		if i < len(have) {
			number, _ = strconv.Atoi(have[i])
		}
		if least, _ := strconv.Atoi(n); number != least {
			return number > least
		}
	}
	return true
}

// About tells what vCenter is, as it said when the present session began: an update of vCenter ends its sessions.
//
// Source: VI JSON, ServiceInstance.content.
func (c *Client) About(ctx context.Context) (About, error) {
	s, err := c.vimLogin.get(ctx)
	if err != nil {
		return About{}, err
	}
	about := s.service.content.About
	return About{Name: about.Name, APIVersion: about.APIVersion, InstanceUUID: about.InstanceUUID}, nil
}

// Now is vCenter's clock.
//
// Source: VI JSON, ServiceInstance.CurrentTime.
func (c *Client) Now(ctx context.Context) (time.Time, error) {
	var raw json.RawMessage
	if err := c.callVIM(ctx, serviceInstance, "", "CurrentTime", noParams, &raw); err != nil {
		return time.Time{}, err
	}
	now := anyTime(raw)
	if now == nil {
		e := &Error{Status: http.StatusOK, Class: Permanent, Message: "the answer is no time: " + oneLine(raw)}
		return time.Time{}, e.withCall("CurrentTime", "POST ServiceInstance/ServiceInstance/CurrentTime", c.host)
	}
	return *now, nil
}

// The values of properties are of any type, so they may come bare or as {"_typeName":"int","_value":5}: the any… functions take both, and give the
// zero value for what is neither, because one odd property may not hide all others.

func anyValue(raw json.RawMessage) json.RawMessage {
	var boxed struct {
		Value json.RawMessage `json:"_value"`
	}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) && json.Unmarshal(raw, &boxed) == nil && boxed.Value != nil {
		return boxed.Value
	}
	return raw
}

func anyString(raw json.RawMessage) string { return textOf(anyValue(raw)) }

func anyBool(raw json.RawMessage) *bool {
	var b *bool
	if json.Unmarshal(anyValue(raw), &b) != nil {
		return nil
	}
	return b
}

// anyTime reads RFC 3339; a time without a zone is taken as UTC.
func anyTime(raw json.RawMessage) *time.Time {
	text := anyString(raw)
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, text); err == nil {
			t = t.UTC()
			return &t
		}
	}
	return nil
}

// wireTime is an optional time inside a struct, which anyTime reads.
type wireTime struct{ at *time.Time }

func (t *wireTime) UnmarshalJSON(raw []byte) error {
	t.at = anyTime(raw)
	return nil
}

// forEachElement calls fn for each element of an array, bare or boxed (ArrayOfX).
func forEachElement(raw json.RawMessage, fn func(json.RawMessage)) {
	var elements []json.RawMessage
	if json.Unmarshal(anyValue(raw), &elements) != nil {
		return
	}
	for _, element := range elements {
		fn(element)
	}
}
