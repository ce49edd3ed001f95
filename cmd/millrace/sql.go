package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/cmd/millrace/internal/platform"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/lake"
)

func newSQL(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sql QUERY",
		Short: "Run a query over the lake's tables",
		Long: `Run one SELECT, in ClickHouse's SQL, over the lake's open tables, which are addressed by their names: order_lines,
orders_events, customers_events, products_events, stock_events. A query sees every table at one snapshot.

It asks the running system at --addr; with --data DIR it starts an engine of its own on the files, with nothing else running.`,
		Example: `  millrace sql "SHOW TABLES"
  millrace sql "SELECT country, sum(quantity * unit_price) AS sales FROM order_lines GROUP BY country ORDER BY sales DESC LIMIT 5"
  millrace sql --output csv "SELECT * FROM order_lines" > order_lines.csv`,
		Args: cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json", "csv")
	a.dataFlag(cmd, "run on the files of this data folder instead of asking a running system")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.config()
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("data") {
			return sqlOnFiles(cmd.Context(), c, cmd.OutOrStdout(), args[0], *output)
		}
		caller, err := newCaller(c)
		if err != nil {
			return err
		}
		u := caller.api() + "/v1/sql?output=" + url.QueryEscape(*output)
		req, err := http.NewRequestWithContext(cmd.Context(), http.MethodPost, u, strings.NewReader(args[0]))
		if err != nil {
			return err
		}
		resp, err := caller.http().Do(req)
		if err != nil {
			return explain(err)
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end or given up
		if resp.StatusCode != http.StatusOK {
			reason, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
			return errors.Join(errors.New(strings.TrimSpace(string(reason))), err)
		}
		if _, err := io.Copy(cmd.OutOrStdout(), resp.Body); err != nil {
			return fmt.Errorf("the answer broke off; the system's log says why: %w", err)
		}
		return nil
	}
	return cmd
}

// sqlOnFiles runs the query with an engine of its own on the lake of a data folder.
func sqlOnFiles(ctx context.Context, c config.Config, out io.Writer, query, output string) (err error) {
	where, err := platform.LakeConfig(c, c.Log.Logger(os.Stderr))
	if err != nil {
		return err
	}
	where.ReadOnly = true
	l, err := lake.Open(ctx, where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	engine, err := platform.StartEngine(ctx, c, "", where.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	q, err := platform.SQL(c, l, engine)
	if err != nil {
		return err
	}
	rows, err := q.Run(ctx, query, output)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, rows)
	return errors.Join(err, rows.Close())
}
