package landing

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
)

func TestEverythingLandsOnce(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 500)
		l := openLake(t, fresh(t))
		stop := start(t, l, s.runConfig())
		s.landed(t, l)
		s.mustTrade(t, 300)
		s.landed(t, l)
		mustStop(t, stop)
		s.check(t, l)
		checkFiles(t, l)
		s.mustTrade(t, 100)
		stop = start(t, l, s.runConfig()) // again, on what is there
		s.landed(t, l)
		mustStop(t, stop)
		s.check(t, l)
		checkFiles(t, l)
	})
}

func stateOf(t testing.TB, l *lake.Lake, name string) lake.TableState {
	t.Helper()
	states, err := l.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no table %s", name)
	return lake.TableState{}
}

// Events without rows, and aborted transactions, move a table's offsets to the topic's end. Then
// nothing more is committed.
func TestOffsetsMoveWithoutRows(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		var confirmed []fetchtest.Record
		for range 20 {
			id := s.gen.uuid().String()
			e := s.gen.event(event.Order, id, "millrace.order.v1.OrderConfirmed", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{
				Confirmed: &orderv1.OrderConfirmed{OrderId: id},
			}})
			s.events[event.Order] = append(s.events[event.Order], e)
			confirmed = append(confirmed, fetchtest.Event(partitionOf(id), e))
		}
		if err := s.producer.Commit(t.Context(), event.Order.Topic, confirmed...); err != nil {
			t.Fatal(err)
		}
		if err := s.producer.Abort(t.Context(), event.Order.Topic, confirmed...); err != nil {
			t.Fatal(err)
		}
		l := openLake(t, fresh(t))
		stop := start(t, l, s.runConfig())
		s.landed(t, l)
		lines := stateOf(t, l, tables.OrderLines.Name)
		if lines.Rows != 0 || lines.Snapshot != 0 || len(lines.Offsets) == 0 {
			t.Errorf("order_lines: %+v", lines)
		}
		if have := stateOf(t, l, tables.OrdersEvents.Name); have.Rows != 20 || have.AsOf.IsZero() {
			t.Errorf("orders_events: %+v", have)
		}
		before, err := l.Tables(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(10 * s.runConfig().CommitInterval) // time enough to do something that should not be done
		after, err := l.Tables(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range before {
			if before[i].MetadataLocation != after[i].MetadataLocation {
				t.Errorf("%s is committed to while nothing happens", before[i].Name)
			}
		}
		mustStop(t, stop)
		s.check(t, l)
	})
}

// A record that is not an event becomes a dead letter of each table, and the others land.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 20)
		good := s.gen.orderEvents()[0]
		foreign := s.gen.customerEvents()[0]
		garbled := good
		garbled.Data = []byte{0xff, 0xff}
		unpriced := s.gen.event(event.Order, good.Stream, "millrace.order.v1.OrderPlaced", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{
			Placed: &orderv1.OrderPlaced{OrderId: good.Stream, Lines: []*orderv1.OrderLine{{Number: 1, Sku: "1"}}},
		}})
		bad := []fetchtest.Record{
			{Partition: 1, Key: []byte("k"), Value: []byte("what is this?")},
			fetchtest.Event(1, foreign),
			fetchtest.Event(1, garbled),
			fetchtest.Event(1, unpriced), // a message, but one that order_lines could not keep
		}
		if err := s.producer.Commit(t.Context(), event.Order.Topic, bad...); err != nil {
			t.Fatal(err)
		}
		s.mustTrade(t, 20)

		var mu sync.Mutex
		letters := map[string]error{}
		c := s.runConfig()
		fails := 3
		c.WriteDeadLetters = func(_ context.Context, records []DeadLetter) error {
			mu.Lock()
			defer mu.Unlock()
			if fails--; fails >= 0 {
				return errors.New("no dead letter topic")
			}
			for _, p := range records {
				letters[fmt.Sprintf("%s|%s|%d", p.Sink, p.Topic, p.Partition)] = p.Reason
				letters[string(p.Value)] = p.Reason
			}
			return nil
		}
		l := openLake(t, fresh(t))
		stop := start(t, l, c)
		s.landed(t, l)
		mustStop(t, stop)
		for _, want := range []string{
			"lake/orders_events|millrace.orders|1", "lake/order_lines|millrace.orders|1", "lake/orders_current|millrace.orders|1",
			"what is this?", string(foreign.Data), string(garbled.Data), string(unpriced.Data),
		} {
			if letters[want] == nil {
				t.Errorf("not a dead letter: %q", want)
			}
		}
		if len(letters) != 7 {
			t.Errorf("%d dead letters, want 7: %v", len(letters), letters)
		}
		if !errors.Is(letters["what is this?"], event.ErrNotEvent) {
			t.Errorf("the reason is %v", letters["what is this?"])
		}
		// The digests count the valid events.
		s.events[event.Order] = s.events[event.Order][:len(s.events[event.Order]):len(s.events[event.Order])]
		want := len(s.events[event.Order])
		if have := stateOf(t, l, tables.OrdersEvents.Name); have.Rows != int64(want) {
			t.Errorf("orders_events has %d rows, want %d", have.Rows, want)
		}
		have, err := l.EventsDigest(t.Context(), event.Order)
		if err != nil {
			t.Fatal(err)
		}
		if have.Total().Count != uint64(want) {
			t.Errorf("digest of %d events, want %d", have.Total().Count, want)
		}
		s.events[event.Order] = append(s.events[event.Order], unpriced)
		if _, err := tables.OrderLines.Sums.Expect(s.all(event.Order)); err == nil || !strings.Contains(err.Error(), unpriced.ID.String()) {
			t.Errorf("an event whose lines cannot land must be named, got %v", err)
		}
	})
}

