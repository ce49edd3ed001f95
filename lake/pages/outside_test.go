package pages_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/test/servers/process"
)

// PyArrow and DuckDB read a file with all types like the same rows in a file from pqarrow.
func TestOutsideReaders(t *testing.T) {
	t.Parallel()
	interpreter := process.Python(t)
	files := rapid.Custom(func(r *rapid.T) (files [2][]byte) {
		columns, err := columnar.New(columnar.WithIDs(everything()))
		if err != nil {
			r.Fatal(err)
		}
		var ours, theirs bytes.Buffer
		w, arrows := begin(t, columns, &ours), arrowWriter(r, columns.Schema(), &theirs)
		for page := range 3 {
			columns.Reset()
			for range 100 {
				for i, f := range columns.Fields() {
					randomValue(r, f, columns.Column(i), page < 2)
				}
			}
			if err := w.Write(columns); err != nil {
				r.Fatal(err)
			}
			if err := arrows.WriteBuffered(columns.Record()); err != nil {
				r.Fatal(err)
			}
		}
		end(t, w)
		if err := arrows.Close(); err != nil {
			r.Fatal(err)
		}
		return [2][]byte{ours.Bytes(), theirs.Bytes()}
	}).Example(1)
	args := []string{"testdata/read.py"}
	for i, name := range []string{"ours.parquet", "theirs.parquet"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, files[i], 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	out, err := exec.CommandContext(t.Context(), interpreter, args...).CombinedOutput()
	if err != nil || string(out) != "PyArrow 300\nDuckDB 300\n" {
		t.Errorf("%v\n%.3000s", err, out)
	}
}
