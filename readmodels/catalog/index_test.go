package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/test/servers/elasticsearch"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childOf); dir != "" {
		os.Exit(child(dir))
	}
	code := m.Run()
	err := server.Stop()
	if err == nil && code == 0 {
		err = goleak.Find(analysisWorkers)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// server is one Elasticsearch for all tests but those that kill it; each has its own indexes.
var server elasticsearch.Server

// bleve starts its analysis workers when the program starts, and they stay.
var analysisWorkers = goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker")

var quiet = slog.New(slog.DiscardHandler)

// place is where an index is: "bleve FOLDER" or "elasticsearch URL PREFIX".
type place string

func (p place) open(ctx context.Context) (Index, error) {
	adapter, at, _ := strings.Cut(string(p), " ")
	if adapter == "bleve" {
		return OpenBleve(at, quiet)
	}
	address, prefix, _ := strings.Cut(at, " ")
	return OpenElasticsearch(ctx, ElasticsearchConfig{Addresses: []string{address}, Prefix: prefix, Logger: quiet})
}

// adapters are the implementations of Index; the tests of index, view and queries hold for each. They give a place for
// a new one.
var adapters = map[string]func(t testing.TB) place{
	"bleve":         func(t testing.TB) place { return place("bleve " + t.TempDir()) },
	"elasticsearch": func(t testing.TB) place { return inElasticsearch(t, &server) },
}

var prefixes atomic.Int64

func inElasticsearch(t testing.TB, s *elasticsearch.Server) place {
	t.Helper()
	return place(fmt.Sprintf("elasticsearch %s test-%d-", s.URL(t), prefixes.Add(1)))
}

func openAt(t testing.TB, p place) Index {
	t.Helper()
	x, err := p.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// conform runs a test on each adapter. open opens the same index again.
func conform(t *testing.T, test func(t *testing.T, open func() Index)) {
	t.Parallel()
	for name, newPlace := range adapters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			test(t, func() Index {
				t.Helper()
				return openAt(t, p)
			})
		})
	}
}

func closed(t testing.TB, x Index) {
	t.Helper()
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

func product(sku, title, description string, categories ...string) *catalogv1.Product {
	return &catalogv1.Product{Sku: sku, Title: title, Description: description, Categories: categories, Version: 1}
}

func save(t testing.TB, x Index, products ...*catalogv1.Product) {
	t.Helper()
	if err := x.Save(t.Context(), products); err != nil {
		t.Fatal(err)
	}
}

// find runs a query through all its pages and gives the SKUs in order.
func find(t testing.TB, x Index, q Query) []string {
	t.Helper()
	if q.Limit == 0 {
		q.Limit = 100
	}
	var skus []string
	for {
		page, err := x.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.Products {
			skus = append(skus, p.Sku)
		}
		if len(page.Products) > q.Limit {
			t.Fatalf("%d products on a page of %d", len(page.Products), q.Limit)
		}
		if page.Next == nil {
			if page.Total != uint64(len(skus)) {
				t.Fatalf("total is %d, but %d were found: %v", page.Total, len(skus), skus)
			}
			return skus
		}
		if len(page.Products) != q.Limit {
			t.Fatalf("%d products on a page of %d that is not the last", len(page.Products), q.Limit)
		}
		q.After = page.Next
	}
}

func TestSearchFindsByWords(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		x := open()
		defer closed(t, x)
		save(t, x,
			product("1", "WHITE HANGING HEART T-LIGHT HOLDER", "Ceramic", "home", "candles"),
			product("2", "Scented Candles, set of 3", "Burns for eight hours; a gift for the theatre lover", "candles"),
			product("3", "Glass candle holder", "", "home"),
			product("4", "CAFÉ mug", "White china with a heart", "kitchen"),
			product("5", "Doctor's bag", "Leather", "bags"),
			product("6", "Candelabra", "With white candles", "home"),
		)
		for _, c := range []struct {
			text, category string
			want           string // SKUs in order; in braces where their order is not told
		}{
			{"", "", "1 2 3 4 5 6"},
			{"", "home", "1 3 6"},
			{"", "hom", ""},
			{"heart", "", "1 4"},               // title before description
			{"HEART white", "", "1 4"},         // every word, whatever the case and the order
			{"white heart holder", "", "1"},    //
			{"candle", "", "{2 3} 6"},          // inflections
			{"candles", "home", "3 6"},         // in a category
			{"candl", "", "{2 3} 6"},           // the beginning of the last word
			{"hold gla", "", ""},               // but not of one before it
			{"holder gla", "", "3"},            //
			{"candlez", "", "{2 3} 6"},         // one letter wrong in the last word
			{"the", "", "2"},                   // alone it may be the beginning of something
			{"a bag of the doctor", "", "5"},   // words that mean nothing are not wanted
			{"doctor's", "", "5"},              //
			{"cafe", "", "4"},                  // without the accent
			{"t-light", "", "1"},               //
			{"t-li", "", "1"},                  //
			{"hanging rubbish", "", ""},        //
			{"!!! --", "", ""},                 // no word at all
			{"title:heart", "", ""},            // no query language
			{"heart*", "", "1 4"},              //
			{strings.Repeat("x", 200), "", ""}, //
		} {
			got := find(t, x, Query{Text: c.text, Category: c.category})
			if !matches(got, c.want) {
				t.Errorf("%q in %q: found %v, want %s", c.text, c.category, got, c.want)
			}
			if paged := find(t, x, Query{Text: c.text, Category: c.category, Limit: 1}); !slices.Equal(paged, got) {
				t.Errorf("%q in %q: found %v by pages of one, and %v at once", c.text, c.category, paged, got)
			}
		}
	})
}

