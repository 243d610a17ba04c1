package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// The sandbox as it is met: started, one of its requests sent and waited for, ended.
func TestSandbox(t *testing.T) {
	t.Parallel()
	s := &site{t: t}
	box := begin(t, nil, false, "", "sandbox", "--listen", "127.0.0.1:0", "--json", "--log", s.file("log", ""))
	box.out.await(t, "\n")
	var there struct {
		NATS, HTTP, CAFile string
		VMs                []struct{ VM, Ends, RequestFile string }
	}
	if err := json.Unmarshal([]byte(box.out.String()),
		&there); err != nil || len(there.VMs) < 10 || there.CAFile == "" ||
		there.HTTP == "" {
		t.Fatalf("%v: %s", err, box.out)
	}
	env := map[string]string{"NATS_URL": there.NATS, "GUESTFLOW_VCENTERS": "lab"}
	for _, vm := range there.VMs {
		switch vm.Ends {
		case "run.failed NotCustomizable":
			begin(t, env, false, "", "submit", vm.RequestFile, "--wait").end().want(t, 1, `"NotCustomizable"`)
		case "run.succeeded":
			if vm.VM == there.VMs[0].VM {
				begin(t, env, false, "", "submit", vm.RequestFile, "--wait", "--text").end().want(t, 0, "run.succeeded")
			}
		}
	}
	// A request is acknowledged a moment after its last event: until then it still counts as one that waits.
	table := begin(t, env, false, "", "status", "--text").end()
	for range 1000 {
		if !strings.Contains(table.out, "queued") {
			break
		}
		table = begin(t, env, false, "", "status", "--text").end()
	}
	table.want(t, 0, there.VMs[0].VM, "succeeded", "NotCustomizable")
	box.stop()
	box.end().want(t, 0)
}

// Its parts alone, and an address that is taken.
func TestSandboxParts(t *testing.T) {
	t.Parallel()
	parts := begin(t, nil, false, "", "sandbox", "--listen", "127.0.0.1:0", "--no-service", "--text")
	parts.out.await(t, "VCENTER_LAB_URL=https://")
	_, url, _ := strings.Cut(parts.out.String(), "nats://")
	url, _, _ = strings.Cut(url, "\n")
	begin(t, nil, false, "", "sandbox", "--listen", url).end().want(t, 4, "address already in use")
	other := begin(t, nil, false, "", "sandbox", "--nats", "nats://"+url, "--text")
	other.out.await(t, "Ctrl-C ends it")
	for _, r := range []*running{other, parts} {
		r.stop()
		r.end().want(t, 0)
	}
}
