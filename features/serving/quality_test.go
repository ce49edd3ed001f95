package serving_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/quality"
	"github.com/millrace/millrace/features/serving"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

const customers = 300

// shopping returns a backend with customers who order every day for ten days, each the same: one of
// five amounts. On the last day, change is applied to their facts.
func shopping(t *testing.T, change func(customer int, f *features.Fact)) *backend {
	t.Helper()
	b := newBackend(t)
	var facts []features.Fact
	for day := range 10 {
		for c := range customers {
			f := features.Fact{Entity: fmt.Sprint("customer ", c), Key: fmt.Sprint(day), At: now.AddDate(0, 0, -day).Add(-30 * time.Minute),
				Values: []exact.Value{exact.IntValue(exact.FromMoney(int64(10+c%5), 0)), exact.TextValue("GB")}}
			if day == 0 && change != nil {
				change(c, &f)
			}
			facts = append(facts, f)
		}
	}
	if err := b.store.Apply(online.Batch{Topic: event.Order.Topic, Partition: 0, After: feed.Position{Next: 1, AsOf: now.Add(-time.Hour)},
		Facts: map[string][]features.Fact{"orders": facts}}); err != nil {
		t.Fatal(err)
	}
	return b
}

func qualityClient(t *testing.T, b *backend, history serving.History) featuresv1connect.QualityServiceClient {
	t.Helper()
	clock := func() time.Time { return now }
	mux := http.NewServeMux()
	mux.Handle(featuresv1connect.NewQualityServiceHandler(serving.NewQuality(serving.New(b, clock), history),
		rpc.HandlerOptions(slog.New(slog.DiscardHandler), clock)...))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return featuresv1connect.NewQualityServiceClient(s.Client(), s.URL)
}

// TestPlantedFaults: what is wrong with the latest day of a group is found through the API, and
// nothing else.
func TestPlantedFaults(t *testing.T) {
	limits := quality.DefaultLimits
	limits.Found = customers / 2
	for name, c := range map[string]struct {
		change func(customer int, f *features.Fact)
		limits func(*quality.Limits)
		want   []string // kind and output
	}{
		"nothing": {},
		"amounts of a tenth": {change: func(c int, f *features.Fact) {
			f.Values[0] = exact.IntValue(exact.FromMoney(int64(1+c%5), 0))
		}, want: []string{"drifted mean_1h", "drifted spent_7d"}},
		"customers of another country": {change: func(c int, f *features.Fact) {
			if c%2 == 0 {
				f.Values[1] = exact.TextValue("FR")
			}
		}, want: []string{"drifted country_lifetime"}},
		"a third without amounts": {change: func(c int, f *features.Fact) {
			if c%3 == 0 {
				f.Values[0] = exact.Value{}
			}
		}, want: []string{"drifted mean_1h", "nulls mean_1h"}},
		"old events": {limits: func(l *quality.Limits) { l.Freshness = 59 * time.Second }, want: []string{"stale orders"}},
	} {
		client := qualityClient(t, shopping(t, c.change), nil)
		res, err := client.ProfileGroup(t.Context(), connect.NewRequest(&featuresv1.ProfileGroupRequest{Group: "activity", Days: 2}))
		if err != nil {
			t.Fatal(err)
		}
		limits := limits
		if c.limits != nil {
			c.limits(&limits)
		}
		found := map[string]bool{}
		for _, f := range quality.Check(serving.ReportOf(res.Msg), limits) {
			found[string(f.Kind)+" "+f.Of] = true
		}
		for _, want := range c.want {
			if !found[want] {
				t.Errorf("%s: %s was not found", name, want)
			}
			delete(found, want)
		}
		if len(found) > 0 {
			t.Errorf("%s: %v was found, too", name, found)
		}
	}
}

// TestProfile: a response has the days, the counts of each, and how fresh the sources are.
func TestProfile(t *testing.T) {
	client := qualityClient(t, shopping(t, nil), nil)
	res, err := client.ProfileGroup(t.Context(), connect.NewRequest(&featuresv1.ProfileGroupRequest{Group: "activity", Days: 11,
		Entities: 250, Features: []string{"spent_7d", "country_lifetime"}, Daily: true}))
	if err != nil {
		t.Fatal(err)
	}
	r := res.Msg
	// Two customers of newBackend are known, too.
	if r.GetGroup() != "activity/v2" || r.GetEntities() != customers+2 || r.GetSampled() != 250 || len(r.GetDays()) != 12 {
		t.Errorf("%v", r)
	}
	if s := r.GetSources(); len(s) != 1 || s[0].GetTopic() != event.Order.Topic || s[0].GetLagEvents() != 2 ||
		!s[0].GetNewest().AsTime().Equal(now.Add(-time.Minute)) {
		t.Errorf("sources %v", s)
	}
	for i, d := range r.GetDays() {
		if !d.GetAt().AsTime().Equal(now.AddDate(0, 0, -i)) || (d.GetFound() > 0) != (i < 10) || d.GetMissing() != "" {
			t.Errorf("day %d: %v", i, d)
		}
	}
	spent, country := r.GetFeatures()[0], r.GetFeatures()[1]
	if len(spent.GetDaily()) != 11 || len(spent.GetCurrent().GetNumbers()) < 5 || spent.GetKind() != "number" {
		t.Errorf("spent: %v", spent)
	}
	if texts := country.GetDaily()[0]; len(texts.GetTexts()) != 1 || texts.GetTexts()[0] != "GB" ||
		texts.GetTextCounts()[0] != texts.GetValues() || texts.GetValues() != uint64(r.GetDays()[1].GetFound()) {
		t.Errorf("country: %v of %d", texts, r.GetDays()[1].GetFound())
	}
	// A past time: how fresh the system is now says nothing about it.
	past := &featuresv1.ProfileGroupRequest{Group: "activity", At: timestamppb.New(now.AddDate(0, 0, -3)), ReferenceEnd: timestamppb.New(now), Days: 1}
	res, err = client.ProfileGroup(t.Context(), connect.NewRequest(past))
	if err != nil || len(res.Msg.GetSources()) != 0 || !res.Msg.GetDays()[1].GetAt().AsTime().Equal(now) ||
		!res.Msg.GetDays()[0].GetAt().AsTime().Equal(past.GetAt().AsTime()) {
		t.Errorf("%v, %v", res, err)
	}
}

