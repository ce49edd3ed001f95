package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"
	"pgregory.net/rapid"
)

// scrape returns what a server of metrics answers.
func scrape(t *testing.T, m *Metrics, accept string) string {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	m.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

const openMetrics = "application/openmetrics-text; version=1.0.0"

// A call of a sampled trace leaves its id as an exemplar, in OpenMetrics only. Other headers leave
// nothing, whatever they contain.
func TestExemplars(t *testing.T) {
	t.Parallel()
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	for header, want := range map[string]bool{
		"00-" + trace + "-00f067aa0ba902b7-01":                    true,
		"00-" + trace + "-00f067aa0ba902b7-00":                    false, // not sampled
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false,
		"ff-" + trace + "-00f067aa0ba902b7-01":                    false,
		"00-" + trace + "-00f067aa0ba902b7-01\" } 1":              false,
		"": false,
	} {
		m := New()
		call := m.Interceptor("command").WrapUnary(func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) {
			return nil, connect.NewError(connect.CodeNotFound, errors.New("none"))
		})
		r := connect.NewRequest(&emptypb.Empty{})
		r.Header().Set("Traceparent", header)
		if _, err := call(t.Context(), r); err == nil {
			t.Fatal("the error of the call is lost")
		}
		if got := strings.Contains(scrape(t, m, openMetrics), `# {trace_id="`+trace+`"}`); got != want {
			t.Errorf("traceparent %q: exemplar: %v, want %v", header, got, want)
		}
		if plain := scrape(t, m, "text/plain"); strings.Contains(plain, trace) ||
			!strings.Contains(plain, `millrace_call_duration_seconds_count{class="command",code="not_found",procedure=""} 1`) {
			t.Errorf("the plain format:\n%s", plain)
		}
	}
}

// An event that was applied before counts as throughput, but not as freshness.
func TestFreshness(t *testing.T) {
	t.Parallel()
	m := New()
	feed := m.Flow().Feed("view v", "topic")
	feed.Applied(time.Now().Add(-20*time.Second), 3)
	feed.Applied(time.Now().Add(time.Hour), 1) // the clock of another machine
	feed.Applied(time.Time{}, 5)
	text := scrape(t, m, "text/plain")
	for _, want := range []string{
		`millrace_sink_events_total{sink="view v",topic="topic"} 9`,
		`millrace_sink_freshness_seconds_count{sink="view v",topic="topic"} 4`,
		`millrace_sink_freshness_seconds_bucket{sink="view v",topic="topic",le="10"} 1`,
		`millrace_sink_freshness_seconds_bucket{sink="view v",topic="topic",le="60"} 4`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

// The other sinks are reported although one could not be read.
func TestSinksReportFailures(t *testing.T) {
	t.Parallel()
	m := New()
	m.Sinks(func(context.Context) ([]Sink, error) {
		return []Sink{{Name: "table t", Unit: "rows", Count: 7, AsOf: time.Unix(1700000000, 0), Reads: []Reading{
			{Topic: "a", Next: map[int32]int64{0: 3}, Ends: map[int32]int64{0: 5, 1: 4}, Behind: 2 * time.Second},
		}}}, errors.New("a view does not answer")
	}, time.Second, slog.New(slog.DiscardHandler))
	text := scrape(t, m, "text/plain")
	for _, want := range []string{
		`millrace_sinks_up 0`, `millrace_sink_items{sink="table t",unit="rows"} 7`,
		`millrace_sink_lag_events{sink="table t",topic="a"} 6`, `millrace_sink_lag_seconds{sink="table t",topic="a"} 2`,
		`millrace_sink_newest_recorded_timestamp_seconds{sink="table t"} 1.7e+09`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

// Lags says how long a record has waited, within one interval of the observations: never longer, and
// never 0 for a record that two observations have seen waiting.
func TestLagsAreAges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const partitions = 2
		var lags Lags
		var written [partitions][]time.Time // when each record was written
		var applied [partitions]int64
		now := time.Unix(1, 0)
		before := now
		for range rapid.IntRange(1, 60).Draw(t, "observations") {
			for p := range partitions {
				for range rapid.IntRange(0, 3).Draw(t, "written") {
					written[p] = append(written[p], now)
				}
				applied[p] += rapid.Int64Range(0, int64(len(written[p]))-applied[p]).Draw(t, "applied")
			}
			now = now.Add(time.Duration(rapid.IntRange(1, 10).Draw(t, "seconds")) * time.Second)
			r := Reading{Topic: "t", Next: map[int32]int64{}, Ends: map[int32]int64{}}
			var oldest time.Duration
			for p := range partitions {
				r.Next[int32(p)], r.Ends[int32(p)] = applied[p], int64(len(written[p]))
				if applied[p] < int64(len(written[p])) {
					oldest = max(oldest, now.Sub(written[p][applied[p]]))
				}
			}
			observed := []Sink{{Name: "s", Reads: []Reading{r}}}
			lags.Observe(now, observed)
			got := observed[0].Behind()
			if got > oldest {
				t.Fatalf("behind by %v, but the oldest record waits for %v", got, oldest)
			}
			// A record that waited at the observation before has been seen since then at least.
			if seen := now.Sub(before); oldest > seen+10*time.Second && got < seen {
				t.Fatalf("behind by %v, although a record waits for %v", got, oldest)
			}
			before = now
		}
	})
}

// The memory of a sink that stands still is bounded, and its age is still right. A topic that was
// recreated begins again.
func TestLagsAreBounded(t *testing.T) {
	t.Parallel()
	var lags Lags
	begun := time.Unix(1, 0)
	observe := func(now time.Time, next, end int64) time.Duration {
		s := []Sink{
			{Name: "s", Reads: []Reading{{Topic: "t", Next: map[int32]int64{0: next}, Ends: map[int32]int64{0: end}}}},
		}
		lags.Observe(now, s)
		return s[0].Behind()
	}
	const n = 10 * maxMarks
	for i := range int64(n) {
		at := begun.Add(time.Duration(i) * time.Second)
		if got, want := observe(at, 0, i+1), at.Sub(begun); got != want {
			t.Fatalf("behind by %v, want %v", got, want)
		}
	}
	if marks := lags.partitions[sinkPartition{"s", "t", 0}]; len(marks) > maxMarks {
		t.Errorf("%d marks", len(marks))
	}
	end := begun.Add(n * time.Second)
	if got := observe(end, n, n); got != 0 {
		t.Errorf("behind by %v after catching up", got)
	}
	observe(end, 0, 2*n)
	if got := observe(end.Add(time.Minute), 0, 1); got != 0 {
		t.Errorf("behind by %v in a topic that was recreated", got)
	}
}
