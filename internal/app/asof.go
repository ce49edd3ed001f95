package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// ReadAt tells at which state a query read a table.
type ReadAt struct {
	Table    string          `json:"table"`
	Snapshot string          `json:"snapshot"` // text, for it has 63 bits; empty where the table was empty
	Taken    time.Time       `json:"taken,omitzero"`
	Topic    string          `json:"topic"`
	Offsets  map[int32]int64 `json:"offsets"` // the first of each partition that were not read
}

// String is for people.
func (r ReadAt) String() string {
	if r.Snapshot == "" {
		return r.Table + " as it was before its first snapshot: empty"
	}
	return fmt.Sprintf("%s at snapshot %s, committed %s, which holds %s before offsets %s",
		r.Table, r.Snapshot, r.Taken.Format(time.RFC3339Nano), r.Topic, lake.OffsetsText(r.Offsets))
}

// SQLAsOf runs a query over tables as they were, and tells for each that it names what it read.
func SQLAsOf(ctx context.Context, q *lakesql.SQL, l *lake.Lake, query, format, moment string) (io.ReadCloser, []ReadAt, error) {
	at, err := lake.ParseAsOf(moment, time.Now())
	if err != nil {
		return nil, nil, &lakesql.QueryError{Message: err.Error()}
	}
	var read []ReadAt
	release := func() {}
	rows, err := q.RunOn(ctx, func(ctx context.Context, wanted func(string) bool) ([]lakesql.Table, error) {
		states, err := l.TablesAsOf(ctx, at, wanted)
		if err != nil {
			return nil, err
		}
		read = nil
		release() // the attempt before
		if release, err = l.Hold(ctx, slices.DeleteFunc(slices.Clone(states), func(s lake.TableState) bool { return !wanted(s.Name) })); err != nil {
			release = func() {}
			return nil, err
		}
		for _, s := range states {
			if !wanted(s.Name) {
				continue
			}
			r := ReadAt{Table: s.Name, Taken: s.Taken, Topic: s.Topic, Offsets: s.Offsets}
			if s.Snapshot > 0 {
				r.Snapshot = fmt.Sprint(s.Snapshot)
			}
			read = append(read, r)
		}
		return sqlTables(states), nil
	}, query, format)
	if unknown := (*lake.UnknownTopicError)(nil); errors.As(err, &unknown) {
		err = &lakesql.QueryError{Message: unknown.Error()}
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return &heldRows{rows, release}, read, nil
}

// heldRows are the rows of a query whose files expiry may not delete before it ends.
type heldRows struct {
	io.ReadCloser
	release func()
}

func (r *heldRows) Close() error {
	defer r.release()
	return r.ReadCloser.Close()
}

func sqlTables(states []lake.TableState) []lakesql.Table {
	tables := make([]lakesql.Table, len(states))
	for i, s := range states {
		tables[i] = lakesql.Table{
			Name: s.Name, Location: s.Location, MetadataLocation: s.MetadataLocation, TimePartitions: s.TimePartitions,
		}
	}
	return tables
}
