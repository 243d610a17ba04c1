package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

const (
	// fullFor is how long a full queue is tried again: right after a run ended its place is free some milliseconds later.
	fullFor   = time.Second
	fullPause = 100 * time.Millisecond
)

// Publish has the stream store a message, and returns its sequence there. An error says what to do.
func (c *Client) Publish(ctx context.Context, m *Message) (seq uint64, err error) {
	ack, err := c.publish(ctx, m.Subject, m.Header, m.Data)
	if err != nil {
		return 0, c.explain(ctx, m, err)
	}
	if ack.Duplicate {
		if err := c.own(ctx, m, ack.Sequence); err != nil {
			return 0, err
		}
	}
	return ack.Sequence, nil
}

// own reports whether what the stream takes a message for the repeat of is this very message: the header Nats-Msg-Id, by which it does, is shared by all
// publishers of a vCenter.
func (c *Client) own(ctx context.Context, m *Message, seq uint64) error {
	stream := events.RequestsStream(m.VCenter)
	why := fmt.Sprintf("it is not stored: the stream %s takes it for a repeat of message %d, which had the same %s (%q) within two minutes", stream, seq,
		jetstream.MsgIDHeader, m.Header.Get(jetstream.MsgIDHeader))
	cure := fmt.Sprintf("send it without %s, or with one made of source, id and VM", jetstream.MsgIDHeader)
	switch s, err := c.get(ctx, stream, map[string]any{"seq": seq}); {
	case err != nil:
		return fmt.Errorf("%s, and that one cannot be looked at (%w): %s", why, err, cure)
	case s == nil:
		if last, err := c.Last(ctx, m.VCenter, m.VM); err == nil && last != nil && last.Run.ID == m.Run {
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
		ack, err := try(ctx, c, func(ctx context.Context) (*jetstream.PubAck, error) {
			return c.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Header: h, Data: data})
		})
		if codeOf(err) != stream.CodeSubjectFull || time.Since(began) > fullFor {
			return ack, err
		}
		select {
		case <-time.After(fullPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// codeOf is the err_code of the JetStream API; 0 where err is no answer of it.
func codeOf(err error) int {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return int(api.ErrorCode)
	}
	return 0
}

// explain says what an answer to a publish means, and the way out.
func (c *Client) explain(ctx context.Context, m *Message, err error) error {
	again := "send it again: what is stored twice is one run"
	if m.Ref.ID != "" {
		again = fmt.Sprintf("send it again with --source %s --id %s: what is stored twice is one run", m.Ref.Source, m.Ref.ID)
	}
	var refused *PermissionError
	switch code := codeOf(err); {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("nobody serves vCenter %s on this NATS: no stream takes %s. %s", m.VCenter, m.Subject, c.served(ctx))
	case code == stream.CodeSubjectFull && strings.Contains(err.Error(), "per subject"):
		return fmt.Errorf("%s has as many unfinished requests as it may have (GUESTFLOW_QUEUE_PER_VM): wait until one has ended, or cancel one; "+
			"guestflow status %s --vcenter %s shows them", m.VM, m.VM, m.VCenter)
	case code == stream.CodeSubjectFull:
		return fmt.Errorf("the stream %s is full: raise its limits, or wait: %w", events.RequestsStream(m.VCenter), err)
	case code == stream.CodeMessageTooLarge, errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%d bytes are too large: a request may have %d, its headers included, and the server's max_payload must allow it", len(m.Data), maxMessage)
	case stream.NoRoom(err):
		return fmt.Errorf("JetStream has no storage left, and the %s is not stored (%w): its administrator has to raise max_file_store in the server's configuration, "+
			"or the account's limit, or remove what is not needed; then %s", m.what(), err, again)
	case errors.Is(err, errNoAnswer):
		return fmt.Errorf("%w to the publish on %s: it is not known whether it was stored; %s. Where that repeats itself, see guestflow doctor", err, m.Subject, again)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w: guestflow needs JetStream, see guestflow doctor", err)
	case errors.Is(err, nats.ErrDisconnected), errors.Is(err, ErrAway), errors.Is(err, nats.ErrConnectionReconnecting):
		return fmt.Errorf("NATS went away at the publish: %w; %s", err, again)
	}
	return fmt.Errorf("publish on %s: %w", m.Subject, err)
}

// served says which vCenters have a service, as far as this user may know.
func (c *Client) served(ctx context.Context) string {
	switch names, err := c.VCenters(ctx); {
	case err != nil:
		return "Is --vcenter spelled as in the service's GUESTFLOW_VCENTERS, and has the service started?"
	case len(names) == 0:
		return "No service has started on it yet"
	default:
		return "Served are: " + strings.Join(names, ", ")
	}
}

// VCenters are the names of the vCenters that have a requests stream.
func (c *Client) VCenters(ctx context.Context) ([]string, error) {
	return try(ctx, c, func(ctx context.Context) ([]string, error) {
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

// refOf is the source and id of a message that stands where m was to stand.
func refOf(m *Message, s *stream.Stored) events.RequestRef {
	if m.Cancel {
		c, _ := events.DecodeCancel(m.VCenter, s.Subject, s.Header, s.Data) // also of one that is refused for something else
		return c.Ref
	}
	r, _ := events.DecodeRequest(m.VCenter, s.Subject, s.Header, s.Data)
	return r.Ref
}

// what a message is, for an error.
func (m *Message) what() string {
	if m.Cancel {
		return "cancel"
	}
	return "request"
}
