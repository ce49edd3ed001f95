package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/internal/server"
)

// drainTimeout bounds calls in progress when the process stops.
const drainTimeout = 15 * time.Second

// serve serves a listener until the process stops. Calls in progress then have drainTimeout to
// finish. It registers the stop of the server, which runs before those of the components that the
// handlers use.
func (p *App) serve(name string, h http.Handler) error {
	// The host name is checked before the body is read.
	return p.serveBodies(name, h, func(bounded http.Handler) http.Handler {
		return server.Guard(p.hosts(name), refuse(connect.CodePermissionDenied, http.StatusForbidden), bounded)
	})
}

// serveBodies serves a handler whose bodies are bounded, behind a guard.
func (p *App) serveBodies(name string, h http.Handler, guard func(http.Handler) http.Handler) error {
	bodies := &server.Bodies{Timeout: p.cfg.Limits.BodyTimeout, MaxBytes: p.cfg.Limits.BodyBytes, Stream: isStream,
		Silence: p.cfg.Limits.IdleTimeout}
	c := server.Config{Limits: connections(p.cfg.Limits, name), IdleTimeout: p.cfg.Limits.IdleTimeout, Logger: p.log}
	if keys := p.cfg.TLS; keys.Cert != "" {
		var err error
		if c.TLS, err = server.Certificate(keys.Cert, keys.Key); err != nil {
			return fmt.Errorf("tls.cert, tls.key: %w", err)
		}
	}
	s := server.New(c, guard(bodies.Guard(h)))
	p.connections[name] = s
	stop := s.Start(p.listeners[name], drainTimeout)
	p.onStop(func() error {
		cut, err := stop()
		if cut {
			p.log.Warn("aborted calls in progress", "listener", name, "after", drainTimeout)
		}
		return err
	})
	return nil
}

// Each listener may use one in so many of the process's open files for connections, up to a maximum.
// The rest is for files and for connections to servers.
const (
	apiShare, apiMost           = 2, 8192
	adminShare, adminMost       = 8, 256
	trackingShare, trackingMost = 4, 8192
)

// connections returns a listener's limits, with defaults from the limit of open files. One address
// gets at most three quarters, so that no single client can use up a listener.
func connections(c config.Limits, listener string) server.Limits {
	// Explicit settings take precedence over the shares.
	limits := server.Limits{Connections: c.Connections, PerAddress: c.PerAddress}
	// The admin listener needs few connections: probes, metrics and operators.
	share, most := apiShare, apiMost
	switch listener {
	case "admin":
		limits.Connections, share, most = c.AdminConnections, adminShare, adminMost
	case "tracking":
		limits.Connections, share, most = c.TrackingConnections, trackingShare, trackingMost
	}
	if limits.Connections == 0 {
		limits.Connections = max(min(server.FileLimit()/share, most), 1)
	}
	if limits.PerAddress == 0 {
		limits.PerAddress = max(limits.Connections*3/4, 1)
	}
	return limits
}

// hosts returns the host names that requests to a listener may use, which guards against DNS
// rebinding. A listener beyond loopback accepts any name by default, because it requires tokens,
// which a page in a browser does not have.
func (p *App) hosts(listener string) server.Hosts {
	var names []string
	// hosts is one setting for both listeners.
	for name := range strings.SplitSeq(p.cfg.Hosts, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	// The address in use, because the configured one may be a name.
	at := p.listeners[listener].Addr()
	beyond := true // reachable from other machines
	if tcp, ok := at.(*net.TCPAddr); ok {
		beyond = !tcp.IP.IsLoopback()
		names = append(names, tcp.IP.String())
	}
	return server.Hosts{Names: names, Any: beyond && p.cfg.Hosts == ""}
}

// refuse returns a function that rejects a request in the format of its protocol. Clients of
// Connect and gRPC need a status that they can decode, and others get plain text.
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

// admit passes requests through a limiter. It rejects others in the format of their protocol.
func admit(limiter *server.Limiter, class func(*http.Request) server.Class, next http.Handler) http.Handler {
	errs := connect.NewErrorWriter()
	return limiter.Admit(class, func(w http.ResponseWriter, r *http.Request, err error) {
		// The limiter's error is overload, the caller's deadline, or a caller that has gone.
		status, answer := http.StatusTooManyRequests, rpc.Overloaded(err)
		switch {
		case errors.Is(err, server.ErrOverloaded):
			w.Header().Set("Retry-After", server.RetryAfter)
		case errors.Is(err, context.DeadlineExceeded):
			status, answer = http.StatusGatewayTimeout, connect.NewError(connect.CodeDeadlineExceeded,
				errors.New("the call's deadline has passed"))
		default:
			status, answer = statusClientGone, connect.NewError(connect.CodeCanceled,
				errors.New("the call was cancelled"))
		}
		switch {
		case errs.IsSupported(r):
			_ = errs.Write(w, r, answer) // a client that is gone needs no answer
		case strings.HasPrefix(r.URL.Path, "/v1/") && r.URL.Path != sqlPath: // the REST catalog, whose prefix is stripped
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			kind := "TooManyRequestsException"
			if status != http.StatusTooManyRequests {
				kind = "ServiceUnavailableException"
			}
			_, _ = fmt.Fprintf(w, `{"error":{"message":%q,"type":%q,"code":%d}}`,
				answer.Code().String()+": "+answer.Message(), kind, status)
		default:
			http.Error(w, answer.Code().String()+": "+answer.Message(), status)
		}
	}, next)
}

// byMethod returns the class of a request to the REST catalog. Only GET and HEAD change nothing.
func byMethod(r *http.Request) server.Class {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return server.Query
	}
	return server.Command
}

// Clients of reflection hold streams open for as long as they like. So these have a limit of their
// own, and do not occupy the limiter.
const (
	reflectionPath = "/grpc.reflection."
	maxReflections = 256
)

// isStream reports whether the body of a request is a stream, which lasts as long as its client
// continues.
func isStream(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, reflectionPath) }

// reflections limits the number of open reflection streams. They bypass the limiter.
func reflections() func(path string, h http.Handler) (string, http.Handler) {
	open := make(chan struct{}, maxReflections)
	errs := connect.NewErrorWriter()
	return func(path string, h http.Handler) (string, http.Handler) {
		return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// A full channel means that the limit is reached.
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
