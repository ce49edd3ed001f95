package serving

import (
	"context"
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
)

// WithholdFrom withholds the vectors of those entities, such as "customer_id", who refuse that they are
// used. They are answered as entities that were not found. An entity that is one person with others refuses
// if the person does: refuses is given all ids of one person. It must be called before the first request.
func (s *Service) WithholdFrom(entity string, refuses func(ids ...string) bool) {
	s.refusing, s.refuses = entity, refuses
}

// lookup is online.Reader.Lookup for the keys that a caller sent. It looks up nobody instead of those who
// refuse: their vectors have an empty entity and no facts.
func (s *Service) lookup(ctx context.Context, q *online.Query, keys []string, at time.Time, reuse []online.Vector) (
	[]online.Vector, error,
) {
	store, entities := s.backend.Store(), entitiesOf(q.Group, keys)
	found, err := store.Lookup(ctx, q, entities, at, reuse)
	if err != nil || s.refuses == nil || q.Group.Entity != s.refusing {
		return found, err
	}
	for i := range found {
		ids := found[i].Members // as the vector has them
		if ids == nil {
			ids = entities[i : i+1]
		}
		if !s.refuses(ids...) {
			continue
		}
		if _, err := store.Lookup(ctx, q, []string{""}, at, found[i:i+1]); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// entitiesOf returns the entities of a group that keys name. The keys remain as they are, because answers
// repeat them.
func entitiesOf(g *features.Group, keys []string) []string {
	first := slices.IndexFunc(keys, func(key string) bool { return g.Identity.Entity(key) != key })
	if first < 0 {
		return keys
	}
	entities := slices.Clone(keys)
	for i := first; i < len(keys); i++ {
		entities[i] = g.Identity.Entity(keys[i])
	}
	return entities
}

// consenting returns those of some entities of a group who do not refuse that their vectors are used.
func (s *Service) consenting(ctx context.Context, g *features.Group, entities []string) []string {
	if s.refuses == nil || g.Entity != s.refusing {
		return entities
	}
	q, err := s.query(g.ID(), []string{g.Outputs()[0].Name})
	if err != nil {
		return nil // who refuses is not known
	}
	found, err := s.lookup(ctx, q, entities, event.Time(s.now()), nil)
	if err != nil {
		return nil
	}
	kept := entities[:0]
	for i := range found {
		if found[i].Entity != "" {
			kept = append(kept, entities[i])
		}
	}
	return kept
}
