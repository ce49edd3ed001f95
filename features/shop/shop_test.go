package shop

import (
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

func TestGroups(t *testing.T) {
	t.Parallel()
	names, customer := map[string]bool{}, 0
	for _, g := range Groups(Options{}) {
		if err := g.Check(); err != nil {
			t.Error(err)
		}
		if names[g.Name] {
			t.Errorf("two groups are named %s", g.Name)
		}
		names[g.Name] = true
		if g.Entity == "customer_id" {
			customer += len(g.Outputs())
		}
		for _, f := range g.Features {
			if f.Description == "" || strings.HasSuffix(f.Description, ".") {
				t.Errorf("%s.%s: description %q", g.Name, f.Name, f.Description)
			}
		}
	}
	if customer < 50 {
		t.Errorf("%d features of customers, want at least 50", customer)
	}
}

// TestSharedSources: two sources of one name are the same source, and no source is without a
// feature.
func TestSharedSources(t *testing.T) {
	t.Parallel()
	columns := map[string][]features.Column{}
	for _, g := range Groups(Options{}) {
		for _, s := range g.Sources {
			if have, ok := columns[s.Name]; ok && !slices.Equal(have, s.Columns) {
				t.Errorf("source %s has two lists of columns", s.Name)
			}
			columns[s.Name] = s.Columns
			if !slices.ContainsFunc(g.Features, func(f features.Feature) bool { return f.Source == s.Name }) {
				if !slices.ContainsFunc(g.Features, func(f features.Feature) bool {
					return f.Over != nil && f.Over.Source == s.Name
				}) {
					t.Errorf("%s: no feature uses source %s", g.Name, s.Name)
				}
			}
		}
	}
}

// TestCurrency: only features of money depend on the currency.
func TestCurrency(t *testing.T) {
	t.Parallel()
	for _, g := range Groups(Options{Currency: "EUR"}) {
		for _, f := range g.Features {
			c, _ := g.Column(f.Source, f.Column)
			selects := slices.ContainsFunc(f.Where, func(c features.Condition) bool {
				return c.Column == "currency" && c.Op == features.Equal && c.Value == exact.TextValue("EUR")
			})
			if c.Scale == 9 && !selects {
				t.Errorf("%s.%s adds up amounts of different currencies", g.Name, f.Name)
			}
		}
	}
}

// sources returns the sources of all groups, by name.
func sources() map[string]features.Source {
	all := map[string]features.Source{}
	for _, g := range Groups(Options{}) {
		for _, s := range g.Sources {
			all[s.Name] = s
		}
	}
	return all
}

// project returns the facts of an event in a source.
func project(t testing.TB, source string, e event.Event) []features.Fact {
	t.Helper()
	facts, err := sources()[source].Project(e)
	if err != nil {
		t.Fatalf("%s of %s: %v", source, e.Type, err)
	}
	return facts
}
