// Package telemetry contains the metrics of a process. It is the only package that imports
// Prometheus' client.
//
// Metrics is a registry. Interceptor measures calls. Sinks, Gauge, Values and Labelled add values
// that are read at each scrape, so nothing is updated in between. Handler serves all of them.
package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the metrics of one process.
type Metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
}

// New returns the metrics of any Go process, and those of its calls.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_call_duration_seconds", Help: "Duration of calls, by procedure and Connect code.",
			// From half a millisecond, a read in memory, to ten seconds, a slow query.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"procedure", "code"}),
	}
	process := collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})
	m.registry.MustRegister(collectors.NewGoCollector(), process, m.calls)
	return m
}

// Interceptor returns an interceptor that measures the duration of calls.
func (m *Metrics) Interceptor() connect.Interceptor {
	return connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			start := time.Now()
			res, err := next(ctx, req)
			code := "ok"
			if err != nil {
				code = connect.CodeOf(err).String()
			}
			m.calls.WithLabelValues(req.Spec().Procedure, code).Observe(time.Since(start).Seconds())
			return res, err
		}
	})
}

// Sink is the state of a store, topic, view or table at a scrape.
type Sink struct {
	Name  string    // for example "view orderstatus/v1"
	Unit  string    // unit of Count
	Count uint64    // items in the sink
	Lag   uint64    // events that the sink has not applied
	AsOf  time.Time // when the newest event in the sink was recorded; zero if unknown
}

// Sinks adds the sinks that query returns at each scrape. query must return within timeout. If it
// fails, the sinks that it returned are still reported, and millrace_sinks_up is 0.
func (m *Metrics) Sinks(query func(context.Context) ([]Sink, error), timeout time.Duration, logger *slog.Logger) {
	labels := []string{"sink"}
	m.registry.MustRegister(&sinks{
		query: query, timeout: timeout, logger: logger,
		up:    prometheus.NewDesc("millrace_sinks_up", "1 if every sink could be read.", nil, nil),
		count: prometheus.NewDesc("millrace_sink_items", "Items in the sink.", []string{"sink", "unit"}, nil),
		lag:   prometheus.NewDesc("millrace_sink_lag_events", "Events that the sink has not applied.", labels, nil),
		asOf: prometheus.NewDesc("millrace_sink_newest_recorded_seconds",
			"Unix time at which the newest event in the sink was recorded.", labels, nil),
	})
}

// sinks is a Prometheus collector.
type sinks struct {
	query                func(context.Context) ([]Sink, error)
	timeout              time.Duration
	logger               *slog.Logger
	up, count, lag, asOf *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s *sinks) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.up, s.count, s.lag, s.asOf} {
		to <- d
	}
}

// Collect implements prometheus.Collector. It queries the sinks at each scrape, so a slow sink
// makes the scrape slow, up to the timeout.
func (s *sinks) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	all, err := s.query(ctx)
	up := 1.0
	if err != nil {
		up = 0
		s.logger.Warn("metrics: reading a sink failed", "error", err)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(s.up, up)
	for _, x := range all {
		gauge(s.count, float64(x.Count), x.Name, x.Unit)
		gauge(s.lag, float64(x.Lag), x.Name)
		if !x.AsOf.IsZero() {
			gauge(s.asOf, float64(x.AsOf.UnixMicro())/1e6, x.Name)
		}
	}
}

// Gauge adds a gauge whose value is read at each scrape. Adding it twice has no effect.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	err := m.registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	if already := (prometheus.AlreadyRegisteredError{}); err != nil && !errors.As(err, &already) {
		panic(err) // Prometheus does not allow the name
	}
}

// Labelled adds a gauge for a set of things that changes, such as faults. At each scrape, each
// calls is once for every set of labels in it. The gauge is 1 for these, and other sets are absent.
func (m *Metrics) Labelled(name, help string, labels []string, each func(is func(labels ...string))) {
	m.Values(name, help, labels, func(set func(value float64, labels ...string)) {
		each(func(labels ...string) { set(1, labels...) })
	})
}

// Values adds a gauge with labels. At each scrape, each calls set once for every set of labels that
// has a value, and other sets are absent.
func (m *Metrics) Values(name, help string, labels []string, each func(set func(value float64, labels ...string))) {
	m.registry.MustRegister(&labelled{prometheus.NewDesc(name, help, labels, nil), each})
}

// labelled is a Prometheus collector.
type labelled struct {
	desc *prometheus.Desc
	each func(set func(value float64, labels ...string))
}

// Describe implements prometheus.Collector.
func (l *labelled) Describe(to chan<- *prometheus.Desc) { to <- l.desc }

// Collect implements prometheus.Collector.
func (l *labelled) Collect(to chan<- prometheus.Metric) {
	l.each(func(value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(l.desc, prometheus.GaugeValue, value, labels...)
	})
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}
