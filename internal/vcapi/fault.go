package vcapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strings"
	"unicode"
)

// errorKind is what an error_type of vAPI means (com.vmware.vapi.std.errors).
type errorKind struct {
	class             Class
	provesNothingDone bool // as the response to an effect, it proves that nothing happened
}

// restErrorKinds are the 25 standard errors (Vcenter Vm Guest Customization Get, error_type). Those that may be said of
// a thing already begun prove nothing: CANCELED, ERROR, INTERNAL_SERVER_ERROR, RESOURCE_INACCESSIBLE, TIMED_OUT.
var restErrorKinds = map[string]errorKind{
	"ERROR":                         {Transient, false},
	"ALREADY_EXISTS":                {Permanent, true},
	"ALREADY_IN_DESIRED_STATE":      {Permanent, true},
	"CANCELED":                      {Permanent, false},
	"CONCURRENT_CHANGE":             {Transient, true},
	"FEATURE_IN_USE":                {Permanent, true},
	"INTERNAL_SERVER_ERROR":         {Transient, false},
	"INVALID_ARGUMENT":              {Permanent, true},
	"INVALID_ELEMENT_CONFIGURATION": {Permanent, true},
	"INVALID_ELEMENT_TYPE":          {Permanent, true},
	"INVALID_REQUEST":               {Permanent, true},
	"NOT_ALLOWED_IN_CURRENT_STATE":  {Permanent, true},
	"NOT_FOUND":                     {Permanent, true},
	"OPERATION_NOT_FOUND":           {Permanent, true},
	"RESOURCE_BUSY":                 {Transient, true},
	"RESOURCE_IN_USE":               {Transient, true},
	"RESOURCE_INACCESSIBLE":         {Transient, false},
	"SERVICE_UNAVAILABLE":           {Transient, true},
	"TIMED_OUT":                     {Transient, false},
	"UNABLE_TO_ALLOCATE_RESOURCE":   {Permanent, true}, // of processes create: the program failed to start
	"UNAUTHENTICATED":               {SessionLost, true},
	"UNAUTHORIZED":                  {Permanent, true},
	"UNEXPECTED_INPUT":              {Permanent, true},
	"UNSUPPORTED":                   {Permanent, true},
	"UNVERIFIED_PEER":               {Permanent, true},
}

// faultKinds are the faults that are classified by name. The others are classified by family, see kindOfFault.
var faultKinds = map[string]errorKind{
	"NotAuthenticated":       {SessionLost, true}, // extends NoPermission: it must be checked first
	"AuthenticationRequired": {SessionLost, true},
	"InvalidLogin":           {SessionLost, true}, // of vCenter's own login; the guest's is InvalidGuestLogin
	"NoPermission":           {Permanent, true},
	"RestrictedVersion":      {Permanent, true},
	"ManagedObjectNotFound":  {Permanent, true},
	"InvalidArgument":        {Permanent, true},
	"InvalidRequest":         {Permanent, true},
	"InvalidType":            {Permanent, true},
	"NotSupported":           {Permanent, true},
	"NotImplemented":         {Permanent, true},
	"MethodNotFound":         {Permanent, true},

	"TaskInProgress": {Transient, true},
	"InvalidState":   {Transient, true}, // plain: VMware Tools not running, say; its subtypes are permanent

	"InvalidGuestLogin":            {GuestCredentials, true},
	"GuestPermissionDenied":        {GuestCredentials, true},
	"GuestAuthenticationChallenge": {GuestCredentials, true},
	"GuestMultipleMappings":        {GuestCredentials, true},
	"GuestOperationsUnavailable":   {Transient, true},
	"TooManyGuestLogons":           {Transient, true},

	"CustomizationFault":           {Transient, true}, // the engine failed or its lock was left: abort once, then again
	"UnexpectedCustomizationFault": {Transient, true},
	"CustomizationPending":         {Transient, true},
	"InvalidHostState":             {Transient, true},

	"SystemError":             {Transient, false},
	"HostCommunication":       {Transient, false},
	"HostNotConnected":        {Transient, false},
	"HostNotReachable":        {Transient, false},
	"Timedout":                {Transient, false},
	"ConcurrentAccess":        {Transient, false},
	"InvalidCollectorVersion": {Transient, false},
	"RequestCanceled":         {Permanent, false},
}

