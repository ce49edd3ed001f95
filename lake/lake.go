// Package lake opens and looks after open tables: Iceberg, in Parquet, which any engine can read
// without a program of ours in between. So the events, and the facts drawn from them, outlive every
// other part of the system.
//
// Open opens a warehouse (a folder, or a bucket) and its catalog, creates the tables that are
// declared (see package declare), and brings existing ones to their declarations. A Lake then says
// how its tables are, now and at earlier moments (Tables, TablesAsOf), what they are made of
// (Summarize, Snapshots, Files), and what is wrong with them (Look, Check). It sums their rows up
// for verifications (Digest), keeps them small (Maintain), and serves them to other engines (REST).
// That refuses changes with which landers would lose or repeat rows, or stop.
//
// Package landing brings the rows in. Offsets and rows change in one commit, so at every moment a
// table is exactly the beginning of its topic.
package lake

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/internal/sqlite"
	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/location"
)

// CatalogName is what outside engines must call the catalog: the SQL catalog keeps the name in every row.
const CatalogName = "millrace"

// Config says where the lake is.
type Config struct {
	// Warehouse is where the tables are: a folder, created if it is not there, or s3://bucket/folder, whose bucket
	// exists.
	Warehouse string
	S3        S3 // of an s3:// warehouse
	// Catalog is Iceberg's SQL catalog: a SQLite file, created likewise, or postgres://user@host/database.
	Catalog         string
	CatalogPassword string // takes the place of the one in Catalog
	// Tables are those that this process lands in and tells about.
	Tables []declare.Table
	// ReadOnly opens a lake that exists, beside the process that lands in it. Sync makes every file of a warehouse in a
	// folder durable against a power cut before a commit names it. It holds for the process.
	Sync     bool
	ReadOnly bool
	Logger   *slog.Logger // required
}

// Lake is an open lake. It is safe for concurrent use.
type Lake struct {
	db        *sql.DB
	dialect   sqlcatalog.SupportedDialect
	warehouse *warehouse
	catalog   catalog.Catalog
	rows      *sqlcatalog.Catalog // the same without the way to the warehouse
	tables    []declare.Table
	stopped   faultSet // tables that cannot be landed
	lost      faultSet // those that lack files
	log       *slog.Logger
}

// ErrNoLake says that there is no lake where a read-only one was to be opened, or that it lacks a table.
var ErrNoLake = errors.New("no lake here yet")

// noTableError says that the lake lacks a table. It is an ErrNoLake.
type noTableError struct {
	name string
	err  error
}

func (e *noTableError) Error() string {
	return fmt.Sprintf("no table %s: `millrace lake tables` lists the tables", e.name)
}

func (e *noTableError) Unwrap() []error { return []error{ErrNoLake, e.err} }

