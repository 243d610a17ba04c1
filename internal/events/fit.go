package events

import (
	"encoding/json"
	"time"
)

const (
	// MaxEvent is how many bytes an event has at most; run.accepted, which holds its request's data, may have
	// MaxRequest more.
	MaxEvent = 64 << 10
	// MaxRequest is how many bytes a request has at most, its headers included.
	MaxRequest = 256 << 10

	// bytes of an event's data: the envelope has the rest, percent-encoded in the binary form
	maxData    = MaxEvent - 16<<10
	maxCommand = 1 << 10 // bytes of a command line
	maxName    = 256     // bytes of a name that a guest tells, or of a field's path
	maxMessage = 2 << 10 // bytes of a message
)

// limits are how much of other people's words an event holds.
type limits struct{ command, message, list int }

// limitsOf are the contract's first; then tighter ones, for an event that is still too large: many processes, many
// messages, many NICs.
var limitsOf = []limits{{maxCommand, maxMessage, 64}, {256, 256, 16}, {64, 64, 8}}

// fitted encodes run so that its event keeps to the contract's sizes. What the request holds, in run.accepted, is kept
// whole.
func fitted(k Kind, run *Run) (data []byte, err error) {
	for _, l := range limitsOf {
		c := &cutter{limits: l}
		data, err = marshal(c.run(run))
		if err != nil || len(data) <= maxData || k == RunAccepted {
			break
		}
	}
	return data, err
}

// cutter cleans what others wrote, cuts what is too long, and remembers that it did.
type cutter struct {
	limits
	cut bool
}

// run is a copy of r with everything in it that others wrote cleaned, and cut short. What names a request stays as it
// is: it is an identity.
func (c *cutter) run(from *Run) *Run {
	r := *from
	r.VMName, r.InstanceUUID = c.name(r.VMName), c.name(r.InstanceUUID)
	r.Requested = WithoutNulls(r.Requested)
	r.Processes = append([]Process(nil), r.Processes...)
	for i := range r.Processes {
		p := &r.Processes[i]
		p.Command, p.Reason = c.text(p.Command, c.command), c.words(p.Reason)
		p.ProcessName, p.Owner = c.name(p.ProcessName), c.name(p.Owner)
		p.StartedAt, p.FinishedAt = writable(p.StartedAt), writable(p.FinishedAt)
	}
	r.CanceledBy = changed(r.CanceledBy, func(by *CanceledBy) { by.Reason = c.words(by.Reason) })
	r.Check = changed(r.Check, func(check *Check) {
		check.Status = c.name(check.Status)
		check.Blockers, check.Warnings = c.remarks(check.Blockers), c.remarks(check.Warnings)
	})
	r.WaitingFor = changed(r.WaitingFor, c.reason)
	r.Customize = changed(r.Customize, func(s *Customize) {
		s.Task, s.Reason, s.Guest = c.name(s.Task), c.words(s.Reason), c.guest(s.Guest)
		s.NotRead = changed(s.NotRead, c.reason)
	})
	r.Network = changed(r.Network, func(s *Network) { s.Task, s.Reason = c.name(s.Task), c.words(s.Reason) })
	r.Verify = changed(r.Verify, func(v *Verify) {
		v.HostName, v.Mismatches, v.NICs = c.name(v.HostName), c.all(v.Mismatches), c.nics(v.NICs)
		v.Gateways, v.DNS = c.all(v.Gateways), c.all(v.DNS)
		v.NotCompared = short(c, v.NotCompared)
		for i := range v.NotCompared {
			n := &v.NotCompared[i]
			n.Field, n.Reason = c.text(n.Field, maxPath), c.words(n.Reason)
		}
	})
	r.Observed = changed(r.Observed, func(o *Observed) {
		o.PowerState, o.ToolsRunningStatus, o.ToolsVersion = c.name(o.PowerState), c.name(o.ToolsRunningStatus),
			c.name(o.ToolsVersion)
		o.HostName, o.GuestLog, o.NICs, o.Guest = c.name(o.HostName), c.all(o.GuestLog), c.nics(o.NICs),
			c.guest(o.Guest)
	})
	r.Error = changed(r.Error, func(e *Error) {
		e.Message, e.Field = c.words(e.Message), c.text(e.Field, maxPath)
		e.VSphere = c.vsphere(e.VSphere, maxCauses)
	})
	r.Truncated = r.Truncated || c.cut
	return &r
}

