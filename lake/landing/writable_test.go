package landing

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
)

// notes is a table whose records fill one column, whatever other columns exist.
var notes = declare.Table{
	Name: "notes", Topic: "notes", Grows: true,
	Columns: []columnar.Field{{Name: "said", Type: iceberg.PrimitiveTypes.String, Required: true}},
	Rows:    func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) { return noteRows{to}, nil },
}

type noteRows struct{ to *columnar.Columns }

func (n noteRows) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	fields := n.to.Fields()
	for i := range len(fields) - len(declare.Table{}.OriginColumns()) {
		if fields[i].Name == "said" {
			n.to.Column(i).(*columnar.Bytes).Append(r.Value)
		} else {
			n.to.Column(i).AppendNull()
		}
	}
	return declare.Appended{Rows: 1}, nil
}

func (noteRows) Grow(_ context.Context, have []columnar.Field, _ iter.Seq[declare.Record]) ([]columnar.Field, error) {
	return have, nil
}

// landNote lands one record, like a lander that has just started.
func landNote(t *testing.T, l *lake.Lake) error {
	t.Helper()
	return landRecord(t, l, notes)
}

func landRecord(t *testing.T, l *lake.Lake, of declare.Table) error {
	t.Helper()
	if err := l.Evolve(t.Context(), of); err != nil {
		return err
	}
	land := &lander{lake: l, table: of, log: l.Logger()}
	have, err := l.Load(t.Context(), of.Identifier())
	if err != nil {
		t.Fatal(err)
	}
	w, to, err := land.writer(t.Context(), have)
	if err != nil {
		return err
	}
	return addNote(t, land, have, w, to)
}

func addNote(t *testing.T, land *lander, have *table.Table, w *datafile.Writer, to sink) error {
	t.Helper()
	committed, err := progress.Read(notes.Topic, have.Properties())
	if err != nil {
		t.Fatal(err)
	}
	next := committed.Next[0]
	at := &positions{next: map[int32]int64{}}
	at.put(map[int32]int64{0: next}, "")
	b := newBatch(at, time.Time{})
	if _, err := to.put(t.Context(), w, declare.Record{Topic: notes.Topic, Offset: next, Value: fmt.Appendf(nil, "note %d", next)}); err != nil {
		t.Fatal(err)
	}
	b.move(0, next+1)
	return land.land(t.Context(), b, w)
}

// noteCount counts the rows by reading them.
func noteCount(t *testing.T, l *lake.Lake) (n int64) {
	t.Helper()
	have, err := l.Load(t.Context(), notes.Identifier())
	if err != nil {
		t.Fatal(err)
	}
	_, records, err := have.Scan(table.WithSelectedFields("said", "offset")).ToArrowRecords(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for rec, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		n += rec.NumRows()
		rec.Release()
	}
	return n
}

// edit is a change that another engine makes to the table of notes.
type edit struct {
	what    string
	updates func(m table.Metadata) []table.Update
	refused string // what the catalog says; empty: it takes it
	past    bool   // it is then made past the catalog, and landers go on all the same
}

func addColumns(columns ...iceberg.NestedField) func(table.Metadata) []table.Update {
	return func(m table.Metadata) []table.Update {
		fields := slices.Clone(m.CurrentSchema().Fields())
		id := m.LastColumnID()
		for _, c := range columns {
			fields = append(fields, renumbered(c, &id))
		}
		return []table.Update{
			table.NewAddSchemaUpdate(iceberg.NewSchemaWithIdentifiers(m.CurrentSchema().ID+1, m.CurrentSchema().IdentifierFieldIDs, fields...)),
			table.NewSetCurrentSchemaUpdate(-1),
		}
	}
}

func renumbered(f iceberg.NestedField, id *int) iceberg.NestedField {
	*id++
	f.ID = *id
	switch t := f.Type.(type) {
	case *iceberg.StructType:
		inner := slices.Clone(t.FieldList)
		for i := range inner {
			inner[i] = renumbered(inner[i], id)
		}
		f.Type = &iceberg.StructType{FieldList: inner}
	case *iceberg.ListType:
		e := renumbered(t.ElementField(), id)
		f.Type = &iceberg.ListType{ElementID: e.ID, Element: e.Type, ElementRequired: e.Required}
	case *iceberg.MapType:
		k, v := renumbered(t.KeyField(), id), renumbered(t.ValueField(), id)
		f.Type = &iceberg.MapType{KeyID: k.ID, KeyType: k.Type, ValueID: v.ID, ValueType: v.Type, ValueRequired: v.Required}
	}
	return f
}

func newColumn(name string, t iceberg.Type) iceberg.NestedField {
	return iceberg.NestedField{Name: name, Type: t}
}

