// Package declare says what a table is, before any table exists: its name, its topic, its columns,
// how its rows are spread and sorted, and how a record becomes rows.
//
// A Table is the whole declaration. Anyone may fill one in: see Rows. Three kinds of tables fill it
// in from less, for topics of an aggregate's events:
//
//   - Events has a row for every event: the envelope, the exact bytes, and a struct for each type
//     of event.
//   - Facts has the rows that events bring, as they were then. Later events add rows and change
//     none.
//   - State has one row for each stream: what its events have made of it so far.
//
// Facts and State name their columns once, in a Schema, which writes rows, reads them back and sums
// them up. A table that is made of events also says how its rows are summed up, so that a
// verification can compare table and events.
//
// The package opens nothing. Package lake creates tables and brings them to their declarations;
// package landing lands their topics.
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

// Namespace is where our tables stand in the catalog.
const Namespace = "millrace"

// Table declares one table: its name, the topic that feeds it, how a record becomes rows, and how
// they are laid out. lake.Open creates the table, and brings an existing one to its declaration.
type Table struct {
	Namespace string // empty: Namespace
	Name      string
	Doc       string
	Topic     string // the only source
	// Columns come before those that say where a row comes from, which every table has. To add,
	// rename or widen columns, see package evolution.
	Columns   []columnar.Field
	Partition []Partition // none: one partition
	Sort      []Sort      // how maintenance orders the rows of a file; none: as they came
	// Origin is what the names of the columns that say where a row comes from begin with: topic, partition, offset.
	Origin string
	// Rows makes what turns records into rows. Each lander has its own, so that it may keep buffers.
	// values decodes values with a schema registry; it may be nil.
	Rows func(to *columnar.Columns, values *registry.Decoder) (Rows, error)
	// Upserts takes the place of Rows in a table that has one row for each key.
	Upserts func(to *columnar.Columns, values *registry.Decoder) (Upserts, error)
	// Grows says that the table's columns follow from its records. It keeps those that it has beside
	// Columns, and its Rows are a Grower.
	Grows bool
	// Unready says why the table cannot be created. An existing one is landed all the same; records
	// that do not fit become dead letters.
	Unready error

	// Events names the aggregate of which each row is one whole event. Derived names the aggregate
	// from whose events the rows are made. At most one of the two is set.
	Events, Derived event.Aggregate
	// Sums says how the rows of a table that is made of events are summed up.
	Sums Sums

	// grow adds to the columns that a table which grows has.
	grow func(have []columnar.Field) ([]columnar.Field, error)
}

// Partition is a part of how rows are spread over files: a column and what is made of it.
type Partition struct {
	Column    string
	Transform iceberg.Transform // such as iceberg.DayTransform{}
}

// Sort is a part of an order of rows.
type Sort struct {
	Column     string
	Descending bool
}

// Record is a record, and where it stands.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Time       time.Time // the record's own; zero where its timestamp is none of the years 1 to 9999
	Millis     int64     // the timestamp as Kafka has it, which any number can be
	Key, Value []byte
	Headers    []event.Header

	Before event.Sequence // of the partition: what a relay had published when this came; set by landers
}

// Rows appends the rows of records to the columns that it was made with, except those of their
// origin. Append appends all rows of a record or fails; what it appended before it failed is removed.
// Its error makes the record a dead letter, unless it wraps registry.ErrUnavailable: then the record
// is read again.
type Rows interface {
	Append(ctx context.Context, r Record) (Appended, error)
}

// Appended describes the rows of a record.
type Appended struct {
	Rows int
	AsOf time.Time // when the fact was recorded

	// Sealed says that the record is an event with the relay's seal, and After is the partition's
	// sequence with it. They are for topics of events.
	Sealed bool
	After  event.Sequence
}

// Keyed reports whether each key has one row.
func (t Table) Keyed() bool { return t.Upserts != nil }

