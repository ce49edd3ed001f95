package datafile

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

// Writable reports, as nil, that landers can write the table: columns of its schema, given with their ids, in files
// spread by its partitions, added by a commit under its properties. It does not judge by a list of what is supported,
// which could differ from what the code does: it writes two rows, and a commit of them, by the same code into memory.
// That takes milliseconds, so it is asked only where any of it has changed.
func Writable(ctx context.Context, m table.Metadata, columns []columnar.Field) (err error) {
	defer func() {
		if cause := recover(); cause != nil { // of a library, on metadata that nobody foresaw
			err = fmt.Errorf("%v", cause)
		}
	}()
	t, err := rehearsal(m)
	if err != nil {
		return err
	}
	return writeSample(ctx, t, columns)
}

// WritableNow reports, as nil, that a commit of sample rows could be added to the table as it is, with its history. It
// reads the table's files, and writes to memory alone. A table that takes the sample and not a record's rows is not at
// fault.
func WritableNow(ctx context.Context, have *table.Table, columns []columnar.Field) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%v", cause)
		}
	}()
	files, err := have.FS(ctx)
	if err != nil {
		return err
	}
	over := overlay{io.NewMemFS(), files}
	var at rehearsed
	at.table = WithAvroNames(table.New(have.Identifier(), have.Metadata(), have.MetadataLocation(),
		func(context.Context) (io.IO, error) { return over, nil }, &at), &at)
	return writeSample(ctx, at.table, columns)
}

// overlay is a file system that reads files, and writes to memory.
type overlay struct {
	*io.MemFS
	files io.IO
}

func (o overlay) Open(name string) (io.File, error) {
	if f, err := o.MemFS.Open(name); err == nil {
		return f, nil
	}
	return o.files.Open(name)
}

func (o overlay) Remove(string) error { return nil }

// writeSample writes two rows into a table, and commits them.
func writeSample(ctx context.Context, t *table.Table, columns []columnar.Field) error {
	m := t.Metadata()
	w, err := openFileWriter(ctx, columns, t)
	if err != nil {
		return err
	}
	for i := range columns { // a row as empty as can be, and one that lacks nothing
		appendSample(w.Columns.Column(i), columns[i], !columns[i].Required)
		appendSample(w.Columns.Column(i), columns[i], false)
	}
	files, err := w.Finish(ctx, "sample")
	if err != nil {
		return err
	}
	tx := t.NewTransaction()
	if err := Stage(ctx, tx, m.Version(), files, nil, iceberg.Properties{}); err != nil {
		return err
	}
	made, err := tx.Commit(ctx)
	if err != nil {
		return err
	}
	if was, is := m.LastSequenceNumber(), made.Metadata().LastSequenceNumber(); m.Version() > 1 && is <= was {
		return fmt.Errorf("its last-sequence-number is %d, and no commit can have a greater one", was)
	}
	return nil
}

// rehearsal is a table of the same schema, partitions and properties in memory, which is empty.
func rehearsal(m table.Metadata) (*table.Table, error) {
	fields, err := fieldsOfMetadata(m)
	if err != nil {
		return nil, err
	}
	for _, history := range []string{
		"snapshots", "current-snapshot-id", "refs", "snapshot-log", "metadata-log", "statistics", "partition-statistics",
	} {
		delete(fields, history)
	}
	const location = "mem://rehearsal/table"
	fields["location"] = json.RawMessage(`"` + location + `"`)
	props := maps.Clone(m.Properties())
	for _, key := range Placing {
		delete(props, key)
	}
	if fields["properties"], err = json.Marshal(props); err != nil {
		return nil, err
	}
	empty, err := metadataOfFields(fields)
	if err != nil {
		return nil, err
	}
	var (
		files = io.NewMemFS()
		at    rehearsed
	)
	at.table = WithAvroNames(table.New(table.Identifier{"rehearsal"}, empty, location+"/metadata/0.metadata.json",
		func(context.Context) (io.IO, error) { return files, nil }, &at), &at)
	return at.table, nil
}

// rehearsed is the catalog of a rehearsal.
type rehearsed struct{ table *table.Table }

func (r *rehearsed) LoadTable(context.Context, table.Identifier) (*table.Table, error) {
	return r.table, nil
}

