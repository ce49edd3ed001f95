package history

import (
	"context"
	"fmt"
	"slices"

	"github.com/millrace/millrace/features"
)

// sourceNamed returns the tables of a source, or nil.
func (h *History) sourceNamed(name string) *source {
	if i := slices.IndexFunc(h.sources, func(s *source) bool { return s.Name == name }); i >= 0 {
		return h.sources[i]
	}
	return nil
}

// TilesTable returns the name of the table of the tiles of a group's source.
func TilesTable(g *features.Group, source string) string {
	return fmt.Sprintf("tiles_%s_v%d_%s", g.Name, g.Version, source)
}

// FactsTable returns the quoted name of the table of a source's facts, which has the columns entity,
// fact_key, at, known_at, retracted, log_partition, log_offset, log_index and those of the source.
// Readers must tolerate that a row is there more than once: ClickHouse removes copies later.
func (h *History) FactsTable(source string) string {
	if s := h.sourceNamed(source); s != nil {
		return s.facts.FullName()
	}
	return ""
}

// FactsColumn returns the quoted name of the column of a table of facts that has a source's column.
func (h *History) FactsColumn(c features.Column) string { return "`" + columnName(c) + "`" }

// FactsPositions returns the next offset of each partition up to which the table of a source's facts
// is complete. There are none before the first batch.
func (h *History) FactsPositions(ctx context.Context, source string) (map[int32]int64, error) {
	s := h.sourceNamed(source)
	if s == nil {
		return nil, fmt.Errorf("history: no source %q", source)
	}
	batch, err := h.position(ctx, s, s.facts)
	if err != nil {
		return nil, err
	}
	c, err := h.positionsAt(ctx, s, batch)
	if err != nil {
		return nil, err
	}
	next := map[int32]int64{}
	for p, after := range c.after {
		next[p] = after.Next
	}
	return next, nil
}
