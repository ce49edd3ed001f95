package app

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/features/quality"
	featureserving "github.com/millrace/millrace/features/serving"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/polltest"
)

// The profile of a group counts the customers whose orders are on the log. Metrics say how fresh the
// sources are, and have no value of a feature that too few customers have.
func TestProfileOfOrders(t *testing.T) {
	t.Parallel()
	p := startEmbedded(t, embeddedConfig(t), Shop(), Commands, Relay, Features)
	commands := client.New(p.Addr(), time.Minute)
	defer commands.Close()
	for range 3 {
		if _, err := commands.Send(t.Context(), &orderv1.PlaceOrderRequest{
			Currency: "GBP", Country: "GB", CustomerId: proto.String(uuid.NewString()), IdempotencyKey: uuid.NewString(),
			Lines: []*orderv1.NewLine{{Sku: "MUG", Description: "Mug", Quantity: 2,
				UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 4}}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	quiet := featuresv1connect.NewQualityServiceClient(http.DefaultClient, "http://"+p.Addr())
	var res *connect.Response[featuresv1.ProfileGroupResponse]
	polltest.Until(t, "the orders are in the profile", func() bool {
		var err error
		res, err = quiet.ProfileGroup(t.Context(), connect.NewRequest(&featuresv1.ProfileGroupRequest{
			Group: "customer_value", Days: 2, Features: []string{"monetary_sum_lifetime"}}))
		return err == nil && res.Msg.GetDays()[0].GetFound() == 3
	})
	f, days := res.Msg.GetFeatures()[0], res.Msg.GetDays()
	if n := f.GetCurrent().GetNumbers(); len(n) != 1 || n[0] < 7.9 || n[0] > 8.1 || f.GetCurrent().GetNumberCounts()[0] != 3 ||
		days[1].GetFound() != 0 || len(res.Msg.GetSources()) == 0 || res.Msg.GetSources()[0].GetNewest() == nil {
		t.Errorf("profile %v", res.Msg)
	}
	report := featureserving.ReportOf(res.Msg)
	if found := quality.Check(report, quality.DefaultLimits); len(found) != 0 {
		t.Errorf("found %v", found)
	}
	p.measure(t.Context(), time.Now())
	metrics := scrape(t, p)
	for _, want := range []string{
		`millrace_features_freshness_seconds{group="customer_value",source="customer_orders"}`,
		`millrace_features_profile_timestamp_seconds{group="customer_value"}`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	// A report with enough customers: the values of its features are metrics.
	report.Days[0].Found, report.Days[1].Found = 1000, 1000
	report.Features[0].PSI = 0.5
	p.profiles.mu.Lock()
	p.profiles.latest = map[string]*quality.Report{"customer_value": report}
	p.profiles.mu.Unlock()
	full := scrape(t, p)
	for _, name := range []string{"psi", "null_share", "reference_null_share"} {
		series := "millrace_features_" + name + `{feature="monetary_sum_lifetime",group="customer_value"} `
		if strings.Contains(metrics, series) || !strings.Contains(full, series) {
			t.Errorf("%s: with too few customers: %v, with enough: %v", series, strings.Contains(metrics, series),
				strings.Contains(full, series))
		}
	}
	if !strings.Contains(full, `psi{feature="monetary_sum_lifetime",group="customer_value"} 0.5`) {
		t.Error("the PSI is not 0.5")
	}
}

// scrape returns the metrics of a process.
func scrape(t *testing.T, p *App) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w := httptest.NewRecorder()
	p.metrics.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
	return w.Body.String()
}
