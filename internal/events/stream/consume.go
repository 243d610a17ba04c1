package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
)

const (
	ackAttempts = 5
	drainWait   = 2 * time.Second // for what was on its way when pulling stopped
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
// handle gets the ctx of Consume. When it ends nothing more is taken: each handle brings what it has begun to a safe place, and returns; then Consume
// does. While NATS is away Consume waits for it; it returns an error only where the connection is closed for good.
func (c *Conn) Consume(ctx context.Context, vcenter string, handle func(ctx context.Context, r *events.Request) error) error {
	return c.consume(ctx, vcenter, events.RequestsConsumer(vcenter), func(d delivery) (decoded, error) {
		r, err := events.DecodeRequest(vcenter, d.Subject, d.Header, d.Data)
		r.Seq, r.Delivered, r.At, r.Stream = d.meta.Sequence.Stream, d.meta.NumDelivered, d.meta.Timestamp, d.stream
		if err == nil {
			err = c.checkTimeout(r)
		}
		return decoded{vm: r.VM, run: r.RunID, ref: r.Ref, attrs: r.Attrs, handle: func(ctx context.Context) error { return handle(ctx, r) }}, err
	})
}

// ConsumeCancels is Consume for the vCenter's cancels.
func (c *Conn) ConsumeCancels(ctx context.Context, vcenter string, handle func(ctx context.Context, c *events.Cancel) error) error {
	return c.consume(ctx, vcenter, events.CancelsConsumer(vcenter), func(d delivery) (decoded, error) {
		x, err := events.DecodeCancel(vcenter, d.Subject, d.Header, d.Data)
		x.Seq, x.Delivered, x.At, x.Stream = d.meta.Sequence.Stream, d.meta.NumDelivered, d.meta.Timestamp, d.stream
		return decoded{vm: x.VM, run: x.RunID, ref: x.Ref, attrs: x.Attrs, handle: func(ctx context.Context) error { return handle(ctx, x) }}, err
	})
}

// decoded is a message, read: whom it is about, and what is to be done.
type decoded struct {
	vm, run string
	ref     events.RequestRef // the message's own
	attrs   events.Attributes
	handle  func(ctx context.Context) error
}

func (c *Conn) consume(ctx context.Context, vcenter, durable string, read func(d delivery) (decoded, error)) error {
	cons := &consumer{
		conn: c, vcenter: vcenter, durable: durable, decode: read, stopping: ctx, inFlight: map[uint64]*inFlight{}, panics: map[identity]panicked{},
		heartbeatPeriod: make(chan time.Duration, 1), pullClosed: make(chan struct{}), log: c.log.With().Str("vcenter", vcenter).Logger(),
	}
	c.mu.Lock()
	c.consumers = append(c.consumers, cons)
	c.mu.Unlock()
	quit := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { cons.heartbeats(quit) })
	err := cons.run(ctx)
	close(cons.pullClosed)
	cons.mu.Lock()
	cons.over = true
	cons.mu.Unlock()
	cons.handlers.Wait()
	close(quit)
	beats.Wait()
	c.mu.Lock()
	c.consumers = slices.DeleteFunc(c.consumers, func(other *consumer) bool { return other == cons })
	c.mu.Unlock()
	return err
}

// consumer is one durable's messages in this process.
type consumer struct {
	conn            *Conn
	vcenter         string
	durable         string
	decode          func(d delivery) (decoded, error)
	stopping        context.Context // ended: nothing more is taken
	log             zerolog.Logger
	pullClosed      chan struct{} // closed: no pull of ours is open, so what is given back goes to another process
	handlers        sync.WaitGroup
	heartbeatPeriod chan time.Duration // between two heartbeats, where it changes

	mu              sync.Mutex
	inFlight        map[uint64]*inFlight // by stream sequence: what handle has in hand
	over            bool                 // all that was taken is waited for: nothing more is
	panics          map[identity]panicked
	streamCreated   time.Time     // when the stream was made: which incarnation of it the durable belongs to
	streamCheckedAt time.Time     // when that was so
	ackWait         time.Duration // of the durable
}

// identity is who a message is. Its sequence alone is not: a stream that was removed and made again, or restored, uses its sequences again.
type identity struct {
	seq uint64
	at  int64 // when the stream stored it, in nanoseconds
}

