package monitoring_test

import (
	"testing"

	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/statsd"
)

// A StatsD server receives gauges and the growth of counters, with their labels as tags.
func TestStatsD(t *testing.T) {
	t.Parallel()
	var server statsd.Server
	addr := server.Start(t)
	p := start(t, func(c *config.Config) { c.Telemetry.StatsD = addr })
	shop(t, p)
	for name, kind := range map[string]string{
		"millrace_sink_events_total;sink=view_orderstatus-v2;topic=millrace.orders":            "counters",
		"millrace_sink_freshness_seconds_count;sink=table_orders_events;topic=millrace.orders": "counters",
		"millrace_sink_freshness_seconds_mean;sink=view_orderstatus-v2;topic=millrace.orders":  "gauges",
		"millrace_connections_open;listener=admin":                                             "gauges",
		"process_resident_memory_bytes":                                                        "gauges",
	} {
		var got map[string]float64
		polltest.Until(t, name, func() bool {
			var err error
			if got, err = server.Read(t.Context(), kind); err != nil {
				t.Fatal(err)
			}
			_, received := got[name]
			return received
		})
		if kind == "counters" && got[name] < 1 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
}
