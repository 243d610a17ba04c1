package vcapi

import (
	"encoding/json"
	"reflect"
	"testing"
)

// What a guest and a VM's hardware show of the network, also where parts are missing, null, boxed or odd: these are
// lost alone.
func TestNetworkForms(t *testing.T) {
	t.Parallel()
	const card = `{"_typeName":"VirtualE1000","key":4000,"macAddress":"00:50:56:00:00:01",` +
		`"connectable":{"connected":true},"slotInfo":{"pciSlotNumber":33}}`
	rows := map[string]struct {
		net, stack, devices string
		want                VM
	}{
		"nothing":   {},
		"nulls":     {`null`, `null`, `null`, VM{}},
		"no arrays": {`{}`, `"x"`, `7`, VM{}},
		"no NICs":   {``, ``, `[{"_typeName":"VirtualDisk","key":2000}]`, VM{Cards: []Card{}}},
		"bare": {
			`[{"macAddress":"m","connected":true,"deviceConfigId":4000}]`,
			``,
			``,
			VM{NICs: []NIC{{MAC: "m", Connected: true, Device: 4000}}},
		},
		"boxed values": {
			`[{"deviceConfigId":{"_typeName":"int","_value":-1},"connected":{"_typeName":"boolean","_value":true}}]`,
			``,
			``,
			VM{NICs: []NIC{{Connected: true, Device: NoDevice}}},
		},
		"odd values": {
			`[{"macAddress":7,"deviceConfigId":"4000","connected":"yes","ipConfig":[],"ipAddress":["10.0.0.7"]}]`,
			``,
			``,
			VM{NICs: []NIC{{Addresses: []string{"10.0.0.7"}}}},
		},
		"odd addresses": {
			`[{"ipConfig":{"ipAddress":[null,7,{"ipAddress":"10.0.0.7","prefixLength":"24","state":5,` +
				`"origin":"dhcp"},{"ipAddress":"10.0.0.8","prefixLength":-1},{"prefixLength":8}]}}]`,
			``,
			``,
			VM{
				NICs: []NIC{
					{
						Addresses: []string{"10.0.0.7", "10.0.0.8"},
						IPConfig:  []Address{{IP: "10.0.0.7", Origin: "dhcp"}, {IP: "10.0.0.8"}},
					},
				},
			},
		},
		"DNS of a NIC": {
			`[{"dnsConfig":{"ipAddress":["10.0.0.2",null,""]}}]`,
			``,
			``,
			VM{NICs: []NIC{{DNS: []string{"10.0.0.2"}}}},
		},
		"routes": {
			``,
			`[{"ipRouteConfig":{"ipRoute":[{"network":"0.0.0.0","prefixLength":0,
				"gateway":{"ipAddress":"10.0.0.1"}},{"network":"0.0.0.0","prefixLength":0,
				"gateway":{"ipAddress":"10.0.0.1"}},
			{"network":"0.0.0.0","prefixLength":1,"gateway":{"ipAddress":"10.9.9.9"}},{"network":"0.0.0.0",
			"prefixLength":0,"gateway":{}},{"network":"x","gateway":{"ipAddress":"10.9.9.8"}},{"gateway":null},7,
			{"network":"::","prefixLength":0,"gateway":{"ipAddress":"fe80::1%2"}}]}}]`,
			``,
			VM{Routes: 8, Gateways: []string{"10.0.0.1", "fe80::1%2"}},
		},
		"two stacks": {
			``,
			`[{"dnsConfig":{"ipAddress":["10.0.0.2"]}},{"dnsConfig":{"ipAddress":["10.0.0.2","10.0.0.3"]},` +
				`"ipRouteConfig":null}]`,
			``,
			VM{DNS: []string{"10.0.0.2", "10.0.0.3"}},
		},
		"cards, boxed": {
			``,
			``,
			`{"_typeName":"ArrayOfVirtualDevice","_value":[{"_typeName":"VirtualDisk","key":2000},` + card + `]}`,
			VM{Cards: []Card{{Key: 4000, MAC: "00:50:56:00:00:01", Slot: 33, Connected: true}}},
		},
		"cards, by slot": {
			``,
			``,
			`[{"key":4001,"macAddress":"b","slotInfo":{"pciSlotNumber":32}},` + card + `]`,
			VM{
				Cards: []Card{
					{Key: 4001, MAC: "b", Slot: 32},
					{Key: 4000, MAC: "00:50:56:00:00:01", Slot: 33, Connected: true},
				},
			},
		},
		"cards, one without a slot": {``, ``, `[{"key":4001,"macAddress":"b","slotInfo":null},` + card + `]`,
			VM{Cards: []Card{{Key: 4000, MAC: "00:50:56:00:00:01", Slot: 33, Connected: true}, {Key: 4001, MAC: "b"}}}},
		"cards, odd": {
			``,
			``,
			`[{"key":"x","macAddress":"b","connectable":7,` +
				`"slotInfo":[]},{"macAddress":null},null,{"macAddress":"","connectable":{"connected":1}}]`,
			VM{Cards: []Card{{MAC: "b"}, {}}},
		},
	}

	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := properties{}
			for key, value := range map[string]string{
				"guest.net": row.net, "guest.ipStack": row.stack, "config.hardware.device": row.devices,
			} {
				if value != "" {
					p[key] = json.RawMessage(value)
				}
			}

			if got := decodeVM(p, redactor{}); !reflect.DeepEqual(got, row.want) {
				t.Errorf("got\n%+v, want\n%+v", got, row.want)
			}
		})
	}
}
