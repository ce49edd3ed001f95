// Command engine is the embedded ClickHouse engine as a server of its own. Its settings are
// environment variables: see clickhouse.EnvListen. The package clickhouse above builds and runs it.
// It ends when it is killed.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/millrace/millrace/internal/clickhouse/engine"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	// The log goes to stderr, and so to the file that package process keeps for each server.
	c, err := engine.FromEnv(log)
	if err == nil {
		err = engine.Main(context.Background(), c)
	}
	if err != nil {
		log.Error("engine", "error", err)
		os.Exit(1)
	}
}
