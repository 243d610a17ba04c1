package vcapi

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// guests are the places for calls that go through vCenter to a guest, where VMware Tools may hang: what waits for one guest may not keep others waiting,
// and says nothing about vCenter. They have connections of their own; a VM has one call at a time; and a call that is still without its answer after
// guestPatience gives its place to another: it goes on in one of the late places, where the next calls to its VM begin, until one is answered in time.
// Where even those are taken, by as many guests that hang, it is given up. So a place is free again within guestPatience, whatever hangs.
//
// Acts are not held up here: a run makes one at a time, on a connection of its own.
type guests struct {
	prompt, late chan struct{}

	mu    sync.Mutex
	byVM  map[string]*guestLine
	swept time.Time
	later func(time.Duration, func()) *time.Timer // time.AfterFunc
}

// guestLine is the line before one guest.
type guestLine struct {
	turn  chan struct{} // holds the one whose call is on its way
	users int
	late  time.Time // when its last call was late; zero: it was not
}

const (
	guestPatience = 3 * time.Second
	promptGuests  = 32
	lateGuests    = 96
	lateFor       = 2 * time.Minute // how long a guest that was not asked since counts as late
)

func newGuests() *guests {
	return &guests{prompt: make(chan struct{}, promptGuests), late: make(chan struct{}, lateGuests), byVM: make(map[string]*guestLine), later: time.AfterFunc}
}

// join is the line of a VM, and whether its last call was late.
func (g *guests) join(vm string) (line *guestLine, late bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.swept) > lateFor {
		g.swept = now
		for other, line := range g.byVM {
			if line.users == 0 && now.Sub(line.late) > lateFor {
				delete(g.byVM, other)
			}
		}
	}
	if line = g.byVM[vm]; line == nil {
		line = &guestLine{turn: make(chan struct{}, 1)}
		g.byVM[vm] = line
	}
	line.users++
	return line, !line.late.IsZero()
}

// leave notes how its call went, where there was one.
func (g *guests) leave(vm string, line *guestLine, called, late bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch line.users--; {
	case called && late:
		line.late = time.Now()
	case called:
		line.late = time.Time{}
	}
	if line.users == 0 && line.late.IsZero() {
		delete(g.byVM, vm)
	}
}

// do makes a call to the guest of vm when it has a place; until then no longer than wait.
func (g *guests) do(ctx context.Context, vm string, wait time.Duration, call func(context.Context)) error {
	line, slow := g.join(vm)
	called, late := false, false
	defer func() { g.leave(vm, line, called, late) }()
	waiting, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("no place for another call to a guest within %s: too many guests do not answer", wait))
	defer cancel()
	if err := take(waiting, line.turn); err != nil {
		return err
	}
	defer func() { <-line.turn }()
	place := g.prompt
	if slow {
		place = g.late
	}
	if err := take(waiting, place); err != nil {
		return err
	}
	called = true
	late = g.watched(ctx, place, call)
	return nil
}

func take(ctx context.Context, place chan struct{}) error {
	select {
	case place <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watched makes the call in a place, and reports whether it was late.
func (g *guests) watched(ctx context.Context, place chan struct{}, call func(context.Context)) (late bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	moved := make(chan struct{})
	timer := g.later(guestPatience, func() {
		defer close(moved)
		if place == g.late {
			return
		}
		select {
		case g.late <- struct{}{}:
			<-place
			place = g.late
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
