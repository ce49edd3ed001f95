package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/redis"
)

// ErrUnavailable means that Redis does not answer. ErrRestoring, which is such an error, means that it
// does not have, or does not have any more, the facts of what was on the log: vectors would be of the
// past.
var (
	ErrUnavailable = errors.New("the facts in Redis are not available; try again")
	ErrRestoring   = fmt.Errorf("%w: they are being restored", ErrUnavailable)
)

// Shared is the facts of all groups in Redis, for several processes. Each fact is a field of its
// entity; see shared_fact.go. Apply adds one batch of the log, and Lookup reads the facts of entities
// together with the positions that they reflect, and computes vectors from them as a Store does. It is
// safe for concurrent use.
//
// It has the invariants of a Store. Any number of processes may apply batches of any partitions: those
// that a shard has are skipped, and those that do not follow are refused.
type Shared struct {
	*definitions
	options Options
	client  *redis.Client
	facts   *redis.Facts
	nodes   *space // of the identity graph; nil if no group follows it

	// state is of the current epoch; nil while none is known. Another one replaces it if Redis has lost
	// data.
	state    atomic.Pointer[sharedState]
	entities atomic.Int64
}

// sharedState is what this process knows of an epoch.
type sharedState struct {
	epoch string
	// ready says that the facts have reached what was on the log when the epoch was first seen.
	ready   atomic.Bool
	moments [redis.FactShards]atomic.Pointer[moment]
}

// moment is the state of a shard at a count of writes. It is immutable.
type moment struct {
	writes    int64
	positions *Positions
	trimmed   int64             // facts may have been dropped up to this time, in microseconds
	stored    map[string]string // the positions as they are stored
}

// sharedFamily is what the names of the facts of all definitions begin with.
const sharedFamily = "features"

// sharedName returns the name of the facts of definitions. Other definitions have other facts, which
// processes of another version may still serve.
func sharedName(fingerprint string) string {
	const digits = 16
	return sharedFamily + ":" + fingerprint[:digits]
}

// lookupWithin bounds a lookup whose caller has a later deadline or none.
const lookupWithin = 5 * time.Second

// NewShared returns the facts in Redis of groups that passed their Check. Of the options, MaxBytes does
// not apply: Redis has a limit of its own.
func NewShared(c *redis.Client, groups []*features.Group, o Options) (*Shared, error) {
	o.setDefaults()
	d, err := define(groups)
	if err != nil {
		return nil, err
	}
	s := &Shared{definitions: d, options: o, client: c, facts: c.Facts(sharedName(d.fingerprint))}
	if d.follows {
		if err := s.addNodes(); err != nil {
			return nil, err
		}
	}
	for _, sp := range d.spaces {
		if len(sp.sources) > maxSharedSources {
			return nil, fmt.Errorf("entities %s have facts of %d sources: want at most %d", sp.entity, len(sp.sources),
				maxSharedSources)
		}
	}
	return s, nil
}

// sharedShard returns the index of an entity's shard in Redis.
func sharedShard(entity string) int { return int(xxhash.Sum64String(entity) % redis.FactShards) }

// entityKey returns the key of an entity.
func (sp *space) entityKey(entity string) string { return strconv.Itoa(sp.index) + ":" + entity }

// Size returns how many entities there are, as of a moment ago. No facts are in this process's memory.
func (s *Shared) Size() (entities, bytes int64) { return s.entities.Load(), 0 }

// Full returns ErrFull with the limit that is reached, or nil.
func (s *Shared) Full() error { return s.fullWith(s.entities.Load()) }

// fullWith returns ErrFull if n entities are too many.
func (s *Shared) fullWith(n int64) error {
	if n >= s.options.MaxEntities {
		return fmt.Errorf("%w: it has %d entities, and features.online.max_entities is %d", ErrFull, n, s.options.MaxEntities)
	}
	return nil
}

// Apply adds a batch. begins says that no position of its partition was stored when its reader began,
// and that it is the first batch. Facts of unknown sources are ignored. After ErrGap, the log is to be
// read from the positions that are stored now; after redis.ErrLost, from those of another epoch.
func (s *Shared) Apply(ctx context.Context, epoch, topicID string, b Batch, begins bool) error {
	if s.topicIndex(b.Topic) < 0 {
		return fmt.Errorf("topic %q is not one of the groups' sources", b.Topic)
	}
	if b.After.Next < b.First {
		return fmt.Errorf("a batch of %s/%d from %d to %d", b.Topic, b.Partition, b.First, b.After.Next)
	}
	if err := s.Full(); err != nil {
		return err
	}
	c := &redis.FactChange{Partition: partitionField(b.Topic, b.Partition), First: b.First, Begins: begins,
		After: storedForm(topicID, b.After)}
	if err := s.addFacts(&c.Shards, b.Facts); err != nil {
		return err
	}
	err := s.facts.Apply(ctx, epoch, c)
	if errors.Is(err, redis.ErrFactGap) {
		return fmt.Errorf("%w: %w", ErrGap, err)
	}
	return err
}

