package lake_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
)

// Open creates the declared tables. When a declaration gains a column, the next Open adds it to the
// existing table. Package landing fills the tables.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "lake")
	check(err)
	defer func() { check(os.RemoveAll(dir)) }()

	readings := declare.Table{
		Namespace: "weather", Name: "readings", Topic: "readings", Doc: "Every reading of a thermometer.",
		Columns: []columnar.Field{{Name: "celsius", Type: iceberg.PrimitiveTypes.Float64, Required: true}},
	}
	config := lake.Config{
		Warehouse: filepath.Join(dir, "warehouse"), // or s3://bucket/folder
		Catalog:   filepath.Join(dir, "catalog.db"),
		Tables:    []declare.Table{readings},
		Logger:    slog.New(slog.DiscardHandler),
	}
	l, err := lake.Open(ctx, config)
	check(err)
	check(l.Close())

	readings.Columns = append(readings.Columns, columnar.Field{Name: "place", Type: iceberg.PrimitiveTypes.String})
	config.Tables = []declare.Table{readings}
	l, err = lake.Open(ctx, config)
	check(err)
	defer func() { check(l.Close()) }()

	summary, err := l.Summarize(ctx, lake.Name{"weather", "readings"})
	check(err)
	fmt.Printf("%s: %d rows. %s\n", summary.Name, summary.Rows, summary.Doc)
	t, err := l.Load(ctx, readings.Identifier())
	check(err)
	for _, column := range t.Schema().Fields() {
		fmt.Println(column.Name, column.Type)
	}
	// Output:
	// weather.readings: 0 rows. Every reading of a thermometer.
	// celsius double
	// topic string
	// partition int
	// offset long
	// place string
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
