package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
)

// caller makes one kind of request repeatedly.
type caller struct {
	path, contentType string
	body              func() string
}

var (
	places = caller{"/millrace.order.v1.OrderService/PlaceOrder", "application/json", func() string {
		return `{"orderId":"` + uuid.Must(uuid.NewV7()).String() + `","currency":"GBP","country":"GB","lines":[{"sku":"MUG","quantity":1,"unitPrice":{"currencyCode":"GBP","units":9}}]}`
	}}
	searches = caller{"/millrace.catalog.v1.CatalogQueryService/SearchProducts", "application/json",
		func() string { return `{"query":"mug"}` }}
	counts = caller{"/v1/sql", "application/sql", func() string { return "SELECT count() FROM orders_events" }}
)

// tally counts the answers to one kind of caller.
type tally struct{ accepted, shed atomic.Int64 }

func (o *tally) shedRatio() float64 {
	shed, accepted := float64(o.shed.Load()), float64(o.accepted.Load())
	return shed / max(shed+accepted, 1)
}

// ask makes one request. Any answer that is not complete must be that of an overloaded server.
func (c caller) ask(ctx context.Context, t *testing.T, client *http.Client, addr string, o *tally) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+c.path, strings.NewReader(c.body()))
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("Content-Type", c.contentType)
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			t.Errorf("%s: %v", c.path, err)
		}
		return
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		t.Errorf("%s: %v", c.path, err)
	case res.StatusCode == http.StatusOK:
		o.accepted.Add(1)
	case res.StatusCode == http.StatusTooManyRequests && res.Header.Get("Retry-After") == "1" && strings.Contains(string(body), "resource_exhausted"):
		o.shed.Add(1)
		select { // earlier than it was told
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	default:
		t.Errorf("%s: %s %v %.200s", c.path, res.Status, res.Header, body)
	}
}

// crowd runs n callers until ctx ends.
func crowd(ctx context.Context, t *testing.T, all *sync.WaitGroup, client *http.Client, addr string, n int,
	c caller, o *tally) {
	for range n {
		all.Go(func() {
			for ctx.Err() == nil {
				c.ask(ctx, t, client, addr, o)
			}
		})
	}
}

