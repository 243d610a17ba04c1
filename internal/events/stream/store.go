package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// Store is what the journal needs of JetStream. The real one is made by Connect; memstore holds one in memory, which
// answers as one server does or as three do.
type Store interface {
	// Publish stores a message once. Expectations travel in its headers, see Message. A refusal of the server is a
	// *StoreError; any other error means that it is not known whether the message was stored. It makes one attempt and
	// does not retry.
	Publish(ctx context.Context, m Message) (Ack, error)
	// LastBySubject is the newest message under filter, read from the stream's leader; nil, nil where there is none.
	LastBySubject(ctx context.Context, filter string) (*Stored, error)
	// NextBySubject is the first message under filter at or behind the sequence from; nil, nil where there is none.
	NextBySubject(ctx context.Context, filter string, from uint64) (*Stored, error)
	// CompleteSince is from when on the stream has everything that was stored: when it was made, or its max age ago.
	CompleteSince(ctx context.Context) (time.Time, error)
}

// Message is what a Store publishes. The headers of JetStream are honoured: Nats-Msg-Id,
// Nats-Expected-Last-Subject-Sequence and its filter Nats-Expected-Last-Subject-Sequence-Subject.
type Message struct {
	Subject string
	Header  nats.Header
	Data    []byte
}

// Ack is the stream's answer to a publish.
type Ack struct {
	Sequence  uint64
	Duplicate bool // a message with this ID was stored before; Sequence is that one's
}

// Stored is a message as it stands in a stream.
type Stored struct {
	Subject string
	Seq     uint64
	At      time.Time
	Header  nats.Header
	Data    []byte
}

// The codes with which JetStream refuses an append, and what they mean here.
const (
	CodeWrongLastSequence = 10071 // another message stands there
	// lost a race on a replicated stream, which one server never shows: read again, then decide
	CodeLastSequenceRace = 10164
	CodeIDInProcess      = 10158 // a message with the same ID is being stored at this moment: read again, then decide
	CodeMessageTooLarge  = 10054
	CodeHeadersTooLarge  = 10097
	CodeWrongStream      = 10060 // the subject belongs to another stream than the one named
	CodeSubjectFull      = 10077 // this subject's share of the stream, or the stream, is full
)

// StoreError is a refusal by the server: the message was not stored.
type StoreError struct {
	Code        int // err_code of the JetStream API, such as 10071
	Description string
}

// Error says the server's words and code.
func (e *StoreError) Error() string { return fmt.Sprintf("JetStream: %s (%d)", e.Description, e.Code) }
