package handler

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
)

// backLine is a line whose process had lost NATS until a moment ago.
type backLine struct {
	RequestQueue
	back time.Time
}

func (l backLine) ReconnectedAt() time.Time { return l.back }

// A run's request is delivered to another process while its owner lives: that one leaves the run to its owner, once,
// where the owner was alive just now or where NATS was away; it takes over where it comes again, and at once where
// nothing speaks for the owner.
func TestSpare(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for name, row := range map[string]struct {
		silent  time.Duration // since the owner's last event
		away    bool          // NATS was, until now
		same    bool          // the process has the owner's name: it was restarted
		release bool
		spared  bool
	}{
		"its owner stored something just now":         {silent: 5 * time.Second, spared: true},
		"its owner is silent":                         {silent: 25 * time.Second},
		"its owner is silent, NATS was away":          {silent: 25 * time.Second, away: true, spared: true},
		"it was this very process, before a restart":  {silent: 5 * time.Second, away: true, same: true},
		"its owner gave it back":                      {release: true, away: true},
		"its owner is silent for longer than it runs": {silent: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBriefHarness(t, secrets, func(w *harness) {
				w.settings.AckWait = ackWait
				w.vm.customize = 2 * time.Hour
				req := w.request("order-1",
					`{"timeout":"9h","verify":{"nicsConnected":false},`+only(`"customize":{"timeout":"8h",` +
						spec[1:])[1:])
				owner := w.deliver(req)
				for w.newest("customize.started") == nil {
					<-time.After(time.Second)
				}
				if row.release {
					owner.term()
					w.await(owner)
				}
				<-time.After(row.silent)
				_, h := w.bystander()
				if h.AckWait = ackWait; row.same {
					h.Instance = "pod-1"
				}
				line := backLine{RequestQueue: h.queue}
				if row.away {
					line.back = time.Now()
				}
				h.queue = line
				again, err := w.line.Deliver(req.Seq)
				if err != nil {
					w.t.Fatal(err)
				}
				answers := make(chan error, 1)
				handle := func() { answers <- h.Handle(context.Background(), again) }
				go handle()
				<-time.After(10 * time.Second)
				if spared := w.newest("run.resumed") == nil; spared != row.spared {
					w.t.Errorf("spared: %v", spared)
				}
				if row.spared {
					if err := <-answers; !errors.Is(err, events.ErrFenced) {
						w.t.Errorf("answer %v", err)
					}
					go handle() // it comes again: the owner sends no heartbeat
					<-time.After(10 * time.Second)
					if w.newest("run.resumed") == nil {
						w.t.Error("not taken over when it came again")
					}
				}

				if err := <-answers; err != nil {
					w.t.Errorf("answer %v", err)
				}
				w.line.Remove(req.Seq)
				mustSucceed(w)
				if n := w.last().Owner.Takeovers; n != 1 {
					w.t.Errorf("%d takeovers", n)
				}
			})
		})
	}
}

// Of the runs that were left to their owners no more are remembered than those of the last two ack waits.
func TestSparedAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Settings{AckWait: ackWait, Instance: "pod-1"}, nil, nil, backLine{}, "", zerolog.Nop())
		for n := range uint64(1000) {
			last := &events.Entry{Seq: n + 1, At: time.Now(), Kind: events.CustomizeStarted}
			last.Run.VM, last.Run.Owner = fmt.Sprintf("vm-%d", n), &events.Owner{Instance: "pod-2"}
			if !h.leaveToOwner(last) || h.leaveToOwner(last) {
				t.Fatalf("event %d: not left to its owner once", n)
			}
			<-time.After(time.Second)
		}

		if most := int(2*ackWait/time.Second) + 1; len(h.spared) > most {
			t.Errorf("%d are remembered", len(h.spared))
		}
	})
}
