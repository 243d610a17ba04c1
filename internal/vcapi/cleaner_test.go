package vcapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// within waits for one value from a channel.
func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-patience(t).Done():
		t.Fatalf("waited in vain for %s", what)
	}
	panic("not reached")
}

// histories makes f create and read task histories, and sends on the channel which ones are destroyed.
func histories(f *fake) <-chan string {
	gone := make(chan string, 1000)
	f.reply("RetrievePropertiesEx", 200, `{"objects":[{"obj":{"type":"VirtualMachine","value":"vm-1"},"propSet":[]}]}`)
	f.reply("CreateCollectorForTasks", 200, `{"type":"TaskHistoryCollector","value":"c"}`)
	f.reply("ReadNextTasks", 200, `[]`)
	f.handle("DestroyCollector", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		gone <- r.URL.Path
	})
	return gone
}

// logouts answers each Logout of f, and sends the token of its session on the channel.
func logouts(f *fake) <-chan string {
	tokens := make(chan string, 10)
	f.handle("Logout", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		tokens <- r.Header.Get(sessionHeader)
	})
	return tokens
}

// leaveViews gives list views of a session to the cleaner of c.
func leaveViews(t *testing.T, c *Client, s *session, ids ...string) {
	t.Helper()
	for _, id := range ids {
		down, err := c.newVIMCall(s.service, objectRef("ListView", id), "ListView", "DestroyView", noParams)
		if err != nil {
			t.Fatal(err)
		}
		c.cleaner.removeLater(&serverObject{ref: refTo("ListView", id), session: s, removeCall: down})
	}
}

// TestCleanerLateResponse: an object that is created after its caller gave up is removed all the same, whatever its
// kind.
func TestCleanerLateResponse(t *testing.T) {
	t.Parallel()
	for create, by := range removalMethods {
		t.Run(create, func(t *testing.T) {
			t.Parallel()
			p := newPollServer(t)
			histories(p.fake)
			asked, answer, gone := make(chan struct{}), make(chan struct{}), make(chan string, 10)
			p.handle(create, func(w http.ResponseWriter, _ *http.Request) {
				close(asked)
				<-answer
				writeJSON(w, 200, `{"type":"`+by.kind+`","value":"late"}`)
			})

			p.handle(by.method, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusNoContent)
				gone <- r.URL.Path
			})

			c := p.client(t)
			if create == "CreateFilter" { // that of the session's own collector: it does not go with one of ours
				p.reply("CreatePropertyCollector", 500, `{"_typeName":"NotSupported"}`)
			}

			ctx, cancel := context.WithCancel(context.Background())
			over := make(chan error)
			go func() {
				if create == createHistoryCollector {
					_, _, err := c.Tasks(ctx, "vm-1", time.Time{})
					over <- err
					return
				}
				over <- c.Run(ctx)
			}()

			within(t, create, asked)
			cancel()
			if err := within(t, "the caller", over); !errors.Is(err, context.Canceled) {
				t.Errorf("the caller got %v", err)
			}

			close(answer)
			if path := within(t, by.method, gone); !strings.Contains(path, "/"+by.kind+"/late/") {
				t.Errorf("taken down: %s", path)
			}
		})
	}
}

