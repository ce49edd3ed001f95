package online_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
)

// family is a store with facts of two customers and of a third one, and its log of the identity graph.
type family struct {
	store *online.Store
	facts map[string][]features.Fact
	links personstest.Links
	next  int64 // offset of the identity graph
}

// newFamily returns a store in which each customer has n orders.
func newFamily(t *testing.T, n int) *family {
	t.Helper()
	f := &family{store: newStore(t), facts: map[string][]features.Fact{}}
	for i := range n {
		for j, c := range []string{"a", "b", "c"} {
			f.facts["orders"] = append(f.facts["orders"], features.Fact{Entity: c, Key: fmt.Sprint(i),
				At: start.Add(-time.Duration(i) * time.Minute), Origin: features.Origin{Topic: "orders", Offset: int64(i)},
				Values: []exact.Value{exact.IntValue(exact.FromInt64(int64(i * j))), exact.TextValue("GB"),
					exact.IntValue(exact.FromInt64(int64(j))), exact.TextValue(c), {}}})
		}
	}
	must(t, f.store.Apply(online.Batch{Topic: "orders", After: feed.Position{Next: int64(n)}, Facts: f.facts}))
	return f
}

// link applies a change of the edge between a and b.
func (f *family) link(t *testing.T, joined bool) {
	t.Helper()
	for _, fact := range f.links.Change("customer:a", "customer:b", joined, start) {
		fact.Origin = features.Origin{Topic: persons.Source.Topic, Offset: f.next}
		must(t, f.store.Apply(online.Batch{Topic: persons.Source.Topic, First: f.next, After: feed.Position{Next: f.next + 1},
			Facts: map[string][]features.Fact{persons.Source.Name: {fact}}}))
		f.next++
	}
}

// vectors returns the values of a, b and c.
func (f *family) vectors(t *testing.T) [][]exact.Result {
	t.Helper()
	q, err := f.store.Compile("lasting")
	must(t, err)
	found, err := f.store.Lookup(t.Context(), q, []string{"a", "b", "c"}, start, nil)
	must(t, err)
	all := make([][]exact.Result, len(found))
	for i, v := range found {
		all[i] = slices.Clone(v.Values)
	}
	return all
}

// TestMergeAndUnmerge: a merge joins the facts of both, asking for either gives the same vector, and
// after it was taken back, the vectors are those of customers who were never merged.
func TestMergeAndUnmerge(t *testing.T) {
	f := newFamily(t, 20)
	never := f.vectors(t)
	f.link(t, true)
	merged := f.vectors(t)
	for i, o := range lasting().Outputs() {
		want := features.EvaluatePerson(lasting(), f.facts, "a", []string{"a", "b"}, start, time.Time{}).Values[i]
		if !merged[0][i].Equal(want) || !merged[1][i].Equal(want) || !merged[2][i].Equal(never[2][i]) {
			t.Errorf("%s is %+v and %+v, want %+v; of another one %+v, want %+v", o.Name, merged[0][i], merged[1][i], want,
				merged[2][i], never[2][i])
		}
	}
	f.link(t, false)
	for i, values := range f.vectors(t) {
		if !slices.EqualFunc(values, never[i], exact.Result.Equal) {
			t.Errorf("after the merge was taken back, a vector is %+v, want %+v", values, never[i])
		}
	}
}

// TestLookupsDuringMerges: while customers with 10,000 facts are merged and parted, and facts arrive,
// every lookup is answered with a vector of one moment: that of its positions.
func TestLookupsDuringMerges(t *testing.T) {
	const facts, lookups = 10_000, 200
	f := newFamily(t, facts)
	q, err := f.store.Compile("lasting", "f0_lifetime")
	must(t, err)
	var readers sync.WaitGroup
	answered := make(chan struct{})
	for _, who := range []string{"a", "b"} {
		readers.Go(func() {
			for range lookups {
				v, err := f.store.Lookup(t.Context(), q, []string{who}, start, nil)
				if err != nil {
					t.Error(err)
					return
				}
				at := map[string]int64{}
				for _, p := range v[0].Positions.Topics {
					if len(p.Partitions) > 0 {
						at[p.Topic] = p.Partitions[0].Next
					}
				}
				// Each offset of orders has one fact of each customer. Offsets of the graph are the two ends
				// of a merge, and of its reversal. One end is enough.
				want := at["orders"]
				if n := at[persons.Source.Topic] % 4; n == 1 || n == 2 {
					want *= 2
				}
				if got := v[0].Values[0].Int; got != want {
					t.Errorf("%d orders of %s at the positions %v, want %d", got, who, at, want)
					return
				}
			}
		})
	}
	go func() {
		readers.Wait()
		close(answered)
	}()
	for i := 0; ; i++ {
		select {
		case <-answered:
			return
		default:
		}
		f.link(t, i%2 == 0)
		offset := int64(facts + i)
		var some []features.Fact
		for _, c := range []string{"a", "b"} {
			some = append(some, features.Fact{Entity: c, Key: fmt.Sprint(offset), At: start, Values: make([]exact.Value, 5),
				Origin: features.Origin{Topic: "orders", Offset: offset}})
		}
		must(t, f.store.Apply(online.Batch{Topic: "orders", First: offset, After: feed.Position{Next: offset + 1},
			Facts: map[string][]features.Fact{"orders": some}}))
	}
}
