package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Server is a server with one process at a time. It has a folder, and can be started, killed,
// frozen, and restarted on the same data. Packages of such servers embed it. The zero Server has
// not been started. It is safe for concurrent use.
type Server struct {
	mu      sync.Mutex // guards the fields below
	dir     string     // removed by Stop; empty if there is none
	command Command    // of every run
	process *Process   // the last run; nil before the first
}

// Folder creates the server's folder. Stop removes it.
func (s *Server) Folder(pattern string) (dir string, err error) {
	dir, err = os.MkdirTemp("", pattern)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir = dir
	return dir, err
}

// Launch starts the server and returns once it is ready. Its folder is removed even if the test
// process is killed.
func (s *Server) Launch(ctx context.Context, c Command) error {
	s.mu.Lock()
	c.Scratch = s.dir
	s.command = c
	s.mu.Unlock()
	return s.launch(ctx)
}

func (s *Server) launch(ctx context.Context) error {
	p, err := Start(ctx, s.command)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
	return nil
}

// Stop kills the server and removes its folder. Call it after the last test.
func (s *Server) Stop() error {
	err := s.Kill()
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// Kill kills the server with SIGKILL. It may be called more than once.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	return s.process.Kill()
}

// Restart starts the server again at the same address and with its data. It kills the server first
// if it runs.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Kill(); err != nil {
		return err
	}
	return s.launch(ctx)
}

// Pause freezes the server: connections are accepted, but nothing answers.
func (s *Server) Pause() error { return s.with((*Process).Pause) }

// Resume resumes a frozen server.
func (s *Server) Resume() error { return s.with((*Process).Resume) }

// ResidentMB returns the current memory of the server, in MB.
func (s *Server) ResidentMB() (int, error) { return of(s, (*Process).ResidentMB) }

// PeakMB returns the highest memory of the server since its last start, in MB.
func (s *Server) PeakMB() (int, error) { return of(s, (*Process).PeakMB) }

// CPU returns the CPU time of the server since its last start.
func (s *Server) CPU() (time.Duration, error) { return of(s, (*Process).CPU) }

// Ended is closed when the last started process has ended. It is nil before the first start.
func (s *Server) Ended() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	return s.process.Ended()
}

// LogTail returns the end of the server's log.
func (s *Server) LogTail() (tail string) {
	_ = s.with(func(p *Process) error { // nothing before the first start
		tail = p.LogTail()
		return nil
	})
	return tail
}

func of[T any](s *Server, query func(*Process) (T, error)) (answer T, err error) {
	err = s.with(func(p *Process) error {
		answer, err = query(p)
		return err
	})
	return answer, err
}

func (s *Server) with(do func(*Process) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return errors.New("server has not been started")
	}
	return do(s.process)
}

// Java25 returns the java program of Debian's JDK 25. The error wraps ErrMissing if it is not
// installed.
func Java25() (string, error) {
	javas, err := filepath.Glob("/usr/lib/jvm/*25*/bin/java")
	if err == nil && len(javas) == 0 {
		err = fmt.Errorf("no Java 25 under /usr/lib/jvm: %w", ErrMissing)
	}
	if err != nil {
		return "", err
	}
	return javas[0], nil
}

// HTTPReady returns a Command's Ready: a GET of the URL must have this status.
func HTTPReady(url string, status int) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		answer, err := httpClient.Do(req)
		if err != nil {
			return err
		}
		if err := answer.Body.Close(); err != nil {
			return err
		}
		if answer.StatusCode != status {
			return fmt.Errorf("%s: %s", url, answer.Status)
		}
		return nil
	}
}

// httpClient keeps no idle connections, because their goroutines would outlive the tests. Its
// timeout covers a starting server that accepts a connection but does not answer.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: requestTimeout}
