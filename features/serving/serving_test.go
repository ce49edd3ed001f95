package serving_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/serving"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/streams"
)

// now is the time of the service's clock.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// backend has a store that the test fills.
type backend struct {
	store      *online.Store
	watermarks *streams.Watermarks
	unready    error
}

func (b *backend) Store() online.Reader            { return b.store }
func (b *backend) Watermarks() *streams.Watermarks { return b.watermarks }
func (b *backend) Ready() error                    { return b.unready }

// groups are two groups of different entities.
func groups() []*features.Group {
	project := func(event.Event) ([]features.Fact, error) { return nil, nil }
	return []*features.Group{
		{
			Name: "activity", Version: 2, Entity: "customer_id", Description: "What customers do", Owner: "o",
			Sources: []features.Source{{Name: "orders", Topic: event.Order.Topic, Project: project, Columns: []features.Column{
				{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "country", Kind: exact.Text},
			}}},
			Features: []features.Feature{
				{Name: "orders", Source: "orders", Aggregate: exact.Count, Windows: []features.Window{features.Week, features.Hour}},
				{Name: "spent", Source: "orders", Aggregate: exact.Sum, Column: "total", Windows: []features.Window{features.Week}},
				{Name: "mean", Source: "orders", Aggregate: exact.Mean, Column: "total", Windows: []features.Window{features.Hour}},
				{Name: "country", Source: "orders", Aggregate: exact.Last, Column: "country", Windows: []features.Window{features.Lifetime}},
				{Name: "countries", Source: "orders", Aggregate: exact.Top, Column: "country", K: 2, Windows: []features.Window{features.Lifetime}},
			},
		},
		{
			Name: "stock", Version: 1, Entity: "sku", Description: "What is sold", Owner: "o",
			Sources: []features.Source{{Name: "changes", Topic: event.Stock.Topic, Project: project,
				Columns: []features.Column{{Name: "quantity", Kind: exact.Number}}}},
			Features: []features.Feature{
				{Name: "orders", Source: "changes", Aggregate: exact.Sum, Column: "quantity", Windows: []features.Window{features.Week}},
			},
		},
	}
}

func newBackend(t testing.TB) *backend {
	t.Helper()
	store, err := online.New(groups(), online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	order := func(entity string, before time.Duration, units int64, nanos int32, country exact.Value) features.Fact {
		return features.Fact{Entity: entity, Key: before.String(), At: now.Add(-before),
			Values: []exact.Value{exact.IntValue(exact.FromMoney(units, nanos)), country}}
	}
	for _, b := range []online.Batch{
		{Topic: event.Order.Topic, Partition: 1, After: feed.Position{Next: 7, AsOf: now.Add(-time.Minute)},
			Facts: map[string][]features.Fact{"orders": {
				order("c1", 2*time.Hour+123456*time.Microsecond, 3, 0, exact.TextValue("GB")),
				order("c1", 3*time.Hour, 0, 0, exact.TextValue("ü\"<\n")),
				order("c2", 2*time.Hour, 0, 10_000, exact.Value{}),
			}}},
		{Topic: event.Stock.Topic, After: feed.Position{Next: 1}, Facts: map[string][]features.Fact{"changes": {
			{Entity: "42", Key: "k", At: now.Add(-time.Hour), Values: []exact.Value{exact.IntValue(exact.FromInt64(-5))}},
		}}},
	} {
		if err := store.Apply(b); err != nil {
			t.Fatal(err)
		}
	}
	w := streams.NewWatermarks()
	w.Set(event.Order.Topic, 0, streams.Applied{Next: 7, Watermark: event.Position{Sequence: 10}})
	w.SetEnds(event.Order.Topic, map[int32]int64{0: 9})
	return &backend{store: store, watermarks: w}
}

// handler returns the handler of a backend.
func handler(b *backend) http.Handler {
	mux := http.NewServeMux()
	clock := func() time.Time { return now }
	mux.Handle(featuresv1connect.NewFeatureServiceHandler(serving.New(b, clock),
		rpc.HandlerOptions(slog.New(slog.DiscardHandler), clock)...))
	return mux
}

// client serves a backend and returns a client of it.
func client(t *testing.T, b *backend) featuresv1connect.FeatureServiceClient {
	t.Helper()
	s := httptest.NewServer(handler(b))
	t.Cleanup(s.Close)
	return featuresv1connect.NewFeatureServiceClient(s.Client(), s.URL)
}

// TestGetVectors: values, the status of each, and what part of the log they reflect, in each protocol.
func TestGetVectors(t *testing.T) {
	for name, options := range map[string][]connect.ClientOption{
		"Connect": nil, "JSON": {connect.WithProtoJSON()}, "GET": {connect.WithHTTPGet()}, "gRPC": {connect.WithGRPC()},
		"gRPC with JSON": {connect.WithGRPC(), connect.WithProtoJSON()}, "gRPC-Web": {connect.WithGRPCWeb()},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(handler(newBackend(t)))
			s.EnableHTTP2 = true // for gRPC
			s.StartTLS()
			t.Cleanup(s.Close)
			testGetVectors(t, featuresv1connect.NewFeatureServiceClient(s.Client(), s.URL, options...))
		})
	}
}

