package events

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
)

const (
	contentType     = "Content-Type"
	structuredType  = "application/cloudevents+json"
	attributePrefix = "ce-"

	// maxAttribute bounds what a publisher's attributes add to every event of its run.
	maxAttribute = 1024
)

// The forms in which events are written, GUESTFLOW_EVENT_MODE.
const (
	Structured = "structured"
	Binary     = "binary"
)

// envelope is a CloudEvent as it was read, from whichever form: attributes by lower-case name, values as text and
// exactly as written (the SDK's source is a parsed URL and comes out normalized, which would change the name of a run),
// and the data as JSON.
type envelope struct {
	attrs map[string]string
	data  json.RawMessage
}

func (e *envelope) ref() RequestRef { return RequestRef{Source: e.attrs["source"], ID: e.attrs["id"]} }

// decodeEnvelope reads a CloudEvent 1.0 as the CloudEvents NATS protocol binding has it: structured where the content
// type says so; else binary, where a ce-specversion header is there; else structured. The envelope is never nil: on an
// error it holds what could be read.
func decodeEnvelope(h map[string][]string, data []byte) (*envelope, error) {
	e := &envelope{attrs: map[string]string{}}
	headers, err := lowerHeaders(h)
	if err != nil {
		return e, err
	}
	if !utf8.Valid(data) {
		return e, errors.New("the message is not UTF-8: encode it so")
	}
	declared, _, _ := mime.ParseMediaType(headers[strings.ToLower(contentType)])
	switch _, binary := headers[attributePrefix+"specversion"]; {
	case declared == structuredType:
		err = e.readStructured(data)
	case strings.HasPrefix(declared, "application/cloudevents"):
		return e, fmt.Errorf("content type %s is not supported: send %s, or the binary form", declared, structuredType)
	case binary:
		err = e.readBinary(headers, data)
	default:
		err = e.readStructured(data)
	}
	if err != nil {
		return e, err
	}
	return e, e.validate()
}

// lowerHeaders are the headers with their names in lower case: NATS tells letter case apart, CloudEvents and HTTP do
// not.
func lowerHeaders(h map[string][]string) (map[string]string, error) {
	lower := make(map[string]string, len(h))
	for name, values := range h {
		name = strings.ToLower(name)
		for _, v := range values {
			if old, twice := lower[name]; twice && old != v && strings.HasPrefix(name, attributePrefix) {
				return nil, fmt.Errorf("header %s is there with two values: send one", name)
			}
			lower[name] = v
		}
	}
	return lower, nil
}

func (e *envelope) readStructured(data []byte) error {
	tree, err := strictJSON(data)
	if twice := new(twiceError); errors.As(err, &twice) {
		return err
	}
	if err != nil {
		return fmt.Errorf("the message is no CloudEvent: %w", err)
	}
	members, ok := tree.(map[string]any)
	if !ok {
		return errors.New("the message is no CloudEvent: it is not a JSON object")
	}
	isVersion := func(name string) bool { return attributeName(name) == "specversion" }
	if !slices.ContainsFunc(slices.Collect(maps.Keys(members)), isVersion) {
		return errors.New("the message is no CloudEvent: it has no specversion. Data alone is not enough: " +
			`send {"specversion":"1.0","id":…,"source":…,"type":…,"data":…}, or the data with ce- headers`)
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return fmt.Errorf("the message is no CloudEvent: %w", err)
	}
	var wrong []string // all that is wrong with its members, so that it is put right at once
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if err := e.readMember(name, members[name], raw[name]); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	if members["data"] != nil && members["data_base64"] != nil {
		wrong = append(wrong, "data and data_base64 are both there: send one of them")
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

// readMember reads one member of a structured CloudEvent; null is read as absent. Extensions may be what CloudEvents'
// JSON format gives integers and booleans as; the core attributes are all strings there.
func (e *envelope) readMember(name string, v any, raw json.RawMessage) error {
	switch {
	case v == nil:
		return nil
	case name == "data":
		e.data = raw
		return nil
	case name == "data_base64":
		text, ok := v.(string)
		data, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil {
			return errors.New("data_base64 is no base64: encode the data's bytes as RFC 4648, " +
				"section 4, has it, or send data")
		}
		if e.data == nil {
			e.data = data
		}
		return nil
	case !attributePattern.MatchString(name):
		return misnamed("attribute", name)
	}
	switch v := v.(type) {
	case string:
		e.attrs[name] = v
		return nil
	case bool, json.Number:
		if slices.Contains(coreAttributes, name) {
			return fmt.Errorf("attribute %s is %.40s, and CloudEvents has a string there: write "+
				"\"%[2]v\" with its quotes", name, fmt.Sprint(v))
		}
		e.attrs[name] = fmt.Sprint(v)
		return nil
	}
	if slices.Contains(coreAttributes, name) {
		return fmt.Errorf("attribute %s is not a string", name)
	}
	return fmt.Errorf("attribute %.40q is not a string, number or boolean: what belongs to the request goes into data",
		name)
}

// coreAttributes are those of CloudEvents 1.0 itself, all of them strings in JSON.
var coreAttributes = []string{"specversion", "id", "source", "type", "subject", "time", "dataschema", "datacontenttype"}

// attributePattern is what names of attributes consist of (CloudEvents 1.0, 3.1).
var attributePattern = regexp.MustCompile(`^[a-z0-9]+$`)

// attributeName is how CloudEvents writes an attribute's name that somebody wrote in another way: expiryTime,
// expiry-time, data-base64.
func attributeName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(name))
	if name == "database64" {
		return "data_base64"
	}
	return name
}