// addFacts adds facts to shards, by entity.
func (s *Shared) addFacts(shards *[redis.FactShards][]redis.FactEntity, facts map[string][]features.Fact) error {
	places := map[string]int{} // of entities in their shards, by key
	for name, facts := range facts {
		for _, sp := range s.spaces {
			source := sp.source(name)
			if source < 0 {
				continue
			}
			if sp == s.nodes {
				var err error
				if facts, err = nodeFacts(facts); err != nil {
					return err
				}
			}
			for i := range facts {
				f := &facts[i]
				key, shard := sp.entityKey(f.Entity), sharedShard(f.Entity)
				at, known := places[key]
				if !known {
					at = len(shards[shard])
					places[key] = at
					shards[shard] = append(shards[shard], redis.FactEntity{Key: key})
				}
				addFact(&shards[shard][at], sp.sources[source], source, f)
			}
		}
	}
	return nil
}

// partitionField returns the name of a partition's position.
func partitionField(topic string, partition int32) string {
	return fmt.Sprintf("%s/%d", topic, partition)
}

// parsePartition parses what partitionField returned. ok is false for another topic's.
func (d *definitions) parsePartition(field string) (topic int, partition int32, ok bool) {
	slash := strings.LastIndexByte(field, '/')
	if slash < 0 {
		return 0, 0, false
	}
	topic = d.topicIndex(field[:slash])
	n, err := strconv.ParseUint(field[slash+1:], 10, 16)
	return topic, int32(n), err == nil && topic >= 0
}

// storedPosition is a position and the id of the topic to which it belongs.
type storedPosition struct {
	feed.Position
	topicID string
}

// storedForm returns what is stored of a position in a topic.
func storedForm(topicID string, at feed.Position) string {
	return redis.FactPosition(at.Next, topicID+" "+at.String())
}

// parseStored parses what storedForm returned.
func parseStored(stored string) (p storedPosition, err error) {
	_, rest, err := redis.ParseFactPosition(stored)
	if err != nil {
		return p, err
	}
	id, rest, _ := strings.Cut(rest, " ")
	p.topicID = id
	p.Position, err = feed.ParsePosition(rest)
	return p, err
}

// moment returns the moment of a shard's state. It takes over the positions that have not changed since
// another moment, which may be nil.
func (d *definitions) moment(state *redis.FactShard, since *moment) (*moment, error) {
	m := &moment{writes: state.Writes, positions: d.empty(), trimmed: -1 << 62, stored: state.Positions}
	if state.Trimmed != "" {
		at, err := parseSortable(state.Trimmed)
		if err != nil {
			return nil, err
		}
		m.trimmed = at
	}
	for field, stored := range state.Positions {
		topic, partition, ok := d.parsePartition(field)
		if !ok {
			continue
		}
		var at feed.Position
		if since != nil && since.stored[field] == stored {
			at = since.positions.at(topic, partition)
		} else {
			p, err := parseStored(stored)
			if err != nil {
				return nil, err
			}
			at = p.Position
		}
		m.positions.set(topic, partition, at)
	}
	return m, nil
}

// keep keeps the newest moment of a shard.
func (st *sharedState) keep(shard int, m *moment) {
	for {
		old := st.moments[shard].Load()
		if old != nil && old.writes >= m.writes || st.moments[shard].CompareAndSwap(old, m) {
			return
		}
	}
}

// They bound what one script reads, and what one round trip does.
const entitiesPerRead, readsPerRound = 100, 32

