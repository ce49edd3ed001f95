package history

import (
	"maps"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
)

// span is the times from lo to before hi, in microseconds since 1970.
type span struct{ lo, hi int64 }

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

// gaps are tiles that are not used, by level: shorter tiles are used instead, and instead of those of
// the shortest level, facts. Every tile that contains a gap is one, too.
type gaps struct {
	shortest level // of the tiles that are used around gaps
	starts   [day + 1]map[int64]bool
}

// add adds the tiles that contain a time, from the shortest level on.
func (g *gaps) add(at int64) {
	for l := g.shortest; l <= day; l++ {
		if g.starts[l] == nil {
			g.starts[l] = map[int64]bool{}
		}
		g.starts[l][l.floor(at)] = true
	}
}

// has reports whether the tile of a level that contains a time is a gap.
func (g *gaps) has(l level, at int64) bool { return len(g.starts[l]) > 0 && g.starts[l][l.floor(at)] }

// maxGaps is the number of tiles of an entity that are replaced by facts, before longer ones are.
const maxGaps = 100

// gapsAround returns the gaps of an entity of which facts at these times are corrected: a fact cannot
// be taken out of a tile again.
func gapsAround(corrected []int64) *gaps {
	for shortest := minute; ; shortest++ {
		g := &gaps{shortest: shortest}
		for _, at := range corrected {
			g.add(at)
		}
		if shortest == day || len(g.starts[shortest]) <= maxGaps {
			return g
		}
	}
}

// moment is a time of vectors.
type moment struct {
	at    time.Time
	cuts  []span // the segments
	edges gaps   // tiles that are in two segments
}

// momentOf returns what the vectors of a group at a time consist of.
func momentOf(g *features.Group, at time.Time) *moment {
	m := &moment{at: at, cuts: segments(g, at.UnixMicro()), edges: gaps{shortest: minute}}
	for _, cut := range m.cuts {
		for l := minute; l <= day; l++ {
			if start := l.floor(cut.hi); start != cut.hi {
				if m.edges.starts[l] == nil {
					m.edges.starts[l] = map[int64]bool{}
				}
				m.edges.starts[l][start] = true
			}
		}
	}
	return m
}

// segment returns the segment that contains a time; ok is false if none does.
func (m *moment) segment(at int64) (i int, ok bool) {
	i = slices.IndexFunc(m.cuts, func(s span) bool { return s.lo <= at && at < s.hi })
	return i, i >= 0
}

// usesTile reports whether a tile is in the vector of an entity with these gaps. Each time up to that
// of the vector is in exactly one tile that is used, or its facts are.
func (m *moment) usesTile(g *gaps, l level, start int64) bool {
	switch {
	case m.edges.has(l, start), g.has(max(l, g.shortest), start):
		return false
	case l == day, m.edges.has(l+1, start):
		return true
	}
	return l >= g.shortest && g.has(l+1, start)
}

// usesFacts reports whether the facts at a time are in the vector of an entity with these gaps.
func (m *moment) usesFacts(g *gaps, at int64) bool {
	return m.edges.has(minute, at) || g.has(g.shortest, at)
}
