package restcatalog_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/restcatalog"
)

// onEach runs a test on each database.
func onEach(t *testing.T, test func(t *testing.T, fresh func(testing.TB) *fixture)) {
	for name, fresh := range map[string]func(testing.TB) *fixture{"sqlite": onSQLite, "postgres": onPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, fresh)
		})
	}
}

// setting returns the part of a transaction that sets a property of a table.
func setting(name, value string, requirements ...object) object {
	if requirements == nil {
		requirements = []object{}
	}
	return object{"identifier": object{"namespace": []string{"shop"}, "name": name}, "requirements": requirements,
		"updates": []object{{"action": "set-properties", "updates": object{"n": value}}}}
}

func (p *fixture) transact(t testing.TB, changes ...object) answer {
	t.Helper()
	return p.call(t, http.MethodPost, "/v1/transactions/commit", object{"table-changes": changes})
}

// A transaction changes all of its tables or none, whichever part is invalid.
func TestTransaction(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		p := fresh(t).serve(t).withNamespace(t)
		uuid := map[string]string{}
		for _, name := range []string{"a", "b", "c"} {
			uuid[name] = p.create(t, name).Metadata.UUID
		}
		is := func(of string) object { return object{"type": "assert-table-uuid", "uuid": uuid[of]} }
		values := func() (v []string) {
			for _, name := range []string{"a", "b", "c"} {
				v = append(v, p.load(t, name).Metadata.Properties["n"])
			}
			return v
		}
		if a := p.transact(t, setting("c", "1", is("c")), setting("a", "1", is("a")), setting("b", "1")); a.status != http.StatusNoContent {
			t.Fatalf("%d %s", a.status, a.body)
		}
		files := p.files(t)
		for _, c := range []struct {
			name    string
			changes []object
			status  int
			kind    string
		}{
			{"second is another table", []object{setting("a", "2", is("a")), setting("b", "2", is("a"))}, 409, "CommitFailedException"},
			{"second does not exist", []object{setting("a", "2"), setting("none", "2")}, 404, "NoSuchTableException"},
			{"second exists already", []object{setting("a", "2"), setting("b", "2", object{"type": "assert-create"})}, 409, "CommitFailedException"},
			{"third does not fit", []object{setting("a", "2"), setting("b", "2"), {"identifier": object{"namespace": []string{"shop"}, "name": "c"},
				"requirements": []object{}, "updates": []object{{"action": "set-current-schema", "schema-id": 9}}}}, 400, "BadRequestException"},
			{"one comes twice", []object{setting("a", "2"), setting("a", "3")}, 400, "BadRequestException"},
		} {
			a := p.transact(t, c.changes...)
			if a.status != c.status || a.kind(t) != c.kind {
				t.Errorf("%s: %d %s; want %d %s", c.name, a.status, a.body, c.status, c.kind)
			}
			if v := values(); !slices.Equal(v, []string{"1", "1", "1"}) {
				t.Fatalf("%s: it left %v", c.name, v)
			}
		}
		if now := p.files(t); !slices.Equal(now, files) {
			t.Errorf("what failed left files: %v, were %v", now, files)
		}

		// A table can be created in the same transaction. iceberg-go's client supports this, too.
		made := setting("d", "4", object{"type": "assert-create"})
		made["updates"] = append([]object{{"action": "add-schema", "schema": columns}, {"action": "set-current-schema", "schema-id": -1},
			{"action": "add-spec", "spec": object{"fields": []object{}}}, {"action": "set-default-spec", "spec-id": -1},
			{"action": "add-sort-order", "sort-order": object{"order-id": 0, "fields": []object{}}}, {"action": "set-default-sort-order", "sort-order-id": -1}},
			made["updates"].([]object)...)
		if a := p.transact(t, setting("a", "4"), made); a.status != http.StatusNoContent {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if d := p.load(t, "d"); d.Metadata.Properties["n"] != "4" || d.Metadata.Version != 2 {
			t.Errorf("made %+v", d)
		}
		c := p.client(t)
		multi, err := catalog.NewMultiTableTransaction(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b"} {
			have, err := c.LoadTable(t.Context(), table.Identifier{"shop", name})
			if err != nil {
				t.Fatal(err)
			}
			tx := have.NewTransaction()
			if err := errors.Join(tx.SetProperties(iceberg.Properties{"n": "5"}), multi.AddTransaction(tx)); err != nil {
				t.Fatal(err)
			}
		}
		if err := multi.Commit(t.Context()); err != nil || !slices.Equal(values(), []string{"5", "5", "1"}) {
			t.Errorf("%v: %v", err, values())
		}
	})
}

