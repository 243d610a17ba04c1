package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// jetStore is a Store on a JetStream stream.
type jetStore struct {
	conn   *Conn
	stream string
}

// Publish stores one message, with a single attempt: nats.go's own retries would hide how often it was sent.
func (s *jetStore) Publish(ctx context.Context, m Message) (Ack, error) {
	msg := &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}
	ack, err := s.conn.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(s.stream), jetstream.WithRetryAttempts(0))
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		return Ack{}, fmt.Errorf("no stream listens on %s: %w", m.Subject, err)
	}
	if err != nil {
		return Ack{}, storeError(err)
	}
	return Ack{Sequence: ack.Sequence, Duplicate: ack.Duplicate}, nil
}

// LastBySubject asks the stream's leader: the direct API, which any replica answers, was older than its caller's own
// append in 2 of 100 reads.
func (s *jetStore) LastBySubject(ctx context.Context, filter string) (*Stored, error) {
	return s.get(ctx, map[string]any{"last_by_subj": filter})
}

// NextBySubject asks the stream's leader.
func (s *jetStore) NextBySubject(ctx context.Context, filter string, from uint64) (*Stored, error) {
	return s.get(ctx, map[string]any{"seq": max(from, 1), "next_by_subj": filter})
}

// CompleteSince asks the stream's leader.
func (s *jetStore) CompleteSince(ctx context.Context) (time.Time, error) {
	stream, err := s.conn.js.Stream(ctx, s.stream)
	if err != nil {
		return time.Time{}, err
	}
	since := stream.CachedInfo().Created
	if age := stream.CachedInfo().Config.MaxAge; age > 0 {
		if oldest := time.Now().Add(-age); oldest.After(since) {
			since = oldest
		}
	}
	return since, nil
}

// get is $JS.API.STREAM.MSG.GET: nats.go does not offer it for a stream that allows direct gets. Source: NATS JetStream
// wire API reference, io.nats.jetstream.api.v1.stream_msg_get_request and its response.
func (s *jetStore) get(ctx context.Context, query map[string]any) (*Stored, error) {
	ask, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	msg, err := s.conn.nc.RequestWithContext(ctx, s.conn.apiPrefix+"STREAM.MSG.GET."+s.stream, ask)
	if err != nil {
		return nil, fmt.Errorf("read from stream %s: %w", s.stream, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return nil, fmt.Errorf("read from stream %s: %w", s.stream, err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case answer.Error != nil:
		return nil, fmt.Errorf("read from stream %s: %w", s.stream, storeError(answer.Error))
	case answer.Message == nil:
		return nil, fmt.Errorf("read from stream %s: the answer holds no message", s.stream)
	}
	stored := &Stored{Subject: answer.Message.Subject, Seq: answer.Message.Seq, At: answer.Message.Time,
		Data: answer.Message.Data}
	if len(answer.Message.Header) > 0 {
		// Headers that are none are no reason to ask again: as with a delivery the message has none then, and whoever
		// reads it refuses it.
		stored.Header, _ = nats.DecodeHeadersMsg(answer.Message.Header)
	}
	return stored, nil
}

// storeError turns the server's refusal into a StoreError; everything else stays as it is.
func storeError(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return &StoreError{Code: int(api.ErrorCode), Description: api.Description}
	}
	return err
}

// appendHeader are the headers of a compare-and-append: id, and that the newest message under filter has the sequence
// after (0: there is none).
func appendHeader(h nats.Header, id string, after uint64, filter string) nats.Header {
	h.Set(jetstream.MsgIDHeader, id)
	h.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(after, 10))
	h.Set(jetstream.ExpectedLastSubjSeqSubjHeader, filter)
	return h
}
