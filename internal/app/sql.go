package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/faults"
	lakesql "github.com/millrace/millrace/lake/sql"
)

const (
	sqlPath          = "/v1/sql"
	maxQueryBytes    = 1 << 20
	maxQueuedQueries = 64 // of one caller
)

// ReadAtHeader is the response header that reports, as a JSON list of lakesql.ReadAt, which
// snapshots an as-of query read.
const ReadAtHeader = "Millrace-Read-At"

// serveSQL runs the query in the body, over the tables as of a moment if as_of names one. An error
// before the first row is a status and a text. After the first row, an error aborts the connection,
// so that a partial result is never taken for a complete one.
func (p *App) serveSQL(w http.ResponseWriter, r *http.Request) {
	// Rights come first, so that callers without them learn nothing about load or tables.
	engine, err := p.sqlOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if err := p.engineDown(); err != nil {
		w.Header().Set("Retry-After", server.RetryAfter)
		http.Error(w, "the query could not be run: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	if err := checkParameters(r.URL.Query(), "output", "as_of"); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !p.limiter.Admits(server.SQL) || p.slots.Full(slotsOf(r)) { // refuse before the body is read
		tooMany(w, server.ErrOverloaded)
		return
	}
	query, ok := readQuery(w, r)
	if !ok {
		return
	}
	// The body has been read, so a slow client does not occupy a slot.
	done, err := p.acquireSQL(r.Context(), slotsOf(r))
	if err != nil {
		tooMany(w, err)
		return
	}
	defer done()
	// The engine rejects an unknown format.
	format := r.URL.Query().Get("output")
	if format == "" {
		format = "json"
	}
	var rows io.ReadCloser
	if moment := r.URL.Query().Get("as_of"); moment == "" {
		rows, err = engine.Run(r.Context(), query, format)
	} else {
		var read []lakesql.ReadAt
		if rows, read, err = SQLAsOf(r.Context(), engine, p.lake, query, format, moment); err == nil {
			var header []byte
			if header, err = json.Marshal(read); err == nil {
				w.Header().Set(ReadAtHeader, string(header))
			}
		}
	}
	// The type of the error decides the status code.
	var beyond *lakesql.ScopeError
	var fault *lakesql.QueryError
	var history *lake.HistoryError
	var unreadable *lakesql.UnreadableError
	var broken *faults.TableError
	// The client's faults come first, then faults of a table, then load, and last faults of the
	// system. The order matters: an error can match several of these.
	switch {
	case errors.As(err, &beyond): // a table that the caller may not read
		http.Error(w, beyond.Error(), http.StatusForbidden)
		return
	case errors.As(err, &history): // a moment whose snapshots have expired
		http.Error(w, history.Error(), http.StatusGone)
		return
	case errors.As(err, &fault): // a mistake in the query
		http.Error(w, fault.Error(), http.StatusBadRequest)
		return
	case errors.As(err, &unreadable), errors.As(err, &broken):
		p.log.Warn("sql: a query names a table that cannot be read", "error", err)
		http.Error(w, "the query could not be run: "+err.Error(), http.StatusServiceUnavailable)
		return
	case errors.Is(err, lakesql.ErrBusy):
		tooMany(w, err)
		return
	case r.Context().Err() != nil:
		http.Error(w, "the query was cancelled", statusClientGone)
		return
	case errors.Is(err, lakesql.ErrLost):
		// Lost means that a file was missing. Name the table if it can be found.
		if lost := p.findLost(r.Context(), query); lost != nil {
			err = lost
		}
		p.log.Error("sql: the query could not be run", "error", err)
		http.Error(w, "the query could not be run: "+err.Error(), http.StatusServiceUnavailable)
		return
	case errors.Is(err, clickhouse.ErrUnreachable), errors.Is(err, lakesql.ErrCatalog):
		p.log.Error("sql: the query could not be run", "error", err)
		w.Header().Set("Retry-After", server.RetryAfter)
		http.Error(w, "the query could not be run: "+err.Error(), http.StatusServiceUnavailable)
		return
	case err != nil:
		p.log.Error("sql: the query could not be run", "error", err)
		http.Error(w, "the query could not be run: "+err.Error(), http.StatusInternalServerError)
		return
	}
	defer rows.Close() //nolint:errcheck // read to its end or given up
	// From here on, an error can only cut the connection.
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := io.Copy(w, rows); err != nil {
		if lakesql.Lost(err) {
			err = cmp.Or(p.findLost(r.Context(), query), err)
		}
		p.log.Warn("sql: response aborted", "error", err)
		panic(http.ErrAbortHandler)
	}
}

// findLost checks the tables that a query names, and returns the fault of the first one that lacks
// files. Status reports that table from then on. It works on after the caller has gone.
func (p *App) findLost(ctx context.Context, query string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	// A table counts as named if its name occurs in the text. Checking one too many does no harm.
	names, err := p.lake.All(ctx)
	if err != nil {
		return nil
	}
	for _, name := range names {
		var fault *faults.TableError
		if strings.Contains(query, name[len(name)-1]) && errors.As(p.lake.Check(ctx, name), &fault) {
			return fault
		}
	}
	return nil
}

// The code that proxies log for this. The client does not read it.
const statusClientGone = 499

// readQuery reads the text of a query, or answers why it cannot. Browsers can send text/plain and
// multipart forms to other sites without a preflight, so both are refused. "curl -d" sends the type
// of a simple form.
func readQuery(w http.ResponseWriter, r *http.Request) (string, bool) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if r.Header.Get("Content-Type") != "" && err != nil || kind == "text/plain" || kind == "multipart/form-data" {
		http.Error(w, "send the query as application/sql", http.StatusUnsupportedMediaType)
		return "", false
	}
	// The errors of package server distinguish a slow client from overload.
	query, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQueryBytes))
	status := http.StatusBadRequest
	switch tooLarge := (*http.MaxBytesError)(nil); {
	case err == nil && !utf8.Valid(query):
		err = errors.New("not valid UTF-8")
	case err == nil:
		return string(query), true
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, server.ErrBodyLate):
		status = http.StatusRequestTimeout
	case errors.Is(err, server.ErrBusy):
		w.Header().Set("Retry-After", server.RetryAfter)
		status = http.StatusTooManyRequests
	}
	http.Error(w, "read the query: "+err.Error(), status)
	return "", false
}

// tooMany answers that the server is overloaded.
func tooMany(w http.ResponseWriter, err error) {
	w.Header().Set("Retry-After", server.RetryAfter)
	http.Error(w, "resource_exhausted: "+err.Error(), http.StatusTooManyRequests)
}

// slotsOf returns the name of the caller for whom a request occupies a slot.
func slotsOf(r *http.Request) string { return slotName(r.Context(), r.RemoteAddr) }

// slotName returns the name of a caller with this address.
func slotName(ctx context.Context, addr string) string {
	// Without authentication, a caller is an address.
	name := auth.CallerOf(ctx)
	if name == "" {
		name, _, _ = net.SplitHostPort(addr) // empty: all such requests are one caller
	}
	return name
}

// acquireSQL blocks until a query may run. It takes one of the caller's own slots first, so that a
// caller that waits for its own queries delays no other caller.
func (p *App) acquireSQL(ctx context.Context, caller string) (done func(), err error) {
	releaseSlot, err := p.slots.Acquire(ctx, caller)
	if err != nil {
		return nil, err
	}
	release, err := p.limiter.Acquire(ctx, server.SQL)
	if err != nil {
		releaseSlot()
		return nil, err
	}
	return func() { release(); releaseSlot() }, nil
}
