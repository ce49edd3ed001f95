package app

import (
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/shop"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
)

// The features in memory answer with the version that the history has made live, also after a start
// of the process.
func TestLiveVersionIsAnswered(t *testing.T) {
	t.Parallel()
	embedded, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c := embeddedConfig(t)
	c.ClickHouse.Library = embedded.Library
	c.Features.CommitInterval = 50 * time.Millisecond
	first := shop.Groups(shop.Options{})[0]
	second := *first
	second.Version, second.Features = 2, first.Features[:2]
	m := Shop()
	m.Views = nil
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
