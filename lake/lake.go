// Package lake manages open tables: Apache Iceberg tables with Parquet files, which any engine can
// read without Millrace. So the events and the facts derived from them outlive every other part of
// the system.
//
// Open opens a warehouse (a folder or a bucket) and its catalog, creates the declared tables (see
// package declare), and migrates existing tables to match. A Lake then
//
//   - reports the state of tables, now and in the past: Tables, TablesAsOf;
//   - describes their contents: Summarize, Snapshots, Files;
//   - reports faults: Report, Check, Stopped;
//   - computes digests for verification: Digest;
//   - keeps tables small: Maintain, Keep;
//   - serves the catalog to other engines: REST. The guard refuses changes that would make landers
//     lose or repeat rows, or stop.
//
// Package landing adds the rows. Rows and offsets change in one commit, so a table is at every
// moment exactly a prefix of its topic.
//
// A fault of one table does not affect the others. Calls that cover several tables skip those that
// cannot be read and report them separately.
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

// CatalogName is the name that other engines must use for the catalog. Iceberg's SQL catalog stores
// it in every row.
const CatalogName = "millrace"

// Config has the location of a lake and its declared tables.
type Config struct {
	// Warehouse is the root of the tables: a folder, which is created if missing, or
	// s3://bucket/folder in an existing bucket.
	Warehouse string
	S3        S3 // for an s3:// warehouse
	// Catalog is Iceberg's SQL catalog: a SQLite file, which is created if missing, or
	// postgres://user@host/database.
	Catalog         string
	CatalogPassword string // replaces the password in Catalog
	// Tables are the tables that this process lands and reports on.
	Tables []declare.Table
	// Sync syncs every file of a warehouse in a folder before a commit refers to it, so that
	// commits survive a power failure. It applies to the whole process. ReadOnly opens an existing
	// lake while another process lands in it.
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
	rows      *sqlcatalog.Catalog // catalog without access to the files of tables
	tables    []declare.Table
	stopped   faultSet // tables that cannot be landed
	lost      faultSet // tables with missing files
	log       *slog.Logger
}

// ErrNoLake is returned if a lake that is opened read-only does not exist, or if it lacks a table.
var ErrNoLake = errors.New("no lake exists here yet")

// noTableError reports that the lake lacks a table. It wraps ErrNoLake.
type noTableError struct {
	name string
	err  error
}

func (e *noTableError) Error() string {
	return fmt.Sprintf("no table %s: `millrace lake tables` lists the tables", e.name)
}

func (e *noTableError) Unwrap() []error { return []error{ErrNoLake, e.err} }

// Open opens the lake. Unless it is read-only, Open creates missing tables and brings the others to
// their declarations. Several processes may do so at once. A table that cannot be read or brought
// to its declaration is left unchanged: see Stopped.
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

// onServer reports whether the catalog is a PostgreSQL address rather than a file.
func onServer(catalog string) bool {
	return strings.HasPrefix(catalog, "postgres://") || strings.HasPrefix(catalog, "postgresql://")
}

// openServer opens a catalog in PostgreSQL.
func (l *Lake) openServer(ctx context.Context, c Config) error {
	var err error
	if l.db, err = postgres.Open(c.Catalog, c.CatalogPassword, "millrace-lake"); err != nil {
		return fmt.Errorf("open the lake's catalog: %w", err)
	}
	// Fail fast if the server cannot be reached or refuses the credentials.
	if err := l.db.PingContext(ctx); err != nil {
		return fmt.Errorf("connect to the lake's catalog: %w", err)
	}
	open := func(ctx context.Context) error { return l.open(ctx, sqlcatalog.Postgres, c.ReadOnly) }
	if c.ReadOnly {
		return open(ctx)
	}
	// Concurrent CREATE TABLE IF NOT EXISTS statements can fail in PostgreSQL.
	return postgres.WithLock(ctx, l.db, "millrace lake", open)
}

