package landing

import (
	"time"

	"github.com/apache/iceberg-go"
	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/internal/progress"
)

// batch is what the next commit will carry, and when it is due.
type batch struct {
	id         string // of the commit; its data file is named after it
	positions  *positions
	from       map[int32]int64    // the table's offsets of the partitions that this batch moves
	progress   progress.State     // what the commit will record
	rows       bool               // whether there are any: most events bring no row to a table of facts
	deletes    []iceberg.DataFile // of rows that others take the place of
	born       int64              // rows that take no other's place, of a table of state
	bytes      int64              // of the records
	first      time.Time          // when the first of it came,
	last       time.Time          // and the last
	unwritable []unwritable       // records that its commit passes over
	after      time.Time          // when the commit before was done
}

func newBatch(at *positions, after time.Time) *batch {
	id := uuid.Must(uuid.NewV7()).String()
	return &batch{id: id, positions: at, from: map[int32]int64{}, after: after,
		progress: progress.State{Next: map[int32]int64{}, Seen: map[int32]event.Sequence{}, Commit: id}}
}

// add counts a record whose rows are in.
func (b *batch) add(bytes int, asOf time.Time) {
	b.bytes += int64(bytes)
	if asOf.After(b.progress.AsOf) {
		b.progress.AsOf = asOf
	}
}

// seen returns the sequence of the events that the table and the batch have of a partition.
func (b *batch) seen(partition int32) event.Sequence {
	if s, ok := b.progress.Seen[partition]; ok {
		return s
	}
	s, _ := b.positions.seenAt(partition)
	return s
}

// saw says that the events of a partition up to a sequence are in. Call it after move.
func (b *batch) saw(partition int32, s event.Sequence) {
	if _, kept := b.progress.Seen[partition]; kept {
		b.progress.Seen[partition] = s
	}
}

// move says that everything of a partition before next is in.
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
		// Written beside the offset even if it does not change: a stale commit that moves the offset back must move both.
		if s, kept := b.positions.seenAt(partition); kept {
			b.progress.Seen[partition] = s
		}
	}
}

// moved reports whether there is anything to commit.
func (b *batch) moved() bool { return len(b.from) > 0 }

// A topic that has been silent for so long is committed.
const silence = 250 * time.Millisecond

// wait is how long more records may be waited for; not above 0 where the commit is due.
func (b *batch) wait(c Config) time.Duration {
	if !b.moved() {
		return time.Second
	}
	if b.bytes >= c.CommitBytes {
		return 0
	}
	due := b.first.Add(c.CommitInterval)
	// Markers of transactions alone, or events without rows, only move offsets: no hurry.
	if b.rows {
		soon := b.last.Add(min(silence, c.CommitInterval/2))
		if earliest := b.after.Add(c.CommitInterval / 2); soon.Before(earliest) {
			soon = earliest
		}
		if soon.Before(due) {
			due = soon
		}
	}
	return time.Until(due)
}
