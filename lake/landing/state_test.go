package landing

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
)

// garbled is the data of an event that cannot be decoded.
var garbled = []byte{0xff, 0xff}

func readable(e event.Event) bool { return !bytes.Equal(e.Data, garbled) }

// stateWorld is a topic of order events, with landers for orders_current that are run step by step.
type stateWorld struct {
	t       testing.TB
	lake    *lake.Lake
	decl    declare.Table
	topic   map[int32][]event.Event // the events of each partition
	landers []*stateLander
}

// stateLander is a lander with the state of its session.
type stateLander struct {
	*lander
	to     sink
	writer *datafile.Writer
}

func newStateWorld(t testing.TB, decl declare.Table, landers int) *stateWorld {
	t.Helper()
	config := localLake(t)
	config.Tables = []declare.Table{decl}
	w := &stateWorld{t: t, lake: openLake(t, config), decl: decl, topic: map[int32][]event.Event{}}
	for range landers {
		w.landers = append(w.landers, &stateLander{lander: &lander{lake: w.lake, table: decl, log: quiet()}})
		w.restart(len(w.landers) - 1)
	}
	t.Cleanup(func() {
		for _, l := range w.landers {
			_ = l.writer.Close()
		}
	})
	return w
}

func (w *stateWorld) load() *table.Table {
	w.t.Helper()
	have, err := w.lake.Load(w.t.Context(), w.decl.Identifier())
	if err != nil {
		w.t.Fatal(err)
	}
	return have
}

func (w *stateWorld) offsets() map[int32]int64 {
	w.t.Helper()
	at, err := progress.Read(w.decl.Topic, w.load().Properties())
	if err != nil {
		w.t.Fatal(err)
	}
	return at.Next
}

