package training

import (
	"context"
	"fmt"

	"github.com/millrace/millrace/features/exact"
)

// joiner computes vectors, range by range. It is safe for concurrent use.
type joiner struct {
	facts     Facts
	positions Positions
	// The earliest and the latest time of all rows.
	first, last int64
	read        func(facts int)                  // called for each batch; may be nil
	used        func(source string, facts int64) // called for each source and range; may be nil
}

// join computes the vectors of the rows of a range. entities has their entities, sorted. It returns how
// many of the rows know at least one fact.
func (j *joiner) join(ctx context.Context, p *plan, r Range, entities *entities, rows []row,
	emit func(r row, values []exact.Result)) (informed int64, _ error) {
	if len(rows) == 0 {
		return 0, nil
	}
	s := sweeper{plan: p, emit: emit}
	for _, source := range p.sources {
		t := newTable(source, entities)
		request := source.request(r, j.positions[source.source.Topic], j.first, j.last)
		err := j.facts.Read(ctx, request, func(b *Batch) error {
			t.add(b)
			if j.read != nil {
				j.read(b.Rows)
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("read facts of source %s: %w", source.source.Name, err)
		}
		t.group(len(entities.names))
		s.tables = append(s.tables, t)
	}
	if err := s.sweep(ctx, rows); err != nil {
		return 0, err
	}
	for i, source := range p.sources {
		if j.used != nil {
			j.used(source.source.Name, s.used[i])
		}
	}
	return s.informed, nil
}
