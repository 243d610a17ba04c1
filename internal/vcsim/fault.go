package vcsim

import (
	"bytes"
	"cmp"
	"encoding/json"

	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// soapFaultOf is the immediate fault of a method.
func soapFaultOf(fault types.BaseMethodFault) *soap.Fault {
	return simulator.Fault(faultText(fault, ""), fault)
}

func notAuthenticated(object types.ManagedObjectReference) *types.NotAuthenticated {
	return &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &object, PrivilegeId: "System.View"}}
}

// faultText is a fault as text for people; said is used where it is not empty.
func faultText(fault types.BaseMethodFault, said string) string {
	switch {
	case said != "":
		return said
	case fault == nil:
		return ""
	}

	if words := vCenterText(fault); words != "" {
		return words
	}
	return "A fault occurred: " + faultName(fault)
}

// vCenterText is a fault in vCenter's own words, "" where those are not known.
func vCenterText(fault types.BaseMethodFault) string {
	switch f := fault.(type) {
	case *types.InvalidPowerState:
		return fmt.Sprintf(
			"The attempted operation cannot be performed in the current state (%s).", powerWords[f.ExistingState],
		)
	case *types.TaskInProgress:
		return "Another task is already in progress."
	case *types.InvalidState:
		return "The operation is not allowed in the current state."
	case *types.InvalidGuestLogin:
		return "Failed to authenticate with the guest operating system using the supplied credentials."
	case *types.GuestPermissionDenied:
		return "Permission to perform this operation was denied."
	case *types.GuestOperationsUnavailable:
		return "The guest operations agent could not be contacted."
	case *types.ManagedObjectNotFound:
		return fmt.Sprintf(
			"The object '%s:%s' has already been deleted or has not been completely created",
			f.Obj.Type,
			f.Obj.Value,
		)
	case *types.InvalidArgument:
		return "A specified parameter was not correct: " + f.InvalidProperty
	case *types.UncustomizableGuest:
		return fmt.Sprintf(
			"Customization of the guest operating system '%s' is not supported in this configuration.",
			f.UncustomizableGuestOS,
		)
	case *types.NicSettingMismatch:
		return fmt.Sprintf(
			"The customization specification has %d NICs, but the virtual machine has %d.",
			f.NumberOfNicsInSpec,
			f.NumberOfNicsInVM,
		)
	case *types.CustomizationFault:
		return "An error occurred while customizing the virtual machine."
	case *types.RequestCanceled:
		return "The task was canceled by a user."
	case *types.NotAuthenticated:
		return "The session is not authenticated."
	case *types.InvalidLogin:
		return "Cannot complete login due to an incorrect user name or password."
	}

	return ""
}

var powerWords = map[types.VirtualMachinePowerState]string{
	types.VirtualMachinePowerStatePoweredOn:  "Powered on",
	types.VirtualMachinePowerStatePoweredOff: "Powered off",
	types.VirtualMachinePowerStateSuspended:  "Suspended",
}

// faultName is a fault's _typeName.
func faultName(fault any) string {
	t := reflect.TypeOf(fault)
	if t == nil {
		return ""
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Name()
}

// soapFault is the SOAP response with a fault.
func soapFault(fault types.BaseMethodFault) response {
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
	if err := xml.EscapeText(&said, []byte(faultText(fault, ""))); err != nil {
		panic(err) // a buffer takes everything
	}

	body := xml.Header + `<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"` +
		` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` +
		`<soapenv:Body><soapenv:Fault><faultcode>ServerFaultCode</faultcode>` +
		`<faultstring>` + said.String() + `</faultstring><detail>` + detail.String() +
		`</detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>`

	return response{
		status:      http.StatusInternalServerError,
		contentType: "text/xml; charset=utf-8",
		body:        []byte(body),
		fault:       name,
	}
}

var soapFaultName = regexp.MustCompile(`<detail><\w+Fault [^>]*type="(?:\w+:)?(\w+)"`)

// jsonFault is the VI JSON response with a fault: HTTP 500 with the fault itself.
func jsonFault(fault types.BaseMethodFault) response {
	return jsonFaultWithText(fault, faultText(fault, ""))
}

func jsonSOAPFault(f *soap.Fault) response {
	fault := f.VimFault()
	if fault == nil {
		fault = &types.SystemError{Reason: f.String}
	}

	said := f.String
	if b, ok := pointerTo(fault).(types.BaseMethodFault); ok {
		said = cmp.Or(vCenterText(b), faultText(b, said)) // vcsim has words of its own for some
		if aboutSpec(b) {
			said = "" // the members tell
		}
	}

	return jsonFaultWithText(fault, said)
}

// pointerTo is a pointer to a copy of a struct: pointers implement the Base interfaces.
func pointerTo(val any) any {
	rv := reflect.ValueOf(val)
	if rv.Kind() == reflect.Pointer {
		return val
	}
	p := reflect.New(rv.Type())
	p.Elem().Set(rv)
	return p.Interface()
}

func jsonFaultWithText(fault any, said string) response {
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
		return response{
			status:      http.StatusInternalServerError,
			contentType: "application/json",
			body:        body,
			fault:       faultName(fault),
		}
	}

	body = append(bytes.TrimSuffix(body, []byte("}")), ',')
	return response{
		status:      http.StatusInternalServerError,
		contentType: "application/json",
		body:        append(body, tail[1:]...),
		fault:       faultName(fault),
	}
}

// aboutSpec reports whether the members of a fault say what is wrong with a specification: vCenter sends such a fault
// without a text.
func aboutSpec(fault types.BaseMethodFault) bool {
	switch f := fault.(type) {
	case *types.NicSettingMismatch:
		return true
	case *types.InvalidArgument:
		return strings.HasPrefix(f.InvalidProperty, "spec.")
	}
	return false
}
