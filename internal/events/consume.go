package events

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

const (
	ackAttempts   = 5
	drainWait     = 2 * time.Second // for what was on its way when pulling stopped
	pullHeartbeat = 5 * time.Second // how often an idle server says that it still has our pull request
)

// Consume takes requests from the vCenter's durable and calls handle for each, in a goroutine of its own: as many at once as the durable's
// MaxAckPending allows to all replicas together. A request is kept alive by heartbeats until handle returns; its redelivery in the meantime
// starts nothing. What handle returns decides what becomes of the message:
//
//	nil            acknowledged, and the acknowledgement confirmed
//	ErrReleased    given back at once
//	*RetryError    given back for a while
//	*RejectError   kept as a dead letter, told to its publisher, acknowledged
//	ErrFenced      nothing, not even a heartbeat: it is another owner's, and a late acknowledgement would take it away from that one
//	anything else  logged, then nothing: it is delivered again after the ack wait
//
// A message that is no valid request is refused without handle.
//
// When ctx ends nothing more is taken, and Consume returns when every handle has. Their ctx does not end with it: handle closes over the one
// that tells it to stop. While NATS is away Consume waits for it; it returns an error only where the connection is closed for good.
func (c *Conn) Consume(ctx context.Context, vcenter string, handle func(ctx context.Context, r *Request) error) error {
	return c.consume(ctx, vcenter, RequestsConsumer(vcenter), func(m jetstream.Msg, meta *jetstream.MsgMetadata) (work, error) {
		r, err := DecodeRequest(vcenter, m.Subject(), m.Headers(), m.Data())
		r.Seq, r.Delivered, r.At = meta.Sequence.Stream, meta.NumDelivered, meta.Timestamp
		if err == nil {
			err = c.tooLong(r)
		}
		return work{vm: r.VM, run: r.Run, ref: r.Ref, attrs: r.Attrs, handle: func(ctx context.Context) error { return handle(ctx, r) }}, err
	})
}

// ConsumeCancels is Consume for the vCenter's cancels.
func (c *Conn) ConsumeCancels(ctx context.Context, vcenter string, handle func(ctx context.Context, c *Cancel) error) error {
	return c.consume(ctx, vcenter, CancelsConsumer(vcenter), func(m jetstream.Msg, meta *jetstream.MsgMetadata) (work, error) {
		x, err := DecodeCancel(vcenter, m.Subject(), m.Headers(), m.Data())
		x.Seq, x.Delivered = meta.Sequence.Stream, meta.NumDelivered
		return work{vm: x.VM, run: x.Run, ref: x.Ref, attrs: x.Attrs, handle: func(ctx context.Context) error { return handle(ctx, x) }}, err
	})
}

// work is a message, read: whom it is about, and what is to be done.
type work struct {
	vm, run string
	ref     RequestRef // the message's own
	attrs   Attributes
	handle  func(ctx context.Context) error
}

func (c *Conn) consume(ctx context.Context, vcenter, durable string, read func(m jetstream.Msg, meta *jetstream.MsgMetadata) (work, error)) error {
	c.knows(vcenter, durable)
	i := &intake{
		conn: c, vcenter: vcenter, durable: durable, read: read, stopping: ctx, held: map[uint64]*held{}, period: make(chan time.Duration, 1),
		quiet: make(chan struct{}), log: c.log.With().Str("vcenter", vcenter).Logger(),
	}
	quit := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { i.heartbeats(quit) })
	err := i.run(ctx)
	close(i.quiet)
	i.handles.Wait()
	close(quit)
	beats.Wait()
	return err
}

// intake is one durable's messages in this process.
type intake struct {
	conn     *Conn
	vcenter  string
	durable  string
	read     func(m jetstream.Msg, meta *jetstream.MsgMetadata) (work, error)
	stopping context.Context // ended: nothing more is taken
	log      zerolog.Logger
	quiet    chan struct{} // closed: no pull of ours is open, so what is given back goes to another process
	handles  sync.WaitGroup
	period   chan time.Duration // between two heartbeats, where it changes

	mu   sync.Mutex
	held map[uint64]*held // by stream sequence: what handle has in hand
}

// held is a message in hand. Its latest delivery is the one to answer: guarded by intake.mu.
type held struct {
	msg jetstream.Msg
}

