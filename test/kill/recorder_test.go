package kill

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
)

// recorder is a reverse proxy in front of the role commands, and the address that clients know. It
// forwards each command to the process that currently runs the role, and records the command and
// its answer in the ledger. So every client, including the importer, is recorded.
type recorder struct {
	addr       string
	ledger     *ledger
	server     *http.Server
	client     *http.Transport
	violations chan error // violations that the ledger found

	mu     sync.Mutex         // guards what follows
	target string             // host:port; empty while no process runs the role
	ctx    context.Context    // of the calls to target
	cut    context.CancelFunc // ends ctx, and so the calls
}

// startRecorder starts a recorder on a free port. It has no target yet.
func startRecorder(l *ledger) (*recorder, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &recorder{
		addr: listener.Addr().String(), ledger: l, violations: make(chan error, 1),
		client: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
	}
	c.ctx, c.cut = context.WithCancel(context.Background())
	c.server = &http.Server{Handler: c, Protocols: new(http.Protocols)}
	c.server.Protocols.SetHTTP1(true)
	c.server.Protocols.SetUnencryptedHTTP2(true)
	go c.server.Serve(listener) //nolint:errcheck // it ends with Close
	return c, nil
}

func (c *recorder) close() error {
	c.forwardTo("")
	c.client.CloseIdleConnections()
	return c.server.Close()
}

// forwardTo sends all later calls to another process. Calls in flight to the previous one are cut
// off, and their clients send them again.
func (c *recorder) forwardTo(target string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if target == c.target {
		return
	}
	c.cut()
	c.target = target
	c.ctx, c.cut = context.WithCancel(context.Background())
}

// destination returns the current target, and a context that ends when the target changes.
func (c *recorder) destination() (context.Context, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ctx, c.target
}

// ServeHTTP records a command before it is forwarded, and its answer before the client gets it.
func (c *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone
	}
	key, err := c.ledger.sent(r.URL.Path, body)
	if err != nil {
		c.report(err)
		http.Error(w, err.Error(), http.StatusNotImplemented)
		return
	}
	status, header, answer, err := c.forward(r, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway) // a Connect client treats it as unavailable
		return
	}
	if err := c.ledger.answered(key, r.URL.Path, status == http.StatusOK, answer); err != nil {
		c.report(err)
	}
	for name, values := range header {
		w.Header()[name] = values
	}
	w.WriteHeader(status)
	_, _ = w.Write(answer) // a client that has gone sends the command again
}

// forward forwards the call and reads its whole answer.
func (c *recorder) forward(r *http.Request, body []byte) (status int, header http.Header, answer []byte, err error) {
	current, target := c.destination()
	if target == "" {
		return 0, nil, nil, errors.New("no process accepts commands")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(current, cancel)()
	request, err := http.NewRequestWithContext(ctx, r.Method, "http://"+target+r.URL.Path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	request.Header = r.Header.Clone()
	response, err := c.client.RoundTrip(request)
	if err != nil {
		return 0, nil, nil, err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end, or broken
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, response.Header, answer, err
}

// report keeps the first violation for the row that is running.
func (c *recorder) report(err error) {
	select {
	case c.violations <- err:
	default: // one is enough
	}
}

// violation returns the first violation that the ledger has found, or nil.
func (c *recorder) violation() error {
	select {
	case err := <-c.violations:
		return err
	default:
		return nil
	}
}
