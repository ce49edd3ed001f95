package maintenance

import (
	"context"
	"fmt"
)

// Planned is what a run would do to the table's current state.
type Planned struct {
	Table         string
	DataFiles     int // in the table
	DataBytes     int64
	RewriteFiles  int // data files that compaction would replace
	RewriteBytes  int64
	ResultFiles   int // approximate number of replacements
	Manifests     int // small manifests to be merged; 0 if too few
	Snapshots     int
	ExpiredNow    int
	OrphanFiles   []string // to be removed
	OrphanBytes   int64
	KeepsAllFiles bool // gc.enabled is false: nothing would be deleted
}

// String summarizes the plan for the command line.
func (p Planned) String() string {
	return fmt.Sprintf("%s: rewrite %d of %d data files (%d of %d bytes) as about %d, merge %d manifests, "+
		"expire %d of %d snapshots, remove %d orphans (%d bytes)",
		p.Table, p.RewriteFiles, p.DataFiles, p.RewriteBytes, p.DataBytes, p.ResultFiles, p.Manifests,
		p.ExpiredNow, p.Snapshots, len(p.OrphanFiles), p.OrphanBytes)
}

// Plan reports what Run would do. It changes nothing. Each step is planned on the current state, so
// the orphans do not include files that the other steps would make unreferenced.
func Plan(ctx context.Context, load Load, c Config) (Planned, error) {
	r, err := newRun(c, load, nil)
	if err != nil {
		return Planned{}, err
	}
	t, err := r.loadTable(ctx)
	if err != nil {
		return Planned{}, err
	}
	fail := func(err error) (Planned, error) { return Planned{}, fmt.Errorf("plan for table %s: %w", r.table, err) }
	p := Planned{Table: r.table, Snapshots: len(t.Metadata().Snapshots()), KeepsAllFiles: !collects(t)}
	rewrite, err := r.planCompaction(ctx, t)
	if err != nil {
		return fail(err)
	}
	p.DataFiles, p.DataBytes = rewrite.files, rewrite.bytes
	// Format 3 is not compacted, see compact.
	if t.Metadata().Version() <= 2 {
		for _, b := range rewrite.bins {
			p.RewriteFiles += len(b.tasks)
			p.RewriteBytes += b.bytes
			p.ResultFiles += int((b.bytes + b.fileBytes - 1) / b.fileBytes)
		}
	}
	// Manifests are only merged if there are enough, or if bounds are missing.
	small, wrong, err := r.manifestsToRewrite(ctx, t)
	if err != nil {
		return fail(err)
	}
	if small >= r.Manifests || wrong {
		p.Manifests = small
	}
	if p.KeepsAllFiles {
		return p, nil
	}
	p.ExpiredNow = r.expirable(t.Metadata(), r.KeepAge)
	orphans, err := r.findOrphans(ctx, t)
	if err != nil {
		return fail(err)
	}
	// Locations are listed, so that an operator can check them before a run.
	for _, f := range orphans {
		p.OrphanFiles = append(p.OrphanFiles, f.location)
		p.OrphanBytes += f.bytes
	}
	return p, nil
}
