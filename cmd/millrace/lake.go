package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/defaults"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/maintenance"
)

// newLake returns the command lake with its subcommands.
//
// Every subcommand is built with onLake, which opens the lake. Landing is an exception: it opens
// the lake itself, with the table that it lands.
func newLake(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lake",
		Short: "List and maintain the lake's tables, land any topic",
		Long: `List and maintain the lake's Iceberg tables. These commands access the catalog and the files directly, by the
configuration or --data, so they work with and without a running system.`,
	}
	cmd.AddCommand(newLakeTables(a), newLakeFiles(a), newLakeSnapshots(a), newLakeMaintain(a), newLakeLand(a),
		newLakeRelocate(a))
	return cmd
}

// onLake completes a command with --data, and with a run function that receives an open lake. The
// lake is read-only, unless the command has the annotation "writes".
//
// RunE is set here, so that every subcommand opens and closes the lake in the same way. An error of
// closing fails the command, too.
func (a *cli) onLake(
	cmd *cobra.Command, run func(ctx context.Context, l *lake.Lake, args []string) error,
) *cobra.Command {
	a.dataFlag(cmd, "data folder of the lake, unless the configuration sets a warehouse and a catalog")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		c, err := a.config()
		if err != nil {
			return err
		}
		// The same location as that of the roles.
		where, err := app.LakeConfig(c, c.Log.Logger(os.Stderr))
		if err != nil {
			return err
		}
		// Every table in the lake, rather than the declared ones.
		where.Tables = []declare.Table{}
		where.ReadOnly = true
		l, err := lake.Open(cmd.Context(), where)
		// Opening for writing creates a missing lake. Opening read-only first makes sure that a
		// mistyped folder does not become one.
		if err == nil && cmd.Annotations["writes"] != "" {
			where.ReadOnly = false
			if err = l.Close(); err == nil {
				l, err = lake.Open(cmd.Context(), where)
			}
		}
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		return run(cmd.Context(), l, args)
	}
	return cmd
}

// newLakeTables returns the command lake tables.
//
// A broken table does not fail the command, because an operator needs the list most when something
// is broken.
func newLakeTables(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tables",
		Short: "List the tables: rows, files, bytes, history, freshness",
		Long: `List the tables. "rows" are the rows that a query returns, if landers count them, and otherwise all rows in
the table's files. "rows in files" include rows that deletes hide, until maintenance removes them.`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	return a.onLake(cmd, func(ctx context.Context, l *lake.Lake, _ []string) error {
		names, err := l.All(ctx)
		if err != nil {
			return err
		}
		all := make([]lake.Summary, 0, len(names))
		for _, name := range names {
			// A summary reads metadata only, so its cost does not depend on the number of rows.
			s, err := l.Summarize(ctx, name)
			// A broken table is reported on standard error, and the others are listed.
			if broken := (*faults.TableError)(nil); errors.As(err, &broken) {
				fmt.Fprintln(cmd.ErrOrStderr(), "broken:", broken)
				continue
			}
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), all)
		}
		// One time for all rows, so that their ages are comparable.
		now, rows := time.Now(), make([][]any, len(all))
		for i, s := range all {
			rows[i] = []any{s.Name, s.Rows, s.RowsInFiles, s.DataFiles, s.DeleteFiles, bytesText(s.DataBytes),
				s.Snapshots, orNone(s.Partitioned), orNone(s.Sorted), ago(now, s.AsOf)}
		}
		printTable(cmd.OutOrStdout(), []string{"table", "rows", "rows in files", "files", "delete files", "bytes",
			"snapshots", "partitioned by", "sorted by", "newest recorded"}, rows)
		return nil
	})
}

// newLakeFiles returns the command lake files. It shows what maintenance would work on: the sizes
// of files, and the delete files that apply to each.
func newLakeFiles(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "files TABLE",
		Short:   "List the current data files of a table",
		Example: "  millrace lake files order_lines",
		Args:    cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	return a.onLake(cmd, func(ctx context.Context, l *lake.Lake, args []string) error {
		return showTable(ctx, cmd, args[0], *output, l.Files,
			[]string{"file", "rows", "bytes", "partition", "delete files", "sorted"}, func(f lake.FileState) []any {
				// The table has only the name of the file, and JSON its whole path.
				return []any{f.Path[strings.LastIndex(f.Path, "/")+1:], f.Rows, bytesText(f.Bytes), orNone(f.Partition),
					f.Deletes, f.Sorted}
			})
	})
}

