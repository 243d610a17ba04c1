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

// Reason is what a trouble is about: the label of a metric, and a row of the runbook.
type Reason string

// The reasons.
const (
	StreamMissing   Reason = "stream-missing"
	ConsumerMissing Reason = "consumer-missing"
	Unfit           Reason = "unfit"           // a stream or consumer is not, or not any more, what guestflow needs
	ConsumerPaused  Reason = "consumer-paused" // it hands nothing out
	// a consumer of guestflow's own hands out fewer messages at once than the settings say
	FewPlaces     Reason = "few-places"
	NoStorage     Reason = "no-storage"  // JetStream has no room left, or none at all
	StreamFull    Reason = "stream-full" // a stream has reached a limit of its own
	NoAnswer      Reason = "no-answer"
	RefusedByNATS Reason = "refused"
	SmallPayload  Reason = "max-payload"       // the server takes no message as large as events may get
	SmallStore    Reason = "dead-letters-size" // the store had less to give than the dead letters were to have
)

// Reasons are all of them.
var Reasons = []Reason{StreamMissing, ConsumerMissing, Unfit, ConsumerPaused, FewPlaces, NoStorage, StreamFull,
	NoAnswer, RefusedByNATS, SmallPayload, SmallStore}

// cures say what to do, where the trouble itself does not say it better.
var cures = map[Reason]string{
	StreamMissing: "with GUESTFLOW_PROVISION=true the service makes it again within seconds, else make it " +
		"(deploy/helm/files/streams.json has its configuration); what was in it is gone",
	ConsumerMissing: "with GUESTFLOW_PROVISION=true the service makes it again within seconds, " +
		"else make it; nothing is lost",
	NoStorage: "make room for JetStream: raise max_file_store in the server's configuration, or the account's limit, " +
		"or remove what is not needed (nats stream report); " +
		"a server without a file store cannot hold guestflow's streams. What waits goes on by itself",
	StreamFull: "raise the stream's limit (nats stream edit), or have it keep messages for less time; " +
		"what waits goes on by itself",
	NoAnswer: "see whether the stream has a leader (nats stream report), whether all servers of the cluster are " +
		"up, and whether the service's user may do it (guestflow doctor)",
	RefusedByNATS: "see what the server says, in its log too, and whether the stream is what " +
		"guestflow needs (guestflow doctor)",
	Unfit: "change it (nats stream edit, nats consumer edit), or make it anew",
}

// Trouble is something on NATS's side that keeps requests from being taken or runs from going on, or will do so.
type Trouble struct {
	VCenter string // "" where it is about all of them
	Reason  Reason
	What    string
	Cure    string
	Blocks  bool // something stands still
}

// CureFollows stands between the two in a Trouble's text.
const CureFollows = "; cure: "

// String is what is wrong, and the cure, in one line.
func (t Trouble) String() string { return strings.Join(strings.Fields(t.What+CureFollows+t.Cure), " ") }

// Troubles asks for each stream and consumer that Provision was asked for, and tells what is wrong with them; what
// waits for NATS for longer than an election takes; and what the server's settings will not let through. It is an error
// where NATS does not answer.
func (c *Conn) Troubles(ctx context.Context) ([]Trouble, error) {
	if !c.nc.IsConnected() {
		return nil, fmt.Errorf("NATS is not connected: %s", c.nc.Status())
	}
	c.mu.Lock()
	s := c.streams
	c.mu.Unlock()
	if s == nil {
		return nil, errors.New("streams and consumers are not there yet")
	}
	all := c.LongWaits()
	if most := c.nc.MaxPayload(); most < maxStored {
		all = append(all, Trouble{Reason: SmallPayload, What: fmt.Sprintf(
			"the server takes messages of %d bytes (max_payload), and an event may have %d, run.accepted %d: requests "+
				"whose events are larger are refused", most, events.MaxEvent, maxStored),
			Cure: "set max_payload to 1MB, its default, in the configuration of every server, and reload them"})
	}
	vcenters := slices.Sorted(maps.Keys(s.MaxInFlight))
	for _, need := range s.streams(vcenters) {
		t, err := c.streamTroubles(ctx, need, s)
		if err != nil {
			return nil, err
		}
		all = append(all, t...)
	}
	for _, vcenter := range vcenters {
		for _, need := range s.consumers(vcenter) {
			t, err := c.consumerTroubles(ctx, vcenter, need)
			if err != nil {
				return nil, err
			}
			all = append(all, t...)
		}
	}
	return all, nil
}

func (c *Conn) streamTroubles(ctx context.Context, need streamNeed, s *Settings) ([]Trouble, error) {
	vcenter, _ := strings.CutPrefix(need.Name, events.RequestsStream(""))
	if vcenter == need.Name {
		vcenter = ""
	}
	// A request that is on its way when the connection breaks is never answered: each has a time of its own.
	st, err := once(ctx, func(ctx context.Context) (jetstream.Stream, error) { return c.js.Stream(ctx, need.Name) })
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return []Trouble{{VCenter: vcenter, Reason: StreamMissing, What: fmt.Sprintf("stream %s is missing", need.Name),
			Cure: cures[StreamMissing], Blocks: true}}, nil
	case err != nil:
		return nil, fmt.Errorf("stream %s: %w", need.Name, err)
	}
	have := st.CachedInfo().Config
	var all []Trouble
	for _, text := range need.differences(have) {
		all = append(all, Trouble{VCenter: vcenter, Reason: Unfit, What: fmt.Sprintf("stream %s: %s", need.Name, text),
			Cure: cures[Unfit], Blocks: true})
	}
	if want := s.DeadlettersMaxBytes; need.Name == events.DeadlettersStream && have.Metadata[ownedKey] != "" &&
		want > 0 && have.MaxBytes < want {
		what := fmt.Sprintf("stream %s may hold %d bytes, not %d: JetStream has no more to give", need.Name,
			have.MaxBytes, want)
		if have.MaxBytes <= 0 {
			what = fmt.Sprintf("stream %s has no limit of its own: JetStream has no room to reserve for it", need.Name)
		}
		all = append(all, Trouble{Reason: SmallStore, What: what,
			Cure: "raise max_file_store, or the account's limit, and start the service again; or set " +
				"GUESTFLOW_DEADLETTERS_MAX_BYTES to what there is"})
	}
	return all, nil
}

