package vcsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
)

const vijsonPrefix = "/sdk/vim25/"

// parseVIJSON reads POST {release}/{type}/{moId}/{method} and GET {release}/{type}/{moId}/{property}.
func (v *VCenter) parseVIJSON(r *http.Request, body []byte) parsedCall {
	token := r.Header.Get(sessionHeader)
	x := parsedCall{call: Call{Op: r.Method + " " + r.URL.Path, Session: v.session(token).name()}, fault: jsonFault}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, vijsonPrefix), "/")
	if len(parts) != 4 || !v.knows(parts[0]) {
		x.serve = func() response { return pageResponse(http.StatusNotFound) }
		return x
	}

	this := types.ManagedObjectReference{Type: parts[1], Value: parts[2]}
	name := parts[3]
	switch r.Method {
	case http.MethodGet:
		x.call.Op = fmt.Sprintf("GET %s/%s", this.Type, name)
		x.call.VM = v.vmOf(this, nil)
		x.serve = func() response { return v.property(v.session(token), this, name) }
	case http.MethodPost:
		x.call.Op = name
		req, err := v.decode(this, name, body)
		if err == nil {
			x.call.VM = v.vmOf(this, req)
		}
		// The session that lives when the call lands.
		x.serve = func() response { return v.method(v.session(token), this, name, req, err) }
	default:
		x.serve = func() response { return pageResponse(http.StatusMethodNotAllowed) }
	}

	return x
}

// decode makes vcsim's request of a JSON body. The error is a fault in disguise: see method.
func (v *VCenter) decode(this types.ManagedObjectReference, method string, body []byte) (any, error) {
	t, ok := types.TypeFunc()(method)
	if !ok || t.Kind() != reflect.Struct {
		return nil, errNoMethod
	}

	field, ok := t.FieldByName("This")
	if !ok || field.Type != reflect.TypeFor[types.ManagedObjectReference]() {
		return nil, errNoMethod
	}

	req := reflect.New(t)
	if len(bytes.TrimSpace(body)) > 0 {
		if err := types.NewJSONDecoder(bytes.NewReader(body)).Decode(req.Interface()); err != nil {
			return nil, fmt.Errorf("decode %s: %w", method, err)
		}
	}

	req.Elem().FieldByName("This").Set(reflect.ValueOf(this))
	return req.Interface(), nil
}

var errNoMethod = errors.New("no such method")

// openMethods need no session.
var openMethods = map[string]bool{
	"Login":                  true,
	"LoginByToken":           true,
	"CloneSession":           true,
	"RetrieveServiceContent": true,
}

// method carries out a method of VI JSON through vcsim's SOAP service.
func (v *VCenter) method(s *session, this types.ManagedObjectReference, name string, req any, bad error) response {
	key := ""
	if s != nil {
		key = s.key
	}
	if key == "" && !openMethods[name] && (name != "RetrievePropertiesEx" || !v.opts.MissingNotAuthenticated) {
		return jsonFault(notAuthenticated(this))
	}

	switch {
	case errors.Is(bad, errNoMethod):
		return jsonFault(&types.MethodNotFound{Receiver: this, Method: name})
	case bad != nil && this.Type == guestCustomizationManagerRef.Type:
		return jsonFault(&types.InvalidArgument{InvalidProperty: "spec"})
	case bad != nil:
		return jsonFault(new(types.InvalidRequest))
	}

	if ask, ok := req.(*types.ReconfigVM_Task); ok && v.changedSince(this, ask.Spec.ChangeVersion) {
		return jsonFault(new(types.ConcurrentAccess))
	}

	reply := v.call(key, name, req)
	if reply.fault != nil {
		return jsonSOAPFault(reply.fault)
	}

	a := valueResponse(reply.val)
	if reply.key != "" {
		a.header = http.Header{http.CanonicalHeaderKey(sessionHeader): {v.openSession(reply.key, loginName(reply.val))}}
	}
	if name == "Logout" {
		v.sessions.drop(s.token)
	}

	return a
}

// changedSince reports whether a VM's configuration is no longer of a version, as
// VirtualMachineConfigSpec.changeVersion names it; vcsim does not look at that.
func (v *VCenter) changedSince(vm types.ManagedObjectReference, version string) bool {
	now := version
	ctx := v.newContext()
	if obj, ok := ctx.Map.Get(vm).(*simulator.VirtualMachine); ok && version != "" {
		ctx.WithLock(obj, func() { now = obj.Config.ChangeVersion })
	}
	return now != version
}

func loginName(val any) string {
	if u, ok := val.(types.UserSession); ok {
		return u.UserName
	}
	return ""
}

// property reads one property; ServiceInstance's content can be read without a session.
func (v *VCenter) property(s *session, this types.ManagedObjectReference, name string) response {
	if this == vim25.ServiceInstance && name == "content" {
		return valueResponse(v.content)
	}
	if s == nil || s.key == "" {
		return jsonFault(notAuthenticated(this))
	}

	reply := v.call(s.key, "RetrievePropertiesEx", &types.RetrievePropertiesEx{
		This: v.content.PropertyCollector,
		SpecSet: []types.PropertyFilterSpec{{
			PropSet:   []types.PropertySpec{{Type: this.Type, PathSet: []string{name}}},
			ObjectSet: []types.ObjectSpec{{Obj: this}},
		}},
	})

	if reply.fault != nil {
		return jsonSOAPFault(reply.fault)
	}

	res, _ := reply.val.(types.RetrieveResult)
	if len(res.Objects) == 0 {
		return jsonFault(&types.ManagedObjectNotFound{Obj: this})
	}
	if missing := res.Objects[0].MissingSet; len(missing) > 0 {
		return jsonFault(missing[0].Fault.Fault)
	}

	for _, p := range res.Objects[0].PropSet {
		return valueResponse(unwrapArray(p.Val))
	}

	return response{status: http.StatusNoContent} // unset
}

// unwrapArray takes the slice out of a value such as ArrayOfManagedObjectReference: a property is a plain array.
func unwrapArray(val any) any {
	t := reflect.TypeOf(val)
	if t.Kind() == reflect.Struct && strings.HasPrefix(t.Name(), "ArrayOf") && t.NumField() == 1 {
		return reflect.ValueOf(val).Field(0).Interface()
	}
	return val
}

// valueResponse is a method's result or a property: bare where it is a primitive or an array, 204 where there is none.
func valueResponse(val any) response {
	if val == nil {
		return response{status: http.StatusNoContent}
	}
	return response{status: http.StatusOK, contentType: "application/json", body: encodeValue(reflect.ValueOf(val))}
}

func encodeValue(val reflect.Value) []byte {
	for val.Kind() == reflect.Pointer || val.Kind() == reflect.Interface {
		val = val.Elem()
	}

	if val.Kind() == reflect.Slice && val.Type().Elem().Kind() != reflect.Uint8 {
		var out bytes.Buffer
		out.WriteByte('[')
		for i := range val.Len() {
			if i > 0 {
				out.WriteByte(',')
			}
			out.Write(encodeValue(val.Index(i)))
		}

		out.WriteByte(']')
		return out.Bytes()
	}

	if _, isTime := val.Interface().(time.Time); val.Kind() == reflect.Struct && !isTime {
		var out bytes.Buffer
		if err := types.NewJSONEncoder(&out).Encode(val.Interface()); err != nil {
			panic(err) // govmomi's own types
		}
		return bytes.TrimSpace(out.Bytes())
	}

	out, err := json.Marshal(val.Interface())
	if err != nil {
		panic(err) // a primitive
	}

	return out
}
