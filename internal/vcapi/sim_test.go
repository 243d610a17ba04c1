package vcapi

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// start returns a simulated vCenter and a client whose long poll is running.
func start(t *testing.T, opts vcsim.Options, change ...func(*Client)) (*vcsim.VCenter, *Client) {
	t.Helper()
	v, err := vcsim.Start(opts)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(v.Close)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(v.CAPEM())
	c := newClient(
		t,
		Config{
			URL:      v.URL(),
			Username: v.Username(),
			Password: func() (string, error) { return v.Password(), nil },
			RootCAs:  roots,
			PollWait: time.Second,
		},
	)

	for _, f := range change {
		f(c)
	}

	run(t, c)
	return v, c
}

func run(t *testing.T, c *Client) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

// patience bounds what a test waits for; a test that works does not use it up.
func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// until watches until want says so, and returns the last state.
func until(t *testing.T, c *Client, vm, task string, want func(WatchState) bool) WatchState {
	t.Helper()
	var last WatchState
	err := c.Watch(patience(t), vm, task, func(s WatchState) bool {
		last = s
		return want(s)
	})
	if err != nil {
		t.Fatalf("watch %s %s: %v; last seen %+v", vm, task, err, last)
	}
	return last
}

func ended(s WatchState) bool {
	return s.Task != nil && (s.Task.State == "success" || s.Task.State == "error")
}

var simAuth = GuestAuth{Username: vcsim.DefaultGuestUsername, Password: vcsim.DefaultGuestPassword}

const simSpec = `{"_typeName":"CustomizationSpec","identity":{"_typeName":"CustomizationLinuxPrep",` +
	`"hostName":{"_typeName":"CustomizationFixedName",` +
	`"name":"web01"},"domain":"example.test"},
	"globalIPSettings":{"_typeName":"CustomizationGlobalIPSettings"},
	"nicSettingMap":[{"_typeName":"CustomizationAdapterMapping","adapter":{"_typeName":"CustomizationIPSettings",
	"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.7"},"subnetMask":"255.255.255.0"}}]}`

