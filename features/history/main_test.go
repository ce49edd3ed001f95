package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/redis"
)

// All tests share the servers. Each has its own topic and tables.
var (
	broker   kafka.Config
	oneRedis server.Servers
)

func TestMain(m *testing.M) {
	if os.Getenv(clickhouse.EnvListener) != "" { // the engine's process
		clickhousetest.Main(m)
	}
	cfg, stop, err := streamstest.StartBroker()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	broker = cfg
	clickhousetest.Main(m, stop, oneRedis.Stop)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// groupOf returns a group with every aggregate over a source of a topic. suffix makes its tables
// those of one test.
func groupOf(topic, suffix string) *features.Group {
	source := "facts" + suffix
	f := func(name string, a exact.Aggregate, column string, windows ...features.Window) features.Feature {
		return features.Feature{Name: name, Source: source, Aggregate: a, Column: column, Windows: windows,
			Description: "d"}
	}
	const hour, day, lifetime = features.Hour, features.Day, features.Lifetime
	gb := []features.Condition{{Column: "country", Op: features.Equal, Value: exact.TextValue("GB")}}
	where := func(f features.Feature) features.Feature { f.Where = gb; return f }
	top, q, ratio, age := f("top", exact.Top, "country", 2*day, lifetime), f("median", exact.Quantile, "total", 3*day),
		f("share", exact.Sum, "total", hour, 7*day), f("since", exact.Last, "", 7*day, lifetime)
	top.K, q.Q, age.Age = 2, 0.5, true
	ratio.Over = &features.Feature{Name: "n", Source: source, Aggregate: exact.Count, Where: gb}
	return &features.Group{
		Name: "group" + suffix, Version: 1, Entity: "customer_id", Description: "d", Owner: "o",
		Sources: []features.Source{{
			Name: source, Topic: topic,
			Columns: []features.Column{{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "country", Kind: exact.Text},
				{Name: "at", Kind: exact.Number}},
			Project: project,
		}},
		Features: []features.Feature{
			f("n", exact.Count, "", hour, day, 7*day, lifetime), where(f("n_gb", exact.Count, "", day+features.Window(time.Microsecond))),
			f("spent", exact.Sum, "total", hour, 7*day), f("mean", exact.Mean, "total", day), f("dev", exact.StdDev, "total", 5*day),
			f("low", exact.Min, "total", day, lifetime), f("high", exact.Max, "total", day, lifetime),
			f("first", exact.First, "country", day, lifetime), f("last", exact.Last, "country", hour, lifetime),
			f("last_total", exact.Last, "total", 3*day), f("countries", exact.Distinct, "country", day, lifetime),
			top, q, ratio, age,
		},
	}
}

// project makes facts of the value of a test's event: "entity key at total country" or "entity key at
// retracted", in microseconds, separated by semicolons.
func project(e event.Event) ([]features.Fact, error) {
	var facts []features.Fact
	for text := range strings.SplitSeq(string(e.Data), ";") {
		words := strings.Fields(text)
		if len(words) < 4 {
			continue
		}
		var at, total int64
		if _, err := fmt.Sscan(words[2], &at); err != nil {
			return nil, errors.New("at is not a number")
		}
		f := features.Fact{Entity: words[0], Key: words[1], At: time.UnixMicro(at).UTC()}
		if words[3] == "retracted" {
			f.Retracted = true
		} else {
			f.Values = make([]exact.Value, 3)
			if _, err := fmt.Sscan(words[3], &total); err == nil { // otherwise null
				f.Values[0] = exact.IntValue(exact.FromInt64(total).Mul(exact.FromInt64(1_234_567_891)))
			}
			if words[4] != "null" {
				f.Values[1] = exact.TextValue(words[4])
			}
			f.Values[2] = exact.IntValue(exact.FromInt64(total))
		}
		facts = append(facts, f)
	}
	return facts, nil
}

const partitions = 3

// world is a topic, and what its facts should be.
type world struct {
	*fetchtest.Producer
	topic  string
	group  *features.Group
	rnd    *rand.Rand
	now    time.Time // recording time of the last event
	facts  []features.Fact
	ends   [partitions]int64
	number uint64
	events []event.Event
	places []features.Origin // of the events
	kept   [][]features.Fact // versions of which there may be corrections
}

var start = time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)