func testGetVectors(t *testing.T, c featuresv1connect.FeatureServiceClient) {
	res, err := c.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{
		Group: "activity", Entities: []string{"c1", "nobody", "c2"}}))
	if err != nil {
		t.Fatal(err)
	}
	want := &featuresv1.GetVectorsResponse{}
	if err := protojson.Unmarshal([]byte(`{
		"group": "activity/v2", "at": "2026-03-01T12:00:00Z",
		"features": ["orders_7d", "orders_1h", "spent_7d", "mean_1h", "country_lifetime", "countries_lifetime"],
		"vectors": [
			{"entity": "c1", "eventTime": "2026-03-01T09:59:59.876544Z", "values": [
				{"status": "VALUE_STATUS_PRESENT", "integer": "2"}, {"status": "VALUE_STATUS_DEFAULT", "integer": "0"},
				{"status": "VALUE_STATUS_PRESENT", "number": 3}, {"status": "VALUE_STATUS_NULL"},
				{"status": "VALUE_STATUS_PRESENT", "text": "GB"},
				{"status": "VALUE_STATUS_PRESENT", "texts": {"items": ["GB", "ü\"<\n"]}}]},
			{"entity": "nobody", "values": [
				{"status": "VALUE_STATUS_NOT_FOUND", "integer": "0"}, {"status": "VALUE_STATUS_NOT_FOUND", "integer": "0"},
				{"status": "VALUE_STATUS_NOT_FOUND", "number": 0}, {"status": "VALUE_STATUS_NOT_FOUND"},
				{"status": "VALUE_STATUS_NOT_FOUND"}, {"status": "VALUE_STATUS_NOT_FOUND", "texts": {}}]},
			{"entity": "c2", "eventTime": "2026-03-01T10:00:00Z", "values": [
				{"status": "VALUE_STATUS_PRESENT", "integer": "1"}, {"status": "VALUE_STATUS_DEFAULT", "integer": "0"},
				{"status": "VALUE_STATUS_PRESENT", "number": 1e-05}, {"status": "VALUE_STATUS_NULL"},
				{"status": "VALUE_STATUS_NULL"}, {"status": "VALUE_STATUS_DEFAULT", "texts": {}}]}],
		"moments": [{"asOf": "2026-03-01T11:59:00Z", "topics": [
			{"topic": "millrace.orders", "nextOffsets": ["-1", "7"]}, {"topic": "millrace.stock", "nextOffsets": ["1"]}]}]
	}`), want); err != nil {
		t.Fatal(err)
	}
	if got, want := protojson.Format(res.Msg), protojson.Format(want); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// Earlier, and only some features, in the order of the request.
	res, err = c.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{Group: "activity",
		Features: []string{"mean_1h", "orders_1h"}, Entities: []string{"c1"}, At: timestamppb.New(now.Add(-2 * time.Hour))}))
	if err != nil {
		t.Fatal(err)
	}
	if v := res.Msg.GetVectors()[0].GetValues(); v[0].GetNumber() != 3 || v[1].GetInteger() != 1 {
		t.Errorf("earlier, the values were %v, want 3 and 1", v)
	}
}

