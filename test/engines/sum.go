package engines

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // no secret: every engine has it
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"os/exec"
	"strconv"

	"github.com/millrace/millrace/test/servers/catalog"
)

// Summed is the number of rows that an engine reads in a table, and the sum of their hashes, which
// does not depend on the order. The hash of a row is the first 15 hexadecimal digits of the MD5 of
// its columns' texts, separated by |, as a number. 15 digits are 60 bits, which every engine can
// store in a signed 64-bit integer.
//
// Count and Hash are decimal numbers as text, because engines return them in different types.
type Summed struct {
	Engine string
	Count  string
	Hash   string
	// Refused is the error of an engine that cannot read the table.
	Refused string
}

// Hash computes the same sum in Go, from rows that did not come from an Iceberg reader. The zero
// Hash is the sum of no rows.
type Hash struct {
	Count int64
	sum   big.Int
}

// Add adds the text of a row: its columns' texts, separated by |, as the engines write them.
func (h *Hash) Add(row []byte) {
	sum := md5.Sum(row) //nolint:gosec // no secret
	// 15 hexadecimal digits always fit.
	n, _ := strconv.ParseInt(hex.EncodeToString(sum[:8])[:15], 16, 64)
	h.Count++
	h.sum.Add(&h.sum, big.NewInt(n))
}

// Summed returns the sum as the result of an engine with this name.
func (h *Hash) Summed(who string) Summed {
	return Summed{Engine: who, Count: strconv.FormatInt(h.Count, 10), Hash: h.sum.String()}
}

// Equal reports whether two results are the same, regardless of the engine. A refusal equals only
// the same refusal.
func (s Summed) Equal(other Summed) bool {
	return s.Count == other.Count && s.Hash == other.Hash && s.Refused == other.Refused
}

// Table is one table of a catalog, with the columns that are compared.
type Table struct {
	Namespace, Name string
	Columns         []Column
}

// Sum computes the sum of a table with Trino, Spark, PyIceberg and DuckDB. They find the table
// through the REST catalog. Unlike Read, it moves no rows out of the engines, so it is usable for
// tables of millions of rows.
func (e Engines) Sum(ctx context.Context, c catalog.Catalog, t Table) ([]Summed, error) {
	var all []Summed
	for _, engine := range []struct {
		name string
		ask  func(context.Context, string) ([][]any, error)
		sql  Dialect
	}{{"Trino", e.Trino.Query, TrinoSQL}, {"Spark", e.Spark.Query, SparkSQL}} {
		from := c.Name + "." + engine.sql.Name(t.Namespace) + "." + engine.sql.Name(t.Name)
		rows, err := engine.ask(ctx, engine.sql.Sum(from, t.Columns))
		if err != nil {
			return nil, fmt.Errorf("%s: sum of %s: %w", engine.name, t.Name, err)
		}
		all = append(all, Summed{Engine: engine.name, Count: fmt.Sprint(rows[0][0]), Hash: fmt.Sprint(rows[0][1])})
	}
	python, err := e.sumPython(ctx, c, t)
	if err != nil {
		return nil, fmt.Errorf("PyIceberg and DuckDB: sum of %s: %w", t.Name, err)
	}
	return append(all, python...), nil
}

// sumPython computes the sum with sum.py, which gets its task on standard input and prints a line
// for each reader. DuckDB runs the same query as the other engines. PyIceberg has no SQL, so the
// script computes the sum itself.
func (e Engines) sumPython(ctx context.Context, c catalog.Catalog, t Table) ([]Summed, error) {
	ask, err := json.Marshal(map[string]any{
		"catalog": pyiceberg(c), "table": t.Namespace + "." + t.Name, "columns": t.Columns,
		"duckdb": DuckSQL.Sum("lake."+DuckSQL.Name(t.Namespace)+"."+DuckSQL.Name(t.Name), t.Columns),
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, e.Python, "testdata/sum.py") //nolint:gosec // a test's own
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(ask), &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, stderr.Bytes())
	}
	var all []Summed
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		var s Summed
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, lines.Err()
}
