package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
)

const (
	// maxStored is what the other streams must be able to take: run.accepted holds its request, a dead letter the
	// message and why it was refused.
	maxStored       = events.MaxRequest + events.MaxEvent
	duplicateWindow = 2 * time.Minute

	// ownedKey marks the streams and consumers that guestflow made: only those it changes.
	ownedKey = "guestflow.io/managed"

	minServerMajor, minServerMinor = 2, 11
)

// Settings are the settings of the streams and consumers.
type Settings struct {
	Replicas          int           // of every stream, at least
	EventsMaxAge      time.Duration // at least
	EventsMaxBytes    int64         // at least; 0: no limit
	DeadlettersMaxAge time.Duration // at least
	// DeadlettersMaxBytes is what the dead letters may take of the disk, the oldest go first; 0: no limit. JetStream
	// reserves it: where the store has less to give, it is a quarter of what there is.
	DeadlettersMaxBytes int64
	QueuePerVM          int // unfinished requests of one VM, at least
	AckWait             time.Duration
	MaxInFlight         map[string]int // by vCenter: requests taken at once, all replicas together
	Provision           bool           // create what is missing, raise the limits of what is guestflow's own
}

// MismatchError says everything that has to be changed on the server before guestflow can work on it.
type MismatchError struct {
	Differences []string
}

// Error names every difference.
func (e *MismatchError) Error() string {
	return "NATS is not set up as guestflow needs it: " + strings.Join(e.Differences, "; ")
}

// Provision makes sure that the streams and consumers are there and are what guestflow needs. What is missing is
// created and marked as guestflow's own; of its own, limits are raised, never lowered (a lower limit per VM deletes
// accepted requests), but MaxAckPending and the ack wait follow the settings. What an administrator made is never
// touched. Where something does not fit the error is a *MismatchError that holds every difference. While NATS is away,
// or busy (a cluster that starts, or makes many streams at once), it is asked again, until ctx ends or the connection
// is closed for good. Several replicas may call it at once.
func (c *Conn) Provision(ctx context.Context, s Settings) error {
	c.mu.Lock()
	c.streams = &s
	c.mu.Unlock()
	w := newWaiter(c.log, "", "", "set up streams and consumers")
	for {
		err := c.provision(ctx, s)
		if mismatch := new(MismatchError); err == nil || errors.As(err, &mismatch) {
			w.done()
			return err
		}
		if err := w.wait(ctx, err); err != nil {
			return fmt.Errorf("set up streams and consumers: %w", err)
		}
	}
}

// restore makes what was removed while the service runs; what cannot be made is tried again by who misses it.
func (c *Conn) restore(ctx context.Context) error {
	c.mu.Lock()
	s := c.streams
	c.mu.Unlock()
	if s == nil || !s.Provision {
		return nil
	}
	return c.provision(ctx, *s)
}

func (c *Conn) provision(ctx context.Context, s Settings) error {
	var differ []string
	if v := c.nc.ConnectedServerVersion(); v != "" && !newEnough(v) {
		differ = append(differ, fmt.Sprintf("the server is version %s, and %d.%d or newer is needed", v, minServerMajor,
			minServerMinor))
	}
	vcenters := slices.Sorted(maps.Keys(s.MaxInFlight))
	for _, need := range s.streams(vcenters) {
		have, d, err := c.ensureStream(ctx, need, s.Provision)
		if err != nil {
			return fmt.Errorf("stream %s: %w", need.Name, err)
		}
		for _, text := range d {
			differ = append(differ, fmt.Sprintf("stream %s: %s", need.Name, text))
		}
		if have != nil && need.Name == events.EventsStream {
			c.mu.Lock()
			c.eventsMaxAge = have.MaxAge
			c.mu.Unlock()
		}
	}
	for _, vcenter := range vcenters {
		for _, need := range s.consumers(vcenter) {
			d, err := c.ensureConsumer(ctx, events.RequestsStream(vcenter), need, s.Provision)
			if err != nil {
				return fmt.Errorf("consumer %s: %w", need.Durable, err)
			}
			for _, text := range d {
				differ = append(differ, fmt.Sprintf("consumer %s: %s", need.Durable, text))
			}
		}
	}
	if len(differ) > 0 {
		return &MismatchError{Differences: differ}
	}
	return nil
}

