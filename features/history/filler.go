package history

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/clickhouse"
)

// recent keeps the facts of the last batches, so that fillers need not read them from ClickHouse.
type recent struct {
	mu      sync.Mutex
	batches map[uint64][]features.Fact
	oldest  uint64
	facts   int
}

// recentFacts bounds the number of facts in recent.
const recentFacts = 100_000

func (r *recent) put(batch uint64, facts []features.Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.batches == nil {
		r.batches = map[uint64][]features.Fact{}
	}
	if _, again := r.batches[batch]; again {
		return
	}
	if len(r.batches) == 0 {
		r.oldest = batch
	}
	r.batches[batch] = facts
	r.facts += len(facts)
	for ; len(r.batches) > 1 && (r.facts > recentFacts || len(r.batches) > 100); r.oldest++ {
		r.facts -= len(r.batches[r.oldest])
		delete(r.batches, r.oldest)
	}
}

func (r *recent) get(batch uint64) ([]features.Fact, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	facts, ok := r.batches[batch]
	return facts, ok
}

// filler fills a table of tiles from the table of facts.
type filler struct {
	*History
	*tiles
	ahead map[uint64][]features.Fact // batches that were read from ClickHouse and are not filled yet
}

func newFiller(h *History, t *tiles) *filler { return &filler{History: h, tiles: t} }

// errDefinition means that a table has tiles of another definition.
var errDefinition = errors.New("the table was made by another definition of this version: give the group a new version, " +
	"or after a change of features.currency run `millrace rebuild` for the service of its topic")

// pollEvery is the interval of looking for batches that only other processes have seen. This process
// has a writer of the same facts, which notifies the filler, so that the poll is for its failures.
const pollEvery = 5 * time.Second

// notify tells the filler of this process that there is another batch.
func (t *tiles) notify() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// session fills the table until something fails.
func (f *filler) session(ctx context.Context, worked func()) error {
	s := f.source
	f.ahead = nil
	if err := f.prepare(ctx); err != nil {
		return err
	}
	worked()
	var have uint64
	var read time.Time // when have was read
	for {
		positions, err := f.allPositions(ctx, s)
		if err != nil {
			return err
		}
		have, read = max(have, positions[f.table.Name]), time.Now()
		limit, err := f.limit(ctx, f.History)
		if err != nil {
			return err
		}
		head := min(positions[s.facts.Name], limit)
		for have < head && time.Since(read) < positionAge {
			if err := f.fill(ctx, have+1, head); err != nil {
				return err
			}
			have++
			worked()
		}
		if have < head {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.wake:
		case <-time.After(pollEvery):
		}
	}
}

// prepare creates the table, and those that it is filled from.
func (f *filler) prepare(ctx context.Context) error {
	for _, t := range []clickhouse.Table{f.source.facts, f.source.positions, versions} {
		if err := f.create(ctx, t); err != nil {
			return err
		}
	}
	exists, err := f.checkDefinition(ctx)
	if err != nil {
		return err
	}
	if !exists {
		// Its tokens are gone, and with them what keeps a batch from being in the table twice.
		position, err := f.position(ctx, f.source, f.table)
		if err != nil {
			return err
		}
		if position > 0 {
			return fmt.Errorf("%s: %w", f.table.Name, errDropped)
		}
	}
	return f.create(ctx, f.table)
}

// errDropped means that a table of tiles is gone.
var errDropped = errors.New("the table was dropped, and its batches are not filled again: give the group a new version")

// checkDefinition reports whether the table exists. It returns an error if it was created by another
// definition of the group's version.
func (f *filler) checkDefinition(ctx context.Context) (exists bool, err error) {
	rows, err := f.cfg.Store.Query(ctx, "SELECT comment FROM system.tables WHERE database = ? AND name = ?",
		f.table.Database, f.table.Name)
	if err != nil {
		return false, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	for rows.Next() {
		var comment string
		if err := rows.Scan(&comment); err != nil {
			return false, err
		}
		if exists = true; comment != f.table.Comment {
			return false, fmt.Errorf("%s: %w", f.table.Name, errDefinition)
		}
	}
	return exists, rows.Err()
}

// fill inserts the tiles of a batch.
func (f *filler) fill(ctx context.Context, batch, head uint64) error {
	facts, ok := f.source.recent.get(batch)
	if !ok {
		if facts, ok = f.ahead[batch]; !ok {
			if err := f.readAhead(ctx, batch, head); err != nil {
				return err
			}
			facts = f.ahead[batch]
		}
		delete(f.ahead, batch)
	}
	if err := f.at(ctx, f.table.Name, stepTiles); err != nil {
		return err
	}
	all := f.aggregate(facts, batch, minute, hour, day)
	if err := f.insertTiles(ctx, f.tiles, strconv.FormatUint(batch, 10), all); err != nil {
		return err
	}
	if err := f.at(ctx, f.table.Name, stepFilled); err != nil {
		return err
	}
	if err := f.setPosition(ctx, f.source, f.table, batch); err != nil {
		return err
	}
	return f.at(ctx, f.table.Name, stepTilesDone)
}

// Limits of readAhead.
const (
	aheadBatches = 1000
	aheadFacts   = 100_000
)

// readAhead reads the facts of a batch and of some that follow. A read scans the numbers of the
// batches of all facts, so it should not be for one small batch.
func (f *filler) readAhead(ctx context.Context, from, head uint64) error {
	s := f.source
	until := min(head, from+aheadBatches-1)
	rows, err := f.cfg.Store.Query(ctx, fmt.Sprintf(
		"SELECT batch, toInt64(count()) FROM %s WHERE batch >= %d AND batch <= %d GROUP BY batch ORDER BY batch",
		s.facts.FullName(), from, until))
	if err != nil {
		return fmt.Errorf("count facts: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	for total := int64(0); rows.Next(); {
		var batch uint64
		var n int64
		if err := rows.Scan(&batch, &n); err != nil {
			return fmt.Errorf("count facts: %w", err)
		}
		if total += n; total > aheadFacts && batch > from {
			until = min(until, batch-1)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("count facts: %w", err)
	}
	ahead := map[uint64][]features.Fact{}
	for batch := from; batch <= until; batch++ { // a batch may have no facts
		ahead[batch] = nil
	}
	// FINAL: a batch that was inserted twice must not count twice.
	query := fmt.Sprintf("SELECT %s FROM %s FINAL WHERE batch >= %d AND batch <= %d",
		s.selectFacts(), s.facts.FullName(), from, until)
	f.ahead = nil // in case of an error
	err = f.readFacts(ctx, s, query, func(fact features.Fact, batch uint64) error {
		ahead[batch] = append(ahead[batch], fact)
		return nil
	})
	if err == nil {
		f.ahead = ahead
	}
	return err
}
