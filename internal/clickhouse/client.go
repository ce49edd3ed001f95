package clickhouse

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/dependency"
)

// Client sends queries over ClickHouse's HTTP interface. It is safe for concurrent use.
type Client struct {
	url, user, password string
	external            bool // a server outside of this process
	http                *http.Client
	silence             time.Duration // see watch
}

// NewClient returns a client of the embedded engine at addr, host:port.
func NewClient(addr, user, password string) *Client {
	return &Client{url: "http://" + addr + "/", user: user, password: password, http: newHTTP(nil, nil), silence: silence}
}

// Server describes an external ClickHouse server.
type Server struct {
	URL      string // http(s)://host:port
	User     string // empty means default
	Password string
	TLS      *tls.Config // for an https URL; nil means the system's certificate authorities
	// Dependency guards the requests. Nil guards nothing.
	Dependency *dependency.Dependency
}

// NewServerClient returns a client of an external server. It does not connect yet.
func NewServerClient(s Server) (*Client, error) {
	u, err := url.Parse(s.URL)
	switch {
	case err != nil:
		// The parser's error would contain the whole address.
		return nil, errors.New("ClickHouse: the URL is not http(s)://host:port")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" ||
		u.RawQuery != "" || strings.Trim(u.Path, "/") != "":
		return nil, fmt.Errorf("ClickHouse: the URL (%s://%s…) is not http(s)://host:port", u.Scheme, u.Host)
	// URLs appear in logs and errors, so they must not contain credentials.
	case u.User != nil:
		return nil, fmt.Errorf("ClickHouse: the URL %q contains credentials; set user and password separately",
			u.Redacted())
	}
	if s.User == "" {
		s.User = Admin
	}
	return &Client{
		url: u.Scheme + "://" + u.Host + "/", user: s.User, password: s.Password,
		external: true, http: newHTTP(s.TLS, s.Dependency), silence: silence,
	}, nil
}

// newHTTP returns an HTTP client without a total timeout, because queries may take long; see watch.
func newHTTP(config *tls.Config, guard *dependency.Dependency) *http.Client {
	// A user's query may be slow, or be given up, without a fault of the server.
	return &http.Client{Transport: guard.Transport(&http.Transport{
		TLSClientConfig: config, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, DisableCompression: true,
		WriteBufferSize: 64 << 10, // for inserts
		DialContext:     (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}, true)}
}

// External reports whether the server is external. It then cannot read this machine's files.
func (c *Client) External() bool { return c.external }

// URL returns the address of the server or engine.
func (c *Client) URL() string { return c.url }

// Close closes the idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// As returns a client for another user with the same password.
func (c *Client) As(user string) *Client {
	other := *c
	other.user = user
	return &other
}

// Password returns the client's password, for clients of other kinds.
func (c *Client) Password() string { return c.password }

// Ping returns nil when the server answers. It waits for a server that accepts connections and is
// still starting, until ctx ends.
func (c *Client) Ping(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodGet, "ping", nil, "")
	if err != nil {
		return err
	}
	return errors.Join(resp.Body.Close(), statusError(resp.StatusCode, resp.Status))
}

// ErrUnreachable means that the server cannot be reached, or does not even answer a ping. A query
// that reads may be retried.
var ErrUnreachable = errors.New("ClickHouse is unreachable")

// silence is how long a query may return nothing before the server is pinged, and how long the ping
// may take.
const silence = 15 * time.Second

// watch ends a query whose server has become silent, because it hangs or the connection is lost. A
// query may take long before the first byte of its answer, so watch pings the server in parallel.
// The server itself bounds the duration of a query. The caller must call stop, and progress for
// each piece of the answer.
func (c *Client) watch(ctx context.Context) (watched context.Context, progress, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	pieces := make(chan struct{}, 1)
	progress = func() {
		select {
		case pieces <- struct{}{}:
		default: // a piece that is not yet noticed is enough
		}
	}
	go func() {
		quiet := time.NewTimer(c.silence)
		defer quiet.Stop()
		for {
			select {
			case <-watched.Done():
				return
			case <-pieces:
			case <-quiet.C:
				limited, done := context.WithTimeout(watched, c.silence)
				err := c.Ping(limited)
				done()
				if err != nil {
					cancel(fmt.Errorf("%w at %s: no answer for %v (%s)",
						// Not wrapped: the ping's deadline is not the caller's.
						ErrUnreachable, c.url, 2*c.silence, err.Error()))
					return
				}
			}
			quiet.Reset(c.silence)
		}
	}()
	return watched, progress, func() { cancel(nil) }
}

// Query runs one statement and returns its answer in a ClickHouse format ("JSONEachRow"). The
// caller must close it. Settings may contain request parameters, too, such as "database". If a
// query fails, the error is an *Error: from Query, or from Read if it failed after the first part
// of the answer. The query ends when ctx ends or the answer is closed.
func (c *Client) Query(ctx context.Context, sql, format string, settings map[string]string) (io.ReadCloser, error) {
	params := url.Values{}
	for name, value := range settings {
		params.Set(name, value)
	}
	if format != "" {
		params.Set("default_format", format)
	}
	return c.post(ctx, params, strings.NewReader(sql))
}

