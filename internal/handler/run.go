package handler

import (
	"cmp"
	"context"
	"crypto/rand"
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
	token string          // of this owner: no other one writes message IDs with it
	req   *events.Request // nil where an orphan is closed
	asked *events.RequestSpec

	// ctx ends, with its cause, when the run is to be given back, canceled or out of time: asks live in it. life outlasts it by the drain time:
	// appends and acts live in it, since neither may be left half done.
	ctx, life context.Context
	interrupt context.CancelCauseFunc
	kill      func()
	undrain   func() bool
	wake      <-chan struct{}
	unwake    func()
	forget    func() // the secrets that are hidden for this run
	unhidden  bool   // not all of them could be read in time

	state events.Run
	point checkpoint
	steps []*step     // that the state lists
	on    events.Mark // the event that the next one stands on
	under events.Mark // the event that on stands on

	tookOver    bool            // another owner may have called before us
	actFrom     time.Time       // no act and no conclusive look before: until then a call that is not ours, or without an answer, may still take effect
	open        bool            // the point's intent is open: its call may have been made, and nobody knows
	owns        bool            // this owner has stored an event
	onAt        time.Time       // when it stored on
	doubt       error           // why the open intent's call has no answer
	spec        json.RawMessage // what the guest is customized with, once it was read
	specGone    string          // why what the guest was customized with is not known any more
	guestFamily string          // as vCenter shows it, "" where it does not
	cards       []vcapi.Card    // the VM's NICs, as vCenter showed them last
	newest      string          // the newest Task on the VM that vCenter showed us
	lastErr     error           // what the run waited for last
	logged      bool            // the run's error
	asking      bool            // vCenter was asked at all
	stopping    bool            // the run is canceled, and what it has under way is being stopped
	abortOpen   bool            // an owner before us may have made an abort, of which the journal tells only the intent
	lookOn      bool            // a call of this act was not answered: each further round of it looks what has come of that

	patient
	measured // what metrics and traces show of it
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
	doubt         string        // the act that may or may not have taken effect
	waiting       events.Waiting
}

func (e *stepError) Error() string {
	if e.stored != nil {
		return e.stored.Message
	}
	return fmt.Sprintf("step %s: %s: %s", e.step, e.code, e.message)
}

func (e *stepError) Unwrap() error { return e.err }

func newToken() string { return rand.Text()[:10] }

// done lets go of the run's goroutines.
func (r *run) done() {
	r.moves(r.waits)
	r.unwake()
	r.undrain()
	r.interrupt(nil)
	r.kill()
	if r.forget != nil {
		r.forget()
	}
}

// logger names the run in every line.
func (r *run) logger() *zerolog.Logger {
	l := r.log.With().Str("vm", r.vm).Str("run", r.state.ID)
	if id := tracing.ID(r.life); id != "" {
		l = l.Str("trace_id", id)
	}
	log := l.Logger()
	return &log
}

// record stores the run's state as its next event.
func (r *run) record(k events.Kind) error {
	return r.store(k, r.life)
}

func (r *run) store(k events.Kind, ctx context.Context) error {
	err := r.put(ctx, k)
	if errors.Is(err, events.ErrForgotten) && r.owns {
		if err := r.afresh(ctx, k); err != nil {
			return err
		}
		err = r.put(ctx, k)
	}
	return err
}

// freshEvent is how old an event of ours may be for the next one to be compared with its sequence alone.
const freshEvent = 5 * time.Second

