package handler

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/tracing"
)

// Meter receives what a handler does, for the metrics. Its methods are called from many goroutines and return at once.
// ctx is part of the run's trace, if there is one.
type Meter interface {
	// Queued counts a request that waits for an earlier request for its VM, until done is called.
	Queued() (done func())
	// InStep counts a run in a step, until done is called.
	InStep(step string) (done func())
	// Blocked counts a run that has to wait, until done is called.
	Blocked(why events.Waiting) (done func())

	// RunStarted counts a run. queued is how long its request was in the stream.
	RunStarted(ctx context.Context, queued time.Duration)
	// EventStored counts an event. took is the duration of the append.
	EventStored(ctx context.Context, k events.Kind, run *events.Run, took time.Duration)
	// Fenced counts an append that was refused because another owner goes on with the run.
	Fenced()
	// StepEnded measures a step.
	StepEnded(ctx context.Context, step string, outcome events.State, took time.Duration)
	// FinalEventLag measures the time from the end of what a step waited for to the event that says so.
	FinalEventLag(ctx context.Context, step string, lag time.Duration)

	// EffectFound counts a call whose response was lost and whose effect was found.
	EffectFound(effect string)
	// EffectUncertain counts a call of which it cannot be found out whether it took effect.
	EffectUncertain(effect string)
}

// unmetered is the Meter of a handler that has none.
type unmetered struct{}

func nothing() {}

func (unmetered) Queued() func()                                                       { return nothing }
func (unmetered) InStep(string) func()                                                 { return nothing }
func (unmetered) Blocked(events.Waiting) func()                                        { return nothing }
func (unmetered) RunStarted(context.Context, time.Duration)                            {}
func (unmetered) EventStored(context.Context, events.Kind, *events.Run, time.Duration) {}
func (unmetered) Fenced()                                                              {}
func (unmetered) StepEnded(context.Context, string, events.State, time.Duration)       {}
func (unmetered) FinalEventLag(context.Context, string, time.Duration)                 {}
func (unmetered) EffectFound(string)                                                   {}
func (unmetered) EffectUncertain(string)                                               {}

// telemetry is what metrics and traces show of a run.
type telemetry struct {
	meter  Meter
	tracer tracing.Tracer

	step    *stepSpan  // the step that the run stands in, or ended in
	span    trace.Span // of the step that is under way
	blocked events.Waiting
	unblock func() // ends what blocked counts

	calledAt time.Time // when the answer to the step's call was known, by our clock; zero where another owner called
	endedAt  time.Time // when what the step started has ended, by our clock
}

// stepSpan is a step under way.
type stepSpan struct {
	name  string
	end   events.Kind // the event of its end
	ctx   context.Context
	span  trace.Span
	since time.Time
}

// inTrace makes ctx part of the run's span in the trace of its request. Every owner of the run has the same span.
func (h *Handler) inTrace(ctx context.Context, req *events.Request) context.Context {
	ctx = tracing.From(ctx, req.Attrs.TraceParent, req.Attrs.TraceState)
	kind := trace.WithSpanKind(trace.SpanKindConsumer)
	ctx, _ = h.Tracer.Named(ctx, req.RunID, "run", req.At, kind, h.about(req.RunID, req.VM))
	return ctx
}

func (h *Handler) about(run, vm string) trace.SpanStartEventOption {
	return trace.WithAttributes(attribute.String("guestflow.run", run),
		attribute.String("guestflow.vcenter", h.VCenter),
		attribute.String("guestflow.vm", vm))
}

// began tells that the run of a request has begun, which it could do at turn. The stream's clock may be ahead of ours.
func (t *telemetry) began(ctx context.Context, req *events.Request, turn time.Time) {
	if turn.Before(req.At) {
		turn = req.At
	}
	_, span := t.tracer.Start(ctx, "queue", trace.WithTimestamp(req.At))
	span.End(trace.WithTimestamp(turn))
	t.meter.RunStarted(ctx, turn.Sub(req.At))
}

