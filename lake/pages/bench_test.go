package pages_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go"
	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/pages"
)

// clicks returns rows like those of bench/lake, with origins.
func clicks(tb testing.TB, from, rows int) *columnar.Columns {
	tb.Helper()
	var fields []columnar.Field
	for i, t := range []columnar.Type{
		iceberg.PrimitiveTypes.Int64, iceberg.PrimitiveTypes.Int64, iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.String,
		iceberg.PrimitiveTypes.Int32, iceberg.PrimitiveTypes.Float64, iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.String,
		iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.Bool, iceberg.PrimitiveTypes.TimestampTz, iceberg.PrimitiveTypes.Int64,
		iceberg.PrimitiveTypes.String,
	} {
		fields = append(fields, columnar.Field{Name: fmt.Sprint("c", i), Type: t})
	}
	c, err := columnar.New(fields)
	if err != nil {
		tb.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, uint64(from)))
	number := func(i int, v int64) { c.Column(i).(*columnar.Int64s).Append(v) }
	text := func(i int, v string) { c.Column(i).(*columnar.Bytes).AppendString(v) }
	pick := func(i, of int, what string) { text(i, fmt.Sprint(what, r.IntN(of))) }
	for row := from; row < from+rows; row++ {
		number(0, int64(row))
		number(1, r.Int64N(1_000_000))
		pick(2, 8, "type")
		sku := fmt.Sprint(10_000 + r.IntN(5_000))
		text(3, sku)
		c.Column(4).(*columnar.Int32s).Append(r.Int32N(9))
		c.Column(5).(*columnar.Float64s).Append(float64(r.IntN(10_000)) / 100)
		pick(6, 5, "EU")
		pick(7, 16, "D")
		pick(8, 3, "mobile")
		c.Column(9).(*columnar.Bools).Append(r.IntN(2) == 0)
		number(10, 1_767_225_600_000_000+3_000*int64(row)+1_000*r.Int64N(3))
		number(11, r.Int64N(1<<40))
		text(12, "/product/"+sku)
	}
	return c
}

// The cost of a row here, in pqarrow, and in zstd alone, which is the lower limit: it compresses
// the same pages.
func BenchmarkWrite(b *testing.B) {
	const groups = 16
	for _, rows := range []int{4096, 8192, 16384, 20480} {
		var all []*columnar.Columns
		var bodies [][]byte
		for i := range groups {
			all = append(all, clicks(b, i*rows, rows))
			bodies = append(bodies, pages.Bodies(b, all[i])...)
		}
		perRow := func(b *testing.B, run func() int64) {
			b.ReportAllocs()
			var size int64
			begun := cpuTime(b)
			for b.Loop() {
				size = run()
			}
			n := float64(rows * groups)
			b.ReportMetric(float64(cpuTime(b)-begun)/float64(b.N)/n, "cpu-ns/row")
			b.ReportMetric(float64(size)/n, "B/row")
		}
		b.Run(fmt.Sprint("pages/rows=", rows), func(b *testing.B) {
			w, err := pages.New(all[0].Fields())
			if err != nil {
				b.Fatal(err)
			}
			perRow(b, func() int64 {
				w.Begin(io.Discard)
				for _, columns := range all {
					if err := w.Write(columns); err != nil {
						b.Fatal(err)
					}
				}
				f, err := w.End()
				if err != nil {
					b.Fatal(err)
				}
				return f.Size
			})
		})
		b.Run(fmt.Sprint("zstd/rows=", rows), func(b *testing.B) {
			z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
			if err != nil {
				b.Fatal(err)
			}
			var to []byte
			perRow(b, func() (size int64) {
				for _, body := range bodies {
					to = z.EncodeAll(body, to[:0])
					size += int64(len(to))
				}
				return size
			})
		})
		b.Run(fmt.Sprint("pqarrow/rows=", rows), func(b *testing.B) {
			properties := parquet.NewWriterProperties(parquet.WithCompression(compress.Codecs.Zstd), parquet.WithCompressionLevel(1),
				parquet.WithDictionaryDefault(false), parquet.WithMaxRowGroupLength(256<<10))
			perRow(b, func() int64 {
				out := &counting{}
				w, err := pqarrow.NewFileWriter(all[0].Schema(), out, properties, pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
				if err != nil {
					b.Fatal(err)
				}
				for _, columns := range all {
					rec := columns.Record()
					if err := w.WriteBuffered(rec); err != nil {
						b.Fatal(err)
					}
					rec.Release()
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
				return out.n
			})
		})
	}
}

type counting struct{ n int64 }

func (c *counting) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
