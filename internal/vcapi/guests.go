package vcapi

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// guestLimiter are the places for calls that go through vCenter to a guest, where VMware Tools may hang: what waits for one guest may not keep others waiting,
// and says nothing about vCenter. They have connections of their own; a VM has one call at a time; and a call that is still without its answer after
// guestPatience gives its place to another: it goes on in one of the late places, where the next calls to its VM begin, until one is answered in time.
// Where even those are taken, by as many guests that hang, it is given up. So a place is free again within guestPatience, whatever hangs.
//
// Acts are not held up here: a run makes one at a time, on a connection of its own.
type guestLimiter struct {
	fast, slow chan struct{}

	mu        sync.Mutex
	byVM      map[string]*guestQueue
	swept     time.Time
	afterFunc func(time.Duration, func()) *time.Timer // time.AfterFunc
}

// guestQueue is the line before one guest.
type guestQueue struct {
	slot      chan struct{} // holds the one whose call is on its way
	waiting   int
	slowSince time.Time // when its last call was late; zero: it was not
}

const (
	guestPatience  = 3 * time.Second
	fastGuestSlots = 32
	slowGuestSlots = 96
	slowFor        = 2 * time.Minute // how long a guest that was not asked since counts as late
)

func newGuestLimiter() *guestLimiter {
	return &guestLimiter{fast: make(chan struct{}, fastGuestSlots), slow: make(chan struct{}, slowGuestSlots), byVM: make(map[string]*guestQueue), afterFunc: time.AfterFunc}
}

// enter is the line of a VM, and whether its last call was late.
func (g *guestLimiter) enter(vm string) (line *guestQueue, late bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.swept) > slowFor {
		g.swept = now
		for other, line := range g.byVM {
			if line.waiting == 0 && now.Sub(line.slowSince) > slowFor {
				delete(g.byVM, other)
			}
		}
	}
	if line = g.byVM[vm]; line == nil {
		line = &guestQueue{slot: make(chan struct{}, 1)}
		g.byVM[vm] = line
	}
	line.waiting++
	return line, !line.slowSince.IsZero()
}

// leave notes how its call went, where there was one.
func (g *guestLimiter) leave(vm string, line *guestQueue, called, late bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch line.waiting--; {
	case called && late:
		line.slowSince = time.Now()
	case called:
		line.slowSince = time.Time{}
	}
	if line.waiting == 0 && line.slowSince.IsZero() {
		delete(g.byVM, vm)
	}
}

// do makes a call to the guest of vm when it has a place; until then no longer than wait.
func (g *guestLimiter) do(ctx context.Context, vm string, wait time.Duration, call func(context.Context)) error {
	line, slow := g.enter(vm)
	called, late := false, false
	defer func() { g.leave(vm, line, called, late) }()
	waiting, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("no place for another call to a guest within %s: too many guests do not answer", wait))
	defer cancel()
	if err := acquire(waiting, line.slot); err != nil {
		return err
	}
	defer func() { <-line.slot }()
	place := g.fast
	if slow {
		place = g.slow
	}
	if err := acquire(waiting, place); err != nil {
		return err
	}
	called = true
	late = g.runInSlot(ctx, place, call)
	return nil
}

func acquire(ctx context.Context, place chan struct{}) error {
	select {
	case place <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// runInSlot makes the call in a place, and reports whether it was late.
func (g *guestLimiter) runInSlot(ctx context.Context, place chan struct{}, call func(context.Context)) (late bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	moved := make(chan struct{})
	timer := g.afterFunc(guestPatience, func() {
		defer close(moved)
		if place == g.slow {
			return
		}
		select {
		case g.slow <- struct{}{}:
			<-place
			place = g.slow
		default:
			cancel(fmt.Errorf("no answer within %s, and too many other guests do not answer", guestPatience))
		}
	})
	call(ctx)
	if late = !timer.Stop(); late {
		<-moved
	}
	<-place
	return late
}
