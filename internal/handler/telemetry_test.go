package handler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
	"github.com/guestflow/guestflow/internal/tracing"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// tally is a Meter that keeps what it is told.
type tally struct {
	unmetered
	mu     sync.Mutex
	counts map[string]int
	gauges map[string]int
	wrong  []string
}

func (m *tally) count(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[fmt.Sprintf(format, args...)]++
}

func (m *tally) during(name string) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gauges[name]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.gauges[name]--; m.gauges[name] < 0 {
			m.wrong = append(m.wrong, name+" is negative")
		}
	}
}

func (m *tally) Queued() func()                            { return m.during("behind") }
func (m *tally) InStep(step string) func()                 { return m.during("at " + step) }
func (m *tally) Blocked(why events.Waiting) func()         { return m.during("waits " + string(why)) }
func (m *tally) RunStarted(context.Context, time.Duration) { m.count("began") }
func (m *tally) Fenced()                                   { m.count("fenced") }
func (m *tally) EffectFound(act string)                    { m.count("adopted %s", act) }
func (m *tally) EffectUncertain(act string)                { m.count("uncertain %s", act) }

func (m *tally) FinalEventLag(_ context.Context, step string, late time.Duration) {
	m.count("end of %s stored", step)
	if late < 0 {
		m.wrong = append(m.wrong, "an end was stored before it came")
	}
}

func (m *tally) StepEnded(ctx context.Context, step string, outcome events.State, _ time.Duration) {
	m.count("%s %s", step, outcome)
	if !trace.SpanFromContext(ctx).IsRecording() {
		m.wrong = append(m.wrong, "step "+step+" is told after its span: it has no exemplar")
	}
}

// Whatever happens to its owners, a run and each of its steps are counted once, are one span each, which the run's last
// owner reports, and no gauge remembers them.
func TestMeasuredOnce(t *testing.T) {
	t.Parallel()
	networkAlone := only(`"network":{}`)
	var incidents []string
	for _, point := range []string{"run.accepted", "check.completed", "network.starting", "network.started",
		"network.completed", "run.succeeded"} {
		incidents = append(incidents, "publish "+point)
	}
	incidents = append(incidents, "StartGuestNetwork sent")
	type schedule struct {
		name, data string
		harness    func(w *harness)
		plans      [][]incident
		counts     map[string]int // beside those of a run of check and network that succeeds; 0: not there
	}

	schedules := []schedule{
		{name: "plain", data: networkAlone},
		{name: "no check", data: `{"vm":"vm-42","check":{"mode":"skip"},"guest":{"credentials":` +
			`{"secretRef":"linux-root"}},"network":{}}`,
			counts: map[string]int{"check succeeded": 0}},
		{name: "the answer is lost", data: networkAlone,
			harness: func(w *harness) { w.vc.on(rule{op: "StartGuestNetwork sent", times: 1, lost: "answer"}) },
			counts:  map[string]int{"adopted network": 1, "end of network stored": 0}},
		{name: "it fails, and its owner dies before it can say so", data: networkAlone,
			harness: taskEnds("StartGuestNetwork", "SystemError", vcapi.Permanent, 1),
			plans:   [][]incident{crash("publish run.failed")},
			counts:  map[string]int{"network succeeded": 0, "network failed": 1}},
		{name: "the owner is paused at the end of a step, and another one goes on", data: networkAlone,
			plans:  [][]incident{{{point: "publish network.completed", do: "pause", after: 5 * time.Minute}}},
			counts: map[string]int{"fenced": 1, "end of network stored": 0}},
	}

	for _, point := range incidents {
		for _, do := range []string{"crash", "term"} {
			schedules = append(schedules, schedule{name: do + " at " + point, data: networkAlone,
				plans: [][]incident{{{point: point, do: do}}},
				counts: map[string]int{"began": -1, "fenced": -1, "adopted network": -1, "end of network stored": -1,
					"check succeeded": -1, "network succeeded": -1}})
		}
	}

	for _, s := range schedules {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			spans := tracetest.NewInMemoryExporter()
			meter := &tally{counts: map[string]int{}, gauges: map[string]int{}}
			inBubble(t, secretsDir(t), func(w *harness) {
				w.settings.Meter, w.settings.Tracer = meter,
					tracing.To(sdk.NewSimpleSpanProcessor(spans), resource.Empty())
				if s.harness != nil {
					s.harness(w)
				}
				w.run(s.data, s.plans...)
			})
			want := map[string]int{"began": 1, "check succeeded": 1, "network succeeded": 1, "end of network stored": 1}
			maps.Copy(want, s.counts)
			for what, n := range want {
				switch {
				case n >= 0 && meter.counts[what] != n:
					t.Errorf("%s: %d times, want %d; all: %v", what, meter.counts[what], n, meter.counts)
				case n < 0 && meter.counts[what] > 1: // it may not be told at all: who did it died
					t.Errorf("%s: %d times", what, meter.counts[what])
				}
			}

			for name, n := range meter.gauges {
				if n != 0 {
					t.Errorf("gauge %s is left at %d", name, n)
				}
			}
			for _, wrong := range meter.wrong {
				t.Error(wrong)
			}
			checkSpans(t, spans.GetSpans())
		})
	}
}

// checkSpans holds the spans of one run against what a trace must be.
func checkSpans(t *testing.T, spans tracetest.SpanStubs) {
	t.Helper()
	byID := map[trace.SpanID]string{}
	var names []string
	for _, s := range spans {
		if name, twice := byID[s.SpanContext.SpanID()]; twice {
			t.Errorf("span %s is reported again as %s", name, s.Name)
		}
		byID[s.SpanContext.SpanID()] = s.Name
		names = append(names, s.Name)
		if s.EndTime.Before(s.StartTime) {
			t.Errorf("span %s ends before it begins", s.Name)
		}
	}

	for _, s := range spans {
		if _, ok := byID[s.Parent.SpanID()]; !ok && s.Name != "run" {
			t.Errorf("the parent of span %s is not reported; all: %s", s.Name, strings.Join(names, ", "))
		}
	}
	if !slices.Contains(names, "run") {
		t.Errorf("the run is not reported: %s", strings.Join(names, ", "))
	}
}

// A step whose completion the stream refuses for good costs no panic.
func TestEndThatCannotBeStored(t *testing.T) {
	t.Parallel()
	inBubble(t, secretsDir(t), func(w *harness) {
		refused := false
		w.slow = func(_ int, m stream.Message) (f memstore.Fault) {
			if strings.HasSuffix(m.Subject, "network.completed") && !refused {
				refused, f.Refuse = true, stream.CodeMessageTooLarge
			}
			return f
		}

		if end := w.run(only(`"network":{}`)); end.Status != events.StatusFailed {
			t.Errorf("ended as %s", end.Status)
		}
	})
}
