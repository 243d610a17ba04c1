// Package tracing makes OpenTelemetry spans of a run, in the trace that its publisher began. A run may change its
// owner, and the process that began a span may be gone when the span ends. So the IDs of the spans of a run and of its
// steps are derived from their names: any owner continues them, and only the one that sees the end of a span reports
// it.
package tracing

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Tracer makes spans. The zero value makes none.
type Tracer struct {
	tracer   trace.Tracer
	provider *sdk.TracerProvider
}

// New is the Tracer for the process's environment. It dials nothing: spans that cannot be sent are dropped, and the log
// says so.
func New(ctx context.Context, version, instance string, log zerolog.Logger) (Tracer, error) {
	// OpenTelemetry has one logger and one place for errors per process, and both print to standard error, past the
	// log.
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(
		otel.ErrorHandlerFunc(func(err error) { log.Warn().Err(err).Msg("OpenTelemetry reports an error") }),
	)
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return Tracer{}, fmt.Errorf("traces: %w", err)
	}

	about, err := resource.New(
		ctx,
		resource.WithAttributes(
			semconv.ServiceName("guestflow"), semconv.ServiceVersion(version), semconv.ServiceInstanceID(instance),
		),
		resource.WithTelemetrySDK(),
		resource.WithFromEnv(),
	)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return Tracer{}, fmt.Errorf("traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}

	return To(sdk.NewBatchSpanProcessor(&logged{SpanExporter: exporter, log: log}), about), nil
}

// To is a Tracer whose spans go to a processor, with attributes of the process.
func To(processor sdk.SpanProcessor, about *resource.Resource) Tracer {
	provider := sdk.NewTracerProvider(
		sdk.WithResource(about), sdk.WithIDGenerator(ids{}), sdk.WithSpanProcessor(processor),
	)
	return Tracer{tracer: provider.Tracer("github.com/guestflow/guestflow"), provider: provider}
}

// Close sends the spans that have not been sent yet.
func (t Tracer) Close(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Tracer is for packages that make spans of their own.
func (t Tracer) Tracer() trace.Tracer {
	if t.tracer == nil {
		return noop.Tracer{}
	}
	return t.tracer
}

// Named begins a span at a time, or continues it where another process began it: the same name always means the same
// span. Its parent is the span of ctx, or none. The span is reported when End is called on it, by the process that sees
// its end.
func (t Tracer) Named(
	ctx context.Context, name, title string, at time.Time, opts ...trace.SpanStartOption,
) (context.Context, trace.Span) {
	_, span := t.Tracer().
		Start(context.WithValue(ctx, wantedID{}, name), title, append(opts, trace.WithTimestamp(at))...)
	return trace.ContextWithSpan(ctx, span), span // without the name: it is this span's alone
}

// Start begins a span that no other process continues.
func (t Tracer) Start(ctx context.Context, title string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	return t.Tracer().Start(ctx, title, opts...)
}

// Failed marks a span with the code of an error. Texts of vCenter and of guests stay out of traces.
func Failed(span trace.Span, code string) {
	span.SetStatus(codes.Error, code)
	span.SetAttributes(attribute.String("error.type", code))
}

// From makes ctx part of the trace that traceparent and tracestate name, if they name one.
//
// Source: W3C Trace Context; CloudEvents, Distributed Tracing extension.
func From(ctx context.Context, traceparent, tracestate string) context.Context {
	return propagation.TraceContext{}.Extract(
		ctx, propagation.MapCarrier{"traceparent": traceparent, "tracestate": tracestate},
	)
}

// Of is the traceparent and the tracestate of the span of ctx; ok is false where that span is not reported.
func Of(ctx context.Context) (traceparent, tracestate string, ok bool) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return "", "", false
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"], carrier["tracestate"], true
}

// ID is the trace of ctx in hexadecimal; "" where it has none.
func ID(ctx context.Context) string {
	if c := trace.SpanContextFromContext(ctx); c.HasTraceID() {
		return c.TraceID().String()
	}
	return ""
}

// wantedID is the context's key for the name of the span to be begun.
type wantedID struct{}

// ids derives the IDs of named spans from their names, and makes the others at random.
type ids struct{}

// NewIDs implements sdk.IDGenerator, for a span without a parent.
func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	name, named := ctx.Value(wantedID{}).(string)
	if !named {
		name = rand.Text()
	}
	sum := sha256.Sum256([]byte("trace " + name))
	return trace.TraceID(sum[:16]), spanID(name)
}

// NewSpanID implements sdk.IDGenerator.
func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if name, named := ctx.Value(wantedID{}).(string); named {
		return spanID(name)
	}
	return spanID(rand.Text())
}

func spanID(name string) trace.SpanID {
	sum := sha256.Sum256([]byte("span " + name))
	return trace.SpanID(sum[:8])
}