// inFlight is a message in hand. Its latest delivery is the one to answer. Guarded by consumer.mu.
type inFlight struct {
	identity
	msg       delivery
	source    string // its publisher's, once it was read
	abandoned bool   // with its stream: another message may have its sequence now, so this one is not answered any more
}

// run pulls until ctx ends. It binds to the durable anew where that was lost.
func (c *consumer) run(ctx context.Context) error {
	what := "take messages of " + c.durable
	w := newWaiter(c.conn.log, c.vcenter, "", what)
	changed := c.conn.nc.StatusChanged(nats.CONNECTED)
	defer c.conn.nc.RemoveStatusListener(changed)
	for ctx.Err() == nil {
		err := c.bind(ctx, changed)
		if err == nil {
			err = c.pull(ctx, changed, func() { // not before: a pull request that may not be made is never answered
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

// bind finds the durable, and lets go of what its stream no longer holds. What was asked when the connection broke is never answered: a new connection
// ends the wait.
func (c *consumer) bind(ctx context.Context, changed <-chan nats.Status) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-changed:
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

// pullBatch is how many messages one pull request asks for. The server hands out no more than MaxAckPending allows to all replicas together, and each
// message that comes is started at once.
const pullBatch = 256

// readAckWait reads the durable: what it may hand out, and how soon what is in hand must be told to be alive. Both may change while we consume.
func (c *consumer) readAckWait(ctx context.Context) error {
	cons, err := try(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
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

// ackWaitMaxAge is how long the durable is taken to be as it was: at most for one heartbeat, since a shorter ack wait calls for more of them.
func (c *consumer) ackWaitMaxAge() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(max(c.ackWait/3, 100*time.Millisecond), pullHeartbeat)
}

// checkStream lets go of everything in hand where the stream was made anew since it was delivered.
func (c *consumer) checkStream(ctx context.Context) error {
	created, err := try(ctx, func(ctx context.Context) (time.Time, error) {
		return c.conn.streamCreated(ctx, events.RequestsStream(c.vcenter))
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.streamCreated.IsZero() && !c.streamCreated.Equal(created) {
		c.abandon(slices.Collect(maps.Values(c.inFlight))...)
	}
	c.streamCreated, c.streamCheckedAt = created, time.Now()
	return nil
}

// streamCreated tells when a stream was made.
func (c *Conn) streamCreated(ctx context.Context, stream string) (time.Time, error) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return time.Time{}, err
	}
	return s.CachedInfo().Created, nil
}

// checkMessages lets go of each message in hand in whose place the stream holds another one, as one that was restored from a backup may. A place that
// is empty says nothing: the read may be older than the truth, and an answer for it does no harm.
func (c *consumer) checkMessages(ctx context.Context) error {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.inFlight))
	c.mu.Unlock()
	store := &jetStore{conn: c.conn, stream: events.RequestsStream(c.vcenter)}
	for _, h := range all {
		s, err := try(ctx, func(ctx context.Context) (*Stored, error) { return store.get(ctx, map[string]any{"seq": h.seq}) })
		if err != nil {
			return err
		}
		if s != nil && s.At.UnixNano() != h.at {
			c.mu.Lock()
			c.abandon(h)
			c.mu.Unlock()
		}
	}
	return nil
}

// abandon is silent: what would be answered by the sequence of a message may be another one by now. Its handle goes on to its end; that the request has
// left the queue is for the VM's journal to judge. With c.mu held.
func (c *consumer) abandon(all ...*inFlight) {
	for _, h := range all {
		h.abandoned = true
		if c.inFlight[h.seq] == h {
			delete(c.inFlight, h.seq)
		}
		c.log.Warn().Uint64("seq", h.seq).Str("subject", h.msg.Subject).Msgf("stream %s was made anew while this message was in hand: it is not answered any more",
			events.RequestsStream(c.vcenter))
	}
}

// receive is called for one message after the other, and returns at once.
func (c *consumer) receive(m *nats.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		c.log.Error().Err(err).Str("subject", m.Subject).Str("reply", m.Reply).Msg("message without JetStream metadata")
		return
	}
	id := identity{meta.Sequence.Stream, meta.Timestamp.UnixNano()}
	c.mu.Lock()
	defer c.mu.Unlock()
	msg := delivery{Msg: m, nc: c.conn.nc, meta: meta, stream: c.streamCreated}
	if h := c.inFlight[id.seq]; h != nil && h.identity == id {
		h.msg = msg
		c.reply("heartbeat", msg.inProgress)
		return
	} else if h != nil {
		c.abandon(slices.Collect(maps.Values(c.inFlight))...)
		c.streamCreated, c.streamCheckedAt, msg.stream = time.Time{}, time.Time{}, time.Time{} // which incarnation this is has to be asked
	}
	if c.over { // it was on its way for longer than pull waits
		c.reply("nak", msg.nak)
		return
	}
	if c.stopping.Err() != nil {
		c.handlers.Go(func() { c.giveBack(msg) })
		return
	}
	h := &inFlight{identity: id, msg: msg}
	c.inFlight[id.seq] = h
	c.handlers.Go(func() { c.process(h) })
}

// process takes one message from its delivery to its answer.
func (c *consumer) process(h *inFlight) {
	msg := c.latestDelivery(h)
	r, err := c.decodeSafely(msg)
	c.mu.Lock()
	h.source = r.ref.Source
	c.mu.Unlock()
	var reject *events.RejectError
	unread := err != nil
	if !unread {
		err = c.handleSafely(r)
	}
	if err = c.asRefusal(h, err); unread && errors.As(err, &reject) && c.durable == events.RequestsConsumer(c.vcenter) {
		err = c.conn.guardRefusal(c.stopping, c.vcenter, r.vm, r.ref, reject)
	}
	log := c.log.With().Str("vm", r.vm).Str("run", r.run).Uint64("seq", h.seq).Logger()
	var retry *events.RetryError
	if errors.As(err, &reject) && !errors.As(err, &retry) {
		log.Info().Str("code", string(reject.Code)).Str("field", reject.Field).Str("reason", reject.Message).Msg("message refused")
		err = c.conn.Reject(c.stopping, RefusedMessage{
			VCenter: c.vcenter, VM: r.vm, Ref: r.ref, Attrs: r.attrs, Seq: h.seq, At: msg.meta.Timestamp, Subject: msg.Subject, Header: msg.Header, Data: msg.Data,
		}, reject)
		switch {
		case err == nil && c.conn.hooks.Refused != nil:
			c.conn.hooks.Refused(c.vcenter, reject.Code)
		case errors.Is(err, errJournalMoved):
			err = &events.RetryError{After: lastRetry, Err: err}
		case err != nil && c.stopping.Err() != nil:
			err = events.ErrReleased
		}
	}
	if err == nil {
		c.acknowledge(h, log)
		c.mu.Lock()
		delete(c.panics, h.identity)
		c.mu.Unlock()
	}
	last, ok := c.remove(h)
	switch {
	case err == nil:
	case !ok:
		log.Warn().Err(err).Msg("let go of a message whose stream was made anew")
	case errors.As(err, &retry):
		log.Info().Err(err).Msg("given back for a while")
		c.reportFailure()
		c.reply("nak", func() error { return last.nakIn(retry.After) })
	case errors.Is(err, events.ErrReleased):
		c.giveBack(last)
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

const (
	maxPanics  = 3              // how often this process lets one message panic
	panicsKept = 24 * time.Hour // how long they are counted: another process may have ended what panicked here
)

// panicked is how often a message made handle panic, and when last.
type panicked struct {
	times int
	last  time.Time
}

// asRefusal is handle's error, as a refusal of the message where another delivery of it would come to nothing else: its events can never be stored, or it
// makes handle panic again and again.
func (c *consumer) asRefusal(h *inFlight, err error) error {
	var crash *panicError
	switch {
	case errors.Is(err, events.ErrUnstorable):
		return &events.RejectError{Code: events.Internal, Message: fmt.Sprintf("its events cannot be stored: %v", err)}
	case errors.As(err, &crash):
		c.mu.Lock()
		defer c.mu.Unlock()
		maps.DeleteFunc(c.panics, func(_ identity, p panicked) bool { return time.Since(p.last) > panicsKept })
		c.panics[h.identity] = panicked{times: c.panics[h.identity].times + 1, last: time.Now()}
		if c.panics[h.identity].times >= maxPanics {
			delete(c.panics, h.identity)
			c.log.Error().Err(err).Uint64("seq", h.seq).Msg("a request that panics again and again is refused")
			return &events.RejectError{Code: events.Internal, Message: fmt.Sprintf("guestflow panicked at this request %d times: report it, with what the service's log says of it", maxPanics)} // its words may hold a secret
		}
	}
	return err
}

// panicError is handle's panic.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// giveBack has the stream deliver a message at once, to somebody else where this process stops: the very next delivery is the one that may trust
// a release.
func (c *consumer) giveBack(msg delivery) {
	if c.stopping.Err() != nil {
		<-c.pullClosed
	}
	c.reply("nak", msg.nak)
}

// handleSafely is handle, whose panic costs its own request only: the stream would hand a request that kills the process to the next process.
func (c *consumer) handleSafely(w decoded) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return w.handle(c.stopping)
}

// decodeSafely is read, whose panic is as handle's.
func (c *consumer) decodeSafely(d delivery) (w decoded, err error) {
	defer func() {
		if p := recover(); p != nil {
			w, err = decoded{}, &panicError{p, debug.Stack()}
		}
	}()
	return c.decode(d)
}

func (c *consumer) latestDelivery(h *inFlight) delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return h.msg
}

// remove lets go of a message, which ends its heartbeats, and returns its latest delivery; not ok: it may not be answered any more.
func (c *consumer) remove(h *inFlight) (msg delivery, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight[h.seq] == h {
		delete(c.inFlight, h.seq)
	}
	return h.msg, !h.abandoned
}

// errStreamReplaced says that a message may not be answered any more.
var errStreamReplaced = errors.New("its stream was made anew")

// streamCheckMaxAge is how long a stream is taken for the one that it was. It is only so that a burst of acknowledgements asks once: what removes a stream is told
// by the pull request that is open, at once.
const streamCheckMaxAge = time.Second

// acknowledge waits for the server's word that the request is gone. Where it does not come in a few attempts the request comes again, and
// its run, which has ended, is acknowledged then.
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
	log.Warn().Err(err).Msg("the end of a request could not be acknowledged; it is delivered again, and changes nothing")
}

func (c *consumer) acknowledgeOnce(ctx context.Context, h *inFlight) error {
	c.mu.Lock()
	sure := time.Since(c.streamCheckedAt) < streamCheckMaxAge
	c.mu.Unlock()
	if !sure {
		if err := c.checkStream(ctx); errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %w", errStreamReplaced, err)
		} else if err != nil {
			return err
		}
	}
	c.mu.Lock()
	msg, gone := h.msg, h.abandoned
	c.mu.Unlock()
	if gone {
		return errStreamReplaced
	}
	_, err := try(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, msg.ack(ctx) })
	return err
}

