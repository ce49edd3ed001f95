// Package app wires Millrace together: it starts the components that a process's roles need, and
// stops them.
//
// Shop, in modules.go, is the list of services and views. The rest of the package iterates over it
// and names none of them, so a new service or view is one more line there. roles.go maps each role
// to the components that it needs.
//
// Start opens the components in a fixed order: the addresses, so that a port in use fails early,
// stores, Kafka, views, the lake, landers, the SQL engine, features, relays, and last what serves on the
// addresses. A step starts an embedded server if the configuration names no real one. Each step
// registers how to undo it, and Close runs these in reverse order. A component that ends by itself
// fails the process: Failed is closed, and Close returns the reason.
//
// App also implements what needs all components: status, verify, readiness, authorization and
// rebuild. Only the command line and tests import this package.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/features/history"
	"github.com/millrace/millrace/features/served"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/dependency"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/refusals"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/internal/settings"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/internal/tracing"
	"github.com/millrace/millrace/lake"
	lakesql "github.com/millrace/millrace/lake/sql"
	"github.com/millrace/millrace/readmodels/customer360"
)

// App is a running process with some of the roles, or all of them. The steps of the start set its
// fields, and each step may use what earlier ones have set. Most fields are nil if no role of the
// process needs them.
type App struct {
	modules     Modules
	cfg         config.Config
	log         *slog.Logger
	roles       []Role
	wanted      map[component]bool      // from roles; the components that start opens
	listeners   map[string]net.Listener // by name: api, admin, feast, feast_offline, tracking
	tokens      *auth.Tokens            // nil if no token is required
	limiter     *server.Limiter         // admits commands, queries and SQL under load
	slots       *server.Slots           // bounds each caller's share of SQL
	metrics     *telemetry.Metrics
	lags        telemetry.Lags            // of the sinks, in seconds
	queues      queues                    // of views and processes
	connections map[string]*server.Server // by listener; written by the start only
	tracer      *tracing.Tracer           // nil if nothing is traced

	// Clients of the log. All components of the process share them.
	kafka    kafka.Config
	flags    *switches         // nil if no role of the process reads flags
	registry *registry.Client  // nil if none is configured
	decoder  *registry.Decoder // if nil, only plain values are known
	admin    *kafka.Admin
	// A suffix of the relays' transactional ids. It is new at each start of the embedded broker,
	// and empty with real brokers.
	boot      string
	stores    map[string]eventstore.Store // by aggregate
	seals     *relay.Seals                // nil without Kafka
	relays    map[string]*relay.Relay     // by aggregate, if this process runs them
	published *relay.Follower             // follows relays of other processes
	// dependencies contains the faults of Redis, Elasticsearch, ClickHouse, S3 and the schema registry.
	dependencies *dependency.Set
	viewSinks    *Sinks
	views        []*view
	viewArchive  *viewArchive // what the log has deleted
	processes    []process
	services     []mounted // see commandServices
	lake         *lake.Lake
	sql          *lakesql.SQL
	history      *history.History   // of features; nil without ClickHouse
	facts        *clickhouse.Store  // where history is
	child        *clickhouse.Engine // the embedded engine of SQL and features; nil with a server
	vectors      vectorFeed         // features in memory or in Redis
	profiles     *profiles          // of the vectors
	refusals     *refusals.Follower // who refuses that vectors are answered; nil without customers
	served       *served.Log        // nil: vectors are not logged
	tracking     *tracking.Intake   // nil without the role

	// settingsMu guards settings: the periodic check writes them, and status reads them.
	settingsMu sync.Mutex
	settings   map[string][]settings.Fault // by server, as of the last check

	addresses map[string]string // of the servers, as shown to operators
	stops     []func() error    // undo the steps of the start; called last first
	caughtUp  atomic.Bool       // views have applied what was on the log at the start
	// draining withdraws readiness while calls are still accepted.
	draining atomic.Bool
	// failOnce guards failure, which is written before failed is closed. Read it with reason.
	failOnce sync.Once
	failed   chan struct{}
	failure  error
}

