package handler

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// What VMware Tools make of a program's arguments on Linux: bash -c '"<path>" <arguments>'. (open-vm-tools,
// procMgrPosix.c.)
func inShell(t *testing.T, arguments string) string {
	t.Helper()
	out, err := exec.Command("bash", "-c", `"/usr/bin/printf" '[%s]' `+arguments).Output()
	return fmt.Sprintf("%s, %v", out, err)
}

// The marker changes nothing of what the program is given, whatever the arguments end in.
func TestMarkerReachesNoProgram(t *testing.T) {
	t.Parallel()
	mark := marker("run", "p")
	check := func(arguments string) {
		if with, without := inShell(t, marked(arguments, mark)), inShell(t, arguments); with != without {
			t.Errorf("arguments %q: the program was given %s, without the marker %s", arguments, with, without)
		}
		if !bears(commandLine(&events.ExecSpec{Path: "/bin/x", Arguments: arguments}, mark), mark) {
			t.Errorf("arguments %q: the command line does not end in the marker", arguments)
		}
	}

	for _, arguments := range []string{
		"", `--dir /srv/data\`, `--dir /srv/data\\`, `--dir /srv/data\\\`, `'C:\'`, `a\ b`, "a b ", `# a comment\`,
		"one\\\ntwo", "two\nlines\\", "x\n",
		"\"$(cat <<'EOF'\nhere\nEOF\n)\"", "$(cat <<EOF\nhere\\\nEOF\n)", `"it's" 'a "b"'`, `-c 'exit 0'`,
		"a; /usr/bin/printf b", "'open", `"open\`, `\`,
	} {
		check(arguments)
	}
	letters := []string{"a", `\`, "'", `"`, " ", "#", "\n"}
	for _, first := range letters {
		for _, second := range letters {
			for _, third := range letters {
				check(first + second + third)
			}
		}
	}
}

const agent = `C:\temp\agent.exe`

const onWindows = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"processes":[{"name":"agent.exe",` +
	`"run":{"path":"C:\\temp\\agent.exe","arguments":"/i C:\\temp\\agent.msi /qn"}}]}`

func windowsGuest(w *harness) {
	w.vm.windows = true
	w.vm.programs[agent] = program{takes: time.Minute}
}

// A program of a Windows guest is started as it was asked for: nothing would take a marker away from it.
func TestWindowsHasNoMarker(t *testing.T) {
	t.Parallel()
	withHarness(t, secretsDir(t), func(w *harness) {
		windowsGuest(w)
		run := w.run(onWindows)
		mustSucceed(w)
		const want = `"C:\temp\agent.exe" /i C:\temp\agent.msi /qn`
		if got := w.vm.procs[0].command; got != want || run.Processes[0].Command != want {
			w.t.Errorf("the guest was told %s, the event says %s; want %s", got, run.Processes[0].Command, want)
		}
		if len(run.Check.Warnings) != 1 || run.Check.Warnings[0].Code != "NoMarker" {
			w.t.Errorf("warnings %+v", run.Check.Warnings)
		}
	})
}

// After a crash or a lost answer nobody can tell a program without a marker from another one of its kind: what may have
// been started is not started again, and what runs is not taken for the run's own. Where none of its kind has appeared,
// it is started.
func TestWindowsProcessInDoubt(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	beside := func(w *harness) { // another one of its kind, which was there before
		w.vm.procs = append(w.vm.procs, &fakeProc{pid: 77, name: "AGENT.EXE", command: `"C:\apps\AGENT.EXE" /x`,
			started: time.Now(), program: program{takes: long}})
	}
	for _, row := range []struct {
		name      string
		before    func(*harness)
		plan      []incident
		rule      *rule
		code      events.Code // "": succeeded
		processes int
	}{
		{name: "killed before the call", plan: crash("StartProcess sent"), processes: 1},
		{name: "killed before the call, another one there", before: beside, plan: crash("StartProcess sent"),
			processes: 1},
		{name: "killed after the call", plan: crash("StartProcess landed"), code: events.Uncertain, processes: 1},
		{name: "killed after the call, another one there", before: beside, plan: crash("StartProcess landed"),
			code: events.Uncertain, processes: 1},
		{name: "killed after its fact", plan: crash("stored process.started"), processes: 1},
		{name: "the answer is lost", rule: &rule{op: "StartProcess sent", times: 1, lost: "answer"},
			code: events.Uncertain, processes: 1},
		{name: "the call is lost", rule: &rule{op: "StartProcess sent", times: 1, lost: "call"}, processes: 1},
		{name: "the call is lost, another one there", before: beside,
			rule: &rule{op: "StartProcess sent", times: 1, lost: "call"}, processes: 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			withHarness(t, secrets, func(w *harness) {
				windowsGuest(w)
				if row.before != nil {
					row.before(w)
				}
				if row.rule != nil {
					w.vc.on(*row.rule)
				}
				run := w.run(onWindows, row.plan)
				if got := run.Error; (got == nil) != (row.code == "") || got != nil && got.Code != row.code {
					w.t.Errorf("the run ended as %s: %+v", run.Status, got)
				}
				if n := w.vc.count(vmID, "process agent.exe"); n != row.processes {
					w.t.Errorf("started %d times, want %d", n, row.processes)
				}
			})
		})
	}
}

// A guest that does not say what it is: the path tells.
func TestMarkerByPath(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		family, path string
		marked       bool
	}{
		{"linuxGuest", "/bin/sh", true}, {"linuxGuest", "sh", true}, {"darwinGuestFamily", "/bin/sh", true},
		{"windowsGuest", agent, false},
		{"windowsGuest", "/bin/sh", false}, {"", "/bin/sh", true}, {"", agent, false}, {"", "agent.exe", false},
	} {
		p := &processStep{run: &run{seen: seen{guestFamily: row.family}},
			program: &events.ProcessSpec{Name: "p", Run: &events.ExecSpec{Path: row.path}}}
		if got := p.mark() != ""; got != row.marked {
			t.Errorf("family %q, path %s: marked %v", row.family, row.path, got)
		}
	}
}

// Our process ends while nobody watches, and its pid is used again: what has the pid then is neither waited for, nor
// believed, nor ended.
func TestPidReused(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, identity := range []string{"read", "not read"} {
		for _, guest := range []string{"linux", "windows"} {
			for _, canceled := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/identity %s/canceled %v", guest, identity, canceled), func(t *testing.T) {
					t.Parallel()
					withHarness(t, secrets, func(w *harness) {
						request := only(processOnly)
						w.vm.programs["/usr/bin/first"] = program{takes: 30 * time.Second, exit: 17}
						if guest == "windows" {
							windowsGuest(w)
							w.vm.programs[agent] = program{takes: 30 * time.Second, exit: 17}
							request = onWindows
						}
						if identity == "not read" {
							w.vc.on(rule{op: "Process", times: 1, hang: true})
						}
						req := w.request("order-1", request)
						o := w.deliver(req, incident{point: "stored process.started", do: "crash"})
						<-o.stopped
						<-time.After(7 * time.Minute)
						other := &fakeProc{command: `"/usr/sbin/cron" -f`, started: time.Now(),
							program: program{takes: 5 * time.Minute}}
						w.vc.change(func() {
							other.pid = w.vm.procs[0].pid
							w.vm.procs = []*fakeProc{other}
						})
						if canceled {
							w.cancel(req)
						}
						w.drive(req)
						run := w.last()
						want := events.ExitCodeUnknown
						if canceled {
							want = events.CodeCanceled
						}
						if run.Error == nil || run.Error.Code != want {
							w.t.Errorf("the run ended as %s: %+v, process %+v", run.Status, run.Error, run.Processes[0])
						}
						if other.killed {
							w.t.Error("the process that has the pid now was killed")
						}
					})
				})
			}
		}
	}
}

// The same 32 bits are the same exit code, with a sign or without.
func TestExitCodeSigns(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		a, b int64
		same bool
		text string // of b
	}{
		{3221225477, -1073741819, true, "-1073741819 (0xC0000005)"},
		{-1073741819, 3221225477, true, "3221225477 (0xC0000005)"},
		{-1, 4294967295, true, "4294967295 (0xFFFFFFFF)"},
		{0, 0, true, "0"}, {1, -1, false, "-1 (0xFFFFFFFF)"}, {0, 1 << 32, false, "4294967296"},
		{1 << 40, 1 << 40, true, "1099511627776"}, {3010, 3010, true, "3010"},
		{2147483648, -2147483648, true, "-2147483648 (0x80000000)"},
	} {
		if got := sameExitCode(row.a, row.b); got != row.same {
			t.Errorf("%d and %d: same %v", row.a, row.b, got)
		}
		if got := exitCodeText(row.b); got != row.text {
			t.Errorf("%d is shown as %s, want %s", row.b, got, row.text)
		}
	}

	secrets := secretsDir(t)
	for _, codes := range [][2]int64{{3221225477, -1073741819}, {-1073741819, 3221225477}} {
		withHarness(t, secrets, func(w *harness) {
			w.vm.programs["/usr/bin/first"] = program{takes: time.Second, exit: codes[1]}
			run := w.run(only(strings.Replace(processOnly, `"run"`,
				fmt.Sprintf(`"successExitCodes":[%d],"run"`, codes[0]), 1)))
			mustSucceed(w)
			if p := run.Processes[0]; p.ExitCode == nil || *p.ExitCode != codes[1] {
				w.t.Errorf("process %+v: the code is shown as vCenter gives it", p)
			}
		})
	}
}
