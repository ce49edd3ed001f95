package monitoring_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/millrace/millrace/ingest/demo"
	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/prometheus"
)

// query is the query of a panel.
type query struct{ panel, expression string }

// dashboards returns the queries of all panels of Grafana's dashboards, with their variables filled in.
func dashboards(t *testing.T) (all []query) {
	t.Helper()
	files, err := filepath.Glob(root + "/deploy/grafana/*.json")
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer("$sink", ".*", "$__rate_interval", "30s")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			UID    string
			Panels []struct {
				Type, Title string
				Targets     []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(text, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if dashboard.UID+".json" != filepath.Base(file) {
			t.Errorf("%s has the uid %q", file, dashboard.UID)
		}
		for _, p := range dashboard.Panels {
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: the panel %q has no query", file, p.Title)
			}
			for _, target := range p.Targets {
				expression := filled.Replace(target.Expr)
				if strings.Contains(expression, "$") {
					t.Errorf("%s: %q: a variable is not filled in: %s", file, p.Title, expression)
				}
				all = append(all, query{dashboard.UID + ": " + p.Title, expression})
			}
		}
	}
	if len(all) < 20 {
		t.Fatalf("only %d queries were found", len(all))
	}
	return all
}

// Every panel of every dashboard shows something of a running system.
func TestDashboards(t *testing.T) {
	t.Parallel()
	queries := dashboards(t)
	p := start(t, func(*config.Config) {})
	var monitor prometheus.Server
	monitor.Start(
		t,
		prometheus.Config{Job: "millrace", Targets: []string{p.AdminAddr()}, Rules: []string{faster(t, "slo.yaml")}},
	)
	shop(t, p)
	for _, q := range queries {
		polltest.Until(t, q.panel, func() bool {
			samples, err := monitor.Query(t.Context(), q.expression)
			if err != nil {
				t.Fatalf("%s: %s: %v", q.panel, q.expression, err)
			}
			for _, s := range samples {
				// A rate of nothing is not a number.
				if len(s.Value) == 2 && s.Value[1] != "NaN" {
					return true
				}
			}
			return false
		})
	}
}

// shop sends commands until the test ends.
func shop(t *testing.T, p *app.App) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for seed := uint64(1); ctx.Err() == nil; seed++ { // with the same seed, the commands are the same
			if _, err := demo.Run(ctx, demo.Config{BaseURL: "http://" + p.Addr(), Seed: seed}); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// Every metric of Millrace in a dashboard is documented.
func TestDashboardsHaveDocumentedMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(root + "/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	recorded, err := os.ReadFile(rules + "/slo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range dashboards(t) {
		for _, name := range regexp.MustCompile(`[a-z:]*millrace_[a-z_:0-9]+`).FindAllString(q.expression, -1) {
			documented := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
			if !strings.Contains(string(page), fmt.Sprintf("`%s`", documented)) &&
				!strings.Contains(string(recorded), "record: "+name+"\n") {
				t.Errorf("%s: %s is not documented", q.panel, name)
			}
		}
	}
}
