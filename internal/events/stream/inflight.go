package stream

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/events"
)

// identity is what makes a message itself. Its sequence alone does not: a stream that was removed and made again, or
// restored, uses its sequences again.
type identity struct {
	seq uint64
	at  int64 // when the stream stored it, in nanoseconds
}

// inFlight is a message that was delivered to this process and is not answered yet. Guarded by consumer.mu.
type inFlight struct {
	identity
	latest delivery // the one to answer
	source string   // its publisher's, once it was read

	// abandoned: its stream is gone. Another message may have its sequence now, so it is not answered any more.
	abandoned bool
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
	d := delivery{Msg: m, nc: c.conn.nc, meta: meta, streamCreated: c.streamCreated}
	switch known := c.inFlight[id.seq]; {
	case known != nil && known.identity == id: // delivered again
		known.latest = d
		c.reply("heartbeat", d.inProgress)
		return
	case known != nil: // another message has its sequence: the stream was made anew, and it has to be asked when
		c.abandon(slices.Collect(maps.Values(c.inFlight))...)
		c.streamCreated, c.streamCheckedAt, d.streamCreated = time.Time{}, time.Time{}, time.Time{}
	}

	switch {
	case c.drained: // it was on its way for longer than pull waits
		c.reply("nak", d.nak)
	case c.stopping.Err() != nil:
		c.handlers.Go(func() { c.giveBack(d) })
	default:
		h := &inFlight{identity: id, latest: d}
		c.inFlight[id.seq] = h
		c.handlers.Go(func() { c.process(h) })
	}
}

func (c *consumer) latestDelivery(h *inFlight) delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return h.latest
}

// remove takes a message from those in flight, which ends its heartbeats, and returns its latest delivery. Where it is
// not ok, the message may not be answered any more.
func (c *consumer) remove(h *inFlight) (latest delivery, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight[h.seq] == h {
		delete(c.inFlight, h.seq)
	}
	return h.latest, !h.abandoned
}

// abandon makes sure that messages are not answered any more: what would be answered by their sequences may be others
// by now. Their handlers go on to their end; that a request has left the queue is for the VM's journal to judge. c.mu
// is held.
func (c *consumer) abandon(all ...*inFlight) {
	for _, h := range all {
		h.abandoned = true
		if c.inFlight[h.seq] == h {
			delete(c.inFlight, h.seq)
		}
		c.log.Warn().Uint64("seq", h.seq).Str("subject", h.latest.Subject).
			Msgf("stream %s was made anew while this message was in flight: it is not answered any more",
				events.RequestsStream(c.vcenter))
	}
}

// checkStream abandons all messages in flight where the stream was made anew since they were delivered.
func (c *consumer) checkStream(ctx context.Context) error {
	created, err := once(ctx, func(ctx context.Context) (time.Time, error) {
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

// streamCreated is when a stream was made.
func (c *Conn) streamCreated(ctx context.Context, stream string) (time.Time, error) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return time.Time{}, err
	}
	return s.CachedInfo().Created, nil
}

// checkMessages abandons each message in flight in whose place the stream holds another one, as a stream that was
// restored from a backup may. A place that is empty says nothing: the read may be older than the truth, and an answer
// for it does no harm.
func (c *consumer) checkMessages(ctx context.Context) error {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.inFlight))
	c.mu.Unlock()

	store := &jetStore{conn: c.conn, stream: events.RequestsStream(c.vcenter)}
	for _, h := range all {
		stored, err := once(ctx, func(ctx context.Context) (*Stored, error) {
			return store.get(ctx, map[string]any{"seq": h.seq})
		})
		if err != nil {
			return err
		}
		if stored != nil && stored.At.UnixNano() != h.at {
			c.mu.Lock()
			c.abandon(h)
			c.mu.Unlock()
		}
	}
	return nil
}

// heartbeats keeps the messages in flight from being delivered to somebody else, with one ticker for all. The server
// does not confirm them: a lost one is made good by the next, and behind all of them the journal's compare-and-append
// is what stops a second owner.
func (c *consumer) heartbeats(quit <-chan struct{}) {
	ticker := time.NewTicker(time.Hour) // until the ack wait is known, which is before anything is in flight
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
			c.reply("heartbeat", h.latest.inProgress)
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
