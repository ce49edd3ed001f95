package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feast"
	"github.com/millrace/millrace/features/training"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/rpc"
)

// feastOffline returns Feast's remote offline store. It requires the same right as FeatureService.
func (p *App) feastOffline() (http.Handler, error) {
	groups, err := FeatureGroups(p.cfg.Features)
	if err != nil {
		return nil, err
	}
	// A killed process leaves tables behind, which would fill the disk.
	dir := filepath.Join(p.cfg.Path("features"), "training")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o750)); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(feast.Handler(feast.Config{
		Groups: newestVersions(groups), Facts: p.currentFacts, Refuses: p.refusesFeatures, Logger: p.log.With("part", "feast"), TempDir: dir,
		// A training set takes as long as a query, so it takes a place of one.
		Admit: func(ctx context.Context, peer string) (func(), error) {
			return p.acquireSQL(ctx, slotName(ctx, peer))
		},
	}))
	right := func(*http.Request) auth.Right { return auth.On(auth.Queries, auth.FeatureQueries) }
	return p.tokens.Guard(rpc.Intake(auth.Need(right, mux))), nil
}

// currentFacts waits until the tables have what is on the log now, and returns the facts of sources and
// how far they reach. Otherwise, rows could lack facts that were known at their time. Without tables,
// the facts are those on the log itself.
func (p *App) currentFacts(ctx context.Context, sources []*features.Source) (
	training.Facts, training.Positions, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if p.refusals != nil {
		if err := p.refusals.Ready(); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", feast.ErrBehind, err)
		}
	}
	if p.history == nil {
		log := p.logOfFacts()
		positions, err := log.Positions(ctx, sources)
		return log, positions, err
	}
	ends, err := p.historyEnds(ctx)
	if err != nil {
		return nil, nil, err
	}
	facts := &training.ClickHouse{Store: p.facts, Layout: p.history}
	var positions training.Positions
	var last error // of ClickHouse, which may answer again
	err = p.until(ctx, "facts in ClickHouse", func() (bool, error) {
		var err error
		if positions, err = facts.Positions(ctx, sources); err != nil {
			if last = err; clickhouse.Retryable(err) || clickhouse.IsSchema(err) { // not created yet
				return false, nil
			}
			return false, err
		}
		last = nil
		return covers(positions, ends), nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		for _, f := range p.history.Faults() {
			last = errors.Join(last, fmt.Errorf("table %s: %w", f.Table, f.Reason))
		}
		return nil, nil, errors.Join(feast.ErrBehind, err, last)
	}
	return facts, positions, err
}

// covers reports whether positions have reached the ends of their topics.
func covers(positions training.Positions, ends map[string]map[int32]int64) bool {
	for topic, next := range positions {
		for partition, end := range ends[topic] {
			if next[partition] < end {
				return false
			}
		}
	}
	return true
}
