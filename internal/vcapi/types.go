package vcapi

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Config says which vCenter a Client speaks to, and as whom.
type Config struct {
	Name     string // what errors call this vCenter; its host name, where empty
	URL      string // https://host[:port], no path
	Username string
	Password func() (string, error) // read at each login, so that a rotated secret works

	RootCAs *x509.CertPool // nil: the system's
	// Thumbprint is the SHA-256 of the server's certificate, in hex with or without colons. Where set, it is checked in
	// place of the roots.
	Thumbprint string

	// TravelTime is how long bytes of an effect may stay unacknowledged before the kernel gives the connection up
	// (TCP_USER_TIMEOUT; Linux only). Default 10 s.
	TravelTime time.Duration
	// CallTimeout bounds one read, from dialling to the last byte of the response. Default 30 s.
	CallTimeout time.Duration
	// PollWait is the maxWaitSeconds of the long poll, whole seconds. Default 30 s.
	PollWait time.Duration
	// PollGrace is how long after PollWait an unanswered long poll is considered dead and its connection is closed.
	// Default 15 s.
	PollGrace time.Duration

	// OnCall, where set, is called after every call. endpoint is a bounded label such as "CustomizeGuest_Task" or "GET
	// guest/customization".
	OnCall func(ctx context.Context, endpoint string, took time.Duration, err error)
	// Tracer, where set, makes a span of every call that is part of a trace. Texts of vCenter and of guests are not in
	// it.
	Tracer trace.Tracer
	// OnAnswer, where set, is called with the reason when vCenter no longer answers calls or the long poll, when that
	// reason changes, and with nil when vCenter answers again, or for the first time. It must not call the Client.
	OnAnswer func(why error)
	// OnLogin, where set, is called after every login, with nil when it succeeded.
	OnLogin func(err error)
}

// Fence is the caller's last check before an effect is sent: that it still owns the run. It is called when the
// connection is open. Its error means that nothing was sent. A nil Fence lets the effect through.
type Fence func(ctx context.Context) error

// About is which vCenter answers (ServiceContent.about).
type About struct {
	Name         string // "VMware vCenter Server"
	APIVersion   string // "9.0.0.0"
	InstanceUUID string
}

// Session names a session of VI JSON. Key is UserSession.key: a name, not the secret that travels in the
// vmware-api-session-id header.
type Session struct {
	Key      string
	UserName string
}

// hidden stands in place of a secret.
const hidden = "***"

// GuestAuth is the login for a guest operation. Its text and JSON forms hide the secrets.
type GuestAuth struct {
	Username    string
	Password    string
	SAMLToken   string // where set, the guest login is by SAML bearer token and Password is not used
	Interactive bool   // with the guest's logged-in desktop session; only with a user name and password

	// Redact are further secrets that travel with the call (in the spec, in the environment): kept out of errors as
	// Password and SAMLToken are.
	Redact []string
}

// String is the user and the kind of login.
func (a GuestAuth) String() string {
	if a.SAMLToken != "" {
		return fmt.Sprintf("guest user %q by SAML token %s", a.Username, hidden)
	}
	return fmt.Sprintf("guest user %q by password %s", a.Username, hidden)
}

// GoString is String, for %#v.
func (a GuestAuth) GoString() string { return a.String() }

// MarshalJSON writes only the user and whether the login is interactive.
func (a GuestAuth) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Username    string `json:"username"`
		Interactive bool   `json:"interactiveSession"`
	}{a.Username, a.Interactive})
}

// ProcessSpec is a program to start in the guest (REST guest/processes create, Vcenter Vm Guest Processes CreateSpec).
// Arguments is one string and goes to the guest's shell on Linux. Environment, where not empty, replaces the guest's
// own; it may hold secrets, so the text form hides its values.
type ProcessSpec struct {
	Path             string
	Arguments        string
	WorkingDirectory string
	Environment      map[string]string
}

// String is the command line and the names of the environment's variables.
func (p ProcessSpec) String() string {
	names := make([]string, 0, len(p.Environment))
	for name := range p.Environment {
		names = append(names, name+"="+hidden)
	}
	sort.Strings(names)
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", p.Path, p.Arguments, strings.Join(names, " ")))
}

// GoString is String, for %#v.
func (p ProcessSpec) GoString() string { return p.String() }

