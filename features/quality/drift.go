package quality

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Limits are what a healthy group does not exceed.
type Limits struct {
	Freshness time.Duration // between the newest event and the vectors
	NullShare float64       // increase of the share of nulls over the reference: 0.1 is ten percent of all values
	PSI       float64       // see PSI
	Vectors   int64         // of entities with facts; with fewer, distributions are not compared
}

// DefaultLimits are those that are common for models.
var DefaultLimits = Limits{Freshness: 10 * time.Minute, NullShare: 0.1, PSI: 0.25, Vectors: 500}

// Kind is what a finding is about.
type Kind string

// The kinds of findings.
const (
	Stale   Kind = "stale"   // the newest event is too old
	TooFew  Kind = "too few" // too few vectors to compare distributions
	Nulls   Kind = "nulls"   // more values are null than in the reference
	Drifted Kind = "drifted" // the values are distributed in another way than in the reference
)

// Finding is something about a group that exceeds a limit.
type Finding struct {
	Group  string  `json:"group"`
	Output string  `json:"output,omitempty"` // empty if it is about the whole group
	Kind   Kind    `json:"kind"`
	Value  float64 `json:"value"` // seconds, vectors, increase of a share, or PSI
	Limit  float64 `json:"limit"`
}

// String returns the finding as a sentence.
func (f Finding) String() string {
	switch f.Kind {
	case Stale:
		return fmt.Sprintf("%s: the newest event is %.0f s old, the limit is %.0f s", f.Group, f.Value, f.Limit)
	case TooFew:
		return fmt.Sprintf("%s: %.0f entities have facts, and a comparison needs %.0f", f.Group, f.Value, f.Limit)
	case Nulls:
		return fmt.Sprintf("%s: %s: the share of nulls rose by %.3f, the limit is %.3f", f.Group, f.Output, f.Value, f.Limit)
	}
	return fmt.Sprintf("%s: %s: PSI against the reference is %.3f, the limit is %.3f", f.Group, f.Output, f.Value, f.Limit)
}

// Check compares a profile with a reference of the same group and version, and returns what exceeds
// the limits. now is when the profile was made.
func Check(reference, current *Profile, limits Limits, now time.Time) ([]Finding, error) {
	if reference.Group != current.Group || len(reference.Outputs) != len(current.Outputs) {
		return nil, fmt.Errorf("the reference is of %s with %d outputs, the profile of %s with %d",
			reference.Group, len(reference.Outputs), current.Group, len(current.Outputs))
	}
	var found []Finding
	if age := now.Sub(current.AsOf); age > limits.Freshness {
		found = append(found, Finding{current.Group, "", Stale, age.Seconds(), limits.Freshness.Seconds()})
	}
	if n := min(reference.Found, current.Found); n < limits.Vectors {
		return append(found, Finding{current.Group, "", TooFew, float64(n), float64(limits.Vectors)}), nil
	}
	for i := range current.Outputs {
		r, c := &reference.Outputs[i], &current.Outputs[i]
		if r.Output != c.Output {
			return nil, fmt.Errorf("output %d of the reference is %s, that of the profile is %s", i, r.Output, c.Output)
		}
		if rise := c.NullShare() - r.NullShare(); rise > limits.NullShare {
			found = append(found, Finding{current.Group, c.Output, Nulls, rise, limits.NullShare})
		}
		if psi := PSI(r, c); psi > limits.PSI {
			found = append(found, Finding{current.Group, c.Output, Drifted, psi, limits.PSI})
		}
	}
	return found, nil
}

// PSI returns the population stability index of two distributions: the sum of (c − r) × ln(c / r)
// over cells, where c and r are a cell's shares of the current and of the reference values. By
// convention, below 0.1 is stable, and above 0.25 has drifted. The cells are the nulls, and the
// slots of texts or the deciles of the reference's numbers. Half a value is added to each cell, so
// that empty ones do not make it infinite.
func PSI(reference, current *Distribution) float64 {
	r, c := []int64{reference.Nulls}, []int64{current.Nulls}
	if len(reference.Slots) > 0 || len(current.Slots) > 0 {
		for slot := range uint8(slots) {
			r, c = append(r, reference.Slots[slot]), append(c, current.Slots[slot])
		}
	} else {
		upper := deciles(reference)
		r, c = append(r, reference.cells(upper)...), append(c, current.cells(upper)...)
	}
	nr, nc := reference.Nulls+reference.Values, current.Nulls+current.Values
	share := func(n, of int64) float64 { return (float64(n) + 0.5) / (float64(of) + 0.5*float64(len(r))) }
	psi := 0.0
	for i := range r {
		a, b := share(c[i], nc), share(r[i], nr)
		psi += (a - b) * math.Log(a/b)
	}
	return psi
}

// deciles returns the upper buckets of the cells that have a tenth of the numbers each, if a bucket
// has not more: at most ten, ascending. The last cell has no upper bound.
func deciles(d *Distribution) []int32 {
	var upper []int32
	var seen int64
	for _, b := range slices.Sorted(maps.Keys(d.Buckets)) {
		seen += d.Buckets[b]
		if seen*10 >= d.Values*int64(len(upper)+1) {
			upper = append(upper, b)
			for seen*10 >= d.Values*int64(len(upper)+1) && int64(len(upper)) < 10 { // a bucket of several tenths
				upper = append(upper, b)
			}
		}
	}
	return slices.Compact(upper)
}

// cells counts the numbers up to each upper bucket, and beyond the last.
func (d *Distribution) cells(upper []int32) []int64 {
	counts := make([]int64, len(upper)+1)
	for b, n := range d.Buckets {
		i, _ := slices.BinarySearch(upper, b)
		counts[i] += n
	}
	return counts
}