// put appends the run's state as its event k.
func (r *run) put(ctx context.Context, k events.Kind) error {
	if r.endsWait(k) {
		r.stillWaits(waitTold{})
		r.moves(r.waits)
	}
	r.keepTime()
	if k != events.RunReleased {
		r.point.Released = nil
	}
	// An event of ours that is old may have lost its place to another one of the same sequence, in a stream that was made anew.
	if r.owns && r.on != (events.Mark{}) && time.Since(r.onAt) > freshEvent {
		if err := r.journal.ConfirmNotReplaced(ctx, r.VCenter, r.vm, r.on); err != nil {
			return err
		}
	}
	point, err := json.Marshal(r.point)
	if err != nil {
		return fmt.Errorf("encode the checkpoint: %w", err)
	}
	r.state.Checkpoint = point
	process := r.state.Process
	defer func() { r.state.Process = process }()
	if !strings.HasPrefix(string(k), "process.") { // only those are about one process
		r.state.Process = ""
	}
	r.state.N++
	id := fmt.Sprintf("%s.%d.%s", r.state.ID, r.state.N, r.token)
	seq, err := r.append(ctx, id, k)
	if err != nil { // its number is free again, its ID is not: nobody may take another event for this one
		r.state.N--
		r.token = newToken()
		return fmt.Errorf("vm %s: run %s: append %s: %w", r.vm, r.state.ID, k, err)
	}
	r.under, r.on, r.onAt, r.owns = r.on, events.Mark{Seq: seq, MsgID: id}, time.Now(), true
	if k == events.RunAccepted {
		r.point.Accepted = seq
	}
	l := r.logger().Info()
	if r.stage != nil && r.state.Error == nil {
		l = l.Str("step", r.stage.name)
	}
	if r.state.Process != "" {
		l = l.Str("process", r.state.Process)
	}
	if e := r.state.Error; e != nil {
		l = l.Str("step", e.Step).Str("code", string(e.Code))
		if !r.logged { // once, where it is first told
			l = l.Str("error", e.Message)
		}
		r.logged = true
	}
	if r.state.Waiting != "" {
		l = l.Str("waiting", string(r.state.Waiting)).AnErr("for", r.lastErr)
	}
	l.Int("n", r.state.N).Msg(string(k))
	return nil
}

// takeOver makes this owner the run's: its append fences the one before.
func (r *run) takeOver(last *events.Entry, point checkpoint) error {
	r.state, r.point = last.Run.Carried(), point
	r.plan()
	if last.Kind == events.RunAccepted {
		r.point.Accepted = last.Seq
	}
	r.on = events.Mark{Seq: last.Seq, MsgID: last.MsgID}
	r.goOnTiming(last)
	owner := events.Owner{Instance: r.Instance, Takeovers: 1}
	if last.Run.Owner != nil {
		owner.Takeovers += last.Run.Owner.Takeovers
	}
	r.state.Owner = &owner
	// An abort in doubt is no question: it is made again.
	r.tookOver, r.open, r.asking = true, point.Intent != nil && point.Intent.Act != "abort", true
	r.lookOn, r.abortOpen = r.open, point.Intent != nil && point.Intent.Act == "abort"
	if err := r.record(events.RunResumed); err != nil {
		return err
	}
	// Counted from the answer to this very append: a former owner can have proved its ownership only before it.
	r.actFrom = time.Now().Add(r.SendWindow + r.TravelTime + r.VisibilityLag)
	return nil
}

// walk takes the run through its steps to its last event.
func (r *run) walk() error {
	ctx, cancel := context.WithDeadlineCause(r.ctx, *r.state.Deadline, errDeadline)
	defer cancel()
	r.ctx = ctx
	r.hide()
	if r.tookOver { // the cancel may be older than this owner, and the run's steps may only ask
		by, err := r.canceledBy(r.ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			return r.end(err)
		case by != nil:
			return r.end(&canceledError{by: *by})
		}
	}
	go r.listen(ctx, r.state.ID)
	for _, s := range r.steps {
		if err := r.doStep(s); err != nil {
			return r.end(err)
		}
	}
	return r.end(nil)
}

// listen interrupts the run when a cancel for it is published. It is heard before it is stored (on a replicated stream, milliseconds before), and may not be
// heard at all: hence the reads in quick succession, then rarely.
//
// It runs beside the run: it reads nothing of it that changes.
func (r *run) listen(ctx context.Context, id string) {
	for pause := newBackoff(turnPause); ; {
		if by, err := r.cancelOf(ctx, id); err == nil && by != nil {
			r.interrupt(&canceledError{by: *by})
			return
		}
		select {
		case <-r.wake:
			pause.reset()
		case <-pause.next():
		case <-ctx.Done():
			return
		}
	}
}

