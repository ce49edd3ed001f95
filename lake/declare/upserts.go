package declare

import (
	"context"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/keyset"
)

// upserts hold a batch's records back until it is to land: then each key that the batch changes gets one row in the
// place of the one before. They are what a table has in place of Rows where each key has one row.
type Upserts interface {
	// take holds a record back. It appends nothing. Its error is as that of Rows.Append.
	Take(ctx context.Context, r Record) (Appended, error)
	// held tells whether there is anything.
	Held() bool
	// columns are those of the table that a row is known by, the key first.
	Columns() []columnar.Field
	// missing begins a landing where the table stands at from. It gives the keys whose row before, if there is one,
	// must be looked for in the table.
	Missing(from map[int32]int64) []string
	// wantsKeys reports whether the batch has first events of streams that cannot be told from duplicates without the
	// table's keys. If so, keys must be called with them. doubtful then returns the keys of first events that may have
	// a row: they must be looked up, too.
	WantsKeys() bool
	Keys(*keyset.Filter)
	Doubtful() []string
	// found takes the rows of such keys out of a batch of the table's rows; names are those of the columns.
	Found(rec arrow.RecordBatch, names []string) error
	// fold calls each for every key whose row the batch changes, in the order of the keys: existed reports whether the
	// table has a row of the key, append appends the new one, and from is the origin of that.
	Fold(each func(key string, existed bool, append func(), from Record) error) error
	// landed ends a landing.
	Landed(next map[int32]int64)
}
