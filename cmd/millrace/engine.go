package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/clickhouse/engine"
	"github.com/millrace/millrace/internal/config"
)

// newEngine returns the hidden command that runs the SQL engine. Other processes of Millrace start
// it; users do not.
//
// The engine is a C++ library. It runs in a process of its own, so that a crash in it ends queries
// only. That process is the same binary under a hidden command, so there is nothing else to
// install.
func newEngine() *cobra.Command {
	return &cobra.Command{
		Use:    app.EngineCommand,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Only the log settings come from the configuration. The parent passes the rest in the
			// environment.
			settings, err := config.Load("", os.LookupEnv)
			if err != nil {
				return err
			}
			c, err := engine.FromEnv(settings.Log.Logger(os.Stderr).With("part", "engine"))
			if err != nil {
				return err
			}
			return engine.Main(cmd.Context(), c)
		},
	}
}
