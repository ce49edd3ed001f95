package plot

import (
	"maps"
	"math"
	"slices"

	"github.com/millrace/millrace/features/quality"
)

// bar is the share of the values in one range, or of one text.
type bar struct {
	label              string
	current, reference float64
}

// maxBars is the number of ranges or texts that are shown, besides others and nulls.
const maxBars = 12

// bars returns the shares of the current values and those of the reference.
func bars(m *quality.Measured) []bar {
	both := merged(m)
	var all []bar
	if len(both.Texts) > 0 {
		all = textBars(m, both)
	} else {
		all = numberBars(m, both)
	}
	if both.Nulls > 0 {
		all = append(all, bar{"null", m.Current.NullShare(), m.Reference.NullShare()})
	}
	return all
}

// merged returns the sum of the current values and those of the reference.
func merged(m *quality.Measured) *quality.Distribution {
	both := &quality.Distribution{
		Kind: m.Current.Kind, Nulls: m.Current.Nulls + m.Reference.Nulls, Buckets: map[int32]int64{},
	}
	for _, d := range []*quality.Distribution{&m.Current, &m.Reference} {
		for b, n := range d.Buckets {
			both.Buckets[b] += n
		}
		for s, n := range d.Texts {
			both.AddText(s, n)
		}
	}
	both.Values = m.Current.Values + m.Reference.Values // also texts that were not sent
	return both
}

// share returns n as a share of all values of a distribution.
func share(n int64, d *quality.Distribution) float64 {
	if d.Nulls+d.Values == 0 {
		return 0
	}
	return float64(n) / float64(d.Nulls+d.Values)
}

func textBars(m *quality.Measured, both *quality.Distribution) []bar {
	var all []bar
	current, reference := m.Current.Values, m.Reference.Values
	for _, s := range both.Frequent(maxBars) {
		c, r := m.Current.Texts[s], m.Reference.Texts[s]
		all = append(all, bar{Label(s), share(c, &m.Current), share(r, &m.Reference)})
		current, reference = current-c, reference-r
	}
	if current+reference > 0 {
		all = append(all, bar{"others", share(current, &m.Current), share(reference, &m.Reference)})
	}
	return all
}

// numberBars returns a bar per number if there are few, or else per range. Zeros have a bar of their
// own, because many features are 0 for most entities.
func numberBars(m *quality.Measured, both *quality.Distribution) []bar {
	sorted := slices.Sorted(maps.Keys(both.Buckets))
	if len(sorted) <= maxBars {
		all := make([]bar, len(sorted))
		for i, b := range sorted {
			all[i] = bar{number(both.Number(b)), share(m.Current.Buckets[b], &m.Current),
				share(m.Reference.Buckets[b], &m.Reference)}
		}
		return all
	}
	s := scaleOf(both)
	all := make([]bar, maxBars+1)
	for i := range maxBars - 1 {
		all[i+1].label = "≤ " + number(s.value(float64(i+1)/maxBars))
	}
	all[maxBars].label = "> " + number(s.value(float64(maxBars-1)/maxBars))
	for _, b := range sorted {
		i := 0
		if b != 0 || !s.zeros {
			i = 1 + min(int(math.Ceil(s.place(quality.Middle(b))*maxBars-1e-9))-1, maxBars-1)
			i = max(i, 1)
		}
		all[i].current += share(m.Current.Buckets[b], &m.Current)
		all[i].reference += share(m.Reference.Buckets[b], &m.Reference)
	}
	if !s.zeros {
		return all[1:]
	}
	all[0].label = "0"
	return all
}

// scale maps numbers to places from 0 to 1. The lowest and the highest hundredth of the numbers are
// at its ends, so that single ones do not determine it.
type scale struct {
	lo, hi float64
	log    bool
	zeros  bool // 0 is not on the scale
}

// logRatio is the ratio of hi to lo from which the scale is logarithmic.
const logRatio = 30

// scaleOf returns a scale for the numbers of a distribution.
func scaleOf(d *quality.Distribution) scale {
	var s scale
	on := d
	if lowest, ok := d.Quantile(0); ok && lowest >= 0 && d.Buckets[0] > 0 && len(d.Buckets) > 1 {
		s.zeros = true
		on = &quality.Distribution{Values: d.Values - d.Buckets[0], Buckets: maps.Clone(d.Buckets)}
		delete(on.Buckets, 0)
	}
	s.lo, _ = on.Quantile(0.01)
	s.hi, _ = on.Quantile(0.99)
	if s.hi <= s.lo {
		s.hi = s.lo + max(1, math.Abs(s.lo))
	}
	s.log = s.lo > 0 && s.hi/s.lo >= logRatio
	return s
}

// place returns where a number is, from 0 to 1.
func (s scale) place(x float64) float64 {
	x = min(max(x, s.lo), s.hi)
	if s.log {
		return (math.Log(x) - math.Log(s.lo)) / (math.Log(s.hi) - math.Log(s.lo))
	}
	return (x/2 - s.lo/2) / (s.hi/2 - s.lo/2) // the halves, because the difference may overflow
}

// value returns the number at a place.
func (s scale) value(place float64) float64 {
	if s.log {
		return math.Exp((1-place)*math.Log(s.lo) + place*math.Log(s.hi))
	}
	return (1-place)*s.lo + place*s.hi
}
