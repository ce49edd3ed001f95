// Package online answers feature vectors from memory, for any entity and at any time.
//
// Store has the current facts of every entity, packed and sorted by their stamps. Apply adds one
// batch of the log, and Lookup computes vectors by a Query, which Compile prepares once. Open
// restores a Store from its snapshot and Save writes one. trim.go says which facts are dropped,
// scan.go computes the aggregates, and persons.go those of entities that are one person. Shared has the
// facts in Redis instead, for several processes; see shared.go.
//
// Invariants:
//
//   - A vector is bit-equal to features.EvaluatePerson over the facts up to its Positions, and the
//     identity graph up to them.
//   - A batch and its position become visible together, shard by shard. The vectors of one Lookup
//     that are of one shard are of one moment, and so are the facts of one vector. Each vector says its
//     positions.
//   - Apply accepts offsets in order and skips those that a shard has, so that reading the log again
//     from an earlier offset changes nothing. It refuses a gap.
//   - Facts are never folded into states from which a later correction could not be taken out again.
//   - A full store refuses batches. It never drops what an answer needs.
package online

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
)

// Errors of Apply and Lookup.
var (
	// ErrFull means that a limit of Options is reached, so that no batch is accepted any more.
	ErrFull = errors.New("the online store of features is full")
	// ErrGap means that offsets between the last batch of a partition and this one are missing.
	ErrGap = errors.New("a batch does not follow the previous one")
	// ErrTooOld means that the facts for a vector at this time were dropped; see Options.Retention.
	ErrTooOld = errors.New("the time is before the retention of the online store")
)

