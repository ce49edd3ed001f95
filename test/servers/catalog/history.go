package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Commit is a snapshot of a table. Compactions are commits too: they add rows to files, but not to
// the table.
type Commit struct {
	At    time.Time // by the committer's clock, in milliseconds
	Added int64     // rows
	Total int64     // rows in the table after the commit
}

// History returns the commits to a table in a folder, oldest first. It reads the metadata without a
// client, so that it costs almost nothing during a measurement. It is empty if the table does not
// exist. The database is in SQLite.
func History(ctx context.Context, db *sql.DB, catalog, table string) ([]Commit, error) {
	namespace, name, _ := strings.Cut(table, ".")
	var at string
	err := db.QueryRowContext(ctx,
		"SELECT metadata_location FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?",
		catalog, namespace, name).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("history of %s: %w", table, err)
	}
	// Writers differ in how they write the location of a local file.
	file, err := os.ReadFile(strings.TrimPrefix(strings.TrimPrefix(at, "file://"), "file:"))
	if err != nil {
		return nil, fmt.Errorf("history of %s: %w", table, err)
	}
	var metadata struct {
		Snapshots []struct {
			At      int64             `json:"timestamp-ms"`
			Summary map[string]string `json:"summary"`
		} `json:"snapshots"`
	}
	if err := json.Unmarshal(file, &metadata); err != nil {
		return nil, fmt.Errorf("history of %s: %s: %w", table, at, err)
	}
	var commits []Commit
	for _, s := range metadata.Snapshots {
		c := Commit{At: time.UnixMilli(s.At)}
		c.Added, _ = strconv.ParseInt(s.Summary["added-records"], 10, 64) // absent if none were added
		if c.Total, err = strconv.ParseInt(s.Summary["total-records"], 10, 64); err != nil {
			return nil, fmt.Errorf("history of %s: total-records: %w", table, err)
		}
		commits = append(commits, c)
	}
	return commits, nil
}
