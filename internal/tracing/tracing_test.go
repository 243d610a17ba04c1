package tracing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type env map[string]string

func (e env) Lookup(key string) (string, bool) {
	v, ok := e[key]
	return v, ok
}

func TestCheck(t *testing.T) {
	t.Parallel()
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		key, value, says string
		more             env
	}{
		{key: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "collector:4318", says: "http://host:port"},
		{key: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://me:s3cr3t@collector:4318", says: "holds a user"},
		{key: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value: "https://", says: "http://host:port"},
		{key: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "grpc", says: "http/protobuf"},
		{key: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", value: "http/json", says: "http/protobuf"},
		{key: "OTEL_TRACES_EXPORTER", value: "zipkin", says: "otlp nor none"},
		{key: "OTEL_EXPORTER_OTLP_HEADERS", value: "Bearer s3cr3t", says: "name=value"},
		{key: "OTEL_EXPORTER_OTLP_HEADERS", value: "authorization: Bearer s3cr3t==", says: "name=value"},
		{key: "OTEL_EXPORTER_OTLP_TRACES_HEADERS", value: "authorization=Bearer s3cr3t%zz", says: "name=value"},
		{key: "OTEL_RESOURCE_ATTRIBUTES", value: "nonsense", says: "name=value"},
		{key: "OTEL_TRACES_SAMPLER", value: "sometimes", says: "parentbased_traceidratio"},
		{key: "OTEL_TRACES_SAMPLER_ARG", value: "1%", says: "0 to 1", more: env{"OTEL_TRACES_SAMPLER": "traceidratio"}},
		{key: "OTEL_EXPORTER_OTLP_TIMEOUT", value: "5s", says: "milliseconds"},
		{key: "OTEL_BSP_SCHEDULE_DELAY", value: "0", says: "above 0"},
		{key: "OTEL_EXPORTER_OTLP_CERTIFICATE", value: "/nowhere/ca.pem", says: "no such file"},
		{key: "OTEL_EXPORTER_OTLP_CERTIFICATE", value: notPEM, says: "no PEM certificate"},
		{key: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", value: notPEM, says: "both or none"},
		{key: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", value: notPEM, says: "no certificate with its key",
			more: env{"OTEL_EXPORTER_OTLP_CLIENT_KEY": notPEM}},

		{key: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "https://collector:4318"},
		{key: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "http/protobuf"},
		{key: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "grpc",
			more: env{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}},
		{key: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "grpc", more: env{"OTEL_SDK_DISABLED": "true"}},
		{key: "OTEL_EXPORTER_OTLP_HEADERS", value: "authorization=Bearer%20s3cr3t, x-scope=a"},
		{key: "OTEL_TRACES_SAMPLER_ARG", value: "0.1", more: env{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}},
	} {
		settings := env{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
		maps.Copy(settings, test.more)
		settings[test.key] = test.value
		wrong := Check(settings)

		switch {
		case test.says == "" && len(wrong) > 0:
			t.Errorf("%s=%s is refused: %v", test.key, test.value, wrong)
		case test.says != "" && (len(wrong) != 1 || !strings.HasPrefix(wrong[0].Error(), test.key) ||
			!strings.Contains(wrong[0].Error(), test.says)):
			t.Errorf("%s=%s: %v, want %q", test.key, test.value, wrong, test.says)
		}

		if strings.Contains(fmt.Sprint(wrong), "s3cr3t") {
			t.Errorf("a secret in %v", wrong)
		}
	}
}

func TestOffUnlessAskedFor(t *testing.T) {
	t.Parallel()
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for _, test := range []struct {
		env env
		on  bool
	}{
		{env{}, false},
		{env{endpoint: "http://c:4318"}, true},
		{env{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, true},
		{env{endpoint: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, false},
		{env{endpoint: "http://c:4318", "OTEL_SDK_DISABLED": "true"}, false},
		{env{endpoint: "http://c:4318", "OTEL_SDK_DISABLED": "false"}, true},
	} {
		if on := Wanted(test.env); on != test.on {
			t.Errorf("%v: traces are on: %t", test.env, on)
		}
	}

	ctx, _ := Tracer{}.Start(t.Context(), "x")
	if _, _, ok := Of(ctx); ok {
		t.Error("the zero Tracer makes spans")
	}
	if err := (Tracer{}).Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Two processes that begin a span of the same name make the same span; what only one of them ends is reported once.
func TestNamedSpansAreTheSameEverywhere(t *testing.T) {
	t.Parallel()
	memory := tracetest.NewInMemoryExporter()
	first, second := To(sdk.NewSimpleSpanProcessor(memory), resource.Empty()), To(
		sdk.NewSimpleSpanProcessor(memory), resource.Empty(),
	)

	parent := From(context.Background(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=x")
	at := time.Unix(1700000000, 0)
	_, lost := first.Named(parent, "run-1", "run", at)
	ctx, run := second.Named(parent, "run-1", "run", at)
	if lost.SpanContext().SpanID() != run.SpanContext().SpanID() {
		t.Error("the second owner's span is another one")
	}

	_, step := second.Named(ctx, "run-1/check/", "check", at)
	_, call := second.Start(ctx, "call")
	for _, one := range []string{step.SpanContext().SpanID().String(), call.SpanContext().SpanID().String()} {
		if one == run.SpanContext().SpanID().String() {
			t.Error("a child has its parent's ID")
		}
	}

	if got, state, ok := Of(ctx); !ok ||
		got != "00-4bf92f3577b34da6a3ce929d0e0e4736-"+run.SpanContext().SpanID().String()+"-01" ||
		state != "vendor=x" {
		t.Errorf("handed on as %s, %s, %t", got, state, ok)
	}

	run.End()
	if reported := memory.GetSpans(); len(reported) != 1 || reported[0].Name != "run" ||
		!reported[0].StartTime.Equal(at) {
		t.Errorf("reported: %v", reported)
	}

	_, one := first.Named(context.Background(), "run-2", "run", at)
	_, two := second.Named(context.Background(), "run-2", "run", at)
	if one.SpanContext().TraceID() != two.SpanContext().TraceID() {
		t.Error("without a publisher's trace, two owners are in two traces")
	}

	for _, tracer := range []Tracer{first, second} {
		if err := tracer.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// failing is an exporter whose collector is away while err is set.
type failing struct {
	sdk.SpanExporter
	err error
}

func (f *failing) ExportSpans(context.Context, []sdk.ReadOnlySpan) error { return f.err }

func TestLogTellsOnceThatTracesAreLost(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	collector := &failing{err: errors.New("connection refused")}
	export := &logged{SpanExporter: collector, log: zerolog.New(&said)}

	for range 3 {
		if err := export.ExportSpans(t.Context(), nil); err != nil {
			t.Error(err)
		}
	}

	collector.err = nil
	for range 2 {
		_ = export.ExportSpans(t.Context(), nil)
	}

	if lines := strings.Split(strings.TrimSpace(said.String()), "\n"); len(lines) != 2 ||
		!strings.Contains(lines[0], "connection refused") ||
		!strings.Contains(lines[1], "sent again") {
		t.Errorf("the log says:\n%s", said.String())
	}
}
