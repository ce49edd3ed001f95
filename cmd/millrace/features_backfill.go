package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/history"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/backoff"
)

// newFeaturesBackfill returns the command features backfill. The role features fills the tables by
// itself; the command watches it.
func newFeaturesBackfill(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backfill [GROUP]",
		Short: "Show how far the tables of feature groups are filled, until they are",
		Long: `Show how far the tables of feature groups are filled, until they have all facts of the start of the command. Of
a group with several versions, the last one must also have become live: it is compared with its facts first. The role
features fills the tables, also without this command.

If a table is stopped, the command names it and the reason, and fails. It asks the process at --admin-addr, which
needs the roles admin and features to know. The caller needs the rights operations, and SQL over the tables of
features.`,
		Example: "  millrace features backfill\n  millrace features backfill customer_value",
		Args:    cobra.MaximumNArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		groups, err := a.groups()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			if groups = versionsOf(groups, args[0]); len(groups) == 0 {
				return unknownGroup(args[0])
			}
		}
		begun := time.Now()
		// Faults are asked from the other listener, so both addresses are needed.
		admin, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		b := newBar("backfill")
		done, filled, err := a.watchBackfill(cmd.Context(), admin, groups, b)
		b.end(err)
		if err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), done)
		}
		rows := make([][]any, len(done))
		for i, t := range done {
			rows[i] = []any{t.Table, t.Facts, t.Tiles, t.Behind}
		}
		printTable(cmd.OutOrStdout(), []string{"table", "facts", "rows of tiles", "events behind"}, rows)
		took := time.Since(begun)
		if filled == 0 {
			fmt.Fprintln(cmd.OutOrStdout(), "the tables have all facts")
			return nil
		}
		fmt.Fprintf(cmd.OutOrStdout(), "filled after %s: %d facts meanwhile, %.0f per second\n",
			took.Round(100*time.Millisecond), filled, float64(filled)/took.Seconds())
		return nil
	}
	return cmd
}

// unknownGroup returns the error about a group that no definition has.
func unknownGroup(name string) error {
	return fmt.Errorf("unknown feature group %q: see millrace features list", name)
}

// versionsOf returns the versions of a group, or one version by its ID.
func versionsOf(groups []*features.Group, name string) []*features.Group {
	var all []*features.Group
	for _, g := range groups {
		if g.Name == name || g.ID() == name {
			all = append(all, g)
		}
	}
	return all
}

// severalVersions reports whether a group has several versions.
func severalVersions(groups []*features.Group, name string) bool {
	return len(versionsOf(groups, name)) > 1
}

// filling is how far a table of tiles is.
type filling struct {
	Table string `json:"table"`
	Tiles int64  `json:"tiles"` // rows
	Facts int64  `json:"facts"` // that it has
	All   int64  `json:"-"`     // facts that there are
	// Behind is how many events of the topic are not in the table of facts yet. They grow if no process
	// fills it.
	Behind uint64 `json:"events_behind"`
}

// watchBackfill waits until the tables of groups have all facts that there are now. It also returns
// how many facts were filled meanwhile.
func (a *cli) watchBackfill(ctx context.Context, admin caller, groups []*features.Group, b *bar) (
	[]filling, int64, error,
) {
	target := map[string]int64{}
	before := int64(-1)
	for {
		status, err := admin.admin().Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
		if err != nil {
			return nil, 0, fmt.Errorf("whether tables are stopped: %w", explain(err))
		}
		waiting, err := backfillFaults(groups, status.Msg.GetTables())
		if err != nil {
			return nil, 0, err
		}
		tables, err := a.fillings(ctx, groups)
		if err != nil {
			return nil, 0, err
		}
		have, all := int64(0), int64(0)
		for _, t := range tables {
			if _, first := target[t.Table]; !first {
				target[t.Table] = t.All
			}
			have, all = have+min(t.Facts, target[t.Table]), all+target[t.Table]
		}
		if before < 0 {
			before = have
		}
		swapped, doing := true, "facts"
		if have >= all {
			live, err := a.liveVersions(ctx, groups)
			if err != nil {
				return nil, 0, err
			}
			for _, g := range groups {
				if severalVersions(groups, g.Name) && live[g.Name] < g.Version {
					swapped, doing = false, "comparing "+g.ID()
				}
			}
		}
		if waiting != "" {
			doing = "waiting: " + waiting
		}
		if b.set(have, all, doing); waiting == "" && have >= all && swapped {
			addBehind(tables, groups, status.Msg.GetSinks())
			return tables, have - before, nil
		}
		if !backoff.Sleep(ctx, time.Second) {
			return nil, 0, ctx.Err()
		}
	}
}