// TestErrors: each error has its code and names what is wrong.
func TestErrors(t *testing.T) {
	b := newBackend(t)
	c := client(t, b)
	get := func(r *featuresv1.GetVectorsRequest) error {
		if len(r.Entities) == 0 {
			r.Entities = []string{"c1"}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.GetVectors(ctx, connect.NewRequest(r))
		return err
	}
	token := func(service string, sequence uint64) string {
		return event.Token{Service: service, Position: event.Position{Sequence: sequence}, Stream: "s", Version: 3}.String()
	}
	for name, test := range map[string]struct {
		request *featuresv1.GetVectorsRequest
		code    connect.Code
		want    string
	}{
		"group":   {&featuresv1.GetVectorsRequest{Group: "clicks"}, connect.CodeNotFound, "the groups are activity, stock"},
		"feature": {&featuresv1.GetVectorsRequest{Group: "activity", Features: []string{"x"}}, connect.CodeNotFound, `feature "x"`},
		"twice": {&featuresv1.GetVectorsRequest{Group: "activity", Features: []string{"orders_7d", "orders_7d"}}, connect.CodeInvalidArgument,
			"features:"},
		"no group":      {&featuresv1.GetVectorsRequest{}, connect.CodeInvalidArgument, "group:"},
		"no token":      {&featuresv1.GetVectorsRequest{Group: "activity", Token: "x"}, connect.CodeInvalidArgument, "token: not a token"},
		"other service": {&featuresv1.GetVectorsRequest{Group: "activity", Token: token("customer", 1)}, connect.CodeInvalidArgument, "token: a token of the service"},
		"not yet":       {&featuresv1.GetVectorsRequest{Group: "activity", Token: token("order", 11)}, connect.CodeDeadlineExceeded, `version 3 of "s"`},
	} {
		err := get(test.request)
		if connect.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s with %q", name, err, test.code, test.want)
		}
		if name == "not yet" {
			var typed *connect.Error
			if !errors.As(err, &typed) || len(typed.Details()) != 1 {
				t.Fatalf("%v has no detail", err)
			}
			if d, err := typed.Details()[0].Value(); err != nil || d.(*eventv1.Stale).GetView() != "features/activity/v2" {
				t.Errorf("detail %v, %v", d, err)
			}
		}
	}
	if err := get(&featuresv1.GetVectorsRequest{Group: "activity", Token: token("order", 10)}); err != nil {
		t.Errorf("a token that was reached: %v", err)
	}
	b.unready = errors.New("catching up")
	if err := get(&featuresv1.GetVectorsRequest{Group: "activity"}); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("before the store has caught up: %v", err)
	}
}

