package landing

import (
	"slices"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/maintenance"
)

// threeTypes has a column of each type that is new in format version 3.
func threeTypes(t *testing.T) []iceberg.NestedField {
	t.Helper()
	geography, err := iceberg.GeographyTypeOf("EPSG:4326", "karney")
	if err != nil {
		t.Fatal(err)
	}
	geometry, err := iceberg.GeometryTypeOf("EPSG:3857")
	if err != nil {
		t.Fatal(err)
	}
	p := iceberg.PrimitiveTypes
	var columns []iceberg.NestedField
	for _, of := range []iceberg.Type{p.TimestampNs, p.TimestampTzNs, iceberg.VariantType{}, iceberg.UnknownType{}, iceberg.GeometryType{}, geometry, geography} {
		columns = append(columns, newColumn("a "+of.String(), of))
	}
	return columns
}

func sortBy(column string, how iceberg.Transform) func(table.Metadata) []table.Update {
	return func(m table.Metadata) []table.Update {
		source, ok := m.CurrentSchema().FindFieldByName(column)
		if !ok {
			panic("no column " + column)
		}
		order, err := table.NewSortOrder(1, []table.SortField{{SourceIDs: []int{source.ID}, Transform: how, Direction: table.SortDESC, NullOrder: table.NullsLast}})
		if err != nil {
			panic(err)
		}
		return []table.Update{table.NewAddSortOrderUpdate(&order), table.NewSetDefaultSortOrderUpdate(-1)}
	}
}

// identifiedBy sets identifier fields, which Iceberg requires to be non-null.
func identifiedBy(columns ...string) func(table.Metadata) []table.Update {
	return func(m table.Metadata) []table.Update {
		var ids []int
		for _, name := range columns {
			f, ok := m.CurrentSchema().FindFieldByName(name)
			if !ok {
				panic("no column " + name)
			}
			ids = append(ids, f.ID)
		}
		return []table.Update{
			table.NewAddSchemaUpdate(iceberg.NewSchemaWithIdentifiers(m.CurrentSchema().ID+1, ids, m.CurrentSchema().Fields()...)),
			table.NewSetCurrentSchemaUpdate(-1),
		}
	}
}

