package history

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
)

// version returns another version of the world's group, with some of its features.
func (w *world) version(n, features int) *features.Group {
	g := *w.group
	g.Version, g.Features = n, g.Features[:features]
	return &g
}

// quick returns a configuration with several versions that takes steps often.
func (w *world) quick(s *clickhouse.Store, groups ...*features.Group) Config {
	c := w.config(s)
	c.Groups, c.swap = groups, 10*time.Millisecond
	return c
}

// fill fills the tables of a configuration from some trade.
func (w *world) fill(t *testing.T, c Config, trades int) {
	t.Helper()
	h := open(t, c)
	stop := running(t, h)
	w.trade(t, trades)
	w.filled(t, h)
	stop()
}

// live returns the number of the version that is live.
func live(t testing.TB, h *History, name string) int {
	t.Helper()
	g, err := h.Live(t.Context(), name)
	must(t, err)
	return g.Version
}

// A new version is filled beside the live one, which is served meanwhile. It becomes live once, while
// the process is killed before and after each step, and two others run. A start keeps it.
func TestVersionBecomesLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 21)
	s := clickhousetest.OpenStore(t)
	first, second, name := w.group, w.version(2, 6), w.group.Name
	w.fill(t, w.quick(s, first), 40)

	both := open(t, w.quick(s, second, first))
	if n := live(t, both, name); n != 1 {
		t.Fatalf("before the first step, version %d is live, want 1", n)
	}
	status, err := both.Status(t.Context())
	must(t, err)
	for _, table := range status {
		if want := table.Table == TilesTable(second, second.Sources[0].Name); table.Filling != want {
			t.Errorf("%s is being filled: %v, want %v", table.Table, table.Filling, want)
		}
	}
	for _, at := range []string{
		"about to be checking", "is checking", "about to be checked", "is checked", "about to be live",
	} {
		c := w.quick(s, first, second)
		reached := make(chan struct{})
		var once sync.Once
		c.hook = func(ctx context.Context, step string) error {
			if step == name+" "+at {
				once.Do(func() { close(reached) })
				<-ctx.Done() // until the process ends
			}
			return ctx.Err()
		}
		killed := open(t, c)
		stop := running(t, killed)
		w.trade(t, 10)
		<-reached
		if n := live(t, both, name); n != 1 {
			t.Errorf("%s: version %d is live, want 1", at, n)
		}
		vectors, _, err := both.Vectors(t.Context(), name, []string{"c0"}, w.now, time.Time{})
		must(t, err)
		if len(vectors[0].Values) != len(first.Outputs()) {
			t.Errorf("%s: a vector has %d values, want those of version 1", at, len(vectors[0].Values))
		}
		stop()
	}
	running(t, open(t, w.quick(s, first, second)))
	running(t, both)
	polltest.Until(t, "version 2 is live", func() bool { return live(t, both, name) == 2 })
	w.trade(t, 20)
	w.group = second
	w.filled(t, both)
	w.check(t, both, 5)
	vectors, _, err := both.Vectors(t.Context(), name, []string{"c0"}, w.now, time.Time{})
	must(t, err)
	if len(vectors[0].Values) != len(second.Outputs()) {
		t.Errorf("a vector has %d values, want those of version 2", len(vectors[0].Values))
	}
	if n := live(t, open(t, w.quick(s, first, second)), name); n != 2 {
		t.Errorf("after a start, version %d is live, want 2", n)
	}
	all, err := both.steps(t.Context(), name)
	must(t, err)
	var states []string
	for _, step := range all {
		states = append(states, step.state)
	}
	got := strings.Join(states, " ")
	if strings.Count(got, stateLive) != 1 || !strings.HasSuffix(got, "checking checked live") {
		t.Errorf("the steps are %q, want checking, checked and live at the end, once", got)
	}
}

// A version whose tiles differ from its facts does not become live, and the reason is reported. When
// all tables are dropped and filled again, its steps begin again, and so do those of the next version.
func TestVersionThatDiffers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 22)
	s := clickhousetest.OpenStore(t)
	first, second, name := w.group, w.version(2, 6), w.group.Name
	w.fill(t, w.quick(s, first), 20)
	c := w.quick(s, first, second)
	var once sync.Once
	c.hook = func(ctx context.Context, step string) error {
		var err error
		if step == name+" is checking" {
			once.Do(func() {
				h := open(t, w.quick(s, second))
				at := minute.floor(w.facts[0].At.UnixMicro())
				tiles := []*tile{h.tiles[0].newTile(tileKey{"planted", minute, at})}
				err = h.insertTiles(ctx, h.tiles[0], "planted", tiles)
			})
		}
		return err
	}
	h := open(t, c)
	stop := running(t, h)
	polltest.Until(t, "the difference is reported", func() bool {
		for _, f := range h.Faults() {
			if f.Table == "versions of "+name && f.Stopped && errors.Is(f.Reason, errDifferent) {
				return true
			}
		}
		return false
	})
	if n := live(t, h, name); n != 1 {
		t.Errorf("version %d is live, want 1", n)
	}
	stop()
	_, err := h.Drop(t.Context(), w.topic)
	must(t, err)
	all, err := h.steps(t.Context(), name)
	must(t, err)
	if last := all[len(all)-1]; last.state != stateLive || last.version != 1 {
		t.Errorf("after the tables were dropped, the last step is %+v, want that version 1 is live", last)
	}
	third := open(t, w.quick(s, first, second, w.version(3, 7)))
	running(t, third)
	polltest.Until(t, "version 3 is live", func() bool { return live(t, third, name) == 3 })
}