// Lookup computes the vectors of entities at a time and returns them in the order of the entities. It
// reuses the memory of a previous result, which may be nil. It returns ErrRestoring while Redis does
// not have the facts of what was on the log.
func (s *Shared) Lookup(ctx context.Context, q *Query, entities []string, at time.Time, reuse []Vector) (
	[]Vector, error,
) {
	st := s.state.Load()
	if st == nil || !st.ready.Load() {
		return nil, ErrRestoring
	}
	ctx, cancel := context.WithTimeout(ctx, lookupWithin)
	defer cancel()
	for len(reuse) < len(entities) {
		reuse = append(reuse, Vector{})
	}
	l := &sharedLookup{store: s, state: st, query: q, at: at.UnixMicro(), entities: entities,
		vectors: reuse[:len(entities)]}
	order := make([]place, 0, len(entities))
	first := make(map[string]int, len(entities)) // by entity
	var copies []copied
	for i, e := range entities {
		if from, again := first[e]; again {
			copies = append(copies, copied{from, i})
			continue
		}
		first[e] = i
		order = append(order, place{sharedShard(e), i})
	}
	slices.SortStableFunc(order, func(a, b place) int { return a.shard - b.shard })
	w, _ := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	a, _ := assemblers.Get().(*assembler)
	defer assemblers.Put(a)
	var linked []int // entities with edges
	for len(order) > 0 {
		order = l.plan(order, entities)
		err := l.read(ctx, func(i int, m *moment, facts, edges []string) error {
			if len(edges) > 0 {
				linked = append(linked, i)
				return nil
			}
			if q.trimmed && l.at < m.trimmed {
				return s.tooOld()
			}
			e, err := a.entity(q.space, facts)
			if err != nil {
				return fmt.Errorf("facts of %s in Redis: %w", entities[i], err)
			}
			v := &l.vectors[i]
			v.Entity, v.Members, v.Positions = entities[i], nil, m.positions
			q.compute(w, e, a.texts.list(), l.at, v)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if err := l.persons(ctx, linked); err != nil {
		return nil, err
	}
	for _, c := range copies {
		l.vectors[c.to].copy(&l.vectors[c.from])
	}
	return l.vectors, nil
}

func (s *Shared) tooOld() error { return fmt.Errorf("%w of %s", ErrTooOld, s.options.Retention) }

// sharedLookup is a lookup in Redis.
type sharedLookup struct {
	store    *Shared
	state    *sharedState
	query    *Query
	at       int64
	entities []string
	vectors  []Vector

	// The reads of one round trip: which entities each is for, and what was known of its shard before.
	reads   []redis.FactRead
	indexes [][]int
	known   []*moment
}

// plan plans the reads of the next round trip, and returns what is left.
func (l *sharedLookup) plan(order []place, entities []string) (rest []place) {
	l.reads, l.indexes, l.known = l.reads[:0], l.indexes[:0], l.known[:0]
	for len(order) > 0 && len(l.reads) < readsPerRound {
		shard := order[0].shard
		read := redis.FactRead{Shard: shard, Known: -1}
		var indexes []int
		for len(order) > 0 && order[0].shard == shard && len(indexes) < entitiesPerRead {
			read.Keys = append(read.Keys, l.keys(entities[order[0].index])...)
			indexes = append(indexes, order[0].index)
			order = order[1:]
		}
		known := l.state.moments[shard].Load()
		if known != nil {
			read.Known = known.writes
		}
		l.reads, l.indexes, l.known = append(l.reads, read), append(l.indexes, indexes), append(l.known, known)
	}
	return order
}

// read makes the reads, and calls each with what was read of an entity, and the moment.
func (l *sharedLookup) read(ctx context.Context, each func(index int, m *moment, facts, edges []string) error) error {
	if err := l.store.facts.Read(ctx, l.state.epoch, l.reads); err != nil {
		if errors.Is(err, redis.ErrLost) {
			return fmt.Errorf("%w: %w", ErrRestoring, err)
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for i := range l.reads {
		r, m := &l.reads[i], l.known[i]
		switch {
		case m != nil && r.Writes < m.writes:
			l.state.ready.Store(false) // the shard is an older copy
			return ErrRestoring
		case r.State != nil:
			var err error
			if m, err = l.store.moment(r.State, m); err != nil {
				return fmt.Errorf("%w: %w", ErrRestoring, err)
			}
			l.state.keep(r.Shard, m)
		}
		per := len(r.Keys) / len(l.indexes[i])
		for j, index := range l.indexes[i] {
			fields := r.Entities[per*j : per*j+per]
			var edges []string
			if per > 1 {
				edges = fields[1]
			}
			if err := each(index, m, fields[0], edges); err != nil {
				return err
			}
		}
	}
	return nil
}

// assemblers are reused, so that a lookup allocates little per fact.
var assemblers = sync.Pool{New: func() any { return newAssembler() }}
