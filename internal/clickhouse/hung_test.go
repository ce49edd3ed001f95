package clickhouse_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
)

// A server that accepts connections and does not answer must not block its callers.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	c := clickhouse.NewClient(listener.Addr().String(), clickhouse.Admin, "").WithSilence(50 * time.Millisecond)
	if _, err := c.Query(t.Context(), "SELECT 1", "TSV", nil); !errors.Is(err, clickhouse.ErrUnreachable) {
		t.Errorf("Query: %v", err)
	}
	if err := c.Exec(t.Context(), "SELECT 1", nil); !errors.Is(err, clickhouse.ErrUnreachable) {
		t.Errorf("Exec: %v", err)
	}
}

// An answer that stops arriving fails when the server does not answer a ping either. A slow one
// does not fail.
func TestSilentAnswer(t *testing.T) {
	t.Parallel()
	const silence = 50 * time.Millisecond
	for name, hangs := range map[string]bool{"a server that hangs": true, "a query that takes long": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pings, over := make(chan struct{}, 100), make(chan struct{})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/ping" {
					pings <- struct{}{}
					if hangs {
						<-over
					}
					return
				}
				_, _ = io.WriteString(w, "1\n")
				_ = http.NewResponseController(w).Flush()
				if hangs {
					<-over
					return
				}
				for range 3 { // it was pinged three times
					<-pings
				}
				_, _ = io.WriteString(w, "2\n")
			}))
			t.Cleanup(s.Close)
			t.Cleanup(func() { close(over) })
			c := clickhouse.NewClient(strings.TrimPrefix(s.URL, "http://"), clickhouse.Admin, "").WithSilence(silence)
			if !hangs {
				c = c.WithSilence(10 * silence) // a busy machine may be slow to answer
			}
			body, err := c.Query(t.Context(), "SELECT 1", "TSV", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close() //nolint:errcheck // read to its end
			got, err := io.ReadAll(body)
			if hangs && !errors.Is(err, clickhouse.ErrUnreachable) || !hangs && (err != nil || string(got) != "1\n2\n") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// lockedLog is a log that can be read while it is written.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// An engine that hangs is killed and replaced.
func TestHungEngineIsReplaced(t *testing.T) {
	t.Parallel()
	c, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	log := new(lockedLog)
	c.Logger, c.HungAfter = slog.New(slog.NewTextHandler(log, nil)), 3*time.Second
	e, err := clickhouse.StartEngine(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	hung := e.PID()
	if err := syscall.Kill(hung, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "another process", func() bool { pid := e.PID(); return pid != 0 && pid != hung })
	if got := ask(t, e.Client(), "SELECT 1"); got != "1" {
		t.Errorf("it answers %q", got)
	}
	if !strings.Contains(log.String(), "does not respond; killing it") {
		t.Errorf("the log does not mention it: %s", log)
	}
}
