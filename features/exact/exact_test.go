package exact

import (
	"math/big"
	"sort"
	"testing"

	"pgregory.net/rapid"
)

// numbers generates amounts of money of any size, and small numbers.
var numbers = rapid.Custom(func(t *rapid.T) Int {
	if rapid.Bool().Draw(t, "small") {
		return FromInt64(int64(rapid.IntRange(-5, 5).Draw(t, "value")))
	}
	return FromMoney(rapid.Int64().Draw(t, "units"), int32(rapid.IntRange(-999_999_999, 999_999_999).Draw(t, "nanos")))
})

// TestInt: arithmetic is that of math/big.
func TestInt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := numbers.Draw(t, "a"), numbers.Draw(t, "b")
		for name, pair := range map[string][2]*big.Int{
			"sum":        {a.Add(b).Big(), new(big.Int).Add(a.Big(), b.Big())},
			"difference": {a.Sub(b).Big(), new(big.Int).Sub(a.Big(), b.Big())},
			"product":    {a.Mul(b).Big(), new(big.Int).Mul(a.Big(), b.Big())},
		} {
			if pair[0].Cmp(pair[1]) != 0 {
				t.Fatalf("%s of %s and %s is %s, want %s", name, a, b, pair[0], pair[1])
			}
		}
		if got, want := a.Compare(b), a.Big().Cmp(b.Big()); got != want {
			t.Fatalf("compare %s with %s is %d, want %d", a, b, got, want)
		}
		back, err := FromBig(a.Big())
		if err != nil || back != a {
			t.Fatalf("%s returns from math/big as %s: %v", a, back, err)
		}
		if b.Sign() != 0 {
			want, _ := new(big.Rat).SetFrac(a.Big(), b.Big()).Float64()
			if got := Quotient(a, b); got != want {
				t.Fatalf("%s / %s is %v, want %v", a, b, got, want)
			}
		}
	})
}

func TestFromBigTooLarge(t *testing.T) {
	if _, err := FromBig(new(big.Int).Lsh(big.NewInt(1), 255)); err == nil {
		t.Error("accepted 2^255")
	}
}

// TestMerge: however facts are ordered and split, the merged states have the result of one state.
func TestMerge(t *testing.T) {
	type fact struct {
		stamp Stamp
		value Value
	}
	for _, a := range []Aggregate{Count, Sum, Mean, Min, Max, StdDev, First, Last, Distinct, Top, Quantile} {
		t.Run(a.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				n := rapid.IntRange(0, 30).Draw(t, "facts")
				facts := make([]fact, n)
				for i := range facts {
					facts[i].stamp = Stamp{int64(rapid.IntRange(0, 3).Draw(t, "at")), string(rune('a' + i))}
					if rapid.IntRange(0, 4).Draw(t, "null") > 0 {
						facts[i].value = IntValue(numbers.Draw(t, "value"))
					}
				}
				whole := State{Aggregate: a}
				for _, f := range facts {
					whole.Add(f.stamp, f.value)
				}
				parts := make([]State, 4)
				for i := range parts {
					parts[i].Aggregate = a
				}
				for _, f := range rapid.Permutation(facts).Draw(t, "order") {
					parts[rapid.IntRange(0, 3).Draw(t, "part")].Add(f.stamp, f.value)
				}
				merged := State{Aggregate: a}
				for _, p := range rapid.Permutation(parts).Draw(t, "merge order") {
					merged.Merge(p)
				}
				finish := Finish{Scale: 9, K: 3, Q: 0.5}
				if got, want := merged.Result(finish), whole.Result(finish); !got.Equal(want) {
					t.Fatalf("merged %+v, want %+v", got, want)
				}
			})
		})
	}
}

func TestResults(t *testing.T) {
	for name, test := range map[string]struct {
		aggregate Aggregate
		values    []int64
		finish    Finish
		want      Result
	}{
		"empty count":     {Count, nil, Finish{}, Result{Kind: IntResult}},
		"empty sum":       {Sum, nil, Finish{}, Result{Kind: IntResult}},
		"empty mean":      {Mean, nil, Finish{}, Result{}},
		"sum of money":    {Sum, []int64{100_000_000, 200_000_000}, Finish{Scale: 9}, Result{Kind: FloatResult, Float: 0.3}},
		"mean":            {Mean, []int64{1, 2}, Finish{}, Result{Kind: FloatResult, Float: 1.5}},
		"deviation":       {StdDev, []int64{2, 4, 4, 4, 5, 5, 7, 9}, Finish{}, Result{Kind: FloatResult, Float: 2}},
		"deviation of 1":  {StdDev, []int64{3}, Finish{}, Result{Kind: FloatResult}},
		"min":             {Min, []int64{3, -1, 2}, Finish{}, Result{Kind: IntResult, Int: -1}},
		"max":             {Max, []int64{-3, -1, -2}, Finish{}, Result{Kind: IntResult, Int: -1}},
		"distinct":        {Distinct, []int64{1, 2, 2, 3, 3, 3}, Finish{}, Result{Kind: IntResult, Int: 3}},
		"top":             {Top, []int64{1, 2, 2, 3, 3, 4}, Finish{K: 3}, Result{Kind: TextsResult, Texts: []string{"2", "3", "1"}}},
		"median of zeros": {Quantile, []int64{0, 0, 0}, Finish{Q: 0.5}, Result{Kind: FloatResult}},
	} {
		t.Run(name, func(t *testing.T) {
			s := State{Aggregate: test.aggregate}
			for i, v := range test.values {
				s.Add(Stamp{At: int64(i)}, IntValue(FromInt64(v)))
			}
			if got := s.Result(test.finish); !got.Equal(test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// TestErrors: sketches stay within their published errors.
func TestErrors(t *testing.T) {
	distinct, median := State{Aggregate: Distinct}, State{Aggregate: Quantile}
	const n = 100_000
	for i := int64(1); i <= n; i++ {
		distinct.Add(Stamp{}, IntValue(FromInt64(i)))
		median.Add(Stamp{}, IntValue(FromInt64(i)))
	}
	if got := distinct.Result(Finish{}).Int; got < 95_000 || got > 105_000 {
		t.Errorf("%d distinct values, want %d within three standard errors", got, n)
	}
	for q, want := range map[float64]float64{0: 1, 0.25: n / 4, 0.5: n / 2, 0.99: n * 0.99, 1: n} {
		if got := median.Result(Finish{Q: q}).Float; got < want*0.989 || got > want*1.011 {
			t.Errorf("quantile %v is %v, want %v within 1 %%", q, got, want)
		}
	}
}

// TestBounds: each number is in the first bucket whose bound is not below it.
func TestBounds(t *testing.T) {
	all := Bounds()
	rapid.Check(t, func(t *rapid.T) {
		n := numbers.Draw(t, "number")
		if n.Sign() <= 0 {
			return
		}
		f, _ := n.Big().Float64()
		if have, want := int32(sort.SearchFloat64s(all, f)+1), Bucket(n); have != want {
			t.Fatalf("%s is in bucket %d by the bounds, want %d", n, have, want)
		}
	})
}
