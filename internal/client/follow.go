package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
)

// Filters are the subjects of events and rejections: of one VM, of one vCenter (vm empty), of everything (both empty).
func Filters(vcenter, vm string) []string {
	switch {
	case vm != "":
		return []string{events.History(vcenter, vm), events.RejectionSubject(vcenter, vm)}
	case vcenter != "":
		return []string{"guestflow.events." + vcenter + ".>", events.RejectionSubject(vcenter, "*")}
	}
	return []string{"guestflow.events.>", "guestflow.rejections.>"}
}

// Start is where a Feed begins. The zero value: with what is published from now on.
type Start struct {
	Seq  uint64    // at this sequence of the events stream
	Time time.Time // at the first event that was stored at this time or later
}

// Feed delivers events one after the other.
type Feed struct {
	events chan *Event
	ended  context.Context // its cause is why no more events come
	stop   func()
	After  uint64 // the last sequence of the stream when the feed began
}

// Follow reads events from JetStream: each one once and in order, even when NATS was away in between.
func (c *Client) Follow(ctx context.Context, filters []string, from Start) (*Feed, error) {
	info, err := c.streamInfo(ctx, events.EventsStream, "")
	if err != nil {
		return nil, err
	}
	consumer, err := retry(ctx, c, func(ctx context.Context) (jetstream.Consumer, error) {
		return c.js.OrderedConsumer(ctx, events.EventsStream, consumerConfig(filters, from, info.State.LastSeq))
	})
	if err != nil {
		return nil, fmt.Errorf("read the stream %s: %w", events.EventsStream, err)
	}

	f, end := newFeed(info.State.LastSeq)
	receive := func(m jetstream.Msg) {
		if meta, err := m.Metadata(); err == nil {
			f.put(m.Subject(), m.Headers(), m.Data(), meta.Sequence.Stream)
		}
	}
	onError := func(_ jetstream.ConsumeContext, err error) {
		if errors.Is(err, jetstream.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionClosed) {
			end(ErrAway)
		}
	}
	pull, err := consumer.Consume(receive, jetstream.PullHeartbeat(5*time.Second), jetstream.ConsumeErrHandler(onError))
	if err != nil {
		end(err)
		return nil, fmt.Errorf("read the stream %s: %w", events.EventsStream, err)
	}

	f.stop = sync.OnceFunc(func() { end(context.Canceled); pull.Stop() })
	c.endWithConnection(f, end)
	c.endWithRefusal(f, end, c.apiPrefix+"CONSUMER.")
	return f, nil
}

// consumerConfig is that of the consumer behind a feed; last is the last sequence of the stream.
func consumerConfig(filters []string, from Start, last uint64) jetstream.OrderedConsumerConfig {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: filters, InactiveThreshold: time.Minute}
	switch {
	case !from.Time.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &from.Time
	case from.Seq != 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from.Seq
	default:
		// Not DeliverNewPolicy: when the consumer is created again, it would skip what was stored in the meantime.
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, last+1
	}
	return cfg
}

// endWithConnection ends a feed when the connection is closed.
func (c *Client) endWithConnection(f *Feed, end context.CancelCauseFunc) {
	go func() {
		select {
		case <-c.closed:
			end(ErrAway)
		case <-f.ended.Done():
		}
	}()
}

// endWithRefusal ends a feed when NATS refuses a publish under a subject. A pull that is not permitted gets no
// response: the refusal arrives as an error of the connection.
func (c *Client) endWithRefusal(f *Feed, end context.CancelCauseFunc, subject string) {
	watched, done := c.watchRefusals(f.ended, subject)
	go func() {
		defer done()
		<-watched.Done()
		if cause := context.Cause(watched); isPermission(cause) {
			end(cause)
		}
	}()
}

// FollowCore reads events on core NATS, as they are published, for a user who may not read the stream.
//
// It misses what is published while NATS is away, and delivers also events that the stream then does not store.
func (c *Client) FollowCore(ctx context.Context, filters []string) (*Feed, error) {
	f, end := newFeed(0)
	var subs []*nats.Subscription
	f.stop = func() {
		end(context.Canceled)
		for _, s := range subs {
			_ = s.Unsubscribe() // it ends with the connection at the latest
		}
	}

	for _, filter := range filters {
		err := c.attempt(ctx, filter, func() error {
			sub, err := c.nc.Subscribe(filter, func(m *nats.Msg) { f.put(m.Subject, m.Header, m.Data, 0) })
			subs = append(subs, sub)
			return err
		})
		if err != nil {
			f.stop()
			return nil, err
		}
	}

	c.endWithConnection(f, end)
	return f, nil
}

// attempt does something to which NATS sends no response, and returns the refusal if NATS refuses it.
func (c *Client) attempt(ctx context.Context, subject string, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	watched, done := c.watchRefusals(ctx, subject)
	defer done()

	if err := do(); err != nil {
		return err
	}
	if err := c.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("NATS does not answer: %w", err)
	}

	// A refusal arrives before the answer to the flush, but the error handler runs a moment later. Wait for it:
	// otherwise the next call would take the refusal for its own.
	if refused := refusalOf(c.nc.LastError()); refused != nil && refused.Subject == subject {
		<-watched.Done()
		return refused
	}
	return nil
}

func newFeed(after uint64) (*Feed, context.CancelCauseFunc) {
	ended, end := context.WithCancelCause(context.Background())
	return &Feed{events: make(chan *Event), ended: ended, After: after}, end
}

func (f *Feed) put(subject string, h nats.Header, data []byte, seq uint64) {
	e, err := decode(subject, h, data)
	if err != nil { // somebody else's message: readers ignore what they do not know
		return
	}
	e.Seq = seq
	select {
	case f.events <- e:
	case <-f.ended.Done():
	}
}

