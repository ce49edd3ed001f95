// Package defaults holds the defaults that the configuration and the lake's packages share, so that
// a table lands and is maintained alike, whether Millrace or another program does it.
package defaults

import "time"

// Landing: a commit happens after CommitInterval, or once CommitBytes are pending.
const (
	CommitInterval = time.Second
	CommitBytes    = 64 << 20
)

// Maintenance of tables.
const (
	MaintainEvery = 10 * time.Minute
	TargetBytes   = 128 << 20 // of a data file
	KeepAge       = time.Hour // how long a snapshot stays readable after the next one
	OrphanAge     = 24 * time.Hour
	Memory        = 256 << 20 // of a compaction, in bytes
	Share         = 0.5       // duty cycle of a compaction beside landers: the fraction of the time it works
)
