package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
)

// newMigrate returns the command migrate.
//
// Only PostgreSQL needs it, where the services' own users may lack the right to change schemas.
// Embedded stores are migrated at each start.
func newMigrate(a *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Migrate the schemas of the event stores in PostgreSQL, as their owner",
		Long: `Migrate the schema of each service's event store in PostgreSQL to this version of Millrace, and grant the
services' roles their rights on its tables. Run it before starting a new version, if the services' own roles
may not change schemas (deploy/postgres/roles.sql creates such roles). Otherwise each service migrates its
schema at start.

It connects with store.postgres and store.password, which must be those of the owner:`,
		Example: "  MILLRACE_STORE_POSTGRES=postgres://millrace_owner@db/millrace MILLRACE_STORE_PASSWORD_FILE=owner.secret millrace migrate",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			// A store that already has this version is reported as well.
			return app.Migrate(cmd.Context(), c, func(service string) {
				fmt.Fprintf(cmd.OutOrStdout(), "event store of %s: this version\n", service)
			})
		},
	}
}