// matches compares SKUs with a list such as "1 {2 3} 4".
func matches(got []string, want string) bool {
	for group := range strings.FieldsFuncSeq(want, func(r rune) bool { return r == '}' }) {
		ordered, loose, _ := strings.Cut(group, "{")
		o, l := strings.Fields(ordered), strings.Fields(loose)
		if len(got) < len(o)+len(l) || !slices.Equal(got[:len(o)], o) || !slices.Equal(slices.Sorted(slices.Values(got[len(o):len(o)+len(l)])), l) {
			return false
		}
		got = got[len(o)+len(l):]
	}
	return len(got) == 0
}

func TestEqualMatchesComeBySKU(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		x := open()
		defer closed(t, x)
		var want []string
		for i := range 57 { // in several writes, so that they lie in several segments
			sku := fmt.Sprintf("sku-%03d", (i*31)%57)
			save(t, x, product(sku, "the same title", "the same text"))
			want = append(want, sku)
		}
		slices.Sort(want)
		for _, text := range []string{"", "same"} {
			for _, limit := range []int{1, 7, 56, 57, 58, 100} {
				if got := find(t, x, Query{Text: text, Limit: limit}); !slices.Equal(got, want) {
					t.Errorf("text %q, pages of %d: %v", text, limit, got)
				}
			}
		}
	})
}

func TestDelistedProductsAreKeptButNotFound(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		x := open()
		defer closed(t, x)
		p := product("1", "lamp", "", "home")
		save(t, x, p, product("2", "lamp", "", "home"))
		for version, want := range map[bool]string{true: "2", false: "1 2"} {
			next := proto.CloneOf(p)
			next.Version, next.Delisted = p.Version+1, version
			p = next
			save(t, x, p)
			for _, q := range []Query{{}, {Text: "lamp"}, {Category: "home"}} {
				if got := find(t, x, q); !matches(got, map[bool]string{true: "2", false: "1 2"}[p.Delisted]) {
					t.Errorf("delisted %v: %+v finds %v, want %s", p.Delisted, q, got, want)
				}
			}
			if got, err := x.Load(t.Context(), "1"); err != nil || !proto.Equal(got["1"], p) {
				t.Errorf("load: %v, %v", got, err)
			}
		}
	})
}