// restart starts a new session, which remembers nothing.
func (w *stateWorld) restart(i int) {
	w.t.Helper()
	l := w.landers[i]
	if l.writer != nil {
		if err := l.writer.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	var err error
	if l.writer, l.to, err = l.lander.writer(w.t.Context(), w.load()); err != nil {
		w.t.Fatal(err)
	}
}

// collect adds a partition's next records to a batch.
func (w *stateWorld) collect(i int, partition int32, most int) *batch {
	w.t.Helper()
	l, from := w.landers[i], w.offsets()
	b := newBatch(&positions{next: from}, time.Time{})
	for _, e := range w.topic[partition][from[partition]:min(int(from[partition])+most, len(w.topic[partition]))] {
		_, err := l.to.put(w.t.Context(), l.writer, record(e, partition, b.progress.Next[partition]+from[partition]))
		if (err == nil) != readable(e) {
			w.t.Fatal(err)
		}
		b.progress.Next[partition]++
	}
	if n := b.progress.Next[partition]; n > 0 {
		b.move(partition, from[partition]+n)
	}
	return b
}

// land lands a batch. A failure ends the session.
func (w *stateWorld) land(ctx context.Context, i int, b *batch) error {
	if !b.moved() {
		return nil
	}
	l := w.landers[i]
	err := l.flushUpserts(ctx, b, l.to, l.writer)
	if err == nil {
		err = l.land(ctx, b, l.writer)
	}
	if err == nil {
		l.to.upserts.Landed(b.progress.Next)
		return nil
	}
	w.restart(i)
	return err
}

func (w *stateWorld) mustLand(i int, partition int32, most int) {
	w.t.Helper()
	if err := w.land(w.t.Context(), i, w.collect(i, partition, most)); err != nil {
		w.t.Fatal(err)
	}
}

// check compares the table with a fold of the events before its offsets.
func (w *stateWorld) check(after string) {
	w.t.Helper()
	var events []event.Event
	for partition, next := range w.offsets() {
		for _, e := range w.topic[partition][:next] {
			if readable(e) {
				events = append(events, e)
			}
		}
	}
	want, err := w.decl.Sums.Expect(func(yield func(event.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	have, err := w.lake.Digest(w.t.Context(), w.decl.Name)
	if err != nil {
		w.t.Fatal(err)
	}
	if !maps.Equal(have.Streams, want.Streams) {
		w.t.Fatalf("after %s: the table has %v, the events make %v", after, have.Streams, want.Streams)
	}
	if state := stateOf(w.t, w.lake, w.decl.Name); state.Rows != int64(len(want.Streams)) {
		w.t.Fatalf("after %s: the table claims %d rows, and has %d", after, state.Rows, len(want.Streams))
	}
}

// maintain compacts everything, and runs a function when the compaction is about to commit.
func (w *stateWorld) maintain(meanwhile func()) maintenance.Report {
	w.t.Helper()
	loads := 0
	report, err := maintenance.Run(w.t.Context(), func(ctx context.Context) (*table.Table, error) {
		if loads++; loads == 2 {
			meanwhile()
		}
		return w.lake.Load(ctx, w.decl.Identifier())
	}, maintenance.Config{DutyCycle: 1, SmallFiles: 2, DeleteShare: 1e-9, Manifests: 2, KeepAge: time.Nanosecond, KeepSnapshots: 1}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

// At every moment the table has one row per stream, folded from the events before its offsets. That
// holds for any division of events into batches, any lander, any memory that it has, and any
// concurrent compaction.
func TestStateIsTheFoldOfItsEvents(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w := newStateWorld(t, tables.OrdersCurrent, 2)
		g := newGenerator(rapid.Uint64().Draw(rt, "seed"))
		var orders []*openOrder
		happen := func(n int) {
			for range n {
				var e event.Event
				if len(orders) < 2 || len(orders) < 8 && rapid.IntRange(0, 3).Draw(rt, "new") == 0 {
					var o *openOrder
					o, e = g.placed()
					orders = append(orders, o)
				} else {
					o := rapid.SampledFrom(orders).Draw(rt, "order")
					e = []func(*openOrder) event.Event{g.linesAdded, g.confirmed, g.cancelled}[rapid.IntRange(0, 2).Draw(rt, "kind")](o)
				}
				if rapid.IntRange(0, 9).Draw(rt, "readable") == 0 {
					e.Data = garbled
				}
				partition := partitionOf(e.Stream) % 2
				w.topic[partition] = append(w.topic[partition], e)
				if rapid.IntRange(0, 5).Draw(rt, "again") == 0 {
					w.topic[partition] = append(w.topic[partition], rapid.SampledFrom(w.topic[partition]).Draw(rt, "event"))
				}
			}
		}
		landSome := func() {
			i, partition := rapid.IntRange(0, 1).Draw(rt, "lander"), rapid.Int32Range(0, 1).Draw(rt, "partition")
			w.mustLand(i, partition, rapid.IntRange(1, 6).Draw(rt, "records"))
		}
		for range rapid.IntRange(5, 25).Draw(rt, "steps") {
			step := rapid.SampledFrom([]string{"land", "land", "land", "race", "restart", "compact", "compact under landings"}).Draw(rt, "step")
			happen(rapid.IntRange(0, 8).Draw(rt, "events"))
			switch step {
			case "land":
				landSome()
			case "race": // both have begun at one partition, or at two
				first, second := rapid.Int32Range(0, 1).Draw(rt, "first"), rapid.Int32Range(0, 1).Draw(rt, "second")
				a, b := w.collect(0, first, 4), w.collect(1, second, 6)
				if err := w.land(t.Context(), 0, a); err != nil {
					rt.Fatal(err)
				}
				err := w.land(t.Context(), 1, b)
				if fenced := a.moved() && b.moved() && first == second; errors.Is(err, errFenced) != fenced || err != nil && !fenced {
					rt.Fatalf("the second got %v", err)
				}
			case "restart":
				w.restart(rapid.IntRange(0, 1).Draw(rt, "lander"))
			case "compact":
				w.maintain(func() {})
				if left := deleteFiles(t, w.load()); len(left) > 0 {
					rt.Fatalf("%d files of deletes are left", len(left))
				}
			case "compact under landings":
				w.maintain(func() { landSome(); landSome() })
			}
			w.check(step)
		}
	})
}

// A row that is lost, duplicated or changed by another engine changes the digest of its stream
// only.
func TestTamperedStateIsNoticed(t *testing.T) {
	t.Parallel()
	for name, tamper := range map[string]func(w *stateWorld, tx *table.Transaction, key string) error{
		"lost": func(w *stateWorld, tx *table.Transaction, key string) error {
			deletes, err := w.deletesOf(key)
			if err != nil {
				return err
			}
			return tx.NewRowDelta(nil).AddDeletes(deletes...).Commit(w.t.Context())
		},
		"doubled": func(w *stateWorld, tx *table.Transaction, _ string) error {
			tasks, err := w.load().Scan().PlanFiles(w.t.Context())
			if err != nil {
				return err
			}
			at := slices.IndexFunc(tasks, func(task table.FileScanTask) bool { return task.File.Count() == 1 })
			return tx.AddDataFiles(w.t.Context(), []iceberg.DataFile{tasks[at].File}, nil, table.WithoutDuplicateCheck(), table.WithoutAutoNameMapping())
		},
		"brought back": func(w *stateWorld, tx *table.Transaction, _ string) error {
			rewrite := tx.NewRewrite(nil)
			for _, f := range deleteFiles(w.t, w.load()) {
				rewrite.DeleteFile(f)
			}
			return rewrite.Commit(w.t.Context())
		},
		"changed": func(w *stateWorld, tx *table.Transaction, _ string) error {
			later := w.topic[0][0]
			later.Version = 100
			later.RecordedAt = later.RecordedAt.Add(time.Microsecond)
			_, err := w.landers[0].to.put(w.t.Context(), w.landers[0].writer, record(later, 0, 0))
			if err != nil {
				return err
			}
			b := newBatch(&positions{next: w.offsets()}, time.Time{})
			b.move(0, w.offsets()[0])
			if err := w.landers[0].flushUpserts(w.t.Context(), b, w.landers[0].to, w.landers[0].writer); err != nil {
				return err
			}
			files, err := w.landers[0].writer.Finish(w.t.Context(), b.id)
			if err != nil {
				return err
			}
			return datafile.Stage(w.t.Context(), tx, 2, files, b.deletes, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newStateWorld(t, tables.OrdersCurrent, 1)
			g := newGenerator(3)
			for range 5 {
				w.topic[0] = append(w.topic[0], g.orderEvents()...)
			}
			first := w.topic[0][0].Stream
			w.mustLand(0, 0, len(w.topic[0]))
			w.topic[0] = append(w.topic[0], g.cancelled(&openOrder{id: first}))
			w.mustLand(0, 0, 1)
			w.check("landing")
			before, err := w.lake.Digest(t.Context(), w.decl.Name)
			if err != nil {
				t.Fatal(err)
			}
			tx := w.load().NewTransaction()
			if err := tamper(w, tx, first); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			after, err := w.lake.Digest(t.Context(), w.decl.Name)
			if err != nil {
				t.Fatal(err)
			}
			if after.Streams[first] == before.Streams[first] {
				t.Error("the digest is the same")
			}
			delete(after.Streams, first)
			delete(before.Streams, first)
			if !maps.Equal(after.Streams, before.Streams) {
				t.Errorf("other streams have changed: %v, %v", before.Streams, after.Streams)
			}
		})
	}
}

// deletesOf writes a delete file for one key.
func (w *stateWorld) deletesOf(key string) ([]iceberg.DataFile, error) {
	held := w.landers[0].to.upserts
	have := w.load()
	return datafile.WriteDeletes(w.t.Context(), have, have.Spec(), w.landers[0].writer, "tampering", held.Columns()[0], held.Columns()[0].Name, []string{key})
}

// Rows that are in memory, or certainly do not exist, are not looked up: those of new streams, and
// of streams landed in the same session. All others are looked up once, in one scan.
func TestLookupsAreMinimal(t *testing.T) {
	t.Parallel()
	w := newStateWorld(t, tables.OrdersCurrent, 2)
	g := newGenerator(5)
	o, e := g.placed()
	other, e2 := g.placed()
	w.topic[0] = []event.Event{e, e2, g.confirmed(o), g.cancelled(o), g.linesAdded(other), g.confirmed(other)}
	missing := func(i int, most int) int {
		t.Helper()
		b := w.collect(i, 0, most)
		keys := w.landers[i].to.upserts.LookupKeys(b.from)
		if err := w.land(t.Context(), i, b); err != nil {
			t.Fatal(err)
		}
		w.check("landing")
		return len(keys)
	}
	for what, c := range []struct{ lander, most, looked int }{
		{0, 2, 0}, // new
		{0, 1, 0}, // landed by the same
		{1, 1, 1}, // by the other
		{0, 2, 1}, // the other has landed meanwhile: nothing that was known counts
	} {
		if n := missing(c.lander, c.most); n != c.looked {
			t.Errorf("landing %d: %d keys are looked up, want %d", what, n, c.looked)
		}
	}
}

// More keys than fit into an IN filter are found, too.
func TestManyRowsAreLookedUp(t *testing.T) {
	t.Parallel()
	w := newStateWorld(t, tables.OrdersCurrent, 1)
	g := newGenerator(9)
	var later []event.Event
	for range 3 * maxListedKeys {
		o, e := g.placed()
		w.topic[0] = append(w.topic[0], e)
		later = append(later, g.confirmed(o))
	}
	w.mustLand(0, 0, len(w.topic[0]))
	w.topic[0] = append(w.topic[0], later...)
	w.restart(0)
	w.mustLand(0, 0, len(later))
	w.check("landing")
}

// Duplicate events, whose versions a row has passed, change nothing.
func TestOldVersionsAreIgnored(t *testing.T) {
	t.Parallel()
	w := newStateWorld(t, tables.OrdersCurrent, 1)
	g := newGenerator(11)
	o, placed := g.placed()
	confirmed := g.confirmed(o)
	w.topic[0] = []event.Event{placed, confirmed}
	w.mustLand(0, 0, 2)
	before := w.load().CurrentSnapshot().SnapshotID
	w.topic[0] = append(w.topic[0], confirmed, placed)
	w.mustLand(0, 0, 2)
	w.check("landing")
	if w.load().CurrentSnapshot().SnapshotID != before || w.offsets()[0] != 4 {
		t.Errorf("the table was changed, or is at %v", w.offsets())
	}
	w.restart(0)
	w.topic[0] = append(w.topic[0], confirmed)
	w.mustLand(0, 0, 1)
	w.check("landing anew")
}

// If the first event of an order cannot be decoded, its row has the content of the later ones.
func TestGapInAStream(t *testing.T) {
	t.Parallel()
	w := newStateWorld(t, tables.OrdersCurrent, 1)
	g := newGenerator(13)
	o, placed := g.placed()
	placed.Data = garbled
	w.topic[0] = []event.Event{placed, g.linesAdded(o), g.confirmed(o)}
	for range w.topic[0] {
		w.mustLand(0, 0, 1)
		w.check("landing")
	}
	rows := 0
	err := w.lake.Scan(t.Context(), w.decl.Identifier(), func(rec arrow.RecordBatch) error {
		column := func(name string) arrow.Array { return rec.Column(rec.Schema().FieldIndices(name)[0]) }
		rows += int(rec.NumRows())
		for i := range int(rec.NumRows()) {
			if v := column("version").(*array.Int64).Value(i); v != 3 {
				t.Errorf("version %d", v)
			}
			if s := column("status").(*array.String).Value(i); s != "confirmed" {
				t.Errorf("status %q", s)
			}
			for _, name := range []string{"currency", "ordered_at"} {
				if !column(name).IsNull(i) {
					t.Errorf("%s is known", name)
				}
			}
		}
		return nil
	})
	if err != nil || rows != 1 {
		t.Errorf("%d rows, %v", rows, err)
	}
}
