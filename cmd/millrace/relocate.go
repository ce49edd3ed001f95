package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/lake"
)

// newLakeRelocate returns the command lake relocate. It rewrites metadata, so it has the annotation
// "writes"; see onLake.
//
// Iceberg's metadata contains absolute locations only, so a moved warehouse is unreadable until
// this command has run.
func newLakeRelocate(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "relocate FROM",
		Short: "Rewrite the tables' metadata after the warehouse was moved",
		Long: `Iceberg tables refer to their files by absolute locations. After moving the warehouse's files, or copying them
to a bucket, name their previous folder or s3:// location. The tables' metadata is rewritten for the present
warehouse, which is that of the configuration or --data. Data files remain unchanged. All tables move or none,
and an interrupted run can be repeated. Stop Millrace first, and move all files: others are not found.
Maintenance removes the old metadata files later.`,
		Example: `  mv data /srv/millrace
  millrace lake relocate "$PWD/data/lake/warehouse" --data /srv/millrace`,
		Args:        cobra.ExactArgs(1),
		Annotations: map[string]string{"writes": "yes"},
	}
	output := outputFlag(cmd, "table", "json")
	return a.onLake(cmd, func(ctx context.Context, l *lake.Lake, args []string) error {
		did, err := l.Relocate(ctx, args[0])
		if err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), did)
		}
		rows := make([][]any, len(did))
		for i, d := range did {
			rows[i] = []any{d.Table, d.From, d.To, d.Manifests}
		}
		printTable(cmd.OutOrStdout(), []string{"table", "from", "to", "manifests"}, rows)
		return nil
	})
}
