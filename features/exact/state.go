package exact

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/big"
	"math/bits"
	"slices"
	"sort"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// Aggregate is a function of the values in a window.
type Aggregate uint8

// The aggregates. Those of numbers need a column of numbers.
const (
	Count    Aggregate = iota + 1 // how many facts; a null value counts, too
	Sum                           // 0 for an empty window
	Mean                          // null for an empty window, as all that follow but Distinct and Top
	Min                           //
	Max                           //
	StdDev                        // of the population: sqrt(E[v²] − E[v]²)
	First                         // value of the earliest fact; of equal times, that with the smallest key
	Last                          // value of the latest fact; of equal times, that with the largest key
	Distinct                      // number of distinct values, by HyperLogLog with 2^12 registers (error 1.6 %)
	Top                           // the most frequent values, most frequent first; ties by value
	Quantile                      // by sketch, with a relative error of 1 %
)

var aggregateNames = [...]string{
	Count: "count", Sum: "sum", Mean: "mean", Min: "min", Max: "max", StdDev: "stddev", First: "first", Last: "last",
	Distinct: "distinct", Top: "top", Quantile: "quantile",
}

// String returns the name of the aggregate in definitions and catalogues.
func (a Aggregate) String() string {
	if int(a) < len(aggregateNames) && a > 0 {
		return aggregateNames[a]
	}
	return fmt.Sprintf("aggregate(%d)", uint8(a))
}

// Value is a value of a fact: null, a number or a text.
type Value struct {
	Kind Kind
	Int  Int
	Text string
}

// Kind distinguishes the kinds of values.
type Kind uint8

// The kinds of values.
const (
	Null Kind = iota
	Number
	Text
)

// IntValue returns a number.
func IntValue(n Int) Value { return Value{Kind: Number, Int: n} }

// TextValue returns a text.
func TextValue(s string) Value { return Value{Kind: Text, Text: s} }

// Stamp orders the facts of an entity: by time, then by key. Two facts of an entity and a source
// never have the same key.
type Stamp struct {
	At  int64 // event time, microseconds since 1970
	Key string
}

// Compare orders stamps.
func (s Stamp) Compare(t Stamp) int {
	return cmp.Or(cmp.Compare(s.At, t.At), cmp.Compare(s.Key, t.Key))
}

// Pick is a value and its stamp.
type Pick struct {
	Stamp Stamp
	Value Value
}

// State is what an aggregate keeps of the values in a window. The zero State with Aggregate set is
// that of an empty window. Only the fields that the aggregate needs are set. A State that a
// database has merged is made by setting the fields.
type State struct {
	Aggregate Aggregate
	Count     int64 // facts for Count; values that are not null for the others
	Sum       Int   // Sum, Mean, StdDev
	Squares   Int   // StdDev: sum of the squares
	Min, Max  Int   // Min, Max; meaningless while Count is 0
	Pick      Pick  // First, Last; meaningless while Count is 0
	// Registers of Distinct: the register Register(v) has the maximum of Rank(v). Absent means 0.
	Registers map[uint16]uint8
	Items     map[string]int64 // Top: how often each value occurs
	Buckets   map[int32]int64  // Quantile: how many values are in the bucket Bucket(v)
}

// Add adds one fact.
func (s *State) Add(stamp Stamp, v Value) {
	if s.Aggregate == Count {
		s.Count++
		return
	}
	if v.Kind == Null {
		return
	}
	first := s.Count == 0
	s.Count++
	switch s.Aggregate {
	case Sum, Mean:
		s.Sum = s.Sum.Add(v.Int)
	case StdDev:
		s.Sum = s.Sum.Add(v.Int)
		s.Squares = s.Squares.Add(v.Int.Mul(v.Int))
	case Min:
		if first || v.Int.Compare(s.Min) < 0 {
			s.Min = v.Int
		}
	case Max:
		if first || v.Int.Compare(s.Max) > 0 {
			s.Max = v.Int
		}
	case First:
		if first || stamp.Compare(s.Pick.Stamp) < 0 {
			s.Pick = Pick{stamp, v}
		}
	case Last:
		if first || stamp.Compare(s.Pick.Stamp) > 0 {
			s.Pick = Pick{stamp, v}
		}
	case Distinct:
		if s.Registers == nil {
			s.Registers = map[uint16]uint8{}
		}
		r, rank := Register(Hash(v))
		s.Registers[r] = max(s.Registers[r], rank)
	case Top:
		if s.Items == nil {
			s.Items = map[string]int64{}
		}
		s.Items[v.String()]++
	case Quantile:
		if s.Buckets == nil {
			s.Buckets = map[int32]int64{}
		}
		s.Buckets[Bucket(v.Int)]++
	}
}