// Next is the next event. Its error is ctx's, or why no more events come.
func (f *Feed) Next(ctx context.Context) (*Event, error) {
	select {
	case e := <-f.events:
		return e, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-f.ended.Done():
		return nil, context.Cause(f.ended)
	}
}

// Stop ends the feed.
func (f *Feed) Stop() { f.stop() }

// Wait is a subscription to the events about one message.
type Wait struct {
	c           *Client
	m           *Message
	feed        *Feed
	core        bool // feed is one of core NATS
	mayBeRepeat bool // the message may have been sent before
	conflict    bool // the run in the journal was requested with other data: our message will be rejected
}

// Await subscribes to the events about a message, and must be called before the message is published.
//
// mayBeRepeat says that the message may have been sent before: then the VM's history is read too. A user who may not
// read the stream listens on core NATS, and looks in the stream only whether the final event is stored there.
func (c *Client) Await(ctx context.Context, m *Message, mayBeRepeat bool) (*Wait, error) {
	w := &Wait{c: c, m: m, mayBeRepeat: mayBeRepeat}
	from := Start{}
	if mayBeRepeat {
		from.Seq = 1
	}

	var err error
	w.feed, err = c.Follow(ctx, Filters(m.VCenter, m.VM), from)
	if isPermission(err) {
		err = w.fallBack(ctx)
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// fallBack listens on core NATS instead of reading the stream.
func (w *Wait) fallBack(ctx context.Context) (err error) {
	w.core = true
	w.feed, err = w.c.FollowCore(ctx, Filters(w.m.VCenter, w.m.VM))
	return err
}

// Stop ends the subscription.
func (w *Wait) Stop() { w.feed.Stop() }

// rereadInterval is how often the VM's last event is read when listening on core NATS, where events can be missed.
const rereadInterval = 10 * time.Second

// UntilEnd waits for the message's final event and returns it: the event that ends its run, or its rejection.
//
// seq is the sequence that the publish returned. show is called with every event of the run, the final one included;
// for a cancel, only with those that come from now on.
func (w *Wait) UntilEnd(ctx context.Context, seq uint64, show func(*Event)) (*Event, error) {
	if w.core && w.mayBeRepeat {
		if e := w.finalEvent(ctx); e != nil {
			show(e)
			return e, nil
		}
	}

	for {
		e, err := w.next(ctx)
		if err != nil {
			return nil, err
		}
		if e.Kind == events.KindRejected {
			if w.rejects(e, seq) {
				show(e)
				return e, nil
			}
			continue
		}
		if !w.isOurs(ctx, e) {
			continue
		}

		// The user who cancels a run does not want to read its past.
		if !w.m.Cancel || e.Last() || w.isNew(e) {
			show(e)
		}
		if e.Last() {
			return e, nil
		}
	}
}

// rejects reports whether a rejection is that of our message, which is stored at seq.
func (w *Wait) rejects(e *Event, seq uint64) bool {
	return e.ID() == "rejected."+strconv.FormatUint(seq, 10) && w.isNew(e)
}

// isNew reports whether an event was published after the wait began.
func (w *Wait) isNew(e *Event) bool { return e.Seq == 0 || e.Seq > w.feed.After }

// isOurs reports whether an event belongs to the run that our message asked for.
func (w *Wait) isOurs(ctx context.Context, e *Event) bool {
	if e.Run.ID != w.m.Run {
		return false
	}
	if e.Kind == events.RunAccepted && !w.m.Cancel {
		w.conflict = !sameJSON(events.WithoutNulls(e.Run.Requested), events.WithoutNulls(w.m.Requested))
	}
	if w.conflict {
		return false
	}
	return !e.Last() || !w.core || w.isStored(ctx, e)
}

// next is the next event of the VM.
func (w *Wait) next(ctx context.Context) (*Event, error) {
	if !w.core {
		e, err := w.feed.Next(ctx)
		if !isPermission(err) {
			return e, err
		}

		// The user may create a consumer, but not pull from it.
		w.feed.Stop()
		if err := w.fallBack(ctx); err != nil {
			return nil, err
		}
		if e := w.finalEvent(ctx); e != nil {
			return e, nil
		}
	}

	for {
		timed, cancel := context.WithTimeout(ctx, rereadInterval)
		e, err := w.feed.Next(timed)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return e, err
		}
		if e := w.finalEvent(ctx); e != nil {
			return e, nil
		}
	}
}

// finalEvent is the VM's last event if it ends our run; else nil.
func (w *Wait) finalEvent(ctx context.Context) *Event {
	e, err := w.c.LastEvent(ctx, w.m.VCenter, w.m.VM)
	if err != nil || e == nil || e.Run.ID != w.m.Run || !e.Last() {
		return nil
	}
	return e
}

// isStored reports whether an event is in the stream: core NATS delivers also what the stream then does not store.
func (w *Wait) isStored(ctx context.Context, e *Event) bool {
	for range 20 {
		s, err := w.c.lastMessage(ctx, events.EventsStream, events.EventSubject(w.m.VCenter, w.m.VM, e.Kind))
		if isPermission(err) {
			return true // this user cannot find out
		}
		if err == nil && s != nil {
			have, err := decode(s.Subject, s.Header, s.Data)
			if err == nil && have.ID() == e.ID() && bytes.Equal(have.Data(), e.Data()) {
				return true
			}
		}
		if backoff.Sleep(ctx, 100*time.Millisecond) != nil {
			return false
		}
	}
	return false
}

// sameJSON reports whether two JSON values are equal, or one of them is not known.
func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if len(a) == 0 || len(b) == 0 || json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return true
	}
	return reflect.DeepEqual(x, y)
}
