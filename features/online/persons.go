package online

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/persons"
)

// Facts stay with the entities for which they were recorded, in their shards. An entity that is one
// person with others has the list of them beside its facts, and a lookup merges the facts of all. So a
// merge changes a few lists, however many facts there are, and the lists change together with the
// positions of the identity graph, shard by shard, as facts do.

// person is the entities that are one person, sorted. It is immutable.
type person struct{ members []string }

// personBytes is about what a member costs: an entry of the map and of the list.
const personBytes = 64

func newPersons(spaces []*space) []map[string]*person {
	all := make([]map[string]*person, len(spaces))
	for i, sp := range spaces {
		if sp.identity != features.NoIdentity {
			all[i] = map[string]*person{}
		}
	}
	return all
}

// moves are the entities whose person has changed, by shard.
type moves [shardCount][]move

type move struct {
	space  *space
	entity string
	person *person // nil: alone
}

// apply changes a shard, whose lock is held. It returns by how many bytes the shard has grown.
func (m *moves) apply(sh *shard, i int) (grown int64) {
	if m == nil {
		return 0
	}
	for _, one := range m[i] {
		persons := sh.persons[one.space.index]
		before := len(persons)
		if one.person == nil {
			delete(persons, one.entity)
		} else {
			persons[one.entity] = one.person
		}
		grown += int64(len(persons)-before) * personBytes
	}
	return grown
}

// relink adds facts of the identity graph, and returns what they change. apply is held.
func (s *Store) relink(facts []features.Fact) (*moves, error) {
	if len(facts) == 0 || !s.follows {
		return nil, nil
	}
	changes := make([]persons.Change, len(facts))
	for i := range facts {
		var err error
		if changes[i], err = persons.ChangeOf(&facts[i]); err != nil {
			return nil, err
		}
	}
	before := s.graph.Bytes()
	changed := s.graph.Apply(changes, s.identities()...)
	s.bytes.Add(s.graph.Bytes() - before)
	return s.moves(changed), nil
}

// identities returns the kinds of the spaces' entities.
func (d *definitions) identities() (kinds []features.Identity) {
	for _, sp := range d.spaces {
		if sp.identity != features.NoIdentity && !slices.Contains(kinds, sp.identity) {
			kinds = append(kinds, sp.identity)
		}
	}
	return kinds
}

// moves returns the persons of entities, as the graph has them.
func (s *Store) moves(entities map[features.Identity][]string) *moves {
	m := &moves{}
	for kind, all := range entities {
		of := map[string]*person{} // those that are known; nil: alone
		for _, e := range all {
			if _, known := of[e]; known {
				continue
			}
			members := s.graph.Members(kind, e, persons.Now)
			if members == nil {
				of[e] = nil
				continue
			}
			p := &person{members}
			for _, member := range members {
				of[member] = p
			}
		}
		for _, sp := range s.spaces {
			if sp.identity != kind {
				continue
			}
			for e, p := range of {
				i := shardOf(e)
				m[i] = append(m[i], move{sp, e, p})
			}
		}
	}
	return m
}

// errMoments means that the facts of a person are at different positions. That passes once the log was
// read up to the positions of the snapshot.
var errMoments = errors.New("the entities of one person are at different positions after a restart; " +
	"try again when the log was read")

// attempts is how often the vector of a person is tried before it waits for a batch to be applied.
const attempts = 3

// computePerson computes the vector of an entity that was one person with others a moment ago.
func (s *Store) computePerson(q *Query, w *workspace, t int64, v *Vector) error {
	for range attempts {
		if done, err := s.tryPerson(q, w, t, v); done || err != nil {
			return err
		}
	}
	// While a batch is applied, some shards have it and others do not.
	s.apply.Lock()
	defer s.apply.Unlock()
	done, err := s.tryPerson(q, w, t, v)
	if err == nil && !done {
		err = fmt.Errorf("%w (%s)", errMoments, v.Entity)
	}
	return err
}

// tryPerson computes the vector if all shards of the person are at the same positions.
func (s *Store) tryPerson(q *Query, w *workspace, t int64, v *Vector) (done bool, err error) {
	home := shardOf(v.Entity)
	s.shards[home].mu.RLock()
	p := s.shards[home].persons[q.space.index][v.Entity]
	s.shards[home].mu.RUnlock()
	members := []string{v.Entity}
	if v.Members = nil; p != nil {
		v.Members, members = p.members, p.members
	}
	w.shards = append(w.shards[:0], home)
	for _, m := range members {
		w.shards = append(w.shards, shardOf(m))
	}
	slices.Sort(w.shards)
	w.shards = slices.Compact(w.shards)
	for _, i := range w.shards { // in this order, so that no two lookups wait for each other
		s.shards[i].mu.RLock()
		defer s.shards[i].mu.RUnlock()
	}
	v.Positions = s.shards[home].positions
	for _, i := range w.shards {
		if !v.Positions.equal(s.shards[i].positions) {
			return false, nil
		}
	}
	if s.shards[home].persons[q.space.index][v.Entity] != p {
		return false, nil
	}
	if q.trimmed && t < s.trimmed.Load() {
		return false, s.tooOld()
	}
	w.members = w.members[:0]
	for _, m := range members {
		w.members = append(w.members, s.shards[shardOf(m)].spaces[q.space.index][m])
	}
	q.compute(w, q.merge(w, t), s.texts.list(), t, v)
	return true, nil
}

