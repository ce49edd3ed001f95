// Package app is the wiring: it starts what the roles of a process need, and stops it again.
//
// modules.go is the list of services and views; the rest of the package iterates over it and names
// none of them. roles.go says which role needs which part. Start opens the parts in a fixed order:
// embedded servers where the configuration names no real ones, stores, views, the lake, landers,
// the SQL engine, relays, and last the listeners. Close stops them in reverse order. A part that
// ends by itself fails the process: Failed is closed, and Close returns the reason.
//
// App also implements what needs all parts: status, verify, readiness and rebuild. Only the command
// line and tests import this package.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/internal/settings"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// App is a running process with some roles, or all.
type App struct {
	modules   Modules
	cfg       config.Config
	log       *slog.Logger
	roles     []Role
	wanted    map[part]bool
	listeners map[string]net.Listener // api, admin
	tokens    *auth.Tokens            // nil: no token is asked for
	gate      *server.Gate            // of commands, queries and SQL
	slots     *server.Slots           // of SQL
	metrics   *telemetry.Metrics

	kafka     kafka.Config
	registry  *registry.Client  // nil: none is named
	decoder   *registry.Decoder // nil: knows plain values only
	admin     *kafka.Admin
	boot      string                      // ends the transactional ids; see embedded kafka
	stores    map[string]eventstore.Store // by aggregate
	seals     *relay.Seals                // nil without the log
	relays    map[string]*relay.Relay     // by aggregate, where they run here
	published *relay.Follower             // where they run elsewhere
	viewSinks *Sinks
	views     []*view
	lake      *lake.Lake
	sql       *lakesql.SQL

	settingsMu sync.Mutex
	settings   map[string][]settings.Fault // by server, as last looked at

	addresses map[string]string // of the servers, for people
	stops     []func() error    // undo what was started, last first
	caughtUp  atomic.Bool       // the views have applied what stood on the log at the start
	draining  atomic.Bool
	failOnce  sync.Once
	failed    chan struct{}
	failure   error
}

// Start starts what the roles need. When it returns without an error commands are taken; /readyz tells when everything
// of this process does its work. ctx bounds the start only: end the process's work with Close.
func Start(ctx context.Context, cfg config.Config, roles []Role, log *slog.Logger) (*App, error) {
	if err := checkRoles(cfg, roles); err != nil {
		return nil, err
	}
	return start(ctx, Shop(), cfg, roles, log)
}

// newApp returns a process in which nothing has been started.
func newApp(m Modules, cfg config.Config, roles []Role, log *slog.Logger) *App {
	p := &App{
		modules: m, cfg: cfg, log: log, roles: roles, wanted: wanted(roles),
		listeners: map[string]net.Listener{}, metrics: telemetry.New(),
		stores: map[string]eventstore.Store{}, relays: map[string]*relay.Relay{},
		settings: map[string][]settings.Fault{}, addresses: map[string]string{},
		failed: make(chan struct{}),
	}
	p.viewSinks = &Sinks{app: p}
	return p
}

func start(ctx context.Context, m Modules, cfg config.Config, roles []Role, log *slog.Logger) (*App, error) {
	p := newApp(m, cfg, roles, log)
	if len(embedded(cfg, p.wanted)) > 0 {
		p.wanted[folder] = true
	}
	for _, step := range []struct {
		part  part
		name  string
		start func(context.Context) error
	}{
		{folder, "data folder", p.startFolder},
		{serving, "addresses", p.startListeners}, // early: a taken port should not cost the start of all the rest
		{stores, "event stores", p.startStores},
		{logPart, "kafka", p.startKafka},
		{viewSinks, "views", p.openViews},
		{tables, "lake", p.startLake},
		{serving, "settings of servers", p.startSettings}, // before anything is written
		{landing, "landing", p.startLanding},
		{engine, "sql engine", p.startEngine},
		{runners, "views", p.startRunners},
		{followers, "views", p.startFollowers},
		{relays, "relays", p.startRelays},
		{serving, "server", p.startServers},
	} {
		if !p.wanted[step.part] {
			continue
		}
		if err := step.start(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", step.name, err), p.Close())
		}
	}
	return p, nil
}

