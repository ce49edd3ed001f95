package redis

import (
	"testing"

	"github.com/millrace/millrace/internal/redis"
)

// Config starts the servers if necessary, and returns the configuration of a client. With Secure,
// the client is the user of a view.
func (s *Servers) Config(tb testing.TB) redis.Config {
	tb.Helper()
	cfg := redis.Config{Addr: s.Addr(tb)}
	if !s.Secure {
		return cfg
	}
	trust, err := s.certs.Trust()
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Username, cfg.Password, cfg.TLS = User, Password, trust
	return cfg
}
