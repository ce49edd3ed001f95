package landing

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/location"
	"github.com/millrace/millrace/lake/maintenance"
)

// An empty string in a partition is a bound of its manifest like any other value. Readers would
// interpret a missing bound as nulls only, and skip the manifest.
func TestEmptyStringsAreBoundsOfPartitions(t *testing.T) {
	t.Parallel()
	null := "null"
	for _, format := range []string{"1", "2", "3"} {
		for what, c := range map[string]struct {
			of      iceberg.Type
			how     iceberg.Transform
			commits [][]string
			bounds  []string // of each commit's manifest
		}{
			"identity": {
				iceberg.PrimitiveTypes.String, iceberg.IdentityTransform{},
				[][]string{{""}, {"", "Rome"}, {null, ""}, {null}, {"Rome", "Zug"}, {null, "", "Zug"}},
				[]string{`"" to ""`, `"" to "Rome"`, `"" to ""`, "none", `"Rome" to "Zug"`, `"" to "Zug"`},
			},
			"truncate": {
				iceberg.PrimitiveTypes.String, iceberg.TruncateTransform{Width: 2},
				[][]string{{"", "Rome"}, {null, ""}, {null}},
				[]string{`"" to "Ro"`, `"" to ""`, "none"},
			},
			"binary": {
				iceberg.PrimitiveTypes.Binary, iceberg.IdentityTransform{},
				[][]string{{"", "Rome"}, {""}, {null, ""}},
				[]string{`"" to "Rome"`, `"" to ""`, `"" to ""`},
			},
		} {
			t.Run(what+", format "+format, func(t *testing.T) {
				t.Parallel()
				l := openLake(t, localLake(t))
				name := declare.Identifier("towns")
				createTowns(t, l, name, format, c.of, c.how)
				for _, rows := range c.commits {
					appendTowns(t, l, name, rows, null)
				}
				bounds := boundsOf(t, l, name)
				slices.Reverse(bounds) // the newest manifest is the first
				if !slices.Equal(bounds, c.bounds) {
					t.Errorf("the bounds are %q, want %q", bounds, c.bounds)
				}
				found := func(when string) {
					t.Helper()
					for _, town := range []string{"", "Rome", "Zug"} {
						var want, n int64
						for _, rows := range c.commits {
							for _, row := range rows {
								if row == town {
									want++
								}
							}
						}
						have, err := l.Load(t.Context(), name)
						if err != nil {
							t.Fatal(err)
						}
						equal := iceberg.EqualTo(iceberg.Reference("city"), town)
						if c.of == iceberg.PrimitiveTypes.Binary {
							equal = iceberg.EqualTo(iceberg.Reference("city"), []byte(town))
						}
						tasks, err := have.Scan(table.WithRowFilter(equal)).PlanFiles(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						for _, task := range tasks {
							n += task.File.Count()
						}
						if n != want {
							t.Errorf("%s, %d rows of %q are found, want %d", when, n, town, want)
						}
					}
				}
				found("landed")
				_, err := maintenance.RewriteManifests(t.Context(), func(ctx context.Context) (*table.Table, error) { return l.Load(ctx, name) },
					maintenance.Config{DutyCycle: 1, Manifests: 2})
				if err != nil {
					t.Fatal(err)
				}
				found("merged")
			})
		}
	}
}

// Maintenance adds the bounds to a table of an earlier release that is no longer landed.
func TestMaintenanceAddsMissingBounds(t *testing.T) {
	t.Parallel()
	for _, rows := range [][]string{{""}, {"", "Rome"}, {"null", ""}} {
		t.Run(fmt.Sprintf("%q", rows), func(t *testing.T) {
			t.Parallel()
			l := openLake(t, localLake(t))
			name := declare.Identifier("towns")
			createTowns(t, l, name, "2", iceberg.PrimitiveTypes.String, iceberg.IdentityTransform{})
			have, err := l.Load(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			earlier := func(context.Context) (io.IO, error) { return location.Local{}, nil }
			appendTo(t, table.New(name, have.Metadata(), have.MetadataLocation(), earlier, l.Catalog()), rows, "null")
			if bounds := boundsOf(t, l, name); strings.HasPrefix(bounds[0], `"" to`) {
				t.Fatalf("an earlier release wrote the bounds %q", bounds)
			}
			load := func(ctx context.Context) (*table.Table, error) { return l.Load(ctx, name) }
			for _, manifests := range []int{1, 0} { // the second run finds nothing to do
				did, err := maintenance.RewriteManifests(t.Context(), load, maintenance.Config{DutyCycle: 1})
				if err != nil || did.Before != manifests {
					t.Errorf("%+v, %v", did, err)
				}
			}
			want := fmt.Sprintf("%q to %q", "", strings.TrimPrefix(rows[len(rows)-1], "null"))
			if bounds := boundsOf(t, l, name); !slices.Equal(bounds, []string{want}) {
				t.Errorf("the bounds are %q, want %q", bounds, want)
			}
		})
	}
}

func createTowns(t *testing.T, l *lake.Lake, name table.Identifier, format string, of iceberg.Type, how iceberg.Transform) {
	t.Helper()
	schema := iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "city", Type: of})
	spec := iceberg.NewPartitionSpec(iceberg.PartitionField{SourceIDs: []int{1}, FieldID: 1000, Name: "city_part", Transform: how})
	_, err := l.Catalog().CreateTable(t.Context(), name, schema, catalog.WithPartitionSpec(&spec),
		catalog.WithProperties(iceberg.Properties{"format-version": format, table.ManifestMergeEnabledKey: "false"}))
	if err != nil {
		t.Fatal(err)
	}
}

