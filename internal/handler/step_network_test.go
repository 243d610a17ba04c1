package handler

import (
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// A StartGuestNetwork_Task that was cut off may have run: it is not made again. What the guest shows decides, where it
// was otherwise before.
func TestNetworkCutOff(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	up := []vcapi.NIC{{MAC: "00:50:56:00:00:01", Connected: true, Addresses: []string{"10.0.0.7"}}}
	down := []vcapi.NIC{{MAC: "00:50:56:00:00:01", Connected: true, Addresses: []string{"fe80::1"}}}
	unreachable := &vcapi.Error{Name: "HostNotReachable", Message: "words of vCenter about HostNotReachable",
		Class: vcapi.Transient, Sent: vcapi.Answered}
	for name, row := range map[string]struct {
		before, after []vcapi.NIC
		request       string
		end           *vcapi.Error
		code          events.Code // "": succeeded
	}{
		"it came up":              {down, up, only(networkOnly), toolsAway(), ""},
		"no NIC was shown before": {nil, up, only(networkOnly), toolsAway(), ""},
		"it was up before":        {up, up, only(networkOnly), toolsAway(), events.ToolsNotRunning},
		"it stays down":           {down, down, only(networkOnly), toolsAway(), events.ToolsNotRunning},
		"nobody wants to look": {down, up, only(networkOnly + `,"verify":false`), toolsAway(),
			events.ToolsNotRunning},
		"its host is away":           {down, down, only(networkOnly), unreachable, events.CodeUnavailable},
		"its host is away, it is up": {down, up, only(networkOnly), unreachable, ""},
		"no time is left to look": {down, up, only(`"network":{"timeout":"10200ms"}`), toolsAway(),
			events.ToolsNotRunning},
		"it fails, the guest says no": {down, up, only(networkOnly), engineFault("ERR,244,ifup"), events.NetworkFailed},
	} {
		for _, takeover := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.vm.nics = row.before
					w.vc.on(rule{op: "StartGuestNetwork sent", times: 3, task: row.end})
					w.later(40*time.Second, func() { w.vc.change(func() { w.vm.nics = row.after }) })
					var plan []incident
					if takeover && !strings.Contains(name, "time") {
						plan = crash("stored network.started")
					}
					run := w.run(row.request, plan)
					if row.code == "" {
						mustSucceed(w)
					} else if e := run.Error; e == nil || e.Code != row.code || e.VSphere == nil ||
						e.VSphere.Name != row.end.Name {
						w.t.Errorf("the run ended as %s: %+v", run.Status, e)
					}

					if n := len(w.vc.tasks); n != 1 {
						w.t.Errorf("%d Tasks", n)
					}
				})
			})
		}
	}
}