func (c *cutter) reason(r *WaitReason) {
	r.Message, r.VSphere = c.words(r.Message), c.vsphere(r.VSphere, maxCauses)
}

// maxCauses is how many causes of a fault, each the cause of the one before, are told.
const maxCauses = 4

func (c *cutter) vsphere(v *VSphere, causes int) *VSphere {
	return changed(v, func(v *VSphere) {
		v.Name, v.LocalizedMessage, v.Challenge = c.name(v.Name), c.words(v.LocalizedMessage), c.words(v.Challenge)
		v.Data = c.json(v.Data)
		var messages []json.RawMessage
		for _, m := range short(c, v.Messages) {
			if m = c.json(m); m != nil {
				messages = append(messages, m)
			}
		}
		v.Messages = messages
		if v.Cause != nil && causes == 0 {
			v.Cause, c.cut = nil, true
		}
		v.Cause = c.vsphere(v.Cause, causes-1)
	})
}

func (c *cutter) json(raw json.RawMessage) json.RawMessage {
	b, wasCut := shortJSON(raw, c.message)
	c.cut = c.cut || wasCut
	return b
}

func (c *cutter) text(s string, n int) string {
	s = Clean(s)
	c.cut = c.cut || len(s) > n
	return Cut(s, n)
}

func (c *cutter) name(s string) string { return c.text(s, maxName) }

func (c *cutter) words(s string) string { return c.text(s, c.message) }

func (c *cutter) all(list []string) []string {
	list = short(c, list)
	for i := range list {
		list[i] = c.words(list[i])
	}
	return list
}

func (c *cutter) remarks(list []Remark) []Remark {
	list = short(c, list)
	for i := range list {
		list[i].Code, list[i].Message, list[i].Field = c.name(list[i].Code), c.words(list[i].Message),
			c.text(list[i].Field, maxName)
	}
	return list
}

// nics are those that a guest tells of, as many as it likes.
func (c *cutter) nics(list []NIC) []NIC {
	list = short(c, list)
	for i := range list {
		list[i].MAC, list[i].Addresses = c.name(list[i].MAC), short(c, list[i].Addresses)
		for k := range list[i].Addresses {
			list[i].Addresses[k] = c.name(list[i].Addresses[k])
		}
		list[i].IPConfig = short(c, list[i].IPConfig)
		for k := range list[i].IPConfig {
			a := &list[i].IPConfig[k]
			a.IPAddress, a.State = c.name(a.IPAddress), c.name(a.State)
		}
	}
	return list
}

func (c *cutter) guest(g *Guest) *Guest {
	return changed(g, func(g *Guest) {
		g.Status, g.Error = c.name(g.Status), c.words(g.Error)
		g.StartTime, g.EndTime = writable(g.StartTime), writable(g.EndTime)
	})
}

// writable is a guest's time where JSON can have it: RFC 3339 ends with the year 9999, which another zone's clock may
// have left.
func writable(t *time.Time) *time.Time {
	if t == nil || t.Year() < 0 || t.Year() > 9999 {
		return nil
	}
	return t
}

// changed is a changed copy of v; nil where there is none.
func changed[T any](v *T, change func(*T)) *T {
	if v == nil {
		return nil
	}
	other := *v
	change(&other)
	return &other
}

// short is a copy of the list's beginning.
func short[T any](c *cutter, list []T) []T {
	if len(list) > c.list {
		list, c.cut = list[:c.list], true
	}
	return append([]T(nil), list...)
}
