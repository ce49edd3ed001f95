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

// Writable returns an error if landers cannot write the table: the given columns, which have ids of
// its schema, in files of its partition spec, added by a commit under its properties.
//
// It does not consult a list of supported features, which could differ from what the code does.
// Instead it writes and commits two sample rows in memory, using the same code as a landing. That
// takes milliseconds, so callers ask only when something relevant has changed.
func Writable(ctx context.Context, m table.Metadata, columns []columnar.Field) (err error) {
	defer func() {
		if cause := recover(); cause != nil { // libraries may panic on unusual metadata
			err = fmt.Errorf("%v", cause)
		}
	}()
	t, err := rehearsal(m)
	if err != nil {
		return err
	}
	return writeSample(ctx, t, columns)
}

// WritableNow returns an error if a commit of sample rows could not be added to the table including
// its history. It reads the table's files but writes to memory only. If the table accepts the
// sample but not the rows of a record, the record is to blame.
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
	// Reading the history needs the table's manifests. Nothing is written to its storage.
	over := overlay{io.NewMemFS(), files}
	var at rehearsed
	at.table = WithAvroNames(table.New(have.Identifier(), have.Metadata(), have.MetadataLocation(),
		func(context.Context) (io.IO, error) { return over, nil }, &at), &at)
	return writeSample(ctx, at.table, columns)
}

// overlay is a file system that reads existing files and writes to memory.
type overlay struct {
	*io.MemFS
	files io.IO
}

// Open prefers files written to memory, and falls back to the table's files.
func (o overlay) Open(name string) (io.File, error) {
	if f, err := o.MemFS.Open(name); err == nil {
		return f, nil
	}
	return o.files.Open(name)
}

// Remove does nothing: a rehearsal must not delete the table's files.
func (o overlay) Remove(string) error { return nil }

// writeSample writes and commits two rows.
func writeSample(ctx context.Context, t *table.Table, columns []columnar.Field) error {
	m := t.Metadata()
	w, err := openFileWriter(ctx, columns, t)
	if err != nil {
		return err
	}
	for i := range columns { // one row with as many nulls as possible, and one without any
		appendSample(w.Columns.Column(i), columns[i], !columns[i].Required)
		appendSample(w.Columns.Column(i), columns[i], false)
	}
	// From here on the code is that of a landing: files, staging, commit.
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
	// An overflowing sequence number would make all later commits fail.
	if was, is := m.LastSequenceNumber(), made.Metadata().LastSequenceNumber(); m.Version() > 1 && is <= was {
		return fmt.Errorf("its last-sequence-number is %d, and no commit can exceed it", was)
	}
	return nil
}

// rehearsal returns an empty table in memory with the same schema, partitions and properties.
func rehearsal(m table.Metadata) (*table.Table, error) {
	fields, err := fieldsOfMetadata(m)
	if err != nil {
		return nil, err
	}
	for _, history := range []string{
		"snapshots", "current-snapshot-id", "refs", "snapshot-log", "metadata-log", "statistics", "partition-statistics",
	} {
		// Without history the rehearsal needs none of the table's files.
		delete(fields, history)
	}
	const location = "mem://rehearsal/table"
	fields["location"] = json.RawMessage(`"` + location + `"`)
	props := maps.Clone(m.Properties())
	// The files of the rehearsal must be in memory, too.
	for _, key := range LocationProperties {
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

// rehearsed is the catalog of a rehearsal. It validates commits and stores nothing.
type rehearsed struct{ table *table.Table }

func (r *rehearsed) LoadTable(context.Context, table.Identifier) (*table.Table, error) {
	return r.table, nil
}

// CommitTable performs the checks that a catalog performs before it stores metadata.
func (r *rehearsed) CommitTable(
	_ context.Context, _ table.Identifier, reqs []table.Requirement, updates []table.Update,
) (table.Metadata, string, error) {
	// A catalog checks the requirements first.
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
	// Choosing a location and encoding the metadata can fail too, for example because of a
	// property.
	at, err := locations.NewTableMetadataFileLocation(1)
	if err != nil {
		return nil, "", err
	}
	_, err = json.Marshal(m)
	return m, at, err
}

// appendSample appends null, or a simple value in which every nested part is present.
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
	// A struct begins before its fields get values. Lists and maps end after their elements.
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

// SameForWriting reports whether two states of a table agree in everything that affects whether
// landers can write it.
func SameForWriting(a, b table.Metadata) bool {
	// Properties of landers change with every commit and do not affect writing.
	others := func(p iceberg.Properties) iceberg.Properties {
		p = maps.Clone(p)
		maps.DeleteFunc(p, func(key, _ string) bool { return strings.HasPrefix(key, OwnProperties) })
		return p
	}
	spec, other := a.PartitionSpec(), b.PartitionSpec()
	return a.Version() == b.Version() && a.CurrentSchema().Equals(b.CurrentSchema()) && spec.Equals(other) &&
		maps.Equal(others(a.Properties()), others(b.Properties()))
}

// Landable is Writable for a table whose declaration this process does not know. Any of its columns
// may be declared.
func Landable(ctx context.Context, m table.Metadata) error {
	keys, err := evolution.ParseKeys(m.Properties()[evolution.Property])
	if err != nil {
		return err
	}
	columns, err := evolution.Columns(m.CurrentSchema(), keys)
	if err != nil {
		return err
	}
	// Landers omit columns of unsupported types, which then must be nullable.
	written := columnar.Storable(columns)
	if path, ok := unwrittenRequired(columns, written); ok {
		return fmt.Errorf("column %s is required, but landers cannot write its type", path)
	}
	return Writable(ctx, m, written)
}

// unwrittenRequired returns the path of a column that is required but not written, if there is one.
func unwrittenRequired(all, written []columnar.Field) (path string, ok bool) {
	// Written fields are a subset, with the same ids.
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
		if path, ok := unwrittenRequired(columnar.Parts(f.Type), columnar.Parts(w.Type)); ok {
			return f.Name + "." + path, true
		}
	}
	return "", false
}

// OwnProperties is the prefix of the properties that belong to landers, such as offsets and
// declared columns.
const OwnProperties = "millrace."

// LocationProperties are the properties that place files outside of the table's location. There,
// the maintenance of another table would take them for orphans.
var LocationProperties = []string{
	table.WriteDataPathKey, table.WriteMetadataPathKey, "write.object-storage.path", "write.folder-storage.path",
}
