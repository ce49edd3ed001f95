package serving

import (
	"slices"
	"time"

	"github.com/millrace/millrace/features/online"
)

// WithholdFrom withholds the vectors of those entities, such as "customer_id", who refuse that they are
// used. They are answered as entities that were not found. It must be called before the first request.
func (s *Service) WithholdFrom(entity string, refuses func(id string) bool) {
	s.refusing, s.refuses = entity, refuses
}

// lookup is online.Store.Lookup, which looks up nobody instead of those who refuse: their vectors have
// an empty entity and no facts.
func (s *Service) lookup(q *online.Query, entities []string, at time.Time, reuse []online.Vector) (
	[]online.Vector, error,
) {
	if s.refuses != nil && q.Group.Entity == s.refusing && slices.ContainsFunc(entities, s.refuses) {
		entities = slices.Clone(entities) // the caller's
		for i, id := range entities {
			if s.refuses(id) {
				entities[i] = ""
			}
		}
	}
	return s.backend.Store().Lookup(q, entities, at, reuse)
}