// run pulls until ctx ends. It binds to the durable anew where that was lost.
func (i *intake) run(ctx context.Context) error {
	w := newWaiter(i.log, i.vcenter, "", "take messages of "+i.durable)
	for ctx.Err() == nil {
		cons, err := try(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
			return i.conn.js.Consumer(ctx, RequestsStream(i.vcenter), i.durable)
		})
		if err == nil {
			err = i.pull(ctx, cons, w)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			if restoreErr := i.conn.restore(ctx); restoreErr != nil {
				err = errors.Join(err, restoreErr)
			}
		}
		if waitErr := w.wait(ctx, err); waitErr != nil && ctx.Err() == nil {
			return fmt.Errorf("consumer %s: %w", i.durable, waitErr)
		}
	}
	return nil
}

// pull takes messages until ctx ends, which is no error, or the consumer is gone.
func (i *intake) pull(ctx context.Context, cons jetstream.Consumer, w *waiter) error {
	info := cons.CachedInfo().Config
	i.period <- max(info.AckWait/3, time.Millisecond)
	doubt := make(chan struct{}, 1) // the server may have no such consumer any more
	opts := []jetstream.PullConsumeOpt{
		jetstream.PullHeartbeat(pullHeartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			// A restart of the server shows here too; nats.go pulls again by itself, and the connection's state is logged elsewhere.
			i.log.Debug().Err(err).Msg("pulling requests")
			if errors.Is(err, jetstream.ErrNoHeartbeat) || errors.Is(err, nats.ErrNoResponders) {
				signal(doubt)
			}
		}),
	}
	if info.MaxAckPending > 0 { // never more on its way than can be started
		opts = append(opts, jetstream.PullMaxMessages(info.MaxAckPending))
	}
	pulling, err := cons.Consume(i.take, opts...)
	if err != nil {
		return err
	}
	w.done()
	*w = *newWaiter(i.log, i.vcenter, "", "take messages of "+i.durable)
	for ctx.Err() == nil {
		select {
		case <-pulling.Closed():
			if i.conn.nc.IsClosed() {
				return nats.ErrConnectionClosed
			}
			return errors.New("the consumer is gone")
		case <-doubt: // a pull that meets no consumer is not answered at all
			if err := i.missing(ctx); err != nil {
				pulling.Stop()
				return err
			}
		case <-ctx.Done():
		}
	}
	pulling.Drain() // what is on its way already is given back by take
	t := time.NewTimer(drainWait)
	defer t.Stop()
	select {
	case <-pulling.Closed():
	case <-t.C:
		pulling.Stop()
	}
	return nil
}

// missing is the server's word that there is no such consumer, or no such stream; nil where it says otherwise, or nothing.
func (i *intake) missing(ctx context.Context) error {
	_, err := try(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return i.conn.js.Consumer(ctx, RequestsStream(i.vcenter), i.durable)
	})
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	return nil
}

// take is called for one message after the other, and returns at once.
func (i *intake) take(msg jetstream.Msg) {
	meta, err := msg.Metadata()
	if err != nil {
		i.log.Error().Err(err).Str("subject", msg.Subject()).Msg("message without JetStream metadata")
		return
	}
	seq := meta.Sequence.Stream
	i.mu.Lock()
	defer i.mu.Unlock()
	if h := i.held[seq]; h != nil {
		h.msg = msg
		i.answer("heartbeat", msg.InProgress)
		return
	}
	if i.stopping.Err() != nil {
		i.handles.Go(func() { i.giveBack(msg) })
		return
	}
	h := &held{msg: msg}
	i.held[seq] = h
	i.handles.Go(func() { i.work(h, meta) })
}

