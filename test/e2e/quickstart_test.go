package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestQuickStart checks what the README promises of `make run`: the table, the printed commands, a
// clean stop, and a second start that continues from the data on disk. It applies to the embedded
// default and to real servers.
func TestQuickStart(t *testing.T) {
	for _, on := range []struct {
		name string
		env  func(*testing.T) []string
	}{
		{"embedded", func(*testing.T) []string { return nil }},
		{"real", servers.env},
	} {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			quickStart(t, on.env(t))
		})
	}
}

func quickStart(t *testing.T, env []string) {
	data := filepath.Join(t.TempDir(), "data")
	s := upOn(t, env, data, "127.0.0.1:0")
	s.ready()
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		resp, err := http.Get("http://" + s.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %s", path, resp.Status)
		}
	}
	shown := s.output.String()
	for _, sink := range []string{"store order", "topic millrace.orders", "view orderstatus/v2",
		"view catalog/v2", "view customer360/v2", "table orders_events", "table order_lines", "table orders_current"} {
		if !regexp.MustCompile(regexp.QuoteMeta(sink) + `\s+│\s+[1-9]`).MatchString(shown) {
			t.Errorf("the table has no count for %q", sink)
		}
	}

	tries := printedCommands(shown)
	if len(tries) != 5 {
		t.Fatalf("%d commands to try are printed, want 5:\n%s", len(tries), shown)
	}
	for i, want := range []string{`"freshness"`, "sales", "anonymous_id:", "quantity_lifetime", "equal everywhere"} {
		out, err := exec.CommandContext(t.Context(), "bash", "-c", tries[i]).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s\n%v, wanted %q in:\n%s", tries[i], err, want, out)
		}
	}
	before := s.verified()
	s.tables(env, before["table order_lines rows"])
	s.stop()

	if env == nil { // on the files, with nothing running
		for _, table := range []string{"order_lines", "orders_current"} {
			rows := decodeRows(t, run(t, "sql", "--data", data, "--output", "json", "SELECT count() AS n FROM "+table))
			if len(rows) != 1 || rows[0]["n"] != before["table "+table+" rows"] {
				t.Errorf("on the files: %v, want %v", rows, before["table "+table+" rows"])
			}
		}
	}

	s = upOn(t, env, data, "127.0.0.1:0")
	s.ready()
	if after := s.verified(); !equalCounts(before, after) {
		t.Errorf("the second start changed the data:\n%v\n%v", before, after)
	}
	s.stop()
}

// tables checks what the README says of the tables: other engines find them through Iceberg's REST
// catalog, each type of event is a struct, and the command line shows their files.
func (s *system) tables(env []string, lines json.Number) {
	s.t.Helper()
	var listed struct {
		Identifiers []struct{ Name string }
	}
	s.get("/iceberg/v1/namespaces/millrace/tables", &listed)
	if len(listed.Identifiers) < 5 {
		s.t.Errorf("the REST catalog lists %+v", listed)
	}
	var loaded struct {
		Metadata struct {
			Current   int64 `json:"current-snapshot-id"`
			Snapshots []struct {
				ID      int64 `json:"snapshot-id"`
				Summary map[string]string
			}
		}
	}
	s.get("/iceberg/v1/namespaces/millrace/tables/order_lines", &loaded)
	total := ""
	for _, snapshot := range loaded.Metadata.Snapshots {
		if snapshot.ID == loaded.Metadata.Current {
			total = snapshot.Summary["total-records"]
		}
	}
	if total != lines.String() {
		s.t.Errorf("the REST catalog reports %q rows, want %s", total, lines)
	}

	placed := s.rows("SELECT sum(length(placed.lines)) AS n FROM orders_events WHERE type LIKE '%OrderPlaced'")
	added := s.rows("SELECT sum(length(lines_added.lines)) AS n FROM orders_events WHERE type LIKE '%LinesAdded'")
	if n := number(placed[0]["n"]) + number(added[0]["n"]); fmt.Sprint(n) != lines.String() {
		s.t.Errorf("the events have %d lines, but the table has %s", n, lines)
	}

	var summaries []struct {
		Name string
		Rows json.Number
	}
	lake := func(into any, args ...string) {
		s.t.Helper()
		cmd := exec.CommandContext(s.t.Context(), binary,
			append(append([]string{"lake"}, args...), "--output", "json", "--data", s.data)...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.Output()
		if err == nil {
			err = json.Unmarshal(out, into)
		}
		if err != nil {
			s.t.Errorf("millrace lake %v: %v: %s", args, err, out)
		}
	}
	lake(&summaries, "tables")
	found := false
	for _, t := range summaries {
		found = found || t.Name == "millrace.order_lines" && t.Rows == lines
	}
	if !found {
		s.t.Errorf("millrace lake tables: %+v, want %s lines", summaries, lines)
	}
	var history []struct{ Offsets string }
	lake(&history, "snapshots", "order_lines")
	if len(history) == 0 || history[0].Offsets == "" {
		s.t.Errorf("millrace lake snapshots: %+v", history)
	}
	var reports []struct{ Table string }
	lake(&reports, "maintain") // while landers run
	if len(reports) != len(summaries) {
		s.t.Errorf("millrace lake maintain: %+v", reports)
	}
}

func number(v any) int64 {
	n, _ := strconv.ParseInt(fmt.Sprint(v), 10, 64)
	return n
}

// get requests a path of the api listener.
func (s *system) get(path string, into any) {
	s.t.Helper()
	resp, err := http.Get("http://" + s.addr + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s: %s, %v", path, resp.Status, err)
	}
}

// printedCommands returns the commands below "Try next": the indented lines, without comments and
// with continued lines joined.
func printedCommands(shown string) []string {
	_, shown, _ = strings.Cut(shown, "Try next")
	var commands []string
	joined := strings.ReplaceAll(shown, "\\\n", " ")
	for line := range strings.Lines(joined) {
		if command, ok := strings.CutPrefix(line, "  "); ok && !strings.HasPrefix(command, "#") {
			commands = append(commands, strings.TrimSpace(command))
		}
	}
	return commands
}

func equalCounts(a, b map[string]json.Number) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}
