package landing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/tables"
)

// faultyCatalog breaks commits to one table.
type faultyCatalog struct {
	catalog.Catalog
	table string
	fault func() fault // for each commit to the table
}

type fault string

const (
	works   fault = "works"
	refused fault = "refused: not committed, and says so"
	fails   fault = "fails: not committed, by an unspecific error"
	lost    fault = "lost: committed, and answers with an error"
)

var errFault = errors.New("the catalog is broken on purpose")

func (f *faultyCatalog) LoadTable(ctx context.Context, ident table.Identifier) (*table.Table, error) {
	t, err := f.Catalog.LoadTable(ctx, ident)
	if err != nil {
		return nil, err
	}
	// Route commits of this handle through this catalog, too.
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, f), nil
}

func (f *faultyCatalog) CommitTable(ctx context.Context, ident table.Identifier, reqs []table.Requirement, updates []table.Update) (table.Metadata, string, error) {
	if ident[1] != f.table {
		return f.Catalog.CommitTable(ctx, ident, reqs, updates)
	}
	switch f.fault() {
	case refused:
		return nil, "", fmt.Errorf("%w: %w", table.ErrCommitFailed, errFault)
	case fails:
		return nil, "", errFault
	case lost:
		if _, _, err := f.Catalog.CommitTable(ctx, ident, reqs, updates); err != nil {
			return nil, "", err
		}
		return nil, "", errFault
	default:
		return f.Catalog.CommitTable(ctx, ident, reqs, updates)
	}
}

// Whatever the catalog answers, each row lands once, and files of failed commits are removed.
func TestCatalogFaults(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 100)
		for _, kind := range []fault{refused, fails, lost} {
			for _, name := range []string{tables.OrdersEvents.Name, tables.OrderLines.Name, tables.OrdersCurrent.Name} {
				t.Run(fmt.Sprintf("%s/%.6s", name, kind), func(t *testing.T) {
					l := openLake(t, ordersOnly(fresh(t)))
					var commits atomic.Int64
					l.SetCatalog(&faultyCatalog{Catalog: l.Catalog(), table: name, fault: func() fault {
						if commits.Add(1)%2 == 1 {
							return kind
						}
						return works
					}})
					stop := start(t, l, s.runConfig())
					s.landed(t, l)
					s.mustTrade(t, 30)
					s.landed(t, l)
					mustStop(t, stop)
					s.check(t, l)
					checkFiles(t, l)
					if commits.Load() < 2 {
						t.Error("no commit was broken")
					}
				})
			}
		}
	})
}

// An error at any step ends a landing, and the next attempt completes it.
func TestErrorsAtEachStep(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 100)
		for _, at := range []step{stepFetched, stepLookedUp, stepClosed, stepCommit, stepCommitted} {
			t.Run(string(at), func(t *testing.T) {
				l := openLake(t, ordersOnly(fresh(t)))
				var mu sync.Mutex
				times := map[string]int{}
				c := s.runConfig()
				c.hook = func(_ context.Context, name string, have step) error {
					mu.Lock()
					defer mu.Unlock()
					if have != at {
						return nil
					}
					if times[name]++; times[name] <= 3 {
						return errFault
					}
					return nil
				}
				stop := start(t, l, c)
				s.landed(t, l)
				s.mustTrade(t, 30) // some of it changes what is there
				s.landed(t, l)
				mustStop(t, stop)
				s.check(t, l)
				checkFiles(t, l)
			})
		}
	})
}

// A lander is suspended during a landing while another one lands the same records and more. It
// fails when it resumes.
func TestZombie(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		for _, name := range []string{tables.OrdersEvents.Name, tables.OrderLines.Name, tables.OrdersCurrent.Name} {
			for _, at := range []step{stepLookedUp, stepClosed, stepCommit} {
				if at == stepLookedUp && name != tables.OrdersCurrent.Name {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s", name, at), func(t *testing.T) {
					t.Parallel()
					s := newShop(t)
					s.mustTrade(t, 60)
					config := ordersOnly(fresh(t))

					var log logged
					logging := config
					logging.Logger = slog.New(slog.NewTextHandler(&log, nil))
					zombie, err := lake.Open(t.Context(), logging)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = zombie.Close() })
					c := s.runConfig()
					c.rebalanceTimeout = 2 * time.Second
					paused, resume := make(chan struct{}), make(chan struct{})
					var once sync.Once
					c.hook = func(_ context.Context, table string, have step) error {
						if table == name && have == at {
							once.Do(func() {
								close(paused)
								<-resume
							})
						}
						return nil
					}
					stopZombie := start(t, zombie, c)
					<-paused

					l := openLake(t, config)
					other := s.runConfig()
					other.rebalanceTimeout = c.rebalanceTimeout // the group's is the greatest of its members'
					stop := start(t, l, other)
					s.landed(t, l)
					s.mustTrade(t, 60)
					s.landed(t, l)
					close(resume)
					eventually(t, func() error { return log.has(errFenced.Error()) })
					s.mustTrade(t, 60) // both at work
					s.landed(t, l)
					mustStop(t, stop)
					mustStop(t, stopZombie)
					s.check(t, l)
					checkFiles(t, l)
				})
			}
		}
	})
}

