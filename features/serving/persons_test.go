package serving_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
	"github.com/millrace/millrace/features/serving"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/streams"
)

// TestMerge: the token of a merge waits until the vectors follow it, and then both customers have the
// vector of the person, unless the person refuses.
func TestMerge(t *testing.T) {
	t.Parallel()
	g := groups()
	g[0].Identity = features.Customers
	store, err := online.New(g, online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{store: store, watermarks: streams.NewWatermarks()}
	apply := func(batch online.Batch) {
		t.Helper()
		if err := store.Apply(batch); err != nil {
			t.Fatal(err)
		}
	}
	for i, entity := range []string{"c1", "c2", "c2", "c3"} {
		apply(online.Batch{Topic: event.Order.Topic, First: int64(i), After: feed.Position{Next: int64(i + 1)},
			Facts: map[string][]features.Fact{"orders": {{Entity: entity, Key: fmt.Sprint(i), At: now.Add(-time.Duration(i) * time.Minute),
				Origin: features.Origin{Offset: int64(i)}, Values: []exact.Value{{}, exact.TextValue(entity)}}}}})
	}
	s := serving.New(b, func() time.Time { return now })
	s.WithholdFrom("customer_id", func(ids ...string) bool { return slices.Equal(ids, []string{"c3", "c4"}) })
	mux := http.NewServeMux()
	mux.Handle(featuresv1connect.NewFeatureServiceHandler(s))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	c := featuresv1connect.NewFeatureServiceClient(server.Client(), server.URL)
	token := event.Token{Service: event.Identity.Service, Position: event.Position{Sequence: 5}, Stream: "customer:c1",
		Version: 1}.String()
	orders := func(token string) (counts []int64, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		res, err := c.GetVectors(ctx, connect.NewRequest(&featuresv1.GetVectorsRequest{Group: "activity",
			Features: []string{"orders_7d"}, Entities: []string{"c1", "c2", "c3"}, Token: token}))
		if err != nil {
			return nil, err
		}
		for _, v := range res.Msg.GetVectors() {
			counts = append(counts, v.GetValues()[0].GetInteger())
		}
		return counts, nil
	}
	if counts, err := orders(""); err != nil || !slices.Equal(counts, []int64{1, 2, 1}) {
		t.Errorf("before the merge: %v, %v", counts, err)
	}
	if counts, err := orders(token); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("with the token of a merge that was not applied: %v, %v", counts, err)
	}
	var links personstest.Links
	merge, refusing := links.Change("customer:c1", "customer:c2", true, now), links.Change("customer:c3", "customer:c4", true, now)
	apply(online.Batch{Topic: persons.Source.Topic, After: feed.Position{Next: 1},
		Facts: map[string][]features.Fact{persons.Source.Name: append(merge[:], refusing[:]...)}})
	b.watermarks.Set(persons.Source.Topic, 0, streams.Applied{Next: 1, Watermark: event.Position{Sequence: 5}})
	b.watermarks.SetEnds(persons.Source.Topic, map[int32]int64{0: 1})
	if counts, err := orders(token); err != nil || !slices.Equal(counts, []int64{3, 3, 0}) {
		t.Errorf("after the merge: %v, %v", counts, err)
	}
	_, err = c.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{Group: "stock",
		Entities: []string{"42"}, Token: token}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a group of products takes the token of a merge: %v", err)
	}
}

// TestCustomersInAnyCase: the UUID of a customer is found and refused in any case, by both APIs, and the
// answer repeats it as it was sent. Keys of other entities count as they are.
func TestCustomersInAnyCase(t *testing.T) {
	t.Parallel()
	const customer, refusing = "0199e9a4-43aa-7c01-b5a1-5c0f5e1d2a3b", "0199e9a4-43aa-7c01-b5a1-5c0f5e1d2a3c"
	g := groups()
	g[0].Identity, g[1].Identity = features.Customers, features.NoIdentity
	store, err := online.New(g, online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	of := func(values ...exact.Value) (facts []features.Fact) {
		for i, entity := range []string{customer, refusing} {
			facts = append(facts, features.Fact{Entity: entity, Key: fmt.Sprint(i), At: now.Add(-time.Minute), Values: values})
		}
		return facts
	}
	for topic, facts := range map[string]map[string][]features.Fact{
		event.Order.Topic: {"orders": of(exact.Value{}, exact.TextValue("GB"))},
		event.Stock.Topic: {"changes": of(exact.IntValue(exact.FromInt64(1)))},
	} {
		if err := store.Apply(online.Batch{Topic: topic, After: feed.Position{Next: 1}, Facts: facts}); err != nil {
			t.Fatal(err)
		}
	}
	s := serving.New(&backend{store: store, watermarks: streams.NewWatermarks()}, func() time.Time { return now })
	s.WithholdFrom("customer_id", func(ids ...string) bool { return slices.Contains(ids, refusing) })
	keys := []string{strings.ToUpper(customer), customer, "0199E9a4" + customer[8:], strings.ToUpper(refusing), refusing}
	for group, want := range map[string]string{"activity": "true true true false false", "stock": "false true false false true"} {
		res, err := s.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{Group: group, Entities: keys}))
		if err != nil {
			t.Fatal(err)
		}
		var found []bool
		for i, v := range res.Msg.GetVectors() {
			found = append(found, v.GetValues()[0].GetStatus() != featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND)
			if v.GetEntity() != keys[i] {
				t.Errorf("%s: the entity %q is answered as %q", group, keys[i], v.GetEntity())
			}
		}
		if got := strings.Trim(fmt.Sprint(found), "[]"); got != want {
			t.Errorf("%s: found are %s, want %s", group, got, want)
		}
	}
	feast := httptest.NewServer(serving.NewFeast(s, func(h http.Handler) http.Handler { return h }))
	t.Cleanup(feast.Close)
	res, err := feast.Client().Post(feast.URL+"/get-online-features", "application/json", strings.NewReader(
		`{"features":["activity:orders_7d"],"entities":{"customer_id":["`+strings.Join(keys, `","`)+`"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if closed := res.Body.Close(); err != nil || closed != nil {
		t.Fatal(err, closed)
	}
	for _, want := range []string{`"statuses":["PRESENT","PRESENT","PRESENT","NOT_FOUND","NOT_FOUND"]`, strings.Join(keys, `","`)} {
		if !strings.Contains(string(text), want) {
			t.Errorf("Feast's answer is %s, want %s in it", text, want)
		}
	}
}
