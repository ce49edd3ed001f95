package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/clickhouse"
)

// Batches of a source are numbered from 1. A batch has the records between two sets of positions,
// and its claim decides once which ones: it is inserted under a token that is the number of the
// batch, so that ClickHouse discards all claims but the first, whoever sends them. Every writer then
// reads which claim that was, and writes that batch, even if it claimed another one.
//
// The rows of a batch depend on its records only, and are inserted under a token that is the number
// of the batch, too. So a batch that is written again, by the same process after an error, by
// another one after a kill, or by both at the same time, is in the tables once.
//
// A table of tiles has the rows of a batch exactly once only while its tokens are remembered. That
// is for clickhouse.DefaultWindow inserts, and a writer that was suspended for longer must not
// continue. So it reads the table's position again if it has not done so recently; see positionAge.

// claim is what a batch contains.
type claim struct {
	batch   uint64
	topicID string
	after   map[int32]feed.Position // by partition
	id      string                  // of the writer's attempt
	age     time.Duration           // by ClickHouse's clock, when it was read
}

// positionAge is how long a position that was read may be relied on.
const positionAge = time.Minute

// propose inserts a claim, and returns the one that counts.
func (h *History) propose(ctx context.Context, s *source, batch uint64, topicID string,
	after map[int32]feed.Position) (claim, bool, error) {
	id := uuid.NewString()
	b, err := h.cfg.Store.Batch(s.claims, strconv.FormatUint(batch, 10), "batch", "topic_id", "after", "claim")
	if err != nil {
		return claim{}, false, err
	}
	positions := make(map[int32]string, len(after))
	for p, at := range after {
		positions[p] = at.String()
	}
	if err := b.Append(batch, topicID, positions, id); err != nil {
		return claim{}, false, err
	}
	if err := b.Send(ctx); err != nil {
		return claim{}, false, fmt.Errorf("claim batch %d: %w", batch, err)
	}
	c, found, err := h.claimOf(ctx, s, batch)
	if err == nil && !found {
		err = fmt.Errorf("the claim of batch %d is not in %s, though it was inserted", batch, s.claims.Name)
	}
	return c, c.id == id, err
}

// claimOf returns the claim of a batch.
func (h *History) claimOf(ctx context.Context, s *source, batch uint64) (c claim, found bool, err error) {
	// If a token was forgotten, there may be a later claim. It does not count.
	rows, err := h.cfg.Store.Query(ctx, fmt.Sprintf("SELECT topic_id, after, claim, "+
		"dateDiff('millisecond', claimed_at, now64(6)) FROM %s WHERE batch = %d ORDER BY claimed_at, claim LIMIT 1",
		s.claims.FullName(), batch))
	if err != nil {
		return claim{}, false, fmt.Errorf("read the claim of batch %d: %w", batch, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	c.batch, c.after = batch, map[int32]feed.Position{}
	for rows.Next() {
		var after map[int32]string
		var millis int64
		if err := rows.Scan(&c.topicID, &after, &c.id, &millis); err != nil {
			return claim{}, false, fmt.Errorf("read the claim of batch %d: %w", batch, err)
		}
		c.age, found = time.Duration(millis)*time.Millisecond, true
		for p, text := range after {
			if c.after[p], err = feed.ParsePosition(text); err != nil {
				return claim{}, false, fmt.Errorf("claim of batch %d: partition %d: %w", batch, p, err)
			}
		}
	}
	return c, found, rows.Err()
}

// position returns the last batch that a table has; 0 means none.
func (h *History) position(ctx context.Context, s *source, table clickhouse.Table) (uint64, error) {
	all, err := h.allPositions(ctx, s)
	return all[table.Name], err
}

// allPositions returns the last batch that each table of a source has.
func (h *History) allPositions(ctx context.Context, s *source) (map[string]uint64, error) {
	rows, err := h.cfg.Store.Query(ctx, "SELECT table_name, max(batch) FROM "+s.positions.FullName()+" GROUP BY table_name")
	if err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	all := map[string]uint64{}
	for rows.Next() {
		var name string
		var batch uint64
		if err := rows.Scan(&name, &batch); err != nil {
			return nil, fmt.Errorf("read positions: %w", err)
		}
		all[name] = batch
	}
	return all, rows.Err()
}

// setPosition records that a table has a batch, and all before it. Positions never decrease: the
// highest one counts.
func (h *History) setPosition(ctx context.Context, s *source, table clickhouse.Table, batch uint64) error {
	b, err := h.cfg.Store.Batch(s.positions, "")
	if err != nil {
		return err
	}
	if err := b.Append(table.Name, batch); err != nil {
		return err
	}
	if err := b.Send(ctx); err != nil {
		return fmt.Errorf("save the position of %s: %w", table.Name, err)
	}
	return nil
}

// positionsAt returns the positions after a batch, and the topic's id. Before the first batch, there
// are none.
func (h *History) positionsAt(ctx context.Context, s *source, batch uint64) (claim, error) {
	if batch == 0 {
		return claim{after: map[int32]feed.Position{}}, nil
	}
	c, found, err := h.claimOf(ctx, s, batch)
	if err == nil && !found {
		err = fmt.Errorf("%w: %s has batch %d, but %s does not have its claim",
			errDamaged, s.facts.Name, batch, s.claims.Name)
	}
	return c, err
}

// errDamaged means that rows are missing that were written.
var errDamaged = errors.New("the tables do not belong together")

// merged returns the positions after both.
func merged(before, after map[int32]feed.Position) map[int32]feed.Position {
	out := maps.Clone(before)
	for p, at := range after {
		if cmp.Compare(at.Next, out[p].Next) >= 0 {
			out[p] = at
		}
	}
	return out
}
