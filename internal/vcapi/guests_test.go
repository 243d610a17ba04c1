package vcapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hanging makes the guests of f hang, but vm-ok's, until the function that it returns is called. Each call that hangs is told on the channel.
func hanging(f *fake) (hangs <-chan string, release func()) {
	told, over := make(chan string, 1000), make(chan struct{})
	f.handle("1", func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/vm-ok/") {
			told <- r.URL.Path
			select {
			case <-over:
			case <-r.Context().Done():
				return
			}
		}
		writeJSON(w, 200, `{"name":"sh","owner":"root","command":"sh","started":"2026-11-20T10:00:00Z"}`)
	})
	f.reply("CurrentTime", 200, `"2026-11-20T10:00:00Z"`)
	return told, sync.OnceFunc(func() { close(over) })
}

// TestGuestsHang: however many guests do not answer, calls to vCenter and to other guests are answered, and vCenter is up.
func TestGuestsHang(t *testing.T) {
	t.Parallel()
	for _, many := range []int{64, 200} {
		t.Run(fmt.Sprint(many), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			c := f.client(t)
			f.learnt(t, c, "/api")
			c.guests.after = 500 * time.Millisecond
			hangs, release := hanging(f)
			defer release()
			var calls sync.WaitGroup
			var answered, givenUp atomic.Int32
			for i := range many {
				calls.Go(func() {
					_, err := c.Process(context.Background(), fmt.Sprintf("vm-%d", i), testAuth, 1)
					switch {
					case err == nil:
						answered.Add(1)
					case asError(t, err).Class == Transient && asError(t, err).Guest:
						givenUp.Add(1)
					default:
						t.Errorf("got %v", err)
					}
				})
			}
			for range min(many, lateGuests) {
				within(t, "a call that hangs", hangs)
			}
			for range 3 {
				if _, err := c.Process(context.Background(), "vm-ok", testAuth, 1); err != nil {
					t.Errorf("a guest that is well: %v", err)
				}
				if _, err := c.Now(context.Background()); err != nil {
					t.Errorf("vCenter's clock: %v", err)
				}
			}
			if !c.Up() {
				t.Errorf("down: %v", c.Why())
			}
			release()
			calls.Wait()
			if n := int(answered.Load()); n < min(many, lateGuests) {
				t.Errorf("%d of %d were answered in the end, %d given up", n, many, givenUp.Load())
			}
			c.guests.mu.Lock()
			defer c.guests.mu.Unlock()
			if len(c.guests.prompt)+len(c.guests.late) != 0 {
				t.Errorf("places taken: %d, %d", len(c.guests.prompt), len(c.guests.late))
			}
		})
	}
}

// TestGuestOneCall: one guest has one call at a time; the next begins where guests are that were late, until one is answered in time.
func TestGuestOneCall(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	c := f.client(t)
	f.learnt(t, c, "/api")
	c.guests.after = 10 * time.Millisecond
	hangs, release := hanging(f)
	defer release()
	var calls sync.WaitGroup
	for range 64 {
		calls.Go(func() {
			if _, err := c.Process(context.Background(), "vm-1", testAuth, 1); err != nil {
				t.Error(err)
			}
		})
	}
	within(t, "the first call", hangs)
	if _, err := c.Process(context.Background(), "vm-ok", testAuth, 1); err != nil {
		t.Error(err)
	}
	select {
	case <-hangs:
		t.Error("a second call to the same guest")
	default:
	}
	// One who gives up makes no place free that it does not have.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Process(ctx, "vm-1", testAuth, 1); err == nil {
		t.Error("no error")
	}
	release()
	calls.Wait()
	c.guests.mu.Lock()
	defer c.guests.mu.Unlock()
	if line := c.guests.byVM["vm-1"]; line != nil && line.users != 0 {
		t.Errorf("line %+v", line)
	}
}

// TestGuestSilence: a guest operation without an answer, an ask or an act, says nothing about vCenter; a vCenter that takes no connection does.
func TestGuestSilence(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	cfg := f.config()
	cfg.CallTimeout = 50 * time.Millisecond
	c := newClient(t, cfg)
	f.learnt(t, c, "/api")
	c.answerWait = 50 * time.Millisecond
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	f.handle("processes", hang)
	f.handle("1", hang)
	f.handle("InitiateFileTransferFromGuest", hang)
	for name, call := range map[string]func() error{
		"get":  func() error { _, err := c.Process(context.Background(), "vm-1", testAuth, 1); return err },
		"list": func() error { _, err := c.Processes(context.Background(), "vm-1", testAuth); return err },
		"create": func() error {
			_, err := c.StartProcess(context.Background(), nil, "vm-1", testAuth, ProcessSpec{Path: "/x"})
			return err
		},
		"delete": func() error { return c.DeleteProcess(context.Background(), nil, "vm-1", testAuth, 1) },
		"file":   func() error { _, err := c.GuestFile(context.Background(), "vm-1", testAuth, "/x", 1); return err },
	} {
		err := call()
		if e := asError(t, err); !e.Guest || e.Class != Transient || e.Status != 0 {
			t.Errorf("%s: guest %t, %v", name, e.Guest, err)
		}
		if !c.Up() {
			t.Errorf("%s: down: %v", name, c.Why())
		}
	}
	f.srv.CloseClientConnections()
	f.srv.Close()
	if _, err := c.Process(context.Background(), "vm-1", testAuth, 1); err == nil || c.Up() {
		t.Errorf("%v, up %t", err, c.Up())
	}
}