// streamNeed is a stream as guestflow would make it, and the subjects that it has to cover however it was made.
type streamNeed struct {
	jetstream.StreamConfig
	covers []string
	// keepsAll: nothing may be dropped to make room. The requests and the journal are, dead letters are not.
	keepsAll bool
}

func (s Settings) streams(vcenters []string) []streamNeed {
	base := jetstream.StreamConfig{
		Storage: jetstream.FileStorage, Replicas: max(s.Replicas, 1), Duplicates: duplicateWindow, AllowDirect: true,
		MaxMsgs: -1, MaxBytes: -1, MaxMsgsPerSubject: -1, MaxConsumers: -1, MaxMsgSize: -1,
		Metadata: map[string]string{ownedKey: "true"},
	}
	journal, dead := base, base
	journal.Name, journal.Description = events.EventsStream, "guestflow: what happened to each VM, "+
		"and the journal of its runs"
	journal.Subjects, journal.MaxAge = []string{"guestflow.events.>", "guestflow.rejections.>"}, s.EventsMaxAge
	if s.EventsMaxBytes > 0 {
		journal.MaxBytes, journal.Discard = s.EventsMaxBytes, jetstream.DiscardNew
	}
	dead.Name, dead.Description = events.DeadlettersStream, "guestflow: refused messages"
	dead.Subjects, dead.MaxAge = []string{"guestflow.deadletters.>"}, s.DeadlettersMaxAge
	if s.DeadlettersMaxBytes > 0 {
		dead.MaxBytes, dead.Discard = s.DeadlettersMaxBytes, jetstream.DiscardOld
	}
	needs := []streamNeed{{StreamConfig: journal, keepsAll: true}, {StreamConfig: dead}}
	for _, vcenter := range vcenters {
		needs[0].covers = append(needs[0].covers, "guestflow.events."+vcenter+".>",
			events.RejectionSubject(vcenter, "*"))
		needs[1].covers = append(needs[1].covers, events.DeadletterSubject(vcenter, "*"))
		r := base
		r.Name, r.Description = events.RequestsStream(vcenter), "guestflow: requests and cancels that are "+
			"not finished yet, vCenter "+vcenter
		r.Subjects = []string{events.RequestSubject(vcenter, "*"), events.CancelSubject(vcenter, "*")}
		r.Retention, r.Discard, r.DiscardNewPerSubject = jetstream.WorkQueuePolicy, jetstream.DiscardNew, true
		r.MaxMsgsPerSubject, r.MaxMsgSize = int64(max(s.QueuePerVM, 1)), events.MaxRequest
		needs = append(needs, streamNeed{StreamConfig: r, covers: r.Subjects, keepsAll: true})
	}
	return needs
}

func (s Settings) consumers(vcenter string) []jetstream.ConsumerConfig {
	base := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		ReplayPolicy: jetstream.ReplayInstantPolicy,
		AckWait:      s.AckWait, MaxDeliver: -1, MaxAckPending: s.MaxInFlight[vcenter],
		Metadata: map[string]string{ownedKey: "true"},
	}
	requests, cancels := base, base
	requests.Durable, requests.FilterSubject = events.RequestsConsumer(vcenter), events.RequestSubject(vcenter, "*")
	cancels.Durable, cancels.FilterSubject = events.CancelsConsumer(vcenter), events.CancelSubject(vcenter, "*")
	cancels.MaxAckPending = cancelPlaces(s.MaxInFlight[vcenter])
	return []jetstream.ConsumerConfig{requests, cancels}
}

// cancelPlaces is how many cancels of a vCenter are held at once. Each waits for the end of its run, so with as many
// places as there are runs those who cancel a few dozen would keep everybody else's from being taken, or refused.
func cancelPlaces(runs int) int { return max(4*runs, 256) }

// ensureStream returns the stream as it is at the end, nil where it is missing, and what is wrong with it.
func (c *Conn) ensureStream(
	ctx context.Context, need streamNeed, provision bool,
) (*jetstream.StreamConfig, []string, error) {
	for {
		st, err := c.js.Stream(ctx, need.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			if !provision {
				return nil, []string{"is missing"}, nil
			}
			st, err = c.withRoom(ctx, need, need.StreamConfig, c.js.CreateStream)
			if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another replica was faster, with other settings
				continue
			}
			if refusal := refusal(err); refusal != "" {
				return nil, []string{"cannot be created: " + refusal + c.whoHas(ctx, need.covers)}, nil
			}
		}
		if err != nil {
			return nil, nil, err
		}
		have := st.CachedInfo().Config
		if provision && have.Metadata[ownedKey] != "" {
			if raised, changed := need.raise(have); changed {
				st, err := c.withRoom(ctx, need, raised, c.js.UpdateStream)
				if refusal := refusal(err); refusal != "" {
					return &have, append(need.differences(have), "cannot be changed: "+refusal), nil
				}
				if err != nil {
					return nil, nil, err
				}
				have = st.CachedInfo().Config
			}
		}
		return &have, need.differences(have), nil
	}
}

