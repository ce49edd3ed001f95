// Package maintenance keeps Iceberg tables small: in files, in metadata and in history. A lander
// that commits every second leaves tens of thousands of small files and manifests a day, and every
// read pays for each of them.
//
// It works on any table of a catalog, whoever writes it, beside writers in this process and in
// others. What must hold: no row is lost, doubled or brought back from the dead, the offsets that
// landers keep in the table's properties are not touched, and no file is deleted that a reader or a
// commit may still need. It keeps no state: each run starts from what the table says. Killed at any
// moment it loses nothing; what it leaves behind are files that nothing refers to, and a later run
// removes them once they are old.
//
// A run has four steps, and each stands alone too: Compact makes few large sorted files out of many
// small ones and of files with deletes, RewriteManifests merges manifests, Expire cuts the history
// and deletes what only the history needed, RemoveOrphans deletes files that nothing refers to.
// Plan tells what a run would do.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/defaults"
	"github.com/millrace/millrace/internal/failpoint"
)

// Load reads the table as it is now. It is called for every look and every attempt to commit.
type Load func(context.Context) (*table.Table, error)

// Config says how a table is kept. The zero value takes the defaults.
type Config struct {
	// TargetBytes is how large data files are to be; 128 MiB. A file below three quarters of it is
	// small.
	TargetBytes int64
	// SmallFiles is how many small files of a partition are worth a rewrite; 8.
	SmallFiles int
	// DeleteShare is the share of a partition's rows, in deletes by equality, from which on its
	// files are rewritten to be rid of them; 0.1. So an update costs at most ten times its size in
	// rewriting.
	DeleteShare float64
	// DeleteFiles is how many files of such deletes a partition may have before the same happens;
	// 256.
	DeleteFiles int

	// KeepAge is how long a state of the table stays readable after another has taken its place; 1
	// h.
	KeepAge time.Duration
	// KeepSnapshots is how many snapshots stay whatever their age; 10.
	KeepSnapshots int
	// Manifests is how many small manifests are worth merging; 20.
	Manifests int
	// OrphanAge is how old a file that nothing refers to must be to be removed; 24 h. It must be
	// longer than any writer takes from creating a file to committing it. Less than 10 min is
	// refused.
	OrphanAge time.Duration

	// Memory is about what a compaction holds, in bytes, whatever the table's size; 256 MiB, at
	// least 64 MiB. Buffers of Parquet's add up to half as much. Beyond it come the keys of deletes
	// by equality, and one row group of an input file where that is large.
	Memory int64
	// Share is for which share of the time a compaction works, above 0; 0.5. In between it rests,
	// so that whoever shares the machine does not wait for it.
	Share float64
	// Scratch is a folder for sorting; the system's folder for temporary files. It must have room
	// for the rows of one bin, 8 × TargetBytes of Parquet, as Arrow with LZ4: about three times as
	// much.
	Scratch string
	// Every is how long Keep waits between runs; 10 min.
	Every time.Duration
	// CompactEvery is how long it waits between compactions, which it does alone until a run is
	// due; as long as Every. A table whose rows are replaced is read the slower the more files of
	// deletes it has.
	CompactEvery time.Duration

	Logger *slog.Logger // nil: none

	hook        func(ctx context.Context, s step) error // tests fail steps with it
	orphanLeast time.Duration                           // tests are in a hurry
	now         func() time.Time                        // for the age of orphans
	tries       int                                     // of a commit
	sortBytes   int64                                   // sorted at once, with their keys; a sixth of Memory
}

// A bin is what is sorted and rewritten at once: so many times the target.
const binTargets = 8

const (
	leastMemory    = 64 << 20
	leastOrphanAge = 10 * time.Minute
)

// fill puts the defaults in and checks the rest.
func (c *Config) fill() error {
	setDefault(&c.TargetBytes, defaults.TargetBytes)
	setDefault(&c.SmallFiles, 8)
	setDefault(&c.DeleteShare, 0.1)
	setDefault(&c.DeleteFiles, 256)
	setDefault(&c.KeepAge, defaults.KeepAge)
	setDefault(&c.KeepSnapshots, 10)
	setDefault(&c.Manifests, 20)
	setDefault(&c.OrphanAge, defaults.OrphanAge)
	setDefault(&c.Memory, defaults.Memory)
	setDefault(&c.Share, defaults.Share)
	setDefault(&c.Scratch, os.TempDir())
	setDefault(&c.Every, defaults.MaintainEvery)
	setDefault(&c.CompactEvery, c.Every)
	setDefault(&c.orphanLeast, leastOrphanAge)
	setDefault(&c.tries, 30)
	setDefault(&c.sortBytes, c.Memory/6)
	if c.now == nil {
		c.now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.TargetBytes > 0, "TargetBytes %d: it must be above 0", c.TargetBytes)
	check(c.SmallFiles >= 2, "SmallFiles %d: one file cannot be merged; it must be at least 2", c.SmallFiles)
	check(c.DeleteShare > 0, "DeleteShare %g: it must be above 0", c.DeleteShare)
	check(c.DeleteFiles > 0, "DeleteFiles %d: it must be above 0", c.DeleteFiles)
	check(c.KeepAge > 0, "KeepAge %v: it must be above 0", c.KeepAge)
	check(c.KeepSnapshots > 0, "KeepSnapshots %d: it must be above 0", c.KeepSnapshots)
	check(c.Manifests >= 2, "Manifests %d: one cannot be merged; it must be at least 2", c.Manifests)
	check(c.OrphanAge >= c.orphanLeast, "OrphanAge %v: files of commits under way would be removed; it must be at least %v", c.OrphanAge, c.orphanLeast)
	check(c.Memory >= leastMemory, "Memory %d: it must be at least %d", c.Memory, leastMemory)
	check(c.Share > 0 && c.Share <= 1, "Share %g: it must be above 0, and 1 at most", c.Share)
	check(c.Every > 0, "Every %v: it must be above 0", c.Every)
	check(c.CompactEvery > 0, "CompactEvery %v: it must be above 0", c.CompactEvery)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("maintenance: %w", err)
	}
	return nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// small returns the size below which a data file is small.
