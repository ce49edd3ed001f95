package telemetry

import (
	"strings"
	"testing"
	"time"
)

// What Handler serves can be read again.
func TestRead(t *testing.T) {
	t.Parallel()
	m := New()
	m.Flow().Feed("view v", "t").Applied(time.Now().Add(-20*time.Second), 3)
	samples, err := Read(strings.NewReader(scrape(t, m, "text/plain")))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Sample{}
	for _, s := range samples {
		found[s.Name] = s
	}
	if s := found["millrace_sink_events_total"]; s.Value != 3 || s.Labels["sink"] != "view v" {
		t.Errorf("events: %+v", s)
	}
	if s := found["millrace_sink_freshness_seconds"]; s.Value != 3 || s.Buckets[10] != 0 || s.Buckets[30] != 3 {
		t.Errorf("freshness: %+v", s)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("# TYPE a histogram\na_bucket{le=\"1\"} 2\na_sum 1\na_count 2\nb{c=\"d\"} NaN\n")
	f.Add("<html>")
	f.Fuzz(func(t *testing.T, text string) {
		samples, err := Read(strings.NewReader(text))
		if err != nil && samples != nil {
			t.Errorf("%d samples beside the error %v", len(samples), err)
		}
	})
}
