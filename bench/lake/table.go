package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	icebergcatalog "github.com/apache/iceberg-go/catalog"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/sqlite"
	"github.com/millrace/millrace/test/servers/catalog"
)

// warehouse is a folder with a SQL catalog, for one run of a contender. Contenders write to it from
// their own processes; the benchmark creates the table before and checks it afterwards.
type warehouse struct {
	location location
	db       *sql.DB
	catalog  *sqlcatalog.Catalog
}

// namespace is that of all tables.
const namespace = "lake"

// location is where a warehouse is: the name of its catalog, the catalog's file, and the folder of
// the tables.
type location struct{ catalog, file, folder string }

// openWarehouse opens the catalog of a warehouse, and creates it if it does not exist.
func openWarehouse(ctx context.Context, at location) (*warehouse, error) {
	if err := errors.Join(os.MkdirAll(filepath.Dir(at.file), 0o750), os.MkdirAll(at.folder, 0o750)); err != nil {
		return nil, err
	}
	w := &warehouse{location: at}
	var err error
	if w.db, err = sqlite.Open(at.file); err != nil {
		return nil, err
	}
	// This creates the catalog's tables in the database. Otherwise two tasks of the sink would race
	// to do it.
	properties := iceberg.Properties{"warehouse": w.url()}
	w.catalog, err = sqlcatalog.NewCatalog(at.catalog, w.db, sqlcatalog.SQLite, properties)
	if err == nil {
		err = w.catalog.CreateNamespace(ctx, table.Identifier{namespace}, nil)
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// url returns the location of the tables.
func (w *warehouse) url() string { return "file://" + w.location.folder }

// close closes the catalog's database.
func (w *warehouse) close() error { return w.db.Close() }

// schema is the schema of the table. The table exists before a contender starts, so that all use
// the same types.
var schema = iceberg.NewSchema(0,
	column(1, "id", iceberg.PrimitiveTypes.Int64),
	column(2, "customer", iceberg.PrimitiveTypes.Int64),
	column(3, "type", iceberg.PrimitiveTypes.String),
	column(4, "sku", iceberg.PrimitiveTypes.String),
	column(5, "qty", iceberg.PrimitiveTypes.Int32),
	column(6, "price", iceberg.PrimitiveTypes.Float64),
	column(7, "currency", iceberg.PrimitiveTypes.String),
	column(8, "country", iceberg.PrimitiveTypes.String),
	column(9, "device", iceberg.PrimitiveTypes.String),
	column(10, "new", iceberg.PrimitiveTypes.Bool),
	column(11, "at", iceberg.PrimitiveTypes.TimestampTz),
	column(12, "session", iceberg.PrimitiveTypes.Int64),
	column(13, "page", iceberg.PrimitiveTypes.String),
)

// column returns a field of the schema, which may be null.
func column(id int, name string, of iceberg.Type) iceberg.NestedField {
	return iceberg.NestedField{ID: id, Name: name, Type: of}
}

// create creates a table of events.
func (w *warehouse) create(ctx context.Context, name string) error {
	properties := icebergcatalog.WithProperties(iceberg.Properties{
		"format-version": "2",
		// All contenders use this. Level 1 costs a third of the sink's default, level 3, for 2 %
		// more bytes.
		table.ParquetCompressionKey:      "zstd",
		table.ParquetCompressionLevelKey: "1",
	})
	_, err := w.catalog.CreateTable(ctx, table.Identifier{namespace, name}, schema, properties)
	return err
}

// history returns the commits to a table.
func (w *warehouse) history(ctx context.Context, name string) ([]catalog.Commit, error) {
	return catalog.History(ctx, w.db, w.location.catalog, namespace+"."+name)
}

// dataFiles returns the number of the table's live data files, and their size in bytes.
func (w *warehouse) dataFiles(ctx context.Context, name string) (files, bytes int64, err error) {
	t, err := w.catalog.LoadTable(ctx, table.Identifier{namespace, name})
	if err != nil {
		return 0, 0, err
	}
	tasks, err := t.Scan().PlanFiles(ctx) // excludes files of earlier snapshots
	seen := map[string]bool{}             // several tasks read a large file
	for _, task := range tasks {
		if path := task.File.FilePath(); !seen[path] {
			seen[path] = true
			files++
			bytes += task.File.FileSizeBytes()
		}
	}
	return files, bytes, err
}

// check compares a table with the generated events: each of the first n must be in it once, with
// all its values.
func (w *warehouse) check(ctx context.Context, name string, n int64) error {
	t, err := w.catalog.LoadTable(ctx, table.Identifier{namespace, name})
	if err != nil {
		return err
	}
	var columns []string // contenders may add other columns
	for _, f := range schema.Fields() {
		columns = append(columns, f.Name)
	}
	_, batches, err := t.Scan(table.WithSelectedFields(columns...)).ToArrowRecords(ctx)
	if err != nil {
		return err
	}
	seen := make([]uint64, (n+63)/64) // bit set of the ids that were found
	var rows int64
	for batch, err := range batches {
		if err != nil {
			return fmt.Errorf("read table %s: %w", name, err)
		}
		err := checkBatch(batch, n, seen)
		rows += batch.NumRows()
		batch.Release()
		if err != nil {
			return fmt.Errorf("table %s: %w", name, err)
		}
		progress("%s: %d of %d rows checked", name, rows, n)
	}
	// Every row exists once and is one of the first n, so fewer rows mean that some are missing.
	if rows != n {
		return fmt.Errorf("table %s has %d rows, want %d", name, rows, n)
	}
	return nil
}

// checkBatch compares rows with the generated events. The columns are in the order of schema. seen
// is a bit set of the ids so far, to detect duplicates.
func checkBatch(batch arrow.RecordBatch, n int64, seen []uint64) error {
	c := batch.Columns()
	if len(c) != len(schema.Fields()) {
		return fmt.Errorf("%d columns, want %d", len(c), len(schema.Fields()))
	}
	integers := func(i int) []int64 { return c[i].(*array.Int64).Int64Values() }
	ids, customers, sessions := integers(0), integers(1), integers(11)
	qtys, prices, news := c[4].(*array.Int32).Int32Values(), c[5].(*array.Float64).Float64Values(), c[9].(*array.Boolean)
	at := c[10].(*array.Timestamp).TimestampValues()
	text := func(i int) func(int) string { return c[i].(interface{ Value(int) string }).Value }
	kind, sku, currency, country, device, page := text(2), text(3), text(6), text(7), text(8), text(12)
	for i, column := range c {
		if column.NullN() > 0 {
			return fmt.Errorf("column %s has %d nulls", batch.ColumnName(i), column.NullN())
		}
	}
	for i, id := range ids {
		got := event{
			ID: id, Customer: customers[i], Type: kind(i), SKU: sku(i), Qty: qtys[i], Price: prices[i],
			Currency: currency(i), Country: country(i),
			Device: device(i), New: news.Value(i), At: int64(at[i]) / 1000, Session: sessions[i], Page: page(i),
		}
		switch {
		case id < 0 || id >= n:
			return fmt.Errorf("row %d was never produced", id)
		case seen[id/64]>>(id%64)&1 == 1:
			return fmt.Errorf("row %d occurs twice", id)
		// Times are stored in microseconds, and those of the events are whole milliseconds.
		case got != eventAt(id) || int64(at[i])%1000 != 0:
			return fmt.Errorf("row %d is %+v, want %+v", id, got, eventAt(id))
		}
		seen[id/64] |= 1 << (id % 64)
	}
	return nil
}

// describe checks a table, and adds the figures to a result that can be derived from the table. A
// contender that lands wrong or incomplete rows has no result.
func (w *warehouse) describe(ctx context.Context, name string, n int64, r *result) error {
	if err := w.check(ctx, name, n); err != nil {
		return err
	}
	commits, err := w.history(ctx, name)
	if err != nil {
		return err
	}
	r.Commits = len(commits)
	r.SteadyRowsPerSecond = steady(commits)
	files, bytes, err := w.dataFiles(ctx, name)
	r.Files, r.BytesPerRow = files, float64(bytes)/float64(n)
	return err
}

// steady returns the rate of the commits between the first and the last, in rows per second. It is
// 0 if there are fewer than four commits.
//
// The first commit is left out because its time includes the start, and the last one because it may
// have waited for its interval with few rows.
func steady(commits []catalog.Commit) float64 {
	if len(commits) < 4 {
		return 0
	}
	middle := commits[1 : len(commits)-1]
	var rows int64
	for _, c := range middle {
		rows += c.Added
	}
	return float64(rows) / middle[len(middle)-1].At.Sub(commits[0].At).Seconds()
}
