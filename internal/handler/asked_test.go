package handler

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

const storedSpec = `{"_typeName":"CustomizationSpec","identity":{"_typeName":"CustomizationLinuxPrep","hostName":` +
	`{"_typeName":"CustomizationFixedName","name":"web-1"}},` + anyNIC + `}`

// wrongSpecs are stored ones that vCenter does not take.
var wrongSpecs = map[string]string{
	"asks for the name": `{"identity":{"_typeName":"CustomizationLinuxPrep","domain":"d","hostName":` +
		`{"_typeName":"CustomizationUnknownName"}},` + anyNIC + `}`,
	"asks for the address": `{"identity":{"_typeName":"CustomizationLinuxPrep","domain":"d","hostName":` +
		`{"_typeName":"CustomizationVirtualMachineName"}},` +
		`"nicSettingMap":[{"adapter":{"ip":{"_typeName":"CustomizationUnknownIpGenerator"}}}]}`,
	"no adapters": `{"identity":{"_typeName":"CustomizationLinuxPrep","domain":"d","hostName":` +
		`{"_typeName":"CustomizationVirtualMachineName"}}}`,
	"underscore": strings.Replace(storedSpec, "web-1", "web_1", 1),
	"prefix": `{"identity":{"_typeName":"CustomizationLinuxPrep","domain":"d","hostName":` +
		`{"_typeName":"CustomizationVirtualMachineName"}},` +
		`"nicSettingMap":[{"adapter":{"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.11/24"}}}]}`,
	"no type": `{"identity":{"_typeName":"CustomizationLinuxPrep","domain":"d","hostName":{"name":"web-1"}},` + anyNIC +
		`}`,
}

// StoredSpec knows one spec, "linux", and some that are wrong.
func (c *client) StoredSpec(ctx context.Context, name string) (json.RawMessage, error) {
	if err := c.reach(ctx, "StoredSpec"); err != nil {
		return nil, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	if c.stored != "" {
		name = c.stored
	}
	if wrong, known := wrongSpecs[name]; known {
		return json.RawMessage(wrong), nil
	}
	switch name {
	case "linux":
		return json.RawMessage(storedSpec), nil
	case "other":
		return json.RawMessage(strings.Replace(storedSpec, "web-1", "web-2", 1)), nil
	}

	return nil, vcError("NotFound", 500, vcapi.Permanent)
}

// A stored spec that is changed after the check is not what the run was asked for: nothing is done with it, and the
// guest is not held against it.
func TestStoredSpecIsPinned(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, row := range []struct {
		becomes, point, do string
		code               events.Code // "": succeeded
		compared           bool
	}{
		{"other", "stored check.completed", "call", "", true}, // this owner has read it
		{"other", "stored check.completed", "call, then crash", events.InvalidState, false},
		{"gone", "stored check.completed", "call, then crash", events.NotFound, false},
		{"linux", "stored check.completed", "call, then crash", "", true},
		{"other", "stored customize.started", "call, then crash", "", false},
		{"gone", "stored customize.started", "call, then crash", "", false},
		{"other", "stored customize.completed", "call, then crash", "", false},
		{"linux", "stored customize.completed", "call, then crash", "", true},
	} {
		t.Run(row.becomes+"/"+row.point+"/"+row.do, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				run := w.run(only(`"verify":{"nicsConnected":false},"customize":{"specName":"linux"}`),
					[]incident{{point: row.point, do: row.do, fn: func() {
						w.vc.change(func() { w.vc.stored = row.becomes })
					}}})
				if row.code != "" {
					if run.Error == nil || run.Error.Code != row.code || run.Error.Step != "customize" {
						w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
					}
					w.wantEffects("customize", 0)
					return
				}

				mustSucceed(w)
				told := slices.ContainsFunc(run.Verify.NotCompared,
					func(n events.NotCompared) bool { return n.Field == "customize.specName" })
				if told == row.compared {
					w.t.Errorf("not compared: %+v", run.Verify.NotCompared)
				}
			})
		})
	}

	if digestOf(json.RawMessage(storedSpec)) != digestOf(json.RawMessage(` `+storedSpec)) ||
		digestOf(json.RawMessage(`{"a":1}`)) == digestOf(json.RawMessage(`{"a":2}`)) {
		t.Error("a digest is of the content")
	}
	const one, two = `{"a":{"_typeName":"CustomizationPassword","value":"x"},"encryptionKey":[1]}`,
		`{"encryptionKey":[2],"a":{"value":"y","_typeName":"CustomizationPassword"}}`
	if digestOf(json.RawMessage(one)) != digestOf(json.RawMessage(two)) {
		t.Error("a digest is not of passwords, which vCenter writes as it likes")
	}
}

