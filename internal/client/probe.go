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

// Server asks who answers.
func (c *Client) Server() (Server, error) {
	rtt, err := c.nc.RTT()
	if err != nil {
		return Server{}, fmt.Errorf("NATS does not answer: %w", err)
	}
	_, tlsErr := c.nc.TLSConnectionState() // an error says that there is none
	return Server{URL: c.nc.ConnectedUrlRedacted(), Name: c.nc.ConnectedServerName(), Version: c.nc.ConnectedServerVersion(), RTT: rtt, TLS: tlsErr == nil}, nil
}

// JetStream asks whether JetStream is there for this account. A *PermissionError says that this user may not ask.
func (c *Client) JetStream(ctx context.Context) error {
	_, err := try(ctx, c, func(ctx context.Context) (*jetstream.AccountInfo, error) { return c.js.AccountInfo(ctx) })
	return err
}

// Clock is the server's clock minus ours, give or take the round trip.
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

// Takers is what becomes of a vCenter's requests.
type Takers struct {
	Pulls   int    // open at this moment; none: no service runs
	Untaken uint64 // requests that nobody has taken yet
	InHand  int    // taken, and not finished
	Paused  bool   // nothing is handed out
}

// Takers asks what becomes of a vCenter's requests.
func (c *Client) Takers(ctx context.Context, vcenter string) (Takers, error) {
	info, err := c.consumerInfo(ctx, vcenter, events.RequestsConsumer(vcenter))
	if err != nil {
		return Takers{}, err
	}
	return Takers{Pulls: info.NumWaiting, Untaken: info.NumPending, InHand: info.NumAckPending, Paused: info.Paused}, nil
}

func (c *Client) consumerInfo(ctx context.Context, vcenter, durable string) (*jetstream.ConsumerInfo, error) {
	return try(ctx, c, func(ctx context.Context) (*jetstream.ConsumerInfo, error) {
		cons, err := c.js.Consumer(ctx, events.RequestsStream(vcenter), durable)
		if err != nil {
			return nil, err
		}
		return cons.CachedInfo(), nil
	})
}

// longestListen is what somebody may have to wait for Unheld. It is longer than a third of the default ack wait.
const longestListen = 12 * time.Second

