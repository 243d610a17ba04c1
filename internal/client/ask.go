package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// Standing is how a VM stands: its run after its last event, and its requests that are not finished.
type Standing struct {
	VCenter string
	VM      string
	Last    *Event // nil where the journal holds nothing of the VM
	// Unreadable is why Last is nil although the journal holds something; of the fleet alone.
	Unreadable *UnreadableError
	// Unfinished is how many requests the VM has in the requests stream, the one in hand included, and Limit how many it may have. -1: not known.
	Unfinished, Limit int
	Queue             []events.QueuedRequest // of one VM alone: those requests, oldest first
}

// Last is the newest event of a VM; nil where it has none.
func (c *Client) Last(ctx context.Context, vcenter, vm string) (*Event, error) {
	s, err := c.lastOn(ctx, events.EventsStream, events.History(vcenter, vm))
	if err != nil || s == nil {
		return nil, err
	}
	e, err := decode(s.Subject, s.Header, s.Data)
	if err != nil {
		return nil, &UnreadableError{Seq: s.Seq, Err: err}
	}
	e.Seq = s.Seq
	return e, nil
}

// UnreadableError says that the last message of a VM's journal was not written by guestflow: the VM stands still until it is removed.
type UnreadableError struct {
	Seq uint64 // in the events stream
	Err error
}

// Error says how the VM gets going again.
func (e *UnreadableError) Error() string {
	return fmt.Sprintf("event %d cannot be read, so guestflow did not write it; the VM goes on when it is removed: nats stream rmm %s %d: %v",
		e.Seq, events.EventsStream, e.Seq, e.Err)
}

// Unwrap gives why it cannot be read.
func (e *UnreadableError) Unwrap() error { return e.Err }

// Began is the sequence in the events stream at which the VM's run in hand was accepted; 0 where no run is in hand.
func (c *Client) Began(ctx context.Context, vcenter, vm string) (uint64, error) {
	e, err := c.Last(ctx, vcenter, vm)
	if err != nil || e == nil || e.Last() {
		return 0, err
	}
	s, err := c.lastOn(ctx, events.EventsStream, events.EventSubject(vcenter, vm, events.RunAccepted))
	if err != nil || s == nil {
		return e.Seq, err
	}
	return s.Seq, nil
}

// One is how one VM stands. What this user may not read of the requests stream is left out.
func (c *Client) One(ctx context.Context, vcenter, vm string) (*Standing, error) {
	s := &Standing{VCenter: vcenter, VM: vm, Unfinished: -1, Limit: -1}
	var err error
	if s.Last, err = c.Last(ctx, vcenter, vm); err != nil {
		return nil, err
	}
	depths, limit, err := c.Queues(ctx, vcenter)
	var refused *PermissionError
	if errors.As(err, &refused) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.Unfinished, s.Limit = depths[vm], limit
	if s.Unfinished > 0 {
		if s.Queue, err = c.queue(ctx, vcenter, vm); err != nil && !errors.As(err, &refused) {
			return nil, err
		}
	}
	return s, nil
}

// VMs are the VMs of a vCenter that have a run in the journal, in no order.
func (c *Client) VMs(ctx context.Context, vcenter string) ([]string, error) {
	info, err := c.streamInfo(ctx, events.EventsStream, "guestflow.events."+vcenter+".*.run.*")
	if err != nil {
		return nil, err
	}
	vms := map[string]bool{}
	for subject := range info.State.Subjects {
		vms[strings.Split(subject, ".")[3]] = true // guestflow.events.<vcenter>.<vm>.run.<verb>
	}
	return slices.Collect(maps.Keys(vms)), nil
}

// Fleet is how all VMs of a vCenter stand, by name.
func (c *Client) Fleet(ctx context.Context, vcenter string) ([]*Standing, error) {
	known, err := c.VMs(ctx, vcenter)
	if err != nil {
		return nil, err
	}
	depths, limit, err := c.Queues(ctx, vcenter)
	var refused *PermissionError
	if errors.As(err, &refused) {
		limit = -1
	} else if err != nil {
		return nil, err
	}
	for vm := range depths {
		known = append(known, vm)
	}
	slices.Sort(known)
	var all []*Standing
	for _, vm := range slices.Compact(known) {
		s := &Standing{VCenter: vcenter, VM: vm, Unfinished: depths[vm], Limit: limit}
		if limit < 0 {
			s.Unfinished = -1
		}
		all = append(all, s)
	}
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for _, s := range all {
		group.Go(func() (err error) {
			s.Last, err = c.Last(asking, vcenter, s.VM)
			if errors.As(err, &s.Unreadable) { // the others stand as they stand
				return nil
			}
			return err
		})
	}
	return all, group.Wait()
}

// Queues are the numbers of unfinished requests by VM, and how many a VM may have.
func (c *Client) Queues(ctx context.Context, vcenter string) (depths map[string]int, limit int, err error) {
	info, err := c.streamInfo(ctx, events.RequestsStream(vcenter), events.RequestSubject(vcenter, "*"))
	if err != nil {
		return nil, -1, err
	}
	depths = map[string]int{}
	for subject, n := range info.State.Subjects {
		depths[subject[strings.LastIndexByte(subject, '.')+1:]] = int(min(n, 1<<20))
	}
	return depths, int(info.Config.MaxMsgsPerSubject), nil
}

