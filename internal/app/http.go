package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	"github.com/millrace/millrace/gen/millrace/flags/v1/flagsv1connect"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/lake/restcatalog"
)

const (
	// Bounds a request to a store or to Kafka on behalf of an operator.
	requestTimeout = 15 * time.Second
	// Bounds those on behalf of a scrape. It is well below the usual timeout of scrapes, which is ten
	// seconds: if one server does not answer, all other metrics must still arrive.
	scrapeTimeout = 3 * time.Second
	// Bounds one on behalf of a readiness probe.
	probeTimeout = 2 * time.Second
)

// startServers serves both listeners: api for all callers, admin for operators. It is the last step
// of the start, so every handler finds what it needs.
func (p *App) startServers(ctx context.Context) error {
	p.limiter = server.NewLimiter(p.cfg.Limits.Calls)
	p.slots = server.NewSlots(p.cfg.Limits.SQL, maxQueuedQueries, p.cfg.Limits.SQLWait)
	p.measureServers()
	if p.listeners["api"] != nil {
		// The order of the layers: authentication, then the checks of the request's form, then each
		// handler's own right and admission.
		api := p.tokens.Guard(rpc.Intake(p.api()))
		if p.has(Iceberg) {
			var err error
			// The catalog is a different handler tree, because its protocol has its own errors and
			// tokens.
			if api, err = p.withTables(ctx, api); err != nil {
				return err
			}
		}
		if err := p.serve("api", api); err != nil {
			return err
		}
	}
	if p.listeners["feast"] != nil {
		if err := p.serve("feast", p.feast()); err != nil {
			return err
		}
	}
	if p.listeners["feast_offline"] != nil {
		h, err := p.feastOffline()
		if err != nil {
			return err
		}
		if err := p.serve("feast_offline", h); err != nil {
			return err
		}
	}
	if p.tracking != nil {
		if err := p.serveTracking(); err != nil {
			return err
		}
	}
	if err := p.serve("admin", p.tokens.Guard(rpc.Intake(p.operations()), "/healthz", "/readyz",
		"/metrics")); err != nil {
		return err
	}
	// After the listeners, because all metrics are registered then.
	if addr := p.cfg.Telemetry.StatsD; addr != "" {
		p.background("statsd", func(ctx context.Context) error {
			p.metrics.StatsD(ctx, addr, p.log)
			return nil
		})
	}
	// Queries are refused until the views have caught up; see whenCaughtUp.
	if len(p.views) > 0 {
		p.background("readiness", p.awaitViews)
	}
	return nil
}

// api returns the handler of every service of this process by Connect, gRPC and gRPC-Web, with
// health, reflection and SQL. A process that lacks a role does not have its paths. It answers 404
// there, which Connect's clients report as unimplemented.
func (p *App) api() http.Handler {
	mux := http.NewServeMux()
	// Of queries: commandServices measures the commands.
	measured := connect.WithInterceptors(p.measured(server.Query)...)
	var services []string
	// Every service of the modules, on its own path.
	if p.has(Commands) {
		for _, s := range p.commandServices() {
			mux.Handle(p.guarded(s.path, s.handler))
			services = append(services, strings.Trim(s.path, "/"))
		}
	}
	if p.has(Query) {
		opts := append([]connect.HandlerOption{measured},
			rpc.HandlerOptions(p.log, time.Now)...)
		for _, v := range p.views {
			path, h := v.Handler(opts...)
			mux.Handle(p.guarded(p.whenCaughtUp(path, h)))
			services = append(services, strings.Trim(path, "/"))
		}
		// serveSQL admits requests itself, because SQL also has slots for each caller.
		mux.HandleFunc("POST "+sqlPath, p.serveSQL)
	}
	if p.vectors != nil {
		for _, of := range []func(...connect.HandlerOption) (string, http.Handler){p.vectorService, p.qualityService} {
			path, h := of(measured)
			mux.Handle(path, h)
			services = append(services, strings.Trim(path, "/"))
		}
	}
	reflect(mux, services...)
	mux.Handle(grpchealth.NewHandler(grpcHealth{p, grpchealth.NewStaticChecker(services...)}, smallMessages))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w,
			"millrace: POST /<package>.<Service>/<Method> with JSON, or gRPC with reflection; POST /v1/sql; Iceberg's REST catalog below /iceberg/")
	})
	return mux
}

// smallMessages bounds requests to reflection and health, which need no more.
var smallMessages = connect.WithReadMaxBytes(64 << 10)

// reflect serves gRPC reflection, in both of its versions.
func reflect(mux *http.ServeMux, services ...string) {
	reflector, bounded := grpcreflect.NewStaticReflector(services...), reflections()
	mux.Handle(bounded(grpcreflect.NewHandlerV1(reflector, smallMessages)))
	mux.Handle(bounded(grpcreflect.NewHandlerV1Alpha(reflector, smallMessages)))
}

// guarded wraps a service: callers need the right to the method that they call, and requests are
// admitted by class. Queries and commands are different classes.
func (p *App) guarded(path string, h http.Handler) (string, http.Handler) {
	// The right decides the class as well: both follow from whether the method is a query.
	right := rightTo(path)
	class := func(r *http.Request) server.Class {
		if strings.HasPrefix(string(right(r)), auth.Queries+".") {
			return server.Query
		}
		return server.Command
	}
	return path, auth.Need(right, admit(p.limiter, class, h))
}

// tablesPath is the prefix of Iceberg's REST catalog, which authenticates callers by its own
// protocol.
const tablesPath = "/iceberg"

// withTables adds the REST catalog to the api listener. It is outside the guard of tokens, because
// Access checks them.
func (p *App) withTables(ctx context.Context, rest http.Handler) (http.Handler, error) {
	access, err := p.tablesAccess()
	if err != nil {
		return nil, err
	}
	catalog, err := p.lake.REST(ctx, access)
	if err != nil {
		return nil, err
	}
	// The catalog's own routes begin at the root, so the prefix is stripped.
	mux := http.NewServeMux()
	mux.Handle(tablesPath+"/", http.StripPrefix(tablesPath, catalog))
	mux.Handle("/", rest)
	return mux, nil
}

// tablesAccess translates the configured rights into those of the REST catalog, and reads the keys
// to the object store that the catalog hands out.
func (p *App) tablesAccess() (restcatalog.Access, error) {
	c := p.cfg.Lake.REST
	access := restcatalog.Access{
		Callers: p.tokens, TokenLifetime: c.TokenLifetime,
		Rights: map[string]restcatalog.Right{}, Tables: map[string]restcatalog.TableRights{},
		Limit: func(next http.Handler) http.Handler { return admit(p.limiter, byMethod, next) },
	}
	granted, err := p.cfg.Auth.Granted()
	if err != nil {
		return access, err
	}
	for name, rights := range granted {
		access.Rights[name] = catalogRight(rights)
		if len(rights.Tables()) > 0 {
			access.Tables[name] = catalogTables(rights)
		}
	}
	// The keys that the catalog hands out to engines, one pair for reading and one for writing.
	for _, keys := range []struct {
		key  string
		from config.Keys
		to   *restcatalog.Keys
	}{{"read_keys", c.ReadKeys, &access.ReadKeys}, {"write_keys", c.WriteKeys, &access.WriteKeys}} {
		keys.to.AccessKey = keys.from.AccessKey
		if keys.to.SecretKey, err = keys.from.SecretKey.Reveal(""); err != nil {
			return access, fmt.Errorf("lake.rest.%s.secret_key: %w", keys.key, err)
		}
	}
	return access, nil
}

// maxOperations bounds concurrent requests on the admin listener. It is separate from the limiter
// of the api listener, so load there does not hide the system's state. Readiness has priority over
// the rest, and liveness is not limited.
const maxOperations = 32

// operations returns the handler of the admin listener. Liveness, readiness and metrics are open to
// every client that can connect. The rest requires a token if tokens are configured.
func (p *App) operations() http.Handler {
	mux := http.NewServeMux()
	limiter := server.NewLimiter(maxOperations)
	limited := func(h http.Handler) http.Handler { return admit(limiter, server.As(server.Query), h) }
	// Liveness has no limit: it must answer even under overload, or the process would be restarted.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.Handle("GET /readyz", admit(limiter, server.As(server.Command), http.HandlerFunc(p.serveReady)))
	mux.Handle("GET /metrics", limited(p.metrics.Handler()))
	mux.Handle("GET /debug/pprof/", onlyWith(auth.Profiles, limited(server.Profiles())))
	// Only binaries for the kill matrix have failpoints.
	if h := failpoint.Handler(); h != nil {
		mux.Handle("/debug/failpoints", onlyWith(auth.Operations, h))
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w,
			"millrace: GET /healthz, /readyz, /metrics, /debug/pprof/; status, verify and flags by the command line")
	})
	if p.has(Admin) {
		path, h := adminv1connect.NewAdminServiceHandler(p, rpc.OperationOptions(p.log)...)
		mux.Handle(path, onlyWith(auth.Operations, limited(h)))
		path, h = p.flagService()
		mux.Handle(path, auth.Need(flagRight(path), limited(h)))
		// grpcurl can call status, verify and flags.
		reflect(mux, adminv1connect.AdminServiceName, flagsv1connect.FlagServiceName)
	}
	p.metrics.Sinks(p.sinks, scrapeTimeout, p.log)
	return mux
}

