package app

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// failingStore is an event store whose first calls of Head fail.
type failingStore struct {
	eventstore.Store
	errs []error
}

func (s *failingStore) Head(context.Context) (event.Position, error) {
	if len(s.errs) == 0 {
		return event.Position{}, nil
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return event.Position{}, err
}

// TestVerifyWaitsForDependencies checks that a store that does not answer for a moment is asked
// again within the wait, and that errors that stay are returned at once.
func TestVerifyWaitsForDependencies(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	late := connect.NewError(connect.CodeDeadlineExceeded, errors.New("not every sink caught up"))
	for _, c := range []struct {
		name string
		wait time.Duration
		errs []error
		want error // nil: equal
		left int   // errors that were not asked for
	}{
		{"answers at once", time.Minute, nil, nil, 0},
		{"answers at the third time", time.Minute, []error{down, down}, nil, 0},
		{"no time is left", 0, []error{down, down}, down, 1},
		{"an error with a code", time.Minute, []error{late, down}, late, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			store := &failingStore{errs: c.errs}
			p := &App{stores: map[string]eventstore.Store{"order": store}, log: slog.New(slog.DiscardHandler)}
			r, _, err := p.comparePatiently(t.Context(), c.wait, func(string, int, int) {})
			if !errors.Is(err, c.want) || r.Equal != (c.want == nil) || len(store.errs) != c.left {
				t.Errorf("equal: %v, error: %v, %d errors left; want error %v, %d left", r.Equal, err, len(store.errs), c.want, c.left)
			}
		})
	}
}
