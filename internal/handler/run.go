package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/tracing"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// run is a run in the hands of one owner: what its journal says, and what this owner may do.
type run struct {
	*Handler
	vm    string
	attrs events.Attributes
	req   *events.Request     // nil where an orphan is closed
	spec  *events.RequestSpec // nil where nothing tells any more what was asked for

	// Outlasts the run's own by the drain time: appends and calls, which may not be left half done, live in it.
	life      context.Context
	interrupt context.CancelCauseFunc // ends the run's own context, in which it reads
	close     func()                  // lets go of what the run holds beside its state
	wake      <-chan struct{}
	hidden    []string // the secrets that are hidden for this run
	forget    func()   // lets go of them
	unhidden  bool     // not all of them could be read in time

	state events.Run
	point checkpoint
	steps []*step // that the state lists

	owner      owner     // what this process holds of the run
	telemetry  telemetry // what metrics and traces show of it
	blocked    blocked   // what events have told of why it cannot move
	clock      stepClock
	seen       seen
	customSpec specInUse

	silentSince time.Time // when the first call was made that vCenter gave no answer of its own to; zero: it answers
	asking      bool      // vCenter was asked at all
	stopping    bool      // the run is canceled, and what it has under way is being stopped
	logged      bool      // the run's error
}

// seen is what vCenter showed last.
type seen struct {
	guestFamily string       // "" where it does not say
	cards       []vcapi.Card // the VM's NICs
	newestTask  string       // on the VM
}

// specInUse is what the guest is customized with, once it was read.
type specInUse struct {
	json json.RawMessage
	gone string // why it is not known any more what the guest was customized with
}

// errDrain interrupts a run that is to be given back; errDeadline one whose time is over.
var (
	errDrain    = errors.New("the process is to stop")
	errDeadline = errors.New("the run's time is over")
	errStepTime = errors.New("the step's time is over")
	errStopTime = errors.New("no answer in time")
)

// canceledError interrupts a run that somebody canceled.
type canceledError struct{ by events.Cancel }

func (e *canceledError) Error() string {
	message := fmt.Sprintf("canceled by source %q, id %q", e.by.Ref.Source, e.by.Ref.ID)
	if e.by.Reason != "" {
		message += ": " + e.by.Reason
	}
	return message
}

// stepError ends a run as failed.
type stepError struct {
	step, process string
	code          events.Code
	message       string
	retryable     bool
	err           error         // beneath: the vSphere fault
	stored        *events.Error // as an earlier event of this run has it: nothing else is set
	doubt         string        // the effect that may or may not have been made
	waiting       events.Waiting
}

func (e *stepError) Error() string {
	if e.stored != nil {
		return e.stored.Message
	}
	return fmt.Sprintf("step %s: %s: %s", e.step, e.code, e.message)
}

func (e *stepError) Unwrap() error { return e.err }

// done lets go of what the run holds beside its state.
func (r *run) done() {
	r.telemetry.unblocked()
	r.close()
	if r.forget != nil {
		r.forget()
	}
}

// lasting is the context of what may not be left half done, appends and calls: it outlasts the run's own by the drain
// time.
func (r *run) lasting() context.Context { return r.telemetry.within(r.life) }

// logger names the run in every line.
func (r *run) logger() *zerolog.Logger {
	l := r.log.With().Str("vm", r.vm).Str("run", r.state.ID)
	if id := tracing.ID(r.life); id != "" {
		l = l.Str("trace_id", id)
	}
	log := l.Logger()
	return &log
}

// takeOver makes this owner the run's: its append fences the one before.
func (r *run) takeOver(last *events.Entry, point checkpoint) error {
	r.state, r.point = last.Run.Carried(), point
	r.plan()
	if last.Kind == events.RunAccepted {
		r.point.Accepted = last.Seq
	}
	r.owner.standsOn(last)
	r.restoreClock(last)
	owner := events.Owner{Instance: r.Instance, Takeovers: 1}
	if last.Run.Owner != nil {
		owner.Takeovers += last.Run.Owner.Takeovers
	}
	r.state.Owner = &owner
	r.owner.tookOver, r.asking = true, true
	if open := point.Intent; open != nil { // an abort in doubt is no question: it is made again
		r.owner.abortInFlight = open.Act == abortEffect
		r.owner.inFlight = !r.owner.abortInFlight
		r.owner.lookAgain = r.owner.inFlight
	}

	if err := r.record(events.RunResumed); err != nil {
		return err
	}

	// Counted from the answer to this very append: a former owner can have proved its ownership only before it.
	r.owner.notBefore = r.afterOthersCalls()
	return nil
}

