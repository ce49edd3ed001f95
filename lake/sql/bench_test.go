package sql_test

import (
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// 500,000 lines in five files; MB is the engine's resident memory at the end.
func BenchmarkRun(b *testing.B) {
	w := newWarehouse(b)
	w.create("order_lines", orderLines)
	for i := range 5 {
		w.append("order_lines", 100_000, func(r *array.RecordBuilder, j int) { orderLine(r, i*100_000+j) })
	}
	e := clickhousetest.Shared(b)
	s := lakesql.New(w.tables, e.Client(), lakesql.S3{})
	for name, query := range map[string]string{
		"count": "SELECT count() FROM order_lines",
		"group": "SELECT country, sum(quantity * unit_price) AS sales FROM order_lines GROUP BY country ORDER BY sales DESC LIMIT 5",
		"top":   "SELECT sku, count(), sum(quantity) AS n FROM order_lines GROUP BY sku ORDER BY n DESC LIMIT 5",
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := answerOf(b.Context(), s, query, lakesql.FormatTable); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(residentMB(b, e.PID()), "MB")
		})
	}
	b.Run("csv of all", func(b *testing.B) {
		var n int64
		for b.Loop() {
			body, err := s.Run(b.Context(), "SELECT * FROM order_lines", lakesql.FormatCSV)
			if err != nil {
				b.Fatal(err)
			}
			if n, err = io.Copy(io.Discard, body); err != nil {
				b.Fatal(err)
			}
			if err := body.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(n)
		b.ReportMetric(residentMB(b, e.PID()), "MB")
	})
	b.Run("fresh snapshot", func(b *testing.B) { // every query meets a new commit
		for b.Loop() {
			b.StopTimer()
			w.append("order_lines", 1, orderLine)
			b.StartTimer()
			if _, err := answerOf(b.Context(), s, "SELECT count() FROM order_lines", lakesql.FormatTable); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func residentMB(b *testing.B, pid int) float64 {
	b.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		b.Fatal(err)
	}
	return float64(resident*os.Getpagesize()) / 1e6
}
