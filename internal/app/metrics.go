package app

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// metrics are what /metrics shows. Labels are bounded: no VM is named.
type metrics struct {
	registry  *prometheus.Registry
	flying    *prometheus.GaugeVec
	finished  *prometheus.CounterVec
	appended  *prometheus.CounterVec
	append    *prometheus.HistogramVec
	takeovers *prometheus.CounterVec
	calls     *prometheus.CounterVec
	callTime  *prometheus.HistogramVec
	logins    *prometheus.CounterVec
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	times := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, NativeHistogramBucketFactor: 1.1, Buckets: prometheus.DefBuckets}, labels)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		flying: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "guestflow_requests_in_hand",
			Help: "Requests that this process holds: at work, or waiting for their VM's earlier one."}, []string{"vcenter"}),
		finished:  counter("guestflow_runs_finished_total", "Runs that ended, by outcome and error code.", "vcenter", "outcome", "code"),
		appended:  counter("guestflow_events_stored_total", "Events that this process stored, by kind.", "vcenter", "kind"),
		append:    times("guestflow_event_store_seconds", "From the first try to store an event until it was stored.", "vcenter"),
		takeovers: counter("guestflow_takeovers_total", "Runs taken over from another owner.", "vcenter"),
		calls:     counter("guestflow_vcenter_calls_total", "Calls to vCenter, by endpoint and result.", "vcenter", "endpoint", "result"),
		callTime:  times("guestflow_vcenter_call_seconds", "Duration of the calls to vCenter.", "vcenter", "endpoint"),
		logins:    counter("guestflow_vcenter_logins_total", "Logins at vCenter, by result.", "vcenter", "result"),
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector(),
		m.flying, m.finished, m.appended, m.append, m.takeovers, m.calls, m.callTime, m.logins)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// watch shows whether a vCenter answers, and how old its long poll's last answer is.
func (m *metrics) watch(vcenter string, client *vcapi.Client) {
	labels := prometheus.Labels{"vcenter": vcenter}
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "guestflow_vcenter_up", ConstLabels: labels,
			Help: "1 where the vCenter answered the last call, else 0."}, func() float64 {
			if client.Up() {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "guestflow_vcenter_poll_age_seconds", ConstLabels: labels,
			Help: "Since the long poll of this vCenter was last answered."}, func() float64 { return client.PollAge().Seconds() }))
}

// nats shows whether the connection to NATS is up.
func (m *metrics) nats(conn *events.Conn) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "guestflow_nats_connected", Help: "1 while NATS is connected, else 0."},
		func() float64 {
			if conn.Connected() {
				return 1
			}
			return 0
		}))
}

// inFlight counts a request until the returned function is called.
func (m *metrics) inFlight(vcenter string) func() {
	g := m.flying.WithLabelValues(vcenter)
	g.Inc()
	return g.Dec
}

func (m *metrics) stored(k events.Kind, r *events.Run, took time.Duration) {
	m.appended.WithLabelValues(r.VCenter, string(k)).Inc()
	m.append.WithLabelValues(r.VCenter).Observe(took.Seconds())
	switch {
	case k == events.RunResumed:
		m.takeovers.WithLabelValues(r.VCenter).Inc()
	case k.Last():
		code := ""
		if r.Error != nil {
			code = string(r.Error.Code)
		}
		m.finished.WithLabelValues(r.VCenter, string(r.Status), code).Inc()
	}
}

func (m *metrics) call(vcenter string) func(endpoint string, took time.Duration, err error) {
	return func(endpoint string, took time.Duration, err error) {
		m.calls.WithLabelValues(vcenter, endpoint, result(err)).Inc()
		m.callTime.WithLabelValues(vcenter, endpoint).Observe(took.Seconds())
	}
}

func (m *metrics) login(vcenter string, log zerolog.Logger) func(error) {
	return func(err error) {
		m.logins.WithLabelValues(vcenter, result(err)).Inc()
		if err != nil { // a refused login is not tried again before a minute is over
			log.Warn().Err(err).Str("vcenter", vcenter).Msg("the login at vCenter failed")
		}
	}
}

// answers puts a line into the log when a vCenter goes away, and one when it is back.
func answers(vcenter string, log zerolog.Logger) func(error) {
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
