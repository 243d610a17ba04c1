package events

import (
	"encoding/json"
	"strings"
	"time"
)

// Kind is the part of a CloudEvent's type that tells what happened: "run.accepted", "customize.started". Two tokens,
// <step>.<verb>, in this order also the end of the event's subject.
type Kind string

// The kinds of the contract.
const (
	KindRequested       Kind = "requested"
	KindCancelRequested Kind = "cancel.requested"
	KindRejected        Kind = "rejected"

	RunAccepted         Kind = "run.accepted"
	RunReleased         Kind = "run.released"
	RunResumed          Kind = "run.resumed"
	RunWaiting          Kind = "run.waiting"
	CheckCompleted      Kind = "check.completed"
	CustomizeAborting   Kind = "customize.aborting"
	CustomizeAborted    Kind = "customize.aborted"
	CustomizeStarting   Kind = "customize.starting"
	CustomizeStarted    Kind = "customize.started"
	CustomizeProgressed Kind = "customize.progressed"
	CustomizeCompleted  Kind = "customize.completed"
	NetworkStarting     Kind = "network.starting"
	NetworkStarted      Kind = "network.started"
	NetworkCompleted    Kind = "network.completed"
	VerifyCompleted     Kind = "verify.completed"
	ProcessStarting     Kind = "process.starting"
	ProcessStarted      Kind = "process.started"
	ProcessExited       Kind = "process.exited"
	ProcessUnreachable  Kind = "process.unreachable"
	RunSucceeded        Kind = "run.succeeded"
	RunFailed           Kind = "run.failed"
	RunCanceled         Kind = "run.canceled"
)

// Step is the step that k is about; "run" where it is about the run as a whole.
func (k Kind) Step() string {
	step, _, _ := strings.Cut(string(k), ".")
	return step
}

// Last reports whether k is one of the three kinds that end a run.
func (k Kind) Last() bool { return k == RunSucceeded || k == RunFailed || k == RunCanceled }

// Status is where the run as a whole stands.
type Status string

// The statuses of the contract.
const (
	StatusRunning   Status = "running"
	StatusSucceeded Status = "succeeded"
	StatusFailed    Status = "failed"
	StatusCanceled  Status = "canceled"
	StatusRejected  Status = "rejected"
)

// State is where one step of a run stands.
type State string

// The states of the contract. A step that was not asked for has no state: it is absent.
const (
	Pending     State = "pending"
	Starting    State = "starting"
	Running     State = "running"
	Succeeded   State = "succeeded"
	Failed      State = "failed"
	Canceled    State = "canceled"
	Skipped     State = "skipped"
	Unavailable State = "unavailable"
)

// Ended reports whether nothing more will happen in a step that stands at s.
func (s State) Ended() bool { return s != Pending && s != Starting && s != Running }

// Waiting is why a run goes on but cannot move.
type Waiting string

// The reasons of the contract.
const (
	WaitingResourceBusy       Waiting = "resource-busy"
	WaitingTools              Waiting = "tools"
	WaitingGuestLogin         Waiting = "guest-login"
	WaitingVCenterUnavailable Waiting = "vcenter-unavailable"
	// a call without an answer, or a former owner's, may still take effect
	WaitingCallsInFlight Waiting = "calls-in-flight"
)

// Code is guestflow's own word for what went wrong: a closed list.
type Code string

// The codes of the contract.
const (
	InvalidRequest        Code = "InvalidRequest"
	Expired               Code = "Expired"
	DuplicateRequest      Code = "DuplicateRequest"
	NothingToCancel       Code = "NothingToCancel"
	UnknownSecret         Code = "UnknownSecret"
	NotFound              Code = "NotFound"
	Unauthorized          Code = "Unauthorized"
	Unauthenticated       Code = "Unauthenticated"
	NotCustomizable       Code = "NotCustomizable"
	PowerState            Code = "PowerState"
	InvalidState          Code = "InvalidState"
	ToolsNotRunning       Code = "ToolsNotRunning"
	GuestLoginRefused     Code = "GuestLoginRefused"
	GuestPermissionDenied Code = "GuestPermissionDenied"
	Busy                  Code = "Busy"
	CodeUnavailable       Code = "Unavailable"
	CustomizationFailed   Code = "CustomizationFailed"
	NetworkFailed         Code = "NetworkFailed"
	VerifyMismatch        Code = "VerifyMismatch"
	ProcessNotStarted     Code = "ProcessNotStarted"
	ExitCode              Code = "ExitCode"
	ExitCodeUnknown       Code = "ExitCodeUnknown"
	StepTimeout           Code = "StepTimeout"
	DeadlineExceeded      Code = "DeadlineExceeded"
	Uncertain             Code = "Uncertain"
	CodeCanceled          Code = "Canceled"
	Orphaned              Code = "Orphaned"
	Unsupported           Code = "Unsupported"
	Internal              Code = "Internal"
)

