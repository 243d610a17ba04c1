package handler

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

// memStore is the events stream in memory: it compares and appends as one server does, or as a replicated stream.
type memStore struct {
	replicated bool // looks for duplicates before it compares
	stored     func(*events.Stored)

	mu   sync.Mutex
	msgs []*events.Stored
	slow map[string]int // how many appends of a kind take longer than the send window
}

func (s *memStore) lazy(kind string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slow[kind] == 0 {
		return false
	}
	s.slow[kind]--
	return true
}

func (s *memStore) publish(m events.Message) (events.Ack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := m.Header.Get(jetstream.MsgIDHeader)
	same := slices.IndexFunc(s.msgs, func(o *events.Stored) bool { return o.Header.Get(jetstream.MsgIDHeader) == id })
	want, err := strconv.ParseUint(m.Header.Get("Nats-Expected-Last-Subject-Sequence"), 10, 64)
	if err != nil {
		return events.Ack{}, &events.StoreError{Code: 400, Description: "bad expectation"}
	}
	var at uint64
	if l := s.lastLocked(m.Header.Get("Nats-Expected-Last-Subject-Sequence-Subject")); l != nil {
		at = l.Seq
	}
	if at != want && (!s.replicated || same < 0) {
		return events.Ack{}, &events.StoreError{Code: events.CodeWrongLastSequence, Description: "wrong last sequence"}
	}
	if same >= 0 {
		return events.Ack{Sequence: s.msgs[same].Seq, Duplicate: true}, nil
	}
	o := &events.Stored{Subject: m.Subject, Seq: uint64(len(s.msgs)) + 1, At: time.Now(), Header: m.Header, Data: slices.Clone(m.Data)}
	s.msgs = append(s.msgs, o)
	s.stored(o)
	return events.Ack{Sequence: o.Seq}, nil
}

// drop loses the newest n messages; their sequences are used again.
func (s *memStore) drop(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.msgs = s.msgs[:max(0, len(s.msgs)-n)]
}

func (s *memStore) all() []*events.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.msgs)
}

func (s *memStore) last(filter string) *events.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastLocked(filter)
}

func (s *memStore) lastLocked(filter string) *events.Stored {
	for _, m := range slices.Backward(s.msgs) {
		if strings.HasPrefix(m.Subject, strings.TrimSuffix(filter, ">")) {
			return m
		}
	}
	return nil
}

func (s *memStore) next(filter string, from uint64) *events.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.msgs {
		if m.Seq >= from && strings.HasPrefix(m.Subject, strings.TrimSuffix(filter, ">")) {
			return m
		}
	}
	return nil
}
