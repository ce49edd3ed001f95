package telemetry

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Sink is the state of a store, topic, view or table at a scrape.
type Sink struct {
	Name  string    // for example "view orderstatus/v1"
	Unit  string    // unit of Count; empty if the number of items could not be read
	Count uint64    // items in the sink
	Lag   uint64    // events that the sink has not applied
	AsOf  time.Time // when the newest event in the sink was recorded; zero if unknown
	// Reads are the topics that the sink reads, with how far it is. A sink that reads nothing has
	// none.
	Reads []Reading
}

// Reading is how far a sink is in one topic.
type Reading struct {
	Topic string
	Next  map[int32]int64 // by partition, the first offset that the sink has not applied
	Ends  map[int32]int64 // by partition, the offset behind the last record

	// Behind is how long the topic has had a record that the sink has not applied. Lags computes it.
	Behind time.Duration
}

// Events returns how many records the sink has not applied. A partition that it has not begun counts
// from offset 0.
func (r Reading) Events() (lag uint64) {
	for partition, end := range r.Ends {
		lag += uint64(max(0, end-r.Next[partition]))
	}
	return lag
}

// Behind returns how long the sink has been behind the topic in which it is furthest behind.
func (s Sink) Behind() (longest time.Duration) {
	for _, r := range s.Reads {
		longest = max(longest, r.Behind)
	}
	return longest
}

// Sinks adds the sinks that query returns at each scrape. query must return within timeout. If it
// fails, the sinks that it returned are still reported, and millrace_sinks_up is 0.
func (m *Metrics) Sinks(query func(context.Context) ([]Sink, error), timeout time.Duration, logger *slog.Logger) {
	labels := []string{"sink", "topic"}
	m.registry.MustRegister(&sinks{
		query: query, timeout: timeout, logger: logger,
		up:    prometheus.NewDesc("millrace_sinks_up", "1 if every sink could be read.", nil, nil),
		count: prometheus.NewDesc("millrace_sink_items", "Items in the sink.", []string{"sink", "unit"}, nil),
		lag: prometheus.NewDesc(
			"millrace_sink_lag_events",
			"Events of the topic that the sink has not applied.",
			labels,
			nil,
		),
		behind: prometheus.NewDesc("millrace_sink_lag_seconds",
			"How long the topic has had an event that the sink has not applied, as far as this process has seen.", labels, nil),
		asOf: prometheus.NewDesc("millrace_sink_newest_recorded_timestamp_seconds",
			"Unix time at which the newest event in the sink was recorded.", []string{"sink"}, nil),
	})
}

// sinks is a Prometheus collector.
type sinks struct {
	query                        func(context.Context) ([]Sink, error)
	timeout                      time.Duration
	logger                       *slog.Logger
	up, count, lag, behind, asOf *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s *sinks) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.up, s.count, s.lag, s.behind, s.asOf} {
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
		if x.Unit != "" {
			gauge(s.count, float64(x.Count), x.Name, x.Unit)
		}
		for _, r := range x.Reads {
			gauge(s.lag, float64(r.Events()), x.Name, r.Topic)
			gauge(s.behind, r.Behind.Seconds(), x.Name, r.Topic)
		}
		if !x.AsOf.IsZero() {
			gauge(s.asOf, float64(x.AsOf.UnixMicro())/1e6, x.Name)
		}
	}
}
