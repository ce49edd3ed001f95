package restcatalog_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/restcatalog"
)

// The victim is a table with rows, which requests for other tables must not harm.
type victim struct {
	*fixture
	shown
	snapshot string // its manifest list
}

func newVictim(t *testing.T, p *fixture) victim {
	t.Helper()
	p.serve(t).withNamespace(t)
	p.create(t, "victim")
	for n := range int64(3) {
		if _, err := appendRow(t, p.client(t), "victim", n); err != nil {
			t.Fatal(err)
		}
	}
	v := victim{fixture: p, shown: p.load(t, "victim")}
	have, err := p.client(t).LoadTable(t.Context(), table.Identifier{"shop", "victim"})
	if err != nil {
		t.Fatal(err)
	}
	v.snapshot = have.CurrentSnapshot().ManifestList
	return v
}

// unharmed fails unless all rows exist.
func (v victim) unharmed(t *testing.T) {
	t.Helper()
	have, err := v.client(t).LoadTable(t.Context(), table.Identifier{"shop", "victim"})
	if err != nil {
		t.Fatal(err)
	}
	_, batches, err := have.Scan().ToArrowRecords(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var rows int64
	for batch, err := range batches {
		if err != nil {
			t.Fatal(err)
		}
		rows += batch.NumRows()
	}
	if rows != 3 {
		t.Fatalf("the victim has %d rows, want 3", rows)
	}
}

// steal commits a snapshot with the given manifest list to the table "thief".
func (v victim) steal(t *testing.T, list string) answer {
	t.Helper()
	return v.call(t, http.MethodPost, "/v1/namespaces/shop/tables/thief", object{"requirements": []object{}, "updates": []object{
		{"action": "add-snapshot", "snapshot": object{"snapshot-id": 77, "sequence-number": 1, "timestamp-ms": 4102444800000,
			"manifest-list": list, "summary": object{"operation": "append"}, "schema-id": 0}},
		{"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": 77},
	}})
}

func folder(location string) string { return strings.TrimPrefix(location, "file://") }

func copyFile(t *testing.T, from, to string, change func(string) string) string {
	t.Helper()
	b, err := os.ReadFile(folder(from))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(folder(to)), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder(to), []byte(change(string(b))), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func same(s string) string { return s }

// No request creates a table that shares metadata, UUID, location or files with another.
func TestTablesShareNoFiles(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		v := newVictim(t, fresh(t))
		v.create(t, "thief")
		thief := v.load(t, "thief").Metadata.Location
		at := v.Metadata.Location
		other := strings.Repeat("1", 8) + "-1111-4111-8111-" + strings.Repeat("1", 12)
		register := func(file string) answer {
			return v.call(t, http.MethodPost, "/v1/namespaces/shop/register", object{"name": "second", "metadata-location": file})
		}
		create := func(location string) answer {
			return v.call(t, http.MethodPost, "/v1/namespaces/shop/tables", object{"name": "second", "schema": columns, "location": location})
		}
		move := func(location string) answer {
			return v.call(t, http.MethodPost, "/v1/namespaces/shop/tables/thief",
				object{"requirements": []object{}, "updates": []object{{"action": "set-location", "location": location}}})
		}
		elsewhere := v.Warehouse + "/shop.db/elsewhere"
		for what, attack := range map[string]func() answer{
			"its metadata under a second name": func() answer { return register(v.File) },
			"its metadata, spelt otherwise":    func() answer { return register(strings.Replace(v.File, "file://", "file:", 1)) },
			"a copy of its metadata":           func() answer { return register(copyFile(t, v.File, at+"/metadata/copy.metadata.json", same)) },
			"a copy with another id": func() answer {
				return register(copyFile(t, v.File, at+"/metadata/id.metadata.json", func(s string) string { return strings.ReplaceAll(s, v.Metadata.UUID, other) }))
			},
			"a copy with another id and place": func() answer {
				return register(copyFile(t, v.File, elsewhere+"/metadata/a.metadata.json", func(s string) string {
					return strings.Replace(strings.ReplaceAll(s, v.Metadata.UUID, other), `"location":"`+at, `"location":"`+elsewhere, 1)
				}))
			},
			"a copy from beside its place": func() answer {
				return register(copyFile(t, v.File, elsewhere+"/metadata/b.metadata.json", func(s string) string { return strings.ReplaceAll(s, v.Metadata.UUID, other) }))
			},
			"a new table in its place":                   func() answer { return create(at) },
			"a new table in its place, with a slash":     func() answer { return create(at + "/") },
			"a new table in its place, as Hadoop has it": func() answer { return create(strings.Replace(at, "file://", "file:", 1)) },
			"a new table above it":                       func() answer { return create(v.Warehouse + "/shop.db") },
			"a new table below it":                       func() answer { return create(at + "/data") },
			"a table that moves to it":                   func() answer { return move(at) },
			"a table that moves above it":                func() answer { return move(v.Warehouse + "/shop.db") },
			"data beside the table": func() answer {
				return v.call(t, http.MethodPost, "/v1/namespaces/shop/tables/thief", object{"requirements": []object{},
					"updates": []object{{"action": "set-properties", "updates": object{"write.data.path": at + "/data"}}}})
			},
			"its manifest list":           func() answer { return v.steal(t, v.snapshot) },
			"a copy of its manifest list": func() answer { return v.steal(t, copyFile(t, v.snapshot, thief+"/metadata/copy.avro", same)) },
			"its statistics": func() answer {
				return v.call(t, http.MethodPost, "/v1/namespaces/shop/tables/thief", object{"requirements": []object{}, "updates": []object{{"action": "set-statistics", "statistics": object{
					"snapshot-id": 1, "statistics-path": at + "/metadata/s.puffin", "file-size-in-bytes": 1, "file-footer-size-in-bytes": 1, "blob-metadata": []object{}}}}})
			},
		} {
			if a := attack(); a.status != http.StatusForbidden || a.kind(t) != "ForbiddenException" {
				t.Errorf("%s: %d %s, want that it is forbidden", what, a.status, a.body)
			}
			v.unharmed(t)
		}
		// The victim's data files, in manifests of the thief.
		var data []string
		for _, f := range v.files(t) {
			if strings.Contains(f, "/victim-") && strings.HasSuffix(f, ".parquet") {
				data = append(data, v.Warehouse+f)
			}
		}
		have, err := v.client(t).LoadTable(t.Context(), table.Identifier{"shop", "thief"})
		if err != nil {
			t.Fatal(err)
		}
		tx := have.NewTransaction()
		if err := tx.AddFiles(t.Context(), data, nil, false); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Commit(t.Context()); err == nil || !strings.Contains(err.Error(), "refer to its own files") {
			t.Errorf("its data files: %v, want that it is forbidden", err)
		}
		v.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/thief?purgeRequested=true", nil)
		v.unharmed(t)
	})
}

