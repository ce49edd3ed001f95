// Package monitoring_test checks the monitoring of a running system: rules, alerts and dashboards, with
// a real Prometheus and a real Alertmanager.
package monitoring_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/prometheus"
	"github.com/millrace/millrace/test/servers/redis"
)

// TestMain ignores workers of bleve and LevelDB that end with the process, or after a while.
func TestMain(m *testing.M) {
	if os.Getenv(clickhouse.EnvListener) != "" { // the process of an embedded engine
		clickhousetest.Main(m)
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker"),
		goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}

// start starts all roles on embedded servers, except for those that the configuration names.
func start(t *testing.T, change func(*config.Config)) *app.App {
	t.Helper()
	c := config.Default()
	c.Data = filepath.Join(t.TempDir(), "data")
	c.Addr, c.Admin.Addr, c.Tracking.Addr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Kafka.Listen, c.Redis.Listen, c.ClickHouse.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	library, err := filepath.Abs(root + "/.tools/npm/node_modules/@chdb/lib-linux-x64-gnu/libchdb.so")
	if err != nil {
		t.Fatal(err)
	}
	c.ClickHouse.Library = library
	change(&c)
	p, err := app.Start(t.Context(), c, app.Roles(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// notifications are what Alertmanager has sent.
type notifications struct {
	mu  sync.Mutex
	got []notification
}

// notification is an alert in a notification.
type notification struct {
	Status              string
	Labels, Annotations map[string]string
}

// ServeHTTP takes a notification.
func (n *notifications) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var message struct{ Alerts []notification }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&message); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.got = append(n.got, message.Alerts...)
}

// last returns the last notification about an alert of a sink.
func (n *notifications) last(alert, sink string) (last notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, got := range n.got {
		if got.Labels["alertname"] == alert && got.Labels["sink"] == sink {
			last = got
		}
	}
	return last
}

// A view whose server hangs is late. The alert reaches the receiver of Alertmanager, names the view and
// its runbook, and clears after the server works again. The views on other servers stay on time.
func TestAlertOfASinkThatStopped(t *testing.T) {
	t.Parallel()
	var server redis.Servers
	addr := server.Addr(t)
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	p := start(t, func(c *config.Config) { c.Redis.Addr = addr })
	receiver := &notifications{}
	webhook := httptest.NewServer(receiver)
	t.Cleanup(webhook.Close)
	var monitor prometheus.Server
	monitor.Start(t, prometheus.Config{Job: "millrace", Targets: []string{p.AdminAddr()}, Webhook: webhook.URL,
		Rules: []string{faster(t, "slo.yaml"), faster(t, "faults.yaml")}})

	const late, view = "MillraceFreshnessBudgetBurn", "view customer360/v2"
	firing := func() map[string][]string {
		alerts, err := monitor.Alerts(t.Context(), "sink")
		if err != nil {
			t.Fatal(err)
		}
		return alerts
	}
	polltest.Until(t, "the lag of the view is recorded", func() bool {
		samples, err := monitor.Query(t.Context(), fmt.Sprintf("sink:millrace_freshness_errors:ratio_rate1h{sink=%q}", view))
		return err == nil && len(samples) == 1
	})

	if err := server.Pause(0); err != nil {
		t.Fatal(err)
	}
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			if err := server.Resume(0); err != nil {
				t.Error(err)
			}
		}
	}
	defer resume() // a system whose Redis hangs stops slowly
	commands := client.New(p.Addr(), time.Minute)
	defer commands.Close()
	for i := range 10 {
		id := uuid.NewString()
		if _, err := commands.Send(t.Context(), &customerv1.RegisterCustomerRequest{CustomerId: id, Country: "GB",
			Reference: fmt.Sprint("C-", i), IdempotencyKey: id}); err != nil {
			t.Fatal(err)
		}
	}
	polltest.Until(
		t,
		"the alert reaches the receiver",
		func() bool { return receiver.last(late, view).Status == "firing" },
	)
	got := receiver.last(late, view)
	if got.Labels["severity"] != "page" || got.Annotations["runbook_url"] != "docs/runbooks/freshness.md" ||
		!strings.Contains(got.Annotations["summary"], view) {
		t.Errorf("the alert is %+v", got)
	}
	if on := firing()[late]; slices.Contains(on, "view catalog/v2") {
		t.Errorf("the alert fires for %v, but the catalogue is not in Redis", on)
	}

	resume()
	polltest.Until(t, "the alert is resolved", func() bool { return receiver.last(late, view).Status == "resolved" })
	if on := firing()[late]; slices.Contains(on, view) {
		t.Errorf("%s still fires for %v", late, on)
	}
}
