// Package process runs server programs for tests, each with its own folder and log.
//
// Process is one run of a program. Server is a server with several runs on the same data. The
// packages of single servers, such as test/servers/s3, embed it.
//
// Invariants: Start returns only once the server answers in its own protocol. Signals reach the
// server itself, not a wrapper. The server never outlives the test process, even if that is killed.
package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ErrMissing is the error of a server whose program is not installed.
var ErrMissing = errors.New("not installed: run `make servers`, or `make engines` for Trino, Spark and Kafka Connect")

// SkipOrFail ends a test whose server did not start. If the program is missing, the test is
// skipped, unless MILLRACE_REQUIRE_SERVERS is set.
func SkipOrFail(tb testing.TB, server string, err error) {
	tb.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("MILLRACE_REQUIRE_SERVERS") == "" {
		tb.Skipf("not tested on %s: %v", server, err)
	}
	tb.Fatalf("start %s: %v", server, err)
}

// SkipHeavy skips a test of an engine that needs minutes and gigabytes, unless MILLRACE_ENGINES is
// set. `make test-engines` sets it.
func SkipHeavy(tb testing.TB, engine string) {
	tb.Helper()
	if os.Getenv("MILLRACE_ENGINES") == "" {
		tb.Skipf("%s needs minutes and a gigabyte of memory: run make test-engines", engine)
	}
}

// InstallDir returns the folder, outside the repository, into which `make servers` installs a
// server: MILLRACE_SERVERS, or millrace/servers in the user's cache folder. The error wraps
// ErrMissing if the folder or its stamp does not exist.
func InstallDir(server string) (string, error) {
	root := os.Getenv("MILLRACE_SERVERS")
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		root = filepath.Join(user, "millrace", "servers")
	}
	dir := filepath.Join(root, server)
	if _, err := os.Stat(filepath.Join(dir, "installed")); err != nil { //nolint:gosec // a folder that the user names
		return "", fmt.Errorf("%s: %w", server, ErrMissing)
	}
	return dir, nil
}

// Ports below firstEphemeral are used only by processes that ask for them by number. Higher ones
// may be taken by any outgoing connection during the seconds that a server needs to start.
const firstPort, firstEphemeral = 10_000, 32_768

// FreePorts returns ports on loopback on which nothing listens, and which no outgoing connection
// will take.
func FreePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	var failed error
	for tries := 0; len(ports) < n; tries++ {
		if tries > 100+10*n {
			return nil, fmt.Errorf("find free ports: %w", failed)
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(firstEphemeral-firstPort))) //nolint:noctx // it does not block
		if err != nil {
			failed = err
			continue
		}
		defer l.Close() //nolint:errcheck // held until all are known, so that none comes twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// Command describes what to run.
type Command struct {
	Name string   // for messages
	Path string   // of the program
	Args []string // its arguments
	Env  []string // in addition to the test's own environment
	Dir  string   // working directory; the log is appended to Dir/log

	// Scratch is a folder that is removed if the test process ends without having stopped the
	// server.
	Scratch string

	// Ready checks by the server's protocol whether it is ready. It is called until it returns nil.
	Ready        func(context.Context) error
	StartTimeout time.Duration // 0 means three minutes: a loaded machine starts a JVM slowly

	Credential *syscall.Credential // the account to run as; nil means that of the test
}

// Process is a running server. Its methods are safe for concurrent use.
type Process struct {
	command    Command
	supervisor *exec.Cmd
	alive      io.Closer // closing it ends the server
	pid        int       // of the server, not of the supervisor

	ended chan struct{} // closed when the server has ended
	once  sync.Once
}

// supervisor is a shell script that runs the server until its own standard input ends. That happens
// when the test process ends, however it ends. It then kills the server and removes the scratch
// folder. It first prints the server's process id.
//
// dash gives a background command no standard input, so the part that waits for the end reads
// descriptor 3. It succeeds if the input has ended, and is ended by a signal if the server has
// ended first. The children of a killed server may still write for a moment.
const supervisor = `exec 3<&0; scratch=$1; shift
"$@" </dev/null >>log 2>&1 & pid=$!; echo $pid
(read -r _ <&3; trap "" TERM; kill -CONT $pid; kill -KILL $pid; exit 0) 2>/dev/null & waiting=$!
wait $pid; kill $waiting 2>/dev/null
if wait $waiting && [ "$scratch" ]; then for i in 1 2 3 4 5; do rm -rf -- "$scratch" && break; sleep 1; done; fi`

