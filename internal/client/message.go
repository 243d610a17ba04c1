package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/custspec"
	"github.com/guestflow/guestflow/internal/events"
)

const (
	// Source is the CloudEvents source of what is sent without one.
	Source = "urn:guestflow:cli"

	maxMessage = 256 << 10 // of the requests streams: data and headers

	structured = "application/cloudevents+json"
)

// Message is a request or a cancel, checked with the service's own code, and where it is to be published.
type Message struct {
	VCenter   string
	VM        string
	Subject   string
	Header    nats.Header
	Data      []byte
	Ref       events.RequestRef // its own source and id
	Run       string            // the run that it asks for, or is to end
	Requested json.RawMessage   // of a request: its data as taken
	Cancel    bool
	// Warnings are those that the service would report in its check, as far as the request alone shows them.
	Warnings []events.Remark
}

// IsCloudEvent reports whether a document is a whole CloudEvent and not its data alone.
func IsCloudEvent(doc []byte) bool {
	var e struct {
		SpecVersion *string `json:"specversion"`
	}
	return json.Unmarshal(custspec.WithoutBOM(doc), &e) == nil && e.SpecVersion != nil
}

// JSON returns a document as UTF-8, without the byte order mark that programs on Windows write. The error says what the
// document is instead, and what to do with it.
func JSON(doc []byte) ([]byte, error) {
	doc = custspec.WithoutBOM(doc)
	if other := custspec.UTF16(doc); other != "" {
		return nil, fmt.Errorf("it is %s: %s", other, custspec.SaveAsUTF8)
	}
	switch {
	case json.Valid(doc):
		return doc, nil
	case len(bytes.TrimSpace(doc)) == 0:
		return nil, errors.New(`it is empty: write a request into it, such as {"vm": "vm-42"}`)
	case !utf8.Valid(doc), bytes.IndexByte(doc, 0) >= 0:
		return nil,
			errors.New("it is no text in UTF-8, but a binary file or a text in another encoding: name the file that " +
				"holds the request as JSON")
	}
	if foreign := custspec.ForeignText(doc); foreign != "" {
		return nil, errors.New(foreign)
	}
	return nil, fmt.Errorf("it is not valid JSON: %w", jsonError(doc))
}

// New makes a message from a document: a whole CloudEvent, or the data of a request alone.
//
// Source and id in ref replace those of the document; if ref is empty, the bytes of a whole CloudEvent stay as they
// are. The error is the reason for which the service would refuse the message, an *events.RejectError if it is about
// a field.
func New(vcenter string, doc []byte, ref events.RequestRef) (*Message, error) {
	doc, err := JSON(doc)
	if err != nil {
		return nil, err
	}
	m := &Message{VCenter: vcenter, Header: nats.Header{"Content-Type": {structured}}, Data: doc}
	if IsCloudEvent(doc) {
		if err := m.setIdentity(ref); err != nil {
			return nil, err
		}
		return m, m.check()
	}
	if what := specAlone(doc); what != "" {
		return nil, &events.RejectError{Code: events.InvalidRequest, Message: what}
	}
	data, err := envelope(events.KindRequested, ref, vmOf(doc), doc)
	if err != nil {
		return nil, err
	}
	m.Data = data
	err = m.check()
	// the event around the data is ours: its publisher knows no "data"
	if reject := (*events.RejectError)(nil); errors.As(err, &reject) {
		other := *reject
		other.Message = strings.TrimPrefix(other.Message, "data.")
		err = &other
	}
	return m, err
}

// specAlone says what a document is, if it is a specification and not a request; else "".
func specAlone(doc []byte) string {
	var tree map[string]any
	if json.Unmarshal(doc, &tree) != nil || tree["vm"] != nil || tree["customize"] != nil {
		return ""
	}
	if foreign := custspec.Foreign(tree); foreign != "" {
		return "it is no request, but " + strings.TrimPrefix(foreign, "is ")
	}
	if tree["identity"] != nil {
		return "it is a CustomizationSpec, and no request: put it into a request as customize.spec, " +
			"or send it with guestflow submit --vm VM --secret NAME --spec FILE"
	}
	return ""
}

// NewCancel asks for the run of a request to be ended. ref is the cancel's own identity.
func NewCancel(vcenter, vm string, request, ref events.RequestRef, reason string) (*Message, error) {
	asked := map[string]any{"vm": vm, "request": request}
	if reason != "" {
		asked["reason"] = reason
	}
	doc, err := marshal(asked)
	if err != nil {
		return nil, err
	}
	m := &Message{VCenter: vcenter, Header: nats.Header{"Content-Type": {structured}}}
	if m.Data, err = envelope(events.KindCancelRequested, ref, vm, doc); err != nil {
		return nil, err
	}
	return m, m.check()
}

