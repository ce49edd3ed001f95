// Package history keeps the facts of all feature groups in ClickHouse, with tiles that aggregate
// them, and computes vectors from both.
//
// For each source there is a table of facts, and for each group a table of tiles of a minute, an
// hour and a day: the states of the group's aggregates over the facts in the tile. The identity
// graph is a source, too, if a group follows it. Run feeds them from the log. Vectors reads tiles
// in the middle of a window and facts at its edges, so that both edges are exact to the
// microsecond.
//
// Invariants:
//
//   - A table contains each fact of its batches once. The records of a batch are decided once, by
//     its claim, and its rows are inserted under a token that is derived from it. So whatever
//     fails, or writes the same batch again, doubles and loses nothing. See claims.go.
//   - Vectors equals features.EvaluatePerson over the facts of the positions that it returns, bit
//     by bit, while batches are being written and after corrections.
//   - Facts and tiles are those of the entities for which they were recorded. Vectors adds up those
//     of a person's entities, so a merge or its reversal changes no row of them.
//   - A table that cannot be filled stops alone. While ClickHouse does not answer, feeding waits.
//   - Of several versions of a group, one is live. Another one replaces it after all of its tiles
//     were compared with the facts. See versions.go.
//
// writer.go fills the tables of facts, filler.go the tables of tiles, vectors.go reads them, and
// persons.go says whose.
package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/tracing"
	"github.com/millrace/millrace/streams"
)

// Config configures a History.
type Config struct {
	Store  *clickhouse.Store
	Groups []*features.Group
	Logger *slog.Logger // required
	// Retention is how long facts and tiles are kept after their time. 0 means without limit. Windows
	// that are longer lose their oldest part. A change applies to existing tables, too.
	Retention time.Duration

	// The rest is for Run.
	Brokers  []string // host:port
	Security security.Config
	Decoder  *registry.Decoder // nil: plain values only
	// Archive has events that the log does not have any more. It may be nil. It must be the same in all
	// processes that run.
	Archive Archive
	// WriteDeadLetters makes dead letters durable. It may be called again for the same records.
	WriteDeadLetters func(context.Context, ...streams.DeadLetter) error
	// Tracer records when the facts of each event are stored, in the trace of its command. It may be
	// nil.
	Tracer *tracing.Tracer
	// CommitInterval is the maximum time until a fact is in its table. 0 means 2 seconds.
	CommitInterval time.Duration
	// CommitFacts is the number of facts after which a batch is written. A batch has at most as many
	// more as one fetch returns. 0 means 20,000.
	CommitFacts int

	retry    time.Duration // interval of attempts to fill a stopped table; 0 means retryInterval
	takeover time.Duration // how long to leave a batch to the process that has claimed it; 0 means takeoverAfter
	swap     time.Duration // interval of looking whether another version can be live; 0 means swapInterval
	offsets  int64         // of the first range that is read from the archive; 0 means archiveOffsets
	grace    time.Duration // how long the tables of an earlier version are kept; 0 means retireAfter
	hook     func(context.Context, string) error
}

// Defaults.
const (
	commitInterval = 2 * time.Second
	commitFacts    = 20_000
	retryInterval  = 10 * time.Second
	takeoverAfter  = 5 * time.Second
	swapInterval   = 2 * time.Second
	retireAfter    = 24 * time.Hour
)

// History is the tables of some groups. It is safe for concurrent use.
type History struct {
	cfg     Config
	sources []*source
	links   *source  // the identity graph, one of the sources; nil if no group follows it
	tiles   []*tiles // of all groups
	// swappers are those of groups with several versions.
	swappers []*swapper
	retiring health
	running  atomic.Bool // Run is called and has not returned
}

// source is the tables of a source.
type source struct {
	features.Source
	facts, corrections, claims, positions clickhouse.Table
	tiles                                 []*tiles // of the groups that use the source
	recent                                recent
	health                                health
}

// health is why a table is not being filled.
type health struct {
	mu      sync.Mutex
	reason  error
	stopped bool // the table cannot take data; otherwise something that is needed does not answer
}