// enter makes s the step that the run stands in, since a time; the step lives in the context that it returns. leave is
// called with what became of it: the end of a step that failed is told with that of the run.
func (t *telemetry) enter(ctx context.Context, run string, s *step, since time.Time) (_ context.Context,
	leave func(error)) {
	ctx, span := t.tracer.Named(ctx, run+"/"+s.name+"/"+s.process, s.name, since)
	if s.process != "" {
		span.SetAttributes(attribute.String("guestflow.process", s.process))
	}
	t.step = &stepSpan{name: s.name, end: s.end, ctx: ctx, span: span, since: since}
	t.span, t.calledAt, t.endedAt = span, time.Time{}, time.Time{}
	left := t.meter.InStep(s.name)
	return ctx, func(err error) {
		left()
		if err == nil {
			t.leave(*s.state, "")
		}
		t.span = nil
	}
}

// leave tells the end of the step that the run stands in.
func (t *telemetry) leave(outcome events.State, code events.Code) {
	if t.step == nil {
		return
	}
	if code != "" {
		tracing.Failed(t.step.span, string(code))
	}
	if outcome != events.Skipped {
		t.meter.StepEnded(t.step.ctx, t.step.name, outcome, time.Since(t.step.since))
	}
	t.step.span.End()
	t.step = nil
}

// ended tells the end of the run, whose last event is stored; span is the run's.
func (t *telemetry) ended(span trace.Span, state *events.Run) {
	var code events.Code
	if state.Error != nil {
		code = state.Error.Code
	}
	t.leave(events.State(state.Status), code)
	span.SetAttributes(attribute.String("guestflow.outcome", string(state.Status)),
		attribute.Int("guestflow.takeovers", state.Owner.Takeovers))
	if code != "" {
		tracing.Failed(span, string(code))
	}
	span.End()
}

// within is ctx with the span of the step that is under way, if one is.
func (t *telemetry) within(ctx context.Context) context.Context {
	if t.span == nil {
		return ctx
	}
	return trace.ContextWithSpan(ctx, t.span)
}

// appended tells that an event was stored, and how long after its end that of a step was.
func (t *telemetry) appended(ctx context.Context, k events.Kind, state *events.Run, took time.Duration) {
	t.meter.EventStored(ctx, k, state, took)
	if t.step != nil && t.step.end == k && !t.endedAt.IsZero() {
		t.meter.FinalEventLag(ctx, t.step.name, max(0, time.Since(t.endedAt)))
		t.endedAt = time.Time{}
	}
}

// notAppended tells that an event was not stored.
func (t *telemetry) notAppended(span trace.Span, err error) {
	if errors.Is(err, events.ErrFenced) {
		tracing.Failed(span, "fenced")
		t.meter.Fenced()
		return
	}

	tracing.Failed(span, "not stored")
}

// blockedBy counts the run as one that cannot move.
func (t *telemetry) blockedBy(why events.Waiting) {
	if why == t.blocked {
		return
	}
	t.unblocked()
	t.blocked, t.unblock = why, t.meter.Blocked(why)
}

// unblockedBy counts the run no longer as one that waits for that reason.
func (t *telemetry) unblockedBy(why events.Waiting) {
	if t.blocked == why {
		t.unblocked()
	}
}

// unblocked counts the run no longer as one that cannot move.
func (t *telemetry) unblocked() {
	if t.blocked == "" {
		return
	}
	t.unblock()
	t.blocked, t.unblock = "", nil
}

// ranFor notes when what the step started has ended: it ran for that long. Two clocks are not compared: how long it ran
// is by the clock of vCenter or of the guest, when it began is by ours.
func (t *telemetry) ranFor(d time.Duration) {
	if !t.calledAt.IsZero() {
		t.endedAt = t.calledAt.Add(d)
	}
}