// RequestRef names a request: its CloudEvent's source and id.
type RequestRef struct {
	Source string `json:"source"`
	ID     string `json:"id"`
}

// Run is the data of every event out: the run as it stands after the event. A rejection has the same shape, without Run
// and N.
type Run struct {
	ID           string          `json:"run,omitempty"`
	N            int             `json:"n,omitempty"`
	Process      string          `json:"process,omitempty"` // in process.* events: which one
	VCenter      string          `json:"vcenter"`
	VM           string          `json:"vm,omitempty"` // managed object ID
	VMName       string          `json:"vmName,omitempty"`
	InstanceUUID string          `json:"instanceUuid,omitempty"`
	Request      *RequestRef     `json:"request,omitempty"`
	Status       Status          `json:"status"`
	Owner        *Owner          `json:"owner,omitempty"`
	AcceptedAt   *time.Time      `json:"acceptedAt,omitempty"`
	Deadline     *time.Time      `json:"deadline,omitempty"`
	FinishedAt   *time.Time      `json:"finishedAt,omitempty"`
	Waiting      Waiting         `json:"waiting,omitempty"`
	WaitingFor   *WaitReason     `json:"waitingFor,omitempty"`
	CanceledBy   *CanceledBy     `json:"canceledBy,omitempty"`
	Check        *Check          `json:"check,omitempty"`
	Customize    *Customize      `json:"customize,omitempty"`
	Network      *Network        `json:"network,omitempty"`
	Verify       *Verify         `json:"verify,omitempty"`
	Processes    []Process       `json:"processes,omitempty"`
	Observed     *Observed       `json:"observed,omitempty"`
	Error        *Error          `json:"error,omitempty"`
	Requested    json.RawMessage `json:"requested,omitempty"`  // only in run.accepted: the request's data as taken
	Checkpoint   json.RawMessage `json:"checkpoint,omitempty"` // guestflow's own, see the handler
	Truncated    bool            `json:"truncated,omitempty"`  // a command line or a message was cut
}

// Carried is the run as a later event stands on it: without what belongs to one event alone.
func (r Run) Carried() Run {
	r.Process, r.Waiting, r.WaitingFor, r.Observed, r.Requested, r.Checkpoint = "", "", nil, nil, nil, nil
	return r
}

// Owner is the process that works on the run.
type Owner struct {
	Instance  string `json:"instance"`
	Takeovers int    `json:"takeovers"`
}

// CanceledBy names the cancel that ended a run.
type CanceledBy struct {
	Source string `json:"source"`
	ID     string `json:"id"`
	Reason string `json:"reason,omitempty"`
}

// WaitReason is why something waits, or was not done, in words and as vCenter said it.
type WaitReason struct {
	Message string   `json:"message"`
	VSphere *VSphere `json:"vsphere,omitempty"`
}

// Remark is a blocker or a warning of the check.
type Remark struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Field   string `json:"field,omitempty"` // the request's field that it is about
}

// Check is vCenter's answer whether the VM can be customized, and what else speaks for or against the run.
type Check struct {
	State               State    `json:"state"`
	Status              string   `json:"status,omitempty"` // SUPPORTED, NOT_SUPPORTED
	SupportedGuestOS    *bool    `json:"supportedGuestOs,omitempty"`
	SupportedPowerState *bool    `json:"supportedPowerState,omitempty"`
	Blockers            []Remark `json:"blockers,omitempty"`
	Warnings            []Remark `json:"warnings,omitempty"`

	StartedAt  *time.Time `json:"startedAt,omitempty"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
}

// Customize is the customization of the guest.
type Customize struct {
	State      State      `json:"state"`
	Task       string     `json:"task,omitempty"`     // managed object ID of the Task
	Progress   *int       `json:"progress,omitempty"` // per cent
	DecidedBy  string     `json:"decidedBy,omitempty"`
	StartedAt  *time.Time `json:"startedAt,omitempty"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
	Guest      *Guest     `json:"guest,omitempty"`
	Reason     string     `json:"reason,omitempty"` // why a step that could not be stopped keeps running
	// why the guest's own status could not be read where it was asked for
	NotRead *WaitReason `json:"notRead,omitempty"`
}