// Open opens the lake and, unless read-only, creates the tables that it lacks and brings the others to what this
// program declares of them; several processes may do so at once. A table that cannot be read, or become what is
// declared, is left as it is: see Stopped.
func Open(ctx context.Context, c Config) (*Lake, error) {
	w, err := openWarehouse(ctx, c)
	if err != nil {
		return nil, err
	}
	if c.Sync {
		location.Sync()
	}
	l := &Lake{warehouse: w, tables: c.Tables, log: c.Logger.With("part", "lake")}
	if onServer(c.Catalog) {
		err = l.openServer(ctx, c)
	} else {
		err = l.openFile(ctx, c)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func onServer(catalog string) bool {
	return strings.HasPrefix(catalog, "postgres://") || strings.HasPrefix(catalog, "postgresql://")
}

// openServer opens a catalog in PostgreSQL.
func (l *Lake) openServer(ctx context.Context, c Config) error {
	var err error
	if l.db, err = postgres.Open(c.Catalog, c.CatalogPassword, "millrace-lake"); err != nil {
		return fmt.Errorf("the lake's catalog: %w", err)
	}
	if err := l.db.PingContext(ctx); err != nil {
		return fmt.Errorf("connect to the lake's catalog: %w", err)
	}
	open := func(ctx context.Context) error { return l.open(ctx, sqlcatalog.Postgres, c.ReadOnly) }
	if c.ReadOnly {
		return open(ctx)
	}
	return postgres.Alone(ctx, l.db, "millrace lake", open) // PostgreSQL's IF NOT EXISTS fails in a race
}

// openFile opens a catalog in a SQLite file.
func (l *Lake) openFile(ctx context.Context, c Config) error {
	open := sqlite.OpenReadOnly
	if c.ReadOnly {
		if _, err := os.Stat(c.Catalog); err != nil {
			return fmt.Errorf("%w: %w", ErrNoLake, err)
		}
	} else {
		open = sqlite.Open
		if err := os.MkdirAll(filepath.Dir(c.Catalog), 0o750); err != nil {
			return fmt.Errorf("create the folder of the lake's catalog: %w", err)
		}
	}
	var err error
	if l.db, err = open(c.Catalog); err != nil {
		err = fmt.Errorf("open the lake's catalog: %w", err)
	} else {
		err = l.open(ctx, sqlcatalog.SQLite, c.ReadOnly)
	}
	if sqlite.Damaged(err) {
		err = fmt.Errorf("%w: the catalog %s is damaged. It says which tables there are, and which of their metadata files is the "+
			"newest. Bring it back from a backup made with the warehouse. If you have none, move the catalog and the warehouse %s away: "+
			"Millrace's own tables are then landed again from the log, and tables that others made are lost", err, c.Catalog, l.warehouse.url)
	}
	return err
}

// open opens the catalog in the database, and prepares the tables.
func (l *Lake) open(ctx context.Context, dialect sqlcatalog.SupportedDialect, readOnly bool) error {
	props := iceberg.Properties{"warehouse": l.warehouse.url, "init_catalog_tables": fmt.Sprint(!readOnly)}
	maps.Copy(props, l.warehouse.props)
	cat, err := sqlcatalog.NewCatalog(CatalogName, l.db, dialect, props)
	if err != nil {
		return fmt.Errorf("open the lake's catalog: %w", err)
	}
	l.catalog, l.rows, l.dialect = l.warehouse.reach(cat), cat, dialect
	return l.prepare(ctx, readOnly)
}

// Declared are the lake's own tables.
func (l *Lake) Declared() []declare.Table { return l.tables }

// Catalog is the catalog of the tables, which find their files by it.
func (l *Lake) Catalog() catalog.Catalog { return l.catalog }

// SetCatalog puts another catalog in the place of the lake's, such as one that fails. Call it before anything runs.
func (l *Lake) SetCatalog(c catalog.Catalog) { l.catalog = c }

// Logger is where the lake logs to.
func (l *Lake) Logger() *slog.Logger { return l.log }

// Close lets go of the catalog. What runs must have ended.
func (l *Lake) Close() error {
	l.warehouse.close()
	if l.db == nil {
		return nil
	}
	return l.db.Close()
}

// A catalog or an object store that does not answer for so long fails a load.
const loadTimeout = 30 * time.Second

// Load reads a table as it is now. Every commit and every read starts from its own load: the handles that commits
// return keep all of their history alive.
func (l *Lake) Load(ctx context.Context, name table.Identifier) (*table.Table, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	t, err := l.catalog.LoadTable(ctx, name)
	if errors.Is(err, fs.ErrNotExist) { // unless it was replaced, and removed, between the two looks
		t, err = l.catalog.LoadTable(ctx, name)
	}
	if errors.Is(err, catalog.ErrNoSuchTable) || errors.Is(err, catalog.ErrNoSuchNamespace) || postgres.NoTable(err) {
		return nil, &noTableError{name: strings.Join(name, "."), err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("load table %s: %w", strings.Join(name, "."), err)
	}
	return datafile.WithAvroNames(t, l.catalog), nil
}

// TableState is a table at one moment.
type TableState struct {
	Name             string          // with its namespace where that is not Namespace
	Topic            string          // what feeds it
	Rows             int64           // in the snapshot; of a table of state, as landers count them
	Snapshot         int64           // id of the current snapshot; 0 while the table is empty
	Taken            time.Time       // when that was committed; zero while the table is empty
	MetadataLocation string          // names this state for good; it stays readable for a minute or so
	Location         string          // folder of the table
	Offsets          map[int32]int64 // by partition: the first offset that is not in the table
	AsOf             time.Time       // when the newest event in it was recorded; zero while it is empty
	TimePartitions   bool            // files are, or were, spread by the hour, day, month or year of a column

	identifier table.Identifier // set by TablesAsOf, for Hold
}

// Tables tells how the tables are now. One that somebody has dropped, or that cannot be read, is left out: it takes
// nothing from the others.
func (l *Lake) Tables(ctx context.Context) ([]TableState, error) {
	states, _, err := l.states(ctx, l.tables)
	return states, err
}

// Look is Tables, and tells which tables cannot be read, are not landed, by this process or by another, or lack files,
// and why.
func (l *Lake) Look(ctx context.Context) ([]TableState, []*faults.TableError, error) {
	states, broken, err := l.states(ctx, l.tables)
	if err != nil {
		return nil, nil, err
	}
	broken = addFaults(broken, l.Stopped()...)
	written, err := l.faultsOf(ctx, l.tables)
	if err != nil {
		return nil, nil, err
	}
	broken = addFaults(broken, slices.SortedFunc(maps.Values(written), byTable)...)
	lost, err := l.writtenFaults(ctx, l.tables, propLost, lostHolds)
	if err != nil {
		return nil, nil, err
	}
	broken = addFaults(broken, slices.SortedFunc(maps.Values(lost), byTable)...)
	return states, addFaults(broken, l.lost.all()...), nil
}

// Others tells how those tables of the catalog are that are not among the lake's own, as far as they are wanted by
// their names, each with its namespace.
func (l *Lake) Others(ctx context.Context, wanted func(name string) bool) ([]TableState, error) {
	others, err := l.others(ctx, wanted)
	if err != nil {
		return nil, err
	}
	states, _, err := l.states(ctx, others)
	return states, err
}

func (l *Lake) states(ctx context.Context, tables []declare.Table) (states []TableState, broken []*faults.TableError, err error) {
	for _, t := range tables {
		s, err := l.state(ctx, t)
		if errors.Is(err, ErrNoLake) {
			continue
		}
		if fault := faults.Of(t.DisplayName(), err); fault != nil {
			broken = append(broken, fault)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		states = append(states, s)
	}
	return states, broken, nil
}

// others are the tables of the catalog that are wanted and not the lake's own. What feeds them they say themselves: see
// stateFrom.
func (l *Lake) others(ctx context.Context, wanted func(name string) bool) ([]declare.Table, error) {
	all, err := l.All(ctx)
	if err != nil {
		return nil, err
	}
	var others []declare.Table
	for _, name := range all {
		last := len(name) - 1
		t := declare.Table{Namespace: strings.Join(name[:last], "."), Name: name[last]}
		own := slices.ContainsFunc(l.tables, func(own declare.Table) bool { return slices.Equal(own.Identifier(), name) })
		if !own && wanted(t.DisplayName()) {
			others = append(others, t)
		}
	}
	return others, nil
}

func (l *Lake) state(ctx context.Context, t declare.Table) (TableState, error) {
	have, err := l.Load(ctx, t.Identifier())
	if err != nil {
		return TableState{}, err
	}
	return stateFrom(t, have)
}

func stateFrom(t declare.Table, have *table.Table) (TableState, error) {
	if t.Topic == "" {
		t.Topic = progress.TopicOf(have.Properties())
	}
	p, err := progress.Read(t.Topic, have.Properties())
	if err != nil {
		return TableState{}, &faults.TableError{Table: t.DisplayName(), Remedy: faults.RemedyOffsets, Err: err}
	}
	s := TableState{
		Name: t.DisplayName(), Topic: t.Topic, MetadataLocation: have.MetadataLocation(), Location: have.Location(),
		Offsets: p.Next, AsOf: p.AsOf, TimePartitions: timePartitions(have.Metadata()),
	}
	if snapshot := have.CurrentSnapshot(); snapshot != nil {
		s.Snapshot, s.Taken = snapshot.SnapshotID, timeunit.Time(snapshot.TimestampMs)
		if snapshot.Summary != nil {
			s.Rows = int64(snapshot.Summary.Properties.GetInt("total-records", 0))
		}
	}
	if t.Keyed() {
		s.Rows = p.Rows
	}
	return s, nil
}

// timePartitions reports whether any partition spec of a table has the hour, day, month or year of a column.
func timePartitions(m table.Metadata) bool {
	for _, spec := range m.PartitionSpecs() {
		for _, f := range spec.Fields() {
			switch f.Transform.(type) {
			case iceberg.HourTransform, iceberg.DayTransform, iceberg.MonthTransform, iceberg.YearTransform:
				return true
			}
		}
	}
	return false
}

// Applied tells how far all tables of a topic are: by partition, the first offset that some table lacks. A partition
// that some table has nothing of is left out. Once it has reached a partition's end, all that stood there is in the
// tables. Those that cannot be read, or are not landed, do not count; where no other is left, the error is a
// *TableError.
func (l *Lake) Applied(ctx context.Context, topic string) (map[int32]int64, error) {
	var applied map[int32]int64
	var broken *faults.TableError
	written, err := l.faultsOf(ctx, slices.DeleteFunc(slices.Clone(l.tables), func(t declare.Table) bool { return t.Topic != topic }))
	if err != nil {
		return nil, err
	}
	for _, t := range l.tables {
		if t.Topic != topic {
			continue
		}
		if fault := cmp.Or(l.stopped.of(t.DisplayName()), written[t.DisplayName()]); fault != nil {
			broken = fault
			continue
		}
		s, err := l.state(ctx, t)
		if fault := faults.Of(t.DisplayName(), err); fault != nil && !errors.Is(err, ErrNoLake) {
			broken = fault
			continue
		}
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
	if applied == nil && broken != nil {
		return nil, broken
	}
	if applied == nil {
		return nil, fmt.Errorf("the lake has no table of topic %q", topic)
	}
	return applied, nil
}
