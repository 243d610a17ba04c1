package handler

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// odd is a vCenter that shows processes otherwise than they are.
type odd struct {
	VCenter
	process func(vcapi.Process) vcapi.Process
}

func (o odd) Process(ctx context.Context, vm string, auth vcapi.GuestAuth, pid int64) (vcapi.Process, error) {
	p, err := o.VCenter.Process(ctx, vm, auth, pid)
	return o.process(p), err
}

// The end of a process of which the guest tells less, or something else, than usual.
func TestOddEnds(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	const watch = `"processes":[{"name":"old","watch":{"pid":77}}]`
	noCode := func(p vcapi.Process) vcapi.Process { p.ExitCode = nil; return p }
	noTime := func(p vcapi.Process) vcapi.Process { p.Finished = nil; return p }
	reused := func(p vcapi.Process) vcapi.Process {
		if p.Finished != nil {
			p.Started, p.Command = p.Started.Add(time.Second), "another"
		}
		return p
	}

	for _, row := range []struct {
		name, request string
		process       func(vcapi.Process) vcapi.Process
		code          events.Code // "": succeeded
	}{
		{"a time and no exit code", only(processOnly), noCode, events.ExitCodeUnknown},
		{"an exit code and no time", only(processOnly), noTime, ""},
		{"watched, a time and no exit code", only(watch), noCode, ""},
		{"the pid belongs to another process", only(processOnly), reused, events.ExitCodeUnknown},
		{"watched, the pid belongs to another process", only(watch), reused, events.ExitCodeUnknown},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				w.run(`{"vm":"vm-42"}`) // so that more than one run has ended: what this one did is looked at here
				w.vm.procs = append(w.vm.procs, &fakeProc{pid: 77, command: "old", started: time.Now(),
					program: program{takes: 10 * time.Second}})
				req := w.request("order-2", row.request)
				delivery, err := w.line.Deliver(req.Seq)
				if err != nil {
					w.t.Fatal(err)
				}
				_, h := w.bystander()
				h.vc = odd{h.vc, row.process}
				if err := h.Handle(context.Background(), delivery); err != nil {
					w.t.Error(err)
				}
				w.line.Remove(req.Seq)
				run := w.last()
				if row.code == "" {
					mustSucceed(w)
				} else if run.Error == nil || run.Error.Code != row.code || run.Error.Step != "process" {
					w.t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
				}
				if p := run.Processes[0]; row.code == "" && p.ExitCode == nil && p.FinishedAt == nil {
					w.t.Errorf("process %+v", p)
				}
			})
		})
	}
}

// Exit codes that a request takes for success.
func TestSuccessExitCodes(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for exit, code := range map[int64]events.Code{3: "", 3010: "", 0: events.ExitCode} {
		withHarness(t, secrets, func(w *harness) {
			w.vm.programs["/usr/bin/first"] = program{takes: time.Second, exit: exit}
			run := w.run(only(strings.Replace(processOnly, `"run"`, `"successExitCodes":[3,3010],"run"`, 1)))
			if got := run.Error; got == nil != (code == "") || got != nil && got.Code != code {
				w.t.Errorf("exit code %d: %s, %+v", exit, run.Status, got)
			}
			if p := run.Processes[0]; p.ExitCode == nil || *p.ExitCode != exit {
				w.t.Errorf("process %+v", p)
			}
		})
	}
}

// A canceled run leaves a process that was started elsewhere alone, and says so.
func TestCancelLeavesWatchedProcess(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		old := &fakeProc{pid: 77, command: "old", started: time.Now(), program: program{takes: time.Hour}}
		w.vm.procs = append(w.vm.procs, old)
		req := w.request("order-1", only(`"processes":[{"name":"old","watch":{"pid":77},"timeout":"2h"}]`))
		w.later(time.Minute, func() { w.cancel(req) })
		w.drive(req)
		w.wantEnds("run.canceled")
		if p := w.last().Processes[0]; p.State != events.Running || p.Reason == "" || old.killed {
			w.t.Errorf("process %+v, killed: %v", p, old.killed)
		}
	})
}

// The network has a time of its own.
func TestNetworkTimeout(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) { // it takes ten seconds
		run := w.run(only(`"network":{"timeout":"5s"}`))
		if e := run.Error; e == nil || e.Code != events.StepTimeout || e.Step != "network" ||
			!strings.Contains(e.Message, "timeout 5s") ||
			run.Network.State != events.Failed {
			w.t.Errorf("error %+v, network %+v", e, run.Network)
		}
	})
}

// vCenter that is away while a process runs is told as what it is, once per absence; the process is not said to be
// unreachable.
func TestVCenterAwayWhileAProcessRuns(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		w.vm.programs["/usr/bin/first"] = program{takes: 4 * time.Minute}
		for i := range 4 { // away, back, away, back
			w.later(time.Duration(i+1)*40*time.Second, func() { w.vc.change(func() { w.vc.refusing = i%2 == 0 }) })
		}
		w.run(only(processOnly))
		mustSucceed(w)
		if got := strings.Join(w.kinds(), " "); !strings.HasSuffix(got,
			"process.started run.waiting run.waiting process.exited run.succeeded") {
			w.t.Errorf("events %s", got)
		}
		for _, e := range w.events() {
			if waits := e.run.Waiting == events.WaitingVCenterUnavailable; waits != (e.kind == events.RunWaiting) {
				w.t.Errorf("%s waits for %q", e.kind, e.run.Waiting)
			}
		}
	})
}
