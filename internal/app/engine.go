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

// startEngine connects to the ClickHouse that the configuration names, and starts one where none is named.
func (p *App) startEngine(ctx context.Context) error {
	c := p.cfg.ClickHouse
	var client *clickhouse.Client
	if c.URL == "" {
		scratch := "" // a temporary one
		if p.wanted[folder] {
			scratch = p.cfg.Path("engine")
			// Nothing in it outlives the process that wrote it, and what a crash left incomplete can stop the engine
			// from starting.
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
		client, err = clickhouse.NewServerClient(clickhouse.Server{URL: c.URL, User: c.User, Password: password, TLS: trust})
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

// sqlStore is how the engine reaches the lake's object store.
func sqlStore(c config.Config) (lakesql.S3, error) {
	l, err := LakeConfig(c, nil)
	return lakesql.S3{Endpoint: l.S3.Endpoint, Region: l.S3.Region, AccessKey: l.S3.AccessKey, SecretKey: l.S3.SecretKey}, err
}

// SQL runs queries on an engine that StartEngine started.
func SQL(c config.Config, l *lake.Lake, engine *clickhouse.Engine) (*lakesql.SQL, error) {
	store, err := sqlStore(c)
	return lakesql.New(SQLTables(l), engine.Client(), store), err
}

// StartEngine starts the SQL engine as a process of this binary. An empty folder means a temporary one.
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

// SQLTables tells SQL which tables there are at the moment of a query.
func SQLTables(l *lake.Lake) lakesql.Tables {
	return func(ctx context.Context, wanted func(string) bool) ([]lakesql.Table, error) {
		states, broken, err := l.Look(ctx)
		if err != nil {
			return nil, err
		}
		for _, fault := range broken {
			readable := slices.ContainsFunc(states, func(s lake.TableState) bool { return s.Name == fault.Table })
			if !readable && wanted(fault.Table) {
				return nil, fault // a query of other tables is not concerned
			}
		}
		others, err := l.Others(ctx, wanted)
		return lakesql.TablesOf(append(states, others...)), err
	}
}

// SQLAsOf runs a query over tables as they were at a moment, which is given as text, and returns what it read of each
// table that it names.
func SQLAsOf(ctx context.Context, q *lakesql.SQL, l *lake.Lake, query, format, moment string) (io.ReadCloser, []lakesql.ReadAt, error) {
	at, err := lake.ParseAsOf(moment, time.Now())
	if err != nil {
		return nil, nil, &lakesql.QueryError{Message: err.Error()}
	}
	return q.RunOn(ctx, lakesql.AsOf(l, at), query, format)
}
