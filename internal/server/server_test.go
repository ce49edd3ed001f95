package server_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/server"
)

// start serves h on loopback and returns its address.
func start(t *testing.T, limits server.Limits, h http.Handler) (string, *server.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{Limits: limits, IdleTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}, h)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String(), s
}

func get(t *testing.T, address string) {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
}

func dial(t *testing.T, address, send string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	return c
}

// status reads a response from a connection and returns its status.
func status(c net.Conn) (int, error) {
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

// Idle connections do not lock out new ones: silent ones, ones with an endless header, and ones
// that are kept open after a call.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	address, s := start(t, server.Limits{Connections: 20, PerAddress: 20},
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	for i := range 300 {
		c := dial(t, address, []string{"", "GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"}[i%3])
		if i%3 == 2 {
			if _, err := status(c); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	}
	get(t, address)
	if open, _, evicted := s.Connections(); open > 20 || evicted == 0 {
		t.Errorf("%d open, %d evicted", open, evicted)
	}
}

// Busy connections are not closed. If an address has used its share, a new connection is refused
// instead.
func TestBusyConnectionsAreKept(t *testing.T) {
	t.Parallel()
	working, end := make(chan struct{}), make(chan struct{})
	address, s := start(t, server.Limits{Connections: 4, PerAddress: 2},
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			working <- struct{}{}
			<-end
		}))
	var calls []net.Conn
	for range 2 {
		calls = append(calls, dial(t, address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
		<-working
	}
	if n, err := dial(t, address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("a third connection of the address is served")
	}
	close(end)
	for i, c := range calls {
		if code, err := status(c); err != nil || code != http.StatusOK {
			t.Errorf("call %d was cut off: %d, %v", i, code, err)
		}
	}
	if _, refused, _ := s.Connections(); refused != 1 {
		t.Errorf("%d refused, want 1", refused)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	t.Parallel()
	read := make(chan error, 1)
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		if err == nil && r.Context().Err() != nil {
			err = r.Context().Err()
		}
		read <- err
	})
	for name, c := range map[string]struct {
		bodies *server.Bodies
		sent   string
		want   error
	}{
		"whole":      {&server.Bodies{Timeout: time.Minute, MaxBytes: 10}, "Content-Length: 3\r\n\r\nabc", nil},
		"late":       {&server.Bodies{Timeout: time.Millisecond, MaxBytes: 10}, "Content-Length: 3\r\n\r\nab", server.ErrBodyLate},
		"too much":   {&server.Bodies{Timeout: time.Minute, MaxBytes: 2}, "Content-Length: 3\r\n\r\nabc", server.ErrBusy},
		"bad chunks": {&server.Bodies{Timeout: time.Minute, MaxBytes: 10}, "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", server.ErrBody},
	} {
		address, _ := start(t, server.Limits{Connections: 4, PerAddress: 4}, c.bodies.Guard(h))
		dial(t, address, "POST / HTTP/1.1\r\nHost: a\r\n"+c.sent)
		if err := <-read; !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// The deadline of a body does not apply to the handler's work.
func TestHandlerMayOutlastTheBodyTimeout(t *testing.T) {
	t.Parallel()
	const within = 20 * time.Millisecond
	bodies := &server.Bodies{Timeout: within, MaxBytes: 10}
	address, _ := start(t, server.Limits{Connections: 4, PerAddress: 4},
		bodies.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
				w.WriteHeader(http.StatusTeapot)
			case <-time.After(3 * within):
			}
		})))
	c := dial(t, address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
	if code, err := status(c); err != nil || code != http.StatusOK {
		t.Errorf("%d, %v", code, err)
	}
}

