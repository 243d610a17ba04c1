package events

import (
	"errors"
	"fmt"
	"time"
)

// ErrFenced is an append that was refused because another owner's event stands there, or because the event it was to
// stand on is gone. Its owner stays silent from then on: no acknowledgement, no nak, no heartbeat; the stream hands the
// request to whoever is next.
var ErrFenced = errors.New("fenced: the VM's journal went on without this owner")

// ErrForgotten is an ErrFenced append whose VM's journal no longer has the event that it was to follow: the events
// stream was made anew, or emptied. Its owner may begin the VM's journal again, if nobody else does: that append is
// compared as any other.
var ErrForgotten = fmt.Errorf("%w: its events are gone", ErrFenced)

// ErrUnstorable is an append that the server refuses for good: no repetition of it can be stored.
var ErrUnstorable = errors.New("this event can never be stored")

// ErrReleased is what a handler returns after run.released, or before it began anything: the request is given back at
// once.
var ErrReleased = errors.New("released: the request is given back")

// RetryError gives a request back for a while. A request that only waits for its VM's earlier one is held, never put
// off this way: while it is put off it keeps its place among those in flight, and others come back before it.
type RetryError struct {
	After time.Duration
	Err   error
}

// Error says why, and for how long.
func (e *RetryError) Error() string { return fmt.Sprintf("tried again in %s: %v", e.After, e.Err) }

// Unwrap returns the reason.
func (e *RetryError) Unwrap() error { return e.Err }

// RejectError refuses a message: it is kept as a dead letter, its publisher is told by an event, then it is
// acknowledged.
type RejectError struct {
	Code    Code
	Field   string // path within the request's data, "customize.spec"; empty where it is about the message as a whole
	Message string
	// IfLastSeq is the sequence of the VM's last event (0: it has none) where the refusal leans on what its journal
	// does not show, nil where it does not: it is stored only while the journal still stands there, for what was read
	// may be older than the truth. Where it does not, the message comes again.
	IfLastSeq *uint64
	// Withhold keeps the message's data out of the dead letter, because it holds a secret.
	Withhold bool
}

// Error says the code, the field and the reason; it never quotes a secret.
func (e *RejectError) Error() string { return string(e.Code) + ": " + e.Reason() }

// Short is e with its words cut to what a rejection and a header hold.
func (e *RejectError) Short() *RejectError {
	short := *e
	short.Message, short.Field = Cut(e.Message, maxReason), Cut(e.Field, maxPath)
	return &short
}

// Reason is the message, with the field that it is about.
func (e *RejectError) Reason() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}
