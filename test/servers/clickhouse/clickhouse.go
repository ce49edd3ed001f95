// Package clickhouse starts a stand-alone ClickHouse for tests, with a URL, a user and a password
// like a company's server. It is the engine that Millrace embeds, ClickHouse 26 as a library,
// behind its HTTP interface, because no package of a server of this version exists. So tests cannot
// cover ClickHouse's own user management.
package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/test/servers/process"
)

// Server is one ClickHouse for a test binary. The zero Server starts with the first test that needs
// it, and TestMain stops it. Data survives Kill and Restart, which come from process.Server.
type Server struct {
	once   sync.Once
	err    error
	dir    string
	config clickhouse.Server

	process.Server
}

// Config starts the server if necessary, and returns how to reach it. If it is not installed, the
// test is skipped or fails: see process.SkipOrFail.
func (s *Server) Config(tb testing.TB) clickhouse.Server {
	tb.Helper()
	c, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "ClickHouse", err)
	}
	return c
}

// Start starts the server once, and returns how to reach it.
func (s *Server) Start() (clickhouse.Server, error) {
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.Stop())
		}
	})
	return s.config, s.err
}

// start builds the program and runs it. The program is a process of its own because tests kill it,
// and because a crash of the library would end its process.
func (s *Server) start() error {
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	s.config = clickhouse.Server{URL: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), User: clickhouse.Admin,
		Password: "clickhouse of tests"}
	if s.dir, err = s.Folder("millrace-clickhouse-"); err != nil {
		return err
	}
	if err := process.Build(context.Background(), ".", "github.com/millrace/millrace/test/servers/clickhouse/engine", s.program()); err != nil {
		return err
	}
	return s.run()
}

func (s *Server) program() string { return filepath.Join(s.dir, "engine") }

// run starts the program on the existing data. It reports ErrMissing if the library is not
// installed.
func (s *Server) run() error {
	library, err := clickhousetest.Config()
	if errors.Is(err, clickhouse.ErrNoLibrary) {
		return fmt.Errorf("%w (%w)", process.ErrMissing, err)
	}
	if err != nil {
		return err
	}
	return s.Launch(context.Background(), process.Command{
		Name: "ClickHouse", Path: s.program(), Dir: s.dir,
		Env: []string{
			clickhouse.EnvListen + "=" + s.config.URL[len("http://"):], clickhouse.EnvPassword + "=" + s.config.Password,
			clickhouse.EnvLibrary + "=" + library.Library, clickhouse.EnvData + "=" + filepath.Join(s.dir, "data"),
		},
		Ready: func(ctx context.Context) error {
			// Each attempt has its own deadline. A server that accepts a connection too early may
			// not answer on it.
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			client, err := clickhouse.NewServerClient(s.config)
			if err != nil {
				return err
			}
			return errors.Join(client.Ping(ctx), client.Close())
		},
	})
}
