package lake_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/tables"
)

// A damaged catalog stops the lake with an error that has the file and the remedy. No new catalog
// is created in its place.
func TestDamagedCatalog(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(raw []byte) []byte{
		"truncated":     func(raw []byte) []byte { return raw[:len(raw)/2] },
		"zeroed":        func(raw []byte) []byte { return make([]byte, len(raw)) },
		"a flipped bit": func(raw []byte) []byte { raw[2] ^= 1; return raw },
		"its schema":    func(raw []byte) []byte { clear(raw[100:300]); return raw },
		"garbage":       func([]byte) []byte { return []byte(strings.Repeat("no catalog ", 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			config := lake.Config{
				Warehouse: filepath.Join(dir, "warehouse"), Catalog: filepath.Join(dir, "catalog.db"), Tables: tables.All(), Logger: slog.New(slog.DiscardHandler),
			}
			l, err := lake.Open(t.Context(), config)
			if err == nil {
				err = l.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(config.Catalog)
			if err == nil {
				err = os.WriteFile(config.Catalog, damage(raw), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				l, err := lake.Open(t.Context(), config)
				if err == nil {
					_ = l.Close()
					t.Fatal("it opens")
				}
				for _, want := range []string{config.Catalog, config.Warehouse, "backup"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not name %q", err, want)
					}
				}
			}
		})
	}
}
