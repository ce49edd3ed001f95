package sql

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// Tables of the database clickhouse.Features are ClickHouse's own: they are not in the lake, and
// have no earlier states. A caller that may read everything reads them there, because
// clickhouse.Reader may. A caller with limited rights reads them through views in its own database,
// which run with the rights of the user who created them. So its ClickHouse user still has rights
// to that database only.

// withFeatures adds to resolve the tables of features that a caller with limited rights may read.
func (s *SQL) withFeatures(resolve Tables) Tables {
	if s.may == nil {
		return resolve
	}
	return func(ctx context.Context, wanted func(string) bool) ([]Table, error) {
		tables, err := resolve(ctx, wanted)
		if err != nil {
			return nil, err
		}
		features, err := s.snapshot.features(ctx)
		return append(slices.Clone(tables), features...), err
	}
}

// features returns the tables of features. Their state is their definition, on which a view depends.
func (s *snapshots) features(ctx context.Context) (tables []Table, err error) {
	const query = "SELECT name, toString(sipHash64(create_table_query)) AS definition FROM system.tables " +
		"WHERE database = '" + clickhouse.Features + "' ORDER BY name"
	answer, err := s.client.Query(ctx, query, "JSONEachRow", nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, answer.Close()) }()
	for rows := json.NewDecoder(answer); ; {
		var row struct{ Name, Definition string }
		if err := rows.Decode(&row); errors.Is(err, io.EOF) {
			return tables, nil
		} else if err != nil {
			return nil, fmt.Errorf("list the tables of %s: %w", clickhouse.Features, err)
		}
		tables = append(tables, Table{Name: clickhouse.Features + "." + row.Name, definition: row.Definition})
	}
}

// view returns the statement that creates the view of a table of features.
func (t Table) view(name string) string {
	table := strings.TrimPrefix(t.Name, clickhouse.Features+".")
	return "CREATE VIEW IF NOT EXISTS " + name + " SQL SECURITY DEFINER AS SELECT * FROM " +
		quoteName(clickhouse.Features) + "." + quoteName(table)
}

// namesFeatures reports whether a query names a table of features.
func namesFeatures(query string) bool {
	var last token // the previous token other than space
	for t, ok := next(query, 0); ok; t, ok = next(query, t.end) {
		if t.kind == space {
			continue
		}
		if t.names(query, clickhouse.Features) && last.text(query) != "." && significant(query, t.end).text(query) == "." {
			return true
		}
		last = t
	}
	return false
}
