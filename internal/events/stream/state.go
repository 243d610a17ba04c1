package stream

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

// StreamState is how full a stream is.
type StreamState struct {
	Messages, Bytes uint64
	MaxBytes        int64     // 0: no limit
	Oldest          time.Time // when its first message was stored; zero where it has none
}

// StreamState asks for one stream's.
func (c *Conn) StreamState(ctx context.Context, stream string) (StreamState, error) {
	s, err := try(ctx, func(ctx context.Context) (jetstream.Stream, error) { return c.js.Stream(ctx, stream) })
	if err != nil {
		return StreamState{}, fmt.Errorf("state of stream %s: %w", stream, err)
	}
	info := s.CachedInfo()
	state := StreamState{Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: max(info.Config.MaxBytes, 0)}
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
	cons, err := try(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return c.js.Consumer(ctx, events.RequestsStream(vcenter), durable)
	})
	if err != nil {
		return Backlog{}, fmt.Errorf("state of consumer %s: %w", durable, err)
	}
	info := cons.CachedInfo()
	return Backlog{Pending: info.NumPending, Taken: info.NumAckPending}, nil
}

// InHand is what this process holds of one durable's messages.
type InHand struct {
	VCenter, Durable string
	Messages         int
	OneSource        int // of those, from the source that has most of them
}

// InHand is what this process holds.
func (c *Conn) InHand() []InHand {
	c.mu.Lock()
	intakes := slices.Clone(c.intakes)
	c.mu.Unlock()
	var all []InHand
	for _, i := range intakes {
		h := InHand{VCenter: i.vcenter, Durable: i.durable}
		of := map[string]int{}
		i.mu.Lock()
		h.Messages = len(i.held)
		for _, m := range i.held {
			of[m.source]++
			h.OneSource = max(h.OneSource, of[m.source])
		}
		i.mu.Unlock()
		all = append(all, h)
	}
	return all
}
