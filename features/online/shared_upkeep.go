package online

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/redis"
)

// writes returns the counts of writes that are known; 0 if none is.
func (st *sharedState) writes() (counts [redis.FactShards]int64) {
	if st == nil {
		return counts
	}
	for i := range counts {
		if m := st.moments[i].Load(); m != nil {
			counts[i] = m.writes
		}
	}
	return counts
}

// check returns redis.ErrLost if a position is not one that Apply stored.
func (s *Shared) check(shards []redis.FactShard) error {
	for i := range shards {
		if _, err := s.moment(&shards[i], nil); err != nil {
			return fmt.Errorf("shard %d: %w: %w", i, redis.ErrLost, err)
		}
	}
	return nil
}

// lowest returns the positions that all shards have reached, by topic and partition, and the ids of
// the topics to which they belong. A partition that a shard does not have is missing. Shards whose
// positions belong to different topics of one name have the id "mixed", which none has.
func (s *Shared) lowest(shards []redis.FactShard) (ids map[string]string, at map[string]map[int32]feed.Position) {
	ids, at = map[string]string{}, map[string]map[int32]feed.Position{}
	for field, lowest := range shards[0].Positions {
		topic, partition, ok := s.parsePartition(field)
		if !ok {
			continue
		}
		missing := false
		for i := range shards {
			stored, ok := shards[i].Positions[field]
			missing = missing || !ok
			lowest = min(lowest, stored) // they begin with the offset, in digits of one length
		}
		p, err := parseStored(lowest)
		if missing || err != nil {
			continue
		}
		name := s.topics[topic]
		if id, known := ids[name]; known && id != p.topicID {
			p.topicID = "mixed"
		}
		ids[name] = p.topicID
		if at[name] == nil {
			at[name] = map[int32]feed.Position{}
		}
		at[name][partition] = p.Position
	}
	return ids, at
}

// Positions returns the positions in a topic that the vectors of all entities have reached, as of a
// moment ago.
func (s *Shared) Positions(topic string) map[int32]feed.Position {
	st := s.state.Load()
	if st == nil {
		return nil
	}
	shards := make([]redis.FactShard, redis.FactShards)
	for i := range shards {
		if m := st.moments[i].Load(); m != nil {
			shards[i].Positions = m.stored
		}
	}
	_, at := s.lowest(shards)
	return at[topic]
}