// If a topic has lost records that the table has or still needs, the error has both offsets. It is
// never ignored.
func TestTopicMismatch(t *testing.T) {
	t.Parallel()
	remake := func(partitions int32) func(t *testing.T, s *shop) {
		return func(t *testing.T, s *shop) {
			if err := s.producer.DeleteTopic(t.Context(), event.Order.Topic); err != nil {
				t.Fatal(err)
			}
			if err := s.producer.CreateTopic(t.Context(), event.Order.Topic, partitions); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		happens func(t *testing.T, s *shop)
		want    string
	}{
		"made anew, empty":             {happens: remake(partitions), want: "id"},
		"made anew, and further again": {happens: func(t *testing.T, s *shop) { remake(partitions)(t, s); s.mustTrade(t, 300) }, want: "id"},
		"fewer partitions":             {happens: remake(1), want: "id"},
		"deleted": {happens: func(t *testing.T, s *shop) {
			if err := s.producer.DeleteTopic(t.Context(), event.Order.Topic); err != nil {
				t.Fatal(err)
			}
		}, want: "unknown topic"},
		"deleted before it was landed": {happens: func(t *testing.T, s *shop) {
			s.mustTrade(t, 200)
			for p := range int32(partitions) {
				ends, err := s.producer.Ends(t.Context(), event.Order.Topic)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.producer.DeleteRecords(t.Context(), event.Order.Topic, p, ends[p]-1); err != nil {
					t.Fatal(err)
				}
			}
		}, want: "is not in the log, which has offsets"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			s.mustTrade(t, 100)
			l := openLake(t, ordersOnly(localLake(t)))
			stop := start(t, l, s.runConfig())
			s.landed(t, l)
			mustStop(t, stop)
			before := stateOf(t, l, tables.OrdersEvents.Name)
			c.happens(t, s)
			err := Run(t.Context(), l, s.runConfig())
			var position *faults.PositionError
			if !errors.As(err, &position) || position.Topic != event.Order.Topic || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v", err)
			}
			if after := stateOf(t, l, tables.OrdersEvents.Name); after.Rows != before.Rows || after.MetadataLocation != before.MetadataLocation {
				t.Errorf("the table was %+v and is %+v", before, after)
			}
		})
	}
}

// A log that was truncated below the table's offsets is detected by the offsets, without topic ids.
func TestLogEndsBeforeTheTable(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 20)
		config := fresh(t)
		config.Tables = []declare.Table{tables.OrdersEvents} // where it is the only one, its error is that of Run
		l := openLake(t, config)
		stop := start(t, l, s.runConfig())
		s.landed(t, l)
		mustStop(t, stop)
		have, err := l.Load(t.Context(), tables.OrdersEvents.Identifier())
		if err != nil {
			t.Fatal(err)
		}
		tx := have.NewTransaction()
		if err := tx.SetProperties(iceberg.Properties{progress.KeyNextPrefix + event.Order.Topic + ".2": "100000"}); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		err = Run(t.Context(), l, s.runConfig())
		var gone *fetch.OutOfRangeError
		if !errors.As(err, &gone) || gone.Offset != 100000 || !strings.Contains(err.Error(), fmt.Sprint(gone.Log.End)) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestPartitionsAreAdded(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 20)
		l := openLake(t, fresh(t))
		c := s.runConfig()
		c.refresh = 100 * time.Millisecond
		stop := start(t, l, c)
		s.landed(t, l)
		if err := s.producer.AddPartitions(t.Context(), event.Order.Topic, 2); err != nil {
			t.Fatal(err)
		}
		events := s.gen.orderEvents()
		s.events[event.Order] = append(s.events[event.Order], events...)
		for _, e := range events {
			if err := s.producer.Commit(t.Context(), event.Order.Topic, fetchtest.Event(5, e)); err != nil {
				t.Fatal(err)
			}
		}
		s.landed(t, l)
		mustStop(t, stop)
		s.check(t, l)
	})
}

// A lake opened read-only sees what a running one lands.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		config := fresh(t)
		writing := config
		config.ReadOnly = true
		if _, err := lake.Open(t.Context(), config); !errors.Is(err, lake.ErrNoLake) {
			t.Fatalf("got %v", err)
		}
		s := newShop(t)
		l := openLake(t, writing)
		start(t, l, s.runConfig())
		reader, err := lake.Open(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = reader.Close() }()
		for range 3 {
			s.mustTrade(t, 30)
			s.landed(t, reader)
			s.check(t, reader)
		}
	})
}

