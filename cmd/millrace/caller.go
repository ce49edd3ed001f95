package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/config"
)

// caller makes requests of subcommands to a running system: by TLS if the configuration has a
// certificate, with a token if it has one. It is also the http.RoundTripper of its clients.
//
// Connections use HTTP/2, with pings. A response can take minutes (a query, a verification), so
// there is no timeout for it. A server that has vanished is noticed by a missing answer to a ping
// instead.
type caller struct {
	// Its addresses may be those of a system on another machine.
	c     config.Config
	tls   *tls.Config
	token string
}

// newCaller returns a caller for the addresses, the token and the authority of a configuration. It
// makes no request.
func newCaller(c config.Config) (caller, error) {
	// Read errors of files now, and not at the first request.
	token, err := c.Auth.Token.Reveal("")
	if err != nil {
		return caller{}, fmt.Errorf("auth.token: %w", err)
	}
	trust, err := config.ClientTLS{Enabled: true, CA: c.Auth.CA}.Client()
	if err != nil {
		return caller{}, fmt.Errorf("auth.ca: %w", err)
	}
	return caller{c, trust, token}, nil
}

// url returns the URL of one of the system's listeners. One that listens on all addresses is
// reached on loopback.
func (c caller) url(addr string) string {
	// "" and 0.0.0.0 are addresses to listen on, but not to connect to.
	if host, port, err := net.SplitHostPort(addr); err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	if c.c.TLS.Cert != "" {
		return "https://" + addr
	}
	return "http://" + addr
}

// api returns the URL of commands, queries and SQL.
func (c caller) api() string { return c.url(c.c.Addr) }

// options returns the options of clients of the command API. Those retry; the other commands do
// not.
func (c caller) options() []client.Option {
	return []client.Option{client.WithToken(c.token), client.WithTLS(c.tls)}
}

// RoundTrip implements http.RoundTripper: it adds the token.
func (c caller) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.token != "" {
		// A RoundTripper must not change its request.
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	// A transport of its own, because the settings differ from the default.
	t := http.DefaultTransport.(*http.Transport).Clone()
	// One connection per request, because a subcommand makes few.
	t.TLSClientConfig, t.DisableKeepAlives = c.tls, true
	// A response may take long without a byte. HTTP/2 pings detect whether the server is still
	// there.
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingTimeout, PingTimeout: pingTimeout}
	// Pings need HTTP/2, which must be enabled explicitly without TLS.
	if r.URL.Scheme == "http" {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return t.RoundTrip(r)
}

// pingTimeout is how long a connection may be idle until it is pinged, and how long the answer to a
// ping may take. Tests shorten it.
var pingTimeout = 10 * time.Second

// http returns a client that adds the token to every request.
func (c caller) http() *http.Client { return &http.Client{Transport: c} }

// admin returns a client of the admin API.
func (c caller) admin() adminv1connect.AdminServiceClient {
	return adminv1connect.NewAdminServiceClient(c.http(), c.url(c.c.Admin.Addr))
}

// listener is one of a system's two listeners.
type listener int

const (
	apiListener   listener = iota // commands, queries, SQL
	adminListener                 // health, metrics, status, verify
)

// caller returns a caller for a command that talks to one listener, by the configuration in force.
// It is an error if flags name only the other listener: the default address of this one probably
// belongs to another system.
//
// Commands that need a listener call it first, so a mistake in the flags is reported before any
// request.
func (a *cli) caller(l listener) (caller, error) {
	// The flags alone are compared: addresses from the configuration belong together.
	switch {
	case l == adminListener && a.addr != "" && a.adminAddr == "":
		return caller{}, fmt.Errorf("--addr %s is not enough: this command calls the admin listener: "+
			"set --admin-addr (`millrace up` prints both addresses; the default port is 7401)", a.addr)
	case l == apiListener && a.adminAddr != "" && a.addr == "":
		return caller{},
			fmt.Errorf("--admin-addr %s is not enough: this command calls the listener for commands and queries: "+
				"set --addr (`millrace up` prints both addresses; the default port is 7400)", a.adminAddr)
	}
	c, err := a.loadConfig()
	if err == nil {
		// Not Check, because the servers may be on another machine.
		err = c.CheckClient()
	}
	if err != nil {
		return caller{}, err
	}
	return newCaller(c)
}

// explain adds a remedy to the errors that mean that no system answers, or that it refuses the
// request.
func explain(err error) error {
	switch {
	// Nothing listens there.
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("cannot connect to millrace: %w: start it with `millrace up`, or set --addr and --admin-addr", err)
	// net/http does not export the error of a missed ping.
	case strings.Contains(err.Error(), "client connection lost"), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the server accepts connections but does not respond: %w: check that the process is not hanging and that the address is Millrace's", err)
	// The system has auth.tokens, and the token of this command is missing or wrong.
	case connect.CodeOf(err) == connect.CodeUnauthenticated:
		return fmt.Errorf("%w: set auth.token, or MILLRACE_AUTH_TOKEN, to the token of a caller", err)
	// The path of the admin API is served by the role admin only.
	case connect.CodeOf(err) == connect.CodeUnimplemented:
		return fmt.Errorf("%w: the process at --admin-addr does not have the role admin", err)
	}
	return err
}
