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

// streamCollector shows what stands in the streams. It is asked at each scrape; what does not answer is not shown. Every replica shows the same.
type streamCollector struct {
	conn     *stream.Conn
	vcenters []string
	log      zerolog.Logger
}

// scrapeTimeout bounds the questions of one scrape: below Prometheus's usual time-out of 10 s.
const scrapeTimeout = 2 * time.Second

var (
	queueRequests    = prometheus.NewDesc("guestflow_queue_requests", "Requests that are not finished: pending, not taken by any replica, or taken.", []string{"vcenter", "state"}, nil)
	queueCancels     = prometheus.NewDesc("guestflow_queue_cancels", "Cancels whose run has not ended: pending, not taken by any replica, or taken.", []string{"vcenter", "state"}, nil)
	messagesInFlight = prometheus.NewDesc("guestflow_messages_in_hand", "Messages that this process holds: requests, cancels.", []string{"vcenter", "kind"}, nil)
	oneSource        = prometheus.NewDesc("guestflow_requests_in_hand_of_one_source", "Of the requests that this process holds, those from the source that has most of them.", []string{"vcenter"}, nil)
	trouble          = prometheus.NewDesc("guestflow_nats_trouble", "1 where something on the side of NATS keeps requests or runs from going on, or will: by what it is about.", []string{"vcenter", "reason"}, nil)
	queueOldest      = prometheus.NewDesc("guestflow_queue_oldest_seconds", "Age of the oldest unfinished request or cancel; 0 where there is none.", []string{"vcenter"}, nil)
	streamMessages   = prometheus.NewDesc("guestflow_stream_messages", "Messages in a stream.", []string{"stream"}, nil)
	streamBytes      = prometheus.NewDesc("guestflow_stream_bytes", "Bytes in a stream.", []string{"stream"}, nil)
	streamMaxBytes   = prometheus.NewDesc("guestflow_stream_max_bytes", "Bytes that a stream may hold; 0: no limit of its own.", []string{"stream"}, nil)
)

// Describe implements prometheus.Collector.
func (d *streamCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{queueRequests, queueCancels, messagesInFlight, oneSource, queueOldest, streamMessages, streamBytes, streamMaxBytes} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector. Each question is asked beside the others: one stream without a leader hides no other.
func (d *streamCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	var asked sync.WaitGroup
	fullness := func(name string, more func(stream.Usage)) {
		asked.Go(func() {
			s, err := d.conn.Usage(ctx, name)
			if err != nil {
				d.log.Debug().Err(err).Msg("not in the metrics")
				return
			}
			gauge(streamMessages, float64(s.Messages), name)
			gauge(streamBytes, float64(s.Bytes), name)
			gauge(streamMaxBytes, float64(s.MaxBytes), name)
			more(s)
		})
	}
	nothingMore := func(stream.Usage) {}
	fullness(events.EventsStream, nothingMore)
	fullness(events.DeadlettersStream, nothingMore)
	for _, v := range d.vcenters {
		fullness(events.RequestsStream(v), func(s stream.Usage) {
			age := 0.0
			if !s.Oldest.IsZero() {
				age = max(0, time.Since(s.Oldest).Seconds())
			}
			gauge(queueOldest, age, v)
		})
		for durable, desc := range map[string]*prometheus.Desc{events.RequestsConsumer(v): queueRequests, events.CancelsConsumer(v): queueCancels} {
			asked.Go(func() {
				b, err := d.conn.Backlog(ctx, v, durable)
				if err != nil {
					d.log.Debug().Err(err).Msg("not in the metrics")
					return
				}
				gauge(desc, float64(b.Pending), v, "pending")
				gauge(desc, float64(b.Taken), v, "taken")
			})
		}
	}
	d.collectInFlight(gauge)
	asked.Wait()
}

// collectInFlight shows what this process holds.
func (d *streamCollector) collectInFlight(gauge func(desc *prometheus.Desc, v float64, labels ...string)) {
	for _, h := range d.conn.InFlight() {
		kind := "requests"
		if h.Durable == events.CancelsConsumer(h.VCenter) {
			kind = "cancels"
		} else {
			gauge(oneSource, float64(h.OneSource), h.VCenter)
		}
		gauge(messagesInFlight, float64(h.Messages), h.VCenter, kind)
	}
}

// troubleCollector shows what this process knows to be wrong with NATS, from its start on.
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
