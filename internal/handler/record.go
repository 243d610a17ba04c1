package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/tracing"
)

// record stores the run's state as its next event.
func (r *run) record(k events.Kind) error {
	ctx := r.lasting()
	err := r.append(ctx, k)
	if errors.Is(err, events.ErrForgotten) && r.owner.stored {
		if err := r.restartJournal(ctx, k); err != nil {
			return err
		}
		err = r.append(ctx, k)
	}
	return err
}

// append stores the run's state as its event k, on top of the event that this owner knows.
func (r *run) append(ctx context.Context, k events.Kind) error {
	if r.unblocks(k) {
		r.setAnnounced(announcement{})
		r.telemetry.unblocked()
	}

	r.saveClock()
	if k != events.RunReleased {
		r.point.Released = nil
	}
	if r.owner.mayBeReplaced() {
		if err := r.journal.ConfirmNotReplaced(ctx, r.VCenter, r.vm, r.owner.last); err != nil {
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
	if k.Step() != events.StepProcess { // only those are about one process
		r.state.Process = ""
	}

	r.state.N++
	id := r.owner.messageID(r.state.ID, r.state.N)
	seq, err := r.publish(ctx, id, k)
	if err != nil { // its number is free again, its ID is not: nobody may take another event for this one
		r.state.N--
		r.owner.renew()
		return fmt.Errorf("vm %s: run %s: append %s: %w", r.vm, r.state.ID, k, err)
	}

	r.owner.wrote(seq, id)
	if k == events.RunAccepted {
		r.point.Accepted = seq
	}
	r.logEvent(k)
	return nil
}

// publish stores the event, in a span of its own that the event names as its parent for whoever hears of it.
func (r *run) publish(ctx context.Context, id string, k events.Kind) (uint64, error) {
	ctx, span := r.Tracer.Start(ctx, "append "+string(k), trace.WithSpanKind(trace.SpanKindProducer))
	defer span.End()
	attrs := r.attrs
	if parent, state, ok := tracing.Of(ctx); ok {
		attrs.TraceParent, attrs.TraceState = parent, state
	}
	began := time.Now()
	seq, err := r.journal.Append(ctx, r.owner.last.Seq, id, k, attrs, &r.state)
	if err != nil {
		r.telemetry.notAppended(span, err)
		return 0, err
	}

	r.telemetry.appended(ctx, k, &r.state, time.Since(began))
	return seq, nil
}

// logEvent is the line of an event that was stored.
func (r *run) logEvent(k events.Kind) {
	l := r.logger().Info()
	if r.telemetry.step != nil && r.state.Error == nil {
		l = l.Str("step", r.telemetry.step.name)
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
		l = l.Str("waiting", string(r.state.Waiting)).AnErr("for", r.blocked.by)
	}
	l.Int("n", r.state.N).Msg(string(k))
}