// OfEvents reports whether the table is made of an aggregate's events.
func (t Table) OfEvents() bool { return t.Events.Name != "" || t.Derived.Name != "" }

// Identifier is the full name of the table in the catalog.
func (t Table) Identifier() table.Identifier {
	if t.Namespace == "" {
		return table.Identifier{Namespace, t.Name}
	}
	return append(strings.Split(t.Namespace, "."), t.Name)
}

// DisplayName is the name by which the table is known: with its namespace where that is not ours.
func (t Table) DisplayName() string { return DisplayName(t.Identifier()) }

// NamespaceOf is what Table has as the namespace of a name.
func NamespaceOf(name table.Identifier) string {
	if ns := strings.Join(name[:len(name)-1], "."); ns != Namespace {
		return ns
	}
	return ""
}

// DisplayName is the name by which a table is known: with its namespace where that is not ours.
func DisplayName(name table.Identifier) string {
	if len(name) == 2 && name[0] == Namespace {
		return name[1]
	}
	return strings.Join(name, ".")
}

// AllColumns are all of the table's.
func (t Table) AllColumns() []columnar.Field { return slices.Concat(t.Columns, t.OriginColumns()) }

// OriginColumns are the last columns of the table, which say where a row comes from.
func (t Table) OriginColumns() []columnar.Field {
	named := slices.Clone(originColumns)
	for i := range named {
		named[i].Name = t.Origin + named[i].Name
	}
	return named
}

// Step tells what a table as it exists needs to be brought to its declaration, and with which ids files are written.
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

// Spec is how the declaration spreads rows, over a schema. What a spec before it did too keeps its id.
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
			return iceberg.PartitionSpec{}, fmt.Errorf("table %s: it is partitioned by %s, which is no column", t.Name, p.Column)
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

func partitionDoes(f iceberg.PartitionField) string {
	return strconv.Itoa(f.SourceID()) + " " + f.Transform.String()
}

// partitionName names partitions as Spark does.
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

// Order is how the declaration sorts rows, over a schema.
func (t Table) Order(s *iceberg.Schema, id int) (table.SortOrder, error) {
	if len(t.Sort) == 0 {
		return table.UnsortedSortOrder, nil
	}
	fields := make([]table.SortField, len(t.Sort))
	for i, by := range t.Sort {
		source, ok := s.FindFieldByName(by.Column)
		if !ok {
			return table.SortOrder{}, fmt.Errorf("table %s: it is sorted by %s, which is no column", t.Name, by.Column)
		}
		fields[i] = table.SortField{SourceIDs: []int{source.ID}, Transform: iceberg.IdentityTransform{}, Direction: table.SortASC, NullOrder: table.NullsFirst}
		if by.Descending {
			fields[i].Direction, fields[i].NullOrder = table.SortDESC, table.NullsLast
		}
	}
	return table.NewSortOrder(id, fields)
}

// Where a row comes from: the last columns of every table. In one table no two records share one origin.
var originColumns = []columnar.Field{
	{Name: "topic", Type: iceberg.PrimitiveTypes.String, Required: true, Doc: "Kafka topic the row comes from"},
	{Name: "partition", Type: iceberg.PrimitiveTypes.Int32, Required: true, Doc: "its partition"},
	{Name: "offset", Type: iceberg.PrimitiveTypes.Int64, Required: true, Doc: "its offset"},
}

// Sums is how the rows of a table are summed up, by stream.
type Sums struct {
	// Add adds rows of the table.
	Add func(to *digest.Digest, rec arrow.RecordBatch) error
	// Expect adds the rows that events make, which come in order for each stream.
	Expect func(events iter.Seq2[event.Event, error]) (*digest.Digest, error)
}

// Identifier is the full name of a table of ours.
func Identifier(name string) table.Identifier { return table.Identifier{Namespace, name} }

// SameSpec compares what two specs do, whatever their ids.
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

// SameOrder reports whether two orders sort alike, whatever their ids.
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
