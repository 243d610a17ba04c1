package events

import "time"

// Entry is one event of a VM's journal.
type Entry struct {
	Seq   uint64 // of the events stream
	MsgID string // its Nats-Msg-Id, which holds its owner's token
	At    time.Time
	Kind  Kind
	Attrs Attributes
	Run   Run
}

// Mark names one stored event: its stream sequence, which a journal that lost its tail may use again, and its message
// ID, which is never used again.
type Mark struct {
	Seq   uint64
	MsgID string
}
