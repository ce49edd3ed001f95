package clickhouse_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// smallDisk mounts a small file system, and returns its folder, and functions that fill it and make
// room again.
func smallDisk(t *testing.T) (dir string, fill, free func()) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=64m", "millrace", dir).CombinedOutput(); err != nil {
		if os.Getenv("MILLRACE_REQUIRE_SERVERS") != "" { // as in CI: nothing may be skipped
			t.Fatalf("mount a small file system: %v: %s", err, out)
		}
		t.Skipf("this process may not mount a small file system: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	filler := filepath.Join(dir, "filler")
	fill = func() {
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		_ = f.Close() // the disk is full
	}
	free = func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	return dir, fill, free
}

// A statement whose definition does not fit on the disk fails, and what it left is neither used nor
// lost: not at once, and not after a restart or a kill.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		dir, fill, free := smallDisk(t)
		c := persistent(t)
		c.Tables = filepath.Join(dir, "clickhouse")
		e := startOn(t, c)
		s := clickhousetest.OpenStoreOn(t, e)
		before := create(t, s, numbers("before"))
		insert(t, s, before, "first", 0, 10)

		fill()
		during := numbers("during")
		statements := map[string]func() error{
			"create": func() error { return s.CreateTable(t.Context(), during) },
			"alter": func() error {
				return s.Exec(t.Context(), "ALTER TABLE "+before.FullName()+" MODIFY COMMENT 'altered'")
			},
		}
		for name, run := range statements {
			refused := (*clickhouse.Error)(nil)
			if err := run(); !errors.As(err, &refused) || refused.Code != clickhouse.CodeNoSpace || !clickhouse.Retryable(err) {
				t.Errorf("%s on a full disk: %v", name, err)
			}
		}
		if killed {
			kill(t, e)
		}
		free()

		wantRows(t, s, before, 10)
		create(t, s, during)
		insert(t, s, during, "first", 0, 10)
		stop(t, e)
		e = startOn(t, c)
		s = clickhousetest.OpenStoreOn(t, e)
		insert(t, s, before, "first", 0, 10)
		insert(t, s, during, "first", 0, 10)
		wantRows(t, s, before, 10)
		wantRows(t, s, during, 10)
		stop(t, e)
	}
}