// TestCatalogue: groups and features as they are defined.
func TestCatalogue(t *testing.T) {
	c := client(t, newBackend(t))
	list, err := c.ListGroups(t.Context(), connect.NewRequest(&featuresv1.ListGroupsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if g := list.Msg.GetGroups(); len(g) != 2 || g[1].GetEntity() != "sku" || list.Msg.GetEntities() != 3 || list.Msg.GetBytes() == 0 {
		t.Errorf("groups are %v", list.Msg)
	}
	d, err := c.DescribeGroup(t.Context(), connect.NewRequest(&featuresv1.DescribeGroupRequest{Group: "activity"}))
	if err != nil {
		t.Fatal(err)
	}
	if f := d.Msg.GetFeatures(); len(f) != 6 || f[2].GetName() != "spent_7d" || f[2].GetKind() != "number" ||
		f[2].GetAggregate() != "sum" || f[2].GetWindow() != "7d" {
		t.Errorf("features are %v", f)
	}
}

// feast posts a body to Feast's API.
func feast(t testing.TB, h http.Handler, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/get-online-features", strings.NewReader(body))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	b, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(b)
}

func feastHandler(b *backend) http.Handler {
	return serving.NewFeast(serving.New(b, func() time.Time { return now }), func(h http.Handler) http.Handler { return h })
}

// TestFeastFormat: requests and answers are those that Feast 0.67's own feature server was recorded
// with, but for the order of features, which there is arbitrary.
func TestFeastFormat(t *testing.T) {
	b := newBackend(t)
	h := feastHandler(b)
	const never, first = `"1970-01-01T00:00:00Z"`, `"2026-03-01T09:59:59.876544Z"`
	for name, test := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"batch": {`{"entities":{"customer_id":["c1","zz","c2"]},"features":["activity:orders_7d","activity:spent_7d","activity:country_lifetime","activity:countries_lifetime"],"full_feature_names":false,"include_feature_view_version_metadata":false}`, 200,
			`{"results":[` +
				`{"values":["c1","zz","c2"],"statuses":["PRESENT","PRESENT","PRESENT"],"event_timestamps":[` + never + `,` + never + `,` + never + `]},` +
				`{"values":[2,null,1],"statuses":["PRESENT","NOT_FOUND","PRESENT"],"event_timestamps":[` + first + `,` + never + `,"2026-03-01T10:00:00Z"]},` +
				`{"values":[3.0,null,1e-05],"statuses":["PRESENT","NOT_FOUND","PRESENT"],"event_timestamps":[` + first + `,` + never + `,"2026-03-01T10:00:00Z"]},` +
				`{"values":["GB",null,null],"statuses":["PRESENT","NOT_FOUND","NULL_VALUE"],"event_timestamps":[` + first + `,` + never + `,"2026-03-01T10:00:00Z"]},` +
				`{"values":[["GB","ü\"\u003c\n"],null,[]],"statuses":["PRESENT","NOT_FOUND","PRESENT"],"event_timestamps":[` + first + `,` + never + `,"2026-03-01T10:00:00Z"]}],` +
				`"metadata":{"feature_names":["customer_id","orders_7d","spent_7d","country_lifetime","countries_lifetime"]}}`},
		"feature service": {`{"entities":{"sku":[42]},"feature_service":"stock","full_feature_names":true,"include_feature_view_version_metadata":true}`, 200,
			`{"results":[{"values":[42],"statuses":["PRESENT"],"event_timestamps":[` + never + `]},` +
				`{"values":[-5],"statuses":["PRESENT"],"event_timestamps":["2026-03-01T11:00:00Z"]}],` +
				`"metadata":{"feature_names":["sku","stock__orders_7d"],"feature_view_metadata":[{"name":"stock","version":1}]}}`},
		"two views": {`{"entities":{"sku":["42"],"customer_id":["c2"]},"features":["activity:orders_7d","stock:orders_7d"],"full_feature_names":true}`, 200,
			`{"results":[{"values":["42"],"statuses":["PRESENT"],"event_timestamps":[` + never + `]},` +
				`{"values":["c2"],"statuses":["PRESENT"],"event_timestamps":[` + never + `]},` +
				`{"values":[1],"statuses":["PRESENT"],"event_timestamps":["2026-03-01T10:00:00Z"]},` +
				`{"values":[-5],"statuses":["PRESENT"],"event_timestamps":["2026-03-01T11:00:00Z"]}],` +
				`"metadata":{"feature_names":["sku","customer_id","activity__orders_7d","stock__orders_7d"]}}`},
		"unknown view": {`{"entities":{"customer_id":["c1"]},"features":["nope:x"]}`, 404,
			`"{\"class\":\"FeatureViewNotFoundException\",\"message\":\"Feature view nope does not exist\",\"module\":\"feast.errors\"}"`},
		"unknown service": {`{"entities":{"customer_id":["c1"]},"feature_service":"nope"}`, 404,
			`"{\"class\":\"FeatureServiceNotFoundException\",\"message\":\"Feature service nope does not exist\",\"module\":\"feast.errors\"}"`},
	} {
		if status, got := feast(t, h, test.body); status != test.status || got != test.want {
			t.Errorf("%s: %d\n%s, want %d\n%s", name, status, got, test.status, test.want)
		}
	}
	for body, want := range map[string]string{
		`{"entities":{"customer_id":["c1"]},"features":["activity:nope"]}`:                                       `FeastObjectNotFoundException`,
		`{"entities":{"customer_id":["c1"],"sku":["1"]},"features":["activity:orders_7d","stock:orders_7d"]}`:    `FeatureNameCollisionError`,
		`{"entities":{},"features":["activity:orders_7d"]}`:                                                      `entities: want at least one`,
		`{"entities":{"customer_id":[]},"features":["activity:orders_7d"]}`:                                      `entities: want at least one`,
		`{"entities":{"sku":["c1"]},"features":["activity:orders_7d"]}`:                                          `the key customer_id of feature view activity is missing`,
		`{"entities":{"customer_id":[1.5]},"features":["activity:orders_7d"]}`:                                   `customer_id[0]: want a text or an integer`,
		`{"entities":{"customer_id":"c1"},"features":["activity:orders_7d"]}`:                                    `entities: customer_id: want a list`,
		`{"entities":{"customer_id":["a"],"sku":["a","b"]},"features":["activity:orders_7d"]}`:                   `sku has 2 values, and customer_id has 1`,
		`{"entities":{"customer_id":["a"],"customer_id":["b"]},"features":["activity:orders_7d"]}`:               `customer_id is set twice`,
		`{"entities":{"customer_id":["c1"]},"features":["orders_7d"]}`:                                           `want VIEW:FEATURE`,
		`{"entities":{"customer_id":["c1"]}}`:                                                                    `want features or a feature_service`,
		`{"entities":5`:                                                                                          `not a request`,
		`{"entities":{"customer_id":["c1"]},"features":["` + strings.Repeat("x", 5<<20) + `"]}`:                  `more than 4194304 bytes`,
		`{"entities":{"customer_id":["c1"]},"features":["activity:orders_7d"],"entities":{"sku":["1"]}}`:         `entities: is set twice`,
		`{"entities":{"customer_id":["c1"]},"features":["activity:orders_7d"],"Entities":{"sku":["1"]}}`:         `entities: is set twice`,
		`{"entities":{"customer_id":[+5]},"features":["activity:orders_7d"]}`:                                    `customer_id[0]: want a text or an integer`,
		`{"entities":{"customer_id":["c1",]},"features":["activity:orders_7d"]}`:                                 `customer_id[1]: want a text or an integer`,
		`{"entities":{null:["c1"]},"features":["activity:orders_7d"]}`:                                           `want an object of lists`,
		`{"entities":{"customer_id":["c1"]},"features":["activity:orders_7d"]`:                                   `not a request`,
		`{"entities":{"customer_id":["c1"}],"features":["activity:orders_7d"]}`:                                  `want an object of lists`,
		`{"entities":{"customer_id":[` + strings.Repeat("1,", 10_000) + `1]},"features":["activity:orders_7d"]}`: `more than 10000 values`,
	} {
		status, got := feast(t, h, body)
		if status < 400 || status >= 500 || !strings.Contains(got, want) || !strings.Contains(got, `\"module\":\"feast.errors\"`) {
			t.Errorf("%.100s: %d %s, want an error with %q", body, status, got, want)
		}
	}
	b.unready = errors.New("catching up")
	if status, got := feast(t, h, `{}`); status != 503 || !strings.Contains(got, "catching up") {
		t.Errorf("before the store has caught up: %d %s", status, got)
	}
}

// TestFeastErrorsOfOtherLayers: Feast's client can only read JSON.
func TestFeastErrorsOfOtherLayers(t *testing.T) {
	h := serving.FeastErrors(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no token", http.StatusUnauthorized)
	}))
	status, got := feast(t, h, "")
	if want := `"{\"class\":\"FeastError\",\"message\":\"no token\",\"module\":\"feast.errors\"}"`; status != 401 || got != want {
		t.Errorf("%d %s, want 401 %s", status, got, want)
	}
}

