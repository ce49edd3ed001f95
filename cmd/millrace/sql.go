package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// newSQL returns the command sql. It sends the query to a running system, or with --data runs its
// own engine.
//
// Both ways use the same package lake/sql, so they accept the same queries and return the same
// formats. With a server, its rights and limits apply.
func newSQL(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sql QUERY",
		Short: "Run a query over the lake's tables",
		Long: `Run one SELECT, in ClickHouse's SQL, over the lake's tables. SHOW TABLES lists them: order_lines,
orders_events, orders_current, … Tables of other namespaces, such as those of "millrace lake land", need their
namespace: foreign.logs ("millrace lake tables" lists all of them). A query sees each table at one snapshot.

--as-of queries earlier snapshots: the newest one at a time or so long ago, or the newest one without a record
at or after the given Kafka offsets (tables of other topics are read as they are now). Standard error names
the snapshot of each table, with --output json as JSON. The newest snapshots of a table are kept, and of older
ones the last of each minute, then of each hour, for lake.maintenance.keep.

It calls the running system at --addr. With --data DIR, it starts an engine of its own on the files and needs
no running system.`,
		Example: `  millrace sql "SHOW TABLES"
  millrace sql "SELECT country, sum(quantity * unit_price) AS sales FROM order_lines GROUP BY country ORDER BY sales DESC LIMIT 5"
  millrace sql --as-of 2026-11-25T10:00:00Z "SELECT count() FROM orders_events"
  millrace sql --as-of 15m "SELECT count() FROM orders_events"
  millrace sql --as-of millrace.orders/0=1200,millrace.orders/1=1100 "SELECT max(offset) FROM orders_events GROUP BY partition"
  millrace sql "SELECT * FROM foreign.logs LIMIT 10"
  millrace sql --output csv "SELECT * FROM order_lines" > order_lines.csv
  millrace sql --output parquet "SELECT * FROM order_lines" > order_lines.parquet`,
		Args: cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json", "csv", "parquet")
	var moment string
	cmd.Flags().StringVar(&moment, "as-of", "", "earlier snapshots: TIME, DURATION ago, or TOPIC/PARTITION=OFFSET,…")
	a.dataFlag(cmd, "query the files of this data folder instead of a running system")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		// An explicit --data selects the files. The setting data alone does not.
		if cmd.Flags().Changed("data") {
			c, err := a.config()
			if err != nil {
				return err
			}
			return sqlOnFiles(cmd, c, args[0], *output, moment)
		}
		parameters := url.Values{"output": {*output}}
		if moment != "" {
			parameters.Set("as_of", moment)
		}
		resp, err := a.postSQL(cmd.Context(), args[0], parameters)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end or given up
		// Standard output contains the result only, so that it can be redirected.
		if header := resp.Header.Get(app.ReadAtHeader); header != "" {
			var read []lakesql.ReadAt
			if err := json.Unmarshal([]byte(header), &read); err != nil {
				return fmt.Errorf("decode the header %s: %w", app.ReadAtHeader, err)
			}
			if err := printReadAt(cmd.ErrOrStderr(), read, *output); err != nil {
				return err
			}
		}
		// The rows are streamed. A connection that is cut means that the result is incomplete.
		if _, err := io.Copy(cmd.OutOrStdout(), resp.Body); err != nil {
			return fmt.Errorf("the response ended early; see the server's log: %w", explain(err))
		}
		return nil
	}
	return cmd
}

// sqlOnFiles runs the query on the lake of a data folder, with an engine of its own. It needs no
// running system, and can run beside one: it only reads. No rights are checked, because the caller
// can read the files.
func sqlOnFiles(cmd *cobra.Command, c config.Config, query, output, moment string) (err error) {
	ctx := cmd.Context()
	where, err := app.LakeConfig(c, c.Log.Logger(os.Stderr))
	if err != nil {
		return err
	}
	// The running system may use the same lake, so do not write.
	where.ReadOnly = true
	l, err := lake.Open(ctx, where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	// An empty folder: the engine's scratch files are in a temporary one.
	engine, err := app.StartEngine(ctx, c, "", where.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	q, err := app.SQL(c, l, engine)
	if err != nil {
		return err
	}
	var rows io.ReadCloser
	if moment == "" {
		rows, err = q.Run(ctx, query, output)
	} else {
		var read []lakesql.ReadAt
		if rows, read, err = app.SQLAsOf(ctx, q, l, query, output, moment); err == nil {
			err = printReadAt(cmd.ErrOrStderr(), read, output)
		}
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(cmd.OutOrStdout(), rows)
	return errors.Join(err, rows.Close())
}

// printReadAt prints which snapshots of the tables were read. The output is one line per table, or
// one JSON object.
func printReadAt(out io.Writer, read []lakesql.ReadAt, output string) error {
	if output == "json" {
		return printJSON(out, map[string]any{"read_at": read})
	}
	for _, r := range read {
		if _, err := fmt.Fprintln(out, r); err != nil {
			return err
		}
	}
	return nil
}

// postSQL asks the running system a query. The caller closes the body of the response, which has the
// rows.
func (a *cli) postSQL(ctx context.Context, query string, parameters url.Values) (*http.Response, error) {
	caller, err := a.caller(apiListener)
	if err != nil {
		return nil, err
	}
	// The query is the body, so its length is not limited by that of a URL.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, caller.api()+"/v1/sql?"+parameters.Encode(),
		strings.NewReader(query))
	if err != nil {
		return nil, err
	}
	resp, err := caller.http().Do(req)
	if err != nil {
		return nil, explain(err)
	}
	// Before the first row, an error is a status and a text.
	if resp.StatusCode != http.StatusOK {
		reason, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return nil, errors.Join(errors.New(strings.TrimSpace(string(reason))), err, resp.Body.Close())
	}
	return resp, nil
}