func TestOnlyAHigherVersionIsWritten(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		x := open()
		defer closed(t, x)
		var g sync.WaitGroup
		const writers, versions = 4, 12
		for w := range writers {
			g.Go(func() {
				for i := range versions {
					v := uint64((i*5+w*3)%versions + 1)
					p := product("1", fmt.Sprintf("title %d", v), "")
					p.Version = v
					if err := x.Save(t.Context(), []*catalogv1.Product{p}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		g.Wait()
		got, err := x.Load(t.Context(), "1")
		if err != nil || got["1"].GetVersion() != versions || got["1"].Title != fmt.Sprintf("title %d", versions) {
			t.Fatalf("%v, %v", got, err)
		}
		// Twice in one batch, and the older one last.
		newer, older := product("2", "newer", ""), product("2", "older", "")
		newer.Version = 2
		save(t, x, newer, older)
		if got, _ := x.Load(t.Context(), "2"); got["2"].Title != "newer" {
			t.Fatalf("%v", got)
		}
	})
}

// The index is a map from SKU to the highest version, and stays it over a restart.
func TestIndexIsAMap(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		x := open()
		defer func() { closed(t, x) }()
		model := map[string]*catalogv1.Product{}
		version := uint64(0)
		rapid.Check(t, func(rt *rapid.T) {
			batch := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) *catalogv1.Product {
				version++
				return &catalogv1.Product{
					Sku:     rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9 ._-]{0,2}`).Draw(rt, "sku"),
					Title:   rapid.String().Draw(rt, "title"),
					Version: rapid.Uint64Range(max(1, version-min(version, 30)), version).Draw(rt, "version"),
				}
			}), 0, 20).Draw(rt, "batch")
			if err := x.Save(t.Context(), batch); err != nil {
				rt.Fatal(err)
			}
			for _, p := range batch {
				if p.Version > model[p.Sku].GetVersion() {
					model[p.Sku] = p
				}
			}
			if rapid.IntRange(0, 9).Draw(rt, "restart") == 0 {
				closed(t, x)
				x = open()
			}
		})
		loaded, err := x.Load(t.Context(), slices.Collect(maps.Keys(model))...)
		equal := func(a, b *catalogv1.Product) bool { return proto.Equal(a, b) }
		if err != nil || !maps.EqualFunc(loaded, model, equal) {
			t.Fatalf("Load: %v, %v, want %v", loaded, err, model)
		}
		each := map[string]*catalogv1.Product{}
		if err := x.Each(t.Context(), func(p *catalogv1.Product) error {
			if each[p.Sku] != nil {
				return errors.New("twice")
			}
			each[p.Sku] = p
			return nil
		}); err != nil || !maps.EqualFunc(each, model, equal) {
			t.Fatalf("Each: %v, %v, want %v", each, err, model)
		}
		if n, err := x.Count(t.Context()); err != nil || n != uint64(len(model)) {
			t.Fatalf("Count: %d, %v, want %d", n, err, len(model))
		}
		stop := errors.New("enough")
		if err := x.Each(t.Context(), func(*catalogv1.Product) error { return stop }); !errors.Is(err, stop) {
			t.Fatalf("Each went on: %v", err)
		}
	})
}

func TestPositionsMoveFromWhereTheyAre(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		x := open()
		at := func(n int64) streams.Applied {
			return streams.Applied{Next: n, Watermark: event.Position{Sequence: uint64(n)}, AsOf: time.UnixMicro(n).UTC()}
		}
		move := func(lost bool, moves ...streams.Move) {
			t.Helper()
			if err := x.SavePositions(t.Context(), "a", moves); errors.Is(err, streams.ErrLost) != lost || !lost && err != nil {
				t.Fatalf("%v: %v", moves, err)
			}
		}
		move(false, streams.Move{Partition: 0, First: true}, streams.Move{Partition: 11, First: true, To: at(7)})
		move(true, streams.Move{Partition: 0, First: true, To: at(1)})
		move(false, streams.Move{Partition: 0, To: at(5)})
		move(true, streams.Move{Partition: 0, From: at(5), To: at(6)}, streams.Move{Partition: 11, From: at(6), To: at(8)})
		move(true, streams.Move{Partition: 2, To: at(6)})
		closed(t, x)
		x = open()
		defer closed(t, x)
		got, err := x.Positions(t.Context(), "a")
		if err != nil || !maps.Equal(got, map[int32]streams.Applied{0: at(5), 11: at(7)}) {
			t.Fatalf("%v, %v", got, err)
		}
		if got, err := x.Positions(t.Context(), "b"); err != nil || len(got) != 0 {
			t.Fatalf("of another topic: %v, %v", got, err)
		}
	})
}

func TestBleveHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x, err := OpenBleve(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	save(t, x, product("1", "lamp", ""))
	if _, err := OpenBleve(dir, quiet); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a second owner: %v", err)
	}
	if got := find(t, x, Query{Text: "lamp"}); len(got) != 1 {
		t.Fatal("the second one has harmed the index")
	}
	closed(t, x)
}

// Whatever happens to the file, at rest or under a running index: what is found is never wrong, no call fails, and what
// was lost shows in the positions, so that the log fills it in.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	flip := func(at func(size int) int) func([]byte) []byte {
		return func(b []byte) []byte { b[at(len(b))] ^= 0x10; return b }
	}
	for name, damage := range map[string]func([]byte) []byte{
		"deleted":             func([]byte) []byte { return nil },
		"empty":               func([]byte) []byte { return []byte{} },
		"cut to a byte":       func(b []byte) []byte { return b[:1] },
		"cut in the middle":   func(b []byte) []byte { return b[:len(b)/2] },
		"cut by a byte":       func(b []byte) []byte { return b[:len(b)-1] },
		"all zeroes":          func(b []byte) []byte { clear(b); return b },
		"zeroes in it":        func(b []byte) []byte { clear(b[len(b)/3 : len(b)/2]); return b },
		"a bit of the first":  flip(func(int) int { return 12 }),
		"a bit of a length":   flip(func(int) int { return 0 }),
		"a bit of a checksum": flip(func(int) int { return 5 }),
		"a bit of the middle": flip(func(n int) int { return n / 2 }),
		"a bit of the last":   flip(func(n int) int { return n - 1 }),
		"rubbish behind it":   func(b []byte) []byte { return append(b, "\x00\x00\x00\x09rubbish"...) },
		"rubbish alone":       func([]byte) []byte { return bytes.Repeat([]byte("x"), 9000) },
	} {
		for when, running := range map[string]bool{"at rest": false, "while it runs": true} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				path := filepath.Join(dir, journalName)
				open := func() Index {
					x, err := OpenBleve(dir, quiet)
					if err != nil {
						t.Fatal(err)
					}
					return x
				}
				hurt := func() {
					b, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if b = damage(b); b == nil {
						err = os.Remove(path)
					} else {
						err = os.WriteFile(path, b, 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				x := open()
				for i := range 20 { // product and position by turns
					save(t, x, product(fmt.Sprint(i), "lamp", ""))
					move := streams.Move{First: i == 0, From: streams.Applied{Next: int64(i)}, To: streams.Applied{Next: int64(i + 1)}}
					if err := x.SavePositions(t.Context(), "a", []streams.Move{move}); err != nil {
						t.Fatal(err)
					}
				}
				if running {
					hurt()
					if got := find(t, x, Query{Text: "lamp"}); len(got) != 20 {
						t.Errorf("the running index finds %d", len(got))
					}
					save(t, x, product("more", "lamp", ""))
				}
				closed(t, x)
				if !running {
					hurt()
				}
				x = open()
				defer func() { closed(t, x) }()
				positions, err := x.Positions(t.Context(), "a")
				if err != nil {
					t.Fatal(err)
				}
				kept := find(t, x, Query{Text: "lamp"})
				if next := positions[0].Next; int64(len(kept)) < next {
					t.Errorf("it stands at %d with %d products: the log would not bring the rest", next, len(kept))
				}
				for i := range 20 {
					save(t, x, product(fmt.Sprint(i), "lamp", ""))
				}
				closed(t, x)
				x = open()
				if got := find(t, x, Query{Text: "lamp"}); len(got) < 20 {
					t.Errorf("filled again it finds %d", len(got))
				}
			})
		}
	}
}

// A folder in the place of the file, say from a restored backup, is set aside like any damage.
func TestJournalThatIsNoFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, journalName, "x"), 0o750); err != nil {
		t.Fatal(err)
	}
	x, err := OpenBleve(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, x)
	save(t, x, product("1", "lamp", ""))
	if got := find(t, x, Query{Text: "lamp"}); len(got) != 1 {
		t.Errorf("found %v", got)
	}
}

// Single products that come one after another do not pile up segments, and all are found.
func TestBleveKeepsItsSegmentsFew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x, err := OpenBleve(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, x)
	const products, rounds = 100, 8
	for version := range uint64(rounds) {
		for i := range products {
			p := product(fmt.Sprint(i), fmt.Sprint("lamp ", version), "")
			p.Version = version + 1
			save(t, x, p)
		}
	}
	if got := find(t, x, Query{Text: fmt.Sprint("lamp ", rounds-1)}); len(got) != products {
		t.Errorf("found %d of %d", len(got), products)
	}
	n := 0
	for _, size := range x.(*bleveIndex).segments {
		n += len(size)
	}
	if n > 3*fanIn {
		t.Errorf("%d segments of %d batches", n, products*rounds)
	}
}

func FuzzJournal(f *testing.F) {
	entries := appendPositions(nil, "a", map[int32]streams.Applied{1: {Next: 2}})
	entries, err := appendProduct(entries, product("1", "lamp", ""))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(entries)
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, c, _, err := openJournal(path, quiet)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		again, damage, err := readJournal(path)
		if err != nil || damage != nil || len(again.products) != len(c.products) {
			t.Fatalf("%v, %v: %d products, then %d", err, damage, len(c.products), len(again.products))
		}
	})
}