func misnamed(what, name string) error {
	const rule = "the names of CloudEvents attributes are lower-case letters and digits"
	if right := attributeName(name); right != "" {
		return fmt.Errorf("%s %.40q must be written %.40q: %s", what, name, right, rule)
	}
	return fmt.Errorf("%s %.40q is not allowed: %s", what, name, rule)
}

// readBinary reads the ce- headers. The specification has their values percent-encoded (NATS protocol binding,
// 3.1.3.2); the Go SDK's bindings write them as they are. A value that no encoder of the specification writes shows
// which kind of publisher this is, and all values of that message are then read as they were sent: with a broken
// escape, or with a source that decoded is no URI reference. Where nothing shows it, the specification holds.
func (e *envelope) readBinary(headers map[string]string, data []byte) error {
	sent, decoded := map[string]string{}, map[string]string{}
	asSent := false
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		attribute, ok := strings.CutPrefix(name, attributePrefix)
		if !ok {
			continue
		}
		if !attributePattern.MatchString(attribute) {
			wrong = append(wrong, misnamed("the header of attribute", attribute).Error())
			continue
		}
		v := headers[name]
		text, err := url.PathUnescape(v)
		if err != nil || !utf8.ValidString(text) || attribute == "source" && text != v && !isURIReference(text) {
			asSent = true
		}
		sent[attribute], decoded[attribute] = v, text
	}
	if e.attrs = decoded; asSent {
		e.attrs = sent
	}
	if _, ok := e.attrs["datacontenttype"]; !ok {
		if v := headers[strings.ToLower(contentType)]; v != "" {
			e.attrs["datacontenttype"] = v
		}
	}
	if len(data) > 0 {
		e.data = data
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

// isURIReference reports whether s is one by RFC 3986: net/url takes more.
func isURIReference(s string) bool {
	if !uriCharacters.MatchString(s) {
		return false
	}
	_, err := url.Parse(s)
	return err == nil
}

// uriCharacters are unreserved, reserved, and percent-encoded ones (RFC 3986, 2).
var uriCharacters = regexp.MustCompile(`^([-A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*$`)

// setAttribute gives an event of the SDK an attribute; its time is checked here, for the SDK takes fewer forms.
func setAttribute(e *event.Event, name, v string) error {
	switch name {
	case "specversion":
	case "id":
		e.SetID(v)
	case "source":
		e.SetSource(v)
	case "type":
		e.SetType(v)
	case "subject":
		e.SetSubject(v)
	case "dataschema":
		e.SetDataSchema(v)
	case "datacontenttype":
		e.SetDataContentType(v)
	case "time":
		if _, err := parseTimestamp(v); err != nil {
			return fmt.Errorf("attribute time %w", err)
		}
	default:
		e.SetExtension(name, v)
	}
	return nil
}

// validate holds the attributes against CloudEvents 1.0, with the SDK's rules, and against what guestflow can carry.
func (e *envelope) validate() error {
	if v := e.attrs["specversion"]; v != event.CloudEventsVersionV1 {
		return fmt.Errorf("specversion is %.40q: send %q, the only one that is known", v, event.CloudEventsVersionV1)
	}
	c := event.New(event.CloudEventsVersionV1)
	for _, name := range slices.Sorted(maps.Keys(e.attrs)) {
		v := e.attrs[name]
		if len(v) > maxAttribute {
			return fmt.Errorf("attribute %.40s is longer than %d bytes: shorten it", name, maxAttribute)
		}
		if !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
			return fmt.Errorf("attribute %.40s holds control characters, which CloudEvents does "+
				"not allow: leave them out", name)
		}
		if err := setAttribute(&c, name, v); err != nil {
			return err
		}
	}
	if err := c.Validate(); err != nil {
		return badAttributes(err)
	}
	if v, ok := e.attrs["datacontenttype"]; ok {
		if t, _, _ := mime.ParseMediaType(v); t != "application/json" && t != "text/json" &&
			!strings.HasSuffix(t, "+json") {
			return fmt.Errorf("datacontenttype is %.80q: data must be JSON: send application/json, or leave it out", v)
		}
	}
	return nil
}

