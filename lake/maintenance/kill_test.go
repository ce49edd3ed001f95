package maintenance

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/sqlite"
)

// These variables make this binary maintain a table instead of running tests, and have the step at
// which it kills itself.
const (
	childFolder = "MILLRACE_TEST_MAINTENANCE"
	childStep   = "MILLRACE_TEST_MAINTENANCE_STEP"
)

func killConfig(scratch string) Config {
	return Config{
		TargetBytes: 1 << 20, KeepAge: time.Nanosecond, KeepSnapshots: 1, Manifests: 2, OrphanAge: time.Hour, Scratch: scratch,
		sortBytes: 4 << 10, now: later, DutyCycle: 1,
	}
}

func runChild(folder string) error {
	w, db, err := reopen(folder)
	if err != nil {
		return err
	}
	defer func() { _ = db() }()
	c := killConfig(folder)
	c.hook = func(_ context.Context, s step) error {
		if string(s) == os.Getenv(childStep) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	_, err = Run(context.Background(), w.load, c, nil)
	return err
}

func reopen(folder string) (*world, func() error, error) {
	db, err := sqlite.Open(filepath.Join(folder, "catalog.db"))
	if err != nil {
		return nil, nil, err
	}
	cat, err := openCatalog(db, iceberg.Properties{"warehouse": "file://" + filepath.Join(folder, "warehouse")})
	if err != nil {
		return nil, nil, err
	}
	return &world{cat: cat, ident: table.Identifier{"db", "t"}}, db.Close, nil
}

// A run that is killed at any step loses nothing. The next run completes its work and removes its
// leftovers.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, at := range steps() {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, catalog.WithSortOrder(byKey))
			want := sequenceOf(0, 300)
			for chunks := range slices.Chunk(shuffled(want, 12), 6) {
				w.append(chunks...)
			}
			w.upsert(row{key: 7, value: "new"})
			for i := range want {
				if want[i].key == 7 {
					want[i].value = "new"
				}
			}
			w.orphan("data/left-by-somebody.parquet")
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), childFolder+"="+w.dir, childStep+"="+string(at))
			out, err := child.CombinedOutput()
			if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || status.Signal() != syscall.SIGKILL {
				t.Fatalf("it was not killed: %v\n%s", err, out)
			}
			w.checkRows(want)
			w.mustRun(killConfig(t.TempDir()))
			w.checkRows(want)
			if files, snapshots := len(w.listed(".parquet")), len(w.table().Metadata().Snapshots()); files != 1 || snapshots != 1 {
				left, _ := json.Marshal(w.listed(".parquet"))
				t.Errorf("%d snapshots and %d files are left: %s", snapshots, files, left)
			}
		})
	}
}
