// Package engines reads the same Iceberg tables with every engine that users of Millrace have, and
// compares the results: Trino, Spark, PyIceberg and DuckDB. None of them shares code with the
// readers of the others, or with Millrace.
//
// A View is all rows of a small table. Summed is the count and hash of a large one. Dialect is the
// SQL of an engine, from which the queries for both are built.
//
// Engines runs the queries. Trino and Spark are the servers of test/servers. PyIceberg and DuckDB
// are run by scripts in testdata, one process for each table.
//
// If all engines agree, an error in a table would have to be one that several independent readers
// interpret alike.
package engines

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/spark"
	"github.com/millrace/millrace/test/servers/trino"
)

// View is a table as an engine reads it: a sorted list of rows, each as a line of text that does
// not depend on the engine.
type View struct {
	Engine string
	Rows   []string
}

// Engines are all engines. The caller starts Trino and Spark with the catalogs to read.
type Engines struct {
	Trino  *trino.Server
	Spark  *spark.Session
	Python string // the interpreter that scripts/python-tools installs
	Script string // testdata/read.py
}

// Read reads a table, namespace.name, with every engine. The rows are sorted, because a table has
// no order. The first engine that fails ends it: a table that one engine cannot read is a fault.
func (e Engines) Read(ctx context.Context, c catalog.Catalog, table string) ([]View, error) {
	var views []View
	add := func(engine string, rows [][]any, err error) error {
		if err != nil {
			return fmt.Errorf("%s reads %s: %w", engine, table, err)
		}
		lines := make([]string, len(rows))
		for i, row := range rows {
			lines[i] = text(row)
		}
		slices.Sort(lines)
		views = append(views, View{engine, lines})
		return nil
	}
	rows, err := e.Trino.Query(ctx, "SELECT * FROM "+c.Name+"."+table)
	if err := add("Trino", rows, err); err != nil {
		return nil, err
	}
	rows, err = e.Spark.Query(ctx, "SELECT * FROM "+c.Name+"."+table)
	if err := add("Spark", rows, err); err != nil {
		return nil, err
	}
	read, err := e.python(ctx, c, table)
	if err != nil {
		return nil, fmt.Errorf("PyIceberg and DuckDB read %s: %w", table, err)
	}
	for _, r := range read {
		if err := add(r.Reader, r.Rows, nil); err != nil {
			return nil, err
		}
	}
	return views, nil
}

// pythonView is a line of the output of read.py: a reader, PyIceberg or DuckDB, and all rows.
type pythonView struct {
	Reader string
	Rows   [][]any
}

// python reads a table with PyIceberg and DuckDB in one process.
func (e Engines) python(ctx context.Context, c catalog.Catalog, table string) ([]pythonView, error) {
	if _, err := os.Stat(e.Python); err != nil {
		return nil, fmt.Errorf("%w: %w", process.ErrMissing, err)
	}
	properties, err := json.Marshal(pyiceberg(c))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, e.Python, e.Script, string(properties), table) //nolint:gosec // a test's own
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, stderr.Bytes())
	}
	var views []pythonView
	lines := bufio.NewScanner(bytes.NewReader(out))
	// A line has all rows of a reader, and so may be longer than Scanner's default limit.
	lines.Buffer(nil, len(out)+1)
	for lines.Scan() {
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		// A float64 would round large integers and hide a difference.
		decoder.UseNumber()
		var v pythonView
		if err := decoder.Decode(&v); err != nil {
			return nil, err
		}
		views = append(views, v)
	}
	return views, lines.Err()
}

// pyiceberg returns the settings of a catalog in PyIceberg's terms.
func pyiceberg(c catalog.Catalog) map[string]string {
	p := map[string]string{"name": c.Name, "warehouse": c.Warehouse}
	switch {
	case c.REST != "":
		p["type"], p["uri"] = "rest", c.REST
		if c.Token != "" {
			p["token"] = c.Token
		}
		if c.Credential != "" {
			p["credential"], p["oauth2-server-uri"] = c.Credential, c.REST+"/v1/oauth/tokens"
		}
	case strings.HasPrefix(c.JDBC, "jdbc:sqlite:"):
		p["type"], p["uri"] = "sql", "sqlite:///"+strings.TrimPrefix(c.JDBC, "jdbc:sqlite:")
	default:
		p["type"] = "sql"
		p["uri"] = "postgresql+psycopg2://" + c.User + ":" + c.Password + "@" + strings.TrimPrefix(c.JDBC,
			"jdbc:postgresql://")
	}
	if c.OnS3() && !c.Vended {
		p["s3.endpoint"], p["s3.region"] = c.S3.Endpoint, c.S3.Region
		p["s3.access-key-id"], p["s3.secret-access-key"] = c.S3.AccessKey, c.S3.SecretKey
	}
	return p
}

// Differ describes the first row in which each engine differs from the first engine, and different
// numbers of rows. It is nil if they agree.
func Differ(views []View) error {
	var errs []error
	for _, v := range views[1:] {
		first := views[0]
		for i := range min(len(v.Rows), len(first.Rows)) {
			if v.Rows[i] != first.Rows[i] {
				errs = append(errs,
					fmt.Errorf("row %d of %d: %s reads %.500s, %s reads %.500s", i, len(v.Rows), first.Engine,
						first.Rows[i], v.Engine, v.Rows[i]))
				break
			}
		}
		if len(v.Rows) != len(first.Rows) {
			errs = append(errs,
				fmt.Errorf("%s reads %d rows, %s reads %d", first.Engine, len(first.Rows), v.Engine, len(v.Rows)))
		}
	}
	return errors.Join(errs...)
}

// text formats a value in the same way for all engines: times as microseconds, bytes in
// hexadecimal, numbers in the shortest exact form.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case time.Time:
		return strconv.FormatInt(v.UnixMicro(), 10)
	case []byte:
		return strconv.Quote(hex.EncodeToString(v))
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case json.Number:
		if f, err := v.Float64(); err == nil && strings.ContainsAny(v.String(), ".eE") {
			return strconv.FormatFloat(f, 'g', -1, 64)
		}
		return v.String()
	case string:
		return strconv.Quote(v)
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = text(v[i])
		}
		return "[" + strings.Join(parts, " ") + "]"
	default:
		return fmt.Sprint(v)
	}
}