// codeNoPeers is "no suitable peers for placement": a cluster of which not all servers are up yet.
const codeNoPeers = 10005

// refusal is what the server said against a change; empty where it said nothing of the kind.
func refusal(err error) string {
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.Code == 503 || api.ErrorCode == jetstream.JSErrCodeStreamNotFound ||
		api.ErrorCode == codeNoPeers {
		return ""
	}
	// it is waited for, and told as any other store that is full: there may be room later
	if reasonOf(err) == NoStorage {
		return ""
	}
	return fmt.Sprintf("%s (%d)", api.Description, api.ErrorCode)
}

// leastStore is what is worth to be reserved for the dead letters: a few of the usual size.
const leastStore = 64 << 10

// withRoom makes or changes a stream. One that need not keep all takes less where the store has less to give: a quarter
// of that, so that the journal and the requests have the rest. How much there is nobody tells but by a refusal.
func (c *Conn) withRoom(ctx context.Context, need streamNeed, cfg jetstream.StreamConfig,
	apply func(context.Context, jetstream.StreamConfig) (jetstream.Stream, error),
) (jetstream.Stream, error) {
	st, err := apply(ctx, cfg)
	if !noRoom(err) || need.keepsAll || cfg.MaxBytes <= 0 {
		return st, err
	}
	fits := int64(0)
	for try := cfg.MaxBytes / 2; try >= leastStore && fits == 0; try /= 2 {
		smaller := cfg
		smaller.MaxBytes = try
		if _, err = apply(ctx, smaller); err == nil {
			fits = try
		} else if !noRoom(err) {
			return nil, err
		}
	}
	if fits == 0 {
		c.log.Warn().Str("stream", cfg.Name).
			Msg("JetStream has no room left to reserve for dead letters: their stream has no limit of its own")
		cfg.MaxBytes = -1
		return apply(ctx, cfg)
	}
	tooMuch := 2 * fits
	for range 4 {
		middle := cfg
		middle.MaxBytes = (fits + tooMuch) / 2
		if _, err = c.js.UpdateStream(ctx, middle); err == nil {
			fits = middle.MaxBytes
		} else if tooMuch = middle.MaxBytes; !noRoom(err) {
			return nil, err
		}
	}
	asked := cfg.MaxBytes
	cfg.MaxBytes = max(fits/4, leastStore)
	if st, err = c.js.UpdateStream(ctx, cfg); err == nil {
		c.log.Warn().Str("stream", cfg.Name).Int64("asked", asked).Int64("has", fits).Int64("taken", cfg.MaxBytes).
			Msg("JetStream has less room than GUESTFLOW_DEADLETTERS_MAX_BYTES: " +
				"the stream of dead letters gets a quarter of what is there")
	}
	return st, err
}

// noRoom reports whether a stream was refused for the bytes that it was to reserve. In a cluster those are among what
// its servers are looked through for.
func noRoom(err error) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	return reasonOf(err) == NoStorage || api.ErrorCode == codeMaxStreamBytes ||
		api.ErrorCode == codeNoPeers && strings.Contains(api.Description, "insufficient storage")
}

// codeMaxStreamBytes is "stream max bytes exceeds account limit max stream bytes".
const codeMaxStreamBytes = 10122

// whoHas names the stream that holds one of the subjects already.
func (c *Conn) whoHas(ctx context.Context, subjects []string) string {
	for _, s := range subjects {
		if name, err := c.js.StreamNameBySubject(ctx, s); err == nil {
			return fmt.Sprintf(": stream %s has the subject %s", name, s)
		}
	}
	return ""
}