func TestStoredSpec(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	const asks = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"verify":false,"customize":` +
		`{"specName":`
	withHarness(t, secrets, func(w *harness) {
		if run := w.run(asks + `"linux"}}`); run.Status != events.StatusSucceeded {
			t.Errorf("status %s, error %+v", run.Status, run.Error)
		}
	})
	withHarness(t, secrets, func(w *harness) {
		run := w.run(asks + `"none"}}`)
		if run.Error == nil || run.Error.Code != events.NotFound || len(run.Check.Blockers) != 1 ||
			run.Check.Blockers[0].Field != "customize.specName" {
			t.Errorf("error %+v, check %+v", run.Error, run.Check)
		}
	})
}

// Every secret that cannot be read is named before anything is changed, and in no event is one that can.
func TestMissingSecretsAreNamedAtOnce(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		run := w.run(`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},
			"customize":{"spec":{"identity":{"_typeName":"New",
			"password":{"value":{"secretRef":"gone","key":"a"},"plainText":true}},` + anyNIC + `},
				"configParams":[{"key":"k","value":{"_typeName":"string","_value":{"secretRef":"gone","key":"b"}}}]},
			"processes":[{"name":"p","credentials":{"secretRef":"nobody"},
			"run":{"path":"/bin/sh","environment":{"A":"x","TOKEN":{"secretRef":"gone","key":"c"}}}}]}`)
		if run.Error == nil || run.Error.Code != events.UnknownSecret {
			t.Fatalf("error %+v", run.Error)
		}
		var fields []string
		for _, b := range run.Check.Blockers {
			fields = append(fields, b.Field)
		}
		want := "customize.spec customize.configParams processes[0].credentials processes[0].run.environment.TOKEN"
		if got := strings.Join(fields, " "); got != want {
			t.Errorf("blockers on %s, want %s", got, want)
		}
	})
}

func TestWatchedProcess(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	const watch = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"processes":[{"name":"old",` +
		`"watch":{"pid":77%s}%s}]}`
	data := func(startedAt, codes string) string {
		return strings.Replace(strings.Replace(watch, "%s", startedAt, 1), "%s", codes, 1)
	}
	for _, test := range []struct {
		name, data string
		exit       int64
		forget     bool // the guest forgets it before it is asked for its exit
		absent     bool
		code       events.Code // "": succeeded
		kinds      string
	}{
		{name: "its end is enough", data: data("", ""), exit: 5, kinds: "process.started process.exited run.succeeded"},
		{name: "forgotten after it was seen", data: data("", ""), forget: true,
			kinds: "process.started process.exited run.succeeded"},
		{name: "its exit code counts", data: data("", `,"successExitCodes":[0]`), exit: 5, code: events.ExitCode,
			kinds: "process.started process.exited run.failed"},
		{name: "its exit code is lost", data: data("", `,"successExitCodes":[0]`), forget: true,
			code:  events.ExitCodeUnknown,
			kinds: "process.started process.exited run.failed"},
		{name: "there is none", data: data("", ""), absent: true, code: events.NotFound, kinds: "run.failed"},
		{name: "its start is rounded in the request and cut in the guest",
			data:  data(`,"startedAt":"2000-01-01T00:00:01Z"`, ""),
			kinds: "process.started process.exited run.succeeded"},
		{name: "it was started two seconds later", data: data(`,"startedAt":"2000-01-01T00:00:02Z"`, ""),
			code: events.NotFound, kinds: "run.failed"},
		{name: "another process has the pid", data: data(`,"startedAt":"2001-01-01T00:00:00Z"`, ""),
			code: events.NotFound, kinds: "run.failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				vm := w.vc.vms["vm-42"]
				if !test.absent {
					vm.procs = append(vm.procs, &fakeProc{pid: 77, command: `"/bin/old" `, started: time.Now(),
						program: program{takes: 10 * time.Second, exit: test.exit}})
					if test.forget {
						w.later(9*time.Second, func() { w.vc.change(func() { vm.procs = nil }) })
					}
				}

				run := w.run(test.data)
				got := strings.TrimPrefix(strings.Join(w.kinds(), " "), "run.accepted check.completed ")
				if got != test.kinds {
					t.Errorf("events %s, want %s", got, test.kinds)
				}
				if test.code == "" && run.Status != events.StatusSucceeded ||
					test.code != "" && (run.Error == nil || run.Error.Code != test.code) {
					t.Errorf("status %s, error %+v", run.Status, run.Error)
				}
			})
		})
	}
}

