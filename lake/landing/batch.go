package landing

import (
	"time"

	"github.com/apache/iceberg-go"
	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/tracing"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/progress"
)

// batch collects what the next commit adds, and knows when that commit is due.
type batch struct {
	id         string // of the commit, and part of its files' names
	positions  *positions
	from       map[int32]int64    // the table's offsets at which the batch begins, by partition
	progress   progress.State     // offsets and other properties that the commit records
	rows       bool               // false if there are none: most events contribute no facts
	deletes    []iceberg.DataFile // delete files for replaced rows
	inserted   int64              // new rows of a keyed table that replace none
	bytes      int64              // size of the records' values
	first      time.Time          // when the first record was added
	last       time.Time          // when the last record was added
	unwritable []unwritable       // dead letters that the commit skips
	after      time.Time          // when the previous commit finished
	recorded   recordings         // when its events were recorded, for the meter
	trace      *tracing.Batch     // of the records; nil if nothing is traced
}

// newBatch returns an empty batch with a new commit id. after is the time of the previous commit.
func newBatch(at *positions, after time.Time) *batch {
	id := uuid.Must(uuid.NewV7()).String()
	return &batch{id: id, positions: at, from: map[int32]int64{}, after: after,
		progress: progress.State{Next: map[int32]int64{}, Seen: map[int32]event.Sequence{}, Commit: id}}
}

// add accounts for a record whose rows were added. measured is false if its age says nothing about
// the lander, because it was on the topic before the table began.
func (b *batch) add(r *declare.Record, asOf time.Time, measured bool) {
	b.bytes += int64(len(r.Value))
	if measured {
		b.recorded.add(asOf)
	} else {
		b.recorded.add(time.Time{})
	}
	if asOf.After(b.progress.AsOf) {
		b.progress.AsOf = asOf
	}
	if b.trace != nil {
		b.trace.Add(tracing.Entry{TraceParent: event.TraceParentOf(r.Headers), RecordedAt: asOf,
			Stream: string(r.Key), Partition: r.Partition, Offset: r.Offset})
	}
}

// seen returns a partition's sequence after the records of the table and the batch.
func (b *batch) seen(partition int32) event.Sequence {
	if s, ok := b.progress.Seen[partition]; ok {
		return s
	}
	s, _ := b.positions.seenAt(partition)
	return s
}

// saw sets a partition's sequence. It must be called after move.
func (b *batch) saw(partition int32, s event.Sequence) {
	if _, kept := b.progress.Seen[partition]; kept {
		b.progress.Seen[partition] = s
	}
}

// move records that everything before offset next of a partition is in the batch.
func (b *batch) move(partition int32, next int64) {
	b.last = time.Now()
	if !b.moved() {
		b.first = b.last
	}
	if _, again := b.from[partition]; !again {
		b.from[partition], b.progress.TopicID = b.positions.at(partition)
	}
	b.progress.Next[partition] = next
	if _, again := b.progress.Seen[partition]; !again {
		// Written beside the offset even if it does not change: a stale commit that moves the
		// offset back must move both.
		if s, kept := b.positions.seenAt(partition); kept {
			b.progress.Seen[partition] = s
		}
	}
}

// moved reports whether there is anything to commit.
func (b *batch) moved() bool { return len(b.from) > 0 }

// idleDelay is how long a topic must be idle before its rows are committed early.
const idleDelay = 250 * time.Millisecond

// wait returns how long to wait for more records. It is zero or negative if the commit is due.
func (b *batch) wait(c Config) time.Duration {
	if !b.moved() {
		return time.Second
	}
	if b.bytes >= c.CommitBytes {
		return 0
	}
	due := b.first.Add(c.CommitInterval)
	// Transaction markers and events without rows only move offsets, which is not urgent.
	if b.rows {
		// Commit early when the topic falls silent, but keep half an interval between commits.
		soon := b.last.Add(min(idleDelay, c.CommitInterval/2))
		if earliest := b.after.Add(c.CommitInterval / 2); soon.Before(earliest) {
			soon = earliest
		}
		if soon.Before(due) {
			due = soon
		}
	}
	return time.Until(due)
}
