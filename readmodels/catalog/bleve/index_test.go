package bleve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/analysis"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
	"github.com/millrace/millrace/streams"
)

func TestMain(m *testing.M) {
	// bleve starts its analysis workers with the program and never ends them.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker"))
}

var quiet = slog.New(slog.DiscardHandler)

func open(t testing.TB, dir string) *Index {
	t.Helper()
	x, err := Open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestConformance(t *testing.T) {
	t.Parallel()
	indextest.Run(t, func(t testing.TB) indextest.Place {
		dir := t.TempDir()
		return func(t testing.TB) catalog.Index { return open(t, dir) }
	})
}

func TestHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x, err := Open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	indextest.Save(t, x, indextest.Product("1", "lamp", ""))
	if _, err := Open(dir, quiet); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a second owner: %v", err)
	}
	if got := indextest.Find(t, x, catalog.Query{Text: "lamp"}); len(got) != 1 {
		t.Fatal("the second one has harmed the index")
	}
	indextest.Close(t, x)
}

// TestDamagedJournal checks that nothing wrong is ever read, whether the file is damaged at rest or
// under a running index. No call fails, and lost entries are missing in the positions too, so that
// the log supplies them.
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
				open := func() *Index {
					x, err := Open(dir, quiet)
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
				for i := range 20 { // product and positions alternate
					indextest.Save(t, x, indextest.Product(fmt.Sprint(i), "lamp", ""))
					move := streams.Move{First: i == 0, From: streams.Applied{Next: int64(i)},
						To: streams.Applied{Next: int64(i + 1)}}
					if err := x.SavePositions(t.Context(), "a", []streams.Move{move}); err != nil {
						t.Fatal(err)
					}
				}
				if running {
					hurt()
					if got := indextest.Find(t, x, catalog.Query{Text: "lamp"}); len(got) != 20 {
						t.Errorf("the running index finds %d", len(got))
					}
					indextest.Save(t, x, indextest.Product("more", "lamp", ""))
				}
				indextest.Close(t, x)
				if !running {
					hurt()
				}
				x = open()
				defer func() { indextest.Close(t, x) }()
				positions, err := x.Positions(t.Context(), "a")
				if err != nil {
					t.Fatal(err)
				}
				kept := indextest.Find(t, x, catalog.Query{Text: "lamp"})
				if next := positions[0].Next; int64(len(kept)) < next {
					t.Errorf("it stands at %d with %d products: the log would not bring the rest", next, len(kept))
				}
				for i := range 20 {
					indextest.Save(t, x, indextest.Product(fmt.Sprint(i), "lamp", ""))
				}
				indextest.Close(t, x)
				x = open()
				if got := indextest.Find(t, x, catalog.Query{Text: "lamp"}); len(got) < 20 {
					t.Errorf("filled again it finds %d", len(got))
				}
			})
		}
	}
}

// TestJournalIsNotAFile checks that a folder in place of the file, for example from a restored
// backup, is set aside like any damage.
func TestJournalIsNotAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, journalName, "x"), 0o750); err != nil {
		t.Fatal(err)
	}
	x, err := Open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer indextest.Close(t, x)
	indextest.Save(t, x, indextest.Product("1", "lamp", ""))
	if got := indextest.Find(t, x, catalog.Query{Text: "lamp"}); len(got) != 1 {
		t.Errorf("found %v", got)
	}
}

// TestSegmentsAreMerged checks that single products saved one after the other do not accumulate
// segments, and that all are found.
func TestSegmentsAreMerged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x, err := Open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer indextest.Close(t, x)
	const products, rounds = 100, 8
	for version := range uint64(rounds) {
		for i := range products {
			p := indextest.Product(fmt.Sprint(i), fmt.Sprint("lamp ", version), "")
			p.Version = version + 1
			indextest.Save(t, x, p)
		}
	}
	if got := indextest.Find(t, x, catalog.Query{Text: fmt.Sprint("lamp ", rounds-1)}); len(got) != products {
		t.Errorf("found %d of %d", len(got), products)
	}
	n := 0
	for _, size := range x.segments {
		n += len(size)
	}
	if n > 3*fanIn {
		t.Errorf("%d segments of %d batches", n, products*rounds)
	}
}

func FuzzJournal(f *testing.F) {
	entries := appendPositions(nil, "a", map[int32]streams.Applied{1: {Next: 2}})
	entries, err := appendProduct(entries, indextest.Product("1", "lamp", ""))
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

var version atomic.Int64

// TestTextsFindThemselves checks that a text finds itself in any normal form and case.
func TestTextsFindThemselves(t *testing.T) {
	t.Parallel()
	x := open(t, t.TempDir())
	defer indextest.Close(t, x)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune("aeßøéТЁя茶コｺสื้👍🎉1-'’_. \u0301\u00ad")), 1, 20,
			-1).Draw(t, "text")
		if err := x.Save(context.Background(),
			[]*catalogv1.Product{{Sku: "1", Title: text, Version: uint64(version.Add(1))}}); err != nil {
			t.Fatal(err)
		}
		for _, as := range []string{text, norm.NFC.String(text), norm.NFD.String(text), strings.ToUpper(text)} {
			page, err := x.Search(context.Background(), catalog.Query{Text: as, Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			if wanted := len(analysis.Clauses(text)) > 0; wanted != (len(page.Products) == 1) {
				t.Fatalf("%+q as %+q: found %v, its terms are %+v", text, as, wanted,
					analysis.Document(indextest.Product("1", text, "")))
			}
		}
	})
}