// kindOfFault classifies a fault by its name or, where that is not listed, by its family. ok is false where neither is
// known.
func kindOfFault(name string) (kind errorKind, ok bool) {
	if kind, ok = faultKinds[name]; ok {
		return kind, true
	}

	switch families[name] {
	case invalidState, customizationFault, guestOperationsFault:
		return errorKind{Permanent, true}, true
	case hostCommunication:
		return errorKind{Transient, false}, true
	}
	return errorKind{Permanent, false}, false
}

// byStatus classifies a response whose body names no error: a proxy's page, an empty body, or a missing error_type (the
// schema allows that).
func byStatus(status int) Class {
	switch {
	case status == http.StatusUnauthorized:
		return SessionLost
	case status == http.StatusTooManyRequests,
		status == http.StatusRequestTimeout,
		status >= 500 && status != http.StatusNotImplemented:
		return Transient
	}
	return Permanent
}

// restNames are the names of REST errors without an error_type, by status. 400 and 500 stand for several, and give no
// name.
var restNames = map[int]string{
	http.StatusUnauthorized:       "UNAUTHENTICATED",
	http.StatusForbidden:          "UNAUTHORIZED",
	http.StatusNotFound:           "NOT_FOUND",
	http.StatusServiceUnavailable: "SERVICE_UNAVAILABLE",
}

// faultMembers are all the members of vCenter's errors: of a VIM fault (bare, or wrapped as TaskInfo.error is), of
// /api, and of /rest.
type faultMembers struct {
	TypeName         string          `json:"_typeName"`
	Fault            json.RawMessage `json:"fault"`
	FaultMessage     json.RawMessage `json:"faultMessage"`
	FaultCause       json.RawMessage `json:"faultCause"`
	FaultString      string          `json:"faultstring"`
	LocalizedMessage string          `json:"localizedMessage"`

	ErrorType string          `json:"error_type"`
	Messages  json.RawMessage `json:"messages"`
	Data      json.RawMessage `json:"data"`
	Challenge json.RawMessage `json:"challenge"`

	Type  string          `json:"type"`
	Value json.RawMessage `json:"value"`
}

// decodeError decodes the body of an unsuccessful response, in every form that vCenter or a proxy before it is known to
// send. It never fails: an unknown body is an Error without a name.
func decodeError(status int, body []byte, s redactor) *Error {
	e := &Error{Status: status, Class: byStatus(status)}
	body = s.json(bytes.TrimSpace(body))
	members, ok := membersOf(body)
	switch {
	case ok && (members.TypeName != "" || len(members.Fault) > 0 ||
		members.FaultString != "" || len(members.FaultMessage) > 0):
		e.decodeVIM(body, members, maxCauses)
	case ok && strings.HasPrefix(members.Type, "com.vmware.vapi.std.errors."):
		// The envelope of /rest: {"type":"com.vmware.vapi.std.errors.not_found","value":{"messages":[…]}}
		inner, _ := membersOf(members.Value)
		if inner.ErrorType == "" {
			inner.ErrorType = upperSnake(members.Type[strings.LastIndexByte(members.Type, '.')+1:])
		}
		e.decodeREST(inner)
	case ok && (members.ErrorType != "" || len(members.Messages) > 0):
		e.decodeREST(members)
	case len(body) == 0:
		e.Message = "empty answer"
	default:
		e.Message = oneLine(body)
	}

	return e
}

