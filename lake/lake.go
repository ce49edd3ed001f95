// Package lake turns topics into open tables: Iceberg, in Parquet, that any engine can read without a program of ours in
// between. It is here so that the events, and the facts drawn from them, outlive every other part of the system in a
// form that is not its own.
//
// A lander per table reads the topic and commits rows together with the offsets they reach (see lander.go), so a table
// is at every moment exactly the beginning of its topic: nothing missing, nothing twice, whatever dies when.
package lake

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/sqlite"
)

// Namespace is where our tables stand in the catalog, and CatalogName is what outside engines must call that catalog: the
// SQL catalog keeps the name in every row.
const (
	Namespace   = "millrace"
	CatalogName = "millrace"
)

// Config says where the lake is.
type Config struct {
	Warehouse   string // folder of the tables; created if it is not there
	CatalogPath string // the catalog's SQLite file; created likewise
	// ReadOnly opens a lake that exists, beside the process that lands in it.
	ReadOnly bool
	Logger   *slog.Logger // required
}

// Lake is an open lake. It is safe for concurrent use.
type Lake struct {
	db      *sql.DB
	catalog catalog.Catalog
	log     *slog.Logger
}

// ErrNoLake says that there is no lake where a read-only one was to be opened, or that it lacks a table.
var ErrNoLake = errors.New("no lake here yet")

