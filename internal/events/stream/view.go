package stream

import (
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// View is what one answer of a server says of a stream, all of it at one moment. It may be older than the truth.
type View struct {
	Made        time.Time // when the stream was made
	First, Last uint64    // sequences; First is Last + 1 where it is empty
	LastAt      time.Time // when Last was stored
	Messages    uint64
	Removed     []uint64 // between First and Last, ascending
	Detailed    bool     // Removed was asked for
}

// Verdict is what a view tells of a message.
type Verdict int

// What a view tells of a message.
const (
	NotSeen Verdict = iota // the view may be older than the message
	Held                   // it is there
	Gone                   // it was there, and is no longer
	Unclear                // only the details tell
)

// Of tells what became of the message at p. It is Gone only where this one view has seen its sequence and does not hold
// it, in the stream that it was stored in, or where the view is of a stream that was made after it was stored. Two
// reads, or five that agree, prove nothing: all of them may come from a server that has not caught up.
func (v View) Of(p events.Place) Verdict {
	switch {
	case !v.Made.Equal(p.Stream) && (v.Made.After(p.At) || !p.Stream.IsZero() && v.Made.After(p.Stream)):
		return Gone // with its stream
	case !p.Stream.IsZero() && v.Made.Before(p.Stream) && v.LastAt.After(p.At.Add(events.ClockSkew)):
		return Gone // the clock was set back when this stream was made: it goes on after p was stored
	case !p.Stream.IsZero() && v.Made.Before(p.Stream):
		return NotSeen // a view of the stream that was there before
	case v.Last < p.Seq && v.LastAt.After(p.At.Add(events.ClockSkew)):
		return Gone // a later message under an earlier sequence: the stream lost its end
	case v.Last < p.Seq:
		return NotSeen
	case p.Seq < v.First:
		return Gone
	case v.Messages == v.Last-v.First+1:
		return Held
	case !v.Detailed:
		return Unclear
	}
	if _, removed := slices.BinarySearch(v.Removed, p.Seq); removed {
		return Gone
	}
	return Held
}