// Unheld tells how many of the messages that a durable has handed out nobody says to be at work on: who holds one does so every third of the ack wait. A
// *PermissionError: this user may not listen.
func (c *Client) Unheld(ctx context.Context, vcenter, durable string) (int, error) {
	before, err := c.consumerInfo(ctx, vcenter, durable)
	if err != nil || before.NumAckPending == 0 {
		return 0, err
	}
	subject := "$JS.ACK." + events.RequestsStream(vcenter) + "." + durable + ".>"
	ctx, done := c.permitted(ctx, subject)
	defer done()
	said := make(chan *nats.Msg, 1024)
	sub, err := c.nc.ChanSubscribe(subject, said)
	if err != nil {
		return 0, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	enough := time.NewTimer(min(before.Config.AckWait/3+time.Second, longestListen))
	defer enough.Stop()
	heard := map[string]bool{} // by stream sequence
	for waiting := true; waiting && len(heard) < before.NumAckPending; {
		select {
		case m := <-said:
			if tokens := strings.Split(m.Subject, "."); len(tokens) > 5 { // $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>…
				heard[tokens[5]] = true
			}
		case <-enough.C:
			waiting = false
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	after, err := c.consumerInfo(ctx, vcenter, durable)
	if err != nil {
		return 0, err
	}
	return max(0, min(before.NumAckPending, after.NumAckPending)-len(heard)), nil
}

// SourceCount is how many requests a source has in a queue.
type SourceCount struct {
	Source   string
	Requests int
}

// mostCounted bounds how many requests are read to see whose they are: the oldest.
const mostCounted = 500

// Sources tells who fills a vCenter's queue: its oldest requests by source, most first.
func (c *Client) Sources(ctx context.Context, vcenter string) (all []SourceCount, total int, err error) {
	count := map[string]int{}
	for from := uint64(1); total < mostCounted; total++ {
		s, err := c.get(ctx, events.RequestsStream(vcenter), map[string]any{"seq": from, "next_by_subj": events.RequestSubject(vcenter, "*")})
		if err != nil {
			return nil, 0, err
		}
		if s == nil {
			break
		}
		source := "(cannot be read)"
		if r, _ := events.DecodeRequest(vcenter, s.Subject, s.Header, s.Data); r != nil && r.Ref.Source != "" { // also of one that is refused
			source = r.Ref.Source
		}
		count[source]++
		from = s.Seq + 1
	}
	for source, n := range count {
		all = append(all, SourceCount{source, n})
	}
	slices.SortFunc(all, func(a, b SourceCount) int { return cmp.Or(b.Requests-a.Requests, strings.Compare(a.Source, b.Source)) })
	return all, total, nil
}

// Store is what this account uses of JetStream's file storage, and what it may use; most -1: it has no limit of its own.
func (c *Client) Store(ctx context.Context) (used, most int64, err error) {
	info, err := try(ctx, c, func(ctx context.Context) (*jetstream.AccountInfo, error) { return c.js.AccountInfo(ctx) })
	if err != nil {
		return 0, 0, err
	}
	if len(info.Tiers) > 0 { // limits by replicas: of the one that the streams are in nothing is known here
		return 0, -1, nil
	}
	return int64(min(info.Store, 1<<62)), info.Limits.MaxStore, nil
}

// Needs are the permissions of a service.
type Needs struct {
	Publish, Subscribe []string
}

// ServiceNeeds are the permissions of the service for its vCenters; provision: it makes its streams and consumers itself.
func (c *Client) ServiceNeeds(vcenters []string, provision bool) Needs {
	var n Needs
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
	stream(events.EventsStream, true)
	stream(events.DeadlettersStream, false)
	for _, v := range vcenters {
		requests := events.RequestsStream(v)
		stream(requests, true)
		for durable, filter := range map[string]string{events.RequestsConsumer(v): events.RequestSubject(v, "*"), events.CancelsConsumer(v): events.CancelSubject(v, "*")} {
			api("CONSUMER.INFO."+requests+"."+durable, "CONSUMER.MSG.NEXT."+requests+"."+durable)
			if provision {
				api("CONSUMER.CREATE." + requests + "." + durable + "." + filter)
			}
			n.Publish = append(n.Publish, "$JS.ACK."+requests+"."+durable+".>")
		}
		n.Publish = append(n.Publish, "guestflow.events."+v+".>", events.RejectionSubject(v, "*"), events.DeadletterSubject(v, "*"))
		n.Subscribe = append(n.Subscribe, "guestflow.events."+v+".*.run.*", events.CancelSubject(v, "*"))
	}
	return n
}

// Lacking tells which of the needs this user does not have. The server is asked; where it does not tell, each need is tried in a way that changes nothing.
// untried are those that cannot be tried so: what is published on them is heard by subscribers.
func (c *Client) Lacking(ctx context.Context, n Needs) (lacking []*PermissionError, untried []string, err error) {
	if told, ok := c.told(ctx); ok {
		for _, s := range n.Publish {
			if !told.Publish.allows(s) {
				lacking = append(lacking, &PermissionError{Subject: s})
			}
		}
		for _, s := range n.Subscribe {
			if !told.Subscribe.allows(s) {
				lacking = append(lacking, &PermissionError{Subscribe: true, Subject: s})
			}
		}
		return lacking, nil, nil
	}
	try := func(subject string, do func() error) error {
		err := c.tried(ctx, subject, do)
		var p *PermissionError
		if errors.As(err, &p) {
			lacking = append(lacking, p)
			return nil
		}
		return err
	}
	for _, s := range n.Publish {
		if !strings.HasPrefix(s, "$JS.") && !strings.HasPrefix(s, c.apiPrefix) {
			untried = append(untried, s)
			continue
		}
		subject, body := s, "{" // which no call of the API understands
		if strings.HasPrefix(s, "$JS.ACK.") {
			subject, body = strings.TrimSuffix(s, ">")+"0.0.0.0.0", "+WPI" // "still at work", on a message that never was
		}
		if err := try(subject, func() error { return c.nc.PublishRequest(subject, c.nc.NewInbox(), []byte(body)) }); err != nil {
			return nil, nil, err
		}
	}
	for _, s := range n.Subscribe {
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
	return lacking, untried, nil
}

// permissions are what the server says that a user may do. None at all is everything.
type permissions struct {
	Publish, Subscribe rights
}

type rights struct {
	Allow, Deny []string
}

// told asks the server what this user may do; not ok: it does not tell. Source: NATS, $SYS.REQ.USER.INFO.
func (c *Client) told(ctx context.Context) (permissions, bool) {
	m, err := try(ctx, c, func(ctx context.Context) (*nats.Msg, error) {
		return c.nc.RequestWithContext(ctx, "$SYS.REQ.USER.INFO", nil)
	})
	if err != nil {
		return permissions{}, false
	}
	var answer struct {
		Data *struct {
			Permissions permissions
		}
	}
	if json.Unmarshal(m.Data, &answer) != nil || answer.Data == nil {
		return permissions{}, false
	}
	return answer.Data.Permissions, true
}

// allows reports whether everything under subject may be used.
func (r rights) allows(subject string) bool {
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

// overlap reports whether some subject is under both.
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
