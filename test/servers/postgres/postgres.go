// Package postgres starts a private PostgreSQL for tests, from Debian's package, in a temporary
// directory. It ends with the test binary, even if that is killed.
//
// Its Unix socket trusts every user. TCP requires TLS and a password (SCRAM-SHA-256), like a
// company's server.
//
// A Cluster, in PostgreSQL's sense, is one server with its databases. PostgreSQL is a parent
// process with a child for each connection. So this package signals children too, which
// process.Server does not.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/certs"
	"github.com/millrace/millrace/test/servers/process"
)

// Cluster is one PostgreSQL for a test binary. The zero Cluster starts with the first test that
// needs it, and TestMain stops it. Start is safe for concurrent use. Other methods require a
// started cluster, and must not run concurrently.
type Cluster struct {
	once sync.Once
	err  error
	bin  string // the server's programs
	dir  string
	// port is that of TCP, and is also part of the socket's name.
	port int
	// credential is the account that the server runs as. It is nil for that of the test.
	credential *syscall.Credential
	certs      certs.Files
	process    *process.Process
}

// ConnString starts the cluster if necessary, and returns the superuser's connection string. If
// PostgreSQL is not installed, the test is skipped or fails: see process.SkipOrFail.
func (c *Cluster) ConnString(tb testing.TB) string {
	tb.Helper()
	conn, err := c.Start()
	if err != nil {
		process.SkipOrFail(tb, "PostgreSQL", err)
	}
	return conn
}

// Start starts the cluster once, and returns the superuser's connection string.
func (c *Cluster) Start() (conn string, err error) {
	c.once.Do(func() { c.err = c.prepare() })
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", c.dir, c.port), c.err
}

// TLS returns the connection string of a role over TLS, without its password. The client verifies
// the server's certificate and name.
func (c *Cluster) TLS(role, database string) (conn string) {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=verify-full&sslrootcert=%s", role, c.port, database,
		c.certs.CA)
}

// Stop ends the server and removes its data. Call it after the last test.
func (c *Cluster) Stop() error {
	if c.process == nil {
		return nil
	}
	err := errors.Join(c.shutdown(), os.RemoveAll(c.dir))
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return nil
}

// shutdown is PostgreSQL's immediate shutdown. Unlike kill -9, it leaves no shared memory behind.
func (c *Cluster) shutdown() error {
	_ = c.Resume() // a paused process would not handle the signal
	if err := c.process.Signal(syscall.SIGQUIT); err == nil {
		select {
		case <-c.process.Ended():
		case <-time.After(stopTimeout):
		}
	}
	return c.Kill()
}

// Kill kills the server and all its processes at once, as if the machine had failed. Restart starts
// it again with its data.
func (c *Cluster) Kill() error {
	// Freeze the parent first, so that it creates no more children.
	_ = c.process.Signal(syscall.SIGSTOP)
	children, err := c.children()
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	err = errors.Join(err, c.process.Kill())
	// A new server refuses to start while processes of the old one remain.
	for _, pid := range children {
		for words := stat(pid); words != nil && words[0] != "Z"; words = stat(pid) {
			time.Sleep(time.Millisecond)
		}
	}
	return err
}

// Restart starts a killed server again on its data and port, and returns once it has recovered.
func (c *Cluster) Restart() error {
	return c.run()
}

// Backup stops the server, copies its data, and starts it again. restore replaces the data by the
// copy and starts the server on the same port. So it is a physical backup without anything that was
// written later.
func (c *Cluster) Backup() (restore func() error, err error) {
	dir, err := os.MkdirTemp(c.dir, "backup-")
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(dir, "data")
	clone := func(from, to string) error { return exec.Command("cp", "-a", from, to).Run() } //nolint:gosec,noctx // our folders; keeps the owner
	if err := errors.Join(c.Kill(), clone(c.data(), kept), c.Restart()); err != nil {
		return nil, fmt.Errorf("back up PostgreSQL: %w", err)
	}
	return func() error {
		if err := errors.Join(c.Kill(), os.RemoveAll(c.data()), clone(kept, c.data()), c.Restart()); err != nil {
			return fmt.Errorf("restore PostgreSQL: %w", err)
		}
		return nil
	}, nil
}

// Pause freezes the server and all its processes: connections remain open, but nothing answers.
func (c *Cluster) Pause() error { return c.signalAll(syscall.SIGSTOP) }

