package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// readExternally reads the tables with readers that share no code with Millrace. It expects the
// published figures, and what the source file itself contains.
func readExternally(t *testing.T, data string) {
	t.Helper()
	python, err := filepath.Abs(root + "/.tools/python/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(python); err != nil {
		if os.Getenv("MILLRACE_REQUIRE_SERVERS") != "" {
			t.Fatalf("PyIceberg and DuckDB are not installed: %v; run scripts/python-tools", err)
		}
		t.Logf("skipping PyIceberg and DuckDB: %v; run scripts/python-tools", err)
		return
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), python, "testdata/readers.py", data, realData)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("readers.py: %v\n%s", err, stderr.String())
	}
	type figures struct {
		Lines, Orders, Items int64
		Sales                string
	}
	var got map[string]figures
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	customers := figures{397884, 18532, 5167812, "8911407.904"}
	all := got["source all"]
	if all.Lines != 530104 || all.Orders != 19960 || got["source customers"] != customers {
		t.Errorf("the source file itself: %+v", got)
	}
	for reader, f := range got {
		want := all
		if strings.HasSuffix(reader, " customers") {
			want = customers
		}
		if f != want {
			t.Errorf("%s: %+v, want %+v", reader, f, want)
		}
	}
	if len(got) != 6 {
		t.Errorf("%d sets of figures, want 6", len(got))
	}
}