// Options bound a Store. Zero means the default.
type Options struct {
	// MaxEntities and MaxBytes limit what the store keeps: entities of all groups, and the bytes of
	// their facts and texts. Defaults: 10 million entities, 8 GiB.
	MaxEntities int64
	MaxBytes    int64
	// Retention is how far before the present vectors can be asked for. It matters only to sources
	// of which no feature has the window Lifetime. Default: 1 day.
	Retention time.Duration
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// setDefaults replaces zeros.
func (o *Options) setDefaults() {
	if o.MaxEntities == 0 {
		o.MaxEntities = 10_000_000
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 8 << 30
	}
	if o.Retention == 0 {
		o.Retention = 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Batch is the facts of consecutive offsets of a partition.
type Batch struct {
	Topic     string
	Partition int32
	// First is the first offset, and After the position after the last. Offsets without facts may be
	// in between.
	First int64
	After feed.Position
	// Facts are by the name of their source, in the order of their origins.
	Facts map[string][]features.Fact
}

// shardCount is the number of parts of a store that are locked on their own. It is part of the
// snapshot's format.
const shardCount = 64

// Store is the facts of all groups in memory. It is safe for concurrent use.
type Store struct {
	*definitions
	options Options
	// topicIDs are the ids of the topics to which the positions belong, guarded by apply.
	topicIDs []string
	texts    *texts
	shards   [shardCount]shard

	entities, bytes atomic.Int64
	// trimmed is the latest time up to which facts may have been dropped, in microseconds.
	trimmed atomic.Int64

	// apply serialises Apply and Trim. It guards the graph, and the scratch of Apply.
	apply   sync.Mutex
	graph   *persons.Graph
	byShard [shardCount][]routed
}

// shard is the entities whose hash selects it.
type shard struct {
	mu        sync.RWMutex
	spaces    []map[string]entity  // by space
	persons   []map[string]*person // by space: the entities that are one person with others
	positions *Positions
}

// entity is the facts about one entity, by source. Nil means none.
type entity []*series

// routed is a fact and where it belongs.
type routed struct {
	space  *space
	source int
	fact   *features.Fact
}

// New returns an empty store for groups that passed their Check.
func New(groups []*features.Group, o Options) (*Store, error) {
	o.setDefaults()
	d, err := define(groups)
	if err != nil {
		return nil, err
	}
	s := &Store{definitions: d, options: o, texts: newTexts()}
	s.Reset()
	return s, nil
}

// Reset empties the store, and the log is to be read from its beginning. Queries remain valid.
func (s *Store) Reset() {
	s.apply.Lock()
	defer s.apply.Unlock()
	empty := s.empty()
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sh.positions = empty
		sh.spaces = make([]map[string]entity, len(s.spaces))
		for j := range sh.spaces {
			sh.spaces[j] = map[string]entity{}
		}
		sh.persons = newPersons(s.spaces)
		sh.mu.Unlock()
	}
	s.graph = &persons.Graph{}
	s.topicIDs = make([]string, len(s.topics))
	s.entities.Store(0)
	s.bytes.Store(0)
	s.trimmed.Store(-1 << 62)
}

// TopicID returns the id of the topic to which the positions belong; empty if it was not read.
func (s *Store) TopicID(topic string) string {
	s.apply.Lock()
	defer s.apply.Unlock()
	if i := s.topicIndex(topic); i >= 0 {
		return s.topicIDs[i]
	}
	return ""
}

// SetTopicID sets the id of a topic that is about to be read.
func (s *Store) SetTopicID(topic, id string) {
	s.apply.Lock()
	defer s.apply.Unlock()
	if i := s.topicIndex(topic); i >= 0 {
		s.topicIDs[i] = id
	}
}

// Size returns how many entities the store has, and the bytes of their facts and texts.
func (s *Store) Size() (entities, bytes int64) {
	return s.entities.Load(), s.bytes.Load() + s.texts.bytes.Load()
}

// Full returns ErrFull with the limit that is reached, or nil.
func (s *Store) Full() error {
	entities, bytes := s.Size()
	switch {
	case entities >= s.options.MaxEntities:
		return fmt.Errorf("%w: it has %d entities, and features.online.max_entities is %d", ErrFull, entities,
			s.options.MaxEntities)
	case bytes >= s.options.MaxBytes:
		return fmt.Errorf("%w: it has %d bytes, and features.online.max_bytes is %d", ErrFull, bytes,
			s.options.MaxBytes)
	}
	return nil
}

// shardOf returns the index of an entity's shard.
func shardOf(entity string) int { return int(xxhash.Sum64String(entity) % shardCount) }

// Apply adds a batch. After ErrGap or ErrFull, the store is as before. Facts of unknown sources are
// ignored, so that one reader can feed several consumers.
func (s *Store) Apply(b Batch) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	topic := s.topicIndex(b.Topic)
	if topic < 0 {
		return fmt.Errorf("topic %q is not one of the groups' sources", b.Topic)
	}
	if b.After.Next < b.First {
		return fmt.Errorf("a batch of %s/%d from %d to %d", b.Topic, b.Partition, b.First, b.After.Next)
	}
	// Only Apply writes positions, so they can be read here without the shards' locks.
	for i := range s.shards {
		if have := s.shards[i].positions.at(topic, b.Partition).Next; have >= 0 && have < b.First {
			return fmt.Errorf("%w: %s/%d is applied up to %d, and the batch begins at %d", ErrGap, b.Topic,
				b.Partition, have, b.First)
		}
	}
	if err := s.Full(); err != nil {
		return err
	}
	moved, err := s.relink(b.Facts[persons.Source.Name])
	if err != nil {
		return err
	}
	s.route(b)
	before, after := (*Positions)(nil), (*Positions)(nil)
	for i := range s.shards {
		sh := &s.shards[i]
		have := sh.positions.at(topic, b.Partition).Next
		if have >= b.After.Next {
			continue
		}
		// Shards are usually at the same positions, and then share them.
		if sh.positions != before {
			before = sh.positions
			if next := before.with(topic, b.Partition, b.After); !next.equal(after) {
				after = next
			}
		}
		sh.mu.Lock()
		for _, r := range s.byShard[i] {
			if r.fact.Origin.Offset >= have {
				s.add(sh, r)
			}
		}
		s.bytes.Add(moved.apply(sh, i))
		sh.positions = after
		sh.mu.Unlock()
	}
	return nil
}

// route groups the facts of a batch by shard.
func (s *Store) route(b Batch) {
	for i := range s.byShard {
		clear(s.byShard[i]) // releases the previous batch
		s.byShard[i] = s.byShard[i][:0]
	}
	for name, facts := range b.Facts {
		for _, sp := range s.spaces {
			source := sp.source(name)
			if source < 0 {
				continue
			}
			for i := range facts {
				shard := shardOf(facts[i].Entity)
				s.byShard[shard] = append(s.byShard[shard], routed{sp, source, &facts[i]})
			}
		}
	}
}

// entityBytes is about what an entity costs besides its facts: an entry of the map, its list of
// sources, and the headers of one source.
const entityBytes = 160

// add adds a version of a fact to a shard, whose lock is held.
func (s *Store) add(sh *shard, r routed) {
	entities := sh.spaces[r.space.index]
	e, known := entities[r.fact.Entity]
	if !known {
		if r.fact.Retracted {
			return // there is nothing to retract
		}
		e = make(entity, len(r.space.sources))
		// A copy, because the fact's text may be a part of a larger one.
		entities[string([]byte(r.fact.Entity))] = e
		s.entities.Add(1)
		s.bytes.Add(entityBytes + int64(len(r.fact.Entity)+8*len(e)))
	}
	if e[r.source] == nil {
		if r.fact.Retracted {
			return
		}
		e[r.source] = &series{}
		s.bytes.Add(seriesBytes)
	}
	s.bytes.Add(e[r.source].apply(r.space.sources[r.source], s.texts, r.fact))
}
