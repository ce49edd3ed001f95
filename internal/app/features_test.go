package app

import (
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/config"
)

func TestFeatureGroups(t *testing.T) {
	t.Parallel()
	for configured, want := range map[string][]string{
		"":                                   {"customer_activity", "customer_value", "product_popularity", "basket_affinity", "session_behaviour"},
		" session_behaviour,customer_value ": {"session_behaviour", "customer_value"},
	} {
		groups, err := FeatureGroups(config.Features{Groups: configured, Currency: "EUR"})
		var names []string
		for _, g := range groups {
			names = append(names, g.Name)
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%q: %v, %v, want %v", configured, names, err, want)
		}
	}
	for configured, want := range map[string]string{
		"customer_valeu":                `"customer_valeu" is not a group: want some of customer_activity, `,
		"customer_value,":               `"" is not a group`,
		"customer_value,customer_value": "customer_value is there twice",
	} {
		if _, err := FeatureGroups(config.Features{Groups: configured}); err == nil ||
			!strings.HasPrefix(err.Error(), "features.groups: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want that %s", configured, err, want)
		}
	}
}
