package maintenance

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
)

// Only unreferenced old files that look like a table's are orphans.
func TestSelectOrphans(t *testing.T) {
	t.Parallel()
	now := time.Now()
	old, young := now.Add(-25*time.Hour), now.Add(-23*time.Hour)
	const at = "s3://bucket/db/t"
	referred := map[string]bool{"used.parquet": true, "snap-1.avro": true, "00002.metadata.json": true, "old.stats": true}
	for name, c := range map[string]struct {
		name string
		age  time.Time
		goes bool
	}{
		"a data file nobody committed":       {at + "/data/left.parquet", old, true},
		"the same in a partition":            {at + "/data/day=3/left.parquet", old, true},
		"a manifest of a failed commit":      {at + "/metadata/left-m0.avro", old, true},
		"metadata of a failed commit":        {at + "/metadata/00003.metadata.json", old, true},
		"statistics nobody refers to":        {at + "/metadata/left.stats", old, true},
		"spelt in another way":               {"s3a://bucket/db/t/data/left.parquet", old, true},
		"in flight":                          {at + "/data/left.parquet", young, false},
		"live":                               {at + "/data/used.parquet", old, false},
		"live, in another folder":            {at + "/data/day=4/used.parquet", old, false},
		"live manifest list":                 {at + "/metadata/snap-1.avro", old, false},
		"current metadata":                   {at + "/metadata/00002.metadata.json", old, false},
		"live statistics":                    {at + "/metadata/old.stats", old, false},
		"the version hint":                   {at + "/metadata/version-hint.text", old, false},
		"somebody's note":                    {at + "/data/README", old, false},
		"somebody's file beside":             {at + "/export.parquet", old, false},
		"somebody's folder beside":           {at + "/exports/left.parquet", old, false},
		"of a table within":                  {at + "/data/inner/data/left.parquet", old, false},
		"metadata of a table within":         {at + "/data/inner/metadata/00009.metadata.json", old, false},
		"of a table whose name begins alike": {at + "2/data/left.parquet", old, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listed := []file{{location: c.name, changed: c.age}, {location: at + "/data/inner/metadata/00001.metadata.json", changed: young}}
			if goes := len(selectOrphans(listed, at, referred, now.Add(-24*time.Hour))) > 0; goes != c.goes {
				t.Errorf("goes: %v", goes)
			}
		})
	}
}

// Writers spell locations in different ways.
func TestPlain(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]string{
		"/a/b": "/a/b", "file:///a/b": "/a/b", "file:/a/b": "/a/b", "file:///a//b/": "/a/b", "s3://b/c": "s3://b/c", "s3a://b/c": "s3://b/c", "s3n://b/c/": "s3://b/c",
	} {
		if have := plain(from); have != want {
			t.Errorf("%s: %s, want %s", from, have, want)
		}
	}
}

// Orphans are removed and files in use stay, in a folder and in a bucket.
func TestRemoveOrphans(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]func(testing.TB, ...catalog.CreateTableOpt) *world{"local": newWorld, "s3": newBucket} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := made(t)
			want := sequenceOf(0, 50)
			for _, chunk := range shuffled(want, 5) {
				w.append(chunk)
			}
			goes := []string{w.orphan("data/left.parquet"), w.orphan("data/day=1/left.parquet"), w.orphan("metadata/left-m0.avro")}
			stays := []string{w.orphan("metadata/version-hint.text"), w.orphan("notes.txt"), w.orphan("data/inner/metadata/1.metadata.json"), w.orphan("data/inner/data/x.parquet")}
			c := w.config()
			if did, err := RemoveOrphans(t.Context(), w.load, c, nil); err != nil || did.Files != 0 {
				t.Fatalf("while they are young: %v, %v", did, err)
			}
			c.now = later
			c.OrphanAge = 24 * time.Hour
			plan, err := Plan(t.Context(), w.load, c)
			if err != nil || len(plan.OrphanFiles) != len(goes) {
				t.Fatalf("planned %v, %v", plan.OrphanFiles, err)
			}
			did, err := RemoveOrphans(t.Context(), w.load, c, nil)
			if err != nil || did.Files != len(goes) {
				t.Fatalf("%v, %v", did, err)
			}
			for _, f := range goes {
				if len(w.listed(strings.TrimPrefix(f, w.table().Location()))) != 0 {
					t.Errorf("%s is left", f)
				}
			}
			for _, f := range stays {
				if len(w.listed(strings.TrimPrefix(f, w.table().Location()))) != 1 {
					t.Errorf("%s is gone", f)
				}
			}
			w.checkRows(want)
		})
	}
}

// A file that is committed after the search is not an orphan.
func TestOrphanCommittedMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(sequenceOf(0, 3))
	files := w.write(w.table(), sequenceOf(3, 6))
	w.orphan("data/left.parquet")
	c := w.config()
	c.now = later
	c.hook = func(_ context.Context, s step) error {
		if s == stepOrphansFound {
			w.land(func(_ *table.Table, tx *table.Transaction) error {
				return tx.AddDataFiles(context.Background(), files, nil, table.WithoutAutoNameMapping())
			})
		}
		return nil
	}
	if did, err := RemoveOrphans(t.Context(), w.load, c, nil); err != nil || did.Files != 1 {
		t.Errorf("%v, %v", did, err)
	}
	w.checkRows(sequenceOf(0, 6))
}

