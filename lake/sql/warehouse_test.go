package sql_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	icebergsql "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/io"
	_ "github.com/apache/iceberg-go/io/gocloud/s3" // s3:// locations
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/sqlite"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// warehouse is a local Iceberg warehouse with a SQL catalog in SQLite, like a lander's.
type warehouse struct {
	t       testing.TB
	dir     string
	db      *sql.DB
	catalog *icebergsql.Catalog
	names   []string

	mu sync.Mutex // held while tables are resolved: a test that holds it makes several commits one
}

func newWarehouse(t testing.TB) *warehouse {
	t.Helper()
	dir := t.TempDir()
	db, err := sqlite.Open(filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	cat, err := icebergsql.NewCatalog("millrace", db, icebergsql.SQLite, iceberg.Properties{"warehouse": "file://" + dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.CreateNamespace(t.Context(), table.Identifier{"millrace"}, nil); err != nil {
		t.Fatal(err)
	}
	return &warehouse{t: t, dir: dir, db: db, catalog: cat}
}

// newBucketWarehouse returns a warehouse in a bucket.
func newBucketWarehouse(t testing.TB) (*warehouse, lakesql.S3) {
	t.Helper()
	c := objects.Config(t)
	w := newWarehouse(t)
	cat, err := icebergsql.NewCatalog("millrace", w.db, icebergsql.SQLite, iceberg.Properties{
		"warehouse": fmt.Sprintf("s3://%s/%s", c.Bucket, rand.Text()), io.S3EndpointURL: c.Endpoint, io.S3Region: c.Region,
		io.S3AccessKeyID: c.AccessKey, io.S3SecretAccessKey: c.SecretKey,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.catalog = cat
	return w, lakesql.S3{Endpoint: c.Endpoint, Region: c.Region, AccessKey: c.AccessKey, SecretKey: c.SecretKey}
}

func (w *warehouse) create(name string, schema *iceberg.Schema, partitions ...iceberg.PartitionField) {
	w.t.Helper()
	spec := iceberg.NewPartitionSpec(partitions...)
	_, err := w.catalog.CreateTable(w.t.Context(), table.Identifier{"millrace", name}, schema, catalog.WithPartitionSpec(&spec),
		catalog.WithProperties(iceberg.Properties{"format-version": "2", "write.parquet.compression-codec": "zstd"}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.names = append(w.names, name)
}

// append commits one snapshot with a number of rows; set fills row i.
func (w *warehouse) append(name string, rows int, set func(b *array.RecordBuilder, i int)) {
	w.t.Helper()
	ctx := w.t.Context()
	tbl, err := w.catalog.LoadTable(ctx, table.Identifier{"millrace", name})
	if err != nil {
		w.t.Fatal(err)
	}
	schema, err := table.SchemaToArrowSchema(tbl.Schema(), nil, false, false)
	if err != nil {
		w.t.Fatal(err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for i := range rows {
		set(b, i)
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	rdr, err := array.NewRecordReader(schema, []arrow.RecordBatch{rec})
	if err != nil {
		w.t.Fatal(err)
	}
	defer rdr.Release()
	if _, err := tbl.Append(ctx, rdr, nil); err != nil {
		w.t.Fatal(err)
	}
}

// tables implements Tables: the current locations of all tables.
func (w *warehouse) tables(ctx context.Context, _ func(string) bool) ([]lakesql.Table, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ts []lakesql.Table
	for _, name := range w.names {
		tbl, err := w.catalog.LoadTable(ctx, table.Identifier{"millrace", name})
		if err != nil {
			return nil, fmt.Errorf("load %s: %w", name, err)
		}
		ts = append(ts, lakesql.Table{
			Name: name, MetadataLocation: tbl.MetadataLocation(), Location: tbl.Location(), TimePartitions: !tbl.Spec().IsUnpartitioned(),
		})
	}
	return ts, nil
}

var orderLines = iceberg.NewSchema(0,
	iceberg.NestedField{ID: 1, Name: "order_id", Type: iceberg.PrimitiveTypes.String, Required: true},
	iceberg.NestedField{ID: 2, Name: "line", Type: iceberg.PrimitiveTypes.Int32, Required: true},
	iceberg.NestedField{ID: 3, Name: "customer_id", Type: iceberg.PrimitiveTypes.String},
	iceberg.NestedField{ID: 4, Name: "sku", Type: iceberg.PrimitiveTypes.String, Required: true},
	iceberg.NestedField{ID: 5, Name: "quantity", Type: iceberg.PrimitiveTypes.Int64, Required: true},
	iceberg.NestedField{ID: 6, Name: "unit_price", Type: iceberg.DecimalTypeOf(38, 9), Required: true},
	iceberg.NestedField{ID: 7, Name: "country", Type: iceberg.PrimitiveTypes.String, Required: true},
	iceberg.NestedField{ID: 8, Name: "ordered_at", Type: iceberg.PrimitiveTypes.TimestampTz, Required: true},
	iceberg.NestedField{ID: 9, Name: "data", Type: iceberg.PrimitiveTypes.Binary, Required: true},
	iceberg.NestedField{ID: 10, Name: "weight", Type: iceberg.PrimitiveTypes.Float64},
)

var firstOrder = time.Date(2010, 12, 1, 8, 26, 0, 123456000, time.UTC)

// orderLine fills line i. Every third has no customer; the quantity is i, and the unit price i +
// 0.000000001.
func orderLine(b *array.RecordBuilder, i int) {
	b.Field(0).(*array.StringBuilder).Append(fmt.Sprintf("order-%d", i/10))
	b.Field(1).(*array.Int32Builder).Append(int32(i%10 + 1))
	if i%3 == 0 {
		b.Field(2).AppendNull()
	} else {
		b.Field(2).(*array.StringBuilder).Append(fmt.Sprintf("customer-%d", i%1000))
	}
	b.Field(3).(*array.StringBuilder).Append(fmt.Sprintf("sku-%d", i%4000))
	b.Field(4).(*array.Int64Builder).Append(int64(i))
	b.Field(5).(*array.Decimal128Builder).Append(decimal128.FromI64(int64(i)*1e9 + 1))
	b.Field(6).(*array.StringBuilder).Append(fmt.Sprintf("country-%d", i%38))
	b.Field(7).(*array.TimestampBuilder).Append(arrow.Timestamp(firstOrder.UnixMicro() + int64(i)))
	b.Field(8).(*array.BinaryBuilder).Append(bytes.Repeat([]byte{byte(i), 0xff}, 4))
	if i%2 == 0 {
		b.Field(9).AppendNull()
	} else {
		b.Field(9).(*array.Float64Builder).Append(float64(i) / 2)
	}
}