// membersOf reads a JSON object. It leaves out members of an unexpected type instead of failing: a name with an odd
// message is better than neither.
func membersOf(body []byte) (m faultMembers, ok bool) {
	var raw map[string]json.RawMessage
	if json.Unmarshal(body, &raw) != nil || raw == nil {
		return m, false
	}

	for key, into := range map[string]*string{
		"_typeName":        &m.TypeName,
		"faultstring":      &m.FaultString,
		"localizedMessage": &m.LocalizedMessage,
		"error_type":       &m.ErrorType,
		"type":             &m.Type,
	} {
		*into = textOf(raw[key])
	}

	m.Fault, m.FaultMessage, m.Value = dropNull(raw["fault"]), dropNull(raw["faultMessage"]), dropNull(raw["value"])
	m.FaultCause = dropNull(raw["faultCause"])
	m.Messages, m.Data, m.Challenge = dropNull(raw["messages"]), dropNull(raw["data"]), dropNull(raw["challenge"])
	return m, true
}

func (e *Error) decodeREST(m faultMembers) {
	e.Name = upperSnake(m.ErrorType)
	if e.Name == "" {
		e.Name = restNames[e.Status]
	}

	e.Data = m.Data
	if e.Challenge = textOf(m.Challenge); e.Challenge == "" {
		e.Challenge = string(m.Challenge)
	}
	if json.Unmarshal(m.Messages, &e.Messages) != nil {
		e.Messages = nil
	}

	var texts []string
	for _, raw := range e.Messages {
		var message struct {
			ID             string `json:"id"`
			DefaultMessage string `json:"default_message"`
			Localized      string `json:"localized"`
			Args           []any  `json:"args"`
		}

		if json.Unmarshal(raw, &message) == nil {
			texts = append(
				texts, cmp.Or(message.Localized, message.DefaultMessage, withArguments(message.ID, message.Args)),
			)
		}
	}

	if e.Message = joinUnique(texts); e.Message == "" {
		e.Message = describeMembers(e.Data)
	}

	switch kind, ok := restErrorKinds[e.Name]; {
	case ok:
		e.Class = kind.class
		if kind.provesNothingDone && (e.Name != serviceUnavailable || e.isFromOperation()) {
			e.Sent = Refused
		}
	case e.Name == "" && e.Status >= 400 && e.Status < 500 && e.Status != http.StatusRequestTimeout:
		e.Sent = Refused // a REST error of vCenter's own about the request: the operation did not begin
	}

	if e.Status == http.StatusTooManyRequests {
		e.Class = Transient
	}
}

// maxCauses bounds the chain of causes that is followed.
const maxCauses = 5

// decodeCause reads a faultCause, as a LocalizedMethodFault (VI JSON's page) or as the bare fault (govmomi's types).
// causes bounds the depth.
func decodeCause(raw json.RawMessage, causes int) *Error {
	m, ok := membersOf(raw)
	if !ok || causes == 0 || m.TypeName == "" && len(m.Fault) == 0 {
		return nil
	}
	e := &Error{}
	e.decodeVIM(raw, m, causes-1)
	return e
}

// serviceUnavailable proves nothing by its name. From the operation itself it says that VMware Tools could not be
// reached. From the vAPI endpoint before it, or a proxy, it says only that the service behind did not answer: the call
// may have reached it.
//
// Source: people's reports of 503 with com.vmware.vapi.endpoint.cis.ServiceUnavailable for calls that took effect all
// the same.
const serviceUnavailable = "SERVICE_UNAVAILABLE"

// isFromOperation reports whether the messages are the operation's own, and not of the infrastructure that carries the
// call to it.
func (e *Error) isFromOperation() bool {
	for _, raw := range e.Messages {
		var message struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(raw, &message) != nil || message.ID == "" ||
			strings.HasPrefix(message.ID, "com.vmware.vapi.") {
			return false
		}
	}
	return len(e.Messages) > 0
}

