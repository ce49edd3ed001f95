package served

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/persons"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

// sale is the payload of the tests' events: a version of a fact.
type sale struct {
	Entity, Key, Country string
	At                   int64 // microseconds
	Amount               int64
	Retracted, Unusable  bool
}

func projectSale(e event.Event) ([]features.Fact, error) {
	var s sale
	if err := json.Unmarshal(e.Data, &s); err != nil {
		return nil, err
	}
	if s.Unusable {
		return nil, fmt.Errorf("key %s: cannot be read", s.Key)
	}
	return []features.Fact{{Entity: s.Entity, Key: s.Key, At: time.UnixMicro(s.At), Retracted: s.Retracted,
		Values: []exact.Value{exact.IntValue(exact.FromInt64(s.Amount)), exact.TextValue(s.Country)}}}, nil
}

// Topics of the sales, and how many partitions each has.
var (
	topics     = []string{"sales", "returns"}
	partitions = 2
)

// groupOf returns a group of two sources. week is the length of the windows of a week.
func groupOf(week features.Window) *features.Group {
	g := &features.Group{Name: "sales", Version: 3, Entity: "customer_id", Identity: features.Customers, Description: "d", Owner: "o"}
	for _, topic := range topics {
		g.Sources = append(g.Sources, features.Source{Name: topic, Topic: topic, Project: projectSale, Columns: []features.Column{
			{Name: "amount", Kind: exact.Number, Scale: 2}, {Name: "country", Kind: exact.Text}}})
		windows := []features.Window{features.Hour, week, features.Lifetime}
		for _, f := range []features.Feature{
			{Name: "n", Aggregate: exact.Count}, {Name: "sum", Aggregate: exact.Sum, Column: "amount"},
			{Name: "dev", Aggregate: exact.StdDev, Column: "amount"}, {Name: "country", Aggregate: exact.Last, Column: "country"},
			{Name: "top", Aggregate: exact.Top, Column: "country", K: 2},
		} {
			f.Name, f.Source, f.Windows, f.Description = topic+"_"+f.Name, topic, windows, "d"
			g.Features = append(g.Features, f)
		}
	}
	return g
}

// eventLog is the events by topic and partition. It implements Events: the end of each partition
// is what is there.
type eventLog struct{ all map[string][][]event.Event }

func newEventLog() *eventLog {
	l := &eventLog{map[string][][]event.Event{}}
	for _, t := range append(slices.Clone(topics), persons.Source.Topic) {
		l.all[t] = make([][]event.Event, partitions)
	}
	return l
}

// merge adds the events of a merge, or of its reversal, one for each customer.
func (l *eventLog) merge(a, b string, revision uint64, joined bool) {
	for partition, subject := range []string{"customer:" + a, "customer:" + b} {
		m := &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Merged{Merged: &identityv1.CustomersMerged{
			Subject: subject, CustomerId: a, OtherCustomerId: b, Revision: revision, MergedAt: timestamppb.New(start)}}}
		if !joined {
			m.Event = &identityv1.IdentityEvent_Unmerged{Unmerged: &identityv1.CustomersUnmerged{
				Subject: subject, CustomerId: a, OtherCustomerId: b, Revision: revision, UnmergedAt: timestamppb.New(start)}}
		}
		data, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		l.all[persons.Source.Topic][partition] = append(l.all[persons.Source.Topic][partition],
			event.Event{ID: uuid.New(), Stream: subject, Data: data, RecordedAt: start})
	}
}

func (l *eventLog) add(topic string, partition int, s sale) {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	l.all[topic][partition] = append(l.all[topic][partition],
		event.Event{ID: uuid.New(), Stream: s.Entity, Data: data, RecordedAt: time.UnixMicro(s.At)})
}

func (l *eventLog) Next(_ context.Context, topic string) (map[int32]int64, int64, error) {
	next, total := map[int32]int64{}, int64(0)
	for p, events := range l.all[topic] {
		next[int32(p)] = int64(len(events))
		total += int64(len(events))
	}
	return next, total, nil
}

func (l *eventLog) Events(_ context.Context, topic string, each func(event.Event, int32, int64) error) error {
	for p, events := range slices.Backward(l.all[topic]) { // in any order
		for offset, e := range slices.Backward(events) {
			if err := each(e, int32(p), int64(offset)); err != nil {
				return err
			}
		}
	}
	return nil
}