// swapper is a Swapper that tests can intercept.
type swapper struct {
	restcatalog.Swapper
	before func() error                   // its error is the swap's
	after  func(error) error              // changes the swap's error
	saw    func(moves []restcatalog.Move) // called before a swap, unless nil
	list   func([]restcatalog.TableEntry) // not nil: changes a listing
}

func (s swapper) Tables(ctx context.Context) ([]restcatalog.TableEntry, error) {
	tables, err := s.Swapper.Tables(ctx)
	if s.list != nil {
		s.list(tables)
	}
	return tables, err
}

func (s swapper) Swap(ctx context.Context, moves []restcatalog.Move, check func(context.Context, []restcatalog.TableEntry) error) error {
	if s.saw != nil {
		s.saw(moves)
	}
	if s.before != nil {
		if err := s.before(); err != nil {
			return err
		}
	}
	err := s.Swapper.Swap(ctx, moves, check)
	if s.after != nil {
		err = s.after(err)
	}
	return err
}

// The response says that a commit may have landed exactly if that is the case: a client then keeps
// the commit's files, and otherwise it removes them.
func TestCommitOutcomes(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	for name, c := range map[string]struct {
		s      swapper
		status int
		kind   string
		landed bool
		files  int // written since
	}{
		"before the commit": {swapper{before: func() error { return fmt.Errorf("%w: %w", restcatalog.ErrNotSwapped, broken) }}, 503, "ServiceUnavailableException", false, 0},
		"in the commit":     {swapper{before: func() error { return broken }}, 500, "CommitStateUnknownException", false, 2},
		"after the commit":  {swapper{after: func(error) error { return broken }}, 500, "CommitStateUnknownException", true, 2},
		"always behind":     {swapper{before: func() error { return restcatalog.ErrConflict }}, 409, "CommitFailedException", false, 0},
		"well":              {swapper{}, 204, "", true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := onSQLite(t)
			plain := p.serve(t).withNamespace(t)
			plain.create(t, "a")
			plain.create(t, "b")
			c.s.Swapper = p.Swapper
			p.Swapper = c.s
			p.serve(t)
			before := len(p.files(t))
			a := p.transact(t, setting("a", "1"), setting("b", "1"))
			if a.status != c.status || c.kind != "" && a.kind(t) != c.kind {
				t.Errorf("%d %s; want %d %s", a.status, a.body, c.status, c.kind)
			}
			for _, name := range []string{"a", "b"} {
				if landed := p.load(t, name).Metadata.Properties["n"] == "1"; landed != c.landed {
					t.Errorf("%s landed: %v, want %v", name, landed, c.landed)
				}
			}
			if written := len(p.files(t)) - before; written != c.files {
				t.Errorf("%d files are left, want %d", written, c.files)
			}
		})
	}
}