// TestFeastPlanIsKept: a request of a known shape is answered as the first one of it, and a faulty one
// is refused.
func TestFeastPlanIsKept(t *testing.T) {
	h := feastHandler(newBackend(t))
	const format = ` { "features" : ["activity:orders_7d"], "more":{"a":["]",{"b":"\\\""}]}, "entities" : %s, "full_feature_names":false } `
	for range 2 {
		for _, test := range []struct {
			entities string
			status   int
			want     string
		}{
			{`{"customer_id":["c1"]}`, 200, `{"values":[2],`},
			{`{"customer_id" : [ "c2" , "\u0063\u0031" ] }`, 200, `{"values":[1,2],`},
			{`{"customer_id":["]}"],"x":[-7]}`, 200, `{"values":[-7],`},
			{`{"customer_id":["c1"]`, 422, ``},
			{`{"customer_id":["c1]}`, 422, ``},
			{`{"customer_id":["c\x"]}`, 422, ``},
			{`{"customer_id":["c1"]},"y":1`, 200, `{"values":[2],`},
			{"{\"customer_id\":[\"c\xff\"]}", 422, `not UTF-8`},
			{"{\"customer_id\":[\"c1\"],\"\xc3\":[1]}", 422, `want an object`},
			{`[]`, 422, `want an object`},
			{``, 422, ``},
		} {
			body := fmt.Sprintf(format, test.entities)
			if status, got := feast(t, h, body); status != test.status || !strings.Contains(got, test.want) ||
				json.Valid([]byte(body)) != (status == 200 || test.want != "") {
				t.Errorf("%s: %d %s, want %d with %q", body, status, got, test.status, test.want)
			}
		}
	}
}