func (c *Conn) consumerTroubles(ctx context.Context, vcenter string, need jetstream.ConsumerConfig) ([]Trouble, error) {
	stream := events.RequestsStream(vcenter)
	cons, err := once(ctx,
		func(ctx context.Context) (jetstream.Consumer, error) { return c.js.Consumer(ctx, stream, need.Durable) })
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, nil // said already
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return []Trouble{{VCenter: vcenter, Reason: ConsumerMissing,
			What: fmt.Sprintf("consumer %s of stream %s is missing", need.Durable, stream),
			Cure: cures[ConsumerMissing], Blocks: true}}, nil
	case err != nil:
		return nil, fmt.Errorf("consumer %s of stream %s: %w", need.Durable, stream, err)
	}
	info := cons.CachedInfo()
	var all []Trouble
	tell := func(r Reason, stops bool, cure, what string, args ...any) {
		all = append(all, Trouble{VCenter: vcenter, Reason: r, What: fmt.Sprintf("consumer %s ", need.Durable) +
			fmt.Sprintf(what, args...), Cure: cure, Blocks: stops})
	}
	for _, text := range consumerDifferences(need, info.Config) {
		tell(Unfit, true, cures[Unfit], "does not fit: %s", text)
	}
	if info.Paused {
		until := ""
		if info.Config.PauseUntil != nil {
			until = " until " + info.Config.PauseUntil.UTC().Format(time.RFC3339)
		}
		tell(ConsumerPaused, true, fmt.Sprintf("nats consumer resume %s %s", stream, need.Durable),
			"is paused%s: it hands nothing out", until)
	}
	if places := info.Config.MaxAckPending; places > 0 && places < need.MaxAckPending &&
		info.Config.Metadata[ownedKey] != "" {
		tell(FewPlaces, false, fmt.Sprintf("nats consumer edit %s %s --max-pending %d; the "+
			"service does so when it starts", stream, need.Durable, need.MaxAckPending),
			"hands out %d messages at once (max_ack_pending), and by the settings it is %d "+
				"(MAX_IN_FLIGHT): somebody has changed it", places, need.MaxAckPending)
	}
	return all, nil
}

// watchPeriod is how often a running service looks after its streams and consumers.
const watchPeriod = 3 * time.Second

// Watch looks after the streams and consumers until ctx ends: what was removed is made again, and every trouble is put
// into the log once, and once more when it is over.
func (c *Conn) Watch(ctx context.Context) {
	told := map[string]Trouble{}
	var silent time.Time // since when NATS, which is connected, has not answered
	for backoff.Sleep(ctx, backoff.Jitter(watchPeriod)) == nil {
		all, err := c.Troubles(ctx)
		switch {
		case err == nil:
			silent = time.Time{}
		case !c.nc.IsConnected(): // has its own line, and its own metric
			continue
		default:
			if silent.IsZero() {
				silent = time.Now()
			}
			if all = c.LongWaits(); time.Since(silent) > c.patience.report {
				all = append(all, Trouble{Reason: NoAnswer, What: err.Error(), Cure: cures[NoAnswer], Blocks: true})
			}
		}
		now := map[string]Trouble{}
		missing := false
		for _, t := range all {
			key := string(t.Reason) + " " + t.VCenter
			now[key] = t
			missing = missing || t.Reason == StreamMissing || t.Reason == ConsumerMissing
			if _, known := told[key]; !known {
				c.log.Warn().Str("vcenter", t.VCenter).Str("reason", string(t.Reason)).Str("cure", t.Cure).Msg(t.What)
			}
		}
		for key, t := range told {
			if _, still := now[key]; !still {
				c.log.Info().Str("vcenter", t.VCenter).Str("reason", string(t.Reason)).Msg("solved: " + t.What)
			}
		}
		told = now
		c.mu.Lock()
		c.troubles = all
		c.mu.Unlock()
		if missing {
			if err := c.restore(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn().Err(err).Msg(
					"cannot create again the streams and consumers that are missing, trying again")
			}
		}
	}
}

// LastTroubles are the troubles that Watch saw last, and what waits at this moment, which is also told before there is
// anything to watch.
func (c *Conn) LastTroubles() []Trouble {
	waiting := c.LongWaits()
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(waiting, c.troubles...)
}

// LongWaits are what has been waiting for NATS for longer than an election takes.
func (c *Conn) LongWaits() []Trouble { return c.waits.longerThan(c.patience.report) }

// Ready makes a round trip to each stream and consumer that Provision was asked for. Its error says what keeps requests
// from being taken, or runs from going on, with the cure.
func (c *Conn) Ready(ctx context.Context) error {
	all, err := c.Troubles(ctx)
	if err != nil {
		return err
	}
	var stops []error
	for _, t := range all {
		if t.Blocks {
			stops = append(stops, errors.New(t.String()))
		}
	}
	return errors.Join(stops...)
}
