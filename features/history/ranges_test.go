package history

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/features"
)

// TestGaps: each time up to that of a vector is in one tile that is used, or its facts are. A tile
// that is used contains no corrected fact, and is in one segment.
func TestGaps(t *testing.T) {
	t.Parallel()
	g := groupOf("topic", "")
	rapid.Check(t, func(r *rapid.T) {
		at := rapid.Int64Range(0, 400*length[day]).Draw(r, "at")
		if rapid.Bool().Draw(r, "round") {
			at = day.floor(at) - rapid.Int64Range(0, 1).Draw(r, "before")
		}
		m := momentOf(g, time.UnixMicro(at).UTC())
		// Times around the edges of windows and of tiles, and many in some days.
		around := []int64{at, at - time.Duration(features.Hour).Microseconds(),
			at - time.Duration(features.Week).Microseconds(),
			day.floor(at), hour.floor(at - length[day])}
		near := rapid.Custom(func(r *rapid.T) int64 {
			distances := []int64{2, length[minute], length[hour], length[day], 30 * length[day]}
			within := rapid.SampledFrom(distances).Draw(r, "within")
			return rapid.SampledFrom(around).Draw(r, "around") + rapid.Int64Range(-within, within).Draw(r, "distance")
		})
		corrected := rapid.SliceOfN(near, 0, 10).Draw(r, "corrected")
		// So many more that minutes, or hours, or days are too many.
		more, days := rapid.SampledFrom([]int64{0, 0, 150, 3000}).Draw(r, "more"), rapid.Int64Range(1, 200).Draw(r, "days")
		for i := range more {
			corrected = append(corrected, at-i*(days*length[day]/more))
		}
		gaps := gapsAround(corrected)
		for _, one := range append(rapid.SliceOfN(near, 1, 20).Draw(r, "times"), corrected[:min(len(corrected), 20)]...) {
			if one > at {
				continue
			}
			used := 0
			for l := minute; l <= day; l++ {
				start := l.floor(one)
				if !m.usesTile(gaps, l, start) {
					continue
				}
				used++
				if slices.ContainsFunc(corrected, func(c int64) bool { return l.floor(c) == start }) {
					r.Fatalf("the tile of a %s that contains a corrected fact is used", names[l])
				}
				first, ok := m.segment(start)
				last, also := m.segment(start + length[l] - 1)
				if first != last || !ok || !also {
					r.Fatalf("the tile of a %s from %s is in the segments %d and %d", names[l],
						time.UnixMicro(start).UTC(), first, last)
				}
			}
			if facts := m.usesFacts(gaps, one); used > 1 || facts == (used == 1) {
				r.Fatalf("%s: %d tiles are used, and the facts: %v", time.UnixMicro(one).UTC(), used, facts)
			}
		}
	})
}
