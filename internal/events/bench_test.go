package events_test

import (
	"testing"

	"github.com/guestflow/guestflow/internal/events"
)

// A request that asks for everything is read, checked and digested.
func BenchmarkDecodeRequest(b *testing.B) {
	message := structured(`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},
		"customize":{"spec":{"_typeName":"CustomizationSpec",
			"identity":{"_typeName":"CustomizationLinuxPrep","domain":"example.test",
				"hostName":{"_typeName":"CustomizationFixedName","name":"web-1"}},
			"globalIPSettings":{"_typeName":"CustomizationGlobalIPSettings"},
			"nicSettingMap":[{"_typeName":"CustomizationAdapterMapping","adapter":{
				"_typeName":"CustomizationIPSettings","subnetMask":"255.255.255.0",
				"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.7"}}}]}},
		"network":{},
		"processes":[{"name":"join","run":{"path":"/bin/sh","arguments":"-c 'exit 0'"}}]}`, "")
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := events.DecodeRequest("lab", "guestflow.requests.lab.vm-42", nil, message); err != nil {
			b.Fatal(err)
		}
	}
}
