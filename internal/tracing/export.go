package tracing

import (
	"context"
	"sync/atomic"

	"github.com/rs/zerolog"
	sdk "go.opentelemetry.io/otel/sdk/trace"
)

// logged writes one log line when spans cannot be sent, and one when they can again.
type logged struct {
	sdk.SpanExporter
	log    zerolog.Logger
	failed atomic.Bool
}

// ExportSpans implements sdk.SpanExporter. Its error ends here: OpenTelemetry would print it at every batch, and not
// through the log.
func (l *logged) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := l.SpanExporter.ExportSpans(ctx, spans)
	switch failed := err != nil; {
	case failed && l.failed.CompareAndSwap(false, true):
		l.log.Warn().
			Err(err).
			Msg("traces cannot be sent and are dropped: see OTEL_EXPORTER_OTLP_ENDPOINT and its collector")
	case !failed && l.failed.CompareAndSwap(true, false):
		l.log.Info().Msg("traces are sent again")
	}
	return nil //nolint:nilerr // it was told
}
