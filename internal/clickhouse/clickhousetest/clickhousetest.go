// Package clickhousetest provides the embedded engine for tests, in a process started from the test
// binary itself.
//
// A package's TestMain calls Main. Its tests call Shared for an engine that they share, or Start
// for their own.
package clickhousetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/engine"
)

// Main is a package's TestMain. It runs the tests, stops the shared engine and calls stops, and
// checks for leaked goroutines. In a process that Start or Shared has started, it runs the engine
// instead. So no second binary has to be built for tests.
func Main(m *testing.M, stops ...func() error) {
	if os.Getenv(clickhouse.EnvListener) != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		c, err := engine.FromEnv(log)
		if err == nil {
			err = engine.Main(context.Background(), c)
		}
		if err != nil {
			log.Error("engine", "error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// From here on, this is the test process itself.
	code := m.Run()
	if shared.engine != nil {
		stops = append(stops, shared.engine.Close)
	}
	// The engine's process has to end before the check for leaked goroutines.
	for _, stop := range stops {
		if err := stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// shared is the engine that Shared starts on first use.
var shared struct {
	once   sync.Once
	engine *clickhouse.Engine
	err    error
}

// Shared returns an engine that all tests of the package share.
func Shared(t testing.TB) *clickhouse.Engine {
	t.Helper()
	shared.once.Do(func() {
		// The engine outlives this test, so its context only bounds the start.
		var c clickhouse.Config
		if c, shared.err = Config(); shared.err == nil {
			shared.engine, shared.err = clickhouse.StartEngine(t.Context(), c)
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.engine
}

// Start starts an engine that ends with the test. Tests that kill the engine or change its settings
// need one of their own.
func Start(t testing.TB) *clickhouse.Engine {
	t.Helper()
	c, err := Config()
	if err != nil {
		t.Fatal(err)
	}
	e, err := clickhouse.StartEngine(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	// Close waits for the process to end.
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// OpenStore returns a Store on the shared engine, as clickhouse.Writer. Tests share its database, so
// each needs tables with names of its own.
func OpenStore(t testing.TB) *clickhouse.Store {
	t.Helper()
	return OpenStoreOn(t, Shared(t))
}

// OpenStoreOn returns a Store on an engine, as clickhouse.Writer.
func OpenStoreOn(t testing.TB, e *clickhouse.Engine) *clickhouse.Store {
	t.Helper()
	s, err := clickhouse.OpenStore(clickhouse.StoreConfig{Server: e.Server(clickhouse.Writer)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Conn returns a connection of clickhouse-go to an engine, as clickhouse.Writer, to compare a Store
// with.
func Conn(t testing.TB, e *clickhouse.Engine) driver.Conn {
	t.Helper()
	as := e.Server(clickhouse.Writer)
	conn, err := driver.Open(&driver.Options{
		Protocol: driver.HTTP, Addr: []string{e.Addr()}, Auth: driver.Auth{Username: as.User, Password: as.Password},
		Compression: &driver.Compression{Method: driver.CompressionNone}, // as a Store on loopback
		Settings:    driver.Settings{"async_insert": "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// Config returns the configuration of an engine for tests. The library is the one that the
// repository installs. The log is discarded unless tests are verbose.
func Config() (clickhouse.Config, error) {
	// Tests run in the folder of their package, where the default search finds nothing.
	library, err := clickhouse.FindLibrary("")
	if errors.Is(err, clickhouse.ErrNoLibrary) {
		root, rootErr := repository()
		if rootErr != nil {
			return clickhouse.Config{}, errors.Join(err, rootErr)
		}
		installed := filepath.Join(root, ".tools/npm/node_modules/@chdb/lib-linux-x64-gnu/libchdb.so")
		library, err = clickhouse.FindLibrary(installed)
	}
	if err != nil {
		return clickhouse.Config{}, err
	}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return clickhouse.Config{Command: []string{os.Args[0]}, Library: library, Logger: log}, nil
}

// repository returns the nearest parent folder with a go.mod.
func repository() (string, error) {
	// Tests run in the folder of their package.
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above the test's folder: %w", err)
		}
		dir = filepath.Dir(dir)
	}
}
