package datafile

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/pages"
)

// WriteDeletes writes an equality delete file for the given keys, which must be sorted. It deletes
// rows with these keys from all earlier commits, but not from the commit that adds it. keyName is
// the key column's current name.
func WriteDeletes(
	ctx context.Context, have *table.Table, spec iceberg.PartitionSpec, w *Writer,
	name string, key columnar.Field, keyName string, keys []string,
) ([]iceberg.DataFile, error) {
	fail := func(err error) ([]iceberg.DataFile, error) { return nil, fmt.Errorf("write deletes: %w", err) }
	key.Name = keyName
	columns, err := columnar.New([]columnar.Field{key})
	if err != nil {
		return fail(err)
	}
	// One row per key. A reader drops the rows of earlier commits that have any of them.
	for _, k := range keys {
		columns.Column(0).(*columnar.Bytes).AppendString(k)
	}
	// The file has the key column only. Readers match it to the table by its field id.
	schema, err := columnar.Schema([]columnar.Field{key})
	if err != nil {
		return fail(err)
	}
	parquet, err := pages.New([]columnar.Field{key})
	if err != nil {
		return fail(err)
	}
	var content bytes.Buffer
	// Keys of one batch are few, so the file is built in memory.
	parquet.Begin(&content)
	if err := parquet.Write(columns); err != nil {
		return fail(err)
	}
	written, err := parquet.End()
	if err != nil {
		return fail(err)
	}
	locations, err := have.LocationProvider()
	if err != nil {
		return fail(err)
	}
	// Named after the commit, beside its data file.
	location := locations.NewDataLocation(name + "-deletes.parquet")
	f, err := table.DataFileFromMetadata(table.DataFileArgs{
		Schema: schema, Spec: spec, Format: iceberg.ParquetFile, Metadata: written.Metadata, FilePath: location,
		FileSize: written.Size,
		Content:  iceberg.EntryContentEqDeletes, EqualityFieldIDs: []int{key.ID}, Properties: have.Properties(),
		FormatVersion: have.Metadata().Version(),
	})
	if err != nil {
		return fail(err)
	}
	files, err := Files(ctx, have)
	if err != nil {
		return fail(err)
	}
	// A failed write may have left a partial file.
	if err := files.WriteFile(location, content.Bytes()); err != nil {
		return fail(errors.Join(err, w.Remove(f)))
	}
	return []iceberg.DataFile{f}, nil
}

// Unpartitioned returns the spec under which equality deletes are written. Under an unpartitioned
// spec, Iceberg applies them to the data files of every spec and partition. Deletes in a partition
// would miss rows whose partition has changed, and files of other specs.
func Unpartitioned(m table.Metadata) (iceberg.PartitionSpec, error) {
	for _, spec := range m.PartitionSpecs() {
		if spec.NumFields() == 0 {
			return spec, nil
		}
	}
	return iceberg.PartitionSpec{}, errors.New("landers replace its rows, which requires a partition spec without fields " +
		"in its metadata, but it has none: remove all its partition fields once, then add them again")
}
