package memstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// Queue is one vCenter's requests stream and its durable consumer, in memory: what stream.RequestQueue and Conn.Consume
// do.
type Queue struct {
	vcenter string
	ackWait time.Duration
	reads   lag

	mu      sync.Mutex
	clock   time.Duration // how far the server's clock is ahead of ours
	made    time.Time
	last    uint64
	msgs    []*queued // by sequence
	removed []*queued // what was there, for those who look at the past
	waiting map[string]map[chan struct{}]struct{}
	changed chan struct{} // closed and made anew whenever a message may have become due
}

type queued struct {
	seq       uint64
	subject   string
	header    nats.Header
	data      []byte
	at        time.Time // when it was stored, by the server's clock
	stored    time.Time // and by ours
	gone      time.Time // when it was removed
	delivered uint64
	held      *Client   // whose handler has it in hand
	due       time.Time // not delivered before
}

// Queue returns an empty queue of a vCenter, whose Wake hears what is stored in s.
func (s *Store) Queue(vcenter string, ackWait time.Duration) *Queue {
	q := &Queue{vcenter: vcenter, ackWait: ackWait, made: time.Now(), waiting: map[string]map[chan struct{}]struct{}{},
		changed: make(chan struct{})}
	s.onStore(func(subject string) {
		t := strings.Split(subject, ".") // guestflow.events.<vcenter>.<vm>.run.<verb>
		if len(t) == 6 && t[1] == "events" && t[2] == vcenter && t[4] == "run" {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.wake(t[3])
		}
	})
	return q
}

// Publish stores a request (events.KindRequested) or a cancel (events.KindCancelRequested) for the VM and returns its
// sequence.
func (q *Queue) Publish(kind events.Kind, vm string, ref events.RequestRef, data any) (uint64, error) {
	h, b, err := cloudEvent(kind, ref, data)
	if err != nil {
		return 0, err
	}
	subject := events.RequestSubject(q.vcenter, vm)
	if kind == events.KindCancelRequested {
		subject = events.CancelSubject(q.vcenter, vm)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last++
	q.msgs = append(q.msgs, &queued{seq: q.last, subject: subject, header: h, data: b, at: time.Now().Add(q.clock),
		stored: time.Now()})
	if kind == events.KindCancelRequested {
		q.wake(vm)
	}
	q.touch()
	return q.last, nil
}

// Remove takes a message out of the stream: acknowledged, or purged by somebody.
func (q *Queue) Remove(seq uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.msgs = slices.DeleteFunc(q.msgs, func(m *queued) bool {
		if m.seq != seq {
			return false
		}
		m.gone = time.Now()
		q.removed = append(q.removed, m)
		return true
	})
	q.touch()
}

// Restore brings back a message that was removed, as a server does that lost the acknowledgement.
func (q *Queue) Restore(seq uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.removed = slices.DeleteFunc(q.removed, func(m *queued) bool {
		if m.seq != seq {
			return false
		}
		m.held, m.gone, m.due = nil, time.Time{}, time.Time{}
		q.msgs = append(q.msgs, m)
		return true
	})
	slices.SortFunc(q.msgs, func(a, b *queued) int { return cmp.Compare(a.seq, b.seq) })
	q.touch()
}

// Anew removes the stream and makes it again: everything in it is gone, and its sequences begin at 1.
func (q *Queue) Anew() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.made, q.last, q.msgs, q.removed = time.Now().Add(q.clock), 0, nil, nil
	q.touch()
}

// DropLast takes the newest k messages away as a loss of power does: their sequences are used again.
func (q *Queue) DropLast(k int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for ; k > 0 && len(q.msgs) > 0; k-- {
		q.last = q.msgs[len(q.msgs)-1].seq - 1
		q.msgs = q.msgs[:len(q.msgs)-1]
	}
	q.touch()
}

// DropEnd is DropLast of everything from a sequence on, and of all that was there to be removed.
func (q *Queue) DropEnd(from uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	behind := func(m *queued) bool { return m.seq >= from }
	q.last, q.msgs, q.removed = from-1, slices.DeleteFunc(q.msgs, behind), slices.DeleteFunc(q.removed, behind)
	q.touch()
}

// Clock sets the server's clock so far ahead of ours; less than zero: it is behind.
func (q *Queue) Clock(ahead time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.clock = ahead
}

