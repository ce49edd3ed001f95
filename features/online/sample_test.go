package online_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
)

// TestSample: a sample depends on the keys of the entities alone, a smaller one is a part of a larger
// one, and entities of another kind are in none.
func TestSample(t *testing.T) {
	filled := func(n int, backwards bool) *online.Store {
		other := passing()
		other.Name, other.Entity, other.Sources[0].Name, other.Sources[0].Topic = "other", "sku", "views", "views"
		for i := range other.Features {
			other.Features[i].Source = "views"
		}
		s, err := online.New([]*features.Group{passing(), other}, online.Options{})
		if err != nil {
			t.Fatal(err)
		}
		facts := make([]features.Fact, n)
		for i := range facts {
			facts[i] = features.Fact{Entity: fmt.Sprint("c", i), Key: "k", At: start.Add(time.Duration(i) * time.Second),
				Values: []exact.Value{exact.TextValue("/")}}
		}
		if backwards {
			slices.Reverse(facts)
		}
		if err := s.Apply(online.Batch{Topic: "behavior", After: feed.Position{Next: 1},
			Facts: map[string][]features.Fact{"clicks": facts}}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := filled(1000, false)
	sample, total, _ := s.Sample(t.Context(), passing(), 100)
	distinct := slices.Compact(slices.Sorted(slices.Values(sample)))
	if total != 1000 || len(sample) != 100 || len(distinct) != 100 {
		t.Fatalf("%d of %d entities, %d of them distinct", len(sample), total, len(distinct))
	}
	if again, _, _ := filled(1000, true).Sample(t.Context(), passing(), 100); !slices.Equal(again, sample) {
		t.Error("another order of facts made another sample")
	}
	if small, _, _ := s.Sample(t.Context(), passing(), 7); !slices.Equal(small, sample[:7]) {
		t.Error("a smaller sample is not a part of a larger one")
	}
	if all, total, _ := s.Sample(t.Context(), passing(), 2000); len(all) != 1000 || total != 1000 {
		t.Errorf("%d of %d entities of 1000", len(all), total)
	}
	if none, total, _ := s.Sample(t.Context(), &features.Group{Entity: "sku"}, 10); len(none) != 0 || total != 0 {
		t.Errorf("products: %v of %d", none, total)
	}
}
