package online_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
)

func project(event.Event) ([]features.Fact, error) { return nil, nil }

// lasting has every aggregate over nested windows, two sources, and lifetimes.
func lasting() *features.Group {
	windows := []features.Window{features.Day, features.Hour, features.Week, features.Lifetime}
	gb := []features.Condition{{Column: "country", Op: features.Equal, Value: exact.TextValue("GB")}}
	large := []features.Condition{
		{Column: "total", Op: features.More, Value: exact.IntValue(exact.FromInt64(0))},
		{Column: "country", Op: features.In, Values: []exact.Value{exact.TextValue("GB"), exact.TextValue("DE")}},
	}
	g := &features.Group{
		Name: "lasting", Version: 1, Entity: "customer_id", Identity: features.Customers, Description: "d", Owner: "o",
		Sources: []features.Source{
			{Name: "orders", Topic: "orders", Project: project, Columns: []features.Column{
				{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "country", Kind: exact.Text},
				{Name: "items", Kind: exact.Number}, {Name: "channel", Kind: exact.Text}, {Name: "code", Kind: exact.Text},
			}},
			{Name: "visits", Topic: "behavior", Project: project, Columns: []features.Column{
				{Name: "seconds", Kind: exact.Number, Scale: 6},
			}},
		},
	}
	add := func(f features.Feature) {
		if f.Source == "" {
			f.Source = "orders"
		}
		f.Name, f.Windows = fmt.Sprintf("f%d", len(g.Features)), windows
		g.Features = append(g.Features, f)
	}
	for _, where := range [][]features.Condition{nil, gb, large} {
		add(features.Feature{Aggregate: exact.Count, Where: where})
		for a := exact.Sum; a <= exact.Quantile; a++ {
			for _, column := range []string{"total", "items"} {
				add(features.Feature{Aggregate: a, Column: column, Where: where, K: 2, Q: 0.6})
			}
		}
		for _, a := range []exact.Aggregate{exact.First, exact.Last} {
			add(features.Feature{Aggregate: a, Age: true, Where: where})
		}
		for _, a := range []exact.Aggregate{exact.First, exact.Last, exact.Distinct, exact.Top} {
			for _, column := range []string{"country", "channel", "code"} {
				add(features.Feature{Aggregate: a, Column: column, Where: where, K: 3})
			}
		}
		add(features.Feature{Aggregate: exact.Sum, Column: "total", Where: where, Over: &features.Feature{
			Name: "n", Source: "orders", Aggregate: exact.Count}})
		add(features.Feature{Aggregate: exact.Count, Where: where, Over: &features.Feature{
			Name: "n", Source: "visits", Aggregate: exact.Sum, Column: "seconds"}})
	}
	add(features.Feature{Source: "visits", Aggregate: exact.Mean, Column: "seconds"})
	return g
}

// passing has finite windows only, so that its facts are dropped.
func passing() *features.Group {
	return &features.Group{
		Name: "passing", Version: 1, Entity: "customer_id", Identity: features.Customers, Description: "d", Owner: "o",
		Sources: []features.Source{{Name: "clicks", Topic: "behavior", Project: project, Columns: []features.Column{
			{Name: "page", Kind: exact.Text},
		}}},
		Features: []features.Feature{
			{Name: "clicks", Source: "clicks", Aggregate: exact.Count, Windows: []features.Window{features.Hour, features.Day}},
			{Name: "last", Source: "clicks", Aggregate: exact.Last, Column: "page", Windows: []features.Window{features.Day}},
		},
	}
}

var start = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// scene is a log that is being written and what its reader has applied.
type scene struct {
	store testStore
	log   map[string][]features.Fact // by source: the facts applied so far
	next  map[string][]int64         // by topic and partition
	keys  map[string]features.Fact   // the last version, by source, entity and key
	now   time.Time
	links personstest.Links
	// pending are facts of the identity graph that are on the log, and not applied yet, by partition.
	pending [][]features.Fact
}

