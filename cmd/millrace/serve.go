package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
)

// newServe returns the command serve, which runs roles until a signal or until a part fails.
//
// A failing part ends the process instead of running without it, so that a supervisor restarts the
// process and sees the error.
func newServe(a *cli) *cobra.Command {
	var names string
	cmd := &cobra.Command{
		Use:   "serve --role ROLE[,ROLE…]",
		Short: "Run some roles in this process on the configured servers, until SIGTERM",
		Long: `Run some roles of the system in this process, until SIGTERM or Ctrl-C. The roles are

  commands   accepts commands at --addr; any number of processes
  relay      publishes events from the stores to Kafka; one process, because a second one fences the first
  views      feeds Redis and Elasticsearch; the processes share the partitions
  lake       lands and maintains the Iceberg tables; the processes share the partitions
  features   fills the tables of features in ClickHouse, and answers vectors at --addr; any number of processes
  query      answers queries and SQL at --addr; any number of processes
  admin      answers status and verify at --admin-addr
  iceberg    serves Iceberg's REST catalog to other engines at http://--addr/iceberg
  tracking   receives the events of tracking clients at --tracking-addr; any number of processes

Every process has liveness, readiness and metrics at --admin-addr: GET /healthz, /readyz, /metrics. At
SIGTERM, it withdraws its readiness, waits for "drain", ends the calls in progress, and finishes what it is
writing.

Roles in different processes need real servers for what they share. Configure those that they need:
store.postgres, kafka.brokers, redis.addr, search.elasticsearch, lake.catalog, lake.warehouse and,
for features, clickhouse.url.`,
		Example: `  millrace serve --role commands
  millrace serve --role relay,views --admin-addr 127.0.0.1:7411
  millrace serve --role all                         # as "millrace up", without the demo and the table`,
		Args: cobra.NoArgs,
	}
	a.dataFlag(cmd, "data folder of the embedded servers (default from the configuration: data)")
	a.trackingFlag(cmd)
	cmd.Flags().StringVar(&names, "role", "", "comma-separated roles, or all")
	if err := cmd.MarkFlagRequired("role"); err != nil {
		panic(err) // unreachable: the flag is defined above
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.config()
		if err != nil {
			return err
		}
		// Start checks that these roles can run without the others.
		roles, err := app.ParseRoles(names)
		if err != nil {
			return err
		}
		// The context is done at SIGTERM or Ctrl-C; see main.
		ctx := cmd.Context()
		p, err := app.Start(ctx, c, roles, c.Log.Logger(os.Stderr))
		if err != nil {
			return fmt.Errorf("start: %w", err)
		}
		api := "" // a process without commands, query or iceberg has no listener for them
		if p.Addr() != "" {
			api = "api on " + p.Addr() + ", "
		}
		if p.TrackingAddr() != "" {
			api += "tracking on " + p.TrackingAddr() + ", "
		}
		fmt.Fprintf(cmd.OutOrStdout(), "serving %v: %soperations on %s\n", roles, api, p.AdminAddr())
		// Until a signal, or until a component fails.
		select {
		case <-ctx.Done():
		case <-p.Failed():
		}
		fmt.Fprintln(cmd.OutOrStdout(), "stopping…")
		if err := p.Close(); err != nil {
			return errors.Join(errors.New("a component failed, or did not stop cleanly"), err)
		}
		fmt.Fprintln(cmd.OutOrStdout(), "stopped")
		return nil
	}
	return cmd
}
