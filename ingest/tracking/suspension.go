package tracking

import (
	"sync/atomic"
	"time"
)

// suspendedAfter is the time without a sign of life after which this process counts as suspended.
const suspendedAfter = 2 * time.Second

// suspension notices that this process was suspended: it was stopped, its machine slept, or it got no
// processor. Meanwhile other processes have written events that it does not know, and clients have
// sent it requests that they have then sent to others. It is safe for concurrent use.
type suspension struct {
	last   atomic.Int64 // time of the last sign of life, in Unix milliseconds
	number atomic.Int64 // of the last suspension
	passed atomic.Int64 // number of the last suspension after which the log was read
}

// alive records a sign of life. The tail gives one in each round, and each request does. It returns
// the number of the last suspension. The wall clock also counts the time in which a machine sleeps.
func (s *suspension) alive(now time.Time) int64 {
	at := now.UnixMilli()
	// The suspension is counted before the next caller can see the new time.
	if last := s.last.Load(); last > 0 && at-last > suspendedAfter.Milliseconds() {
		s.number.Add(1)
	}
	s.last.Store(at)
	return s.number.Load()
}

// over reports whether the log was read after a suspension.
func (s *suspension) over(number int64) bool { return s.passed.Load() >= number }

// end records that the log was read after a suspension.
func (s *suspension) end(number int64) {
	for {
		passed := s.passed.Load()
		if passed >= number || s.passed.CompareAndSwap(passed, number) {
			return
		}
	}
}
