package events

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"regexp"
	"strings"
)

// EventsStream and DeadlettersStream are the two streams that all vCenters share.
const (
	EventsStream      = "GUESTFLOW_EVENTS"
	DeadlettersStream = "GUESTFLOW_DEADLETTERS"
)

var (
	vcenterName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	vmName      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$`)
)

// ValidVCenter reports whether name may be a vCenter's name: it becomes a token of subjects and part of the names of
// streams and consumers.
func ValidVCenter(name string) bool { return vcenterName.MatchString(name) }

// ValidVM reports whether vm has the form of a managed object ID. It becomes a token of subjects: a literal "*" or ">"
// there would be stored.
func ValidVM(vm string) bool { return vmName.MatchString(vm) }

// RequestsStream is the name of the stream of requests and cancels of one vCenter: "GUESTFLOW_REQUESTS_lab".
func RequestsStream(vcenter string) string { return "GUESTFLOW_REQUESTS_" + vcenter }

// RequestsConsumer is the name of the durable that all replicas share: "guestflow-requests-lab".
func RequestsConsumer(vcenter string) string { return "guestflow-requests-" + vcenter }

// CancelsConsumer is the name of the durable for cancels: "guestflow-cancels-lab".
func CancelsConsumer(vcenter string) string { return "guestflow-cancels-" + vcenter }

// RequestSubject is where requests for vm are published: "guestflow.requests.lab.vm-42". With "*" for vm it is the
// filter over all of them.
func RequestSubject(vcenter, vm string) string { return "guestflow.requests." + vcenter + "." + vm }

// CancelSubject is where cancels for vm are published: "guestflow.cancels.lab.vm-42".
func CancelSubject(vcenter, vm string) string { return "guestflow.cancels." + vcenter + "." + vm }

// QueueSubject is the filter over the requests and the cancels for vm, in its vCenter's requests stream:
// "guestflow.*.lab.vm-42".
func QueueSubject(vcenter, vm string) string { return "guestflow.*." + vcenter + "." + vm }

// EventSubject is where an event of kind k is published: "guestflow.events.lab.vm-42.run.accepted".
func EventSubject(vcenter, vm string, k Kind) string {
	return "guestflow.events." + vcenter + "." + vm + "." + string(k)
}

// History is the filter over everything in a VM's journal: "guestflow.events.lab.vm-42.>".
//
// It is the only builder of that filter. On a replicated stream the leader's guard against two appends at once is keyed
// by the literal text of the filter: two writers that say the same with other words are both told "stored".
func History(vcenter, vm string) string { return "guestflow.events." + vcenter + "." + vm + ".>" }

// RejectionSubject is where the refusal of a message is told: "guestflow.rejections.lab.vm-42", or
// "guestflow.rejections.lab._" where the message's subject names no VM and vm is empty.
func RejectionSubject(vcenter, vm string) string {
	return "guestflow.rejections." + vcenter + "." + cmp.Or(vm, "_")
}

// DeadletterSubject is where a refused message is kept, as RejectionSubject.
func DeadletterSubject(vcenter, vm string) string {
	return "guestflow.deadletters." + vcenter + "." + cmp.Or(vm, "_")
}

// Type is the CloudEvents type of a kind: "io.guestflow.customization.run.accepted.v1".
func Type(k Kind) string { return typePrefix + string(k) + typeSuffix }

const (
	typePrefix = "io.guestflow.customization."
	typeSuffix = ".v1"
)

// KindOf is the reverse of Type; "" where the type is not one of guestflow's.
func KindOf(typ string) Kind {
	k, ok := strings.CutPrefix(typ, typePrefix)
	if !ok {
		return ""
	}
	if k, ok = strings.CutSuffix(k, typeSuffix); !ok {
		return ""
	}
	return Kind(k)
}

// Source is the CloudEvents source of every event out: "/guestflow/lab".
func Source(vcenter string) string { return "/guestflow/" + vcenter }

// RunID names the run of a request: the first 26 characters of lower-case base32 (RFC 4648) of SHA-256 over
// "<vcenter>\n<vm>\n<source>\n<id>". A request that is delivered or published twice is one run, and a client can
// compute its name.
func RunID(vcenter, vm string, ref RequestRef) string {
	sum := sha256.Sum256([]byte(vcenter + "\n" + vm + "\n" + ref.Source + "\n" + ref.ID))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:26]
}

// lastToken is the text behind the last dot of a subject: the VM, in subjects of requests and cancels.
func lastToken(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }
