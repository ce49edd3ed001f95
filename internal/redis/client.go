// Package redis stores the documents of views in Redis. It is the only package that imports Redis'
// client.
//
// Client is a pool of connections. Documents is one version of a view: documents, references and
// positions. documents.go reads and writes documents, positions.go moves positions, loss.go detects
// lost data, damage.go handles damaged data, and unavailable.go marks errors that pass. Facts is the
// facts of features; see facts.go.
//
// Invariants:
//
//   - A write is guarded by the document's version. So a redelivery is a no-op, and no writer can
//     undo a later write.
//   - A view that has lost data reports ErrLost or has no positions. Redis may be flushed,
//     restarted empty, or fail over to a replica that lacks the last writes. The view is then
//     rebuilt from the log.
package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/millrace/millrace/internal/dependency"
)

// The client would log to standard error what it also returns as an error.
func init() { logging.Disable() }

// Config contains the address of Redis and the credentials.
type Config struct {
	// Addr is "host:port", or "host:port,host:port" with seeds of a cluster.
	Addr string
	// Username and Password authenticate. An empty password means no authentication, and an empty
	// name the default user.
	Username, Password string
	// TLS is the TLS configuration. Nil means no TLS.
	TLS *tls.Config
	// Dependency guards the calls. Nil guards nothing.
	Dependency *dependency.Dependency
}

// Client is a pool of connections. It is safe for concurrent use.
type Client struct{ rdb redis.UniversalClient }

// Open connects and authenticates. It fails if the server does not answer before ctx ends, or if
// one side does not trust the other. Its errors do not contain the password.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	addrs := strings.Split(cfg.Addr, ",")
	for i, addr := range addrs {
		addrs[i] = strings.TrimSpace(addr)
		if _, _, err := net.SplitHostPort(addrs[i]); err != nil || strings.ContainsAny(addr, "/@") {
			// The address is not part of the error, because it may be a URL with a password.
			return nil, errors.New("redis: the address is not of the form host:port, " +
				"or host:port,host:port for a cluster: set user and password separately")
		}
	}
	// Several addresses make it a client of a cluster, and one address a client of a single server.
	c := &Client{redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: addrs, Username: cfg.Username, Password: cfg.Password, TLSConfig: cfg.TLS,
		ContextTimeoutEnabled:    true, // otherwise a call outlives its context by the socket's timeout
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
	if cfg.Dependency != nil {
		c.rdb.AddHook(guardHook{cfg.Dependency}) // around the client's own attempts
	}
	c.rdb.AddHook(unavailableHook{})
	if err := c.check(ctx, cfg); err != nil {
		_ = c.rdb.Close()
		return nil, fmt.Errorf("redis: connect to %s: %w", strings.Join(addrs, ","), err)
	}
	return c, nil
}

// check connects and returns an error that says what to change.
func (c *Client) check(ctx context.Context, cfg Config) error {
	var untrusted *tls.CertificateVerificationError
	var dial *net.OpError
	switch err := c.rdb.Ping(ctx).Err(); {
	case err == nil:
	case redis.HasErrorPrefix(err, "WRONGPASS"):
		return fmt.Errorf("the user is unknown or the password is wrong: %w", err)
	case redis.HasErrorPrefix(err, "NOAUTH"):
		return fmt.Errorf("the server requires a password, but none is set: %w", err)
	case errors.As(err, &untrusted), errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("the server's certificate is not trusted: "+
			"add the authority that signed it to the TLS settings: %w", err)
	case errors.As(err, &dial) && dial.Op == "dial":
		return err
	case cfg.TLS != nil:
		// A server without TLS treats the handshake as an incomplete line and waits for the rest.
		return fmt.Errorf("no response over TLS: is this the server's TLS port? %w", err)
	default:
		return fmt.Errorf("no response: does the server require TLS? %w", err)
	}
	if _, cluster := c.rdb.(*redis.ClusterClient); cluster {
		return nil
	}
	// A node of a cluster would answer commands of a single-node client with MOVED sooner or later.
	// A server that does not support this section of INFO is not one.
	if info, err := c.rdb.Info(ctx, "cluster").Result(); err == nil && strings.Contains(info, "cluster_enabled:1") {
		return errors.New("the server is a node of a cluster: give the addresses of several nodes, separated by commas")
	}
	return nil
}

// Close ends all connections.
func (c *Client) Close() error {
	if err := c.rdb.Close(); err != nil {
		return fmt.Errorf("redis: close: %w", err)
	}
	return nil
}
