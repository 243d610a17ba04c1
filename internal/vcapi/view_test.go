package vcapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestGather: the longer a pass over all watched objects takes, the longer the next one waits for more changes; with
// few objects, or where the poll ends, there is no wait.
func TestGather(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		took, want time.Duration
		ended      bool
	}{
		{took: 0, want: 0},
		{took: 100 * time.Microsecond, want: 0},
		{took: 5 * time.Millisecond, want: 20 * time.Millisecond},
		{took: time.Second, want: longestGather},
		{took: time.Second, want: 0, ended: true},
	} {
		t.Run(fmt.Sprintf("%s ended=%t", row.took, row.ended), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if row.ended {
					cancel()
				}
				began := time.Now()
				(&generation{passTook: row.took}).gather(ctx)
				if waited := time.Since(began); waited != row.want {
					t.Errorf("it waited %s, want %s", waited, row.want)
				}
			})
		})
	}
}

// TestSlowViewCall: where the call that adds objects to the view takes longer than showTimeout, as one with thousands
// of objects may, they are not overdue when it returns: the poll could not show them before.
func TestSlowViewCall(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	waiting, added := make(chan struct{}, 1), make(chan struct{})
	answered := sync.OnceFunc(func() { close(added) })
	p.handle("ModifyListView", func(w http.ResponseWriter, _ *http.Request) {
		<-time.After(1500 * time.Millisecond)
		answered()
		writeJSON(w, 200, `[]`)
	})
	p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
		wake(waiting)
		if strings.Contains(p.last("WaitForUpdatesEx").body, `"version"`) {
			<-r.Context().Done()
			return
		}
		select {
		case <-added:
			<-time.After(200 * time.Millisecond) // after the call's response was read
			writeJSON(w, 200, updateOf42("1", "enter", "forty-two"))
		case <-r.Context().Done():
		}
	})

	c := p.polling(t, func(c *Client) { c.poller.showTimeout = time.Second })
	<-waiting // the first poll waits, over an empty view
	until(t, c, "vm-42", "", named42)
	p.wantCount(t, "CreateFilter", 1)
}

// One pass over 20,000 objects that are watched and in the view.
func BenchmarkViewChanges(b *testing.B) {
	c := &Client{}
	p := newPoller(c)
	inView, removed := make(map[moRef]bool), make(map[moRef]time.Time)
	for i := range 20_000 {
		p.add(&watcher{vm: moRef{Type: virtualMachine, Value: fmt.Sprintf("vm-%d", i)}, signal: make(chan struct{}, 1)})
	}
	add, _ := p.viewChanges(inView, removed)
	for _, ref := range add {
		inView[ref] = true
	}
	b.ReportAllocs()
	for b.Loop() {
		if add, remove := p.viewChanges(inView, removed); len(add)+len(remove) > 0 {
			b.Fatal("there is a change")
		}
	}
}
