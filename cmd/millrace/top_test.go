package main

import (
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/telemetry"
)

// The rows of several processes are one: rates and dead letters are added, and the largest lag counts.
func TestTopRows(t *testing.T) {
	t.Parallel()
	const sink = "view v"
	reading := func(events, fast, slow float64) map[string]*topRow {
		sinks := map[string]*topRow{}
		for _, process := range []float64{1, 2} {
			for name, value := range map[string]float64{"millrace_sink_lag_events": 5 * process,
				"millrace_sink_lag_seconds": process, "millrace_sink_events_total": events,
				"millrace_dead_letters_total": process, "millrace_parked_streams": 1} {
				addSample(sinks, telemetry.Sample{Name: name, Value: value, Labels: map[string]string{"sink": sink}})
			}
			addSample(sinks, telemetry.Sample{Name: "millrace_sink_freshness_seconds", Labels: map[string]string{"sink": sink},
				Buckets: map[float64]uint64{0.1: uint64(fast), 1: uint64(fast + slow), math.Inf(1): uint64(fast + slow)}})
		}
		addSample(sinks, telemetry.Sample{Name: "millrace_sink_items", Value: 7,
			Labels: map[string]string{"sink": sink, "unit": "documents"}})
		return sinks
	}
	rows := topRows(reading(100, 100, 0), reading(150, 100, 50), 2*time.Second)
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
	got := rows[0]
	got.buckets = nil
	if want := (topRow{Sink: sink, Items: 7, Unit: "documents", LagEvents: 10, LagSeconds: 2, EventsPerS: 50,
		Freshness99: 1, DeadLetters: 3, ParkedStreams: 2, events: 300}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// A process that was restarted counts from 0.
	if again := topRows(reading(150, 10, 0), reading(3, 1, 0), time.Second); again[0].EventsPerS != 0 ||
		again[0].Freshness99 != 0 {
		t.Errorf("after a restart: %+v", again[0])
	}
}

// The servers that are not called are named below the table, with the worst state of the processes.
func TestTopShowsBreakers(t *testing.T) {
	t.Parallel()
	var addrs []string
	for _, state := range []string{"0", "1", "2"} {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "# TYPE millrace_dependency_breaker_state gauge\n"+
				`millrace_dependency_breaker_state{dependency="redis"} `+state+"\n"+
				`millrace_dependency_breaker_state{dependency="s3"} 0`+"\n")
		}))
		server.Config.Protocols = new(http.Protocols)
		server.Config.Protocols.SetUnencryptedHTTP2(true)
		server.Start()
		t.Cleanup(server.Close)
		addrs = append(addrs, server.Listener.Addr().String())
	}
	read := &top{addrs: addrs}
	if _, err := read.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	printTop(&out, nil, read.breakers)
	if !strings.Contains(out.String(), "the breaker of redis is open") || strings.Contains(out.String(), "s3") {
		t.Errorf("top prints\n%s", out.String())
	}
}
