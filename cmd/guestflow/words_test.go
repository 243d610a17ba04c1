package main

import (
	"testing"

	"github.com/guestflow/guestflow/internal/events"
)

// What verify could not compare is told to people too, where all else fits.
func TestVerifyWords(t *testing.T) {
	t.Parallel()
	nics := []events.NIC{{MAC: "00:50:56:00:00:01", Connected: true, Addresses: []string{"10.0.0.7"}}}
	untold := []events.NotCompared{{Field: "customize.spec.identity.hostName", Reason: "it is not documented"}}
	const notCompared = "not compared: customize.spec.identity.hostName: it is not documented"
	for want, v := range map[string]events.Verify{
		"web-1, 00:50:56:00:00:01 10.0.0.7":                 {HostName: "web-1", NICs: nics},
		"web-1, 00:50:56:00:00:01 10.0.0.7; " + notCompared: {HostName: "web-1", NICs: nics, NotCompared: untold},
		"host name: want web-1; address: want 10.0.0.7; " + notCompared: {
			HostName: "x", NICs: nics, NotCompared: untold,
			Mismatches: []string{"host name: want web-1", "address: want 10.0.0.7"},
		},
	} {
		if got := verifyWords(&v); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
