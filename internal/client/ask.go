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

// VMStatus is the state of a VM: its last event, and its unfinished requests.
type VMStatus struct {
	VCenter string
	VM      string
	Last    *Event // nil if the journal has no event of the VM
	// Unreadable is why Last is nil although the journal has an event. Only ListVMs sets it: Status returns it.
	Unreadable *UnreadableError
	// Unfinished is the number of the VM's requests in the requests stream, the one being worked on included; Limit is
	// how many it may have. -1: not known, because this user may not read the stream.
	Unfinished, Limit int
	Queue             []events.QueuedRequest // those requests, oldest first; only Status sets it
}

// LastEvent is the newest event of a VM; nil if it has none.
func (c *Client) LastEvent(ctx context.Context, vcenter, vm string) (*Event, error) {
	s, err := c.lastMessage(ctx, events.EventsStream, events.History(vcenter, vm))
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

// UnreadableError means that the last message of a VM's journal was not written by guestflow. The VM's requests wait
// until that message is removed.
type UnreadableError struct {
	Seq uint64 // in the events stream
	Err error
}

// Error names the message, and the command that removes it.
func (e *UnreadableError) Error() string {
	return fmt.Sprintf("event %d cannot be read, so guestflow did not write it; "+
		"the VM goes on when it is removed: nats stream rmm %s %d: %v",
		e.Seq, events.EventsStream, e.Seq, e.Err)
}

// Unwrap is why the message cannot be read.
func (e *UnreadableError) Unwrap() error { return e.Err }

// RunStart is the sequence of the event that accepted the VM's current run; 0 if no run is under way.
func (c *Client) RunStart(ctx context.Context, vcenter, vm string) (uint64, error) {
	e, err := c.LastEvent(ctx, vcenter, vm)
	if err != nil || e == nil || e.Last() {
		return 0, err
	}
	s, err := c.lastMessage(ctx, events.EventsStream, events.EventSubject(vcenter, vm, events.RunAccepted))
	if err != nil || s == nil {
		return e.Seq, err
	}
	return s.Seq, nil
}

// Status is the state of one VM. Without permission to read the requests stream, the queue is left out.
func (c *Client) Status(ctx context.Context, vcenter, vm string) (*VMStatus, error) {
	s := &VMStatus{VCenter: vcenter, VM: vm, Unfinished: -1, Limit: -1}
	var err error
	if s.Last, err = c.LastEvent(ctx, vcenter, vm); err != nil {
		return nil, err
	}
	depths, limit, err := c.QueueDepths(ctx, vcenter)
	var refused *PermissionError
	if errors.As(err, &refused) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.Unfinished, s.Limit = depths[vm], limit
	if s.Unfinished > 0 {
		if s.Queue, err = c.queuedRequests(ctx, vcenter, vm); err != nil && !errors.As(err, &refused) {
			return nil, err
		}
	}
	s.dropEnded()
	return s, nil
}

// dropEnded takes the requests whose run has ended out of the queue: their messages are about to leave it.
func (s *VMStatus) dropEnded() {
	if s.Last == nil || !s.Last.Last() {
		return
	}
	all := len(s.Queue)
	s.Queue = slices.DeleteFunc(s.Queue, func(q events.QueuedRequest) bool { return q.RunID == s.Last.Run.ID })
	s.Unfinished -= all - len(s.Queue)
}

// VMsWithRuns are the VMs of a vCenter that have a run in the journal, in no particular order.
func (c *Client) VMsWithRuns(ctx context.Context, vcenter string) ([]string, error) {
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

// ListVMs is the state of all VMs of a vCenter, sorted by managed object ID.
func (c *Client) ListVMs(ctx context.Context, vcenter string) ([]*VMStatus, error) {
	known, err := c.VMsWithRuns(ctx, vcenter)
	if err != nil {
		return nil, err
	}
	depths, limit, err := c.QueueDepths(ctx, vcenter)
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

	var all []*VMStatus
	for _, vm := range slices.Compact(known) {
		s := &VMStatus{VCenter: vcenter, VM: vm, Unfinished: depths[vm], Limit: limit}
		if limit < 0 {
			s.Unfinished = -1
		}
		all = append(all, s)
	}

	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for _, s := range all {
		group.Go(func() (err error) {
			s.Last, err = c.LastEvent(groupCtx, vcenter, s.VM)
			if errors.As(err, &s.Unreadable) { // no reason to hide the other VMs
				return nil
			}
			return err
		})
	}
	return all, group.Wait()
}

// QueueDepths are the numbers of unfinished requests by VM, and the limit of one VM.
func (c *Client) QueueDepths(ctx context.Context, vcenter string) (depths map[string]int, limit int, err error) {
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

// queuedRequests are the VM's unfinished requests, oldest first.
func (c *Client) queuedRequests(ctx context.Context, vcenter, vm string) (all []events.QueuedRequest, err error) {
	name, filter := events.RequestsStream(vcenter), events.RequestSubject(vcenter, vm)
	err = c.forEachMessage(ctx, name, filter, func(s *stream.Stored) {
		q := events.QueuedRequest{Seq: s.Seq}
		if r, err := events.DecodeRequest(vcenter, s.Subject, s.Header, s.Data); err == nil {
			q.Ref, q.RunID = r.Ref, r.RunID
		}
		all = append(all, q)
	})
	return all, err
}

// streamInfo is a stream's configuration and state, with the number of messages of each subject under a filter.
// Without a filter (""), the subjects are not counted.
func (c *Client) streamInfo(ctx context.Context, stream, subjects string) (*jetstream.StreamInfo, error) {
	info, err := retry(ctx, c, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return nil, err
		}
		if subjects == "" {
			return s.CachedInfo(), nil
		}
		return s.Info(ctx, jetstream.WithSubjectFilter(subjects))
	})
	return info, streamError(stream, err)
}

// streamError explains an error of JetStream about a stream.
func streamError(stream string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("there is no stream %s on this NATS: "+
			"no guestflow service with these names has started here, "+
			"or NATS_URL, the account or NATS_JS_DOMAIN is another one: guestflow doctor says which", stream)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount),
		errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("stream %s: %w: is JetStream enabled for this account? See guestflow doctor", stream, err)
	}
	if isPermission(err) {
		return err
	}
	return fmt.Errorf("stream %s: %w", stream, err)
}

