package online

import (
	"slices"
	"time"
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
	// Next has, by partition, the first offset that is not reflected. It is -1 or absent if nothing
	// of the partition was read.
	Next []int64
}

// next returns the position of a partition, or -1.
func (p *Positions) next(topic int, partition int32) int64 {
	if next := p.Topics[topic].Next; int(partition) < len(next) {
		return next[partition]
	}
	return -1
}

// with returns a copy with another position.
func (p *Positions) with(topic int, partition int32, next int64, asOf time.Time) *Positions {
	q := &Positions{Topics: slices.Clone(p.Topics), AsOf: p.AsOf}
	if asOf.After(q.AsOf) {
		q.AsOf = asOf
	}
	all := slices.Clone(q.Topics[topic].Next)
	for len(all) <= int(partition) {
		all = append(all, -1)
	}
	all[partition] = next
	q.Topics[topic].Next = all
	return q
}

// Positions returns the positions that every shard has reached. Reading the log from there on
// misses nothing.
func (s *Store) Positions() *Positions {
	s.apply.Lock()
	defer s.apply.Unlock()
	lowest := &Positions{Topics: slices.Clone(s.shards[0].positions.Topics), AsOf: s.shards[0].positions.AsOf}
	for t := range lowest.Topics {
		lowest.Topics[t].Next = slices.Clone(lowest.Topics[t].Next)
	}
	for i := range s.shards {
		p := s.shards[i].positions
		if p.AsOf.Before(lowest.AsOf) {
			lowest.AsOf = p.AsOf
		}
		for t := range lowest.Topics {
			for partition := range lowest.Topics[t].Next {
				at := &lowest.Topics[t].Next[partition]
				*at = min(*at, p.next(t, int32(partition)))
			}
		}
	}
	return lowest
}
