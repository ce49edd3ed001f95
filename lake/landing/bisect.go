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

// Some rows fit their columns but cannot be written to a file or staged for a commit, and the error
// does not say which row is to blame. Then the session ends. The next session lands the records of
// that batch by halves until the unwritable ones are isolated.
//
// Isolated records become dead letters under two conditions: the table accepts sample rows, and
// some neighbouring record could be written. Otherwise the table is to blame.
//
// They are written as dead letters just before the commit that moves the offsets past them. A
// lander that crashes in between writes them again under the same key.

// unwritable is a record that could not be written even alone.
type unwritable struct {
	record declare.Record
	reason error
}

// maxAlone is the maximum number of consecutive dead letters without a neighbour to show that the
// table is not to blame.
const maxAlone = 3

// bisect lands the records of a fetch by halves.
func (s *session) bisect(ctx context.Context, f fetch.Batch) (*heldRecord, error) {
	if err := s.land(ctx); err != nil { // commit the records before first
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
	// Before any record is blamed, make sure that the table accepts rows at all.
	if len(s.unwritable) > 0 {
		if err := s.checkSample(ctx); err != nil {
			return nil, err
		}
	}
	if found := s.unwritable; len(found) > 0 && !s.proven {
		first := found[0]
		// Without a written neighbour, a few single records may be bad. More than that points to
		// the table.
		if s.alone += len(found); len(found) > 1 || s.alone > maxAlone {
			err := fmt.Errorf("no record can be written, for example %d of %s/%d: %w",
				first.record.Offset, s.table.Topic, f.Partition, first.reason)
			return nil, &faults.TableError{Table: s.table.DisplayName(), Remedy: faults.RemedyFit, Err: err}
		}
	}
	if committed, _ := s.at.at(f.Partition); next > committed {
		s.batch.move(f.Partition, next)
	}
	if err := s.land(ctx); err != nil {
		return nil, err
	}
	// The failed batch has been worked through: land normally again.
	if f.Next >= s.bisectUntil[f.Partition] {
		delete(s.bisectUntil, f.Partition)
	}
	return held, nil
}

// checkSample returns an error if the table accepts no rows at all. Then no record is to blame, and
// none becomes a dead letter.
func (s *session) checkSample(ctx context.Context) error {
	have, err := s.load(ctx)
	if err != nil {
		return err
	}
	err = datafile.WritableNow(ctx, have, s.writer.Columns.Fields())
	if err == nil || faults.IsTemporary(err) {
		return err
	}
	return &faults.UnwritableError{Table: s.table.DisplayName(), Err: err}
}

// halve lands records together. If they cannot be written, it lands each half separately.
func (s *session) halve(ctx context.Context, f fetch.Batch) (*heldRecord, error) {
	held, err := s.take(ctx, f)
	if err == nil && s.batch.rows {
		err = s.land(ctx)
	}
	if !faults.IsRowsError(err) {
		return held, err
	}
	if err := s.renew(ctx); err != nil {
		return nil, err
	}
	var of *faults.RowsError
	errors.As(err, &of)
	// A single record cannot be halved: it is unwritable.
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

// renew discards the batch and its files, and starts again at the same offsets.
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

// writeUnwritable writes the dead letters that the following commit skips.
func (l *lander) writeUnwritable(ctx context.Context, records []unwritable) error {
	l.pendingLetters = l.pendingLetters[:0]
	for _, u := range records {
		if err := l.addDeadLetter(ctx, u.record, u.reason); err != nil {
			return err
		}
	}
	return l.writeDeadLetters(ctx)
}