func partitionBy(column, name string, how iceberg.Transform) func(table.Metadata) []table.Update {
	return func(m table.Metadata) []table.Update {
		source, ok := m.CurrentSchema().FindFieldByName(column)
		if !ok {
			panic("no column " + column)
		}
		id, last := 0, iceberg.PartitionDataIDStart-1
		for _, s := range m.PartitionSpecs() {
			id, last = max(id, s.ID()), max(last, s.LastAssignedFieldID())
		}
		spec := iceberg.NewPartitionSpecID(id+1, iceberg.PartitionField{SourceIDs: []int{source.ID}, FieldID: last + 1, Name: name, Transform: how})
		return []table.Update{table.NewAddPartitionSpecUpdate(&spec, false), table.NewSetDefaultSpecUpdate(-1)}
	}
}

func setProperties(props iceberg.Properties) func(table.Metadata) []table.Update {
	return func(table.Metadata) []table.Update { return []table.Update{table.NewSetPropertiesUpdate(props)} }
}

func then(edits ...func(table.Metadata) []table.Update) func(table.Metadata) []table.Update {
	return func(m table.Metadata) (all []table.Update) {
		for _, e := range edits {
			updates := e(m)
			all = append(all, updates...)
			var err error
			if m, err = table.UpdateTableMetadata(m, updates, ""); err != nil {
				panic(err)
			}
		}
		return all
	}
}

// twins partitions by two fields whose names are equal by Avro's rules.
func twins(m table.Metadata) []table.Update {
	said := m.CurrentSchema().Fields()[0].ID
	spec := iceberg.NewPartitionSpecID(7,
		iceberg.PartitionField{SourceIDs: []int{said}, FieldID: 1010, Name: "a b", Transform: iceberg.BucketTransform{NumBuckets: 2}},
		iceberg.PartitionField{SourceIDs: []int{said}, FieldID: 1011, Name: "a_x20b", Transform: iceberg.BucketTransform{NumBuckets: 3}})
	return []table.Update{table.NewAddPartitionSpecUpdate(&spec, false), table.NewSetDefaultSpecUpdate(-1)}
}

// everyType has a column of each type in format version 2.
func everyType() (columns []iceberg.NestedField) {
	p := iceberg.PrimitiveTypes
	for _, t := range []iceberg.Type{
		p.Bool, p.Int32, p.Int64, p.Float32, p.Float64, p.Date, p.Time, p.Timestamp, p.TimestampTz, p.String, p.UUID, p.Binary,
		iceberg.FixedTypeOf(3), iceberg.DecimalTypeOf(9, 2), iceberg.DecimalTypeOf(38, 10),
	} {
		columns = append(columns, newColumn("a "+t.String(), t))
	}
	return columns
}