func newWorld(t testing.TB, seed uint64) *world {
	t.Helper()
	id := strings.ReplaceAll(uuid.NewString(), "-", "")[:8]
	w := &world{topic: "t-" + id, rnd: rand.New(rand.NewPCG(seed, 7)), now: start}
	w.Producer = fetchtest.New(t, strings.Split(broker.Brokers, ","), w.topic)
	must(t, w.CreateTopic(t.Context(), w.topic, partitions))
	w.group = groupOf(w.topic, "_"+id)
	must(t, w.group.Check())
	return w
}

// event returns the record of an event with a value, and remembers its facts.
func (w *world) event(t testing.TB, partition int32, value string) fetchtest.Record {
	t.Helper()
	w.number++
	w.now = w.now.Add(time.Duration(w.rnd.IntN(120)) * time.Second)
	e := event.Event{ID: uuid.Must(uuid.NewV7()), Aggregate: "test", Stream: "s", Version: w.number, Type: "test.Event",
		Data: []byte(value), OccurredAt: w.now, RecordedAt: w.now, Position: event.Position{Sequence: w.number}}
	facts, err := project(e)
	must(t, err)
	for i := range facts {
		if facts[i].Retracted {
			facts[i].Values = make([]exact.Value, 3)
		}
		facts[i].Known = w.now
		facts[i].Origin = features.Origin{Topic: w.topic, Partition: partition, Offset: w.ends[partition], Index: int32(i)}
	}
	w.facts = append(w.facts, facts...)
	w.places = append(w.places, features.Origin{Topic: w.topic, Partition: partition, Offset: w.ends[partition]})
	w.ends[partition]++
	w.events = append(w.events, e)
	return fetchtest.Event(partition, e)
}

// entity returns one of few entities, so that most have many facts.
func (w *world) entity() string { return fmt.Sprintf("c%d", w.rnd.IntN(8)) }

// at returns an event time up to ten days before now: late, and often on an edge of a tile.
func (w *world) at() int64 {
	at := w.now.Add(-time.Duration(w.rnd.Int64N(int64(10 * 24 * time.Hour))))
	if w.rnd.IntN(3) == 0 {
		at = w.now.Add(-time.Duration(w.rnd.Int64N(int64(time.Hour))))
	}
	switch w.rnd.IntN(6) {
	case 0:
		at = at.Truncate(time.Minute)
	case 1:
		at = at.Truncate(24 * time.Hour).Add(-time.Microsecond)
	}
	return at.UnixMicro()
}

// trade commits n events: facts, and corrections and retractions of earlier ones.
func (w *world) trade(t testing.TB, n int) {
	t.Helper()
	countries := []string{"GB", "FR", "DE", "null", "NL"}
	var records []fetchtest.Record
	for range n {
		partition, values := int32(w.rnd.IntN(partitions)), []string(nil)
		for range 1 + w.rnd.IntN(3) {
			entity, key, at := w.entity(), uuid.NewString(), w.at()
			if len(w.kept) > 0 && w.rnd.IntN(5) == 0 {
				old := w.kept[w.rnd.IntN(len(w.kept))][0]
				entity, key, at, partition = old.Entity, old.Key, old.At.UnixMicro(), old.Origin.Partition
			}
			switch w.rnd.IntN(12) {
			case 0:
				values = append(values, fmt.Sprintf("%s %s %d retracted", entity, key, at))
			case 1:
				values = append(values, fmt.Sprintf("%s %s %d null %s", entity, key, at, countries[w.rnd.IntN(5)]))
			default:
				values = append(values, fmt.Sprintf("%s %s %d %d %s", entity, key, at, w.rnd.IntN(2000)-500, countries[w.rnd.IntN(5)]))
			}
			if w.rnd.IntN(4) == 0 {
				break
			}
		}
		// A correction is on the partition of the fact, so all facts of the event must be new or there.
		before := len(w.facts)
		records = append(records, w.event(t, partition, w.consistent(values, partition)))
		for _, f := range w.facts[before:] {
			if !f.Retracted {
				w.kept = append(w.kept, []features.Fact{f})
			}
		}
	}
	must(t, w.Commit(t.Context(), w.topic, records...))
	for p := range w.ends { // the marker of the transaction
		if slices.ContainsFunc(records, func(r fetchtest.Record) bool { return r.Partition == int32(p) }) {
			w.ends[p]++
		}
	}
}

