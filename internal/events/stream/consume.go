package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
)

// Consume takes requests from the vCenter's durable and calls handle for each, in a goroutine of its own: as many at
// once as the durable's MaxAckPending allows to all replicas together. Heartbeats keep a request from being delivered
// to somebody else until handle returns; its redelivery in the meantime starts nothing. What handle returns decides
// what becomes of the message:
//
//	nil            it is acknowledged, and the acknowledgement confirmed
//	ErrReleased    it is given back at once
//	*RetryError    it is given back for a while
//	*RejectError   it is kept as a dead letter, its publisher is told, and it is acknowledged
//	ErrFenced      nothing is sent, not even a heartbeat: it is another owner's, and a late acknowledgement would take
//	               it away from that one
//	anything else  it is logged, and nothing is sent: the stream delivers it again after the ack wait
//
// A message that is no valid request is refused without a call of handle.
//
// handle gets the ctx of Consume. When that ends nothing more is taken; each handle brings what it has begun to a safe
// end and returns, and then Consume does. While NATS is away Consume waits for it; it returns an error only where the
// connection is closed for good.
func (c *Conn) Consume(
	ctx context.Context, vcenter string, handle func(ctx context.Context, r *events.Request) error,
) error {
	return c.consume(ctx, vcenter, events.RequestsConsumer(vcenter), func(d delivery) (decoded, error) {
		r, err := events.DecodeRequest(vcenter, d.Subject, d.Header, d.Data)
		r.Seq, r.At, r.Stream = d.meta.Sequence.Stream, d.meta.Timestamp, d.streamCreated
		r.Delivered = d.meta.NumDelivered
		if err == nil {
			err = c.checkTimeout(r)
		}

		call := func(ctx context.Context) error { return handle(ctx, r) }
		return decoded{vm: r.VM, run: r.RunID, ref: r.Ref, attrs: r.Attrs, handle: call}, err
	})
}

// ConsumeCancels is Consume for the vCenter's cancels.
func (c *Conn) ConsumeCancels(
	ctx context.Context, vcenter string, handle func(ctx context.Context, c *events.Cancel) error,
) error {
	return c.consume(ctx, vcenter, events.CancelsConsumer(vcenter), func(d delivery) (decoded, error) {
		x, err := events.DecodeCancel(vcenter, d.Subject, d.Header, d.Data)
		x.Seq, x.At, x.Stream = d.meta.Sequence.Stream, d.meta.Timestamp, d.streamCreated
		x.Delivered = d.meta.NumDelivered

		call := func(ctx context.Context) error { return handle(ctx, x) }
		return decoded{vm: x.VM, run: x.RunID, ref: x.Ref, attrs: x.Attrs, handle: call}, err
	})
}

// checkTimeout refuses a run that could outlive its events.
func (c *Conn) checkTimeout(r *events.Request) error {
	c.mu.Lock()
	kept := c.eventsMaxAge
	c.mu.Unlock()

	timeout := r.Spec.Timeout.Or(events.DefaultTimeout)
	if kept == 0 || timeout < kept {
		return nil
	}
	return &events.RejectError{Code: events.InvalidRequest, Field: "timeout", Message: fmt.Sprintf(
		"is %s, but events are kept for %s only: make it shorter, or raise the service's GUESTFLOW_EVENTS_MAX_AGE",
		timeout, kept)}
}

// decoded is a message as it was read: which VM and run it is about, and what handles it.
type decoded struct {
	vm, run string
	ref     events.RequestRef // the message's own
	attrs   events.Attributes
	handle  func(ctx context.Context) error
}

// consumer takes the messages of one durable in this process.
type consumer struct {
	conn     *Conn
	vcenter  string
	durable  string
	decode   func(d delivery) (decoded, error)
	stopping context.Context // when it has ended nothing more is taken
	log      zerolog.Logger

	// pullClosed is closed when this process has no pull request open any more, so that what is given back goes to
	// another process.
	pullClosed      chan struct{}
	handlers        sync.WaitGroup
	heartbeatPeriod chan time.Duration // the new one, where it changes

	mu       sync.Mutex
	inFlight map[uint64]*inFlight // by stream sequence
	drained  bool                 // all that was taken is waited for: nothing more may be taken
	panics   map[identity]panicked
	ackWait  time.Duration // of the durable

	// streamCreated says which incarnation of the stream the durable belongs to; streamCheckedAt is when that was read.
	streamCreated   time.Time
	streamCheckedAt time.Time
}

