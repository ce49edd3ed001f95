package quality

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Limits are what a healthy group does not exceed.
type Limits struct {
	Freshness time.Duration // age of the newest event of a source
	NullShare float64       // increase of the share of nulls over the reference: 0.1 is ten percent of all values
	PSI       float64       // see PSI
	Found     int64         // entities with facts; with fewer, distributions are not compared
}

// DefaultLimits are common ones. A shop has events every day, and a PSI of 0.25 is the usual bound.
var DefaultLimits = Limits{Freshness: 24 * time.Hour, NullShare: 0.1, PSI: 0.25, Found: 500}

// Kind is what a finding is about.
type Kind string

// The kinds of findings.
const (
	Stale   Kind = "stale"   // the newest event of a source is too old
	Nulls   Kind = "nulls"   // more values are null than in the reference
	Drifted Kind = "drifted" // the values are distributed in another way than in the reference
)

// Finding is something about a group that exceeds a limit.
type Finding struct {
	Group string  `json:"group"`
	Of    string  `json:"of"` // the source of Stale, otherwise the output
	Kind  Kind    `json:"kind"`
	Value float64 `json:"value"` // seconds, increase of a share, or PSI
	Limit float64 `json:"limit"`
}

// String returns the finding as a sentence.
func (f Finding) String() string {
	switch f.Kind {
	case Stale:
		return fmt.Sprintf("%s: the newest event of the source %s is %s old, the limit is %s", f.Group, f.Of,
			seconds(f.Value), seconds(f.Limit))
	case Nulls:
		return fmt.Sprintf("%s: %s: the share of nulls rose by %.3f, the limit is %.3f", f.Group, f.Of, f.Value,
			f.Limit)
	}
	return fmt.Sprintf("%s: %s: PSI against the reference is %.3f, the limit is %.3f", f.Group, f.Of, f.Value, f.Limit)
}

func seconds(s float64) time.Duration { return time.Duration(s) * time.Second }

// Check returns what exceeds the limits. Sources without events are not stale: nothing is missing in
// the vectors. Distributions are compared only if enough entities have facts, now and in the
// reference.
func Check(r *Report, limits Limits) []Finding {
	var found []Finding
	for _, s := range r.Sources {
		if age := r.At.Sub(s.Newest); !s.Newest.IsZero() && age > limits.Freshness {
			found = append(found, Finding{r.Group, s.Source, Stale, age.Seconds(), limits.Freshness.Seconds()})
		}
	}
	if !r.Comparable(limits) {
		return found
	}
	for _, f := range r.Features {
		if rise := f.Current.NullShare() - f.Reference.NullShare(); rise > limits.NullShare {
			found = append(found, Finding{r.Group, f.Current.Output, Nulls, rise, limits.NullShare})
		}
		if f.PSI > limits.PSI {
			found = append(found, Finding{r.Group, f.Current.Output, Drifted, f.PSI, limits.PSI})
		}
	}
	return found
}

// Comparable reports whether enough entities had facts, now and in the reference, to compare
// distributions.
func (r *Report) Comparable(limits Limits) bool {
	var now, reference int64
	for i, d := range r.Days {
		if i == 0 {
			now = d.Found
		} else {
			reference += d.Found
		}
	}
	return min(now, reference) >= max(limits.Found, 1)
}

// maxCells bounds the cells of PSI: with more, a sample of some hundred entities is too small.
const maxCells = 10

// PSI returns the population stability index of two distributions: the sum of (c − r) × ln(c / r)
// over cells, where c and r are a cell's shares of the current and of the reference values. By
// convention, below 0.1 is stable, and above 0.25 has drifted. The cells are the nulls, and the
// deciles of the reference's numbers, or its ten most frequent texts and the others. Half a value is
// added to each cell, so that empty ones do not make it infinite. If one distribution is empty, the
// result is 0.
func PSI(reference, current *Distribution) float64 {
	nr, nc := reference.Nulls+reference.Values, current.Nulls+current.Values
	if nr == 0 || nc == 0 {
		return 0
	}
	r, c := []int64{reference.Nulls}, []int64{current.Nulls}
	if len(reference.Texts) > 0 || len(current.Texts) > 0 {
		frequent := reference.Frequent(maxCells)
		r, c = append(r, reference.occurrences(frequent)...), append(c, current.occurrences(frequent)...)
	} else {
		upper := deciles(reference)
		r, c = append(r, reference.cells(upper)...), append(c, current.cells(upper)...)
	}
	share := func(n, of int64) float64 { return (float64(n) + 0.5) / (float64(of) + 0.5*float64(len(r))) }
	psi := 0.0
	for i := range r {
		a, b := share(c[i], nc), share(r[i], nr)
		psi += (a - b) * math.Log(a/b)
	}
	return psi
}

// Frequent returns the n most frequent texts, the most frequent first.
func (d *Distribution) Frequent(n int) []string {
	all := slices.SortedFunc(maps.Keys(d.Texts), func(a, b string) int {
		return cmp.Or(cmp.Compare(d.Texts[b], d.Texts[a]), cmp.Compare(a, b))
	})
	return all[:min(n, len(all))]
}

// occurrences counts texts, and all others together.
func (d *Distribution) occurrences(texts []string) []int64 {
	counts, others := make([]int64, len(texts)+1), d.Values
	for i, s := range texts {
		counts[i] = d.Texts[s]
		others -= counts[i]
	}
	counts[len(texts)] = others
	return counts
}

// deciles returns the upper buckets of the cells that have a tenth of the numbers each, if a bucket
// has not more: at most ten, ascending. The last cell has no upper bound.
func deciles(d *Distribution) []int32 {
	var upper []int32
	var seen int64
	for _, b := range slices.Sorted(maps.Keys(d.Buckets)) {
		seen += d.Buckets[b]
		for seen*maxCells >= d.Values*int64(len(upper)+1) && len(upper) < maxCells {
			upper = append(upper, b) // more than once if it has several tenths
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