const (
	pollInterval   = 20 * time.Millisecond
	requestTimeout = 5 * time.Second
)

// Start starts a server and returns once it is ready.
func Start(ctx context.Context, c Command) (*Process, error) {
	if c.StartTimeout == 0 {
		c.StartTimeout = 3 * time.Minute
	}
	p := &Process{command: c, ended: make(chan struct{})}
	p.supervisor = exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", append([]string{"-c", supervisor, "keeper", c.Scratch, c.Path}, c.Args...)...) //nolint:gosec // a test's own servers
	p.supervisor.Dir, p.supervisor.Env = c.Dir, append(os.Environ(), c.Env...)
	// A process group of its own, so that an interrupt at the terminal does not stop the server
	// during the tests.
	p.supervisor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.Credential}
	stdin, err := p.supervisor.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.supervisor.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.supervisor.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	p.alive = stdin
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		p.pid, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: read the process id, got %q: %w", c.Name, line, err), p.Kill())
	}
	go func() {
		_ = p.supervisor.Wait() // the log has the reason
		close(p.ended)
	}()
	if err := p.awaitReady(ctx); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// awaitReady polls the server until it is ready, has ended, or the time is up.
func (p *Process) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.command.StartTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := p.command.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("%s exited before it was ready: %w\n%s", p.command.Name, err, p.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready within %v: %w\n%s", p.command.Name, p.command.StartTimeout, err,
				p.LogTail())
		}
	}
}

// LogTail returns the end of the server's log.
func (p *Process) LogTail() string {
	const most = 4 << 10
	log, _ := os.ReadFile(filepath.Join(p.command.Dir, "log")) // best effort
	return string(log[max(0, len(log)-most):])
}

// PID returns the server's process id.
func (p *Process) PID() int { return p.pid }

// Ended is closed when the server has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Signal sends a signal to the server itself.
func (p *Process) Signal(s syscall.Signal) error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s has ended", p.command.Name)
	default:
		return syscall.Kill(p.pid, s)
	}
}

// Pause freezes the server: its connections remain open, but nothing answers. It returns once no
// thread of it runs any more, which on a busy machine can be some time after the signal.
func (p *Process) Pause() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		frozen, err := p.frozen()
		if err != nil || frozen {
			return err
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("%s has ended", p.command.Name)
		}
	}
}

// Resume resumes a frozen server.
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// frozen reports whether every thread of the server is stopped.
func (p *Process) frozen() (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid))
	if err != nil {
		return false, err
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(thread) //nolint:gosec // of the server's own
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return false, err
		}
		// The format is "id (name) state …", and the name may contain anything.
		if state := stat[strings.LastIndexByte(string(stat), ')')+1:]; !strings.HasPrefix(string(state), " T") {
			return false, nil
		}
	}
	return true, nil
}

// Kill kills the server with SIGKILL and waits for its end. It may be called more than once.
func (p *Process) Kill() error {
	if p.pid != 0 {
		_ = p.Signal(syscall.SIGKILL) // fails if it has ended
		<-p.ended
	}
	var err error
	p.once.Do(func() {
		if err = p.alive.Close(); errors.Is(err, os.ErrClosed) { // Wait has closed it
			err = nil
		}
	})
	return err
}

// Stop sends SIGTERM, and kills the server if it has not ended within the given time.
func (p *Process) Stop(within time.Duration) error {
	select {
	case <-p.ended:
		return p.Kill()
	default:
	}
	if err := syscall.Kill(p.pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return errors.Join(err, p.Kill())
	}
	select {
	case <-p.ended:
		return p.Kill()
	case <-time.After(within):
		return errors.Join(fmt.Errorf("%s did not stop within %v and was killed", p.command.Name, within), p.Kill())
	}
}
