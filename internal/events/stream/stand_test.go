package stream_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// A refusal that leans on the VM's journal is told only while that stands where it was read: else the message comes
// again, and is looked at anew.
func TestRefusalLeansOnTheJournal(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	j := stream.NewJournal(s.conn, events.Structured)
	first, err := j.Append(testContext(t), 0, "id-1", events.RunAccepted, testAttrs, run("vm-1", 1))
	if err != nil {
		t.Fatal(err)
	}
	second, err := j.Append(testContext(t), first, "id-2", events.RunResumed, testAttrs, run("vm-1", 2))
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int32
	s.consume(t, func(_ context.Context, r *events.Request) error {
		at := first // what a replica that is behind shows
		switch {
		case r.VM != "vm-1":
			at = 0
		case calls.Add(1) > 1:
			at = second
		}
		return &events.RejectError{Code: events.Expired, Message: "too late", IfLastSeq: &at}
	})
	s.request(t, "vm-1", "r")
	s.gone(t, 0)
	if n := calls.Load(); n != 2 {
		t.Errorf("handled %d times", n)
	}
	s.request(t, "vm-2", "r")
	s.gone(t, 0)
	stored := 0
	for _, m := range s.stored(t, events.EventsStream) {
		if strings.HasPrefix(m.Subject, "guestflow.rejections.") {
			stored++
		}
	}
	if stored != 2 {
		t.Errorf("%d rejections are stored", stored)
	}
	// The owner of the run that stands there is not disturbed.
	if _, err := j.Append(testContext(t), second, "id-3", events.RunWaiting, testAttrs, run("vm-1", 3)); err != nil {
		t.Error(err)
	}
}

// A request that this build cannot read is refused, unless it is that of the run which is under way: another version of
// guestflow began that one, and it goes on with it. It is given back until the run has ended.
func TestUnreadableRequestOfALiveRun(t *testing.T) {
	t.Parallel()
	s := newStation(t, nil)
	s.conn.SetPatience(time.Minute, 3*time.Second, time.Minute)
	j := stream.NewJournal(s.conn, events.Structured)
	mine := run("vm-1", 1)
	mine.ID = events.RunID("lab", "vm-1", events.RequestRef{Source: "/test", ID: "mine"})
	seq, err := j.Append(testContext(t), 0, "id-1", events.RunAccepted, testAttrs, mine)
	if err != nil {
		t.Fatal(err)
	}
	s.consume(t, func(_ context.Context, r *events.Request) error { return errors.New("handled: " + r.Ref.ID) })
	unreadable := map[string]any{"vm": "vm-1", "ofALaterVersion": true}
	rejected := s.heard(t, events.RejectionSubject("lab", "vm-1"))
	s.publish(t, events.KindRequested, "vm-1", "mine", unreadable)
	until(t, "it is given back", func() bool {
		info := s.consumer(t)
		return info.NumAckPending == 1 && info.Delivered.Consumer > 0
	})
	s.publish(t, events.KindRequested, "vm-1", "another's", unreadable)
	receive(t, rejected)
	s.gone(t, 1)
	select {
	case <-rejected:
		t.Error("the request of the run under way was refused")
	default:
	}
	mine.N, mine.Status = 2, events.StatusSucceeded
	if _, err := j.Append(testContext(t), seq, "id-2", events.RunSucceeded, testAttrs, mine); err != nil {
		t.Fatal(err)
	}
	receive(t, rejected) // some seconds later
	s.gone(t, 0)
}
