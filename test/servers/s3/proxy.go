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

// Fault is what becomes of a call. The zero Fault is none.
type Fault struct {
	Delay  time.Duration // before the call continues
	Status int           // the answer, 500 or 503, from which the server never hears of the call
	Lost   bool          // the server does the work, and the connection breaks instead of bringing the answer
}

// Proxy is between a server and its clients, at an address of its own, and breaks the calls that a
// test chooses.
type Proxy struct {
	Endpoint string // http://host:port

	server *http.Server
	served chan struct{}
	to     *http.Transport

	mu     sync.Mutex
	choose func(*http.Request) Fault
}

// lost is the context's key that tells to drop the answer.
type lost struct{}

// NewProxy returns a proxy to an endpoint that breaks nothing yet.
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
		Endpoint: "http://" + l.Addr().String(), served: make(chan struct{}),
		to: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	}
	forward := &httputil.ReverseProxy{
		Transport: p.to,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // the client has signed it
		},
		ModifyResponse: func(r *http.Response) error {
			if r.Request.Context().Value(lost{}) == nil {
				return nil
			}
			_, err := io.Copy(io.Discard, r.Body) // the work is done
			return errors.Join(errors.New("the answer is lost"), err)
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
			_, _ = io.WriteString(w, "<Error><Code>InternalError</Code><Message>broken on purpose</Message></Error>") // or the client is gone
			return
		}
		if f.Lost {
			r = r.WithContext(context.WithValue(r.Context(), lost{}, true))
		}
		forward.ServeHTTP(w, r)
	})}
	go func() {
		_ = p.server.Serve(l) // until Close
		close(p.served)
	}()
	return p, nil
}

// Break has a function choose each call's fault, from its method and path: /bucket/key. It is
// called by one call at a time. nil breaks nothing more.
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

// Close ends the proxy and the calls under way.
func (p *Proxy) Close() error {
	err := p.server.Close()
	<-p.served
	p.to.CloseIdleConnections()
	return err
}
