package maintenance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
)

// shuffled distributes rows over files at random.
func shuffled(rows []row, files int) [][]row {
	all := append([]row{}, rows...)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	chunks := make([][]row, files)
	for i, r := range all {
		chunks[i%files] = append(chunks[i%files], r)
	}
	return chunks
}

// Many small files become few sorted ones, and nothing else changes.
func TestCompaction(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]func(testing.TB, ...catalog.CreateTableOpt) *world{"local": newWorld, "s3": newBucket} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := made(t, catalog.WithSortOrder(byKey))
			want := sequenceOf(0, 6000)
			for i := range want {
				if i%11 == 0 {
					want[i].value = ""
				}
				want[i].key /= 2 // each twice: the second column decides
			}
			chunks := shuffled(want, 300)
			for i := 0; i < len(chunks); i += 50 {
				w.append(chunks[i : i+50]...)
			}
			plan, err := Plan(t.Context(), w.load, w.config())
			if err != nil || plan.RewriteFiles != 300 || plan.ResultFiles != 1 || plan.DataFiles != 300 {
				t.Fatalf("planned %v, %v", plan, err)
			}
			throttled := w.config()
			throttled.DutyCycle = 0.9
			report := w.mustRun(throttled)
			if c := report.Compacted; c.FilesBefore != 300 || c.FilesAfter != 1 || c.Commits != 1 || c.Rows != int64(len(want)) {
				t.Errorf("%v", c)
			}
			w.checkRows(want)
			files := w.dataFiles()
			if len(files) != 1 || files[0].File.SortOrderID() == nil || *files[0].File.SortOrderID() != 1 {
				t.Errorf("%d files, the first of order %v", len(files), files[0].File.SortOrderID())
			}
			checkSorted(t, w, files)
			head := w.table().CurrentSnapshot()
			if head.Summary.Operation != table.OpReplace || head.Summary.Properties[summaryWhat] != "compaction" {
				t.Errorf("the snapshot says %v", head.Summary)
			}
			for k := range head.Summary.Properties {
				if strings.HasPrefix(k, "millrace.") && k != summaryWhat && k != summaryID {
					t.Errorf("the snapshot carries %s", k)
				}
			}
			if plan, err = Plan(t.Context(), w.load, w.config()); err != nil || plan.RewriteFiles != 0 {
				t.Errorf("after it, planned %v, %v", plan, err)
			}
			again := w.mustRun(w.config())
			if again.Compacted.Commits != 0 {
				t.Errorf("it is compacted again: %v", again.Compacted)
			}
		})
	}
}

func checkSorted(t *testing.T, w *world, files []table.FileScanTask) {
	t.Helper()
	for _, f := range files {
		rows := w.read(w.table(), f)
		for i := 1; i < len(rows); i++ {
			a, b := rows[i-1], rows[i]
			if a.key > b.key || a.key == b.key && (a.value == "" && b.value != "" || b.value != "" && a.value < b.value) {
				t.Fatalf("%s: %v is before %v", f.File.FilePath(), a, b)
			}
		}
	}
}

// A partitioned table keeps its partitions. A table without a sort order keeps the order of its
// rows.
func TestPartitionsAndOrderAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, catalog.WithPartitionSpec(&byPart))
	var want []row
	for i := range int64(12) {
		var rows []row
		for _, r := range sequenceOf(i*100, i*100+100) {
			r.part = int32(r.key % 3)
			rows = append(rows, r)
		}
		want = append(want, rows...)
		w.append(rows)
	}
	report := w.mustRun(w.config())
	if c := report.Compacted; c.FilesBefore != 36 || c.FilesAfter != 3 || c.Commits != 1 {
		t.Errorf("%v", c)
	}
	w.checkRows(want)
	for _, f := range w.dataFiles() {
		part := f.File.Partition()[1000]
		last := int64(-1)
		for _, r := range w.read(w.table(), f) {
			if part != r.part || r.key <= last {
				t.Fatalf("row %v after key %d in the file of partition %v", r, last, part)
			}
			last = r.key
		}
	}
}

