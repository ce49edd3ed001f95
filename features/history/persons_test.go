package history

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
)

// family is a world whose customers are merged and parted.
type family struct {
	*world
	graph     *fetchtest.Producer
	links     []features.Fact
	events    []event.Event
	next      [partitions]int64
	revisions map[string]uint64
}

// newFamily is called by one test, because the tables and the topic of the identity graph are the only ones.
func newFamily(t *testing.T, seed uint64) *family {
	t.Helper()
	f := &family{world: newWorld(t, seed), revisions: map[string]uint64{}}
	f.group.Identity = features.Customers
	f.graph = fetchtest.New(t, strings.Split(broker.Brokers, ","), "t-"+uuid.NewString())
	must(t, f.graph.CreateTopic(t.Context(), persons.Source.Topic, partitions))
	return f
}

// link merges two customers or parts them: an event for each, on any two partitions.
func (f *family) link(t *testing.T, a, b string, joined bool) {
	t.Helper()
	if b < a {
		a, b = b, a
	}
	f.revisions[a+b]++
	for _, subject := range []string{"customer:" + a, "customer:" + b} {
		f.now = f.now.Add(time.Second)
		f.number++
		name := "CustomersMerged"
		m := &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Merged{Merged: &identityv1.CustomersMerged{
			Subject: subject, CustomerId: a, OtherCustomerId: b, Revision: f.revisions[a+b], MergedAt: timestamppb.New(f.now)}}}
		if !joined {
			name = "CustomersUnmerged"
			m.Event = &identityv1.IdentityEvent_Unmerged{Unmerged: &identityv1.CustomersUnmerged{
				Subject: subject, CustomerId: a, OtherCustomerId: b, Revision: f.revisions[a+b], UnmergedAt: timestamppb.New(f.now)}}
		}
		data, err := proto.Marshal(m)
		must(t, err)
		e := event.Event{ID: uuid.Must(uuid.NewV7()), Aggregate: event.Identity.Name, Stream: subject, Version: f.number,
			Type: "millrace.identity.v1." + name, Data: data, OccurredAt: f.now, RecordedAt: f.now,
			Position: event.Position{Sequence: f.number}}
		p := int32(f.rnd.IntN(partitions))
		facts, err := feed.Project(&persons.Source, e, features.Origin{Topic: persons.Source.Topic, Partition: p, Offset: f.next[p]})
		must(t, err)
		f.links, f.events = append(f.links, facts...), append(f.events, e)
		must(t, f.graph.Commit(t.Context(), persons.Source.Topic, fetchtest.Event(p, e)))
		f.next[p] += 2 // with the marker of the transaction
	}
}

// linked blocks until the tables have everything on both topics.
func (f *family) linked(t *testing.T, h *History) {
	t.Helper()
	f.filled(t, h)
	ends, err := f.graph.Ends(t.Context(), persons.Source.Topic)
	must(t, err)
	polltest.Until(t, "the table of links has everything on its topic", func() bool {
		ok, err := h.Reached(t.Context(), persons.Source.Topic, ends)
		return err == nil && ok
	})
}

// checkPersons compares the vectors of all customers at random times, and as they were known.
func (f *family) checkPersons(t *testing.T, h *History, n int) {
	t.Helper()
	graph, err := personstest.Graph(f.links)
	must(t, err)
	facts := map[string][]features.Fact{f.group.Sources[0].Name: f.facts}
	for i := range n {
		at := event.Time(time.UnixMicro(f.at()))
		var known time.Time
		if i%2 == 1 { // when a link was known, or a microsecond before
			known = f.links[f.rnd.IntN(len(f.links))].Known.Add(-time.Duration(f.rnd.IntN(2)) * time.Microsecond)
		}
		have, reflected, err := h.Vectors(t.Context(), f.group.ID(), everybody, at, known)
		must(t, err)
		if reflected[persons.Source.Name].Topic != persons.Source.Topic {
			t.Fatalf("the vectors reflect %v, without the identity graph", reflected)
		}
		for i, e := range everybody {
			members := graph.Members(f.group.Identity, e, persons.KnownAt(known))
			want := features.EvaluatePerson(f.group, facts, e, members, at, known)
			if have[i].Entity != e || have[i].Found != want.Found ||
				!slices.EqualFunc(have[i].Values, want.Values, exact.Result.Equal) {
				t.Fatalf("the vector of %s with %q at %s known %s is\n%+v, want\n%+v", e, members, at, known, have[i], want)
			}
		}
	}
}

// digests returns the digests of all tables but that of links.
func (f *family) digests(t *testing.T, h *History) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, c := range h.Contents() {
		if c.Topic != persons.Source.Topic {
			d, err := c.Digest(t.Context())
			all[c.Table] = fmt.Sprint(total(t, d, err))
		}
	}
	return all
}

// vectors returns the values of the vectors of all customers.
func (f *family) vectors(t *testing.T, h *History) (all [][]exact.Result) {
	t.Helper()
	found, _, err := h.Vectors(t.Context(), f.group.ID(), everybody, f.now, time.Time{})
	must(t, err)
	for _, v := range found {
		all = append(all, v.Values)
	}
	return all
}

var everybody = []string{"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "unknown"}

// TestPersons: vectors follow merges and their reversal, now and as they were known, in a table of links
// that equals the events. Merged and parted again is never merged, by digest.
func TestPersons(t *testing.T) {
	t.Parallel()
	f := newFamily(t, 31)
	h := open(t, f.config(clickhousetest.OpenStore(t)))
	running(t, h)
	f.trade(t, 60)
	for range 8 {
		a := f.rnd.IntN(8)
		f.link(t, everybody[a], everybody[(a+1+f.rnd.IntN(7))%8], f.rnd.IntN(4) > 0)
		f.trade(t, 4)
	}
	f.linked(t, h)
	f.checkPersons(t, h, 20)

	tables, merged := f.digests(t, h), f.vectors(t, h)
	for pair := range f.revisions {
		f.link(t, pair[:2], pair[2:], false)
	}
	f.linked(t, h)
	f.checkPersons(t, h, 10)
	if parted := f.digests(t, h); !maps.Equal(parted, tables) {
		t.Errorf("merges that were taken back changed the tables: %v, want %v", parted, tables)
	}
	changed := 0
	for i, values := range f.vectors(t, h) {
		never := features.Evaluate(f.group, map[string][]features.Fact{f.group.Sources[0].Name: f.facts}, everybody[i],
			event.Time(f.now), time.Time{}).Values
		if !slices.EqualFunc(values, never, exact.Result.Equal) {
			t.Errorf("%s was merged and parted, and has %+v, want %+v", everybody[i], values, never)
		}
		if !slices.EqualFunc(values, merged[i], exact.Result.Equal) {
			changed++
		}
	}
	if changed < 2 {
		t.Errorf("%d vectors changed with merges: this test shows nothing", changed)
	}

	for _, c := range h.Contents() {
		if c.Topic != persons.Source.Topic {
			continue
		}
		want, err := c.Expected(func(yield func(event.Event, error) bool) {
			for _, e := range f.events {
				if !yield(e, nil) {
					return
				}
			}
		})
		must(t, err)
		have, err := c.Digest(t.Context())
		if have := total(t, have, err); have != total(t, want, nil) || have.Count != uint64(len(f.links)) {
			t.Errorf("the table of links is %+v, want %+v of %d facts", have, want.Total(), len(f.links))
		}
	}
}
