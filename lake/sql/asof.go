package sql

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/lake"
)

// Resolver finds the tables of one query as of the moment that the query is about. wanted reports
// whether the query mentions a table; others may be omitted.
type Resolver func(ctx context.Context, wanted func(name string) bool) (Resolved, error)

// Resolved is the result of a Resolver.
type Resolved struct {
	Tables []Table
	Read   []ReadAt // states of the wanted tables
	// Release allows the files to be deleted again. It is called when the rows are closed. It may
	// be nil.
	Release func()
}

// ReadAt is the state in which a query read a table.
type ReadAt struct {
	Table string `json:"table"`
	// Snapshot is text, because JSON numbers lose digits of 63-bit ids. It is empty if the table
	// was empty.
	Snapshot string          `json:"snapshot"`
	Taken    time.Time       `json:"taken,omitzero"`
	Topic    string          `json:"topic"`
	Offsets  map[int32]int64 `json:"offsets"` // first offset of each partition that was not read
}

// String describes the state for users.
func (r ReadAt) String() string {
	if r.Snapshot == "" {
		return r.Table + " before its first snapshot: empty"
	}
	return fmt.Sprintf("%s at snapshot %s, committed %s, which holds %s before offsets %s",
		r.Table, r.Snapshot, r.Taken.Format(time.RFC3339Nano), r.Topic, lake.OffsetsText(r.Offsets))
}

// AsOf returns a Resolver of a lake's tables as they were at a moment. Their files are retained
// until Release.
func AsOf(l *lake.Lake, at lake.AsOf) Resolver {
	return func(ctx context.Context, wanted func(string) bool) (Resolved, error) {
		states, err := l.TablesAsOf(ctx, at, wanted)
		if err != nil {
			return Resolved{}, err
		}
		read := slices.DeleteFunc(slices.Clone(states), func(s lake.TableState) bool { return !wanted(s.Name) })
		release, err := l.Hold(ctx, read)
		if err != nil {
			return Resolved{}, err
		}
		return Resolved{Tables: TablesOf(states), Read: readAt(read), Release: release}, nil
	}
}

// readAt converts states for the answer to a query.
func readAt(states []lake.TableState) (read []ReadAt) {
	for _, s := range states {
		r := ReadAt{Table: s.Name, Taken: s.Taken, Topic: s.Topic, Offsets: s.Offsets}
		if s.Snapshot > 0 {
			r.Snapshot = fmt.Sprint(s.Snapshot)
		}
		read = append(read, r)
	}
	return read
}

// TablesOf converts states of a lake to tables for queries.
func TablesOf(states []lake.TableState) []Table {
	tables := make([]Table, len(states))
	for i, s := range states {
		tables[i] = Table{
			Name: s.Name, Location: s.Location, MetadataLocation: s.MetadataLocation, TimePartitions: s.TimePartitions,
		}
	}
	return tables
}

// RunOn is Run with the tables that a Resolver finds. It also returns the states that the query
// reads. A query may be resolved more than once; the last result counts.
func (s *SQL) RunOn(ctx context.Context, resolve Resolver, query, format string) (io.ReadCloser, []ReadAt, error) {
	if namesFeatures(query) {
		return nil, nil, &QueryError{Message: "tables of " + clickhouse.Features + " have no earlier states: omit the moment, " +
			"or read the lake's tables only"}
	}
	var last Resolved
	release := func() {
		if last.Release != nil {
			last.Release()
		}
		last = Resolved{}
	}
	rows, err := s.tryRun(ctx, func(ctx context.Context, wanted func(string) bool) ([]Table, error) {
		next, err := resolve(ctx, wanted)
		release() // of the previous attempt
		last = next
		return next.Tables, err
	}, query, format)
	if err != nil {
		release()
		if unknown := (*lake.UnknownTopicError)(nil); errors.As(err, &unknown) {
			err = &QueryError{Message: unknown.Error()}
		}
		return nil, nil, err
	}
	return &heldRows{rows, release}, last.Read, nil
}

// heldRows are the rows of a query. Closing them releases the files that the query needs.
type heldRows struct {
	io.ReadCloser
	release func()
}

// Close ends the query and releases the files.
func (r *heldRows) Close() error {
	defer r.release()
	return r.ReadCloser.Close()
}