// Resume resumes a paused server.
func (c *Cluster) Resume() error { return c.signalAll(syscall.SIGCONT) }

// signalAll signals the parent first, so that it creates no child that a pause would miss.
func (c *Cluster) signalAll(s syscall.Signal) error {
	err := c.process.Signal(s)
	children, err2 := c.children()
	for _, pid := range children {
		_ = syscall.Kill(pid, s) // it may have ended
	}
	return errors.Join(err, err2)
}

// ResidentMB returns the memory of the server's first process, in MB.
func (c *Cluster) ResidentMB() (int, error) { return c.process.ResidentMB() }

// children returns the child processes of the server.
func (c *Cluster) children() (pids []int, err error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range all {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		if words := stat(pid); words != nil && words[1] == strconv.Itoa(c.process.PID()) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// stat returns the fields that Linux reports of a process: state, parent id, and more. It is nil if
// the process has ended.
func stat(pid int) []string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The format is "pid (name) state parent …", and the name may contain anything.
	return strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+1:]))
}

const (
	startTimeout = 2 * time.Minute // a few seconds on an idle machine
	stopTimeout  = 20 * time.Second
)

// hba is the content of pg_hba.conf. Its lines are tried in order. A connection that matches none,
// such as TCP without TLS, is refused.
const hba = `local   all all                trust
hostssl all all 127.0.0.1/32 scram-sha-256
`

// prepare creates the server's folder, certificates and database files, and starts the server. If a
// step fails, it removes the folder.
func (c *Cluster) prepare() (err error) {
	if c.bin, err = programs(); err != nil {
		return err
	}
	// Not a test's directory, because the path of a Unix socket must be short.
	if c.dir, err = os.MkdirTemp("", "millrace-pg-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	if c.certs, err = certs.Write(c.dir); err != nil {
		return err
	}
	if err := c.chown(); err != nil {
		return err
	}
	initdb := exec.CommandContext(context.Background(), filepath.Join(c.bin, "initdb"), "--pgdata", c.data(), "--username", "postgres", //nolint:gosec // no outside input
		"--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = c.dir, &syscall.SysProcAttr{Setpgid: true, Credential: c.credential}
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(c.data(), "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	c.port = ports[0]
	return c.run()
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// run starts the server on the existing data. Tests run in parallel, with pools of their own, so
// they may need more connections than the default of 100.
func (c *Cluster) run() (err error) {
	set := func(name string, value any) []string { return []string{"-c", fmt.Sprint(name, "=", value)} }
	c.process, err = process.Start(context.Background(), process.Command{
		Name: "PostgreSQL", Path: filepath.Join(c.bin, "postgres"),
		Args: slices.Concat([]string{"-D", c.data()},
			set("unix_socket_directories", c.dir), set("listen_addresses", "127.0.0.1"), set("port", c.port),
			set("ssl", "on"), set("ssl_cert_file", c.certs.Cert), set("ssl_key_file", c.certs.Key),
			set("max_connections", 300), set("shared_buffers", "64MB")),
		Dir: c.dir, Scratch: c.dir, Credential: c.credential, StartTimeout: startTimeout,
		Ready: func(ctx context.Context) error {
			out, err := exec.CommandContext(ctx, filepath.Join(c.bin, "pg_isready"), "--host", c.dir, "--port", strconv.Itoa(c.port), "--username", "postgres").CombinedOutput() //nolint:gosec // no outside input
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		},
	})
	return err
}

// programs returns the directory of the newest installed server.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		version := func(path string) int {
			// The version is 0 if the name is not a number.
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
			return n
		}
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", process.ErrMissing
}

// chown gives the directory to the account that the server runs as. PostgreSQL refuses to run as
// root, so root uses the account postgres. Others may traverse the directory, because the
// authority's certificate is in it.
func (c *Cluster) chown() error {
	if err := errors.Join(os.Chmod(c.dir, 0o711), os.Chmod(c.certs.CA, 0o644)); err != nil { //nolint:gosec // see above
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("%w: PostgreSQL does not run as root, and there is no other account: %w",
			process.ErrMissing, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("account postgres: %w", err)
	}
	c.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, name := range []string{c.dir, c.certs.CA, c.certs.Cert, c.certs.Key} {
		if err := os.Chown(name, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return nil
}
