package online

import (
	"cmp"
	"context"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/features"
)

// Sample returns at most n entities of the kind that a group describes, and how many there are.
// Entities are chosen in the order of their shards and then of their hashes. So the choice has
// nothing to do with their facts, and stores with the same entities choose the same ones. A large
// store is not read as a whole, because its first shards have enough entities.
func (s *Store) Sample(_ context.Context, g *features.Group, n int) (sample []string, total int64, err error) {
	sp := s.space(g.Entity)
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.RLock()
		entities := sh.spaces[sp.index]
		total += int64(len(entities))
		if len(sample) < n {
			sample = appendLowest(sample, entities, n-len(sample))
		}
		sh.mu.RUnlock()
	}
	return sample, total, nil
}

// appendLowest appends the n entities with the lowest hashes.
func appendLowest(sample []string, entities map[string]entity, n int) []string {
	type hashed struct {
		hash uint64
		name string
	}
	all := make([]hashed, 0, len(entities))
	for name := range entities {
		all = append(all, hashed{xxhash.Sum64String(name), name})
	}
	slices.SortFunc(all, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.name, b.name))
	})
	for _, h := range all[:min(n, len(all))] {
		sample = append(sample, h.name)
	}
	return sample
}