// Sample returns at most n entities of the kind that a group describes, and how many there are. As of a
// Store, entities are chosen in the order of their shards and then of their hashes.
func (s *Shared) Sample(ctx context.Context, g *features.Group, n int) (sample []string, total int64, err error) {
	st := s.state.Load()
	if st == nil {
		return nil, 0, ErrRestoring
	}
	first := s.space(g.Entity).entityKey("")
	for shard := range redis.FactShards {
		found := map[string]entity{}
		err := s.facts.Entities(ctx, st.epoch, shard, func(keysAndNotes []string) error {
			for i := 0; i+1 < len(keysAndNotes); i += 2 {
				if name, ok := strings.CutPrefix(keysAndNotes[i], first); ok {
					found[name] = nil
				}
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
		total += int64(len(found))
		if len(sample) < n {
			sample = appendLowest(sample, found, n-len(sample))
		}
	}
	return sample, total, nil
}

// trimChunk bounds the entities that are trimmed at a time.
const trimChunk = 100

// Trim drops facts that are in no window any more; see trim.go. Several processes may do it.
func (s *Shared) Trim(ctx context.Context, now time.Time) (dropped int, err error) {
	st := s.state.Load()
	passing := func(sp *space) bool {
		return slices.ContainsFunc(sp.sources, func(l *layout) bool { return l.keep > 0 })
	}
	if st == nil || !slices.ContainsFunc(s.spaces, passing) {
		return 0, nil
	}
	to := now.Add(-s.options.Retention).UnixMicro()
	for shard := range redis.FactShards {
		err := s.facts.Entities(ctx, st.epoch, shard, func(keysAndNotes []string) error {
			t := &redis.FactTrim{Shard: shard, UpTo: sortable(to)}
			for i := 0; i+1 < len(keysAndNotes); i += 2 {
				if note := keysAndNotes[i+1]; note != "" && note <= t.UpTo {
					t.Entities = append(t.Entities, redis.FactTrimmed{Key: keysAndNotes[i], Was: note})
				}
			}
			for chunk := range slices.Chunk(t.Entities, trimChunk) {
				n, err := s.trimEntities(ctx, st.epoch, &redis.FactTrim{Shard: shard, UpTo: t.UpTo, Entities: chunk}, to)
				if err != nil {
					return err
				}
				dropped += n
			}
			return nil
		})
		if err != nil {
			return dropped, err
		}
	}
	return dropped, nil
}

// trimEntities drops facts of some entities of a shard.
func (s *Shared) trimEntities(ctx context.Context, epoch string, t *redis.FactTrim, to int64) (dropped int, err error) {
	reads := []redis.FactRead{{Shard: t.Shard, Known: -1}}
	for i := range t.Entities {
		reads[0].Keys = append(reads[0].Keys, t.Entities[i].Key)
	}
	if err := s.facts.Read(ctx, epoch, reads); err != nil {
		return 0, err
	}
	for i, fields := range reads[0].Entities {
		e := &t.Entities[i]
		sp := s.spaceOf(e.Key)
		if sp == nil {
			return 0, fmt.Errorf("%w: entity %q", errFact, e.Key)
		}
		for j := 0; j+1 < len(fields); j += 2 {
			f, err := sp.parseField(fields[j])
			if err != nil {
				return 0, fmt.Errorf("facts of %q in Redis: %w", e.Key, err)
			}
			keep := sp.sources[f.source].keep
			switch due := f.at + keep; {
			case f.dropped || keep == 0:
			case due <= to:
				key := string(unpackKey(nil, []byte(f.key)))
				e.Drops = append(e.Drops, redis.FactDrop{Field: fields[j], Instead: droppedField(f.source, f.at, key)})
			case e.Note == "" || sortable(due) < e.Note:
				e.Note = sortable(due)
			}
		}
		dropped += len(e.Drops)
	}
	return dropped, s.facts.Trim(ctx, epoch, t)
}

// spaceOf returns the space of an entity's key, or nil.
func (d *definitions) spaceOf(key string) *space {
	for _, sp := range d.spaces {
		if strings.HasPrefix(key, sp.entityKey("")) {
			return sp
		}
	}
	return nil
}

// unusedAfter is how long the facts of definitions are kept that no process uses.
const unusedAfter = 7 * 24 * time.Hour

// upkeep drops old facts, and facts of definitions that are not used any more, until ctx ends.
func (r *SharedRunner) upkeep(ctx context.Context) {
	for {
		within, cancel := context.WithTimeout(ctx, sharedTrimEvery)
		err := r.store.DeleteUnused(within, r.cfg.Logger)
		_, trimmed := r.store.Trim(within, r.store.options.Now())
		cancel()
		if err = errors.Join(err, trimmed); err != nil && ctx.Err() == nil && !errors.Is(err, redis.ErrLost) {
			r.cfg.Logger.Warn("cannot drop old facts in Redis; trying again later", "error", err)
		}
		if !backoff.Sleep(ctx, sharedTrimEvery) {
			return
		}
	}
}

// DeleteUnused says that these definitions are used, and deletes the facts of those that were not used
// for a week, and of epochs that were replaced.
func (s *Shared) DeleteUnused(ctx context.Context, log *slog.Logger) error {
	now := s.options.Now()
	if err := s.facts.Use(ctx, now); err != nil {
		return err
	}
	deleted, err := s.client.DeleteUnusedFacts(ctx, sharedFamily, now.Add(-unusedAfter))
	for _, name := range deleted {
		log.Info("deleted the facts of feature definitions that no process has used for a week", "name", name)
	}
	return errors.Join(err, s.facts.Sweep(ctx))
}
