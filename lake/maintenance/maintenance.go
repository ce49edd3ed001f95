// Package maintenance keeps Iceberg tables small in files, metadata and history. A lander that
// commits every second adds tens of thousands of small files and manifests a day, and every read
// pays for them.
//
// It works on any table of a catalog, whoever writes it, concurrently with writers and readers in
// any process.
//
// Invariants: no row is lost, duplicated or undeleted; the offsets in the table's properties are
// not changed; and no file is deleted that a reader or a pending commit may need. Maintenance has
// no state of its own: each run starts from the table. If it is killed, it only leaves unreferenced
// files, which a later run removes.
//
// A run has these steps, most of which can also be called separately:
//
//   - Compact merges small files, sorts them, and applies deletes.
//   - RewriteManifests merges manifests.
//   - Expire shortens the history and deletes the files that only it needed.
//   - RemoveOrphans deletes unreferenced files.
//
// Plan reports what a run would do, and Keep repeats runs. Landers call Thin to bound the history
// between runs. Hold protects a snapshot that is being read.
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

// Load loads the table's current state. It is called for every check and every attempt to commit.
type Load func(context.Context) (*table.Table, error)

// Config has the settings for maintaining a table. Zero values select the defaults given below.
type Config struct {
	// TargetBytes is the target size of data files; 128 MiB. Files below three quarters of it count
	// as small.
	TargetBytes int64
	// SmallFiles is the number of small files in a partition that trigger a rewrite; 8.
	SmallFiles int
	// DeleteShare is the ratio of equality deletes to a partition's rows that triggers a rewrite of
	// its files; 0.1. It limits the cost of an update to about ten times its size.
	DeleteShare float64
	// DeleteFiles is the number of equality delete files in a partition that triggers the same;
	// 256.
	DeleteFiles int

	// KeepAge is how long a state of the table stays readable after it has been replaced; 1 h.
	KeepAge time.Duration
	// KeepSnapshots is the number of snapshots that are retained regardless of age; 10.
	KeepSnapshots int
	// Manifests is the number of small manifests that triggers merging; 20.
	Manifests int
	// OrphanAge is the age at which unreferenced files are deleted; 24 h. It must be longer than
	// any writer needs from creating a file to committing it. The minimum is 10 min.
	OrphanAge time.Duration

	// Memory is the approximate memory of a compaction in bytes, independent of the table's size;
	// 256 MiB, at least 64 MiB. Parquet buffers add up to half as much. The keys of equality
	// deletes and large row groups of input files come on top.
	Memory int64
	// DutyCycle is the fraction of time during which a compaction works, above 0; 0.5. The pauses
	// leave the machine to other processes.
	DutyCycle float64
	// Scratch is the folder for sorting; the system's temporary folder. It needs room for the rows
	// of one bin (8 × TargetBytes of Parquet) as LZ4-compressed Arrow, which is about three times
	// as much.
	Scratch string
	// Every is the interval between the runs of Keep; 10 min.
	Every time.Duration
	// CompactEvery is the interval between compactions, which Keep also does between runs; the
	// value of Every. Tables whose rows are replaced need frequent ones, because each delete file
	// slows reads down.
	CompactEvery time.Duration

	Logger *slog.Logger // nil: no logging

	// Set by tests, with defaults like the fields above.
	hook      func(ctx context.Context, s step) error // an error fails the step
	minAge    time.Duration                           // minimum of OrphanAge
	now       func() time.Time                        // clock for the age of orphans
	tries     int                                     // maximum attempts per commit; 30
	sortBytes int64                                   // rows and keys sorted in memory; a sixth of Memory
}

// binTargets is the maximum size of a bin as a multiple of TargetBytes.
const binTargets = 8

// Minimum values of Config.Memory and Config.OrphanAge.
const (
	minMemory    = 64 << 20
	minOrphanAge = 10 * time.Minute
)

// fill sets defaults and validates the result. The error names every invalid field.
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
	setDefault(&c.DutyCycle, defaults.Share)
	setDefault(&c.Scratch, os.TempDir())
	setDefault(&c.Every, defaults.MaintainEvery)
	setDefault(&c.CompactEvery, c.Every)
	setDefault(&c.minAge, minOrphanAge)
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
	check(c.TargetBytes > 0, "TargetBytes %d: must be above 0", c.TargetBytes)
	check(c.SmallFiles >= 2, "SmallFiles %d: a single file cannot be merged; must be at least 2", c.SmallFiles)
	check(c.DeleteShare > 0, "DeleteShare %g: must be above 0", c.DeleteShare)
	check(c.DeleteFiles > 0, "DeleteFiles %d: must be above 0", c.DeleteFiles)
	check(c.KeepAge > 0, "KeepAge %v: must be above 0", c.KeepAge)
	check(c.KeepSnapshots > 0, "KeepSnapshots %d: must be above 0", c.KeepSnapshots)
	check(c.Manifests >= 2, "Manifests %d: a single manifest cannot be merged; must be at least 2", c.Manifests)
	check(c.OrphanAge >= c.minAge, "OrphanAge %v: must be at least %v, or files of pending commits would be removed",
		c.OrphanAge, c.minAge)
	check(c.Memory >= minMemory, "Memory %d: must be at least %d", c.Memory, minMemory)
	check(c.DutyCycle > 0 && c.DutyCycle <= 1, "DutyCycle %g: must be above 0 and at most 1", c.DutyCycle)
	check(c.Every > 0, "Every %v: must be above 0", c.Every)
	check(c.CompactEvery > 0, "CompactEvery %v: must be above 0", c.CompactEvery)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("maintenance: %w", err)
	}
	return nil
}