// Two landers on a catalog that fails at random, while events arrive: the tables stay exact.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 60)
		rapid.Check(t, func(rt *rapid.T) {
			name := rapid.SampledFrom([]string{tables.OrdersEvents.Name, tables.OrdersCurrent.Name}).Draw(rt, "table")
			faults := rapid.SliceOfN(rapid.SampledFrom([]fault{works, refused, fails, lost}), 1, 12).Draw(rt, "faults")
			steps := rapid.SliceOfN(rapid.Bool(), 1, 12).Draw(rt, "errors at steps")
			config := ordersOnly(fresh(t))
			var stops []func() error
			var lakes []*lake.Lake
			var commits, hooks atomic.Int64
			for range 2 {
				l, err := lake.Open(t.Context(), config)
				if err != nil {
					rt.Fatal(err)
				}
				l.SetCatalog(&faultyCatalog{Catalog: l.Catalog(), table: name, fault: func() fault {
					if i := int(commits.Add(1)); i <= len(faults) {
						return faults[i-1]
					}
					return works
				}})
				c := s.runConfig()
				c.hook = func(_ context.Context, table string, _ step) error {
					if i := int(hooks.Add(1)); table == name && i <= len(steps) && steps[i-1] {
						return errFault
					}
					return nil
				}
				lakes = append(lakes, l)
				stops = append(stops, start(t, l, c))
			}
			s.landed(t, lakes[0])
			for i, stop := range stops {
				mustStop(t, stop)
				defer func() { _ = lakes[i].Close() }()
			}
			s.check(t, lakes[0])
		})
	})
}

// A commit is found in the history. A commit whose position was taken by another is known never to
// land.
func TestFindCommit(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		l := openLake(t, ordersOnly(fresh(t)))
		stop := start(t, l, s.runConfig())
		var ids []string
		var bases []int64
		for range 3 {
			have, err := l.Load(t.Context(), tables.OrdersEvents.Identifier())
			if err != nil {
				t.Fatal(err)
			}
			bases = append(bases, 0)
			if head := have.CurrentSnapshot(); head != nil {
				bases[len(bases)-1] = head.SnapshotID
			}
			s.mustTrade(t, 4)
			s.landed(t, l)
			if have, err = l.Load(t.Context(), tables.OrdersEvents.Identifier()); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, have.Properties()[progress.KeyCommit])
		}
		mustStop(t, stop)
		have, err := l.Load(t.Context(), tables.OrdersEvents.Identifier())
		if err != nil {
			t.Fatal(err)
		}
		meta := have.Metadata()
		for i, id := range ids {
			if got := findCommit(meta, id, unknownBase); got != landed {
				t.Errorf("commit %d: got %v", i, got)
			}
			if got := findCommit(meta, "another", bases[i]); got != notLanded {
				t.Errorf("a commit that lost to commit %d: got %v", i, got)
			}
		}
		if got := findCommit(meta, "another", have.CurrentSnapshot().SnapshotID); got != landUnknown {
			t.Errorf("a commit on the head: got %v", got)
		}
		if got := findCommit(meta, "another", 12345); got != landUnknown {
			t.Errorf("a commit on a snapshot that is forgotten: got %v", got)
		}
	})
}

// A position fault is wrapped once, wherever it was detected.
func TestPositionErrorsSayOnceWhatTheyAreOf(t *testing.T) {
	t.Parallel()
	l := &lander{table: declare.Table{Name: "gap", Topic: "gap"}}
	err := l.positionError(&fetch.OutOfRangeError{Topic: "gap", Offset: 7})
	again := l.positionError(fmt.Errorf("read: %w", err))
	if n := strings.Count(again.Error(), "does not match topic gap"); n != 1 {
		t.Errorf("it says %q", again)
	}
}
