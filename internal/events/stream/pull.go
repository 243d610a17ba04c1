package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

const (
	pullExpires   = 30 * time.Second
	pullHeartbeat = 5 * time.Second // how often an idle server says that it still has our pull request

	// pullBatch is how many messages one pull request asks for. The server hands out no more than MaxAckPending allows
	// to all replicas together, and each message that comes is started at once.
	pullBatch = 256

	// drainWait is how long what was on its way when pulling stopped is waited for.
	drainWait = 2 * time.Second

	// ackReply begins the reply subject of every message that a stream delivers, and of nothing else.
	ackReply = "$JS.ACK."
)

// delivery is one delivery of a message by the stream. Its answers go to the reply subject that this delivery came
// with.
type delivery struct {
	*nats.Msg
	nc            *nats.Conn
	meta          *nats.MsgMetadata
	streamCreated time.Time // when the stream was made; zero where that is not known
}

func (d delivery) ack(ctx context.Context) error {
	_, err := d.nc.RequestWithContext(ctx, d.Reply, []byte("+ACK"))
	return err
}

func (d delivery) nak() error        { return d.nc.Publish(d.Reply, []byte("-NAK")) }
func (d delivery) inProgress() error { return d.nc.Publish(d.Reply, []byte("+WPI")) }

func (d delivery) nakIn(after time.Duration) error {
	return d.nc.Publish(d.Reply, fmt.Appendf(nil, `-NAK {"delay": %d}`, after.Nanoseconds()))
}

// pullRequest is one request for messages: the stream answers on an inbox of its own, with messages, and with words
// about the request itself.
//
// nats.go's consumers tell the two apart by what a message holds: one without a body and with a header Status is taken
// for a word of the server. But anybody who may publish a request can store such a message. Here the reply subject
// tells them apart, which the server alone writes.
type pullRequest struct {
	sub     *nats.Subscription
	heard   chan struct{} // something came
	ended   chan error    // it gives no more: nil, or why one has to look before the next one
	drained chan struct{} // all that came was handed on
}

// requestPull asks for up to batch messages, each of which is handed to take.
func (c *consumer) requestPull(batch int) (*pullRequest, error) {
	nc := c.conn.nc
	p := &pullRequest{heard: make(chan struct{}, 1), ended: make(chan error, 1), drained: make(chan struct{})}
	left := batch
	sub, err := nc.Subscribe(nc.NewInbox(), func(m *nats.Msg) {
		signal(p.heard)
		if !strings.HasPrefix(m.Reply, ackReply) {
			if err, over := pullStatus(m.Header.Get("Status"), m.Header.Get("Description")); over {
				p.end(err)
			}
			return
		}
		c.receive(m)
		if left--; left == 0 {
			p.end(nil)
		}
	})
	if err != nil {
		return nil, err
	}
	sub.SetClosedHandler(func(string) { close(p.drained) })
	p.sub = sub
	ask, err := json.Marshal(map[string]any{"batch": batch, "expires": pullExpires, "idle_heartbeat": pullHeartbeat})
	if err == nil {
		err = sub.SetPendingLimits(-1, -1) // the server holds MaxAckPending
	}
	if err == nil {
		err = nc.PublishRequest(c.conn.apiPrefix+"CONSUMER.MSG.NEXT."+events.RequestsStream(c.vcenter)+"."+c.durable,
			sub.Subject, ask)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// errSilent says that a pull request has no answer, not even that there is nothing.
var errSilent = errors.New(
	"pull requests are not answered: is CONSUMER.MSG.NEXT permitted to the service's user, and " +
		"has the consumer a leader")

// end is told once.
func (p *pullRequest) end(err error) {
	select {
	case p.ended <- err:
	default:
	}
}

// close ends the subscription; what is on its way already is still handed to take.
func (p *pullRequest) close() {
	if err := p.sub.Drain(); err != nil {
		_ = p.sub.Unsubscribe() // the connection is closed: nothing is on its way
	}
}

// pullStatus is what the server says about a pull request: over, it gives no more, and err says what has to be looked
// at first. Source: nats-server, server/consumer.go; NATS by Example; ADR-42 for 423.
func pullStatus(status, description string) (err error, over bool) {
	words := strings.ToLower(description)
	switch {
	case status == "100": // it is there, and has nothing
		return nil, false
	case status == "404", status == "408", status == "409" && strings.Contains(words, "batch completed"):
		return nil, true
	case status == "409" && strings.Contains(words, "consumer deleted"):
		return jetstream.ErrConsumerDeleted, true
	case status == "503":
		return nats.ErrNoResponders, true
	}
	return fmt.Errorf("the server ends the pull request: %s %s", status, description), true
}

// pull takes messages, with one request after the other, until ctx ends, which is no error, or the durable has to be
// looked for again. answered is called when the server answers the first of them.
func (c *consumer) pull(ctx context.Context, changed <-chan nats.Status, answered func()) error {
	answered = sync.OnceFunc(answered)
	for ctx.Err() == nil {
		p, err := c.requestPull(pullBatch)
		if err != nil {
			return err
		}
		again, err := c.awaitPull(ctx, p, changed, answered)
		p.close()
		if ctx.Err() != nil {
			t := time.NewTimer(drainWait)
			defer t.Stop()
			select {
			case <-p.drained: // what was on its way is given back by take
			case <-t.C:
			}
			return nil
		}
		if err != nil || !again {
			return err
		}
	}
	return nil
}

// awaitPull waits until a pull request is over. again: the next one may follow at once.
func (c *consumer) awaitPull(
	ctx context.Context, p *pullRequest, changed <-chan nats.Status, answered func(),
) (again bool, err error) {
	silent := time.NewTimer(2 * pullHeartbeat)
	defer silent.Stop()
	look := time.NewTimer(c.ackWaitMaxAge())
	defer look.Stop()
	for {
		select {
		case <-p.heard:
			answered()
			silent.Reset(2 * pullHeartbeat)
		case err := <-p.ended:
			return err == nil, err
		case <-silent.C: // a pull that meets no consumer, or that is not permitted, is not answered at all
			if !c.conn.nc.IsConnected() {
				return false, nil
			}
			return false, errSilent
		case <-look.C:
			if err := c.readAckWait(ctx); errors.Is(err, jetstream.ErrConsumerNotFound) ||
				errors.Is(err, jetstream.ErrStreamNotFound) {
				return false, err
			}
			look.Reset(c.ackWaitMaxAge())
		case <-changed: // connected again: the server that had the request may be gone
			return false, nil
		case <-ctx.Done():
			return false, nil
		}
	}
}
