package stream_test

import (
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// What one view of a stream tells of a message: only a view that has seen it, of the same stream or of a later one,
// tells that it has left.
func TestStreamViewOf(t *testing.T) {
	t.Parallel()
	made := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	later := made.Add(time.Hour)
	p := events.Place{Stream: made, Seq: 7, At: made.Add(10 * time.Minute)}
	view := func(change func(*stream.View)) stream.View {
		v := stream.View{Made: made, First: 3, Last: 9, LastAt: made.Add(11 * time.Minute), Messages: 6,
			Removed: []uint64{5}, Detailed: true}
		change(&v)
		return v
	}
	for name, row := range map[string]struct {
		view stream.View
		want stream.Verdict
	}{
		"held": {view(func(*stream.View) {}), stream.Held},
		"held, nothing was removed": {view(func(v *stream.View) {
			v.First, v.Messages, v.Detailed, v.Removed = 3, 7,
				false, nil
		}), stream.Held},
		"removed": {view(func(v *stream.View) { v.Messages, v.Removed = 5, []uint64{5, 7} }),
			stream.Gone},
		"before the first": {view(func(v *stream.View) { v.First, v.Messages, v.Removed = 8, 2, nil }),
			stream.Gone},
		"empty, and has seen it": {view(func(v *stream.View) {
			v.First, v.Last, v.Messages, v.Removed = 8, 7, 0,
				nil
		}), stream.Gone},
		"details were not asked for": {view(func(v *stream.View) { v.Detailed, v.Removed = false, nil }),
			stream.Unclear},
		"one message behind": {view(func(v *stream.View) {
			v.Last, v.LastAt, v.Messages = 6, made.Add(9*time.Minute), 3
		}), stream.NotSeen},
		"empty, and one message behind": {view(func(v *stream.View) {
			v.First, v.Last, v.LastAt, v.Messages, v.Removed = 7, 6, made.Add(9*time.Minute), 0, nil
		}), stream.NotSeen},
		"a new stream": {view(func(v *stream.View) {
			v.Made, v.First, v.Last, v.Messages = later, 0, 0,
				0
		}), stream.Gone},
		"a new stream, as far": {view(func(v *stream.View) { v.Made, v.LastAt = later, later }), stream.Gone},
		"the stream that was before": {view(func(v *stream.View) {
			v.Made, v.Messages, v.Removed = made.Add(-time.Hour),
				5, []uint64{5, 7}
		}), stream.NotSeen},
		"a new stream, by a clock that is behind": {view(func(v *stream.View) {
			v.Made, v.Last, v.LastAt, v.Messages = made.Add(5*time.Minute), 1, made.Add(6*time.Minute), 1
		}), stream.Gone},
		"a new stream, by a clock from before the old one was made": {view(func(v *stream.View) {
			v.Made, v.Last, v.LastAt, v.Messages = made.Add(-time.Hour), 1, made.Add(9*time.Minute), 1
		}), stream.NotSeen},
		"that one, when it has gone on for longer": {view(func(v *stream.View) {
			v.Made, v.Last, v.LastAt, v.Messages = made.Add(-time.Hour), 2, made.Add(12*time.Minute), 2
		}), stream.Gone},
		"the stream lost its end, and goes on": {view(func(v *stream.View) {
			v.Last, v.LastAt, v.Messages = 6,
				made.Add(15*time.Minute), 3
		}), stream.Gone},
		"clocks that differ a little": {view(func(v *stream.View) {
			v.Last, v.LastAt, v.Messages = 6,
				p.At.Add(2*time.Second), 3
		}), stream.NotSeen},
	} {
		if got := row.view.Of(p); got != row.want {
			t.Errorf("%s: verdict %d, want %d", name, got, row.want)
		}
	}
	// A place of a checkpoint of version 1, which does not say of which stream it is.
	p.Stream = time.Time{}
	if got := view(func(v *stream.View) { v.Made = later }).Of(p); got != stream.Gone {
		t.Errorf("a stream made after an unknown one's message: verdict %d", got)
	}
	if got := view(func(*stream.View) {}).Of(p); got != stream.Held {
		t.Errorf("a stream made before it: verdict %d", got)
	}
}

// What real servers answer of a request that is there, that is not there yet, that has left, and whose stream was made
// anew.
func TestLineGone(t *testing.T) {
	t.Parallel()
	for _, servers := range []int{1, 3} {
		name, url := "one server", func() string { return natstest.StartServer(t).URL() }
		if servers == 3 {
			name, url = "three servers", func() string { return natstest.StartCluster(t, 3).URL() }
		}
		t.Run(name, func(t *testing.T) {
			url := url()
			conn := connect(t, url)
			provision(t, conn, url, settings(servers))
			c, ctx, line := dial(t, url), testContext(t), conn.RequestQueue()
			place := func(vm, id string) events.Place {
				t.Helper()
				c.request(t, vm, id)
				in, err := line.Unfinished(ctx, "lab", vm)
				if err != nil || len(in.Requests) == 0 {
					t.Fatalf("waiting %+v, %v", in, err)
				}
				s, err := c.js.Stream(ctx, events.RequestsStream("lab"))
				if err != nil {
					t.Fatal(err)
				}
				p := in.Requests[len(in.Requests)-1].Place()
				p.Stream = s.CachedInfo().Created
				return p
			}
			want := func(what string, p events.Place, want bool) {
				t.Helper()
				until(t, what, func() bool {
					got, err := line.Gone(ctx, "lab", "vm-1", p)
					return err == nil && got == want
				})
			}
			first, middle, last := place("vm-1", "a"), place("vm-1", "b"), place("vm-2", "c")
			notYet := last
			notYet.Seq++
			for _, p := range []events.Place{first, middle, last, notYet} {
				want("it is there, or will be", p, false)
			}
			s, err := c.js.Stream(ctx, events.RequestsStream("lab"))
			if err != nil {
				t.Fatal(err)
			}
			remove := func(p events.Place) {
				t.Helper()
				if err := s.DeleteMsg(ctx, p.Seq); err != nil {
					t.Fatal(err)
				}
			}
			remove(middle)
			want("it was between two others", middle, true)
			remove(last)
			want("it was the newest", last, true)
			want("the oldest is still there", first, false)
			remove(first)
			want("the stream is empty", first, true)
			want("and nobody knows of a later one", notYet, false)
			if err := c.js.DeleteStream(ctx, events.RequestsStream("lab")); err != nil {
				t.Fatal(err)
			}
			provision(t, conn, url, settings(servers))
			want("its stream is gone, and made anew", notYet, true)
			again := place("vm-1", "a")
			want("who has its sequence now is there", again, false)
			want("it is another one", first, true)
		})
	}
}
