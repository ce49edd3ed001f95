package catalog_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/bleve"
	"github.com/millrace/millrace/readmodels/catalog/elasticsearch"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
	servers "github.com/millrace/millrace/test/servers/elasticsearch"
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

// server is one Elasticsearch for all tests except those that kill it. Each test has its own
// indexes.
var server servers.Server

// analysisWorkers are goroutines that bleve starts with the program and never ends.
var analysisWorkers = goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker")

var quiet = slog.New(slog.DiscardHandler)

// place is the location of an index: "bleve FOLDER" or "elasticsearch URL PREFIX".
type place string

func (p place) open(ctx context.Context) (catalog.Index, error) {
	adapter, at, _ := strings.Cut(string(p), " ")
	if adapter == "bleve" {
		return bleve.Open(at, quiet)
	}
	address, prefix, _ := strings.Cut(at, " ")
	return elasticsearch.Open(ctx, elasticsearch.Config{Addresses: []string{address}, Prefix: prefix, Logger: quiet})
}

// adapters are the implementations of Index. The tests of view and queries run on each. A function
// returns the place of a new index.
var adapters = map[string]func(t testing.TB) place{
	"bleve":         func(t testing.TB) place { return place("bleve " + t.TempDir()) },
	"elasticsearch": func(t testing.TB) place { return inElasticsearch(t) },
}

var prefixes atomic.Int64

func inElasticsearch(t testing.TB) place {
	t.Helper()
	return place(fmt.Sprintf("elasticsearch %s test-%d-", server.URL(t), prefixes.Add(1)))
}

func openAt(t testing.TB, p place) catalog.Index {
	t.Helper()
	x, err := p.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// conform runs a test on each adapter. open opens the same index again.
func conform(t *testing.T, test func(t *testing.T, open func() catalog.Index)) {
	t.Parallel()
	for name, newPlace := range adapters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			test(t, func() catalog.Index {
				t.Helper()
				return openAt(t, p)
			})
		})
	}
}

// TestEnginesFindTheSame checks that both engines find the same products for any text.
func TestEnginesFindTheSame(t *testing.T) {
	t.Parallel()
	engines := map[string]catalog.Index{}
	for name, place := range adapters {
		x := openAt(t, place(t))
		defer indextest.Close(t, x)
		indextest.Save(t, x, indextest.JudgedProducts()...)
		engines[name] = x
	}
	var vocabulary []string
	for _, p := range indextest.JudgedProducts() {
		vocabulary = append(vocabulary, strings.Fields(p.Title+" "+p.Description)...)
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same texts in every run
	found := 0
	for range 150 {
		var words []string
		for range 1 + random.IntN(3) {
			w := []rune(vocabulary[random.IntN(len(vocabulary))])
			switch at := random.IntN(len(w)); random.IntN(4) {
			case 0:
				w = w[:at+1]
			case 1:
				w[at] = []rune("aé茶🎉-'")[random.IntN(6)]
			}
			words = append(words, string(w))
		}
		text := strings.Join(words, []string{" ", "-", "", ", "}[random.IntN(4)])
		answers := map[string]string{}
		for name, x := range engines {
			page, err := x.Search(t.Context(), catalog.Query{Text: text, Limit: 100})
			if err != nil {
				t.Fatal(err)
			}
			var skus []string
			for _, p := range page.Products {
				skus = append(skus, p.Sku)
			}
			slices.Sort(skus)
			answers[name] = fmt.Sprint(skus)
			found += len(skus)
		}
		if answers["bleve"] != answers["elasticsearch"] {
			t.Errorf("%q: %v", text, answers)
		}
	}
	if found == 0 {
		t.Error("nothing was found at all")
	}
}
