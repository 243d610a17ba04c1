package app

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/handler"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// metrics are what /metrics shows; docs/operate/metrics.md lists them. No label names a VM: their number is bounded.
type metrics struct {
	registry *prometheus.Registry

	requestsInFlight, requestsQueued, runsInStep, runsBlocked               *prometheus.GaugeVec
	runsStarted, runsFinished, messagesRefused, eventsStored, appendsFenced *prometheus.CounterVec
	deadLettersLost, deliveriesFailed                                       *prometheus.CounterVec
	takeovers, effectsFound, effectsUncertain, calls, logins                *prometheus.CounterVec
	queueTime, runTime, stepTime, finalEventLag, storeTime, callTime        *prometheus.HistogramVec
}

func newMetrics(version, commit string) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registerGauges()
	m.registerCounters()
	m.registerTimes()

	build := m.gauge("guestflow_build_info", "1; which guestflow this is.", "version", "commit")
	build.WithLabelValues(version, commit).Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector())
	return m
}

func (m *metrics) registerGauges() {
	m.requestsInFlight = m.gauge("guestflow_requests_in_hand",
		"Requests that this process holds: at work, or waiting for their VM's earlier one.", "vcenter")
	m.requestsQueued = m.gauge("guestflow_requests_behind",
		"Requests that this process holds and that wait for their VM's earlier one.", "vcenter")
	m.runsInStep = m.gauge("guestflow_runs_in_flight",
		"Runs at work in this process, by the step that they stand in.", "vcenter", "step")
	m.runsBlocked = m.gauge("guestflow_runs_waiting",
		"Runs of this process that go on but cannot move, by reason.", "vcenter", "reason")
}

func (m *metrics) registerCounters() {
	m.runsStarted = m.counter("guestflow_runs_started_total", "Runs that began.", "vcenter")
	m.runsFinished = m.counter("guestflow_runs_finished_total",
		"Runs that ended, by outcome and error code.", "vcenter", "outcome", "code")
	m.messagesRefused = m.counter("guestflow_requests_refused_total",
		"Messages that were refused, by error code: requests and cancels.", "vcenter", "code")
	m.deadLettersLost = m.counter("guestflow_deadletters_lost_total",
		"Messages that were refused and could not be kept as dead letters.", "vcenter")
	m.deliveriesFailed = m.counter("guestflow_deliveries_failed_total",
		"Messages that were left alone or given back for a while: they are delivered again.", "vcenter")
	m.eventsStored = m.counter("guestflow_events_stored_total",
		"Events that this process stored, by kind.", "vcenter", "kind")
	m.appendsFenced = m.counter("guestflow_events_refused_total",
		"Appends that were refused because another owner goes on with the run.", "vcenter")
	m.takeovers = m.counter("guestflow_takeovers_total", "Runs taken over from another owner.", "vcenter")
	m.effectsFound = m.counter("guestflow_calls_adopted_total",
		"Effects that were found of calls without an answer, and taken for the run's own.", "vcenter", "act")
	m.effectsUncertain = m.counter("guestflow_calls_uncertain_total",
		"Calls of which nobody can tell whether they took effect.", "vcenter", "act")
	m.calls = m.counter("guestflow_vcenter_calls_total",
		"Calls to vCenter, by endpoint and result.", "vcenter", "endpoint", "result")
	m.logins = m.counter("guestflow_vcenter_logins_total", "Logins at vCenter, by result.", "vcenter", "result")
}

func (m *metrics) registerTimes() {
	short := prometheus.DefBuckets                                                     // 5 ms to 10 s
	long := []float64{.1, .5, 1, 5, 10, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200} // seconds

	m.queueTime = m.times("guestflow_queue_seconds",
		"From a request's place in the stream to the begin of its run.", long, "vcenter")
	m.runTime = m.times("guestflow_run_seconds",
		"From run.accepted to the run's last event.", long, "vcenter", "outcome")
	m.stepTime = m.times("guestflow_step_seconds",
		"Duration of the steps, by outcome.", long, "vcenter", "step", "outcome")
	m.finalEventLag = m.times("guestflow_end_to_event_seconds",
		"From the end of a Task or of a guest process to its stored event.", short, "vcenter", "step")
	m.storeTime = m.times("guestflow_event_store_seconds",
		"From the first try to store an event until it was stored.", short, "vcenter")
	m.callTime = m.times("guestflow_vcenter_call_seconds",
		"Duration of the calls to vCenter.", short, "vcenter", "endpoint")
}

