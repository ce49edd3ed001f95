// Package s3 starts a private S3 server for tests, versitygw over a temporary folder, and can stand between it and its
// clients to break their calls.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

// Config is how to reach a server. It takes requests that name the bucket in the path.
type Config struct {
	Endpoint             string // http://host:port
	Region               string
	AccessKey, SecretKey string
	Bucket               string // exists, and is empty at first
}

// Server is one S3 server for a test binary. The zero Server starts with the first test that asks for it; TestMain stops
// it. What was written outlives Kill and Restart, and goes with Stop.
type Server struct {
	once   sync.Once
	err    error
	dir    string
	config Config

	mu      sync.Mutex
	process *process.Process
}

// Config starts the server if need be, and tells how to reach it. Where it is not installed the test is skipped, or fails:
// see process.SkipOrFail.
func (s *Server) Config(tb testing.TB) Config {
	tb.Helper()
	c, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "S3", err)
	}
	return c
}

// Start starts the server, once, and tells how to reach it.
func (s *Server) Start() (Config, error) {
	s.once.Do(func() { s.err = s.start() })
	return s.config, s.err
}

const bucket = "lake"

func (s *Server) start() error {
	if _, err := process.Cache("s3"); err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp("", "millrace-s3-"); err != nil {
		return err
	}
	// A folder at the top is a bucket.
	for _, d := range []string{filepath.Join("data", bucket), "attributes"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return errors.Join(err, os.RemoveAll(s.dir))
		}
	}
	s.config = Config{ //nolint:gosec // no secret: it opens what a test has made
		Endpoint: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), Region: "us-east-1",
		AccessKey: "millrace", SecretKey: "s3-Secret/of+tests", Bucket: bucket,
	}
	if err := s.run(); err != nil {
		return errors.Join(err, os.RemoveAll(s.dir))
	}
	return nil
}

// run starts the program on what is there.
func (s *Server) run() error {
	bin, err := process.Cache("s3")
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	// No --keep-alive: with it, multipart uploads fail.
	args := []string{"--port", s.config.Endpoint[len("http://"):], "--region", s.config.Region, "--quiet", "posix"}
	if syscall.Setxattr(data, "user.millrace", []byte("1"), 0) != nil { // it keeps what objects have beside their bytes there
		args = append(args, "--sidecar", filepath.Join(s.dir, "attributes"))
	}
	s.process, err = process.Start(context.Background(), process.Command{
		Name: "versitygw", Path: filepath.Join(bin, "versitygw"), Args: append(args, data), Dir: s.dir, Ready: s.answers,
		Env: []string{"ROOT_ACCESS_KEY=" + s.config.AccessKey, "ROOT_SECRET_KEY=" + s.config.SecretKey},
	})
	return err
}

// answers asks for the list of buckets; the refusal of one who shows no key is an answer.
func (s *Server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.config.Endpoint+"/", nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusForbidden {
		err = fmt.Errorf("it answers %s", resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}

// Kill is kill -9.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Kill()
}

// Restart starts it again where it was, after killing it if it runs.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.process.Kill(); err != nil {
		return err
	}
	return s.run()
}

// Pause stops it without ending its connections, until Resume.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for { // a signal takes effect when its receiver is next to run
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.process.PID()))
		if err != nil {
			return err
		}
		if state := stat[bytes.LastIndexByte(stat, ')')+2]; state == 'T' {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

// Resume lets it go on.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Signal(syscall.SIGCONT)
}

// ResidentMB is the memory that the server holds now, in MB.
func (s *Server) ResidentMB() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.ResidentMB()
}

// Stop ends the server, if it was started, and removes its data. Call it after the last test.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	return errors.Join(s.process.Kill(), os.RemoveAll(s.dir))
}
