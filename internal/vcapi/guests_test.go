package vcapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// hanging makes the guests of f hang, except vm-ok's, until the function that it returns is called. Each call that
// hangs is sent on the channel.
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

// impatience lets a test decide when calls to guests are slow.
type impatience struct {
	mu     sync.Mutex
	timers []*time.Timer
}

func (i *impatience) later(_ time.Duration, f func()) *time.Timer {
	i.mu.Lock()
	defer i.mu.Unlock()
	timer := time.AfterFunc(time.Hour, f)
	i.timers = append(i.timers, timer)
	return timer
}

// over makes all calls that are on their way late.
func (i *impatience) over() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, timer := range i.timers {
		if timer.Stop() {
			timer.Reset(0)
		}
	}
	i.timers = nil
}

// TestGuestsHang: however many guests do not answer, calls to vCenter and to other guests are answered, and vCenter is
// up.
func TestGuestsHang(t *testing.T) {
	t.Parallel()
	for _, many := range []int{64, 200} {
		t.Run(fmt.Sprint(many), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			c := f.client(t)
			f.learnt(t, c, "/api")
			var late impatience
			c.guests.afterFunc, c.cfg.CallTimeout = late.later, time.Hour
			hangs, release := hanging(f)
			defer release()
			results := make(chan error, many)

			for i := range many {
				go func() {
					_, err := c.Process(context.Background(), fmt.Sprintf("vm-%d", i), testAuth, 1)
					results <- err
				}()
			}

			givenUp := 0
			for hung := 0; hung < min(many, slowGuestSlots) || givenUp < many-slowGuestSlots; {
				select {
				case <-hangs:
					hung++
					late.over()
				case err := <-results:
					givenUp++
					late.over()
					if e := asError(t, err); e.Class != Transient || !e.Guest || e.Status != 0 {
						t.Errorf("got %v", err)
					}
				case <-patience(t).Done():
					t.Fatalf("%d hang, %d were given up", hung, givenUp)
				}
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
				t.Errorf("down: %v", whyDown(c))
			}

			release()
			for range many - givenUp {
				if err := within(t, "an answer", results); err != nil {
					t.Errorf("got %v", err)
				}
			}

			if n := len(c.guests.fast) + len(c.guests.slow); n != 0 {
				t.Errorf("%d places taken", n)
			}
		})
	}
}

// TestGuestOneCall: a guest has one call at a time. After a slow call, the next one begins in a slow slot, until one is
// answered in time.
func TestGuestOneCall(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	c := f.client(t)
	f.learnt(t, c, "/api")
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

	if line := c.guests.byVM["vm-1"]; line != nil && line.waiting != 0 {
		t.Errorf("line %+v", line)
	}
}

// TestGuestDoesNotAnswer: a guest operation without a response, a read or an effect, says nothing about vCenter; a
// vCenter that refuses connections is down.
func TestGuestDoesNotAnswer(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	c := f.client(t)
	f.learnt(t, c, "/api")
	c.cfg.CallTimeout, c.responseTimeout = time.Second, time.Second
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	f.handle("processes", hang)
	f.handle("1", hang)
	f.handle("InitiateFileTransferFromGuest", hang)

	ctx := context.Background()
	var calls sync.WaitGroup
	for name, call := range map[string]func(vm string) error{
		"get":  func(vm string) error { _, err := c.Process(ctx, vm, testAuth, 1); return err },
		"list": func(vm string) error { _, err := c.Processes(ctx, vm, testAuth); return err },
		"create": func(vm string) error {
			_, err := c.StartProcess(ctx, nil, vm, testAuth, ProcessSpec{Path: "/x"})
			return err
		},
		"delete": func(vm string) error { return c.DeleteProcess(ctx, nil, vm, testAuth, 1) },
		"file":   func(vm string) error { _, err := c.GuestFile(ctx, vm, testAuth, "/x", 1); return err },
	} {
		calls.Go(func() {
			err := call("vm-of-" + name)
			if e := (*Error)(nil); !errors.As(err, &e) || !e.Guest || e.Class != Transient || e.Status != 0 {
				t.Errorf("%s: %v", name, err)
			}
		})
	}

	calls.Wait()
	if !c.Up() {
		t.Errorf("down: %v", whyDown(c))
	}

	f.srv.CloseClientConnections()
	f.srv.Close()
	if _, err := c.Process(context.Background(), "vm-1", testAuth, 1); err == nil || c.Up() {
		t.Errorf("%v, up %t", err, c.Up())
	}
}