func (h *health) set(reason error, stopped bool) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = (h.reason == nil) != (reason == nil) || reason != nil && reason.Error() != h.reason.Error()
	h.reason, h.stopped = reason, stopped
	return changed
}

func (h *health) get() (stopped bool, reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stopped, h.reason
}

// Open returns a History. It does not connect.
func Open(c Config) (*History, error) {
	c.CommitInterval = cmp.Or(c.CommitInterval, commitInterval)
	c.CommitFacts = cmp.Or(c.CommitFacts, commitFacts)
	c.retry, c.takeover = cmp.Or(c.retry, retryInterval), cmp.Or(c.takeover, takeoverAfter)
	c.swap, c.grace = cmp.Or(c.swap, swapInterval), cmp.Or(c.grace, retireAfter)
	c.offsets = cmp.Or(c.offsets, archiveOffsets)
	if c.Store == nil || c.Logger == nil {
		return nil, errors.New("history: Store and Logger are required")
	}
	h := &History{cfg: c}
	first := map[string]*features.Group{}
	byName, groups := map[string]*source{}, map[string]bool{}
	for _, g := range c.Groups {
		if err := g.Check(); err != nil {
			return nil, err
		}
		if groups[g.ID()] {
			return nil, fmt.Errorf("history: group %s occurs twice", g.ID())
		}
		groups[g.ID()] = true
		if other := first[g.Name]; other == nil {
			first[g.Name] = g
		} else if other.Entity != g.Entity {
			return nil, fmt.Errorf("history: versions of group %s describe %s and %s: give one another name",
				g.Name, other.Entity, g.Entity)
		} else if !slices.ContainsFunc(h.swappers, func(s *swapper) bool { return s.name == g.Name }) {
			h.swappers = append(h.swappers, newSwapper(h, g.Name))
		}
		for i := range g.Sources {
			s := byName[g.Sources[i].Name]
			if s == nil {
				s = newSource(g.Sources[i], c.Retention)
				byName[s.Name] = s
				h.sources = append(h.sources, s)
			}
			t := newTiles(g, s, c.Retention)
			s.tiles, h.tiles = append(s.tiles, t), append(h.tiles, t)
		}
	}
	if persons.Follow(c.Groups...) {
		h.links = newSource(persons.Source, 0) // a link counts however old it is
		h.sources = append(h.sources, h.links)
	}
	return h, nil
}

// Run fills the tables until ctx is done, and then returns nil. Several processes may run it at the
// same time. Errors are logged, reported by Status and retried.
func (h *History) Run(ctx context.Context) error {
	if h.cfg.WriteDeadLetters == nil {
		return errors.New("history: WriteDeadLetters is required")
	}
	h.running.Store(true)
	defer h.running.Store(false)
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range h.sources {
		g.Go(func() error { return h.keep(ctx, s.facts.Name, &s.health, newWriter(h, s).session) })
		for _, t := range s.tiles {
			g.Go(func() error { return h.keep(ctx, t.table.Name, &t.health, newFiller(h, t).session) })
		}
	}
	for _, s := range h.swappers {
		g.Go(func() error { return h.keep(ctx, s.name, &s.health, s.session) })
	}
	g.Go(func() error { return h.keep(ctx, "tables of earlier versions", &h.retiring, h.retireEarlier) })
	return g.Wait()
}

// at is a step of feeding, at which tests inject failures.
func (h *History) at(ctx context.Context, table, step string) error {
	if h.cfg.hook != nil {
		return h.cfg.hook(ctx, table+" "+step)
	}
	return failpoint.Hit("features." + table + "." + step)
}

// Steps of feeding.
const (
	stepFetched    = "facts fetched"
	stepClaim      = "about to claim"
	stepClaimed    = "claimed"
	stepInserted   = "facts inserted"
	stepCorrected  = "corrections inserted"
	stepPositioned = "position saved"
	stepTiles      = "about to insert tiles"
	stepFilled     = "tiles inserted"
	stepTilesDone  = "position of tiles saved"
)