// canceledBy looks for a cancel of this run in the stream.
func (r *run) canceledBy(ctx context.Context) (*events.Cancel, error) {
	return r.cancelOf(ctx, r.state.ID)
}

func (r *run) cancelOf(ctx context.Context, id string) (*events.Cancel, error) {
	waiting, err := r.line.Cancels(ctx, r.VCenter, r.vm)
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

// end writes the run's last event, or gives the run back. No last event is written while a call may be outstanding.
func (r *run) end(why error) error {
	defer r.Meter.At("run")()
	var canceled *canceledError
	var failed *stepError
	switch {
	case errors.Is(why, events.ErrFenced):
		return why
	case errors.Is(why, errDrain):
		return r.release()
	case why == nil, errors.As(why, &canceled), errors.As(why, &failed):
	case errors.Is(why, errDeadline):
		failed = r.timeError(events.DeadlineExceeded, r.stands(), fmt.Sprintf("the run's time is over (timeout %s)", r.timeout()))
		if known := r.point.Failed; known != nil { // it was to be aborted and repeated
			failed = &stepError{stored: changedError(known, "; "+failed.message)}
		}
	case r.life.Err() != nil:
		return events.ErrReleased
	default:
		failed = r.failure(r.stands(), why)
	}
	if why != nil { // a run that succeeded has the fact of every call
		if err := r.settle(); err != nil {
			return err
		}
	}
	if canceled != nil {
		if err := r.stop(); err != nil {
			return err
		}
		if err := r.settle(); err != nil { // what stopped it has no answer
			return err
		}
	}
	if err := r.awaitAbort(); err != nil {
		return err
	}
	last, state := events.RunSucceeded, events.Skipped
	switch {
	case canceled != nil:
		last, state = events.RunCanceled, events.Canceled
		r.state.Status = events.StatusCanceled
		r.state.CanceledBy = &events.CanceledBy{Source: canceled.by.Ref.Source, ID: canceled.by.Ref.ID, Reason: canceled.by.Reason}
		in := r.stands()
		r.state.Error = &events.Error{Step: in.name, Process: in.process, Code: events.CodeCanceled, Message: canceled.Error()}
	case failed != nil:
		last, state = events.RunFailed, events.Failed
		r.state.Status = events.StatusFailed
		r.state.Error = r.errorOf(failed)
		if failed.doubt != "" {
			r.point.Doubt = append(r.point.Doubt, failed.doubt)
		} else if len(r.point.Doubt) > 0 {
			r.state.Error.Code, r.state.Error.Retryable = events.Uncertain, false
			r.state.Error.Message += fmt.Sprintf("; and nobody can tell whether the last call of step %s took effect: look at the guest", r.point.Doubt[0])
		}
	default:
		r.state.Status = events.StatusSucceeded
	}
	r.closeSteps(state)
	if r.asking && last != events.RunSucceeded {
		r.observe()
	}
	now := stamp(time.Now())
	r.state.FinishedAt, r.state.Process, r.point.Intent = &now, "", nil
	if err := r.record(last); err != nil {
		return r.endOn(err)
	}
	r.ended()
	return nil
}

// endOn turns the process's end in the middle of an append into silence: whether it was stored is the next owner's to read.
func (r *run) endOn(err error) error {
	if err != nil && r.life.Err() != nil && !errors.Is(err, events.ErrFenced) {
		return events.ErrReleased
	}
	return err
}

// release gives the run back in the middle. The mark lets the very next delivery act at once; it may only be set where no call is outstanding.
func (r *run) release() error {
	if r.open || time.Now().Before(r.actFrom) {
		return events.ErrReleased
	}
	r.point.Released = &release{Seq: r.req.Seq, At: moment(r.req.At), Delivered: r.req.Delivered}
	r.state.Process, r.point.Intent = "", nil
	if err := r.record(events.RunReleased); err != nil {
		return r.endOn(err)
	}
	return events.ErrReleased
}

// settle waits, before a last event, until no call can take effect unseen any more, and looks what it did: our own that has no answer, or one of
// an owner before us, whose intent a journal that lost its tail need not show.
func (r *run) settle() error {
	if !r.open && !time.Now().Before(r.actFrom) {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.life, max(0, time.Until(r.actFrom))+settleTime)
	defer cancel()
	if err := r.landed(ctx, time.Time{}); err != nil {
		return cmp.Or(onlyFenced(err), events.ErrReleased)
	}
	s := r.stands()
	switch {
	case s.effect == nil:
		if r.open { // an orphan whose request is gone too: nobody can look
			r.doubts(r.point.Intent.Act)
		}
		r.open = false
		return nil
	case *s.state == events.Running, s.state.Ended(): // its act's fact is stored: what was outstanding only stops it, and has landed
		r.open = false
		return nil
	case r.open && r.point.Intent != nil && r.point.Intent.Act == abortEffect: // it is no question what it did: awaitAbort lets it end
		if r.point.Repeat == s.effect.key(s) { // the customization before it still is one
			r.doubts(s.effect.name)
		}
		r.open = false
		return nil
	}
	for pause := newBackoff(askPause); ; {
		seen, err := s.effect.find(ctx)
		if err == nil {
			if seen.adopt != nil {
				seen.adopt()
				r.Meter.Adopted(s.effect.name)
				return r.endOn(r.fact(s))
			}
			if !seen.sure {
				r.doubts(s.effect.name)
			}
			r.open = false
			return nil
		}
		if !r.open {
			return nil // nothing was known to be under way, and the wait is over
		}
		if err := r.wait(events.WaitingVCenterUnavailable, err); err != nil {
			return r.endOn(err)
		}
		select {
		case <-pause.next():
		case <-ctx.Done():
			if r.life.Err() != nil {
				return events.ErrReleased
			}
			r.doubts(s.effect.name)
			r.open = false
			return nil
		}
	}
}

// doubts notes that nobody can report whether an act took effect.
func (r *run) doubts(act string) {
	r.Meter.Uncertain(act)
	r.point.Doubt = append(r.point.Doubt, act)
}

// settleTime bounds the last look of a run that is about to end while its vCenter does not answer.
const settleTime = 30 * time.Second

// observe notes what vCenter shows of the VM now.
func (r *run) observe() {
	ctx, cancel := context.WithTimeout(r.life, observeTime)
	defer cancel()
	r.state.Observed = &events.Observed{At: stamp(time.Now())} // that vCenter shows nothing is to be seen too
	vm, err := r.vc.VM(ctx, r.vm)
	if err != nil {
		return
	}
	r.noteVM(vm)
	e := r.expected(ctx)
	o := &events.Observed{At: stamp(time.Now()), PowerState: vm.PowerState, ToolsRunningStatus: vm.ToolsRunningStatus, ToolsVersion: vm.ToolsVersion,
		HostName: e.hide(vm.HostName), Guest: guestOf(vm.Customization)}
	for _, n := range vm.NICs {
		o.NICs = append(o.NICs, nicOf(e, n))
	}
	o.GuestLog = r.readEngineLog()
	r.state.Observed = o
}

const observeTime = 5 * time.Second

// noteVM keeps the VM's names, and its NICs, in the run.
func (r *run) noteVM(vm vcapi.VM) {
	if vm.Name != "" {
		r.state.VMName = vm.Name
	}
	if vm.InstanceUUID != "" {
		r.state.InstanceUUID = vm.InstanceUUID
	}
	if vm.Cards != nil {
		r.cards = vm.Cards
	}
	if vm.GuestFamily != "" {
		r.guestFamily = vm.GuestFamily
	} else if r.guestFamily == "" && strings.HasPrefix(strings.ToLower(vm.GuestID), "win") {
		r.guestFamily = "windowsGuest"
	}
}

// timeout is the run's, as asked for.
func (r *run) timeout() time.Duration {
	return r.state.Deadline.Sub(*r.state.AcceptedAt)
}

// stamp is a time as events show it.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func guestOf(c *vcapi.GuestCustomization) *events.Guest {
	if c == nil || c.Status == "" {
		return nil
	}
	return &events.Guest{Status: c.Status, Error: c.Error, StartTime: c.StartTime, EndTime: c.EndTime}
}