// setDefault sets a value that is zero.
func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// small returns the size below which a data file counts as small.
func (c *Config) small() int64 { return c.TargetBytes * 3 / 4 }

// Progress is the progress of a step.
type Progress struct {
	Table string
	Step  string // compact, manifests, expire, orphans
	Done  int64  // bytes of data files read, or number of files removed
	Of    int64
}

// Report is the result of a run.
type Report struct {
	Table     string
	Compacted Compacted
	Manifests ManifestsMerged
	Expired   Expired
	Orphans   Orphans
	Skipped   []string // steps that the table does not allow, with reasons
	Took      time.Duration
}

// run is one run on one table.
type run struct {
	Config
	load     Load
	progress func(Progress) // never nil
	table    string         // dotted name, for messages; set by loadTable
	skipped  []string
}

// newRun validates the configuration and returns a run without a table loaded.
func newRun(c Config, load Load, progress func(Progress)) (*run, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	return &run{Config: c, load: load, progress: progress}, nil
}

// Run performs all steps on one table. A failed step does not prevent the next ones; the error
// joins all failures.
func Run(ctx context.Context, load Load, c Config, progress func(Progress)) (Report, error) {
	return perform(ctx, load, c, progress, true)
}

// perform performs all steps, or only those that keep reads fast if full is false.
func perform(ctx context.Context, load Load, c Config, progress func(Progress), full bool) (Report, error) {
	r, err := newRun(c, load, progress)
	if err != nil {
		return Report{}, err
	}
	began := time.Now()
	var report Report
	var errs []error
	// The order matters: compaction replaces files, expiry drops the snapshots that still refer to
	// them, and only then do they become orphans.
	steps := []func(context.Context) error{
		func(ctx context.Context) (err error) { report.Compacted, err = r.compact(ctx); return err },
		func(ctx context.Context) (err error) { report.Manifests, err = r.rewriteManifests(ctx); return err },
	}
	if full {
		steps = append(steps,
			r.restoreLocations,
			func(ctx context.Context) (err error) { report.Expired, err = r.expire(ctx); return err },
			func(ctx context.Context) (err error) { report.Orphans, err = r.removeOrphans(ctx); return err },
		)
	}
	// A failed step does not make the following ones unsafe: each of them starts from the table.
	for _, step := range steps {
		if ctx.Err() != nil {
			// Do not start further steps when the run is cancelled.
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

// Keep repeats runs until ctx is done, with compactions in between. It calls done after each.
func Keep(ctx context.Context, load Load, c Config, done func(Report, error)) error {
	if err := c.fill(); err != nil {
		return err
	}
	// last is the start of the pause after the last full run. It is zero at first, so the first run
	// is always a full one.
	var last time.Time
	for {
		// A full run may be early by half a compaction interval, so that it replaces the nearest
		// compaction.
		full := time.Since(last) >= c.Every-c.CompactEvery/2
		report, err := perform(ctx, load, c, nil, full)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopping on request is not an error
		}
		if done(report, err); full {
			last = time.Now()
		}
		// The shorter interval drives the loop. Complete runs happen whenever they are due.
		wait := min(c.Every, c.CompactEvery)
		// 10 % of jitter, so that tables are not maintained in lockstep.
		t := time.NewTimer(wait - wait/10 + rand.N(wait/5))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// loadTable loads the table's current state.
func (r *run) loadTable(ctx context.Context) (*table.Table, error) {
	t, err := r.load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load table: %w", err)
	}
	r.table = strings.Join(t.Identifier(), ".")
	return t, nil
}

// skip records a step that the table does not allow. It is not an error: the other steps still run.
func (r *run) skip(what, why string) {
	r.skipped = append(r.skipped, what+": "+why)
}

// step is a point at which tests and the kill matrix inject failures.
type step string

// The steps, in the order of a run. Their names are also those of failpoints, so they do not
// change.
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

// at calls the hook for a step, or without one the failpoint of that name.
func (r *run) at(ctx context.Context, s step) error {
	if r.hook != nil {
		return r.hook(ctx, s)
	}
	return failpoint.Hit("maintenance." + string(s))
}
