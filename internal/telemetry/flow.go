package telemetry

import (
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Flow has the metrics of the components that move events from a store to the sinks. They report what
// they do; everything else about a sink is read at a scrape. It is safe for concurrent use.
type Flow struct {
	freshness                       *prometheus.HistogramVec
	events                          *prometheus.CounterVec
	errors, deadLetters, rebalances *prometheus.CounterVec
	commits, catalog                *prometheus.HistogramVec
}

// newFlow returns metrics that are not registered.
func newFlow() *Flow {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	// From a write in memory to a commit that waited for a server.
	durations := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	return &Flow{
		freshness: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_sink_freshness_seconds",
			Help: "Time from the recording of an event to the moment at which the sink shows it. " +
				"Events that are read again are not counted.",
			// From a view beside the store to a sink that was down for an hour.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 3600},
		}, []string{"sink", "topic"}),
		events: counter("millrace_sink_events_total", "Events that the sink has applied.", "sink", "topic"),
		errors: counter(
			"millrace_sink_errors_total",
			"Failed attempts to apply events, by class of error.",
			"sink",
			"class",
		),
		deadLetters: counter("millrace_dead_letters_total", "Records that became dead letters, by reason.", "sink", "reason"),
		rebalances: counter("millrace_sink_rebalances_total",
			"Changes of the partitions that this process reads for the sink.", "sink"),
		commits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_lake_commit_duration_seconds",
			Help:    "Time to write the last files of a batch and to commit it to its table, with all attempts.",
			Buckets: durations,
		}, []string{"table"}),
		catalog: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_lake_catalog_duration_seconds", Help: "Duration of the landers' requests to the catalog of the lake.",
			Buckets: durations,
		}, []string{"operation"}),
	}
}

// collectors returns what has to be registered.
func (f *Flow) collectors() []prometheus.Collector {
	return []prometheus.Collector{f.freshness, f.events, f.errors, f.deadLetters, f.rebalances, f.commits, f.catalog}
}

// Feed has the metrics of a sink's events of one topic.
type Feed struct {
	freshness prometheus.Observer
	events    prometheus.Counter
}

// Feed returns the metrics of a sink's events of a topic. The first call adds them, with a count of 0.
func (f *Flow) Feed(sink, topic string) Feed {
	return Feed{f.freshness.WithLabelValues(sink, topic), f.events.WithLabelValues(sink, topic)}
}

// Applied counts events that the sink shows now. recorded is when they were recorded, zero if that is
// unknown or if the sink had the events before.
func (f Feed) Applied(recorded time.Time, events uint64) {
	f.events.Add(float64(events))
	if recorded.IsZero() {
		return
	}
	took := max(time.Since(recorded), 0).Seconds() // clocks of different machines can differ
	for range events {
		f.freshness.Observe(took)
	}
}

// Expect adds the series of a sink's errors and dead letters, with a count of 0. Without it, Prometheus
// would not see the first one as an increase.
func (f *Flow) Expect(sink string, classes, reasons []string) {
	for _, class := range classes {
		f.errors.WithLabelValues(sink, class)
	}
	for _, reason := range reasons {
		f.deadLetters.WithLabelValues(sink, reason)
	}
}

// Failed counts a failed attempt to apply events.
func (f *Flow) Failed(sink, class string) { f.errors.WithLabelValues(sink, class).Inc() }

// DeadLetters counts records that became dead letters.
func (f *Flow) DeadLetters(sink, reason string, n int) {
	f.deadLetters.WithLabelValues(sink, reason).Add(float64(n))
}

// Rebalanced counts a change of the partitions that this process reads for a sink.
func (f *Flow) Rebalanced(sink string) { f.rebalances.WithLabelValues(sink).Inc() }

// Committed measures a commit to a table of the lake.
func (f *Flow) Committed(table string, took time.Duration) {
	f.commits.WithLabelValues(table).Observe(took.Seconds())
}

// Catalog measures a request to the catalog of the lake.
func (f *Flow) Catalog(operation string, took time.Duration) {
	f.catalog.WithLabelValues(operation).Observe(took.Seconds())
}

// traceParent is the header of W3C Trace Context, version 00: the ids of the trace and of the span, and
// the flags.
var traceParent = regexp.MustCompile(`^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f][13579bdf]$`)

// sampledTrace returns the id of the trace that a request belongs to. It is empty unless the trace is
// sampled, because an exemplar that leads nowhere is of no use.
func sampledTrace(h http.Header) string {
	found := traceParent.FindStringSubmatch(h.Get("Traceparent"))
	if found == nil || strings.Trim(found[1], "0") == "" { // zeros are not an id
		return ""
	}
	return found[1]
}

// observe adds a duration to a histogram, with the trace as its exemplar, if there is one.
func observe(to prometheus.Observer, took time.Duration, trace string) {
	if with, ok := to.(prometheus.ExemplarObserver); ok && trace != "" {
		with.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": trace})
		return
	}
	to.Observe(took.Seconds())
}
