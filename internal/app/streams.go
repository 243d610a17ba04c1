package app

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// streamCollector shows the state of the streams, which it asks for at each scrape. If NATS does not answer, the metric
// is left out. Every replica shows the same.
type streamCollector struct {
	conn     *stream.Conn
	vcenters []string
	log      zerolog.Logger
}

// scrapeTimeout bounds the requests to NATS of one scrape. It is shorter than Prometheus's usual time-out of 10 s.
const scrapeTimeout = 2 * time.Second

var (
	queueRequests = desc("guestflow_queue_requests",
		"Requests that are not finished: pending, not taken by any replica, or taken.", "vcenter", "state")
	queueCancels = desc("guestflow_queue_cancels",
		"Cancels whose run has not ended: pending, not taken by any replica, or taken.", "vcenter", "state")
	queueOldest = desc("guestflow_queue_oldest_seconds",
		"Age of the oldest unfinished request or cancel; 0 where there is none.", "vcenter")
	messagesInFlight = desc("guestflow_messages_in_hand",
		"Messages that this process holds: requests, cancels.", "vcenter", "kind")
	oneSource = desc("guestflow_requests_in_hand_of_one_source",
		"Of the requests that this process holds, those from the source that has most of them.", "vcenter")
	streamMessages = desc("guestflow_stream_messages", "Messages in a stream.", "stream")
	streamBytes    = desc("guestflow_stream_bytes", "Bytes in a stream.", "stream")
	streamMaxBytes = desc("guestflow_stream_max_bytes",
		"Bytes that a stream may hold; 0: no limit of its own.", "stream")
	trouble = desc("guestflow_nats_trouble",
		"1 where something on the side of NATS keeps requests or runs from going on, or will: by what it is about.",
		"vcenter", "reason")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *streamCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		queueRequests, queueCancels, queueOldest, messagesInFlight, oneSource,
		streamMessages, streamBytes, streamMaxBytes,
	} {
		descs <- d
	}
}

// gauge emits one value.
type gauge func(desc *prometheus.Desc, v float64, labels ...string)

// Collect implements prometheus.Collector. It asks for everything at once, so that one stream without a leader does not
// hide the others.
func (c *streamCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	emit := func(desc *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}

	var calls sync.WaitGroup
	calls.Go(func() { c.collectStream(ctx, emit, events.EventsStream) })
	calls.Go(func() { c.collectStream(ctx, emit, events.DeadlettersStream) })
	for _, v := range c.vcenters {
		calls.Go(func() {
			usage, ok := c.collectStream(ctx, emit, events.RequestsStream(v))
			if !ok {
				return
			}
			age := 0.0
			if !usage.Oldest.IsZero() {
				age = max(0, time.Since(usage.Oldest).Seconds())
			}
			emit(queueOldest, age, v)
		})
		calls.Go(func() { c.collectBacklog(ctx, emit, queueRequests, v, events.RequestsConsumer(v)) })
		calls.Go(func() { c.collectBacklog(ctx, emit, queueCancels, v, events.CancelsConsumer(v)) })
	}
	c.collectInFlight(emit)
	calls.Wait()
}

// collectStream shows how full a stream is; ok is false if NATS does not say.
func (c *streamCollector) collectStream(ctx context.Context, emit gauge, name string) (usage stream.Usage, ok bool) {
	usage, err := c.conn.Usage(ctx, name)
	if err != nil {
		c.log.Debug().Err(err).Msg("not in the metrics")
		return usage, false
	}
	emit(streamMessages, float64(usage.Messages), name)
	emit(streamBytes, float64(usage.Bytes), name)
	emit(streamMaxBytes, float64(usage.MaxBytes), name)
	return usage, true
}

// collectBacklog shows how many messages of a consumer are not finished.
func (c *streamCollector) collectBacklog(
	ctx context.Context, emit gauge, desc *prometheus.Desc, vcenter, durable string,
) {
	backlog, err := c.conn.Backlog(ctx, vcenter, durable)
	if err != nil {
		c.log.Debug().Err(err).Msg("not in the metrics")
		return
	}
	emit(desc, float64(backlog.Pending), vcenter, "pending")
	emit(desc, float64(backlog.Taken), vcenter, "taken")
}

// collectInFlight shows what this process works on.
func (c *streamCollector) collectInFlight(emit gauge) {
	for _, f := range c.conn.InFlight() {
		kind := "requests"
		if f.Durable == events.CancelsConsumer(f.VCenter) {
			kind = "cancels"
		} else {
			emit(oneSource, float64(f.OneSource), f.VCenter)
		}
		emit(messagesInFlight, float64(f.Messages), f.VCenter, kind)
	}
}

// troubleCollector shows what this process knows to be wrong with NATS, already while it starts.
type troubleCollector struct{ conn *stream.Conn }

// Describe implements prometheus.Collector.
func (t troubleCollector) Describe(descs chan<- *prometheus.Desc) { descs <- trouble }

// Collect implements prometheus.Collector.
func (t troubleCollector) Collect(out chan<- prometheus.Metric) {
	is := map[[2]string]float64{}
	for _, reason := range stream.Reasons {
		is[[2]string{"", string(reason)}] = 0
	}
	for _, seen := range t.conn.LastTroubles() {
		is[[2]string{seen.VCenter, string(seen.Reason)}] = 1
	}
	for at, n := range is {
		out <- prometheus.MustNewConstMetric(trouble, prometheus.GaugeValue, n, at[0], at[1])
	}
}