// Landers that commit at every step of a run lose and duplicate nothing, and do not prevent it from
// finishing.
func TestConcurrentLanders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, catalog.WithSortOrder(byKey))
	want := sequenceOf(0, 3000)
	w.append(shuffled(want, 30)...)
	for i := range int64(6) {
		rows := sequenceOf(10000+i, 10001+i)
		want = append(want, rows...)
		w.append(rows)
	}
	var mu sync.Mutex
	next := int64(100000)
	steps := map[step]int{}
	c := w.config()
	c.Manifests, c.KeepSnapshots, c.KeepAge = 2, 3, 1
	c.hook = func(_ context.Context, s step) error {
		mu.Lock()
		defer mu.Unlock()
		if steps[s]++; steps[s] <= 3 { // more often than a commit takes tries
			rows := sequenceOf(next, next+5)
			next += 5
			want = append(want, rows...)
			w.append(rows)
		}
		return nil
	}
	report := w.mustRun(c)
	if got := report.Compacted; got.Commits != 1 || got.FilesBefore != 36 || got.Retries < 2 || got.GivenUp != 0 {
		t.Errorf("%v", got)
	}
	if report.Expired.Snapshots == 0 || report.Manifests.Before == 0 {
		t.Errorf("%+v", report)
	}
	for _, s := range []step{stepPlanned, stepWritten, stepCompactCommit, stepCompactCommitted, stepManifestsCommit, stepExpireCommit} {
		if steps[s] == 0 {
			t.Errorf("step %s did not come", s)
		}
	}
	w.checkRows(want)
}

// An upsert that is committed between reading and commit of a compaction wins, and so does a later
// one.
func TestConcurrentUpserts(t *testing.T) {
	t.Parallel()
	for _, at := range []step{stepPlanned, stepSpilled, stepWritten, stepCompactCommit, stepCompactCommitted} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, catalog.WithSortOrder(byKey))
			m := model{}
			for i := range int64(5) {
				rows := sequenceOf(i*50, i*50+60)
				w.upsert(rows...)
				m.put(rows...)
			}
			c := w.config()
			c.sortBytes = 2 << 10
			times := 0
			c.hook = func(_ context.Context, s step) error {
				if s != at || times > 1 {
					return nil
				}
				times++
				update := []row{{key: 5, value: fmt.Sprint("new ", times)}, {key: int64(1000 + times), value: "added"}}
				w.upsert(update...)
				m.put(update...)
				w.deleteKeys(7, int64(20+times))
				delete(m, 7)
				delete(m, int64(20+times))
				return nil
			}
			compacted, err := Compact(t.Context(), w.load, c, nil)
			if err != nil {
				t.Fatal(err)
			}
			if times == 0 || compacted.Commits != 1 || compacted.GivenUp != 0 {
				t.Errorf("%d upserts beside, %v", times, compacted)
			}
			w.checkRows(m.rows())
			// The deletes added meanwhile are dead after the next compaction.
			c.hook, c.DeleteFiles = nil, 1
			if _, err := Compact(t.Context(), w.load, c, nil); err != nil {
				t.Fatal(err)
			}
			w.checkRows(m.rows())
			for _, f := range w.dataFiles() {
				if len(f.EqualityDeleteFiles) > 0 {
					t.Errorf("%d deletes are left on %s", len(f.EqualityDeleteFiles), f.File.FilePath())
				}
			}
			if n := w.table().CurrentSnapshot().Summary.Properties["total-delete-files"]; n != "0" {
				t.Errorf("%s delete files are left", n)
			}
		})
	}
}

