package maintenance

import (
	"context"
	"testing"
	"time"

	"github.com/apache/iceberg-go/catalog"
	"pgregory.net/rapid"
)

// Whatever is landed between and during the steps of maintenance, and however the steps fail, the
// table has the rows of a model map.
func TestRandomHistory(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		var opts []catalog.CreateTableOpt
		if rapid.Bool().Draw(rt, "sorted") {
			opts = append(opts, catalog.WithSortOrder(byKey))
		}
		w := newWorld(t, opts...)
		m := model{}
		next := int64(0)
		lands := map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				n := rapid.Int64Range(1, 20).Draw(rt, "rows")
				rows := sequenceOf(next, next+n)
				next += n
				w.append(rows)
				m.put(rows...)
			},
			"upsert": func(rt *rapid.T) {
				var rows []row
				for _, k := range rapid.SliceOfNDistinct(rapid.Int64Range(0, next+3), 1, 6, rapid.ID).Draw(rt, "keys") {
					rows = append(rows, row{key: k, value: rapid.StringN(1, 5, -1).Draw(rt, "value")})
					next = max(next, k+1)
				}
				w.upsert(rows...)
				m.put(rows...)
			},
			"erase": func(rt *rapid.T) {
				k := rapid.Int64Range(0, next+1).Draw(rt, "key")
				w.deleteKeys(k)
				delete(m, k)
			},
		}
		land := func(rt *rapid.T) {
			lands[rapid.SampledFrom([]string{"append", "upsert", "erase"}).Draw(rt, "landing")](rt)
		}
		maintain := func(do func(Config) error) func(*rapid.T) {
			return func(rt *rapid.T) {
				faults := rapid.SliceOfN(rapid.SampledFrom([]fault{works, refused, fails, lost}), 0, 3).Draw(rt, "faults")
				w.injectFaults(func() fault {
					if len(faults) == 0 {
						return works
					}
					f := faults[0]
					faults = faults[1:]
					return f
				})
				beside := rapid.SampledFrom(append(steps(), "", "", "")).Draw(rt, "a landing beside")
				breaks := rapid.SampledFrom(append(steps(), "", "", "", "", "")).Draw(rt, "an error at")
				c := w.config()
				c.SmallFiles, c.Manifests, c.KeepSnapshots, c.KeepAge, c.sortBytes = 2, 2, 2, time.Nanosecond, 1<<10
				c.DeleteFiles = rapid.IntRange(1, 4).Draw(rt, "DeleteFiles")
				c.now = later
				c.hook = func(_ context.Context, s step) error {
					// Orphans are found by age, with a fake clock, so nothing may be written
					// concurrently here.
					if s == beside && s != stepOrphansFound {
						beside = ""
						land(rt)
					}
					if s == breaks {
						breaks = ""
						return errFault
					}
					return nil
				}
				_ = do(c) // it may fail, and the table may not
			}
		}
		actions := map[string]func(*rapid.T){
			"land": land, "land more": land, "land again": land,
			"compact":   maintain(func(c Config) error { _, err := Compact(context.Background(), w.load, c, nil); return err }),
			"manifests": maintain(func(c Config) error { _, err := RewriteManifests(context.Background(), w.load, c); return err }),
			"expire":    maintain(func(c Config) error { _, err := Expire(context.Background(), w.load, c); return err }),
			"orphans":   maintain(func(c Config) error { _, err := RemoveOrphans(context.Background(), w.load, c, nil); return err }),
			"":          func(rt *rapid.T) { checkModel(rt, w, m) },
		}
		rt.Repeat(actions)
		w.checkRows(m.rows())
		// In the end everything is small.
		w.injectFaults(nil)
		c := w.config()
		c.SmallFiles, c.Manifests, c.KeepSnapshots, c.KeepAge, c.DeleteFiles, c.now = 2, 2, 1, time.Nanosecond, 1, later
		w.mustRun(c)
		w.mustRun(c)
		w.checkRows(m.rows())
		if files := len(w.dataFiles()); files > 4 { // each larger than all smaller ones together
			rt.Errorf("%d data files are left", files)
		}
		if listed, live := len(w.listed(".parquet")), w.liveFiles(); listed != live {
			rt.Errorf("%d files are left, and %d are live", listed, live)
		}
	})
}

func checkModel(rt *rapid.T, w *world, m model) {
	if have, want := hash(w.rows()), hash(m.rows()); have != want {
		rt.Fatalf("the table has %s, want %s", have, want)
	}
}
