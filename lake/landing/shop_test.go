package landing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/tables"
)

const partitions = 4

// shop is a log with the events of a shop, and a record of what was put there.
type shop struct {
	brokers  []string
	producer *fetchtest.Producer
	seal     string // of the records, if any

	mu     sync.Mutex
	events map[event.Aggregate][]event.Event
	gen    *generator
}

// newShop starts a broker with empty topics.
func newShop(t testing.TB) *shop {
	t.Helper()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	brokers := []string{b.Addr()}
	s := &shop{
		brokers: brokers, producer: fetchtest.New(t, brokers, "shop-"+b.Boot()),
		events: map[event.Aggregate][]event.Event{}, gen: newGenerator(7),
	}
	for _, agg := range event.Aggregates() {
		if err := s.producer.CreateTopic(t.Context(), agg.Topic, partitions); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// trade generates a number of orders, in several transactions per topic, some of which are aborted.
func (s *shop) trade(ctx context.Context, orders int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for agg, events := range s.gen.history(orders) {
		for chunk := range slices.Chunk(events, 200) {
			records := make([]fetchtest.Record, len(chunk))
			for i, e := range chunk {
				records[i] = s.record(e)
			}
			if s.gen.rnd.IntN(4) == 0 {
				if err := s.producer.Abort(ctx, agg.Topic, records[:1+len(records)/2]...); err != nil {
					return err
				}
			}
			if err := s.producer.Commit(ctx, agg.Topic, records...); err != nil {
				return err
			}
		}
		s.events[agg] = append(s.events[agg], events...)
	}
	return nil
}

func (s *shop) record(e event.Event) fetchtest.Record {
	r := fetchtest.Event(partitionOf(e.Stream), e)
	if s.seal != "" {
		r.Headers = append(r.Headers, e.Seal(s.seal))
	}
	return r
}

// records returns the records of an aggregate's events so far.
func (s *shop) records(agg event.Aggregate) (all []fetchtest.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events[agg] {
		all = append(all, s.record(e))
	}
	return all
}

func partitionOf(stream string) int32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(stream))
	return int32(h.Sum32() % partitions)
}

func (s *shop) mustTrade(t testing.TB, orders int) {
	t.Helper()
	if err := s.trade(t.Context(), orders); err != nil {
		t.Fatal(err)
	}
}

// all iterates over the events of an aggregate.
func (s *shop) all(agg event.Aggregate) iter.Seq2[event.Event, error] {
	return func(yield func(event.Event, error) bool) {
		for _, e := range s.events[agg] {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// landedHere returns the aggregates whose topics feed a lake's tables.
func landedHere(l *lake.Lake) (all []event.Aggregate) {
	for _, agg := range event.Aggregates() {
		if slices.ContainsFunc(l.Declared(), func(decl declare.Table) bool { return decl.Topic == agg.Topic }) {
			all = append(all, agg)
		}
	}
	return all
}

// landed waits until the tables have everything that was put into the topics.
func (s *shop) landed(t testing.TB, l *lake.Lake) {
	t.Helper()
	for _, agg := range landedHere(l) {
		ends, err := s.producer.Ends(t.Context(), agg.Topic)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			applied, err := l.Applied(t.Context(), agg.Topic)
			if err != nil {
				return err
			}
			for p, end := range ends {
				if end > 0 && applied[p] != end {
					return fmt.Errorf("%s/%d: applied %d of %d", agg.Topic, p, applied[p], end)
				}
			}
			return nil
		})
	}
}

// behind returns how many records of orders the slowest table has not landed yet.
func (s *shop) behind(ctx context.Context, l *lake.Lake) (n int64, err error) {
	ends, err := s.producer.Ends(ctx, event.Order.Topic)
	if err != nil {
		return 0, err
	}
	applied, err := l.Applied(ctx, event.Order.Topic)
	for p, end := range ends {
		n += end - applied[p]
	}
	return n, err
}

// check compares the tables with the topics: every event and every line once, with its content and
// its origin.
func (s *shop) check(t testing.TB, l *lake.Lake) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, decl := range l.Declared() {
		agg := decl.Events
		if agg.Name == "" {
			s.checkDerived(t, l, decl)
			continue
		}
		want := digest.New()
		for _, e := range s.events[agg] {
			want.AddEvent(e)
		}
		have, err := l.EventsDigest(t.Context(), agg)
		if err != nil {
			t.Fatal(err)
		}
		if have.Total() != want.Total() {
			t.Errorf("events of %s: table %v, topic %v", agg.Name, have.Total(), want.Total())
		}
	}
	states, err := l.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range states {
		checkOrigins(t, l, state)
	}
}