// queue are the VM's unfinished requests, oldest first.
func (c *Client) queue(ctx context.Context, vcenter, vm string) (all []events.QueuedRequest, err error) {
	err = c.each(ctx, events.RequestsStream(vcenter), events.RequestSubject(vcenter, vm), func(s *stream.Stored) {
		q := events.QueuedRequest{Seq: s.Seq}
		if r, err := events.DecodeRequest(vcenter, s.Subject, s.Header, s.Data); err == nil {
			q.Ref, q.RunID = r.Ref, r.RunID
		}
		all = append(all, q)
	})
	return all, err
}

// streamInfo tells how a stream is set up, and the server's clock; subjects (may be empty) is a filter over the subjects that are counted.
func (c *Client) streamInfo(ctx context.Context, stream, subjects string) (*jetstream.StreamInfo, error) {
	info, err := patiently(ctx, c, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return nil, err
		}
		if subjects == "" {
			return s.CachedInfo(), nil
		}
		return s.Info(ctx, jetstream.WithSubjectFilter(subjects))
	})
	return info, missing(stream, err)
}

// missing says why there may be no such stream.
func missing(stream string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("there is no stream %s on this NATS: no guestflow service with these names has started here, or NATS_URL, the account or NATS_JS_DOMAIN is another one: guestflow doctor says which", stream)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("stream %s: %w: is JetStream enabled for this account? See guestflow doctor", stream, err)
	}
	var refused *PermissionError
	if errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("stream %s: %w", stream, err)
}

// lastOn is the newest message under a filter; nil where there is none. Any replica answers the direct API, and publishers may use no other; where that is
// not to be had the stream's leader is asked.
func (c *Client) lastOn(ctx context.Context, name, filter string) (*stream.Stored, error) {
	s, err := patiently(ctx, c, func(ctx context.Context) (*stream.Stored, error) {
		m, err := c.nc.RequestWithContext(ctx, c.apiPrefix+"DIRECT.GET."+name+"."+filter, nil)
		if err != nil {
			return nil, err
		}
		return direct(m)
	})
	var refused *PermissionError
	if !errors.As(err, &refused) && !errors.Is(err, nats.ErrNoResponders) {
		return s, missing(name, err)
	}
	s, second := c.get(ctx, name, map[string]any{"last_by_subj": filter})
	if refused != nil && errors.As(second, new(*PermissionError)) {
		return nil, err
	}
	return s, second
}

// direct reads an answer of the direct API. Source: NATS ADR-31.
func direct(m *nats.Msg) (*stream.Stored, error) {
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return nil, nil
	default:
		return nil, fmt.Errorf("%s %s", status, m.Header.Get("Description"))
	}
	seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("an answer without a sequence: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
	if err != nil {
		return nil, fmt.Errorf("an answer without its time: %w", err)
	}
	return &stream.Stored{Subject: m.Header.Get(jetstream.SubjectHeader), Seq: seq, At: at, Header: m.Header, Data: m.Data}, nil
}

// each calls f for every message under a filter, oldest first.
func (c *Client) each(ctx context.Context, name, filter string, f func(*stream.Stored)) error {
	for from := uint64(1); ; {
		s, err := c.get(ctx, name, map[string]any{"seq": from, "next_by_subj": filter})
		if err != nil || s == nil {
			return err
		}
		f(s)
		from = s.Seq + 1
	}
}

// get asks a stream's leader for one message; nil where there is none. Source: NATS JetStream wire API reference,
// io.nats.jetstream.api.v1.stream_msg_get_request and its response.
func (c *Client) get(ctx context.Context, name string, query map[string]any) (*stream.Stored, error) {
	ask, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	m, err := patiently(ctx, c, func(ctx context.Context) (*nats.Msg, error) {
		return c.nc.RequestWithContext(ctx, c.apiPrefix+"STREAM.MSG.GET."+name, ask)
	})
	if err != nil {
		return nil, missing(name, err)
	}
	var answer struct {
		Error   *jetstream.APIError
		Message *struct {
			Subject    string
			Seq        uint64
			Hdrs, Data []byte
			Time       time.Time
		}
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return nil, fmt.Errorf("read the stream %s: %w", name, err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case answer.Error != nil:
		return nil, missing(name, answer.Error)
	case answer.Message == nil:
		return nil, fmt.Errorf("read the stream %s: the answer holds no message", name)
	}
	s := &stream.Stored{Subject: answer.Message.Subject, Seq: answer.Message.Seq, At: answer.Message.Time, Data: answer.Message.Data}
	if len(answer.Message.Hdrs) > 0 {
		s.Header, _ = nats.DecodeHeadersMsg(answer.Message.Hdrs) // headers that are none: the message has none
	}
	return s, nil
}
