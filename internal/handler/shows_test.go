package handler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// A run that is taken over in verify knows the VM's NICs, and their order, as its first owner did: by a read of its
// own.
func TestVerifyTakenOver(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	const two = `{"spec":{"identity":{"_typeName":"CustomizationLinuxPrep","hostName":` +
		`{"_typeName":"CustomizationFixedName","name":"web-7"}},"nicSettingMap":[{"adapter":{"ip":` +
		`{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.7"}}},` +
		`{"adapter":{"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.8"}}}]}}`
	request := only(`"verify":{"timeout":"30s"},"network":{},"customize":` + two)
	for _, swapped := range []bool{false, true} {
		for _, takeover := range []bool{false, true} {
			t.Run(fmt.Sprintf("swapped=%v takeover=%v", swapped, takeover), func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vm.cards = twoCards()
					show := func() {
						w.vm.show([]byte(specOf(two)))
						if swapped {
							w.vm.nics[0].Addresses, w.vm.nics[1].Addresses = w.vm.nics[1].Addresses,
								w.vm.nics[0].Addresses
							w.vm.nics[0].IPConfig, w.vm.nics[1].IPConfig = w.vm.nics[1].IPConfig, w.vm.nics[0].IPConfig
						}
						w.vm.nics[0], w.vm.nics[1] = w.vm.nics[1], w.vm.nics[0] // guest.net has an order of its own
						w.vm.connect()
					}

					w.vm.ignores = true
					var plan []incident
					if takeover {
						plan = crash("stored network.completed")
					}
					w.later(80*time.Second, func() { w.vc.change(show) })
					run := w.run(request, plan)
					switch {
					case !swapped:
						mustSucceed(w)
					case run.Error == nil || run.Error.Code != events.VerifyMismatch || len(run.Verify.Mismatches) != 2:
						w.t.Errorf("error %+v, verify %+v", run.Error, run.Verify)
					}

					if n := run.Verify.NICs; len(n) != 2 || n[0].MAC != mac1 || n[1].MAC != mac2 {
						w.t.Errorf("NICs %+v, want them in PCI slot order", n)
					}
				})
			})
		}
	}
}

// NICs that came, or were connected, after the VM's hardware was read are known at once.
func TestVerifyReadsNewNICs(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	t.Run("added, and without an address", func(t *testing.T) {
		t.Parallel()
		withHarness(t, secrets, func(w *harness) {
			w.later(time.Minute, func() {
				w.vc.change(func() {
					w.vm.cards = twoCards()
					w.vm.nics = []vcapi.NIC{{MAC: mac1, Device: 4000, Connected: true, Addresses: []string{"10.0.0.7"}},
						{MAC: mac2, Device: 4001, Connected: true, Addresses: []string{"fe80::8"}}}
				})
			})

			run := w.run(`{"vm":"vm-42","verify":{"timeout":"2m","anyAddress":true}}`)
			if e := run.Error; e == nil || e.Code != events.VerifyMismatch || len(run.Verify.Mismatches) != 1 ||
				!strings.HasPrefix(run.Verify.Mismatches[0], "address: want one on NIC 2") {
				w.t.Errorf("error %+v, verify %+v", e, run.Verify)
			}
		})
	})

	t.Run("connected, and not shown", func(t *testing.T) {
		t.Parallel()
		withHarness(t, secrets, func(w *harness) {
			w.vm.cards[0].Connected = false
			w.slow = onKind("network.starting", func() { w.vc.change(func() { w.vm.cards[0].Connected = true }) })
			run := w.run(only(`"verify":{"timeout":"10m"},"network":{"connectNics":true}`))
			mustSucceed(w)
			if took := run.FinishedAt.Sub(*run.AcceptedAt); took > 2*time.Minute {
				w.t.Errorf("it took %s", took)
			}
		})
	})
}

