package handler

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// What decides about a call is seen after its call: a Task, the guest's own status, what the guest shows, a process.
// One rule for all of it: it speaks for the call only as far as it differs from what was there before. What was there
// is noted in the checkpoint, with the intent at the latest, so that every owner judges alike; what could not be read
// then, and what is not shown now, proves nothing.
//
//	a Task              is none of those that vCenter showed before, and none that an earlier run made:
//	                    checkpoint.known
//	the guest's status  of a customization that began later than the one read before the call: before.began
//	what it shows       all that is asked for, where it was seen to show something else before: before.other
//	a process           bears the run's marker, or has a pid and start time that were not there before:
//	                    processStep.is, mayBeAmong

// taskMark names a Task for good: its ID and, once it was seen, when it was queued (vCenter's clock). A vCenter that
// was restored from a backup gives the same IDs to other Tasks.
func taskMark(t vcapi.Task) string {
	if t.QueueTime.IsZero() {
		return t.ID
	}

	// Whole: what is cut here, and rounded there, is a second apart.
	return t.ID + "@" + t.QueueTime.UTC().Format(time.RFC3339Nano)
}

// isTask reports whether a mark names a Task.
func isTask(mark string, t vcapi.Task) bool {
	id, queued, dated := strings.Cut(mark, "@")
	if id != t.ID || !dated || t.QueueTime.IsZero() {
		return id == t.ID
	}
	at, err := time.Parse(time.RFC3339, queued)
	return err != nil || sameTime(at, t.QueueTime)
}

// sawTask dates a Task of this run by what vCenter shows of it.
func (c *checkpoint) sawTask(t vcapi.Task) {
	if i := slices.Index(c.Tasks, t.ID); i >= 0 {
		c.Tasks[i] = taskMark(t)
	}
}

// sameTask reports whether a Task is the one that this run knows by its ID, as far as its mark tells.
func (c *checkpoint) sameTask(t vcapi.Task) bool {
	return !slices.ContainsFunc(c.Tasks, func(mark string) bool {
		return strings.HasPrefix(mark, t.ID+"@") && !isTask(mark, t)
	})
}

// known reports whether a Task is surely not the one that an open intent of this run may have made: it was there
// before, or an earlier call made it. Those of another vCenter are no Tasks of this one.
func (c *checkpoint) known(t vcapi.Task, instance string) bool {
	named := func(marks []string, of string) bool {
		return (of == "" || instance == "" || of == instance) &&
			slices.ContainsFunc(marks, func(mark string) bool { return isTask(mark, t) })
	}

	there := c.BaselineNewest == nil || !t.QueueTime.After(*c.BaselineNewest) ||
		sameTime(t.QueueTime, *c.BaselineNewest)
	return named(c.Baseline, c.Instance) && there || named(c.Tasks, c.Instance) ||
		slices.ContainsFunc(c.Past, func(p pastRun) bool { return named(p.Tasks, p.Instance) })
}

// madeBy reports whether a method made a Task, by its name, else by its description's key:
// "vm.GuestCustomizationManager.", and a word that no page gives for sure. maybe: neither of them tells.
func madeBy(t vcapi.Task, method string) (yes, maybe bool) {
	if strings.EqualFold(t.Name, method) || strings.EqualFold(t.Name+"_Task", method) {
		return true, false
	}
	key, ours := strings.CutPrefix(strings.ToLower(t.DescriptionID), "vm.guestcustomizationmanager.")
	switch {
	case !ours:
		return false, t.Name == "" && (key == "" || strings.Contains(key, "customiz"))
	case strings.HasPrefix(key, "abort"):
		return method == abortMethod, false
	case strings.Contains(key, "network"):
		return method == networkMethod, false
	case strings.HasPrefix(key, "customize"):
		return method == customizeMethod, false
	}

	return false, true
}

// before is what there was of the guest before a call.
type before struct {
	// GuestRead says that the guest's word on its last customization was read, GuestStart when that one started (the
	// guest's clock; absent: there was none).
	GuestRead  bool       `json:"guestRead,omitempty"`
	GuestStart *time.Time `json:"guestStart,omitempty"`
	// Other says that the guest was seen to show something else than what is asked for, which Asked names.
	Other bool   `json:"other,omitempty"`
	Asked string `json:"asked,omitempty"`
}

