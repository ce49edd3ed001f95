package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/lake"
)

func newLakeRelocate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "relocate FROM",
		Short: "Make the tables readable where the warehouse is now, after its files were moved",
		Long: `Iceberg tables name their files by whole locations. After the warehouse's files were moved (or copied to a bucket), name the folder or the
s3:// location that they were at: the tables' metadata is rewritten for where the configuration or --data says that the warehouse is
now. Data files stay as they are. All tables move or none, and an interrupted run is just repeated. Stop millrace before, and move
everything: what was not moved is not found. Old metadata files are removed by maintenance when they are old enough.`,
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