func (c *Config) small() int64 { return c.TargetBytes * 3 / 4 }

// Progress is how far a step is.
type Progress struct {
	Table string
	Step  string // compact, manifests, expire, orphans
	Done  int64  // bytes of data files read, or files removed
	Of    int64
}

// Report tells what a run did.
type Report struct {
	Table     string
	Compacted Compacted
	Manifests ManifestsMerged
	Expired   Expired
	Orphans   Orphans
	Skipped   []string // what the table does not allow, and why
	Took      time.Duration
}

// run is one run at one table.
type run struct {
	Config
	load     Load
	progress func(Progress)
	table    string
	skipped  []string
}

func newRun(c Config, load Load, progress func(Progress)) (*run, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	return &run{Config: c, load: load, progress: progress}, nil
}

// Run does all steps for one table. A step that fails does not keep the next from being done; the
// error tells of each.
func Run(ctx context.Context, load Load, c Config, progress func(Progress)) (Report, error) {
	return perform(ctx, load, c, progress, true)
}

// perform does all steps, or those alone that keep reads short.
func perform(ctx context.Context, load Load, c Config, progress func(Progress), whole bool) (Report, error) {
	r, err := newRun(c, load, progress)
	if err != nil {
		return Report{}, err
	}
	began := time.Now()
	var report Report
	var errs []error
	steps := []func(context.Context) error{
		func(ctx context.Context) (err error) { report.Compacted, err = r.compact(ctx); return err },
		func(ctx context.Context) (err error) { report.Manifests, err = r.rewriteManifests(ctx); return err },
	}
	if whole {
		steps = append(steps,
			r.placeAsWritten,
			func(ctx context.Context) (err error) { report.Expired, err = r.expire(ctx); return err },
			func(ctx context.Context) (err error) { report.Orphans, err = r.removeOrphans(ctx); return err },
		)
	}
	for _, step := range steps {
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		if err := step(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	report.Table, report.Skipped, report.Took = r.table, r.skipped, time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return report, fmt.Errorf("maintenance of table %s: %w", r.table, err)
	}
	return report, nil
}

// Keep runs every so often until ctx is done, and compacts in between; it tells of each run.
func Keep(ctx context.Context, load Load, c Config, done func(Report, error)) error {
	if err := c.fill(); err != nil {
		return err
	}
	var last time.Time
	for {
		whole := time.Since(last) >= c.Every-c.CompactEvery/2
		report, err := perform(ctx, load, c, nil, whole)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // to be told to stop is not an error
		}
		if done(report, err); whole {
			last = time.Now()
		}
		wait := min(c.Every, c.CompactEvery)
		t := time.NewTimer(wait - wait/10 + rand.N(wait/5)) // several tables shall not stay in step
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// look loads the table.
func (r *run) look(ctx context.Context) (*table.Table, error) {
	t, err := r.load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load table: %w", err)
	}
	r.table = strings.Join(t.Identifier(), ".")
	return t, nil
}

func (r *run) skip(what, why string) {
	r.skipped = append(r.skipped, what+": "+why)
}

// step is a moment at which tests, or the kill matrix, make a run fail.
type step string

const (
	stepPlanned            step = "compact.planned"
	stepSpilled            step = "compact.spilled"
	stepWritten            step = "compact.written"
	stepCompactCommit      step = "compact.commit"
	stepCompactCommitted   step = "compact.committed"
	stepManifestsCommit    step = "manifests.commit"
	stepManifestsCommitted step = "manifests.committed"
	stepExpireCommit       step = "expire.commit"
	stepExpireCommitted    step = "expire.committed"
	stepOrphansFound       step = "orphans.found"
	stepOrphansRemoved     step = "orphans.removed"
)

func (r *run) at(ctx context.Context, s step) error {
	if r.hook != nil {
		return r.hook(ctx, s)
	}
	return failpoint.Hit("maintenance." + string(s))
}
