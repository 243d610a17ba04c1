package stream_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// What a publisher is told at once: that nobody serves the vCenter, that the VM's queue is full, that the message is
// too large, data and headers together.
func TestPublishAnswers(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	request := func(id string) []byte {
		return []byte(`{"specversion":"1.0","id":"` + id + `","source":"/provisioner","type":"` + requestedType +
			`","data":{"vm":"vm-42"}}`)
	}
	for _, tt := range []struct {
		name string
		msg  nats.Msg
		none bool // no stream
		code jetstream.ErrorCode
	}{
		{name: "a vCenter that nobody serves", msg: nats.Msg{Subject: "guestflow.requests.other.vm-42",
			Data: request("1")}, none: true},
		{name: "more tokens than the VM", msg: nats.Msg{Subject: "guestflow.requests.lab.vm-42.x", Data: request("1")},
			none: true},
		{name: "taken", msg: nats.Msg{Subject: subject, Data: request("1")}},
		{name: "too large by its headers", msg: nats.Msg{Subject: subject, Data: request("2"),
			Header: nats.Header{"X": {strings.Repeat("x", 256<<10)}}},
			code: stream.CodeMessageTooLarge},
		{name: "too large by its data", msg: nats.Msg{Subject: subject, Data: make([]byte, 256<<10+1)},
			code: stream.CodeMessageTooLarge},
		{name: "the VM's second", msg: nats.Msg{Subject: subject, Data: request("3")}},
		{name: "the VM's third", msg: nats.Msg{Subject: subject, Data: request("4")}, code: stream.CodeSubjectFull},
		{name: "another VM", msg: nats.Msg{Subject: "guestflow.requests.lab.vm-43", Data: request("5")}},
	} { // one after the other: the queue fills
		_, err := s.js.PublishMsg(testContext(t), &tt.msg, jetstream.WithRetryAttempts(0))
		var api *jetstream.APIError
		switch {
		case tt.none:
			if !errors.Is(err, jetstream.ErrNoStreamResponse) {
				t.Errorf("%s: %v", tt.name, err)
			}
		case tt.code != 0:
			if !errors.As(err, &api) || api.ErrorCode != tt.code {
				t.Errorf("%s: %v, want %d", tt.name, err, tt.code)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A cancel that came too late is told to its publisher, and is no dead letter.
func TestNothingToCancelIsNoDeadLetter(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	m := stream.RefusedMessage{VCenter: "lab", VM: "vm-1", Ref: events.RequestRef{Source: "/test", ID: "c1"},
		Attrs: testAttrs, Seq: 7,
		Subject: "guestflow.cancels.lab.vm-1"}
	if err := s.conn.Reject(testContext(t), m, &events.RejectError{Code: events.NothingToCancel,
		Message: "it has ended"}); err != nil {
		t.Fatal(err)
	}
	if n := len(s.stored(t, events.DeadlettersStream)); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	told := s.stored(t, events.EventsStream)
	if len(told) != 1 {
		t.Fatalf("%d rejections", len(told))
	}
	attrs, run := checkEvent(t, told[0].Header, told[0].Data)
	if attrs["id"] != "rejected.7" || attrs["causationid"] != testAttrs.CausationID || run.Error == nil ||
		run.Error.Code != events.NothingToCancel ||
		run.Error.Retryable ||
		run.Request.ID != "c1" || run.ID != "" || run.N != 0 {
		t.Errorf("rejection %v: %s", attrs, told[0].Data)
	}
}

// Whatever a refused message has too much of, it is told, kept as far as the server takes it, and not handed out for
// ever.
func TestRefusedMessagesThatAreLarge(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	long := strings.Repeat("x", 65<<10)
	for name, tt := range map[string]struct {
		m    stream.RefusedMessage
		why  events.RejectError
		kept func(h nats.Header, data []byte) bool
	}{
		"headers": {
			m: stream.RefusedMessage{Header: nats.Header{"A": {"small"}, "Large": {long[:64000]}, "Nats-Msg-Id": {"x"}},
				Data: []byte("{}")},
			kept: func(h nats.Header, data []byte) bool {
				return h.Get("A") == "small" && h.Get("Guestflow-Original-Nats-Msg-Id") == "x" &&
					h.Get("Guestflow-Dropped-Header") == "Large" && string(data) == "{}"
			},
		},
		"many headers": {
			m: stream.RefusedMessage{Header: func() nats.Header {
				h := nats.Header{}
				for i := range 3000 {
					h[fmt.Sprintf("X-%d", i)] = []string{"0123456789"}
				}
				return h
			}(), Data: []byte("{}")},
			kept: func(h nats.Header, data []byte) bool { return len(h) > 500 && string(data) == "{}" },
		},
		"the name of what is wrong": {
			m: stream.RefusedMessage{Data: []byte("{}")}, why: events.RejectError{Field: long, Withhold: true},
			kept: func(h nats.Header, data []byte) bool {
				return len(h.Get("Guestflow-Path")) < 1<<10 &&
					len(data) == 0
			},
		},
		"data next to the limit of the server": {
			m: stream.RefusedMessage{Data: make([]byte, 1<<20)},
			kept: func(h nats.Header, data []byte) bool {
				return len(data) == 0 &&
					h.Get("Guestflow-Size") == "1048576"
			},
		},
	} {
		vm := "vm-" + strings.ReplaceAll(name, " ", "-")
		tt.m.VCenter, tt.m.VM, tt.m.Seq, tt.m.Subject = "lab", vm, uint64(len(name)), events.RequestSubject("lab", vm)
		tt.why.Code, tt.why.Message = events.InvalidRequest, "is wrong"
		if err := s.conn.Reject(testContext(t), tt.m, &tt.why); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		letters, err := s.js.Stream(testContext(t), events.DeadlettersStream)
		if err != nil {
			t.Fatal(err)
		}
		letter, err := letters.GetLastMsgForSubject(testContext(t), events.DeadletterSubject("lab", vm))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !tt.kept(letter.Header, letter.Data) {
			t.Errorf("%s: kept %d headers, %d bytes, %.200v", name, len(letter.Header), len(letter.Data), letter.Header)
		}
		journal, err := s.js.Stream(testContext(t), events.EventsStream)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := journal.GetLastMsgForSubject(testContext(t), events.RejectionSubject("lab", vm)); err != nil {
			t.Errorf("%s: its publisher was not told: %v", name, err)
		}
	}
}
