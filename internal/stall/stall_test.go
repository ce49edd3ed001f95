package stall_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/stall"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T, silence time.Duration) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: stall.Dialer(new(net.Dialer), silence)}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// A server that accepts a connection and becomes silent at any moment makes the call fail.
func TestStalledConnection(t *testing.T) {
	t.Parallel()
	const silence = 50 * time.Millisecond
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request, over <-chan struct{}){
		"before the answer": func(_ http.ResponseWriter, r *http.Request, over <-chan struct{}) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-over
		},
		"before the request is read": func(_ http.ResponseWriter, _ *http.Request, over <-chan struct{}) { <-over },
		"in the middle of the answer": func(w http.ResponseWriter, r *http.Request, over <-chan struct{}) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = w.Write(make([]byte, 100_000))
			_ = http.NewResponseController(w).Flush()
			<-over
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r, over) }))
			t.Cleanup(s.Close)
			t.Cleanup(func() { close(over) })
			body := bytes.NewReader(make([]byte, 64<<20)) // more than the system's buffers hold
			res, err := client(t, silence).Post(s.URL, "", body)
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			if !errors.Is(err, stall.ErrStalled) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A transfer in either direction may take many times the limit of silence, and an answer may come
// after a long request.
func TestSlowConnectionIsNotStalled(t *testing.T) {
	t.Parallel()
	const silence = 2 * time.Second
	tick := time.NewTicker(silence / 8)
	t.Cleanup(tick.Stop)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(io.Discard, r.Body); n != 120_000 || err != nil {
			t.Errorf("received %d bytes, %v", n, err)
		}
		for range 12 {
			<-tick.C
			_, _ = w.Write(make([]byte, 10_000))
			_ = http.NewResponseController(w).Flush()
		}
	}))
	t.Cleanup(s.Close)
	sending, send := io.Pipe()
	go func() {
		for range 12 {
			<-tick.C
			_, _ = send.Write(make([]byte, 10_000))
		}
		_ = send.Close()
	}()
	res, err := client(t, silence).Post(s.URL, "", sending)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil || n != 120_000 {
		t.Errorf("received %d bytes of the answer, %v", n, err)
	}
}

// A deadline that is earlier than the limit of silence applies, whether it is set before a call or
// during it.
func TestUserDeadlinesApply(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	for name, set := range map[string]func(net.Conn) error{
		"before": func(c net.Conn) error { return c.SetDeadline(time.Now()) },
		"meanwhile": func(c net.Conn) error {
			time.AfterFunc(20*time.Millisecond, func() { _ = c.SetReadDeadline(time.Now()) })
			return nil
		},
	} {
		c, err := stall.Dialer(new(net.Dialer), time.Hour)(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := set(c); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) ||
			errors.Is(err, stall.ErrStalled) {
			t.Errorf("%s: error %v", name, err)
		}
		_ = c.Close()
	}
}
