package flags

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/polltest"
	server "github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

// apache is the Apache Kafka of the tests. One test at a time uses it, because the topics are those of
// every reader and writer.
var apache server.Cluster

var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) {
	if brokers := os.Getenv(victim); brokers != "" {
		os.Exit(beVictim(brokers))
	}
	os.Exit(process.RunTests(m, apache.Stop))
}

// each runs a test on an embedded broker and on Apache Kafka, with new topics.
func each(t *testing.T, test func(t *testing.T, cfg kafka.Config)) {
	t.Helper()
	for name, brokers := range map[string]func(testing.TB) string{"embedded": server.Embedded, "real": apache.Brokers} {
		t.Run(name, func(t *testing.T) {
			cfg := kafka.Config{Brokers: brokers(t), ClientID: "test", Logger: quiet}
			recreate(t, cfg)
			test(t, cfg)
		})
	}
}

// recreate creates the topics, and deletes existing ones first.
func recreate(t testing.TB, cfg kafka.Config) {
	t.Helper()
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.RecreateTopics(t.Context(), Topics()...); err != nil {
		t.Fatal(err)
	}
}

// follow runs a reader as a process would, until the test ends.
func follow(t testing.TB, cfg kafka.Config) *Reader {
	t.Helper()
	r := NewReader(cfg, quiet)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	if err := r.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// writer returns a writer with a reader, as a process has.
func writer(t testing.TB, cfg kafka.Config, declared ...Declaration) *Writer {
	t.Helper()
	w, err := NewWriter(WriterConfig{Kafka: cfg, TransactionalID: "flags-" + t.Name(), Reader: follow(t, cfg), Declared: declared,
		Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// told is an update, and when a watcher was told of it.
type told struct {
	Update
	at time.Time
}

// updates returns the updates of a reader after the present one.
func updates(t testing.TB, r *Reader) <-chan told {
	t.Helper()
	got := make(chan told, 1000)
	first := true
	t.Cleanup(r.Watch(func(u Update) {
		if !first {
			got <- told{u, time.Now()}
		}
		first = false
	}))
	return got
}

// value returns a pointer to a value.
func value[T any](v T) *T { return &v }

// set sets a flag and fails the test if that fails.
func set(t testing.TB, w *Writer, e Edit) Flag {
	t.Helper()
	f, err := w.Set(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFlags changes a flag in one process and follows it in another.
func TestFlags(t *testing.T) {
	each(t, func(t *testing.T, cfg kafka.Config) {
		w, other := writer(t, cfg), follow(t, cfg)
		told := updates(t, other)
		var produced time.Time // the first record of the last change
		w.step = func(_ context.Context, s step) error {
			if s == stepValue {
				produced = time.Now()
			}
			return nil
		}
		// expect waits for the other process to be told of a change.
		expect := func(name string) {
			t.Helper()
			u := <-told
			if u.State != Current || !slices.Equal(u.Changed, []string{name}) {
				t.Fatalf("the other process was told %+v, want a change of %s", u, name)
			}
			t.Logf("the other process was told %v after the records were produced", u.at.Sub(produced).Round(time.Microsecond))
		}
		const name = "cart.limit"
		if _, ok := other.Get(name); ok {
			t.Fatal("the flag exists before it was set")
		}
		first := set(t, w, Edit{Name: name, Type: Int, Description: value("Lines of a cart"), Value: json.RawMessage(" 10 "),
			Revision: value(int64(Absent)), By: "anna", Reason: "start"})
		expect(name)
		got, ok := other.Get(name)
		if !ok || string(got.Value) != "10" || got.Revision != first.Revision || got.Change.By != "anna" || got.Description != "Lines of a cart" {
			t.Fatalf("the other process has %+v, want %+v", got, first)
		}
		if mine, _ := w.cfg.Reader.Get(name); mine.Revision != first.Revision {
			t.Errorf("the writer's process has revision %d after the answer, want %d", mine.Revision, first.Revision)
		}

		// A change with the right revision, and then one with the same.
		second := set(t, w, Edit{Name: name, Value: json.RawMessage("20"), Revision: &first.Revision, By: "ben"})
		expect(name)
		if second.Revision <= first.Revision || second.Description != "Lines of a cart" || second.Type != Int {
			t.Errorf("the second change made %+v of %+v", second, first)
		}
		for what, e := range map[string]Edit{
			"an old revision":   {Name: name, Value: json.RawMessage("30"), Revision: &first.Revision},
			"as a new flag":     {Name: name, Value: json.RawMessage("30"), Revision: value(int64(Absent))},
			"of an unknown one": {Name: "other", Type: Int, Value: json.RawMessage("30"), Revision: value(int64(0))},
		} {
			if _, err := w.Set(t.Context(), e); !errors.Is(err, ErrConflict) {
				t.Errorf("%s: %v, want ErrConflict", what, err)
			}
		}
		for what, e := range map[string]Edit{
			"another type":  {Name: name, Type: String, Value: json.RawMessage(`"x"`)},
			"no type":       {Name: "other", Value: json.RawMessage("1")},
			"no value":      {Name: name},
			"two values":    {Name: name, Value: json.RawMessage("1"), Rollout: []Share{{"a", json.RawMessage("1"), Buckets}}},
			"a wrong value": {Name: name, Value: json.RawMessage("1.5")},
			"a wrong name":  {Name: "Cart", Type: Int, Value: json.RawMessage("1")},
			"a half":        {Name: name, Rollout: []Share{{"a", json.RawMessage("1"), Buckets / 2}}},
		} {
			if _, err := w.Set(t.Context(), e); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v, want ErrInvalid", what, err)
			}
		}

		// A rollout, which a new process reads, too.
		shares := []Share{{"few", json.RawMessage("20"), 9000}, {"many", json.RawMessage("50"), 1000}}
		third := set(t, w, Edit{Name: name, Rollout: shares, By: "ben", Reason: "try 50"})
		expect(name)
		if f, _ := other.Get(name); f.Value != nil || f.Rollout[1].Share() != 1000 {
			t.Errorf("the other process has %+v, want a rollout", f)
		}
		if f, _ := follow(t, cfg).Get(name); f.Revision != third.Revision {
			t.Errorf("a new process has revision %d, want %d", f.Revision, third.Revision)
		}

		if err := w.Delete(t.Context(), name, &first.Revision, "", ""); !errors.Is(err, ErrConflict) {
			t.Errorf("deleting an old revision: %v, want ErrConflict", err)
		}
		if err := w.Delete(t.Context(), name, &third.Revision, "cleo", "done"); err != nil {
			t.Fatal(err)
		}
		expect(name)
		if f, ok := other.Get(name); ok {
			t.Errorf("after it was deleted, the other process has %+v", f)
		}
		if err := w.Delete(t.Context(), name, nil, "", ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("deleting it again: %v, want ErrNotFound", err)
		}
		// Its type may be another one now.
		set(t, w, Edit{Name: name, Type: String, Value: json.RawMessage(`"ten"`)})
		expect(name)

		entries, err := w.History(t.Context(), name, 0)
		if err != nil || len(entries) != 5 {
			t.Fatalf("the history is %+v, %v; want five changes", entries, err)
		}
		for i, want := range []struct {
			by, reason string
			before     int64
			deleted    bool
		}{
			{"anna", "start", Absent, false}, {"ben", "", first.Revision, false}, {"ben", "try 50", second.Revision, false},
			{"cleo", "done", third.Revision, true}, {"", "", Absent, false},
		} {
			e := entries[i]
			if e.Change.By != want.by || e.Change.Reason != want.reason || e.Before != want.before || (e.After == nil) != want.deleted {
				t.Errorf("change %d is %+v, want %+v", i, e, want)
			}
		}
		if last, err := w.History(t.Context(), name, 2); err != nil || len(last) != 2 || last[1].Change != entries[4].Change {
			t.Errorf("the last two changes are %+v, %v", last, err)
		}
		if _, err := w.History(t.Context(), "never.set", 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("the history of an unknown flag: %v, want ErrNotFound", err)
		}
	})
}

// TestConcurrentSets counts with a flag in several processes at once. No change is lost, and each entry
// of the history is of the revision that it names.
func TestConcurrentSets(t *testing.T) {
	each(t, func(t *testing.T, cfg kafka.Config) {
		const processes, each = 3, 4
		var all sync.WaitGroup
		for range processes {
			w := writer(t, cfg)
			all.Go(func() {
				for done := 0; done < each; {
					present, ok := w.cfg.Reader.Get("count")
					revision, n := int64(Absent), 0
					if ok {
						revision = present.Revision
						if err := json.Unmarshal(present.Value, &n); err != nil {
							t.Error(err)
							return
						}
					}
					next, err := json.Marshal(n + 1)
					if err == nil {
						_, err = w.Set(t.Context(), Edit{Name: "count", Type: Int, Value: next, Revision: &revision})
					}
					if err == nil {
						done++
					} else if !errors.Is(err, ErrConflict) {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		w := writer(t, cfg)
		if f, _ := w.cfg.Reader.Get("count"); string(f.Value) != "12" {
			t.Errorf("the count is %s, want %d", f.Value, processes*each)
		}
		entries, err := w.History(t.Context(), "count", 0)
		if err != nil || len(entries) != processes*each {
			t.Errorf("the history has %d changes, %v; want %d", len(entries), err, processes*each)
		}
		before := int64(-2)
		for _, e := range entries {
			if e.Before <= before {
				t.Errorf("a change of revision %d is behind one of %d", e.Before, before)
			}
			before = e.Before
		}
	})
}

// TestLastKnownFlagsHold stops the brokers.
func TestLastKnownFlagsHold(t *testing.T) {
	dir := t.TempDir()
	broker, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	cfg := kafka.Config{Brokers: broker.Addr(), ClientID: "test", Logger: quiet}
	recreate(t, cfg)
	w := writer(t, cfg)
	f := set(t, w, Edit{Name: "a", Type: Bool, Value: json.RawMessage("true")})
	told := updates(t, w.cfg.Reader)
	if err := broker.Close(); err != nil {
		t.Fatal(err)
	}
	if u := <-told; u.State != Stale || u.Changed != nil {
		t.Errorf("told %+v, want that the flags are stale", u)
	}
	if got, ok := w.cfg.Reader.Get("a"); !ok || got.Revision != f.Revision {
		t.Errorf("without brokers, the flag is %+v", got)
	}
	late := NewReader(cfg, quiet)
	if _, ok := late.Get("a"); ok || late.State() != Starting {
		t.Error("a reader that has read nothing has flags")
	}
	again, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir, Addr: cfg.Brokers, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}()
	if u := <-told; u.State != Current || u.Changed != nil {
		t.Errorf("told %+v, want that the flags are current again", u)
	}
	w.cfg.TransactionalID += again.Boot()
	set(t, w, Edit{Name: "a", Value: json.RawMessage("false")})
	if u := <-told; !slices.Equal(u.Changed, []string{"a"}) {
		t.Errorf("told %+v, want the change", u)
	}
}

// TestInvalidRecords writes records that are not flags beside those that are.
func TestInvalidRecords(t *testing.T) {
	each(t, func(t *testing.T, cfg kafka.Config) {
		w := writer(t, cfg)
		good := set(t, w, Edit{Name: "a", Type: Bool, Value: json.RawMessage("true")})
		p, err := kafka.NewProducer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, r := range []struct{ key, value string }{{"a", "damaged"}, {"\xff\x00", "x"}, {"b", ""}} {
			for _, topic := range []string{Topic, HistoryTopic} {
				if err := p.Produce(t.Context(), kafka.Record{Topic: topic, Key: []byte(r.key), Value: []byte(r.value)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		// What comes after them is read.
		set(t, w, Edit{Name: "c", Type: Bool, Value: json.RawMessage("true")})
		if f, _ := w.cfg.Reader.Get("a"); f.Revision != good.Revision {
			t.Errorf("the flag is %+v, want its last valid value", f)
		}
		if n := w.cfg.Reader.Invalid(); n != 3 {
			t.Errorf("%d records were skipped, want 3", n)
		}
		if entries, err := w.History(t.Context(), "a", 0); err != nil || len(entries) != 1 {
			t.Errorf("the history is %+v, %v; want one change", entries, err)
		}
		if f := set(t, w, Edit{Name: "a", Value: json.RawMessage("false"), Revision: &good.Revision}); f.Revision <= good.Revision {
			t.Errorf("the flag was set to %+v", f)
		}
	})
}

// TestTopicIsCreatedAgain deletes the topics with their records, as after a restore.
func TestTopicIsCreatedAgain(t *testing.T) {
	each(t, func(t *testing.T, cfg kafka.Config) {
		w := writer(t, cfg)
		set(t, w, Edit{Name: "a", Type: Bool, Value: json.RawMessage("true")})
		set(t, w, Edit{Name: "b", Type: Bool, Value: json.RawMessage("true")})
		recreate(t, cfg)
		polltest.Until(t, "the old flags are gone", func() bool { return len(w.cfg.Reader.All()) == 0 })
		set(t, w, Edit{Name: "a", Type: Int, Value: json.RawMessage("1"), Revision: value(int64(Absent))})
	})
}

// TestInterruptedChanges fails a change at each step. It is made once or not at all, and its history
// agrees.
func TestInterruptedChanges(t *testing.T) {
	failed := errors.New("failed by the test")
	for _, c := range []struct {
		at   step
		made bool
	}{{stepRead, false}, {stepValue, false}, {stepCommitted, true}} {
		t.Run(string(c.at), func(t *testing.T) {
			each(t, func(t *testing.T, cfg kafka.Config) {
				w := writer(t, cfg)
				fails := 1
				w.step = func(_ context.Context, s step) error {
					if s == c.at && fails > 0 {
						fails--
						return failed
					}
					return nil
				}
				_, err := w.Set(t.Context(), Edit{Name: "a", Type: Int, Value: json.RawMessage("1")})
				if c.made != (err == nil) || err != nil && !errors.Is(err, failed) {
					t.Errorf("the change answered %v", err)
				}
				want := 0
				if c.made {
					want = 1
				}
				check := func(what string) {
					t.Helper()
					reader := follow(t, cfg)
					entries, err := w.History(t.Context(), "a", 0)
					if err != nil && !errors.Is(err, ErrNotFound) {
						t.Fatal(err)
					}
					if n := len(reader.All()); n != want || len(entries) != want {
						t.Errorf("%s: %d flags and %d changes, want %d of each", what, n, len(entries), want)
					}
				}
				check("after the failure")
				set(t, w, Edit{Name: "a", Type: Int, Value: json.RawMessage("2")})
				if f, _ := w.cfg.Reader.Get("a"); string(f.Value) != "2" {
					t.Errorf("the next change made %s of it", f.Value)
				}
				entries, err := w.History(t.Context(), "a", 0)
				if err != nil || len(entries) != want+1 {
					t.Errorf("the history is %+v, %v; want %d changes", entries, err, want+1)
				}
			})
		})
	}
}

// TestLimits checks what a reader accepts when somebody else has written too much.
func TestLimits(t *testing.T) {
	t.Parallel()
	r := NewReader(kafka.Config{}, quiet)
	text := json.RawMessage(`"` + strings.Repeat("x", maxValue-2) + `"`)
	b, err := encode(Flag{Type: String, Value: text, Change: someChange})
	if err != nil {
		t.Fatal(err)
	}
	for i := range MaxFlags + 10 {
		r.apply(fetch.Record{Key: fmt.Append(nil, "flag-", i), Value: b})
	}
	if n := len(r.fold); n != maxBytes/len(b) || r.size > maxBytes {
		t.Errorf("%d flags with %d bytes are held, want %d", n, r.size, maxBytes/len(b))
	}
	if n := r.Invalid(); n != int64(MaxFlags+10-maxBytes/len(b)) {
		t.Errorf("%d records were skipped", n)
	}
	r.reset()
	small, err := encode(Flag{Type: Bool, Value: json.RawMessage("true"), Change: someChange})
	if err != nil {
		t.Fatal(err)
	}
	for i := range MaxFlags + 10 {
		r.apply(fetch.Record{Key: fmt.Append(nil, "flag-", i), Value: small})
	}
	if n := len(r.fold); n != MaxFlags {
		t.Errorf("%d flags are held, want %d", n, MaxFlags)
	}
}