func (m *metrics) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

// times makes a native histogram, with classic buckets for a Prometheus that does not scrape those.
func (m *metrics) times(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, labels)
	m.registry.MustRegister(v)
	return v
}

// scrapesAtOnce bounds the scrapes under way: each asks NATS for the state of the streams.
const scrapesAtOnce = 4

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: scrapesAtOnce,
	})
}

// registerVCenter registers the gauges of one vCenter's client.
func (m *metrics) registerVCenter(vcenter string, client *vcapi.Client) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"vcenter": vcenter},
		}, value))
	}
	gauge("guestflow_vcenter_up", "1 where the vCenter answered the last call, else 0.",
		func() float64 { return number(client.Up()) })
	gauge("guestflow_vcenter_poll_age_seconds", "Since the long poll of this vCenter was last answered.",
		func() float64 { return client.PollAge().Seconds() })
}

// registerNATS registers the state of the connection to NATS.
func (m *metrics) registerNATS(conn *stream.Conn) {
	connected := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "guestflow_nats_connected", Help: "1 while NATS is connected, else 0.",
	}, func() float64 { return number(conn.Connected()) })
	m.registry.MustRegister(troubleCollector{conn}, connected)
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// streamHooks count what happens to messages.
func (m *metrics) streamHooks() stream.Hooks {
	return stream.Hooks{
		Refused: func(vcenter string, code events.Code) {
			m.messagesRefused.WithLabelValues(vcenter, string(code)).Inc()
		},
		NotKept: func(vcenter string) { m.deadLettersLost.WithLabelValues(vcenter).Inc() },
		Failed:  func(vcenter string) { m.deliveriesFailed.WithLabelValues(vcenter).Inc() },
	}
}

func (m *metrics) onCall(vcenter string) func(ctx context.Context, endpoint string, took time.Duration, err error) {
	return func(ctx context.Context, endpoint string, took time.Duration, err error) {
		count(ctx, m.calls.WithLabelValues(vcenter, endpoint, result(err)))
		observe(ctx, m.callTime.WithLabelValues(vcenter, endpoint), took)
	}
}

func (m *metrics) onLogin(vcenter string, log zerolog.Logger) func(error) {
	return func(err error) {
		m.logins.WithLabelValues(vcenter, result(err)).Inc()
		if err != nil { // a refused login is not tried again before a minute is over
			log.Warn().Err(err).Str("vcenter", vcenter).Msg("the login at vCenter failed")
		}
	}
}

// onReachable logs when a vCenter stops answering, and when it answers again.
func onReachable(vcenter string, log zerolog.Logger) func(error) {
	return func(why error) {
		if why != nil {
			log.Warn().Err(why).Str("vcenter", vcenter).Msg("vCenter does not answer: its runs wait")
			return
		}
		log.Info().Str("vcenter", vcenter).Msg("vCenter answers")
	}
}

func result(err error) string {
	if err == nil {
		return "ok"
	}
	return "error"
}

// meter is the handler.Meter of one vCenter.
type meter struct {
	*metrics
	vcenter string
}

// forVCenter makes the meter of a vCenter, and its time series with the value 0: Prometheus does not see the increase
// of a counter that begins with 1.
func (m *metrics) forVCenter(vcenter string) meter {
	m.requestsInFlight.WithLabelValues(vcenter)
	m.requestsQueued.WithLabelValues(vcenter)
	for _, c := range []*prometheus.CounterVec{
		m.runsStarted, m.appendsFenced, m.takeovers, m.deadLettersLost, m.deliveriesFailed,
	} {
		c.WithLabelValues(vcenter)
	}
	for _, act := range handler.Effects() {
		m.effectsFound.WithLabelValues(vcenter, act)
		m.effectsUncertain.WithLabelValues(vcenter, act)
	}
	for _, outcome := range []events.Status{events.StatusSucceeded, events.StatusFailed, events.StatusCanceled} {
		m.runTime.WithLabelValues(vcenter, string(outcome))
	}
	m.runsFinished.WithLabelValues(vcenter, string(events.StatusSucceeded), "")
	for _, code := range []events.Code{events.Internal, events.Orphaned} {
		m.runsFinished.WithLabelValues(vcenter, string(events.StatusFailed), string(code))
	}
	m.messagesRefused.WithLabelValues(vcenter, string(events.InvalidRequest))
	for _, result := range []string{"ok", "error"} {
		m.logins.WithLabelValues(vcenter, result)
	}
	for _, why := range []events.Waiting{
		events.WaitingResourceBusy, events.WaitingTools, events.WaitingGuestLogin,
		events.WaitingVCenterUnavailable, events.WaitingCallsInFlight,
	} {
		m.runsBlocked.WithLabelValues(vcenter, string(why))
	}
	return meter{metrics: m, vcenter: vcenter}
}

