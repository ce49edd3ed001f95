// Package clickhouse is the client of ClickHouse's HTTP interface, the same for a real server and
// for the embedded engine. It also starts and supervises the process of the embedded engine.
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
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/backoff"
)

// Config says how StartEngine starts an engine.
type Config struct {
	// Command is what to run: a program, and arguments after which it calls engine.Main with
	// engine.FromEnv.
	Command []string
	Library string // path of libchdb.so; empty: where FindLibrary finds it
	Listen  string // loopback address; empty: 127.0.0.1 and a free port
	DataDir string // the engine's files, one engine per folder; empty: a temporary folder that Close removes
	Logger  *slog.Logger
	// HungAfter is how long the process may take to say that it is there. One that misses it twice
	// in a row hangs: it is ended and started again. 0 means 30 seconds.
	HungAfter time.Duration
}

// Engine is a ClickHouse engine in a process of its own. If that process dies, it is started again;
// its queries fail, and those that come meanwhile wait.
type Engine struct {
	config   Config
	listener *net.TCPListener // never accepts here: the child does, and what knocks between two children waits
	client   *Client
	stop     context.CancelFunc
	done     chan struct{}

	mu      sync.Mutex
	process *os.Process
}

const (
	startTimeout = 60 * time.Second // until a cold half gigabyte is loaded and answers
	stopTimeout  = 8 * time.Second  // from asking the child to end to killing it
	healthyAfter = 30 * time.Second // a child that lived this long starts the backoff anew
	hungAfter    = 30 * time.Second
)

// StartEngine starts an engine and returns once it answers. ctx bounds the start only.
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
			return nil, fmt.Errorf("make the engine's folder: %w", err)
		}
		c.DataDir = temporary
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the engine: %w", err), removeAll(temporary))
	}
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
			c.Logger.Warn("after the ClickHouse engine", "error", err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = fmt.Errorf("the engine does not answer: %w", ctx.Err())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the ClickHouse engine: %w", err), e.Close())
	}
	return e, nil
}

// Addr returns where the engine listens, host:port. It stays the same when the process is started
// again.
func (e *Engine) Addr() string { return e.listener.Addr().String() }

// Client returns a client of the engine as Admin.
func (e *Engine) Client() *Client { return e.client }

// PID returns the present process, or 0 between two.
func (e *Engine) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.process == nil {
		return 0
	}
	return e.process.Pid
}

// Close stops the engine: queries under way fail. It may be called again.
func (e *Engine) Close() error {
	e.stop()
	<-e.done
	e.client.http.CloseIdleConnections()
	return nil
}

// supervise keeps a child running until ctx ends. ready gets the first child's fate: an engine that
// cannot start at all is not tried again.
func (e *Engine) supervise(ctx context.Context, password string, ready chan<- error) {
	// Linux ties the child to the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	waits := backoff.Child.Start()
	for started := false; ctx.Err() == nil; {
		begun := time.Now()
		err := e.runChild(ctx, password, func() {
			level := slog.LevelInfo
			if !started {
				started, level = true, slog.LevelDebug
				ready <- nil
			}
			e.config.Logger.Log(ctx, level, "the ClickHouse engine is ready", "addr", e.Addr(), "pid", e.PID(), "after", time.Since(begun).Round(time.Millisecond))
		})
		if !started {
			ready <- err
			return
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > healthyAfter {
			waits.Reset()
		}
		wait := waits.Next()
		e.config.Logger.Error("the ClickHouse engine's process ended; starting it again", "error", err, "in", wait)
		backoff.Sleep(ctx, wait)
	}
}

// runChild runs one child to its end, or to the end of ctx. It calls ready once the child answers.
func (e *Engine) runChild(ctx context.Context, password string, ready func()) error {
	socket, err := e.listener.File()
	if err != nil {
		return fmt.Errorf("hand over the listener: %w", err)
	}
	defer socket.Close() //nolint:errcheck // a duplicate; the child has its own
	// The command's own context would kill; this one asks first.
	cmd := exec.CommandContext(ctx, e.config.Command[0], e.config.Command[1:]...) //nolint:gosec // our own binary
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTimeout
	cmd.Env = append(os.Environ(), EnvLibrary+"="+e.config.Library, EnvData+"="+e.config.DataDir, EnvPassword+"="+password, EnvListener+"=3")
	cmd.ExtraFiles = []*os.File{socket}
	dieWithParent(cmd)
	if _, err := cmd.StdinPipe(); err != nil { // never written to: its end tells the child that we are gone
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
			for misses := 0; misses < 2; { // one may be a machine that slept
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
			e.config.Logger.Error("the ClickHouse engine's process does not answer and is ended", "pid", cmd.Process.Pid)
			_ = cmd.Process.Kill() // it may have ended
		}
	}()
	err = cmd.Wait()
	cancel()
	<-pinged
	e.setProcess(nil)
	if last := log.last(); last != "" && err != nil {
		err = fmt.Errorf("%w; its last words: %s", err, last)
	}
	return err
}

// alive reports whether the child answers within a limit.
func (e *Engine) alive(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return e.client.Ping(ctx) == nil
}

func (e *Engine) setProcess(p *os.Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.process = p
}

// logWriter passes on what a child prints, line by line, and keeps the last lines.
type logWriter struct {
	log  *slog.Logger
	mu   sync.Mutex
	rest []byte
	tail []string
}

const (
	longestLine = 4 << 10
	tailLines   = 5
)

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

func (w *logWriter) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(append(w.tail, strings.TrimSpace(string(w.rest))), " | ")
}

var _ io.Writer = (*logWriter)(nil)

func removeAll(dir string) error {
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}