// VM is what vCenter shows of a virtual machine. An empty string or nil means that vCenter did not say.
type VM struct {
	Name                 string
	InstanceUUID         string
	PowerState           string // poweredOn, poweredOff, suspended
	ToolsRunningStatus   string // guestToolsRunning, guestToolsNotRunning, guestToolsExecutingScripts
	ToolsVersion         string
	GuestFamily          string // linuxGuest, windowsGuest
	GuestID              string // what tools report, else what is configured: ubuntu64Guest
	HostName             string // guest.hostName
	GuestOperationsReady *bool
	NICs                 []NIC               // guest.net
	Cards                []Card              // config.hardware.device, in PCI slot order; nil where that was not read
	Routes               int                 // guest.ipStack: how many routes the guest shows
	Gateways             []string            // guest.ipStack: those of its default routes, each once
	DNS                  []string            // guest.ipStack: its DNS servers, in their order
	Customization        *GuestCustomization // guest.customizationInfo, the prefix TOOLSDEPLOYPKG_ dropped
	PendingCustomization string              // config.tools.pendingCustomization
	CloudInit            bool                // config.extraConfig has guestinfo.userdata or guestinfo.metadata
	RecentTasks          []string            // VM.recentTask: managed object IDs
	// Unread are properties that are too large to be read (guest.net): their values are not known.
	Unread []string
}

// NIC is one network adapter as VMware Tools report it (guest.net, GuestNicInfo).
type NIC struct {
	MAC       string
	Connected bool
	Addresses []string
	Device    int32     // deviceConfigId: the Key of its Card; NoDevice: it is none of the VM's; 0: it does not say
	IPConfig  []Address // what is known of Addresses beyond their text, as far as the guest tells
	DNS       []string  // its own DNS servers, where it has some
}

// Address is an IP address as the guest is configured with it (NetIpConfigInfoIpAddress).
type Address struct {
	IP     string
	Prefix int // its length; 0: the guest does not tell
	// State is preferred, deprecated, invalid, inaccessible, unknown, tentative or duplicate; "": the guest does not
	// say.
	State  string
	Origin string // manual, dhcp, linklayer, random, other
}

// Card is a virtual network adapter of the VM's hardware (VirtualEthernetCard).
type Card struct {
	Key       int32
	MAC       string
	Slot      int32 // PCI slot number; 0: vCenter does not tell
	Connected bool
}

// GuestCustomization is what the guest reports about its customization: REST GET guest/customization (Vcenter Vm Guest
// Customization Info) and guest.customizationInfo. It is the status of the mechanism that runs at boot, and that of an
// earlier run stays there: only a StartTime newer than one that was read before the call is of this run. Times are in
// the guest's clock.
type GuestCustomization struct {
	Status    string // IDLE, PENDING, RUNNING, SUCCEEDED, FAILED
	Error     string
	StartTime *time.Time
	EndTime   *time.Time
}

// Check is whether vCenter can customize a VM (Vcenter Vm Guest Customization CheckInfo, vSphere API 9.0.0.0). nil
// means that the check did not get that far.
type Check struct {
	Status              string // SUPPORTED, NOT_SUPPORTED
	SupportedGuestOS    *bool
	SupportedPowerState *bool
}

// Task is a vCenter Task (vim.TaskInfo). Times are in vCenter's clock.
type Task struct {
	ID            string // managed object ID
	Name          string // the method's name: CustomizeGuest_Task
	DescriptionID string // a key, such as VirtualMachine.powerOn; where Name is missing
	Entity        string // managed object ID of what it works on
	State         string // queued, running, success, error
	UserName      string // who started it, where vCenter says so
	Progress      *int   // per cent
	Cancelable    bool
	QueueTime     time.Time
	StartTime     *time.Time
	CompleteTime  *time.Time
	Err           *Error // where State is error; its Status is 0 and its Sent is Answered
}

// Process is a program in the guest (Vcenter Vm Guest Processes Info and Summary). Times are in the guest's clock.
// Finished and ExitCode are known for at most five minutes after the end, and never in a list.
type Process struct {
	PID      int64
	Name     string
	Owner    string
	Command  string
	Started  time.Time
	Finished *time.Time
	ExitCode *int64
}

// WatchState is what the long poll shows of a VM and a Task.
type WatchState struct {
	VM       VM    // from the poll only: name, power, tools, guest family, host name, NICs, customization
	Task     *Task // nil where none is watched or none was shown yet
	VMGone   bool  // vCenter says that there is no such VM (any more); VM is the last known
	TaskGone bool  // vCenter forgot the task; Task is the last known
	// Down reports whether the long poll is unanswered or not understood, or this VM or Task cannot be read. VM and
	// Task are the last known then.
	Down bool
	// Err is why Down is set: an *Error with the text of vCenter or of the network, or what was not understood.
	Err error
}
