// Package restcatalog serves Iceberg's REST catalog protocol over a SQL catalog. Engines need an
// address instead of a database driver, a password and knowledge of the table layout.
//
// The rows of the SQL catalog remain the single source of truth. Landers write to the database
// directly and other engines come through here. Both use the same compare-and-swap of a table's
// metadata location, so they exclude each other (see swap.go).
//
// Server is the handler. tables.go and namespaces.go have the endpoints, commit.go turns requested
// changes into new metadata, and access.go and auth.go authenticate callers.
//
// Invariants: nothing outside of the warehouse is read, written or deleted (warehouse.go); two
// tables never share a UUID, a location or a file (claims.go, references.go); no accepted change
// leaves a table that other writers cannot continue with (validate.go); and the Guard of the
// configuration has the last word.
//
// The package follows apache/iceberg's open-api/rest-catalog-open-api.yaml. Views, scan planning
// and idempotency keys are not served; `endpoints` of GET /v1/config lists what is.
package restcatalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	lru "github.com/hashicorp/golang-lru/v2"
)

// Config has the settings of a Server.
type Config struct {
	Catalog catalog.Catalog // required
	Swapper Swapper         // required; swaps tables of the same catalog, see NewSQL
	// Warehouse is the URL of the root of all tables: file:///folder or s3://bucket/folder. No file
	// outside of it is created or deleted.
	Warehouse string
	// Name is an alternative that clients may use for the warehouse's URL. It may be empty.
	Name string
	// Prefix is a path prefix that clients are told to use (/v1/PREFIX/…). Paths without it are
	// served, too.
	Prefix string
	// Files are the properties of iceberg-go's file systems by which this server accesses files.
	Files iceberg.Properties
	// RequestContext adds values to a request's context that the file systems need. It may be nil.
	RequestContext func(context.Context) context.Context
	// Storage is sent to clients of an s3:// warehouse.
	Storage Storage
	Access  Access
	// Guard returns an error if a change must be refused. before is nil for a new table. after is
	// nil if the table would be renamed, or replaced by other metadata. Guard may be nil.
	Guard func(name table.Identifier, before, after table.Metadata) error
	// Drop returns an error if a table must not be dropped, with or without its files. It may be
	// nil.
	Drop func(name table.Identifier, m table.Metadata) error
	// Timeout limits a request; 0 means one minute.
	Timeout time.Duration
	Logger  *slog.Logger // required
}

// Storage describes how clients reach an object store.
type Storage struct {
	// Endpoint is http(s)://host:port, used with path-style addressing. If it is empty, clients use
	// Amazon's endpoint of the region.
	Endpoint string
	Region   string
}

// Limits of a request.
const (
	defaultTimeout = time.Minute
	maxBody        = 32 << 20 // bytes of a request body
)

// Server is the handler of the catalog's paths, which begin with /v1/. To serve it under another
// path, use http.StripPrefix. It is safe for concurrent use and need not be closed.
type Server struct {
	config    Config
	warehouse warehouse
	endpoints []string // as listed by GET /v1/config
	mux       *http.ServeMux
	limited   http.Handler // mux with admission control

	identities *lru.Cache[string, Claim] // cache by metadata file
}

