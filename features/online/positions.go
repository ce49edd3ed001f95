package online

import (
	"slices"
	"time"

	"github.com/millrace/millrace/features/feed"
)

// Positions says up to where the log is reflected. It is immutable.
type Positions struct {
	Topics []TopicPositions
	// AsOf is when the newest event was recorded that is reflected; zero before the first.
	AsOf time.Time
}

// TopicPositions is the positions in a topic.
type TopicPositions struct {
	Topic string
	// Partitions has, by partition, the first position that is not reflected. Next is -1, or the
	// partition is missing, if nothing of it was read.
	Partitions []feed.Position
}

// unread is the position in a partition of which nothing was read.
var unread = feed.Position{Next: -1}

// at returns the position in a partition.
func (p *Positions) at(topic int, partition int32) feed.Position {
	if all := p.Topics[topic].Partitions; int(partition) < len(all) {
		return all[partition]
	}
	return unread
}

// with returns a copy with another position.
func (p *Positions) with(topic int, partition int32, at feed.Position) *Positions {
	q := &Positions{Topics: slices.Clone(p.Topics), AsOf: p.AsOf}
	q.Topics[topic].Partitions = slices.Clone(q.Topics[topic].Partitions)
	q.set(topic, partition, at)
	return q
}

// set sets a position, before the positions are shared.
func (p *Positions) set(topic int, partition int32, at feed.Position) {
	if at.AsOf.After(p.AsOf) {
		p.AsOf = at.AsOf
	}
	all := p.Topics[topic].Partitions
	for len(all) <= int(partition) {
		all = append(all, unread)
	}
	all[partition] = at
	p.Topics[topic].Partitions = all
}

// newest returns when the newest event before some positions was recorded.
func newest(topics []TopicPositions) (at time.Time) {
	for _, t := range topics {
		for _, p := range t.Partitions {
			if p.AsOf.After(at) {
				at = p.AsOf
			}
		}
	}
	return at
}

// equal reports whether two positions are the same; q may be nil.
func (p *Positions) equal(q *Positions) bool {
	return p == q || q != nil && slices.EqualFunc(p.Topics, q.Topics, func(a, b TopicPositions) bool {
		return slices.Equal(a.Partitions, b.Partitions)
	})
}

// Positions returns the positions in a topic that every shard has reached, by partition. Reading
// the log from there on misses nothing.
func (s *Store) Positions(topic string) map[int32]feed.Position {
	s.apply.Lock()
	defer s.apply.Unlock()
	t := s.topicIndex(topic)
	if t < 0 {
		return nil
	}
	lowest := map[int32]feed.Position{}
	for i := range s.shards {
		for partition := range s.shards[i].positions.Topics[t].Partitions {
			at, id := s.shards[i].positions.at(t, int32(partition)), int32(partition)
			if have, ok := lowest[id]; !ok || at.Next < have.Next {
				lowest[id] = at
			}
		}
	}
	// A shard that has read nothing of a partition may not mention it.
	for i := range s.shards {
		for id := range lowest {
			if s.shards[i].positions.at(t, id).Next < 0 {
				delete(lowest, id)
			}
		}
	}
	return lowest
}