// catchUpRetryDelay is the pause before the lag of a view is read again after an error.
const catchUpRetryDelay = 2 * time.Second

// awaitViews waits until the views have applied what was on the log at the start. Queries are
// refused until then.
func (p *App) awaitViews(ctx context.Context) error {
	for _, v := range p.views {
		// CatchUp blocks until the view has reached the present ends of the log.
		for err := v.CatchUp(ctx); err != nil; err = v.CatchUp(ctx) {
			if ctx.Err() != nil {
				return fmt.Errorf("catch up with the log: %w", err)
			}
			// Permanent errors of a view stop the system by other means. So this error is
			// temporary.
			p.log.Warn("cannot read the lag of a view; retrying", "view", v.Name, "error", err)
			select {
			case <-time.After(catchUpRetryDelay):
			case <-ctx.Done():
			}
		}
	}
	p.caughtUp.Store(true)
	p.log.Info("views have caught up with the log")
	// A background part must not end before the system stops.
	<-ctx.Done()
	return nil
}

// unready returns the reason why this process does not do all of its work now, or nil. Probes call
// it often and do not wait long, so its requests have a short timeout.
func (p *App) unready(ctx context.Context) error {
	if p.draining.Load() {
		return errors.New("stopping")
	}
	// A store or a catalog that hangs must not block the probe.
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for _, a := range p.modules.aggregates() {
		if store := p.stores[a.Name]; store != nil {
			if _, err := store.Head(ctx); err != nil {
				return fmt.Errorf("store of %s: %w", a.Service, err)
			}
		}
		// Live is false until the relay has resumed, and between two sessions.
		if r := p.relays[a.Name]; r != nil {
			if at := r.Progress(); !at.Live && !at.Standby {
				return fmt.Errorf("relay of %s: not publishing", a.Service)
			}
		}
	}
	if len(p.views) > 0 && !p.caughtUp.Load() {
		return errors.New("the views are catching up with the log")
	}
	if p.vectors != nil {
		if err := (vectorBackend{p.vectors, p.refusals}).Ready(); err != nil {
			return fmt.Errorf("features: %w", err)
		}
	}
	if p.tracking != nil && !p.tracking.Available() {
		return errors.New("tracking: the intake cannot write to the log, or does not know the consents of customers yet")
	}
	// Only the catalog's own errors make the process unready. serveReady reports broken tables.
	if _, err := p.brokenTables(ctx); err != nil {
		return fmt.Errorf("lake: %w", err)
	}
	return nil
}

// serveReady answers "ready", "degraded" with the broken parts, or 503. "Degraded" has the status
// 200: taking the process out of service would not repair the part, and would lose the rest.
func (p *App) serveReady(w http.ResponseWriter, r *http.Request) {
	if err := p.unready(r.Context()); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	// A broken table makes the process degraded, not unready: everything else still works.
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
	defer cancel()
	broken, err := p.brokenTables(ctx)
	if err != nil {
		http.Error(w, "not ready: lake: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	damaged := p.damagedViews()
	if err := p.engineDown(); err != nil {
		damaged = append(damaged, err.Error())
	}
	if len(broken) == 0 && len(damaged) == 0 {
		_, _ = io.WriteString(w, "ready\n")
		return
	}
	_, _ = io.WriteString(w, "degraded\n")
	for _, line := range damaged {
		_, _ = fmt.Fprintln(w, line)
	}
	for _, fault := range broken {
		_, _ = fmt.Fprintln(w, fault)
	}
}

// damagedViews describes the parts of views that are damaged and being rebuilt.
func (p *App) damagedViews() (lines []string) {
	for _, o := range p.versions() {
		for _, f := range o.Faults().List() {
			lines = append(lines, fmt.Sprintf("view %s: %s: %s; it is being rebuilt from the log", o.sink,
				f.Part, f.Reason))
		}
	}
	return lines
}

// whenCaughtUp refuses queries until the views have caught up. Before that, "not found" might be
// wrong.
func (p *App) whenCaughtUp(path string, h http.Handler) (string, http.Handler) {
	unready := connect.NewErrorWriter()
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.caughtUp.Load() {
			err := connect.NewError(connect.CodeUnavailable,
				errors.New("the views are catching up with the log; try again"))
			_ = unready.Write(w, r, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// grpcHealth implements gRPC's health protocol. Every service is serving once the process is ready.
type grpcHealth struct {
	p        *App
	services *grpchealth.StaticChecker
}

// Check implements grpchealth.Checker. An unknown service is an error, whatever the state of the
// process.
func (h grpcHealth) Check(ctx context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	res, err := h.services.Check(ctx, req)
	// Only known services reach this: Check of the static checker rejects others.
	if err == nil && h.p.unready(ctx) != nil {
		res.Status = grpchealth.StatusNotServing
	}
	return res, err
}
