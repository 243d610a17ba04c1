// Package handler decides what happens next: it takes a request to its end, one step after the other, so that whatever
// crashes, is paused or lost on the way, nothing is done twice to the guest. docs/develop/ARCHITECTURE.md tells the
// life of a message, docs/operate/reliability.md the rules.
package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/tracing"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Journal is the VM's linear history of events; stream.Journal is the real one.
type Journal interface {
	// Last reads the VM's last event from the stream's leader; nil where there is none.
	Last(ctx context.Context, vcenter, vm string) (*events.Entry, error)
	// Append stores run as the event that follows sequence after in the VM's history, or fails with events.ErrFenced.
	Append(ctx context.Context, after uint64, msgID string, k events.Kind, attrs events.Attributes,
		run *events.Run) (uint64, error)
	// ConfirmLast proves that the VM's last event is mine and stands on the event before (zero: on none), or fails with
	// events.ErrFenced.
	ConfirmLast(ctx context.Context, vcenter, vm string, mine, before events.Mark) error
	// ConfirmNotReplaced fails with events.ErrFenced where the event at the sequence of mine is another one.
	ConfirmNotReplaced(ctx context.Context, vcenter, vm string, mine events.Mark) error
	// RequestData is the data of the run's request as run.accepted, the event accepted of the stream, holds it; nil
	// where that event is gone.
	RequestData(ctx context.Context, vcenter, vm, run string, accepted uint64) (json.RawMessage, error)
	// CompleteSince is from when on the journal has everything that was stored.
	CompleteSince(ctx context.Context) (time.Time, error)
	// Runs calls fn with the VM's run.* events, oldest first, until fn returns false or the one that answers shows no
	// more.
	Runs(ctx context.Context, vcenter, vm string, fn func(*events.Entry) (more bool)) error
}

// RequestQueue is what the requests stream holds for a VM; stream.RequestQueue is the real one. What it shows may be
// older than the truth: of what is not there, Gone alone tells that it has left.
type RequestQueue interface {
	// Oldest is the oldest request for this VM, nil for none.
	Oldest(ctx context.Context, vcenter, vm string) (*events.QueuedRequest, error)
	// Unfinished is what the stream holds for this VM.
	Unfinished(ctx context.Context, vcenter, vm string) (events.VMQueue, error)
	// Gone reports whether one answer proves that what stood at a place has left the stream: it has seen it, and does
	// not hold it.
	Gone(ctx context.Context, vcenter, vm string, p events.Place) (bool, error)
	// Cancels are the cancels that wait for this VM.
	Cancels(ctx context.Context, vcenter, vm string) ([]events.Cancel, error)
	// ReconnectedAt is when NATS was there again after it was away; zero: it never was.
	ReconnectedAt() time.Time
	// Wake signals when a run. event of this VM, or a cancel for it, was published.
	Wake(vcenter, vm string) (ch <-chan struct{}, stop func())
}

// Settings of a Handler.
type Settings struct {
	VCenter       string         // its name
	Instance      string         // owner.instance
	SendWindow    time.Duration  // T: how late after its proof of ownership a call may still be sent
	TravelTime    time.Duration  // D: how long a sent call can travel
	VisibilityLag time.Duration  // V: how long a look may miss its effect
	AckWait       time.Duration  // how long after its owner's last heartbeat a request is delivered again; 0: not known
	Drain         time.Duration  // how long a run may go on with what it has in hand once its context has ended
	Meter         Meter          // may be nil
	Tracer        tracing.Tracer // the zero value makes no spans
}

// Handler takes the requests of one vCenter to their ends.
type Handler struct {
	Settings
	vc      VCenter
	journal Journal
	queue   RequestQueue
	secrets Secrets
	log     zerolog.Logger
	kinds   []stepKind

	mu     sync.Mutex
	spared map[string]spared // by VM
}

// New makes the handler of one vCenter.
func New(s Settings, vc VCenter, journal Journal, queue RequestQueue, secrets Secrets, log zerolog.Logger) *Handler {
	if s.Meter == nil {
		s.Meter = unmetered{}
	}
	return &Handler{Settings: s, vc: vc, journal: journal, queue: queue, secrets: secrets, log: log, kinds: stepKinds(),
		spared: map[string]spared{}}
}

// Handle works on a request until its run has ended, or this process must let go of it. ctx ends when the process is to
// stop: the run is then given back. The answer tells what becomes of the message: nil: its run has ended, acknowledge
// it · events.ErrFenced: it is another owner's, be silent · events.ErrReleased: give it back at once ·
// *events.RetryError: later · *events.RejectError: refuse it · else: be silent, the stream delivers it again.
func (h *Handler) Handle(ctx context.Context, req *events.Request) error {
	for pause := newPause(turnPause); ; {
		if err := h.waitForTurn(ctx, req); err != nil {
			return err
		}
		last, err := h.journal.Last(ctx, req.VCenter, req.VM)
		if err != nil {
			return h.releaseIfStopping(ctx, err)
		}
		if last == nil {
			return h.begin(ctx, req, nil, checkpoint{})
		}
		point, err := readCheckpoint(last)
		if err != nil {
			h.log.Error().Err(err).Str("vm", req.VM).Msg("request given back: its VM's journal was written by " +
				"another version of guestflow")
			return &events.RetryError{After: unknownVersionDelay, Err: err}
		}

		ended := last.Kind.Last()
		if ended {
			point.Past = point.ended(&last.Run)
		}
		past, isPast := point.past(req.RunID)
		ours := last.Run.ID == req.RunID
		if !isPast {
			if back, err := h.cameBack(ctx, req, last, point); err != nil {
				return h.releaseIfStopping(ctx, err)
			} else if back {
				h.log.Warn().Str("vm", req.VM).Str("run", req.RunID).Uint64("seq", req.Seq).
					Msg("request acknowledged: it came back after a later one had begun, so its run has ended")
				return nil
			}
		}

		switch {
		case isPast: // also while a later run is under way: its acknowledgement was lost
			return repeated(req, past.Digest)
		case ended:
			return h.begin(ctx, req, last, point)
		case ours && (point.isOf(req) || point.Digest == req.Digest):
			if h.leaveToOwner(last) {
				return fmt.Errorf("run %s may be alive in the hands of %s: %w", last.Run.ID, last.Run.Owner.Instance,
					events.ErrFenced)
			}

			return h.resume(ctx, req, last, point)
		}

		if err := h.displace(ctx, req, last, point, pause); err != nil {
			return h.releaseIfStopping(ctx, err)
		}
	}
}

