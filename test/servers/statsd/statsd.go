// Package statsd starts a StatsD server for tests, on loopback: the one from npm. The zero Server starts
// with Start, and Read asks its management port for what it has received.
package statsd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

// Server is one StatsD.
type Server struct {
	port, management int

	process.Server
}

// Start starts the server, and returns its HOST:PORT for UDP. If it is not installed, the test is
// skipped or fails; see process.SkipOrFail. It stops with the test.
func (s *Server) Start(tb testing.TB) string {
	tb.Helper()
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	if err := s.start(context.Background()); err != nil {
		process.SkipOrFail(tb, "StatsD", err)
	}
	return fmt.Sprintf("127.0.0.1:%d", s.port)
}

// start configures and starts the server. It never flushes, so counters keep their sums.
func (s *Server) start(ctx context.Context) error {
	installed, err := process.InstallDir("statsd")
	if err != nil {
		return err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return err
	}
	s.port, s.management = ports[0], ports[1]
	dir, err := s.Folder("millrace-statsd-")
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "config.js")
	text := fmt.Sprintf("{ port: %d, address: '127.0.0.1', mgmt_port: %d, mgmt_address: '127.0.0.1', "+
		"flushInterval: 86400000, backends: [] }\n", s.port, s.management)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	return s.Launch(ctx, process.Command{
		Name: "StatsD", Path: "node", Dir: dir,
		Args: []string{filepath.Join(installed, "node_modules", "statsd", "stats.js"), config},
		Ready: func(ctx context.Context) error {
			_, err := s.ask(ctx, "health")
			return err
		},
		StartTimeout: time.Minute,
	})
}

// Read returns the values of a kind, "counters" or "gauges", by the name that StatsD makes of a name and
// its tags: "name;tag=value".
func (s *Server) Read(ctx context.Context, kind string) (map[string]float64, error) {
	lines, err := s.ask(ctx, kind)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for _, line := range lines {
		// A line of a JavaScript object: 'name': value,
		name, value, ok := strings.Cut(strings.TrimLeft(line, " {"), ": ")
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimRight(value, ", }"), 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", kind, line, err)
		}
		values[strings.Trim(name, "'")] = n
	}
	return values, nil
}

// ask sends a command to the management port, and returns the lines of the answer, which ends with END
// or, for health, is one line.
func (s *Server) ask(ctx context.Context, command string) (lines []string, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.management))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(c, command); err != nil {
		return nil, err
	}
	answer := bufio.NewScanner(c)
	for answer.Scan() {
		if answer.Text() == "END" || strings.HasPrefix(answer.Text(), "health:") {
			return lines, nil
		}
		lines = append(lines, answer.Text())
	}
	return nil, fmt.Errorf("%s: no END: %w", command, answer.Err())
}
