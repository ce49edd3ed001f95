package restcatalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go/catalog"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/table"
)

// Move swaps a table from one metadata file to another. If From is empty, it creates the table. If
// both are equal, it changes nothing but asserts that the table is unchanged.
type Move struct {
	Table    table.Identifier
	From, To string
	Claim    *Claim // nil if UUID and location stay the same
}

// Swapper swaps several tables in one transaction. iceberg-go's catalogs commit only one table at a
// time.
type Swapper interface {
	// Swap performs all moves or none. If check is not nil, it is called with all other tables
	// first, and no table is created or moved between the check and the swap.
	//
	// After an error of check, or one that wraps ErrConflict, ErrNotSwapped or
	// catalog.ErrNoSuchNamespace, no move was performed. After any other error, all may have been.
	Swap(ctx context.Context, moves []Move, check func(ctx context.Context, others []TableEntry) error) error
	// Tables returns all tables of the catalog.
	Tables(ctx context.Context) ([]TableEntry, error)
}

// Errors of Swap after which no move was performed.
var (
	// ErrConflict reports that a table was not at the metadata file that a move expected.
	ErrConflict = errors.New("another commit changed the table")
	// ErrNotSwapped reports that the database failed before the commit was sent.
	ErrNotSwapped = errors.New("nothing was committed")
)

// SQL is the Swapper of iceberg-go's SQL catalog. It works on the same rows. It is safe for
// concurrent use.
type SQL struct {
	db       *sql.DB
	postgres bool
	name     string
	typed    bool // schema V1, which has a column iceberg_type
}

// NewSQL returns the Swapper of the catalog with this name in SQLite or PostgreSQL. It reads the
// layout of the catalog's tables.
func NewSQL(ctx context.Context, db *sql.DB, dialect sqlcatalog.SupportedDialect, name string) (*SQL, error) {
	if dialect != sqlcatalog.SQLite && dialect != sqlcatalog.Postgres {
		return nil, fmt.Errorf("REST catalog: dialect %s is not supported; use SQLite or PostgreSQL", dialect)
	}
	// No rows are read. The result only has the names of the columns.
	rows, err := db.QueryContext(ctx, "SELECT * FROM iceberg_tables WHERE 1 = 0")
	if err != nil {
		return nil, fmt.Errorf("REST catalog: read the layout of iceberg_tables: %w", err)
	}
	defer func() { _ = rows.Close() }() // no rows to lose
	columns, err := rows.Columns()
	if err := errors.Join(err, rows.Err()); err != nil {
		return nil, fmt.Errorf("REST catalog: read the layout of iceberg_tables: %w", err)
	}
	return &SQL{
		db: db, postgres: dialect == sqlcatalog.Postgres, name: name,
		typed: slices.Contains(columns, "iceberg_type"),
	}, nil
}

// resolveTimeout limits the check whether a commit with a lost answer has landed.
const resolveTimeout = 5 * time.Second

// Swap performs the moves in one transaction.
func (s *SQL) Swap(
	ctx context.Context, moves []Move, check func(ctx context.Context, others []TableEntry) error,
) error {
	moves = slices.Clone(moves) // in a fixed order, to avoid deadlocks
	slices.SortFunc(moves, func(a, b Move) int { return slices.Compare(a.Table, b.Table) })
	options := &sql.TxOptions{}
	if check != nil || slices.ContainsFunc(moves, func(m Move) bool { return m.From == "" }) {
		// Like the catalog's own creation of tables and removal of namespaces.
		options.Isolation = sql.LevelSerializable
	}
	tx, err := s.db.BeginTx(ctx, options)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSwapped, err)
	}
	// The check runs inside of the transaction, so no table can change between check and swap.
	if check != nil {
		if err := s.others(ctx, tx, moves, check); err != nil {
			_ = tx.Rollback()
			if conflicts(err) {
				return fmt.Errorf("%w: %w", ErrConflict, err)
			}
			return err
		}
	}
	// Each move fails if its table is not at the expected file.
	for _, m := range moves {
		if err := s.move(ctx, tx, m); err != nil {
			_ = tx.Rollback() // the server rolls back anyway
			if conflicts(err) {
				return fmt.Errorf("%w: %w", ErrConflict, err)
			}
			if errors.Is(err, ErrConflict) || errors.Is(err, catalog.ErrNoSuchNamespace) {
				return err
			}
			return fmt.Errorf("%w: %w", ErrNotSwapped, err)
		}
	}
	// From here on, an error does not mean that nothing was committed.
	err = tx.Commit()
	switch {
	case err == nil:
		return nil
	case conflicts(err):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	// The answer may have been lost although the commit succeeded.
	case s.landed(ctx, moves):
		return nil
	}
	return fmt.Errorf("commit to the catalog: %w", err)
}

// others calls check with all tables except those that are moved.
func (s *SQL) others(
	ctx context.Context, tx *sql.Tx, moves []Move, check func(context.Context, []TableEntry) error,
) error {
	tables, err := s.tables(ctx, tx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSwapped, err)
	}
	tables = slices.DeleteFunc(tables, func(t TableEntry) bool {
		return slices.ContainsFunc(moves, func(m Move) bool { return slices.Equal(m.Table, t.Table) })
	})
	return check(ctx, tables)
}

// Tables returns all tables of the catalog.
func (s *SQL) Tables(ctx context.Context) ([]TableEntry, error) { return s.tables(ctx, s.db) }

