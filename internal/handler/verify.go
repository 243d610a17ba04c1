package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// expected is what a spec says that the guest will show.
type expected struct {
	hostName  string
	ofVM      bool // the host name is the VM's name
	addresses []expectedAddress
}

// expectedAddress is a fixed address, on the NIC with this MAC address, or on any where the spec names none.
type expectedAddress struct {
	mac     string
	address netip.Addr
}

// expect reads what a spec fixes. Names and addresses that the guest, vCenter or DHCP makes up are not expected: they cannot be known.
// (VI JSON: CustomizationSpec, CustomizationLinuxPrep, CustomizationSysprep, CustomizationAdapterMapping.)
func expect(spec json.RawMessage) (e expected) {
	type name struct {
		Type string `json:"_typeName"`
		Name string `json:"name"`
	}
	type address struct {
		Address string `json:"ipAddress"`
	}
	var s struct {
		Identity struct {
			HostName name `json:"hostName"`
			UserData struct {
				ComputerName name `json:"computerName"`
			} `json:"userData"`
		} `json:"identity"`
		NICs []struct {
			MAC     string `json:"macAddress"`
			Adapter struct {
				IP   address `json:"ip"`
				IPv6 struct {
					IP []address `json:"ip"`
				} `json:"ipV6Spec"`
			} `json:"adapter"`
		} `json:"nicSettingMap"`
	}
	if json.Unmarshal(spec, &s) != nil {
		return e
	}
	for _, n := range []name{s.Identity.HostName, s.Identity.UserData.ComputerName} {
		switch n.Type {
		case "CustomizationFixedName":
			e.hostName = n.Name
		case "CustomizationVirtualMachineName":
			e.ofVM = true
		}
	}
	for _, n := range s.NICs {
		for _, a := range append(n.Adapter.IPv6.IP, n.Adapter.IP) {
			if parsed, err := netip.ParseAddr(a.Address); err == nil {
				e.addresses = append(e.addresses, expectedAddress{mac: n.MAC, address: parsed})
			}
		}
	}
	return e
}

// names tells whether the spec fixes anything that the guest can show.
func (e expected) names() bool { return e.hostName != "" || e.ofVM || len(e.addresses) > 0 }

// hostNameMismatch says how the VM's host name differs; "" where it does not.
func (e expected) hostNameMismatch(vm vcapi.VM, vmName string) string {
	want := e.hostName
	if e.ofVM {
		want = vmName
	}
	if want == "" || strings.EqualFold(firstLabel(want), firstLabel(vm.HostName)) {
		return ""
	}
	return fmt.Sprintf("host name: want %s, the guest shows %s", firstLabel(want), orNothing(vm.HostName))
}

func firstLabel(host string) string {
	label, _, _ := strings.Cut(host, ".")
	return label
}

func orNothing(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// addressMismatches says which addresses are missing.
func (e expected) addressMismatches(vm vcapi.VM) (missing []string) {
	for _, want := range e.addresses {
		shown := slices.ContainsFunc(vm.NICs, func(n vcapi.NIC) bool {
			return (want.mac == "" || strings.EqualFold(want.mac, n.MAC)) && slices.ContainsFunc(n.Addresses, func(a string) bool {
				host, _, _ := strings.Cut(a, "/")
				parsed, err := netip.ParseAddr(host)
				return err == nil && parsed.WithZone("") == want.address.WithZone("")
			})
		})
		if !shown {
			on := ""
			if want.mac != "" {
				on = " on NIC " + want.mac
			}
			missing = append(missing, fmt.Sprintf("address: want %s%s, the guest does not show it", want.address, on))
		}
	}
	return missing
}

// nicMismatches says which NICs are not connected.
func nicMismatches(vm vcapi.VM, wanted bool) (off []string) {
	for _, n := range vm.NICs {
		if !n.Connected {
			off = append(off, fmt.Sprintf("NIC %s is not connected", n.MAC))
		}
	}
	if len(vm.NICs) == 0 && wanted {
		off = append(off, "the guest shows no NIC")
	}
	return off
}

// verifyTimeout is how long the guest may take to show what the spec says.
func (r *run) verifyTimeout() time.Duration {
	if r.asked.Verify == nil {
		return defaultVerify
	}
	return r.asked.Verify.Timeout.Or(defaultVerify)
}

const defaultVerify = 3 * time.Minute

// mismatches holds what the guest shows against the spec, as far as the request asks for it.
func (r *run) mismatches(e expected, vm vcapi.VM) (all []string) {
	on := func(b *bool) bool { return b == nil || *b }
	asked := r.asked.Verify
	if asked == nil {
		asked = &events.AskedVerify{}
	}
	if on(asked.HostName) {
		if m := e.hostNameMismatch(vm, r.state.VMName); m != "" {
			all = append(all, m)
		}
	}
	if on(asked.Addresses) {
		all = append(all, e.addressMismatches(vm)...)
	}
	if on(asked.NICsConnected) {
		all = append(all, nicMismatches(vm, len(e.addresses) > 0)...)
	}
	return all
}

// verify waits until the guest shows what the spec says. Success that only a Task reports is what users of every peer complain of most.
func (r *run) verify(ctx context.Context) error {
	s, v := r.current(), r.state.Verify
	if err := r.readSpec(ctx, s); err != nil {
		return err
	}
	e := expect(r.spec)
	within, cancel := r.verifyTime(ctx)
	defer cancel()
	good, err := r.shown(ctx, within, s, func(vm vcapi.VM) (bool, error) {
		v.HostName, v.NICs = vm.HostName, nicsOf(vm)
		v.Mismatches = r.mismatches(e, vm)
		return len(v.Mismatches) == 0, nil
	})
	now := stamp(time.Now())
	v.FinishedAt = &now
	switch {
	case err == nil && good:
		return r.complete(events.VerifyCompleted, &v.State, nil)
	case errors.Is(err, errStepTime): // not even then could it be read
		return r.complete(events.VerifyCompleted, &v.State,
			r.timeError(events.StepTimeout, s, fmt.Sprintf("what the guest shows could not be read when its time (verify.timeout %s) was over", r.verifyTimeout())))
	case err != nil:
		v.FinishedAt = nil
		return err
	}
	failure := &stepError{step: s.name, code: events.VerifyMismatch, message: fmt.Sprintf(
		"after %s the guest does not show what was asked for: %s", r.verifyTimeout(), strings.Join(v.Mismatches, "; "))}
	if r.asked.Customize != nil {
		failure.message += ": see the guest's own log, /var/log/vmware-gosc/instant_clone_customization.log"
	}
	return r.complete(events.VerifyCompleted, &v.State, failure)
}

func nicsOf(vm vcapi.VM) (nics []events.NIC) {
	for _, n := range vm.NICs {
		nics = append(nics, events.NIC{MAC: n.MAC, Connected: n.Connected, Addresses: n.Addresses})
	}
	return nics
}

// errLooked ends a look at the guest that found nothing.
var errLooked = errors.New("looked long enough")
