// Package quality says whether the vectors of a group can be trusted: how fresh they are, how many
// values are null, how the values are distributed, and whether that has drifted from a reference.
//
// Measure samples entities, computes their vectors at one time and on the reference's days, and
// returns a Report. Check compares a report with Limits. A Profile is the summary of the vectors of
// one time; profiles merge, so those of several days make one reference. Nothing is stored: each
// report is computed from the facts, which a Source reads.
//
// Invariants:
//
//   - A profile does not depend on the order of the vectors, or on how they were split into parts.
//   - Numbers are counted in buckets with a relative width of 2 %. Texts are counted as they are, so
//     that a profile has at most as many of them as vectors.
//   - Entities without facts at the time of a vector do not count, and no report names an entity.
package quality

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// Profile is a summary of the vectors of a group, or of some of their outputs.
type Profile struct {
	Group   string    // features.Group.ID
	At      time.Time // the latest time of a vector
	Vectors int64
	Found   int64 // vectors of entities that have facts
	Outputs []Distribution
}

// Distribution is how the values of one output are distributed among the entities that have facts.
type Distribution struct {
	Output string
	Kind   exact.ResultKind // of values that are not null
	Nulls  int64
	Values int64 // that are not null
	// Buckets counts numbers by bucket, see Bucket.
	Buckets map[int32]int64
	// Texts counts texts. Of a list, the first text counts, and an empty list is a null.
	Texts map[string]int64
}

// NewProfile returns a profile without vectors.
func NewProfile(g *features.Group, outputs []features.Output) *Profile {
	p := &Profile{Group: g.ID(), Outputs: make([]Distribution, len(outputs))}
	for i, o := range outputs {
		p.Outputs[i].Output, p.Outputs[i].Kind = o.Name, o.Kind
	}
	return p
}

// Add adds a vector with a value per output. It returns an error if it has another number of values.
func (p *Profile) Add(v features.Vector) error {
	if len(v.Values) != len(p.Outputs) {
		return fmt.Errorf("profile of %s: a vector has %d values, want %d", p.Group, len(v.Values), len(p.Outputs))
	}
	p.Vectors++
	if v.At.After(p.At) {
		p.At = v.At
	}
	if !v.Found {
		return nil
	}
	p.Found++
	for i, r := range v.Values {
		p.Outputs[i].add(r)
	}
	return nil
}

func (d *Distribution) add(r exact.Result) {
	switch {
	case r.Kind == exact.IntResult:
		d.AddNumber(float64(r.Int), 1)
	case r.Kind == exact.FloatResult:
		d.AddNumber(r.Float, 1)
	case r.Kind == exact.TextResult:
		d.AddText(r.Text, 1)
	case r.Kind == exact.TextsResult && len(r.Texts) > 0:
		d.AddText(r.Texts[0], 1)
	default:
		d.Nulls++
	}
}

// AddNumber adds n values that are a number.
func (d *Distribution) AddNumber(x float64, n int64) {
	if d.Buckets == nil {
		d.Buckets = map[int32]int64{}
	}
	d.Buckets[Bucket(x)] += n
	d.Values += n
}

// AddText adds n values that are a text.
func (d *Distribution) AddText(s string, n int64) {
	if d.Texts == nil {
		d.Texts = map[string]int64{}
	}
	d.Texts[s] += n
	d.Values += n
}

// Merge adds the vectors of another profile of the same outputs of a group and version.
func (p *Profile) Merge(q *Profile) error {
	if p.Group != q.Group || len(p.Outputs) != len(q.Outputs) {
		return fmt.Errorf("profiles of %s with %d outputs and of %s with %d cannot be merged",
			p.Group, len(p.Outputs), q.Group, len(q.Outputs))
	}
	if q.At.After(p.At) {
		p.At = q.At
	}
	p.Vectors, p.Found = p.Vectors+q.Vectors, p.Found+q.Found
	for i := range p.Outputs {
		d, e := &p.Outputs[i], q.Outputs[i]
		d.Nulls, d.Values = d.Nulls+e.Nulls, d.Values+e.Values
		d.Buckets, d.Texts = sum(d.Buckets, e.Buckets), sum(d.Texts, e.Texts)
	}
	return nil
}

// sum adds counts to others, which it changes.
func sum[K comparable](counts, more map[K]int64) map[K]int64 {
	if counts == nil && more != nil {
		counts = map[K]int64{}
	}
	for k, n := range more {
		counts[k] += n
	}
	return counts
}

// NullShare returns the share of nulls among the values, from 0 to 1.
func (d *Distribution) NullShare() float64 {
	if d.Nulls == 0 {
		return 0
	}
	return float64(d.Nulls) / float64(d.Nulls+d.Values)
}

// Number returns the number that a bucket stands for. Integers are rounded to integers, so that small
// ones are exact.
func (d *Distribution) Number(bucket int32) float64 {
	if d.Kind == exact.IntResult {
		return math.Round(Middle(bucket))
	}
	return Middle(bucket)
}

// Quantile returns the q-quantile of the numbers, within 1 %. ok is false if there are none.
func (d *Distribution) Quantile(q float64) (value float64, ok bool) {
	if len(d.Buckets) == 0 {
		return 0, false
	}
	rank := exact.QuantileRank(q, d.Values)
	sorted := slices.Sorted(maps.Keys(d.Buckets))
	for _, b := range sorted {
		if rank -= d.Buckets[b]; rank < 0 {
			return d.Number(b), true
		}
	}
	return d.Number(sorted[len(sorted)-1]), true
}

const (
	// gamma is the ratio of two neighbouring bounds of buckets, as in exact.Quantile.
	gamma = 1.01 / 0.99
	// offset makes the buckets of positive numbers positive, also that of the smallest float64.
	offset = 37221
	// smallestNormal is the smallest float64 with all its digits.
	smallestNormal = 0x1p-1022
)

// Bucket returns the bucket of a number: 0 for 0, and the negative of b for the negative of the
// numbers of bucket b. Unlike that of exact.Quantile, it is of floating-point numbers. Subnormal
// numbers count as 0: math.Log is wrong for them on amd64.
func Bucket(f float64) int32 {
	switch {
	case math.Abs(f) < smallestNormal || math.IsNaN(f):
		return 0
	case f < 0:
		return -Bucket(-f)
	}
	return int32(math.Ceil(math.Log(min(f, math.MaxFloat64))/math.Log(gamma))) + offset
}

// Middle returns the number that a bucket stands for.
func Middle(b int32) float64 {
	switch {
	case b == 0:
		return 0
	case b < 0:
		return -Middle(-b)
	}
	return 2 * math.Pow(gamma, float64(b-offset)) / (gamma + 1)
}