// reportedWithin is how long after a customization a guest may still show what was before it: VMware Tools report once
// in half a minute.
const reportedWithin = 2 * time.Minute

// comesBy reports whether the guest may come to show what is asked for by an earlier run that asked for the same a
// moment ago.
func (c *checkpoint) comesBy(asked string) bool {
	return slices.ContainsFunc(c.Past, func(p pastRun) bool {
		return p.Asked == asked && p.Until != nil && time.Now().Before(*p.Until)
	})
}

// name is what stands for a spec's host name and addresses in a checkpoint: some of them may be secrets.
func (e expected) name() string {
	all := []string{e.host.text}
	for _, a := range e.adapters {
		for _, f := range a.fixed {
			all = append(all, f.text)
		}
	}

	sum := sha256.Sum256([]byte(strings.Join(all, "\n")))
	return hex.EncodeToString(sum[:8])
}

// precision is that of the coarsest source of times, seconds. The same moment comes in milliseconds by REST and in
// microseconds by the long poll, cut or rounded: moments that are closer to each other are one.
const precision = time.Second

func sameTime(a, b time.Time) bool { return a.Sub(b).Abs() < precision }

// began reports whether the guest's status speaks of a customization that began after the one read before the call.
func (b before) began(g *vcapi.GuestCustomization) bool {
	return b.GuestRead && g != nil && g.StartTime != nil &&
		(b.GuestStart == nil || g.StartTime.After(*b.GuestStart) && !sameTime(*g.StartTime, *b.GuestStart))
}

// keepBefore puts it into the checkpoint, with the intent. Where a call of this effect was not answered, what was there
// before that one stays: the guest may be what it is now by its effect.
func (r *run) keepBefore(b before) {
	if !r.owner.lookAgain {
		r.point.before = b
	}
}

// readVMBefore reads the VM. VMware Tools that began to run a moment ago have not reported the guest's name yet: for
// that they have some seconds.
func (r *run) readVMBefore(ctx context.Context) (vm vcapi.VM, err error) {
	within, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	for {
		if vm, err = r.readVM(within); err != nil || vm.HostName != "" || within.Err() != nil {
			return vm, err
		}
		if backoff.Sleep(within, time.Second) != nil {
			return vm, nil
		}
	}
}

// showsOther reports whether a guest shows something else than a spec's host name and addresses. That it shows no
// address at all does not count where the name is right: it may not have told them yet.
func (r *run) showsOther(e expected, vm vcapi.VM) bool {
	vm.NICs = slices.Clone(vm.NICs)
	for i := range vm.NICs { // one that is there and not settled yet is no other one
		vm.NICs[i].IPConfig = nil
	}
	seen := e.evidence(vm, r.state.VMName)
	right, named := seen[e.host.field]
	if named && !right {
		return true
	}
	nics, _ := nicsOfVM(vm)
	return slices.Contains(slices.Collect(maps.Values(seen)), false) &&
		(!named || slices.ContainsFunc(nics, hasAddress))
}

// showsAll reports whether a guest shows a spec's host name and addresses, and that these are something.
func (r *run) showsAll(e expected, vm vcapi.VM) bool {
	seen := slices.Collect(maps.Values(e.evidence(vm, r.state.VMName)))
	return len(seen) > 0 && !slices.Contains(seen, false)
}

// networkUp reports whether a guest shows what StartGuestNetwork_Task is for: each of its NICs connected, with an
// address that others can reach.
func networkUp(vm vcapi.VM) bool {
	nics, _ := nicsOfVM(vm)
	return len(nics) > 0 && !slices.ContainsFunc(nics, func(n shownNIC) bool { return !n.Connected || !hasAddress(n) })
}

// hasAddress reports whether a NIC has an address that others can reach.
func hasAddress(n shownNIC) bool {
	return slices.ContainsFunc(n.addresses(), shownAddress.reachable)
}
