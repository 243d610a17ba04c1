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
	Time time.Time // at what was stored then
}

// Feed is a row of events.
type Feed struct {
	events chan *Event
	ended  context.Context // with its cause, when nothing more comes
	stop   func()
	After  uint64 // what had been stored when the feed began
}

// Follow reads events from JetStream: each one once, in order, also when NATS was away in between.
func (c *Client) Follow(ctx context.Context, filters []string, from Start) (*Feed, error) {
	info, err := c.streamInfo(ctx, events.EventsStream, "")
	if err != nil {
		return nil, err
	}
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: filters, InactiveThreshold: time.Minute,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from.Seq}
	switch {
	case !from.Time.IsZero():
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &from.Time
	case from.Seq == 0: // not "new": what comes while the consumer is made anew would be lost
		cfg.OptStartSeq = info.State.LastSeq + 1
	}
	cons, err := patiently(ctx, c, func(ctx context.Context) (jetstream.Consumer, error) {
		return c.js.OrderedConsumer(ctx, events.EventsStream, cfg)
	})
	if err != nil {
		return nil, fmt.Errorf("read the stream %s: %w", events.EventsStream, err)
	}
	f, end := newFeed(info.State.LastSeq)
	pulling, err := cons.Consume(func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		f.put(m.Subject(), m.Headers(), m.Data(), meta.Sequence.Stream)
	}, jetstream.PullHeartbeat(5*time.Second), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if errors.Is(err, jetstream.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionClosed) {
			end(ErrAway)
		}
	}))
	if err != nil {
		end(err)
		return nil, fmt.Errorf("read the stream %s: %w", events.EventsStream, err)
	}
	f.stop = sync.OnceFunc(func() { end(context.Canceled); pulling.Stop() })
	go func() {
		select {
		case <-c.closed:
			end(ErrAway)
		case <-f.ended.Done():
		}
	}()
	// A refused pull is told by nothing but an error of the connection.
	watched, done := c.permitted(f.ended, c.apiPrefix+"CONSUMER.")
	go func() {
		defer done()
		<-watched.Done()
		var refused *PermissionError
		if errors.As(context.Cause(watched), &refused) {
			end(refused)
		}
	}()
	return f, nil
}

// Hear reads events as they are published, in core NATS: for who may not read the stream. What is published while NATS is away is missed, and an
// event that the stream refuses is heard all the same.
func (c *Client) Hear(ctx context.Context, filters []string) (*Feed, error) {
	f, end := newFeed(0)
	var subs []*nats.Subscription
	f.stop = func() {
		end(context.Canceled)
		for _, s := range subs {
			_ = s.Unsubscribe() // it ends with the connection at the latest
		}
	}
	for _, filter := range filters {
		err := c.tried(ctx, filter, func() error {
			sub, err := c.nc.Subscribe(filter, func(m *nats.Msg) { f.put(m.Subject, m.Header, m.Data, 0) })
			subs = append(subs, sub)
			return err
		})
		if err != nil {
			f.stop()
			return nil, err
		}
	}
	go func() {
		select {
		case <-c.closed:
			end(ErrAway)
		case <-f.ended.Done():
		}
	}()
	return f, nil
}

