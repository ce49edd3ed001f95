package quality

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// days is a source whose vectors are made by the day.
type days struct {
	of func(day time.Time) ([]features.Vector, error)
}

// Sample implements Source. The populations have no names, so an entity is any index.
func (d *days) Sample(_ context.Context, _ *features.Group, n int) ([]string, int64, error) {
	return slices.Repeat([]string{"entity"}, n), 100_000, nil
}

// Vectors implements Source: chunk by chunk of the day's population.
func (d *days) Vectors(_ context.Context, _ *features.Group, _ []features.Output, entities []string, at time.Time) (
	[]features.Vector, error) {
	all, err := d.of(at)
	return all[:min(len(all), len(entities))], err
}

var places = []string{"GB", "IE", "FR"}

// TestDrift: vectors of the population of the reference have not drifted, and each change is found
// as what it is.
func TestDrift(t *testing.T) {
	t.Parallel()
	limits := DefaultLimits
	limits.Found = chunk
	steady := func(seed uint64) []features.Vector { return population(seed, chunk, 3, places...) }
	changed := func(change func(*features.Vector, int)) []features.Vector {
		all := steady(99)
		for i := range all {
			change(&all[i], i)
		}
		return all
	}
	for name, c := range map[string]struct {
		current []features.Vector
		limits  Limits
		want    []Finding // without values
	}{
		"the same population": {steady(99), limits, nil},
		"larger numbers": {population(99, chunk, 4, places...), limits,
			[]Finding{{Of: "x_1d", Kind: Drifted}}},
		"negative counts": {changed(func(v *features.Vector, _ int) { v.Values[0].Int *= -1 }), limits,
			[]Finding{{Of: "n_1d", Kind: Drifted}}},
		"one place replaced": {population(99, chunk, 3, "GB", "IE", "DE"), limits,
			[]Finding{{Of: "place_1d", Kind: Drifted}}},
		"nulls": {changed(func(v *features.Vector, i int) {
			if i%8 == 0 {
				v.Values[1] = exact.Result{}
			}
		}), Limits{NullShare: 0.05, PSI: 9, Found: 100}, []Finding{{Of: "x_1d", Kind: Nulls}}},
		"nulls only": {changed(func(v *features.Vector, _ int) { v.Values[2] = exact.Result{} }), limits,
			[]Finding{{Of: "place_1d", Kind: Nulls}, {Of: "place_1d", Kind: Drifted}}},
		"too few entities": {population(99, 1, 99, "XX"), limits, nil},
	} {
		source := &days{of: func(at time.Time) ([]features.Vector, error) {
			if at.Equal(now) {
				return c.current, nil
			}
			return steady(uint64(at.Unix())), nil
		}}
		r := DefaultRequest(group(), now)
		r.Entities = chunk
		report, err := Measure(t.Context(), source, r)
		if err != nil {
			t.Fatal(err)
		}
		var got []Finding
		for _, f := range Check(report, c.limits) {
			if f.Value <= f.Limit || !strings.HasPrefix(f.String(), "g/v2: ") {
				t.Errorf("%s: %+v: %s", name, f, f)
			}
			got = append(got, Finding{Of: f.Of, Kind: f.Kind})
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: found %v, want %v", name, Check(report, c.limits), c.want)
		}
	}
}

// TestStaleSources: a source is stale from its limit on. One without events is not.
func TestStaleSources(t *testing.T) {
	t.Parallel()
	r := &Report{Group: "g/v2", At: now, Sources: []Freshness{
		{Source: "orders", Newest: now.Add(-24 * time.Hour)}, {Source: "lines", Newest: now.Add(-24*time.Hour - time.Second)},
		{Source: "actions"},
	}}
	found := Check(r, DefaultLimits)
	if len(found) != 1 || found[0].Of != "lines" || found[0].Kind != Stale ||
		found[0].String() != "g/v2: the newest event of the source lines is 24h0m1s old, the limit is 24h0m0s" {
		t.Errorf("found %v", found)
	}
}

// TestReferenceDays: the reference is the vectors at one time of day, up to its end. Days that cannot
// be computed are left out and say why; another error is one of the report.
func TestReferenceDays(t *testing.T) {
	t.Parallel()
	trained := now.AddDate(0, -2, 0).Add(time.Hour)
	fault := error(&MissingError{Reason: "dropped"})
	source := &days{of: func(at time.Time) ([]features.Vector, error) {
		if at.Equal(trained.AddDate(0, 0, -1)) {
			return nil, fault
		}
		return population(uint64(at.Unix()), 30, 3, places...), nil
	}}
	r := DefaultRequest(group(), now)
	r.ReferenceEnd, r.Days, r.Entities = trained, 3, 30
	report, err := Measure(t.Context(), source, r)
	if err != nil {
		t.Fatal(err)
	}
	want := []Day{{now, 30, ""}, {trained, 30, ""}, {trained.AddDate(0, 0, -1), 0, "dropped"}, {trained.AddDate(0, 0, -2), 30, ""}}
	if !slices.Equal(report.Days, want) {
		t.Errorf("days %v, want %v", report.Days, want)
	}
	x := report.Features[1]
	if n := x.Reference.Nulls + x.Reference.Values; n != 60 || len(x.Daily) != 3 || x.Daily[1].Values != 0 ||
		x.Current.Output != "x_1d" || report.Sampled != 30 || report.Entities != 100_000 {
		t.Errorf("%d values in the reference of %+v", n, report)
	}
	fault = errors.New("broken")
	if _, err := Measure(t.Context(), source, r); !errors.Is(err, fault) {
		t.Errorf("error %v", err)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Measure(stopped, source, r); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller has gone: %v", err)
	}
}
