package training

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// randomFamily returns facts about entities c0 to c9, of which some have the time and the key of another
// entity's fact, and changes of the identity graph of these entities.
func randomFamily(n int, seed uint64) Slice {
	s, r := randomFacts(n, seed), rand.New(rand.NewPCG(seed, 3))
	for name, facts := range s {
		for i := 0; i < len(facts); i += 7 {
			f := facts[i]
			f.Entity, f.Origin.Partition = fmt.Sprint("c", r.IntN(10)), 1
			s[name] = append(s[name], f)
		}
	}
	var links personstest.Links
	for i := range 30 {
		a := r.IntN(10)
		b := (a + 1 + r.IntN(9)) % 10
		for _, f := range links.Change(node(a), node(b), r.IntN(3) > 0, tick(i*70)) {
			f.Origin = features.Origin{Topic: persons.Source.Topic, Offset: int64(i)}
			s[persons.Source.Name] = append(s[persons.Source.Name], f)
		}
	}
	return s
}

func node(i int) identity.Node { return identity.Node(fmt.Sprint("customer:c", i)) }

// followingGroup is everyOutput of customers who are merged.
func followingGroup() *features.Group {
	g := everyOutput()
	g.Identity = features.Customers
	return g
}

// TestPersons: the rows of entities that are one person with others have the facts of all, as it was known
// at the time of each row, from every store and in any number of ranges.
func TestPersons(t *testing.T) {
	t.Parallel()
	facts, rows := randomFamily(3000, 11), randomSpine(300, 11)
	spine, g := writeSpine(t, rows), followingGroup()
	graph, err := personstest.Graph(facts[persons.Source.Name])
	if err != nil {
		t.Fatal(err)
	}
	store := clickhousetest.OpenStore(t)
	l := testLayout{"_" + strings.ReplaceAll(uuid.NewString(), "-", ""), facts}
	l.insert(t, store, append(slices.Clone(g.Sources), persons.Source), facts)
	for _, known := range []string{KnownAt, KnownLatest, "seen"} {
		merged, sum := 0, ""
		for name, of := range map[string]Facts{"memory": facts, "in order": inOrder{facts}, "ClickHouse": &ClickHouse{store, l, 0}} {
			c := testConfig(t, spine, of)
			c.Groups, c.Known = []*features.Group{g}, known
			if name == "in order" {
				c.Memory = minMemory
			}
			m, err := Build(t.Context(), c)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if sum != "" && m.Output.SHA256 != sum {
				t.Errorf("%s: the set from %s is another one", known, name)
			}
			sum = m.Output.SHA256
			if m.Facts.Positions[persons.Source.Topic][0] != 30 {
				t.Errorf("the manifest has the positions %v, without those of the identity graph", m.Facts.Positions)
			}
			if name != "memory" {
				continue
			}
			_, got := readSet(t, c.Out)
			for i, r := range rows {
				at := map[string]time.Time{KnownAt: r.At, KnownLatest: {}, "seen": r.At}[known]
				if known == "seen" && r.Known != nil {
					at = *r.Known
				}
				members := graph.Members(g.Identity, r.Entity, persons.KnownAt(at))
				if members != nil {
					merged++
				}
				want := features.EvaluatePerson(g, facts, r.Entity, members, r.At, at)
				for n, o := range g.Outputs() {
					if text := shown(want.Values[n], o.Kind); o.Kind != exact.TextsResult && got[i][o.Name] != text {
						t.Fatalf("%s: row %d of %s with %q: %s is %q, want %q", known, i, r.Entity, members, o.Name, got[i][o.Name], text)
					}
				}
			}
			if merged < 20 {
				t.Errorf("%s: %d rows are of several entities: this test shows little", known, merged)
			}
			// The manifest makes the same bytes again, although more merges were recorded.
			later := Slice{}
			for name, all := range facts {
				later[name] = all
			}
			var links personstest.Links
			for _, f := range links.Change("customer:c0", "customer:later", true, tick(0)) {
				f.Origin.Offset = 30
				later[persons.Source.Name] = append(slices.Clone(later[persons.Source.Name]), f)
			}
			again := testConfig(t, "", later)
			again.Groups = c.Groups
			if err := m.Apply(&again); err != nil {
				t.Fatal(err)
			}
			if _, err := Repeat(t.Context(), m, again); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestMergedAndParted: a set that is built after merges were taken back is that of customers who were never
// merged, byte by byte.
func TestMergedAndParted(t *testing.T) {
	t.Parallel()
	facts, spine := randomFacts(1000, 13), writeSpine(t, randomSpine(200, 13))
	build := func(joined ...bool) string {
		t.Helper()
		all := Slice{"orders": facts["orders"], "visits": facts["visits"]}
		var links personstest.Links
		for i, j := range joined {
			for _, f := range links.Change(node(1), node(2), j, tick(i)) {
				f.Origin.Offset = int64(i)
				all[persons.Source.Name] = append(all[persons.Source.Name], f)
			}
		}
		c := testConfig(t, spine, all)
		c.Groups, c.Known = []*features.Group{followingGroup()}, KnownLatest
		c.Out = filepath.Join(t.TempDir(), "set.parquet")
		m, err := Build(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return m.Output.SHA256
	}
	never, merged, parted := build(), build(true), build(true, false)
	if parted != never || merged == never {
		t.Errorf("never merged %s, merged %s, and parted again %s", never, merged, parted)
	}
}

// TestPersonsWhoRefuse: the rows of a person of whom one entity refuses are withheld: of the person as it
// was known at the time of the row, and as it is known now.
func TestPersonsWhoRefuse(t *testing.T) {
	t.Parallel()
	facts := randomFacts(1000, 17)
	var links personstest.Links
	for i, c := range []struct {
		a, b   int
		joined bool
		at     int
	}{{1, 2, true, 500}, {3, 4, true, 0}, {3, 4, false, 1000}} {
		for _, f := range links.Change(node(c.a), node(c.b), c.joined, tick(c.at)) {
			f.Origin.Offset = int64(i)
			facts[persons.Source.Name] = append(facts[persons.Source.Name], f)
		}
	}
	rows := []example{
		{Entity: "c1", At: tick(400)}, {Entity: "c1", At: tick(600)}, // one person with c2, who refuses, later and then
		{Entity: "c3", At: tick(900)}, {Entity: "c3", At: tick(1100)}, // one person with c4, who refuses, then and not later
		{Entity: "c5", At: tick(900)},
	}
	c := testConfig(t, writeSpine(t, rows), facts)
	c.Groups = []*features.Group{followingGroup()}
	c.Refuses = func(_ string, ids ...string) bool { return slices.Contains(ids, "c2") || slices.Contains(ids, "c4") }
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	_, got := readSet(t, c.Out)
	for i, withheld := range []bool{true, true, true, false, false} {
		if n := got[i]["f0_lifetime"]; (n == "0") != withheld {
			t.Errorf("row %d of %s has %v orders; withheld: %v", i, rows[i].Entity, n, withheld)
		}
	}
}