func (p *App) has(r Role) bool { return slices.Contains(p.roles, r) }

// Addr is the HOST:PORT of commands, queries and SQL; empty where no role has them.
func (p *App) Addr() string { return p.addr("api") }

// AdminAddr is the HOST:PORT of health, metrics and admin.
func (p *App) AdminAddr() string { return p.addr("admin") }

func (p *App) addr(listener string) string {
	if l := p.listeners[listener]; l != nil {
		return l.Addr().String()
	}
	return ""
}

// Failed is closed when a part that the system cannot do without has ended; Close then says why.
func (p *App) Failed() <-chan struct{} { return p.failed }

// Close stops everything in the reverse order of the start: the listeners first, the stores last. It returns what made the
// system fail, if anything did, and what went wrong in stopping.
func (p *App) Close() error {
	p.draining.Store(true)
	if p.cfg.Drain > 0 && len(p.stops) > 0 && p.failure == nil {
		time.Sleep(p.cfg.Drain) // whoever sends calls here looks at readiness now and then, and must see it go first
	}
	var errs []error
	for i := len(p.stops) - 1; i >= 0; i-- {
		errs = append(errs, p.stops[i]())
	}
	p.stops = nil
	return errors.Join(append([]error{p.failure}, errs...)...)
}

// onStop adds what undoes a step of the start.
func (p *App) onStop(stop func() error) { p.stops = append(p.stops, stop) }

// background runs a part until the system stops. A part that ends before, with or without an error, fails the system.
func (p *App) background(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := run(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("it ended by itself")
			}
			p.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
	p.onStop(func() error {
		cancel()
		<-done
		return nil
	})
}

func (p *App) fail(err error) {
	p.failOnce.Do(func() {
		p.log.Error("a part of the system failed; stopping", "error", err)
		p.failure = err
		close(p.failed)
	})
}

// startFolder takes the data folder for this process. The kernel lets go of the lock however the process ends.
func (p *App) startFolder(context.Context) error {
	if err := os.MkdirAll(p.cfg.Data, 0o750); err != nil {
		return err
	}
	lock := flock.New(p.cfg.Path("lock"))
	ok, err := lock.TryLock()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s is in use by another running millrace: stop that one, or name another folder with --data", p.cfg.Data)
	}
	p.onStop(lock.Unlock)
	return nil
}

func (p *App) startListeners(ctx context.Context) error {
	addrs := map[string]string{"admin": p.cfg.Admin.Addr}
	if p.has(Commands) || p.has(Query) || p.has(Iceberg) {
		addrs["api"] = p.cfg.Addr
	}
	for name, addr := range addrs {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return taken(err, addr, map[string]string{"api": "--addr (or the setting addr)", "admin": "--admin-addr (or the setting admin.addr)"}[name])
		}
		p.listeners[name] = l
		p.addresses["millrace "+name] = l.Addr().String()
		p.onStop(func() error {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) { // the server has closed it already
				return err
			}
			return nil
		})
	}
	if p.cfg.Auth.Tokens == "" {
		return nil
	}
	granted, err := p.cfg.Auth.Granted()
	if err != nil {
		return err
	}
	if p.tokens, err = auth.Open(p.cfg.Auth.Tokens, p.log); err != nil {
		return err
	}
	if p.tokens.Grant(granted); len(granted) == 0 {
		p.log.Warn("auth.rights names nobody, so every call is refused: say there what the callers of auth.tokens may do")
	}
	return nil
}

// taken adds to an error of a listener what to change where its port is in use.
func taken(err error, addr, setting string) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	return fmt.Errorf("%s is in use, perhaps by another millrace: stop that one, or name another address with %s; port 0 takes a free one: %w",
		addr, setting, err)
}
