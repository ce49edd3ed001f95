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

// door is the address that clients know. It forwards each command to the process that takes
// commands at the moment, and records it in the ledger. It is the load balancer of the deployment,
// and it makes every client, including the importer, a recorded one.
type door struct {
	addr   string
	ledger *ledger
	server *http.Server
	client *http.Transport
	faults chan error // violations that the ledger found

	mu     sync.Mutex
	target string // host:port
	ctx    context.Context
	cut    context.CancelFunc
}

func openDoor(l *ledger) (*door, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &door{
		addr: listener.Addr().String(), ledger: l, faults: make(chan error, 1),
		client: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
	}
	d.ctx, d.cut = context.WithCancel(context.Background())
	d.server = &http.Server{Handler: d, Protocols: new(http.Protocols)}
	d.server.Protocols.SetHTTP1(true)
	d.server.Protocols.SetUnencryptedHTTP2(true)
	go d.server.Serve(listener) //nolint:errcheck // it ends with Close
	return d, nil
}

func (d *door) close() error {
	d.point("")
	d.client.CloseIdleConnections()
	return d.server.Close()
}

// point sends all later calls to another process. Calls in flight to the previous one are cut off,
// and their clients send them again.
func (d *door) point(target string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if target == d.target {
		return
	}
	d.cut()
	d.target = target
	d.ctx, d.cut = context.WithCancel(context.Background())
}

func (d *door) way() (context.Context, string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ctx, d.target
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone
	}
	key, err := d.ledger.sent(r.URL.Path, body)
	if err != nil {
		d.fault(err)
		http.Error(w, err.Error(), http.StatusNotImplemented)
		return
	}
	status, header, answer, err := d.pass(r, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway) // a Connect client treats it as unavailable
		return
	}
	if err := d.ledger.answered(key, r.URL.Path, status == http.StatusOK, answer); err != nil {
		d.fault(err)
	}
	for name, values := range header {
		w.Header()[name] = values
	}
	w.WriteHeader(status)
	_, _ = w.Write(answer) // a client that has gone sends the command again
}

// pass forwards the call and reads its whole answer.
func (d *door) pass(r *http.Request, body []byte) (status int, header http.Header, answer []byte, err error) {
	way, target := d.way()
	if target == "" {
		return 0, nil, nil, errors.New("nobody takes commands")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(way, cancel)()
	request, err := http.NewRequestWithContext(ctx, r.Method, "http://"+target+r.URL.Path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	request.Header = r.Header.Clone()
	response, err := d.client.RoundTrip(request)
	if err != nil {
		return 0, nil, nil, err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end, or broken
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, response.Header, answer, err
}

func (d *door) fault(err error) {
	select {
	case d.faults <- err:
	default: // one is enough
	}
}

// wrong returns the first violation that the ledger has found, or nil.
func (d *door) wrong() error {
	select {
	case err := <-d.faults:
		return err
	default:
		return nil
	}
}
