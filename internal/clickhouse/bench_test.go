package clickhouse_test

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// benchRows is the number of rows of an insert.
const benchRows = 50_000

// orders is a table like that of the facts.
func orders(name string) clickhouse.Table {
	return clickhouse.Table{
		Database: clickhouse.Features, Name: name, OrderBy: []string{"customer", "at"},
		Columns: []clickhouse.Column{
			{Name: "customer", Type: "String"}, {Name: "at", Type: "DateTime64(6, 'UTC')"}, {Name: "sku", Type: "LowCardinality(String)"},
			{Name: "quantity", Type: "Int64"}, {Name: "amount", Type: "Int64"}, {Name: "partition", Type: "UInt32"}, {Name: "offset", Type: "Int64"},
		},
	}
}

func orderRow(n int) []any {
	return []any{
		fmt.Sprint("customer-", n%5000), time.UnixMicro(1_700_000_000_000_000 + int64(n)), fmt.Sprint("sku-", n%300),
		int64(n % 7), int64(n * 100), uint32(n % 4), int64(n),
	}
}

// BenchmarkInsert compares a Store with a bare batch of clickhouse-go, on one engine and with the
// same rows. Filling the batch is part of both.
func BenchmarkInsert(b *testing.B) {
	e := clickhousetest.Shared(b)
	s := clickhousetest.OpenStoreOn(b, e)
	rows := make([][]any, benchRows)
	for n := range rows {
		rows[n] = orderRow(n)
	}
	report := func(b *testing.B) { b.ReportMetric(float64(benchRows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s") }
	b.Run("store", func(b *testing.B) {
		table := orders("bench_store")
		if err := s.CreateTable(b.Context(), table); err != nil {
			b.Fatal(err)
		}
		batch, err := s.Batch(table, "")
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			batch.Reset("")
			for _, row := range rows {
				if err := batch.Append(row...); err != nil {
					b.Fatal(err)
				}
			}
			if err := batch.Send(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		report(b)
	})
	for name, method := range map[string]driver.CompressionMethod{"driver": driver.CompressionNone, "driver, lz4": driver.CompressionLZ4} {
		b.Run(name, func(b *testing.B) {
			table := orders("bench_driver")
			if err := s.CreateTable(b.Context(), table); err != nil {
				b.Fatal(err)
			}
			c := openDriver(b, e, method)
			for b.Loop() {
				// Otherwise ClickHouse would discard equal batches.
				token := driver.Settings{"insert_deduplication_token": rand.Text(), "async_insert": "0"}
				batch, err := c.PrepareBatch(driver.Context(b.Context(), driver.WithSettings(token)), "INSERT INTO bench_driver")
				if err != nil {
					b.Fatal(err)
				}
				for _, row := range rows {
					if err := batch.Append(row...); err != nil {
						b.Fatal(err)
					}
				}
				if err := batch.Send(); err != nil {
					b.Fatal(err)
				}
			}
			report(b)
		})
	}
}