// Start starts what the roles need. Once it returns without an error, commands are accepted.
// /readyz reports when all parts of this process work. ctx bounds the start only; Close ends the
// process's work.
func Start(ctx context.Context, cfg config.Config, roles []Role, log *slog.Logger) (*App, error) {
	if err := checkRoles(cfg, roles); err != nil {
		return nil, err
	}
	return start(ctx, Shop(), cfg, roles, log)
}

// newApp returns an App with nothing started.
func newApp(m Modules, cfg config.Config, roles []Role, log *slog.Logger) *App {
	log = slog.New(tracing.LogHandler(log.Handler()))
	p := &App{
		modules: m, cfg: cfg, log: log, roles: roles, wanted: wanted(roles),
		listeners: map[string]net.Listener{}, metrics: telemetry.New(),
		stores: map[string]eventstore.Store{}, relays: map[string]*relay.Relay{},
		settings: map[string][]settings.Fault{}, addresses: map[string]string{},
		connections: map[string]*server.Server{},
		failed:      make(chan struct{}),
	}
	// Sinks registers its servers with the App, so each refers to the other.
	p.dependencies = dependency.NewSet(dependency.Settings{FailureRate: cfg.Dependencies.FailureRate,
		OpenFor: cfg.Dependencies.OpenFor, Concurrency: cfg.Dependencies.Concurrency})
	p.measureDependencies()
	p.viewSinks = &Sinks{app: p, members: customer360.NewMembers()}
	return p
}

// start runs the steps in order, each only if a part of the roles needs it. If one fails, it undoes
// the earlier ones. The order is that of dependence, except where a comment gives another reason.
func start(ctx context.Context, m Modules, cfg config.Config, roles []Role, log *slog.Logger) (*App, error) {
	p := newApp(m, cfg, roles, log)
	// Embedded servers keep their files in the data folder, so this process must own it.
	if len(embedded(cfg, p.wanted)) > 0 {
		p.wanted[folder] = true
	}
	for _, step := range []struct {
		component component
		name      string
		start     func(context.Context) error
	}{
		{folder, "data folder", p.startFolder},
		// Early, so that a taken port fails the start before the slow steps.
		{serving, "addresses", p.startListeners},
		{serving, "traces", p.startTraces},
		{stores, "event stores", p.startStores},
		{eventLog, "kafka", p.startKafka},
		{runtimeFlags, "flags", p.startFlags},
		{viewSinks, "views", p.openViews},
		{tables, "lake", p.startLake},
		{vectors, "features", p.openVectors},
		// Before anything is written, because a wrong setting can lose data.
		{serving, "settings of servers", p.startSettings},
		{landing, "landing", p.startLanding},
		{engine, "sql engine", p.startEngine},
		{featureTables, "features", p.openHistory},
		{featureFeeds, "features", p.startHistory},
		{runners, "views", p.startRunners},
		{runners, "processes", p.startProcesses},
		{followers, "views", p.startFollowers},
		{vectors, "features", p.startVectors},
		{vectors, "features", p.startProfiles},
		{relays, "relays", p.startRelays},
		{intake, "tracking", p.startTracking},
		{serving, "server", p.startServers},
	} {
		if !p.wanted[step.component] {
			continue
		}
		if err := step.start(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", step.name, err), p.Close())
		}
	}
	return p, nil
}

// has reports whether this process has a role.
func (p *App) has(r Role) bool { return slices.Contains(p.roles, r) }

// Addr is the HOST:PORT of commands, queries and SQL. It is empty if no role serves them.
func (p *App) Addr() string { return p.addr("api") }

// AdminAddr is the HOST:PORT of health, metrics and admin.
func (p *App) AdminAddr() string { return p.addr("admin") }

// TrackingAddr is the HOST:PORT of the intake of tracking clients. It is empty without the role.
func (p *App) TrackingAddr() string { return p.addr("tracking") }

// addr returns the actual address of a listener, with the port that was chosen for port 0.
func (p *App) addr(listener string) string {
	if l := p.listeners[listener]; l != nil {
		return l.Addr().String()
	}
	return ""
}

// Failed is closed when a part has failed that the system cannot work without. Close then returns
// the reason.
func (p *App) Failed() <-chan struct{} { return p.failed }

