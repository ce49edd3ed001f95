// Package declare describes tables before they exist: name, topic, columns, partitioning, sort
// order, and how a record becomes rows.
//
// A Table is a complete declaration. Callers can fill one in by hand and supply their own Rows. For
// topics of an aggregate's events, Events, Facts and State produce a Table from less:
//
//   - Events has one row per event: the envelope, the exact bytes, and a struct for each event
//     type.
//   - Facts has the rows that each event contributes. Later events add rows and change none.
//   - State has one row per stream: the state that the stream's events have produced so far.
//
// Facts and State list their columns once, in a Schema. The schema writes rows, reads them back,
// and feeds them to digests. A table made of events also declares its Sums, so that verification
// can compare the table with the events.
//
// Invariants: a topic is a table's only source, every table ends in the columns of a row's origin
// (topic, partition, offset), and no two records share an origin.
//
// The package has no side effects: it opens nothing. Package lake creates tables and migrates
// existing ones to match. Package landing lands their topics.
package declare

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

// Namespace is the catalog namespace of Millrace's own tables.
const Namespace = "millrace"

// Table declares one table: its name, the topic that feeds it, how a record becomes rows, and how
// the rows are laid out. lake.Open creates the table, or brings an existing one to its declaration.
type Table struct {
	Namespace string // empty: Namespace
	Name      string
	Doc       string
	Topic     string // the only source
	// Columns precede the origin columns, which every table has. Package evolution explains how to
	// add, rename or widen columns.
	Columns   []columnar.Field
	Partition []Partition // empty: unpartitioned
	Sort      []Sort      // order of the rows of a file after maintenance; empty: order of arrival
	// Origin is the prefix of the names of the origin columns: topic, partition, offset.
	Origin string
	// Rows returns the converter of records to rows. Each lander calls it once, so the converter
	// may keep buffers. values decodes values with a schema registry; it may be nil.
	Rows func(to *columnar.Columns, values *registry.Decoder) (Rows, error)
	// Upserts replaces Rows in a table that has one row per key.
	Upserts func(to *columnar.Columns, values *registry.Decoder) (Upserts, error)
	// Grows is set if the table's columns follow from its records. Such a table keeps columns that
	// are not in Columns, and its Rows implement Grower.
	Grows bool
	// Unready is the reason why the table cannot be created yet, or nil. An existing table is
	// landed anyway; records that do not fit become dead letters.
	Unready error

	// Events is the aggregate if each row is one whole event. Derived is the aggregate if the rows
	// are computed from its events. At most one of the two is set.
	Events, Derived event.Aggregate
	// Restore reads the rows back as events, if each row is one whole event.
	Restore Restore
	// Sums feeds the rows of a table made of events to a digest.
	Sums Sums

	// grow returns the columns of a growing table plus those that its records need. See Growing.
	grow func(have []columnar.Field) ([]columnar.Field, error)
}

// Partition is one field of a partition spec: a column and its transform.
type Partition struct {
	Column    string
	Transform iceberg.Transform // such as iceberg.DayTransform{}
}

// Sort is one field of a sort order.
type Sort struct {
	Column     string
	Descending bool
}

// Record is a Kafka record with its coordinates.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Time       time.Time // the record's timestamp; zero if its year is outside 1 to 9999
	Millis     int64     // the raw Kafka timestamp, which may be any number
	Key, Value []byte
	Headers    []event.Header

	Before event.Sequence // the partition's sequence before this record, set by landers
}

// Rows appends the rows of records to the columns that it was created with, except the origin
// columns.
//
// Append appends all rows of a record or fails. After a failure, the caller removes the rows that
// Append added. An error makes the record a dead letter, unless it wraps registry.ErrUnavailable:
// then the record is read again later.
type Rows interface {
	Append(ctx context.Context, r Record) (Appended, error)
}

// Appended describes the rows that a record added.
type Appended struct {
	Rows int
	AsOf time.Time // when the event was recorded

	// Sealed reports whether the record is an event with the relay's seal. After is then the
	// partition's sequence including it. Both are used for topics of events only.
	Sealed bool
	After  event.Sequence
}

// Keyed reports whether the table has one row per key.
func (t Table) Keyed() bool { return t.Upserts != nil }

// OfEvents reports whether the table's rows are made of an aggregate's events.
func (t Table) OfEvents() bool { return t.Events.Name != "" || t.Derived.Name != "" }

// Identifier returns the table's full name in the catalog.
func (t Table) Identifier() table.Identifier {
	if t.Namespace == "" {
		return table.Identifier{Namespace, t.Name}
	}
	return append(strings.Split(t.Namespace, "."), t.Name)
}

// DisplayName returns the name shown to users: the namespace is included unless it is Namespace.
func (t Table) DisplayName() string { return DisplayName(t.Identifier()) }

// NamespaceOf returns the value of Table.Namespace for a full name: empty if it is Namespace.
func NamespaceOf(name table.Identifier) string {
	if ns := strings.Join(name[:len(name)-1], "."); ns != Namespace {
		return ns
	}
	return ""
}

// DisplayName returns a table's name as shown to users: the namespace is included unless it is
// Namespace.
func DisplayName(name table.Identifier) string {
	if len(name) == 2 && name[0] == Namespace {
		return name[1]
	}
	return strings.Join(name, ".")
}

// AllColumns returns Columns followed by the origin columns.
func (t Table) AllColumns() []columnar.Field { return slices.Concat(t.Columns, t.OriginColumns()) }

// OriginColumns returns the last columns of the table, which identify the record that a row comes
// from.
func (t Table) OriginColumns() []columnar.Field {
	named := slices.Clone(originColumns)
	for i := range named {
		named[i].Name = t.Origin + named[i].Name
	}
	return named
}

