// Package server contains what every listener does before a request reaches its handler.
//
// Server serves HTTP on a listener and limits its connections (conns.go). Guard refuses requests
// that a web page made a browser send (browsers.go). Bodies bounds request bodies (bodies.go).
// Under load, Limiter refuses requests by class (limiter.go, admit.go), and Slots shares long work
// fairly among callers (slots.go). Certificate reloads a renewed certificate. Profiles serves Go's
// profiles.
//
// Invariants: everything that a client can make the server hold is bounded, be it connections,
// bytes, requests or time. A refused request has not started, so a client may always retry it.
// Authentication and rights are not here; see internal/auth.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"
)

// These bounds are fixed, because no client needs other ones.
const (
	headerTimeout = 10 * time.Second // for a request's header and for a TLS handshake
	maxHeader     = 64 << 10         // bytes
	maxStreams    = 128              // concurrent calls on one HTTP/2 connection
)

// Config configures a Server.
type Config struct {
	Limits      Limits
	IdleTimeout time.Duration // after which a connection without a request is closed
	TLS         *tls.Config   // nil means plain text
	Logger      *slog.Logger
}

// Server serves HTTP/1.1 and HTTP/2 on one listener.
type Server struct {
	http  *http.Server
	conns *conns
	log   *slog.Logger
}

// New returns a server for h. It does not listen yet.
func New(c Config, h http.Handler) *Server {
	s := &Server{conns: newConns(c.Limits), log: c.Logger}
	s.http = &http.Server{
		Handler: h, TLSConfig: c.TLS, Protocols: new(http.Protocols),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: c.IdleTimeout, MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: c.IdleTimeout,
			WriteByteTimeout: writeTimeout},
		ConnState: s.conns.changed,
		// Errors of single connections are the clients' own, and a scan causes thousands.
		ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	// gRPC needs HTTP/2. Without TLS, clients use it with prior knowledge.
	s.http.Protocols.SetHTTP1(true)
	if c.TLS != nil {
		s.http.Protocols.SetHTTP2(true)
	} else {
		s.http.Protocols.SetUnencryptedHTTP2(true)
	}
	return s
}

// Serve accepts connections from l until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	bounded := &listener{Listener: l, conns: s.conns}
	// The certificate comes from TLSConfig, so ServeTLS needs no files.
	if s.http.TLSConfig != nil {
		return s.http.ServeTLS(bounded, "", "")
	}
	return s.http.Serve(bounded)
}

// Shutdown accepts no more requests and waits for those in progress. If ctx ends first, they are
// aborted, and the error is context.DeadlineExceeded, joined with errors of closing.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.Join(err, s.http.Close())
	}
	return err
}

// Start serves a listener in the background. stop accepts no more requests and waits for those in
// progress for at most drain. cut reports whether any were aborted after that.
func (s *Server) Start(l net.Listener, drain time.Duration) (stop func() (cut bool, err error)) {
	// Buffered, so that the goroutine ends even if stop is never called.
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	return func() (cut bool, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), drain)
		defer cancel()
		if err = s.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
			cut, err = true, nil
		}
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		return cut, err
	}
}

// Connections returns how many connections are open, how many were refused, and how many were
// closed while idle to make room.
func (s *Server) Connections() (open, refused, evicted int) { return s.conns.counts() }

// FileLimit returns how many files and connections this process may open.
func FileLimit() int {
	// An unlimited process gets a finite number as well, so that callers can divide it.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<20 {
		return 1 << 20
	}
	return int(limit.Cur)
}
