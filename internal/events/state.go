package events

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
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

// Backlog is what a vCenter's requests consumer has to do, for all replicas together.
type Backlog struct {
	Pending uint64 // not taken by anybody yet
	Taken   int    // taken, not finished
}

// Backlog asks for a vCenter's.
func (c *Conn) Backlog(ctx context.Context, vcenter string) (Backlog, error) {
	cons, err := try(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return c.js.Consumer(ctx, RequestsStream(vcenter), RequestsConsumer(vcenter))
	})
	if err != nil {
		return Backlog{}, fmt.Errorf("state of consumer %s: %w", RequestsConsumer(vcenter), err)
	}
	info := cons.CachedInfo()
	return Backlog{Pending: info.NumPending, Taken: info.NumAckPending}, nil
}
