package quality

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// group has the outputs n, x and place, one per kind of result.
func group() *features.Group {
	return &features.Group{
		Name: "g", Version: 2, Entity: "id", Description: "d", Owner: "o",
		Sources: []features.Source{{
			Name: "s", Topic: "t",
			Columns: []features.Column{{Name: "x", Kind: exact.Number, Scale: 2}, {Name: "place", Kind: exact.Text}},
			Project: func(event.Event) ([]features.Fact, error) { return nil, nil },
		}},
		Features: []features.Feature{
			{Name: "n", Source: "s", Aggregate: exact.Count, Windows: []features.Window{features.Day}},
			{Name: "x", Source: "s", Aggregate: exact.Mean, Column: "x", Windows: []features.Window{features.Day}},
			{Name: "place", Source: "s", Aggregate: exact.Last, Column: "place", Windows: []features.Window{features.Day}},
		},
	}
}

func vector(n int64, x float64, place string) features.Vector {
	v := features.Vector{At: now, Found: true, Values: []exact.Result{
		{Kind: exact.IntResult, Int: n}, {Kind: exact.FloatResult, Float: x}, {Kind: exact.TextResult, Text: place},
	}}
	if math.IsNaN(x) {
		v.Values[1] = exact.Result{}
	}
	return v
}

func profileOf(t testing.TB, vectors ...features.Vector) *Profile {
	t.Helper()
	p := NewProfile(group(), group().Outputs())
	for _, v := range vectors {
		if err := p.Add(v); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// population returns vectors with log-normal numbers around a centre. One in ten is null.
func population(seed uint64, size int, centre float64, places ...string) []features.Vector {
	rnd := rand.New(rand.NewPCG(seed, 1))
	all := make([]features.Vector, size)
	for i := range all {
		x := math.Exp(centre + rnd.NormFloat64())
		if rnd.IntN(10) == 0 {
			x = math.NaN()
		}
		all[i] = vector(rnd.Int64N(5), x, places[rnd.IntN(len(places))])
	}
	return all
}

// TestPSI compares with figures that were computed by hand.
func TestPSI(t *testing.T) {
	t.Parallel()
	// Cells: nulls, and one cell for each of the two numbers, and none beyond.
	r := &Distribution{Values: 100, Buckets: map[int32]int64{Bucket(1): 50, Bucket(2): 50}}
	c := &Distribution{Values: 80, Nulls: 20, Buckets: map[int32]int64{Bucket(1): 20, Bucket(2): 60}}
	share := func(n float64) float64 { return (n + 0.5) / 102 }
	part := func(r, c float64) float64 { return (share(c) - share(r)) * math.Log(share(c)/share(r)) }
	if got, want := PSI(r, c), part(0, 20)+part(50, 20)+part(50, 60)+part(0, 0); math.Abs(got-want) > 1e-12 {
		t.Errorf("PSI %v, want %v", got, want)
	}
	if got := PSI(c, c); got != 0 {
		t.Errorf("PSI of a distribution and itself: %v", got)
	}
	if got := PSI(&Distribution{}, &Distribution{}); got != 0 {
		t.Errorf("PSI of nothing: %v", got)
	}
}

// TestProfilesMerge: a profile depends neither on the order of vectors nor on how they are split.
func TestProfilesMerge(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		vectors := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) features.Vector {
			v := vector(rapid.Int64().Draw(rt, "n"), rapid.Float64().Draw(rt, "x"), rapid.StringN(0, 3, -1).Draw(rt, "place"))
			v.Found = rapid.IntRange(0, 4).Draw(rt, "found") > 0
			return v
		}), 0, 40).Draw(rt, "vectors")
		whole := profileOf(t, vectors...)
		shuffled := rapid.Permutation(vectors).Draw(rt, "order")
		at := rapid.IntRange(0, len(vectors)).Draw(rt, "split")
		merged := profileOf(t, shuffled[:at]...)
		if err := merged.Merge(profileOf(t, shuffled[at:]...)); err != nil {
			rt.Fatal(err)
		}
		if !reflect.DeepEqual(merged, whole) {
			rt.Errorf("merged %+v\nwhole  %+v", merged, whole)
		}
	})
}

// TestBuckets: the number that a bucket stands for is in that bucket, so that a distribution may be
// sent as such numbers.
func TestBuckets(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.OneOf(rapid.Float64(), rapid.Float64Range(-1e-300, 1e-300)).Draw(t, "x")
		if b := Bucket(x); !math.IsInf(Middle(b), 0) && Bucket(Middle(b)) != b {
			t.Errorf("%v is in bucket %d, and %v in %d", x, b, Middle(b), Bucket(Middle(b)))
		}
	})
}

// TestQuantile: the sketch of the numbers is within 1 % of each quantile.
func TestQuantile(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.OneOf(rapid.Float64(), rapid.Float64Range(-3, 3)), 1, 50).Draw(t, "values")
		var d Distribution
		for _, x := range values {
			d.add(exact.Result{Kind: exact.FloatResult, Float: x})
		}
		slices.Sort(values)
		for _, q := range []float64{0, 0.5, 0.9, 1} {
			want := values[int(math.Floor(q*float64(len(values)-1)))]
			got, ok := d.Quantile(q)
			if smallest := 1e-300; !ok || math.Abs(want) > smallest && math.Abs(want) < 1e300 && math.Abs(got-want) > 0.0101*math.Abs(want) {
				t.Errorf("quantile %v of %v is %v, want %v", q, values, got, want)
			}
		}
	})
	if _, ok := (&Distribution{}).Quantile(0.5); ok {
		t.Error("nothing has a median")
	}
}

// TestEmptyLists: a list without texts counts as null, and entities without facts do not count.
func TestEmptyLists(t *testing.T) {
	t.Parallel()
	var d Distribution
	d.add(exact.Result{Kind: exact.TextsResult})
	d.add(exact.Result{Kind: exact.TextsResult, Texts: []string{"MUG", "LAMP"}})
	if d.NullShare() != 0.5 || d.Values != 1 || d.Texts["MUG"] != 1 {
		t.Errorf("%+v", d)
	}
	unknown := vector(0, 0, "")
	unknown.Found = false
	if p := profileOf(t, unknown); p.Vectors != 1 || p.Found != 0 || p.Outputs[0].Values != 0 {
		t.Errorf("%+v", p)
	}
}

func TestOtherGroupsAreRejected(t *testing.T) {
	t.Parallel()
	p, other := profileOf(t), profileOf(t)
	other.Group = "g/v3"
	if err := p.Merge(other); err == nil {
		t.Error("merged")
	}
	if err := p.Add(features.Vector{}); err == nil {
		t.Error("added a vector without values")
	}
}