func edits() []edit {
	p := iceberg.PrimitiveTypes
	group := &iceberg.StructType{FieldList: everyType()}
	all := []edit{
		{what: "columns of every type", updates: addColumns(everyType()...)},
		{what: "them in a struct", updates: addColumns(newColumn("s", group))},
		{what: "them in a list", updates: addColumns(newColumn("l", &iceberg.ListType{Element: group}))},
		{what: "them in a map", updates: addColumns(newColumn("m", &iceberg.MapType{KeyType: p.Timestamp, ValueType: group, ValueRequired: true}))},
		{what: "a struct of no fields", updates: addColumns(newColumn("s", &iceberg.StructType{}))},
		{what: "a list of structs of no fields", updates: addColumns(newColumn("l", &iceberg.ListType{Element: &iceberg.StructType{}}))},
		{what: "names with anything in them", updates: addColumns(newColumn("1st 😎", p.String), newColumn("a.b", p.String), newColumn("ü/..%20", p.Time))},
		{what: "a name that is a path too", updates: addColumns(newColumn("a.b", p.String), newColumn("a", &iceberg.StructType{FieldList: []iceberg.NestedField{newColumn("b", p.Int64)}})), refused: "a.b"},
		{what: "a column demanded", updates: addColumns(iceberg.NestedField{Name: "x", Type: p.Time, Required: true}), refused: "x"},
		{what: "format version 3", updates: func(table.Metadata) []table.Update { return []table.Update{table.NewUpgradeFormatVersionUpdate(3)} }, refused: "format 2"},
		{what: "columns of format version 3", updates: addColumns(newColumn("x", p.TimestampNs)), refused: "x"},
		{what: "a sort order", updates: then(addColumns(newColumn("at", p.Timestamp)), func(m table.Metadata) []table.Update {
			at, _ := m.CurrentSchema().FindFieldByName("at")
			order, err := table.NewSortOrder(1, []table.SortField{{SourceIDs: []int{at.ID}, Transform: iceberg.DayTransform{}, Direction: table.SortDESC, NullOrder: table.NullsLast}})
			if err != nil {
				panic(err)
			}
			return []table.Update{table.NewAddSortOrderUpdate(&order), table.NewSetDefaultSortOrderUpdate(-1)}
		})},
		{what: "a partition field named as Avro names nothing", updates: partitionBy("said", "1st 😎", iceberg.IdentityTransform{})},
		{what: "a partition field of blanks and dots", updates: partitionBy("offset", "a b.c-d/é", iceberg.BucketTransform{NumBuckets: 4})},
		{what: "partition fields that Avro calls the same", updates: twins, refused: "could no longer write"},
		{what: "a partition by a column of a struct", updates: then(
			addColumns(newColumn("s", &iceberg.StructType{FieldList: []iceberg.NestedField{newColumn("at", p.Timestamp)}})), partitionBy("s.at", "at_day", iceberg.DayTransform{}))},
		{what: "an unknown codec", updates: setProperties(iceberg.Properties{table.ParquetCompressionKey: "brotli!"}), refused: table.ParquetCompressionKey, past: true},
		{what: "a page size that is no number", updates: setProperties(iceberg.Properties{"write.parquet.page-size-bytes": "many"}), refused: "write.parquet.page-size-bytes", past: true},
		{what: "metrics of a mode that is none", updates: setProperties(iceberg.Properties{"write.metadata.metrics.default": "some(1)"}), refused: "metrics"},
		{what: "metrics of nothing", updates: setProperties(iceberg.Properties{"write.metadata.metrics.default": "none"})},
		{what: "a target of no bytes", updates: setProperties(iceberg.Properties{table.WriteTargetFileSizeBytesKey: "-1"}), refused: table.WriteTargetFileSizeBytesKey, past: true},
		{what: "an object store's paths", updates: setProperties(iceberg.Properties{"write.object-storage.enabled": "true"})},
		{what: "merges of no manifests", updates: setProperties(iceberg.Properties{table.ManifestMinMergeCountKey: "0", table.ManifestTargetSizeBytesKey: "x"}), refused: "commit.manifest.", past: true},
		{what: "a name mapping that is none", updates: setProperties(iceberg.Properties{table.DefaultNameMappingKey: "{"}), refused: table.DefaultNameMappingKey, past: true},
	}
	for _, c := range everyType() {
		hows := []iceberg.Transform{iceberg.IdentityTransform{}, iceberg.BucketTransform{NumBuckets: 3}, iceberg.VoidTransform{}, iceberg.TruncateTransform{Width: 2}, iceberg.HourTransform{}, iceberg.DayTransform{}, iceberg.MonthTransform{}, iceberg.YearTransform{}}
		for _, how := range hows {
			if how.CanTransform(c.Type) {
				all = append(all, edit{
					what:    fmt.Sprintf("partitions by %s of %s", how, c.Type),
					updates: then(addColumns(everyType()...), partitionBy(c.Name, "by", how)),
				})
			}
		}
	}
	return all
}

// Whatever change another engine makes through the catalog, it is refused or landers continue.
func TestAcceptedChangesKeepTableWritable(t *testing.T) {
	t.Parallel()
	config := localLake(t)
	config.Tables = []declare.Table{notes}
	l := openLake(t, config)
	config.Tables = []declare.Table{}
	other := openLake(t, config) // in another process, which does not know the table
	for i, e := range edits() {
		t.Run(e.what, func(t *testing.T) {
			dropNotes(t, l)
			if _, err := l.Create(t.Context(), notes); err != nil {
				t.Fatal(err)
			}
			if err := landNote(t, l); err != nil {
				t.Fatal(err)
			}
			have, err := l.Load(t.Context(), notes.Identifier())
			if err != nil {
				t.Fatal(err)
			}
			land := &lander{lake: l, table: notes, log: l.Logger()}
			w, to, err := land.writer(t.Context(), have) // of a lander that is at work meanwhile
			if err != nil {
				t.Fatal(err)
			}
			of := l
			if i%2 == 1 {
				of = other
			}
			_, _, err = clients(t, of).CommitTable(t.Context(), notes.Identifier(), nil, e.updates(have.Metadata()))
			switch {
			case e.refused == "" && err != nil:
				t.Fatal(err)
			case e.refused != "" && (err == nil || !strings.Contains(err.Error(), e.refused)):
				t.Errorf("error %v, want it to say %q", err, e.refused)
			}
			if e.past {
				if _, _, err := l.Catalog().CommitTable(t.Context(), notes.Identifier(), nil, e.updates(have.Metadata())); err != nil {
					t.Fatal(err)
				}
			}
			if err := addNote(t, land, have, w, to); err != nil {
				t.Fatalf("at work: %v", err)
			}
			if err := landNote(t, l); err != nil {
				t.Fatalf("at the next start: %v", err)
			}
			if n := noteCount(t, l); n != 3 {
				t.Errorf("%d rows, want 3", n)
			}
		})
	}
}

func withFormat(version string) catalog.CreateTableOpt {
	return catalog.WithProperties(iceberg.Properties{table.PropertyFormatVersion: version})
}

func dropNotes(t *testing.T, l *lake.Lake) {
	t.Helper()
	if err := l.Catalog().DropTable(t.Context(), notes.Identifier()); err != nil {
		t.Fatal(err)
	}
}
