package landing

import (
	"errors"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
)

// A change that stops landers, because it was made before they started or bypassed the guard, is
// reported with the reason, and the catalog lets clients undo it.
func TestBlockingChangesCanBeReverted(t *testing.T) {
	t.Parallel()
	p := iceberg.PrimitiveTypes
	without := func(name string) func(table.Metadata) []table.Update {
		return func(m table.Metadata) []table.Update {
			var left []iceberg.NestedField
			for _, f := range m.CurrentSchema().Fields() {
				if f.Name != name {
					left = append(left, f)
				}
			}
			return []table.Update{table.NewAddSchemaUpdate(iceberg.NewSchema(m.CurrentSchema().ID+1, left...)), table.NewSetCurrentSchemaUpdate(-1)}
		}
	}
	for what, c := range map[string]struct {
		blocks, wrong, out func(table.Metadata) []table.Update
	}{
		"the same, and a column beside": {
			then(addColumns(newColumn("city", p.String)), twins), without("said"),
			then(func(table.Metadata) []table.Update { return []table.Update{table.NewSetDefaultSpecUpdate(0)} }, without("city")),
		},
		"partition fields that Avro calls the same": {
			twins, without("said"),
			func(table.Metadata) []table.Update { return []table.Update{table.NewSetDefaultSpecUpdate(0)} },
		},
		"metrics of a mode that is none": {
			setProperties(iceberg.Properties{"write.metadata.metrics.default": "some(1)"}), without("said"),
			func(table.Metadata) []table.Update {
				return []table.Update{table.NewRemovePropertiesUpdate([]string{"write.metadata.metrics.default"})}
			},
		},
	} {
		for _, by := range []string{"who lands it", "another"} {
			t.Run(what+"/"+by, func(t *testing.T) {
				config := localLake(t)
				config.Tables = []declare.Table{notes}
				l := openLake(t, config)
				of := l
				if by == "another" {
					config.Tables = []declare.Table{}
					of = openLake(t, config)
				}
				if err := landNote(t, l); err != nil {
					t.Fatal(err)
				}
				have := loadNotes(t, l)
				if _, _, err := l.Catalog().CommitTable(t.Context(), notes.Identifier(), nil, c.blocks(have)); err != nil {
					t.Fatal(err)
				}
				unwritable := (*faults.UnwritableError)(nil)
				if err := landNote(t, l); !errors.As(err, &unwritable) || unwritable.Table != notes.Name {
					t.Fatalf("error %v, want that the table cannot be written", err)
				}
				rest := clients(t, of)
				if _, _, err := rest.CommitTable(t.Context(), notes.Identifier(), nil, c.wrong(loadNotes(t, l))); err == nil || !strings.Contains(err.Error(), "said") {
					t.Errorf("error %v, want that the landers' own column stays", err)
				}
				if _, _, err := rest.CommitTable(t.Context(), notes.Identifier(), nil, c.out(loadNotes(t, l))); err != nil {
					t.Fatal(err)
				}
				if err := landNote(t, l); err != nil {
					t.Fatal(err)
				}
				if n := noteCount(t, l); n != 2 {
					t.Errorf("%d rows, want 2", n)
				}
			})
		}
	}
}

func loadNotes(t *testing.T, l *lake.Lake) table.Metadata {
	t.Helper()
	have, err := l.Catalog().LoadTable(t.Context(), notes.Identifier())
	if err != nil {
		t.Fatal(err)
	}
	return have.Metadata()
}

// A table whose landers write fixed columns may be partitioned by other columns, which are null in
// their rows. The process that serves the catalog need not know the declared columns.
func TestPartitionsByColumnsThatLandersDoNotWrite(t *testing.T) {
	t.Parallel()
	p := iceberg.PrimitiveTypes
	fixed := notes
	fixed.Grows = false
	fixed.Rows = func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) { return noteRows{to}, nil }
	at := &iceberg.StructType{FieldList: []iceberg.NestedField{newColumn("day", p.Date), newColumn("time", p.Timestamp)}}
	for what, updates := range map[string]func(table.Metadata) []table.Update{
		"a column":                           then(addColumns(newColumn("city", p.String)), partitionBy("city", "city", iceberg.IdentityTransform{})),
		"a part of one":                      then(addColumns(newColumn("at", at)), partitionBy("at.time", "hour", iceberg.HourTransform{})),
		"a column of binary":                 then(addColumns(newColumn("id", p.Binary)), partitionBy("id", "1st 😎", iceberg.TruncateTransform{Width: 2})),
		"a column that landers do not write": then(addColumns(newColumn("at", p.Timestamp)), partitionBy("at", "at_day", iceberg.DayTransform{})),
		"a column of landers'":               partitionBy("offset", "sevenths", iceberg.BucketTransform{NumBuckets: 7}),
	} {
		t.Run(what, func(t *testing.T) {
			config := localLake(t)
			config.Tables = []declare.Table{fixed}
			l := openLake(t, config)
			config.Tables = []declare.Table{}
			if _, _, err := clients(t, openLake(t, config)).CommitTable(t.Context(), fixed.Identifier(), nil, updates(loadNotes(t, l))); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := landRecord(t, l, fixed); err != nil {
					t.Fatal(err)
				}
			}
			if n := noteCount(t, l); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}

// Landers accept tables that another engine created for them, in format version 3, too.
func TestTablesOfOtherEngines(t *testing.T) {
	t.Parallel()
	p := iceberg.PrimitiveTypes
	said := iceberg.NestedField{ID: 1, Name: "said", Type: p.String}
	for what, c := range map[string]struct {
		format  string
		schema  *iceberg.Schema
		refused string
	}{
		"with nothing in it":            {"2", iceberg.NewSchema(0, said), ""},
		"of format 1":                   {"1", iceberg.NewSchema(0, said), ""},
		"of format 3":                   {"3", iceberg.NewSchema(0, said), ""},
		"of format 3, with its types":   {"3", iceberg.NewSchema(0, said, iceberg.NestedField{ID: 2, Name: "at", Type: p.TimestampTzNs}, iceberg.NestedField{ID: 3, Name: "x", Type: iceberg.VariantType{}}), ""},
		"with a column of another type": {"2", iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "said", Type: p.Int64}), "said"},
	} {
		t.Run(what, func(t *testing.T) {
			config := localLake(t)
			config.Tables = []declare.Table{notes}
			l := openLake(t, config)
			dropNotes(t, l)
			_, err := clients(t, l).CreateTable(t.Context(), notes.Identifier(), c.schema, withFormat(c.format))
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("error %v, want it to say %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := landNote(t, l); err != nil {
					t.Fatal(err)
				}
			}
			if n := noteCount(t, l); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}
