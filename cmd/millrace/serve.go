package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/cmd/millrace/internal/platform"
)

func newServe(a *app) *cobra.Command {
	var names string
	cmd := &cobra.Command{
		Use:   "serve --role ROLE[,ROLE…]",
		Short: "Run some roles in this process, on the servers that the configuration names, until SIGTERM",
		Long: `Run some roles of the system in this process, until SIGTERM or Ctrl-C. The roles are

  commands   takes commands at --addr; as many processes as wanted
  relay      carries events from the stores to Kafka; one process, as a second one fences the first
  views      feeds Redis and Elasticsearch; the processes share the partitions
  lake       lands the Iceberg tables and keeps them small; the processes share the partitions
  query      answers queries and SQL at --addr; as many processes as wanted
  admin      answers status and verify at --admin-addr
  iceberg    shows the tables to other engines by Iceberg's REST catalog, at http://--addr/iceberg

Every process has liveness, readiness and metrics at --admin-addr: GET /healthz, /readyz, /metrics. Told to stop, it first
withdraws its readiness, waits for "drain", lets calls under way end, and brings what it is writing to its end.

Roles in processes of their own meet in real servers only, so the settings must name one for each that they need:
store.postgres, kafka.brokers, redis.addr, search.elasticsearch, lake.catalog and lake.warehouse.`,
		Example: `  millrace serve --role commands
  millrace serve --role relay,views --admin-addr 127.0.0.1:7411
  millrace serve --role all                         # as "millrace up", without the demo and the table`,
		Args: cobra.NoArgs,
	}
	a.dataFlag(cmd, "folder of what embedded parts keep (default from the configuration: data)")
	cmd.Flags().StringVar(&names, "role", "", "the roles, separated by commas, or all")
	if err := cmd.MarkFlagRequired("role"); err != nil {
		panic(err) // the flag stands one line above
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.config()
		if err != nil {
			return err
		}
		roles, err := platform.ParseRoles(names)
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		p, err := platform.Start(ctx, c, roles, c.Log.Logger(os.Stderr))
		if err != nil {
			return fmt.Errorf("start: %w", err)
		}
		api := ""
		if p.Addr() != "" {
			api = "api on " + p.Addr() + ", "
		}
		fmt.Fprintf(cmd.OutOrStdout(), "serving %v: %soperations on %s\n", roles, api, p.AdminAddr())
		select {
		case <-ctx.Done():
		case <-p.Failed():
		}
		fmt.Fprintln(cmd.OutOrStdout(), "stopping…")
		if err := p.Close(); err != nil {
			return errors.Join(errors.New("a part failed, or did not stop in good order"), err)
		}
		fmt.Fprintln(cmd.OutOrStdout(), "stopped")
		return nil
	}
	return cmd
}
