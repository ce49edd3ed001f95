package datafile

import (
	"slices"
	"sync"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
)

// renaming assigns new names to the files of a batch. It is safe for concurrent use, because
// iceberg-go writes files concurrently.
type renaming struct {
	// rename returns the name of the n-th file of the batch, from 0.
	rename func(n int) string

	mu    sync.Mutex
	given map[string]string // new names by the name that iceberg-go chose
}

// of returns the new name of a file, and assigns one at the first call.
func (r *renaming) of(name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Names are numbered in the order in which files are begun.
	if _, there := r.given[name]; !there {
		r.given[name] = r.rename(len(r.given))
	}
	return r.given[name]
}

// all returns all assigned names, sorted.
func (r *renaming) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, name := range r.given {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// renamed is a file system that creates files under their new names.
type renamed struct {
	io.WriteFileIO
	names *renaming
}

// Create creates a file under its new name.
func (r renamed) Create(name string) (io.FileWriter, error) {
	return r.WriteFileIO.Create(r.names.of(name))
}

// WriteFile writes a file under its new name.
func (r renamed) WriteFile(name string, content []byte) error {
	return r.WriteFileIO.WriteFile(r.names.of(name), content)
}

// Remove removes a file under its new name. iceberg-go passes the name that it chose.
func (r renamed) Remove(name string) error { return r.WriteFileIO.Remove(r.names.of(name)) }

// relocated returns a copy of a manifest entry with another file location.
func relocated(f iceberg.DataFile, t *table.Table, location string) (iceberg.DataFile, error) {
	spec := t.Spec()
	// An entry is immutable, so build a new one with the same values.
	b, err := iceberg.NewDataFileBuilder(
		spec, f.ContentType(), location, f.FileFormat(), f.Partition(), logicalTypes(spec, t.Schema()), nil,
		f.Count(), f.FileSizeBytes(),
	)
	if err != nil {
		return nil, err
	}
	// The statistics do not depend on the location.
	b.ColumnSizes(f.ColumnSizes()).ValueCounts(f.ValueCounts()).
		NullValueCounts(f.NullValueCounts()).NaNValueCounts(f.NaNValueCounts()).
		LowerBoundValues(f.LowerBoundValues()).UpperBoundValues(f.UpperBoundValues()).SplitOffsets(f.SplitOffsets())
	if id := f.SortOrderID(); id != nil && *id != table.UnsortedSortOrderID {
		b.SortOrderID(*id)
	}
	return b.Build(), nil
}

// logicalTypes returns the Avro logical types of partition values, by field id.
func logicalTypes(spec iceberg.PartitionSpec, schema *iceberg.Schema) map[int]string {
	// The builder of a manifest entry needs them to encode the values. Other types need none.
	types := map[int]string{}
	for _, field := range spec.Fields() {
		source, found := schema.FindFieldByID(field.SourceID())
		if !found {
			continue
		}
		switch field.Transform.ResultType(source.Type).(type) {
		case iceberg.DateType:
			types[field.FieldID] = "date"
		case iceberg.TimeType:
			types[field.FieldID] = "time-micros"
		case iceberg.TimestampType, iceberg.TimestampTzType:
			types[field.FieldID] = "timestamp-micros"
		case iceberg.DecimalType:
			types[field.FieldID] = "decimal"
		case iceberg.UUIDType:
			types[field.FieldID] = "uuid"
		}
	}
	return types
}
