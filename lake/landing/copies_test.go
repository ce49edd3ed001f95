package landing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/tables"
)

// testSeals accepts records that are sealed under a name and in the partition of their key, like
// the relay's seals.
type testSeals string

func (s testSeals) CheckSeal(_ context.Context, r registry.Record, e event.Event) (bool, error) {
	name, _ := event.SealName(r.Headers)
	if string(name) != string(s) || !e.SealMatches(r.Headers) || partitionOf(e.Stream) != r.Partition {
		return false, fmt.Errorf("%w: the relay did not publish it", event.ErrNotEvent)
	}
	return true, nil
}

// copies counts dead letters by table and reason.
type copies struct {
	mu     sync.Mutex
	aside  map[string]int
	others []error
}

func (c *copies) write(_ context.Context, records []DeadLetter) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range records {
		if !errors.Is(p.Reason, event.ErrNotEvent) {
			c.others = append(c.others, p.Reason)
		}
		c.aside[p.Sink]++
	}
	return nil
}

// Copies of events, as mirrors and replay tools make them, become dead letters. Each event is in
// each table once.
func TestCopiesOfEventsDoNotLand(t *testing.T) {
	t.Parallel()
	for name, choose := range map[string]func(log []fetchtest.Record) []fetchtest.Record{
		"the first event": func(log []fetchtest.Record) []fetchtest.Record { return log[:1] },
		"the last event, five times": func(log []fetchtest.Record) []fetchtest.Record {
			return slices.Repeat(log[len(log)-1:], 5)
		},
		"all events":                            func(log []fetchtest.Record) []fetchtest.Record { return log },
		"one stream":                            oneStream,
		"one stream, on another partition":      func(log []fetchtest.Record) []fetchtest.Record { return elsewhere(oneStream(log)) },
		"all events, each on another partition": elsewhere,
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/restart=%v", name, restart), func(t *testing.T) {
				t.Parallel()
				s := newShop(t)
				s.seal = "s"
				s.mustTrade(t, 30)
				aside := &copies{aside: map[string]int{}}
				c := s.runConfig()
				c.WriteDeadLetters = aside.write
				l := openLake(t, ordersOnly(localLake(t)))
				stop := start(t, l, c)
				s.landed(t, l)
				if restart {
					mustStop(t, stop)
				}
				made := choose(s.records(event.Order))
				if err := s.producer.Commit(t.Context(), event.Order.Topic, made...); err != nil {
					t.Fatal(err)
				}
				if restart {
					stop = start(t, l, c)
				}
				s.landed(t, l)
				s.mustTrade(t, 10)
				s.landed(t, l)
				mustStop(t, stop)
				s.check(t, l)
				for _, name := range []string{tables.OrdersEvents.Name, tables.OrderLines.Name, tables.OrdersCurrent.Name} {
					if n := aside.aside["lake/"+name]; n != len(made) {
						t.Errorf("%s: %d records were put aside, want %d", name, n, len(made))
					}
				}
				if len(aside.others) > 0 {
					t.Error(aside.others)
				}
			})
		}
	}
}

func oneStream(log []fetchtest.Record) (of []fetchtest.Record) {
	for _, r := range log {
		if string(r.Key) == string(log[0].Key) {
			of = append(of, r)
		}
	}
	return of
}

func elsewhere(log []fetchtest.Record) []fetchtest.Record {
	moved := slices.Clone(log)
	for i := range moved {
		moved[i].Partition = (moved[i].Partition + 1) % partitions
	}
	return moved
}

// A table of an earlier version has no sequences of its partitions. It lands everything and detects
// copies from then on.
func TestCopiesInATableOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.seal = "s"
	s.mustTrade(t, 20)
	config := ordersOnly(localLake(t))
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	s.landed(t, l)
	mustStop(t, stop)
	for _, decl := range l.Declared() {
		have, err := l.Load(t.Context(), decl.Identifier())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for name := range have.Properties() {
			if strings.HasPrefix(name, progress.KeySeenPrefix) {
				names = append(names, name)
			}
		}
		update := []table.Update{table.NewRemovePropertiesUpdate(names)}
		if _, _, err := l.Catalog().CommitTable(t.Context(), decl.Identifier(), nil, update); err != nil || len(names) != partitions {
			t.Fatalf("%d partitions are forgotten, error %v", len(names), err)
		}
	}
	aside := &copies{aside: map[string]int{}}
	c := s.runConfig()
	c.WriteDeadLetters = aside.write
	stop = start(t, l, c)
	s.mustTrade(t, 40)
	s.landed(t, l)
	log := s.records(event.Order)
	if err := s.producer.Commit(t.Context(), event.Order.Topic, log...); err != nil {
		t.Fatal(err)
	}
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
	if n := aside.aside["lake/"+tables.OrderLines.Name]; n != len(log) {
		t.Errorf("%d records were put aside, want %d", n, len(log))
	}
}

// A lander that is killed among copies of events leaves a table that the next one completes.
func TestKilledAmongCopies(t *testing.T) {
	t.Parallel()
	for _, name := range []string{tables.OrdersEvents.Name, tables.OrderLines.Name, tables.OrdersCurrent.Name} {
		for _, at := range []step{stepFetched, stepDeadLetters, stepDeadLettersWritten, stepClosed, stepCommit, stepCommitted} {
			t.Run(fmt.Sprintf("%s/%s", name, at), func(t *testing.T) {
				t.Parallel()
				s := newShop(t)
				s.seal = "s"
				s.mustTrade(t, 30)
				if err := s.producer.Commit(t.Context(), event.Order.Topic, s.records(event.Order)...); err != nil {
					t.Fatal(err)
				}
				s.mustTrade(t, 10)
				config := ordersOnly(localLake(t))
				killed(t, startChild(t, s, config, childSeal+"=s", childKill+"="+name+": "+string(at), childKillAt+"=1"))
				if err := s.producer.Commit(t.Context(), event.Order.Topic, s.records(event.Order)...); err != nil {
					t.Fatal(err)
				}
				l := openLake(t, config)
				c := s.runConfig()
				c.WriteDeadLetters = func(context.Context, []DeadLetter) error { return nil }
				stop := start(t, l, c)
				s.landed(t, l)
				mustStop(t, stop)
				s.check(t, l)
			})
		}
	}
}