// Merge adds the facts of another state of the same aggregate. No fact may be in both.
func (s *State) Merge(t State) {
	if t.Count == 0 {
		return
	}
	first := s.Count == 0
	s.Count += t.Count
	switch s.Aggregate {
	case Sum, Mean, StdDev:
		s.Sum, s.Squares = s.Sum.Add(t.Sum), s.Squares.Add(t.Squares)
	case Min:
		if first || t.Min.Compare(s.Min) < 0 {
			s.Min = t.Min
		}
	case Max:
		if first || t.Max.Compare(s.Max) > 0 {
			s.Max = t.Max
		}
	case First:
		if first || t.Pick.Stamp.Compare(s.Pick.Stamp) < 0 {
			s.Pick = t.Pick
		}
	case Last:
		if first || t.Pick.Stamp.Compare(s.Pick.Stamp) > 0 {
			s.Pick = t.Pick
		}
	case Distinct:
		if s.Registers == nil {
			s.Registers = map[uint16]uint8{}
		}
		for r, rank := range t.Registers {
			s.Registers[r] = max(s.Registers[r], rank)
		}
	case Top:
		if s.Items == nil {
			s.Items = map[string]int64{}
		}
		for item, n := range t.Items {
			s.Items[item] += n
		}
	case Quantile:
		if s.Buckets == nil {
			s.Buckets = map[int32]int64{}
		}
		for b, n := range t.Buckets {
			s.Buckets[b] += n
		}
	}
}

// Result is the value of a feature.
type Result struct {
	Kind  ResultKind
	Int   int64
	Float float64
	Text  string
	Texts []string
}

// ResultKind distinguishes results.
type ResultKind uint8

// The kinds of results.
const (
	NullResult ResultKind = iota
	IntResult
	FloatResult
	TextResult
	TextsResult
)

// Equal reports whether two results are the same to the last bit.
func (r Result) Equal(o Result) bool {
	return r.Kind == o.Kind && r.Int == o.Int && math.Float64bits(r.Float) == math.Float64bits(o.Float) &&
		r.Text == o.Text && slices.Equal(r.Texts, o.Texts)
}

// Finish describes how Result turns a state into a value.
type Finish struct {
	// Scale is the number of decimals of a number: a value v means v / 10^Scale. With 0, Sum, Min, Max,
	// First and Last are integers, otherwise floating-point numbers.
	Scale int
	K     int     // Top: how many items
	Q     float64 // Quantile: between 0 and 1
}

// Result returns the value of the aggregate. It rounds once, as Decimal and Average do.
func (s State) Result(f Finish) Result {
	switch s.Aggregate {
	case Count:
		return Result{Kind: IntResult, Int: s.Count}
	case Sum:
		return Decimal(s.Sum, f.Scale)
	case Distinct:
		return Result{Kind: IntResult, Int: estimate(s.Registers)}
	case Top:
		return Result{Kind: TextsResult, Texts: top(s.Items, f.K)}
	}
	if s.Count == 0 {
		return Result{}
	}
	switch s.Aggregate {
	case Mean:
		return Average(s.Sum, s.Count, f.Scale)
	case StdDev:
		// The variance is (n·Σv² − (Σv)²) / n². Its numerator may have more than 256 bits.
		count, sum := big.NewInt(s.Count), s.Sum.Big()
		variance := new(big.Int).Mul(count, s.Squares.Big())
		variance.Sub(variance, sum.Mul(sum, sum))
		unit := new(big.Int).Mul(count, Pow10(f.Scale).Big())
		return Result{Kind: FloatResult, Float: root(variance, unit.Mul(unit, unit))}
	case Min:
		return Decimal(s.Min, f.Scale)
	case Max:
		return Decimal(s.Max, f.Scale)
	case First, Last:
		if s.Pick.Value.Kind == Text {
			return Result{Kind: TextResult, Text: s.Pick.Value.Text}
		}
		return Decimal(s.Pick.Value.Int, f.Scale)
	case Quantile:
		return Result{Kind: FloatResult, Float: quantile(s.Buckets, s.Count, f.Q) / Float10(f.Scale)}
	}
	return Result{}
}

// Average is Result for Mean, for a caller without a State: the mean of count values, at least one, with a sum.
func Average(sum Int, count int64, scale int) Result {
	return Result{Kind: FloatResult, Float: Quotient(sum, FromInt64(count).Mul(Pow10(scale)))}
}

// Decimal is Result for Sum, Min, Max and picked numbers, for a caller without a State: n / 10^scale. It is an
// integer if scale is 0 and it fits, otherwise the nearest float64.
func Decimal(n Int, scale int) Result {
	if scale == 0 {
		v, ok := n.Int64()
		if !ok { // saturates: the type of a feature must not depend on its value
			v = math.MaxInt64
			if n.Sign() < 0 {
				v = math.MinInt64
			}
		}
		return Result{Kind: IntResult, Int: v}
	}
	return Result{Kind: FloatResult, Float: Quotient(n, Pow10(scale))}
}

// Float10 returns 10^e for 0 <= e <= 18.
func Float10(e int) float64 {
	v, _ := Pow10(e).Int64()
	return float64(v)
}