// TestSimulatedRun goes the whole way against a simulated vCenter of each generation.
func TestSimulatedRun(t *testing.T) {
	t.Parallel()
	for _, apiVersion := range []string{"9.0.0.0", "8.0.3.0", "8.0.2.0", "8.0.1.0"} {
		t.Run(apiVersion, func(t *testing.T) {
			t.Parallel()
			v, c := start(t, vcsim.Options{APIVersion: apiVersion, VMs: 1})
			ctx, vm := patience(t), v.VMs()[0]
			before, err := c.Now(ctx)
			if err != nil {
				t.Fatal(err)
			}

			about, err := c.About(ctx)
			if err != nil || about.APIVersion != apiVersion || about.InstanceUUID == "" {
				t.Errorf("about %+v, %v", about, err)
			}

			read, err := c.VM(ctx, vm)
			if err != nil || read.PowerState != "poweredOn" || read.ToolsRunningStatus != "guestToolsRunning" ||
				read.InstanceUUID == "" ||
				len(read.NICs) != 1 {
				t.Errorf("vm %+v, %v", read, err)
			}

			check, err := c.CheckCustomization(ctx, vm)
			if apiVersion == "9.0.0.0" {
				if err != nil || check.Status != "SUPPORTED" {
					t.Errorf("check %+v, %v", check, err)
				}
			} else if e := asError(t, err); e.Class != Permanent || e.Status != 404 && e.Status != 400 {
				t.Errorf("check of an old vCenter: %v", err)
			}

			if _, err := c.CustomizationStatus(ctx, vm); err != nil {
				t.Error(err)
			}

			task, err := c.CustomizeGuest(ctx, nil, vm, simAuth, json.RawMessage(simSpec), nil)
			if err != nil {
				t.Fatal(err)
			}

			if s := until(t, c, vm, task, ended); s.Task.State != "success" || s.Task.ID != task ||
				s.Task.Name != "CustomizeGuest_Task" ||
				s.Task.Entity != vm {
				t.Errorf("task %+v", s.Task)
			}

			network, err := c.StartGuestNetwork(ctx, nil, vm, simAuth)
			if err != nil {
				t.Fatal(err)
			}

			until(t, c, vm, network, ended)
			s := until(t, c, vm, "", func(s WatchState) bool { return strings.HasPrefix(s.VM.HostName, "web01") })
			if len(s.VM.NICs) != 1 || !slices.Contains(s.VM.NICs[0].Addresses, "10.0.0.7") {
				t.Errorf("NICs %+v", s.VM.NICs)
			}

			abort, err := c.AbortCustomization(ctx, nil, vm, simAuth)
			if err != nil {
				t.Fatal(err)
			}

			until(t, c, vm, abort, ended)
			if e := v.VM(vm).Effects(); e.Customizations != 1 || e.NetworkStarts != 1 || e.Aborts != 1 {
				t.Errorf("effects %+v", e)
			}

			tasks, history, err := c.Tasks(ctx, vm, before.Add(-time.Second))
			if err != nil || !history {
				t.Errorf("history %t, %v", history, err)
			}

			var ids []string
			for _, task := range tasks {
				ids = append(ids, task.ID)
			}

			if !slices.Equal(ids, []string{task, network, abort}) {
				t.Errorf("tasks %v, want %v", ids, []string{task, network, abort})
			}
			if one, err := c.Task(ctx, task); err != nil || one.State != "success" || one.CompleteTime == nil {
				t.Errorf("task %+v, %v", one, err)
			}
			if older, err := c.AnyTaskBefore(ctx, before.Add(time.Hour)); err != nil || !older {
				t.Errorf("a task before in an hour: %t, %v", older, err)
			}
			if older, err := c.AnyTaskBefore(ctx, before.Add(-24*time.Hour*365)); err != nil || older {
				t.Errorf("a task before last year: %t, %v", older, err)
			}

			pid, err := c.StartProcess(ctx, nil, vm, simAuth, ProcessSpec{Path: "/bin/true", Arguments: "# gf:1"})
			if err != nil {
				t.Fatal(err)
			}

			list, err := c.Processes(ctx, vm, simAuth)
			if err != nil ||
				!slices.ContainsFunc(
					list, func(p Process) bool { return p.PID == pid && strings.HasSuffix(p.Command, "# gf:1") },
				) {
				t.Errorf("list %+v, %v", list, err)
			}

			p, err := c.Process(ctx, vm, simAuth, pid)
			for err == nil && p.ExitCode == nil {
				<-time.After(20 * time.Millisecond) // a process is polled, there is nothing to wait on
				p, err = c.Process(ctx, vm, simAuth, pid)
			}

			if err != nil || *p.ExitCode != 0 || p.Finished == nil || p.PID != pid {
				t.Errorf("process %+v, %v", p, err)
			}

			long, err := c.StartProcess(ctx, nil, vm, simAuth, ProcessSpec{Path: "/bin/sleep", Arguments: "1000"})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteProcess(ctx, nil, vm, simAuth, long); err != nil {
				t.Error(err)
			}

			session, err := c.Session(ctx)
			if err != nil || session.Key == "" {
				t.Errorf("session %+v, %v", session, err)
			}
			if alive, err := c.SessionAlive(ctx, session); err != nil || !alive {
				t.Errorf("alive %t, %v", alive, err)
			}

			if alive, err := c.SessionAlive(ctx, Session{Key: "nobody", UserName: session.UserName}); err != nil ||
				alive {
				t.Errorf("a session that never was: %t, %v", alive, err)
			}

			if !c.Up() || c.PollAge() > time.Minute {
				t.Errorf("up %t, poll age %s", c.Up(), c.PollAge())
			}
			if n := v.Count("Login", ""); n != 1 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

// TestSimulatedErrors: the simulator's errors have the classes on which the handler decides.
func TestSimulatedErrors(t *testing.T) {
	t.Parallel()
	v, c := start(t, vcsim.Options{VMs: 3})
	ctx, vms := patience(t), v.VMs()
	_, err := c.VM(ctx, "vm-404")
	outcome{"ManagedObjectNotFound", Permanent, Refused}.check(t, asError(t, err))
	_, err = c.Task(ctx, "task-404")
	if e := asError(t, err); e.Name != "ManagedObjectNotFound" {
		t.Errorf("got %v", err)
	}

	_, _, err = c.Tasks(ctx, "vm-404", time.Time{})
	outcome{"ManagedObjectNotFound", Permanent, Refused}.check(t, asError(t, err))
	_, err = c.CustomizationStatus(ctx, "vm-404")
	outcome{"NOT_FOUND", Permanent, Refused}.check(t, asError(t, err))
	wrong := GuestAuth{Username: "root", Password: "wrong-guest-password"}
	_, err = c.CustomizeGuest(ctx, nil, vms[0], wrong, json.RawMessage(simSpec), nil)
	outcome{"InvalidGuestLogin", GuestCredentials, Refused}.check(t, asError(t, err))
	_, err = c.Processes(ctx, vms[0], wrong)
	outcome{"UNAUTHENTICATED", GuestCredentials, Refused}.check(t, asError(t, err))
	_, err = c.StartProcess(ctx, nil, vms[0], wrong, ProcessSpec{Path: "/bin/true"})
	outcome{"UNAUTHENTICATED", GuestCredentials, Refused}.check(t, asError(t, err))
	_, err = c.Process(ctx, vms[0], simAuth, 999999)
	outcome{"NOT_FOUND", Permanent, Refused}.check(t, asError(t, err))
	_, err = c.StartProcess(ctx, nil, vms[0], simAuth, ProcessSpec{Path: "/no/such/program"})
	outcome{"NOT_FOUND", Permanent, Refused}.check(t, asError(t, err))

	v.VM(vms[1]).PowerOff()
	_, err = c.StartGuestNetwork(ctx, nil, vms[1], simAuth)
	outcome{"InvalidPowerState", Permanent, Refused}.check(t, asError(t, err))
	_, err = c.Processes(ctx, vms[1], simAuth)
	outcome{"NOT_ALLOWED_IN_CURRENT_STATE", Permanent, Refused}.check(t, asError(t, err))
	v.VM(vms[2]).ToolsDown()
	_, err = c.StartGuestNetwork(ctx, nil, vms[2], simAuth)
	if e := asError(t, err); e.Class != Transient || e.Sent != Refused {
		t.Errorf("tools down: %s, %s: %v", e.Class, e.Sent, err)
	}

	_, err = c.Processes(ctx, vms[2], simAuth)
	outcome{"SERVICE_UNAVAILABLE", Transient, Refused}.check(t, asError(t, err))
	if n := v.Count("Login", ""); n != 1 {
		t.Errorf("%d logins: a guest's 401 was taken for the session's", n)
	}

	v.VM(vms[0]).Configure(func(g *vcsim.Guest) { g.TaskError = &types.CustomizationFault{} })
	task, err := c.CustomizeGuest(ctx, nil, vms[0], simAuth, json.RawMessage(simSpec), nil)
	if err != nil {
		t.Fatal(err)
	}

	s := until(t, c, vms[0], task, ended)
	if s.Task.Err == nil {
		t.Fatalf("task %+v", s.Task)
	}

	outcome{"CustomizationFault", Transient, Answered}.check(t, s.Task.Err)
	v.VM(vms[0]).Configure(func(g *vcsim.Guest) { g.TaskError, g.CustomizeTime = nil, time.Hour })
	if task, err = c.CustomizeGuest(ctx, nil, vms[0], simAuth, json.RawMessage(simSpec), nil); err != nil {
		t.Fatal(err)
	}

	_, err = c.StartGuestNetwork(ctx, nil, vms[0], simAuth)
	outcome{"TaskInProgress", Transient, Refused}.check(t, asError(t, err))
	if err := c.CancelTask(ctx, nil, task); err != nil {
		t.Error(err)
	}

	until(t, c, vms[0], task, ended)
}

// TestSimulatedExpiry: many goroutines and the long poll meet expired sessions; one login serves all.
func TestSimulatedExpiry(t *testing.T) {
	t.Parallel()
	for _, missing := range []bool{false, true} {
		v, c := start(t, vcsim.Options{VMs: 2, MissingNotAuthenticated: missing})
		ctx, vm := patience(t), v.VMs()[0]
		until(t, c, vm, "", func(s WatchState) bool { return !s.Down }) // the poll stands
		v.ExpireSessions()
		var wg sync.WaitGroup

		for range 20 {
			wg.Go(func() {
				if _, err := c.VM(ctx, vm); err != nil {
					t.Error(err)
				}
				if _, err := c.CustomizationStatus(ctx, vm); err != nil {
					t.Error(err)
				}
			})
		}

		wg.Wait()
		if n := v.Count("Login", ""); n != 2 {
			t.Errorf("%d logins, want 2", n)
		}

		v.VM(vm).ToolsDown()
		until(t, c, vm, "", func(s WatchState) bool { return s.VM.ToolsRunningStatus == "guestToolsNotRunning" })
	}
}

// TestSimulatedWatch: a watch survives cut connections, expired sessions and a vCenter that is away, and reports the
// last of these.
func TestSimulatedWatch(t *testing.T) {
	t.Parallel()
	v, c := start(t, vcsim.Options{VMs: 2})
	vm := v.VMs()[0]
	states := make(chan WatchState, 100)
	ctx, stop := context.WithCancelCause(patience(t))
	over := make(chan error, 1)
	go func() {
		over <- c.Watch(ctx, vm, "", func(s WatchState) bool {
			states <- s
			return false
		})
	}()

	wait := func(what string, want func(WatchState) bool) {
		t.Helper()
		for {
			select {
			case s := <-states:
				if want(s) {
					return
				}
			case err := <-over:
				t.Fatalf("waiting for %s: %v", what, err)
			}
		}
	}

	tools := func(status string) func(WatchState) bool {
		return func(s WatchState) bool { return !s.Down && s.VM.ToolsRunningStatus == status }
	}
	wait("the first state", tools("guestToolsRunning"))
	v.VM(vm).ToolsDown()
	wait("a change", tools("guestToolsNotRunning"))
	v.CutConnections()
	v.VM(vm).ToolsUp()
	wait("a change after a cut", tools("guestToolsRunning"))
	v.ExpireSessions()
	v.VM(vm).ToolsDown()
	wait("a change after an expiry", tools("guestToolsNotRunning"))
	v.Stop()
	wait("the news that vCenter is away", func(s WatchState) bool { return s.Down })
	v.VM(vm).ToolsUp()
	v.Resume()
	wait("a change during the absence", tools("guestToolsRunning"))
	enough := errors.New("enough")
	stop(enough)
	if err := <-over; !errors.Is(err, enough) {
		t.Errorf("the watch returned %v", err)
	}
}

// TestSimulatedWatchGone: Tasks that vCenter forgot, and VMs that it never had, are reported as gone; each watch reads
// again what was gone.
func TestSimulatedWatchGone(t *testing.T) {
	t.Parallel()
	v, c := start(t, vcsim.Options{VMs: 1})
	vm := v.VMs()[0]
	for range 2 {
		until(t, c, "vm-404", "", func(s WatchState) bool { return s.VMGone })
	}
	if n := v.Count("RetrievePropertiesEx", ""); n < 2 {
		t.Errorf("it was read %d times, want 2 at least", n)
	}

	until(
		t,
		c,
		vm,
		"task-404",
		func(s WatchState) bool { return s.TaskGone && !s.VMGone && s.VM.PowerState == "poweredOn" },
	)

	v.VM(vm).Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
	task, err := c.CustomizeGuest(patience(t), nil, vm, simAuth, json.RawMessage(simSpec), nil)
	if err != nil {
		t.Fatal(err)
	}

	seen := false
	s := until(t, c, vm, task, func(s WatchState) bool {
		if s.Task != nil && !seen {
			seen = true
			v.ForgetTasks()
			v.CutConnections()
		}
		return s.TaskGone
	})

	if s.Task == nil || s.Task.State != "running" {
		t.Errorf("the last known task is %+v", s.Task)
	}
}

// TestSimulatedWaiting: watching many VMs costs calls when watches begin and end, and none per VM while they wait.
func TestSimulatedWaiting(t *testing.T) {
	t.Parallel()
	const vms = 100
	// A busy machine is not a blind server.
	v, c := start(t, vcsim.Options{VMs: vms}, func(c *Client) { c.poller.showTimeout = time.Minute })
	until(t, c, v.VMs()[0], "", func(WatchState) bool { return true })
	ctx, stop := context.WithCancel(patience(t))
	var known, over sync.WaitGroup
	known.Add(vms)

	for _, vm := range v.VMs() {
		over.Go(func() {
			first := true
			_ = c.Watch(ctx, vm, "", func(WatchState) bool {
				if first {
					known.Done()
				}
				first = false
				return false
			})
		})
	}

	known.Wait()
	others := func() (ops []string) {
		for _, call := range v.Calls() {
			if call.Op != "WaitForUpdatesEx" {
				ops = append(ops, call.Op)
			}
		}
		return ops
	}

	before := others()
	if len(before) > vms {
		t.Errorf("%d calls until %d watches stood", len(before), vms)
	}

	polled := make(chan struct{}, 100)
	v.OnCall(func(call vcsim.Call, phase vcsim.Phase) vcsim.Action {
		if call.Op == "WaitForUpdatesEx" && phase == vcsim.Before {
			polled <- struct{}{}
		}
		return vcsim.Proceed
	})

	for range 2 { // long polls
		<-polled
	}

	if after := others(); len(after) != len(before) {
		t.Errorf("calls while nothing changed: %v", after[len(before):])
	}

	stop()
	over.Wait()
}

// TestSimulatedWatchAgain: a VM that is watched again and again is shown each time, by one filter, and without a call
// while it stays in the view.
func TestSimulatedWatchAgain(t *testing.T) {
	t.Parallel()
	for _, linger := range []time.Duration{time.Nanosecond, time.Hour} {
		v, c := start(
			t,
			vcsim.Options{VMs: 1},
			func(c *Client) { c.poller.showTimeout, c.poller.lingerTime = time.Minute, linger },
		)

		for range 100 {
			until(t, c, v.VMs()[0], "", func(s WatchState) bool { return s.VM.PowerState == "poweredOn" })
		}

		if n := v.Count("CreateFilter", ""); n != 1 {
			t.Errorf("linger %s: %d filters", linger, n)
		}
		if n := v.Count("ModifyListView", ""); linger == time.Hour && n != 1 {
			t.Errorf("linger %s: the view was changed %d times", linger, n)
		}
	}
}