// raise returns have with its limits raised to what is needed.
func (n streamNeed) raise(have jetstream.StreamConfig) (raised jetstream.StreamConfig, changed bool) {
	raised = have
	for _, s := range n.Subjects {
		if !slices.Contains(raised.Subjects, s) {
			raised.Subjects, changed = append(slices.Clone(raised.Subjects), s), true
		}
	}
	changed = raiseLimit(&raised.MaxMsgsPerSubject, n.MaxMsgsPerSubject) || changed
	switch {
	case n.keepsAll:
		changed = raiseLimit(&raised.MaxBytes, n.MaxBytes) || changed
	// follows the setting, also downwards: only what is refused is in it
	case n.MaxBytes > 0 && n.MaxBytes != raised.MaxBytes:
		raised.MaxBytes, changed = n.MaxBytes, true
	}
	changed = raiseLimit(&raised.MaxMsgSize, n.MaxMsgSize) || changed
	changed = raiseLimit(&raised.MaxAge, n.MaxAge) || changed
	if n.Replicas > raised.Replicas {
		raised.Replicas, changed = n.Replicas, true
	}
	return raised, changed
}

// raiseLimit sets have to need where that is higher; a limit that is not positive is none, which is the highest. The
// limit per subject of a work queue is an exception that never comes up: it is always set, on both sides.
func raiseLimit[N int32 | int64 | time.Duration](have *N, need N) bool {
	if *have <= 0 || need > 0 && need <= *have {
		return false
	}
	*have = need
	return true
}

// differences are all things in which a stream does not do what guestflow leans on.
func (n streamNeed) differences(have jetstream.StreamConfig) (d []string) {
	differ := func(wrong bool, format string, args ...any) {
		if wrong {
			d = append(d, fmt.Sprintf(format, args...))
		}
	}
	for _, want := range n.covers {
		differ(!slices.ContainsFunc(have.Subjects, func(s string) bool { return covers(s, want) }),
			"its subjects %s do not cover %s", strings.Join(have.Subjects, ", "), want)
	}
	differ(have.Retention != n.Retention, "retention is %s, not %s", have.Retention, n.Retention)
	differ(have.Storage != n.Storage, "storage is %s, not %s", have.Storage, n.Storage)
	differ(have.Replicas < n.Replicas, "it has %d replicas, not %d", have.Replicas, n.Replicas)
	differ(have.NoAck, "it does not acknowledge what is published (no_ack)")
	differ(have.Sealed, "it is sealed")
	differ(have.Mirror != nil, "it is a mirror")
	size := max(n.MaxMsgSize, 0)
	if size == 0 {
		size = maxStored
	}
	differ(have.MaxMsgSize > 0 && have.MaxMsgSize < size, "max_msg_size is %d, less than %d", have.MaxMsgSize, size)
	differ(have.MaxAge > 0 && (n.MaxAge == 0 || have.MaxAge < n.MaxAge), "max_age is %s, not %s", have.MaxAge,
		ageText(n.MaxAge))
	if !n.keepsAll {
		return d
	}
	bounded := have.MaxBytes > 0 || have.MaxMsgs > 0
	differ((bounded || n.DiscardNewPerSubject) && have.Discard != jetstream.DiscardNew,
		"it drops old messages when it is full: discard must be new")
	if n.DiscardNewPerSubject {
		differ(!have.DiscardNewPerSubject, "discard_new_per_subject is not set")
		differ(have.MaxMsgsPerSubject < n.MaxMsgsPerSubject, "max_msgs_per_subject is %d, less than %d",
			have.MaxMsgsPerSubject, n.MaxMsgsPerSubject)
	} else {
		differ(have.MaxMsgsPerSubject > 0, "max_msgs_per_subject is %d: the journal needs all of them",
			have.MaxMsgsPerSubject)
	}
	return d
}

func ageText(d time.Duration) string {
	if d == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("%s or more", d)
}