// Rows that are deleted by position during a rewrite stay deleted: the rewrite is abandoned, and
// its files are removed.
func TestConcurrentPositionDeletes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, catalog.WithSortOrder(byKey))
	w.land(func(_ *table.Table, tx *table.Transaction) error {
		return tx.SetProperties(map[string]string{table.WriteDeleteModeKey: table.WriteModeMergeOnRead})
	})
	m := model{}
	rows := sequenceOf(0, 1000)
	w.append(shuffled(rows, 10)...)
	m.put(rows...)
	c := w.config()
	once := sync.Once{}
	c.hook = func(_ context.Context, s step) error {
		if s == stepWritten {
			once.Do(func() {
				w.land(func(_ *table.Table, tx *table.Transaction) error {
					err := tx.Delete(context.Background(), keyIs(17), nil)
					return errors.Join(err, tx.RemoveProperties([]string{table.DefaultNameMappingKey}))
				})
				delete(m, 17)
			})
		}
		return nil
	}
	before := len(w.listed(".parquet"))
	compacted, err := Compact(t.Context(), w.load, c, nil)
	if err != nil || compacted.GivenUp != 1 || compacted.Commits != 0 {
		t.Fatalf("%v, %v", compacted, err)
	}
	w.checkRows(m.rows())
	if after := len(w.listed(".parquet")); after != before+1 { // the deletes
		t.Errorf("%d files were there, and are now %d", before, after)
	}
	if compacted, err = Compact(t.Context(), w.load, c, nil); err != nil || compacted.Commits != 1 || compacted.DeleteFiles != 1 {
		t.Errorf("%v, %v", compacted, err)
	}
	w.checkRows(m.rows())
}

// Of two concurrent compactions, one commits, and the other gives up and leaves nothing behind.
func TestConcurrentCompactions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := sequenceOf(0, 100)
	w.append(shuffled(want, 10)...)
	c := w.config()
	c.hook = func(ctx context.Context, s step) error {
		if s == stepWritten {
			if other, err := Compact(ctx, w.load, w.config(), nil); err != nil || other.Commits != 1 {
				t.Errorf("%v, %v", other, err)
			}
		}
		return nil
	}
	if did, err := Compact(t.Context(), w.load, c, nil); err != nil || did.GivenUp != 1 || did.Commits != 0 {
		t.Errorf("%v, %v", did, err)
	}
	w.checkRows(want)
	if n := len(w.listed(".parquet")); n != 11 {
		t.Errorf("%d data files", n)
	}
}

// A rewrite is abandoned if other processes may soon take its files for orphans.
func TestSlowRewriteIsAbandoned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(shuffled(sequenceOf(0, 100), 10)...)
	c := w.config()
	c.OrphanAge = time.Millisecond
	c.hook = func(_ context.Context, s step) error {
		if s == stepWritten {
			<-time.After(c.OrphanAge)
		}
		return nil
	}
	if did, err := Compact(t.Context(), w.load, c, nil); err != nil || did.GivenUp != 1 {
		t.Errorf("%v, %v", did, err)
	}
	w.checkRows(sequenceOf(0, 100))
}

// Rewriting is logarithmic: if equal amounts are landed repeatedly, each row is rewritten a few
// times only.
func TestWriteAmplification(t *testing.T) {
	t.Parallel()
	var r run
	if err := r.fill(); err != nil {
		t.Fatal(err)
	}
	const landings, size = 20000, 40 << 10
	var files []table.FileScanTask
	var landed, rewritten int64
	most := 0
	for i := range landings {
		files = append(files, table.FileScanTask{File: dataFileOfSize(size)})
		landed += size
		if i%20 != 0 {
			continue
		}
		if chosen := r.choose(files); len(chosen) > 0 {
			gone := map[string]bool{}
			var bytes int64
			for _, c := range chosen {
				bytes += c.File.FileSizeBytes()
				gone[c.File.FilePath()] = true
			}
			rewritten += bytes
			files = append(slices.DeleteFunc(files, func(f table.FileScanTask) bool { return gone[f.File.FilePath()] }), table.FileScanTask{File: dataFileOfSize(bytes)})
		}
		most = max(most, len(files))
	}
	factor := float64(rewritten) / float64(landed)
	t.Logf("each byte is rewritten %.1f times, %d files at most of %d landed", factor, most, landings)
	if factor > 8 || most > 60 { // log2(96 MiB / 800 KiB) is 7
		t.Errorf("each byte is rewritten %.1f times, and there are up to %d files", factor, most)
	}
}

