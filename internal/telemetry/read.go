package telemetry

import (
	"fmt"
	"io"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Sample is one series of the metrics of another process.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64 // of a gauge or counter; of a histogram, the number of observations

	// Buckets has the cumulated numbers of a histogram's observations by their upper bound. It is nil
	// for other metrics.
	Buckets map[float64]uint64
}

// maxMetrics bounds the bytes of the metrics of a process. A system with thousands of sinks has fewer.
const maxMetrics = 32 << 20

// Read reads metrics in Prometheus' text format, as Handler serves them.
func Read(from io.Reader) ([]Sample, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(io.LimitReader(from, maxMetrics))
	if err != nil {
		return nil, fmt.Errorf("not metrics of Prometheus: %w", err)
	}
	var all []Sample
	for name, f := range families {
		for _, m := range f.GetMetric() {
			all = append(all, sample(name, m))
		}
	}
	return all, nil
}

// sample converts a series.
func sample(name string, m *dto.Metric) Sample {
	s := Sample{Name: name, Labels: map[string]string{}}
	for _, l := range m.GetLabel() {
		s.Labels[l.GetName()] = l.GetValue()
	}
	switch {
	case m.GetGauge() != nil:
		s.Value = m.GetGauge().GetValue()
	case m.GetCounter() != nil:
		s.Value = m.GetCounter().GetValue()
	case m.GetHistogram() != nil:
		s.Value, s.Buckets = float64(m.GetHistogram().GetSampleCount()), map[float64]uint64{}
		for _, b := range m.GetHistogram().GetBucket() {
			s.Buckets[b.GetUpperBound()] = b.GetCumulativeCount()
		}
	default:
		s.Value = m.GetUntyped().GetValue()
	}
	return s
}