// showTable prints what list returns about a table: a row for each element. It is shared by the
// commands that have one table as their argument.
func showTable[T any](
	ctx context.Context, cmd *cobra.Command, table, output string, list func(context.Context, lake.Name) ([]T, error),
	header []string, row func(T) []any,
) error {
	name, err := lake.ParseName(table)
	if err != nil {
		return err
	}
	all, err := list(ctx, name)
	if err != nil {
		return err
	}
	if output == "json" {
		return printJSON(cmd.OutOrStdout(), all)
	}
	// JSON has all fields of an element, and the table a selection as text.
	rows := make([][]any, len(all))
	for i, one := range all {
		rows[i] = row(one)
	}
	printTable(cmd.OutOrStdout(), header, rows)
	return nil
}

// newLakeSnapshots returns the command lake snapshots. With the topic, its offsets can be used in
// --as-of of the command sql.
func newLakeSnapshots(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshots TABLE",
		Short: "Show a table's snapshots, newest first, with their Kafka offsets",
		Long: `Show a table's snapshots, newest first. A snapshot of a lander names, for the partitions that it advanced, the
first offsets that are not in the table.`,
		Example: "  millrace lake snapshots orders_events",
		Args:    cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	return a.onLake(cmd, func(ctx context.Context, l *lake.Lake, args []string) error {
		header := []string{"snapshot", "committed (UTC)", "operation", "rows added", "rows in files", "files",
			"next offsets"}
		return showTable(ctx, cmd, args[0], *output, l.Snapshots, header, func(s lake.SnapshotState) []any {
			return []any{fmt.Sprint(s.ID), s.Time.Format("2006-01-02 15:04:05.000"), s.Operation, s.Added, s.Rows,
				s.Files, orNone(s.Offsets)}
		})
	})
}

// newLakeMaintain returns the command lake maintain.
//
// The tables are maintained one after the other, each with its own progress bar. The report of a
// table says what was done, and in its last column what was left out.
func newLakeMaintain(a *cli) *cobra.Command {
	// A duty cycle of 1: nothing else in this process needs the time, so there is no pause between
	// steps.
	c := maintenance.Config{DutyCycle: 1}
	var dry bool
	var deletes float64
	cmd := &cobra.Command{
		Use:   "maintain [TABLE…]",
		Short: "Compact files, expire snapshots, remove orphan files",
		Long: `Compact small files and deletes into large files in the table's sort order, merge manifests, expire snapshots,
and remove files without references. It is safe while landers and other engines write: no row is lost or
duplicated, and the offsets in the table remain. Without a name, it works on every table. The role lake does
the same periodically.`,
		Example: `  millrace lake maintain --dry-run
  millrace lake maintain orders_current --delete-share 0
  millrace lake maintain order_lines --target-bytes 268435456`,
		Annotations: map[string]string{"writes": "yes"},
	}
	output := outputFlag(cmd, "table", "json")
	// The defaults of the role lake, so that both do the same.
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print the plan without changing anything")
	cmd.Flags().Int64Var(&c.TargetBytes, "target-bytes", defaults.TargetBytes, "target size of data files")
	cmd.Flags().IntVar(&c.SmallFiles, "small-files", 8, "number of small files in a partition that starts a rewrite")
	cmd.Flags().Float64Var(&deletes, "delete-share", 0.1,
		"fraction of deleted rows that starts a rewrite; 0: any delete, for readers without support for deletes")
	durationFlag(cmd.Flags(), &c.KeepAge, "keep", defaults.KeepAge,
		"how long a snapshot stays readable after the next one")
	cmd.Flags().IntVar(&c.KeepSnapshots, "keep-snapshots", 10, "number of snapshots to keep at any age")
	durationFlag(cmd.Flags(), &c.OrphanAge, "orphan-age", defaults.OrphanAge,
		"delete unreferenced files older than this, at least 10m")
	cmd.Flags().Int64Var(&c.Memory, "memory", defaults.Memory, "memory of one compaction in bytes")
	return a.onLake(cmd, func(ctx context.Context, l *lake.Lake, args []string) error {
		if deletes < 0 {
			return fmt.Errorf("--delete-share %g: must not be negative", deletes)
		}
		// Zero means the default in maintenance.Config, but "any delete" here.
		c.DeleteShare = max(deletes, math.SmallestNonzeroFloat64)
		// Unknown names are errors before anything is changed.
		names, err := tablesNamed(ctx, l, args)
		if err != nil {
			return err
		}
		if dry {
			return planMaintenance(ctx, cmd, l, names, c, *output)
		}
		// One report per table, in the order of the names.
		reports := make([]maintenance.Report, len(names))
		// Of all tables: one failure does not prevent the maintenance of the others.
		var failed error
		for i, name := range names {
			b := newBar("maintain " + strings.Join(name, "."))
			reports[i], err = l.Maintain(ctx, name, c,
				func(p maintenance.Progress) { b.set(p.Done, p.Of, p.Table+": "+p.Step) })
			b.end(err)
			reports[i].Table = strings.Join(name, ".")
			// After an interrupt, every further table would only fail.
			if failed = errors.Join(failed, err); ctx.Err() != nil {
				return failed
			}
		}
		if *output == "json" {
			return errors.Join(failed, printJSON(cmd.OutOrStdout(), reports))
		}
		rows := make([][]any, len(reports))
		for i, r := range reports {
			rows[i] = []any{
				r.Table, fmt.Sprintf("%d → %d", r.Compacted.FilesBefore, r.Compacted.FilesAfter),
				bytesText(r.Compacted.BytesBefore) + " → " + bytesText(r.Compacted.BytesAfter),
				r.Compacted.DeleteFiles, r.Expired.Snapshots, r.Orphans.Files, r.Took.Round(time.Millisecond),
				orNone(strings.Join(r.Skipped, "; ")),
			}
		}
		printTable(cmd.OutOrStdout(), []string{"table", "files", "bytes", "delete files gone", "snapshots gone",
			"orphans gone", "took", "left out"}, rows)
		return failed
	})
}

