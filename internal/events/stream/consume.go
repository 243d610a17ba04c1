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
// When ctx ends nothing more is taken, and Consume returns when every handle has. Their ctx does not end with it: handle closes over the one
// that tells it to stop. While NATS is away Consume waits for it; it returns an error only where the connection is closed for good.
func (c *Conn) Consume(ctx context.Context, vcenter string, handle func(ctx context.Context, r *events.Request) error) error {
	return c.consume(ctx, vcenter, events.RequestsConsumer(vcenter), func(d delivery) (work, error) {
		r, err := events.DecodeRequest(vcenter, d.Subject, d.Header, d.Data)
		r.Seq, r.Delivered, r.At, r.Stream = d.meta.Sequence.Stream, d.meta.NumDelivered, d.meta.Timestamp, d.stream
		if err == nil {
			err = c.tooLong(r)
		}
		return work{vm: r.VM, run: r.RunID, ref: r.Ref, attrs: r.Attrs, handle: func(ctx context.Context) error { return handle(ctx, r) }}, err
	})
}

// ConsumeCancels is Consume for the vCenter's cancels.
func (c *Conn) ConsumeCancels(ctx context.Context, vcenter string, handle func(ctx context.Context, c *events.Cancel) error) error {
	return c.consume(ctx, vcenter, events.CancelsConsumer(vcenter), func(d delivery) (work, error) {
		x, err := events.DecodeCancel(vcenter, d.Subject, d.Header, d.Data)
		x.Seq, x.Delivered, x.At, x.Stream = d.meta.Sequence.Stream, d.meta.NumDelivered, d.meta.Timestamp, d.stream
		return work{vm: x.VM, run: x.RunID, ref: x.Ref, attrs: x.Attrs, handle: func(ctx context.Context) error { return handle(ctx, x) }}, err
	})
}

// work is a message, read: whom it is about, and what is to be done.
type work struct {
	vm, run string
	ref     events.RequestRef // the message's own
	attrs   events.Attributes
	handle  func(ctx context.Context) error
}

func (c *Conn) consume(ctx context.Context, vcenter, durable string, read func(d delivery) (work, error)) error {
	i := &intake{
		conn: c, vcenter: vcenter, durable: durable, read: read, stopping: ctx, held: map[uint64]*held{}, panics: map[identity]panicked{},
		period: make(chan time.Duration, 1), quiet: make(chan struct{}), log: c.log.With().Str("vcenter", vcenter).Logger(),
	}
	c.mu.Lock()
	c.intakes = append(c.intakes, i)
	c.mu.Unlock()
	quit := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { i.heartbeats(quit) })
	err := i.run(ctx)
	close(i.quiet)
	i.mu.Lock()
	i.over = true
	i.mu.Unlock()
	i.handles.Wait()
	close(quit)
	beats.Wait()
	c.mu.Lock()
	c.intakes = slices.DeleteFunc(c.intakes, func(other *intake) bool { return other == i })
	c.mu.Unlock()
	return err
}

// intake is one durable's messages in this process.
type intake struct {
	conn     *Conn
	vcenter  string
	durable  string
	read     func(d delivery) (work, error)
	stopping context.Context // ended: nothing more is taken
	log      zerolog.Logger
	quiet    chan struct{} // closed: no pull of ours is open, so what is given back goes to another process
	handles  sync.WaitGroup
	period   chan time.Duration // between two heartbeats, where it changes

	mu      sync.Mutex
	held    map[uint64]*held // by stream sequence: what handle has in hand
	over    bool             // all that was taken is waited for: nothing more is
	panics  map[identity]panicked
	stream  time.Time     // when the stream was made: which incarnation of it the durable belongs to
	looked  time.Time     // when that was so
	ackWait time.Duration // of the durable
}

// identity is who a message is. Its sequence alone is not: a stream that was removed and made again, or restored, uses its sequences again.
type identity struct {
	seq uint64
	at  int64 // when the stream stored it, in nanoseconds
}

// held is a message in hand. Its latest delivery is the one to answer. Guarded by intake.mu.
type held struct {
	identity
	msg    delivery
	source string // its publisher's, once it was read
	gone   bool   // with its stream: another message may have its sequence now, so this one is not answered any more
}

