// Package memstore holds the events stream and the requests stream in memory, for tests of what stands on them. It
// answers as nats-server 2.15 does, alone or replicated, and fails as a test tells it to. It uses channels, mutexes and
// the time package only, so that it runs in a testing/synctest bubble.
package memstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// Options of a Store.
type Options struct {
	// Replicas is 1 for the answers of a single server (sequence first, then message ID: a repeated append is refused
	// with 10071), or 3 for those of a replicated stream (message ID first: a repeated append is a duplicate, also
	// where others followed it). Default 1.
	Replicas int
	// MaxAge is how far back the stream says that it reaches; zero: to when it was made. A test takes the events away
	// by itself, with Age.
	MaxAge time.Duration
	// Window is how long message IDs are remembered; default 2m.
	Window time.Duration
}

// ErrNoAnswer is what a publisher sees of a message or an answer that was lost.
var ErrNoAnswer = errors.New("no answer")

// Store is a stream in memory. It is safe for concurrent use; owners use it through clients of their own.
type Store struct {
	opts  Options
	reads lag

	mu    sync.Mutex
	made  time.Time
	msgs  []stream.Stored // by sequence
	last  uint64
	ids   map[string]stamp
	heard []func(subject string)
}

type stamp struct {
	seq uint64
	at  time.Time
}

// New returns an empty store.
func New(o Options) *Store {
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.Window == 0 {
		o.Window = 2 * time.Minute
	}
	return &Store{opts: o, made: time.Now(), ids: map[string]stamp{}}
}

// All are the messages in the stream, oldest first.
func (s *Store) All() []stream.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.msgs)
}

// Newest is the newest message under a filter; nil where there is none.
func (s *Store) Newest(filter string) *stream.Stored { return newest(s.All(), filter) }

// DropLast takes the last k messages away as a loss of power does: their sequences are used again, their IDs are
// forgotten.
func (s *Store) DropLast(k int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; k > 0 && len(s.msgs) > 0; k-- {
		gone := s.msgs[len(s.msgs)-1]
		s.msgs = s.msgs[:len(s.msgs)-1]
		s.last = gone.Seq - 1
		delete(s.ids, gone.Header.Get(jetstream.MsgIDHeader))
	}
}

// Lag lets reads be answered by a replica that is behind: behind tells, for the n-th read from 1, how old its view is.
// Nil: none is. Appends go to the leader.
func (s *Store) Lag(behind func(n int) time.Duration) { s.reads.set(behind) }

// Anew removes the stream and makes it again: every event is gone, and its sequences begin behind the one given, as if
// those were of other VMs.
func (s *Store) Anew(behind uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made, s.msgs, s.last, s.ids = time.Now(), nil, behind, map[string]stamp{}
}

// Age takes the oldest k messages away, as the stream's max age does.
func (s *Store) Age(k int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.msgs = slices.Clone(s.msgs[min(k, len(s.msgs)):])
}

// onStore calls fn with the subject of every message that is stored from now on. fn must not call the store.
func (s *Store) onStore(fn func(subject string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, fn)
}

func (s *Store) publish(m stream.Message) (stream.Ack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := m.Header.Get(jetstream.MsgIDHeader)
	seen, duplicate := s.ids[id]
	duplicate = duplicate && id != "" && time.Since(seen.at) < s.opts.Window
	if duplicate && s.opts.Replicas > 1 {
		return stream.Ack{Sequence: seen.seq, Duplicate: true}, nil
	}
	if expected := m.Header.Get(jetstream.ExpectedLastSubjSeqHeader); expected != "" {
		want, err := strconv.ParseUint(expected, 10, 64)
		if err != nil {
			return stream.Ack{}, fmt.Errorf("header %s: %w", jetstream.ExpectedLastSubjSeqHeader, err)
		}
		have := uint64(0)
		if last := newest(s.msgs, m.Header.Get(jetstream.ExpectedLastSubjSeqSubjHeader)); last != nil {
			have = last.Seq
		}
		if have != want {
			return stream.Ack{}, &stream.StoreError{Code: stream.CodeWrongLastSequence,
				Description: fmt.Sprintf("wrong last sequence: %d", have)}
		}
	}
	if duplicate {
		return stream.Ack{Sequence: seen.seq, Duplicate: true}, nil
	}
	s.last++
	s.msgs = append(s.msgs, stream.Stored{
		Subject: m.Subject, Seq: s.last, At: time.Now(), Header: maps.Clone(m.Header), Data: slices.Clone(m.Data),
	})
	if id != "" {
		s.ids[id] = stamp{seq: s.last, at: time.Now()}
	}
	for _, fn := range s.heard {
		fn(m.Subject)
	}
	return stream.Ack{Sequence: s.last}, nil
}

// Fault is what happens to one publish.
type Fault struct {
	Delay      time.Duration // on its way to the stream
	LoseCall   bool          // never arrives, no answer
	LoseAnswer bool          // arrives, no answer
	Late       time.Duration // arrives this much later, when its sender has long given up
	Refuse     int           // refused with this code, such as stream.CodeLastSequenceRace; nothing is stored
}

