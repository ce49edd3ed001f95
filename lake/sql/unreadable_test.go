package sql_test

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// A table that the engine cannot read, for any of its schemas and by any writer, does not affect
// queries of other tables. A query of that table gets the reason.
func TestUnreadableTableIsOmitted(t *testing.T) {
	t.Parallel()
	engine := clickhousetest.Shared(t)
	for what, c := range map[string]struct {
		column iceberg.Type
		old    bool   // a schema before the current one has it
		name   string // as queries address the table
	}{
		"fixed of no bytes":        {iceberg.FixedTypeOf(0), false, "bad"},
		"fixed of a gigabyte":      {iceberg.FixedTypeOf(1_000_000_000), false, "bad"},
		"in an old schema":         {iceberg.FixedTypeOf(0), true, "bad"},
		"of another namespace":     {iceberg.FixedTypeOf(0), false, "web.bad"},
		"within a list":            {&iceberg.ListType{ElementID: 50, Element: iceberg.FixedTypeOf(0)}, false, "bad"},
		"an old one of a stranger": {iceberg.FixedTypeOf(1_000_000_000), true, "web.bad"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWarehouse(t)
			w.create("order_lines", orderLines)
			w.append("order_lines", 2, orderLine)
			w.create("bad", orderLines)
			have, err := w.catalog.LoadTable(t.Context(), table.Identifier{"millrace", "bad"})
			if err != nil {
				t.Fatal(err)
			}
			fields := append([]iceberg.NestedField{}, have.Schema().Fields()...)
			fields = append(fields, iceberg.NestedField{ID: 40, Name: "odd", Type: c.column})
			updates := []table.Update{table.NewAddSchemaUpdate(iceberg.NewSchema(1, fields...))}
			if !c.old {
				updates = append(updates, table.NewSetCurrentSchemaUpdate(1))
			}
			if _, _, err := w.catalog.CommitTable(t.Context(), table.Identifier{"millrace", "bad"}, nil, updates); err != nil {
				t.Fatal(err)
			}
			tables := renamed(w.tables, "bad", c.name)
			s := lakesql.New(tables, engine.Client(), lakesql.S3{})
			for _, query := range []string{
				"SELECT count() AS n FROM order_lines", "SELECT count() AS n FROM order_lines WHERE sku != 'bad' AND sku != '" + c.name + "'",
			} {
				if answer := ask(t, s, query, lakesql.FormatCSV); !strings.Contains(answer, "2") {
					t.Errorf("%s: %s", query, answer)
				}
			}
			_, err = answerOf(t.Context(), s, "SELECT count() FROM "+c.name, lakesql.FormatCSV)
			var unreadable *lakesql.UnreadableError
			if c.old && err == nil && len(s.Unreadable()) == 0 {
				return // the engine reads the current schema alone
			}
			if !errors.As(err, &unreadable) || unreadable.Table != c.name {
				t.Fatalf("got %v, want that %s is unreadable", err, c.name)
			}
			if all := s.Unreadable(); len(all) != 1 || all[0].Table != c.name {
				t.Errorf("unreadable: %v", all)
			}
		})
	}
}

// After the table is changed so that the engine can read it, it is read.
func TestUnreadableTableRecovers(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	w.create("order_lines", orderLines)
	w.create("bad", orderLines)
	have, err := w.catalog.LoadTable(t.Context(), table.Identifier{"millrace", "bad"})
	if err != nil {
		t.Fatal(err)
	}
	file := strings.TrimPrefix(have.MetadataLocation(), "file://")
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	odd := regexp.MustCompile(`"binary"`).ReplaceAll(was, []byte(`"fixed[0]"`))
	if err := os.WriteFile(file, odd, 0o600); err != nil {
		t.Fatal(err)
	}
	s := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	if _, err := answerOf(t.Context(), s, "SELECT count() FROM bad", lakesql.FormatCSV); err == nil || len(s.Unreadable()) != 1 {
		t.Fatalf("got %v, and unreadable are %v", err, s.Unreadable())
	}
	if err := os.WriteFile(file, was, 0o600); err != nil {
		t.Fatal(err)
	}
	w.append("bad", 1, orderLine) // the next metadata file
	if answer := ask(t, s, "SELECT count() AS n FROM bad", lakesql.FormatCSV); !strings.Contains(answer, "1") {
		t.Error(answer)
	}
	if all := s.Unreadable(); len(all) != 0 {
		t.Errorf("unreadable: %v", all)
	}
}

// renamed gives one of the tables another name.
func renamed(tables lakesql.Tables, from, to string) lakesql.Tables {
	return func(ctx context.Context, wanted func(string) bool) ([]lakesql.Table, error) {
		all, err := tables(ctx, wanted)
		for i := range all {
			if all[i].Name == from {
				all[i].Name = to
			}
		}
		return all, err
	}
}
