// Package engine is ClickHouse as a process of its own: libchdb.so behind ClickHouse's HTTP
// interface on loopback, so that the embedded default and a real server are the same to every
// client, and so that a crash in a few hundred megabytes of C++ takes no other part of Millrace
// along. Only the process that clickhouse.StartEngine starts runs it.
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

// Config says how an engine runs.
type Config struct {
	Library  string       // path of libchdb.so; empty: where clickhouse.FindLibrary finds it
	Addr     string       // loopback address to listen on; unused where Listener is set
	Listener net.Listener // taken over; nil: listen on Addr
	DataDir  string       // the engine's files, made where missing; one engine at a time
	Password string       // what requests must show; empty: none is asked for
	Parent   io.Reader    // its end means that whoever started this process is gone; nil: nobody to watch
	Logger   *slog.Logger
}

// FromEnv returns the Config that clickhouse.StartEngine tells its child.
func FromEnv(log *slog.Logger) (Config, error) {
	c := Config{
		Library:  os.Getenv(clickhouse.EnvLibrary),
		DataDir:  os.Getenv(clickhouse.EnvData),
		Password: os.Getenv(clickhouse.EnvPassword),
		Logger:   log,
	}
	if c.Addr = os.Getenv(clickhouse.EnvListen); c.Addr != "" && c.DataDir != "" {
		return c, nil
	}
	c.Parent = os.Stdin
	fd, err := strconv.ParseUint(os.Getenv(clickhouse.EnvListener), 10, 16)
	if err != nil || c.DataDir == "" {
		return Config{}, errors.New("the engine is not meant to be started by hand: millrace starts it")
	}
	f := os.NewFile(uintptr(fd), "listener")
	c.Listener, err = net.FileListener(f)
	return c, errors.Join(err, f.Close())
}

const (
	// How long answers under way may take to end when the engine stops, after their queries were
	// cancelled.
	stopTimeout = 3 * time.Second
	// How long another engine's end is waited for.
	lockTimeout = 5 * time.Second
)

// Main runs an engine until ctx ends, SIGTERM or SIGINT comes, or its parent is gone. It changes
// the working directory and must own its process.
func Main(ctx context.Context, c Config) (err error) {
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer cancel()
	if c.Parent != nil {
		go func() { // ends with the process: nothing can interrupt a read of standard input
			_, _ = io.Copy(io.Discard, c.Parent)
			c.Logger.Info("the process that started this engine is gone; stopping")
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
		return fmt.Errorf("the engine listens on loopback only, not on %s", ln.Addr())
	}
	unlock, err := lock(ctx, c.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	control, err := boot(c)
	if err != nil {
		return err
	}
	defer control.close() // the last connection: chdb flushes and frees what it has

	s := newServer(control, c)
	hs := &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer done()
		stopped <- hs.Shutdown(grace)
	}()
	c.Logger.Debug("ClickHouse engine serves", "addr", ln.Addr().String(), "chdb", control.lib.version(), "data", c.DataDir)
	if err := hs.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("queries still ran %v after they were cancelled: %w", stopTimeout, err)
	}
	return nil
}

// lock makes this process the only engine on dir. One that was just killed may take a moment to be
// gone.
func lock(ctx context.Context, dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the engine's folder: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	l := flock.New(filepath.Join(dir, "lock"))
	if _, err := l.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("another engine runs on %s: %w", dir, err)
	}
	return l.Unlock, nil
}

// boot loads the library, starts ClickHouse inside this process and returns the connection that
// keeps it there.
func boot(c Config) (*connection, error) {
	path, err := clickhouse.FindLibrary(c.Library)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return nil, err
	}
	// chdb takes configuration from the home folder, which is an empty one, and opens Iceberg
	// tables only below its working directory, which is therefore the root.
	home, data := filepath.Join(dir, "home"), filepath.Join(dir, "data")
	for _, d := range []string{home, data} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make the engine's folder: %w", err)
		}
	}
	config, err := writeConfig(dir)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chdir("/"), os.Setenv("HOME", home), os.Setenv("TZ", "UTC")); err != nil {
		return nil, err
	}
	lib, err := loadLibrary(path)
	if err != nil {
		return nil, err
	}
	lib.args = []string{"--path=" + data, "--config-file=" + config}
	control, err := lib.open()
	if err != nil {
		return nil, fmt.Errorf("start ClickHouse in %s: %w", data, err)
	}
	if err := prepare(control); err != nil {
		control.close()
		return nil, err
	}
	return control, nil
}

// prepare takes away what does not go together with Go in one process, and what the last run left
// half.
func prepare(control *connection) error {
	// It interrupts every thread with a signal handler that knows nothing of goroutine stacks.
	if _, err := control.run("DROP TABLE IF EXISTS system.stack_trace", "Null"); err != nil {
		return fmt.Errorf("prepare the engine: %w", err)
	}
	// Databases in memory come back without their tables.
	left, err := control.run("SELECT name FROM system.databases WHERE engine = 'Memory' AND startsWith(name, "+quote(clickhouse.ReaderPrefix)+")", "JSONCompactEachRow")
	if err != nil {
		return fmt.Errorf("prepare the engine: %w", err)
	}
	for name := range rows(left) {
		if _, err := control.run("DROP DATABASE "+quoteName(name), "Null"); err != nil {
			return fmt.Errorf("drop what the last run left: %w", err)
		}
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
