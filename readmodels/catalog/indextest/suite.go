// Package indextest is the conformance suite of catalog.Index. An adapter that passes Run can
// replace another one, because the view relies on nothing else.
//
// The package also contains what the adapters' tests of the view share: products and events, a
// feed, and checks of what a view contains.
//
// Run checks, for every implementation: which products a query finds and in which order, that a
// write is conditional on the version, that content and positions survive a restart, and that
// positions only move from where they are. The first is the largest part. Every engine must find
// the same products, so the expected results are lists of SKUs rather than scores.
package indextest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/streams"
)

// Place opens an index at the same location each time it is called, so that a check can close an
// index and find its content again. The caller closes it.
type Place func(t testing.TB) catalog.Index

// Run tests an implementation. Each call of newPlace returns an empty place. The checks run in
// parallel, each in a place of its own, and may open the index there several times.
func Run(t *testing.T, newPlace func(t testing.TB) Place) {
	for _, check := range []struct {
		name string
		run  func(t *testing.T, open func() catalog.Index)
	}{
		{"search finds by words", findsByWords},
		{"equal matches come in order of SKU", equalMatches},
		{"delisted products are kept but not found", delisted},
		{"only a higher version is written", higherVersion},
		{"the index is a map, also after opening again", isMap},
		{"positions move from where they are", positions},
		{"judged queries find what they must", judgedQueries},
	} {
		t.Run(check.name, func(t *testing.T) {
			t.Parallel()
			place := newPlace(t)
			check.run(t, func() catalog.Index {
				t.Helper()
				return place(t)
			})
		})
	}
}