// badAttributes says of each attribute that the SDK does not take what to write.
func badAttributes(err error) error {
	var found event.ValidationError
	if !errors.As(err, &found) {
		return fmt.Errorf("the message is no CloudEvent: %s",
			strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", ", "))
	}
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if cure, known := attributeCures[name]; known {
			wrong = append(wrong, "attribute "+name+" "+cure)
		} else {
			wrong = append(wrong, fmt.Sprintf("attribute %s is not as CloudEvents has it: %v", name, found[name]))
		}
	}
	return errors.New(strings.Join(wrong, "; "))
}

// attributeCures are what is wrong with attributes that break the rules of CloudEvents, and what to write.
var attributeCures = map[string]string{
	"id":     "is missing or empty: give each message an id of its own, such as a UUID",
	"source": "is missing, empty or no URI reference: name who sends it, such as /provisioner",
	"type": "is missing or empty: write " + Type(KindRequested) + ", or " + Type(KindCancelRequested) +
		" for a cancel",
	"subject":         "is empty: write the VM's managed object ID, such as vm-42, or leave it out",
	"dataschema":      "is no absolute URI: write one, or leave it out",
	"datacontenttype": "is no media type: write application/json, or leave it out",
}

// outgoing is an event to be published.
type outgoing struct {
	id, vcenter, vm string // vm is empty where a refused message names none
	kind            Kind
	time            time.Time
	attrs           Attributes
	schema          string
	data            []byte // JSON
}

// encode writes an event in the structured or the binary form.
func encode(o outgoing, mode string) (map[string][]string, []byte, error) {
	e := event.New(event.CloudEventsVersionV1)
	e.SetID(o.id)
	e.SetSource(Source(o.vcenter))
	e.SetType(Type(o.kind))
	if o.vm != "" {
		e.SetSubject(o.vm)
	}
	e.SetTime(o.time.UTC())
	e.SetDataSchema(o.schema)
	e.SetDataContentType(event.ApplicationJSON)
	for name, v := range o.attrs.extensions() {
		if v != "" {
			e.SetExtension(name, v)
		}
	}
	if err := e.Validate(); err != nil {
		return nil, nil, fmt.Errorf("event %s: %w", o.id, err)
	}
	if mode == Binary {
		return binaryHeader(&e), o.data, nil
	}
	e.DataEncoded = o.data
	b, err := e.MarshalJSON()
	if err != nil {
		return nil, nil, fmt.Errorf("event %s: %w", o.id, err)
	}
	return map[string][]string{contentType: {structuredType}}, b, nil
}

func binaryHeader(e *event.Event) map[string][]string {
	h := map[string][]string{}
	set := func(name, v string) {
		if v != "" {
			h[attributePrefix+name] = []string{percentEncode(v)}
		}
	}
	set("specversion", e.SpecVersion())
	set("id", e.ID())
	set("source", e.Source())
	set("type", e.Type())
	set("subject", e.Subject())
	set("time", e.Time().Format(time.RFC3339Nano))
	set("dataschema", e.DataSchema())
	set("datacontenttype", e.DataContentType())
	for name, v := range e.Extensions() {
		set(name, fmt.Sprint(v))
	}
	return h
}

// percentEncode encodes a header's value as the CloudEvents HTTP binding, section 3.1.3.2, says: everything but
// printable ASCII, and the space, the double quote and the per cent sign.
func percentEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' || c == '"' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// extensions are the attributes under the names of the CloudEvents extensions.
func (a Attributes) extensions() map[string]string {
	return map[string]string{
		"correlationid": a.CorrelationID, "causationid": a.CausationID,
		"traceparent": a.TraceParent, "tracestate": a.TraceState,
		"authtype": a.AuthType, "authid": a.AuthID,
	}
}