// checkDerived compares a table with the expected rows, stream by stream.
func (s *shop) checkDerived(t testing.TB, l *lake.Lake, decl declare.Table) {
	t.Helper()
	name := decl.Name
	want, err := decl.Sums.Expect(s.all(decl.Derived))
	if err != nil {
		t.Fatal(err)
	}
	have, err := l.Digest(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if maps.Equal(have.Streams, want.Streams) {
		return
	}
	t.Errorf("%s: table %v, topic %v", name, have.Total(), want.Total())
	for stream, w := range want.Streams {
		if h := have.Streams[stream]; h != w {
			t.Errorf("%s: of %s the table has %v, the topic %v", name, stream, h, w)
			return
		}
	}
}

// checkOrigins reports duplicate rows, and rows at or beyond the offsets in the table's properties.
func checkOrigins(t testing.TB, l *lake.Lake, state lake.TableState) {
	t.Helper()
	seen := map[string]bool{}
	var rows int64
	err := l.Scan(t.Context(), declare.Identifier(state.Name), func(rec arrow.RecordBatch) error {
		column := func(name string) arrow.Array { return rec.Column(rec.Schema().FieldIndices(name)[0]) }
		for i := range int(rec.NumRows()) {
			partition := column("partition").(*array.Int32).Value(i)
			offset := column("offset").(*array.Int64).Value(i)
			place := fmt.Sprint(column("topic").(*array.String).Value(i), "/", partition, "/", offset)
			if state.Name == tables.OrderLines.Name {
				place += fmt.Sprint("#", column("line").(*array.Int32).Value(i))
			}
			if seen[place] {
				t.Errorf("%s: %s is duplicated", state.Name, place)
			}
			seen[place] = true
			if offset >= state.Offsets[partition] {
				t.Errorf("%s: row of %s, and the table's offset is %d", state.Name, place, state.Offsets[partition])
			}
			rows++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if rows != state.Rows {
		t.Errorf("%s: %d rows, and the snapshot says %d", state.Name, rows, state.Rows)
	}
}

// checkFiles reports data files that no table refers to and no crash explains.
func checkFiles(t testing.TB, l *lake.Lake) {
	t.Helper()
	for _, decl := range l.Declared() {
		have, err := l.Load(t.Context(), decl.Identifier())
		if err != nil {
			t.Fatal(err)
		}
		used := map[string]bool{}
		tasks, err := have.Scan(table.WithMaxConcurrency(1)).PlanFiles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			used[filepath.Base(task.File.FilePath())] = true
		}
		for _, f := range deleteFiles(t, have) {
			used[filepath.Base(f.FilePath())] = true
		}
		for _, name := range filesBelow(t, have, "data") {
			if !used[name] {
				t.Errorf("%s: data file %s belongs to no snapshot", decl.Name, name)
			}
		}
	}
}

// deleteFiles returns all delete files of a table, including those that apply to nothing.
func deleteFiles(t testing.TB, have *table.Table) (all []iceberg.DataFile) {
	t.Helper()
	head := have.CurrentSnapshot()
	if head == nil {
		return nil
	}
	files, err := have.FS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := head.Manifests(files)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifests {
		for e, err := range m.Entries(files, true) {
			if err != nil {
				t.Fatal(err)
			}
			if e.DataFile().ContentType() != iceberg.EntryContentData {
				all = append(all, e.DataFile())
			}
		}
	}
	return all
}

// filesBelow lists the files in one of a table's folders.
func filesBelow(t testing.TB, have *table.Table, folder string) (names []string) {
	t.Helper()
	files, err := have.FS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = files.(io.ListableIO).WalkDir(have.Location()+"/"+folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, filepath.Base(path))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

func openLake(t testing.TB, c lake.Config) *lake.Lake {
	t.Helper()
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// runConfig has short intervals, and fails on dead letters.
func (s *shop) runConfig() Config {
	var values *registry.Decoder
	if s.seal != "" {
		values = registry.NewDecoder(nil)
		values.CheckSeals(testSeals(s.seal))
	}
	return Config{
		Brokers:          s.brokers,
		Decoder:          values,
		WriteDeadLetters: func(_ context.Context, p []DeadLetter) error { return fmt.Errorf("unexpected: %w", p[0].Reason) },
		CommitInterval:   40 * time.Millisecond,
	}
}

// start runs the landers. The returned function stops them and returns Run's error. They also stop
// with the test.
func start(t testing.TB, l *lake.Lake, c Config) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- Run(ctx, l, c) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func mustStop(t testing.TB, stop func() error) {
	t.Helper()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// eventually retries until there is no error, and fails with the last one after three minutes,
// which only a hang should exceed. It retries less and less often, because most tries read the
// metadata of several tables.
func eventually(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.After(3 * time.Minute)
	for interval := 10 * time.Millisecond; ; interval = min(interval*5/4, 100*time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-time.After(interval):
		case <-deadline:
			t.Fatal(err)
		}
	}
}

// quiet returns a logger that discards everything, unless MILLRACE_TEST_LOG is set.
func quiet() *slog.Logger {
	if os.Getenv("MILLRACE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// logged is a logger whose output can be inspected.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) has(s string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !strings.Contains(l.buf.String(), s) {
		return fmt.Errorf("the log does not say %q", s)
	}
	return nil
}

// last returns which of some texts is in the newest line with one of them, among lines with a mark.
func (l *logged) last(mark string, texts ...string) (found string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		for _, text := range texts {
			if strings.Contains(line, mark) && strings.Contains(line, text) {
				found = text
			}
		}
	}
	return found
}