// New returns a Server. It opens no connections.
func New(c Config) (*Server, error) {
	if c.Catalog == nil || c.Swapper == nil || c.Logger == nil {
		return nil, errors.New("REST catalog: Catalog, Swapper and Logger are required")
	}
	w, err := openWarehouse(c.Warehouse, c.Storage)
	if err != nil {
		return nil, fmt.Errorf("REST catalog: %w", err)
	}
	if err := c.Access.check(); err != nil {
		return nil, fmt.Errorf("REST catalog: %w", err)
	}
	if strings.ContainsAny(c.Prefix, "/{}%?# ") {
		return nil, fmt.Errorf("REST catalog: prefix %q is not a single path segment", c.Prefix)
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	// No-ops in place of nil keep the handlers free of checks.
	if c.Guard == nil {
		c.Guard = func(table.Identifier, table.Metadata, table.Metadata) error { return nil }
	}
	if c.Drop == nil {
		c.Drop = func(table.Identifier, table.Metadata) error { return nil }
	}
	if c.RequestContext == nil {
		c.RequestContext = func(ctx context.Context) context.Context { return ctx }
	}
	c.Logger = c.Logger.With("part", "rest catalog")
	// Metadata files are immutable, so cached identities never become stale.
	identities, err := lru.New[string, Claim](maxIdentities)
	if err != nil {
		return nil, fmt.Errorf("REST catalog: %w", err)
	}
	s := &Server{config: c, warehouse: w, mux: http.NewServeMux(), identities: identities}
	s.route()
	s.limited = s.mux
	if c.Access.Limit != nil {
		s.limited = c.Access.Limit(s.mux)
	}
	return s, nil
}

// handler serves a request or returns the error to send.
type handler func(w http.ResponseWriter, r *http.Request) error

// route registers all endpoints.
func (s *Server) route() {
	s.mux.Handle("GET /v1/config", s.answer(requireSome(Read, s.getConfig)))
	s.mux.Handle("POST "+tokenPath, http.HandlerFunc(s.getToken))
	// All paths without a handler get an error in the protocol's form.
	s.mux.Handle("/", s.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return &apiError{
			status: http.StatusNotFound, kind: "NotFoundException",
			message: "this catalog does not serve " + r.Method + " " + r.URL.Path,
		}
	}))
	const (
		namespace = "/namespaces/{namespace}"
		table     = namespace + "/tables/{table}"
	)
	for _, e := range []struct {
		method, path string
		right        Right
		h            handler
		some         bool // rights to single tables suffice; the handler checks them
	}{
		{http.MethodGet, "/namespaces", Read, s.listNamespaces, true},
		{http.MethodPost, "/namespaces", Admin, s.createNamespace, false},
		{http.MethodGet, namespace, Read, s.loadNamespace, true},
		{http.MethodHead, namespace, Read, s.namespaceExists, true},
		{http.MethodDelete, namespace, Admin, s.dropNamespace, false},
		{http.MethodPost, namespace + "/properties", Admin, s.updateNamespace, false},
		{http.MethodGet, namespace + "/tables", Read, s.listTables, true},
		{http.MethodPost, namespace + "/tables", Write, s.createTable, true},
		{http.MethodPost, namespace + "/register", Admin, s.registerTable, true},
		{http.MethodGet, table, Read, s.loadTable, false},
		{http.MethodHead, table, Read, s.tableExists, false},
		{http.MethodPost, table, Write, s.commitTable, false},
		{http.MethodDelete, table, Admin, s.dropTable, false},
		{http.MethodGet, table + "/credentials", Read, s.loadCredentials, false},
		{http.MethodPost, table + "/metrics", Read, s.reportMetrics, false},
		{http.MethodPost, "/tables/rename", Admin, s.renameTable, true},
		{http.MethodPost, "/transactions/commit", Write, s.commitTransaction, true},
		{http.MethodGet, namespace + "/views", Read, s.listViews, true},
	} {
		s.endpoints = append(s.endpoints, e.method+" /v1/{prefix}"+e.path)
		// Handlers of several tables check the rights to each of them.
		permitted := require
		if e.some {
			permitted = requireSome
		}
		s.serve(e.method, e.path, permitted(e.right, e.h))
	}
	// Some clients ignore the list of endpoints, so requests for views get the proper error.
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		s.serve(method, namespace+"/views/{view}", requireSome(Read, noView))
	}
	for _, path := range []string{namespace + "/views", namespace + "/register-view", "/views/rename"} {
		s.serve(http.MethodPost, path, requireSome(Read, noViews))
	}
}

// serve registers a handler with and without the configured prefix.
func (s *Server) serve(method, path string, h handler) {
	s.mux.Handle(method+" /v1"+path, s.answer(h))
	if s.config.Prefix != "" {
		s.mux.Handle(method+" /v1/"+s.config.Prefix+path, s.answer(h))
	}
}

// ServeHTTP authenticates and serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	// The context carries what file systems need, such as the AWS configuration.
	ctx, cancel := context.WithTimeout(s.config.RequestContext(r.Context()), s.config.Timeout)
	defer cancel()
	r = r.WithContext(ctx)
	// Larger bodies fail in the handler's read, with status 413.
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	seen := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	// Responses may contain credentials, and are only valid now.
	seen.Header().Set("Cache-Control", "no-store")
	r, caller, err := s.authenticate(r)
	if err != nil {
		f := toAPIError(r, err)
		if f.status == http.StatusUnauthorized {
			seen.Header().Set("WWW-Authenticate", "Bearer")
		}
		s.sendError(seen, r, f)
	} else {
		s.limited.ServeHTTP(seen, r)
	}
	s.config.Logger.Debug("request", "method", r.Method, "path", r.URL.Path, "status", seen.status,
		"took", time.Since(start), "caller", caller.name)
}

// statusWriter records the status of a response for the log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader records the status and sends it.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// getConfig serves the settings that clients request first.
func (s *Server) getConfig(w http.ResponseWriter, r *http.Request) error {
	asked := r.URL.Query().Get("warehouse")
	if asked != "" && asked != s.config.Name && strings.TrimSuffix(asked, "/") != s.warehouse.url {
		return badRequest("warehouse: unknown warehouse %q; this catalog serves %s", asked, s.warehouse.url)
	}
	// Clients must use the prefix in later requests.
	overrides := map[string]string{}
	if s.config.Prefix != "" {
		overrides["prefix"] = s.config.Prefix
	}
	return reply(w, struct {
		Defaults  map[string]string `json:"defaults"`
		Overrides map[string]string `json:"overrides"`
		Endpoints []string          `json:"endpoints"`
	}{s.warehouse.clientConfig(), overrides, s.endpoints})
}