func (c *Conn) ensureConsumer(
	ctx context.Context, stream string, need jetstream.ConsumerConfig, provision bool,
) ([]string, error) {
	for {
		cons, err := c.js.Consumer(ctx, stream, need.Durable)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			if provision {
				return nil, nil // why the stream could not be made has been said
			}
			return []string{"is missing, as its stream is"}, nil
		}
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			if !provision {
				return []string{"is missing"}, nil
			}
			cons, err = c.js.CreateConsumer(ctx, stream, need)
			if errors.Is(err, jetstream.ErrConsumerExists) {
				continue
			}
			if refusal := refusal(err); refusal != "" {
				return []string{"cannot be created: " + refusal}, nil
			}
		}
		if errors.Is(err, jetstream.ErrNotPullConsumer) {
			return []string{"it is a push consumer"}, nil
		}
		if err != nil {
			return nil, err
		}
		have := cons.CachedInfo().Config
		follows := have.MaxAckPending == need.MaxAckPending && have.AckWait == need.AckWait
		if provision && have.Metadata[ownedKey] != "" && !follows {
			follow := have
			follow.MaxAckPending, follow.AckWait = need.MaxAckPending, need.AckWait
			step := shorter(have.AckWait, need.AckWait, cons.CachedInfo().NumAckPending)
			follow.AckWait = step
			cons, err := c.js.UpdateConsumer(ctx, stream, follow)
			if refusal := refusal(err); refusal != "" {
				return append(consumerDifferences(need, have), "cannot be changed: "+refusal), nil
			}
			if err != nil {
				return nil, err
			}
			if step != need.AckWait {
				if err := backoff.Sleep(ctx, have.AckWait/3+noticeTime); err != nil {
					return nil, err
				}
				continue
			}
			have = cons.CachedInfo().Config
		}
		return consumerDifferences(need, have), nil
	}
}

// noticeTime is what a replica may be late with a heartbeat.
const noticeTime = 500 * time.Millisecond

// shorter is the next ack wait on the way from have to need, where messages are in hand. Their owners beat every third
// of the ack wait and look at it as often: a step to less than half could pass before the next beat, and a live run be
// handed to another.
func shorter(have, need time.Duration, inHand int) time.Duration {
	if inHand == 0 {
		return need
	}
	return max(need, have/2)
}

// consumerDifferences are all things in which a consumer does not do what guestflow leans on. Its ack wait, and to hand
// out fewer requests at once than the setting allows, are its maker's choice.
func consumerDifferences(need, have jetstream.ConsumerConfig) (d []string) {
	differ := func(wrong bool, format string, args ...any) {
		if wrong {
			d = append(d, fmt.Sprintf(format, args...))
		}
	}
	filters := have.FilterSubjects
	if have.FilterSubject != "" {
		filters = []string{have.FilterSubject}
	}
	differ(len(filters) != 1 || filters[0] != need.FilterSubject, "its filter is %q, not %s",
		strings.Join(filters, ", "), need.FilterSubject)
	differ(have.AckPolicy != need.AckPolicy, "ack policy is %s, not %s", have.AckPolicy, need.AckPolicy)
	differ(have.MaxDeliver > 0, "max_deliver is %d: it must be unlimited, or requests get lost", have.MaxDeliver)
	ofRequests := strings.HasPrefix(need.FilterSubject, "guestflow.requests.")
	differ(ofRequests && (have.MaxAckPending < 1 || have.MaxAckPending > need.MaxAckPending),
		"max_ack_pending is %d: it lets through more than the %d requests of MAX_IN_FLIGHT", have.MaxAckPending,
		need.MaxAckPending)
	differ(len(have.BackOff) > 0, "backoff is set: it replaces the ack wait")
	differ(have.DeliverPolicy != need.DeliverPolicy, "deliver policy is %s, not %s", have.DeliverPolicy,
		need.DeliverPolicy)
	differ(have.ReplayPolicy != need.ReplayPolicy, "replay policy is %s, not %s", have.ReplayPolicy, need.ReplayPolicy)
	differ(have.HeadersOnly, "it delivers headers only")
	differ(have.PriorityPolicy != jetstream.PriorityPolicyNone, "it has a priority policy")
	differ(have.InactiveThreshold > 0, "inactive_threshold is %s: it is deleted while nobody pulls",
		have.InactiveThreshold)
	return d
}

// covers reports whether every subject under filter is under pattern.
func covers(pattern, filter string) bool {
	p, f := strings.Split(pattern, "."), strings.Split(filter, ".")
	for i, token := range p {
		switch {
		case token == ">":
			return len(f) > i
		case i >= len(f) || f[i] == ">":
			return false
		case token != "*" && token != f[i]:
			return false
		}
	}
	return len(p) == len(f)
}

// newEnough reports whether a server knows what guestflow leans on: before 2.11 a retry with the same ID could fail for
// the whole duplicate window after a change of leader.
func newEnough(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil {
		return true // a build of its own: its owner knows
	}
	return major > minServerMajor || major == minServerMajor && minor >= minServerMinor
}
