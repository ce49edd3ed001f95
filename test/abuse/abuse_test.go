// Package abuse attacks every surface of a running system with inputs that no honest client sends.
// No answer may blame the server for them. Afterwards, verify must find all sides equal, and the
// process must not have grown much.
//
//	go test ./test/abuse                                           500 inputs per surface
//	go test ./test/abuse -abuse.inputs 10000 -abuse.surface tracking   more of one surface
//
// A surface is a name and a function that makes a request from random numbers. To attack another
// surface, add an entry to surfaces. The topics are attacked in records_test.go. The random numbers
// have fixed seeds, so a run can be repeated.
package abuse

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

var (
	inputs = flag.Int("abuse.inputs", 500, "number of inputs per surface")
	report = flag.String("abuse.report", "", "file for the report (default: none)")
	only   = flag.String("abuse.surface", "", "attack only this surface (default: all, and the topics)")
)

const (
	root    = "../.."
	timeout = 2 * time.Minute

	// maxGrowth is how much the process may grow, in MB. It includes memory for regular work, such
	// as the log. If inputs could pin memory permanently, the process would soon exceed it.
	maxGrowth = 384
)

// surface makes one attack on a listener: "api", "admin", "feast" or "tracking".
type surface struct {
	name, listener string
	attack         func(r *rand.Rand, base string) (*http.Request, error)
}

func surfaces() []surface {
	return []surface{
		{"commands, JSON", "api", rpcAttack("application/json")},
		{"commands, Protobuf", "api", rpcAttack("application/proto")},
		{"gRPC-Web", "api", rpcAttack("application/grpc-web+proto")},
		{"gRPC", "api", rpcAttack("application/grpc")},
		{"queries by GET", "api", getAttack},
		{"SQL", "api", sqlAttack},
		{"REST catalog", "api", catalogAttack},
		{"admin", "admin", adminAttack},
		{"profiles", "admin", profileAttack},
		{"Feast", "feast", feastAttack},
		{"tracking", "tracking", trackingAttack},
	}
}

var procedures = []string{
	"millrace.order.v1.OrderService/PlaceOrder",
	"millrace.order.v1.OrderService/ConfirmOrder",
	"millrace.order.v1.OrderQueryService/GetOrder",
	"millrace.inventory.v1.InventoryService/ReserveStock",
	"millrace.catalog.v1.CatalogService/SetPrice",
	"millrace.catalog.v1.CatalogQueryService/SearchProducts",
	"millrace.customer.v1.CustomerService/RegisterCustomer",
	"millrace.order.v1.OrderService/Nothing", // does not exist
}

func post(to, contentType, body string) (*http.Request, error) {
	req, err := http.NewRequest(http.MethodPost, to, strings.NewReader(body))
	if err == nil {
		req.Header.Set("Content-Type", contentType)
	}
	return req, err
}

func rpcAttack(contentType string) func(*rand.Rand, string) (*http.Request, error) {
	return func(r *rand.Rand, base string) (*http.Request, error) {
		body := text(r)
		if strings.Contains(contentType, "grpc") && r.IntN(4) > 0 {
			// A frame of gRPC: flags, and a length that rarely matches.
			body = string([]byte{byte(r.IntN(3)), 0, 0, 0, byte(r.IntN(64))}) + body
		}
		req, err := post(base+"/"+pick(r, procedures), contentType, body)
		if err == nil && r.IntN(4) == 0 {
			header := pick(r, []string{"Grpc-Encoding", "Content-Encoding", "Connect-Timeout-Ms", "Grpc-Timeout"})
			req.Header.Set(header, pick(r, []string{"gzip", "br", "-1", "1n", "x"}))
		}
		return req, err
	}
}

func getAttack(r *rand.Rand, base string) (*http.Request, error) {
	q := url.Values{
		"message": {text(r)}, "encoding": {pick(r, []string{"json", "proto", "x"})},
		"base64": {pick(r, []string{"0", "1"})}, "connect": {"v1"},
	}
	return http.NewRequest(http.MethodGet, base+"/millrace.order.v1.OrderQueryService/GetOrder?"+q.Encode(), nil)
}