func newScene(store testStore) *scene {
	return &scene{store: store, log: map[string][]features.Fact{}, keys: map[string]features.Fact{}, now: start,
		next:    map[string][]int64{"orders": {0, 0, 0}, "behavior": {0, 0}, persons.Source.Topic: {0, 0}},
		pending: make([][]features.Fact, 2)}
}

// reread returns a store that has read the snapshot of another one.
func reread(t rapid.TB, from *online.Store, o online.Options) *online.Store {
	var file bytes.Buffer
	if err := from.Write(&file); err != nil {
		t.Fatal(err)
	}
	s, err := online.New(from.Groups(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Read(&file, int64(file.Len())); err != nil {
		t.Fatal(err)
	}
	return s
}

// fact generates a new fact, or a new version of an earlier one.
func (s *scene) fact(t *rapid.T, source string) features.Fact {
	k := rapid.IntRange(0, 30).Draw(t, "key")
	key := fmt.Sprintf("k%d", k)
	if k%2 == 0 { // as an order's id, and a line of it
		key = fmt.Sprintf("00000000-0000-7000-8000-%012x", k/4)
		if k%4 == 0 {
			key += "/1"
		}
	}
	entity := fmt.Sprintf("c%d", rapid.IntRange(0, 2).Draw(t, "entity")) // may share the key with others
	f, again := s.keys[source+entity+key]
	if !again {
		edges := []time.Duration{0, 0, 0, time.Microsecond, time.Minute, time.Hour, 3 * time.Hour, 24 * time.Hour,
			48 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour}
		f = features.Fact{Entity: entity, Key: key,
			At: s.now.Add(-rapid.SampledFrom(edges).Draw(t, "late"))}
	}
	f.Retracted = rapid.IntRange(0, 5).Draw(t, "retracted") == 0
	text := func() exact.Value {
		if n := rapid.IntRange(0, 4).Draw(t, "text"); n > 0 {
			return exact.TextValue([]string{"", "GB", "DE", "FR"}[n-1])
		}
		return exact.Value{}
	}
	number := func() exact.Value {
		switch rapid.IntRange(0, 60).Draw(t, "kind") {
		case 0:
			return exact.Value{}
		case 1: // more than 64 bits
			return exact.IntValue(exact.FromMoney(rapid.Int64().Draw(t, "units"), 5))
		case 2:
			return exact.IntValue(exact.FromInt64(rapid.Int64().Draw(t, "any")))
		}
		return exact.IntValue(exact.FromInt64(int64(rapid.IntRange(-3, 3).Draw(t, "number")) * 1_250_000_001))
	}
	switch source {
	case "orders":
		f.Values = []exact.Value{number(), text(), number(), text(), text()}
	case "visits":
		f.Values = []exact.Value{number()}
	case "clicks":
		f.Values = []exact.Value{text()}
	}
	return f
}

// relink generates changes of the identity graph, and the next batch of one of its partitions.
func (s *scene) relink(t *rapid.T) online.Batch {
	node := func(i int) identity.Node { return identity.Node(fmt.Sprintf("customer:c%d", i)) }
	for range rapid.IntRange(0, 3).Draw(t, "changes") {
		a := rapid.IntRange(0, 3).Draw(t, "a")
		b := (a + rapid.IntRange(1, 3).Draw(t, "b")) % 4
		for _, f := range s.links.Change(node(a), node(b), rapid.IntRange(0, 2).Draw(t, "joined") > 0, s.now) {
			p := int(xx(f.Entity)) % len(s.pending)
			s.pending[p] = append(s.pending[p], f)
		}
	}
	p := rapid.IntRange(0, len(s.pending)-1).Draw(t, "partition")
	first := s.next[persons.Source.Topic][p]
	facts := s.pending[p]
	s.pending[p] = nil
	for i := range facts {
		facts[i].Origin = features.Origin{Topic: persons.Source.Topic, Partition: int32(p), Offset: first + int64(i)}
	}
	return online.Batch{Topic: persons.Source.Topic, Partition: int32(p), First: first,
		After: feed.Position{Next: first + int64(len(facts)), AsOf: s.now},
		Facts: map[string][]features.Fact{persons.Source.Name: facts}}
}

// batch generates the next batch of a partition.
func (s *scene) batch(t *rapid.T) online.Batch {
	topic := rapid.SampledFrom([]string{"orders", "behavior", persons.Source.Topic}).Draw(t, "topic")
	if topic == persons.Source.Topic {
		return s.relink(t)
	}
	sources := map[string][]string{"orders": {"orders"}, "behavior": {"visits", "clicks"}}[topic]
	partition := rapid.IntRange(0, len(s.next[topic])-1).Draw(t, "partition")
	b := online.Batch{Topic: topic, Partition: int32(partition), First: s.next[topic][partition],
		Facts: map[string][]features.Fact{}}
	offset := b.First
	for range rapid.IntRange(0, 6).Draw(t, "events") {
		offset += int64(rapid.IntRange(0, 2).Draw(t, "markers"))
		for _, source := range sources {
			f := s.fact(t, source)
			// All versions of a fact are on one partition.
			if rapid.Bool().Draw(t, "skip") || int(xx(f.Key))%len(s.next[topic]) != partition {
				continue
			}
			f.Origin = features.Origin{Topic: topic, Partition: int32(partition), Offset: offset}
			s.keys[source+f.Entity+f.Key] = f
			b.Facts[source] = append(b.Facts[source], f)
		}
		offset++
	}
	b.After = feed.Position{Next: offset, AsOf: s.now}
	return b
}

func xx(s string) (sum byte) {
	for i := range len(s) {
		sum += s[i]
	}
	return sum % 100
}

// apply applies a batch, and remembers its facts.
func (s *scene) apply(t *rapid.T, b online.Batch) {
	if err := s.store.apply(b); err != nil {
		t.Fatal(err)
	}
	s.applied(b)
}

// applied remembers the facts of a batch that was applied.
func (s *scene) applied(b online.Batch) {
	s.next[b.Topic][b.Partition] = b.After.Next
	for source, facts := range b.Facts {
		s.log[source] = append(s.log[source], facts...)
	}
}

// check compares vectors at random times with EvaluatePerson.
func (s *scene) check(t *rapid.T, from time.Time) {
	graph, err := personstest.Graph(s.log[persons.Source.Name])
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range s.store.Groups() {
		at := s.now.Add(rapid.SampledFrom([]time.Duration{0, 0, time.Microsecond, -time.Microsecond, time.Hour,
			24 * time.Hour, 24*time.Hour - time.Microsecond, 7 * 24 * time.Hour, -time.Hour}).Draw(t, "at"))
		if at.Before(from) {
			at = from
		}
		q, err := s.store.Compile(g.Name)
		if err != nil {
			t.Fatal(err)
		}
		entities := []string{"c0", "c1", "nobody", "c2", "c0"}
		vectors, err := s.store.Lookup(t.Context(), q, entities, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range entities {
			want := features.EvaluatePerson(g, s.log, e, graph.Members(g.Identity, e, persons.Now), at, time.Time{})
			got := vectors[i]
			if got.Entity != e || got.Found != want.Found {
				t.Fatalf("%s at %s: found %v, want %v", e, at, got.Found, want.Found)
			}
			for j, o := range q.Outputs {
				if !got.Values[j].Equal(want.Values[j]) {
					t.Fatalf("%s of %s at %s (%s of %q) is %+v, want %+v", o.Name, e, at, o.Feature.Aggregate,
						o.Feature.Column, got.Values[j], want.Values[j])
				}
			}
			for _, p := range got.Positions.Topics {
				for partition, next := range s.next[p.Topic] {
					var have int64
					if partition < len(p.Partitions) {
						have = max(0, p.Partitions[partition].Next)
					}
					if have != next {
						t.Fatalf("the vector reflects %s/%d up to %d, want %d", p.Topic, partition, have, next)
					}
				}
			}
		}
	}
}

// TestLookupEqualsEvaluate: whatever is written, in any order, with late facts, corrections,
// retractions, redeliveries and batches that are cut otherwise, after merges and their reversal, after
// facts were dropped and after a restart, vectors are those of the plain scan.
func TestLookupEqualsEvaluate(t *testing.T) {
	stores(t, func(t *testing.T, open func(rapid.TB, []*features.Group, online.Options) testStore) {
		groups, o := []*features.Group{lasting(), passing()}, online.Options{Retention: 2 * time.Hour}
		checks := 100
		if _, memory := open(t, groups, o).(inMemory); !memory {
			checks = 20
		}
		rapid.Check(t, few(checks, func(t *rapid.T) {
			s := newScene(open(t, groups, o))
			from := start.Add(-365 * 24 * time.Hour)
			var last online.Batch
			for range rapid.IntRange(1, 12).Draw(t, "steps") {
				s.now = s.now.Add(rapid.SampledFrom([]time.Duration{0, time.Microsecond, time.Hour, 24 * time.Hour,
					10 * 24 * time.Hour}).Draw(t, "later"))
				switch rapid.IntRange(0, 8).Draw(t, "step") {
				case 0:
					if _, err := s.store.trim(s.now); err != nil {
						t.Fatal(err)
					}
					from = s.now.Add(-2 * time.Hour)
				case 1:
					entities, _ := s.store.Size()
					s.store = s.store.reopen(t)
					if e, _ := s.store.Size(); e != entities {
						t.Fatalf("reopened with %d entities, want %d", e, entities)
					}
				case 2:
					if last.Topic != "" { // a redelivery changes nothing
						if err := s.store.apply(last); err != nil {
							t.Fatal(err)
						}
					}
				case 3: // a batch that begins with what is there, as another reader cuts it
					b := s.batch(t)
					joined := b
					if b.Topic == last.Topic && b.Partition == last.Partition && last.After.Next == b.First {
						joined.First, joined.Facts = last.First, map[string][]features.Fact{}
						for _, part := range []online.Batch{last, b} {
							for source, facts := range part.Facts {
								joined.Facts[source] = append(joined.Facts[source], facts...)
							}
						}
					}
					if err := s.store.apply(joined); err != nil {
						t.Fatal(err)
					}
					s.applied(b)
					last = joined
				default:
					last = s.batch(t)
					s.apply(t, last)
				}
				s.check(t, from)
			}
		}))
	})
}

// few limits how often a property is checked, because in Redis that takes long. After a failure there is
// no limit, so that it can be minimized.
func few(n int, property func(t *rapid.T)) func(t *rapid.T) {
	failed := false
	return func(t *rapid.T) {
		if n--; n < 0 && !failed {
			return
		}
		ok := false
		defer func() { failed = failed || !ok }()
		property(t)
		ok = true
	}
}

// click is a batch with one fact.
func click(offset int64, entity string) online.Batch {
	return online.Batch{Topic: "behavior", First: offset, After: feed.Position{Next: offset + 1},
		Facts: map[string][]features.Fact{"clicks": {{Entity: entity, Key: entity, At: start,
			Origin: features.Origin{Offset: offset}, Values: []exact.Value{exact.TextValue("home")}}}}}
}

// TestApplyRefuses: a gap, an unknown topic, and a full store leave everything as it was.
func TestApplyRefuses(t *testing.T) {
	stores(t, func(t *testing.T, open func(rapid.TB, []*features.Group, online.Options) testStore) {
		store := open(t, []*features.Group{passing()}, online.Options{MaxEntities: 1})
		must(t, store.apply(click(5, "a")))
		for name, test := range map[string]struct {
			batch online.Batch
			want  string
		}{
			"topic": {online.Batch{Topic: "orders"}, `topic "orders"`},
			"full":  {click(6, "b"), "features.online.max_entities is 1"},
		} {
			if err := store.apply(test.batch); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: error %v, want %q", name, err, test.want)
			}
		}
		store = open(t, []*features.Group{passing()}, online.Options{})
		must(t, store.apply(click(5, "a")))
		if err := store.apply(click(7, "a")); !errors.Is(err, online.ErrGap) {
			t.Errorf("a gap: error %v", err)
		}
		if p := store.Positions("behavior"); p[0].Next != 6 {
			t.Errorf("position %d, want 6", p[0].Next)
		}
	})
}

// TestDropped: an entity is known while a fact of it is not retracted, even if it was dropped.
func TestDropped(t *testing.T) {
	stores(t, func(t *testing.T, open func(rapid.TB, []*features.Group, online.Options) testStore) {
		store := open(t, []*features.Group{passing()}, online.Options{})
		must(t, store.apply(click(5, "a")))
		drop := func() {
			t.Helper()
			if n, err := store.trim(start.Add(72 * time.Hour)); err != nil || n != 1 {
				t.Fatalf("dropped %d facts, %v: want 1", n, err)
			}
		}
		drop()
		q, err := store.Compile("passing", "clicks_1h")
		must(t, err)
		if _, err := store.Lookup(t.Context(), q, []string{"a"}, start, nil); !errors.Is(err, online.ErrTooOld) {
			t.Errorf("a time whose facts were dropped: error %v", err)
		}
		found := func() bool {
			t.Helper()
			v, err := store.Lookup(t.Context(), q, []string{"a", "b"}, start.Add(72*time.Hour), nil)
			if err != nil || v[1].Found {
				t.Fatalf("%+v, %v: want no second entity", v, err)
			}
			return v[0].Found
		}
		if !found() {
			t.Error("an entity is not known whose facts were dropped")
		}
		// A new version of the fact is dropped as the first one.
		must(t, store.apply(click(6, "a")))
		drop()
		if !found() {
			t.Error("an entity is not known whose fact was corrected after it was dropped")
		}
		// The entity is not known any more once its only fact is retracted: one that was dropped, or one
		// that is there again.
		retraction := click(7, "a")
		retraction.Facts["clicks"][0].Retracted = true
		must(t, store.apply(retraction))
		if found() {
			t.Error("an entity is known whose only fact was retracted")
		}
		must(t, store.apply(click(8, "a")))
		drop()
		must(t, store.apply(click(9, "a")))
		retraction = click(10, "a")
		retraction.Facts["clicks"][0].Retracted = true
		must(t, store.apply(retraction))
		if found() {
			t.Error("an entity is known whose only fact was dropped, corrected and retracted")
		}
	})
}

// TestManyDistinct: enough values to fill registers of Distinct more than once.
func TestManyDistinct(t *testing.T) {
	g := lasting()
	store, err := online.New([]*features.Group{g}, online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var facts []features.Fact
	for i := range 6000 {
		n := exact.IntValue(exact.FromInt64(int64(i)))
		facts = append(facts, features.Fact{Entity: "c", Key: fmt.Sprint(i), At: start.Add(time.Duration(i) * time.Minute),
			Values: []exact.Value{n, exact.TextValue(fmt.Sprint(i % 5000)), n, exact.TextValue("GB"), {}}})
	}
	all := map[string][]features.Fact{"orders": facts}
	if err := store.Apply(online.Batch{Topic: "orders", After: feed.Position{Next: 1}, Facts: all}); err != nil {
		t.Fatal(err)
	}
	q, err := store.Compile(g.Name)
	if err != nil {
		t.Fatal(err)
	}
	at := start.Add(4 * 24 * time.Hour)
	want := features.Evaluate(g, all, "c", at, time.Time{})
	got, err := store.Lookup(t.Context(), q, []string{"c"}, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range q.Outputs {
		if !got[0].Values[i].Equal(want.Values[i]) {
			t.Errorf("%s (%s of %q) is %+v, want %+v", o.Name, o.Feature.Aggregate, o.Feature.Column,
				got[0].Values[i], want.Values[i])
		}
	}
}

func newStore(t rapid.TB) *online.Store {
	s, err := online.New([]*features.Group{lasting(), passing()}, online.Options{Retention: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
