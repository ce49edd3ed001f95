// Package clickhouse is the client of ClickHouse's HTTP interface, for a real server or cluster and
// for the embedded engine. It also starts and supervises the process of the embedded engine.
//
// Client sends queries of users and passes their answers on. Store keeps tables: table.go defines
// and creates them, batch.go inserts rows, and store.go reads them. StartEngine returns an Engine,
// whose process is restarted when it ends or hangs. access.go defines the users with limited
// rights, errors.go classifies ClickHouse's errors, aside.go handles damaged tables of the engine,
// and library.go finds libchdb.so. Package engine is the code of the engine's process.
//
// A batch under a token is in its table once, however often it is sent, also across restarts and
// kills of the engine.
package clickhouse

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/backoff"
)

// Config configures the process that StartEngine starts.
type Config struct {
	// Command is the program and its arguments. It must call engine.Main with engine.FromEnv.
	Command []string
	Library string // path of libchdb.so; empty means that FindLibrary searches it
	Listen  string // loopback address; empty means 127.0.0.1 and a free port
	// DataDir is the folder of the engine's scratch files. One engine per folder. Empty means a
	// temporary folder that Close removes.
	DataDir string
	// Tables is the folder of the tables. Empty means in DataDir. Tables with which ClickHouse does
	// not start are set aside (Tables.damaged), and it starts without them.
	Tables string
	Logger *slog.Logger
	// Patient makes StartEngine return an engine that did not start. It is started again until it
	// does, and Err returns the reason meanwhile.
	Patient bool
	// HungAfter is how long the process may take to answer a ping. A process that misses two in a
	// row hangs, and is killed and started again. 0 means 30 seconds.
	HungAfter time.Duration
}

// Engine is a ClickHouse engine in its own process. If the process ends, it is restarted. Its
// queries fail, and new ones wait for the new process.
type Engine struct {
	config Config
	// listener is passed to the child, which accepts. Connections between two children wait in its
	// backlog.
	listener *net.TCPListener
	client   *Client
	stop     context.CancelFunc
	done     chan struct{}

	// mu protects the following fields.
	mu      sync.Mutex
	process *os.Process
	down    error // why the process does not answer; nil while it does
}

// Time limits of a child process.
const (
	startTimeout = 60 * time.Second // until half a gigabyte is loaded from disk and answers
	stopTimeout  = 8 * time.Second  // from the request to end until the child is killed
	healthyAfter = 30 * time.Second // a child that lived this long resets the backoff
	hungAfter    = 30 * time.Second
)

