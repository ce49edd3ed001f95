package app

import (
	"testing"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/shop"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
)

// The features in memory answer with the version that the history has made live, also after a start
// of the process.
func TestLiveVersionIsAnswered(t *testing.T) {
	t.Parallel()
	c := featuresConfig(t)
	first := shop.Groups(shop.Options{})[0]
	second := *first
	second.Version, second.Features = 2, first.Features[:2]
	m := withoutViews()
	m.Groups = func(config.Config) ([]*features.Group, error) { return []*features.Group{first, &second}, nil }
	for _, name := range []string{"filled", "started again"} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // one after the other, on one folder
			p := startEmbedded(t, c, m, Commands, Relay, Lake, Features, Query, Admin)
			polltest.Until(t, "version 2 is answered", func() bool {
				return p.vectors.Store().Group(first.Name).Version == 2
			})
		})
	}
}
