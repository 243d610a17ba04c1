package stream

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

// RequestQueue shows what is in the requests streams: the requests that are not finished yet, and the cancels. The
// requests for one VM run in the order of their stream sequences.
type RequestQueue struct {
	conn *Conn

	mu sync.Mutex
	// when NATS was there again after it was away; zero: it never was
	reconnectedAt time.Time
	subscribed    map[string]bool                          // the vCenters whose events are subscribed to
	wakers        map[[2]string]map[chan struct{}]struct{} // by vCenter and VM
}

func newRequestQueue(c *Conn) *RequestQueue {
	return &RequestQueue{conn: c, subscribed: map[string]bool{}, wakers: map[[2]string]map[chan struct{}]struct{}{}}
}

// Oldest is the oldest request for this VM, nil for none. What is not there has left the stream only where Gone says
// so: a read may be older than the truth.
func (q *RequestQueue) Oldest(ctx context.Context, vcenter, vm string) (*events.QueuedRequest, error) {
	s, err := q.next(ctx, vcenter, vm, events.RequestSubject(vcenter, vm), 1)
	if err != nil || s == nil {
		return nil, err
	}
	return queued(vcenter, s), nil
}

func queued(vcenter string, s *Stored) *events.QueuedRequest {
	q := &events.QueuedRequest{Seq: s.Seq, At: s.At}
	if r, err := events.DecodeRequest(vcenter, s.Subject, s.Header, s.Data); err == nil {
		q.Ref, q.RunID = r.Ref, r.RunID
	}
	return q
}

// Unfinished is what the stream holds for this VM: the requests in hand, those that wait, and the cancels.
func (q *RequestQueue) Unfinished(ctx context.Context, vcenter, vm string) (events.VMQueue, error) {
	var all events.VMQueue
	err := q.each(ctx, vcenter, vm, events.QueueSubject(vcenter, vm), func(s *Stored) {
		if s.Subject == events.CancelSubject(vcenter, vm) {
			all.Cancels = append(all.Cancels, events.Place{Seq: s.Seq, At: s.At})
		} else {
			all.Requests = append(all.Requests, *queued(vcenter, s))
		}
	})
	return all, err
}

// Gone reports whether the message at a place of the vCenter's requests stream has left it, as one answer proves that
// has seen it. False says nothing: it may be there, or the server that answered has not caught up. The list of what was
// removed is asked for only where the answer leaves it open: it is as long as the stretch between the oldest message
// and the newest.
func (q *RequestQueue) Gone(ctx context.Context, vcenter, vm string, p events.Place) (bool, error) {
	return ask(ctx, q.conn.log, vcenter, vm, "look whether a request has left its stream",
		func(ctx context.Context) (bool, error) {
			s, err := q.conn.js.Stream(ctx, events.RequestsStream(vcenter))
			if err != nil {
				return false, err
			}
			verdict := viewOf(s.CachedInfo(), false).Of(p)
			if verdict == Unclear {
				info, err := s.Info(ctx, jetstream.WithDeletedDetails(true))
				if err != nil {
					return false, err
				}
				verdict = viewOf(info, true).Of(p)
			}
			return verdict == Gone, nil
		})
}

func viewOf(info *jetstream.StreamInfo, detailed bool) View {
	s := info.State
	return View{Made: info.Created, First: s.FirstSeq, Last: s.LastSeq, LastAt: s.LastTime, Messages: s.Msgs,
		Removed: s.Deleted, Detailed: detailed}
}

// Cancels are the cancels that wait for this VM, oldest first. One that cannot be read cancels nothing and is left out.
func (q *RequestQueue) Cancels(ctx context.Context, vcenter, vm string) ([]events.Cancel, error) {
	var all []events.Cancel
	err := q.each(ctx, vcenter, vm, events.CancelSubject(vcenter, vm), func(s *Stored) {
		if c, err := events.DecodeCancel(vcenter, s.Subject, s.Header, s.Data); err == nil {
			c.Seq, c.At = s.Seq, s.At
			all = append(all, *c)
		}
	})
	return all, err
}

// RunningVMs are the VMs of a vCenter whose journal holds a run.
func (q *RequestQueue) RunningVMs(ctx context.Context, vcenter string) ([]string, error) {
	filter := events.EventSubject(vcenter, "*", events.RunAccepted)
	info, err := ask(ctx, q.conn.log, vcenter, "", "list the VMs in the journal",
		func(ctx context.Context) (*jetstream.StreamInfo, error) {
			s, err := q.conn.js.Stream(ctx, events.EventsStream)
			if err != nil {
				return nil, err
			}
			return s.Info(ctx, jetstream.WithSubjectFilter(filter))
		})
	if err != nil {
		return nil, err
	}
	vms := make([]string, 0, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		vms = append(vms, strings.Split(subject, ".")[3]) // guestflow.events.<vcenter>.<vm>.run.accepted
	}
	return vms, nil
}

func (q *RequestQueue) each(ctx context.Context, vcenter, vm, subject string, fn func(*Stored)) error {
	for from := uint64(1); ; {
		s, err := q.next(ctx, vcenter, vm, subject, from)
		if err != nil || s == nil {
			return err
		}
		fn(s)
		from = s.Seq + 1
	}
}

func (q *RequestQueue) next(ctx context.Context, vcenter, vm, subject string, from uint64) (*Stored, error) {
	store := &jetStore{conn: q.conn, stream: events.RequestsStream(vcenter)}
	return ask(ctx, q.conn.log, vcenter, vm, "read the requests stream", func(ctx context.Context) (*Stored, error) {
		return store.NextBySubject(ctx, subject, from)
	})
}

// Wake signals when a run.* event of this VM or a cancel for it is published, and when NATS is back after it was away.
// Signals are joined: one that nobody took yet is enough. It is a hint, which may also get lost: read after it, and now
// and then without it. stop ends it.
func (q *RequestQueue) Wake(vcenter, vm string) (ch <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	at := [2]string{vcenter, vm}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.wakers[at] == nil {
		q.wakers[at] = map[chan struct{}]struct{}{}
	}
	q.wakers[at][c] = struct{}{}
	if !q.subscribed[vcenter] { // one subscription per vCenter and kind, for as long as the connection lives
		q.subscribed[vcenter] = q.subscribe("guestflow.events."+vcenter+".*.run.*") &&
			q.subscribe(events.CancelSubject(vcenter, "*"))
	}
	return c, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.wakers[at], c)
		if len(q.wakers[at]) == 0 {
			delete(q.wakers, at)
		}
	}
}

func (q *RequestQueue) subscribe(subject string) bool {
	_, err := q.conn.nc.Subscribe(subject, func(m *nats.Msg) {
		// guestflow.events.<vcenter>.<vm>…, guestflow.cancels.<vcenter>.<vm>
		tokens := strings.SplitN(m.Subject, ".", 5)
		q.mu.Lock()
		defer q.mu.Unlock()
		for c := range q.wakers[[2]string{tokens[2], tokens[3]}] {
			signal(c)
		}
	})
	if err != nil {
		q.conn.log.Error().Err(err).Str("subject", subject).
			Msg("cannot subscribe: requests that wait for their turn notice it later")
	}
	return err == nil
}

// wakeAll signals to everybody: what was published while NATS was away was not heard.
func (q *RequestQueue) wakeAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reconnectedAt = time.Now()
	for _, waiting := range q.wakers {
		for c := range waiting {
			signal(c)
		}
	}
}

// ReconnectedAt is when NATS was there again after this process had lost it; zero: it never did.
func (q *RequestQueue) ReconnectedAt() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.reconnectedAt
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is waiting there already
	}
}
