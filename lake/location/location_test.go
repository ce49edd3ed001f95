package location_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/lake/location"
)

// Every name has a location of its own that needs no escaping and never changes.
func TestTable(t *testing.T) {
	t.Parallel()
	for want, name := range map[string][]string{
		"w/millrace.db/orders_events": {"millrace", "orders_events"}, "w/a/b.db/c": {"a", "b", "c"}, "w/web.db/clicks-v1.2": {"web", "clicks-v1.2"},
	} {
		if got := location.Table("w", name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	seen := map[string]string{}
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.StringOfN(rapid.SampledFrom([]rune("ab./%~é#? -_:\\\x00")), 1, 8, -1)
		name := rapid.SliceOfN(part, 2, 3).Draw(t, "name")
		at := location.Table("file:///w", name)
		if err := location.Plain(strings.TrimPrefix(at, "file://")); err != nil {
			t.Fatalf("%q: %s: %v", name, at, err)
		}
		if !location.Inside("file:///w", at+"/data/f.parquet") {
			t.Fatalf("%q: %s is not in the warehouse", name, at)
		}
		key := strings.Join(name, "\x00")
		if other, there := seen[at]; there && other != key {
			t.Fatalf("%q and %q are both at %s", other, key, at)
		}
		seen[at] = key
	})
}

// A file is inside only if every reader of its name agrees.
func TestInside(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"file:///w/t/data/f": true, "file:/w/t/data/f": true, "/w/t/data/f": true, "file:///w//t/data/f": true, "file://localhost/w/t/f": true,
		"file:///w/t/data/city=a%2Fb/f": true, "file:///w/t": false, "file:///w/t2/f": false, "file:///w/t/../u/f": false, "file:///w/t/data/%2e%2e/%2e%2e/u/f": false,
		"file:///w/t/..%2f..%2fx": false, "file:///w/t/./f": false, `file:///w/t/..\..\f`: false, "s3://w/t/f": false, "file://host/w/t/f": false, "/w/t/f\x00": false, "": false,
		"file:///W/t/f": false, "w/t/f": true,
	} {
		if location.Inside("file:///w/t", name) != want {
			t.Errorf("%q: not %v", name, want)
		}
	}
	for name, want := range map[string]bool{"s3://b/t/f": true, "s3://b/t/../u": false, "s3://b/t/a%2Fb/f": true, "s3://b2/t/f": false, "s3://b/t%2f..%2fu": false, "s3a://b/t/f": false} {
		if location.Inside("s3://b/t", name) != want {
			t.Errorf("%q: not %v", name, want)
		}
	}
}

// Through a fence, no location makes Local touch a file outside of it.
func FuzzFence(f *testing.F) {
	for _, seed := range []string{"data/f", "../x", "data/%2e%2e/%2e%2e/x", "a%2Fb", "..%2fx", "%2F%2Fetc", "\\..\\x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		root := t.TempDir()
		table := filepath.Join(root, "w", "t")
		files := location.Fence(location.Local{}, "file://"+table)
		w, ok := files.(interface {
			WriteFile(name string, content []byte) error
		})
		if !ok {
			t.Fatal("it cannot be written to")
		}
		_ = w.WriteFile("file://"+table+"/"+name, []byte("x"))
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !strings.HasPrefix(path, table+"/") {
				t.Errorf("%q made %s", name, path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// Files outside of the table's folder can be neither opened nor removed.
func TestFence(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	outside := filepath.Join(root, "outside")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := location.Fence(location.Local{}, "file://"+root+"/t")
	if _, err := files.Open("file://" + outside); !errors.Is(err, location.ErrOutside) {
		t.Errorf("open: %v", err)
	}
	if err := files.Remove("file://" + root + "/t/../outside"); !errors.Is(err, location.ErrOutside) {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}