// run pulls until ctx ends. It binds to the durable anew where that was lost.
func (i *intake) run(ctx context.Context) error {
	what := "take messages of " + i.durable
	w := newWaiter(i.conn.log, i.vcenter, "", what)
	changed := i.conn.nc.StatusChanged(nats.CONNECTED)
	defer i.conn.nc.RemoveStatusListener(changed)
	for ctx.Err() == nil {
		err := i.bind(ctx, changed)
		if err == nil {
			err = i.pull(ctx, changed, func() { // not before: a pull request that may not be made is never answered
				w.done()
				w = newWaiter(i.conn.log, i.vcenter, "", what)
			})
		}
		if err == nil {
			continue
		}
		if i.conn.nc.IsClosed() {
			err = nats.ErrConnectionClosed
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

// bind finds the durable, and lets go of what its stream no longer holds. What was asked when the connection broke is never answered: a new connection
// ends the wait.
func (i *intake) bind(ctx context.Context, changed <-chan nats.Status) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-changed:
			cancel(errAgain)
		case <-done:
		}
	})
	defer watching.Wait()
	defer close(done)
	for _, step := range []func(context.Context) error{i.look, i.sameStream, i.sameMessages} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// errAgain ends a wait for an answer that was asked for on a connection that is gone.
var errAgain = errors.New("connected to NATS again")

// pullBatch is how many messages one pull request asks for. The server hands out no more than MaxAckPending allows to all replicas together, and each
// message that comes is started at once.
const pullBatch = 256

// look reads the durable: what it may hand out, and how soon what is in hand must be told to be alive. Both may change while we consume.
func (i *intake) look(ctx context.Context) error {
	cons, err := try(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return i.conn.js.Consumer(ctx, events.RequestsStream(i.vcenter), i.durable)
	})
	if err != nil {
		return err
	}
	wait := cons.CachedInfo().Config.AckWait
	i.mu.Lock()
	changed := wait != i.ackWait
	i.ackWait = wait
	i.mu.Unlock()
	if changed {
		i.period <- max(wait/3, time.Millisecond)
	}
	return nil
}

// lookAgain is how long the durable is taken to be as it was: at most for one heartbeat, since a shorter ack wait calls for more of them.
func (i *intake) lookAgain() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return min(max(i.ackWait/3, 100*time.Millisecond), pullHeartbeat)
}

// sameStream lets go of everything in hand where the stream was made anew since it was delivered.
func (i *intake) sameStream(ctx context.Context) error {
	created, err := try(ctx, func(ctx context.Context) (time.Time, error) {
		return i.conn.created(ctx, events.RequestsStream(i.vcenter))
	})
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.stream.IsZero() && !i.stream.Equal(created) {
		i.letGo(slices.Collect(maps.Values(i.held))...)
	}
	i.stream, i.looked = created, time.Now()
	return nil
}

// created tells when a stream was made.
func (c *Conn) created(ctx context.Context, stream string) (time.Time, error) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return time.Time{}, err
	}
	return s.CachedInfo().Created, nil
}

// sameMessages lets go of each message in hand in whose place the stream holds another one, as one that was restored from a backup may. A place that
// is empty says nothing: the read may be older than the truth, and an answer for it does no harm.
func (i *intake) sameMessages(ctx context.Context) error {
	i.mu.Lock()
	all := slices.Collect(maps.Values(i.held))
	i.mu.Unlock()
	store := &jetStore{conn: i.conn, stream: events.RequestsStream(i.vcenter)}
	for _, h := range all {
		s, err := try(ctx, func(ctx context.Context) (*Stored, error) { return store.get(ctx, map[string]any{"seq": h.seq}) })
		if err != nil {
			return err
		}
		if s != nil && s.At.UnixNano() != h.at {
			i.mu.Lock()
			i.letGo(h)
			i.mu.Unlock()
		}
	}
	return nil
}

// letGo is silent: what would be answered by the sequence of a message may be another one by now. Its handle goes on to its end; that the request has
// left the queue is for the VM's journal to judge. With i.mu held.
func (i *intake) letGo(all ...*held) {
	for _, h := range all {
		h.gone = true
		if i.held[h.seq] == h {
			delete(i.held, h.seq)
		}
		i.log.Warn().Uint64("seq", h.seq).Str("subject", h.msg.Subject).Msgf("stream %s was made anew while this message was in hand: it is not answered any more",
			events.RequestsStream(i.vcenter))
	}
}

