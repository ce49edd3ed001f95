// Package redis is the Redis of the embedded default: a server in this process that speaks Redis' wire protocol on loopback, knows the
// commands that views need, and keeps what it holds in a folder, in LevelDB's files.
//
// A start loads nothing, so it takes no longer with a million documents than with none, and takes a few tens of megabytes of memory
// whatever it holds. What was answered is there after the process was killed; after a power cut it may be an older state, but a
// whole one: positions never run ahead of documents. Files that are damaged are set aside, and clients find the server empty, which
// they have to reckon with in any Redis: a view that has lost its documents is read again from the log.
package redis

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/alicebob/miniredis/v2/server"
)

// Config says where the server listens, and where it keeps what it holds.
type Config struct {
	// Addr is a loopback address. Empty or port 0 takes a free port.
	Addr string
	// Dir is a folder that is the server's alone. Empty: it keeps everything in memory, and Close forgets it.
	Dir    string
	Logger *slog.Logger // slog.Default() where nil
}

// Server is a running server.
type Server struct {
	server *server.Server
	store  *store
	addr   string
}

// Start serves until Close. ctx bounds the look-up of the address.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := loopback(ctx, cfg.Addr); err != nil {
		return nil, fmt.Errorf("embedded redis: %w", err)
	}
	srv, err := server.NewServer(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("embedded redis: listen on %s: %w", cfg.Addr, err)
	}
	held, err := openStore(cfg.Dir, cfg.Logger)
	if err != nil {
		srv.Close()
		return nil, fmt.Errorf("embedded redis: open %s: %w", cfg.Dir, err)
	}
	s := &Server{srv, held, srv.Addr().String()}
	srv.SetPreHook(s.serve)
	return s, nil
}

// Damage returns why files were set aside since the start, or nil if they were not.
func (s *Server) Damage() error {
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	return s.store.damage
}

// serve runs each command that comes.
func (s *Server) serve(peer *server.Peer, name string, args ...string) bool {
	switch name {
	case "QUIT":
		peer.WriteOK()
		peer.Close()
		return true
	case "EVAL":
		answer, err := s.store.eval(args)
		reply(peer, answer, err)
		return true
	}
	within := s.store.view
	if commands[name].writes {
		within = s.store.update
	}
	var answer any
	err := within(func(t *tx) (err error) {
		answer, err = t.call(name, args)
		return err
	})
	reply(peer, answer, err)
	return true
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
func (s *Server) Addr() string { return s.addr }

// Close ends all connections, and lets go of the folder.
func (s *Server) Close() {
	s.server.Close()
	if err := s.store.close(); err != nil {
		s.store.log.Warn("embedded redis: close", "error", err) // what was answered is in the files
	}
}