// envelope is a CloudEvent around data.
func envelope(k events.Kind, ref events.RequestRef, vm string, data json.RawMessage) ([]byte, error) {
	attrs := map[string]any{
		"specversion":     "1.0",
		"type":            events.Type(k),
		"source":          ref.Source,
		"id":              ref.ID,
		"time":            time.Now().UTC().Format(time.RFC3339),
		"datacontenttype": "application/json",
		"data":            data,
	}
	if vm != "" {
		attrs["subject"] = vm
	}
	return marshal(attrs)
}

// setIdentity replaces source and id of a whole CloudEvent.
func (m *Message) setIdentity(ref events.RequestRef) error {
	if ref == (events.RequestRef{}) {
		return nil
	}
	var attrs map[string]json.RawMessage
	if err := json.Unmarshal(m.Data, &attrs); err != nil {
		return fmt.Errorf("it is not valid JSON: %w", err)
	}
	for name, v := range map[string]string{"source": ref.Source, "id": ref.ID} {
		if v == "" {
			continue
		}
		text, err := marshal(v)
		if err != nil {
			return err
		}
		attrs[name] = text
	}
	var err error
	m.Data, err = marshal(attrs)
	return err
}

// vmOf is the VM that a document names, which is a CloudEvent or its data; "" if it names none.
func vmOf(doc []byte) string {
	var d struct {
		VM   string
		Data struct{ VM string }
	}
	if json.Unmarshal(doc, &d) != nil {
		return ""
	}
	if d.VM != "" {
		return d.VM
	}
	return d.Data.VM
}

// check decodes the message as the service would, and fills in what it says.
func (m *Message) check() error {
	m.VM = vmOf(m.Data)
	var e struct{ Type, Subject string }
	_ = json.Unmarshal(m.Data, &e) // the decoders below say what is wrong
	if m.VM == "" {
		m.VM = e.Subject
	}
	if !events.ValidVM(m.VM) {
		m.VM = "_" // no VM has this name: the decoders below refuse the message, and say why
	}
	if n := len(m.Data) + headerSize(m.Header); n > maxMessage {
		return fmt.Errorf("it is too large: %d bytes, and a request may have %d", n, maxMessage)
	}
	if e.Type == events.Type(events.KindCancelRequested) {
		m.Cancel, m.Subject = true, events.CancelSubject(m.VCenter, m.VM)
		c, err := events.DecodeCancel(m.VCenter, m.Subject, m.Header, m.Data)
		m.Ref, m.Run = c.Ref, c.RunID
		return m.inDocumentTerms(err)
	}
	m.Subject = events.RequestSubject(m.VCenter, m.VM)
	r, err := events.DecodeRequest(m.VCenter, m.Subject, m.Header, m.Data)
	m.Ref, m.Run, m.Requested, m.Warnings = r.Ref, r.RunID, r.Data, r.Warnings
	if err == nil && !r.Expires.IsZero() && !r.Expires.After(time.Now()) {
		message := "its expirytime " + r.Expires.Format(time.RFC3339) + " has passed: send a new one"
		return &events.RejectError{Code: events.Expired, Message: message}
	}
	return m.inDocumentTerms(err)
}

// inDocumentTerms replaces an error about the NATS subject, which a document does not have, by one about its VM.
func (m *Message) inDocumentTerms(err error) error {
	var reject *events.RejectError
	if m.VM == "_" && errors.As(err, &reject) && reject.Field == "" {
		message := events.CheckVM(dataOf(m.Data))
		return &events.RejectError{Code: reject.Code, Field: "vm", Message: message, Withhold: reject.Withhold}
	}
	if reject = nil; errors.As(err, &reject) { // it was not sent: nobody keeps anything
		other := *reject
		other.Message = strings.TrimSuffix(other.Message, events.NotKept)
		return &other
	}
	return err
}

// dataOf is the data of a whole CloudEvent.
func dataOf(doc []byte) map[string]any {
	var e struct{ Data map[string]any }
	_ = json.Unmarshal(doc, &e) // what cannot be read has no VM
	return e.Data
}

// jsonError is why a document is not JSON, with the line.
func jsonError(doc []byte) error {
	var v any
	err := json.Unmarshal(doc, &v)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at := min(int(syntax.Offset), len(doc))
		return fmt.Errorf("line %d: %w", 1+bytes.Count(doc[:at], []byte("\n")), err)
	}
	return err
}

func headerSize(h nats.Header) int {
	n := len("NATS/1.0\r\n\r\n")
	for name := range maps.Keys(h) {
		for _, v := range h[name] {
			n += len(name) + len(": \r\n") + len(v)
		}
	}
	return n
}

// marshal is json.Marshal without the escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// Sections are the steps that a request asks for beside the check, in the order in which they are done.
func (m *Message) Sections() ([]string, error) {
	var asked events.RequestSpec
	if err := json.Unmarshal(m.Requested, &asked); err != nil {
		return nil, err
	}
	var run events.Run
	run.Plan(&asked)
	var names []string
	for _, s := range run.Steps() {
		switch s.Name {
		case events.StepCheck:
		case events.StepProcess:
			names = append(names, s.Name+" "+s.Process)
		default:
			names = append(names, s.Name)
		}
	}
	return names, nil
}
