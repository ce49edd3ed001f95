package serving

import (
	"time"

	"github.com/millrace/millrace/features/online"
)

// WithholdFrom withholds the vectors of those entities, such as "customer_id", who refuse that they are
// used. They are answered as entities that were not found. An entity that is one person with others refuses
// if the person does: refuses is given all ids of one person. It must be called before the first request.
func (s *Service) WithholdFrom(entity string, refuses func(ids ...string) bool) {
	s.refusing, s.refuses = entity, refuses
}

// lookup is online.Store.Lookup, which looks up nobody instead of those who refuse: their vectors have
// an empty entity and no facts.
func (s *Service) lookup(q *online.Query, entities []string, at time.Time, reuse []online.Vector) (
	[]online.Vector, error,
) {
	store := s.backend.Store()
	found, err := store.Lookup(q, entities, at, reuse)
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
		if _, err := store.Lookup(q, []string{""}, at, found[i:i+1]); err != nil {
			return nil, err
		}
	}
	return found, nil
}