// FuzzFeast: any body is answered or refused, in JSON. Only a body of valid JSON is answered.
func FuzzFeast(f *testing.F) {
	f.Add(`{"entities":{"customer_id":["c1","zz"]},"features":["activity:orders_7d","activity:*"]}`)
	f.Add(`{"entities":{"sku":[42,"\u00fc"]},"feature_service":"stock","full_feature_names":true}`)
	f.Add(`{"entities":{"a\"b":[-1]},"features":[":"]}`)
	f.Add(`[{}]`)
	f.Add(`{"x":[{"entities":1}],"entities":{"customer_id":["\\"]},"feature_service":"activity"}`)
	h := feastHandler(newBackend(f))
	f.Fuzz(func(t *testing.T, body string) {
		status, got := feast(t, h, body)
		if status != 200 && (status < 400 || status >= 500) || !json.Valid([]byte(got)) ||
			status == 200 && !json.Valid([]byte(body)) {
			t.Errorf("%q: %d %s", body, status, got)
		}
	})
}

// TestRefusals checks that an entity that refuses is answered as one that was not found, by both APIs.
func TestRefusals(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	s := serving.New(b, func() time.Time { return now })
	s.WithholdFrom("customer_id", func(ids ...string) bool {
		return slices.Contains(ids, "c1") || slices.Contains(ids, "42")
	})
	mux := http.NewServeMux()
	mux.Handle(featuresv1connect.NewFeatureServiceHandler(s))
	mux.Handle("/get-online-features", serving.NewFeast(s, func(h http.Handler) http.Handler { return h }))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	ask := func(group string, entities ...string) (found []bool) {
		res, err := featuresv1connect.NewFeatureServiceClient(server.Client(), server.URL).GetVectors(t.Context(),
			connect.NewRequest(&featuresv1.GetVectorsRequest{Group: group, Entities: entities}))
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range res.Msg.GetVectors() {
			if v.GetEntity() != entities[i] {
				t.Errorf("the entity %q is answered as %q", entities[i], v.GetEntity())
			}
			found = append(found, v.GetValues()[0].GetStatus() != featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND)
		}
		return found
	}
	if got := ask("activity", "c2", "c1", "c2"); !slices.Equal(got, []bool{true, false, true}) {
		t.Errorf("found: %v", got)
	}
	if got := ask("stock", "42"); !slices.Equal(got, []bool{true}) { // a product refuses nothing
		t.Errorf("found: %v", got)
	}
	res, err := server.Client().Post(server.URL+"/get-online-features", "application/json",
		strings.NewReader(`{"features":["activity:orders_7d"],"entities":{"customer_id":["c1","c2"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if closed := res.Body.Close(); err != nil || closed != nil {
		t.Fatal(err, closed)
	}
	if !strings.Contains(string(text), `"statuses":["NOT_FOUND","PRESENT"]`) {
		t.Errorf("Feast's answer is %s", text)
	}
}

// servedLog is a Log that keeps the entities of what it is offered.
type servedLog []string

func (l *servedLog) Add(q *online.Query, vectors []online.Vector, at time.Time) {
	for _, v := range vectors {
		*l = append(*l, q.Group.Name+" "+v.Entity+" "+at.Format(time.TimeOnly))
	}
}

// TestServedVectorsAreLogged: both APIs offer what they answer to the log, and nothing else.
func TestServedVectorsAreLogged(t *testing.T) {
	clock := func() time.Time { return now }
	s, log := serving.New(newBackend(t), clock), &servedLog{}
	s.LogTo(log)
	for _, r := range []*featuresv1.GetVectorsRequest{
		{Group: "activity", Entities: []string{"c1", "nobody"}, At: timestamppb.New(now.Add(-time.Hour))},
		{Group: "unknown", Entities: []string{"c1"}},
	} {
		_, _ = s.GetVectors(t.Context(), connect.NewRequest(r)) // the second one is refused
	}
	feast := httptest.NewServer(serving.NewFeast(s, func(h http.Handler) http.Handler { return h }))
	defer feast.Close()
	for _, body := range []string{`{"entities":{"sku":["42"]},"features":["stock:orders_7d"]}`, `{"entities":{}}`} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, feast.URL+"/get-online-features", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"activity c1 11:00:00", "activity nobody 11:00:00", "stock 42 12:00:00"}; !slices.Equal(*log, want) {
		t.Errorf("%q were logged; want %q", *log, want)
	}
}
