package online

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/internal/kafka/fetch"
)

// A topic may have lost its first records, because it keeps them for a limited time. Without a
// snapshot, their facts then come from a Past, and the log is read from where the Past ends.

// Past has the facts of earlier records. *history.History implements it.
type Past interface {
	// Complete returns the positions up to which it has the facts of all sources of a topic, and the
	// id of the topic. A partition of which it does not have everything is missing.
	Complete(ctx context.Context, topic string) (topicID string, upto map[int32]feed.Position, err error)
	// Facts calls each with the facts of a source, in any order, and with all their versions. They are
	// those of the entities for which the remainder of xxHash64 divided by parts is part.
	Facts(ctx context.Context, source string, part, parts int, each func(features.Fact) error) error
	// Filling reports whether it will reach further, because something feeds it.
	Filling(topic string) bool
}

// errPast means that the facts of a Past were read in part, so that the store must be emptied.
var errPast = errors.New("cannot read the facts that the log does not have any more")

// errPastBehind means that a Past will have the facts, and does not have all of them yet.
var errPastBehind = errors.New("the facts of records that the log does not have any more are still being stored")

// truncated reports whether a topic has lost records.
func truncated(log fetch.Topic) bool {
	for _, r := range log.Partitions {
		if r.Start > 0 {
			return true
		}
	}
	return false
}

// pastUpTo returns the positions up to which the Past has the facts of a topic. It returns nil if it does
// not reach up to what the log has: then the facts of the records between are lost. If the Past is still
// being filled, it returns errPastBehind.
func (c *Config) pastUpTo(ctx context.Context, topic string, log fetch.Topic) (map[int32]feed.Position, error) {
	id, upto, err := c.Past.Complete(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("how far the facts of %s reach that were stored: %w", topic, err)
	}
	for p, have := range log.Partitions {
		if at, ok := upto[p]; have.Start > 0 && (!ok || at.Next < have.Start) || at.Next > have.End {
			if c.Past.Filling(topic) {
				return nil, errPastBehind
			}
			c.Logger.Warn("the facts that were stored do not reach up to the log", "topic", topic, "partition", p,
				"stored_up_to", at.Next, "first", have.Start, "end", have.End)
			return nil, nil
		}
	}
	if id != log.ID {
		c.Logger.Warn("the facts that were stored are of another topic of this name", "topic", topic, "id", log.ID,
			"stored_id", id)
		return nil, nil
	}
	c.Logger.Info("the log does not have its first records any more; reading their facts from where they are stored",
		"topic", topic)
	return upto, nil
}

// pastFacts returns a part of the facts of a source up to some positions, in the order of the log.
func (c *Config) pastFacts(ctx context.Context, source string, part, parts int, upto map[int32]feed.Position) (
	facts []features.Fact, err error,
) {
	err = c.Past.Facts(ctx, source, part, parts, func(f features.Fact) error {
		// The rest is read from the log.
		if f.Origin.Offset < upto[f.Origin.Partition].Next {
			facts = append(facts, f)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", source, err)
	}
	// The versions of a fact are on one partition.
	slices.SortFunc(facts, func(a, b features.Fact) int {
		return cmp.Or(cmp.Compare(a.Origin.Offset, b.Origin.Offset), cmp.Compare(a.Origin.Index, b.Origin.Index))
	})
	return facts, nil
}

// restorePast fills the store with the facts of a topic of which nothing was read. It returns false if
// the Past does not have them.
func (r *Runner) restorePast(ctx context.Context, topic string, log fetch.Topic) (bool, error) {
	upto, err := r.cfg.pastUpTo(ctx, topic, log)
	if err != nil || upto == nil {
		return false, err
	}
	r.store.SetTopicID(topic, log.ID)
	if err := r.store.fill(ctx, &r.cfg, topic, upto); err != nil {
		if errors.Is(err, ErrFull) {
			return false, err
		}
		return false, fmt.Errorf("%w: %s: %w", errPast, topic, err)
	}
	return true, nil
}

// fill adds the facts of a topic up to some positions. In memory, it has those of one shard at a time.
func (s *Store) fill(ctx context.Context, c *Config, topic string, upto map[int32]feed.Position) error {
	for i := range s.shards {
		for _, source := range s.sources(topic) {
			facts, err := c.pastFacts(ctx, source.Name, i, shardCount, upto)
			if err != nil {
				return err
			}
			if err := s.addAll(i, source.Name, facts); err != nil {
				return err
			}
		}
	}
	s.apply.Lock()
	defer s.apply.Unlock()
	t := s.topicIndex(topic)
	var moved *moves
	if topic == persons.Source.Topic {
		moved = s.moves(s.graph.Entities(s.identities()...))
	}
	last := (*Positions)(nil)
	for i := range s.shards {
		sh := &s.shards[i]
		positions := sh.positions
		for p, at := range upto {
			positions = positions.with(t, p, at)
		}
		if !positions.equal(last) {
			last = positions
		}
		sh.mu.Lock()
		s.bytes.Add(moved.apply(sh, i))
		sh.positions = last
		sh.mu.Unlock()
	}
	return nil
}

// addAll adds facts of a source to a shard.
func (s *Store) addAll(shard int, source string, facts []features.Fact) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	if err := s.Full(); err != nil {
		return err
	}
	if source == persons.Source.Name {
		_, err := s.relink(facts) // what it changes is visible with the positions
		return err
	}
	sh := &s.shards[shard]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, sp := range s.spaces {
		index := sp.source(source)
		if index < 0 {
			continue
		}
		for i := range facts {
			s.add(sh, routed{sp, index, &facts[i]})
		}
	}
	return nil
}