// storeOf returns a store that has applied the events up to offsets, by topic and partition.
func storeOf(t rapid.TB, g *features.Group, l *eventLog, upto map[string][]int) *online.Store {
	t.Helper()
	s, err := online.New([]*features.Group{g}, online.Options{Retention: 1000 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range append([]features.Source{persons.Source}, g.Sources...) {
		for p, end := range upto[source.Topic] {
			b := online.Batch{Topic: source.Topic, Partition: int32(p), After: feed.Position{Next: int64(end)},
				Facts: map[string][]features.Fact{}}
			for offset, e := range l.all[source.Topic][p][:end] {
				facts, err := feed.Project(&source, e, features.Origin{Topic: source.Topic, Partition: int32(p), Offset: int64(offset)})
				if err == nil { // otherwise it is a dead letter
					b.Facts[source.Name] = append(b.Facts[source.Name], facts...)
				}
			}
			if err := s.Apply(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// lookup returns the served vectors of entities at a time.
func lookup(t rapid.TB, s *online.Store, entities []string, at time.Time) (all []Vector) {
	t.Helper()
	q, err := s.Compile("sales")
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.Lookup(context.Background(), q, entities, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range found {
		value, err := record(messageOf(q, &found[i], at, at))
		if err != nil {
			t.Fatal(err)
		}
		m, err := decode(value.Value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, Vector{Offset: int64(i), ServedVector: m})
	}
	return all
}

var entities = []string{"anna", "ben", "carl", "dora"}

// drawLog returns events of a few entities, of whom some are merged, and a part of each partition.
func drawLog(r *rapid.T) (*eventLog, map[string][]int) {
	l, upto := newEventLog(), map[string][]int{}
	for i := range rapid.IntRange(0, 60).Draw(r, "events") {
		entity := rapid.SampledFrom(entities).Draw(r, "entity")
		// All versions of a fact have one time and one partition.
		key := rapid.IntRange(0, 8).Draw(r, "key")
		l.add(topics[key%2], len(entity)%partitions, sale{
			Entity: entity, Key: fmt.Sprint(key), At: start.Add(time.Duration(key) * 5 * time.Hour).UnixMicro(),
			Amount: int64(i) * 7, Country: rapid.SampledFrom([]string{"GB", "FR", "DE"}).Draw(r, "country"),
			Retracted: rapid.IntRange(0, 5).Draw(r, "retracted") == 0, Unusable: rapid.IntRange(0, 9).Draw(r, "unusable") == 0,
		})
	}
	revisions := map[string]uint64{}
	for range rapid.IntRange(0, 8).Draw(r, "merges") {
		n := rapid.IntRange(1, len(entities)-1).Draw(r, "pair")
		pair := entities[n-1] + entities[n]
		revisions[pair]++
		l.merge(entities[n-1], entities[n], revisions[pair], rapid.IntRange(0, 2).Draw(r, "joined") > 0)
	}
	for _, t := range append(slices.Clone(topics), persons.Source.Topic) {
		for _, events := range l.all[t] {
			upto[t] = append(upto[t], rapid.IntRange(0, len(events)).Draw(r, "upto"))
		}
	}
	return l, upto
}

var start = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// TestVerify: served vectors equal those that are recomputed from a longer log, however many facts
// may be kept.
func TestVerify(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		l, upto := drawLog(r)
		g := groupOf(features.Week)
		at := start.Add(time.Duration(rapid.Int64Range(0, int64(20*24*time.Hour)).Draw(r, "at"))).Truncate(time.Microsecond)
		vectors := lookup(r, storeOf(r, g, l, upto), append(slices.Clone(entities), "nobody", "anna"), at)
		passes := map[string]bool{}
		result, err := Verify(t.Context(), vectors, VerifyConfig{Groups: []*features.Group{g}, Events: l,
			MaxFacts: rapid.IntRange(1, 100).Draw(r, "facts"), Progress: func(stage string, _, _ int64) { passes[stage] = true }})
		if err != nil {
			r.Fatal(err)
		}
		n := len(vectors)
		if want := (GroupResult{Group: "sales/v3", Vectors: n, Equal: n}); !result.Equal() || len(result.Groups) != 1 ||
			result.Groups[0] != want || len(passes) > len(entities)+1 {
			r.Fatalf("%+v after %d passes; want %+v", result, len(passes), want)
		}
	})
}

// verifyOne verifies a vector and returns the names of the features that differ.
func verifyOne(t *testing.T, l *eventLog, v Vector) (names []string) {
	t.Helper()
	result, err := Verify(t.Context(), []Vector{v}, VerifyConfig{Groups: []*features.Group{groupOf(features.Week)}, Events: l})
	if err != nil {
		t.Fatal(err)
	}
	if result.Equal() != (len(result.Differences) == 0) {
		t.Errorf("equal is %v of %+v", result.Equal(), result)
	}
	for _, d := range result.Differences {
		if d.Group != "sales/v3" || d.Entity != v.GetEntity() || d.Served == d.Recomputed ||
			d.Record != fmt.Sprintf("millrace.features.served/%d@%d", v.Partition, v.Offset) {
			t.Errorf("a difference is described as %+v", d)
		}
		names = append(names, d.Feature)
	}
	return names
}

// TestVerifyFindsLeaks: a vector that contains a record after its positions, or one that lacks a
// record before them, is found, and so are the features that it changes.
func TestVerifyFindsLeaks(t *testing.T) {
	t.Parallel()
	l := newEventLog()
	for i := range 4 {
		l.add("sales", 0, sale{Entity: "anna", Key: fmt.Sprint(i), At: start.Add(time.Duration(i) * 24 * time.Hour).UnixMicro(),
			Amount: 100, Country: "GB"})
	}
	l.add("sales", 0, sale{Entity: "anna", Key: "2", At: start.Add(2 * 24 * time.Hour).UnixMicro(), Amount: 175, Country: "GB"})
	at := start.Add(3 * 24 * time.Hour)
	served := func(upto int) Vector {
		return lookup(t, storeOf(t, groupOf(features.Week), l, map[string][]int{"sales": {upto, 0}}), []string{"anna"}, at)[0]
	}
	moved := func(v Vector, next int64) Vector {
		v.ServedVector = proto.CloneOf(v.ServedVector)
		v.Positions[slices.IndexFunc(v.Positions, func(p *featuresv1.ServedPosition) bool { return p.Partition == 0 && p.Topic == "sales" })].
			NextOffset = next
		return v
	}
	amounts := []string{"sales_sum_7d", "sales_dev_7d", "sales_sum_lifetime", "sales_dev_lifetime"}
	order := []string{"sales_n_1h", "sales_n_7d", "sales_n_lifetime", "sales_sum_1h", "sales_sum_7d", "sales_sum_lifetime",
		"sales_dev_1h", "sales_country_1h", "sales_top_1h"}
	// A merge that is recorded after the vector's positions is not in it.
	l.add("sales", 1, sale{Entity: "ben", Key: "4", At: at.UnixMicro(), Amount: 1, Country: "FR"})
	l.merge("anna", "ben", 1, true)
	merged := lookup(t, storeOf(t, groupOf(features.Week), l, map[string][]int{"sales": {4, 1}, persons.Source.Topic: {1, 0}}),
		[]string{"anna"}, at)[0]
	unmerged := Vector{merged.Partition, merged.Offset, proto.CloneOf(merged.ServedVector)}
	unmerged.Positions = slices.DeleteFunc(unmerged.Positions, func(p *featuresv1.ServedPosition) bool {
		return p.Topic == persons.Source.Topic
	})
	for _, c := range []struct {
		name string
		v    Vector
		want []string
	}{
		{"merged", merged, nil},
		{"a later merge", unmerged, []string{"sales_n_1h", "sales_n_7d", "sales_n_lifetime", "sales_sum_1h", "sales_sum_7d",
			"sales_sum_lifetime", "sales_dev_1h", "sales_dev_7d", "sales_dev_lifetime", "sales_country_1h", "sales_country_7d",
			"sales_country_lifetime", "sales_top_1h", "sales_top_7d", "sales_top_lifetime"}},
		{"as it was served", served(4), nil},
		{"a later order", moved(served(4), 3), order},
		{"a later correction", moved(served(5), 4), amounts},
		{"without a correction", moved(served(4), 5), amounts},
	} {
		have := verifyOne(t, l, c.v)
		if slices.Sort(have); !slices.Equal(have, slices.Sorted(slices.Values(c.want))) {
			t.Errorf("%s: %q differ; want %q", c.name, have, c.want)
		}
	}
}

// TestVerifyFindsWindows: a server whose window is a microsecond too long answers the same, except
// for an event on the edge.
func TestVerifyFindsWindows(t *testing.T) {
	t.Parallel()
	l := newEventLog()
	l.add("sales", 0, sale{Entity: "anna", Key: "1", At: start.UnixMicro(), Amount: 100, Country: "GB"})
	wrong := groupOf(features.Week + features.Window(time.Microsecond))
	s := storeOf(t, wrong, l, map[string][]int{"sales": {1, 0}})
	for after, want := range map[time.Duration]int{0: 5, -time.Microsecond: 0, time.Microsecond: 0} {
		v := lookup(t, s, []string{"anna"}, start.Add(time.Duration(features.Week)+after))[0]
		for _, value := range v.Values {
			value.Feature = strings.Replace(value.Feature, "_604800000001us", "_7d", 1)
		}
		have := verifyOne(t, l, v)
		if len(have) != want || slices.ContainsFunc(have, func(name string) bool { return !strings.HasSuffix(name, "_7d") }) {
			t.Errorf("%v after the edge: %q differ; want %d of the window 7d", after, have, want)
		}
	}
}

// TestVerifyOfOtherDefinitions: vectors of other versions cannot be recomputed. Features that the
// group does not have, and entities that are not known, are differences.
func TestVerifyOfOtherDefinitions(t *testing.T) {
	t.Parallel()
	l := newEventLog()
	l.add("sales", 0, sale{Entity: "anna", Key: "1", At: start.UnixMicro(), Amount: 100, Country: "GB"})
	v := lookup(t, storeOf(t, groupOf(features.Week), l, map[string][]int{"sales": {1, 0}}), []string{"anna"}, start)[0]
	change := func(how func(*featuresv1.ServedVector)) Vector {
		changed := Vector{v.Partition, v.Offset, proto.CloneOf(v.ServedVector)}
		how(changed.ServedVector)
		return changed
	}
	older := change(func(v *featuresv1.ServedVector) { v.Version = 2 })
	result, err := Verify(t.Context(), []Vector{older, v}, VerifyConfig{Groups: []*features.Group{groupOf(features.Week)}, Events: l})
	if want := []GroupResult{{Group: "sales/v2", Vectors: 1, Undefined: 1}, {Group: "sales/v3", Vectors: 1, Equal: 1}}; err != nil ||
		!slices.Equal(result.Groups, want) {
		t.Errorf("%+v, %v; want %+v", result, err, want)
	}
	for name, v := range map[string]Vector{
		"sales_new_7d": change(func(v *featuresv1.ServedVector) { v.Values[0].Feature = "sales_new_7d" }),
		"(any fact)":   change(func(v *featuresv1.ServedVector) { v.Found = false }),
		"sales_n_1h":   change(func(v *featuresv1.ServedVector) { v.Values[0].Kind = nil }),
	} {
		if have := verifyOne(t, l, v); !slices.Equal(have, []string{name}) {
			t.Errorf("%q differ; want %s", have, name)
		}
	}
}

// TestVerifyWaits: vectors whose events are not there are not compared, because they would differ.
// The error says what is missing.
func TestVerifyWaits(t *testing.T) {
	t.Parallel()
	l := newEventLog()
	l.add("sales", 0, sale{Entity: "anna", Key: "1", At: start.UnixMicro(), Amount: 100, Country: "GB"})
	v := lookup(t, storeOf(t, groupOf(features.Week), l, map[string][]int{"sales": {1, 0}}), []string{"anna"}, start)[0]
	c := VerifyConfig{Groups: []*features.Group{groupOf(features.Week)}, Events: newEventLog(), Wait: time.Millisecond}
	_, err := Verify(t.Context(), []Vector{v}, c)
	if want := "sales/0: vectors reflect the records before offset 1, but only those before 0 are there"; err == nil ||
		!strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
	late := newEventLog()
	c.Events, c.Wait = late, time.Minute
	c.Progress = func(stage string, _, _ int64) {
		if strings.HasPrefix(stage, "wait") {
			late.all = l.all
		}
	}
	if result, err := Verify(t.Context(), []Vector{v}, c); err != nil || !result.Equal() || result.Groups[0].Equal != 1 {
		t.Errorf("%+v, %v", result, err)
	}
}