// tables lists tables, inside or outside of a transaction.
func (s *SQL) tables(ctx context.Context, db interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}) (all []TableEntry, err error) {
	query := "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables" +
		" WHERE catalog_name = ? AND metadata_location IS NOT NULL"
	// Schema V1 also stores views in this table.
	if s.typed {
		query += " AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)"
	}
	rows, err := db.QueryContext(ctx, s.sql(query), s.name)
	if err != nil {
		return nil, err
	}
	// An error of Close may mean that rows are missing.
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var namespace, name, file string
		if err := rows.Scan(&namespace, &name, &file); err != nil {
			return nil, err
		}
		all = append(all, TableEntry{append(namespaceOfKey(namespace), name), file})
	}
	return all, rows.Err()
}

// conflicts reports whether PostgreSQL rolled back because of another transaction (SQLSTATE class
// 40: serialization failure or deadlock).
func conflicts(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && strings.HasPrefix(state.SQLState(), "40")
}

// landed reports whether a commit whose answer was lost is in the database. If it is not, it may
// still arrive.
func (s *SQL) landed(ctx context.Context, moves []Move) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveTimeout)
	defer cancel()
	for _, m := range moves {
		if m.From == m.To {
			continue
		}
		var is, was sql.NullString
		query := "SELECT metadata_location, previous_metadata_location FROM iceberg_tables" + row
		// A commit that came after ours has moved our file to the previous location.
		err := s.db.QueryRowContext(ctx, s.sql(query), s.key(m)...).Scan(&is, &was)
		if err == nil && (is.String == m.To || was.String == m.To) {
			return true // moves are atomic, so all of them landed
		}
	}
	return false
}

// row selects the row of a table. Its arguments are those of key.
const row = " WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?"

// key returns the arguments of row for a move.
func (s *SQL) key(m Move) []any {
	return []any{s.name, namespaceKey(m.Table[:len(m.Table)-1]), m.Table[len(m.Table)-1]}
}

// move performs one move: a compare-and-swap of the metadata location.
func (s *SQL) move(ctx context.Context, tx *sql.Tx, m Move) error {
	key := s.key(m)
	if m.From == "" {
		return s.insert(ctx, tx, m, key)
	}
	// The same columns that iceberg-go's catalog updates.
	set, values := "metadata_location = ?, previous_metadata_location = ?", []any{m.To, m.From}
	if m.From == m.To {
		set, values = "metadata_location = ?", []any{m.To}
	}
	where := row + " AND metadata_location = ?"
	if s.typed {
		set += ", iceberg_type = 'TABLE'"
		where += " AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)"
	}
	arguments := append(append(values, key...), m.From)
	result, err := tx.ExecContext(ctx, s.sql("UPDATE iceberg_tables SET "+set+where), arguments...)
	return s.changed(m, result, err)
}

// insert creates a table's row. The namespace must exist, by its properties or by having tables.
func (s *SQL) insert(ctx context.Context, tx *sql.Tx, m Move, key []any) error {
	var namespaces int
	query := `SELECT (SELECT count(*) FROM iceberg_namespace_properties WHERE catalog_name = ? AND namespace = ?)
		+ (SELECT count(*) FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ?)`
	err := tx.QueryRowContext(ctx, s.sql(query), key[0], key[1], key[0], key[1]).Scan(&namespaces)
	if err != nil {
		return err
	}
	// Another client may have dropped the namespace since it was checked.
	if namespaces == 0 {
		return fmt.Errorf("%w: %s", catalog.ErrNoSuchNamespace, strings.Join(m.Table[:len(m.Table)-1], "."))
	}
	// Schema V1 distinguishes tables and views.
	columns, values := "catalog_name, table_namespace, table_name, metadata_location", "?, ?, ?, ?"
	if s.typed {
		columns, values = columns+", iceberg_type", values+", 'TABLE'"
	}
	// A row that already exists is a conflict, which changed reports.
	insert := "INSERT INTO iceberg_tables (" + columns + ") VALUES (" + values + ") ON CONFLICT DO NOTHING"
	result, err := tx.ExecContext(ctx, s.sql(insert), append(key, m.To)...)
	return s.changed(m, result, err)
}

// changed returns ErrConflict if a statement did not change exactly one row.
func (s *SQL) changed(m Move, result sql.Result, err error) error {
	if err != nil {
		return err
	}
	// No row: the metadata location is no longer the expected one, or the row exists already.
	n, err := result.RowsAffected()
	if err == nil && n != 1 {
		err = fmt.Errorf("%w: %s", ErrConflict, strings.Join(m.Table, "."))
	}
	return err
}

// sql converts placeholders to the database's syntax.
func (s *SQL) sql(statement string) string {
	if !s.postgres {
		return statement
	}
	// No statement has a question mark elsewhere.
	parts := strings.Split(statement, "?")
	for i := range len(parts) - 1 {
		parts[i] += "$" + strconv.Itoa(i+1)
	}
	return strings.Join(parts, "")
}

// encodedNamespace is iceberg-go's prefix for namespaces with parts that contain dots, which are
// stored as JSON.
const encodedNamespace = "__iceberg_namespace_v1__:"

// namespaceKey returns a namespace in the form in which iceberg-go's catalog stores it.
func namespaceKey(namespace table.Identifier) string {
	key := strings.Join(namespace, ".")
	dotted := slices.ContainsFunc(namespace, func(part string) bool { return strings.Contains(part, ".") })
	if !dotted && !strings.Contains(key, encodedNamespace) {
		return key
	}
	b, _ := json.Marshal(namespace) // strings can be encoded
	return encodedNamespace + string(b)
}

// namespaceOfKey parses the output of namespaceKey.
func namespaceOfKey(key string) table.Identifier {
	var namespace table.Identifier
	encoded, ok := strings.CutPrefix(key, encodedNamespace)
	if ok && json.Unmarshal([]byte(encoded), &namespace) == nil {
		return namespace
	}
	return strings.Split(key, ".")
}
