package vcapi

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// guestLimiter limits the calls that go through vCenter to guests, where VMware Tools may hang. A call that waits for
// one guest must not delay the others, and says nothing about vCenter. So these calls have connections of their own,
// and a VM has one at a time.
//
// A call begins in a fast slot. When it has no response after guestPatience, it moves to a slow slot, and the next
// calls to its VM begin there, until one is answered in time. Where even the slow slots are taken, by as many guests
// that hang, it is given up. So a fast slot is free again within guestPatience, whatever hangs.
//
// Effects are not limited: a run makes one at a time, on a connection of its own.
type guestLimiter struct {
	fast, slow chan struct{}

	mu        sync.Mutex
	byVM      map[string]*guestQueue
	swept     time.Time
	afterFunc func(time.Duration, func()) *time.Timer // time.AfterFunc
}

// guestQueue is where the calls to one guest wait.
type guestQueue struct {
	slot      chan struct{} // held by the call in flight
	waiting   int           // callers, the one in flight included
	slowSince time.Time     // when its last call was slow; zero where it was not
}

const (
	guestPatience  = 3 * time.Second
	fastGuestSlots = 32
	slowGuestSlots = 96
	slowFor        = 2 * time.Minute // how long a guest counts as slow that is not called again
)

func newGuestLimiter() *guestLimiter {
	return &guestLimiter{
		fast:      make(chan struct{}, fastGuestSlots),
		slow:      make(chan struct{}, slowGuestSlots),
		byVM:      make(map[string]*guestQueue),
		afterFunc: time.AfterFunc,
	}
}

// enter returns the queue of a VM, and whether its last call was slow. It forgets slow guests that were not called for
// long.
func (g *guestLimiter) enter(vm string) (queue *guestQueue, slow bool) {
	g.mu.Lock()
	defer g.mu.Unlock()

	if now := time.Now(); now.Sub(g.swept) > slowFor {
		g.swept = now
		for other, queue := range g.byVM {
			if queue.waiting == 0 && now.Sub(queue.slowSince) > slowFor {
				delete(g.byVM, other)
			}
		}
	}

	if queue = g.byVM[vm]; queue == nil {
		queue = &guestQueue{slot: make(chan struct{}, 1)}
		g.byVM[vm] = queue
	}

	queue.waiting++
	return queue, !queue.slowSince.IsZero()
}

// leave ends what enter began: called reports whether there was a call, and slow how it went.
func (g *guestLimiter) leave(vm string, queue *guestQueue, called, slow bool) {
	g.mu.Lock()
	defer g.mu.Unlock()

	queue.waiting--
	switch {
	case called && slow:
		queue.slowSince = time.Now()
	case called:
		queue.slowSince = time.Time{}
	}

	if queue.waiting == 0 && queue.slowSince.IsZero() {
		delete(g.byVM, vm)
	}
}

// do makes a call to the guest of vm when there is a slot for it, within wait; its error is that there was none.
func (g *guestLimiter) do(ctx context.Context, vm string, wait time.Duration, call func(context.Context)) error {
	queue, wasSlow := g.enter(vm)
	called, slow := false, false
	defer func() { g.leave(vm, queue, called, slow) }()

	waiting, cancel := context.WithTimeoutCause(ctx, wait,
		fmt.Errorf("no place for another call to a guest within %s: too many guests do not answer", wait))
	defer cancel()
	if err := acquire(waiting, queue.slot); err != nil {
		return err
	}
	defer func() { <-queue.slot }()

	slots := g.fast
	if wasSlow {
		slots = g.slow
	}
	if err := acquire(waiting, slots); err != nil {
		return err
	}

	called = true
	slow = g.runInSlot(ctx, slots, call)
	return nil
}

func acquire(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// runInSlot makes the call in a slot that was acquired, releases the slot, and reports whether the call was slow. A
// slow call moves to a slow slot, or is given up where there is none.
func (g *guestLimiter) runInSlot(ctx context.Context, slots chan struct{}, call func(context.Context)) (slow bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	moved := make(chan struct{})
	timer := g.afterFunc(guestPatience, func() {
		defer close(moved)
		if slots == g.slow {
			return
		}

		select {
		case g.slow <- struct{}{}:
			<-slots
			slots = g.slow
		default:
			cancel(fmt.Errorf("no answer within %s, and too many other guests do not answer", guestPatience))
		}
	})

	call(ctx)
	if slow = !timer.Stop(); slow {
		<-moved
	}

	<-slots
	return slow
}
