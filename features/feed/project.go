package feed

import (
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// The times that every store of facts can keep: ClickHouse's DateTime64 begins in 1900, and int64
// nanoseconds end in 2262.
var (
	minTime = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)
	maxTime = time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Project returns the facts of an event at an origin, as Poll does. An error means that the event is
// a dead letter, and names the field.
func Project(s *features.Source, e event.Event, origin features.Origin) ([]features.Fact, error) {
	facts, err := s.Project(e)
	if err != nil {
		return nil, err
	}
	for i := range facts {
		f := &facts[i]
		f.At, f.Known = event.Time(f.At), event.Time(e.RecordedAt)
		f.Origin = origin
		f.Origin.Index = int32(i)
		if err := check(s, f); err != nil {
			return nil, fmt.Errorf("fact %d: %w", i+1, err)
		}
	}
	return facts, nil
}

// check returns an error if a fact is not valid.
func check(s *features.Source, f *features.Fact) error {
	switch {
	case f.Entity == "":
		return errors.New("the entity is empty")
	case f.Key == "":
		return errors.New("the key is empty")
	case f.At.Before(minTime) || !f.At.Before(maxTime):
		return fmt.Errorf("time %s: want a year from %d to %d", f.At.Format(time.RFC3339), minTime.Year(), maxTime.Year()-1)
	case f.Known.Before(minTime) || !f.Known.Before(maxTime):
		return fmt.Errorf("recording time %s: want a year from %d to %d", f.Known.Format(time.RFC3339),
			minTime.Year(), maxTime.Year()-1)
	}
	if f.Retracted && len(f.Values) == 0 { // the values of a retraction have no meaning
		f.Values = make([]exact.Value, len(s.Columns))
	}
	if len(f.Values) != len(s.Columns) {
		return fmt.Errorf("%d values, want %d", len(f.Values), len(s.Columns))
	}
	for i, v := range f.Values {
		switch {
		case v.Kind != exact.Null && v.Kind != s.Columns[i].Kind:
			return fmt.Errorf("column %s: the value is of another kind", s.Columns[i].Name)
		case v.Kind == exact.Number && !fits(v.Int):
			return fmt.Errorf("column %s: the number has more than %d bits", s.Columns[i].Name, maxBits)
		}
	}
	return nil
}

// maxBits is the size of a number whose sums and sums of squares cannot overflow.
const maxBits = 94

// fits reports whether a number has at most maxBits bits.
func fits(n exact.Int) bool {
	sign := uint64(int64(n[3]) >> 63) // all bits of a small number above its own are its sign
	return n[3] == sign && n[2] == sign && (n[1]^sign)>>(maxBits-64) == 0
}