// consistent leaves out values that are corrections of facts on other partitions, and second versions
// in one event.
func (w *world) consistent(values []string, partition int32) string {
	var kept []string
	seen := map[string]bool{}
	for _, v := range values {
		key := strings.Fields(v)[1]
		i := slices.IndexFunc(w.kept, func(f []features.Fact) bool { return f[0].Key == key })
		if seen[key] || i >= 0 && w.kept[i][0].Origin.Partition != partition {
			continue
		}
		seen[key] = true
		kept = append(kept, v)
	}
	return strings.Join(kept, ";")
}

// config returns the configuration of a History that writes often.
func (w *world) config(s *clickhouse.Store) Config {
	return Config{
		Store: s, Groups: []*features.Group{w.group}, Logger: streamstest.Quiet, Brokers: strings.Split(broker.Brokers, ","),
		WriteDeadLetters: func(context.Context, ...streams.DeadLetter) error { return errors.New("unexpected dead letter") },
		CommitInterval:   50 * time.Millisecond, retry: 20 * time.Millisecond, takeover: time.Millisecond,
	}
}

// open returns a History.
func open(t testing.TB, c Config) *History {
	t.Helper()
	h, err := Open(c)
	must(t, err)
	return h
}

// running runs a History until the returned function is called, or the test ends.
func running(t testing.TB, h *History) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// filled blocks until all tables have everything on the topic.
func (w *world) filled(t testing.TB, h *History) {
	t.Helper()
	ends, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	polltest.Until(t, "the tables have everything on the topic", func() bool {
		_, reflected, err := h.Vectors(t.Context(), w.group.ID(), nil, w.now, time.Time{})
		if err != nil {
			return false // the tables are being created
		}
		for _, r := range reflected {
			for p, end := range ends {
				if r.Topic == w.topic && r.Next[p] < end {
					return false
				}
			}
		}
		return true
	})
}

// check compares vectors with those of all facts, at random times.
func (w *world) check(t testing.TB, h *History, n int) {
	t.Helper()
	for range n {
		entities := []string{w.entity(), "unknown", w.entity(), w.entity()}
		at := time.UnixMicro(w.at() + int64(w.rnd.IntN(3))*time.Hour.Microseconds())
		if w.rnd.IntN(3) == 0 { // on an edge of a window
			f := w.facts[w.rnd.IntN(len(w.facts))]
			at = f.At.Add(time.Duration([]int64{0, -1, int64(time.Hour), int64(24 * time.Hour), int64(7*24*time.Hour) - 1000}[w.rnd.IntN(5)]))
		}
		var known time.Time
		if w.rnd.IntN(4) == 0 {
			known = w.facts[w.rnd.IntN(len(w.facts))].Known
		}
		have, _, err := h.Vectors(t.Context(), w.group.ID(), entities, at, known)
		must(t, err)
		w.compare(t, have, entities, w.facts, at, known)
	}
}

func (w *world) compare(t testing.TB, have []features.Vector, entities []string, facts []features.Fact, at, known time.Time) {
	t.Helper()
	at = event.Time(at)
	for i, e := range entities {
		want := features.Evaluate(w.group, map[string][]features.Fact{w.group.Sources[0].Name: facts}, e, at, known)
		if have[i].Entity != e || have[i].Found != want.Found {
			t.Fatalf("vector of %s at %s known %s: found %v of %s, want %v", e, at, known, have[i].Found, have[i].Entity, want.Found)
		}
		for j, o := range w.group.Outputs() {
			if !have[i].Values[j].Equal(want.Values[j]) {
				t.Fatalf("%s of %s at %s known %s is %+v, want %+v", o.Name, e, at, known, have[i].Values[j], want.Values[j])
			}
		}
	}
}

// rows returns the number of rows of a table.
func rows(t testing.TB, s *clickhouse.Store, table clickhouse.Table, what string) int64 {
	t.Helper()
	r, err := s.Query(t.Context(), "SELECT toInt64("+what+") FROM "+table.FullName())
	must(t, err)
	var n int64
	for r.Next() {
		must(t, r.Scan(&n))
	}
	must(t, errors.Join(r.Err(), r.Close()))
	return n
}