// TestOverload sends a running system far more requests than it handles at a time. It must shed SQL
// first and commands last, say when to retry, keep its operations answering and its memory within
// bounds, and recover afterwards.
func TestOverload(t *testing.T) {
	s := upOn(t, []string{"MILLRACE_LIMITS_CALLS=4", "MILLRACE_LIMITS_PER_ADDRESS=2000",
		"MILLRACE_LIMITS_CONNECTIONS=2000"},
		filepath.Join(t.TempDir(), "data"), "127.0.0.1:0", "--no-demo")
	s.ready()
	client := &http.Client{Timeout: time.Minute,
		Transport: &http.Transport{MaxIdleConnsPerHost: 2000, MaxConnsPerHost: 2000}}
	defer client.CloseIdleConnections()
	var warm tally
	for range 20 { // wait until the engine has its tables and the views have their documents
		for _, c := range []caller{places, searches, counts} {
			c.ask(t.Context(), t, client, s.addr, &warm)
		}
	}
	before := s.resident()

	// Queries fill their limit, but commands have a reserve.
	burst := func(n int, crowded caller, beside map[*tally]caller, until func() bool) *tally {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var all sync.WaitGroup
		var many tally
		crowd(ctx, t, &all, client, s.addr, n, crowded, &many)
		eventually(t, "load is shed", func() bool { return many.shed.Load() > 0 })
		for o, c := range beside {
			crowd(ctx, t, &all, client, s.addr, 1, c, o)
		}
		eventually(t, "the others were heard", until)
		t.Logf("%s: %d accepted, %d shed", crowded.path, many.accepted.Load(), many.shed.Load())
		for o, c := range beside {
			t.Logf("beside it %s: %d accepted, %d shed", c.path, o.accepted.Load(), o.shed.Load())
		}
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			res, err := http.Get("http://" + s.admin + path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if _ = res.Body.Close(); res.StatusCode != http.StatusOK {
				t.Errorf("%s while load is shed: %s", path, res.Status)
			}
		}
		stop()
		all.Wait()
		return &many
	}
	var sql, commands tally
	queries := burst(400, searches, map[*tally]caller{&sql: counts, &commands: places}, func() bool {
		return commands.accepted.Load() > 50 && sql.accepted.Load()+sql.shed.Load() > 50
	})
	if commands.shed.Load() > 0 {
		t.Errorf("during a burst of queries, %d of %d commands were shed", commands.shed.Load(),
			commands.shed.Load()+commands.accepted.Load())
	}
	if sql.shedRatio() < queries.shedRatio() {
		t.Errorf("shed: %.2f of SQL, %.2f of queries", sql.shedRatio(), queries.shedRatio())
	}

	// A crowd of commands sheds SQL first, then queries.
	var sql2, queries2 tally
	many := burst(400, places, map[*tally]caller{&sql2: counts, &queries2: searches}, func() bool {
		return queries2.accepted.Load()+queries2.shed.Load() > 20 && sql2.accepted.Load()+sql2.shed.Load() > 50
	})
	if sql2.shedRatio() < queries2.shedRatio() || queries2.shedRatio() < many.shedRatio() {
		t.Errorf("shed: %.2f of SQL, %.2f of queries, %.2f of commands", sql2.shedRatio(), queries2.shedRatio(),
			many.shedRatio())
	}
	if many.accepted.Load() == 0 {
		t.Error("no command was accepted")
	}

	const most = 512 << 20
	if grown := s.resident() - before; grown > most {
		t.Errorf("the process has %d MB more than before", grown>>20)
	}
	// Afterwards every request is accepted again, and everything that was accepted is on every
	// side.
	for _, c := range []caller{counts, searches, places} {
		var after tally
		eventually(t, c.path+" is taken again", func() bool {
			c.ask(t.Context(), t, client, s.addr, &after)
			return after.accepted.Load() >= 20
		})
	}
	s.verified()
	s.stop()
}