// Landers and maintenance cope with any table of format 3 that another engine makes, or the catalog
// refuses it. The same holds for sort orders and identifier fields in either format.
func TestLandersAndMaintenanceGoOnInEachFormat(t *testing.T) {
	t.Parallel()
	p := iceberg.PrimitiveTypes
	group := &iceberg.StructType{FieldList: threeTypes(t)}
	cases := []edit{
		{what: "nothing", updates: func(table.Metadata) []table.Update { return nil }},
		{what: "columns of every type", updates: addColumns(everyType()...)},
		{what: "a struct, a list and a map of every type", updates: addColumns(
			newColumn("s", &iceberg.StructType{FieldList: everyType()}), newColumn("l", &iceberg.ListType{Element: &iceberg.StructType{FieldList: everyType()}}),
			newColumn("m", &iceberg.MapType{KeyType: p.Timestamp, ValueType: &iceberg.StructType{FieldList: everyType()}}))},
		{what: "identifier fields", updates: identifiedBy("topic", "partition", "offset")},
		{what: "identifier fields, and a column beside", updates: then(identifiedBy("offset"), addColumns(newColumn("city", p.String)))},
		{what: "an order by offset", updates: sortBy("offset", iceberg.IdentityTransform{})},
		{what: "an order by a bucket", updates: sortBy("said", iceberg.BucketTransform{NumBuckets: 5})},
		{what: "an order by the beginning of a text", updates: sortBy("said", iceberg.TruncateTransform{Width: 3})},
		{what: "an order by a column that landers do not fill", updates: then(addColumns(newColumn("at", p.Timestamp)), sortBy("at", iceberg.HourTransform{}))},
		{what: "an order by a part of a struct", updates: then(
			addColumns(newColumn("s", &iceberg.StructType{FieldList: []iceberg.NestedField{newColumn("at", p.Timestamp)}})), sortBy("s.at", iceberg.DayTransform{}))},
		{what: "partitions and an order", updates: then(partitionBy("offset", "fifths", iceberg.BucketTransform{NumBuckets: 5}), sortBy("said", iceberg.IdentityTransform{}))},
	}
	for _, c := range everyType() {
		cases = append(cases, edit{what: "an order by " + c.Type.String(), updates: then(addColumns(everyType()...), sortBy(c.Name, iceberg.IdentityTransform{}))})
	}
	threes := []edit{
		{what: "columns of format 3", updates: addColumns(threeTypes(t)...)},
		{what: "them in a struct", updates: addColumns(newColumn("s", group))},
		{what: "them in a list", updates: addColumns(newColumn("l", &iceberg.ListType{Element: group}))},
		{what: "them in a map", updates: addColumns(newColumn("m", &iceberg.MapType{KeyType: p.String, ValueType: group}))},
		{what: "a default", updates: addColumns(iceberg.NestedField{Name: "city", Type: p.String, InitialDefault: "Cambridge", WriteDefault: "Ely"})},
		{what: "a default of a time", updates: addColumns(iceberg.NestedField{Name: "at", Type: p.TimestampNs, WriteDefault: iceberg.TimestampNano(1)})},
		{what: "a partition by nanoseconds", updates: then(addColumns(newColumn("at", p.TimestampNs)), partitionBy("at", "at_day", iceberg.DayTransform{}))},
		{what: "an order by nanoseconds", updates: then(addColumns(newColumn("at", p.TimestampTzNs)), sortBy("at", iceberg.HourTransform{}))},
		{what: "a column demanded", updates: addColumns(iceberg.NestedField{Name: "x", Type: p.TimestampNs, Required: true, InitialDefault: iceberg.TimestampNano(1)}), refused: "x"},
	}
	for _, format := range []string{"2", "3"} {
		these := cases
		if format == "3" {
			these = append(slices.Clip(cases), threes...)
		}
		for _, e := range these {
			t.Run("format "+format+"/"+e.what, func(t *testing.T) {
				config := localLake(t)
				config.Tables = []declare.Table{notes}
				l := openLake(t, config)
				if format == "3" {
					asFormat3(t, l)
				}
				if err := landNote(t, l); err != nil {
					t.Fatal(err)
				}
				_, _, err := clients(t, l).CommitTable(t.Context(), notes.Identifier(), nil, e.updates(loadNotes(t, l)))
				switch {
				case e.refused == "" && err != nil:
					t.Fatal(err)
				case e.refused != "" && (err == nil || !strings.Contains(err.Error(), e.refused)):
					t.Fatalf("error %v, want it to say %q", err, e.refused)
				}
				before := loadNotes(t, l)
				for range 4 {
					if err := landNote(t, l); err != nil {
						t.Fatal(err)
					}
				}
				report, err := l.Maintain(t.Context(), notes.Identifier(), maintenance.Config{DutyCycle: 1, SmallFiles: 2}, nil)
				if err != nil {
					t.Fatalf("maintenance: %v", err)
				}
				if report.Compacted.FilesBefore == 0 && len(report.Skipped) == 0 && !strings.HasPrefix(e.what, "partitions") {
					t.Errorf("nothing was compacted, without a reason: %+v", report)
				}
				if err := landNote(t, l); err != nil {
					t.Fatal(err)
				}
				if n := noteCount(t, l); n != 6 {
					t.Errorf("%d rows, want 6", n)
				}
				after := loadNotes(t, l)
				if !slices.Equal(before.CurrentSchema().IdentifierFieldIDs, after.CurrentSchema().IdentifierFieldIDs) {
					t.Error("the columns that name a row were changed")
				}
				if was, is := before.SortOrder(), after.SortOrder(); !declare.SameOrder(was, is) {
					t.Errorf("the order was %v, and is %v", was, is)
				}
			})
		}
	}
}

// asFormat3 creates the table of notes in format 3, as an engine would for the landers.
func asFormat3(t *testing.T, l *lake.Lake) {
	t.Helper()
	dropNotes(t, l)
	said := iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "said", Type: iceberg.PrimitiveTypes.String})
	if _, err := clients(t, l).CreateTable(t.Context(), notes.Identifier(), said, withFormat("3")); err != nil {
		t.Fatal(err)
	}
}

// The shop's own tables, including State tables with their deletes, land and are maintained in
// format 3 as in 2.
func TestTablesOfStateInFormat3(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	l := openLake(t, ordersOnly(localLake(t)))
	for _, of := range l.Declared() {
		if _, _, err := l.Catalog().CommitTable(t.Context(), of.Identifier(), nil, []table.Update{table.NewUpgradeFormatVersionUpdate(3)}); err != nil {
			t.Fatal(err)
		}
	}
	stop := start(t, l, s.runConfig())
	for range 3 {
		s.mustTrade(t, 50)
		s.landed(t, l)
		for _, of := range l.Declared() {
			if _, err := l.Maintain(t.Context(), of.Identifier(), maintenance.Config{DutyCycle: 1, SmallFiles: 2, DeleteShare: 0.01}, nil); err != nil {
				t.Errorf("maintenance of %s: %v", of.Name, err)
			}
		}
	}
	s.mustTrade(t, 20)
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
}