// Guest is the customization status that the guest itself reports; its times are the guest's clock.
type Guest struct {
	Status    string     `json:"status,omitempty"` // IDLE, PENDING, RUNNING, SUCCEEDED, FAILED
	Error     string     `json:"error,omitempty"`
	StartTime *time.Time `json:"startTime,omitempty"`
	EndTime   *time.Time `json:"endTime,omitempty"`
}

// Network is the start of the guest's network.
type Network struct {
	State      State      `json:"state"`
	Task       string     `json:"task,omitempty"`
	StartedAt  *time.Time `json:"startedAt,omitempty"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
	Reason     string     `json:"reason,omitempty"`
}

// Verify is what the guest shows, held against the spec.
type Verify struct {
	State       State         `json:"state"`
	HostName    string        `json:"hostName,omitempty"`
	NICs        []NIC         `json:"nics,omitempty"` // in PCI slot order
	Gateways    []string      `json:"gateways,omitempty"`
	DNS         []string      `json:"dns,omitempty"`
	Mismatches  []string      `json:"mismatches,omitempty"`
	NotCompared []NotCompared `json:"notCompared,omitempty"`

	StartedAt  *time.Time `json:"startedAt,omitempty"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
}

// NotCompared is what verify could not hold the guest against, and why.
type NotCompared struct {
	Field  string `json:"field"` // of the request, as a path
	Reason string `json:"reason"`
}

// NIC is a virtual network adapter as the guest reports it.
type NIC struct {
	MAC       string      `json:"mac"`
	Connected bool        `json:"connected"`
	Addresses []string    `json:"addresses,omitempty"`
	IPConfig  []IPAddress `json:"ipConfig,omitempty"` // what the guest tells of its addresses
}

// IPAddress is an address with what the guest tells of it, as NetIpConfigInfoIpAddress has it.
type IPAddress struct {
	IPAddress    string `json:"ipAddress"`
	PrefixLength int    `json:"prefixLength,omitempty"`
	State        string `json:"state,omitempty"`
}

// Process is a guest process; its times are the guest's clock.
type Process struct {
	Name        string     `json:"name"`
	State       State      `json:"state"`
	PID         int64      `json:"pid,omitempty"`
	Owner       string     `json:"owner,omitempty"`
	ProcessName string     `json:"processName,omitempty"`
	Command     string     `json:"command,omitempty"`
	ExitCode    *int64     `json:"exitCode,omitempty"`
	StartedAt   *time.Time `json:"startedAt,omitempty"`
	FinishedAt  *time.Time `json:"finishedAt,omitempty"`
	Reason      string     `json:"reason,omitempty"`
}

// Observed is what vCenter showed of the VM when a run ended without success.
type Observed struct {
	At                 time.Time `json:"at"`
	PowerState         string    `json:"powerState,omitempty"`
	ToolsRunningStatus string    `json:"toolsRunningStatus,omitempty"`
	ToolsVersion       string    `json:"toolsVersion,omitempty"`
	HostName           string    `json:"hostName,omitempty"`
	NICs               []NIC     `json:"nics,omitempty"`
	Guest              *Guest    `json:"guest,omitempty"`
	GuestLog           []string  `json:"guestLog,omitempty"`
}

// Error is why a run or a request failed.
type Error struct {
	Step      string   `json:"step,omitempty"`
	Process   string   `json:"process,omitempty"`
	Code      Code     `json:"code"`
	Message   string   `json:"message"`
	Field     string   `json:"field,omitempty"`   // of the request, as a path: customize.spec
	Retryable bool     `json:"retryable"`         // a new request may succeed with nothing changed
	Waiting   Waiting  `json:"waiting,omitempty"` // of a time that ran out: what was waited for last
	VSphere   *VSphere `json:"vsphere,omitempty"`
}

// VSphere is what vCenter said, whole, under its own name.
type VSphere struct {
	Name             string            `json:"name,omitempty"` // _typeName of the fault, or error_type
	HTTPStatus       int               `json:"httpStatus,omitempty"`
	Messages         []json.RawMessage `json:"messages,omitempty"`
	LocalizedMessage string            `json:"localizedMessage,omitempty"`
	Data             json.RawMessage   `json:"data,omitempty"`
	Challenge        string            `json:"challenge,omitempty"`
	Cause            *VSphere          `json:"cause,omitempty"` // the fault's faultCause
}
