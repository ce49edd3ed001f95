// Package redis keeps the documents of views in Redis, and is the one place that knows its client. A write is guarded by
// the document's version, so that any redelivery is a no-op and no writer can undo a later one.
package redis

import (
	"context"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Config says where Redis is.
type Config struct {
	// Addr is "host:port"; or "host:port,host:port", seeds of a cluster; or a URL, "redis://user:password@host:port/0", with
	// rediss for TLS.
	Addr string
}

// Client is a pool of connections. It is safe for concurrent use.
type Client struct{ rdb redis.UniversalClient }

// Open connects, and fails where nobody answers before ctx ends.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	opts := &redis.UniversalOptions{Addrs: strings.Split(cfg.Addr, ",")}
	if strings.Contains(cfg.Addr, "://") {
		u, err := redis.ParseURL(cfg.Addr)
		if err != nil {
			return nil, fmt.Errorf("redis: the address is not a URL of the form redis://user:password@host:port/0: %w", err)
		}
		opts = &redis.UniversalOptions{Addrs: []string{u.Addr}, Username: u.Username, Password: u.Password, DB: u.DB, TLSConfig: u.TLSConfig}
	}
	opts.ContextTimeoutEnabled = true // else a call outlives its context by the socket's timeout
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c := &Client{redis.NewUniversalClient(opts)}
	if err := c.rdb.Ping(ctx).Err(); err != nil {
		_ = c.rdb.Close()
		return nil, fmt.Errorf("redis: connect to %s: %w", strings.Join(opts.Addrs, ","), err)
	}
	return c, nil
}

// Close ends all connections.
func (c *Client) Close() error {
	if err := c.rdb.Close(); err != nil {
		return fmt.Errorf("redis: close: %w", err)
	}
	return nil
}
