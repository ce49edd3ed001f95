// Package engine is the embedded ClickHouse: libchdb.so behind ClickHouse's HTTP interface on
// loopback. So clients use it like a real server. It runs in a process of its own, so that a crash
// in a few hundred megabytes of C++ does not affect the rest of Millrace. clickhouse.StartEngine
// starts that process.
//
// Main runs an engine. http.go is the HTTP interface, session.go runs one statement in a session,
// access.go limits readers, formats.go decides which answers can be streamed, and library.go binds
// the C functions.
//
// Invariants:
//
//   - Each statement has its own session, so nothing of one caller's session is visible to another.
//   - A reader can read its databases only.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/millrace/millrace/internal/clickhouse"
)

// Config configures an engine.
type Config struct {
	Library  string       // path of libchdb.so; empty means that clickhouse.FindLibrary searches it
	Addr     string       // loopback address to listen on; unused with Listener
	Listener net.Listener // the engine closes it; nil means to listen on Addr
	DataDir  string       // scratch files; created if missing, one engine at a time
	Tables   string       // the tables, likewise; empty means in DataDir
	Password string       // password of all users; empty means none
	Parent   io.Reader    // its end means that the parent process has ended; nil means no parent
	Logger   *slog.Logger
}

// FromEnv returns the Config that clickhouse.StartEngine sets in its child's environment.
func FromEnv(log *slog.Logger) (Config, error) {
	c := Config{
		Library:  os.Getenv(clickhouse.EnvLibrary),
		DataDir:  os.Getenv(clickhouse.EnvData),
		Tables:   os.Getenv(clickhouse.EnvTables),
		Password: os.Getenv(clickhouse.EnvPassword),
		Logger:   log,
	}
	if c.Addr = os.Getenv(clickhouse.EnvListen); c.Addr != "" && c.DataDir != "" {
		return c, nil
	}
	c.Parent = os.Stdin
	// The child inherits the open listener from its parent.
	fd, err := strconv.ParseUint(os.Getenv(clickhouse.EnvListener), 10, 16)
	if err != nil || c.DataDir == "" {
		return Config{}, errors.New("the engine cannot be started by hand; millrace starts it")
	}
	f := os.NewFile(uintptr(fd), "listener")
	c.Listener, err = net.FileListener(f)
	return c, errors.Join(err, f.Close())
}

// Time limits of stopping and starting.
const (
	// stopTimeout is how long answers in progress may take to end when the engine stops, after
	// their queries were cancelled.
	stopTimeout = 3 * time.Second
	// lockTimeout is how long to wait for another engine to end.
	lockTimeout = 5 * time.Second
)

// Main runs an engine until ctx ends, SIGTERM or SIGINT arrives, or its parent ends. It changes the
// working directory, so it must own its process.
func Main(ctx context.Context, c Config) (err error) {
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer cancel()
	if c.Parent != nil {
		go func() { // ends with the process, because a read of standard input cannot be interrupted
			_, _ = io.Copy(io.Discard, c.Parent)
			c.Logger.Info("parent process has exited; stopping")
			cancel()
		}()
	}
	ln := c.Listener
	if ln == nil {
		if ln, err = new(net.ListenConfig).Listen(ctx, "tcp", c.Addr); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	defer func() { err = errors.Join(err, ignoreClosed(ln.Close())) }()
	if a, ok := ln.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return fmt.Errorf("listen on %s: the engine requires a loopback address", ln.Addr())
	}
	// Two engines would damage each other's files.
	unlock, err := lock(ctx, c.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if c.Tables != "" {
		unlock, err := lock(ctx, c.Tables)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unlock()) }()
	}
	// The engine runs as long as this connection is open.
	control, folder, err := boot(c)
	if err != nil {
		return err
	}
	defer control.close() // the last connection: chdb flushes and frees everything

	s := newServer(control, folder, c)
	hs := &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	// Serve returns at once when the server shuts down. stopped reports when it is done.
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer done()
		stopped <- hs.Shutdown(grace)
	}()
	c.Logger.Debug("ClickHouse engine is listening",
		"addr", ln.Addr().String(), "chdb", control.lib.version(), "data", c.DataDir)
	if err := hs.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("queries did not stop within %v of being cancelled: %w", stopTimeout, err)
	}
	return nil
}

