package datafile

import (
	"context"
	"fmt"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
)

// Files returns the table's file system, for writing.
func Files(ctx context.Context, t *table.Table) (io.WriteFileIO, error) {
	fs, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the file system of %s: %w", t.Location(), err)
	}
	writable, ok := fs.(io.WriteFileIO)
	if !ok {
		return nil, fmt.Errorf("%s is not writable", t.Location())
	}
	return writable, nil
}
