// Package restcatalog serves Iceberg's REST catalog protocol over a SQL catalog, so that any engine
// finds the lake's tables by an address instead of by a database's driver, password and table
// layout. The catalog's rows stay the one truth: a writer that goes to the database directly, as
// the landers do, and one that comes through here exclude each other by the same compare-and-swap
// of a table's metadata location (see swap.go).
//
// It is written against the specification in apache/iceberg, open-api/rest-catalog-open-api.yaml.
// Views, scan planning and idempotency keys are not served; `endpoints` of GET /v1/config lists
// what is.
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

// Config describes what to serve.
type Config struct {
	Catalog catalog.Catalog // required; its tables and namespaces
	Swapper Swapper         // required; moves tables of that catalog, see NewSQL
	// Warehouse is the URL below which all tables are to be: file:///folder or s3://bucket/folder.
	// Nothing is created, and no file removed, beyond it.
	Warehouse string
	// Name is what clients may write for the warehouse, beside its URL. Empty: the URL alone.
	Name string
	// Prefix is told to clients, who then put it into their paths (/v1/PREFIX/…). Paths without it
	// are served too.
	Prefix string
	// Files says how this server reaches the files: properties of iceberg-go's file systems.
	Files iceberg.Properties
	// Reach adds to a call's context what the file systems look for there. Nil: nothing.
	Reach func(context.Context) context.Context
	// Storage is told to clients of an s3:// warehouse.
	Storage Storage
	Access  Access
	// Guard describes what speaks against a table's becoming what a request makes of it: nil if
	// nothing does. Before is nil if the table is new under its name, and after where it would no
	// longer be: renamed, or replaced by another's metadata. Nil guards nothing.
	Guard func(name table.Identifier, before, after table.Metadata) error
	// Drop describes what speaks against dropping a table, with its files or without. Nil: nothing.
	Drop func(name table.Identifier, m table.Metadata) error
	// Timeout bounds a request; zero is a minute.
	Timeout time.Duration
	Logger  *slog.Logger // required
}

// Storage is how clients reach an object store.
type Storage struct {
	Endpoint string // http(s)://host:port, and the bucket is named in the path; empty: Amazon's of the region
	Region   string
}

const (
	defaultTimeout = time.Minute
	maxBody        = 32 << 20 // bytes of a request
)

// Server is the handler of a catalog's paths, from /v1/ on; under another path it is behind
// http.StripPrefix. It is safe for concurrent use, and holds nothing that must be closed.
type Server struct {
	config    Config
	warehouse warehouse
	endpoints []string
	mux       *http.ServeMux
	turns     http.Handler // before mux

	identities *lru.Cache[string, Claim] // by metadata file
}

// New returns the handler. It connects to nothing.
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
		return nil, fmt.Errorf("REST catalog: prefix %q is not one part of a path", c.Prefix)
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.Guard == nil {
		c.Guard = func(table.Identifier, table.Metadata, table.Metadata) error { return nil }
	}
	if c.Drop == nil {
		c.Drop = func(table.Identifier, table.Metadata) error { return nil }
	}
	if c.Reach == nil {
		c.Reach = func(ctx context.Context) context.Context { return ctx }
	}
	c.Logger = c.Logger.With("part", "rest catalog")
	identities, err := lru.New[string, Claim](identitiesKept)
	if err != nil {
		return nil, fmt.Errorf("REST catalog: %w", err)
	}
	s := &Server{config: c, warehouse: w, mux: http.NewServeMux(), identities: identities}
	s.route()
	s.turns = s.mux
	if c.Access.Turns != nil {
		s.turns = c.Access.Turns(s.mux)
	}
	return s, nil
}

// A handler answers a request, or tells why it cannot.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *Server) route() {
	s.mux.Handle("GET /v1/config", s.answer(toSome(Read, s.getConfig)))
	s.mux.Handle("POST "+tokenPath, http.HandlerFunc(s.getToken))
	s.mux.Handle("/", s.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return &failure{status: http.StatusNotFound, kind: "NotFoundException", message: "this catalog does not serve " + r.Method + " " + r.URL.Path}
	}))
	const (
		namespace = "/namespaces/{namespace}"
		table     = namespace + "/tables/{table}"
	)
	for _, e := range []struct {
		method, path string
		right        Right
		h            handler
		some         bool // it asks for rights to single tables itself
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
		permitted := to
		if e.some {
			permitted = toSome
		}
		s.serve(e.method, e.path, permitted(e.right, e.h))
	}
	// Clients that do not look at the list above learn that there are no views.
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		s.serve(method, namespace+"/views/{view}", toSome(Read, noView))
	}
	for _, path := range []string{namespace + "/views", namespace + "/register-view", "/views/rename"} {
		s.serve(http.MethodPost, path, toSome(Read, noViews))
	}
}

func (s *Server) serve(method, path string, h handler) {
	s.mux.Handle(method+" /v1"+path, s.answer(h))
	if s.config.Prefix != "" {
		s.mux.Handle(method+" /v1/"+s.config.Prefix+path, s.answer(h))
	}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(s.config.Reach(r.Context()), s.config.Timeout)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	seen := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	seen.Header().Set("Cache-Control", "no-store") // answers may carry credentials, and all are of this moment
	r, caller, err := s.admit(r)
	if err != nil {
		f := failed(r, err)
		if f.status == http.StatusUnauthorized {
			seen.Header().Set("WWW-Authenticate", "Bearer")
		}
		s.fail(seen, r, f)
	} else {
		s.turns.ServeHTTP(seen, r)
	}
	s.config.Logger.Debug("request", "method", r.Method, "path", r.URL.Path, "status", seen.status, "took", time.Since(start), "caller", caller.name)
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// getConfig tells a client what to know before its first call.
func (s *Server) getConfig(w http.ResponseWriter, r *http.Request) error {
	if asked := r.URL.Query().Get("warehouse"); asked != "" && asked != s.config.Name && strings.TrimSuffix(asked, "/") != s.warehouse.url {
		return badRequest("warehouse: there is no warehouse %q here; this catalog's is %s", asked, s.warehouse.url)
	}
	overrides := map[string]string{}
	if s.config.Prefix != "" {
		overrides["prefix"] = s.config.Prefix
	}
	return reply(w, struct {
		Defaults  map[string]string `json:"defaults"`
		Overrides map[string]string `json:"overrides"`
		Endpoints []string          `json:"endpoints"`
	}{s.warehouse.place(), overrides, s.endpoints})
}