var residentBytes = regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)`)

// resident returns the memory of the process, as its metrics report it.
func (s *system) resident() int64 {
	s.t.Helper()
	res, err := http.Get("http://" + s.admin + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	m := residentBytes.FindSubmatch(body)
	if m == nil {
		s.t.Fatal("no metric process_resident_memory_bytes")
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return int64(n)
}

// TestSQLFairness checks that callers share SQL. A caller with forty queries delays another one no
// longer than until a slot of its own is free. Neither sees the other's queries, even though both
// may read everything.
func TestSQLFairness(t *testing.T) {
	const greedy, modest = "greedy-0123456789-0123456789", "modest-0123456789-0123456789"
	dir := t.TempDir()
	s := upOn(t, []string{"MILLRACE_AUTH_TOKENS=" + tokensFile(t, dir, "greedy:"+greedy, "modest:"+modest),
		"MILLRACE_AUTH_RIGHTS={greedy: [sql], modest: [sql]}", "MILLRACE_LIMITS_SQL_WAIT=5m"},
		filepath.Join(dir, "data"), "127.0.0.1:0", "--no-demo")
	s.ready()
	ask := func(ctx context.Context, token, query string) (int, string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.addr+"/v1/sql",
			strings.NewReader(query))
		if err != nil {
			return 0, "", err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		return res.StatusCode, string(body), err
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var ended atomic.Int64
	for range 40 { // none of them ends by itself before the test does
		all.Go(func() {
			status, body, err := ask(ctx, greedy,
				"SELECT count() AS theirs FROM numbers(1e15) WHERE cityHash64(number) = 1")
			if ctx.Err() == nil {
				ended.Add(1)
				t.Errorf("%d %.200s %v", status, body, err)
			}
		})
	}
	eventually(t, "they fill their share", func() bool {
		_, body, err := ask(t.Context(), modest, "SELECT 1 AS mine")
		return err == nil && body == `{"mine":1}`+"\n"
	})
	for range 10 {
		if status, body, err := ask(t.Context(), modest,
			"SELECT 1 AS mine"); err != nil || status != http.StatusOK || body != `{"mine":1}`+"\n" {
			t.Errorf("the other caller: %d %s %v", status, body, err)
		}
	}
	if ended.Load() > 0 {
		t.Error("the other caller was answered only after the forty queries had ended")
	}
	for _, query := range []string{
		"SELECT query FROM system.processes", "SELECT * FROM system.query_log", "SELECT * FROM `system`.`processes`", "SELECT * FROM system /* */ . processes",
		"SHOW PROCESSLIST", "SELECT * FROM merge('system', 'processes')", "SELECT query FROM system.query_thread_log", "SELECT * FROM system.asynchronous_loader",
		"SELECT * FROM view(SELECT query FROM system.processes)", "SELECT query FROM cluster('default', system.processes)", "EXPLAIN SELECT query FROM system.processes",
		"SELECT * FROM remote('127.0.0.1', system.processes)", "WITH p AS (SELECT query FROM system.processes) SELECT * FROM p", "SELECT * FROM system.user_processes",
	} {
		if status, body, err := ask(t.Context(), modest,
			query); err != nil || status < 400 || status >= 500 || strings.Contains(body, "theirs") {
			t.Errorf("%s: %d %.300s %v", query, status, body, err)
		}
	}
	stop()
	all.Wait()
	s.stop()
}

// TestIdleConnections checks that idle connections keep nobody out, even though the process may
// open only 1024 files.
func TestIdleConnections(t *testing.T) {
	for _, idle := range []int{804, 1000} {
		t.Run(fmt.Sprint(idle), func(t *testing.T) {
			dir := t.TempDir()
			const token = "shop-0123456789-0123456789"
			s := upBy(t, []string{"sh", "-c", `ulimit -n 1024 && exec "$0" "$@"`, binary},
				[]string{"MILLRACE_AUTH_TOKENS=" + tokensFile(t, dir, "shop:"+token),
					"MILLRACE_AUTH_RIGHTS={shop: [all]}"},
				filepath.Join(dir, "data"), "127.0.0.1:0", "--no-demo")
			s.ready()
			for _, addr := range []string{s.addr, s.admin} {
				for range idle {
					idleAfterRejection(t, addr)
				}
			}
			client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
			for _, c := range []caller{places, searches, counts} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.addr+c.path,
					strings.NewReader(c.body()))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", c.contentType)
				req.Header.Set("Authorization", "Bearer "+token)
				answered(t, client, req)
			}
			for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.admin+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				answered(t, client, req)
			}
			s.stop()
		})
	}
}

func answered(t *testing.T, client *http.Client, req *http.Request) {
	t.Helper()
	res, err := client.Do(req)
	if err != nil {
		t.Errorf("%s: %v", req.URL.Path, err)
		return
	}
	defer func() { _ = res.Body.Close() }()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK {
		t.Errorf("%s: %s %.200s", req.URL.Path, res.Status, body)
	}
}

// idleAfterRejection opens a connection, is rejected for lack of a token, and keeps the connection
// open.
func idleAfterRejection(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /debug/pprof/ HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusUnauthorized {
		t.Fatalf("without a token: %s %v", res.Status, err)
	}
}

// tokensFile writes a file of callers, each as NAME:TOKEN.
func tokensFile(t *testing.T, dir string, callers ...string) string {
	t.Helper()
	file := filepath.Join(dir, "tokens")
	if err := os.WriteFile(file, []byte(strings.Join(callers, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