// lastMessage is the newest message under a filter; nil if there is none.
//
// It asks the direct API, which any replica answers, and which is the only one that publishers may use. If the direct
// API is refused or does not respond, it asks the stream's leader.
func (c *Client) lastMessage(ctx context.Context, name, filter string) (*stream.Stored, error) {
	s, err := retry(ctx, c, func(ctx context.Context) (*stream.Stored, error) {
		m, err := c.nc.RequestWithContext(ctx, c.apiPrefix+"DIRECT.GET."+name+"."+filter, nil)
		if err != nil {
			return nil, err
		}
		return parseDirectGet(m)
	})
	refused := isPermission(err)
	if !refused && !errors.Is(err, nats.ErrNoResponders) {
		return s, streamError(name, err)
	}

	s, leaderErr := c.getMessage(ctx, name, map[string]any{"last_by_subj": filter})
	if refused && isPermission(leaderErr) {
		return nil, err // the permission that this user should have
	}
	return s, leaderErr
}

// parseDirectGet reads a response of the direct API; nil if there is no message. Source: NATS ADR-31.
func parseDirectGet(m *nats.Msg) (*stream.Stored, error) {
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return nil, nil
	default:
		return nil, fmt.Errorf("%s %s", status, m.Header.Get("Description"))
	}
	seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("a response without a sequence: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
	if err != nil {
		return nil, fmt.Errorf("a response without a time: %w", err)
	}
	subject := m.Header.Get(jetstream.SubjectHeader)
	return &stream.Stored{Subject: subject, Seq: seq, At: at, Header: m.Header, Data: m.Data}, nil
}

// forEachMessage calls f for every message under a filter, oldest first.
func (c *Client) forEachMessage(ctx context.Context, name, filter string, f func(*stream.Stored)) error {
	for from := uint64(1); ; {
		s, err := c.getMessage(ctx, name, map[string]any{"seq": from, "next_by_subj": filter})
		if err != nil || s == nil {
			return err
		}
		f(s)
		from = s.Seq + 1
	}
}

// getMessage asks a stream's leader for one message; nil if there is none.
//
// Source: NATS JetStream wire API reference, io.nats.jetstream.api.v1.stream_msg_get_request and its response.
func (c *Client) getMessage(ctx context.Context, name string, query map[string]any) (*stream.Stored, error) {
	request, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	m, err := retry(ctx, c, func(ctx context.Context) (*nats.Msg, error) {
		return c.nc.RequestWithContext(ctx, c.apiPrefix+"STREAM.MSG.GET."+name, request)
	})
	if err != nil {
		return nil, streamError(name, err)
	}

	var response struct {
		Error   *jetstream.APIError
		Message *struct {
			Subject    string
			Seq        uint64
			Hdrs, Data []byte
			Time       time.Time
		}
	}
	if err := json.Unmarshal(m.Data, &response); err != nil {
		return nil, fmt.Errorf("read the stream %s: %w", name, err)
	}
	msg := response.Message
	switch {
	case response.Error != nil && response.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case response.Error != nil:
		return nil, streamError(name, response.Error)
	case msg == nil:
		return nil, fmt.Errorf("read the stream %s: the response holds no message", name)
	}

	s := &stream.Stored{Subject: msg.Subject, Seq: msg.Seq, At: msg.Time, Data: msg.Data}
	if len(msg.Hdrs) > 0 {
		s.Header, _ = nats.DecodeHeadersMsg(msg.Hdrs) // headers that cannot be read are left out
	}
	return s, nil
}
