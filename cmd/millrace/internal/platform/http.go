package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/millrace/millrace/commands"
	catalogcommands "github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/customer"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/commands/order"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	"github.com/millrace/millrace/gen/millrace/customer/v1/customerv1connect"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/rpc"
	lakesql "github.com/millrace/millrace/lake/sql"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/orderstatus"
)

const (
	headerTimeout = 10 * time.Second
	drainTimeout  = 5 * time.Second // for calls under way when the system stops
	maxQueryBytes = 1 << 20
)

// startServer opens the door: every service by Connect, gRPC and gRPC-Web, health, reflection, and SQL.
func (p *Platform) startServer(context.Context) error {
	logged := commands.WithLogger(p.log)
	mux := http.NewServeMux()
	mux.Handle(customer.NewHandler(p.stores[event.Customer.Name], logged))
	mux.Handle(catalogcommands.NewHandler(p.stores[event.Product.Name], logged))
	mux.Handle(inventory.NewHandler(p.stores[event.Stock.Name], logged))
	mux.Handle(order.NewHandler(p.stores[event.Order.Name], logged))
	door := rpc.HandlerOptions(p.log, time.Now)
	mux.Handle(p.whenReady(orderv1connect.NewOrderQueryServiceHandler(orderstatus.NewQueries(p.orders), door...)))
	mux.Handle(p.whenReady(catalogv1connect.NewCatalogQueryServiceHandler(catalog.NewQueries(p.goods), door...)))
	mux.Handle(adminv1connect.NewAdminServiceHandler(p))

	services := []string{
		customerv1connect.CustomerServiceName, catalogv1connect.CatalogServiceName, catalogv1connect.CatalogQueryServiceName,
		inventoryv1connect.InventoryServiceName, orderv1connect.OrderServiceName, orderv1connect.OrderQueryServiceName,
		adminv1connect.AdminServiceName,
	}
	reflector := grpcreflect.NewStaticReflector(services...)
	mux.Handle(grpcreflect.NewHandlerV1(reflector))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector))
	mux.Handle(grpchealth.NewHandler(grpcHealth{p, grpchealth.NewStaticChecker(services...)}))

	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", p.serveReady)
	mux.HandleFunc("POST /v1/sql", p.serveSQL)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "millrace: POST /<package>.<Service>/<Method> with JSON, or gRPC with reflection; POST /v1/sql; GET /healthz, /readyz")
	})

	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan error, 1)
	go func() { served <- server.Serve(p.listener) }()
	p.onStop(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		err := server.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			p.log.Warn("calls under way were cut off", "after", drainTimeout)
			err = server.Close()
		}
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		return err
	})
	p.background("readiness", p.becomeReady)
	return nil
}

// becomeReady waits until the views have applied what stood on the log at the start.
func (p *Platform) becomeReady(ctx context.Context) error {
	err := p.CatchUp(ctx, func(string, int, int) {})
	if err != nil {
		return fmt.Errorf("catch up with the log: %w", err)
	}
	p.ready.Store(true)
	p.log.Info("ready: the views hold what stood on the log at the start")
	<-ctx.Done()
	return nil
}

func (p *Platform) serveReady(w http.ResponseWriter, _ *http.Request) {
	if !p.ready.Load() {
		http.Error(w, "not ready: the views are catching up with the log, or the system is stopping", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

// whenReady turns queries away until the views have caught up: before that "not found" would not be true.
func (p *Platform) whenReady(path string, h http.Handler) (string, http.Handler) {
	unready := connect.NewErrorWriter()
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.ready.Load() {
			err := connect.NewError(connect.CodeUnavailable, errors.New("the views are catching up with the log; try again"))
			_ = unready.Write(w, r, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// grpcHealth answers gRPC's health protocol: the whole server serves once it is ready.
type grpcHealth struct {
	p        *Platform
	services *grpchealth.StaticChecker
}

func (h grpcHealth) Check(ctx context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	res, err := h.services.Check(ctx, req)
	if err == nil && !h.p.ready.Load() {
		res.Status = grpchealth.StatusNotServing
	}
	return res, err
}

// serveSQL runs the query in the body. An error before the first row is a status and a text; after that the connection is
// cut, so that a part is never taken for the whole.
func (p *Platform) serveSQL(w http.ResponseWriter, r *http.Request) {
	query, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQueryBytes))
	if err != nil {
		http.Error(w, "read the query: "+err.Error(), http.StatusBadRequest)
		return
	}
	format := r.URL.Query().Get("output")
	if format == "" {
		format = "json"
	}
	rows, err := p.sql.Run(r.Context(), string(query), format)
	var fault *lakesql.QueryError
	switch {
	case errors.As(err, &fault):
		http.Error(w, fault.Error(), http.StatusBadRequest)
		return
	case err != nil:
		p.log.Error("sql: the query could not be run", "error", err)
		http.Error(w, "the query could not be run: "+err.Error(), http.StatusInternalServerError)
		return
	}
	defer rows.Close() //nolint:errcheck // read to its end or given up
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := io.Copy(w, rows); err != nil {
		p.log.Warn("sql: the answer broke off", "error", err)
		panic(http.ErrAbortHandler)
	}
}