// InFlight counts a request until the returned function is called.
func (m meter) InFlight() func() { return during(m.requestsInFlight.WithLabelValues(m.vcenter)) }

// The methods from here on implement handler.Meter.

// Queued counts a request that waits for an earlier one.
func (m meter) Queued() func() { return during(m.requestsQueued.WithLabelValues(m.vcenter)) }

// InStep counts a run in a step.
func (m meter) InStep(step string) func() {
	return during(m.runsInStep.WithLabelValues(m.vcenter, step))
}

// Blocked counts a run that has to wait.
func (m meter) Blocked(why events.Waiting) func() {
	return during(m.runsBlocked.WithLabelValues(m.vcenter, string(why)))
}

func during(g prometheus.Gauge) func() {
	g.Inc()
	return g.Dec
}

// RunStarted counts a run.
func (m meter) RunStarted(ctx context.Context, queued time.Duration) {
	count(ctx, m.runsStarted.WithLabelValues(m.vcenter))
	observe(ctx, m.queueTime.WithLabelValues(m.vcenter), queued)
}

// EventStored counts an event, and the takeover or the end of a run that it reports.
func (m meter) EventStored(ctx context.Context, k events.Kind, run *events.Run, took time.Duration) {
	m.eventsStored.WithLabelValues(m.vcenter, string(k)).Inc()
	observe(ctx, m.storeTime.WithLabelValues(m.vcenter), took)
	switch {
	case k == events.RunResumed:
		count(ctx, m.takeovers.WithLabelValues(m.vcenter))
	case k.Last():
		code := ""
		if run.Error != nil {
			code = string(run.Error.Code)
		}
		count(ctx, m.runsFinished.WithLabelValues(m.vcenter, string(run.Status), code))
		if run.AcceptedAt != nil {
			observe(ctx, m.runTime.WithLabelValues(m.vcenter, string(run.Status)), time.Since(*run.AcceptedAt))
		}
	}
}

// Fenced counts an append that was refused because another owner goes on with the run.
func (m meter) Fenced() { m.appendsFenced.WithLabelValues(m.vcenter).Inc() }

// StepEnded measures a step.
func (m meter) StepEnded(ctx context.Context, step string, outcome events.State, took time.Duration) {
	observe(ctx, m.stepTime.WithLabelValues(m.vcenter, step, string(outcome)), took)
}

// FinalEventLag measures the time from the end of what a step waited for to the event that says so.
func (m meter) FinalEventLag(ctx context.Context, step string, lag time.Duration) {
	observe(ctx, m.finalEventLag.WithLabelValues(m.vcenter, step), lag)
}

// EffectFound counts a call without a response whose effect was found.
func (m meter) EffectFound(effect string) { m.effectsFound.WithLabelValues(m.vcenter, effect).Inc() }

// EffectUncertain counts a call of which it cannot be found out whether it took effect.
func (m meter) EffectUncertain(effect string) {
	m.effectsUncertain.WithLabelValues(m.vcenter, effect).Inc()
}

// observe adds a duration, with its trace as the exemplar.
func observe(ctx context.Context, h prometheus.Observer, took time.Duration) {
	took = max(0, took) // negative if the clock of another replica, which took the start, is ahead
	if with, ok := h.(prometheus.ExemplarObserver); ok {
		if e := exemplar(ctx); e != nil {
			with.ObserveWithExemplar(took.Seconds(), e)
			return
		}
	}
	h.Observe(took.Seconds())
}

func count(ctx context.Context, c prometheus.Counter) {
	if with, ok := c.(prometheus.ExemplarAdder); ok {
		if e := exemplar(ctx); e != nil {
			with.AddWithExemplar(1, e)
			return
		}
	}
	c.Inc()
}

// exemplar names the trace, if it is reported.
func exemplar(ctx context.Context) prometheus.Labels {
	if s := trace.SpanContextFromContext(ctx); s.IsSampled() && trace.SpanFromContext(ctx).IsRecording() {
		return prometheus.Labels{"trace_id": s.TraceID().String()}
	}
	return nil
}
