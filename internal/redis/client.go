// Package redis keeps the documents of views in Redis, and is the one place that knows its client.
// A write is guarded by the document's version, so that any redelivery is a no-op and no writer can
// undo a later one; and a view that has lost data says so, for Redis may be flushed, restarted
// empty, or fail over to a copy that lacks the last writes.
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
)

// The client logs to standard error what it returns as an error, too.
func init() { logging.Disable() }

// Config says where Redis is, and who we are.
type Config struct {
	// Addr is "host:port"; or "host:port,host:port", seeds of a cluster.
	Addr string
	// Username and Password log in. Without a password nobody logs in; without a name it is the
	// default user.
	Username, Password string
	// TLS is how the server is trusted; nil means no TLS.
	TLS *tls.Config
}

// Client is a pool of connections. It is safe for concurrent use.
type Client struct{ rdb redis.UniversalClient }

// Open connects and logs in. It fails if nobody answers before ctx ends, and where one side does
// not trust the other. No error names the password.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	addrs := strings.Split(cfg.Addr, ",")
	for i, addr := range addrs {
		addrs[i] = strings.TrimSpace(addr)
		if _, _, err := net.SplitHostPort(addrs[i]); err != nil || strings.ContainsAny(addr, "/@") {
			// It is not repeated, for it may be a URL with a password.
			return nil, errors.New("redis: the address is not of the form host:port, or host:port,host:port for a cluster; user and password stand apart")
		}
	}
	c := &Client{redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: addrs, Username: cfg.Username, Password: cfg.Password, TLSConfig: cfg.TLS,
		ContextTimeoutEnabled:    true, // else a call outlives its context by the socket's timeout
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
	if err := c.check(ctx, cfg); err != nil {
		_ = c.rdb.Close()
		return nil, fmt.Errorf("redis: connect to %s: %w", strings.Join(addrs, ","), err)
	}
	return c, nil
}

func (c *Client) check(ctx context.Context, cfg Config) error {
	var untrusted *tls.CertificateVerificationError
	var dial *net.OpError
	switch err := c.rdb.Ping(ctx).Err(); {
	case err == nil:
	case redis.HasErrorPrefix(err, "WRONGPASS"):
		return fmt.Errorf("the user is unknown or the password is wrong: %w", err)
	case redis.HasErrorPrefix(err, "NOAUTH"):
		return fmt.Errorf("it wants a password, and none is set: %w", err)
	case errors.As(err, &untrusted), errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("its certificate is not trusted; name the authority that signed it in the TLS settings: %w", err)
	case errors.As(err, &dial) && dial.Op == "dial":
		return err
	case cfg.TLS != nil: // a plain server takes the greeting for half a line, and waits for the rest
		return fmt.Errorf("no answer over TLS; is this its port for TLS? %w", err)
	default:
		return fmt.Errorf("no answer; does it want TLS? %w", err)
	}
	if _, cluster := c.rdb.(*redis.ClusterClient); cluster {
		return nil
	}
	// Every command of one node's client would be answered with "MOVED" sooner or later. A server
	// that does not tell is none.
	if info, err := c.rdb.Info(ctx, "cluster").Result(); err == nil && strings.Contains(info, "cluster_enabled:1") {
		return errors.New("it is a node of a cluster: give the addresses of several nodes, with commas between")
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
