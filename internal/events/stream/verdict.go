package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
)

// process takes one message from its delivery to its answer.
func (c *consumer) process(h *inFlight) {
	d := c.latestDelivery(h)
	m, err := c.decodeSafely(d)
	c.mu.Lock()
	h.source = m.ref.Source
	c.mu.Unlock()

	if err == nil {
		err = c.asRefusal(h, c.handleSafely(m))
	} else {
		err = c.confirmRefusal(m, c.asRefusal(h, err))
	}

	log := c.log.With().Str("vm", m.vm).Str("run", m.run).Uint64("seq", h.seq).Logger()
	var reject *events.RejectError
	var retry *events.RetryError
	if errors.As(err, &reject) && !errors.As(err, &retry) {
		err = c.reject(d, m, reject, log)
	}
	if err == nil {
		c.acknowledge(h, log)
		c.mu.Lock()
		delete(c.panics, h.identity)
		c.mu.Unlock()
	}
	c.answer(h, err, log)
}

// confirmRefusal is the refusal of a request that cannot be read, where the VM's journal allows it; any other error
// stays as it is.
func (c *consumer) confirmRefusal(m decoded, err error) error {
	var reject *events.RejectError
	if !errors.As(err, &reject) || c.durable != events.RequestsConsumer(c.vcenter) {
		return err
	}
	return c.conn.guardRefusal(c.stopping, c.vcenter, m.vm, m.ref, reject)
}

// reject refuses a message. An error says what becomes of it where that could not be stored.
func (c *consumer) reject(d delivery, m decoded, why *events.RejectError, log zerolog.Logger) error {
	log.Info().Str("code", string(why.Code)).Str("field", why.Field).Str("reason", why.Message).Msg("message refused")
	err := c.conn.Reject(c.stopping, RefusedMessage{
		VCenter: c.vcenter, VM: m.vm, Ref: m.ref, Attrs: m.attrs, Seq: d.meta.Sequence.Stream, At: d.meta.Timestamp,
		Subject: d.Subject, Header: d.Header, Data: d.Data,
	}, why)
	switch {
	case err == nil && c.conn.hooks.Refused != nil:
		c.conn.hooks.Refused(c.vcenter, why.Code)
	case errors.Is(err, errJournalMoved):
		return &events.RetryError{After: lastRetry, Err: err}
	case err != nil && c.stopping.Err() != nil:
		return events.ErrReleased
	}
	return err
}

// answer tells the stream what becomes of a message, by the error of its handling. A message without one is
// acknowledged already.
func (c *consumer) answer(h *inFlight, err error, log zerolog.Logger) {
	latest, ok := c.remove(h)
	var retry *events.RetryError
	switch {
	case err == nil:
	case !ok:
		log.Warn().Err(err).Msg("a message whose stream was made anew is not answered any more")
	case errors.As(err, &retry):
		log.Info().Err(err).Msg("given back for a while")
		c.reportFailure()
		c.reply("nak", func() error { return latest.nakIn(retry.After) })
	case errors.Is(err, events.ErrReleased):
		c.giveBack(latest)
	case errors.Is(err, events.ErrFenced):
		log.Info().Err(err).Msg("another owner goes on with this request")
	default:
		c.reportFailure()
		log.Error().Err(err).Msg("request left alone; the stream delivers it again")
	}
}

func (c *consumer) reportFailure() {
	if c.conn.hooks.Failed != nil {
		c.conn.hooks.Failed(c.vcenter)
	}
}

// giveBack has the stream deliver a message at once: to somebody else where this process stops, for the very next
// delivery is the one that may trust a release.
func (c *consumer) giveBack(d delivery) {
	if c.stopping.Err() != nil {
		<-c.pullClosed
	}
	c.reply("nak", d.nak)
}

const (
	maxPanics  = 3              // how often this process lets one message panic
	panicsKept = 24 * time.Hour // how long they are counted: another process may have ended what panicked here
)

// panicked is how often a message made its handler panic, and when last.
type panicked struct {
	times int
	last  time.Time
}

// asRefusal turns an error of handle into a refusal of the message where another delivery of it would end in the same
// way: its events can never be stored, or it makes handle panic again and again.
func (c *consumer) asRefusal(h *inFlight, err error) error {
	var crash *panicError
	switch {
	case errors.Is(err, events.ErrUnstorable):
		return &events.RejectError{Code: events.Internal, Message: fmt.Sprintf("its events cannot be stored: %v", err)}
	case errors.As(err, &crash) && c.countPanic(h) >= maxPanics:
		c.log.Error().Err(err).Uint64("seq", h.seq).Msg("a request that panics again and again is refused")
		// The panic's words may hold a secret.
		return &events.RejectError{Code: events.Internal, Message: fmt.Sprintf(
			"guestflow panicked at this request %d times: report it, with what the service's log says of it",
			maxPanics)}
	}
	return err
}

// countPanic notes that a message made its handler panic, and returns how often it has. After maxPanics the count
// begins again.
func (c *consumer) countPanic(h *inFlight) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.panics, func(_ identity, p panicked) bool { return time.Since(p.last) > panicsKept })

	times := c.panics[h.identity].times + 1
	c.panics[h.identity] = panicked{times: times, last: time.Now()}
	if times >= maxPanics {
		delete(c.panics, h.identity)
	}
	return times
}

// panicError is a panic of a handler.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// handleSafely calls the handler. A panic costs its own request only: otherwise the stream would hand the request that
// killed this process to the next process.
func (c *consumer) handleSafely(m decoded) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return m.handle(c.stopping)
}

// decodeSafely decodes a message; a panic costs that message only.
func (c *consumer) decodeSafely(d delivery) (m decoded, err error) {
	defer func() {
		if p := recover(); p != nil {
			m, err = decoded{}, &panicError{p, debug.Stack()}
		}
	}()
	return c.decode(d)
}

const (
	ackAttempts = 5

	// streamCheckMaxAge is how long a stream is taken for the one that it was. It is only so that a burst of
	// acknowledgements asks once: that a stream was removed, the open pull request tells at once.
	streamCheckMaxAge = time.Second
)

// errStreamReplaced says that a message may not be answered any more.
var errStreamReplaced = errors.New("its stream was made anew")

// acknowledge waits for the server's word that the request is gone. Where that does not come in a few attempts the
// request is delivered again, and its run, which has ended, is acknowledged then.
func (c *consumer) acknowledge(h *inFlight, log zerolog.Logger) {
	ctx := context.WithoutCancel(c.stopping)
	var err error
	for attempt := range ackAttempts {
		if attempt > 0 {
			_ = backoff.Sleep(ctx, backoff.Jitter(lastRetry)) // its ctx never ends
		}
		if err = c.acknowledgeOnce(ctx, h); err == nil {
			return
		}
		if errors.Is(err, errStreamReplaced) || c.conn.nc.IsClosed() {
			break
		}
	}
	log.Warn().Err(err).
		Msg("the end of a request could not be acknowledged; it is delivered again, and changes nothing")
}

func (c *consumer) acknowledgeOnce(ctx context.Context, h *inFlight) error {
	c.mu.Lock()
	fresh := time.Since(c.streamCheckedAt) < streamCheckMaxAge
	c.mu.Unlock()
	if !fresh {
		err := c.checkStream(ctx)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %w", errStreamReplaced, err)
		}
		if err != nil {
			return err
		}
	}

	c.mu.Lock()
	latest, abandoned := h.latest, h.abandoned
	c.mu.Unlock()
	if abandoned {
		return errStreamReplaced
	}
	_, err := once(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, latest.ack(ctx) })
	return err
}