func TestCrossOriginRequestsAreRefused(t *testing.T) {
	t.Parallel()
	refuse := func(w http.ResponseWriter, _ *http.Request, why string) { http.Error(w, why, http.StatusForbidden) }
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	local := server.Guard(server.Hosts{Names: []string{"shop.internal"}}, refuse, ok)
	anywhere := server.Guard(server.Hosts{Any: true}, refuse, ok)
	for name, c := range map[string]struct {
		guard        http.Handler
		method, host string
		header       map[string]string
		want         int
	}{
		"localhost":                          {local, "POST", "localhost:7400", nil, 200},
		"localhost in capitals, with a dot":  {local, "POST", "LOCALHOST.:7400", nil, 200},
		"127.0.0.1":                          {local, "POST", "127.0.0.1:7400", nil, 200},
		"[::1]":                              {local, "POST", "[::1]:7400", nil, 200},
		"[::1] without a port":               {local, "POST", "[::1]", nil, 200},
		"a name of the settings":             {local, "POST", "Shop.internal:7400", nil, 200},
		"no host, as HTTP/1.0":               {local, "GET", "", nil, 200},
		"a rebound name":                     {local, "POST", "evil.example:7400", nil, 403},
		"a rebound name, reading":            {local, "GET", "evil.example", nil, 403},
		"a name below localhost's":           {local, "POST", "localhost.evil.example", nil, 403},
		"a name that ends like it":           {local, "POST", "notlocalhost", nil, 403},
		"another address":                    {local, "POST", "10.0.0.1:7400", nil, 403},
		"any name beyond loopback":           {anywhere, "POST", "shop.example", nil, 200},
		"another origin":                     {local, "POST", "localhost:7400", map[string]string{"Origin": "http://evil.example"}, 403},
		"another origin, reading":            {local, "GET", "localhost:7400", map[string]string{"Origin": "http://evil.example"}, 403},
		"another port of this machine":       {local, "POST", "localhost:7400", map[string]string{"Origin": "http://localhost:3000"}, 403},
		"an origin that is none":             {local, "POST", "localhost:7400", map[string]string{"Origin": "null"}, 403},
		"another site, says the browser":     {local, "GET", "localhost:7400", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"the same site's other origin":       {local, "POST", "localhost:7400", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		"a preflight":                        {local, "OPTIONS", "localhost:7400", map[string]string{"Origin": "http://evil.example"}, 403},
		"another origin beyond loopback":     {anywhere, "POST", "shop.example", map[string]string{"Origin": "http://evil.example"}, 403},
		"its own origin":                     {local, "POST", "localhost:7400", map[string]string{"Origin": "http://localhost:7400"}, 200},
		"its own origin, says the browser":   {local, "POST", "localhost:7400", map[string]string{"Sec-Fetch-Site": "same-origin"}, 200},
		"typed into the browser":             {local, "GET", "localhost:7400", map[string]string{"Sec-Fetch-Site": "none"}, 200},
		"an old browser's other site's host": {local, "POST", "localhost:7400", map[string]string{"Origin": "https://localhost.evil.example:7400"}, 403},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, "/", strings.NewReader("x"))
		r.Host = c.host
		for k, v := range c.header {
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		c.guard.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d", name, w.Code, c.want)
		}
	}
}

// A stream lasts as long as messages arrive, and does not count towards the bytes of all bodies. It
// ends when it becomes silent.
func TestActiveStreamsStayOpen(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			const within = 20 * time.Millisecond // much shorter than the limit for a body
			bodies := &server.Bodies{Timeout: within, MaxBytes: 4, Silence: time.Minute,
				Stream: func(r *http.Request) bool { return r.URL.Path == "/stream" }}
			ended := make(chan error, 2)
			address, _ := start(t, server.Limits{Connections: 4, PerAddress: 4},
				bodies.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					control := http.NewResponseController(w)
					_ = control.EnableFullDuplex() // HTTP/2 is
					w.WriteHeader(http.StatusOK)
					_ = control.Flush()
					_, err := io.Copy(flushing{w, control}, r.Body)
					ended <- err
				})))
			protocols := new(http.Protocols)
			protocols.SetHTTP1(proto == "HTTP/1.1")
			protocols.SetUnencryptedHTTP2(proto == "HTTP/2")
			transport := &http.Transport{Protocols: protocols}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: time.Minute}
			body, feed := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/stream", body)
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			for range 3 {
				select {
				case err := <-ended:
					t.Fatalf("the stream is cut: %v", err)
				case <-time.After(3 * within):
				}
				if _, err := io.WriteString(feed, "abc"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(res.Body, make([]byte, 3)); err != nil {
					t.Fatalf("a message of a long stream: %v", err)
				}
			}
			_ = feed.Close()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	silent := &server.Bodies{Timeout: time.Minute, MaxBytes: 4, Silence: time.Millisecond,
		Stream: func(*http.Request) bool { return true }}
	ended := make(chan error, 1)
	address, _ := start(t, server.Limits{Connections: 4, PerAddress: 4},
		silent.Guard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			ended <- err
		})))
	dial(t, address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab")
	if err := <-ended; !errors.Is(err, server.ErrBodyLate) {
		t.Errorf("a silent stream: %v", err)
	}
}

type flushing struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	return n, errors.Join(err, f.control.Flush())
}

// A body that does not end occupies no place in the limiter.
func TestSlowBodiesOccupyNoCapacity(t *testing.T) {
	t.Parallel()
	limiter := server.NewLimiter(1)
	address, _ := start(t, server.Limits{Connections: 9, PerAddress: 9},
		limiter.Admit(server.As(server.Command), nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	const head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
	for range 3 {
		dial(t, address, head+"a")
	}
	if code, err := status(dial(t, address, head+"abc")); err != nil || code != http.StatusOK {
		t.Errorf("%d, %v", code, err)
	}
}

// A handler reads what was sent, including the error at its end.
func TestAdmitKeepsBodies(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		sent io.Reader
		size int
		want error
	}{
		"nothing":   {strings.NewReader(""), 0, nil},
		"some":      {strings.NewReader("abc"), 3, nil},
		"much":      {io.LimitReader(zeroes{}, 9<<20), 9 << 20, nil},
		"broken":    {io.MultiReader(strings.NewReader("abc"), errorReader{broken}), 3, broken},
		"at once":   {errorReader{broken}, 0, broken},
		"much, end": {io.MultiReader(io.LimitReader(zeroes{}, 9<<20), errorReader{broken}), 9 << 20, broken},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", c.sent)
		server.NewLimiter(1).Admit(server.As(server.SQL), nil,
			http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				if int(n) != c.size || !errors.Is(err, c.want) {
					t.Errorf("%s: %d bytes, %v", name, n, err)
				}
			})).ServeHTTP(httptest.NewRecorder(), r)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }
