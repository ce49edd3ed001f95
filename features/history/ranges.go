package history

import (
	"maps"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
)

// span is the times from lo to before hi, in microseconds since 1970.
type span struct{ lo, hi int64 }

// run is consecutive tiles of a level, or facts.
type run struct {
	level level
	span
}

// cover returns runs that have exactly the times of a span, with the longest tiles that fit.
func cover(s span, longest level) []run {
	switch {
	case s.lo >= s.hi:
		return nil
	case longest == raw:
		return []run{{raw, s}}
	}
	from, to := longest.ceil(s.lo), longest.floor(s.hi)
	if from >= to {
		return cover(s, longest-1)
	}
	runs := append(cover(span{s.lo, from}, longest-1), run{longest, span{from, to}})
	return append(runs, cover(span{to, s.hi}, longest-1)...)
}

// segments cuts the time up to the time of a vector at the lower edges of its windows. Each window
// then consists of whole segments, up to the last one.
func segments(g *features.Group, at int64) []span {
	edges := map[int64]bool{at: true}
	for _, o := range g.Outputs() {
		if o.Window != features.Lifetime {
			edges[at-time.Duration(o.Window).Microseconds()] = true
		}
	}
	var all []span
	from := beginning
	for _, edge := range slices.Sorted(maps.Keys(edges)) {
		if edge >= from { // a window that began before all facts has no edge
			all = append(all, span{from, edge + 1}) // a window is open at its lower edge, closed at its upper one
			from = edge + 1
		}
	}
	return all
}

// beginning is before the time of every fact, at the start of a day.
var beginning = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// maxHoles is the number of tiles per entity that are replaced by facts, before longer ones are.
const maxHoles = 100

// holes returns the tiles that contain some times, as spans in order.
func holes(times []int64) []span {
	for l := minute; ; l++ {
		starts := map[int64]bool{}
		for _, at := range times {
			starts[l.floor(at)] = true
		}
		if len(starts) > maxHoles && l < day {
			continue
		}
		var all []span
		for _, start := range slices.Sorted(maps.Keys(starts)) {
			if n := len(all); n > 0 && all[n-1].hi == start {
				all[n-1].hi = start + length[l]
			} else {
				all = append(all, span{start, start + length[l]})
			}
		}
		return all
	}
}

// coverAround is cover, but with facts instead of tiles in the holes.
func coverAround(s span, holes []span) []run {
	var runs []run
	for _, hole := range holes {
		if hole.hi <= s.lo || hole.lo >= s.hi {
			continue
		}
		runs = append(runs, cover(span{s.lo, hole.lo}, day)...)
		runs = append(runs, run{raw, span{max(s.lo, hole.lo), min(s.hi, hole.hi)}})
		s.lo = min(s.hi, hole.hi)
	}
	return append(runs, cover(s, day)...)
}