// StartEngine starts an engine and returns when it answers. ctx bounds the start only.
func StartEngine(ctx context.Context, c Config) (*Engine, error) {
	var err error
	if c.Library, err = FindLibrary(c.Library); err != nil {
		return nil, err
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	c.HungAfter = cmp.Or(c.HungAfter, hungAfter)
	temporary := ""
	if c.DataDir == "" {
		if temporary, err = os.MkdirTemp("", "millrace-engine-"); err != nil {
			return nil, fmt.Errorf("create the engine's folder: %w", err)
		}
		c.DataDir = temporary
	}
	// The parent owns the listener, so the address survives the child.
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the engine: %w", err), removeAll(temporary))
	}
	// The password is new at each start. Besides this process and its children, it is known to whom the
	// caller tells it: see Server.
	password := rand.Text()
	running, stop := context.WithCancel(context.Background())
	e := &Engine{
		config:   c,
		listener: ln.(*net.TCPListener),
		client:   NewClient(ln.Addr().String(), Admin, password),
		stop:     stop,
		done:     make(chan struct{}),
	}
	ready := make(chan error, 1)
	go func() {
		defer close(e.done)
		e.supervise(running, password, ready)
		if err := errors.Join(e.listener.Close(), removeAll(temporary)); err != nil {
			c.Logger.Warn("cannot clean up after the ClickHouse engine", "error", err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = fmt.Errorf("the engine did not answer in time: %w", ctx.Err())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the ClickHouse engine: %w", err), e.Close())
	}
	return e, nil
}

// Addr returns the address of the engine, host:port. It does not change when the process is
// restarted.
func (e *Engine) Addr() string { return e.listener.Addr().String() }

// Client returns a client of the engine as Admin.
func (e *Engine) Client() *Client { return e.client }

// Server returns how a Store connects to the engine as a user.
func (e *Engine) Server(user string) Server {
	return Server{URL: e.client.url, User: user, Password: e.client.password}
}

// PID returns the id of the current process, or 0 while there is none.
func (e *Engine) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.process == nil {
		return 0
	}
	return e.process.Pid
}

// Close stops the engine. Queries in progress fail. It may be called more than once.
func (e *Engine) Close() error {
	e.stop()
	<-e.done
	e.client.http.CloseIdleConnections()
	return nil
}

// supervise keeps a child running until ctx ends. It sends the result of the first start on ready.
// An engine that cannot start at all is not retried, unless the configuration says so.
func (e *Engine) supervise(ctx context.Context, password string, ready chan<- error) {
	// Linux sends Pdeathsig when the thread that started the child ends, so this goroutine keeps
	// its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	waits := backoff.Child.Start()
	tables := &damage{scratch: e.config.DataDir, tables: e.config.Tables, log: e.config.Logger}
	for started := false; ctx.Err() == nil; {
		begun := time.Now()
		if err := tables.forget(); err != nil {
			e.config.Logger.Error("ClickHouse engine", "error", err)
		}
		err := e.runChild(ctx, password, func() {
			e.setDown(nil)
			level := slog.LevelInfo
			if !started {
				started, level = true, slog.LevelDebug
				report(ready, nil)
			}
			e.config.Logger.Log(ctx, level, "ClickHouse engine is ready",
				"addr", e.Addr(), "pid", e.PID(), "after", time.Since(begun).Round(time.Millisecond))
		})
		if ctx.Err() != nil {
			report(ready, err)
			return
		}
		again, asideErr := tables.ended(err)
		err = errors.Join(err, asideErr)
		e.setDown(err)
		if !started && !again {
			if !e.config.Patient {
				report(ready, err)
				return
			}
			report(ready, nil)
		}
		if time.Since(begun) > healthyAfter {
			waits.Reset()
		}
		wait := waits.Next()
		e.config.Logger.Error("ClickHouse engine exited; starting it again", "error", err, "in", wait)
		backoff.Sleep(ctx, wait)
	}
}

// report sends the result of the start, unless it has been sent.
func report(ready chan<- error, err error) {
	select {
	case ready <- err:
	default: // one is in the channel, or nobody receives any more
	}
}

// runChild runs one child until it ends or ctx ends. It calls ready when the child answers.
func (e *Engine) runChild(ctx context.Context, password string, ready func()) error {
	socket, err := e.listener.File()
	if err != nil {
		return fmt.Errorf("duplicate the listener: %w", err)
	}
	defer socket.Close() //nolint:errcheck // a duplicate; the child has its own
	// By default, the command's context would kill the child. Interrupt it first.
	cmd := exec.CommandContext(ctx, e.config.Command[0], e.config.Command[1:]...) //nolint:gosec // our own binary
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTimeout
	cmd.Env = append(os.Environ(), EnvLibrary+"="+e.config.Library, EnvData+"="+e.config.DataDir,
		EnvTables+"="+e.config.Tables, EnvPassword+"="+password, EnvListener+"=3") // ExtraFiles begin at descriptor 3
	cmd.ExtraFiles = []*os.File{socket}
	dieWithParent(cmd)
	// Standard input is never written to: its end tells the child that this process has ended.
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	log := &logWriter{log: e.config.Logger}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	e.setProcess(cmd.Process)
	pinged := make(chan struct{})
	pinging, cancel := context.WithCancel(ctx)
	go func() {
		defer close(pinged)
		if e.alive(pinging, startTimeout) {
			ready()
			for misses := 0; misses < 2; { // a single miss may be due to a machine that slept
				select {
				case <-pinging.Done():
					return
				case <-time.After(e.config.HungAfter):
				}
				if misses++; e.alive(pinging, e.config.HungAfter) {
					misses = 0
				}
			}
		}
		if pinging.Err() == nil {
			e.config.Logger.Error("ClickHouse engine does not respond; killing it", "pid", cmd.Process.Pid)
			_ = cmd.Process.Kill() // it may have ended
		}
	}()
	err = cmd.Wait()
	cancel()
	<-pinged
	e.setProcess(nil)
	if last := log.last(); last != "" && err != nil {
		err = fmt.Errorf("%w; last output: %s", err, last)
	}
	return err
}

// alive reports whether the child answers within limit.
func (e *Engine) alive(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return e.client.Ping(ctx) == nil
}

// Err returns why the engine does not run, or nil if it runs.
func (e *Engine) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.down
}

// setDown records why there is no process, or nil.
func (e *Engine) setDown(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = err
}

// setProcess records the current process, or nil.
func (e *Engine) setProcess(p *os.Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.process = p
}

// logWriter logs the output of a child line by line, and keeps the last lines for an error.
type logWriter struct {
	log  *slog.Logger
	mu   sync.Mutex
	rest []byte   // incomplete line
	tail []string // last lines
}

// Limits of the log of a child: bytes of a line, and lines kept for an error.
const (
	longestLine = 4 << 10
	tailLines   = 5
)

// Write logs the complete lines in p.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		n, line, err := bufio.ScanLines(w.rest, len(w.rest) > longestLine)
		if err != nil || n == 0 {
			return len(p), nil
		}
		if text := strings.TrimSpace(string(line)); text != "" {
			w.log.Info("engine: " + text)
			w.tail = append(w.tail, text)
			w.tail = w.tail[max(0, len(w.tail)-tailLines):]
		}
		w.rest = bytes.Clone(w.rest[n:])
	}
}

// last returns the last lines of output.
func (w *logWriter) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := slices.Clone(w.tail)
	if rest := strings.TrimSpace(string(w.rest)); rest != "" {
		lines = append(lines, rest)
	}
	return strings.Join(lines, " | ")
}

var _ io.Writer = (*logWriter)(nil)

// removeAll removes a temporary folder, if there is one.
func removeAll(dir string) error {
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}