func (c *client) DisconnectedNICs(ctx context.Context, vm string) (off vcapi.NICs, err error) {
	if err := c.reach(ctx, "DisconnectedNICs"); err != nil {
		return off, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	m, err := c.seen(vm)
	if err != nil {
		return off, err
	}
	for _, n := range m.nics {
		if !n.Connected {
			off.Devices = append(off.Devices, json.RawMessage(`{"macAddress":"`+n.MAC+`"}`))
		}
	}
	return off, nil
}

func (c *client) ConnectNICs(ctx context.Context, fence vcapi.Fence, vm string, nics vcapi.NICs) (task string,
	err error) {
	return call(ctx, c, fence, "ConnectNICs", func(r rule) (string, error) {
		m, err := c.seen(vm)
		if err != nil {
			return "", err
		}
		c.effect(vm, "connect")
		c.changeLocked(m.connect)
		return c.makeTask(vm, "ReconfigVM_Task", c.connects, r), nil
	})
}

// The NICs are connected before the guest's network is started, also where vCenter is busy for a while.
func TestConnectNICs(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		vm := w.vc.vms["vm-42"]
		vm.nics = []vcapi.NIC{{MAC: "00:50:56:00:00:01"}}
		busy := vcError("TaskInProgress", 500, vcapi.Transient)
		busy.Sent = vcapi.Refused
		changed := vcError("ConcurrentAccess", 500, vcapi.Transient) // by an administrator, since the NICs were read
		changed.Sent = vcapi.Refused
		w.vc.on(rule{op: "ConnectNICs sent", times: 1, err: busy})
		w.vc.on(rule{op: "ConnectNICs sent", times: 1, err: changed})
		var before []bool
		w.vc.onEffect = func(e fakeEffect) {
			if e.act == "network" {
				before = append(before, vm.nics[0].Connected)
			}
		}
		run := w.run(`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"network":{"connectNics":true}}`)
		if run.Status != events.StatusSucceeded || len(before) != 1 || !before[0] {
			t.Errorf("status %s, error %+v; connected before each start of the network: %v", run.Status, run.Error,
				before)
		}
		if got := strings.Join(w.kinds(), " "); !strings.Contains(got, "run.waiting network.starting") {
			t.Errorf("events %s", got)
		}
	})
}

// The answer to the connection of the NICs is lost, and the run is canceled, or told to stop, while the call is still
// on its way: its last event waits until it must have landed, and who goes on does not trust that nothing is under way.
func TestConnectNICsUnanswered(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	const request = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"network":{"connectNics":true}}`
	begin := func(w *harness) *events.Request {
		w.vm.nics = []vcapi.NIC{{MAC: "00:50:56:00:00:01"}}
		w.vc.on(rule{op: "ConnectNICs sent", times: 1, lost: "answer", delay: 9 * time.Second})
		return w.request("order-1", request)
	}
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			req := begin(w)
			w.later(100*time.Millisecond, func() { w.cancel(req) })
			w.drive(req)
			w.wantEnds("run.canceled")
			w.wantEffects("connect", 1)
		})
	})

	t.Run("told to stop", func(t *testing.T) {
		t.Parallel()
		inBriefHarness(t, secrets, func(w *harness) {
			req := begin(w)
			o := w.deliver(req)
			<-time.After(100 * time.Millisecond)
			o.term()
			w.await(o)
			if w.newest("run.released") != nil {
				w.t.Error("released with a call in the air")
			}
			w.drive(req)
			mustSucceed(w)
		})
	})
}
