package app

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/polltest"
)

// documentedMetrics returns the metrics that docs/metrics.md lists.
func documentedMetrics(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile("`(millrace_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// A running system exports what its sinks do, under documented names only.
func TestMetricsOfARunningSystem(t *testing.T) {
	t.Parallel()
	p := startEmbedded(t, embeddedConfig(t), Shop(), Commands, Relay, Views, Lake, Tracking, Admin)
	commands := client.New(p.Addr(), time.Minute)
	defer commands.Close()
	if _, err := commands.Send(t.Context(), &catalogv1.ListProductRequest{Sku: "MUG-1", Title: "Mug",
		Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS}); err != nil {
		t.Fatal(err)
	}
	var text string
	for _, want := range []string{
		`millrace_sink_freshness_seconds_count{sink="topic millrace.products",topic="millrace.products"} 1`,
		`millrace_sink_freshness_seconds_count{sink="view catalog/v2",topic="millrace.products"} 1`,
		`millrace_sink_freshness_seconds_count{sink="table products_events",topic="millrace.products"} 1`,
		`millrace_sink_events_total{sink="table products_current",topic="millrace.products"} 1`,
		`millrace_sink_lag_events{sink="table products_events",topic="millrace.products"} 0`,
		`millrace_sink_lag_seconds{sink="view customer360/v2",topic="millrace.behavior"} 0`,
		`millrace_sink_lag_seconds{sink="topic millrace.products",topic="millrace.products"} 0`,
		`millrace_sink_lag_events{sink="process identification/v1",topic="millrace.behavior"} 0`,
		`millrace_relay_publishing{topic="millrace.products"} 1`,
		`millrace_connections_open{listener="admin"} 1`,
		`millrace_shed_requests_total{class="command"} 0`,
		`millrace_sinks_up 1`,
	} {
		polltest.Until(t, want, func() bool {
			text = metrics(t, p)
			return strings.Contains(text, "\n"+want+"\n")
		})
	}
	if !strings.Contains(text, "\nmillrace_lake_commit_duration_seconds_count{table=\"products_events\"} ") {
		t.Error("no commit was measured")
	}
	known := documentedMetrics(t)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (millrace_\S+)`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(known, m[1]) {
			t.Errorf("%s is not documented", m[1])
		}
	}
}