// reason returns the failure, or nil if nothing has failed so far.
func (p *App) reason() error {
	select {
	case <-p.failed:
		return p.failure
	default:
		return nil
	}
}

// Close stops everything in the reverse order of the start: the listeners first, the stores last.
// It returns the reason if the system has failed, joined with the errors of stopping.
func (p *App) Close() error {
	p.draining.Store(true)
	if p.cfg.Drain > 0 && len(p.stops) > 0 && p.reason() == nil {
		// Load balancers poll readiness. They must see it withdrawn before connections are refused.
		time.Sleep(p.cfg.Drain)
	}
	var errs []error
	for i := len(p.stops) - 1; i >= 0; i-- {
		// Continue after an error, so that every part is stopped.
		errs = append(errs, p.stops[i]())
	}
	p.stops = nil
	return errors.Join(append([]error{p.reason()}, errs...)...)
}

// onStop registers a function that undoes a step of the start. Each step registers it as soon as it
// has succeeded, so that a failure of a later step undoes it.
func (p *App) onStop(stop func() error) { p.stops = append(p.stops, stop) }

// background runs a part until the system stops. A part that ends before that, with or without an
// error, fails the system.
//
// Its stop blocks until run has returned. So the stops of earlier steps can close what run uses.
func (p *App) background(name string, run func(context.Context) error) {
	// Not the context of the start, which may have a deadline.
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := run(ctx)
		// If ctx is done, Close has ended it, and its error is of no interest.
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("ended unexpectedly")
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

// fail records the first failure and announces it. Later failures are usually consequences of the
// first.
func (p *App) fail(err error) {
	p.failOnce.Do(func() {
		p.log.Error("component failed; shutting down", "error", err)
		p.failure = err
		close(p.failed)
	})
}

// startFolder locks the data folder for this process. The kernel releases the lock however the
// process ends.
func (p *App) startFolder(context.Context) error {
	if err := os.MkdirAll(p.cfg.Data, 0o750); err != nil {
		return err
	}
	// Two processes on the same files would corrupt them.
	lock := flock.New(p.cfg.Path("lock"))
	ok, err := lock.TryLock()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("data folder %s is in use by another millrace process: stop it, or set --data to another folder", p.cfg.Data)
	}
	p.onStop(lock.Unlock)
	return nil
}

// startListeners opens the listeners, and loads tokens and rights. Nothing is served yet:
// connections wait in the kernel's queue until startServers.
func (p *App) startListeners(ctx context.Context) error {
	// Every process has the admin listener, because probes and metrics need it.
	addrs := map[string]string{"admin": p.cfg.Admin.Addr}
	if p.has(Commands) || p.has(Query) || p.has(Iceberg) || p.has(Features) {
		addrs["api"] = p.cfg.Addr
	}
	if p.has(Features) {
		maps.Copy(addrs, p.feastAddrs())
	}
	if p.has(Tracking) {
		addrs["tracking"] = p.cfg.Tracking.Addr
	}
	for name, addr := range addrs {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return addressInUse(err, addr, map[string]string{"api": "--addr", "admin": "--admin-addr",
				"feast": "features.feast_addr", "feast_offline": "features.feast_offline_addr",
				"tracking": "--tracking-addr"}[name])
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
	// Parse the rights before the tokens are in use, so that a mistake fails the start.
	granted, err := p.cfg.Auth.Granted()
	if err != nil {
		return err
	}
	if p.tokens, err = auth.Open(p.cfg.Auth.Tokens, p.log); err != nil {
		return err
	}
	// Tokens without rights are allowed, but they are hardly intended.
	if p.tokens.Grant(granted); len(granted) == 0 {
		p.log.Warn("auth.rights is empty, so every call is denied: grant rights to the callers in auth.tokens")
	}
	return nil
}

// addressInUse adds to a listener's error which setting to change, if the port is in use.
func addressInUse(err error, addr, setting string) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	return fmt.Errorf("%s is in use, perhaps by another millrace process: stop it, or set %s to another address (port 0 selects a free port): %w",
		addr, setting, err)
}
