package s3

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Fault is what happens to a call. The zero Fault is none. A Delay can be combined with the others.
type Fault struct {
	Delay  time.Duration // before the call is forwarded
	Status int           // 500 or 503, answered without forwarding the call
	Lost   bool          // the server handles the call, but the connection breaks before the answer
}

// Proxy is between a server and its clients, and breaks the calls that a test chooses. It shows
// what a client does if storage is slow, refuses a call, or breaks the connection after a call has
// taken effect.
type Proxy struct {
	Endpoint string // http://host:port

	server *http.Server
	// done is closed when the server's goroutine has ended.
	done      chan struct{}
	transport *http.Transport

	// mu guards choose, and is held while choose runs. So calls of choose do not race with each
	// other.
	mu     sync.Mutex
	choose func(*http.Request) Fault
}

// lost is the key of a context value that drops the answer. The context carries it from the handler
// to ModifyResponse, which sees only the request and its response.
type lost struct{}

// NewProxy returns a proxy for an endpoint. It breaks nothing yet.
func NewProxy(endpoint string) (*Proxy, error) {
	target, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		Endpoint: "http://" + l.Addr().String(), done: make(chan struct{}),
		// A connection for each call: a broken one affects no other call. Compression would change
		// the answers' headers.
		transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	}
	forward := &httputil.ReverseProxy{
		Transport: p.transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // the client has signed it
		},
		ModifyResponse: func(r *http.Response) error {
			if r.Request.Context().Value(lost{}) == nil {
				return nil
			}
			_, err := io.Copy(io.Discard, r.Body) // the server has done the work
			return errors.Join(errors.New("the answer is lost"), err)
		},
		// The server recovers this panic and closes the connection without an answer. The default
		// would be an answer with status 502.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p.server = &http.Server{ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f := p.fault(r)
			if f.Delay > 0 {
				select {
				case <-time.After(f.Delay):
				case <-r.Context().Done():
					return
				}
			}
			if f.Status != 0 {
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(f.Status)
				// This fails if the client has gone.
				_, _ = io.WriteString(w, "<Error><Code>InternalError</Code><Message>broken on purpose</Message></Error>")
				return
			}
			if f.Lost {
				r = r.WithContext(context.WithValue(r.Context(), lost{}, true))
			}
			forward.ServeHTTP(w, r)
		})}
	go func() {
		_ = p.server.Serve(l) // until Close
		close(p.done)
	}()
	return p, nil
}

// Break sets the function that chooses each call's fault by its method and path, /bucket/key. It is
// not called concurrently. nil breaks no further calls.
func (p *Proxy) Break(choose func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choose = choose
}

func (p *Proxy) fault(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.choose == nil {
		return Fault{}
	}
	return p.choose(r)
}

// Close stops the proxy and the calls in flight.
func (p *Proxy) Close() error {
	err := p.server.Close()
	<-p.done
	p.transport.CloseIdleConnections()
	return err
}
