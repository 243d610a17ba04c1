package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

const (
	// fullRetryTime is how long a publish to a full queue is repeated: the place of a run that has just ended becomes
	// free some milliseconds later.
	fullRetryTime  = time.Second
	fullRetryPause = 100 * time.Millisecond
)

// Publish stores a message in its stream, and returns its sequence there. The error says what to do.
func (c *Client) Publish(ctx context.Context, m *Message) (seq uint64, err error) {
	ack, err := c.publish(ctx, m.Subject, m.Header, m.Data)
	if err != nil {
		return 0, c.explain(ctx, m, err)
	}
	if ack.Duplicate {
		if err := c.confirmOwn(ctx, m, ack.Sequence); err != nil {
			return 0, err
		}
	}
	return ack.Sequence, nil
}

// confirmOwn returns an error unless the stored message at seq, which JetStream takes m for a repeat of, is m itself.
//
// JetStream recognises a repeat by the header Nats-Msg-Id, and all publishers of a vCenter share the stream: another
// one may have used the same ID.
func (c *Client) confirmOwn(ctx context.Context, m *Message, seq uint64) error {
	stream := events.RequestsStream(m.VCenter)
	why := fmt.Sprintf("it is not stored: the stream %s takes it for a repeat of message %d, "+
		"which had the same %s (%q) within two minutes",
		stream, seq, jetstream.MsgIDHeader, m.Header.Get(jetstream.MsgIDHeader))
	cure := fmt.Sprintf("send it without %s, or with one made of source, id and VM", jetstream.MsgIDHeader)

	switch s, err := c.getMessage(ctx, stream, map[string]any{"seq": seq}); {
	case err != nil:
		return fmt.Errorf("%s, and that message cannot be read (%w): %s", why, err, cure)
	case s == nil:
		last, err := c.LastEvent(ctx, m.VCenter, m.VM)
		if err == nil && last != nil && last.Run.ID == m.Run {
			return nil
		}
		return fmt.Errorf("%s and is finished: %s", why, cure)
	case s.Subject != m.Subject || refOf(m, s) != m.Ref:
		return fmt.Errorf("%s and is another one: %s", why, cure)
	}
	return nil
}

func (c *Client) publish(ctx context.Context, subject string, h nats.Header, data []byte) (*jetstream.PubAck, error) {
	for began := time.Now(); ; {
		ack, err := call(ctx, c, func(ctx context.Context) (*jetstream.PubAck, error) {
			return c.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Header: h, Data: data})
		})
		if apiCode(err) != stream.CodeSubjectFull || time.Since(began) > fullRetryTime {
			return ack, err
		}
		if err := backoff.Sleep(ctx, fullRetryPause); err != nil {
			return nil, err
		}
	}
}

// apiCode is the err_code of a response of the JetStream API; 0 if err is not one.
func apiCode(err error) int {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return int(api.ErrorCode)
	}
	return 0
}

// explain says what the error of a publish means, and what to do.
func (c *Client) explain(ctx context.Context, m *Message, err error) error {
	again := "send it again: what is stored twice is one run"
	if m.Ref.ID != "" {
		again = fmt.Sprintf("send it again with --source %s --id %s: what is stored twice is one run",
			m.Ref.Source, m.Ref.ID)
	}
	var refused *PermissionError
	switch code := apiCode(err); {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("no service for vCenter %s has started on this NATS: there is no stream for %s. %s",
			m.VCenter, m.Subject, c.servedVCenters(ctx))
	case code == stream.CodeSubjectFull && strings.Contains(err.Error(), "per subject"):
		return fmt.Errorf("%s has as many unfinished requests as it may have (GUESTFLOW_QUEUE_PER_VM): "+
			"wait until one has ended, or cancel one; guestflow status %s --vcenter %s shows them",
			m.VM, m.VM, m.VCenter)
	case code == stream.CodeSubjectFull:
		return fmt.Errorf("the stream %s is full: raise its limits, or wait: %w", events.RequestsStream(m.VCenter), err)
	case code == stream.CodeMessageTooLarge, errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%d bytes are too large: a request may have %d, its headers included, "+
			"and the server's max_payload must allow it", len(m.Data), maxMessage)
	case stream.NoRoom(err):
		return fmt.Errorf("JetStream has no storage left, and the %s is not stored (%w): "+
			"its administrator has to raise max_file_store in the server's configuration, or the account's limit, "+
			"or remove what is not needed; then %s", m.noun(), err, again)
	case errors.Is(err, errNoResponse):
		return fmt.Errorf("%w to the publish on %s: it is not known whether it was stored; %s. "+
			"If that repeats itself, see guestflow doctor", err, m.Subject, again)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w: guestflow needs JetStream, see guestflow doctor", err)
	case errors.Is(err, nats.ErrDisconnected), errors.Is(err, ErrAway), errors.Is(err, nats.ErrConnectionReconnecting):
		return fmt.Errorf("NATS went away during the publish: %w; %s", err, again)
	}
	return fmt.Errorf("publish on %s: %w", m.Subject, err)
}

// servedVCenters says which vCenters have a service, if this user may ask.
func (c *Client) servedVCenters(ctx context.Context) string {
	switch names, err := c.VCenters(ctx); {
	case err != nil:
		return "Is --vcenter spelled as in the service's GUESTFLOW_VCENTERS, and has the service started?"
	case len(names) == 0:
		return "No service has started on it yet"
	default:
		return "The vCenters with a service are: " + strings.Join(names, ", ")
	}
}

// VCenters are the names of the vCenters that have a requests stream.
func (c *Client) VCenters(ctx context.Context) ([]string, error) {
	return call(ctx, c, func(ctx context.Context) ([]string, error) {
		var names []string
		list := c.js.StreamNames(ctx, jetstream.WithStreamListSubject("guestflow.requests.>"))
		for name := range list.Name() {
			if vcenter, ok := strings.CutPrefix(name, events.RequestsStream("")); ok {
				names = append(names, vcenter)
			}
		}
		return names, list.Err()
	})
}

// refOf is the source and id of a stored message of m's kind.
func refOf(m *Message, s *stream.Stored) events.RequestRef {
	if m.Cancel {
		c, _ := events.DecodeCancel(m.VCenter, s.Subject, s.Header, s.Data) // a refused message has them too
		return c.Ref
	}
	r, _ := events.DecodeRequest(m.VCenter, s.Subject, s.Header, s.Data)
	return r.Ref
}

// noun is what an error calls the message.
func (m *Message) noun() string {
	if m.Cancel {
		return "cancel"
	}
	return "request"
}
