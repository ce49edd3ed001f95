package landing

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/datafile"
)

// Rows that can be written one by one as columns may still not be writable as a file, or not be staged for a commit,
// and the error does not tell which of them is at fault. Then the session ends, and the next one lands what was in that
// batch by halves, until the records that cannot be written stand alone. They are parked where the table takes a
// sample, and something beside them could be written: else it may as well be the table that cannot be written. They are
// parked just before the commit that moves the offsets over them, so a lander that dies in between parks them again,
// under the same key.

// unwritable is a record that could not be written alone.
type unwritable struct {
	record declare.Record
	reason error
}

// mostAlone is how many records in a row are parked that had no other beside them to report whether the table is at
// fault.
const mostAlone = 3

// sift lands a fetched batch by halves.
func (s *session) sift(ctx context.Context, f fetch.Batch) (*held, error) {
	if err := s.land(ctx); err != nil { // what came before
		return nil, err
	}
	s.unwritable, s.proven = nil, false
	held, err := s.halve(ctx, f)
	if err != nil {
		return nil, err
	}
	next := f.Next
	if held != nil {
		next = held.at
	}
	if len(s.unwritable) > 0 {
		if err := s.takesSample(ctx); err != nil {
			return nil, err
		}
	}
	if found := s.unwritable; len(found) > 0 && !s.proven {
		first := found[0]
		if s.alone += len(found); len(found) > 1 || s.alone > mostAlone {
			return nil, &faults.TableError{Table: s.table.DisplayName(), Remedy: faults.RemedyFit,
				Err: fmt.Errorf("no record can be written, such as %d of %s/%d: %w", first.record.Offset, s.table.Topic, f.Partition, first.reason)}
		}
	}
	if stands, _ := s.at.at(f.Partition); next > stands {
		s.batch.move(f.Partition, next)
	}
	if err := s.land(ctx); err != nil {
		return nil, err
	}
	if f.Next >= s.sifts[f.Partition] {
		delete(s.sifts, f.Partition)
	}
	return held, nil
}

// takesSample fails where the table takes no rows at all: then none of the records is at fault, and none is parked.
func (s *session) takesSample(ctx context.Context) error {
	have, err := s.load(ctx)
	if err != nil {
		return err
	}
	err = datafile.WritableNow(ctx, have, s.writer.Columns.Fields())
	if err == nil || faults.Passes(err) {
		return err
	}
	return &faults.UnwritableError{Table: s.table.DisplayName(), Err: err}
}

// halve lands records together, or else each half of them.
func (s *session) halve(ctx context.Context, f fetch.Batch) (*held, error) {
	held, err := s.take(ctx, f)
	if err == nil && s.batch.rows {
		err = s.land(ctx)
	}
	if !faults.IsOfRows(err) {
		return held, err
	}
	if err := s.renew(ctx); err != nil {
		return nil, err
	}
	var of *faults.RowsError
	errors.As(err, &of)
	first, rest, ok := f.Halves()
	if !ok {
		for record := range s.records(f) {
			record.Headers = slices.Clone(record.Headers)
			s.unwritable = append(s.unwritable, unwritable{record, of.Err})
		}
		return nil, nil
	}
	if held, err = s.halve(ctx, first); err != nil || held != nil {
		return held, err
	}
	return s.halve(ctx, rest)
}

// renew gives up what the batch has, and begins it again.
func (s *session) renew(ctx context.Context) error {
	have, err := s.load(ctx)
	if err != nil {
		return err
	}
	w, to, err := s.lander.writer(ctx, have)
	if err != nil {
		return err
	}
	old := s.writer
	s.writer, s.to, s.batch = w, to, newBatch(s.at, s.batch.after)
	return old.Close()
}

// parkUnwritable parks the records that a commit is about to move the offsets over.
func (l *lander) parkUnwritable(ctx context.Context, records []unwritable) error {
	l.toPark = l.toPark[:0]
	for _, u := range records {
		if err := l.park(ctx, u.record, u.reason); err != nil {
			return err
		}
	}
	return l.parkAll(ctx)
}
