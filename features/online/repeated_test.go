package online_test

import (
	"slices"
	"testing"

	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
)

// TestRepeatedEntities: an entity that a lookup names several times has the same vector each time, alone and
// as one person with others, and costs one vector. Each vector has its own memory.
func TestRepeatedEntities(t *testing.T) {
	f := newFamily(t, 20)
	q, err := f.store.Compile("lasting")
	must(t, err)
	for _, merged := range []bool{false, true} {
		if merged {
			f.link(t, true)
		}
		names := []string{"b", "a", "unknown", "c", "b", "b", "unknown"}
		var reused []online.Vector
		for range 2 {
			reused, err = f.store.Lookup(t.Context(), q, names, start, reused)
			must(t, err)
			for i, name := range names {
				one, err := f.store.Lookup(t.Context(), q, []string{name}, start, nil)
				must(t, err)
				v := &reused[i]
				if v.Entity != name || v.Found != one[0].Found || v.Newest != one[0].Newest ||
					!slices.Equal(v.Members, one[0].Members) || !slices.Equal(v.Empty, one[0].Empty) ||
					!slices.EqualFunc(v.Values, one[0].Values, exact.Result.Equal) {
					t.Fatalf("vector %d of %q is %+v, want %+v", i, name, v, one[0])
				}
			}
			reused[0].Values[0] = exact.Result{} // as another lookup would
			if reused[4].Values[0].Equal(exact.Result{}) {
				t.Fatal("two vectors share their memory")
			}
		}
	}
	// Each vector that is computed allocates its lists of texts.
	once, often := []string{"a"}, slices.Repeat([]string{"a"}, 1000)
	var vectors []online.Vector
	allocations := func(names []string) float64 {
		return testing.AllocsPerRun(5, func() {
			vectors, err = f.store.Lookup(t.Context(), q, names, start, vectors)
			must(t, err)
		})
	}
	allocations(often) // the memory of the vectors
	if one, all := allocations(once), allocations(often); all > 2*one {
		t.Errorf("1000 times one entity allocates %v times, once %v", all, one)
	}
}