// Lag lets reads be answered by a replica that is behind: behind tells, for the n-th read from 1, how old its view is.
// Nil: none is. What is delivered, stored and acknowledged is not read: it comes from the leader.
func (q *Queue) Lag(behind func(n int) time.Duration) { q.reads.set(behind) }

// Len is how many requests and cancels are in the stream.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.msgs)
}

// ReconnectedAt is stream.RequestQueue's: this queue is never away.
func (q *Queue) ReconnectedAt() time.Time { return time.Time{} }

// Has reports whether the message is in the stream.
func (q *Queue) Has(seq uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.msgs, func(m *queued) bool { return m.seq == seq })
}

// DeliverCancel returns the cancel as its delivery would.
func (q *Queue) DeliverCancel(seq uint64) (*events.Cancel, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.msgs {
		if m.seq == seq {
			m.delivered++
			c, err := events.DecodeCancel(q.vcenter, m.subject, m.header, m.data)
			c.Seq, c.Delivered, c.At, c.Stream = m.seq, m.delivered, m.at, q.made
			return c, err
		}
	}
	return nil, fmt.Errorf("message %d is not in the stream", seq)
}

// view is the stream as one read shows it: everything that was there at one moment, and the state that goes with it.
func (q *Queue) view() ([]queued, stream.View) {
	at := time.Now().Add(-q.reads.next())
	q.mu.Lock()
	defer q.mu.Unlock()
	v := stream.View{Made: q.made, Detailed: true}
	var all []queued
	for _, m := range slices.Concat(q.msgs, q.removed) {
		switch {
		case m.stored.After(at):
			continue
		case m.gone.IsZero() || m.gone.After(at):
			all = append(all, *m)
		default:
			v.Removed = append(v.Removed, m.seq)
		}
		if m.seq > v.Last {
			v.Last, v.LastAt = m.seq, m.at
		}
	}
	slices.SortFunc(all, func(a, b queued) int { return cmp.Compare(a.seq, b.seq) })
	slices.Sort(v.Removed)
	v.First, v.Messages = v.Last+1, uint64(len(all))
	if len(all) > 0 {
		v.First = all[0].seq
	}
	return all, v
}

// Oldest is stream.RequestQueue's.
func (q *Queue) Oldest(_ context.Context, _, vm string) (*events.QueuedRequest, error) {
	all, _ := q.view()
	for _, m := range all {
		if m.subject == events.RequestSubject(q.vcenter, vm) {
			return q.standing(m), nil
		}
	}
	return nil, nil
}

func (q *Queue) standing(m queued) *events.QueuedRequest {
	e := &events.QueuedRequest{Seq: m.seq, At: m.at}
	if r, err := events.DecodeRequest(q.vcenter, m.subject, m.header, m.data); err == nil {
		e.Ref, e.RunID = r.Ref, r.RunID
	}
	return e
}

// Unfinished is stream.RequestQueue's: each of its answers may be of another replica.
func (q *Queue) Unfinished(_ context.Context, _, vm string) (events.VMQueue, error) {
	var in events.VMQueue
	for from := uint64(1); ; {
		m := q.next(from, events.RequestSubject(q.vcenter, vm), events.CancelSubject(q.vcenter, vm))
		if m == nil {
			return in, nil
		}
		if m.subject == events.CancelSubject(q.vcenter, vm) {
			in.Cancels = append(in.Cancels, events.Place{Seq: m.seq, At: m.at})
		} else {
			in.Requests = append(in.Requests, *q.standing(*m))
		}
		from = m.seq + 1
	}
}

// next is one read of the first message under one of the subjects, at or behind from.
func (q *Queue) next(from uint64, subjects ...string) *queued {
	all, _ := q.view()
	for _, m := range all {
		if m.seq >= from && slices.Contains(subjects, m.subject) {
			return &m
		}
	}
	return nil
}

// Cancels is stream.RequestQueue's.
func (q *Queue) Cancels(_ context.Context, _, vm string) ([]events.Cancel, error) {
	var all []events.Cancel
	for from := uint64(1); ; {
		m := q.next(from, events.CancelSubject(q.vcenter, vm))
		if m == nil {
			return all, nil
		}
		if c, err := events.DecodeCancel(q.vcenter, m.subject, m.header, m.data); err == nil {
			c.Seq, c.At = m.seq, m.at
			all = append(all, *c)
		}
		from = m.seq + 1
	}
}

