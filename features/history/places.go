package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxPlaces is about how many gaps one query may name. ClickHouse limits its text to 256 KiB.
const maxPlaces = 4000

// maxNames is about how many bytes the names of entities in one query may have, as literals. It has each name
// up to four times, and clients choose names.
const maxNames = 32 << 10

// maxRanges is the number of gaps that are named by their times, which lets ClickHouse skip what it
// need not read. It evaluates one time after the other for each row, so more of them are a set.
const maxRanges = 20

// places is some entities, and the gaps around which shorter tiles and facts are read. Those of edges
// are read for all entities.
type places struct {
	entities []string
	names    int // bytes of the entities' literals
	edges    *places
	gaps     [day + 1]map[place]bool // by level; the tiles around them are of the level below
	shortest [day + 1]map[place]bool // by level; instead of these, facts are read
	late     map[lateTile]bool       // tiles that have facts of later batches
}

// place is a tile of an entity.
type place struct {
	entity int   // from 1; 0: all
	start  int64 // of the tile
}

// lateTile is a tile that the vector of a moment needs, by the index of the moment.
type lateTile struct {
	tileKey
	moment int
}

// newPlaces returns places without entities.
func newPlaces(edges *places) *places {
	p := &places{edges: edges, late: map[lateTile]bool{}}
	for l := range p.gaps {
		p.gaps[l], p.shortest[l] = map[place]bool{}, map[place]bool{}
	}
	return p
}

// add adds the gaps of an entity.
func (p *places) add(entity int, g *gaps) {
	for l := g.shortest; l <= day; l++ {
		to := p.gaps[l]
		if l == g.shortest {
			to = p.shortest[l]
		}
		for start := range g.starts[l] {
			to[place{entity, start}] = true
		}
	}
}

// addEntity adds an entity and its gaps.
func (p *places) addEntity(entity string, g *gaps) {
	p.entities, p.names = append(p.entities, entity), p.names+len(literal(entity))
	p.add(len(p.entities), g)
}

// full reports whether a query should have no more entities.
func (p *places) full() bool { return p.size() > maxPlaces || p.names > maxNames }

// size returns the number of gaps.
func (p *places) size() (n int) {
	for l := range p.gaps {
		n += len(p.gaps[l]) + len(p.shortest[l])
	}
	return n
}

// tiles returns the condition of the tiles to read: those of a day, and shorter ones in gaps.
func (p *places) tiles() string {
	in := []string{fmt.Sprintf("level = '%s'", names[day])}
	for l := minute; l < day; l++ {
		for _, gap := range []string{p.edges.in("tile", l+1, slices.Collect(maps.Keys(p.edges.gaps[l+1]))),
			p.in("tile", l+1, slices.Collect(maps.Keys(p.gaps[l+1])))} {
			if gap != "" {
				in = append(in, fmt.Sprintf("level = '%s' AND (%s)", names[l], gap))
			}
		}
	}
	return strings.Join(in, " OR ")
}

// facts returns conditions of the facts to read, for a query each. A fact may meet several.
func (p *places) facts() (queries []string) {
	var in []string
	for l := minute; l <= day; l++ {
		for _, gap := range []string{p.edges.in("at", l, slices.Collect(maps.Keys(p.edges.shortest[l]))),
			p.in("at", l, slices.Collect(maps.Keys(p.shortest[l])))} {
			if gap != "" {
				in = append(in, gap)
			}
		}
	}
	if len(in) > 0 {
		queries = append(queries, strings.Join(in, " OR "))
	}
	index := map[string]int{}
	for i, e := range p.entities {
		index[e] = i + 1
	}
	var late [day + 1]map[place]bool
	for t := range p.late {
		if late[t.level] == nil {
			late[t.level] = map[place]bool{}
		}
		late[t.level][place{index[t.entity], t.start}] = true
	}
	for l := minute; l <= day; l++ {
		for some := range slices.Chunk(slices.Collect(maps.Keys(late[l])), maxPlaces) {
			queries = append(queries, p.in("at", l, some))
		}
	}
	return queries
}

// isLate reports whether a tile that contains a time, and that the vector of a moment needs, has facts
// of later batches.
func (p *places) isLate(entity string, at int64, moment int) bool {
	if len(p.late) == 0 {
		return false
	}
	for l := minute; l <= day; l++ {
		if p.late[lateTile{tileKey{entity, l, l.floor(at)}, moment}] {
			return true
		}
	}
	return false
}

// in returns the condition that a row is in one of some tiles of a level, by the time in a column. It
// is empty for none.
func (p *places) in(column string, l level, of []place) string {
	if len(of) == 0 {
		return ""
	}
	slices.SortFunc(of, func(a, b place) int { return cmp.Or(a.entity-b.entity, cmp.Compare(a.start, b.start)) })
	all := of[len(of)-1].entity == 0
	each := make([]string, len(of))
	for i, at := range of {
		n := (at.start - beginning) / length[l]
		switch {
		case all && len(of) <= maxRanges:
			each[i] = fmt.Sprintf("%[1]s >= %[2]s AND %[1]s < %[3]s", column, instantOf(at.start), instantOf(at.start+length[l]))
		case all:
			each[i] = strconv.FormatInt(n, 10)
		default:
			each[i] = fmt.Sprintf("(%d, %d)", at.entity, n)
		}
	}
	if all && len(of) <= maxRanges {
		return strings.Join(each, " OR ")
	}
	tile := fmt.Sprintf("intDiv(toUnixTimestamp64Micro(%s) - (%d), %d)", column, beginning, length[l])
	if !all {
		tile = fmt.Sprintf("(indexOf([%s], entity), %s)", literals(p.entities), tile)
	}
	return tile + " IN (" + strings.Join(each, ", ") + ")"
}