// take is called for one message after the other, and returns at once.
func (i *intake) take(m *nats.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		i.log.Error().Err(err).Str("subject", m.Subject).Str("reply", m.Reply).Msg("message without JetStream metadata")
		return
	}
	id := identity{meta.Sequence.Stream, meta.Timestamp.UnixNano()}
	i.mu.Lock()
	defer i.mu.Unlock()
	msg := delivery{Msg: m, nc: i.conn.nc, meta: meta, stream: i.stream}
	if h := i.held[id.seq]; h != nil && h.identity == id {
		h.msg = msg
		i.answer("heartbeat", msg.inProgress)
		return
	} else if h != nil {
		i.letGo(slices.Collect(maps.Values(i.held))...)
		i.stream, i.looked, msg.stream = time.Time{}, time.Time{}, time.Time{} // which incarnation this is has to be asked
	}
	if i.over { // it was on its way for longer than pull waits
		i.answer("nak", msg.nak)
		return
	}
	if i.stopping.Err() != nil {
		i.handles.Go(func() { i.giveBack(msg) })
		return
	}
	h := &held{identity: id, msg: msg}
	i.held[id.seq] = h
	i.handles.Go(func() { i.work(h) })
}

// work takes one message from its delivery to its answer.
func (i *intake) work(h *held) {
	msg := i.latest(h)
	r, err := i.reads(msg)
	i.mu.Lock()
	h.source = r.ref.Source
	i.mu.Unlock()
	var reject *events.RejectError
	unread := err != nil
	if !unread {
		err = i.call(r)
	}
	if err = i.refusal(h, err); unread && errors.As(err, &reject) && i.durable == events.RequestsConsumer(i.vcenter) {
		err = i.conn.mayRefuse(i.stopping, i.vcenter, r.vm, r.ref, reject)
	}
	log := i.log.With().Str("vm", r.vm).Str("run", r.run).Uint64("seq", h.seq).Logger()
	var retry *events.RetryError
	if errors.As(err, &reject) && !errors.As(err, &retry) {
		log.Info().Str("code", string(reject.Code)).Str("field", reject.Field).Str("reason", reject.Message).Msg("message refused")
		err = i.conn.Reject(i.stopping, Refused{
			VCenter: i.vcenter, VM: r.vm, Ref: r.ref, Attrs: r.attrs, Seq: h.seq, At: msg.meta.Timestamp, Subject: msg.Subject, Header: msg.Header, Data: msg.Data,
		}, reject)
		switch {
		case err == nil && i.conn.on.Refused != nil:
			i.conn.on.Refused(i.vcenter, reject.Code)
		case errors.Is(err, errMoved):
			err = &events.RetryError{After: lastRetry, Err: err}
		case err != nil && i.stopping.Err() != nil:
			err = events.ErrReleased
		}
	}
	if err == nil {
		i.acknowledge(h, log)
		i.mu.Lock()
		delete(i.panics, h.identity)
		i.mu.Unlock()
	}
	last, ok := i.drop(h)
	switch {
	case err == nil:
	case !ok:
		log.Warn().Err(err).Msg("let go of a message whose stream was made anew")
	case errors.As(err, &retry):
		log.Info().Err(err).Msg("given back for a while")
		i.failed()
		i.answer("nak", func() error { return last.nakIn(retry.After) })
	case errors.Is(err, events.ErrReleased):
		i.giveBack(last)
	case errors.Is(err, events.ErrFenced):
		log.Info().Err(err).Msg("another owner goes on with this request")
	default:
		i.failed()
		log.Error().Err(err).Msg("request left alone; the stream delivers it again")
	}
}