// openFile opens a catalog in a SQLite file.
func (l *Lake) openFile(ctx context.Context, c Config) error {
	open := sqlite.OpenReadOnly
	if c.ReadOnly {
		// SQLite reports a missing file with an unspecific error, so check first.
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
		err = fmt.Errorf("%w: the catalog %s is damaged. It has the names of all tables and the newest metadata file "+
			"of each. Restore it from a backup that was taken together with the warehouse. Without a backup, move the "+
			"catalog and the warehouse %s away: Millrace then lands its own tables again from the log; other tables "+
			"are lost", err, c.Catalog, l.warehouse.url)
	}
	return err
}

// open opens the catalog in the database and prepares the tables.
func (l *Lake) open(ctx context.Context, dialect sqlcatalog.SupportedDialect, readOnly bool) error {
	// A read-only lake must not create the catalog's own tables.
	props := iceberg.Properties{"warehouse": l.warehouse.url, "init_catalog_tables": fmt.Sprint(!readOnly)}
	maps.Copy(props, l.warehouse.props)
	cat, err := sqlcatalog.NewCatalog(CatalogName, l.db, dialect, props)
	if err != nil {
		return fmt.Errorf("open the lake's catalog: %w", err)
	}
	// Tables are loaded through l.catalog, which gives them access to their files. l.rows is served
	// by REST.
	l.catalog, l.rows, l.dialect = l.warehouse.fenced(cat), cat, dialect
	return l.prepare(ctx, readOnly)
}

// Declared returns the lake's own tables.
func (l *Lake) Declared() []declare.Table { return l.tables }

// Catalog returns the catalog. Tables that it loads can access their files.
func (l *Lake) Catalog() catalog.Catalog { return l.catalog }

// SetCatalog replaces the catalog, for example with one that injects failures. It must be called
// before anything uses the lake.
func (l *Lake) SetCatalog(c catalog.Catalog) { l.catalog = c }

// Logger returns the lake's logger.
func (l *Lake) Logger() *slog.Logger { return l.log }

// Close releases the catalog. All users of the lake must have finished.
func (l *Lake) Close() error {
	l.warehouse.close()
	if l.db == nil {
		return nil
	}
	return l.db.Close()
}

// loadTimeout limits a load: it fails if the catalog or the object store does not answer in time.
const loadTimeout = 30 * time.Second

