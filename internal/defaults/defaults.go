// Package defaults holds the defaults that the configuration and the lake's packages share, so that a
// table lands and is maintained alike, whether Millrace or another program does it.
package defaults

import "time"

// Landing.
const (
	CommitInterval = time.Second
	CommitBytes    = 64 << 20
)

// Maintenance of tables.
const (
	MaintainEvery = 10 * time.Minute
	TargetBytes   = 128 << 20 // of a data file
	KeepAge       = time.Hour // of a state that another one has replaced
	OrphanAge     = 24 * time.Hour
	Memory        = 256 << 20 // of a compaction, in bytes
	Share         = 0.5       // of the time, in which a compaction works beside landers
)
