package elasticsearch

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"log/slog"
	"os"
	"sync/atomic"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/stall"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	servers "github.com/millrace/millrace/test/servers/elasticsearch"
)

func TestMain(m *testing.M) {
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

// analysisWorkers are goroutines that bleve, which package analysis imports in part, starts with
// the program and never ends.
var analysisWorkers = goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker")

var quiet = slog.New(slog.DiscardHandler)

// apart sends a request to Elasticsearch directly, without the index.
func apart(t testing.TB, method, url string, into any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // it has been read
	if into != nil {
		if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	return answer.StatusCode
}

// place is the location of an index: the server's URL, and the prefix of the names.
type place struct{ url, prefix string }

var prefixes atomic.Int64

func newPlace(t testing.TB, s *servers.Server) place {
	t.Helper()
	return place{s.URL(t), fmt.Sprintf("test-%d-", prefixes.Add(1))}
}

func (p place) open(ctx context.Context) (*Index, error) {
	return Open(ctx, Config{Addresses: []string{p.url}, Prefix: p.prefix, Logger: quiet})
}

func openAt(t testing.TB, p place) *Index {
	t.Helper()
	x, err := p.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// aliasURL returns the URL of the place's alias.
func (p place) aliasURL() string { return p.url + "/" + p.prefix + "catalog-v2" }

func TestConformance(t *testing.T) {
	t.Parallel()
	indextest.Run(t, func(t testing.TB) indextest.Place {
		p := newPlace(t, &server)
		return func(t testing.TB) catalog.Index { return openAt(t, p) }
	})
}

func deleteIndex(t testing.TB, p place) {
	t.Helper()
	if status := apart(t, http.MethodDelete, p.aliasURL()+"-000001", nil); status != http.StatusOK {
		t.Fatalf("delete the index: %d", status)
	}
}

// strict fails the test unless the index has its own mapping, rather than one that Elasticsearch
// derived from a write.
func strict(t testing.TB, p place) {
	t.Helper()
	var answer map[string]struct {
		Mappings struct {
			Dynamic    string
			Properties map[string]struct{ Type string }
		}
	}
	apart(t, http.MethodGet, p.aliasURL()+"/_mapping", &answer)
	for index, a := range answer {
		if a.Mappings.Dynamic != "strict" || a.Mappings.Properties["product"].Type != "binary" {
			t.Errorf("index %s has another mapping: %+v", index, a.Mappings)
		}
	}
	if len(answer) != 1 {
		t.Errorf("%d indexes behind one alias", len(answer))
	}
}

func TestIndexIsCreatedOnce(t *testing.T) {
	t.Parallel()
	p := newPlace(t, &server)
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			x, err := p.open(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			indextest.Close(t, x)
		})
	}
	g.Wait()
	strict(t, p)
}

// TestMissingIndex checks that a deleted index is noticed, and is created again with its mapping
// when the runtime starts over.
func TestMissingIndex(t *testing.T) {
	t.Parallel()
	p := newPlace(t, &server)
	x := openAt(t, p)
	defer indextest.Close(t, x)
	at5 := streams.Applied{Next: 5}
	if err := x.SavePositions(t.Context(), "a", []streams.Move{{First: true, To: at5}}); err != nil {
		t.Fatal(err)
	}
	indextest.Save(t, x, indextest.Product("1", "lamp", ""))
	deleteIndex(t, p)
	_, loadErr := x.Load(t.Context(), "1")
	for what, err := range map[string]error{
		"load":           loadErr,
		"save":           x.Save(t.Context(), nil),
		"save a product": x.Save(t.Context(), []*catalogv1.Product{indextest.Product("1", "lamp", "")}),
		"save positions": x.SavePositions(t.Context(), "a", []streams.Move{{From: at5, To: streams.Applied{Next: 6}}}),
	} {
		if !errors.Is(err, streams.ErrLost) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if positions, err := x.Positions(t.Context(), "a"); err != nil || len(positions) != 0 {
		t.Errorf("positions %v, %v", positions, err)
	}
	if status := apart(t, http.MethodHead, p.aliasURL(), nil); status != http.StatusNotFound {
		t.Fatalf("the index has come back by itself: %d", status)
	}
	if err := x.SavePositions(t.Context(), "a", []streams.Move{{First: true}}); err != nil {
		t.Fatal(err)
	}
	strict(t, p)
	indextest.Save(t, x, indextest.Product("1", "lamp", ""))
	if got := indextest.Find(t, x, catalog.Query{Text: "lamp"}); len(got) != 1 {
		t.Errorf("found %v", got)
	}
}

func TestIndexDeletedWhileTheViewRuns(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	p := newPlace(t, &server)
	x := openAt(t, p)
	t.Cleanup(func() { indextest.Close(t, x) })
	v := catalog.New(x, quiet)
	r := v.Runtime(cfg, nil, quiet)
	streamstest.Start(t, r)
	l.Write(t, indextest.Events(t, l, 300, 1500)...)
	streamstest.CatchUp(t, r)
	deleteIndex(t, p) // while no events arrive
	indextest.Completed(t, v, l)
	more := indextest.Events(t, l, 300, 1500)
	var writing sync.WaitGroup
	writing.Go(func() { l.Write(t, more...) })
	deleteIndex(t, p) // while events arrive
	writing.Wait()
	indextest.Completed(t, v, l)
	strict(t, p)
}

// TestKilledDuringWrites checks that the server, killed during writes, still has what it
// acknowledged.
func TestKilledDuringWrites(t *testing.T) {
	t.Parallel()
	var own servers.Server
	p := newPlace(t, &own)
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	x := openAt(t, p)
	t.Cleanup(func() { indextest.Close(t, x) })
	v := catalog.New(x, quiet)
	r := v.Runtime(cfg, nil, quiet)
	streamstest.Start(t, r)
	for range 2 {
		more := indextest.Events(t, l, 500, 3000)
		var writing sync.WaitGroup
		writing.Go(func() { l.Write(t, more...) })
		before, err := x.Count(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "the view takes some of it", func() bool {
			n, err := x.Count(t.Context())
			return err == nil && (n > before || n >= uint64(len(l.Versions))/2)
		})
		if err := own.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Status(t.Context()); err == nil {
			t.Error("a dead server has counted its documents")
		}
		writing.Wait()
		if err := own.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		streamstest.CatchUp(t, r)
		indextest.Holds(t, v, l)
	}
}

// proxy puts TLS and passwords in front of Elasticsearch. The user "millrace" may do everything,
// and "reader" may not write.
func proxy(t *testing.T, password string) *httptest.Server {
	t.Helper()
	to, err := url.Parse(server.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	through := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	guard := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, ok := r.BasicAuth()
		if !ok || u != "millrace" && u != "reader" || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="security"`)
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error":{"type":"security_exception","reason":"unable to authenticate user"},"status":401}`)
			return
		}
		if u == "reader" && (r.Method == http.MethodPut || strings.HasSuffix(r.URL.Path, "/_bulk")) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"error":{"type":"security_exception","reason":"action is unauthorized"},"status":403}`)
			return
		}
		through.ServeHTTP(w, r)
	}))
	t.Cleanup(guard.Close)
	return guard
}

func TestBehindTLSAndPassword(t *testing.T) {
	t.Parallel()
	guard := proxy(t, "right")
	trust := &tls.Config{RootCAs: guard.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs,
		MinVersion: tls.VersionTLS12}
	good := Config{
		Addresses: []string{guard.URL}, Username: "millrace", Password: "right", TLS: trust,
		Prefix: fmt.Sprintf("test-%d-", prefixes.Add(1)), Logger: quiet,
	}
	open := func(cfg Config) catalog.Index {
		x, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { indextest.Close(t, x) })
		return x
	}
	reading := good
	reading.Username = "reader"
	reader := open(reading) // before the index exists
	if positions, err := reader.Positions(t.Context(), "a"); err != nil || len(positions) != 0 {
		t.Errorf("positions of nothing: %v, %v", positions, err)
	}
	if _, err := reader.Search(t.Context(), catalog.Query{Limit: 1}); !errors.Is(err, streams.ErrLost) {
		t.Errorf("search in nothing: %v", err)
	}
	writer := open(good)
	indextest.Save(t, writer, indextest.Product("1", "lamp", ""))
	if err := writer.SavePositions(t.Context(), "a",
		[]streams.Move{{First: true, To: streams.Applied{Next: 1}}}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []catalog.Index{writer, reader} {
		if got := indextest.Find(t, x, catalog.Query{Text: "lamp"}); len(got) != 1 {
			t.Errorf("found %v", got)
		}
		if positions, err := x.Positions(t.Context(), "a"); err != nil || positions[0].Next != 1 {
			t.Errorf("positions %v, %v", positions, err)
		}
	}
	if err := reader.Save(t.Context(), []*catalogv1.Product{indextest.Product("2", "mug", "")}); err == nil ||
		!strings.Contains(err.Error(), `the user "reader" lacks a privilege`) {
		t.Errorf("the reader writes: %v", err)
	}

	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	welcoming := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "{}")
	}))
	t.Cleanup(welcoming.Close)
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"wrong password":    {func(c *Config) { c.Password = "secret" }, `authentication failed for user "millrace"`},
		"no password":       {func(c *Config) { c.Username, c.Password = "", "" }, "401"},
		"another authority": {func(c *Config) { c.TLS = nil }, "certificate"},
		"not Elasticsearch": {func(c *Config) { c.Addresses = []string{welcoming.URL} }, "is not Elasticsearch"},
		"nothing there":     {func(c *Config) { c.Addresses = []string{"http://127.0.0.1:1"} }, "connection refused"},
		"another server":    {func(c *Config) { c.Addresses = []string{other.URL} }, "404"},
		"no address":        {func(c *Config) { c.Addresses = nil }, "Addresses is empty"},
		"no URL":            {func(c *Config) { c.Addresses = []string{"search:9200"} }, `"search:9200"`},
		"a password in it":  {func(c *Config) { c.Addresses = []string{"http://u:secret@search:9200"} }, "Addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			c.change(&cfg)
			x, err := Open(t.Context(), cfg)
			if err == nil {
				indextest.Close(t, x)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestFrozen checks that calls to a frozen server end with the caller's deadline.
func TestFrozen(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	frozen := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	t.Cleanup(frozen.Close)
	t.Cleanup(func() { close(hang) })
	ctx, cancel := context.WithCancel(t.Context())
	opened := make(chan error, 1)
	go func() {
		_, err := Open(ctx, Config{Addresses: []string{frozen.URL}, Logger: quiet})
		opened <- err
	}()
	cancel()
	if err := <-opened; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	_, err := Open(t.Context(), Config{Addresses: []string{frozen.URL}, Logger: quiet, Stall: 50 * time.Millisecond})
	if !errors.Is(err, stall.ErrStalled) {
		t.Errorf("a caller without a limit of its own: %v", err)
	}
}

// TestSettings checks that an index created or changed by others is detected before products are
// lost in it.
func TestSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body string // of the existing index; empty for none
		want string // part of the fault
	}{
		"ours":                  {"", ""},
		"made by a first write": {`{"aliases":{%q:{}},"mappings":{"properties":{"title":{"type":"text"}}}}`, "mapping of (dynamic)"},
		"another analyzer": {`{"aliases":{%q:{}},"mappings":{"dynamic":"strict","properties":{"title":{"type":"text","analyzer":"standard"}}}}`,
			"mapping of title"},
		"several shards":     {`{"aliases":{%q:{}},"settings":{"number_of_shards":3}}`, "index.number_of_shards"},
		"not synced to disk": {`{"aliases":{%q:{}},"settings":{"translog.durability":"async"}}`, "index.translog.durability"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, &server)
			alias := p.aliasURL()[strings.LastIndex(p.aliasURL(), "/")+1:]
			if c.body != "" {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.aliasURL()+"-000001",
					strings.NewReader(fmt.Sprintf(c.body, alias)))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/json")
				req.Close = true
				answer, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				if err := answer.Body.Close(); err != nil || answer.StatusCode != http.StatusOK {
					t.Fatal(answer.Status, err)
				}
			}
			x := openAt(t, p)
			defer indextest.Close(t, x)
			faults, err := x.Settings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" && len(faults) > 0 || c.want != "" && !strings.Contains(fmt.Sprint(faults), c.want) {
				t.Errorf("faults %v, want %q", faults, c.want)
			}
		})
	}
}
