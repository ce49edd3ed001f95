package catalog

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/stall"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	"github.com/millrace/millrace/test/servers/elasticsearch"
)

// apart asks Elasticsearch without the index's help.
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

// aliasURL is where the place's alias is.
func (p place) aliasURL() string {
	words := strings.Fields(string(p))
	return words[1] + "/" + words[2] + "catalog-v2"
}

func deleteIndex(t testing.TB, p place) {
	t.Helper()
	if status := apart(t, http.MethodDelete, p.aliasURL()+"-000001", nil); status != http.StatusOK {
		t.Fatalf("delete the index: %d", status)
	}
}

// strict fails unless the index has its own mapping, not one that a write has made up.
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

func TestElasticsearchIsMadeOnce(t *testing.T) {
	t.Parallel()
	p := inElasticsearch(t, &server)
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			x, err := p.open(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			closed(t, x)
		})
	}
	g.Wait()
	strict(t, p)
}

// An index that is gone must be noticed, and comes back with its mapping, when the runtime begins anew.
func TestElasticsearchIndexThatIsGone(t *testing.T) {
	t.Parallel()
	p := inElasticsearch(t, &server)
	x := openAt(t, p)
	defer closed(t, x)
	at5 := streams.Applied{Next: 5}
	if err := x.SavePositions(t.Context(), "a", []streams.Move{{First: true, To: at5}}); err != nil {
		t.Fatal(err)
	}
	save(t, x, product("1", "lamp", ""))
	deleteIndex(t, p)
	_, loadErr := x.Load(t.Context(), "1")
	for what, err := range map[string]error{
		"load":           loadErr,
		"save":           x.Save(t.Context(), nil),
		"save a product": x.Save(t.Context(), []*catalogv1.Product{product("1", "lamp", "")}),
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
	save(t, x, product("1", "lamp", ""))
	if got := find(t, x, Query{Text: "lamp"}); len(got) != 1 {
		t.Errorf("found %v", got)
	}
}

func holdsAll(t testing.TB, v *View, l *streamstest.Log) {
	t.Helper()
	want, err := ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the view is complete", func() bool {
		got, err := v.Digest(t.Context())
		return err == nil && maps.Equal(got.Streams, want.Streams)
	})
	asExpected(t, v, l)
}

func TestElasticsearchIndexDeletedWhileTheViewRuns(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	p := inElasticsearch(t, &server)
	v, _ := openView(t, func() Index { return openAt(t, p) })
	r := v.Runtime(cfg, nil, quiet)
	streamstest.Start(t, r)
	l.Write(t, happenings(t, l, 300, 1500)...)
	streamstest.CatchUp(t, r)
	deleteIndex(t, p) // nothing comes
	holdsAll(t, v, l)
	more := happenings(t, l, 300, 1500)
	var writing sync.WaitGroup
	writing.Go(func() { l.Write(t, more...) })
	deleteIndex(t, p) // events come
	writing.Wait()
	holdsAll(t, v, l)
	strict(t, p)
}

