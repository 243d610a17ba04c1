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

// Meter is told what a handler does; metrics are made of it. Its methods are called from many goroutines and return at once. ctx is part of the run's
// trace, where there is one. Behind, At and Waits count until the function that they return is called.
type Meter interface {
	Behind() (done func())                                                              // a request waits for its VM's earlier one
	At(step string) (done func())                                                       // a run stands in this step
	Waits(why events.Waiting) (done func())                                             // a run cannot move
	Began(ctx context.Context, queued time.Duration)                                    // a run was begun, so long after the stream stored its request
	Stored(ctx context.Context, k events.Kind, run *events.Run, took time.Duration)     // an event was stored; the append took so long
	Fenced()                                                                            // an append was refused: another owner goes on
	Stepped(ctx context.Context, step string, outcome events.State, took time.Duration) // a step ended
	EndStored(ctx context.Context, step string, late time.Duration)                     // the event of an end was stored so long after the end
	Adopted(act string)                                                                 // the effect of a call of which nobody had an answer was found
	Uncertain(act string)                                                               // nobody can tell whether a call took effect
}

// unmetered is the Meter of a handler that has none.
type unmetered struct{}

func nothing() {}

func (unmetered) Behind() func()                                                  { return nothing }
func (unmetered) At(string) func()                                                { return nothing }
func (unmetered) Waits(events.Waiting) func()                                     { return nothing }
func (unmetered) Began(context.Context, time.Duration)                            {}
func (unmetered) Stored(context.Context, events.Kind, *events.Run, time.Duration) {}
func (unmetered) Fenced()                                                         {}
func (unmetered) Stepped(context.Context, string, events.State, time.Duration)    {}
func (unmetered) EndStored(context.Context, string, time.Duration)                {}
func (unmetered) Adopted(string)                                                  {}
func (unmetered) Uncertain(string)                                                {}

// measured is what metrics and traces show of a run.
type measured struct {
	stage   *stage // the step that it stands in, or ended in
	waits   events.Waiting
	waited  func()    // ends what waits counts
	acted   time.Time // when the fact of the step's act was known, by our clock; zero where another owner acted
	endedAt time.Time // when what the step started has ended, by our clock
}

// stage is a step under way.
type stage struct {
	name  string
	end   events.Kind // the event of its end
	ctx   context.Context
	span  trace.Span
	since time.Time
}

// inTrace makes ctx part of the run's span in the trace of its request. Every owner of the run has the same span.
func (h *Handler) inTrace(ctx context.Context, req *events.Request) context.Context {
	ctx, _ = h.Tracer.Named(tracing.From(ctx, req.Attrs.TraceParent, req.Attrs.TraceState), req.RunID, "run", req.At, trace.WithSpanKind(trace.SpanKindConsumer),
		h.about(req.RunID, req.VM))
	return ctx
}

func (h *Handler) about(run, vm string) trace.SpanStartEventOption {
	return trace.WithAttributes(attribute.String("guestflow.run", run), attribute.String("guestflow.vcenter", h.VCenter), attribute.String("guestflow.vm", vm))
}

// began tells that the run has begun, which it could do at turn. The stream's clock may be ahead of ours.
func (r *run) began(turn time.Time) {
	if turn.Before(r.req.At) {
		turn = r.req.At
	}
	_, span := r.Tracer.Start(r.ctx, "queue", trace.WithTimestamp(r.req.At))
	span.End(trace.WithTimestamp(turn))
	r.Meter.Began(r.ctx, turn.Sub(r.req.At))
}

// enter makes s the step that the run stands in. leave is called with what became of it: its end is told here where it is stored, the end of a step that failed
// with that of the run.
func (r *run) enter(s *step) (leave func(error)) {
	since := time.Now()
	if r.point.StepSince != nil && r.point.Step == s.name+"/"+s.process {
		since = *r.point.StepSince
	}
	ctx, life := r.ctx, r.life
	within, span := r.Tracer.Named(r.ctx, r.state.ID+"/"+s.name+"/"+s.process, s.name, since)
	if s.process != "" {
		span.SetAttributes(attribute.String("guestflow.process", s.process))
	}
	r.ctx, r.life = within, trace.ContextWithSpan(r.life, span)
	r.stage = &stage{name: s.name, end: s.end, ctx: within, span: span, since: since}
	r.acted, r.endedAt = time.Time{}, time.Time{}
	left := r.Meter.At(s.name)
	return func(err error) {
		left()
		if err == nil {
			r.leave(*s.state, "")
		}
		r.ctx, r.life = ctx, life
	}
}

// leave tells the end of the step that the run stands in.
func (r *run) leave(outcome events.State, code events.Code) {
	if r.stage == nil {
		return
	}
	if code != "" {
		tracing.Failed(r.stage.span, string(code))
	}
	if outcome != events.Skipped {
		r.Meter.Stepped(r.stage.ctx, r.stage.name, outcome, time.Since(r.stage.since))
	}
	r.stage.span.End()
	r.stage = nil
}

// ended tells the end of the run, whose last event is stored.
func (r *run) ended() {
	var code events.Code
	if r.state.Error != nil {
		code = r.state.Error.Code
	}
	r.leave(events.State(r.state.Status), code)
	span := trace.SpanFromContext(r.life)
	span.SetAttributes(attribute.String("guestflow.outcome", string(r.state.Status)), attribute.Int("guestflow.takeovers", r.state.Owner.Takeovers))
	if code != "" {
		tracing.Failed(span, string(code))
	}
	span.End()
}

// append stores the run's state, in a span of its own that the event names as its parent for whoever hears of it.
func (r *run) append(ctx context.Context, id string, k events.Kind) (uint64, error) {
	ctx, span := r.Tracer.Start(ctx, "append "+string(k), trace.WithSpanKind(trace.SpanKindProducer))
	defer span.End()
	attrs := r.attrs
	if parent, state, ok := tracing.Of(ctx); ok {
		attrs.TraceParent, attrs.TraceState = parent, state
	}
	began := time.Now()
	seq, err := r.journal.Append(ctx, r.on.Seq, id, k, attrs, &r.state)
	switch {
	case errors.Is(err, events.ErrFenced):
		tracing.Failed(span, "fenced")
		r.Meter.Fenced()
		return 0, err
	case err != nil:
		tracing.Failed(span, "not stored")
		return 0, err
	}
	r.Meter.Stored(ctx, k, &r.state, time.Since(began))
	if r.stage != nil && r.stage.end == k && !r.endedAt.IsZero() {
		r.Meter.EndStored(ctx, r.stage.name, max(0, time.Since(r.endedAt)))
		r.endedAt = time.Time{}
	}
	return seq, nil
}

// waitsFor counts the run as one that cannot move.
func (r *run) waitsFor(why events.Waiting) {
	if why == r.waits {
		return
	}
	r.moves(r.waits)
	r.waits, r.waited = why, r.Meter.Waits(why)
}

// moves counts the run no longer as one that waits for that reason.
func (r *run) moves(why events.Waiting) {
	if r.waits == "" || r.waits != why {
		return
	}
	r.waited()
	r.waits, r.waited = "", nil
}

// endedAfter notes when what the step started has ended: it ran for that long. Two clocks are not compared: how long it ran is by the clock of vCenter or of
// the guest, when it began is by ours.
func (r *run) endedAfter(ran time.Duration) {
	if !r.acted.IsZero() {
		r.endedAt = r.acted.Add(ran)
	}
}
