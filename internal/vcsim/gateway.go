package vcsim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// sessionHeader carries the token, in both directions.
const sessionHeader = "vmware-api-session-id"

const vijsonPrefix = "/sdk/vim25/"

// understand tells what a request is about and how to carry it out.
func (v *VCenter) understand(r *http.Request, body []byte) exchange {
	switch {
	case strings.HasPrefix(r.URL.Path, vijsonPrefix):
		return v.understandVIJSON(r, body)
	case r.URL.Path == vim25.Path || strings.HasPrefix(r.URL.Path, vim25.Path+"/"):
		return v.understandSOAP(r, body)
	case r.URL.Path == guestFilePath:
		return v.understandFile(r)
	}
	return v.understandREST(r, body)
}

// understandVIJSON reads POST {release}/{type}/{moId}/{method} and GET {release}/{type}/{moId}/{property}.
func (v *VCenter) understandVIJSON(r *http.Request, body []byte) exchange {
	token := r.Header.Get(sessionHeader)
	x := exchange{call: Call{Op: r.Method + " " + r.URL.Path, Session: v.session(token).name()}, fault: jsonFault}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, vijsonPrefix), "/")
	if len(parts) != 4 || !v.knows(parts[0]) {
		x.serve = func() answer { return pageAnswer(http.StatusNotFound) }
		return x
	}

	this := types.ManagedObjectReference{Type: parts[1], Value: parts[2]}
	name := parts[3]
	switch r.Method {
	case http.MethodGet:
		x.call.Op = fmt.Sprintf("GET %s/%s", this.Type, name)
		x.call.VM = v.vmOf(this, nil)
		x.serve = func() answer { return v.property(v.session(token), this, name) }
	case http.MethodPost:
		x.call.Op = name
		req, err := v.decode(this, name, body)
		if err == nil {
			x.call.VM = v.vmOf(this, req)
		}
		// The session that lives when the call lands.
		x.serve = func() answer { return v.method(v.session(token), this, name, req, err) }
	default:
		x.serve = func() answer { return pageAnswer(http.StatusMethodNotAllowed) }
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
func (v *VCenter) method(s *session, this types.ManagedObjectReference, name string, req any, bad error) answer {
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

	a := valueAnswer(reply.val)
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
func (v *VCenter) property(s *session, this types.ManagedObjectReference, name string) answer {
	if this == vim25.ServiceInstance && name == "content" {
		return valueAnswer(v.content)
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
		return valueAnswer(unwrapArray(p.Val))
	}

	return answer{status: http.StatusNoContent} // unset
}

// unwrapArray takes the slice out of a value such as ArrayOfManagedObjectReference: a property is a plain array.
func unwrapArray(val any) any {
	t := reflect.TypeOf(val)
	if t.Kind() == reflect.Struct && strings.HasPrefix(t.Name(), "ArrayOf") && t.NumField() == 1 {
		return reflect.ValueOf(val).Field(0).Interface()
	}
	return val
}

// reply is what vcsim answered to a call.
type reply struct {
	val   any // nil for void, and where nothing is there
	fault *soap.Fault
	key   string // of the session that the call opened
}

// call makes a call of vcsim over its SOAP service, with the session that has a key.
func (v *VCenter) call(key, method string, req any) reply {
	var envelope bytes.Buffer
	if err := xml.NewEncoder(&envelope).Encode(soap.Envelope{Body: soapRequest{method: method, req: req}}); err != nil {
		return reply{fault: simulator.Fault(err.Error(), new(types.InvalidRequest))}
	}

	status, header, body := v.serveSDK(key, envelope.Bytes())
	var out soapReply
	if t, ok := returns[method]; ok {
		out.res = reflect.New(t)
	} else if strings.HasSuffix(method, "_Task") {
		out.res = reflect.New(reflect.TypeFor[taskReturn]())
	}

	dec := xml.NewDecoder(bytes.NewReader(body))
	dec.TypeFunc = types.TypeFunc()
	if err := dec.Decode(&soap.Envelope{Body: &out}); err != nil {
		return reply{
			fault: simulator.Fault(
				fmt.Sprintf("%s: vcsim answered %d: %v", method, status, err),
				&types.SystemError{Reason: err.Error()},
			),
		}
	}

	if out.fault != nil {
		return reply{fault: out.fault}
	}

	r := reply{}
	for _, c := range (&http.Response{Header: header}).Cookies() {
		if c.Name == soap.SessionCookieName {
			r.key = c.Value
		}
	}

	if out.res.IsValid() {
		val := out.res.Elem().FieldByName("Returnval")
		switch {
		case !val.IsValid():
		case val.Kind() == reflect.Pointer && val.IsNil():
		case val.Kind() == reflect.Pointer:
			r.val = val.Elem().Interface()
		default:
			r.val = val.Interface()
		}
	}

	return r
}

// taskReturn is what every method that begins a Task returns.
type taskReturn struct {
	Returnval types.ManagedObjectReference `xml:"returnval"`
}

// soapRequest is a SOAP body with one method.
type soapRequest struct {
	method string
	req    any
}

// MarshalXML writes the method as the body's only element.
func (r soapRequest) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	if err := e.EncodeToken(start); err != nil {
		return err
	}
	name := xml.Name{Space: "urn:" + vim25.Namespace, Local: r.method}
	if err := e.EncodeElement(r.req, xml.StartElement{Name: name}); err != nil {
		return err
	}
	return e.EncodeToken(start.End())
}

// soapReply is a SOAP body with a fault or a method's response.
type soapReply struct {
	res   reflect.Value // what to decode a response into
	fault *soap.Fault
}

// UnmarshalXML reads the body's only element.
func (r *soapReply) UnmarshalXML(d *xml.Decoder, _ xml.StartElement) error {
	for {
		tok, err := d.Token()
		if err != nil {
			return err
		}

		switch el := tok.(type) {
		case xml.EndElement:
			return nil
		case xml.StartElement:
			switch {
			case el.Name.Local == "Fault":
				r.fault = new(soap.Fault)
				err = d.DecodeElement(r.fault, &el)
			case r.res.IsValid():
				err = d.DecodeElement(r.res.Interface(), &el)
			default:
				err = d.Skip()
			}

			if err != nil {
				return err
			}
		}
	}
}

// serveSDK hands a SOAP envelope to vcsim.
func (v *VCenter) serveSDK(key string, envelope []byte) (int, http.Header, []byte) {
	r, err := http.NewRequest(http.MethodPost, vim25.Path, bytes.NewReader(envelope))
	if err != nil {
		panic(err) // the path is a constant
	}
	r.RemoteAddr = "127.0.0.1:0"
	if key != "" {
		r.AddCookie(&http.Cookie{Name: soap.SessionCookieName, Value: key})
	}

	w := &memoryWriter{header: make(http.Header), status: http.StatusOK}
	v.svc.ServeSDK(w, r)
	return w.status, w.header, w.body.Bytes()
}

// memoryWriter keeps an answer.
type memoryWriter struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func (w *memoryWriter) Header() http.Header         { return w.header }
func (w *memoryWriter) Write(b []byte) (int, error) { return w.body.Write(b) }
func (w *memoryWriter) WriteHeader(status int)      { w.status = status }

// understandSOAP passes a SOAP call on to vcsim as it is, so that govc works here, too.
func (v *VCenter) understandSOAP(r *http.Request, body []byte) exchange {
	x := exchange{call: Call{Op: r.Method + " " + r.URL.Path}, fault: soapFault}
	if c, err := r.Cookie(soap.SessionCookieName); err == nil {
		x.call.Session = c.Value
	}
	if m, err := simulator.UnmarshalBody(types.TypeFunc(), body); err == nil {
		x.call.Op, x.call.VM = m.Name, v.vmOf(m.This, m.Body)
	}

	x.serve = func() answer {
		if r.URL.Path != vim25.Path && r.URL.Path != vim25.Path+"/" {
			return pageAnswer(http.StatusNotFound)
		}
		if r.Method != http.MethodPost {
			return pageAnswer(http.StatusMethodNotAllowed)
		}

		status, header, out := v.serveSDK(x.call.Session, body)
		a := answer{status: status, contentType: "text/xml; charset=utf-8", header: header, body: out}
		if found := soapFaultName.FindSubmatch(out); status == http.StatusInternalServerError && found != nil {
			a.fault = string(found[1])
		}
		return a
	}

	return x
}

var soapFaultName = regexp.MustCompile(`<detail><\w+Fault [^>]*type="(?:\w+:)?(\w+)"`)

// soapFault is a fault as SOAP answers it.
func soapFault(fault types.BaseMethodFault) answer {
	var detail bytes.Buffer
	name := faultName(fault)
	start := xml.StartElement{Name: xml.Name{Local: name + "Fault"}, Attr: []xml.Attr{
		{Name: xml.Name{Local: "xmlns"}, Value: "urn:" + vim25.Namespace},
		{Name: xml.Name{Local: "xsi:type"}, Value: name},
	}}

	enc := xml.NewEncoder(&detail)
	if err := enc.EncodeElement(fault, start); err != nil {
		panic(err) // govmomi's own types
	}

	var said bytes.Buffer
	if err := xml.EscapeText(&said, []byte(text(fault, ""))); err != nil {
		panic(err) // a buffer takes everything
	}

	body := xml.Header + `<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` +
		`<soapenv:Body><soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>` + said.String() + `</faultstring><detail>` + detail.String() +
		`</detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>`
	return answer{
		status:      http.StatusInternalServerError,
		contentType: "text/xml; charset=utf-8",
		body:        []byte(body),
		fault:       name,
	}
}

// vmOf is the VM that a call is about, "" where that cannot be seen.
func (v *VCenter) vmOf(this types.ManagedObjectReference, req any) string {
	switch this.Type {
	case "VirtualMachine":
		return this.Value
	case "Task":
		return v.tasks.entity(this.Value)
	}

	switch r := req.(type) {
	case nil:
	case *types.RetrievePropertiesEx:
		return v.vmOfSpecs(r.SpecSet)
	case *types.CreateFilter:
		return v.vmOfSpecs([]types.PropertyFilterSpec{r.Spec})
	case *types.CreateCollectorForTasks:
		if e := r.Filter.Entity; e != nil && e.Entity.Type == "VirtualMachine" {
			return e.Entity.Value
		}
	default:
		if f := reflect.ValueOf(req).Elem().FieldByName("Vm"); f.IsValid() {
			if ref, ok := f.Interface().(types.ManagedObjectReference); ok {
				return ref.Value
			}
		}
	}

	return ""
}

// vmOfSpecs is the VM of property specs about one object.
func (v *VCenter) vmOfSpecs(specs []types.PropertyFilterSpec) string {
	if len(specs) != 1 || len(specs[0].ObjectSet) != 1 {
		return ""
	}
	return v.vmOf(specs[0].ObjectSet[0].Obj, nil)
}

// valueAnswer is a method's result or a property: bare where it is a primitive or an array, 204 where there is none.
func valueAnswer(val any) answer {
	if val == nil {
		return answer{status: http.StatusNoContent}
	}
	return answer{status: http.StatusOK, contentType: "application/json", body: encodeValue(reflect.ValueOf(val))}
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

// jsonFault is a fault as VI JSON answers it: HTTP 500 with the fault itself.
func jsonFault(fault types.BaseMethodFault) answer { return jsonFaultSaying(fault, text(fault, "")) }

func jsonSOAPFault(f *soap.Fault) answer {
	fault := f.VimFault()
	if fault == nil {
		fault = &types.SystemError{Reason: f.String}
	}

	said := f.String
	if b, ok := pointerTo(fault).(types.BaseMethodFault); ok {
		said = cmp.Or(vCenterText(b), text(b, said)) // vcsim has words of its own for some
		if aboutSpec(b) {
			said = "" // the members tell
		}
	}
	return jsonFaultSaying(fault, said)
}

// pointerTo is a pointer to a copy of a struct, which is what implements the Base interfaces.
func pointerTo(val any) any {
	rv := reflect.ValueOf(val)
	if rv.Kind() == reflect.Pointer {
		return val
	}
	p := reflect.New(rv.Type())
	p.Elem().Set(rv)
	return p.Interface()
}

func jsonFaultSaying(fault any, said string) answer {
	body := encodeValue(reflect.ValueOf(fault))
	more := struct {
		Messages *[]any `json:"faultMessage,omitempty"`
		String   string `json:"faultstring,omitempty"`
	}{String: said}

	if !bytes.Contains(body, []byte(`"faultMessage":`)) {
		more.Messages = new([]any)
		*more.Messages = []any{}
	}

	tail, err := json.Marshal(more)
	if err != nil {
		panic(err) // our own type
	}

	if string(tail) == "{}" {
		return answer{
			status:      http.StatusInternalServerError,
			contentType: "application/json",
			body:        body,
			fault:       faultName(fault),
		}
	}

	body = append(bytes.TrimSuffix(body, []byte("}")), ',')
	return answer{
		status:      http.StatusInternalServerError,
		contentType: "application/json",
		body:        append(body, tail[1:]...),
		fault:       faultName(fault),
	}
}

// pageAnswer is how the proxy in front of vCenter answers what is not served behind it.
func pageAnswer(status int) answer {
	return answer{status: status, contentType: "text/plain; charset=utf-8", body: []byte(http.StatusText(status))}
}
