package main

import (
	"context"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	broker "github.com/millrace/millrace/test/servers/kafka"
)

// contender brings a topic into an Iceberg table. Another one is another type in the list of
// contenders.
type contender interface {
	// Name is how the result is filed: what it is, a slash, and how it was set.
	Name() string
	// Reads is how it wants the topic's events.
	Reads() encoding
	// Land brings the topic's n events into a table of its own, checks that they are there, and
	// tells what that took.
	Land(ctx context.Context, topic string, n int64) (result, error)
}

// bench is what contenders are given: the same broker, a folder, and a topic to get warm on.
type bench struct {
	cluster    broker.Cluster
	kafka      kafka.Config // of the cluster
	partitions int          // of each topic
	dir        string
	warmRows   int64         // in each encoding's warm topic
	commit     time.Duration // how often to commit
	heapMB     int           // of a contender in Java
}

// result is what a contender took, from its first row to the commit of the last.
type result struct {
	Rows          int64   `json:"rows"`
	Seconds       float64 `json:"seconds"`
	RowsPerSecond float64 `json:"rows_per_second"`
	// SteadyRowsPerSecond is over the commits between the first and the one before the last, by
	// their own clocks: what it does all day, with neither begin nor the wait for the last commit's
	// turn. 0 if there were too few commits to tell.
	SteadyRowsPerSecond float64 `json:"steady_rows_per_second"`
	CPUSeconds          float64 `json:"cpu_seconds"`
	RowsPerCPUSecond    float64 `json:"rows_per_cpu_second"`
	PeakMB              int     `json:"peak_mb"`
	Commits             int     `json:"commits"`
	Files               int64   `json:"files"`
	BytesPerRow         float64 `json:"bytes_per_row"`
}

// measure returns a result of what was counted.
func measure(rows int64, wall, cpu time.Duration, peakMB int) result {
	return result{
		Rows: rows, Seconds: wall.Seconds(), RowsPerSecond: float64(rows) / wall.Seconds(),
		CPUSeconds: cpu.Seconds(), RowsPerCPUSecond: float64(rows) / cpu.Seconds(), PeakMB: peakMB,
	}
}
