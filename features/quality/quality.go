// Package quality says whether the vectors of a group can be trusted: how fresh they are, how many
// values are null, how the values are distributed, and whether that has drifted from a reference.
//
// A Profile summarises the vectors of many entities at one time, such as those of a day. Profiles
// merge, so shards or processes make parts of one. Check compares a profile with a reference, such
// as that of the training set or of a week ago, and returns what exceeds its limits.
//
// Invariants:
//
//   - A profile does not depend on the order of the vectors, or on how they were split into parts.
//   - Its size is bounded, whatever the values are: numbers are counted in buckets with a relative
//     width of 2 %, texts in 64 slots by their hash.
//   - It contains no entity and no text, so it can be stored where vectors cannot.
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

// Profile is a summary of the vectors of a group. Its fields are an interface for stored profiles.
type Profile struct {
	Group   string         `json:"group"` // features.Group.ID
	At      time.Time      `json:"at"`    // the latest time of a vector
	AsOf    time.Time      `json:"as_of"` // when the newest event was known that the vectors reflect
	Vectors int64          `json:"vectors"`
	Found   int64          `json:"found"` // vectors of entities that have facts
	Outputs []Distribution `json:"outputs"`
}

// Distribution is how the values of one output are distributed among the entities that have facts.
type Distribution struct {
	Output string `json:"output"`
	Nulls  int64  `json:"nulls"`
	Values int64  `json:"values"` // that are not null
	// Buckets counts numbers by bucket, see bucket.
	Buckets map[int32]int64 `json:"buckets,omitempty"`
	// Slots counts texts by their hash. Of a list, the first text counts.
	Slots map[uint8]int64 `json:"slots,omitempty"`
}

// New returns a profile without vectors. asOf is when the newest event was known that the vectors
// will reflect.
func New(g *features.Group, asOf time.Time) *Profile {
	p := &Profile{Group: g.ID(), AsOf: asOf}
	for _, o := range g.Outputs() {
		p.Outputs = append(p.Outputs, Distribution{Output: o.Name})
	}
	return p
}

// Add adds a vector of the group. It returns an error if the vector has another number of values.
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
	var text string
	switch r.Kind {
	case exact.IntResult:
		d.count(bucket(float64(r.Int)))
		return
	case exact.FloatResult:
		d.count(bucket(r.Float))
		return
	case exact.TextResult:
		text = r.Text
	case exact.TextsResult:
		if len(r.Texts) == 0 {
			d.Nulls++
			return
		}
		text = r.Texts[0]
	default:
		d.Nulls++
		return
	}
	if d.Slots == nil {
		d.Slots = map[uint8]int64{}
	}
	d.Slots[uint8(exact.Hash(exact.TextValue(text))%slots)]++
	d.Values++
}

func (d *Distribution) count(bucket int32) {
	if d.Buckets == nil {
		d.Buckets = map[int32]int64{}
	}
	d.Buckets[bucket]++
	d.Values++
}

// Merge adds the vectors of another profile of the same group and version. AsOf becomes that of the
// part that is further behind.
func (p *Profile) Merge(q *Profile) error {
	if p.Group != q.Group || len(p.Outputs) != len(q.Outputs) {
		return fmt.Errorf("profiles of %s with %d outputs and of %s with %d cannot be merged",
			p.Group, len(p.Outputs), q.Group, len(q.Outputs))
	}
	if q.At.After(p.At) {
		p.At = q.At
	}
	if q.AsOf.Before(p.AsOf) {
		p.AsOf = q.AsOf
	}
	p.Vectors, p.Found = p.Vectors+q.Vectors, p.Found+q.Found
	for i := range p.Outputs {
		d, e := &p.Outputs[i], q.Outputs[i]
		d.Nulls, d.Values = d.Nulls+e.Nulls, d.Values+e.Values
		d.Buckets, d.Slots = sum(d.Buckets, e.Buckets), sum(d.Slots, e.Slots)
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

// Quantile returns the q-quantile of the numbers, within 1 %. ok is false if there are none.
func (d *Distribution) Quantile(q float64) (value float64, ok bool) {
	if len(d.Buckets) == 0 {
		return 0, false
	}
	rank := int64(math.Floor(q * float64(d.Values-1)))
	sorted := slices.Sorted(maps.Keys(d.Buckets))
	for _, b := range sorted {
		if rank -= d.Buckets[b]; rank < 0 {
			return middle(b), true
		}
	}
	return middle(sorted[len(sorted)-1]), true
}

const (
	slots = 64
	// gamma is the ratio of two neighbouring bounds of buckets, as in exact.Quantile.
	gamma = 1.01 / 0.99
	// offset makes the buckets of positive numbers positive. That of the smallest float64 is 1.
	offset = 37221
)

// bucket returns the bucket of a number: 0 for 0, and the negative of b for the negative of the
// numbers of bucket b.
func bucket(f float64) int32 {
	switch {
	case f == 0 || math.IsNaN(f):
		return 0
	case f < 0:
		return -bucket(-f)
	}
	return int32(math.Ceil(math.Log(min(f, math.MaxFloat64))/math.Log(gamma))) + offset
}

// middle returns the number that a bucket stands for.
func middle(b int32) float64 {
	switch {
	case b == 0:
		return 0
	case b < 0:
		return -middle(-b)
	}
	return 2 * math.Pow(gamma, float64(b-offset)) / (gamma + 1)
}