func sqlAttack(r *rand.Rand, base string) (*http.Request, error) {
	q := url.Values{}
	if r.IntN(3) == 0 {
		q.Set("as_of", pick(r,
			[]string{"nosuch/0=5", "millrace.orders/99=1", "9999h", "0001-01-01T00:00:00Z", text(r)}))
	}
	if r.IntN(4) == 0 {
		q.Set("output", text(r))
	}
	body := pick(r, []string{
		"SELECT * FROM nothing", "SELECT file('/etc/passwd')",
		"SELECT * FROM url('http://127.0.0.1/', 'CSV', 'a String')", "SELECT sleep(100)",
		"SELECT query FROM system.processes",
		"SELECT throwIf(1)", "SELECT toInt32('x')", "SELECT 1/", "SELECT * FROM order_lines WHERE a = 1",
		"SELECT repeat('x', 100000000000)", "SELECT catboostEvaluate('x', 1)",
		"SELECT dictGet('a', 'b', 1)", "SELECT * FROM executable('sh', 'CSV', 'a String')",
		"SELECT " + text(r), text(r), "SELECT 1 FROM `" + strings.Repeat("t", 3000) + "`",
	})
	contentType := pick(r, []string{"", "application/sql", "text/plain", "application/x-www-form-urlencoded"})
	return post(base+"/v1/sql?"+q.Encode(), contentType, body)
}

func catalogAttack(r *rand.Rand, base string) (*http.Request, error) {
	name := url.PathEscape(pick(r, []string{"x", strings.Repeat("n", 3000), "..", "a/b", text(r)}))
	path := pick(r, []string{
		"/namespaces", "/namespaces/millrace/tables", "/namespaces/" + name,
		"/namespaces/millrace/tables/" + name, "/namespaces/" + name + "/register",
		"/transactions/commit", "/tables/rename",
	})
	body := pick(r, []string{
		"", "{}", "[]", `{"namespace":["` + strings.Repeat("n", 3000) + `"]}`,
		`{"name":"` + strings.Repeat("t", 3000) + `","schema":{"type":"struct","fields":[]}}`, text(r),
	})
	req, err := post(base+"/iceberg/v1"+path, "application/json", body)
	if err == nil {
		req.Method = pick(r, []string{"GET", "POST", "HEAD", "DELETE", "PUT"})
	}
	return req, err
}

func adminAttack(r *rand.Rand, base string) (*http.Request, error) {
	method := pick(r, []string{"Status", "Nothing"})
	contentType := pick(r, []string{"application/json", "application/proto", "application/grpc-web+proto"})
	return post(base+"/millrace.admin.v1.AdminService/"+method, contentType, text(r))
}

func profileAttack(r *rand.Rand, base string) (*http.Request, error) {
	q := url.Values{pick(r, []string{"debug", "gc"}): {text(r)},
		"seconds": {pick(r, []string{"-1", "x", "1e99", "NaN", "0"})}}
	profile := pick(r, []string{"heap", "profile", "trace", "nosuch"})
	return http.NewRequest(http.MethodGet, base+"/debug/pprof/"+profile+"?"+q.Encode(), nil)
}

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

// text returns a short text of a kind that often breaks parsers.
func text(r *rand.Rand) string {
	switch r.IntN(5) {
	case 0:
		b := make([]byte, r.IntN(64))
		for i := range b {
			b[i] = byte(r.UintN(256))
		}
		return string(b)
	case 1:
		return strings.Repeat("[", r.IntN(20000))
	case 2:
		return fmt.Sprintf(`{"orderId":%q,"lines":[{"quantity":%d}]}`, strings.Repeat("é\u0000", r.IntN(40)), r.Int64())
	case 3:
		return strings.Repeat("🙂", r.IntN(500))
	}
	return pick(r, []string{"", "null", "{}", "-0", "1e400", "\x00", "\ufeff{}", "NaN"})
}