// Insert sends rows in a format, which the statement ends with: "INSERT INTO t (a) FORMAT Native".
// If it fails without an *Error, the rows may be in the table.
func (c *Client) Insert(ctx context.Context, statement string, rows []byte, settings map[string]string) error {
	params := url.Values{"query": {statement}}
	for name, value := range settings {
		params.Set(name, value)
	}
	answer, err := c.post(ctx, params, bytes.NewReader(rows))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer)
	return errors.Join(err, answer.Close())
}

// post sends a request and returns its answer.
func (c *Client) post(ctx context.Context, params url.Values, content io.Reader) (io.ReadCloser, error) {
	ctx, progress, stop := c.watch(ctx)
	resp, err := c.do(ctx, http.MethodPost, "?"+params.Encode(), content, c.user)
	if err != nil {
		stop()
		return nil, err
	}
	// An error before the first byte of the answer has a status and a code in the header.
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-ClickHouse-Exception-Code") != "" {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorText))
		stop()
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, fmt.Errorf("read ClickHouse's error: %w", err)
		}
		if resp.Header.Get("X-ClickHouse-Exception-Code") == "" {
			return nil, fmt.Errorf("ClickHouse at %s returned %s: %s", c.url, resp.Status, bytes.TrimSpace(text))
		}
		return nil, ParseError(string(text))
	}
	return &answer{
		body: resp.Body, tag: resp.Header.Get("X-ClickHouse-Exception-Tag"), ctx: ctx, progress: progress, stop: stop,
	}, nil
}

// Exec runs one statement and discards its answer.
func (c *Client) Exec(ctx context.Context, sql string, settings map[string]string) error {
	body, err := c.Query(ctx, sql, "Null", settings)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, body)
	return errors.Join(err, body.Close())
}

// do sends a request. Without a user it sends no credentials.
func (c *Client) do(ctx context.Context, method, target string, body io.Reader, user string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+target, body)
	if err != nil {
		return nil, err
	}
	if user != "" {
		req.Header.Set("X-ClickHouse-User", user)
		req.Header.Set("X-ClickHouse-Key", c.password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("query ClickHouse: %w", unreachable(ctx, err))
	}
	return resp, nil
}

// unreachable returns the error of a call without a complete answer: ErrUnreachable, unless the
// caller has given up.
func unreachable(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	case errors.Is(cause, ErrUnreachable):
		return cause
	}
	return err
}

// statusError returns an error unless the status is OK.
func statusError(code int, status string) error {
	if code == http.StatusOK {
		return nil
	}
	return fmt.Errorf("ClickHouse returned %s", status)
}

// Limits of an answer.
const (
	maxErrorText = 64 << 10
	// If a query fails after the start of its answer, ClickHouse writes the error into the last 16
	// KiB of the body. So Read keeps that much back until it knows how the body ended.
	heldBack = 16 << 10
)

// answer is a body that may end with an error.
type answer struct {
	body io.ReadCloser
	tag  string
	buf  []byte // read from the body and not returned yet
	// space is the memory of buf, empty. Large answers would otherwise allocate as much as they are.
	space []byte
	err   error // how the body ended

	ctx            context.Context // the watch's
	progress, stop func()
}

// Read returns bytes only when more than heldBack follow them, or at the end.
func (a *answer) Read(p []byte) (int, error) {
	for a.err == nil && len(a.buf) <= heldBack {
		a.fill()
	}
	ready := len(a.buf)
	if a.err == nil {
		ready -= heldBack
	}
	if ready == 0 {
		return 0, a.err
	}
	n := copy(p, a.buf[:ready])
	a.buf = a.buf[n:]
	return n, nil
}

// fill reads more of the body. At its end, it determines whether the body ended with an error.
func (a *answer) fill() {
	const chunk = 64 << 10
	if cap(a.buf)-len(a.buf) < chunk {
		if a.space == nil {
			a.space = make([]byte, 0, heldBack+4*chunk)
		}
		a.buf = append(a.space, a.buf...) // at most heldBack are left: see Read
	}
	n, err := a.body.Read(a.buf[len(a.buf) : len(a.buf)+chunk])
	a.buf = a.buf[:len(a.buf)+n]
	if err == nil {
		a.progress()
		return
	}
	// An orderly end can still have an error before it: with the tag at the very end.
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		a.err = io.EOF
		if a.tag == "" || !bytes.HasSuffix(a.buf, []byte(" "+a.tag+"\r\n__exception__\r\n")) {
			return
		}
	} else {
		a.err = fmt.Errorf("ClickHouse's answer was interrupted: %w", unreachable(a.ctx, err))
	}
	if a.tag == "" {
		return
	}
	// The tag is random per answer, so no data can look like an error.
	rows, rest, found := bytes.Cut(a.buf, []byte("\r\n__exception__\r\n"+a.tag+"\r\n"))
	if !found {
		return
	}
	text := rest
	if i := bytes.LastIndexByte(bytes.TrimSuffix(rest, []byte("\r\n__exception__\r\n")), '\n'); i >= 0 {
		text = rest[:i] // the last line has the length and the tag
	}
	a.buf, a.err = rows, ParseError(string(text))
}

// Close ends the query if it still runs.
func (a *answer) Close() error {
	defer a.stop()
	return a.body.Close()
}