// attributes are what an event says of the request that it belongs to.
func (e *envelope) attributes() Attributes {
	return Attributes{
		CorrelationID: e.attrs["correlationid"], CausationID: e.attrs["causationid"],
		TraceParent: e.attrs["traceparent"], TraceState: e.attrs["tracestate"],
		AuthType: e.attrs["authtype"], AuthID: e.attrs["authid"],
	}
}

// strictJSON reads one JSON value, keeps numbers as they are written, and refuses an object that names a member twice:
// what one reader takes from the first, another takes from the last.
func strictJSON(b []byte) (any, error) {
	if !json.Valid(b) { // also bounds how deep it is nested
		return nil, notJSON(b)
	}
	scan := memberScanner{text: b}
	if err := scan.value(); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// twiceError is an object that names a member twice.
type twiceError struct{ at string }

func (e *twiceError) Error() string { return e.at + " is there twice: leave one of them out" }

// within puts the name of what is around it before the place of a member that is there twice.
func within(err error, around string) error {
	if twice := new(twiceError); errors.As(err, &twice) && len(twice.at) < maxPath {
		twice.at = around + "." + twice.at
		twice.at = strings.ReplaceAll(twice.at, ".[", "[")
	}
	return err
}

// memberScanner looks in a valid JSON text for an object that names a member twice.
type memberScanner struct {
	text []byte
	at   int
}

// value passes over one value, and the white space around it.
func (s *memberScanner) value() error {
	s.space()
	defer s.space()
	switch s.text[s.at] {
	case '{':
		return s.object()
	case '[':
		return s.array()
	case '"':
		s.quoted()
		return nil
	}
	for s.at < len(s.text) && !bytes.ContainsRune([]byte(",]} \t\r\n"), rune(s.text[s.at])) {
		s.at++
	}
	return nil
}

func (s *memberScanner) object() error {
	names := map[string]bool{}
	for s.at++; ; s.at++ { // behind the brace, or the comma
		if s.space(); s.text[s.at] == '}' {
			s.at++
			return nil
		}
		name := s.name()
		if names[name] {
			return &twiceError{Cut(name, 40)}
		}
		names[name] = true
		s.space()
		s.at++ // the colon
		if err := s.value(); err != nil {
			return within(err, Cut(name, 40))
		}
		if s.text[s.at] == '}' {
			s.at++
			return nil
		}
	}
}

func (s *memberScanner) array() error {
	s.at++
	if s.space(); s.text[s.at] == ']' {
		s.at++
		return nil
	}
	for i := 0; ; i++ {
		if err := s.value(); err != nil {
			return within(err, fmt.Sprintf("[%d]", i))
		}
		s.at++ // the comma, or the bracket
		if s.text[s.at-1] == ']' {
			return nil
		}
	}
}

// name passes over a member's name, and decodes it: two names may be one that is written in two ways.
func (s *memberScanner) name() string {
	raw := s.quoted()
	plain := raw[1 : len(raw)-1]
	if !slices.ContainsFunc(plain, func(c byte) bool { return c == '\\' || c >= utf8.RuneSelf }) {
		return string(plain)
	}
	var text string
	_ = json.Unmarshal(raw, &text) // it is a string: the text is valid
	return text
}

// quoted passes over a string.
func (s *memberScanner) quoted() []byte {
	begin := s.at
	for s.at++; s.text[s.at] != '"'; s.at++ {
		if s.text[s.at] == '\\' {
			s.at++
		}
	}
	s.at++
	return s.text[begin:s.at]
}

func (s *memberScanner) space() {
	for s.at < len(s.text) && (s.text[s.at] == ' ' || s.text[s.at] == '\n' || s.text[s.at] == '\t' ||
		s.text[s.at] == '\r') {
		s.at++
	}
}

// notJSON is why a text is no JSON, and where.
func notJSON(b []byte) error {
	if len(bytes.TrimSpace(b)) == 0 {
		return errors.New("it is not valid JSON: it is empty")
	}
	var v any
	err := json.Unmarshal(b, &v)
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return errors.New("it is not valid JSON")
	}
	before := b[:min(int(syntax.Offset), len(b))]
	return fmt.Errorf("it is not valid JSON: line %d: %w", 1+bytes.Count(before, []byte("\n")), err)
}

// marshal is json.Marshal without the escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