// afterOthersCalls is when whatever another owner has sent until now has landed, and shows.
func (r *run) afterOthersCalls() time.Time {
	return time.Now().Add(r.SendWindow + r.TravelTime + r.VisibilityLag)
}

// walk takes the run through its steps to its last event.
func (r *run) walk(ctx context.Context) error {
	ctx, cancel := context.WithDeadlineCause(ctx, *r.state.Deadline, errDeadline)
	defer cancel()
	r.hide(ctx)
	if r.owner.tookOver { // the cancel may be older than this owner, and the run's steps may only ask
		by, err := r.canceledBy(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			return r.end(err)
		case by != nil:
			return r.end(&canceledError{by: *by})
		}
	}

	go r.listen(ctx, r.state.ID)
	for _, s := range r.steps {
		if err := s.toEnd(ctx); err != nil {
			return r.end(err)
		}
	}

	return r.end(nil)
}

// listen interrupts the run when a cancel for it is published. It is heard before it is stored (on a replicated stream,
// milliseconds before), and may not be heard at all: hence the reads in quick succession, then rarely.
//
// It runs beside the run: it reads nothing of it that changes.
func (r *run) listen(ctx context.Context, id string) {
	for pause := newPause(turnPause); ; {
		if by, err := r.cancelOf(ctx, id); err == nil && by != nil {
			r.interrupt(&canceledError{by: *by})
			return
		}

		if pause.WaitOrWake(ctx, r.wake) != nil {
			return
		}
	}
}

// canceledBy looks for a cancel of this run in the stream.
func (r *run) canceledBy(ctx context.Context) (*events.Cancel, error) {
	return r.cancelOf(ctx, r.state.ID)
}

func (r *run) cancelOf(ctx context.Context, id string) (*events.Cancel, error) {
	waiting, err := r.queue.Cancels(ctx, r.VCenter, r.vm)
	if err != nil {
		return nil, fmt.Errorf("vm %s: look for cancels: %w", r.vm, err)
	}
	for i := range waiting {
		if waiting[i].RunID == id {
			return &waiting[i], nil
		}
	}

	return nil, nil
}

// interrupted is why ctx, made from the run's, has ended.
func (r *run) interrupted(ctx context.Context) error {
	cause := context.Cause(ctx)
	var canceled *canceledError
	if errors.As(cause, &canceled) || errors.Is(cause, errDeadline) || errors.Is(cause, errStepTime) ||
		errors.Is(cause, errLooked) || errors.Is(cause, errStopTime) {
		return cause
	}

	return errDrain
}

// noteVM keeps the VM's names, and its NICs, in the run.
func (r *run) noteVM(vm vcapi.VM) {
	if vm.Name != "" {
		r.state.VMName = vm.Name
	}
	if vm.InstanceUUID != "" {
		r.state.InstanceUUID = vm.InstanceUUID
	}
	if vm.Cards != nil {
		r.seen.cards = vm.Cards
	}
	if vm.GuestFamily != "" {
		r.seen.guestFamily = vm.GuestFamily
	} else if r.seen.guestFamily == "" && strings.HasPrefix(strings.ToLower(vm.GuestID), "win") {
		r.seen.guestFamily = "windowsGuest"
	}
}

// stamp is a time as events show it.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func guestOf(c *vcapi.GuestCustomization) *events.Guest {
	if c == nil || c.Status == "" {
		return nil
	}
	return &events.Guest{Status: c.Status, Error: c.Error, StartTime: c.StartTime, EndTime: c.EndTime}
}
