package landing

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog/rest"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/restcatalog"
	"github.com/millrace/millrace/lake/tables"
)

// clients is a client of a lake's REST catalog, which guards nothing itself.
func clients(t *testing.T, l *lake.Lake) *rest.Catalog {
	t.Helper()
	h, err := l.REST(t.Context(), restcatalog.Access{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	c, err := rest.NewCatalog(context.WithoutCancel(t.Context()), "test", server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What a client may and may not do to a landed table. Afterwards the landers continue with nothing
// lost.
func TestGuard(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	config := localLake(t)
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	s.mustTrade(t, 50)
	s.landed(t, l)
	first := stateOf(t, l, tables.OrderLines.Name).Snapshot
	s.mustTrade(t, 50)
	s.landed(t, l)

	config.Tables = tables.All()[:1] // of another process, which knows the columns of customers alone
	for name, of := range map[string]*lake.Lake{"who lands it": l, "another": openLake(t, config)} {
		c, ident := clients(t, of), tables.OrderLines.Identifier()
		have, err := c.LoadTable(t.Context(), ident)
		if err != nil {
			t.Fatal(err)
		}
		schema := func(change func(fields []iceberg.NestedField) []iceberg.NestedField) []table.Update {
			var fields []iceberg.NestedField
			fields = append(fields, have.Schema().Fields()...)
			return []table.Update{
				table.NewAddSchemaUpdate(iceberg.NewSchema(have.Schema().ID+1, change(fields)...)), table.NewSetCurrentSchemaUpdate(-1),
			}
		}
		column := func(name string) int {
			for i, f := range have.Schema().Fields() {
				if f.Name == name {
					return i
				}
			}
			t.Fatalf("no column %s", name)
			return 0
		}
		props := func(p iceberg.Properties) []table.Update { return []table.Update{table.NewSetPropertiesUpdate(p)} }
		type fields = []iceberg.NestedField
		next := have.Metadata().LastColumnID() + 1
		for what, try := range map[string]struct {
			updates []table.Update
			says    string // empty: it may
		}{
			"its position set":  {props(iceberg.Properties{progress.KeyNextPrefix + "millrace.orders.0": "0"}), progress.KeyNextPrefix},
			"its position gone": {[]table.Update{table.NewRemovePropertiesUpdate([]string{progress.KeyTopicID})}, progress.KeyTopicID},
			"its files beside":  {props(iceberg.Properties{table.WriteDataPathKey: have.Location() + "/elsewhere"}), table.WriteDataPathKey},
			"its place":         {[]table.Update{table.NewSetLocationUpdate(have.Location() + "-new")}, "set-location"},
			"its format":        {[]table.Update{table.NewUpgradeFormatVersionUpdate(3)}, "format 2"},
			"emptied":           {[]table.Update{table.NewRemoveSnapshotRefUpdate(table.MainBranch)}, "would not land again"},
			"an earlier state":  {[]table.Update{table.NewSetSnapshotRefUpdate(table.MainBranch, first, table.BranchRef, 0, 0, 0)}, "would not land again"},
			"a column gone":     {schema(func(f fields) fields { return append(f[:column("sku")], f[column("sku")+1:]...) }), "sku"},
			"a column renamed":  {schema(func(f fields) fields { f[column("sku")].Name = "article"; return f }), "sku"},
			"a column grown":    {schema(func(f fields) fields { f[column("line")].Type = iceberg.PrimitiveTypes.Int64; return f }), "line"},
			"a column demanded": {schema(func(f fields) fields {
				return append(f, iceberg.NestedField{ID: next, Name: "note", Type: iceberg.PrimitiveTypes.String, Required: true})
			}), "note"},
			"a column of theirs": {schema(func(f fields) fields {
				return append(f, iceberg.NestedField{ID: next, Name: "note of " + name, Type: iceberg.PrimitiveTypes.String})
			}), ""},
			"a snapshot dated in microseconds": {snapshotOf(have, time.Now().UnixMicro()), "ahead of the catalog's clock"},
			"a snapshot of tomorrow":           {snapshotOf(have, time.Now().Add(24*time.Hour).UnixMilli()), "ahead of the catalog's clock"},
			"a property":                       {props(iceberg.Properties{"owner": "anna"}), ""},
			"a tag":                            {[]table.Update{table.NewSetSnapshotRefUpdate("first", first, table.TagRef, 0, 0, 0)}, ""},
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				_, _, err := c.CommitTable(t.Context(), ident, nil, try.updates)
				switch {
				case try.says == "" && err != nil:
					t.Error(err)
				case try.says != "" && (err == nil || !strings.Contains(err.Error(), try.says) || !strings.Contains(err.Error(), "landers")):
					t.Errorf("error %v, want it to say %q", err, try.says)
				}
			})
		}
		if _, err := c.RenameTable(t.Context(), ident, table.Identifier{declare.Namespace, "other"}); err == nil || !strings.Contains(err.Error(), "landers write this table") {
			t.Errorf("renamed: %v", err)
		}
		for way, drop := range map[string]func(context.Context, table.Identifier) error{"dropped": c.DropTable, "purged": c.PurgeTable} {
			if err := drop(t.Context(), ident); err == nil || !strings.Contains(err.Error(), lake.ReleasedProperty) {
				t.Errorf("%s: %v", way, err)
			}
		}
	}
	s.mustTrade(t, 50)
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)

	// After it is released, it can be dropped, and is landed from the beginning.
	c, ident := clients(t, l), tables.OrderLines.Identifier()
	if _, _, err := c.CommitTable(t.Context(), ident, nil, []table.Update{table.NewSetPropertiesUpdate(iceberg.Properties{lake.ReleasedProperty: "true"})}); err != nil {
		t.Fatal(err)
	}
	if err := c.PurgeTable(t.Context(), ident); err != nil {
		t.Fatal(err)
	}
	config.Tables = nil
	l = openLake(t, config)
	stop = start(t, l, s.runConfig())
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
}

// snapshotOf returns a snapshot after a table's newest one, with the same rows and the given time.
func snapshotOf(have *table.Table, millis int64) []table.Update {
	s := *have.CurrentSnapshot()
	parent := s.SnapshotID
	s.SnapshotID, s.ParentSnapshotID, s.SequenceNumber, s.TimestampMs = parent/2+1, &parent, s.SequenceNumber+1, millis
	return []table.Update{table.NewAddSnapshotUpdate(&s), table.NewSetSnapshotRefUpdate(table.MainBranch, s.SnapshotID, table.BranchRef, 0, 0, 0)}
}

// A client's own table is not restricted.
func TestGuardLeavesOtherTables(t *testing.T) {
	t.Parallel()
	c := clients(t, openLake(t, localLake(t)))
	ident := table.Identifier{declare.Namespace, "theirs"}
	if _, err := c.CreateTable(t.Context(), ident, iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "a", Type: iceberg.PrimitiveTypes.String})); err != nil {
		t.Fatal(err)
	}
	to := table.Identifier{declare.Namespace, "renamed"}
	if _, _, err := c.CommitTable(t.Context(), ident, nil, []table.Update{table.NewSetPropertiesUpdate(iceberg.Properties{"millrace.own": "1"})}); err != nil {
		t.Error(err)
	}
	if _, err := c.RenameTable(t.Context(), ident, to); err != nil {
		t.Error(err)
	}
	if err := c.PurgeTable(t.Context(), to); err != nil {
		t.Error(err)
	}
}
