package handler

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// owner is what one process holds of a run: its position in the VM's journal, and the call that may take effect
// although nobody has its answer.
type owner struct {
	token    string      // no other owner writes message IDs with it
	last     events.Mark // the event that the next one stands on
	previous events.Mark // the event that last stands on
	stored   bool        // this owner has stored an event
	storedAt time.Time   // when it stored last

	tookOver bool // another owner may have called before us
	// No effect and no conclusive look before: until then a call that is not ours, or has no answer, may still take
	// effect.
	notBefore time.Time

	inFlight      bool      // the checkpoint's intent is open: its call may have been made, and nobody knows
	inFlightErr   error     // why that call has no answer
	lookAgain     bool      // a call of this effect was not answered: each further round looks what has come of that
	lostAnswers   int       // of the present effect, one after the other
	retryAt       time.Time // when the next attempt is made after one whose answer was lost
	abortInFlight bool      // an owner before us may have made an abort, of which the journal tells only the intent
}

// renew gives the owner another token: a message ID that was used is never used for another event.
func (o *owner) renew() { o.token = rand.Text()[:10] }

// standsOn makes an event of another owner the one that the next one stands on.
func (o *owner) standsOn(e *events.Entry) { o.last = events.Mark{Seq: e.Seq, MsgID: e.MsgID} }

// messageID names an event of this owner.
func (o *owner) messageID(run string, n int) string { return fmt.Sprintf("%s.%d.%s", run, n, o.token) }

// wrote moves the owner's position to an event that it has stored.
func (o *owner) wrote(seq uint64, msgID string) {
	o.previous, o.last = o.last, events.Mark{Seq: seq, MsgID: msgID}
	o.stored, o.storedAt = true, time.Now()
}

// mayBeReplaced reports whether the event that the next one stands on may have lost its place to another one of the
// same sequence, in a stream that was made anew: it is ours, and old.
func (o *owner) mayBeReplaced() bool {
	return o.stored && o.last != (events.Mark{}) && time.Since(o.storedAt) > freshEvent
}

// freshEvent is how old an event of ours may be for the next one to be compared with its sequence alone.
const freshEvent = 5 * time.Second

// quiet reports whether no call can take effect any more of which nobody has the answer.
func (o *owner) quiet() bool { return !o.inFlight && !time.Now().Before(o.notBefore) }

// sentUnanswered notes a call without an answer: it may take effect until a moment, and is not made again before
// another.
func (o *owner) sentUnanswered(err error, lands, most time.Duration) {
	o.inFlightErr, o.lookAgain, o.notBefore = err, true, time.Now().Add(lands)
	o.retryAt = time.Now().Add(max(lands, min(lands<<min(o.lostAnswers, 10), most)))
	o.lostAnswers++
}

// answered notes that it is known what has come of the call.
func (o *owner) answered() { o.inFlight, o.inFlightErr = false, nil }

// effected notes that the call has taken effect, and that this is told.
func (o *owner) effected() {
	o.answered()
	o.lookAgain, o.lostAnswers, o.retryAt = false, 0, time.Time{}
}

// errNotOurs is why something may still take effect of which this process made no call.
var errNotOurs = errors.New("a call that the run's owner before this one made may still take effect")

// waitInFlight waits until no call that was made before can take effect unseen, and until also.
func (r *run) waitInFlight(ctx context.Context, also time.Time) error {
	until := r.owner.notBefore
	if also.After(until) {
		until = also
	}
	if left := time.Until(until); left > 0 && ctx.Err() == nil {
		if left >= tellFrom {
			why := errNotOurs
			if err := r.owner.inFlightErr; err != nil {
				why = fmt.Errorf("the answer does not tell whether the call took effect: %w", err)
			}
			if err := r.reportBlocked(events.WaitingCallsInFlight, why); err != nil {
				return err
			}
		}

		_, span := r.Tracer.Start(ctx, "until earlier calls must show")
		defer span.End()
	}

	if sleepUntil(ctx, until) != nil {
		return r.interrupted(ctx)
	}
	r.telemetry.unblockedBy(events.WaitingCallsInFlight)
	return nil
}
