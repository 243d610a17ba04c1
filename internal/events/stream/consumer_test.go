package stream

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// A message that comes when all that was taken is waited for already is given back, and starts nothing.
func TestTakenTooLate(t *testing.T) {
	t.Parallel()
	nc, err := nats.Connect(natstest.StartServer(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	reply := fmt.Sprintf("$JS.ACK.GUESTFLOW_REQUESTS_lab.guestflow.1.7.7.%d.0", time.Now().UnixNano())
	answers, err := nc.SubscribeSync(reply)
	if err != nil {
		t.Fatal(err)
	}
	c := &consumer{conn: &Conn{nc: nc}, inFlight: map[uint64]*inFlight{}, drained: true, log: zerolog.Nop()}
	c.handlers.Wait()
	c.receive(&nats.Msg{Subject: "guestflow.requests.lab.vm-1", Reply: reply, Sub: answers})
	if len(c.inFlight) != 0 {
		t.Error("it is in flight")
	}
	answer, err := answers.NextMsg(10 * time.Second)
	if err != nil || string(answer.Data) != "-NAK" {
		t.Errorf("answer %v, %v", answer, err)
	}
}

// What panicked here once, and ended in another process, is not remembered for ever; what goes on panicking is refused.
func TestPanicsAreForgotten(t *testing.T) {
	t.Parallel()
	c := &consumer{panics: map[identity]panicked{}, log: zerolog.Nop()}
	for n := range uint64(100) {
		c.panics[identity{seq: n}] = panicked{times: 1, last: time.Now().Add(-panicsKept - time.Second)}
	}
	h := &inFlight{identity: identity{seq: 1000}}
	for n := 1; n <= maxPanics; n++ {
		err := c.asRefusal(h, &panicError{value: "boom"})
		var reject *events.RejectError
		if refused := errors.As(err, &reject); refused != (n == maxPanics) {
			t.Errorf("panic %d: %v", n, err)
		}
	}
	if len(c.panics) != 0 {
		t.Errorf("%d are remembered", len(c.panics))
	}
}
