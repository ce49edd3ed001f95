package datafile

import (
	"context"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// rowIDs is the first format version with row ids. iceberg-go assigns them to files of a row delta,
// but not to files added by AddDataFiles.
const rowIDs = 3

// Stage adds data files and delete files to a transaction. The deletes apply to rows of earlier
// commits only.
func Stage(
	ctx context.Context, tx *table.Transaction, format int, files, deletes []iceberg.DataFile,
	summary iceberg.Properties,
) error {
	if len(deletes) > 0 || format >= rowIDs {
		return tx.NewRowDelta(summary).AddRows(files...).AddDeletes(deletes...).Commit(ctx)
	}
	// Names of files are unique, so the check for duplicates, which reads all manifests, is not
	// needed. Landers do not want a name mapping.
	return tx.AddDataFiles(ctx, files, summary, table.WithoutDuplicateCheck(), table.WithoutAutoNameMapping())
}
