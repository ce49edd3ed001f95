package training

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// FuzzSpine: any bytes give a set or an error, never a panic.
func FuzzSpine(f *testing.F) {
	for _, rows := range []int{0, 1, 50} {
		b, err := os.ReadFile(writeSpine(f, randomSpine(rows, 1)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		path := filepath.Join(t.TempDir(), "spine")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := copySpine(t.Context(), path); err != nil && !errors.Is(err, ErrSpine) {
			t.Errorf("error %v does not say that the spine is wrong", err)
		}
	})
}

// copySpine reads what Build reads of a spine: the columns of the join, then all of them.
func copySpine(ctx context.Context, path string) (err error) {
	s, err := openSpine(&Config{Spine: path, Groups: []*features.Group{everyOutput()}, Keys: map[string]string{"customer_id": "customer_id"},
		At: "event_time", Known: "seen"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.keyed(ctx, func(int64, spineKey) error { return nil }); err != nil {
		return err
	}
	o, err := newOutput(io.Discard, s, nil)
	if err != nil {
		return err
	}
	return o.write(ctx, func(int64) ([]exact.Result, error) { return nil, nil }, func(int64) {})
}

// FuzzManifest: any bytes give a manifest or an error.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"format":1,"groups":[{"name":"every"}],"facts":{"positions":{"orders":{"0":1}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "m")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := ReadManifest(path)
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Errorf("error %v", err)
			}
			return
		}
		c := Config{Groups: []*features.Group{everyOutput()}}
		if err := m.Apply(&c); err != nil && !errors.Is(err, ErrManifest) {
			t.Errorf("error %v", err)
		}
	})
}