// Expiry deletes what only the history needed.
func TestExpire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := sequenceOf(0, 400)
	for chunks := range slices.Chunk(shuffled(want, 40), 10) {
		w.append(chunks...)
	}
	c := w.config()
	if _, err := Compact(t.Context(), w.load, c, nil); err != nil {
		t.Fatal(err)
	}
	c.KeepSnapshots = 1
	did, err := Expire(t.Context(), w.load, c)
	if err != nil || did.Snapshots != 0 || did.Left != 5 {
		t.Fatalf("while all are young: %+v, %v", did, err)
	}
	c.KeepAge = time.Millisecond
	<-time.After(5 * c.KeepAge)
	plan, err := Plan(t.Context(), w.load, c)
	if err != nil {
		t.Fatal(err)
	}
	if did, err = Expire(t.Context(), w.load, c); err != nil || did.Snapshots != 4 || did.Left != 1 || plan.ExpiredNow != 4 {
		t.Fatalf("%+v, %v; planned %v", did, err, plan)
	}
	if n := len(w.listed(".parquet")); n != 1 {
		t.Errorf("%d data files are left", n)
	}
	if n := len(w.listed(".avro")); n > 3 {
		t.Errorf("%d manifests and lists are left", n)
	}
	w.checkRows(want)
}

// A snapshot's age counts from when it was replaced, not from when it was made: a reader may have
// started on it just before.
func TestHeadsSince(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range int64(4) {
		w.append(sequenceOf(i, i+1))
		<-time.After(3 * time.Millisecond) // times are in milliseconds
	}
	meta := w.table().Metadata()
	for i, s := range meta.Snapshots() {
		made := time.UnixMilli(s.TimestampMs)
		if have, want := headsSince(meta, made.Add(time.Millisecond)), 4-i; have != want {
			t.Errorf("after snapshot %d: %d, want %d", i, have, want)
		}
		if have, want := headsSince(meta, made), min(4, 5-i); have != want {
			t.Errorf("when snapshot %d was made: %d, want %d", i, have, want)
		}
	}
}

// Snapshots of tags stay readable.
func TestExpireKeepsTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(shuffled(sequenceOf(0, 90), 9)...)
	tagged := w.table().CurrentSnapshot().SnapshotID
	_, _, err := w.cat.CommitTable(t.Context(), w.ident, nil, []table.Update{table.NewSetSnapshotRefUpdate("audit", tagged, table.TagRef, 0, 0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	c := w.config()
	c.KeepSnapshots, c.KeepAge, c.now = 1, 1, later
	if _, err := Compact(t.Context(), w.load, c, nil); err != nil {
		t.Fatal(err)
	}
	w.append(sequenceOf(90, 91))
	<-time.After(5 * time.Millisecond)
	w.mustRun(c)
	if w.table().Metadata().SnapshotByID(tagged) == nil {
		t.Fatal("the tagged snapshot is gone")
	}
	if n := len(w.listed(".parquet")); n != 11 {
		t.Errorf("%d data files are left", n)
	}
	w.checkRows(sequenceOf(0, 91))
}

// A table that shares its files with others loses none.
func TestSharedFilesAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(shuffled(sequenceOf(0, 90), 9)...)
	w.land(func(_ *table.Table, tx *table.Transaction) error {
		return tx.SetProperties(iceberg.Properties{table.GCEnabledKey: "false"})
	})
	w.orphan("data/left.parquet")
	c := w.config()
	c.KeepSnapshots, c.KeepAge, c.now = 1, 1, later
	report := w.mustRun(c)
	if len(report.Skipped) != 2 || len(w.listed(".parquet")) != 11 {
		t.Errorf("%d files are left; skipped: %v", len(w.listed(".parquet")), report.Skipped)
	}
}

// Harmful settings are refused, each by its name.
func TestConfig(t *testing.T) {
	t.Parallel()
	c := Config{TargetBytes: -1, SmallFiles: 1, DeleteShare: -1, DeleteFiles: -1, KeepAge: -1, KeepSnapshots: -1, Manifests: 1, OrphanAge: 9 * time.Minute, Memory: 1, Every: -1}
	_, err := Plan(t.Context(), nil, c)
	for _, name := range []string{"TargetBytes", "SmallFiles", "DeleteShare", "DeleteFiles", "KeepAge", "KeepSnapshots", "Manifests", "OrphanAge", "Memory", "Every"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named by %v", name, err)
		}
	}
}

// Nothing is left in the scratch folder.
func TestScratchIsRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, catalog.WithSortOrder(byKey))
	w.append(shuffled(sequenceOf(0, 900), 9)...)
	c := w.config()
	c.sortBytes = 1 << 10
	spilled := 0
	c.hook = func(_ context.Context, s step) error {
		if s == stepSpilled {
			if spilled++; spilled == 3 {
				return errFault
			}
		}
		return nil
	}
	if _, err := Compact(t.Context(), w.load, c, nil); !errors.Is(err, errFault) {
		t.Fatalf("got %v", err)
	}
	if _, err := Compact(t.Context(), w.load, c, nil); err != nil {
		t.Fatal(err)
	}
	left := must(os.ReadDir(c.Scratch))
	if len(left) > 0 || spilled < 5 {
		t.Errorf("%d files are left after %d", len(left), spilled)
	}
	w.checkRows(sequenceOf(0, 900))
}
