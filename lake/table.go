package lake

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/event"
)

// Table declares one table: what it is called, which topic feeds it, and how a record becomes rows.
type Table struct {
	Name      string
	Aggregate event.Aggregate // its topic is the one source
	columns   []column
	// decoder makes what turns records into rows. Each lander has its own, so that a decoder may keep buffers.
	decoder func() decoder
}

// column is one column. Columns are never reordered or removed, only added at the end.
type column struct {
	name     string
	typ      iceberg.Type
	optional bool
	doc      string
	// repeats says that few values recur, so that a dictionary pays.
	repeats bool
}

// decoder appends the rows of one event. It fails before it appends anything: a record has all of its rows, or none.
type decoder interface {
	append(to *columns, r origin, e event.Event) error
}

// origin is where a row comes from. In one table no two records share one.
type origin struct {
	topic     string
	partition int32
	offset    int64
}

// tables lists all tables.
func tables() []Table {
	return []Table{customersEvents, productsEvents, stockEvents, ordersEvents, orderLines}
}

func tableNamed(name string) (Table, error) {
	for _, t := range tables() {
		if t.Name == name {
			return t, nil
		}
	}
	return Table{}, fmt.Errorf("the lake has no table %q", name)
}

// schema is the table's schema with field ids as Iceberg gives them to a new table: counted from 1.
func (t Table) schema() *iceberg.Schema {
	fields := make([]iceberg.NestedField, len(t.columns))
	for i, c := range t.columns {
		fields[i] = iceberg.NestedField{ID: i + 1, Name: c.name, Type: c.typ, Required: !c.optional, Doc: c.doc}
	}
	return iceberg.NewSchema(0, fields...)
}

// checkSchema tells whether rows of this declaration fit a table as it exists.
func (t Table) checkSchema(have *iceberg.Schema) error {
	same := slices.CompareFunc(t.schema().Fields(), have.Fields(), func(a, b iceberg.NestedField) int {
		if a.ID == b.ID && a.Name == b.Name && a.Type.Equals(b.Type) && a.Required == b.Required {
			return 0
		}
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Name, b.Name), 1)
	})
	if same != 0 {
		return fmt.Errorf("table %s has other columns than this version of millrace writes: it has %v", t.Name, have)
	}
	return nil
}

// Where a row comes from: the last columns of every table.
var originColumns = []column{
	{name: "topic", typ: iceberg.PrimitiveTypes.String, doc: "Kafka topic the row comes from", repeats: true},
	{name: "partition", typ: iceberg.PrimitiveTypes.Int32, doc: "its partition", repeats: true},
	{name: "offset", typ: iceberg.PrimitiveTypes.Int64, doc: "its offset"},
}