// Load reads the current state of a table. Every commit and every read should start with its own
// load, because the table that a commit returns keeps all of its history in memory.
func (l *Lake) Load(ctx context.Context, name table.Identifier) (*table.Table, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	t, err := l.catalog.LoadTable(ctx, name)
	if errors.Is(err, fs.ErrNotExist) { // the metadata file may have been replaced and removed between the two reads
		t, err = l.catalog.LoadTable(ctx, name)
	}
	if errors.Is(err, catalog.ErrNoSuchTable) || errors.Is(err, catalog.ErrNoSuchNamespace) ||
		postgres.UndefinedTable(err) {
		return nil, &noTableError{name: strings.Join(name, "."), err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("load table %s: %w", strings.Join(name, "."), err)
	}
	return datafile.WithAvroNames(t, l.catalog), nil
}

// TableState is the state of a table at one moment.
type TableState struct {
	Name             string          // includes the namespace unless it is declare.Namespace
	Topic            string          // the topic that feeds it
	Rows             int64           // in the snapshot; for a table of state, the landers' count
	Snapshot         int64           // id of the current snapshot; 0 while the table is empty
	Taken            time.Time       // commit time of the snapshot; zero while the table is empty
	MetadataLocation string          // immutable file with this state; readable for at least about a minute
	Location         string          // folder of the table
	Offsets          map[int32]int64 // by partition: the first offset that is not in the table
	AsOf             time.Time       // recording time of its newest event; zero while the table is empty
	TimePartitions   bool            // files are, or were, partitioned by the hour, day, month or year of a column

	identifier table.Identifier // set by TablesAsOf, for Hold
}

// Tables returns the current states of the lake's own tables. Tables that were dropped or cannot be
// read are omitted, so that they do not affect the others.
func (l *Lake) Tables(ctx context.Context) ([]TableState, error) {
	states, _, err := l.states(ctx, l.tables)
	return states, err
}

// Report returns the same states as Tables, and the faults of tables that cannot be read, are not
// landed (by this process or another), or have missing files.
func (l *Lake) Report(ctx context.Context) ([]TableState, []*faults.TableError, error) {
	// Faults come from four sources: this read, this process's landers, faults recorded by any
	// process, and missing files.
	states, broken, err := l.states(ctx, l.tables)
	if err != nil {
		return nil, nil, err
	}
	// A table has one fault at most in the result: the first one found.
	broken = addFaults(broken, l.Stopped()...)
	written, err := l.faultsOf(ctx, l.tables)
	if err != nil {
		return nil, nil, err
	}
	broken = addFaults(broken, slices.SortedFunc(maps.Values(written), byTable)...)
	lost, err := l.recordedFaults(ctx, l.tables, propLost, lostTTL)
	if err != nil {
		return nil, nil, err
	}
	broken = addFaults(broken, slices.SortedFunc(maps.Values(lost), byTable)...)
	return states, addFaults(broken, l.lost.all()...), nil
}

// Others returns the states of the catalog's other tables, those that are not the lake's own.
// wanted selects them by display name.
func (l *Lake) Others(ctx context.Context, wanted func(name string) bool) ([]TableState, error) {
	others, err := l.others(ctx, wanted)
	if err != nil {
		return nil, err
	}
	states, _, err := l.states(ctx, others)
	return states, err
}

// states loads the states of tables. Faults of single tables are returned in broken; other errors,
// such as an unavailable catalog, fail the call.
func (l *Lake) states(
	ctx context.Context, tables []declare.Table,
) (states []TableState, broken []*faults.TableError, err error) {
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

// others returns declarations of the selected tables that are not the lake's own. They have names
// only: stateFrom reads their topic from their properties.
func (l *Lake) others(ctx context.Context, wanted func(name string) bool) ([]declare.Table, error) {
	all, err := l.All(ctx)
	if err != nil {
		return nil, err
	}
	var others []declare.Table
	for _, name := range all {
		last := len(name) - 1
		t := declare.Table{Namespace: strings.Join(name[:last], "."), Name: name[last]}
		// Tables of this lake are reported by Tables, so they are not repeated here.
		own := slices.ContainsFunc(l.tables,
			func(own declare.Table) bool { return slices.Equal(own.Identifier(), name) })
		if !own && wanted(t.DisplayName()) {
			others = append(others, t)
		}
	}
	return others, nil
}

// state loads a table and returns its state.
func (l *Lake) state(ctx context.Context, t declare.Table) (TableState, error) {
	have, err := l.Load(ctx, t.Identifier())
	if err != nil {
		return TableState{}, err
	}
	return stateFrom(t, have)
}

// stateFrom returns the state of a loaded table.
func stateFrom(t declare.Table, have *table.Table) (TableState, error) {
	// A table without a declaration here still names its topic.
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
			// Files of a keyed table include rows that equality deletes remove, so the snapshot's
			// total is too high. Landers keep the exact count in a property.
		}
	}
	if t.Keyed() {
		s.Rows = p.Rows
	}
	return s, nil
}

// timePartitions reports whether any partition spec of a table uses the hour, day, month or year of
// a column.
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

// Applied returns how far all tables of a topic have landed: by partition, the first offset that
// some table lacks. Partitions of which some table has nothing are omitted. A caller that waits for
// a record waits until its partition's entry is above the record's offset.
//
// Tables that cannot be read or are not landed do not count, so that a broken table does not block
// callers. If no other table is left, the error is a *TableError.
func (l *Lake) Applied(ctx context.Context, topic string) (map[int32]int64, error) {
	var applied map[int32]int64
	var broken *faults.TableError
	written, err := l.faultsOf(ctx,
		slices.DeleteFunc(slices.Clone(l.tables), func(t declare.Table) bool { return t.Topic != topic }))
	if err != nil {
		return nil, err
	}
	for _, t := range l.tables {
		if t.Topic != topic {
			continue
		}
		// Landing of the table has stopped, here or in another process, so its offsets would never
		// advance.
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
			// The minimum over all tables of the topic.
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
