package declare

import (
	"context"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/keyset"
)

// Upserts replaces Rows in a table that has one row per key. It collects the records of a batch
// until the batch lands. Then each key that the batch changes gets one new row, which replaces the
// previous one.
//
// A landing calls the methods in this order: Take for each record; LookupKeys; SetKeys if
// NeedsKeys; UncertainKeys; Found for the rows looked up; Fold; and Landed after the commit. If a
// step fails, the Upserts are discarded with their session.
type Upserts interface {
	// Take collects a record and appends no row. Its error means the same as that of Rows.Append.
	Take(ctx context.Context, r Record) (Appended, error)
	// Pending reports whether any records are collected.
	Pending() bool
	// Columns returns the columns needed to restore a row's state, the key first.
	Columns() []columnar.Field
	// LookupKeys begins a landing of a batch whose first offsets are from, by partition. It returns
	// the keys whose previous rows must be looked up in the table. A key may have no row.
	LookupKeys(from map[int32]int64) []string
	// NeedsKeys reports whether the batch has first events of streams that only the table's keys
	// can tell from duplicates. If so, the caller must pass the keys to SetKeys. UncertainKeys then
	// returns the keys of first events that may have a row. Their rows must be looked up, too.
	NeedsKeys() bool
	SetKeys(*keyset.Filter)
	UncertainKeys() []string
	// Found takes the looked-up rows from a batch. names are the names of Columns in that batch.
	Found(rec arrow.RecordBatch, names []string) error
	// Fold calls each for every key whose row changes, in key order. existed reports whether the
	// table has a row for the key. row appends the new row, and from is its origin.
	Fold(each func(key string, existed bool, row func(), from Record) error) error
	// Landed ends a landing after the commit. next has the table's new offsets.
	Landed(next map[int32]int64)
}
