package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

// Server is the NATS server that the client is connected to.
type Server struct {
	URL, Name, Version string
	RTT                time.Duration // of one round trip
	TLS                bool
}

// Server describes the server at the other end of the connection.
func (c *Client) Server() (Server, error) {
	rtt, err := c.nc.RTT()
	if err != nil {
		return Server{}, fmt.Errorf("NATS does not answer: %w", err)
	}
	_, tlsErr := c.nc.TLSConnectionState() // an error means that the connection is without TLS
	return Server{
		URL:     c.nc.ConnectedUrlRedacted(),
		Name:    c.nc.ConnectedServerName(),
		Version: c.nc.ConnectedServerVersion(),
		RTT:     rtt,
		TLS:     tlsErr == nil,
	}, nil
}

// JetStream returns an error if JetStream is not enabled for this account, a *PermissionError if this user may not ask.
func (c *Client) JetStream(ctx context.Context) error {
	_, err := c.accountInfo(ctx)
	return err
}

func (c *Client) accountInfo(ctx context.Context) (*jetstream.AccountInfo, error) {
	return call(ctx, c, func(ctx context.Context) (*jetstream.AccountInfo, error) { return c.js.AccountInfo(ctx) })
}

// Clock is the server's clock minus ours, give or take half of the round trip.
func (c *Client) Clock(ctx context.Context, stream string) (offset, giveOrTake time.Duration, err error) {
	before := time.Now()
	info, err := c.streamInfo(ctx, stream, "")
	if err != nil {
		return 0, 0, err
	}
	took := time.Since(before)
	if info.TimeStamp.IsZero() {
		return 0, 0, errors.New("the server does not tell its time")
	}
	return info.TimeStamp.Sub(before.Add(took / 2)), took / 2, nil
}

// Consumers is the state of the consumers of a vCenter's requests.
type Consumers struct {
	OpenPulls  int    // at this moment; 0: no service runs
	Pending    uint64 // requests that were not delivered yet
	AckPending int    // delivered, and not acknowledged
	Paused     bool   // nothing is delivered
}

// Consumers asks for the state of the consumers of a vCenter's requests.
func (c *Client) Consumers(ctx context.Context, vcenter string) (Consumers, error) {
	info, err := c.consumerInfo(ctx, vcenter, events.RequestsConsumer(vcenter))
	if err != nil {
		return Consumers{}, err
	}
	return Consumers{
		OpenPulls:  info.NumWaiting,
		Pending:    info.NumPending,
		AckPending: info.NumAckPending,
		Paused:     info.Paused,
	}, nil
}

func (c *Client) consumerInfo(ctx context.Context, vcenter, durable string) (*jetstream.ConsumerInfo, error) {
	return call(ctx, c, func(ctx context.Context) (*jetstream.ConsumerInfo, error) {
		cons, err := c.js.Consumer(ctx, events.RequestsStream(vcenter), durable)
		if err != nil {
			return nil, err
		}
		return cons.CachedInfo(), nil
	})
}

// maxListen is how long WithoutHeartbeat listens at most. It is longer than a third of the default ack wait.
const maxListen = 12 * time.Second

// WithoutHeartbeat is the number of delivered messages of a durable consumer that no service works on: a service sends
// a heartbeat for each of its messages every third of the ack wait. A *PermissionError means that this user may not
// listen.
func (c *Client) WithoutHeartbeat(ctx context.Context, vcenter, durable string) (int, error) {
	before, err := c.consumerInfo(ctx, vcenter, durable)
	if err != nil || before.NumAckPending == 0 {
		return 0, err
	}
	alive, err := c.countHeartbeats(ctx, vcenter, durable, before)
	if err != nil {
		return 0, err
	}
	after, err := c.consumerInfo(ctx, vcenter, durable)
	if err != nil {
		return 0, err
	}
	return max(0, min(before.NumAckPending, after.NumAckPending)-alive), nil
}

