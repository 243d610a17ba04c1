package vcsim

import (
	"bytes"

	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

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

func (w *memoryWriter) Header() http.Header { return w.header }

func (w *memoryWriter) Write(b []byte) (int, error) { return w.body.Write(b) }

func (w *memoryWriter) WriteHeader(status int) { w.status = status }

// parseSOAP passes a SOAP call on to vcsim as it is, so that govc works here, too.
func (v *VCenter) parseSOAP(r *http.Request, body []byte) parsedCall {
	x := parsedCall{call: Call{Op: r.Method + " " + r.URL.Path}, fault: soapFault}
	if c, err := r.Cookie(soap.SessionCookieName); err == nil {
		x.call.Session = c.Value
	}
	if m, err := simulator.UnmarshalBody(types.TypeFunc(), body); err == nil {
		x.call.Op, x.call.VM = m.Name, v.vmOf(m.This, m.Body)
	}

	x.serve = func() response {
		if r.URL.Path != vim25.Path && r.URL.Path != vim25.Path+"/" {
			return pageResponse(http.StatusNotFound)
		}
		if r.Method != http.MethodPost {
			return pageResponse(http.StatusMethodNotAllowed)
		}

		status, header, out := v.serveSDK(x.call.Session, body)
		a := response{status: status, contentType: "text/xml; charset=utf-8", header: header, body: out}
		if found := soapFaultName.FindSubmatch(out); status == http.StatusInternalServerError && found != nil {
			a.fault = string(found[1])
		}

		return a
	}

	return x
}
