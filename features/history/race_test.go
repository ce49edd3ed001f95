package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// checkCounts fails the test unless the tables have each fact once.
func (w *world) checkCounts(t testing.TB, h *History) {
	t.Helper()
	valid := int64(0)
	for _, f := range w.facts {
		if !f.Retracted {
			valid++
		}
	}
	s, tl := h.sources[0], h.tiles[0]
	if n := rows(t, h.cfg.Store, s.facts, "count()"); n != int64(len(w.facts)) {
		t.Errorf("%d facts, want %d", n, len(w.facts))
	}
	for l, name := range names {
		if n := rows(t, h.cfg.Store, tl.table, "sumIf(facts, level = '"+name+"')"); l > 0 && n != valid {
			t.Errorf("%d facts in tiles of a %s, want %d", n, name, valid)
		}
	}
}

// steps are all steps at which a writer can fail.
var steps = []string{stepFetched, stepClaim, stepClaimed, stepInserted, stepCorrected, stepPositioned, stepTiles,
	stepFilled, stepTilesDone}

// Three processes with batches of different sizes write the same tables at the same time. Each
// fails at every step, before and after the step has happened, and begins again.
func TestWritersThatRaceAndFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	s := clickhousetest.OpenStore(t)
	var mu sync.Mutex
	failures, rnd := map[string]int{}, rand.New(rand.NewPCG(3, 3))
	var first *History
	for i, size := range []int{7, 30, 1000} {
		c := w.config(s)
		c.CommitFacts = size
		c.hook = func(_ context.Context, step string) error {
			mu.Lock()
			defer mu.Unlock()
			_, name, _ := strings.Cut(step, " ")
			name = fmt.Sprint(i, name)
			if failures[name] < 2 && rnd.IntN(3) == 0 {
				failures[name]++
				return errors.New("injected")
			}
			return nil
		}
		h := open(t, c)
		if first == nil {
			first = h
		}
		running(t, h)
	}
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		for i := range 3 {
			for _, step := range steps {
				if failures[fmt.Sprint(i, step)] == 0 {
					return false
				}
			}
		}
		return true
	}
	// The losers of a race reach the later steps less often, so there must be batches until they have.
	for n := 0; n < 4 || !enough(); n++ {
		if n > 100 {
			t.Fatalf("after %d rounds, not every step has failed: %v", n, failures)
		}
		w.trade(t, 15)
		w.filled(t, first)
	}
	w.checkCounts(t, first)
	w.check(t, first, 10)
}

// A process that is suspended at any step, while another one writes on, doubles nothing when it
// continues.
func TestSuspendedWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	s := clickhousetest.OpenStore(t)
	healthy := open(t, w.config(s))
	for _, step := range steps[1:] {
		c := w.config(s)
		suspended, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		c.hook = func(ctx context.Context, at string) error {
			if strings.HasSuffix(at, " "+step) {
				once.Do(func() {
					close(suspended)
					<-goOn
				})
			}
			return ctx.Err()
		}
		stop := running(t, open(t, c))
		w.trade(t, 10)
		<-suspended
		w.trade(t, 10)
		stopHealthy := running(t, healthy)
		w.filled(t, healthy)
		close(goOn)
		w.trade(t, 10)
		w.filled(t, healthy)
		stop()
		stopHealthy()
	}
	w.checkCounts(t, healthy)
	w.check(t, healthy, 10)
}

// Vectors reflect exactly the positions that they come with, whatever is written meanwhile.
func TestVectorsOfEarlierPositions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	running(t, h)
	w.trade(t, 40)
	w.filled(t, h)
	_, reflected, err := h.Vectors(t.Context(), w.group.ID(), nil, w.now, time.Time{})
	must(t, err)
	w.trade(t, 40) // into the same tiles
	w.filled(t, h)
	source := w.group.Sources[0].Name
	var earlier []features.Fact
	for _, f := range w.facts {
		if f.Origin.Offset < reflected[source].Next[f.Origin.Partition] {
			earlier = append(earlier, f)
		}
	}
	if len(earlier) == 0 || len(earlier) == len(w.facts) {
		t.Fatalf("%d of %d facts are earlier", len(earlier), len(w.facts))
	}
	for range 10 {
		at, entities := time.UnixMicro(w.at()), []string{"c0", "c1", "c2", "c3", "c4"}
		have := make([][]features.Vector, 1)
		must(t, h.fromTiles(t.Context(), w.group, h.tiles, reflected, entities, nil, []*moment{momentOf(w.group, at)}, have))
		w.compare(t, have[0], entities, earlier, at, time.Time{})
	}
}

// A new version of a group gets tiles of its own, from the facts that the tables have, while the old
// one is fed on.
func TestNewVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 6)
	s := clickhousetest.OpenStore(t)
	c := w.config(s)
	stop := running(t, open(t, c))
	w.trade(t, 40)
	w.filled(t, open(t, c))
	stop()

	second := *w.group
	second.Version = 2
	second.Features = second.Features[:6]
	c.Groups = []*features.Group{w.group, &second}
	h := open(t, c)
	running(t, h)
	w.trade(t, 20)
	w.filled(t, h)
	w.check(t, h, 5)
	w.group = &second
	w.filled(t, h)
	w.check(t, h, 5)

	// A changed definition without a new version stops, and the other one is fed.
	changed := second
	changed.Features = append([]features.Feature(nil), second.Features...)
	changed.Features[1].Where = nil
	c.Groups = []*features.Group{&changed}
	f := newFiller(open(t, c), nil)
	f.tiles = f.History.tiles[0]
	if err := f.prepare(t.Context()); !errors.Is(err, errDefinition) || !stops(err) {
		t.Errorf("tiles of a changed definition: %v", err)
	}
}