// tablesNamed returns the tables named by the arguments, or all tables if there are none. It checks
// every name before it returns, so that a command does all of its work or none of it.
func tablesNamed(ctx context.Context, l *lake.Lake, args []string) ([]lake.Name, error) {
	if len(args) == 0 {
		return l.All(ctx)
	}
	all, err := l.All(ctx)
	if err != nil {
		return nil, err
	}
	// A mistyped name must not look like a table without work.
	names := make([]lake.Name, len(args))
	for i, arg := range args {
		if names[i], err = lake.ParseName(arg); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all, func(n lake.Name) bool { return slices.Equal(n, names[i]) }) {
			return nil, fmt.Errorf("no table %s: see `millrace lake tables`", arg)
		}
	}
	return names, nil
}

// planMaintenance prints what maintenance would do to each table. The figures are estimates:
// landers may commit between the plan and its execution.
func planMaintenance(
	ctx context.Context, cmd *cobra.Command, l *lake.Lake, names []lake.Name, c maintenance.Config,
	output string,
) error {
	// Planning reads the metadata of the tables and lists their files. It writes nothing.
	plans := make([]maintenance.Planned, len(names))
	rows := make([][]any, len(names))
	for i, name := range names {
		p, err := l.PlanMaintenance(ctx, name, c)
		if err != nil {
			return err
		}
		plans[i] = p
		rows[i] = []any{p.Table, p.DataFiles, bytesText(p.DataBytes), p.RewriteFiles, p.ResultFiles, p.Manifests,
			p.Snapshots, p.ExpiredNow, len(p.OrphanFiles)}
	}
	if output == "json" {
		return printJSON(cmd.OutOrStdout(), plans)
	}
	printTable(cmd.OutOrStdout(), []string{"table", "files", "bytes", "to rewrite", "into about", "manifests to merge",
		"snapshots", "to cut", "orphans"}, rows)
	return nil
}

// orNone returns the text, or a dash for an empty cell of a table.
func orNone(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// bytesText formats a number of bytes for a table. A unit begins at ten, so that two digits remain.
func bytesText(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