// Close closes an index. An error is an error of the test.
func Close(t testing.TB, x catalog.Index) {
	t.Helper()
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// Product returns the first version of a product.
func Product(sku, title, description string, categories ...string) *catalogv1.Product {
	return &catalogv1.Product{Sku: sku, Title: title, Description: description, Categories: categories, Version: 1}
}

// Save saves products. When it returns, they can be found.
func Save(t testing.TB, x catalog.Index, products ...*catalogv1.Product) {
	t.Helper()
	if err := x.Save(t.Context(), products); err != nil {
		t.Fatal(err)
	}
}

// Find returns the SKUs that a query finds, in order, on all pages. It also checks the sizes of the
// pages and the total.
func Find(t testing.TB, x catalog.Index, q catalog.Query) []string {
	t.Helper()
	if q.Limit == 0 {
		q.Limit = 100
	}
	var skus []string
	for {
		// Each page begins after the last product of the previous one.
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
		// The total counts the matches on all pages, so it can be checked once all have been read.
		if page.Next == nil {
			if page.Total != uint64(len(skus)) {
				t.Fatalf("total is %d, but %d were found: %v", page.Total, len(skus), skus)
			}
			return skus
		}
		// Only the last page may be short.
		if len(page.Products) != q.Limit {
			t.Fatalf("%d products on a page of %d that is not the last", len(page.Products), q.Limit)
		}
		q.After = page.Next
	}
}

// findsByWords checks which words find a product, and that the title counts more than the
// description. Each query is also asked page by page, which must give the same products in the same
// order.
func findsByWords(t *testing.T, open func() catalog.Index) {
	x := open()
	defer Close(t, x)
	Save(t, x,
		Product("1", "WHITE HANGING HEART T-LIGHT HOLDER", "Ceramic", "home", "candles"),
		Product("2", "Scented Candles, set of 3", "Burns for eight hours; a gift for the theatre lover", "candles"),
		Product("3", "Glass candle holder", "", "home"),
		Product("4", "CAFÉ mug", "White china with a heart", "kitchen"),
		Product("5", "Doctor's bag", "Leather", "bags"),
		Product("6", "Candelabra", "With white candles", "home"),
	)
	for _, c := range []struct {
		text, category string
		want           string // SKUs in order; in braces those whose order is undefined
	}{
		{"", "", "1 2 3 4 5 6"},
		{"", "home", "1 3 6"},
		{"", "hom", ""},
		{"heart", "", "1 4"},               // title before description
		{"HEART white", "", "1 4"},         // every word, in any case and order
		{"white heart holder", "", "1"},    //
		{"candle", "", "{2 3} 6"},          // inflections
		{"candles", "home", "3 6"},         // in a category
		{"candl", "", "{2 3} 6"},           // a prefix of the last word
		{"hold gla", "", ""},               // but not of an earlier one
		{"holder gla", "", "3"},            //
		{"candlez", "", "{2 3} 6"},         // one letter wrong in the last word
		{"the", "", "2"},                   // alone, it may be the beginning of a word
		{"a bag of the doctor", "", "5"},   // stop words are not required
		{"doctor's", "", "5"},              //
		{"cafe", "", "4"},                  // without the accent
		{"t-light", "", "1"},               //
		{"t-li", "", "1"},                  //
		{"hanging rubbish", "", ""},        //
		{"!!! --", "", ""},                 // no word at all
		{"title:heart", "", ""},            // there is no query language
		{"heart*", "", "1 4"},              //
		{strings.Repeat("x", 200), "", ""}, //
	} {
		got := Find(t, x, catalog.Query{Text: c.text, Category: c.category})
		if !matches(got, c.want) {
			t.Errorf("%q in %q: found %v, want %s", c.text, c.category, got, c.want)
		}
		if paged := Find(t, x, catalog.Query{Text: c.text, Category: c.category, Limit: 1}); !slices.Equal(paged, got) {
			t.Errorf("%q in %q: found %v by pages of one, and %v at once", c.text, c.category, paged, got)
		}
	}
}

// matches compares SKUs with a list such as "1 {2 3} 4". The SKUs in braces may come in any order,
// because the engines may score them differently.
func matches(got []string, want string) bool {
	// Each group is an ordered part, and a part in braces that may be missing. Both are removed
	// from got.
	for group := range strings.FieldsFuncSeq(want, func(r rune) bool { return r == '}' }) {
		ordered, loose, _ := strings.Cut(group, "{")
		o, l := strings.Fields(ordered), strings.Fields(loose)
		if len(got) < len(o)+len(l) || !slices.Equal(got[:len(o)], o) ||
			!slices.Equal(slices.Sorted(slices.Values(got[len(o):len(o)+len(l)])), l) {
			return false
		}
		got = got[len(o)+len(l):]
	}
	return len(got) == 0
}

// equalMatches checks the order of products that match equally well. Without a defined order, pages
// could overlap or omit products.
func equalMatches(t *testing.T, open func() catalog.Index) {
	x := open()
	defer Close(t, x)
	var want []string
	// In several writes, so that they are in several segments. The factor is coprime to 57, so
	// every SKU occurs once, and not in order.
	for i := range 57 {
		sku := fmt.Sprintf("sku-%03d", (i*31)%57)
		Save(t, x, Product(sku, "the same title", "the same text"))
		want = append(want, sku)
	}
	slices.Sort(want)
	for _, text := range []string{"", "same"} {
		// Sizes around the number of matches, where a cursor is most likely to be wrong.
		for _, limit := range []int{1, 7, 56, 57, 58, 100} {
			if got := Find(t, x, catalog.Query{Text: text, Limit: limit}); !slices.Equal(got, want) {
				t.Errorf("text %q, pages of %d: %v", text, limit, got)
			}
		}
	}
}

// delisted checks that Search leaves delisted products out, and that Load still returns them: the
// view needs their version to fold the next event.
func delisted(t *testing.T, open func() catalog.Index) {
	x := open()
	defer Close(t, x)
	p := Product("1", "lamp", "", "home")
	Save(t, x, p, Product("2", "lamp", "", "home"))
	// The order of the two steps is random. Each of them is a new version of the product.
	for version, want := range map[bool]string{true: "2", false: "1 2"} {
		next := proto.CloneOf(p)
		next.Version, next.Delisted = p.Version+1, version
		p = next
		Save(t, x, p)
		for _, q := range []catalog.Query{{}, {Text: "lamp"}, {Category: "home"}} {
			if got := Find(t, x, q); !matches(got, map[bool]string{true: "2", false: "1 2"}[p.Delisted]) {
				t.Errorf("delisted %v: %+v finds %v, want %s", p.Delisted, q, got, want)
			}
		}
		if got, err := x.Load(t.Context(), "1"); err != nil || !proto.Equal(got["1"], p) {
			t.Errorf("load: %v, %v", got, err)
		}
	}
}

// higherVersion checks that the highest version wins, in whichever order and from however many
// goroutines the versions are written. So a redelivery, or a second process, cannot undo a change.
func higherVersion(t *testing.T, open func() catalog.Index) {
	x := open()
	defer Close(t, x)
	var g sync.WaitGroup
	const writers, versions = 4, 12
	for w := range writers {
		g.Go(func() {
			for i := range versions {
				// Each writer writes every version once, in an order of its own: 5 is coprime to
				// 12.
				v := uint64((i*5+w*3)%versions + 1)
				p := Product("1", fmt.Sprintf("title %d", v), "")
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
	newer, older := Product("2", "newer", ""), Product("2", "older", "")
	newer.Version = 2
	Save(t, x, newer, older)
	if got, _ := x.Load(t.Context(), "2"); got["2"].Title != "newer" {
		t.Fatalf("%v", got)
	}
}

// isMap checks that the index is a map from SKU to the product of the highest version, also after a
// restart. It applies random batches to the index and to a Go map, and compares the two at the end.
//
// The index and the map live through all of rapid's runs. A failure is therefore of the sum of the
// runs, and cannot be shrunk to a single batch.
func isMap(t *testing.T, open func() catalog.Index) {
	x := open()
	defer func() { Close(t, x) }()
	model := map[string]*catalogv1.Product{}
	version := uint64(0)
	rapid.Check(t, func(rt *rapid.T) {
		// SKUs are short, so that batches hit existing products, also within one batch.
		batch := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) *catalogv1.Product {
			version++
			return &catalogv1.Product{
				Sku:   rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9 ._-]{0,2}`).Draw(rt, "sku"),
				Title: rapid.String().Draw(rt, "title"),
				// Recent versions, so that many writes are older than, or equal to, what is stored.
				Version: rapid.Uint64Range(max(1, version-min(version, 30)), version).Draw(rt, "version"),
			}
		}), 0, 20).Draw(rt, "batch")
		if err := x.Save(t.Context(), batch); err != nil {
			rt.Fatal(err)
		}
		for _, p := range batch {
			// Of equal versions, the first one stays.
			if p.Version > model[p.Sku].GetVersion() {
				model[p.Sku] = p
			}
		}
		if rapid.IntRange(0, 9).Draw(rt, "restart") == 0 {
			Close(t, x)
			x = open()
		}
	})
	loaded, err := x.Load(t.Context(), slices.Collect(maps.Keys(model))...)
	equal := func(a, b *catalogv1.Product) bool { return proto.Equal(a, b) }
	if err != nil || !maps.EqualFunc(loaded, model, equal) {
		t.Fatalf("Load: %v, %v, want %v", loaded, err, model)
	}
	// Each and Count must agree with Load, and Each must return no product twice.
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
	// An error of the callback ends the iteration, and is returned.
	stop := errors.New("enough")
	if err := x.Each(t.Context(), func(*catalogv1.Product) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("Each went on: %v", err)
	}
}

// positions checks that a position is saved only if the stored one is where the move begins.
// Otherwise two processes could feed the same partition, or a lost position could be passed over. A
// refused set of moves saves nothing.
func positions(t *testing.T, open func() catalog.Index) {
	x := open()
	// A position that has n in all of its fields, to notice one that is not stored.
	at := func(n int64) streams.Applied {
		return streams.Applied{Next: n, Watermark: event.Position{Sequence: uint64(n)}, AsOf: time.UnixMicro(n).UTC()}
	}
	move := func(lost bool, moves ...streams.Move) {
		t.Helper()
		if err := x.SavePositions(t.Context(), "a", moves); errors.Is(err, streams.ErrLost) != lost ||
			!lost && err != nil {
			t.Fatalf("%v: %v", moves, err)
		}
	}
	// First means that no position is stored yet.
	move(false, streams.Move{Partition: 0, First: true}, streams.Move{Partition: 11, First: true, To: at(7)})
	// A second first move: another process has saved a position.
	move(true, streams.Move{Partition: 0, First: true, To: at(1)})
	move(false, streams.Move{Partition: 0, To: at(5)})
	// One of two moves is wrong, so neither is saved: the final comparison has 5, not 6.
	move(true, streams.Move{Partition: 0, From: at(5), To: at(6)}, streams.Move{Partition: 11, From: at(6), To: at(8)})
	// No position is stored, but the move expects one: it was lost.
	move(true, streams.Move{Partition: 2, To: at(6)})
	Close(t, x)
	x = open()
	defer Close(t, x)
	got, err := x.Positions(t.Context(), "a")
	if err != nil || !maps.Equal(got, map[int32]streams.Applied{0: at(5), 11: at(7)}) {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := x.Positions(t.Context(), "b"); err != nil || len(got) != 0 {
		t.Fatalf("of another topic: %v, %v", got, err)
	}
}
