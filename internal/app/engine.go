package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// EngineCommand is the hidden subcommand of this binary that runs the SQL engine.
const EngineCommand = "clickhouse-engine"

// startEngine connects to the configured ClickHouse, or starts an engine if none is configured.
// Either way, the engine reads the tables' files itself, so it gets the keys of the object store.
func (p *App) startEngine(ctx context.Context) error {
	// A configured server is used as it is. An embedded engine is a child process.
	c := p.cfg.ClickHouse
	var client *clickhouse.Client
	if c.URL == "" {
		// An engine needs a folder for temporary files, even though all tables are elsewhere.
		scratch := "" // a temporary folder
		if p.wanted[folder] {
			scratch = p.cfg.Path("engine")
			// The scratch files are useless to another process, and incomplete ones left by a crash
			// can prevent the engine from starting.
			if err := os.RemoveAll(scratch); err != nil {
				return fmt.Errorf("remove the SQL engine's scratch files: %w", err)
			}
		}
		e, err := StartEngine(ctx, p.cfg, scratch, p.log)
		if err != nil {
			return err
		}
		p.onStop(e.Close)
		client, p.addresses["clickhouse"] = e.Client(), e.Addr()
	} else {
		password, err := c.Password.Reveal("")
		if err != nil {
			return fmt.Errorf("clickhouse.password: %w", err)
		}
		trust, err := c.TLS.Client()
		if err != nil {
			return fmt.Errorf("clickhouse.tls: %w", err)
		}
		client, err = clickhouse.NewServerClient(clickhouse.Server{URL: c.URL, User: c.User, Password: password,
			TLS: trust})
		if err != nil {
			return err
		}
		p.onStop(client.Close)
		p.addresses["clickhouse"] = c.URL
	}
	store, err := sqlStore(p.cfg)
	if err != nil {
		return err
	}
	p.sql = lakesql.New(SQLTables(p.lake), client, store)
	return nil
}

// sqlStore returns how the engine reaches the lake's object store.
func sqlStore(c config.Config) (lakesql.S3, error) {
	// The engine reads the files itself, with the same keys as this process.
	l, err := LakeConfig(c, nil)
	return lakesql.S3{Endpoint: l.S3.Endpoint, Region: l.S3.Region, AccessKey: l.S3.AccessKey,
		SecretKey: l.S3.SecretKey}, err
}

// SQL returns a runner of queries on an engine that StartEngine started. The command sql with
// --data uses it, without an App.
func SQL(c config.Config, l *lake.Lake, engine *clickhouse.Engine) (*lakesql.SQL, error) {
	store, err := sqlStore(c)
	return lakesql.New(SQLTables(l), engine.Client(), store), err
}

// StartEngine starts the SQL engine as a child process of this binary: it is a C++ library, and a
// crash in it must not take this process with it. An empty folder means a temporary one.
func StartEngine(ctx context.Context, c config.Config, folder string, log *slog.Logger) (*clickhouse.Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return clickhouse.StartEngine(ctx, clickhouse.Config{
		Command: []string{self, EngineCommand}, Library: c.ClickHouse.Library, Listen: c.ClickHouse.Listen,
		DataDir: folder, Logger: log,
	})
}

// SQLTables returns a function that lists the lake's tables at the moment of a query. It fails only
// if a table is broken that the query wants.
func SQLTables(l *lake.Lake) lakesql.Tables {
	return func(ctx context.Context, wanted func(string) bool) ([]lakesql.Table, error) {
		states, broken, err := l.Report(ctx)
		if err != nil {
			return nil, err
		}
		for _, fault := range broken {
			readable := slices.ContainsFunc(states, func(s lake.TableState) bool { return s.Name == fault.Table })
			if !readable && wanted(fault.Table) {
				return nil, fault // queries of other tables still work
			}
		}
		// Others are the tables that no module declares, such as those of "lake land".
		others, err := l.Others(ctx, wanted)
		return lakesql.TablesOf(append(states, others...)), err
	}
}

// SQLAsOf runs a query over tables as they were at a moment, which is given as text. It returns the
// rows, and which snapshot of each table was read.
func SQLAsOf(
	ctx context.Context, q *lakesql.SQL, l *lake.Lake, query, format, moment string,
) (io.ReadCloser, []lakesql.ReadAt, error) {
	at, err := lake.ParseAsOf(moment, time.Now())
	if err != nil {
		return nil, nil, &lakesql.QueryError{Message: err.Error()}
	}
	return q.RunOn(ctx, lakesql.AsOf(l, at), query, format)
}
