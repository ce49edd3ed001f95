package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/test/servers/process"
)

// TestOneTableStops checks what the README says of a table that cannot be landed. Everything else
// continues, every way to ask names the table and the remedy, and once it is dropped it is landed
// again.
func TestOneTableStops(t *testing.T) {
	t.Parallel()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	brokers := fmt.Sprint("127.0.0.1:", ports[0])
	env := []string{"MILLRACE_KAFKA_LISTEN=" + brokers}
	data := filepath.Join(t.TempDir(), "data")
	s := upOn(t, env, data, "127.0.0.1:0")
	s.ready()
	counts := s.verified()
	s.stop()

	deleteMetadata(t, data, "millrace.db/order_lines")
	s = upOn(t, env, data, "127.0.0.1:0", "--no-demo")
	s.ready()
	const lost = "order_lines"
	if body := s.page("/readyz"); !strings.HasPrefix(body, "degraded\n") || !strings.Contains(body,
		lost) || !strings.Contains(body, "restore the file, or drop the table") {
		t.Errorf("readiness: %q", body)
	}
	if body := s.page("/metrics"); !strings.Contains(body,
		`millrace_table_stopped{table="`+lost+`"} 1`) || strings.Count(body, "\nmillrace_table_stopped{") != 1 {
		t.Error("the metric does not name the table, or names others")
	}
	if text := s.run("status"); !strings.Contains(text, "table "+lost+" is broken: ") || !strings.Contains(text,
		"restore the file, or drop the table") {
		t.Errorf("status:\n%s", text)
	}
	var status struct {
		Tables []struct{ Table, Reason, Remedy string }
	}
	if err := json.Unmarshal([]byte(s.run("status", "--output", "json")), &status); err != nil {
		t.Fatal(err)
	}
	if have := status.Tables; len(have) != 1 || have[0].Table != lost || have[0].Reason == "" || have[0].Remedy == "" {
		t.Errorf("status: %+v", have)
	}
	if n := s.rows("SELECT count() AS n FROM orders_events")[0]["n"]; n != counts["table orders_events events"] {
		t.Errorf("%v events, want %v", n, counts["table orders_events events"])
	}
	if _, errOut, err := try(t, "sql", "--addr", s.addr,
		"SELECT count() FROM order_lines"); err == nil || !strings.Contains(errOut, lost) {
		t.Errorf("SQL on the table: %v, %s", err, errOut)
	}
	shown, errOut, err := try(t, "lake", "tables", "--data", data)
	if err != nil || !strings.Contains(shown, "millrace.orders_events") || !strings.Contains(errOut,
		"broken: ") || !strings.Contains(errOut, lost) {
		t.Errorf("lake tables: %v\n%s%s", err, shown, errOut)
	}

	s.placeOrder()
	s.verifyDiffers("table order_lines")
	if n := number(s.rows("SELECT count() AS n FROM orders_events")[0]["n"]); fmt.Sprint(n-1) != counts["table orders_events events"].String() {
		t.Errorf("%v events with the new one, %v before", n, counts["table orders_events events"])
	}

	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete,
		"http://"+s.addr+"/iceberg/v1/namespaces/millrace/tables/order_lines", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("drop it: %s", resp.Status)
	}
	s.stop()
	s = upOn(t, env, data, "127.0.0.1:0", "--no-demo")
	s.ready()
	s.verified()
	eventually(t, "ready without a reservation", func() bool { return s.page("/readyz") == "ready\n" })

	// A table with a missing file is still landed. The first query that reads it gets an error, and
	// from then on status reports the table.
	files, err := filepath.Glob(filepath.Join(data, "lake", "warehouse", "millrace.db", "stock_movements", "data",
		"*.parquet"))
	if err != nil || len(files) == 0 {
		t.Fatalf("data files: %v, %v", files, err)
	}
	for _, f := range files {
		if err := os.Rename(f, f+".away"); err != nil {
			t.Fatal(err)
		}
	}
	if _, errOut, err := try(t, "sql", "--addr", s.addr,
		"SELECT * FROM stock_movements"); err == nil || !strings.Contains(errOut, "stock_movements") || !strings.Contains(errOut, " missing") {
		t.Errorf("SQL on a table without a file: %v, %s", err, errOut)
	}
	if n := len(s.rows("SELECT * FROM order_lines")); n == 0 {
		t.Error("SQL on another table finds no row")
	}
	if body := s.page("/readyz"); !strings.HasPrefix(body, "degraded\n") || !strings.Contains(body, "stock_movements") {
		t.Errorf("readiness: %q", body)
	}
	if text := s.run("status"); !strings.Contains(text, "table stock_movements is broken: ") {
		t.Errorf("status:\n%s", text)
	}
	for _, f := range files {
		if err := os.Rename(f+".away", f); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "lake", "maintain", "stock_movements", "--data", data)
	if body := s.page("/readyz"); body != "ready\n" {
		t.Errorf("readiness: %q", body)
	}

	// A lander whose only table is stopped ends and reports the reason.
	landing := append(env, "MILLRACE_KAFKA_BROKERS="+brokers)
	produce := producer(t, brokers, logs)
	produce(`{"level":"info"}`)
	args := []string{"--topic", logs, "--json", "--until-end"}
	landed(t, landing, data, args...)
	deleteMetadata(t, data, "foreign.db/e2e_logs")
	produce(`{"level":"warn"}`)
	for _, args := range [][]string{args, args[:3]} { // with and without --until-end
		cmd := exec.CommandContext(t.Context(), binary, append([]string{"lake", "land", "--data", data}, args...)...)
		cmd.Env = append(os.Environ(), landing...)
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.Contains(string(out),
			"foreign.e2e_logs") || !strings.Contains(string(out), "restore the file, or drop the table") {
			t.Errorf("lake land %v: %v\n%s", args, err, out)
		}
	}
	s.verified() // the external table makes no side differ
	s.stop()
}

