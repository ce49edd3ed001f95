package history

import (
	"context"
	"fmt"
	"slices"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/clickhouse"
)

// Complete returns the positions up to which the tables have the facts of all sources of a topic, and
// the id of the topic. A partition of which a table has nothing is missing.
func (h *History) Complete(ctx context.Context, topic string) (
	topicID string, upto map[int32]feed.Position, err error) {
	upto = map[int32]feed.Position{}
	first := true
	for _, s := range h.sources {
		if s.Topic != topic {
			continue
		}
		batch, err := h.position(ctx, s, s.facts)
		if clickhouse.IsSchema(err) {
			return "", nil, nil // not created yet
		}
		if err != nil {
			return "", nil, err
		}
		c, err := h.positionsAt(ctx, s, batch)
		if err != nil {
			return "", nil, err
		}
		if first {
			first, topicID, upto = false, c.topicID, c.after
			continue
		}
		if c.topicID != topicID {
			return "", nil, nil // one of them has not begun with the topic that is there now
		}
		// A position depends on the records before it only, so the lowest one is that of all.
		for p, at := range upto {
			other, ok := c.after[p]
			switch {
			case !ok:
				delete(upto, p)
			case other.Next < at.Next:
				upto[p] = other
			}
		}
	}
	for p, at := range upto {
		if at.Archived { // the log cannot be read from here
			delete(upto, p)
		}
	}
	return topicID, upto, nil
}

// Filling reports whether the tables of a topic's facts will reach further: this process fills them,
// and none of them has stopped.
func (h *History) Filling(topic string) bool {
	return h.running.Load() && !slices.ContainsFunc(h.sources, func(s *source) bool {
		stopped, _ := s.health.get()
		return s.Topic == topic && stopped
	})
}

// Facts calls each with the facts of a source, in any order, and with all their versions; a fact may
// occur twice. They are those of the entities for which the remainder of xxHash64 divided by parts is
// part.
func (h *History) Facts(ctx context.Context, source string, part, parts int, each func(features.Fact) error) error {
	s := h.sourceNamed(source)
	if s == nil {
		return fmt.Errorf("history: no source %q", source)
	}
	query := fmt.Sprintf("SELECT %s FROM %s WHERE xxHash64(entity) %% %d = %d", s.selectFacts(), s.facts.FullName(),
		parts, part)
	return h.readFacts(ctx, s, query, func(f features.Fact, _ uint64) error { return each(f) })
}
