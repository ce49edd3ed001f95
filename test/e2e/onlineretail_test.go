package e2e

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

const realData = root + "/../shared/data/online-retail.parquet"

// TestRealYear imports a real shop's year while the system is killed at random moments. It then
// expects the published figures of the data, from Millrace's SQL and from readers that share no
// code with Millrace.
//
// MILLRACE_E2E_KILLS is the number of kills (default 5). MILLRACE_E2E_LIMIT limits the number of
// lines; then the sides are only compared with each other.
func TestRealYear(t *testing.T) {
	if _, err := os.Stat(realData); err != nil {
		t.Skipf("the real data is missing: %v", err)
	}
	t.Setenv("MILLRACE_COMMANDS_CURRENCIES", "{GBP: 3}") // four lines of the file have a price of 0.001
	// Without basket_affinity, which has the most facts by far: to bound the time of this test.
	t.Setenv("MILLRACE_FEATURES_GROUPS", "customer_activity,customer_value,product_popularity")
	kills, limit := envInt(t, "MILLRACE_E2E_KILLS", 5), envInt(t, "MILLRACE_E2E_LIMIT", 0)
	dir := t.TempDir()
	data, rejects := filepath.Join(dir, "data"), filepath.Join(dir, "rejects.csv")
	s := up(t, data, "127.0.0.1:0", "--no-demo")
	addr := s.addr // the same after every restart, so that the import finds the system again

	begun := time.Now()
	var out, progress bytes.Buffer
	importing := exec.Command(binary, "import", "online-retail", realData, "--addr", addr, "--rejects", rejects,
		"--limit", strconv.Itoa(limit), "--output", "json")
	importing.Stdout, importing.Stderr = &out, &progress
	if err := importing.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- importing.Wait() }()
	t.Cleanup(func() { _ = importing.Process.Kill() })

	killed := 0
	var err error
	for done := false; !done; {
		moment := time.NewTimer(time.Duration(rand.Int64N(int64(6 * time.Second))))
		if killed == kills {
			moment.Stop()
		}
		select {
		case err = <-ended:
			done = true
		case <-moment.C:
			s.kill()
			killed++
			s = up(t, data, addr, "--no-demo")
		}
		moment.Stop()
	}
	if err != nil {
		t.Fatalf("import: %v\n%s", err, progress.String())
	}
	t.Logf("imported in %v with %d kills: %s", time.Since(begun).Round(time.Second), killed, out.String())
	var summary struct{ Read, Accepted, Rejected int64 }
	if err := json.Unmarshal(out.Bytes(), &summary); err != nil {
		t.Fatal(err)
	}
	if summary.Accepted+summary.Rejected != summary.Read {
		t.Errorf("%d accepted + %d rejected are not %d read", summary.Accepted, summary.Rejected, summary.Read)
	}
	written, err := os.ReadFile(rejects)
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(bytes.Count(written, []byte("\n"))); n != summary.Rejected {
		t.Errorf("%d lines in the rejects file, %d rejected", n, summary.Rejected)
	}

	s.ready()
	before := s.verified()
	if limit == 0 {
		figures(t, s)
		readExternally(t, data)
	}

	// The same import again must change nothing. Its first part is enough: every command has its key.
	again := 100_000
	if limit > 0 {
		again = min(again, limit)
	}
	run(t, "import", "online-retail", realData, "--addr", addr, "--rejects", rejects, "--limit", strconv.Itoa(again))
	if after := s.verified(); !equalCounts(before, after) {
		t.Errorf("the second import changed the data:\n%v\n%v", before, after)
	}
	s.stop()
}

const figuresQuery = `SELECT count() AS lines, uniqExact(order_id) AS orders, sum(quantity) AS items,
	toString(sum(quantity * unit_price)) AS sales FROM order_lines`

func figures(t *testing.T, s *system) {
	t.Helper()
	for _, want := range []struct {
		where string
		row   map[string]any
	}{
		{" WHERE customer_id IS NOT NULL", map[string]any{
			"lines": json.Number("397884"), "orders": json.Number("18532"), "items": json.Number("5167812"), "sales": "8911407.904",
		}},
		{"", map[string]any{"lines": json.Number("530104"), "orders": json.Number("19960")}},
	} {
		rows := s.rows(figuresQuery + want.where)
		for name, value := range want.row {
			if len(rows) != 1 || rows[0][name] != value {
				t.Errorf("order_lines%s: %s is not %v in %v", want.where, name, value, rows)
			}
		}
	}
}

func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s, ok := os.LookupEnv(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