// A dropped table does not affect the others. After a restart, landers land it from the beginning.
func TestDroppedTable(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 50)
		config := fresh(t)
		l := openLake(t, config)
		stop := start(t, l, s.runConfig())
		s.landed(t, l)
		if err := l.Catalog().DropTable(t.Context(), tables.OrderLines.Identifier()); err != nil {
			t.Fatal(err)
		}
		for what, ask := range map[string]func() ([]lake.TableState, error){
			"now": func() ([]lake.TableState, error) { return l.Tables(t.Context()) },
			"as of": func() ([]lake.TableState, error) {
				return l.TablesAsOf(t.Context(), lake.AsOf{}, func(string) bool { return true })
			},
		} {
			states, err := ask()
			if err != nil || len(states) != len(tables.All())-1 {
				t.Errorf("%s: %d tables, error %v", what, len(states), err)
			}
			for _, state := range states {
				if state.Name == tables.OrderLines.Name {
					t.Errorf("%s: %s is still there", what, state.Name)
				}
			}
		}
		s.mustTrade(t, 50)
		eventually(t, func() error { return reached(t, l, s, tables.OrdersEvents) })
		mustStop(t, stop)
		again := openLake(t, config)
		stop = start(t, again, s.runConfig())
		s.landed(t, again)
		mustStop(t, stop)
		s.check(t, again)
	})
}

func reached(t *testing.T, l *lake.Lake, s *shop, of declare.Table) error {
	t.Helper()
	ends, err := s.producer.Ends(t.Context(), of.Topic)
	if err != nil {
		return err
	}
	have := stateOf(t, l, of.Name).Offsets
	for partition, end := range ends {
		if have[partition] < end {
			return fmt.Errorf("partition %d is at %d of %d", partition, have[partition], end)
		}
	}
	return nil
}

// A row that is changed, added or removed by another engine changes the digest.
func TestTamperedTableIsNoticed(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		s.mustTrade(t, 50)
		l := openLake(t, fresh(t))
		stop := start(t, l, s.runConfig())
		s.landed(t, l)
		mustStop(t, stop)
		s.check(t, l)
		digests := func() string {
			events, err := l.EventsDigest(t.Context(), event.Order)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := l.Digest(t.Context(), tables.OrderLines.Name)
			if err != nil {
				t.Fatal(err)
			}
			return events.Total().Hash() + lines.Total().Hash()
		}
		before := digests()
		for _, name := range []string{tables.OrdersEvents.Name, tables.OrderLines.Name} {
			have, err := l.Load(t.Context(), declare.Identifier(name))
			if err != nil {
				t.Fatal(err)
			}
			key := map[string]string{tables.OrdersEvents.Name: "aggregate_id", tables.OrderLines.Name: "order_id"}[name]
			tx := have.NewTransaction()
			one := iceberg.EqualTo(iceberg.Reference(key), s.events[event.Order][0].Stream)
			if err := tx.Delete(t.Context(), one, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			after := digests()
			if after == before {
				t.Errorf("rows were taken from %s, and the digest is the same", name)
			}
			before = after
		}
	})
}

// Tables are Iceberg format 2 in a folder, and their history is bounded.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		l := openLake(t, fresh(t))
		lander := &lander{lake: l, table: tables.OrdersEvents, config: s.runConfig(), log: quiet()}
		ctx := t.Context()
		have, err := l.Load(ctx, tables.OrdersEvents.Identifier())
		if err != nil {
			t.Fatal(err)
		}
		if v := have.Metadata().Version(); v != 2 {
			t.Errorf("format version %d", v)
		}
		w, to, err := lander.writer(ctx, have)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = w.Close() }()
		at := &positions{next: map[int32]int64{}}
		const historyNewest, historyCut = 64, 16 // as package maintenance has them
		const commits = historyNewest + 6*historyCut
		for i := range int64(commits) {
			b := newBatch(at, time.Time{})
			if _, err := to.put(ctx, w, record(s.gen.orderEvents()[0], 0, i)); err != nil {
				t.Fatal(err)
			}
			b.move(0, i+1)
			if err := lander.land(ctx, b, w); err != nil {
				t.Fatal(err)
			}
			at.put(b.progress.Next, "")
			if err := maintenance.Thin(ctx, lander.load, l.Catalog()); err != nil {
				t.Fatal(err)
			}
		}
		if have, err = l.Load(ctx, tables.OrdersEvents.Identifier()); err != nil {
			t.Fatal(err)
		}
		if n := len(have.Metadata().Snapshots()); n > historyNewest+historyCut+60 {
			t.Errorf("%d snapshots are kept", n)
		}
		files := filesBelow(t, have, "metadata")
		// Manifest lists and manifests of the retained snapshots, and a hundred older metadata
		// files.
		if n := len(files); n > 3*(historyNewest+historyCut+60)+101 {
			t.Errorf("%d metadata files after %d commits", n, commits)
		}
		d, err := l.EventsDigest(ctx, event.Order)
		if err != nil {
			t.Fatal(err)
		}
		if d.Total().Count != commits {
			t.Errorf("%d rows are left of %d", d.Total().Count, commits)
		}
		checkFiles(t, l)
	})
}
