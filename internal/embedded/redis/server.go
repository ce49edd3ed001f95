// Package redis is the Redis of the embedded default: miniredis, a server in this process that speaks Redis' wire protocol
// on loopback. It keeps nothing on disk. What it holds is rebuilt from the log at start, for the positions of its views are
// gone with the views. Keys do not expire in it: nothing we keep does, and its clock sorts all keys at every command.
package redis

import (
	"context"
	"fmt"
	"net"

	"github.com/alicebob/miniredis/v2"
)

// Config says where the server listens.
type Config struct {
	// Addr is a loopback address. Empty or port 0 takes a free port.
	Addr string
}

// Server is a running server.
type Server struct{ mini *miniredis.Miniredis }

// Start serves an empty Redis until Close. ctx bounds the look-up of the address.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if err := loopback(ctx, cfg.Addr); err != nil {
		return nil, fmt.Errorf("embedded redis: %w", err)
	}
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr(cfg.Addr); err != nil {
		return nil, fmt.Errorf("embedded redis: listen on %s: %w", cfg.Addr, err)
	}
	return &Server{m}, nil
}

// loopback refuses any other address: the server asks nobody who they are.
func loopback(ctx context.Context, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: %w", addr, err)
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return fmt.Errorf("address %q: %w", addr, err)
	}
	for _, ip := range ips {
		if !ip.IP.IsLoopback() {
			return fmt.Errorf("address %q is not a loopback address, and the embedded server has no access control", addr)
		}
	}
	return nil
}

// Addr is the host:port that clients connect to.
func (s *Server) Addr() string { return s.mini.Addr() }

// Close ends all connections and forgets everything.
func (s *Server) Close() { s.mini.Close() }
