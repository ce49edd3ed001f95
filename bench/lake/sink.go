package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/connect"
)

// icebergSink is Iceberg's own sink for Kafka Connect, in the fastest configuration that we found:
//
//   - It has its own worker with G1 and 2 GB of memory, allocated at the start, so Java neither
//     grows the heap nor collects for lack of memory.
//   - It is warmed up: a sink with the same number of tasks lands another topic in the same worker,
//     so that code is compiled and classes are loaded. Then a new sink, with a new name and a new
//     control topic, lands the measured topic.
//   - Time and CPU time start when its consumers have their partitions, so neither the start of
//     tasks nor the joining of the group is counted. They end when the table has all rows. (The
//     first file would be too late a sign, because Iceberg creates a file when a first row group is
//     full.)
//   - Its records are JSON without schemas, which costs less than JSON with schemas. Times are
//     numbers, fetches are megabytes, and a poll returns up to 10,000 records.
//   - The table exists, unpartitioned, with Parquet's cheapest zstd, in a folder with a catalog in
//     SQLite: no network is involved.
type icebergSink struct {
	*bench
	tasks int
}

// Name implements contender.
func (s icebergSink) Name() string { return fmt.Sprintf("iceberg_sink/tasks_%d", s.tasks) }

// Reads implements contender.
func (s icebergSink) Reads() encoding { return asJSON }

// Land implements contender.
func (s icebergSink) Land(ctx context.Context, topic string, n int64) (r result, err error) {
	dir := filepath.Join(s.dir, strings.ReplaceAll(s.Name(), "/", "-"))
	w, err := openWarehouse(ctx, location{"bench", filepath.Join(dir, "catalog.db"), dir})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	// Each run has a worker of its own, so CPU time and memory are those of the run.
	worker := &connect.Worker{Brokers: s.kafka.Brokers, HeapMB: s.heapMB}
	defer func() { err = errors.Join(err, worker.Stop()) }()
	progress("%s: starting", s.Name())
	if _, err := worker.Start(); err != nil {
		return r, err
	}

	progress("%s: warming up", s.Name())
	// Warm up with a sink of its own, which is deleted before the measurement.
	warm, err := s.begin(ctx, worker, w, "warm", warmTopicOf(asJSON))
	if err != nil {
		return r, err
	}
	if err := warm.awaitRows(ctx, s.warmRows); err != nil {
		return r, err
	}
	if err := worker.Delete(ctx, warm.sink.Name); err != nil {
		return r, err
	}

	// The measurement starts when the sink's consumers have all partitions.
	run, err := s.begin(ctx, worker, w, "events", topic)
	if err != nil {
		return r, err
	}
	err = run.await(ctx, func() (bool, error) {
		assigned, err := s.cluster.Assigned(ctx, "connect-"+run.sink.Name, topic)
		return assigned == s.partitions, err
	})
	if err != nil {
		return r, err
	}
	started := time.Now()
	cpuBefore, err := worker.CPU()
	if err != nil {
		return r, err
	}
	if err := run.awaitRows(ctx, n); err != nil {
		return r, err
	}
	wall := time.Since(started)
	cpu, err1 := worker.CPU()
	peak, err2 := worker.PeakMB()
	if err := errors.Join(err1, err2, worker.Kill()); err != nil {
		return r, err
	}
	r = measure(n, wall, cpu-cpuBefore, peak)
	return r, w.describe(ctx, "events", n, &r)
}

// sinkRun is a running sink, for warming up or for the measurement, and the table that it fills.
type sinkRun struct {
	worker *connect.Worker
	into   *warehouse
	sink   connect.Sink
	table  string
	name   string // of the contender
}

// begin creates a sink that lands a topic in a new table.
func (s icebergSink) begin(
	ctx context.Context, worker *connect.Worker, into *warehouse, table, topic string,
) (*sinkRun, error) {
	if err := into.create(ctx, table); err != nil {
		return nil, err
	}
	name := strings.ReplaceAll(s.Name(), "/", "-") + "-" + table
	control := "control-" + name // the topic by which the sink's tasks coordinate commits
	if err := kafka.EnsureTopics(ctx, s.kafka, kafka.Topic{Name: control, Partitions: 1}); err != nil {
		return nil, err
	}
	sink := connect.Sink{
		Name: name, Topic: topic, ControlTopic: control, Tasks: s.tasks,
		Table: namespace + "." + table, Commit: s.commit,
		Catalog: catalog.Catalog{
			Name: into.location.catalog, JDBC: "jdbc:sqlite:" + into.location.file, Warehouse: into.url(),
		},
	}
	return &sinkRun{worker: worker, into: into, sink: sink, table: table, name: s.Name()}, worker.Create(ctx, sink)
}

// pollInterval is the interval of polls. Each reads a few small files, which costs almost nothing.
const pollInterval = 20 * time.Millisecond

// await blocks until a condition is true. It returns an error if the sink fails or the worker
// exits.
func (s *sinkRun) await(ctx context.Context, condition func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	checked := time.Now()
	for {
		done, err := condition()
		if done || err != nil {
			return err
		}
		if time.Since(checked) > 5*time.Second {
			if err := s.worker.Failed(ctx, s.sink.Name); err != nil {
				return err
			}
			checked = time.Now()
		}
		select {
		case <-tick.C:
		case <-s.worker.Ended():
			return fmt.Errorf("%s: the worker exited\n%s", s.name, s.worker.LogTail())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// awaitRows blocks until n rows are committed. More than n are an error, as rows were landed twice.
func (s *sinkRun) awaitRows(ctx context.Context, n int64) error {
	return s.await(ctx, func() (bool, error) {
		commits, err := s.into.history(ctx, s.table)
		if err != nil || len(commits) == 0 {
			return false, err
		}
		got := commits[len(commits)-1].Total
		progress("%s: %d of %d rows committed", s.name, got, n)
		if got > n {
			return false, fmt.Errorf("%s: %d rows are committed, want %d", s.name, got, n)
		}
		return got == n, nil
	})
}
