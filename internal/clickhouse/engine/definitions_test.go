package engine

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
)

// TestDefinitions checks what a statement leaves whose definition is empty, as ClickHouse writes it
// on a full disk.
func TestDefinitions(t *testing.T) {
	t.Parallel()
	const folder = "store/058/058c5337/"
	empty := func(t *testing.T, dir, table string) {
		t.Helper()
		// ClickHouse writes another file and renames it, so a hard link keeps the content.
		path := filepath.Join(dir, folder, table+".sql")
		if err := errors.Join(os.WriteFile(path+".tmp", nil, 0o600), os.Rename(path+".tmp", path)); err != nil {
			t.Fatal(err)
		}
	}
	refused := errors.New("refused by ClickHouse")
	for _, c := range []struct {
		name, statement string
		empties         string // table
		err, want       error
		dropped         string
	}{
		{"all is well", "ALTER TABLE features.a MODIFY TTL x", "", nil, nil, ""},
		{"a statement that fails", "ALTER TABLE features.a MODIFY TTL x", "", refused, refused, ""},
		{"an altered table is restored", "\n alter TABLE features.a MODIFY TTL x", "a", nil, errNoSpace, ""},
		{"a created table is dropped", "CREATE TABLE features.b (n UInt8)", "b", nil, errNoSpace, "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			before := map[string]string{folder + "a.sql": "ATTACH TABLE a", folder + "c.sql": "ATTACH TABLE c"}
			dir := writeTree(t, before)
			dropped := ""
			err := newDefinitions(dir).change(t.Context(), c.statement,
				func() error {
					if c.empties != "" {
						empty(t, dir, c.empties)
					}
					return c.err
				},
				func(table string) error {
					dropped = table
					return os.Remove(filepath.Join(dir, folder, table+".sql"))
				})
			if !errors.Is(err, c.want) || dropped != c.dropped {
				t.Errorf("error %v, dropped %q; want %v, %q", err, dropped, c.want, c.dropped)
			}
			if got := readTree(t, dir); !maps.Equal(got, before) {
				t.Errorf("got %q, want %q", got, before)
			}
		})
	}
	if !clickhouse.Retryable(errNoSpace) {
		t.Error("a full disk is not retried")
	}
}
