package app

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features/shop"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
)

// Features that are new, or whose tables are lost, are filled from the lake where the log does not
// reach back any more: in ClickHouse, and in memory or in Redis, to the last bit.
func TestFeaturesOfExpiredRecords(t *testing.T) {
	t.Parallel()
	c := featuresConfig(t)
	c.Features.Online.Retention = 2 * yearOfTrade // nothing is too old, however long the test takes
	groups := shop.Groups(shop.Options{})
	w := newTrade(5)
	w.serve(t, c, Commands, Relay, Lake, Features, Query, Admin, Tracking)
	w.sell(t, 60)
	w.browse(t, 60)
	facts := w.catchUp(t, groups)
	ends, err := w.historyEnds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	producer := fetchtest.New(t, strings.Split(w.kafka.Brokers, ","), "deleter")
	for topic, of := range ends {
		for partition, end := range of {
			if err := producer.DeleteRecords(t.Context(), topic, partition, end); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.sell(t, 20)
	w.browse(t, 20)
	more := w.catchUp(t, groups)
	for source, all := range more {
		facts[source] = append(facts[source], all...)
	}
	if len(more["customer_orders"]) >= len(facts["customer_orders"]) {
		t.Error("the log has everything: this test shows nothing")
	}

	// Another process has nothing yet.
	c.Kafka.Brokers = w.kafka.Brokers
	c.Lake.Warehouse, c.Lake.Catalog = c.Path("lake", "warehouse"), c.Path("lake", "catalog.db")
	c.Data = filepath.Join(t.TempDir(), "data")
	w.serve(t, c, Features, Query)
	polltest.Until(t, "the process is ready", func() bool { return w.unready(t.Context()) == nil })
	for topic, end := range ends {
		polltest.Until(t, "the tables have everything", func() bool {
			ok, err := w.history.Reached(t.Context(), topic, end)
			return err == nil && ok
		})
	}
	times := w.times(facts, 50)
	check := func() {
		t.Helper()
		for _, g := range groups {
			w.check(t, g, facts, times, time.Time{})
		}
	}
	check()

	// The same process with an empty Redis. The tables have everything already.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c.Features.Online.Store = config.OnlineInRedis
	w.serve(t, c, Features, Query)
	polltest.Until(t, "the process is ready", func() bool { return w.unready(t.Context()) == nil })
	check()
}
