package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/sandbox"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).Shutdown"))
}

// patience bounds what a test waits for; a test that works does not use it up.
func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, o sandbox.Options) *sandbox.Sandbox {
	t.Helper()
	log := &buffer{}
	o.Log = log
	s, err := sandbox.Start(patience(t), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}

	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log)
		}
	})

	return s
}

// buffer is a bytes.Buffer for several writers.
type buffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// submit publishes an event for a VM, as any client would.
func submit(t *testing.T, js jetstream.JetStream, subject, id, kind string, data any) error {
	t.Helper()
	event, err := json.Marshal(
		map[string]any{
			"specversion": "1.0",
			"id":          id,
			"source":      "/test",
			"type":        "io.guestflow.customization." + kind + ".v1",
			"data":        data,
		},
	)
	if err != nil {
		return err
	}

	for { // for some milliseconds after a run's end its VM's queue is still full
		_, err := js.Publish(patience(t), subject, event)
		var api *jetstream.APIError
		if !errors.As(err, &api) || api.ErrorCode != 10077 {
			return err
		}
	}
}

// Every VM does what it is there for: twice, so that each try shows the same.
func TestVMs(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	nc, err := nats.Connect(s.NATSURL())
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}

	var all sync.WaitGroup
	seen := map[string]bool{}
	for _, vm := range s.VMs() {
		if seen[vm.Shows] || vm.Name == "" {
			t.Errorf("VM %+v", vm)
		}

		seen[vm.Shows] = true
		all.Go(func() { // all at once: most of it is waiting
			tries := 2
			// Right after a run that asked for the same, what the guest comes to show may be that one's doing, and
			// proves nothing of the next.
			if strings.HasPrefix(vm.Shows, "slow") || strings.HasPrefix(vm.Shows, "vCenter says that the Task failed") {
				tries = 1
			}

			for try := range tries {
				told, err := nc.SubscribeSync("guestflow.*." + sandbox.VCenter + "." + vm.ID + ".>")
				if err != nil {
					t.Error(err)
					return
				}

				id := fmt.Sprintf("try-%d", try)
				got, err := ends(t, js, told, vm, id)
				if err != nil || got != vm.Ends {
					t.Errorf("%s: try %d ended with %s, want %s: %v", vm.Shows, try, got, vm.Ends, err)
				}

				_ = told.Unsubscribe()
			}

			// At most once for each try; an abort may be followed by a second one.
			if e := s.Effects(vm.ID); e.Customizations > 2+e.Aborts || e.NetworkStarts > 2 || len(e.Processes) > 2 {
				t.Errorf("%s: effects %+v", vm.Shows, e)
			}
		})
	}

	all.Wait()
	if e := s.Effects("vm-0"); e.Customizations != 0 {
		t.Errorf("effects of no VM: %+v", e)
	}
}

// ends submits a VM's request and follows the run to its last event; it cancels it where it is there for that.
func ends(t *testing.T, js jetstream.JetStream, told *nats.Subscription, vm sandbox.VM, id string) (string, error) {
	t.Helper()
	if err := submit(t, js, "guestflow.requests."+sandbox.VCenter+"."+vm.ID, id, "requested", vm.Request); err != nil {
		return "", err
	}

	unreachable := !strings.Contains(vm.Shows, "process.unreachable")
	for {
		m, err := told.NextMsgWithContext(patience(t))
		if err != nil {
			return "", err
		}

		var e struct {
			Type string
			Data struct {
				Request struct{ ID string }
				Error   struct{ Code string }
			}
		}

		if err := json.Unmarshal(m.Data, &e); err != nil {
			return "", err
		}
		if e.Data.Request.ID != id {
			continue
		}

		switch kind := strings.TrimSuffix(strings.TrimPrefix(e.Type, "io.guestflow.customization."), ".v1"); kind {
		case "process.started":
			if vm.Ends != "run.canceled" {
				continue
			}
			if err := submit(t, js, "guestflow.cancels."+sandbox.VCenter+"."+vm.ID, "cancel-"+id, "cancel.requested",
				map[string]any{"vm": vm.ID, "request": map[string]any{"source": "/test", "id": id}}); err != nil {
				return "", err
			}
		case "process.unreachable":
			unreachable = true
		case "run.failed":
			return kind + " " + e.Data.Error.Code, nil
		case "run.succeeded", "run.canceled":
			if !unreachable {
				return kind, errors.New("there was no process.unreachable")
			}
			return kind, nil
		}
	}
}

// Who writes about a VM, or a test for it, finds it under the same ID at each start.
func TestIDsStay(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	for range 2 { // side by side: what hangs on the scheduler shows
		all.Go(func() {
			for range 3 {
				s, err := sandbox.Start(patience(t), sandbox.Options{NoService: true})
				if err != nil {
					t.Error(err)
					return
				}

				for i, vm := range s.VMs() {
					if want := fmt.Sprintf("vm-%d", 29+2*i); vm.ID != want {
						t.Errorf("VM %d is %s, want %s", i+1, vm.ID, want)
					}
				}

				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}

	all.Wait()
}

// Its parts alone: a NATS of somebody else's, addresses that are given, and a folder that stays.
func TestParts(t *testing.T) {
	t.Parallel()
	nats := start(t, sandbox.Options{NoService: true})
	dir := t.TempDir()
	s := start(
		t,
		sandbox.Options{
			NATS:          nats.NATSURL(),
			Dir:           dir,
			HTTPListen:    "127.0.0.1:0",
			VCenterListen: "127.0.0.1:0",
			NoService:     true,
		},
	)

	if s.NATSURL() != nats.NATSURL() || s.VCenterURL() == nats.VCenterURL() {
		t.Errorf("NATS %s, vCenter %s", s.NATSURL(), s.VCenterURL())
	}
	if _, err := os.Stat(s.CAFile()); err != nil || !strings.HasPrefix(s.CAFile(), dir) {
		t.Errorf("%s: %v", s.CAFile(), err)
	}

	if env := strings.Join(s.Env(), "\n"); !strings.Contains(env, "VCENTER_LAB_URL="+s.VCenterURL()) ||
		!strings.Contains(env, "NATS_URL="+s.NATSURL()) {
		t.Errorf("settings %s", env)
	}
}

// What cannot be had is said, and nothing is left behind.
func TestAddressTaken(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	for _, o := range []sandbox.Options{
		{NATSListen: strings.TrimPrefix(s.NATSURL(), "nats://")},
		{VCenterListen: strings.TrimPrefix(s.VCenterURL(), "https://")},
		{HTTPListen: strings.TrimPrefix(s.URL(), "http://")}, {NATSListen: "nowhere"},
	} {
		other, err := sandbox.Start(patience(t), o)
		if err == nil {
			_ = other.Close()
			t.Errorf("%+v was started", o)
		}
	}
}
