// Package telemetry contains the metrics of a process. It is the only package that imports
// Prometheus' client.
//
// Metrics is a registry. Interceptor measures calls. Sinks, Gauge, Values, Counts and Labelled add
// values that are read at each scrape, so nothing is updated in between. Flow has what components
// report while they move events: freshness, throughput, errors, dead letters. Handler serves all of
// them.
//
// Invariants: the values of labels come from code, from the configuration or from the modules of the
// process, never from input, so the number of series is bounded. The names follow Prometheus' rules:
// a unit at the end, and _total behind counters.
package telemetry

import (
	"context"
	"errors"
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
	flow     *Flow
}

// New returns the metrics of any Go process, and those of its calls.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_call_duration_seconds", Help: "Duration of calls, by class, procedure and Connect code.",
			// From half a millisecond, a read in memory, to ten seconds, a slow query.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"class", "procedure", "code"}),
		flow: newFlow(),
	}
	process := collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})
	// Pauses of garbage collection and waits for a processor explain latency that nothing else shows.
	runtime := collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsGC,
		collectors.MetricsScheduler))
	m.registry.MustRegister(runtime, process, m.calls)
	m.registry.MustRegister(m.flow.collectors()...)
	return m
}

// Flow returns the metrics of the components that move events.
func (m *Metrics) Flow() *Flow { return m.flow }

// Interceptor returns an interceptor that measures the duration of the calls of a class: "command" or
// "query".
func (m *Metrics) Interceptor(class string) connect.Interceptor {
	return connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			start := time.Now()
			res, err := next(ctx, req)
			code := "ok"
			if err != nil {
				code = connect.CodeOf(err).String()
			}
			observe(m.calls.WithLabelValues(class, req.Spec().Procedure, code), time.Since(start), sampledTrace(req.Header()))
			return res, err
		}
	})
}

// Gauge adds a gauge whose value is read at each scrape. Adding it twice has no effect.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	err := m.registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	if already := (prometheus.AlreadyRegisteredError{}); err != nil && !errors.As(err, &already) {
		panic(err) // Prometheus does not allow the name
	}
}

// Counts is Values for counters: at each scrape, each calls set with what was counted since the start.
func (m *Metrics) Counts(name, help string, labels []string, each func(set func(value float64, labels ...string))) {
	m.registry.MustRegister(&labelled{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue, each})
}

// Count adds a counter without labels. At each scrape, read returns what was counted since the start.
func (m *Metrics) Count(name, help string, read func() float64) {
	m.Counts(name, help, nil, func(set func(value float64, labels ...string)) { set(read()) })
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
	m.registry.MustRegister(&labelled{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue, each})
}

// labelled is a Prometheus collector.
type labelled struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	each func(set func(value float64, labels ...string))
}

// Describe implements prometheus.Collector.
func (l *labelled) Describe(to chan<- *prometheus.Desc) { to <- l.desc }

// Collect implements prometheus.Collector.
func (l *labelled) Collect(to chan<- prometheus.Metric) {
	l.each(func(value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(l.desc, l.kind, value, labels...)
	})
}

// Handler serves the metrics: in OpenMetrics' format, with exemplars, to a client that accepts it.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry, EnableOpenMetrics: true})
}
