package versions

import (
	"context"
	"fmt"
)

// Store keeps one small text per view, which all processes share.
type Store interface {
	// Record returns the text of a view, or an empty one.
	Record(ctx context.Context, view string) (string, error)
	// SetRecord replaces the text from with to, and reports whether it was from or is to already.
	SetRecord(ctx context.Context, view, from, to string) (bool, error)
}

// Registry is the record of one view's versions.
type Registry struct {
	Store Store
	View  string
}

// maxTries bounds the attempts at a change while others change the record, too.
const maxTries = 10

// Load returns the state. A record that cannot be read is an error.
func (r Registry) Load(ctx context.Context) (State, error) {
	record, err := r.Store.Record(ctx, r.View)
	if err != nil {
		return State{}, fmt.Errorf("versions of %s: %w", r.View, err)
	}
	s, err := Parse(record)
	if err != nil {
		return State{}, fmt.Errorf("versions of %s: %w", r.View, err)
	}
	return s, nil
}

// Update changes the state with change, and returns the new one. It may call change several times. If
// change returns an error, nothing is stored.
func (r Registry) Update(ctx context.Context, change func(*State) error) (State, error) {
	for range maxTries {
		record, err := r.Store.Record(ctx, r.View)
		if err != nil {
			return State{}, fmt.Errorf("versions of %s: %w", r.View, err)
		}
		s, err := Parse(record)
		if err != nil {
			return State{}, fmt.Errorf("versions of %s: %w", r.View, err)
		}
		if err := change(&s); err != nil {
			return State{}, fmt.Errorf("versions of %s: %w", r.View, err)
		}
		if done, err := r.set(ctx, record, &s); done || err != nil {
			return s, err
		}
	}
	return State{}, fmt.Errorf("versions of %s: other processes keep changing them: try again", r.View)
}

// set stores a state with the next revision.
func (r Registry) set(ctx context.Context, record string, s *State) (bool, error) {
	s.Revision++
	to, err := s.Encode()
	if err != nil {
		return false, err
	}
	done, err := r.Store.SetRecord(ctx, r.View, record, to)
	if err != nil {
		return false, fmt.Errorf("versions of %s: %w", r.View, err)
	}
	return done, nil
}

// Restore stores a state that the store has lost. It does nothing if the stored record is not older,
// and replaces one that cannot be read.
func (r Registry) Restore(ctx context.Context, s State) error {
	record, err := r.Store.Record(ctx, r.View)
	if err != nil {
		return fmt.Errorf("versions of %s: %w", r.View, err)
	}
	if stored, err := Parse(record); err == nil && stored.Revision >= s.Revision {
		return nil
	}
	// If another process restores it at the same time, either result is right.
	_, err = r.set(ctx, record, &s)
	return err
}