// Gone is stream.RequestQueue's.
func (q *Queue) Gone(_ context.Context, _, _ string, p events.Place) (bool, error) {
	_, v := q.view()
	return v.Of(p) == stream.Gone, nil
}

// Wake is stream.RequestQueue's.
func (q *Queue) Wake(_, vm string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting[vm] == nil {
		q.waiting[vm] = map[chan struct{}]struct{}{}
	}
	q.waiting[vm][c] = struct{}{}
	return c, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.waiting[vm], c)
	}
}

func (q *Queue) wake(vm string) {
	for c := range q.waiting[vm] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Deliver returns the request as its next delivery would, whoever has it in hand, for a test that drives a handler by
// itself.
func (q *Queue) Deliver(seq uint64) (*events.Request, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.msgs {
		if m.seq == seq {
			return q.deliver(m)
		}
	}
	return nil, fmt.Errorf("message %d is not in the stream", seq)
}

func (q *Queue) deliver(m *queued) (*events.Request, error) {
	m.delivered++
	r, err := events.DecodeRequest(q.vcenter, m.subject, m.header, m.data)
	r.Seq, r.Delivered, r.At, r.Stream = m.seq, m.delivered, m.at, q.made
	return r, err
}

// Settle applies a handler's verdict, as Conn.Consume does; a refusal leaves no dead letter here.
func (q *Queue) Settle(seq uint64, verdict error) {
	var reject *events.RejectError
	if verdict == nil || errors.As(verdict, &reject) {
		q.Remove(seq)
		return
	}
	wait := q.ackWait
	var retry *events.RetryError
	switch {
	case errors.Is(verdict, events.ErrReleased):
		wait = 0
	case errors.As(verdict, &retry):
		wait = retry.After
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.msgs {
		if m.seq == seq {
			m.held, m.due = nil, time.Now().Add(wait)
		}
	}
	q.touch()
}

// Consume hands requests to an owner's handler, each in a goroutine of its own, until ctx ends or the owner crashes. At
// the end of ctx it waits for the handlers; what a dead owner had in hand is delivered to the next one after the ack
// wait, and its verdicts count for nothing.
func (q *Queue) Consume(ctx context.Context, owner *Client, handle func(ctx context.Context, r *events.Request) error) {
	var handles sync.WaitGroup
	for {
		m, changed, wait := q.take(owner)
		if m != nil {
			handles.Go(func() { q.hand(ctx, owner, m, handle) })
			continue
		}
		due := time.NewTimer(wait)
		if wait == 0 { // nothing is put off
			due.Stop()
		}
		select {
		case <-ctx.Done():
			handles.Wait()
			return
		case <-owner.Crashed():
			q.abandon(owner)
			return
		case <-changed:
		case <-due.C:
		}
		due.Stop()
	}
}

func (q *Queue) hand(
	ctx context.Context, owner *Client, m *queued, handle func(ctx context.Context, r *events.Request) error,
) {
	q.mu.Lock()
	r, err := q.deliver(m)
	q.mu.Unlock()
	if err == nil {
		err = handle(context.WithoutCancel(ctx), r)
	}
	select {
	case <-owner.Crashed():
	default:
		q.Settle(m.seq, err)
	}
}

// take marks the next due request as the owner's, or tells when there may be one.
func (q *Queue) take(owner *Client) (m *queued, changed <-chan struct{}, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.msgs {
		if m.held != nil || strings.HasPrefix(m.subject, events.CancelSubject(q.vcenter, "")) {
			continue
		}
		if left := time.Until(m.due); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		m.held = owner
		return m, nil, 0
	}
	return nil, q.changed, wait
}

func (q *Queue) abandon(owner *Client) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.msgs {
		if m.held == owner {
			m.held, m.due = nil, time.Now().Add(q.ackWait)
		}
	}
	q.touch()
}

func (q *Queue) touch() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func cloudEvent(kind events.Kind, ref events.RequestRef, data any) (nats.Header, []byte, error) {
	b, err := json.Marshal(map[string]any{
		"specversion": "1.0", "id": ref.ID, "source": ref.Source, "type": events.Type(kind),
		"datacontenttype": "application/json", "data": data,
	})
	return nats.Header{"Content-Type": {"application/cloudevents+json"}}, b, err
}