// CommitTable does what a catalog does before it stores metadata.
func (r *rehearsed) CommitTable(_ context.Context, _ table.Identifier, reqs []table.Requirement, updates []table.Update) (table.Metadata, string, error) {
	for _, req := range reqs {
		if err := req.Validate(r.table.Metadata()); err != nil {
			return nil, "", err
		}
	}
	m, err := table.UpdateTableMetadata(r.table.Metadata(), updates, r.table.MetadataLocation())
	if err != nil {
		return nil, "", err
	}
	locations, err := table.LoadLocationProvider(m.Location(), m.Properties())
	if err != nil {
		return nil, "", err
	}
	at, err := locations.NewTableMetadataFileLocation(1)
	if err != nil {
		return nil, "", err
	}
	_, err = json.Marshal(m)
	return m, at, err
}

// appendSample appends a value to a column: null, or the simplest of its type that has every part.
func appendSample(to columnar.Column, f columnar.Field, null bool) {
	if null {
		to.AppendNull()
		return
	}
	switch to := to.(type) {
	case *columnar.Bools:
		to.Append(false)
	case *columnar.Int32s:
		to.Append(0)
	case *columnar.Int64s:
		to.Append(0)
	case *columnar.Float32s:
		to.Append(0)
	case *columnar.Float64s:
		to.Append(0)
	case *columnar.Decimals:
		to.Append(decimal128.Num{})
	case *columnar.Bytes:
		to.AppendString("x")
	case *columnar.Fixed:
		to.Append(make([]byte, to.Width()))
	case *columnar.Structs:
		to.Append()
		for i, part := range columnar.Parts(f.Type) {
			appendSample(to.Child(i), part, false)
		}
	case *columnar.Lists:
		appendSample(to.Element(), columnar.Parts(f.Type)[0], false)
		to.Append()
	case *columnar.Maps:
		pair := columnar.Parts(f.Type)
		appendSample(to.Keys(), pair[0], false)
		appendSample(to.Values(), pair[1], false)
		to.Append()
	}
}

// AsWritten reports whether two states of a table are the same in all that decides whether landers can write it.
func AsWritten(a, b table.Metadata) bool {
	others := func(p iceberg.Properties) iceberg.Properties {
		p = maps.Clone(p)
		maps.DeleteFunc(p, func(key, _ string) bool { return strings.HasPrefix(key, OwnProperties) })
		return p
	}
	spec, other := a.PartitionSpec(), b.PartitionSpec()
	return a.Version() == b.Version() && a.CurrentSchema().Equals(b.CurrentSchema()) && spec.Equals(other) &&
		maps.Equal(others(a.Properties()), others(b.Properties()))
}

// Landable reports, as nil, that landers of a table that this process does not know can write it: all columns may be
// theirs.
func Landable(ctx context.Context, m table.Metadata) error {
	keys, err := evolution.ParseKeys(m.Properties()[evolution.Property])
	if err != nil {
		return err
	}
	columns, err := evolution.Columns(m.CurrentSchema(), keys)
	if err != nil {
		return err
	}
	written := columnar.Storable(columns)
	if path, ok := demanded(columns, written); ok {
		return fmt.Errorf("column %s may not be null, and landers write no values of its type", path)
	}
	return Writable(ctx, m, written)
}

// demanded names a column that may not be null and is not written.
func demanded(all, written []columnar.Field) (path string, ok bool) {
	byID := map[int]columnar.Field{}
	for _, f := range written {
		byID[f.ID] = f
	}
	for _, f := range all {
		w, ok := byID[f.ID]
		if !ok {
			if f.Required {
				return f.Name, true
			}
			continue
		}
		if path, ok := demanded(columnar.Parts(f.Type), columnar.Parts(w.Type)); ok {
			return f.Name + "." + path, true
		}
	}
	return "", false
}

// OwnProperties is the prefix of properties that are the landers' own: where the table stands, and what its columns are.
const OwnProperties = "millrace."

// Placing properties put files beside the table's location, where another table's maintenance would take them for
// orphans.
var Placing = []string{table.WriteDataPathKey, table.WriteMetadataPathKey, "write.object-storage.path", "write.folder-storage.path"}