// backfillFaults returns an error with the tables of groups that are stopped, or a table that waits for
// something, if there is one.
func backfillFaults(groups []*features.Group, faults []*adminv1.TableFault) (waiting string, err error) {
	mine := map[string]bool{}
	for _, g := range groups {
		mine["features.versions of "+g.Name] = true
		for i := range g.Sources {
			mine["features.facts_"+g.Sources[i].Name] = true
			mine["features."+history.TilesTable(g, g.Sources[i].Name)] = true
		}
	}
	var stopped []string
	for _, f := range faults {
		switch {
		case !mine[f.GetTable()]:
		case f.GetTransient():
			waiting = f.GetTable() + ": " + f.GetReason()
		default:
			// Most reasons begin with the name of the table.
			reason := strings.TrimPrefix(f.GetReason(), strings.TrimPrefix(f.GetTable(), "features.")+": ")
			stopped = append(stopped, fmt.Sprintf("%s is stopped: %s; %s", f.GetTable(), reason, f.GetRemedy()))
		}
	}
	if len(stopped) > 0 {
		return "", errors.New(strings.Join(stopped, "\n"))
	}
	return waiting, nil
}

// addBehind sets how far the facts of tables are behind their topics.
func addBehind(tables []filling, groups []*features.Group, sinks []*adminv1.SinkStatus) {
	lag := map[string]uint64{}
	for _, s := range sinks {
		lag[s.GetSink()] = s.GetLagEvents()
	}
	for _, g := range groups {
		for i := range g.Sources {
			name := history.TilesTable(g, g.Sources[i].Name)
			if at := slices.IndexFunc(tables, func(t filling) bool { return t.Table == name }); at >= 0 {
				tables[at].Behind = lag["features facts_"+g.Sources[i].Name]
			}
		}
	}
}

// fillings returns how far the tables of tiles of groups are.
func (a *cli) fillings(ctx context.Context, groups []*features.Group) ([]filling, error) {
	var parts []string
	for _, g := range groups {
		for i := range g.Sources {
			source, tiles := g.Sources[i].Name, history.TilesTable(g, g.Sources[i].Name)
			parts = append(parts, fmt.Sprintf("SELECT '%[1]s' AS table, "+
				"(SELECT toInt64(count()) FROM features.%[1]s) AS tiles, toInt64(countIf(batch <= "+
				"(SELECT max(batch) FROM features.positions_%[2]s WHERE table_name = '%[1]s'))) AS facts, "+
				"toInt64(count()) AS all FROM features.facts_%[2]s", tiles, source))
		}
	}
	var all []filling
	err := a.queryRows(ctx, strings.Join(parts, " UNION ALL "), func(d *json.Decoder) error {
		var row struct {
			Table             string
			Tiles, Facts, All json.Number
		}
		if err := d.Decode(&row); err != nil {
			return err
		}
		f := filling{Table: row.Table}
		var errs [3]error
		f.Tiles, errs[0] = row.Tiles.Int64()
		f.Facts, errs[1] = row.Facts.Int64()
		f.All, errs[2] = row.All.Int64()
		all = append(all, f)
		return errors.Join(errs[:]...)
	})
	if err != nil {
		return nil, fmt.Errorf("how far the tables are: %w", err)
	}
	slices.SortFunc(all, func(a, b filling) int { return strings.Compare(a.Table, b.Table) })
	return all, nil
}

// liveVersions asks the running system which versions are live of groups with several. Groups of
// which no version has become live are left out.
func (a *cli) liveVersions(ctx context.Context, groups []*features.Group) (map[string]int, error) {
	several := false
	for _, g := range groups {
		several = several || severalVersions(groups, g.Name)
	}
	if !several {
		return nil, nil
	}
	live := map[string]int{}
	err := a.queryRows(ctx, "SELECT group_name AS name, toInt32(argMax(version, number)) AS version "+
		"FROM features.versions WHERE state = 'live' GROUP BY group_name", func(d *json.Decoder) error {
		var row struct {
			Name    string
			Version int
		}
		err := d.Decode(&row)
		live[row.Name] = row.Version
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("which versions of the feature groups are live: %w", err)
	}
	return live, nil
}

// queryRows runs a query on the running system, and calls row for each of its rows, which is a JSON
// object.
func (a *cli) queryRows(ctx context.Context, query string, row func(*json.Decoder) error) error {
	resp, err := a.postSQL(ctx, query, url.Values{"output": {"json"}})
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	for d := json.NewDecoder(resp.Body); d.More(); {
		if err := row(d); err != nil {
			return fmt.Errorf("the answer to a query: %w", err)
		}
	}
	return nil
}
