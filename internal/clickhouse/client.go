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
)

// Client sends queries over ClickHouse's HTTP interface. It is safe for concurrent use.
type Client struct {
	url, user, password string
	outside             bool // a server that others run
	http                *http.Client
	silence             time.Duration // see watch
}

// NewClient makes a client of the engine at addr, host:port.
func NewClient(addr, user, password string) *Client {
	return &Client{url: "http://" + addr + "/", user: user, password: password, http: newHTTP(nil), silence: silence}
}

// Server is a ClickHouse server that others run.
type Server struct {
	URL      string // http(s)://host:port
	User     string // empty: default
	Password string
	TLS      *tls.Config // where the URL says https; nil: the system's authorities
}

// NewServerClient makes a client of a server. Nothing is connected yet.
func NewServerClient(s Server) (*Client, error) {
	u, err := url.Parse(s.URL)
	switch {
	case err != nil:
		return nil, errors.New("ClickHouse: the address is not http(s)://host:port") // the parser's error shows all of it
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || strings.Trim(u.Path, "/") != "":
		return nil, fmt.Errorf("ClickHouse: the address (%s://%s…) is not http(s)://host:port", u.Scheme, u.Host)
	case u.User != nil:
		return nil, fmt.Errorf("ClickHouse: the address %q names a user; name user and password beside it", u.Redacted())
	}
	if s.User == "" {
		s.User = Admin
	}
	return &Client{url: u.Scheme + "://" + u.Host + "/", user: s.User, password: s.Password, outside: true, http: newHTTP(s.TLS), silence: silence}, nil
}

func newHTTP(config *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: config, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, DisableCompression: true,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}}
}

// Outside tells whether the client is of a server that others run, which does not see this machine's files.
func (c *Client) Outside() bool { return c.outside }

// URL is where the server or engine answers.
func (c *Client) URL() string { return c.url }

// Close lets go of the connections that are not in use.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// As is the same client as another user with the same password.
func (c *Client) As(user string) *Client {
	other := *c
	other.user = user
	return &other
}

// Password is what the client shows, for clients of other make.
func (c *Client) Password() string { return c.password }

// Ping returns nil once the server answers. It waits for one that listens and is still starting, until ctx ends.
func (c *Client) Ping(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodGet, "ping", nil, "")
	if err != nil {
		return err
	}
	return errors.Join(resp.Body.Close(), statusError(resp.StatusCode, resp.Status))
}

// ErrAway reports a server that cannot be reached or does not answer, not even to a ping. A query that reads may be
// sent again.
var ErrAway = errors.New("ClickHouse does not answer")

// silence is how long a query may bring nothing until the server is asked whether it is there, and how long it may take
// to say so.
const silence = 15 * time.Second

// watch ends a query whose server has fallen silent: it hangs, or was cut off without a word. A query may take long
// without a byte of an answer, so the server is asked beside it. The query's own time is bounded by the server. stop
// must be called; told is called for each piece of the answer.
func (c *Client) watch(ctx context.Context) (watched context.Context, told, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	pieces := make(chan struct{}, 1)
	told = func() {
		select {
		case pieces <- struct{}{}:
		default:
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
				asked, done := context.WithTimeout(watched, c.silence)
				err := c.Ping(asked)
				done()
				if err != nil {
					cancel(fmt.Errorf("%w at %s for %v: it hangs, or the network loses its answers (%s)",
						ErrAway, c.url, 2*c.silence, err.Error())) // not wrapped: the ping's deadline is not the caller's
					return
				}
			}
			quiet.Reset(c.silence)
		}
	}()
	return watched, told, func() { cancel(nil) }
}

// Query runs one statement and returns its answer in a ClickHouse format ("JSONEachRow"), which the caller must close.
// Settings may hold request parameters too, such as "database". A query that fails gives an *Error: from Query, or from
// Read if it failed after the first part of the answer. Ending ctx, or closing early, ends the query.
func (c *Client) Query(ctx context.Context, sql, format string, settings map[string]string) (io.ReadCloser, error) {
	params := url.Values{}
	for name, value := range settings {
		params.Set(name, value)
	}
	if format != "" {
		params.Set("default_format", format)
	}
	ctx, told, stop := c.watch(ctx)
	resp, err := c.do(ctx, http.MethodPost, "?"+params.Encode(), strings.NewReader(sql), c.user)
	if err != nil {
		stop()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-ClickHouse-Exception-Code") != "" {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorText))
		stop()
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, fmt.Errorf("read ClickHouse's error: %w", err)
		}
		if resp.Header.Get("X-ClickHouse-Exception-Code") == "" {
			return nil, fmt.Errorf("ClickHouse at %s answers %s: %s", c.url, resp.Status, bytes.TrimSpace(text))
		}
		return nil, ParseError(string(text))
	}
	return &answer{body: resp.Body, tag: resp.Header.Get("X-ClickHouse-Exception-Tag"), ctx: ctx, told: told, stop: stop}, nil
}

// Exec runs one statement whose answer does not matter.
func (c *Client) Exec(ctx context.Context, sql string, settings map[string]string) error {
	body, err := c.Query(ctx, sql, "Null", settings)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, body)
	return errors.Join(err, body.Close())
}

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
		return nil, fmt.Errorf("ask ClickHouse: %w", away(ctx, err))
	}
	return resp, nil
}

// away is the error of a call whose answer did not come, or broke off: ErrAway, unless its caller has given up.
func away(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return fmt.Errorf("%w: %w", ErrAway, err)
	case errors.Is(cause, ErrAway):
		return cause
	}
	return err
}

func statusError(code int, status string) error {
	if code == http.StatusOK {
		return nil
	}
	return fmt.Errorf("ClickHouse answers %s", status)
}

const (
	maxErrorText = 64 << 10
	// ClickHouse writes the error of a query that fails midway into the last 16 KiB of the body, so that much is held back
	// until the body has ended well.
	heldBack = 16 << 10
)

// answer reads a body whose end may be an error.
type answer struct {
	body io.ReadCloser
	tag  string
	buf  []byte // read and not handed out
	err  error  // how the body ended

	ctx        context.Context // of the watch
	told, stop func()
}

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

// fill reads more of the body, and at its end finds out how it ended.
func (a *answer) fill() {
	const chunk = 64 << 10
	if cap(a.buf)-len(a.buf) < chunk {
		grown := make([]byte, len(a.buf), len(a.buf)+4*chunk)
		copy(grown, a.buf)
		a.buf = grown
	}
	n, err := a.body.Read(a.buf[len(a.buf) : len(a.buf)+chunk])
	a.buf = a.buf[:len(a.buf)+n]
	if err == nil {
		a.told()
		return
	}
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		a.err = io.EOF
		if a.tag == "" || !bytes.HasSuffix(a.buf, []byte(" "+a.tag+"\r\n__exception__\r\n")) {
			return
		}
	} else {
		a.err = fmt.Errorf("ClickHouse's answer broke off: %w", away(a.ctx, err))
	}
	if a.tag == "" {
		return
	}
	rows, rest, found := bytes.Cut(a.buf, []byte("\r\n__exception__\r\n"+a.tag+"\r\n"))
	if !found {
		return
	}
	text := rest
	if i := bytes.LastIndexByte(bytes.TrimSuffix(rest, []byte("\r\n__exception__\r\n")), '\n'); i >= 0 {
		text = rest[:i] // the last line is the length and the tag
	}
	a.buf, a.err = rows, ParseError(string(text))
}

func (a *answer) Close() error {
	defer a.stop()
	return a.body.Close()
}
