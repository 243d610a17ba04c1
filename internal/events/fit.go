package events

import "encoding/json"

// limits are how much of other people's words an event holds.
type limits struct{ command, message, list int }

// limitsOf are the contract's first; then tighter ones, for an event that is still too large: many processes, many messages, many NICs.
var limitsOf = []limits{{maxCommand, maxMessage, 64}, {256, 256, 16}, {64, 64, 8}}

// fitted encodes run so that its event keeps to the contract's sizes. What the request holds, in run.accepted, is kept whole.
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

// cutter cuts what is too long, and remembers that it did.
type cutter struct {
	limits
	cut bool
}

// run is a copy of r with its command lines, messages and lists cut short.
func (c *cutter) run(from *Run) *Run {
	r := *from
	r.Processes = append([]Process(nil), r.Processes...)
	for i := range r.Processes {
		p := &r.Processes[i]
		p.Command, p.Reason = c.text(p.Command, c.command), c.words(p.Reason)
		p.ProcessName, p.Owner = c.text(p.ProcessName, maxName), c.text(p.Owner, maxName)
	}
	r.CanceledBy = changed(r.CanceledBy, func(by *CanceledBy) { by.Reason = c.words(by.Reason) })
	r.Check = changed(r.Check, func(check *Check) {
		check.Blockers, check.Warnings = c.remarks(check.Blockers), c.remarks(check.Warnings)
	})
	r.Customize = changed(r.Customize, func(s *Customize) { s.Reason, s.Guest = c.words(s.Reason), c.guest(s.Guest) })
	r.Network = changed(r.Network, func(s *Network) { s.Reason = c.words(s.Reason) })
	r.Verify = changed(r.Verify, func(v *Verify) {
		v.HostName, v.Mismatches, v.NICs = c.text(v.HostName, maxName), c.all(v.Mismatches), c.nics(v.NICs)
	})
	r.Observed = changed(r.Observed, func(o *Observed) {
		o.HostName, o.GuestLog, o.NICs, o.Guest = c.text(o.HostName, maxName), c.all(o.GuestLog), c.nics(o.NICs), c.guest(o.Guest)
	})
	r.Error = changed(r.Error, func(e *Error) {
		e.Message = c.words(e.Message)
		e.VSphere = changed(e.VSphere, c.vsphere)
	})
	r.Truncated = r.Truncated || c.cut
	return &r
}

// vsphere leaves long JSON out: it has no half.
func (c *cutter) vsphere(v *VSphere) {
	v.LocalizedMessage, v.Challenge = c.words(v.LocalizedMessage), c.words(v.Challenge)
	var messages []json.RawMessage
	for _, m := range v.Messages {
		if len(m) > c.message {
			c.cut = true
			continue
		}
		messages = append(messages, m)
	}
	v.Messages = short(c, messages)
	if len(v.Data) > c.message {
		v.Data, c.cut = nil, true
	}
}

func (c *cutter) text(s string, n int) string {
	c.cut = c.cut || len(s) > n
	return cut(s, n)
}

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
		list[i].Message, list[i].Field = c.words(list[i].Message), c.text(list[i].Field, maxName)
	}
	return list
}

// nics are those that a guest tells of, as many as it likes.
func (c *cutter) nics(list []NIC) []NIC {
	list = short(c, list)
	for i := range list {
		list[i].MAC, list[i].Addresses = c.text(list[i].MAC, maxName), short(c, list[i].Addresses)
		for k := range list[i].Addresses {
			list[i].Addresses[k] = c.text(list[i].Addresses[k], maxName)
		}
	}
	return list
}

func (c *cutter) guest(g *Guest) *Guest {
	return changed(g, func(g *Guest) { g.Error = c.words(g.Error) })
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