// String returns a text as it is, and a number in decimal.
func (v Value) String() string {
	switch v.Kind {
	case Text:
		return v.Text
	case Number:
		return v.Int.String()
	}
	return ""
}

// Hash returns the hash of a value for Distinct: xxHash64 of its text.
func Hash(v Value) uint64 { return xxhash.Sum64String(v.String()) }

// Register returns the register of a hash, its low 12 bits, and the rank of its other 52 bits: the
// number of trailing zeros and 1, as in Flajolet et al., "HyperLogLog" (2007).
func Register(hash uint64) (register uint16, rank uint8) {
	return uint16(hash & (Registers - 1)), uint8(min(bits.TrailingZeros64(hash>>12), 52) + 1)
}

// Registers is the number of registers of Distinct.
const Registers = 1 << 12

// estimate returns the cardinality that the registers stand for, with linear counting for small
// sets.
func estimate(reg map[uint16]uint8) int64 {
	if len(reg) == 0 {
		return 0
	}
	byRank := Ranks{Registers - len(reg)}
	for _, rank := range reg {
		byRank[min(rank, 53)]++
	}
	return byRank.Estimate()
}

// Ranks counts the registers of Distinct by rank. Those of an empty window are EmptyRanks.
type Ranks [54]int

// weights are 2^-rank, by rank.
var weights = func() (w [len(Ranks{})]float64) {
	for rank := range w {
		w[rank] = math.Ldexp(1, -rank)
	}
	return w
}()

// EmptyRanks is the registers of no values: all of them have rank 0.
var EmptyRanks = Ranks{Registers}

// Estimate returns the cardinality that the registers stand for. It sums over ranks in a fixed
// order, so that every caller rounds alike.
func (byRank *Ranks) Estimate() int64 {
	const m = float64(Registers)
	var sum float64
	for rank, n := range byRank {
		sum += float64(n) * weights[rank] // both are exact, and so is their product
	}
	e := 0.7213 / (1 + 1.079/m) * m * m / sum
	if zeros := byRank[0]; e <= 2.5*m && zeros > 0 {
		e = m * math.Log(m/float64(zeros))
	}
	return int64(math.Round(e))
}

// top returns the k most frequent items.
func top(items map[string]int64, k int) []string {
	all := slices.Collect(maps.Keys(items))
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(cmp.Compare(items[b], items[a]), cmp.Compare(a, b)) })
	return all[:min(k, len(all))]
}

// gamma is the ratio of two neighbouring bounds of buckets: a relative error of 1 %, as in Masson et
// al., "DDSketch" (2019).
const gamma = 1.01 / 0.99

var logGamma = math.Log(gamma)

// Bucket returns the bucket of a number in the sketch of Quantile: 0 for 0, i for numbers in
// (gamma^(i-2), gamma^(i-1)], and the negative of it for negative numbers.
func Bucket(n Int) int32 {
	sign := n.Sign()
	if sign == 0 {
		return 0
	}
	if sign < 0 {
		n = n.Neg()
	}
	var f float64
	if v, ok := n.Int64(); ok { // rounds as the long way does
		f = float64(v)
	} else {
		f, _ = n.Big().Float64()
	}
	return int32(sign) * bucket(f)
}

// bucket returns the bucket of a positive number.
func bucket(f float64) int32 { return int32(math.Ceil(math.Log(f)/logGamma)) + 1 }

// Bounds returns the largest float64 of each bucket of positive numbers, from bucket 1 to that of the
// largest value that a fact may have. Another system that computes buckets needs them, because
// logarithms differ in their last bits.
func Bounds() []float64 { return slices.Clone(bounds()) }

var bounds = sync.OnceValue(func() []float64 {
	const largest = 1 << 94
	last := bucket(largest)
	all := make([]float64, last)
	for b := range last {
		// The bits of positive floating-point numbers are ordered as the numbers.
		low, high := math.Float64bits(1), math.Float64bits(2*largest)
		n := sort.Search(int(high-low), func(i int) bool {
			return bucket(math.Float64frombits(low+uint64(i))) > b+1
		})
		all[b] = math.Float64frombits(low + uint64(n) - 1)
	}
	return all
})

// quantile returns the value of the bucket that contains the q-quantile of n values.
func quantile(buckets map[int32]int64, n int64, q float64) float64 {
	rank := QuantileRank(q, n)
	for _, b := range slices.Sorted(maps.Keys(buckets)) {
		if rank -= buckets[b]; rank < 0 {
			return Middle(b)
		}
	}
	return 0
}

// QuantileRank returns how many of n sorted values are before the q-quantile.
func QuantileRank(q float64, n int64) int64 { return int64(math.Floor(q * float64(n-1))) }

// Middle returns the value that a bucket of Quantile stands for.
func Middle(b int32) float64 {
	switch {
	case b == 0:
		return 0
	case b < 0:
		return -middle(-b)
	}
	return middle(b)
}

func middle(b int32) float64 { return 2 * math.Pow(gamma, float64(b-1)) / (gamma + 1) }