// lock makes this process the only engine on dir. It waits, because an engine that was just killed
// may take a moment to end.
func lock(ctx context.Context, dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the engine's folder: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	// The kernel releases the lock when the process ends, even if it is killed.
	l := flock.New(filepath.Join(dir, "lock"))
	if _, err := l.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("another engine is using %s: %w", dir, err)
	}
	return l.Unlock, nil
}

// boot loads the library, starts ClickHouse in this process and returns the connection that keeps
// it running, and the folder of the tables.
func boot(c Config) (_ *connection, tables string, _ error) {
	path, err := clickhouse.FindLibrary(c.Library)
	if err != nil {
		return nil, "", err
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return nil, "", err
	}
	// chdb reads configuration from the home folder, so that is an empty one. It opens Iceberg
	// tables only below its working directory, so that is the root.
	home, data := filepath.Join(dir, "home"), filepath.Join(dir, "data")
	if c.Tables != "" {
		if data, err = filepath.Abs(c.Tables); err != nil {
			return nil, "", err
		}
	}
	for _, d := range []string{home, data} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, "", fmt.Errorf("create the engine's folder: %w", err)
		}
	}
	config, err := writeConfig(dir)
	if err != nil {
		return nil, "", err
	}
	if err := errors.Join(os.Chdir("/"), os.Setenv("HOME", home), os.Setenv("TZ", "UTC")); err != nil {
		return nil, "", err
	}
	lib, err := loadLibrary(path)
	if err != nil {
		return nil, "", err
	}
	lib.args = []string{"--path=" + data, "--config-file=" + config}
	// The supervisor looks for this file to distinguish damaged tables from other reasons.
	booting := filepath.Join(dir, clickhouse.BootFile)
	if err := os.WriteFile(booting, nil, 0o600); err != nil {
		return nil, "", fmt.Errorf("mark the start: %w", err)
	}
	control, err := openTables(lib, data, c.Logger)
	if noSpace(err) { // the tables are not damaged
		err = errors.Join(err, os.Remove(booting))
	}
	if err != nil {
		return nil, "", fmt.Errorf("start ClickHouse in %s: %w", data, err)
	}
	if err := os.Remove(booting); err != nil {
		control.close()
		return nil, "", fmt.Errorf("mark the start: %w", err)
	}
	return control, data, nil
}

// openTables repairs the tables in a folder and starts ClickHouse on them.
func openTables(lib *library, folder string, log *slog.Logger) (*connection, error) {
	done, err := repair(folder)
	if err != nil {
		return nil, err
	}
	if done.Tokens+done.Definitions > 0 {
		log.Info("repaired what a kill had interrupted", "tokens", done.Tokens, "definitions", done.Definitions)
	}
	control, err := lib.open()
	if err != nil {
		return nil, err
	}
	if err := prepare(control, folder); err != nil {
		control.close()
		return nil, err
	}
	return control, nil
}

// prepare removes what is incompatible with Go in one process, and creates what clients expect.
// folder is that of the tables.
func prepare(control *connection, folder string) error {
	// Reading this table interrupts every thread with a signal handler that does not know goroutine
	// stacks.
	if _, err := control.run("DROP TABLE IF EXISTS system.stack_trace", "Null"); err != nil {
		return fmt.Errorf("prepare the engine: %w", err)
	}
	// Its tables are the writer's, which may also create it on a server.
	create := "CREATE DATABASE IF NOT EXISTS " + quoteName(clickhouse.Features)
	if _, err := control.run(create, "Null"); err != nil {
		return fmt.Errorf("prepare the engine: %w", err)
	}
	// See definitions: ClickHouse does not report a full disk.
	definition, err := os.Stat(filepath.Join(folder, "metadata", clickhouse.Features+definitionSuffix))
	if err == nil && definition.Size() == 0 {
		err = syscall.ENOSPC
	}
	if err != nil {
		return fmt.Errorf("create the database %s: %w", clickhouse.Features, err)
	}
	return nil
}

// noSpace reports whether an error means that the disk is full.
func noSpace(err error) bool {
	refused := (*clickhouse.Error)(nil)
	return errors.Is(err, syscall.ENOSPC) || errors.As(err, &refused) && refused.Code == clickhouse.CodeNoSpace
}

// ignoreClosed returns nil for a listener that was closed before.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
