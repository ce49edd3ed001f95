package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/cmd/millrace/internal/platform"
)

func newMigrate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Bring the event stores' schemas in PostgreSQL to this version, as the schemas' owner",
		Long: `Bring the schema of each service's event store in PostgreSQL to this version of Millrace, and grant the services' roles
what they need of its tables. Run it before a new version is started, where the services' own roles may not change schemas
(deploy/postgres/roles.sql makes such roles); where they may, each service does it when it starts.

It connects as store.postgres and store.password say, so give it the owner's:`,
		Example: "  MILLRACE_STORE_POSTGRES=postgres://millrace_owner@db/millrace MILLRACE_STORE_PASSWORD_FILE=owner.secret millrace migrate",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			return platform.Migrate(cmd.Context(), c, func(service string) {
				fmt.Fprintf(cmd.OutOrStdout(), "event store of %s: this version\n", service)
			})
		},
	}
}