// TestCleanerRetries: an object that could not be removed (no response, or a proxy's) is removed later; one that
// vCenter no longer knows is not tried again.
func TestCleanerRetries(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]http.HandlerFunc{
		"cut": func(w http.ResponseWriter, _ *http.Request) { cut(w) },
		"proxy": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<html>", http.StatusServiceUnavailable)
		},
		"busy": func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 500, `{"_typeName":"SystemError"}`) },
		"unknown": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 500, `{"_typeName":"ManagedObjectNotFound"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPollServer(t)
			gone, asked := make(chan string, 100), make(chan string, 100)
			for _, method := range []string{"DestroyPropertyCollector", "DestroyView"} {
				var tries atomic.Int32
				p.handle(method, func(w http.ResponseWriter, r *http.Request) {
					asked <- method
					if tries.Add(1) <= 2 {
						fail(w, r)
						return
					}
					w.WriteHeader(http.StatusNoContent)
					gone <- method
				})
			}

			p.push(200, `null`)
			p.push(500, `{"_typeName":"InvalidCollectorVersion"}`)
			c := p.polling(t, nil)
			if name == "unknown" {
				within(t, "the first", asked)
				within(t, "the second", asked)
				c.Close(context.Background())
				p.wantCount(t, "DestroyView", 1)
				p.wantCount(t, "DestroyPropertyCollector", 1)
				return
			}

			if a, b := within(t, "the first", gone), within(t, "the second", gone); a == b {
				t.Errorf("%s twice", a)
			}
		})
	}
}

// TestCleanerStubbornObject: an object that vCenter does not remove for now does not keep others from being removed.
func TestCleanerStubbornObject(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	gone := make(chan string, 10)
	f.handle("DestroyView", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/stubborn/") {
			writeJSON(w, 500, `{"_typeName":"SystemError"}`)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		gone <- r.URL.Path
	})

	c := f.client(t)
	s, err := c.vimLogin.get(context.Background())
	if err != nil {
		t.Fatal(err)
	}

	leaveViews(t, c, s, "stubborn", "other")
	within(t, "the other", gone)
}

// TestCleanerEndsSession: a session with too many objects left in it is ended, which removes them all: those whose
// names were lost, and those that cannot be removed. The next call opens another session.
func TestCleanerEndsSession(t *testing.T) {
	t.Parallel()
	t.Run("names lost", func(t *testing.T) {
		t.Parallel()
		f := newFake(t, "9.0.0.0")
		histories(f)
		tokens := logouts(f)
		f.handle("CreateCollectorForTasks", func(w http.ResponseWriter, _ *http.Request) { cut(w) })
		c := f.client(t)

		for range maxUnnamed {
			if _, _, err := c.Tasks(context.Background(), "vm-1", time.Time{}); err == nil {
				t.Fatal("no error")
			}
		}

		if token := within(t, "Logout", tokens); token != "vim-token-1" {
			t.Errorf("ended %s", token)
		}

		f.reply("CreateCollectorForTasks", 200, `{"type":"TaskHistoryCollector","value":"c"}`)
		if _, history, err := c.Tasks(context.Background(), "vm-1", time.Time{}); !history || err != nil {
			t.Errorf("history %t, %v", history, err)
		}

		f.wantCount(t, "Login", 2)
	})

	t.Run("not taken down", func(t *testing.T) {
		t.Parallel()
		f := newFake(t, "9.0.0.0")
		tokens := logouts(f)
		c := f.client(t)
		s, err := c.vimLogin.get(context.Background())
		if err != nil {
			t.Fatal(err)
		}

		f.handle("DestroyView", func(w http.ResponseWriter, _ *http.Request) { cut(w) })
		for i := range maxPending {
			leaveViews(t, c, s, fmt.Sprint(i))
		}

		if token := within(t, "Logout", tokens); token != "vim-token-1" {
			t.Errorf("ended %s", token)
		}
	})

	t.Run("not used any more", func(t *testing.T) { // at once, not only when the client ends
		t.Parallel()
		f := newFake(t, "9.0.0.0")
		c := f.client(t)
		s, err := c.vimLogin.get(context.Background())
		if err != nil {
			t.Fatal(err)
		}

		var tries atomic.Int32
		f.handle("Logout", func(w http.ResponseWriter, r *http.Request) {
			if tries.Add(1) == 1 {
				cut(w)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})

		c.forgetSession(s, false)
		if _, err := c.Session(context.Background()); err != nil {
			t.Error(err)
		}

		c.Close(context.Background())
		if n := tries.Load(); n < 2 || n > 3 { // the old one, perhaps again, and the new one
			t.Errorf("%d logouts", n)
		}
	})
}

// TestHistoryLimit: when vCenter allows no further collector and some of ours may be left, the session is replaced,
// once; a session that never had a collector is not.
func TestHistoryLimit(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	histories(f)
	c := f.client(t)
	read := func(want bool, logins int) {
		t.Helper()
		if _, history, err := c.Tasks(context.Background(), "vm-1", time.Time{}); history != want || err != nil {
			t.Errorf("history %t, %v", history, err)
		}
		f.wantCount(t, "Login", logins)
	}

	read(true, 1)
	f.handle("CreateCollectorForTasks", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(sessionHeader) == "vim-token-1" {
			writeJSON(w, 500, `{"_typeName":"InvalidState"}`)
			return
		}
		writeJSON(w, 200, `{"type":"TaskHistoryCollector","value":"c"}`)
	})

	read(true, 2)
	f.reply("CreateCollectorForTasks", 500, `{"_typeName":"InvalidState"}`)
	read(false, 3)
	read(false, 3)
	read(false, 3)
}

// TestHistoryLate: collectors that are created after their callers gave up do not stay.
func TestHistoryLate(t *testing.T) {
	t.Parallel()
	v, c := start(t, vcsim.Options{APIVersion: "9.0.0.0", VMs: 1})
	vm, ctx := v.VMs()[0], patience(t)
	v.Script(vcsim.Rule{Op: "CreateCollectorForTasks", DelayResponse: 30 * time.Millisecond})

	for range 40 {
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, _, _ = c.Tasks(short, vm, time.Time{})
		cancel()
	}

	v.ClearScript()
	if _, history, err := c.Tasks(ctx, vm, time.Time{}); err != nil || !history {
		t.Errorf("history %t, %v", history, err)
	}

	for range cap(c.historySlots) { // every place is free again: no collector is left
		select {
		case c.historySlots <- struct{}{}:
		case <-ctx.Done():
			t.Fatal("collectors are left")
		}
	}

	if made, gone := v.Count("CreateCollectorForTasks", ""), v.Count("DestroyCollector", ""); made != gone {
		t.Errorf("%d made, %d destroyed", made, gone)
	}
}

// TestLoginLate: a login whose caller gives up goes on, and the next caller has its session.
func TestLoginLate(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	f.reply("CurrentTime", 200, `"2026-11-20T10:00:00Z"`)
	asked, answer, right := make(chan struct{}), make(chan struct{}), f.on["Login"]
	f.handle("Login", func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-answer
		right(w, r)
	})

	c := f.client(t)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error)
	go func() {
		_, err := c.Now(ctx)
		over <- err
	}()

	within(t, "Login", asked)
	cancel()
	if err := within(t, "the caller", over); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller got %v", err)
	}

	close(answer)
	if _, err := c.Now(context.Background()); err != nil {
		t.Error(err)
	}

	f.wantCount(t, "Login", 1)
	c.Close(context.Background())
	f.wantCount(t, "Logout", 1)
}

// TestLoginOddAnswer: a login whose response has the token but is otherwise not understood is logged out.
func TestLoginOddAnswer(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	gone := logouts(f)
	f.handle("Login", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(sessionHeader, "odd-token")
		writeJSON(w, 200, `{"key":7}`)
	})

	if _, err := f.client(t).Now(context.Background()); !errors.Is(err, ErrNotUnderstood) {
		t.Errorf("got %v", err)
	}
	if token := within(t, "Logout", gone); token != "odd-token" {
		t.Errorf("ended %s", token)
	}
}

// TestLostLoginBackoff: logins whose responses are lost may leave sessions that nobody can end, so they are spaced out;
// logins that were certainly not sent are not.
func TestLostLoginBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries, sent := 0, NotSent
		l := newTestLogin(t, func(context.Context, string) (*session, error) {
			tries++
			return nil, &Error{Op: opLogin, Class: Transient, Sent: sent}
		})

		for range 3 {
			_, _ = l.get(context.Background())
		}

		if tries != 3 {
			t.Errorf("%d tries of three that were not sent", tries)
		}

		sent, tries = Unknown, 0
		for began := time.Now(); time.Since(began) < 30*time.Minute; <-time.After(100 * time.Millisecond) {
			if _, err := l.get(context.Background()); classOf(err) != Transient {
				t.Fatal(err)
			}
		}

		if tries < 50 || tries > 70 {
			t.Errorf("%d sessions may have been left in half an hour", tries)
		}
	})
}