// merge returns the facts of w.members up to a time, as those of one entity. It is valid until the next
// merge.
func (q *Query) merge(w *workspace, t int64) entity {
	e := make(entity, len(q.space.sources))
	for i := range q.sources {
		index := q.sources[i].index
		w.runs = w.runs[:0]
		for _, member := range w.members {
			if member != nil && member[index] != nil {
				w.runs = append(w.runs, member[index])
			}
		}
		switch len(w.runs) {
		case 0:
		case 1:
			e[index] = w.runs[0]
		default:
			for len(w.merged) <= i {
				w.merged = append(w.merged, series{})
			}
			w.mergeRuns(&w.merged[i], q.sources[i].layout, t)
			e[index] = &w.merged[i]
		}
	}
	return e
}

// ref is a row of one of the runs.
type ref struct {
	at  int64
	run int32
	row int32
}

// mergeRuns sets to to the rows of all runs up to a time, in the order of their stamps. Those with the
// same stamp are in the order of their members; see features.MemberKey.
func (w *workspace) mergeRuns(to *series, l *layout, t int64) {
	w.refs = w.refs[:0]
	*to = series{rows: to.rows[:0], keys: to.keys[:0], wide: to.wide[:0]}
	w.ends = append(w.ends[:0], 0)
	w.shifts = w.shifts[:0]
	for i, run := range w.runs {
		for row := 0; row*l.stride < len(run.rows); row++ {
			at := int64(run.rows[row*l.stride+wordAt])
			if at > t {
				break
			}
			w.refs = append(w.refs, ref{at, int32(i), int32(row)})
		}
		w.ends = append(w.ends, len(w.refs))
		w.shifts = append(w.shifts, shift{len(to.keys), len(to.wide)})
		to.keys, to.wide = append(to.keys, run.keys...), append(to.wide, run.wide...)
		if len(run.gone) > 0 {
			to.gone = run.gone // only whether there are any matters
		}
	}
	for _, r := range w.sortRefs(l) {
		from := w.runs[r.run].rows[int(r.row)*l.stride : (int(r.row)+1)*l.stride]
		begin := len(to.rows)
		to.rows = append(to.rows, from...)
		row := to.rows[begin:]
		row[wordKey] += uint64(w.shifts[r.run].keys) << keyBits
		if row[wordFlags]&wideFlags == 0 {
			continue
		}
		for _, c := range l.columns {
			if row[wordFlags]&c.wide != 0 {
				row[c.word] += uint64(w.shifts[r.run].wide)
			}
		}
	}
}

// shift is where the keys and the wide numbers of a run begin among those of all.
type shift struct{ keys, wide int }

// sortRefs merges w.refs, in which each run is sorted, pair by pair.
func (w *workspace) sortRefs(l *layout) []ref {
	var a, b [128]byte
	less := func(x, y ref) bool {
		if x.at != y.at {
			return x.at < y.at
		}
		key := func(to []byte, r ref) []byte {
			run := w.runs[r.run]
			return unpackKey(to[:0], run.key(run.rows[int(r.row)*l.stride:]))
		}
		return cmp.Or(bytes.Compare(key(a[:], x), key(b[:], y)), cmp.Compare(x.run, y.run)) < 0
	}
	from, to := w.refs, slices.Grow(w.otherRefs[:0], len(w.refs))[:len(w.refs)]
	for len(w.ends) > 2 {
		ends := w.ends[:1]
		for i := 1; i < len(w.ends); i += 2 {
			begin, middle := w.ends[i-1], w.ends[i]
			end := middle
			if i+1 < len(w.ends) {
				end = w.ends[i+1]
			}
			x, y := begin, middle
			for n := begin; n < end; n++ {
				if y == end || x < middle && !less(from[y], from[x]) {
					to[n] = from[x]
					x++
				} else {
					to[n] = from[y]
					y++
				}
			}
			ends = append(ends, end)
		}
		w.ends = ends
		from, to = to, from
	}
	w.refs, w.otherRefs = from, to
	return from
}
