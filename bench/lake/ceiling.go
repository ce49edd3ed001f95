package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/pages"
	"github.com/millrace/millrace/lake/wire"
)

// ceiling is the upper limit of the lander: the same bytes, from memory to one closed Parquet file,
// through the same decoder and the same writer, without Kafka and without a commit. The distance of
// the lander from it is what Kafka's client, the commits and the table's upkeep cost.
type ceiling struct{ *bench }

// Name implements contender.
func (ceiling) Name() string { return "ceiling/from_memory" }

// Reads implements contender.
func (ceiling) Reads() encoding { return asProtobuf }

// The number of different events in memory, which repeat for more rows, and the number of rows per
// page, which is the lander's.
const (
	eventsInMemory = 1_000_000
	ceilingPage    = 16 << 10
)

// Land implements contender. It ignores the topic, because the events are in memory.
func (c ceiling) Land(ctx context.Context, _ string, n int64) (r result, err error) {
	md, err := external.Message(ctx, "bench/lake/flat.proto", "Event")
	if err != nil {
		return r, err
	}
	// The same steps as in the lander: compile the message to a plan, and append to columns.
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
	// All events are encoded before the measurement starts. ends[i] is the end of the i-th.
	var bytes []byte
	ends := make([]int, 0, eventsInMemory)
	for i := range min(n, eventsInMemory) {
		bytes = asProtobuf.append(bytes, i)
		ends = append(ends, len(bytes))
	}
	path := filepath.Join(c.dir, "ceiling.parquet")
	f, err := os.Create(path) //nolint:gosec // in our own folder
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w, err := pages.New(columns.Fields())
	if err != nil {
		return r, err
	}
	w.Begin(f)
	// The measurement starts here, and ends when the file is complete.
	progress("%s", c.Name())
	started, cpuBefore := time.Now(), ownCPU()
	for i := range n {
		at, begin := int(i)%len(ends), 0 // the event, and where its bytes begin
		if at > 0 {
			begin = ends[at-1]
		}
		if err := into.Append(bytes[begin:ends[at]]); err != nil {
			return r, err
		}
		if columns.Rows() == ceilingPage || i == n-1 {
			if err := w.Write(columns); err != nil {
				return r, err
			}
			columns.Reset()
		}
	}
	written, err := w.End()
	if err != nil {
		return r, err
	}
	wall, cpu := time.Since(started), ownCPU()-cpuBefore
	r = measure(n, wall, cpu, 0) // the memory would be that of the benchmark itself
	r.Files, r.BytesPerRow = 1, float64(written.Size)/float64(n)
	return r, nil
}

// ownCPU returns the CPU time of this process, in user and in system mode. It is 0 if the system
// does not report it.
func ownCPU() time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