func (e *Error) decodeVIM(body []byte, m faultMembers, causes int) {
	e.LocalizedMessage = cmp.Or(m.LocalizedMessage, m.FaultString)
	if len(m.Fault) > 0 { // LocalizedMethodFault, as TaskInfo.error is
		if inner, ok := membersOf(m.Fault); ok {
			body, m = m.Fault, inner
			e.LocalizedMessage = cmp.Or(e.LocalizedMessage, m.LocalizedMessage, m.FaultString)
		}
	}

	e.Name = m.TypeName
	if json.Unmarshal(m.FaultMessage, &e.Messages) != nil {
		e.Messages = nil
	}

	texts := []string{e.LocalizedMessage, m.FaultString}
	for _, raw := range e.Messages {
		var message struct {
			Key     string `json:"key"`
			Message string `json:"message"`
			Arg     []struct {
				Value any `json:"value"`
			} `json:"arg"`
		}

		if json.Unmarshal(raw, &message) == nil {
			var args []any
			for _, a := range message.Arg {
				args = append(args, a.Value)
			}
			texts = append(texts, cmp.Or(message.Message, withArguments(message.Key, args)))
		}
	}

	e.Data = specificMembers(body)
	e.Message = joinUnique(texts)
	if faultKinds[e.Name].class != SessionLost { // its privilegeId is not what is missing
		e.Message = faultMessage(e.Message, e.Data)
	}

	if e.Cause = decodeCause(m.FaultCause, causes); e.Cause != nil {
		e.Message = joinUnique(
			[]string{e.Message, "caused by " + strings.TrimSuffix(e.Cause.Name+": "+e.Cause.Message, ": ")},
		)
	}

	kind, ok := kindOfFault(e.Name)
	if e.Name != "" {
		e.Class = kind.class
	}
	if ok && kind.provesNothingDone {
		e.Sent = Refused
	}
}

// specificMembers is a fault's body without the members that all faults have.
func specificMembers(body []byte) json.RawMessage {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return nil
	}

	for _, generic := range []string{"_typeName", "faultCause", "faultMessage", "faultstring", "localizedMessage"} {
		delete(members, generic)
	}

	if len(members) == 0 {
		return nil
	}

	data, err := json.Marshal(members)
	if err != nil {
		return nil
	}

	return data
}

// oneLine makes a line of text from a body that is no JSON error: the title of a page, or the beginning of a text.
func oneLine(body []byte) string {
	text := string(body)
	if title := pageTitle.FindStringSubmatch(text); title != nil {
		text = html.UnescapeString(title[1])
	}

	text = strings.ToValidUTF8(
		strings.Join(
			strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ",
		),
		"",
	)

	const most = 200
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}

	return text
}

var pageTitle = regexp.MustCompile(`(?is)<title[^>]*>(.*?)</title>`)

// upperSnake writes NotFound, not_found and NOT_FOUND as NOT_FOUND: vCenter's generations spell a standard error in
// these three ways.
func upperSnake(s string) string {
	var b strings.Builder
	lower := false
	for _, r := range s {
		if unicode.IsUpper(r) && lower {
			b.WriteByte('_')
		}
		lower = unicode.IsLower(r) || unicode.IsDigit(r)
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String()
}

// joinUnique joins texts, without empty and repeated ones.
func joinUnique(texts []string) string {
	var b strings.Builder
	seen := map[string]bool{"": true}
	for _, t := range texts {
		if seen[t] {
			continue
		}
		seen[t] = true
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		b.WriteString(t)
	}

	return b.String()
}

// withCall sets which call the error is of.
func (e *Error) withCall(op, endpoint, host string) *Error {
	e.Op, e.Endpoint, e.Host = op, endpoint, host
	return e
}

// objectNotFound is the fault for an object that a response left out, as vCenter would raise it.
func objectNotFound(kind, id string) *Error {
	return &Error{
		Name:  "ManagedObjectNotFound",
		Class: Permanent,
		Sent:  Refused,
		Message: fmt.Sprintf(
			"vCenter shows no %s %s: check the managed object ID and the account's System.View on it", kind, id,
		),
	}
}
