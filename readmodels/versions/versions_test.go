package versions_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/readmodels/versions"
)

// TestChanges runs random changes and checks the invariants after each: one version serves and is not
// being dropped, a refused change changes nothing, and the record survives its encoding.
func TestChanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, now := versions.Initial(), time.Unix(1_700_000_000, 0).UTC()
		name := rapid.SampledFrom([]string{"", "2", "3", "next", "a-b"})
		for range rapid.IntRange(1, 40).Draw(t, "changes") {
			before, err := s.Encode()
			if err != nil {
				t.Fatal(err)
			}
			n := name.Draw(t, "name")
			switch rapid.IntRange(0, 5).Draw(t, "change") {
			case 0:
				_, err = s.Start(n, 0, 1, now)
			case 1:
				s.SetBuilt(n, now)
			case 2:
				err = s.Swap(n, now)
			case 3:
				if n, err = s.RollbackTo(); err == nil {
					err = s.Swap(n, now)
				}
			case 4:
				err = s.Drop(n, now)
			case 5:
				s.Remove(n)
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
			record, encoding := s.Encode()
			if encoding != nil {
				t.Fatal(encoding)
			}
			if refused := (*versions.RefusedError)(nil); err != nil && (!errors.As(err, &refused) || record != before) {
				t.Fatalf("%v, and %s became %s", err, before, record)
			}
			again, err := versions.Parse(record)
			if err != nil {
				t.Fatalf("%s: %v", record, err)
			}
			if serving, ok := again.Find(again.Serving); !ok || serving.Dropped {
				t.Fatalf("what serves does not exist: %s", record)
			}
			if len(again.Versions) > versions.MaxVersions {
				t.Fatalf("%d versions", len(again.Versions))
			}
		}
	})
}

// TestStartContinues checks that a replay without a name continues the version that is not swapped in
// yet, and begins another one after the swap.
func TestStartContinues(t *testing.T) {
	t.Parallel()
	s, now := versions.Initial(), time.Unix(1_700_000_000, 0)
	start := func(name, want string) {
		t.Helper()
		if got, err := s.Start(name, 7, 1, now); err != nil || got != want {
			t.Fatalf("Start(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	start("", "2")
	start("", "2")
	if err := s.Swap("2", now); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start("2", 0, 1, now); err == nil {
		t.Error("a version that serves is built again")
	}
	start("", "3")
	if to, err := s.RollbackTo(); err != nil || to != "" {
		t.Errorf("a rollback leads to %q, %v; want the first version", to, err)
	}
}

// TestRefusals checks what each refused change says.
func TestRefusals(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	for want, change := range map[string]func(*versions.State) error{
		"lower-case letters":   func(s *versions.State) error { _, err := s.Start("a/b", 0, 1, now); return err },
		"millrace replay drop": func(s *versions.State) error { return startMany(s, now) },
		"no version served":    func(s *versions.State) error { _, err := s.RollbackTo(); return err },
		`no version "x"`:       func(s *versions.State) error { return s.Swap("x", now) },
		"swap another one in":  func(s *versions.State) error { return s.Drop("", now) },
		"some process may still": func(s *versions.State) error {
			if _, err := s.Start("x", 0, 1, now); err != nil {
				return err
			}
			return errors.Join(s.Swap("x", now), s.Drop("", now.Add(time.Second)))
		},
	} {
		s := versions.Initial()
		if err := change(&s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v; want it to contain %q", err, want)
		}
	}
}

func startMany(s *versions.State, now time.Time) (err error) {
	for _, name := range []string{"a", "b", "c", "d"} {
		_, failed := s.Start(name, 0, 1, now)
		err = errors.Join(err, failed)
	}
	return err
}

// FuzzParse checks that a record from the store never panics, and that one that is accepted is
// encoded to an equal one.
func FuzzParse(f *testing.F) {
	f.Add("")
	f.Add(`{"revision":3,"serving":"2","previous":"","next":3,"versions":[{"name":""},{"name":"2","rate":5}]}`)
	f.Add(`{"serving":"2","versions":[{"name":""}]}`)
	f.Fuzz(func(t *testing.T, record string) {
		s, err := versions.Parse(record)
		if err != nil {
			return
		}
		text, err := s.Encode()
		if err != nil {
			return // a time that JSON cannot represent
		}
		again, err := versions.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if twice, err := again.Encode(); err != nil || twice != text {
			t.Errorf("%s became %s, %v", text, twice, err)
		}
	})
}

// memory is a store in memory.
type memory struct {
	mu      sync.Mutex
	records map[string]string
}

func (m *memory) Record(_ context.Context, view string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records[view], nil
}

func (m *memory) SetRecord(_ context.Context, view, from, to string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[view] != from {
		return false, nil
	}
	m.records[view] = to
	return true, nil
}

// TestUpdates checks that concurrent changes are all made, and that a lost or older record is
// restored.
func TestUpdates(t *testing.T) {
	t.Parallel()
	store := &memory{records: map[string]string{}}
	r := versions.Registry{Store: store, View: "orders/v1"}
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		all.Go(func() {
			if _, err := r.Update(t.Context(), func(s *versions.State) error {
				_, err := s.Start(name, 0, 1, time.Now())
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s, err := r.Load(t.Context())
	if err != nil || len(s.Versions) != 4 || s.Revision != 3 {
		t.Fatalf("the state is %+v, %v; want four versions and three changes", s, err)
	}
	for _, lost := range []string{"", "damaged", `{"revision":1,"serving":"","next":2,"versions":[{"name":""}]}`} {
		store.records[r.View] = lost
		if err := r.Restore(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if again, err := r.Load(t.Context()); err != nil || len(again.Versions) != 4 || again.Revision <= s.Revision {
			t.Errorf("after %q the state is %+v, %v", lost, again, err)
		}
	}
	newer, err := r.Update(t.Context(), func(s *versions.State) error { return s.Swap("a", time.Now()) })
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Restore(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if again, err := r.Load(t.Context()); err != nil || again.Serving != "a" || again.Revision != newer.Revision {
		t.Errorf("an older state replaced a newer one: %+v, %v", again, err)
	}
}