// TestAbuse checks that no input of a client is answered by a server error.
func TestAbuse(t *testing.T) {
	s := startSystem(t)
	before := s.memory(t)
	var b strings.Builder
	fmt.Fprintf(&b, "# Abuse\n\nWritten by `make abuse`: do not edit.\n\n"+
		"Each surface is sent inputs that no honest client sends. No answer may blame the server.\n"+
		"A code is an HTTP status, with the gRPC status behind it if there is one.\n\n"+
		"Memory before: %.0f MB\n\n| surface | inputs | answers by code |\n|---|---:|---|\n", before)
	client := &http.Client{Timeout: time.Minute}
	for i, surface := range surfaces() {
		if *only != "" && surface.name != *only {
			continue
		}
		r := rand.New(rand.NewPCG(uint64(i), 11))
		codes := map[string]int{}
		for range *inputs {
			req, err := surface.attack(r, "http://"+s.addresses[surface.listener])
			if err != nil {
				codes["no request"]++
				continue
			}
			res, err := client.Do(req)
			if err != nil {
				codes["connection closed"]++
				continue
			}
			body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10)) // the beginning of a long body is enough
			_ = res.Body.Close()
			code := fmt.Sprint(res.StatusCode)
			if m := grpcStatus.FindSubmatch(body); m != nil {
				code += "/" + string(m[1])
			} else if status := res.Header.Get("Grpc-Status") + res.Trailer.Get("Grpc-Status"); status != "" {
				code += "/" + status
			}
			// gRPC's statuses 2 and 13 are unknown and internal.
			failed := serverErrors[res.StatusCode] || strings.HasSuffix(code, "/2") || strings.HasSuffix(code, "/13")
			if codes[code]++; codes[code] == 1 && failed {
				t.Errorf("%s: %s %s: %s: %.300q", surface.name, req.Method, req.URL.Path, code, body)
			}
		}
		var lines []string
		for _, code := range slices.Sorted(maps.Keys(codes)) {
			lines = append(lines, fmt.Sprintf("%s: %d", code, codes[code]))
		}
		fmt.Fprintf(&b, "| %s | %d | %s |\n", surface.name, *inputs, strings.Join(lines, ", "))
	}
	if *only == "" {
		s.attackTopics(t, &b)
	}
	after := s.memory(t)
	if after-before > maxGrowth {
		t.Errorf("the process has %.0f MB, %.0f MB more than before; at most %d MB more are allowed",
			after, after-before, maxGrowth)
	}
	out, err := s.command(t, "verify", "--addr", s.addresses["api"], "--admin-addr", s.addresses["admin"])
	if err != nil {
		t.Errorf("verify: %v\n%s", err, out)
	}
	fmt.Fprintf(&b, "\nMemory after: %.0f MB\n\n`millrace verify` after:\n\n```\n%s```\n", after, out)
	if *report != "" {
		if err := os.WriteFile(*report, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// serverErrors are the statuses that blame the server. 501 is not one of them: it is the answer to
// a method that does not exist.
var serverErrors = map[int]bool{
	http.StatusInternalServerError: true, http.StatusBadGateway: true,
	http.StatusServiceUnavailable: true, http.StatusGatewayTimeout: true,
}

var (
	grpcStatus = regexp.MustCompile(`grpc-status: (\d+)`)
	serving    = regexp.MustCompile(`^serving on http://(\S+), operations on http://(\S+);`)
	listens    = regexp.MustCompile(`(?:^|, )(?:millrace )?(kafka|feast|tracking) (127\.0\.0\.1:\d+)`)
	resident   = regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)`)
)

type system struct {
	binary, data string
	addresses    map[string]string // of the listeners, and of the log as "kafka"
	stop         func()
}

// startSystem builds the binary and starts the system on the embedded default, with the demo's
// orders.
func startSystem(t *testing.T) *system {
	t.Helper()
	process.DependOnSource(t, root)
	dir := t.TempDir()
	s := &system{binary: filepath.Join(dir, "millrace"), data: filepath.Join(dir, "data")}
	if err := process.Build(t.Context(), root, "./cmd/millrace", s.binary); err != nil {
		t.Fatal(err)
	}
	library, err := filepath.Abs(root + "/.tools/npm/node_modules/@chdb/lib-linux-x64-gnu/libchdb.so")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MILLRACE_CLICKHOUSE_LIBRARY", library) // it is not beside the binary
	s.start(t)
	return s
}

// start starts the system on its data folder, until stop or the end of the test.
func (s *system) start(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.binary, "up", "--data", s.data, "--addr", "127.0.0.1:0",
		"--admin-addr", "127.0.0.1:0", "--tracking-addr", "127.0.0.1:0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := make(chan map[string]string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		addresses := map[string]string{}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			for _, m := range listens.FindAllStringSubmatch(lines.Text(), -1) {
				addresses[m[1]] = m[2]
			}
			if m := serving.FindStringSubmatch(lines.Text()); m != nil {
				addresses["api"], addresses["admin"] = m[1], m[2]
				found <- addresses
			}
		}
		_ = cmd.Wait() // an error is expected: the test has interrupted it
	}()
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(timeout):
			_ = cmd.Process.Kill()
		}
	})
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("%.4000s", log.String())
		}
	})
	select {
	case s.addresses = <-found:
	case <-ended:
		t.Fatalf("millrace up exited before it served:\n%s", log.String())
	case <-time.After(timeout):
		t.Fatalf("millrace up does not serve after %v", timeout)
	}
}

func (s *system) command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.binary, args...).CombinedOutput()
	return string(out), err
}

// memory returns the memory of the process in MB, as its metrics report it.
func (s *system) memory(t *testing.T) float64 {
	t.Helper()
	client := &http.Client{Timeout: time.Minute}
	res, err := client.Get("http://" + s.addresses["admin"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := resident.FindSubmatch(body)
	if m == nil {
		t.Fatal("no metric process_resident_memory_bytes")
	}
	var bytes float64
	if _, err := fmt.Sscan(string(m[1]), &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes / (1 << 20)
}
