// Package postgres starts a private PostgreSQL for tests, from Debian's package, in a temporary directory, reachable by its
// Unix socket alone. It ends with the test binary, even if that is killed.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Cluster is one PostgreSQL for a test binary. The zero Cluster starts with the first test that asks for it; TestMain
// stops it.
type Cluster struct {
	once    sync.Once
	err     error
	dir     string
	process *exec.Cmd
	alive   io.Closer // the server lives until this is closed
}

// ErrMissing says that the machine has no PostgreSQL.
var ErrMissing = errors.New("PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)")

// ConnString starts the cluster if need be, and tells how to connect to it. Where PostgreSQL is not installed the test is
// skipped, unless the environment variable MILLRACE_REQUIRE_SERVERS is set: then it fails.
func (c *Cluster) ConnString(tb testing.TB) string {
	tb.Helper()
	conn, err := c.Start()
	switch {
	case errors.Is(err, ErrMissing) && os.Getenv("MILLRACE_REQUIRE_SERVERS") == "":
		tb.Skip("not tested on PostgreSQL: ", err)
	case err != nil:
		tb.Fatalf("start PostgreSQL: %v", err)
	}
	return conn
}

// Start starts the cluster, once, and tells how to connect to it.
func (c *Cluster) Start() (conn string, err error) {
	c.once.Do(func() { c.err = c.start() })
	return fmt.Sprintf("host=%s user=postgres dbname=postgres", c.dir), c.err
}

// Stop ends the server and removes its data. Call it after the last test.
func (c *Cluster) Stop() error {
	if c.process == nil {
		return nil
	}
	if err := c.alive.Close(); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	if err := c.process.Wait(); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return nil
}

// keeper runs the server until its standard input ends, which it does when the test binary ends, however it does; then
// it stops the server at once and removes the directory.
const keeper = `dir=$1; shift; "$@" </dev/null & read -r _; kill -QUIT $!; wait; rm -rf "$dir"`

const (
	readyWithin = time.Minute // initdb and start take a few seconds on an idle machine
	readyPoll   = 50 * time.Millisecond
)

func (c *Cluster) start() error {
	bin, err := programs()
	if err != nil {
		return err
	}
	// Not a test's directory: the path of a Unix socket must be short.
	if c.dir, err = os.MkdirTemp("", "millrace-pg-"); err != nil {
		return err
	}
	as, err := account(c.dir)
	if err != nil {
		return errors.Join(err, os.RemoveAll(c.dir))
	}
	data := filepath.Join(c.dir, "data")
	initdb := exec.CommandContext(context.Background(), filepath.Join(bin, "initdb"), "--pgdata", data, "--username", "postgres", //nolint:gosec // no outside input
		"--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = c.dir, as
	if out, err := initdb.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("initdb: %w: %s", err, out), os.RemoveAll(c.dir))
	}

	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return errors.Join(err, os.RemoveAll(c.dir))
	}
	defer log.Close()                                                                             //nolint:errcheck // the server has a descriptor of its own
	server := exec.CommandContext(context.Background(), "/bin/sh", "-c", keeper, "keeper", c.dir, //nolint:gosec // no outside input
		filepath.Join(bin, "postgres"), "-D", data, "-k", c.dir, "-c", "listen_addresses=", "-c", "max_connections=300", "-c", "shared_buffers=64MB")
	server.Dir, server.SysProcAttr, server.Stdout, server.Stderr = c.dir, as, log, log
	stdin, err := server.StdinPipe()
	if err != nil {
		return errors.Join(err, os.RemoveAll(c.dir))
	}
	if err := server.Start(); err != nil {
		return errors.Join(fmt.Errorf("start the server: %w", err), os.RemoveAll(c.dir))
	}
	c.process, c.alive = server, stdin
	return c.awaitReady(bin)
}

// awaitReady asks by PostgreSQL's protocol.
func (c *Cluster) awaitReady(bin string) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyWithin)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, filepath.Join(bin, "pg_isready"), "--host", c.dir, "--username", "postgres").CombinedOutput() //nolint:gosec // no outside input
		if err == nil {
			return nil
		}
		select {
		case <-time.After(readyPoll):
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(c.dir, "log")) // the best explanation there is
			return fmt.Errorf("not ready within %v: %w: %s\n%s", readyWithin, err, out, log)
		}
	}
}

// programs finds the directory of the newest installed server.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		version := func(path string) int {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))) // 0 for a name that is no number
			return n
		}
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", ErrMissing
}

// account gives dir to the account that the server runs under: PostgreSQL refuses root, so root lends it to the
// account postgres. The process group keeps an interrupt at the terminal from stopping the server under its tests.
func account(dir string) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() != 0 {
		return attr, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: root cannot run it, and %w", ErrMissing, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("account postgres: %w", err)
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		return nil, err
	}
	return attr, nil
}
