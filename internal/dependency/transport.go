package dependency

import (
	"context"
	"errors"
	"net/http"
)

// Transport returns a transport that guards each request until its answer begins. Answers that say that
// the server is overloaded or away count as failures. If the callers choose deadlines that the server
// need not meet, as those of a user's SQL, endless has to be true: then only a server without a
// connection fails.
func (d *Dependency) Transport(next http.RoundTripper, endless bool) http.RoundTripper {
	if d == nil {
		return next
	}
	return transport{d, next, endless}
}

type transport struct {
	of      *Dependency
	next    http.RoundTripper
	endless bool
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	c, err := t.of.begin(req.Context())
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // a RoundTripper always closes it
		}
		return nil, err
	}
	res, err := t.next.RoundTrip(req)
	o := c.outcome(err)
	switch {
	case err == nil && sick(res.StatusCode):
		o = failed
	case err != nil && t.endless && (errors.Is(err, context.DeadlineExceeded) || req.Context().Err() != nil):
		o = givenUp
	}
	c.end(o)
	return res, err
}

// sick reports whether a status says that the server cannot work. 500 does not: servers use it for the
// request's own faults, too.
func sick(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// CloseIdleConnections closes those of the transport.
func (t transport) CloseIdleConnections() {
	if idle, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		idle.CloseIdleConnections()
	}
}