// deleteMetadata deletes the metadata of a table.
func deleteMetadata(t *testing.T, data, table string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "lake", "warehouse", table, "metadata", "*.metadata.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("metadata of %s: %v, %v", table, files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
}

func try(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// page returns a page of the admin listener.
func (s *system) page(path string) string {
	s.t.Helper()
	resp, err := http.Get("http://" + s.admin + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s: %s %s, %v", path, resp.Status, body, err)
	}
	return string(body)
}

// placeOrder places one order.
func (s *system) placeOrder() {
	s.t.Helper()
	order := fmt.Sprintf(`{"order_id":%q,"reference":"E2E-1","currency":"GBP","country":"GB",
		"lines":[{"sku":"MUG-1","description":"a mug","quantity":1,"unit_price":{"currency_code":"GBP","units":9}}]}`, uuid.Must(uuid.NewV7()))
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost,
		"http://"+s.addr+"/millrace.order.v1.OrderService/PlaceOrder", strings.NewReader(order))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", "e2e-stopped")
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		s.t.Fatalf("place an order: %s %s", resp.Status, body)
	}
}

// verifyDiffers runs verify, which must find one unreadable side and everything else equal.
func (s *system) verifyDiffers(side string) {
	s.t.Helper()
	var result struct {
		Equal      bool
		Aggregates []struct {
			Aggregate, Difference string
			Equal                 bool
			Sides                 []struct{ Side, Hash string }
		}
	}
	out, errOut, err := try(s.t, "verify", "--output", "json", "--wait", "30s", "--addr", s.addr, "--admin-addr",
		s.admin)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		s.t.Fatalf("verify: %v %s", err, errOut)
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		s.t.Fatalf("verify: %s%s", out, errOut)
	}
	var different []string
	for _, a := range result.Aggregates {
		if !a.Equal {
			different = append(different, a.Difference)
		}
	}
	// The events of behaviour, which have no service, are one more.
	if len(result.Aggregates) != len(event.Aggregates())+1 || len(different) != 1 || !strings.Contains(different[0], side) {
		s.t.Errorf("verify: %d aggregates, different: %q", len(result.Aggregates), different)
	}
	for _, a := range result.Aggregates {
		if !a.Equal && !slices.ContainsFunc(a.Sides, func(other struct{ Side, Hash string }) bool {
			return other.Side == "table orders_events" && other.Hash != ""
		}) {
			s.t.Errorf("verify: of %s only %v were compared", a.Aggregate, a.Sides)
		}
	}
}