// Of two concurrent requests for one location, one succeeds.
func TestLocationIsUnique(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		p := fresh(t).serve(t).withNamespace(t)
		for round := range 5 {
			location := fmt.Sprintf("%s/shop.db/wanted-%d", p.Warehouse, round)
			answers := make(chan answer)
			for n := range 4 {
				go func() {
					below := strings.Repeat("/x", n%2)
					answers <- p.call(t, http.MethodPost, "/v1/namespaces/shop/tables",
						object{"name": fmt.Sprintf("t%d-%d", round, n), "schema": columns, "location": location + below})
				}()
			}
			made := 0
			for range 4 {
				switch a := <-answers; a.status {
				case http.StatusOK:
					made++
				case http.StatusForbidden, http.StatusConflict, http.StatusServiceUnavailable: // the last two: try again
				default:
					t.Errorf("%d %s", a.status, a.body)
				}
			}
			if made > 1 {
				t.Errorf("round %d: %d tables share one place", round, made)
			}
		}
	})
}

// name gives a metadata file another name, bypassing the server.
func (v victim) name(t *testing.T, name, file string) {
	t.Helper()
	err := v.Swapper.Swap(t.Context(), []restcatalog.Move{{Table: table.Identifier{"shop", name}, To: file}}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// A catalog from before this check may have two names for one table. Purging one leaves the files
// that the other needs.
func TestPurgeKeepsSharedFiles(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		v := newVictim(t, fresh(t))
		before := v.files(t)
		v.name(t, "second", v.File)
		v.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/second?purgeRequested=true", nil)
		v.unharmed(t)
		if after := v.files(t); !slices.Equal(before, after) {
			t.Errorf("files before %v, after %v", before, after)
		}
	})
}