func (c *Conn) consume(
	ctx context.Context, vcenter, durable string, decode func(d delivery) (decoded, error),
) error {
	cons := &consumer{
		conn: c, vcenter: vcenter, durable: durable, decode: decode, stopping: ctx,
		log:        c.log.With().Str("vcenter", vcenter).Logger(),
		pullClosed: make(chan struct{}), heartbeatPeriod: make(chan time.Duration, 1),
		inFlight: map[uint64]*inFlight{}, panics: map[identity]panicked{},
	}
	c.register(cons)
	defer c.unregister(cons)

	quit := make(chan struct{})
	var heartbeats sync.WaitGroup
	heartbeats.Go(func() { cons.heartbeats(quit) })

	err := cons.run(ctx)
	close(cons.pullClosed)
	cons.mu.Lock()
	cons.drained = true
	cons.mu.Unlock()
	cons.handlers.Wait()

	close(quit)
	heartbeats.Wait()
	return err
}

func (c *Conn) register(cons *consumer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.consumers = append(c.consumers, cons)
}

func (c *Conn) unregister(cons *consumer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.consumers = slices.DeleteFunc(c.consumers, func(other *consumer) bool { return other == cons })
}

// run pulls until ctx ends. It looks for the durable again where that was lost.
func (c *consumer) run(ctx context.Context) error {
	what := "take messages of " + c.durable
	w := newWaiter(c.conn.log, c.vcenter, "", what)
	connected := c.conn.nc.StatusChanged(nats.CONNECTED)
	defer c.conn.nc.RemoveStatusListener(connected)

	for ctx.Err() == nil {
		err := c.bind(ctx, connected)
		if err == nil {
			// The wait is over with the first answer, not before: a pull request that is not permitted is never
			// answered.
			err = c.pull(ctx, connected, func() {
				w.done()
				w = newWaiter(c.conn.log, c.vcenter, "", what)
			})
		}
		if err == nil {
			continue
		}

		if c.conn.nc.IsClosed() {
			err = nats.ErrConnectionClosed
		}
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			if restoreErr := c.conn.restore(ctx); restoreErr != nil {
				err = errors.Join(err, restoreErr)
			}
		}
		if waitErr := w.wait(ctx, err); waitErr != nil && ctx.Err() == nil {
			return fmt.Errorf("consumer %s: %w", c.durable, waitErr)
		}
	}
	return nil
}

// bind finds the durable, and abandons what its stream no longer holds. What was asked when the connection broke is
// never answered: a new connection ends the wait.
func (c *consumer) bind(ctx context.Context, connected <-chan nats.Status) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-connected:
			cancel(errReconnected)
		case <-done:
		}
	})
	defer watching.Wait()
	defer close(done)

	for _, step := range []func(context.Context) error{c.readAckWait, c.checkStream, c.checkMessages} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// errReconnected ends a wait for an answer that was asked for on a connection that is gone.
var errReconnected = errors.New("connected to NATS again")

// readAckWait reads how soon the stream must hear that the messages in flight are alive. It may change while we
// consume.
func (c *consumer) readAckWait(ctx context.Context) error {
	cons, err := once(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return c.conn.js.Consumer(ctx, events.RequestsStream(c.vcenter), c.durable)
	})
	if err != nil {
		return err
	}

	wait := cons.CachedInfo().Config.AckWait
	c.mu.Lock()
	changed := wait != c.ackWait
	c.ackWait = wait
	c.mu.Unlock()
	if changed {
		c.heartbeatPeriod <- max(wait/3, time.Millisecond)
	}
	return nil
}

// ackWaitMaxAge is for how long the durable is taken to be as it was read: at most for one heartbeat, since a shorter
// ack wait calls for more of them.
func (c *consumer) ackWaitMaxAge() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(max(c.ackWait/3, 100*time.Millisecond), pullHeartbeat)
}
