package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/foreign"
	"github.com/millrace/millrace/lake/wire"
)

// ceiling is what the lander cannot pass: the same bytes, from memory, to one closed Parquet file, by the same decoder and the same
// writer; no Kafka, no commit.
type ceiling struct{ *bench }

func (ceiling) Name() string { return "ceiling/from_memory" }

func (ceiling) Reads() encoding { return asProtobuf }

// So many events are in memory; more rows are the same ones again.
const inMemory = 1_000_000

func (c ceiling) Land(ctx context.Context, _ string, n int64) (r result, err error) {
	md, err := foreign.Message(ctx, "bench/lake/flat.proto", "Event")
	if err != nil {
		return r, err
	}
	plan, err := wire.Compile(md, wire.Options{Unknown: wire.UnknownColumn})
	if err != nil {
		return r, err
	}
	columns, err := columnar.New(plan.Fields())
	if err != nil {
		return r, err
	}
	into, err := plan.Bind(columns)
	if err != nil {
		return r, err
	}
	var bytes []byte
	ends := make([]int, 0, inMemory)
	for i := range min(n, inMemory) {
		bytes = asProtobuf.append(bytes, i)
		ends = append(ends, len(bytes))
	}
	path := filepath.Join(c.dir, "ceiling.parquet")
	f, err := os.Create(path) //nolint:gosec // in our own folder
	if err != nil {
		return r, err
	}
	properties := parquet.NewWriterProperties(parquet.WithCompression(compress.Codecs.Zstd), parquet.WithCompressionLevel(1),
		parquet.WithDictionaryDefault(false), parquet.WithMaxRowGroupLength(256<<10))
	w, err := pqarrow.NewFileWriter(columns.Schema(), f, properties, pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		return r, errors.Join(err, f.Close())
	}
	progress("%s", c.Name())
	begun, cpuBegun := time.Now(), ownCPU()
	for i := range n {
		at, begin := int(i)%len(ends), 0
		if at > 0 {
			begin = ends[at-1]
		}
		if err := into.Append(bytes[begin:ends[at]]); err != nil {
			return r, err
		}
		if columns.Rows() == 4096 || i == n-1 {
			rec := columns.Record()
			err := w.WriteBuffered(rec)
			rec.Release()
			if err != nil {
				return r, err
			}
			columns.Reset()
		}
	}
	if err := w.Close(); err != nil {
		return r, err
	}
	wall, cpu := time.Since(begun), ownCPU()-cpuBegun
	r = measure(n, wall, cpu, 0) // its memory is this program's, which says nothing
	info, err := os.Stat(path)
	if err == nil {
		r.Files, r.BytesPerRow = 1, float64(info.Size())/float64(n)
	}
	return r, err
}

// ownCPU is what this process has used.
func ownCPU() time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
