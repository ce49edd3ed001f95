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
	"github.com/millrace/millrace/internal/dependency"
	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// EngineCommand is the hidden subcommand of this binary that runs the SQL engine.
const EngineCommand = "clickhouse-engine"

// startEngine connects to the configured ClickHouse, or starts an engine if none is configured.
// Either way, the engine reads the tables' files itself, so it gets the keys of the object store.
func (p *App) startEngine(ctx context.Context) error {
	// A configured server is used as it is. An embedded engine is a child process.
	var client *clickhouse.Client
	if c := p.cfg.ClickHouse; c.URL == "" {
		if err := p.startChild(ctx); err != nil {
			return err
		}
		client, p.addresses["clickhouse"] = p.child.Client(), p.child.Addr()
	} else {
		server, err := clickHouse(c)
		if err != nil {
			return err
		}
		server.Dependency = p.dependencies.Named("clickhouse")
		if client, err = clickhouse.NewServerClient(server); err != nil {
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

// startChild starts the embedded engine. If it does not start, this process runs without it: SQL
// answers with the reason, readiness and status report it, and the engine is started again until it
// runs.
func (p *App) startChild(ctx context.Context) error {
	// An engine needs a folder for temporary files, even though the lake's tables are elsewhere. Its
	// own tables persist.
	scratch, tables := "", "" // temporary folders
	if p.wanted[folder] {
		scratch, tables = p.cfg.Path("engine"), p.cfg.Path("clickhouse")
		// The scratch files are useless to another process, and incomplete ones left by a crash
		// can prevent the engine from starting.
		if err := os.RemoveAll(scratch); err != nil {
			return fmt.Errorf("remove the SQL engine's scratch files: %w", err)
		}
	}
	c, err := engineConfig(p.cfg, scratch, p.log)
	if err != nil {
		return err
	}
	c.Tables, c.Patient = tables, true
	if p.child, err = clickhouse.StartEngine(ctx, c); err != nil {
		return err
	}
	p.onStop(p.child.Close)
	if p.wanted[folder] {
		if err := p.announceEngine(); err != nil {
			return err
		}
	}
	if err := p.child.Err(); err != nil {
		p.log.Error("the SQL engine did not start; the process runs without SQL until it does", "error", err)
	}
	return nil
}

// engineDown returns why the embedded engine does not run, or nil.
func (p *App) engineDown() error {
	if p.child == nil {
		return nil
	}
	if err := p.child.Err(); err != nil {
		return fmt.Errorf("the SQL engine does not run: %w", err)
	}
	return nil
}

// clickHouse returns the configured server with its main user.
func clickHouse(c config.ClickHouse) (clickhouse.Server, error) {
	password, err := c.Password.Reveal("")
	if err != nil {
		return clickhouse.Server{}, fmt.Errorf("clickhouse.password: %w", err)
	}
	trust, err := c.TLS.Client()
	if err != nil {
		return clickhouse.Server{}, fmt.Errorf("clickhouse.tls: %w", err)
	}
	return clickhouse.Server{URL: c.URL, User: c.User, Password: password, TLS: trust}, nil
}

// OpenStore returns a Store on the configured ClickHouse, as the user who keeps the features. engine
// is the embedded one, if no server is configured. guard may be nil.
func OpenStore(c config.ClickHouse, engine *clickhouse.Engine, guard *dependency.Dependency) (*clickhouse.Store, error) {
	if c.URL == "" {
		return clickhouse.OpenStore(clickhouse.StoreConfig{Server: engine.Server(clickhouse.Writer)})
	}
	server, err := clickHouse(c)
	if err != nil {
		return nil, err
	}
	server.User, server.Dependency = c.Writer, guard
	if !c.WriterPassword.Empty() {
		if server.Password, err = c.WriterPassword.Reveal(""); err != nil {
			return nil, fmt.Errorf("clickhouse.writer_password: %w", err)
		}
	}
	return clickhouse.OpenStore(clickhouse.StoreConfig{Server: server, Cluster: c.Cluster})
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

// StartEngine starts the SQL engine as a child process of this binary. An empty folder means a
// temporary one.
func StartEngine(ctx context.Context, c config.Config, folder string, log *slog.Logger) (*clickhouse.Engine, error) {
	e, err := engineConfig(c, folder, log)
	if err != nil {
		return nil, err
	}
	return clickhouse.StartEngine(ctx, e)
}

// engineConfig returns the configuration of a child process of this binary: the engine is a C++
// library, and a crash in it must not take this process with it.
func engineConfig(c config.Config, folder string, log *slog.Logger) (clickhouse.Config, error) {
	self, err := os.Executable()
	return clickhouse.Config{
		Command: []string{self, EngineCommand}, Library: c.ClickHouse.Library, Listen: c.ClickHouse.Listen,
		DataDir: folder, Logger: log,
	}, err
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
