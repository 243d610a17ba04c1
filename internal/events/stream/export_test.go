package stream

import (
	"context"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// DeadLetter is deadLetter, for tests from outside.
var DeadLetter = deadLetter

// KeepTime sets how long refused messages wait for their dead letters' stream alone.
func (c *Conn) KeepTime(d time.Duration) { c.deadLetterPatience = d }

// ConsumeUnreadable is Consume with a reader that panics at every message.
func (c *Conn) ConsumeUnreadable(ctx context.Context) error {
	return c.consume(ctx, "lab", events.RequestsConsumer("lab"),
		func(delivery) (decoded, error) { panic("broken reader") })
}
