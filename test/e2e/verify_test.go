package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// Guests whose customization succeeds, says vCenter, and that show something else than was asked for, or the very
// thing: out of public reports.
func TestWhatGuestsShow(t *testing.T) {
	t.Parallel()
	host := func(name string, addresses ...string) func(*vcsim.VM) {
		return func(vm *vcsim.VM) {
			vm.SetHostName(name)
			vm.SetAddresses(vm.MACs()[0], addresses...)
			vm.SetGateways("10.0.0.1")
		}
	}
	// nics are addresses of a VM with two, by PCI slot.
	nics := func(first, second string) func(*vcsim.VM) {
		return func(vm *vcsim.VM) {
			vm.SetHostName("web01")
			vm.SetAddresses(vm.MACs()[0], first)
			vm.SetAddresses(vm.MACs()[1], second)
			vm.SetGateways("10.0.0.1")
		}
	}
	slots := func(vm *vcsim.VM) { vm.SetSlots(1184, 160) } // the card with the lower key is the second on the PCI bus
	bridge := func(vm *vcsim.VM) {
		mac := vm.MACs()[0]
		vm.Configure(func(g *vcsim.Guest) {
			g.OtherNICs = []types.GuestNicInfo{{MacAddress: mac, Connected: true, DeviceConfigId: -1,
				IpAddress: []string{"10.0.0.7"},
				IpConfig: &types.NetIpConfigInfo{IpAddress: []types.NetIpConfigInfoIpAddress{{IpAddress: "172.17.0.1",
					PrefixLength: 16, State: "duplicate"}}}}}
		})
	}
	rows := []struct {
		name, request string
		guest         []func(*vcsim.VM)
		change        func(data map[string]any)
		want          []string // how each mismatch begins; none: the run succeeds
		two           bool     // NICs
	}{
		{name: "swapped", request: "01-nics-swapped", two: true, guest: []func(*vcsim.VM){nics("192.168.5.7",
			"10.0.0.7")},
			want: []string{"address: want 10.0.0.7 on NIC 1", "address: want 192.168.5.7 on NIC 2"}},
		{name: "not swapped", request: "01-nics-swapped", two: true, guest: []func(*vcsim.VM){nics("10.0.0.7",
			"192.168.5.7")}},
		{name: "slots", request: "01-nics-swapped", two: true, guest: []func(*vcsim.VM){slots,
			nics("10.0.0.7", "192.168.5.7")}},
		{name: "slots swapped", request: "01-nics-swapped", two: true, guest: []func(*vcsim.VM){slots,
			nics("192.168.5.7", "10.0.0.7")},
			want: []string{"address: want 10.0.0.7 on NIC 1", "address: want 192.168.5.7 on NIC 2"}},
		{name: "prefix", request: "02-prefix-name", guest: []func(*vcsim.VM){host("template", "10.0.0.7")},
			want: []string{"host name: want web- and a number, the guest shows template"}},
		{name: "prefix and number", request: "02-prefix-name", guest: []func(*vcsim.VM){host("web-17", "10.0.0.7")}},
		{name: "secret", request: "05-secretref-blinds-verify", guest: []func(*vcsim.VM){host("template",
			"169.254.7.7/16")},
			want: []string{"host name: want the value of secret names, key host, the guest shows template",
				"address: want 10.0.0.7"}},
		{name: "secret shown", request: "05-secretref-blinds-verify",
			guest: []func(*vcsim.VM){host("web01.example.test", "10.0.0.7")}},
		{name: "duplicate", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01",
			"10.0.0.7/24 duplicate")}, want: []string{"address: 10.0.0.7 on NIC 1"}},
		{name: "tentative", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01", "10.0.0.7",
			"2001:db8::7/64 tentative")}, want: []string{"address: 2001:db8::7 on NIC 1"}},
		{name: "preferred", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01", "10.0.0.7",
			"2001:db8::7/64 deprecated")}},
		{name: "link-local", request: "08-dhcp-without-address", guest: []func(*vcsim.VM){host("web01",
			"fe80::250:56ff:fe00:1", "169.254.3.4/16")},
			want: []string{"address: want one by DHCP on NIC 1"}},
		{name: "leased", request: "08-dhcp-without-address", guest: []func(*vcsim.VM){host("web01",
			"fe80::250:56ff:fe00:1", "10.7.7.7")}},
		{name: "mask", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01", "10.0.0.7/16")},
			want: []string{"prefix: want /24 for 10.0.0.7"}},
		{name: "gateway", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01", "10.0.0.7"),
			func(vm *vcsim.VM) { vm.SetGateways("10.0.0.254") }},
			want: []string{"gateway: want 10.0.0.1, the guest's default route goes by 10.0.0.254"}},
		{name: "dns", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01", "10.0.0.7"),
			func(vm *vcsim.VM) { vm.SetDNS("9.9.9.9") }},
			change: func(data map[string]any) {
				data["verify"].(map[string]any)["dns"] = true
			}, want: []string{"DNS: want 10.0.0.2, the guest shows 9.9.9.9"}},
		{name: "bridge", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01", "10.0.0.8"), bridge},
			want: []string{"address: want 10.0.0.7 on NIC 1"}},
		{name: "without network", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("template",
			"10.0.0.8")},
			change: func(data map[string]any) {
				delete(data, "network")
			}, want: []string{"host name: want web01", "address: want 10.0.0.7"}},
		{name: "off without network", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01",
			"10.0.0.7"), func(vm *vcsim.VM) { vm.SetNICs(false) }},
			change: func(data map[string]any) { delete(data, "network") }, want: []string{"NIC 00:50:56:"}},
		{name: "off", request: "06-duplicate-address", guest: []func(*vcsim.VM){host("web01", "10.0.0.7"),
			func(vm *vcsim.VM) { vm.SetNICs(false) }}, want: []string{"NIC 00:50:56:"}},
	}
	sites := map[bool]*harness{}
	for _, two := range []bool{false, true} {
		opts := vcsim.Options{VMs: len(rows), NICs: 1}
		if two {
			opts.NICs = 2
		}
		s := newHarness(t, startNATS(t), opts)
		s.secret("names", "host", "web01")
		fastGuests(s.vc)
		s.start()
		sites[two] = s
	}
	for i, row := range rows {
		s := sites[row.two]
		id := s.vc.VMs()[i]
		vm := s.vc.VM(id)
		vm.Configure(func(g *vcsim.Guest) { g.IgnoreSpec = true })
		for _, f := range row.guest {
			f(vm)
		}
		data := caseRequest(t, row.request)
		if row.change != nil {
			row.change(data)
		}
		s.publish(id, row.name, data)
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			e := sites[row.two].ended(row.name)
			v := e.run.Verify
			switch {
			case v.State == "":
				t.Fatalf("ended with %s: %s", e.kind, e.Data)
			case len(row.want) == 0 && (e.kind != "run.succeeded" || len(v.NotCompared) > 0):
				t.Errorf("ended with %s, not compared %q, mismatches %q", e.kind, v.NotCompared, v.Mismatches)
			case !slices.EqualFunc(v.Mismatches, row.want, strings.HasPrefix):
				t.Errorf("mismatches %q, want %q", v.Mismatches, row.want)
			case len(row.want) > 0 && (e.run.Error.Code != "VerifyMismatch"):
				t.Errorf("ended with %s: %s", e.kind, e.Data)
			case row.name == "secret shown" && strings.Contains(string(e.Data), "web01"):
				t.Errorf("the secret is told: %s", e.Data)
			case strings.HasSuffix(row.name, "without network") && !strings.Contains(e.run.Error.Message,
				"asks for no network step"):
				t.Errorf("the message does not say what is missing: %s", e.run.Error.Message)
			}
		})
	}
}

// caseRequest is the data of a request out of a report.
func caseRequest(t *testing.T, name string) (data map[string]any) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "cases", name+".json"))
	if err == nil {
		err = json.Unmarshal(raw, &data)
	}
	if err != nil {
		t.Fatal(err)
	}
	return data
}