// What a secret holds is in no event, shown or not: neither where the guest shows it, nor where it shows another.
func TestVerifyTellsNoSecret(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t) // linux-root, key username: root
	for _, shown := range []string{"root.example.test", "other"} {
		t.Run(shown, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				const spec = `{"spec":{"identity":{"_typeName":"CustomizationLinuxPrep","hostName":` +
					`{"_typeName":"CustomizationFixedName","name":{"secretRef":"linux-root","key":"username"}}},` +
					anyNIC + `}}`
				w.vm.ignores = true
				w.later(30*time.Second, func() { w.vc.change(func() { w.vm.hostName = shown }) })
				run := w.run(only(`"verify":{"timeout":"10s","nicsConnected":false},"customize":` + spec))
				if right := strings.HasPrefix(shown, "root"); right {
					mustSucceed(w)
				} else if run.Error == nil || !strings.Contains(run.Error.Message,
					"host name: want the value of secret linux-root, key username, the guest shows other") {
					w.t.Errorf("error %+v", run.Error)
				}

				for _, e := range w.events() {
					told := strings.NewReplacer("linux-root", "", `"root"`, "").Replace(string(e.data))
					if strings.Contains(told, "root.example") ||
						e.run.Verify != nil && strings.Contains(e.run.Verify.HostName, "root.") {
						w.t.Errorf("%s tells it: %s", e.kind, e.data)
					}
				}

				if run.Verify.HostName != "other" &&
					run.Verify.HostName != "(the value of secret linux-root, key username)" {
					w.t.Errorf("host name %q", run.Verify.HostName)
				}
			})
		})
	}
}

// A mismatch says where the request does not ask for what the guest may need.
func TestWithoutNetwork(t *testing.T) {
	t.Parallel()
	customize, network, connect := new(events.CustomizeSpec), new(events.NetworkSpec),
		&events.NetworkSpec{ConnectNICs: true}
	for name, row := range map[string]struct {
		asked events.RequestSpec
		off   bool
		want  string // a piece of it; "": nothing
	}{
		"customize alone": {events.RequestSpec{Customize: customize}, false, `"network": {} starts`},
		"customize alone, a NIC is off": {events.RequestSpec{Customize: customize}, true,
			`"connectNics": true} connects NICs and starts`},
		"network, a NIC is off": {events.RequestSpec{Customize: customize, Network: network}, true,
			`asks for NICs to be connected`},
		"network":                          {events.RequestSpec{Customize: customize, Network: network}, false, ""},
		"NICs connected, and off again":    {events.RequestSpec{Customize: customize, Network: connect}, true, ""},
		"verify alone, a NIC is off":       {events.RequestSpec{}, true, `"connectNics": true} connects`},
		"verify alone, something else":     {events.RequestSpec{}, false, ""},
		"network without customize, a NIC": {events.RequestSpec{Network: network}, true, "NICs to be connected"},
	} {
		v := &verifyStep{run: &run{spec: &row.asked}, status: &events.Verify{NICs: []events.NIC{{MAC: mac1,
			Connected: !row.off}}}}
		if got := v.withoutNetwork(); (got == "") != (row.want == "") ||
			!strings.Contains(strings.Replace(got, "does not ask for NICs", "asks for NICs", 1), row.want) {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

// FuzzMAC reads any text as a MAC address: one that can be read is the same in each notation, and written otherwise it
// is none or another.
func FuzzMAC(f *testing.F) {
	for _, s := range []string{mac1, "00-50-56-AA-BB-01", "0050.56aa.bb01", "005056aabb01", "0:50:56:a:b:1", "", "::",
		"0050.56aa.bb0", "00:50:56:aa:bb:0g", "é:é:é:é:é:é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		mac, ok := macOf(text)
		if !ok {
			return
		}
		for _, format := range []string{"%02x:%02x:%02x:%02x:%02x:%02x", "%02X-%02X-%02X-%02X-%02X-%02X",
			"%02x%02x.%02x%02x.%02x%02x", "%02x%02x%02x%02x%02x%02x", "%x:%x:%x:%x:%x:%x"} {
			other := fmt.Sprintf(format, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5])
			if !sameMAC(text, other) {
				t.Errorf("%q is not %s", text, other)
			}
		}

		mac[5]++
		if sameMAC(text, fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5])) {
			t.Errorf("%q is two addresses", text)
		}
	})
}

// What the guest shows of a NIC is read as it is written.
func TestShownAddresses(t *testing.T) {
	t.Parallel()
	n := shownNIC{NIC: vcapi.NIC{Addresses: []string{"10.0.0.7", "fe80::1%eth0", "x", "2001:db8::7/64",
		"::ffff:10.0.0.8"},
		IPConfig: []vcapi.Address{{IP: "10.0.0.7", Prefix: 24, State: "preferred"}}}}
	var got []string
	for _, a := range n.addresses() {
		got = append(got, fmt.Sprintf("%s/%d %s %v", a.ip, a.Prefix, a.State, a.reachable()))
	}
	want := "[10.0.0.7/24 preferred true fe80::1/0  false 2001:db8::7/64  true 10.0.0.8/0  true]"
	if fmt.Sprint(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}
