package vcapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Class is what an error of vCenter means for the call. The caller decides what to do about it.
type Class int

// The classes of errors.
const (
	Permanent        Class = iota // the same call will fail again
	Transient                     // busy, or away: the same call may succeed later
	SessionLost                   // no vCenter session: expired, or the login is refused
	GuestCredentials              // the guest refused the login, or the user may not do this there
)

// String is the class as the metrics call it.
func (c Class) String() string {
	switch c {
	case Permanent:
		return "permanent"
	case Transient:
		return "transient"
	case SessionLost:
		return "session"
	case GuestCredentials:
		return "guest-credentials"
	}
	return fmt.Sprintf("class %d", int(c))
}

// Sent is what is known about an effect that failed, and about a Task in Task.Err. For a read it means nothing: a read
// may be repeated in any case.
type Sent int

// The values of Sent. The zero value is the careful one.
const (
	Unknown  Sent = iota // sent, and it is not known whether it took effect
	NotSent              // never reached vCenter
	Refused              // vCenter answered with an error that proves that nothing happened
	Answered             // it took effect, and this error is how it ended (Task.Err)
)

// String names the value.
func (s Sent) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case NotSent:
		return "not sent"
	case Refused:
		return "refused"
	case Answered:
		return "answered"
	}
	return fmt.Sprintf("sent %d", int(s))
}

// Error is what vCenter or the network said about a call that failed. It holds no secret that the client knows, not
// even where the server echoed one.
type Error struct {
	Op       string // CustomizeGuest_Task, guest/processes create
	Endpoint string // POST /sdk/vim25/…
	Host     string // the vCenter's name
	Status   int    // HTTP; 0 where there was no answer
	Name     string // a fault's _typeName, or an error_type in capitals; "" unknown

	// Message is vCenter's words for people, joined (default_message, faultstring, localizedMessage, faultMessage), or
	// what the transport said. An HTML page is cut to its title, a text to its first 200 bytes.
	Message          string
	Messages         []json.RawMessage // REST messages, or faultMessage, as sent
	LocalizedMessage string            // localizedMessage of TaskInfo.error, or faultstring
	Data             json.RawMessage   // REST data; of a fault its body without the members that all faults have
	Challenge        string            // REST challenge
	Cause            *Error            // faultCause: what vCenter names as the reason of the fault

	// Guest reports whether the call went through vCenter to a guest (processes, files). Where it was not answered,
	// that says nothing about vCenter.
	Guest bool

	// Foreign reports whether the response is not vCenter's own, as far as can be seen: a proxy's page, a redirect,
	// half a response.
	Foreign bool

	Class Class
	Sent  Sent
	Err   error // the wrapped error of the network or of the fence
}

// Error reads "CustomizeGuest_Task: vcenter vc1: TaskInProgress (HTTP 500): words".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op + ": ")
	}
	if e.Host != "" { // empty in the error of a Task
		b.WriteString("vcenter " + e.Host + ": ")
	}

	switch {
	case e.Name != "" && e.Status != 0:
		fmt.Fprintf(&b, "%s (HTTP %d)", e.Name, e.Status)
	case e.Name != "":
		b.WriteString(e.Name)
	case e.Status != 0:
		b.WriteString(strings.TrimSpace(fmt.Sprintf("HTTP %d %s", e.Status, http.StatusText(e.Status))))
	case e.Sent == NotSent:
		b.WriteString("not sent")
	default:
		b.WriteString("no answer")
	}

	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}

	return b.String()
}

// Unwrap returns the error of the network or of the fence.
func (e *Error) Unwrap() error { return e.Err }

// InvalidState reports whether the fault is of the InvalidState family: the call does not fit the present state of the
// VM or its host.
func (e *Error) InvalidState() bool { return families[e.Name] == invalidState }

// FrontEnd reports whether the status is one with which a proxy, or vCenter's own front end, answers for a service that
// is away or busy.
func (e *Error) FrontEnd() bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}