// TestDaysThatWereDropped: vectors of times before what the memory keeps come from the history. If
// there is none, or it fails, the day says why it is missing.
func TestDaysThatWereDropped(t *testing.T) {
	b := shopping(t, nil)
	b.store.Trim(now)
	var asked []time.Time
	history := func(_ context.Context, group string, entities []string, at time.Time) ([]features.Vector, error) {
		asked = append(asked, at)
		if at.Equal(now.AddDate(0, 0, -3)) {
			return nil, errors.New("SELECT entity: connection to 10.1.2.3:9000 refused")
		}
		all := make([]features.Vector, len(entities))
		for i, e := range entities {
			all[i] = features.Vector{Entity: e, At: at, Found: group == "stock/v1", Values: []exact.Result{{Kind: exact.IntResult, Int: 7}}}
		}
		return all, nil
	}
	request := &featuresv1.ProfileGroupRequest{Group: "stock", Days: 3}
	res, err := qualityClient(t, b, history).ProfileGroup(t.Context(), connect.NewRequest(request))
	if err != nil {
		t.Fatal(err)
	}
	days := res.Msg.GetDays()
	if len(asked) != 2 || days[1].GetMissing() != "" || days[2].GetFound() != 1 ||
		!strings.Contains(days[3].GetMissing(), "ClickHouse has no vectors") || strings.Contains(days[3].GetMissing(), "refused") {
		t.Errorf("the history was asked for %v: %v", asked, days)
	}
	if n := res.Msg.GetFeatures()[0].GetReference().GetNumbers(); len(n) != 1 || n[0] < 6.9 || n[0] > 7.1 {
		t.Errorf("the reference has %v, want about 7", n)
	}
	res, err = qualityClient(t, b, nil).ProfileGroup(t.Context(), connect.NewRequest(request))
	if err != nil || !strings.Contains(res.Msg.GetDays()[2].GetMissing(), "retention") {
		t.Errorf("%v, %v", res, err)
	}
}

// TestProfilesWithoutRefusals: those who refuse that their vectors are used are in no distribution, also
// not by the vectors of another customer who is the same person.
func TestProfilesWithoutRefusals(t *testing.T) {
	b := shopping(t, func(customer int, f *features.Fact) {
		if customer%3 == 0 {
			f.Values[1] = exact.TextValue("refused")
		}
	})
	clock := func() time.Time { return now }
	service := serving.New(b, clock)
	service.WithholdFrom("customer_id", func(ids ...string) bool {
		var customer int
		n, _ := fmt.Sscanf(ids[0], "customer %d", &customer)
		return n == 1 && customer%3 == 0
	})
	res, err := serving.NewQuality(service, nil).ProfileGroup(t.Context(),
		connect.NewRequest(&featuresv1.ProfileGroupRequest{Group: "activity", Days: 1, Features: []string{"country_lifetime"}}))
	if err != nil {
		t.Fatal(err)
	}
	// The two of newBackend have no fact that is so new.
	const want = customers * 2 / 3
	current := res.Msg.GetFeatures()[0].GetCurrent()
	if got := res.Msg.GetSampled(); got != want+2 || current.GetValues() < want || len(current.GetTexts()) == 0 {
		t.Errorf("%d are sampled and %d have values, want %d: %v", got, current.GetValues(), want, current)
	}
	for _, text := range current.GetTexts() {
		if text == "refused" {
			t.Errorf("a customer who refuses is in the distribution: %v", current)
		}
	}
}

// TestProfileErrors: a wrong request is the caller's fault, and the error names the field.
func TestProfileErrors(t *testing.T) {
	b := newBackend(t)
	client := qualityClient(t, b, nil)
	for _, c := range []struct {
		request *featuresv1.ProfileGroupRequest
		code    connect.Code
		want    string
	}{
		{&featuresv1.ProfileGroupRequest{}, connect.CodeInvalidArgument, "group"},
		{&featuresv1.ProfileGroupRequest{Group: "rfm"}, connect.CodeNotFound, "the groups are activity, stock"},
		{&featuresv1.ProfileGroupRequest{Group: "stock", Features: []string{"x"}}, connect.CodeNotFound, `"x"`},
		{&featuresv1.ProfileGroupRequest{Group: "stock", Features: []string{"orders_7d", "orders_7d"}}, connect.CodeInvalidArgument, "features"},
		{&featuresv1.ProfileGroupRequest{Group: "stock", Days: 91}, connect.CodeInvalidArgument, "days"},
		{&featuresv1.ProfileGroupRequest{Group: "stock", Days: 90, Entities: 9000}, connect.CodeInvalidArgument, "entities"},
		{&featuresv1.ProfileGroupRequest{Group: "stock", Daily: true}, connect.CodeInvalidArgument, "daily"},
	} {
		_, err := client.ProfileGroup(t.Context(), connect.NewRequest(c.request))
		if connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %v about %s", c.request, err, c.code, c.want)
		}
	}
	b.unready = errors.New("catching up")
	_, err := client.ProfileGroup(t.Context(), connect.NewRequest(&featuresv1.ProfileGroupRequest{Group: "stock"}))
	if connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("while catching up: %v", err)
	}
}
