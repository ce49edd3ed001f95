package app

import (
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/streams"
)

// trackingOnly are the modules of a process that receives behaviour and lands it.
func trackingOnly() Modules { return Modules{Sources: Shop().Sources} }

// track sends a body to the intake and returns the status of the answer.
func track(t *testing.T, p *App, path, key, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.TrackingAddr()+path,
		strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(key, "")
	req.Header.Set("Origin", "https://shop.example") // of a page that is elsewhere
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode
}

// rows returns the number of rows of the table of behaviour.
func rows(t *testing.T, p *App) int64 {
	t.Helper()
	tables, err := p.lake.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == "behavior_events" {
			return table.Rows
		}
	}
	return -1
}

// TestTrackedEventsLand checks the way of an event from the listener to the table, with write keys
// and a plan from files. A restart does not forget what it has received.
func TestTrackedEventsLand(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	c.Tracking.Keys = filepath.Join(t.TempDir(), "keys.yaml")
	c.Tracking.Plan = filepath.Join(t.TempDir(), "plan.yaml")
	for path, text := range map[string]string{
		c.Tracking.Keys: "web: {key: web-write-key}\n",
		c.Tracking.Plan: "track: {Product Viewed: {properties: {sku: {type: string, required: true}}}}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const viewed = `{"messageId":"1","event":"Product Viewed","userId":"u","properties":{"sku":"22423"}}`
	for run, want := range []int64{1, 2} {
		p, err := start(t.Context(), trackingOnly(), c, []Role{Lake, Tracking}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
		for body, status := range map[string]int{
			viewed: http.StatusOK,
			`{"messageId":"2","event":"Product Viewed","userId":"u"}`:                      http.StatusOK, // a dead letter
			strings.Replace(viewed, `"1"`, `"run `+string(rune('0'+run))+`"`, min(run, 1)): http.StatusOK,
			`{"messageId":"3","event":"Product Viewed","properties":{"sku":"22423"}}`:      http.StatusBadRequest,
		} {
			if got := track(t, p, "/v1/track", "web-write-key", body); got != status {
				t.Errorf("%s: %d, want %d", body, got, status)
			}
		}
		if got := track(t, p, "/v1/track", "demo-write-key", viewed); got != http.StatusUnauthorized {
			t.Errorf("with the key of a demo: %d", got)
		}
		polltest.Until(t, "the events are in the table", func() bool { return rows(t, p) == want })
		sinks, err := p.sinks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]uint64{}
		for _, s := range sinks {
			counts[s.Name] = s.Count
		}
		if counts["tracking dead letters"] != 1 || counts["tracking rejected"] != 2 || counts["tracking accepted"] != 1 {
			t.Errorf("status shows %v", counts)
		}
		ends, err := p.admin.EndOffsets(t.Context(), streams.DeadLetterTopic)
		if err != nil {
			t.Fatal(err)
		}
		letters := map[string]bool{} // by key: the same event is one
		err = kafka.ReadAll(t.Context(), p.kafka, streams.DeadLetterTopic, map[int32]int64{0: 0}, ends, func(m kafka.Message) error {
			letters[string(m.Key)] = true
			return nil
		})
		if err != nil || len(letters) != 1 {
			t.Errorf("dead letters %v, %v", letters, err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTrackingFiles checks that a file that cannot be used fails the start, and that the error names
// the setting and no key.
func TestTrackingFiles(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(file, []byte("web: {key: abcdefgh, plan: x}\ntrack: [1]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]string{"tracking.keys": file, "tracking.plan": file, "tracking.keys: ": file + "2"} {
		c := embeddedConfig(t)
		if strings.HasPrefix(name, "tracking.keys") {
			c.Tracking.Keys = at
		} else {
			c.Tracking.Plan = at
		}
		_, err := start(t.Context(), trackingOnly(), c, []Role{Tracking}, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), at) || strings.Contains(err.Error(), "abcdefgh") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