// The server dies under writes, and comes back with what it has acknowledged.
func TestElasticsearchIsKilledUnderWrites(t *testing.T) {
	t.Parallel()
	var own elasticsearch.Server
	p := inElasticsearch(t, &own)
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	v, _ := openView(t, func() Index { return openAt(t, p) })
	r := v.Runtime(cfg, nil, quiet)
	streamstest.Start(t, r)
	for range 2 {
		more := happenings(t, l, 500, 3000)
		var writing sync.WaitGroup
		writing.Go(func() { l.Write(t, more...) })
		before, err := v.index.Count(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "the view takes some of it", func() bool {
			n, err := v.index.Count(t.Context())
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
		asExpected(t, v, l)
	}
}

// Two processes of one group share the partitions, and a third writer, late and of no group, brings everything once
// more.
func TestElasticsearchFedByProcessesAtOnce(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	p := inElasticsearch(t, &server)
	events := happenings(t, l, 500, 6000)
	l.Write(t, events[:2000]...)
	children := []*childProcess{startChild(t, cfg.Brokers, "one", p), startChild(t, cfg.Brokers, "two", p)}
	children[0].lag(t)
	children[1].lag(t)
	var writing sync.WaitGroup
	writing.Go(func() { l.Write(t, events[2000:]...) })
	v, _ := openView(t, func() Index { return openAt(t, p) })
	all := records(events)
	for done := 0; done < len(all); done += 500 {
		if err := v.Apply(t.Context(), all[done:done+500]); err != nil {
			t.Fatal(err)
		}
	}
	writing.Wait()
	for _, c := range children {
		go func() { // read what they say, else they wait for us
			for c.lines.Scan() {
			}
		}()
	}
	ends := map[int32]bool{}
	polltest.Until(t, "the positions stand at the end", func() bool {
		positions, err := v.Positions(t.Context(), event.Product.Topic)
		if err != nil {
			return false
		}
		latest := uint64(0)
		for id, at := range positions {
			ends[id] = true
			latest = max(latest, at.Watermark.Sequence)
		}
		return latest == uint64(len(events)) && len(ends) == streamstest.Partitions
	})
	for _, c := range children {
		c.kill(t)
	}
	asExpected(t, v, l)
}

// proxy guards Elasticsearch with TLS and passwords: of the user "millrace", who may do all, and of "reader", who may
// not write.
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

func TestElasticsearchBehindTLSAndPassword(t *testing.T) {
	t.Parallel()
	guard := proxy(t, "right")
	trust := &tls.Config{RootCAs: guard.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, MinVersion: tls.VersionTLS12}
	good := ElasticsearchConfig{
		Addresses: []string{guard.URL}, Username: "millrace", Password: "right", TLS: trust,
		Prefix: fmt.Sprintf("test-%d-", prefixes.Add(1)), Logger: quiet,
	}
	open := func(cfg ElasticsearchConfig) Index {
		x, err := OpenElasticsearch(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closed(t, x) })
		return x
	}
	reading := good
	reading.Username = "reader"
	reader := open(reading) // before there is anything to read
	if positions, err := reader.Positions(t.Context(), "a"); err != nil || len(positions) != 0 {
		t.Errorf("positions of nothing: %v, %v", positions, err)
	}
	if _, err := reader.Search(t.Context(), Query{Limit: 1}); !errors.Is(err, streams.ErrLost) {
		t.Errorf("search in nothing: %v", err)
	}
	writer := open(good)
	save(t, writer, product("1", "lamp", ""))
	if err := writer.SavePositions(t.Context(), "a", []streams.Move{{First: true, To: streams.Applied{Next: 1}}}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []Index{writer, reader} {
		if got := find(t, x, Query{Text: "lamp"}); len(got) != 1 {
			t.Errorf("found %v", got)
		}
		if positions, err := x.Positions(t.Context(), "a"); err != nil || positions[0].Next != 1 {
			t.Errorf("positions %v, %v", positions, err)
		}
	}
	if err := reader.Save(t.Context(), []*catalogv1.Product{product("2", "mug", "")}); err == nil || !strings.Contains(err.Error(), `the user "reader" lacks a privilege`) {
		t.Errorf("the reader writes: %v", err)
	}

	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	welcoming := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	t.Cleanup(welcoming.Close)
	for name, c := range map[string]struct {
		change func(*ElasticsearchConfig)
		want   string
	}{
		"wrong password":    {func(c *ElasticsearchConfig) { c.Password = "secret" }, `the user "millrace" and its password are not accepted`},
		"no password":       {func(c *ElasticsearchConfig) { c.Username, c.Password = "", "" }, "401"},
		"another authority": {func(c *ElasticsearchConfig) { c.TLS = nil }, "certificate"},
		"not Elasticsearch": {func(c *ElasticsearchConfig) { c.Addresses = []string{welcoming.URL} }, "is not Elasticsearch"},
		"nothing there":     {func(c *ElasticsearchConfig) { c.Addresses = []string{"http://127.0.0.1:1"} }, "connection refused"},
		"another server":    {func(c *ElasticsearchConfig) { c.Addresses = []string{other.URL} }, "404"},
		"no address":        {func(c *ElasticsearchConfig) { c.Addresses = nil }, "Addresses is empty"},
		"no URL":            {func(c *ElasticsearchConfig) { c.Addresses = []string{"search:9200"} }, `"search:9200"`},
		"a password in it":  {func(c *ElasticsearchConfig) { c.Addresses = []string{"http://u:secret@search:9200"} }, "Addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			c.change(&cfg)
			x, err := OpenElasticsearch(t.Context(), cfg)
			if err == nil {
				closed(t, x)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v", err)
			}
		})
	}
}

// A frozen server is waited for no longer than the caller wants.
func TestElasticsearchFrozen(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	frozen := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	t.Cleanup(frozen.Close)
	t.Cleanup(func() { close(hang) })
	ctx, cancel := context.WithCancel(t.Context())
	opened := make(chan error, 1)
	go func() {
		_, err := OpenElasticsearch(ctx, ElasticsearchConfig{Addresses: []string{frozen.URL}, Logger: quiet})
		opened <- err
	}()
	cancel()
	if err := <-opened; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	_, err := OpenElasticsearch(t.Context(), ElasticsearchConfig{Addresses: []string{frozen.URL}, Logger: quiet, Stall: 50 * time.Millisecond})
	if !errors.Is(err, stall.ErrSilent) {
		t.Errorf("a caller without a limit of its own: %v", err)
	}
}

// An index that others made, or changed, is found before a product is lost in it.
func TestElasticsearchSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body string // of the index that is there before; empty for none
		want string // in a fault
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
			p := inElasticsearch(t, &server)
			alias := p.aliasURL()[strings.LastIndex(p.aliasURL(), "/")+1:]
			if c.body != "" {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.aliasURL()+"-000001", strings.NewReader(fmt.Sprintf(c.body, alias)))
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
			defer closed(t, x)
			faults, err := x.(*elasticIndex).Settings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" && len(faults) > 0 || c.want != "" && !strings.Contains(fmt.Sprint(faults), c.want) {
				t.Errorf("faults %v, want %q", faults, c.want)
			}
		})
	}
}
