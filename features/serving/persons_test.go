package serving_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
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