// If another commit comes first, a commit whose requirements still hold is computed again.
// Otherwise it fails.
func TestConcurrentCommit(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		p := fresh(t)
		var once atomic.Bool
		p.Swapper = swapper{Swapper: p.Swapper, before: func() error {
			if !once.CompareAndSwap(true, false) {
				return nil
			}
			_, err := appendRow(t, p.sql, "a", 1) // a lander, just now
			return err
		}}
		p.serve(t).withNamespace(t)
		p.create(t, "a")
		p.create(t, "b")
		once.Store(true)
		if a := p.transact(t, setting("a", "1"), setting("b", "1")); a.status != http.StatusNoContent {
			t.Fatalf("%d %s", a.status, a.body)
		}
		is := p.load(t, "a")
		if is.Metadata.Properties["n"] != "1" || len(is.Metadata.Snapshots) != 1 {
			t.Errorf("it is %+v", is.Metadata)
		}
		once.Store(true)
		a := p.transact(t, setting("b", "2"), setting("a", "2", object{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": is.Metadata.Snapshots[0].ID}))
		if a.status != http.StatusConflict || a.kind(t) != "CommitFailedException" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a, b := p.load(t, "a"), p.load(t, "b"); a.Metadata.Properties["n"] != "1" || b.Metadata.Properties["n"] != "1" || len(a.Metadata.Snapshots) != 2 {
			t.Errorf("a is %+v, b is %+v", a.Metadata, b.Metadata)
		}
	})
}

// A part of a transaction without updates still asserts its requirements for the others.
func TestUnchangedTableIsAsserted(t *testing.T) {
	t.Parallel()
	p := onSQLite(t)
	var once atomic.Bool
	p.Swapper = swapper{Swapper: p.Swapper, before: func() error {
		if !once.CompareAndSwap(true, false) {
			return nil
		}
		_, err := appendRow(t, p.sql, "b", 1)
		return err
	}}
	p.serve(t).withNamespace(t)
	p.create(t, "a")
	p.create(t, "b")
	once.Store(true)
	empty := object{"identifier": object{"namespace": []string{"shop"}, "name": "b"}, "updates": []object{},
		"requirements": []object{{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": nil}}}
	if a := p.transact(t, setting("a", "1"), empty); a.status != http.StatusConflict {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := p.load(t, "a").Metadata.Properties["n"]; n != "" {
		t.Errorf("a has %q", n)
	}
}

// Writers through the server and writers to the database append to one table at once. Each row is
// there once.
func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		p := fresh(t).serve(t).withNamespace(t)
		p.create(t, "a")
		const writers, each = 3, 6
		var all sync.WaitGroup
		var conflicts atomic.Int64
		write := func(c catalog.Catalog, from int64) {
			for n := range int64(each) {
				for {
					_, err := appendRow(t, c, "a", from+n)
					if err == nil {
						break
					}
					if !errors.Is(err, table.ErrCommitFailed) && !strings.Contains(err.Error(), "requirement failed") { // as the SQL catalog says it
						t.Error(err)
						return
					}
					conflicts.Add(1)
				}
			}
		}
		for i := range int64(writers) {
			c := p.client(t)
			all.Go(func() { write(c, 100*i) })
			all.Go(func() { write(p.sql, 1000+100*i) })
		}
		all.Wait()
		if t.Failed() {
			return
		}
		have, err := p.client(t).LoadTable(t.Context(), table.Identifier{"shop", "a"})
		if err != nil {
			t.Fatal(err)
		}
		data, err := have.Scan().ToArrowTable(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer data.Release()
		if snapshots := len(have.Metadata().Snapshots()); data.NumRows() != 2*writers*each || snapshots != 2*writers*each {
			t.Errorf("%d rows and %d snapshots, want %d", data.NumRows(), snapshots, 2*writers*each)
		}
		t.Logf("%d conflicts", conflicts.Load())
	})
}

// A catalog with the older schema, without the column for the type, is served and not changed.
func TestOldSchema(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		p := fresh(t)
		if _, err := p.db.ExecContext(t.Context(), "ALTER TABLE iceberg_tables DROP COLUMN iceberg_type"); err != nil {
			t.Fatal(err)
		}
		old, err := sqlcatalog.NewCatalog(catalogName, p.db, p.dialect, iceberg.Properties{"warehouse": p.Warehouse})
		if err != nil {
			t.Fatal(err)
		}
		swap, err := restcatalog.NewSQL(t.Context(), p.db, p.dialect, catalogName)
		if err != nil {
			t.Fatal(err)
		}
		p.Catalog, p.Swapper = old, swap
		p.serve(t).withNamespace(t)
		p.create(t, "a")
		p.create(t, "b")
		if a := p.transact(t, setting("a", "1"), setting("b", "1")); a.status != http.StatusNoContent {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if is := p.load(t, "b"); is.Metadata.Properties["n"] != "1" {
			t.Errorf("%+v", is)
		}
		if _, err := appendRow(t, old, "a", 1); err != nil {
			t.Error(err)
		}
	})
}

// The rows are those that the catalog itself would write, whatever the namespace's name is.
func TestRowsMatchSQLCatalog(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) *fixture) {
		p := fresh(t).serve(t)
		for _, namespace := range []table.Identifier{{"plain"}, {"outer", "inner"}, {"with.dot", "x"}, {"with space"}, {`quo"te'`}, {"ünï"}} {
			c := p.client(t)
			if err := c.CreateNamespace(t.Context(), namespace, nil); err != nil {
				t.Fatal(err)
			}
			schema := iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "n", Type: iceberg.PrimitiveTypes.Int64})
			ident := append(slices.Clone(namespace), "t able")
			if _, err := c.CreateTable(t.Context(), ident, schema); err != nil {
				t.Fatalf("%q: %v", namespace, err)
			}
			for _, by := range []catalog.Catalog{p.sql, c} { // each finds what the other left
				have, err := by.LoadTable(t.Context(), ident)
				if err != nil {
					t.Fatalf("%q by %T: %v", namespace, by, err)
				}
				tx := have.NewTransaction()
				if err := tx.SetProperties(iceberg.Properties{"by": fmt.Sprintf("%T", by)}); err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Commit(t.Context()); err != nil {
					t.Fatalf("%q by %T: %v", namespace, by, err)
				}
			}
			for ident, err := range c.ListTables(t.Context(), namespace) {
				if err != nil || !slices.Equal(ident[:len(ident)-1], namespace) {
					t.Errorf("%q has %q, %v", namespace, ident, err)
				}
			}
		}
	})
}
