package telemetry

import (
	"maps"
	"strings"
	"testing"
	"time"
)

// received is a receiver of metrics.
type received map[string]float64

func (r received) Gauge(name string, value float64, tags []string, _ float64) error {
	r[name+" "+strings.Join(tags, ",")] = value
	return nil
}

func (r received) Count(name string, value int64, tags []string, _ float64) error {
	r[name+" "+strings.Join(tags, ",")] += float64(value)
	return nil
}

// Counters are sent as differences, so that the server's sums are right, however often they are sent.
func TestExportToStatsD(t *testing.T) {
	t.Parallel()
	m := New()
	got := received{}
	e := &exporter{to: got, sent: map[string]float64{}}
	seconds := 0.0
	m.Count("millrace_seconds_total", "Seconds.", func() float64 { return seconds })
	m.Gauge("millrace_size_items", "Items.", func() float64 { return 7 })
	for range 4 {
		seconds += 0.6
		m.Flow().DeadLetters("view v", "gap", 2)
		m.Flow().Committed("orders", 30*time.Millisecond)
		families, err := m.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		e.export(families)
	}
	maps.DeleteFunc(got, func(key string, _ float64) bool { return strings.HasPrefix(key, "process_") })
	want := received{
		"millrace_dead_letters_total reason:gap,sink:view v":       8,
		"millrace_lake_commit_duration_seconds_count table:orders": 4,
		"millrace_seconds_total ":                                  2, // of 2.4
		"millrace_size_items ":                                     7,
		"millrace_lake_commit_duration_seconds_mean table:orders":  0.03,
	}
	got["millrace_lake_commit_duration_seconds_mean table:orders"] =
		float64(int(got["millrace_lake_commit_duration_seconds_mean table:orders"]*1000+0.5)) / 1000
	if !maps.Equal(got, want) {
		t.Errorf("received %v, want %v", got, want)
	}
}
