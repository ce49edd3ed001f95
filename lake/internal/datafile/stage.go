package datafile

import (
	"context"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// rowIDs is the first format version in which rows have ids. iceberg-go gives them to what a row delta adds, not to
// what is added as files.
const rowIDs = 3

// Stage adds the rows, and the deletes of those whose place they take: these hit what commits before this one have
// brought.
func Stage(ctx context.Context, tx *table.Transaction, format int, files, deletes []iceberg.DataFile, summary iceberg.Properties) error {
	if len(deletes) > 0 || format >= rowIDs {
		return tx.NewRowDelta(summary).AddRows(files...).AddDeletes(deletes...).Commit(ctx)
	}
	return tx.AddDataFiles(ctx, files, summary, table.WithoutDuplicateCheck(), table.WithoutAutoNameMapping())
}
