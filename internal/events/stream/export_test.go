package stream

import (
	"context"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// DeadLetter is deadLetter, for tests from outside.
var DeadLetter = deadLetter

// SetPatience sets for how long a dead letter that cannot be stored, a message of another version and NATS are waited
// for.
func (c *Conn) SetPatience(deadLetter, otherVersion, report time.Duration) {
	c.patience = patience{deadLetter: deadLetter, otherVersion: otherVersion, report: report}
}

// ConsumeUnreadable is Consume with a reader that panics at every message.
func (c *Conn) ConsumeUnreadable(ctx context.Context) error {
	return c.consume(ctx, "lab", events.RequestsConsumer("lab"),
		func(delivery) (decoded, error) { panic("broken reader") })
}
