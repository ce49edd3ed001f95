package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/internal/server"
)

const drainTimeout = 15 * time.Second // for calls under way when the process stops

// serve opens a door until the process stops; then calls under way get some time to end.
func (p *App) serve(name string, h http.Handler) error {
	listener := p.listeners[name]
	bodies := &server.Bodies{Timeout: p.cfg.Limits.BodyTimeout, MaxBytes: p.cfg.Limits.BodyBytes, Stream: isStream, Silence: p.cfg.Limits.IdleTimeout}
	c := server.Config{Limits: connections(p.cfg.Limits, name), IdleTimeout: p.cfg.Limits.IdleTimeout, Logger: p.log}
	if keys := p.cfg.TLS; keys.Cert != "" {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: (&certificate{cert: keys.Cert, key: keys.Key}).get}
		if _, err := c.TLS.GetCertificate(nil); err != nil {
			return err
		}
	}
	s := server.New(c, server.Guard(p.hosts(name), refuse(connect.CodePermissionDenied, http.StatusForbidden), bodies.Guard(h)))
	p.countConnections(name, s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	p.onStop(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		err := s.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			p.log.Warn("calls under way were cut off", "door", name, "after", drainTimeout)
			err = nil
		}
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		return err
	})
	return nil
}

// What each door may hold of the files that the process may have open. The rest is for files, and for connections to
// servers.
const (
	apiShare, apiMost     = 2, 8192
	adminShare, adminMost = 8, 256
)

func connections(c config.Limits, door string) server.Limits {
	limits := server.Limits{Connections: c.Connections, PerAddress: c.PerAddress}
	share, most := apiShare, apiMost
	if door == "admin" {
		limits.Connections, share, most = c.AdminConnections, adminShare, adminMost
	}
	if limits.Connections == 0 {
		limits.Connections = max(min(server.FileLimit()/share, most), 1)
	}
	if limits.PerAddress == 0 {
		limits.PerAddress = max(limits.Connections*3/4, 1)
	}
	return limits
}

// hosts are the names by which a door may be called. Beyond loopback it asks for tokens, which no page of a browser
// has.
func (p *App) hosts(door string) server.Hosts {
	var names []string
	for name := range strings.SplitSeq(p.cfg.Hosts, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	at := p.listeners[door].Addr()
	beyond := true
	if tcp, ok := at.(*net.TCPAddr); ok {
		beyond = !tcp.IP.IsLoopback()
		names = append(names, tcp.IP.String())
	}
	return server.Hosts{Names: names, Any: beyond && p.cfg.Hosts == ""}
}

// refuse answers in the manner of the request's protocol.
func refuse(code connect.Code, status int) func(w http.ResponseWriter, r *http.Request, why string) {
	errs := connect.NewErrorWriter()
	return func(w http.ResponseWriter, r *http.Request, why string) {
		if errs.IsSupported(r) {
			_ = errs.Write(w, r, connect.NewError(code, errors.New(why))) // a client that is gone needs no answer
			return
		}
		http.Error(w, why, status)
	}
}

// inTurn lets requests through the gate, and turns them away in the manner of their protocol.
func inTurn(gate *server.Gate, class func(*http.Request) server.Class, next http.Handler) http.Handler {
	errs := connect.NewErrorWriter()
	return gate.Admit(class, func(w http.ResponseWriter, r *http.Request, err error) {
		status, answer := http.StatusTooManyRequests, rpc.Overloaded(err)
		switch {
		case errors.Is(err, server.ErrOverloaded):
			w.Header().Set("Retry-After", server.RetryAfter)
		case errors.Is(err, context.DeadlineExceeded):
			status, answer = http.StatusGatewayTimeout, connect.NewError(connect.CodeDeadlineExceeded, errors.New("the call's deadline has passed"))
		default:
			status, answer = statusClientGone, connect.NewError(connect.CodeCanceled, errors.New("the call was cancelled"))
		}
		switch {
		case errs.IsSupported(r):
			_ = errs.Write(w, r, answer) // a client that is gone needs no answer
		case strings.HasPrefix(r.URL.Path, "/v1/") && r.URL.Path != sqlPath: // the catalog's, below its own path
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"error":{"message":%q,"type":"TooManyRequestsException","code":%d}}`, "resource_exhausted: "+err.Error(), status)
		default:
			http.Error(w, answer.Code().String()+": "+answer.Message(), status)
		}
	}, next)
}

// byMethod is the class of the catalog's requests.
func byMethod(r *http.Request) server.Class {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return server.Query
	}
	return server.Command
}

// Reflection is asked over streams that last as long as a client likes.
const (
	reflectionPath = "/grpc.reflection."
	maxReflections = 256
)

func isStream(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, reflectionPath) }

// reflections bounds the streams of reflection, which wait for no turn.
func reflections() func(path string, h http.Handler) (string, http.Handler) {
	open := make(chan struct{}, maxReflections)
	errs := connect.NewErrorWriter()
	return func(path string, h http.Handler) (string, http.Handler) {
		return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case open <- struct{}{}:
				defer func() { <-open }()
				h.ServeHTTP(w, r)
			default:
				_ = errs.Write(w, r, rpc.Overloaded(server.ErrOverloaded))
			}
		})
	}
}

// countConnections tells of a door's connections, and of what was turned away.
func (p *App) countConnections(door string, s *server.Server) {
	for state, read := range map[string]func() int{
		"open":    func() int { open, _, _ := s.Connections(); return open },
		"refused": func() int { _, refused, _ := s.Connections(); return refused },
		"evicted": func() int { _, _, evicted := s.Connections(); return evicted },
	} {
		p.metrics.Gauge("millrace_"+door+"_connections_"+state, "Connections to the listener "+door+": "+state+".", func() float64 { return float64(read()) })
	}
}

// certificate is read again when its file changes, so that it can be renewed without a restart.
type certificate struct {
	cert, key string // PEM files

	mu      sync.Mutex
	pair    *tls.Certificate
	changed time.Time
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.cert)
	if err == nil && (c.pair == nil || !info.ModTime().Equal(c.changed)) {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(c.cert, c.key); err == nil {
			c.pair, c.changed = &pair, info.ModTime()
		}
	}
	if c.pair == nil {
		return nil, fmt.Errorf("tls.cert, tls.key: %w", err)
	}
	return c.pair, nil // the last good one, while a new one is being written
}
