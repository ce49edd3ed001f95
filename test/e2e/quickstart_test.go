package e2e

import (
	"encoding/json"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestQuickStart is what the README promises of `make run`: the table, the things to try next as they are printed, a clean
// stop, and a second start that goes on from what is on disk. It holds on the embedded default and on real servers alike.
func TestQuickStart(t *testing.T) {
	for _, on := range []struct {
		name string
		env  func(*testing.T) []string
	}{
		{"embedded", func(*testing.T) []string { return nil }},
		{"real", servers.env},
	} {
		t.Run(on.name, func(t *testing.T) { quickStart(t, on.env(t)) })
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
	for _, sink := range []string{"store order", "topic millrace.orders", "view orderstatus/v1", "view catalog/v1", "table orders_events", "table order_lines"} {
		if !regexp.MustCompile(regexp.QuoteMeta(sink) + `\s+│\s+[1-9]`).MatchString(shown) {
			t.Errorf("the table shows nothing in %q", sink)
		}
	}

	tries := printedCommands(shown)
	if len(tries) != 3 {
		t.Fatalf("%d things to try are printed, want 3:\n%s", len(tries), shown)
	}
	for i, want := range []string{`"freshness"`, "sales", "equal everywhere"} {
		out, err := exec.CommandContext(t.Context(), "bash", "-c", tries[i]).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s\n%v, wanted %q in:\n%s", tries[i], err, want, out)
		}
	}
	before := s.verified()
	s.stop()

	if env == nil { // on files alone, with nothing running
		rows := decodeRows(t, run(t, "sql", "--data", data, "--output", "json", "SELECT count() AS n FROM order_lines"))
		if len(rows) != 1 || rows[0]["n"] != before["table order_lines rows"] {
			t.Errorf("on the files: %v, want %v", rows, before["table order_lines rows"])
		}
	}

	s = upOn(t, env, data, "127.0.0.1:0")
	s.ready()
	if after := s.verified(); !equalCounts(before, after) {
		t.Errorf("the second start changed what is there:\n%v\n%v", before, after)
	}
	s.stop()
}

// printedCommands finds the commands below "Try next": indented, comments left out, continued lines joined.
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
