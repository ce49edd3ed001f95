package landing

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/lake/faults"
)

// The runs of a batch have all of its events, and each event is in one that is as old as the event,
// within the resolution. Their number is bounded.
func TestRecordings(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var r recordings
		at, events := time.Unix(1, 0), uint64(0)
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(-10, 100).Draw(t, "ms")) * time.Millisecond)
			for range rapid.IntRange(1, 3).Draw(t, "events") {
				r.add(at)
				events++
			}
			if last := r[len(r)-1].recorded; at.Sub(last).Abs() >= measureTick {
				t.Fatalf("an event of %v is in the run of %v", at, last)
			}
		}
		for _, run := range r {
			events -= run.events
		}
		if events != 0 {
			t.Fatalf("%d events are missing", events)
		}
	})
	var r recordings
	for i := range 3 * maxRecordings {
		r.add(time.Unix(int64(i), 0))
	}
	if len(r) != maxRecordings || r[maxRecordings-1].events != 2*maxRecordings+1 {
		t.Errorf("%d runs, the last one has %d events", len(r), r[len(r)-1].events)
	}
}

// Every error of a session has a class.
func TestErrorClasses(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		ErrorFenced:    fmt.Errorf("land: %w", errFenced),
		ErrorRecord:    &faults.RowsError{Err: errors.New("too long")},
		ErrorTable:     &faults.TableError{Table: "t", Err: errors.New("dropped")},
		ErrorOther:     errors.New("unknown"),
		ErrorTemporary: fmt.Errorf("commit: %w", context.DeadlineExceeded),
	} {
		if got := classOf("t", err); got != want {
			t.Errorf("%v has the class %q, want %q", err, got, want)
		}
	}
}
