package main

import (
	"context"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	broker "github.com/millrace/millrace/test/servers/kafka"
)

// contender lands a topic in an Iceberg table. To measure another one, add a type to the list of
// contenders. Contenders run one after the other, so that they do not compete for the machine.
type contender interface {
	// Name is the key of the result: the kind, a slash, and the variant.
	Name() string
	// Reads is the encoding of the topic that the contender reads.
	Reads() encoding
	// Land lands the topic's n events in a new table, checks that they are there, and returns the
	// cost.
	Land(ctx context.Context, topic string, n int64) (result, error)
}

// bench is what all contenders share: the broker, a folder, and a topic for warming up.
type bench struct {
	cluster    broker.Cluster
	kafka      kafka.Config // of the cluster
	partitions int          // of each topic
	dir        string
	warmRows   int64         // in the warm-up topic of each encoding
	commit     time.Duration // commit interval
	heapMB     int           // of contenders in Java
}

// result is the cost of a contender, from its first row to the commit of the last. Its names in
// JSON are those that reports and earlier results use.
type result struct {
	Rows int64 `json:"rows"`
	// Seconds is the wall time.
	Seconds       float64 `json:"seconds"`
	RowsPerSecond float64 `json:"rows_per_second"`
	// SteadyRowsPerSecond is the rate between the first and the last commit but one, by the
	// commits' own times. So it excludes the start, and the wait for the last commit. It is 0 if
	// there were too few commits.
	SteadyRowsPerSecond float64 `json:"steady_rows_per_second"`
	// CPUSeconds is the CPU time of the contender's process, in user and in system mode.
	CPUSeconds       float64 `json:"cpu_seconds"`
	RowsPerCPUSecond float64 `json:"rows_per_cpu_second"`
	// PeakMB is the highest resident memory of the process, or 0 if it was not measured.
	PeakMB int `json:"peak_mb"`
	// Commits, Files and BytesPerRow describe the table at the end. Files are the live data files.
	Commits     int     `json:"commits"`
	Files       int64   `json:"files"`
	BytesPerRow float64 `json:"bytes_per_row"`
}

// measure returns a result with the rates of n rows. The caller adds the figures of the table: see
// warehouse.describe.
func measure(rows int64, wall, cpu time.Duration, peakMB int) result {
	return result{
		Rows: rows, Seconds: wall.Seconds(), RowsPerSecond: float64(rows) / wall.Seconds(),
		CPUSeconds: cpu.Seconds(), RowsPerCPUSecond: float64(rows) / cpu.Seconds(), PeakMB: peakMB,
	}
}
