package streams

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/millrace/millrace/internal/registry"
)

// Each failure of a sink has one class, and each dead letter one reason.
func TestClasses(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		&panicError{value: "x"}:                              ErrorPanic,
		&GapError{}:                                          ErrorLost,
		fmt.Errorf("view: %w", ErrLost):                      ErrorLost,
		fmt.Errorf("schema: %w", registry.ErrUnavailable):    ErrorRegistry,
		fmt.Errorf("park: %w", errParkedTooMany):             ErrorParked,
		fmt.Errorf("redis: %w", context.DeadlineExceeded):    ErrorTimeout,
		errors.New("connection refused by the sink at last"): ErrorSink,
	} {
		if got := classOf(err); got != want {
			t.Errorf("%v has the class %q, want %q", err, got, want)
		}
	}
	for err, want := range map[error]string{
		&panicError{value: "x"}:                  ReasonPanic,
		&GapError{}:                              ReasonGap,
		fmt.Errorf("%w, at offset 1", ErrBehind): ReasonBehind,
		errNotSealed:                             ReasonNotAnEvent,
		errors.New("unknown field"):              ReasonRefused,
	} {
		if got := reasonClass(err); got != want {
			t.Errorf("%v has the reason %q, want %q", err, got, want)
		}
	}
}

// The ages of events are measured from where an earlier assignment ended. What a sink without a
// position, or one that lost data, has to read again is not late.
func TestMeasuredFrom(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		start start
		want  int64
	}{
		"a new sink":              {start{at: Applied{Next: 0}, fresh: true, end: 9}, 9},
		"a restarted one":         {start{saved: Applied{Next: 5}, at: Applied{Next: 5}, end: 9}, 0},
		"a recreated topic":       {start{saved: Applied{Next: 5}, at: Applied{Next: 0}, end: 9}, 9},
		"a gap, read from before": {start{saved: Applied{Next: 5}, at: Applied{Next: 0}, end: 6}, 6},
	} {
		if got := c.start.measuredFrom(); got != c.want {
			t.Errorf("%s: measured from %d, want %d", name, got, c.want)
		}
	}
}

// A dead letter counts once, however often its event is tried again.
func TestRetriedDeadLettersAreNotCounted(t *testing.T) {
	t.Parallel()
	a := &attempt{}
	a.count(&item{}, errors.New("refused"))
	a.count(&item{retried: &retry{attempts: 1}}, errors.New("refused"))
	a.count(&item{reason: ReasonGap}, nil)
	if a.reasons[ReasonRefused] != 1 || a.reasons[ReasonGap] != 1 || len(a.reasons) != 2 {
		t.Errorf("reasons %v", a.reasons)
	}
}