// work takes one message from its delivery to its answer.
func (i *intake) work(h *held, meta *jetstream.MsgMetadata) {
	msg, seq := i.latest(h), meta.Sequence.Stream
	r, err := i.read(msg, meta)
	if err == nil {
		err = i.call(r)
	}
	log := i.log.With().Str("vm", r.vm).Str("run", r.run).Uint64("seq", seq).Logger()
	var reject *RejectError
	if errors.As(err, &reject) {
		log.Info().Str("code", string(reject.Code)).Str("field", reject.Field).Str("reason", reject.Message).Msg("message refused")
		err = i.conn.Reject(i.stopping, Refused{
			VCenter: i.vcenter, VM: r.vm, Ref: r.ref, Attrs: r.attrs, Seq: seq, Subject: msg.Subject(), Header: msg.Headers(), Data: msg.Data(),
		}, reject)
		switch {
		case err == nil && i.conn.onRefused != nil:
			i.conn.onRefused(i.vcenter, reject.Code)
		case err != nil && i.stopping.Err() != nil:
			err = ErrReleased
		}
	}
	var retry *RetryError
	switch {
	case err == nil:
		i.acknowledge(h, log)
		i.drop(seq)
	case errors.As(err, &retry):
		msg := i.drop(seq)
		i.answer("nak", func() error { return msg.NakWithDelay(retry.After) })
	case errors.Is(err, ErrReleased):
		i.giveBack(i.drop(seq))
	case errors.Is(err, ErrFenced):
		i.drop(seq)
		log.Info().Err(err).Msg("another owner goes on with this request")
	default:
		i.drop(seq)
		log.Error().Err(err).Msg("request left alone; the stream delivers it again")
	}
}

// giveBack has the stream deliver a message at once, to somebody else where this process stops: the very next delivery is the one that may trust
// a release.
func (i *intake) giveBack(msg jetstream.Msg) {
	if i.stopping.Err() != nil {
		<-i.quiet
	}
	i.answer("nak", msg.Nak)
}

// call is handle, whose panic costs its own request only: the stream would hand a request that kills the process to the next process.
func (i *intake) call(w work) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return w.handle(context.WithoutCancel(i.stopping))
}

func (i *intake) latest(h *held) jetstream.Msg {
	i.mu.Lock()
	defer i.mu.Unlock()
	return h.msg
}

// drop lets go of a message, which ends its heartbeats, and returns its latest delivery.
func (i *intake) drop(seq uint64) jetstream.Msg {
	i.mu.Lock()
	defer i.mu.Unlock()
	msg := i.held[seq].msg
	delete(i.held, seq)
	return msg
}

// acknowledge waits for the server's word that the request is gone. Where it does not come in a few attempts the request comes again, and
// its run, which has ended, is acknowledged then.
func (i *intake) acknowledge(h *held, log zerolog.Logger) {
	ctx := context.WithoutCancel(i.stopping)
	var err error
	for attempt := range ackAttempts {
		if attempt > 0 {
			_ = sleep(ctx, jitter(lastRetry)) // its ctx never ends
		}
		_, err = try(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, i.latest(h).DoubleAck(ctx) })
		if err == nil || errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
			return
		}
		if i.conn.nc.IsClosed() {
			break
		}
	}
	log.Warn().Err(err).Msg("the end of a request could not be acknowledged; it is delivered again, and changes nothing")
}

// heartbeats keeps everything in hand from being delivered again, with one ticker for all. They are not answered: a lost one is made good by
// the next, and behind all of them the journal's compare-and-append is what stops a second owner.
func (i *intake) heartbeats(quit <-chan struct{}) {
	ticker := time.NewTicker(time.Hour) // until the durable's ack wait is known, which is before there is anything in hand
	defer ticker.Stop()
	for {
		select {
		case <-quit:
			return
		case period := <-i.period:
			ticker.Reset(period)
			continue
		case <-ticker.C:
		}
		i.mu.Lock()
		for _, h := range i.held {
			i.answer("heartbeat", h.msg.InProgress)
		}
		i.mu.Unlock()
	}
}

// answer sends an answer that the server does not confirm.
func (i *intake) answer(what string, send func() error) {
	if err := send(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		i.log.Debug().Err(err).Msgf("%s not sent", what)
	}
}

// tooLong refuses a run that could outlive its events.
func (c *Conn) tooLong(r *Request) error {
	c.mu.Lock()
	keepFor := c.keepFor
	c.mu.Unlock()
	if timeout := r.Asked.Timeout.Or(DefaultTimeout); keepFor > 0 && timeout >= keepFor {
		return invalid("timeout", "is %s, but events are kept for %s only", timeout, keepFor)
	}
	return nil
}

// DefaultTimeout is how long a run may take where its request does not say.
const DefaultTimeout = time.Hour