// tried does what NATS does not answer, and returns its refusal where there is one.
func (c *Client) tried(ctx context.Context, subject string, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	watched, done := c.permitted(ctx, subject)
	defer done()
	if err := do(); err != nil {
		return err
	}
	if err := c.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("NATS does not answer: %w", err)
	}
	// A refusal comes before the answer to the flush. The error handler hears of it a moment later, and is waited for: else the next call would
	// take it for its own.
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
	if err != nil { // others may publish there too: readers ignore what they do not know
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

// Wait is a subscription to what becomes of one message.
type Wait struct {
	c     *Client
	m     *Message
	feed  *Feed
	heard bool // by core NATS
	other bool // the run in the journal was asked for with other data: the message will be rejected
	known bool // the message may have been sent before
}

// Await subscribes to what becomes of a message: before it is published. known: it may have been sent before, so the VM's history is read too. Who may
// not read the stream hears core NATS, and confirms in the stream what ends a run.
func (c *Client) Await(ctx context.Context, m *Message, known bool) (*Wait, error) {
	w := &Wait{c: c, m: m, known: known}
	from := Start{}
	if known {
		from.Seq = 1
	}
	var err error
	var refused *PermissionError
	w.feed, err = c.Follow(ctx, Filters(m.VCenter, m.VM), from)
	if errors.As(err, &refused) {
		w.heard = true
		w.feed, err = c.Hear(ctx, Filters(m.VCenter, m.VM))
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Stop ends the subscription.
func (w *Wait) Stop() { w.feed.Stop() }

// look is how often the VM's last event is read where events may be missed.
const look = 10 * time.Second

// Until waits for the message's end and returns that event: one that ends its run, or its rejection. seq is what the publish answered. show is called with
// every event of the run (of a cancel, from now on), the last one included.
func (w *Wait) Until(ctx context.Context, seq uint64, show func(*Event)) (*Event, error) {
	rejected := "rejected." + strconv.FormatUint(seq, 10)
	if w.heard && w.known {
		if e := w.ended(ctx); e != nil {
			show(e)
			return e, nil
		}
	}
	for {
		e, err := w.next(ctx)
		var refused *PermissionError
		switch {
		case errors.As(err, &refused) && !w.heard: // it may make a consumer, but not pull from it
			w.feed.Stop()
			w.heard = true
			if w.feed, err = w.c.Hear(ctx, Filters(w.m.VCenter, w.m.VM)); err != nil {
				return nil, err
			}
			if e = w.ended(ctx); e == nil {
				continue
			}
		case err != nil:
			return nil, err
		}
		switch {
		case e.Kind == events.KindRejected:
			if e.ID() == rejected && (e.Seq == 0 || e.Seq > w.feed.After) {
				show(e)
				return e, nil
			}
			continue
		case e.Run.ID != w.m.Run:
			continue
		case e.Kind == events.RunAccepted && !w.m.Cancel:
			w.other = !sameJSON(events.WithoutNulls(e.Run.Requested), events.WithoutNulls(w.m.Asked))
		}
		if w.other || e.Last() && w.heard && !w.stored(ctx, e) {
			continue
		}
		if !w.m.Cancel || e.Last() || e.Seq == 0 || e.Seq > w.feed.After { // what the run did before is no news to who ends it
			show(e)
		}
		if e.Last() {
			return e, nil
		}
	}
}

// next is the next event; where some may be missed, the VM's last event is read now and then.
func (w *Wait) next(ctx context.Context) (*Event, error) {
	if !w.heard {
		return w.feed.Next(ctx)
	}
	for {
		timed, cancel := context.WithTimeout(ctx, look)
		e, err := w.feed.Next(timed)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return e, err
		}
		if e := w.ended(ctx); e != nil {
			return e, nil
		}
	}
}

// ended is the VM's last event where that ends this run; else nil.
func (w *Wait) ended(ctx context.Context) *Event {
	e, err := w.c.Last(ctx, w.m.VCenter, w.m.VM)
	if err != nil || e == nil || e.Run.ID != w.m.Run || !e.Last() {
		return nil
	}
	return e
}

// stored reports whether an event that was heard is in the stream: core NATS also hands out what the stream then refuses.
func (w *Wait) stored(ctx context.Context, e *Event) bool {
	for range 20 {
		s, err := w.c.lastOn(ctx, events.EventsStream, events.EventSubject(w.m.VCenter, w.m.VM, e.Kind))
		var refused *PermissionError
		if errors.As(err, &refused) {
			return true // who may not ask has to believe
		}
		if err == nil && s != nil {
			if have, err := decode(s.Subject, s.Header, s.Data); err == nil && have.ID() == e.ID() && bytes.Equal(have.Data(), e.Data()) {
				return true
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// sameJSON compares two JSON values. Absent is like anything: it cannot be told.
func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if len(a) == 0 || len(b) == 0 || json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return true
	}
	return reflect.DeepEqual(x, y)
}