// displace ends the run that stands where a request's own is to begin, if that run's request has left the stream: the
// journal lost its end, or somebody purged it. As long as that is not proved, the run is its owner's.
func (h *Handler) displace(ctx context.Context, req *events.Request, last *events.Entry, point checkpoint,
	pause *backoff.Backoff) error {
	was := point.place(last)
	gone, err := h.queue.Gone(ctx, h.VCenter, last.Run.VM, was)
	if err != nil {
		return err
	}
	if gone || req.Place().Replaces(was) {
		err := h.closeOrphan(ctx, last, point)
		if !errors.Is(err, events.ErrFenced) { // fenced: the read was older than the run's end
			return err
		}
	}

	if pause.Wait(ctx) != nil {
		return events.ErrReleased
	}
	return nil
}

// leaveToOwner reports whether a run is left to its owner, once for each of its events, although its request was
// delivered again: heartbeats could not be sent while NATS was away, or while a server that was killed had the stream.
// The request is dropped without a word. If its owner lives, its heartbeats keep it from now on, and no takeover's wait
// is due; if it does not, the request comes again after the ack wait. A request comes again because its owner is dead
// no sooner than two thirds of the ack wait after the owner's last event: it sends a heartbeat each third.
func (h *Handler) leaveToOwner(last *events.Entry) bool {
	owner := last.Run.Owner
	if h.AckWait <= 0 || last.Kind == events.RunReleased || owner == nil || owner.Instance == h.Instance {
		return false
	}
	age, back := time.Since(last.At), h.queue.ReconnectedAt()
	alive := age > -h.AckWait/2 && age < h.AckWait/2
	if !alive && (back.IsZero() || time.Since(back) > h.AckWait) {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()

	// One that is older is not asked for: its event is no longer young, and the outage before it is over for longer
	// than an ack wait.
	maps.DeleteFunc(h.spared, func(_ string, s spared) bool { return time.Since(s.at) > 2*h.AckWait })
	if h.spared[last.Run.VM].seq == last.Seq {
		return false
	}
	h.spared[last.Run.VM] = spared{seq: last.Seq, at: time.Now()}
	return true
}

// spared is the event whose owner was left its run once, and when.
type spared struct {
	seq uint64
	at  time.Time
}

// unknownVersionDelay leaves a roll-out time to replace this build, or the other one time to end the run.
const unknownVersionDelay = 30 * time.Second

// repeated answers a request whose run has ended: the repeat of it changes nothing, other data under its name is
// refused.
func repeated(req *events.Request, digest string) error {
	if digest == req.Digest {
		return nil
	}
	return &events.RejectError{Code: events.DuplicateRequest, Message: fmt.Sprintf(
		"source %q and id %q named a request with other data before: give each request an id of its own",
		req.Ref.Source, req.Ref.ID)}
}

// releaseIfStopping turns the end of the process's time into the request's return; any other error stays as it is.
func (h *Handler) releaseIfStopping(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, events.ErrFenced) {
		return events.ErrReleased
	}
	return err
}

// waitForTurn waits until no older request for the VM is in the stream: requests for one VM run one after another, in
// the order of the stream. A second copy of a request is a later one.
func (h *Handler) waitForTurn(ctx context.Context, req *events.Request) error {
	wake, stop := h.queue.Wake(req.VCenter, req.VM)
	defer stop()
	pause, here := newPause(turnPause), func() {}
	defer func() { here() }()
	for first := true; ; first = false {
		head, err := h.queue.Oldest(ctx, req.VCenter, req.VM)
		switch {
		case err != nil:
			return h.releaseIfStopping(ctx, err)
		case head != nil && head.Place().Is(req.Place()):
			return nil // who shows it has seen all that stood before it, and holds none of that
		case head == nil || !head.Place().Before(req.Place()):
			gone, err := h.queue.Gone(ctx, req.VCenter, req.VM, req.Place())
			if err != nil {
				return h.releaseIfStopping(ctx, err)
			}
			if gone {
				return fmt.Errorf("request %d for vm %s has left the stream: %w", req.Seq, req.VM, events.ErrFenced)
			}
		}

		if first {
			here = h.Meter.Queued()
		}

		// The acknowledgement follows the last event that wakes us, some milliseconds later: hence the reads in quick
		// succession, then rarely.
		if pause.WaitOrWake(ctx, wake) != nil {
			return events.ErrReleased
		}
	}
}

const turnPause = 10 * time.Millisecond

var _ VCenter = (*vcapi.Client)(nil)
