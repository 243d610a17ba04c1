// Package backoff waits between the attempts of what is tried again: longer each time, and for a time that is drawn
// at random, so that those who failed together do not come back together.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the pauses between the attempts of one thing. It is for one goroutine.
type Backoff struct {
	first, longest, current time.Duration
}

// New makes a Backoff whose pauses begin at first, and double up to longest.
func New(first, longest time.Duration) *Backoff {
	return &Backoff{first: first, longest: longest, current: first}
}

// Next is how long to wait before the next attempt: Jitter of the present pause.
func (b *Backoff) Next() time.Duration {
	d := Jitter(b.current)
	b.current = min(2*b.current, b.longest)
	return d
}

// Reset makes the next pause the first again: something has moved.
func (b *Backoff) Reset() { b.current = b.first }

// AtLeast makes the next pause no shorter than d, before its jitter.
func (b *Backoff) AtLeast(d time.Duration) { b.current = max(b.current, d) }

// Wait waits until it is time for the next attempt. Its error is why ctx ended before.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// WaitOrWake waits until it is time for the next attempt, or until wake is signalled, which resets the pauses: what
// follows is read in quick succession, then rarely again. Its error is why ctx ended before.
//
// It is for reads that are repeated until they show what is waited for. A signal is a hint, which may get lost or come
// before the reads show what it is about.
func (b *Backoff) WaitOrWake(ctx context.Context, wake <-chan struct{}) error {
	t := time.NewTimer(b.Next())
	defer t.Stop()

	select {
	case <-wake:
		b.Reset()
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Sleep returns nil after d, or why ctx ended before.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()

	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Jitter is a random time between half of d and d.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
