package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
)

// TestHold checks that one store holds a name at a time, and that the next one gets it when the holder
// releases it, when its connection is lost, and not before.
func TestHold(t *testing.T) {
	schema := newSchema()
	a, b, other := open(t, schema), open(t, schema), open(t, newSchema())
	defer other.Close() //nolint:errcheck // not part of the test
	release, err := a.Hold(t.Context(), "relay")
	if err != nil {
		t.Fatal(err)
	}
	for name, free := range map[string]func() (func(), error){
		"another name":   func() (func(), error) { return b.Hold(t.Context(), "importer") },
		"another schema": func() (func(), error) { return other.Hold(t.Context(), "relay") },
	} {
		done, err := free()
		if err != nil {
			t.Fatalf("%s is not free: %v", name, err)
		}
		done()
	}

	short, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	if _, err := b.Hold(short, "relay"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("two stores hold the name, or the wait failed: %v", err)
	}

	type result struct {
		release func()
		err     error
	}
	next := make(chan result, 1)
	hold := func() {
		release, err := b.Hold(t.Context(), "relay")
		next <- result{release, err}
	}
	go hold()
	release()
	second := <-next
	if second.err != nil {
		t.Fatal(second.err)
	}

	// The server ends the holder's connection, as it does when it restarts.
	conn := connect(t, schema)
	if _, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks
		WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	third, err := a.Hold(t.Context(), "relay")
	if err != nil {
		t.Fatal(err)
	}

	// A store that is closed stops waiting.
	go hold()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if r := <-next; !errors.Is(r.err, eventstore.ErrClosed) {
		t.Errorf("after Close: %v", r.err)
	}
	second.release()
	third()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}