func (i *intake) failed() {
	if i.conn.on.Failed != nil {
		i.conn.on.Failed(i.vcenter)
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

// refusal is handle's error, as a refusal of the message where another delivery of it would come to nothing else: its events can never be stored, or it
// makes handle panic again and again.
func (i *intake) refusal(h *held, err error) error {
	var crash *panicError
	switch {
	case errors.Is(err, events.ErrUnstorable):
		return &events.RejectError{Code: events.Internal, Message: fmt.Sprintf("its events cannot be stored: %v", err)}
	case errors.As(err, &crash):
		i.mu.Lock()
		defer i.mu.Unlock()
		maps.DeleteFunc(i.panics, func(_ identity, p panicked) bool { return time.Since(p.last) > panicsKept })
		i.panics[h.identity] = panicked{times: i.panics[h.identity].times + 1, last: time.Now()}
		if i.panics[h.identity].times >= maxPanics {
			delete(i.panics, h.identity)
			i.log.Error().Err(err).Uint64("seq", h.seq).Msg("a request that panics again and again is refused")
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
func (i *intake) giveBack(msg delivery) {
	if i.stopping.Err() != nil {
		<-i.quiet
	}
	i.answer("nak", msg.nak)
}

// call is handle, whose panic costs its own request only: the stream would hand a request that kills the process to the next process.
func (i *intake) call(w work) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return w.handle(context.WithoutCancel(i.stopping))
}

// reads is read, whose panic is as handle's.
func (i *intake) reads(d delivery) (w work, err error) {
	defer func() {
		if p := recover(); p != nil {
			w, err = work{}, &panicError{p, debug.Stack()}
		}
	}()
	return i.read(d)
}

func (i *intake) latest(h *held) delivery {
	i.mu.Lock()
	defer i.mu.Unlock()
	return h.msg
}

// drop lets go of a message, which ends its heartbeats, and returns its latest delivery; not ok: it may not be answered any more.
func (i *intake) drop(h *held) (msg delivery, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.held[h.seq] == h {
		delete(i.held, h.seq)
	}
	return h.msg, !h.gone
}

// errGone says that a message may not be answered any more.
var errGone = errors.New("its stream was made anew")

// sureFor is how long a stream is taken for the one that it was. It is only so that a burst of acknowledgements asks once: what removes a stream is told
// by the pull request that is open, at once.
const sureFor = time.Second

// acknowledge waits for the server's word that the request is gone. Where it does not come in a few attempts the request comes again, and
// its run, which has ended, is acknowledged then.
func (i *intake) acknowledge(h *held, log zerolog.Logger) {
	ctx := context.WithoutCancel(i.stopping)
	var err error
	for attempt := range ackAttempts {
		if attempt > 0 {
			_ = sleep(ctx, jitter(lastRetry)) // its ctx never ends
		}
		if err = i.acknowledgeOnce(ctx, h); err == nil {
			return
		}
		if errors.Is(err, errGone) || i.conn.nc.IsClosed() {
			break
		}
	}
	log.Warn().Err(err).Msg("the end of a request could not be acknowledged; it is delivered again, and changes nothing")
}

func (i *intake) acknowledgeOnce(ctx context.Context, h *held) error {
	i.mu.Lock()
	sure := time.Since(i.looked) < sureFor
	i.mu.Unlock()
	if !sure {
		if err := i.sameStream(ctx); errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %w", errGone, err)
		} else if err != nil {
			return err
		}
	}
	i.mu.Lock()
	msg, gone := h.msg, h.gone
	i.mu.Unlock()
	if gone {
		return errGone
	}
	_, err := try(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, msg.ack(ctx) })
	return err
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
		case period := <-i.period: // and one at once: the next one by the old period may be too late
			ticker.Reset(period)
		case <-ticker.C:
		}
		i.mu.Lock()
		for _, h := range i.held {
			i.answer("heartbeat", h.msg.inProgress)
		}
		i.mu.Unlock()
	}
}

// answer sends an answer that the server does not confirm.
func (i *intake) answer(what string, send func() error) {
	if err := send(); err != nil {
		i.log.Debug().Err(err).Msgf("%s not sent", what)
	}
}

// tooLong refuses a run that could outlive its events.
func (c *Conn) tooLong(r *events.Request) error {
	c.mu.Lock()
	keepFor := c.keepFor
	c.mu.Unlock()
	if timeout := r.Spec.Timeout.Or(events.DefaultTimeout); keepFor > 0 && timeout >= keepFor {
		return &events.RejectError{Code: events.InvalidRequest, Field: "timeout", Message: fmt.Sprintf(
			"is %s, but events are kept for %s only: make it shorter, or raise the service's GUESTFLOW_EVENTS_MAX_AGE", timeout, keepFor)}
	}
	return nil
}
