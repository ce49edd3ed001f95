// This file wires the quality of features: its API and its metrics.

package app

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/quality"
	featureserving "github.com/millrace/millrace/features/serving"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

const (
	// firstProfile is after the start, which has more urgent work.
	firstProfile = 5 * time.Minute
	// profileEvery is long, because the profiles of all groups take some seconds of one core.
	profileEvery = time.Hour
)

// profiles are the latest reports of this process, by group.
type profiles struct {
	quality *featureserving.Quality

	mu     sync.Mutex
	latest map[string]*quality.Report
}

// newProfiles returns profiles of the vectors in memory.
func (p *App) newProfiles() *profiles {
	var history featureserving.History
	if p.history != nil {
		history = func(ctx context.Context, group string, entities []string, at time.Time) ([]features.Vector, error) {
			all, _, err := p.history.Vectors(ctx, group, entities, at, time.Time{})
			if err != nil && ctx.Err() == nil {
				p.log.Warn("features: cannot profile a day from ClickHouse", "group", group, "day", at, "error", err)
			}
			return all, err
		}
	}
	return &profiles{quality: featureserving.NewQuality(p.vectorServer(), history), latest: map[string]*quality.Report{}}
}

// startProfiles adds the metrics, and profiles all groups at intervals. Freshness is read at each
// scrape, because it is cheap and urgent.
func (p *App) startProfiles(context.Context) error {
	p.profiles = p.newProfiles()
	groups := p.vectors.Store().Groups()
	p.metrics.Values("millrace_features_freshness_seconds",
		"Age of the newest event of a source that the vectors in memory reflect.", []string{"group", "source"},
		func(set func(float64, ...string)) {
			now := time.Now()
			for _, g := range groups {
				for _, s := range p.profiles.quality.Freshness(g) {
					if !s.Newest.IsZero() {
						set(max(now.Sub(s.Newest), 0).Seconds(), g.Name, s.Source)
					}
				}
			}
		})
	byFeature := []string{"group", "feature"}
	p.metrics.Values("millrace_features_null_share",
		"Share of nulls among the values of a feature, of the sampled entities.", byFeature,
		p.profiles.each(func(m quality.Measured) float64 { return m.Current.NullShare() }))
	p.metrics.Values("millrace_features_reference_null_share",
		"Share of nulls among the values of a feature on the days of the reference.", byFeature,
		p.profiles.each(func(m quality.Measured) float64 { return m.Reference.NullShare() }))
	p.metrics.Values("millrace_features_psi",
		"Population stability index of a feature against the days of the reference.", byFeature,
		p.profiles.each(func(m quality.Measured) float64 { return m.PSI }))
	p.metrics.Values("millrace_features_profile_timestamp_seconds",
		"Unix time of the latest profile of a group.", []string{"group"}, func(set func(float64, ...string)) {
			p.profiles.mu.Lock()
			defer p.profiles.mu.Unlock()
			for group, r := range p.profiles.latest {
				set(float64(r.At.UnixMicro())/1e6, group)
			}
		})
	p.background("features", func(ctx context.Context) error {
		wait := time.NewTimer(firstProfile)
		defer wait.Stop()
		for {
			select {
			case <-wait.C:
				p.measure(ctx, time.Now())
				wait.Reset(profileEvery)
			case <-ctx.Done():
				return nil
			}
		}
	})
	return nil
}

// measure profiles all groups at a time. Without a new profile, the age of the old one says so.
func (p *App) measure(ctx context.Context, now time.Time) {
	for _, g := range p.vectors.Store().Groups() {
		r, err := p.profiles.quality.Measure(ctx, quality.DefaultRequest(g, now))
		switch {
		case errors.Is(err, context.Canceled):
			return
		case err != nil:
			p.log.Warn("features: cannot profile a group", "group", g.ID(), "error", err)
		default:
			p.profiles.mu.Lock()
			p.profiles.latest[g.Name] = r
			p.profiles.mu.Unlock()
		}
	}
}

// each returns the values of a metric of each feature whose group has enough entities for it.
func (p *profiles) each(of func(quality.Measured) float64) func(func(float64, ...string)) {
	return func(set func(float64, ...string)) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for group, r := range p.latest {
			if !r.Comparable(quality.DefaultLimits) {
				continue
			}
			for _, m := range r.Features {
				set(of(m), group, m.Current.Output)
			}
		}
	}
}

// qualityService returns QualityService, guarded as other queries.
func (p *App) qualityService(opts ...connect.HandlerOption) (string, http.Handler) {
	return p.guarded(featuresv1connect.NewQualityServiceHandler(p.profiles.quality,
		append(opts, rpc.HandlerOptions(p.log, time.Now)...)...))
}
