package events

import (
	"slices"
	"time"
)

// Place is where a message stands in its vCenter's requests stream. Its sequence alone does not name it: a stream that
// is made anew begins at 1 again, and one that lost its end to a power failure uses those sequences again.
type Place struct {
	Stream time.Time // when the stream was made; zero: not known
	Seq    uint64
	At     time.Time // when the stream stored it, by the server's clock
}

// Place is where the request stands.
func (r *Request) Place() Place { return Place{Stream: r.Stream, Seq: r.Seq, At: r.At} }

// Place is where the cancel stands.
func (c *Cancel) Place() Place { return Place{Stream: c.Stream, Seq: c.Seq, At: c.At} }

// Is reports whether both are one message.
func (p Place) Is(q Place) bool { return p.Seq == q.Seq && p.At.Equal(q.At) }

// Before reports whether p was surely stored before q, in one stream: by its sequence, and not later by the clock
// either.
func (p Place) Before(q Place) bool { return p.Seq < q.Seq && !p.At.After(q.At) }

// Replaces reports whether p, which the stream holds, proves that what stood at q has left: it was stored later, at no
// later place, so the stream lost its end or was made anew, and goes on with the same sequences.
func (p Place) Replaces(q Place) bool {
	return p.Seq == q.Seq && p.At.After(q.At) || p.Seq < q.Seq && p.At.After(q.At.Add(ClockSkew))
}

// QueuedRequest is a request that is still in the requests stream.
type QueuedRequest struct {
	Seq   uint64
	At    time.Time  // when the stream stored it
	Ref   RequestRef // zero where the message cannot be read
	RunID string     // its run's ID, "" where the message cannot be read
}

// Place is where it stands.
func (q *QueuedRequest) Place() Place { return Place{Seq: q.Seq, At: q.At} }

// VMQueue is what the requests stream holds for a VM, as one read of it after the other has it. A read may be older
// than the truth, so what is not here proves nothing by itself; see Reaches.
type VMQueue struct {
	Requests []QueuedRequest // oldest first
	Cancels  []Place
}

// HasSeen reports whether the answers have seen the cancel at p: what stood before it and is not among the requests has
// left the stream. Each answer shows the first message behind the one before it, and who shows a message has seen all
// that were stored before.
func (w VMQueue) HasSeen(p Place) bool { return slices.ContainsFunc(w.Cancels, p.Is) }

// MayHold reports whether the stream may hold a request of the run: a message that this build cannot read may be
// anybody's.
func (w VMQueue) MayHold(run string) bool {
	return slices.ContainsFunc(w.Requests, func(q QueuedRequest) bool { return q.RunID == run || q.RunID == "" })
}

// ClockSkew is how far the clocks of a cluster's servers may be apart: each leader stamps what it stores.
const ClockSkew = time.Minute
