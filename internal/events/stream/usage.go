package stream

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

// Usage is how full a stream is.
type Usage struct {
	Messages, Bytes uint64
	MaxBytes        int64     // 0: no limit
	Oldest          time.Time // when its first message was stored; zero where it has none
}

// Usage asks for one stream's.
func (c *Conn) Usage(ctx context.Context, stream string) (Usage, error) {
	s, err := once(ctx, func(ctx context.Context) (jetstream.Stream, error) { return c.js.Stream(ctx, stream) })
	if err != nil {
		return Usage{}, fmt.Errorf("state of stream %s: %w", stream, err)
	}
	info := s.CachedInfo()
	state := Usage{Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: max(info.Config.MaxBytes, 0)}
	if state.Messages > 0 {
		state.Oldest = info.State.FirstTime
	}
	return state, nil
}

// Backlog is what a durable has to do, for all replicas together.
type Backlog struct {
	Pending uint64 // not taken by anybody yet
	Taken   int    // taken, not finished
}

// Backlog asks for that of one of a vCenter's durables.
func (c *Conn) Backlog(ctx context.Context, vcenter, durable string) (Backlog, error) {
	cons, err := once(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return c.js.Consumer(ctx, events.RequestsStream(vcenter), durable)
	})
	if err != nil {
		return Backlog{}, fmt.Errorf("state of consumer %s: %w", durable, err)
	}
	info := cons.CachedInfo()
	return Backlog{Pending: info.NumPending, Taken: info.NumAckPending}, nil
}

// InFlight is what this process holds of one durable's messages.
type InFlight struct {
	VCenter, Durable string
	Messages         int
	OneSource        int // of those, from the source that has most of them
}

// InFlight is what this process holds.
func (c *Conn) InFlight() []InFlight {
	c.mu.Lock()
	consumers := slices.Clone(c.consumers)
	c.mu.Unlock()
	var all []InFlight
	for _, cons := range consumers {
		h := InFlight{VCenter: cons.vcenter, Durable: cons.durable}
		of := map[string]int{}
		cons.mu.Lock()
		h.Messages = len(cons.inFlight)
		for _, m := range cons.inFlight {
			of[m.source]++
			h.OneSource = max(h.OneSource, of[m.source])
		}
		cons.mu.Unlock()
		all = append(all, h)
	}
	return all
}