// Step compares an existing table with its declaration. The result has the changes that are needed,
// and the field ids to write files with.
func (t Table) Step(have table.Metadata) (evolution.Step, error) {
	keys, err := evolution.ParseKeys(have.Properties()[evolution.Property])
	if err != nil {
		return evolution.Step{}, fmt.Errorf("table %s: %w", t.Name, err)
	}
	want := t.AllColumns()
	if t.Grows {
		if want, err = t.grown(have, keys); err != nil {
			return evolution.Step{}, fmt.Errorf("table %s: %w", t.Name, err)
		}
	}
	step, err := evolution.Of(have.CurrentSchema(), have.LastColumnID(), keys, want)
	if err != nil {
		return evolution.Step{}, fmt.Errorf("table %s: %w", t.Name, err)
	}
	return step, nil
}

// Spec returns the declared partition spec over a schema. A field that an earlier spec already has
// keeps its field id, as Iceberg requires.
func (t Table) Spec(s *iceberg.Schema, before []iceberg.PartitionSpec) (iceberg.PartitionSpec, error) {
	id, last, known := 0, iceberg.PartitionDataIDStart-1, map[string]int{}
	for _, b := range before {
		id, last = max(id, b.ID()+1), max(last, b.LastAssignedFieldID())
		for _, f := range b.Fields() {
			known[partitionDoes(f)] = f.FieldID
		}
	}
	fields := make([]iceberg.PartitionField, len(t.Partition))
	for i, p := range t.Partition {
		source, ok := s.FindFieldByName(p.Column)
		if !ok {
			return iceberg.PartitionSpec{}, fmt.Errorf("table %s: partition column %s does not exist", t.Name, p.Column)
		}
		f := iceberg.PartitionField{SourceIDs: []int{source.ID}, Name: partitionName(p), Transform: p.Transform}
		if f.FieldID, ok = known[partitionDoes(f)]; !ok {
			last++
			f.FieldID = last
		}
		fields[i] = f
	}
	return iceberg.NewPartitionSpecID(id, fields...), nil
}

// partitionDoes returns a key of what a partition field does: its source column and transform.
func partitionDoes(f iceberg.PartitionField) string {
	return strconv.Itoa(f.SourceID()) + " " + f.Transform.String()
}

// partitionName returns the name that Spark would give to the field.
func partitionName(p Partition) string {
	switch t := p.Transform.(type) {
	case iceberg.IdentityTransform:
		return p.Column
	case iceberg.BucketTransform:
		return p.Column + "_bucket"
	case iceberg.TruncateTransform:
		return p.Column + "_trunc"
	default:
		return p.Column + "_" + t.String()
	}
}

// Order returns the declared sort order over a schema, with the given order id.
func (t Table) Order(s *iceberg.Schema, id int) (table.SortOrder, error) {
	if len(t.Sort) == 0 {
		return table.UnsortedSortOrder, nil
	}
	fields := make([]table.SortField, len(t.Sort))
	for i, by := range t.Sort {
		source, ok := s.FindFieldByName(by.Column)
		if !ok {
			return table.SortOrder{}, fmt.Errorf("table %s: sort column %s does not exist", t.Name, by.Column)
		}
		fields[i] = table.SortField{
			SourceIDs: []int{source.ID}, Transform: iceberg.IdentityTransform{},
			Direction: table.SortASC, NullOrder: table.NullsFirst,
		}
		if by.Descending {
			fields[i].Direction, fields[i].NullOrder = table.SortDESC, table.NullsLast
		}
	}
	return table.NewSortOrder(id, fields)
}

// originColumns identify the record that a row comes from. They are the last columns of every
// table. Within a table, no two records have the same origin.
var originColumns = []columnar.Field{
	{Name: "topic", Type: iceberg.PrimitiveTypes.String, Required: true, Doc: "Kafka topic the row comes from"},
	{Name: "partition", Type: iceberg.PrimitiveTypes.Int32, Required: true, Doc: "its partition"},
	{Name: "offset", Type: iceberg.PrimitiveTypes.Int64, Required: true, Doc: "its offset"},
}

// Sums computes the digest of a table, by stream, from both sides that a verification compares.
type Sums struct {
	// Add adds a batch of the table's rows.
	Add func(to *digest.Digest, rec arrow.RecordBatch) error
	// Expect returns the digest of the rows that events should produce. The events of each stream
	// arrive in order.
	Expect func(events iter.Seq2[event.Event, error]) (*digest.Digest, error)
}

// Restore turns rows into the events that they were made of.
type Restore struct {
	Columns []string // that Events needs; empty: the rows are not events
	// Events returns the events of a batch, row by row. They may share memory with it.
	Events func(rec arrow.RecordBatch) (iter.Seq2[event.Event, error], error)
}

// Identifier returns the full name of a table in Namespace.
func Identifier(name string) table.Identifier { return table.Identifier{Namespace, name} }

// SameSpec reports whether two specs partition alike, regardless of ids. Void fields are ignored.
func SameSpec(a, b iceberg.PartitionSpec) bool {
	does := func(s iceberg.PartitionSpec) (all []string) {
		for _, f := range s.Fields() {
			if _, void := f.Transform.(iceberg.VoidTransform); !void {
				all = append(all, partitionDoes(f))
			}
		}
		return all
	}
	return slices.Equal(does(a), does(b))
}

// SameOrder reports whether two orders sort alike, regardless of ids.
func SameOrder(a, b table.SortOrder) bool {
	if a.Len() != b.Len() {
		return false
	}
	for i := range a.Len() {
		if !a.Field(i).Equals(b.Field(i)) {
			return false
		}
	}
	return true
}
