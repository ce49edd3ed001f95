package declare

import (
	"context"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/keyset"
)

// Upserts is what a table with one row for each key has in place of Rows. It holds the records of a
// batch back until the batch lands. Then each key that the batch changes gets one row in the place of
// the one before.
type Upserts interface {
	// Take holds a record back. It appends nothing. Its error has the same meaning as that of
	// Rows.Append.
	Take(ctx context.Context, r Record) (Appended, error)
	// Held reports whether it holds anything back.
	Held() bool
	// Columns are the table's columns that a row is known by, the key first.
	Columns() []columnar.Field
	// Missing begins a landing, with the table at the offsets from. It returns the keys whose row
	// before must be looked up in the table, if there is one.
	Missing(from map[int32]int64) []string
	// WantsKeys reports whether the batch has first events of streams that cannot be told from
	// duplicates without the table's keys. If so, Keys must be called with them. Doubtful then returns
	// the keys of first events that may have a row: they must be looked up, too.
	WantsKeys() bool
	Keys(*keyset.Filter)
	Doubtful() []string
	// Found takes the rows of such keys from a batch of the table's rows; names are the columns' names.
	Found(rec arrow.RecordBatch, names []string) error
	// Fold calls each for every key whose row the batch changes, in the order of the keys. existed
	// reports whether the table has a row of the key, row appends the new one, and from is its
	// origin.
	Fold(each func(key string, existed bool, row func(), from Record) error) error
	// Landed ends a landing, with the table at the offsets next.
	Landed(next map[int32]int64)
}
