package app

import (
	"context"
	"io"
	"time"

	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// SQLAsOf runs a query over tables as they were at a moment, which is given as text, and returns what it read of each
// table that it names.
func SQLAsOf(ctx context.Context, q *lakesql.SQL, l *lake.Lake, query, format, moment string) (io.ReadCloser, []lakesql.ReadAt, error) {
	at, err := lake.ParseAsOf(moment, time.Now())
	if err != nil {
		return nil, nil, &lakesql.QueryError{Message: err.Error()}
	}
	return q.RunOn(ctx, lakesql.AsOf(l, at), query, format)
}