var sizedFiles atomic.Int64

func dataFileOfSize(bytes int64) iceberg.DataFile {
	b := must(iceberg.NewDataFileBuilder(*iceberg.UnpartitionedSpec, iceberg.EntryContentData, fmt.Sprintf("/%d", sizedFiles.Add(1)), iceberg.ParquetFile, nil, nil, nil, 1, bytes))
	return b.Build()
}

// Whatever the catalog answers, a rewrite is in the table once or not at all. Files of a failed
// rewrite are removed.
func TestCatalogFaults(t *testing.T) {
	t.Parallel()
	for name, kinds := range map[string][]fault{
		"refused": {refused, refused}, "fails": {fails, fails}, "lost": {lost}, "all": {refused, fails, lost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			want := sequenceOf(0, 100)
			w.append(shuffled(want, 10)...)
			var commits atomic.Int64
			w.injectFaults(func() fault {
				if i := int(commits.Add(1)); i <= len(kinds) {
					return kinds[i-1]
				}
				return works
			})
			c := w.config()
			c.Manifests, c.KeepSnapshots, c.KeepAge = 2, 1, 1
			report := w.mustRun(c)
			if report.Compacted.Commits != 1 || report.Compacted.Retries == 0 {
				t.Errorf("%+v", report.Compacted)
			}
			w.checkRows(want)
			if n := len(w.listed(".parquet")); n != 1 {
				t.Errorf("%d files are left", n)
			}
		})
	}
	t.Run("never", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		want := sequenceOf(0, 100)
		w.append(shuffled(want, 10)...)
		w.injectFaults(func() fault { return refused })
		c := w.config()
		c.tries = 3
		if _, err := Compact(t.Context(), w.load, c, nil); !errors.Is(err, errFault) {
			t.Fatalf("got %v", err)
		}
		w.checkRows(want)
		// No other commit took the place of ours, so it may still land: the file stays.
		if n := len(w.listed(".parquet")); n != 11 {
			t.Errorf("%d files", n)
		}
	})
}

// An error at any step ends a run or is overcome. The table is intact, and the next run does the
// rest.
func TestErrorsAtEachStep(t *testing.T) {
	t.Parallel()
	for _, at := range steps() {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, catalog.WithSortOrder(byKey))
			want := sequenceOf(0, 300)
			for chunks := range slices.Chunk(shuffled(want, 30), 10) {
				w.append(chunks...)
			}
			c := w.config()
			c.Manifests, c.KeepSnapshots, c.KeepAge, c.tries, c.sortBytes = 2, 1, 1, 2, 4<<10
			c.now = later
			w.orphan("data/left-by-somebody.parquet")
			came := 0
			c.hook = func(_ context.Context, s step) error {
				if s == at {
					came++
					return errFault
				}
				return nil
			}
			_, err := Run(t.Context(), w.load, c, nil)
			if came == 0 {
				t.Fatal("the run does not come by it")
			}
			if err != nil && !errors.Is(err, errFault) {
				t.Fatal(err)
			}
			w.checkRows(want)
			c.hook = nil
			w.mustRun(c)
			w.checkRows(want)
			if files, snapshots := len(w.listed(".parquet")), len(w.table().Metadata().Snapshots()); files != 1 || snapshots != 1 {
				t.Errorf("%d files and %d snapshots are left", files, snapshots)
			}
		})
	}
}

func steps() []step {
	return []step{
		stepPlanned, stepSpilled, stepWritten, stepCompactCommit, stepCompactCommitted, stepManifestsCommit, stepManifestsCommitted,
		stepExpireCommit, stepExpireCommitted, stepOrphansFound, stepOrphansRemoved,
	}
}

func keyIs(k int64) iceberg.BooleanExpression { return iceberg.EqualTo(iceberg.Reference("key"), k) }
