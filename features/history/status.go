package history

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/clickhouse"
)

// TableStatus is how far a table of facts or tiles is.
type TableStatus struct {
	Table, Topic string
	Filling      bool // it has tiles of a version that is not live yet
	Rows         uint64
	Next         map[int32]int64 // the table has the records before these offsets, by partition
	AsOf         time.Time       // when the newest of them was recorded
}

// Fault is why this process does not fill a table.
type Fault struct {
	Table  string
	Reason error
	// Stopped means that the table cannot take data until somebody changes something. Otherwise,
	// something that it needs does not answer.
	Stopped bool
}

// Status returns how far each table is, in the order of the groups. Tables that do not exist yet
// have nothing.
func (h *History) Status(ctx context.Context) ([]TableStatus, error) {
	var all []TableStatus
	for _, s := range h.sources {
		positions, err := h.allPositions(ctx, s)
		if err != nil && !clickhouse.IsSchema(err) {
			return all, err
		}
		tables := []clickhouse.Table{s.facts}
		for _, t := range s.tiles {
			tables = append(tables, t.table)
		}
		for i, table := range tables {
			status := TableStatus{Table: table.Name, Topic: s.Topic, Next: map[int32]int64{}}
			if i > 0 {
				g := s.tiles[i-1].group
				live, err := h.Live(ctx, g.Name)
				if err != nil {
					return all, err
				}
				status.Filling = g.Version > live.Version
			}
			if positions[table.Name] > 0 {
				c, err := h.positionsAt(ctx, s, positions[table.Name])
				if err != nil {
					return all, err
				}
				for p, at := range c.after {
					if status.Next[p] = at.Next; at.AsOf.After(status.AsOf) {
						status.AsOf = at.AsOf
					}
				}
				if status.Rows, err = h.count(ctx, table); err != nil {
					return all, err
				}
			}
			all = append(all, status)
		}
	}
	return all, nil
}

// count returns the number of rows of a table. Rows that ClickHouse has not merged yet count.
func (h *History) count(ctx context.Context, table clickhouse.Table) (n uint64, err error) {
	rows, err := h.cfg.Store.Query(ctx, "SELECT count() FROM "+table.FullName())
	if err != nil {
		return 0, fmt.Errorf("count the rows of %s: %w", table.Name, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	for rows.Next() {
		if err := rows.Scan(&n); err != nil {
			return 0, err
		}
	}
	return n, rows.Err()
}

// Faults returns the tables that this process does not fill at present, and why.
func (h *History) Faults() []Fault {
	var all []Fault
	add := func(table string, of *health) {
		if stopped, reason := of.get(); reason != nil {
			all = append(all, Fault{table, reason, stopped})
		}
	}
	for _, s := range h.sources {
		add(s.facts.Name, &s.health)
		for _, t := range s.tiles {
			add(t.table.Name, &t.health)
		}
	}
	for _, s := range h.swappers {
		add("versions of "+s.name, &s.health)
	}
	add("tables of earlier versions", &h.retiring)
	return all
}

// Topics returns the topics from which the tables are filled.
func (h *History) Topics() []string {
	var all []string
	seen := map[string]bool{}
	for _, s := range h.sources {
		if !seen[s.Topic] {
			all = append(all, s.Topic)
		}
		seen[s.Topic] = true
	}
	return all
}

// Drop drops all tables that are filled from a topic, including those of earlier versions of the
// groups. No process may be filling them. It returns their names, also beside an error.
func (h *History) Drop(ctx context.Context, topic string) ([]string, error) {
	var dropped []string
	for _, s := range h.swappers {
		if err := s.abandon(ctx); err != nil {
			return nil, err
		}
	}
	for _, s := range h.sources {
		if s.Topic != topic {
			continue
		}
		names, err := h.tablesOf(ctx, s)
		if err != nil {
			return dropped, err
		}
		for _, name := range names {
			err := h.cfg.Store.Exec(ctx, "DROP TABLE IF EXISTS "+clickhouse.Table{Database: clickhouse.Features, Name: name}.FullName()+
				h.cfg.Store.OnCluster()+" SYNC")
			if err != nil {
				return dropped, fmt.Errorf("drop %s: %w", name, err)
			}
			dropped = append(dropped, name)
		}
	}
	return dropped, nil
}

// tablesOf returns the names of the existing tables of a source, in the order in which to drop them:
// positions before what they are about, so that an interrupted drop can be repeated.
func (h *History) tablesOf(ctx context.Context, s *source) ([]string, error) {
	tilesOf := regexp.MustCompile(`^tiles_[a-z0-9_]+_v[0-9]+_` + s.Name + `$`)
	rows, err := h.cfg.Store.Query(ctx, "SELECT name FROM system.tables WHERE database = ? ORDER BY name", clickhouse.Features)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	existing, old := map[string]bool{}, []string(nil)
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		if existing[name] = true; tilesOf.MatchString(name) {
			old = append(old, name)
		}
	}
	var names []string
	for _, t := range []clickhouse.Table{s.positions, s.claims, s.corrections, s.facts} {
		if existing[t.Name] {
			names = append(names, t.Name)
		}
	}
	return append(names, old...), rows.Err()
}

// reached reports whether positions have reached offsets.
func reached(at map[int32]feed.Position, ends map[int32]int64) bool {
	for p, end := range ends {
		if at[p].Next < end {
			return false
		}
	}
	return true
}

// Reached reports whether all tables that are filled from a topic have the records before these
// offsets. Tables that this process cannot fill are left out.
func (h *History) Reached(ctx context.Context, topic string, ends map[int32]int64) (bool, error) {
	for _, s := range h.sources {
		if s.Topic != topic {
			continue
		}
		if stopped, _ := s.health.get(); stopped {
			continue
		}
		positions, err := h.allPositions(ctx, s)
		if clickhouse.IsSchema(err) {
			return false, nil // not created yet
		}
		if err != nil {
			return false, err
		}
		least := positions[s.facts.Name] // batch that all tables have
		for _, t := range s.tiles {
			if stopped, _ := t.health.get(); !stopped {
				least = min(least, positions[t.table.Name])
			}
		}
		c, err := h.positionsAt(ctx, s, least)
		if err != nil || !reached(c.after, ends) {
			return false, err
		}
	}
	return true, nil
}
