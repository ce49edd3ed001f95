package catalog_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/bleve"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
	"github.com/millrace/millrace/streams/streamstest"
)

// TestViewOnADamagedJournal checks that damage to the journal has no effect while the view runs. A
// journal that is damaged at the start must be reported, set aside, and completed from the log.
func TestViewOnADamagedJournal(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	l.Write(t, indextest.Events(t, l, 200, 600)...)
	for name, damage := range map[string]func(b []byte) []byte{
		"deleted":            func([]byte) []byte { return nil },
		"empty":              func([]byte) []byte { return []byte{} },
		"truncated":          func(b []byte) []byte { return b[:len(b)*2/3] },
		"zeroes":             func(b []byte) []byte { return make([]byte, len(b)) },
		"zeroes at the end":  func(b []byte) []byte { return append(b[:len(b)/2:len(b)/2], make([]byte, len(b)/2)...) },
		"a flipped bit":      func(b []byte) []byte { b[len(b)/3] ^= 4; return b },
		"a flipped length":   func(b []byte) []byte { b[0] ^= 0x80; return b },
		"garbage":            func([]byte) []byte { return []byte("garbage, and more of it") },
		"garbage at the end": func(b []byte) []byte { return append(b, "garbage, and more of it"...) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "catalog-v2.journal")
			x, err := bleve.Open(dir, quiet)
			if err != nil {
				t.Fatal(err)
			}
			v, r, stop := indextest.Feed(t, x, cfg)
			streamstest.CatchUp(t, r)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if b = damage(b); b == nil {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			indextest.Repaired(t, v, l) // it is not read while the view runs
			stop()
			indextest.Close(t, x)

			if x, err = bleve.Open(dir, quiet); err != nil {
				t.Fatal(err)
			}
			v = catalog.New(x, quiet)
			// A deleted journal starts empty, and garbage after the end is overwritten, so neither
			// is noticed.
			unseen := name == "deleted" || name == "empty" || name == "garbage at the end"
			if !unseen && len(v.Faults().List()) != 1 {
				t.Errorf("%d faults are reported, want the journal", len(v.Faults().List()))
			}
			r = v.Runtime(cfg, nil, quiet)
			stop = streamstest.Start(t, r)
			streamstest.CatchUp(t, r)
			indextest.Repaired(t, v, l)
			stop()
			indextest.Close(t, x)
		})
	}
}
