package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
)

// newRebuild returns the command rebuild. It deletes data, so it requires --yes, and never asks: a
// script must not block on a question.
//
// The store is the source of truth, and everything that is deleted is derived from it. Only what
// the log has beyond the store is lost.
func newRebuild(a *cli) *cobra.Command {
	var service string
	var yes bool
	cmd := &cobra.Command{
		Use:   "rebuild --service SERVICE --yes",
		Short: "Rebuild a service's topic, views and tables from its event store",
		Long: `Delete the topic of a service and create it again, empty. Drop the views and tables that are read from it. The
next start publishes the service's event store from its beginning, and fills them again. Use it if log and
store have diverged and neither can be restored: the relay reports this and stops. Events in the store are
kept. Events that only the log has are lost. Offsets begin at 0 again, so other consumers of the topic must
start again, too.

Stop every process of Millrace first. It uses the configuration or --data, as "millrace up" does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Before the configuration is read: a forgotten --yes is the more likely mistake.
			if !yes {
				return errors.New("this deletes the topic, and the views and tables derived from it: confirm with --yes")
			}
			c, err := a.config()
			if err != nil {
				return err
			}
			// Deleting a topic and dropping tables takes seconds, unless a server hangs.
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			return app.Rebuild(ctx, c, service, c.Log.Logger(os.Stderr),
				func(what string) { fmt.Fprintln(cmd.OutOrStdout(), what) })
		},
	}
	a.dataFlag(cmd, "data folder of the system, if the configuration names no servers")
	cmd.Flags().StringVar(&service, "service", "", "service to rebuild: order, inventory, catalog or customer")
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm the deletion")
	return cmd
}
