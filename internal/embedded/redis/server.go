// Package redis is the embedded Redis: a server on loopback in this process. It speaks the Redis
// protocol, implements the commands that views need, and stores its data in LevelDB files.
//
// Server accepts commands. Each one runs in a tx on the store (store.go, tx.go): commands.go
// implements the commands, and script.go runs Lua scripts. trim.go repairs the files after a kill.
//
// Invariants:
//
//   - Start loads no data, so its time and memory do not depend on the number of documents.
//   - A command or script is atomic, and acknowledged writes survive a killed process.
//   - After a power cut the data may be older, but it is consistent: positions are never ahead of
//     documents.
//   - Damaged files are set aside, and the server continues empty. Clients must expect that of any
//     Redis. A view that has lost its documents is rebuilt from the log.
package redis

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/alicebob/miniredis/v2/server"
)

// Config configures a Server.
type Config struct {
	// Addr is a loopback address. Empty or port 0 selects a free port.
	Addr string
	// Dir holds the data and must not be shared. If empty, data is kept in memory and lost on
	// Close.
	Dir    string
	Logger *slog.Logger // nil means slog.Default()
}

// Server is a running server.
type Server struct {
	server *server.Server
	store  *store
	addr   string
}

// Start starts a server, which runs until Close. ctx bounds the address lookup only.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := checkLoopback(ctx, cfg.Addr); err != nil {
		return nil, fmt.Errorf("embedded redis: %w", err)
	}
	// Take the address first, so that a second process with the same one fails before it opens the
	// files.
	srv, err := server.NewServer(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("embedded redis: listen on %s: %w", cfg.Addr, err)
	}
	data, err := openStore(cfg.Dir, cfg.Logger)
	if err != nil {
		srv.Close()
		return nil, fmt.Errorf("embedded redis: open %s: %w", cfg.Dir, err)
	}
	s := &Server{srv, data, srv.Addr().String()}
	srv.SetPreHook(s.serve)
	return s, nil
}

// Damage returns why files were set aside since the start, or nil if they were not.
func (s *Server) Damage() error {
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	return s.store.damage
}

// serve handles one command. It reports true: no command is left for the library. EVAL is not in
// commands, because a script is a transaction of its own.
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
	// Commands that write need the exclusive lock and a batch.
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

// checkLoopback returns an error unless addr is a loopback address: the server has no access
// control.
func checkLoopback(ctx context.Context, addr string) error {
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
			return fmt.Errorf("address %q is not a loopback address, which is required because "+
				"the embedded server has no access control", addr)
		}
	}
	return nil
}

// Addr returns the host:port that clients connect to.
func (s *Server) Addr() string { return s.addr }

// Close closes all connections and the data files.
func (s *Server) Close() {
	s.server.Close()
	if err := s.store.close(); err != nil {
		s.store.log.Warn("embedded redis: close", "error", err) // acknowledged writes are in the files
	}
}