// appendTowns commits rows of one column.
func appendTowns(t *testing.T, l *lake.Lake, name table.Identifier, rows []string, null string) {
	t.Helper()
	have, err := l.Load(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, have, rows, null)
}

func appendTo(t *testing.T, have *table.Table, rows []string, null string) {
	t.Helper()
	schema, err := table.SchemaToArrowSchema(have.Schema(), nil, false, false)
	if err != nil {
		t.Fatal(err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, row := range rows {
		switch column := b.Field(0).(type) {
		case array.StringLikeBuilder:
			if row == null {
				column.AppendNull()
			} else {
				column.Append(row)
			}
		case *array.BinaryBuilder:
			if row == null {
				column.AppendNull()
			} else {
				column.Append([]byte(row))
			}
		default:
			t.Fatalf("a column of %T", column)
		}
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	rdr, err := array.NewRecordReader(schema, []arrow.RecordBatch{rec})
	if err != nil {
		t.Fatal(err)
	}
	defer rdr.Release()
	if _, err := have.Append(t.Context(), rdr, nil); err != nil {
		t.Fatal(err)
	}
}

// boundsOf returns the bounds of the first partition field of each manifest.
func boundsOf(t *testing.T, l *lake.Lake, name table.Identifier) (bounds []string) {
	t.Helper()
	have, err := l.Load(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	files, err := have.FS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := have.CurrentSnapshot().Manifests(files)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifests {
		s := m.Partitions()[0]
		if s.LowerBound == nil || s.UpperBound == nil {
			bounds = append(bounds, "none")
			continue
		}
		bounds = append(bounds, fmt.Sprintf("%q to %q", *s.LowerBound, *s.UpperBound))
	}
	return bounds
}

// A table's state reports whether its files are partitioned by time, for engines that prune such
// files incorrectly.
func TestTimePartitionsAreKnown(t *testing.T) {
	t.Parallel()
	l := openLake(t, localLake(t))
	for _, c := range []struct {
		of   iceberg.Type
		how  iceberg.Transform
		time bool
	}{
		{iceberg.PrimitiveTypes.TimestampTz, iceberg.HourTransform{}, true},
		{iceberg.PrimitiveTypes.TimestampTz, iceberg.DayTransform{}, true},
		{iceberg.PrimitiveTypes.Date, iceberg.MonthTransform{}, true},
		{iceberg.PrimitiveTypes.Date, iceberg.YearTransform{}, true},
		{iceberg.PrimitiveTypes.Date, iceberg.IdentityTransform{}, false},
		{iceberg.PrimitiveTypes.String, iceberg.BucketTransform{NumBuckets: 2}, false},
	} {
		name := strings.ReplaceAll(fmt.Sprintf("%s_%s", c.of, c.how), "[2]", "")
		createTowns(t, l, declare.Identifier(name), "2", c.of, c.how)
		states, err := l.Others(t.Context(), func(table string) bool { return table == name })
		if err != nil || len(states) != 1 || states[0].TimePartitions != c.time {
			t.Errorf("%s: %+v, %v", name, states, err)
		}
	}
}