// The tables of an earlier version are dropped when it is not configured any more, and do not come
// back with holes.
func TestEarlierVersionIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 23)
	s := clickhousetest.OpenStore(t)
	first, second := w.group, w.version(2, 6)
	w.fill(t, w.quick(s, first), 20)
	c := w.quick(s, second)
	h := open(t, c)
	must(t, h.retire(t.Context()))
	exists := func() bool {
		r, err := s.Query(t.Context(), "SELECT name FROM system.tables WHERE name = ?",
			TilesTable(first, first.Sources[0].Name))
		must(t, err)
		defer r.Close() //nolint:errcheck // nothing else is read
		return r.Next()
	}
	if !exists() {
		t.Fatal("version 1 was dropped before version 2 was filled")
	}
	stop := running(t, h)
	w.group = second
	w.filled(t, h)
	must(t, h.retire(t.Context()))
	if !exists() {
		t.Fatal("version 1 was dropped within the grace")
	}
	stop()
	c.grace = -1 // ClickHouse counts whole seconds
	h = open(t, c)
	must(t, h.retire(t.Context()))
	if exists() {
		t.Fatal("version 1 is still there")
	}
	w.check(t, h, 3)

	again := open(t, w.quick(s, first))
	f := newFiller(again, again.tiles[0])
	if err := f.prepare(t.Context()); !errors.Is(err, errDropped) || !stops(err) {
		t.Errorf("tiles of a version that was dropped: %v", err)
	}
}

// The retention of existing tables changes with its setting. Another currency is another definition,
// which needs another version.
func TestChangedSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 24)
	s := clickhousetest.OpenStore(t)
	retention := func(d time.Duration) string {
		c := w.config(s)
		c.Retention = d
		h := open(t, c)
		must(t, newFiller(h, h.tiles[0]).prepare(t.Context()))
		var found []string
		for _, table := range []string{h.sources[0].facts.Name, h.tiles[0].table.Name} {
			r, err := s.Query(t.Context(), "SELECT extract(engine_full, 'toIntervalSecond\\\\(([0-9]+)\\\\)') "+
				"FROM system.tables WHERE name = ?", table)
			must(t, err)
			for r.Next() {
				var seconds string
				must(t, r.Scan(&seconds))
				found = append(found, seconds)
			}
			must(t, errors.Join(r.Err(), r.Close()))
		}
		return strings.Join(found, " ")
	}
	for _, want := range []struct {
		retention time.Duration
		seconds   string
	}{{0, " "}, {time.Hour, "3600 3600"}, {time.Hour, "3600 3600"}, {2 * time.Hour, "7200 7200"}, {0, " "}} {
		if got := retention(want.retention); got != want.seconds {
			t.Errorf("with a retention of %s, tables keep rows for %q seconds, want %q", want.retention, got, want.seconds)
		}
	}

	euros := w.version(1, len(w.group.Features))
	euros.Features = append([]features.Feature(nil), euros.Features...)
	euros.Features[1].Where = []features.Condition{{Column: "country", Op: features.Equal, Value: exact.TextValue("EUR")}}
	h := open(t, w.quick(s, euros))
	if err := newFiller(h, h.tiles[0]).prepare(t.Context()); !errors.Is(err, errDefinition) {
		t.Errorf("another constant in a condition: %v", err)
	}
}

// With a retention, facts and tiles that may have been removed are not compared.
func TestRetentionIsNotADifference(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 25)
	s := clickhousetest.OpenStore(t)
	h := open(t, w.config(s))
	stop := running(t, h)
	w.trade(t, 40)
	w.filled(t, h)
	stop()
	c := w.config(s)
	c.Retention = time.Since(start.Add(-4 * 24 * time.Hour)) // half of the facts are older
	h = open(t, c)
	edge := time.UnixMicro(h.edge(time.Now()))
	var kept []features.Fact // as if ClickHouse had removed the others
	for _, f := range w.facts {
		if !f.At.Before(edge.Add(-time.Hour)) {
			kept = append(kept, f)
		}
	}
	must(t, s.Exec(t.Context(), "TRUNCATE TABLE "+h.sources[0].facts.FullName()))
	must(t, newWriter(h, h.sources[0]).insertFacts(t.Context(), 99, kept))
	must(t, h.setPosition(t.Context(), h.sources[0], h.tiles[0].table, 99))
	facts, tiles := h.Contents()[0], h.Contents()[1]
	expected, err := facts.Expected(w.log())
	want := total(t, expected, err)
	have, err := facts.Digest(t.Context())
	if have := total(t, have, err); have != want || have.Count == 0 || have.Count == uint64(len(w.facts)) {
		t.Errorf("facts are %+v of %d, want %+v", have, len(w.facts), want)
	}
	should, err := tiles.Source(t.Context())
	wantTiles := total(t, should, err)
	have, err = tiles.Digest(t.Context())
	if have := total(t, have, err); have != wantTiles || have.Count == 0 {
		t.Errorf("tiles are %+v, want %+v", have, wantTiles)
	}
}
