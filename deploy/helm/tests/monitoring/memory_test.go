package monitoring

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// Prometheus's own engine on series in memory. Its rules package, promqltest and promtool bring the time series
// database and, with it, the clients of three clouds: they take twice as long to compile, in every run of CI.

var promQL = parser.NewParser(parser.Options{})

func newEngine(t *testing.T) *promql.Engine {
	t.Helper()
	e := promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute, Parser: promQL,
		EnableAtModifier: true, EnableNegativeOffset: true})
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// query evaluates an expression that gives a vector.
func query(ctx context.Context, e *promql.Engine, m memory, expr string, at time.Time) (promql.Vector, error) {
	q, err := e.NewInstantQuery(ctx, m, nil, expr, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(ctx)
	if result.Err != nil {
		return nil, result.Err
	}
	vector, err := result.Vector()
	if err != nil {
		return nil, err
	}
	return append(promql.Vector(nil), vector...), nil // the engine uses its own again
}

// memory is a storage.Queryable.
type memory []*storage.SeriesEntry

// add takes a series in promtool's notation, one sample an interval from 0 on.
func (m *memory) add(series, values string, interval time.Duration) error {
	lset, sequence, err := promQL.ParseSeriesDesc(series + " " + values)
	if err != nil {
		return fmt.Errorf("series %s %s: %w", series, values, err)
	}
	var all []chunks.Sample
	for i, v := range sequence {
		if !v.Omitted {
			all = append(all, sample{t: int64(i) * interval.Milliseconds(), v: v.Value, h: v.Histogram})
		}
	}
	*m = append(*m, storage.NewListSeries(lset, all))
	return nil
}

func (m memory) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints,
		matchers ...*labels.Matcher) storage.SeriesSet {
		var found found
		for _, s := range m {
			if matches(s.Lset, matchers) {
				found.series = append(found.series, s)
			}
		}
		return &found
	}}, nil
}

func matches(lset labels.Labels, matchers []*labels.Matcher) bool {
	for _, m := range matchers {
		if !m.Matches(lset.Get(m.Name)) {
			return false
		}
	}
	return true
}

// found is a storage.SeriesSet.
type found struct {
	series []*storage.SeriesEntry
	next   int
}

func (f *found) Next() bool                        { f.next++; return f.next <= len(f.series) }
func (f *found) At() storage.Series                { return f.series[f.next-1] }
func (f *found) Err() error                        { return nil }
func (f *found) Warnings() annotations.Annotations { return nil }

// sample is a chunks.Sample: a number, or a native histogram.
type sample struct {
	t int64 // milliseconds
	v float64
	h *histogram.FloatHistogram
}

func (s sample) T() int64                      { return s.t }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.v }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return s.h }
func (s sample) Copy() chunks.Sample           { return s }
func (s sample) Type() chunkenc.ValueType {
	if s.h != nil {
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}
