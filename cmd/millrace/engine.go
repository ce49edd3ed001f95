package main

import (
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/cmd/millrace/internal/platform"
	"github.com/millrace/millrace/internal/clickhouse/engine"
)

// newEngine is the SQL engine's own process, which the others start. It is no command for people.
func newEngine() *cobra.Command {
	return &cobra.Command{
		Use:    platform.EngineCommand,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := engine.FromEnv()
			if err != nil {
				return err
			}
			return engine.Main(cmd.Context(), c)
		},
	}
}