// countHeartbeats listens until all delivered messages were heard of, or their services had the time for a heartbeat.
func (c *Client) countHeartbeats(
	ctx context.Context, vcenter, durable string, info *jetstream.ConsumerInfo,
) (int, error) {
	subject := "$JS.ACK." + events.RequestsStream(vcenter) + "." + durable + ".>"
	ctx, done := c.watchRefusals(ctx, subject)
	defer done()
	acks := make(chan *nats.Msg, 1024)
	sub, err := c.nc.ChanSubscribe(subject, acks)
	if err != nil {
		return 0, err
	}
	defer func() { _ = sub.Unsubscribe() }()

	timeout := time.NewTimer(min(info.Config.AckWait/3+time.Second, maxListen))
	defer timeout.Stop()
	heard := map[string]bool{} // by stream sequence
	for len(heard) < info.NumAckPending {
		select {
		case m := <-acks:
			// $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>…
			if tokens := strings.Split(m.Subject, "."); len(tokens) > 5 {
				heard[tokens[5]] = true
			}
		case <-timeout.C:
			return len(heard), nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	return len(heard), nil
}

// SourceCount is how many requests a source has in a queue.
type SourceCount struct {
	Source   string
	Requests int
}

// maxCounted is how many requests QueueSources reads at most, the oldest first.
const maxCounted = 500

// QueueSources counts the oldest requests in a vCenter's queue by their source, the largest count first.
func (c *Client) QueueSources(ctx context.Context, vcenter string) (all []SourceCount, total int, err error) {
	name, filter := events.RequestsStream(vcenter), events.RequestSubject(vcenter, "*")
	count := map[string]int{}
	for from := uint64(1); total < maxCounted; total++ {
		s, err := c.getMessage(ctx, name, map[string]any{"seq": from, "next_by_subj": filter})
		if err != nil {
			return nil, 0, err
		}
		if s == nil {
			break
		}

		source := "(cannot be read)"
		// A refused request has a source too: the error does not matter.
		if r, _ := events.DecodeRequest(vcenter, s.Subject, s.Header, s.Data); r != nil && r.Ref.Source != "" {
			source = r.Ref.Source
		}
		count[source]++
		from = s.Seq + 1
	}

	for source, n := range count {
		all = append(all, SourceCount{source, n})
	}
	slices.SortFunc(all, func(a, b SourceCount) int {
		return cmp.Or(b.Requests-a.Requests, strings.Compare(a.Source, b.Source))
	})
	return all, total, nil
}

// Storage is how much of JetStream's file storage this account uses, and its limit; limit -1: it has none of its own.
func (c *Client) Storage(ctx context.Context) (used, limit int64, err error) {
	info, err := c.accountInfo(ctx)
	if err != nil {
		return 0, 0, err
	}
	if len(info.Tiers) > 0 { // one limit for each number of replicas: which one the streams use is not known here
		return 0, -1, nil
	}
	return int64(min(info.Store, 1<<62)), info.Limits.MaxStore, nil
}

// Permissions are subjects that a user may publish on and subscribe to.
type Permissions struct {
	Publish, Subscribe []string
}

// ServicePermissions are the permissions that the service needs for its vCenters. provision means that the service
// creates its streams and consumers itself.
func (c *Client) ServicePermissions(vcenters []string, provision bool) Permissions {
	var n Permissions
	api := func(subjects ...string) {
		for _, s := range subjects {
			n.Publish = append(n.Publish, c.apiPrefix+s)
		}
	}
	stream := func(name string, read bool) {
		api("STREAM.INFO." + name)
		if read {
			api("STREAM.MSG.GET." + name)
		}
		if provision {
			api("STREAM.CREATE."+name, "STREAM.UPDATE."+name)
		}
	}
	consumer := func(stream, durable, filter string) {
		api("CONSUMER.INFO."+stream+"."+durable, "CONSUMER.MSG.NEXT."+stream+"."+durable)
		if provision {
			api("CONSUMER.CREATE." + stream + "." + durable + "." + filter)
		}
		n.Publish = append(n.Publish, "$JS.ACK."+stream+"."+durable+".>")
	}

	stream(events.EventsStream, true)
	stream(events.DeadlettersStream, false)
	for _, v := range vcenters {
		requests := events.RequestsStream(v)
		stream(requests, true)
		consumer(requests, events.RequestsConsumer(v), events.RequestSubject(v, "*"))
		consumer(requests, events.CancelsConsumer(v), events.CancelSubject(v, "*"))

		n.Publish = append(n.Publish,
			"guestflow.events."+v+".>", events.RejectionSubject(v, "*"), events.DeadletterSubject(v, "*"))
		n.Subscribe = append(n.Subscribe, "guestflow.events."+v+".*.run.*", events.CancelSubject(v, "*"))
	}
	return n
}

// MissingPermissions are those that this user does not have.
//
// The server is asked for them. If it does not answer that, each permission is tried in a way that changes nothing.
// untried are those that cannot be tried so, because subscribers would receive what is published.
func (c *Client) MissingPermissions(
	ctx context.Context, want Permissions,
) (missing []*PermissionError, untried []string, err error) {
	if granted, ok := c.grantedPermissions(ctx); ok {
		return granted.missing(want), nil, nil
	}

	try := func(subject string, do func() error) error {
		err := c.attempt(ctx, subject, do)
		var refused *PermissionError
		if errors.As(err, &refused) {
			missing = append(missing, refused)
			return nil
		}
		return err
	}
	for _, s := range want.Publish {
		if !strings.HasPrefix(s, "$JS.") && !strings.HasPrefix(s, c.apiPrefix) {
			untried = append(untried, s)
			continue
		}
		subject, body := s, "{" // not JSON: the API refuses it
		if strings.HasPrefix(s, "$JS.ACK.") {
			subject, body = strings.TrimSuffix(s, ">")+"0.0.0.0.0", "+WPI" // a heartbeat for a message that never was
		}
		publish := func() error { return c.nc.PublishRequest(subject, c.nc.NewInbox(), []byte(body)) }
		if err := try(subject, publish); err != nil {
			return nil, nil, err
		}
	}
	for _, s := range want.Subscribe {
		err := try(s, func() error {
			sub, err := c.nc.Subscribe(s, func(*nats.Msg) {})
			if err == nil {
				err = sub.AutoUnsubscribe(1)
			}
			return err
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return missing, untried, nil
}

// grants are the permissions of a user as the server states them. No entry at all permits everything.
type grants struct {
	Publish, Subscribe allowDeny
}

type allowDeny struct {
	Allow, Deny []string
}

// missing are the permissions that are wanted and not granted.
func (g grants) missing(want Permissions) (missing []*PermissionError) {
	for _, s := range want.Publish {
		if !g.Publish.allows(s) {
			missing = append(missing, &PermissionError{Subject: s})
		}
	}
	for _, s := range want.Subscribe {
		if !g.Subscribe.allows(s) {
			missing = append(missing, &PermissionError{Subscribe: true, Subject: s})
		}
	}
	return missing
}

// grantedPermissions asks the server for this user's permissions; ok is false if the server does not say.
// Source: NATS, $SYS.REQ.USER.INFO.
func (c *Client) grantedPermissions(ctx context.Context) (grants, bool) {
	m, err := call(ctx, c, func(ctx context.Context) (*nats.Msg, error) {
		return c.nc.RequestWithContext(ctx, "$SYS.REQ.USER.INFO", nil)
	})
	if err != nil {
		return grants{}, false
	}
	var response struct {
		Data *struct {
			Permissions grants
		}
	}
	if json.Unmarshal(m.Data, &response) != nil || response.Data == nil {
		return grants{}, false
	}
	return response.Data.Permissions, true
}

// allows reports whether every subject under a filter is allowed.
func (r allowDeny) allows(subject string) bool {
	for _, d := range r.Deny {
		if overlap(d, subject) {
			return false
		}
	}
	for _, a := range r.Allow {
		if covers(a, subject) {
			return true
		}
	}
	return len(r.Allow) == 0
}

// covers reports whether every subject under filter is under pattern.
func covers(pattern, filter string) bool { return compare(pattern, filter, false) }

// overlap reports whether there is a subject under both filters.
func overlap(a, b string) bool { return compare(a, b, true) || compare(b, a, true) }

func compare(pattern, filter string, some bool) bool {
	p, f := strings.Split(pattern, "."), strings.Split(filter, ".")
	for i, token := range p {
		switch {
		case token == ">":
			return len(f) > i
		case i >= len(f):
			return false
		case f[i] == ">":
			return some
		case token != "*" && token != f[i] && (!some || f[i] != "*"):
			return false
		}
	}
	return len(p) == len(f)
}
