package telemetry

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/DataDog/datadog-go/v5/statsd"
	dto "github.com/prometheus/client_model/go"
)

const (
	// statsDInterval is the usual interval at which servers of StatsD aggregate.
	statsDInterval = 10 * time.Second
	// statsDQueue bounds the datagrams that wait to be sent. If the queue is full, they are dropped.
	statsDQueue = 64
)

// StatsD sends the metrics of Millrace and of the process to a server of StatsD by UDP, every ten
// seconds, with labels as DogStatsD's tags. It returns when ctx ends. Nothing waits for the server: what
// it does not take is lost.
//
// Gauges are gauges, and counters are counts of the interval. Of a histogram, the count and the mean of
// the interval are sent.
func (m *Metrics) StatsD(ctx context.Context, addr string, log *slog.Logger) {
	e := &exporter{sent: map[string]float64{}}
	tick := time.NewTicker(statsDInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if e.to == nil { // the name of the server may not be known yet
			client, err := statsd.New(addr, statsd.WithoutTelemetry(), statsd.WithoutOriginDetection(),
				statsd.WithoutClientSideAggregation(), statsd.WithSenderQueueSize(statsDQueue))
			if err != nil {
				log.Warn("metrics cannot be sent to telemetry.statsd; trying again", "address", addr, "error", err)
				continue
			}
			defer client.Close() //nolint:errcheck // once, because the loop goes on with this client
			e.to = client
		}
		// Gather returns what it could read together with the error.
		families, err := m.registry.Gather()
		if err != nil {
			log.Warn("telemetry.statsd: reading a metric failed", "error", err)
		}
		e.export(families)
	}
}

// receiver takes metrics. It is implemented by statsd.Client, whose errors are those of its own queue.
type receiver interface {
	Gauge(name string, value float64, tags []string, rate float64) error
	Count(name string, value int64, tags []string, rate float64) error
}

// exporter translates metrics. It remembers what it has sent of counters, because StatsD adds up
// differences.
type exporter struct {
	to   receiver
	sent map[string]float64 // by series; bounded, because the series are
}

// export sends the metrics of Millrace and of the process.
func (e *exporter) export(families []*dto.MetricFamily) {
	for _, f := range families {
		if name := f.GetName(); strings.HasPrefix(name, "millrace_") || strings.HasPrefix(name, "process_") {
			for _, m := range f.GetMetric() {
				e.series(name, m)
			}
		}
	}
}

// series sends one series.
func (e *exporter) series(name string, m *dto.Metric) {
	tags := make([]string, len(m.GetLabel()))
	for i, l := range m.GetLabel() {
		tags[i] = l.GetName() + ":" + l.GetValue()
	}
	key := name + "|" + strings.Join(tags, ",")
	switch {
	case m.GetGauge() != nil:
		_ = e.to.Gauge(name, m.GetGauge().GetValue(), tags, 1) // what cannot be sent is lost
	case m.GetCounter() != nil:
		e.count(name, key, m.GetCounter().GetValue(), tags)
	case m.GetHistogram() != nil:
		h := m.GetHistogram()
		sum := h.GetSampleSum() - e.sent[key+"|sum"]
		e.sent[key+"|sum"] = h.GetSampleSum()
		if n := e.count(name+"_count", key, float64(h.GetSampleCount()), tags); n > 0 {
			_ = e.to.Gauge(name+"_mean", sum/float64(n), tags, 1)
		}
	}
}

// count sends by how much a counter has grown, in whole numbers, and returns it.
func (e *exporter) count(name, key string, value float64, tags []string) int64 {
	grown := int64(value - e.sent[key])
	if grown <= 0 {
		return 0
	}
	e.sent[key] += float64(grown) // the rest of a counter of seconds is sent later
	_ = e.to.Count(name, grown, tags, 1)
	return grown
}
