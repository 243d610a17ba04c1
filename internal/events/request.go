package events

import (
	"encoding/json"
	"time"
)

// Attributes are the CloudEvents attributes that a request hands on to every event of its run.
type Attributes struct {
	CorrelationID string // the request's own, else its id
	CausationID   string // the request's id
	TraceParent   string
	TraceState    string
	AuthType      string
	AuthID        string
}

// Request is a request as the stream delivered it: decoded, checked against its schema, named.
type Request struct {
	Seq       uint64    // in the requests stream: the VM's requests run in this order
	Delivered uint64    // how often the stream delivered it, this time included
	At        time.Time // when the stream stored it
	Stream    time.Time // when the stream was made: one that is made anew begins its sequences again; zero: not known
	VCenter   string
	VM        string // managed object ID
	RunID     string // RunID(VCenter, VM, Ref)
	Ref       RequestRef
	Attrs     Attributes
	Expires   time.Time       // expirytime; zero: never
	Digest    string          // hex SHA-256 of the canonical JSON of Data
	Data      json.RawMessage // the request's data as taken: it holds no secret
	Spec      RequestSpec     // Data, decoded
	Warnings  []Remark        // what vCenter may refuse or pass over of the spec
}

// DefaultTimeout is how long a run may take where its request does not say.
const DefaultTimeout = time.Hour

// RequestSpec is the data of a request, see schemas/requested.v1.json. Omit a section to skip that step.
type RequestSpec struct {
	VM        string         `json:"vm"`
	Timeout   Duration       `json:"timeout"` // of the run; default 1h
	Check     CheckSpec      `json:"check"`
	Guest     *GuestSpec     `json:"guest"`
	Customize *CustomizeSpec `json:"customize"`
	Network   *NetworkSpec   `json:"network"`
	Verify    *VerifySpec    `json:"verify"`
	Processes []ProcessSpec  `json:"processes"`
	// OnUncertain is "fail" or "repeat": what to do when a crash or a lost answer hid whether a call was made, and
	// vCenter cannot tell.
	OnUncertain string `json:"onUncertain"`
}

// CheckSpec chooses what to make of the check: auto carries on where the vCenter is older than 9.0 and has none.
type CheckSpec struct {
	Mode string `json:"mode"` // auto, required, skip
}

// GuestSpec is how to speak to the guest.
type GuestSpec struct {
	Credentials        *CredentialsRef `json:"credentials"`
	InteractiveSession bool            `json:"interactiveSession"`
	ReadyTimeout       Duration        `json:"readyTimeout"` // default 5m
}

// CredentialsRef names a secret; it never holds one.
type CredentialsRef struct {
	SecretRef string `json:"secretRef"`
	Type      string `json:"type"` // USERNAME_PASSWORD, SAML_BEARER_TOKEN; empty: whichever file is there
}

// CustomizeSpec is the customization asked for.
type CustomizeSpec struct {
	Spec         json.RawMessage `json:"spec"`         // VI JSON CustomizationSpec, sent word for word; or
	SpecName     string          `json:"specName"`     // that of one stored in vCenter
	ConfigParams json.RawMessage `json:"configParams"` // VI JSON array of OptionValue, sent word for word
	AllowLiteral []string        `json:"allowLiteral"` // paths below this object that look like secrets and are none
	Timeout      Duration        `json:"timeout"`      // default 20m
}

// NetworkSpec asks for the guest's network to be started.
type NetworkSpec struct {
	ConnectNICs bool     `json:"connectNics"` // first connect the virtual NICs that are not
	Timeout     Duration `json:"timeout"`     // default 5m
}

// VerifySpec asks for what the guest shows to be held against the spec.
type VerifySpec struct {
	Off           bool     `json:"-"` // "verify": false
	HostName      *bool    `json:"hostName"`
	Addresses     *bool    `json:"addresses"`
	NICsConnected *bool    `json:"nicsConnected"`
	Prefix        *bool    `json:"prefix"`
	Gateway       *bool    `json:"gateway"`
	DNS           *bool    `json:"dns"`        // default false
	AnyAddress    *bool    `json:"anyAddress"` // default: of the NICs whose adapter asks for DHCP
	Timeout       Duration `json:"timeout"`    // default 3m
}

// UnmarshalJSON reads false, or an object.
func (v *VerifySpec) UnmarshalJSON(b []byte) error {
	if string(b) == "false" {
		*v = VerifySpec{Off: true}
		return nil
	}
	type plain VerifySpec
	return json.Unmarshal(b, (*plain)(v))
}

// ProcessSpec is a guest process to run, or one that was started elsewhere to watch.
type ProcessSpec struct {
	Name             string          `json:"name"`
	Run              *ExecSpec       `json:"run"`
	Watch            *WatchSpec      `json:"watch"`
	SuccessExitCodes []int64         `json:"successExitCodes"` // default [0]; with Watch: its end is enough
	Timeout          Duration        `json:"timeout"`          // default 10m
	Credentials      *CredentialsRef `json:"credentials"`      // default guest.credentials
	// paths below this object that look like secrets and are none
	AllowLiteral []string `json:"allowLiteral"`
}

// WatchSpec names a process that was started elsewhere.
type WatchSpec struct {
	PID       int64      `json:"pid"`
	StartedAt *time.Time `json:"startedAt"` // the guest's clock
}

// ExecSpec is a program to start in the guest.
type ExecSpec struct {
	Path             string                  `json:"path"`
	Arguments        string                  `json:"arguments"` // one string, as vSphere gives it to the guest's shell
	WorkingDirectory string                  `json:"workingDirectory"`
	Environment      map[string]TextOrSecret `json:"environment"` // replaces the guest's own
}

// TextOrSecret is a string, or names a secret that stands for it.
type TextOrSecret struct {
	Text           string
	SecretRef, Key string
}

// UnmarshalJSON reads a string, or {"secretRef":…,"key":…}.
func (t *TextOrSecret) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &t.Text)
	}
	var secret struct{ SecretRef, Key string }
	err := json.Unmarshal(b, &secret)
	t.SecretRef, t.Key = secret.SecretRef, secret.Key
	return err
}

// Cancel is a decoded cancel.requested event.
type Cancel struct {
	Seq       uint64    // in the requests stream
	Stream    time.Time // when that was made, as a Request's
	At        time.Time // when the stream stored it
	Delivered uint64
	VCenter   string
	VM        string
	RunID     string     // the run that it is to end: RunID(VCenter, VM, Request)
	Ref       RequestRef // of the cancel itself
	Request   RequestRef // of the request that it is to end
	Reason    string
	Attrs     Attributes
}