// Client is one owner's connection to the store. It implements stream.Store.
type Client struct {
	store   *Store
	crashed chan struct{}

	mu        sync.Mutex
	published int
	fault     func(n int, m stream.Message) Fault
	stale     int
	lost      int
}

// Client returns a new owner's connection.
func (s *Store) Client() *Client { return &Client{store: s, crashed: make(chan struct{})} }

// OnPublish decides what happens to the n-th publish of this client, from 1; resent messages count anew.
func (c *Client) OnPublish(fn func(n int, m stream.Message) Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = fn
}

// Crash lets the owner die now: none of its calls is answered any more.
func (c *Client) Crash() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.crashed:
	default:
		close(c.crashed)
	}
}

// Crashed is closed when the owner has died.
func (c *Client) Crashed() <-chan struct{} { return c.crashed }

// Published is how many publishes of this client there were, whatever became of them.
func (c *Client) Published() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.published
}

// StaleReads lets the next n reads of this client miss the newest message, as a leader may that does not know yet that
// it is none.
func (c *Client) StaleReads(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = n
}

// LoseReads leaves the next n reads of this client without an answer.
func (c *Client) LoseReads(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = n
}

// Publish implements stream.Store.
func (c *Client) Publish(ctx context.Context, m stream.Message) (stream.Ack, error) {
	c.mu.Lock()
	c.published++
	var f Fault
	if c.fault != nil {
		f = c.fault(c.published, m)
	}
	c.mu.Unlock()
	if err := c.alive(ctx); err != nil {
		return stream.Ack{}, err
	}
	switch {
	case f.Refuse != 0:
		return stream.Ack{}, &stream.StoreError{Code: f.Refuse, Description: "refused by the test"}
	case f.Late > 0:
		go func() {
			time.Sleep(f.Late)
			_, _ = c.store.publish(m) // nobody is there to hear the answer
		}()
		f.LoseCall = true
	case f.Delay > 0:
		if err := backoff.Sleep(ctx, f.Delay); err != nil {
			return stream.Ack{}, err
		}
	}
	var ack stream.Ack
	var err error
	if !f.LoseCall {
		ack, err = c.store.publish(m)
	}
	if f.LoseCall || f.LoseAnswer {
		<-ctx.Done()
		return stream.Ack{}, fmt.Errorf("%w: %w", ErrNoAnswer, context.Cause(ctx))
	}
	return ack, err
}

// LastBySubject implements stream.Store.
func (c *Client) LastBySubject(ctx context.Context, filter string) (*stream.Stored, error) {
	msgs, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	return newest(msgs, filter), nil
}

// NextBySubject implements stream.Store.
func (c *Client) NextBySubject(ctx context.Context, filter string, from uint64) (*stream.Stored, error) {
	msgs, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		if msgs[i].Seq >= from && matches(filter, msgs[i].Subject) {
			return &msgs[i], nil
		}
	}
	return nil, nil
}

// CompleteSince implements stream.Store.
func (c *Client) CompleteSince(ctx context.Context) (time.Time, error) {
	if err := c.alive(ctx); err != nil {
		return time.Time{}, err
	}
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if age := c.store.opts.MaxAge; age > 0 && time.Since(c.store.made) > age {
		return time.Now().Add(-age), nil
	}
	return c.store.made, nil
}

func (c *Client) read(ctx context.Context) ([]stream.Stored, error) {
	if err := c.alive(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	stale, lost := c.stale > 0, c.lost > 0
	c.stale, c.lost = max(c.stale-1, 0), max(c.lost-1, 0)
	c.mu.Unlock()
	if lost {
		<-ctx.Done()
		return nil, fmt.Errorf("%w: %w", ErrNoAnswer, context.Cause(ctx))
	}
	msgs := c.store.All()
	if behind := c.store.reads.next(); behind > 0 {
		at := time.Now().Add(-behind)
		msgs = slices.DeleteFunc(msgs, func(m stream.Stored) bool { return m.At.After(at) })
	}
	if stale && len(msgs) > 0 {
		msgs = msgs[:len(msgs)-1]
	}
	return msgs, nil
}

// alive returns nil while the owner lives; a dead one's call ends with its ctx.
func (c *Client) alive(ctx context.Context) error {
	select {
	case <-c.crashed:
		<-ctx.Done()
		return fmt.Errorf("%w: %w", ErrNoAnswer, context.Cause(ctx))
	default:
		return ctx.Err()
	}
}

func newest(msgs []stream.Stored, filter string) *stream.Stored {
	for i := len(msgs) - 1; i >= 0; i-- {
		if matches(filter, msgs[i].Subject) {
			return &msgs[i]
		}
	}
	return nil
}

// matches reports whether a subject is under a filter with the wild cards of NATS.
func matches(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, token := range f {
		switch {
		case token == ">":
			return len(s) > i
		case i >= len(s) || token != "*" && token != s[i]:
			return false
		}
	}
	return len(f) == len(s)
}