// heartbeats keeps everything in hand from being delivered again, with one ticker for all. They are not answered: a lost one is made good by
// the next, and behind all of them the journal's compare-and-append is what stops a second owner.
func (c *consumer) heartbeats(quit <-chan struct{}) {
	ticker := time.NewTicker(time.Hour) // until the durable's ack wait is known, which is before there is anything in hand
	defer ticker.Stop()
	for {
		select {
		case <-quit:
			return
		case period := <-c.heartbeatPeriod: // and one at once: the next one by the old period may be too late
			ticker.Reset(period)
		case <-ticker.C:
		}
		c.mu.Lock()
		for _, h := range c.inFlight {
			c.reply("heartbeat", h.msg.inProgress)
		}
		c.mu.Unlock()
	}
}

// reply sends an answer that the server does not confirm.
func (c *consumer) reply(what string, send func() error) {
	if err := send(); err != nil {
		c.log.Debug().Err(err).Msgf("%s not sent", what)
	}
}

// checkTimeout refuses a run that could outlive its events.
func (c *Conn) checkTimeout(r *events.Request) error {
	c.mu.Lock()
	kept := c.eventsMaxAge
	c.mu.Unlock()
	if timeout := r.Spec.Timeout.Or(events.DefaultTimeout); kept > 0 && timeout >= kept {
		return &events.RejectError{Code: events.InvalidRequest, Field: "timeout", Message: fmt.Sprintf(
			"is %s, but events are kept for %s only: make it shorter, or raise the service's GUESTFLOW_EVENTS_MAX_AGE", timeout, kept)}
	}
	return nil
}
