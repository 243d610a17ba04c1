package handler

import (
	"context"
	"sync"
	"time"
)

// stepClock is the clock that a run's steps are timed by. It stands still while vCenter gives no answer of its own:
// what cannot be asked is not late. A run's own time limit, and the waits for calls that may still land, go by the
// wall's.
type stepClock struct {
	mu     sync.Mutex
	stood  time.Duration // how long it stood still, until it last went on
	still  time.Time     // since when it stands still; zero: it goes
	bounds map[*bound]bool
}

// now is the wall's time less all that the clock stood still.
func (c *stepClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.read()
}

func (c *stepClock) read() time.Time {
	at := time.Now()
	if !c.still.IsZero() {
		at = c.still
	}
	return at.Add(-c.stood)
}

// stop makes the clock stand still, from a time on that may have passed.
func (c *stepClock) stop(from time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.still.IsZero() {
		return
	}
	c.still = from
	for b := range c.bounds {
		b.timer.Stop()
	}
}

// goOn lets the clock go again.
func (c *stepClock) goOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.still.IsZero() {
		return
	}
	c.stood += time.Since(c.still)
	c.still = time.Time{}
	for b := range c.bounds {
		b.timer.Reset(b.due.Sub(c.read()))
	}
}

// stands reports whether the clock stands still, since when, and how long it had stood still before.
func (c *stepClock) stands() (before time.Duration, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stood, c.still
}

// set takes over what a former owner's clock showed.
func (c *stepClock) set(stood time.Duration, still time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stood, c.still = stood, still
}

// until bounds ctx: it ends with cause once the clock shows due.
func (c *stepClock) until(ctx context.Context, due time.Time, cause error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &bound{Context: ctx, clock: c, due: due}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bounds == nil {
		c.bounds = map[*bound]bool{}
	}
	c.bounds[b] = true
	b.timer = time.AfterFunc(due.Sub(c.read()), func() {
		if b.over() {
			cancel(cause)
		}
	})

	if !c.still.IsZero() {
		b.timer.Stop()
	}
	return b, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		b.timer.Stop()
		delete(c.bounds, b)
		cancel(nil)
	}
}

// within bounds ctx by so much time of the clock, from now on.
func (c *stepClock) within(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	return c.until(ctx, c.now().Add(d), cause)
}

// bound is a context that ends by a stepClock.
type bound struct {
	context.Context
	clock *stepClock
	due   time.Time
	timer *time.Timer
}

// Deadline is when the context will end if the clock goes on as it does. While it stands still that is told of what is
// around it alone: a context made of this one, with a limit of its own, has no timer where this deadline is the earlier
// one, and would never end.
func (b *bound) Deadline() (time.Time, bool) {
	outer, ok := b.Context.Deadline()
	b.clock.mu.Lock()
	defer b.clock.mu.Unlock()
	if !b.clock.still.IsZero() {
		return outer, ok
	}
	if own := time.Now().Add(b.due.Sub(b.clock.read())); !ok || own.Before(outer) {
		return own, true
	}
	return outer, true
}

// over reports whether its time has come, not merely its timer's: the clock may have been stopped meanwhile, and the
// wall's is set now and then.
func (b *bound) over() bool {
	b.clock.mu.Lock()
	defer b.clock.mu.Unlock()
	if !b.clock.still.IsZero() {
		return false // goOn sets the timer again
	}
	left := b.due.Sub(b.clock.read())
	if left > 0 && b.clock.bounds[b] {
		b.timer.Reset(left)
	}
	return left <= 0
}
