package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/serving"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/streams"
)

// filled is a backend whose store was filled without a log.
type filled struct{ store *online.Store }

func (f filled) Store() online.Reader          { return f.store }
func (filled) Watermarks() *streams.Watermarks { return streams.NewWatermarks() }
func (filled) Ready() error                    { return nil }

// memoryHandler fills a store in memory and returns its APIs.
func memoryHandler(_ context.Context, o options, log *slog.Logger) (h http.Handler, done func() error, err error) {
	store, err := online.New([]*features.Group{group()}, online.Options{})
	if err != nil {
		return nil, nil, err
	}
	if err := fill(store, o.entities, time.Now()); err != nil {
		return nil, nil, err
	}
	return handler(filled{store}, log), func() error { return nil }, nil
}

// serve fills a store and serves it by both APIs, behind the same server as a process of Millrace.
func serve(ctx context.Context, o options) (failed error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	open := memoryHandler
	if o.redis != "" {
		open = sharedHandler
	}
	h, done, err := open(ctx, o, log)
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, done()) }()
	runtime.GC()
	debug.FreeOSMemory() // so that the process's memory is that of the facts
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", o.serve)
	if err != nil {
		return err
	}
	stop := server.New(server.Config{Limits: server.Limits{Connections: 1024, PerAddress: 1024},
		IdleTimeout: time.Minute, Logger: log}, h).Start(listener, time.Second)
	<-ctx.Done()
	_, err = stop()
	return err
}

// handler returns both APIs behind the bounds and the admission of a process of Millrace.
func handler(b serving.Backend, log *slog.Logger) http.Handler {
	service, limiter := serving.New(b, time.Now), server.NewLimiter(256)
	mux := http.NewServeMux()
	mux.Handle("/", serving.NewFeast(service, func(h http.Handler) http.Handler {
		return limiter.Admit(server.As(server.Query), func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusTooManyRequests)
		}, h)
	}))
	mux.Handle(featuresv1connect.NewFeatureServiceHandler(service, rpc.HandlerOptions(log, time.Now)...))
	bodies := &server.Bodies{Timeout: time.Minute, MaxBytes: 256 << 20}
	all := http.NewServeMux()
	all.HandleFunc(ceilingPath, ceiling)
	all.Handle("/", bodies.Guard(rpc.Intake(mux)))
	return all
}

// ceilingPath is where the ceiling is, and its query says how many bytes it answers.
const ceilingPath = "/ceiling"

// ceiling reads a request and answers as many bytes as its query says.
func ceiling(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.RawQuery)
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(n))
	_, _ = w.Write(make([]byte, n)) // the client reports what is missing
}

// measured is the process of a server that is measured.
type measured struct {
	cmd  *exec.Cmd
	url  string
	log  bytes.Buffer
	dir  string // removed at the end
	over bool
	// others returns the CPU time of other processes that work for the server; nil if there are none.
	others func() (time.Duration, error)
}

// start starts a server and waits until it is healthy.
func start(ctx context.Context, address, dir, name string, args ...string) (*measured, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // this program, or one that the operator names
	p := &measured{cmd: cmd, url: "http://" + address, dir: dir}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Feast's server has children
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	const patience = 5 * time.Minute
	for deadline := time.Now().Add(patience); time.Now().Before(deadline) && ctx.Err() == nil; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/health", nil)
		if err != nil {
			return nil, err
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return p, nil
			}
		}
		time.Sleep(100 * time.Millisecond) // between two polls
	}
	p.stop()
	return nil, fmt.Errorf("%s is not healthy: %s", name, p.log.String())
}

// stop ends the server and its children.
func (p *measured) stop() {
	if p.over {
		return
	}
	p.over = true
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // its own group
	_ = p.cmd.Wait()
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
}

// pids returns the processes of the server's group.
func (p *measured) pids() (all []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		if f := statFields(file); len(f) > 2 && f[2] == strconv.Itoa(p.cmd.Process.Pid) {
			all = append(all, filepath.Base(filepath.Dir(file)))
		}
	}
	return all
}

// statFields returns the fields of a stat file after the command's name: state, parent, group, …
func statFields(file string) []string {
	b, err := os.ReadFile(file) //nolint:gosec // a file of /proc
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// cpu returns the CPU time that the server has used, and those that work for it.
func (p *measured) cpu() time.Duration {
	const user, system, tick = 11, 12, 10 * time.Millisecond
	var ticks int
	for _, pid := range p.pids() {
		if f := statFields(filepath.Join("/proc", pid, "stat")); len(f) > system {
			u, _ := strconv.Atoi(f[user])
			s, _ := strconv.Atoi(f[system])
			ticks += u + s
		}
	}
	total := time.Duration(ticks) * tick
	if p.others != nil {
		if used, err := p.others(); err == nil { // otherwise the requests fail, too
			total += used
		}
	}
	return total
}

// ownCPU returns the CPU time that this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // which cannot happen: the arguments are valid
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory returns the resident memory of the server in bytes.
func (p *measured) memory() int64 {
	const resident = 21
	var pages int64
	for _, pid := range p.pids() {
		if f := statFields(filepath.Join("/proc", pid, "stat")); len(f) > resident {
			n, _ := strconv.ParseInt(f[resident], 10, 64)
			pages += n
		}
	}
	return pages * int64(os.Getpagesize())
}

// freeAddress returns an address of loopback that nothing listens on.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// startSelf starts this program as a server.
func startSelf(ctx context.Context, o options) (*measured, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, address, "", exe, "-serve", address, "-redis", o.redis, "-entities", strconv.Itoa(o.entities))
}

// feastEntities is the number of entities in Feast's store. It has finished values, so that their
// number hardly matters.
const feastEntities = 1000

//go:embed feast.py
var feastRepository string

// startFeast makes a repository with the same features in Feast's SQLite store, and starts its
// server with one worker.
func startFeast(ctx context.Context, o options) (*measured, error) {
	dir, err := os.MkdirTemp("", "millrace-feast-")
	if err != nil {
		return nil, err
	}
	names := make([]string, feastEntities)
	for i := range names {
		names[i] = entityName(i)
	}
	for file, text := range map[string]string{"definitions.py": feastRepository,
		"features.txt": strings.Join(featureNames(), "\n"), "entities.txt": strings.Join(names, "\n"),
		"feature_store.yaml": "project: bench\nregistry: registry.db\nprovider: local\n" +
			"online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 3\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	fill := exec.CommandContext(ctx, o.feast, "definitions.py") //nolint:gosec // the operator names the program
	fill.Dir = dir
	if out, err := fill.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	host, port, _ := strings.Cut(address, ":")
	return start(ctx, address, dir, filepath.Join(filepath.Dir(o.feast), "feast"), "serve", "-h", host, "-p", port,
		"--workers", "1", "--no-access-log")
}
