package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/cmd/millrace/internal/platform"
)

func newRebuild(a *app) *cobra.Command {
	var service string
	var yes bool
	cmd := &cobra.Command{
		Use:   "rebuild --service SERVICE --yes",
		Short: "Rebuild a service's topic, and everything read from it, from its event store after the two have diverged",
		Long: `Delete the topic of a service and recreate it, empty; drop the views and tables that are read from it. The next start
publishes the service's event store from its beginning, and fills them again. It is for the case that log and store have
parted and neither can be brought back: the relay says so, and stops. What the store holds is kept; what only the log holds
is lost. Offsets begin again, so readers of the topic outside Millrace have to start over, too.

Stop every process of Millrace first. It works by the configuration or --data, as "millrace up" does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return errors.New("the topic and what is read from it are deleted: say --yes if that is what you want")
			}
			c, err := a.config()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			return platform.Rebuild(ctx, c, service, c.Log.Logger(os.Stderr), func(what string) { fmt.Fprintln(cmd.OutOrStdout(), what) })
		},
	}
	a.dataFlag(cmd, "the system in this data folder, where the configuration names no servers")
	cmd.Flags().StringVar(&service, "service", "", "the service: order, inventory, catalog or customer")
	cmd.Flags().BoolVar(&yes, "yes", false, "delete")
	return cmd
}