// The other table may spell the locations differently.
func TestPurgeRecognisesEverySpelling(t *testing.T) {
	t.Parallel()
	for _, spelling := range []string{"file://localhost/", "file:/", "file:////"} {
		v := newVictim(t, onSQLite(t))
		other := copyFile(t, v.File, v.Warehouse+"/shop.db/other/metadata/00000-a.metadata.json", func(s string) string {
			return strings.ReplaceAll(s, "file:///", spelling)
		})
		v.name(t, "second", other)
		before := v.files(t)
		v.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/victim?purgeRequested=true", nil)
		after := v.files(t)
		gone := slices.DeleteFunc(before, func(f string) bool { return slices.Contains(after, f) })
		if len(gone) != 1 || !strings.HasSuffix(v.File, gone[0]) { // its own metadata file, which the other does not name
			t.Errorf("%s: the purge removed %v", spelling, gone)
		}
	}
}

// If another table that may refer to the same files cannot be read, nothing is deleted.
func TestPurgeWithUnreadableTableRemovesNothing(t *testing.T) {
	t.Parallel()
	v := newVictim(t, onSQLite(t))
	copied := copyFile(t, v.File, v.Metadata.Location+"/metadata/00009-copy.metadata.json", same)
	v.name(t, "second", copied)
	if err := os.Truncate(folder(copied), 10); err != nil {
		t.Fatal(err)
	}
	before := v.files(t)
	v.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/victim?purgeRequested=true", nil)
	if after := v.files(t); !slices.Equal(before, after) {
		t.Errorf("files before %v, after %v", before, after)
	}
	if !strings.Contains(v.log.String(), "no files were removed") {
		t.Error("the log does not say why files are left")
	}
}

// Tables change while a purge reads them, and their old files disappear. The purge reads those
// tables again.
func TestPurgeDuringCommits(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(file string) error{
		"damaged": func(file string) error { return os.Truncate(file, 10) },
		"gone":    os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVictim(t, onSQLite(t))
			other := v.Warehouse + "/shop.db/other/metadata/"
			old := copyFile(t, v.File, other+"00000-old.metadata.json", same)
			v.name(t, "second", copyFile(t, v.File, other+"00001-new.metadata.json", same))
			if err := spoil(folder(old)); err != nil {
				t.Fatal(err)
			}
			var read atomic.Bool
			v.Swapper = swapper{Swapper: v.Swapper, list: func(tables []restcatalog.TableEntry) {
				for i, placed := range tables {
					if placed.Table[1] == "second" && read.CompareAndSwap(false, true) {
						tables[i].Metadata = old
					}
				}
			}}
			v.serve(t)
			before := v.files(t)
			v.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/victim?purgeRequested=true", nil)
			after := v.files(t)
			gone := slices.DeleteFunc(before, func(f string) bool { return slices.Contains(after, f) })
			if len(gone) != 1 || !strings.HasSuffix(v.File, gone[0]) { // its own metadata file, which the other does not name
				t.Errorf("the purge removed %v", gone)
			}
			if !read.Load() {
				t.Error("the purge did not read the old listing")
			}
		})
	}
}

// A table whose metadata is missing can be dropped, and others can still be purged.
func TestDropTableWithoutMetadata(t *testing.T) {
	t.Parallel()
	v := newVictim(t, onSQLite(t))
	v.create(t, "other")
	if err := os.Remove(folder(v.File)); err != nil {
		t.Fatal(err)
	}
	v.must(t, http.StatusServiceUnavailable, http.MethodGet, "/v1/namespaces/shop/tables/victim", nil)
	v.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/other?purgeRequested=true", nil)
	v.must(t, http.StatusNoContent, http.MethodDelete, "/v1/namespaces/shop/tables/victim", nil)
	v.must(t, http.StatusNotFound, http.MethodGet, "/v1/namespaces/shop/tables/victim", nil)
}