// Open opens the lake and, unless read-only, creates the tables that it lacks. A table whose columns are not those that
// this program writes is an error.
func Open(ctx context.Context, c Config) (*Lake, error) {
	warehouse, err := filepath.Abs(c.Warehouse)
	if err != nil {
		return nil, fmt.Errorf("warehouse %s: %w", c.Warehouse, err)
	}
	if c.ReadOnly {
		if _, err := os.Stat(c.CatalogPath); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoLake, err)
		}
	} else {
		for _, dir := range []string{warehouse, filepath.Dir(c.CatalogPath)} {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				return nil, fmt.Errorf("create the lake's folder: %w", err)
			}
		}
	}
	open := sqlite.Open
	if c.ReadOnly {
		open = sqlite.OpenReadOnly
	}
	db, err := open(c.CatalogPath)
	if err != nil {
		return nil, fmt.Errorf("open the lake's catalog: %w", err)
	}
	cat, err := sqlcatalog.NewCatalog(CatalogName, db, sqlcatalog.SQLite, iceberg.Properties{
		"warehouse":           "file://" + filepath.ToSlash(warehouse),
		"init_catalog_tables": fmt.Sprint(!c.ReadOnly),
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the lake's catalog %s: %w", c.CatalogPath, err), db.Close())
	}
	l := &Lake{db: db, catalog: cat, log: c.Logger.With("part", "lake")}
	if err := l.prepare(ctx, c.ReadOnly); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close lets go of the catalog. What runs must have ended.
func (l *Lake) Close() error { return l.db.Close() }

// prepare creates what is missing and checks what is there.
func (l *Lake) prepare(ctx context.Context, readOnly bool) error {
	if !readOnly {
		err := l.catalog.CreateNamespace(ctx, table.Identifier{Namespace}, nil)
		if err != nil && !errors.Is(err, catalog.ErrNamespaceAlreadyExists) {
			return fmt.Errorf("create the lake's namespace: %w", err)
		}
	}
	for _, t := range tables() {
		have, err := l.load(ctx, t.Name)
		if errors.Is(err, catalog.ErrNoSuchTable) && !readOnly {
			have, err = l.create(ctx, t)
		}
		if err != nil {
			return err
		}
		if err := t.checkSchema(have.Schema()); err != nil {
			return err
		}
	}
	return nil
}

// create makes a table. Two processes may try at once: the second takes what the first made.
//
// Tables are not partitioned: at a commit every second or so a partition by time would only cut small files smaller, a
// year's import would open a writer per month, and the bounds in the manifests already prune by time. Iceberg can
// partition a table later without rewriting it.
func (l *Lake) create(ctx context.Context, t Table) (*table.Table, error) {
	props := iceberg.Properties{
		table.PropertyFormatVersion: "2",
		// A stale append must fail, not be replayed onto the new head: the lander decides, see lander.go.
		table.CommitNumRetriesKey: "0",
		// What a commit reads and writes must not grow with the number of commits before it.
		table.MetadataDeleteAfterCommitEnabledKey: "true",
		table.MetadataPreviousVersionsMaxKey:      "100",
		table.ManifestMergeEnabledKey:             "true",
		table.ManifestMinMergeCountKey:            "50",
		// What other engines write shall look like what we write.
		table.ParquetCompressionKey:      "zstd",
		table.ParquetCompressionLevelKey: "1",
	}
	made, err := l.catalog.CreateTable(ctx, identifier(t.Name), t.schema(), catalog.WithProperties(props))
	if errors.Is(err, catalog.ErrTableAlreadyExists) {
		return l.load(ctx, t.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("create table %s: %w", t.Name, err)
	}
	return made, nil
}

// load reads a table as it is now. Every commit and every read starts from its own load: the handles that commits return
// keep all of their history alive.
func (l *Lake) load(ctx context.Context, name string) (*table.Table, error) {
	t, err := l.catalog.LoadTable(ctx, identifier(name))
	if errors.Is(err, catalog.ErrNoSuchTable) || errors.Is(err, catalog.ErrNoSuchNamespace) {
		return nil, fmt.Errorf("%w: table %s: %w", ErrNoLake, name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load table %s: %w", name, err)
	}
	return t, nil
}

func identifier(name string) table.Identifier { return table.Identifier{Namespace, name} }

// EventsTable names the table that keeps an aggregate's events.
func EventsTable(agg event.Aggregate) (string, error) {
	for _, t := range tables() {
		if _, ok := t.decoder().(*eventDecoder); ok && t.Aggregate == agg {
			return t.Name, nil
		}
	}
	return "", fmt.Errorf("the lake has no events table for aggregate %q", agg.Name)
}

// TableState is a table at one moment.
type TableState struct {
	Name             string
	Topic            string          // what feeds it
	Rows             int64           // in the snapshot
	Snapshot         int64           // id of the current snapshot; 0 while the table is empty
	MetadataLocation string          // names this state for good; it stays readable for a minute or so
	Location         string          // folder of the table
	Offsets          map[int32]int64 // by partition: the first offset that is not in the table
	AsOf             time.Time       // when the newest event in it was recorded; zero while it is empty
}

// Tables tells how the tables are now.
func (l *Lake) Tables(ctx context.Context) ([]TableState, error) {
	var states []TableState
	for _, t := range tables() {
		s, err := l.state(ctx, t)
		if err != nil {
			return nil, err
		}
		states = append(states, s)
	}
	return states, nil
}

func (l *Lake) state(ctx context.Context, t Table) (TableState, error) {
	have, err := l.load(ctx, t.Name)
	if err != nil {
		return TableState{}, err
	}
	p, err := readProgress(t.Aggregate.Topic, have.Properties())
	if err != nil {
		return TableState{}, fmt.Errorf("table %s: %w", t.Name, err)
	}
	s := TableState{
		Name: t.Name, Topic: t.Aggregate.Topic, MetadataLocation: have.MetadataLocation(), Location: have.Location(),
		Offsets: p.next, AsOf: p.asOf,
	}
	if snapshot := have.CurrentSnapshot(); snapshot != nil {
		s.Snapshot = snapshot.SnapshotID
		if snapshot.Summary != nil {
			s.Rows = int64(snapshot.Summary.Properties.GetInt("total-records", 0))
		}
	}
	return s, nil
}

// Applied tells how far all tables of a topic are: by partition, the first offset that some table lacks. A partition that
// some table has nothing of is left out. Once it has reached a partition's end, all that stood there is in the tables.
func (l *Lake) Applied(ctx context.Context, topic string) (map[int32]int64, error) {
	var applied map[int32]int64
	for _, t := range tables() {
		if t.Aggregate.Topic != topic {
			continue
		}
		s, err := l.state(ctx, t)
		if err != nil {
			return nil, err
		}
		if applied == nil {
			applied = s.Offsets
			continue
		}
		for partition, next := range applied {
			if other, ok := s.Offsets[partition]; ok {
				applied[partition] = min(next, other)
			} else {
				delete(applied, partition)
			}
		}
	}
	if applied == nil {
		return nil, fmt.Errorf("the lake has no table of topic %q", topic)
	}
	return applied, nil
}
