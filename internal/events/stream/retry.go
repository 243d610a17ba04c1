package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/backoff"
)

const (
	firstRetry = 25 * time.Millisecond
	lastRetry  = time.Second
)

// ask repeats a question until it is answered, or ctx ends.
func ask[T any](
	ctx context.Context, log waitLog, vcenter, vm, what string, question func(context.Context) (T, error),
) (T, error) {
	w := newWaiter(log, vcenter, vm, what)
	defer w.done()
	for {
		answer, err := once(ctx, question)
		if err == nil {
			return answer, nil
		}
		if err := w.wait(ctx, err); err != nil {
			return answer, fmt.Errorf("vm %s: %s: %w", vm, what, err)
		}
	}
}

// once makes one attempt, within the time of one round trip.
func once[T any](ctx context.Context, attempt func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return attempt(ctx)
}

// waiter waits between attempts, longer each time, and says once in the log that it waits and once that it goes on.
type waiter struct {
	log   zerolog.Logger
	waits *waitRegister
	about openWait
	what  string
	pause *backoff.Backoff
	since time.Time
}

func newWaiter(log waitLog, vcenter, vm, what string) *waiter {
	return &waiter{log: log.With().Str("vcenter", vcenter).Str("vm", vm).Logger(), waits: log.waits,
		about: openWait{vcenter: vcenter, vm: vm, what: what}, what: what, pause: backoff.New(firstRetry, lastRetry)}
}

// wait returns nil when it is time for the next attempt, or why there will be none: ctx ended, or the connection is
// closed for good.
func (w *waiter) wait(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		w.waits.unregister(w)
		return fmt.Errorf("%w; last attempt: %w", context.Cause(ctx), err)
	}
	if permanent(err) {
		w.waits.unregister(w)
		return err
	}
	err = notConnected(err)
	if w.since.IsZero() {
		w.since = time.Now()
		w.log.Warn().Err(err).Msgf("cannot %s, trying again", w.what)
	}
	w.about.since, w.about.err = w.since, err
	w.waits.register(w, w.about)
	if ended := w.pause.Wait(ctx); ended != nil {
		w.waits.unregister(w)
		return fmt.Errorf("%w; last attempt: %w", ended, err)
	}
	return nil
}

func (w *waiter) done() {
	w.waits.unregister(w)
	if !w.since.IsZero() {
		w.log.Info().Dur("waited", time.Since(w.since)).Msgf("no longer waiting to %s", w.what)
	}
}

// permanent reports whether sending the same message again cannot help.
func permanent(err error) bool {
	return unstorable(err) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, errJournalMoved)
}

// unstorable reports whether the server refuses this very message, today as tomorrow.
func unstorable(err error) bool {
	var refused *StoreError
	if errors.As(err, &refused) {
		return refused.Code == CodeMessageTooLarge || refused.Code == CodeHeadersTooLarge ||
			refused.Code == CodeWrongStream
	}
	return errors.Is(err, nats.ErrMaxPayload)
}
