package landing

import (
	"context"
	"math"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/keyset"
)

// readKeys scans the key column and returns the filter of a table that has landed its topic up to
// these offsets.
func readKeys(ctx context.Context, have *table.Table, key string, upTo map[int32]int64) (*keyset.Filter, error) {
	f := keyset.New(recordedRows(have), upTo)
	if have.CurrentSnapshot() == nil {
		return f, nil
	}
	ctx, cancel := context.WithCancel(ctx) // the scan's goroutines end with it
	defer cancel()
	scan := have.Scan(table.WithSelectedFields(key), table.WithMaxConcurrency(lookupConcurrency))
	_, records, err := scan.ToArrowRecords(ctx)
	if err != nil {
		return nil, err
	}
	for rec, err := range records {
		if err != nil {
			return nil, err
		}
		err = addColumn(f, rec, key)
		rec.Release()
		if err != nil {
			return nil, err
		}
	}
	return f, nil
}

// addColumn adds the keys of a batch to the filter.
func addColumn(f *keyset.Filter, rec arrow.RecordBatch, key string) error {
	keys, err := declare.ColumnOf[*array.String](rec, key)
	if err != nil {
		return err
	}
	for i := range keys.Len() {
		f.Add(keys.Value(i))
	}
	return nil
}

// recordedRows returns the row count in the table's summary, or 0 if there is none. It only sizes
// the filter, so it may be inaccurate.
func recordedRows(have *table.Table) int {
	s := have.CurrentSnapshot()
	if s == nil || s.Summary == nil {
		return 0
	}
	n, err := strconv.ParseInt(s.Summary.Properties["total-records"], 10, 64)
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int(n)
}
