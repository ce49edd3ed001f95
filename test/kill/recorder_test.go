package kill

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
)

// recorder is a reverse proxy in front of the role commands, and the address that clients know. It
// forwards each command to a process that currently runs the role, and records the command and
// its answer in the ledger. So every client, including the importer, is recorded.
type recorder struct {
	addr       string
	ledger     *ledger
	server     *http.Server
	client     *http.Transport
	violations chan error // violations that the ledger found

	mu      sync.Mutex // guards what follows
	targets []*target  // one for each of the role's processes that are to run
	turn    int        // counts the calls, which go to the targets in turn
}

// target is a process that takes commands.
type target struct {
	role *role  // that the process runs
	addr string // host:port
	ctx  context.Context
	cut  context.CancelFunc // ends ctx, and so the calls to the process
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
	c.server = &http.Server{Handler: c, Protocols: new(http.Protocols)}
	c.server.Protocols.SetHTTP1(true)
	c.server.Protocols.SetUnencryptedHTTP2(true)
	go c.server.Serve(listener) //nolint:errcheck // it ends with Close
	return c, nil
}

func (c *recorder) close() error {
	c.mu.Lock()
	for _, t := range c.targets {
		t.cut()
	}
	c.targets = nil
	c.mu.Unlock()
	c.client.CloseIdleConnections()
	return c.server.Close()
}

// forwardTo sends later calls to another process of a role. Calls in flight to the previous one are cut
// off, and their clients send them again.
func (c *recorder) forwardTo(r *role, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.targets, func(t *target) bool { return t.role == r })
	switch {
	case at < 0:
		at = len(c.targets)
		c.targets = append(c.targets, nil)
	case c.targets[at].addr == addr:
		return
	default:
		c.targets[at].cut()
	}
	t := &target{role: r, addr: addr}
	t.ctx, t.cut = context.WithCancel(context.Background())
	c.targets[at] = t
}

// destinations returns the targets, in the order in which a call tries them.
func (c *recorder) destinations() []*target {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.targets) == 0 {
		return nil
	}
	c.turn++
	first := c.turn % len(c.targets)
	return slices.Concat(c.targets[first:], c.targets[:first])
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

// forward forwards the call to the first process that can be reached, and reads its whole answer. The
// same command may reach two processes, as behind any load balancer that retries.
func (c *recorder) forward(r *http.Request, body []byte) (
	status int, header http.Header, answer []byte, err error,
) {
	err = errors.New("no process accepts commands")
	for _, t := range c.destinations() {
		if status, header, answer, err = c.call(t, r, body); err == nil || r.Context().Err() != nil {
			break
		}
	}
	return status, header, answer, err
}

// call forwards the call to one process.
func (c *recorder) call(t *target, r *http.Request, body []byte) (
	status int, header http.Header, answer []byte, err error,
) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	request, err := http.NewRequestWithContext(ctx, r.Method, "http://"+t.addr+r.URL.Path, bytes.NewReader(body))
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
