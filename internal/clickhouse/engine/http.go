package engine

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/google/uuid"

	"github.com/millrace/millrace/internal/clickhouse"
)

// Limits of the HTTP interface.
const (
	maxQuery   = 1 << 20         // size of a statement, in bytes
	maxRunning = 16              // concurrent statements
	maxWaiting = 256             // queued statements; more are refused
	writeLimit = 5 * time.Minute // time in which a client must read one piece of an answer
)

// server is ClickHouse's HTTP interface: https://clickhouse.com/docs/interfaces/http.
type server struct {
	control   *connection   // keeps the engine running and ends queries
	controlMu sync.Mutex    // held for each statement, since a connection runs one at a time
	running   chan struct{} // a place for each running statement
	waiting   chan struct{} // a place for each queued statement
	tokens    *tokenLocks
	tables    *definitions
	password  string
	log       *slog.Logger
}

// newServer returns the HTTP handler of an engine, whose tables are in a folder.
func newServer(control *connection, folder string, c Config) *server {
	return &server{
		control:  control,
		running:  make(chan struct{}, maxRunning),
		waiting:  make(chan struct{}, maxWaiting),
		tokens:   newTokenLocks(),
		tables:   newDefinitions(folder),
		password: c.Password,
		log:      c.Logger,
	}
}

// ServeHTTP runs the query in a request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/ping", r.URL.Path == "/replicas_status":
		_, _ = io.WriteString(w, "Ok.\n") // the client may have disconnected
		return
	case r.URL.Path != "/":
		http.Error(w, "unknown path "+r.URL.Path+"; send queries to /", http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "method not allowed; use GET or POST", http.StatusMethodNotAllowed)
		return
	}
	a := &answer{w: w, id: uuid.NewString(), format: "TabSeparated"}
	req, err := s.parse(w, r)
	if err == nil {
		req.id, a.format = a.id, req.format
		if req.framed {
			a.frames = compress.NewWriter(0, req.compression)
		}
		err = s.run(r.Context(), req, a)
	}
	if err != nil {
		drain(w, r)
	}
	if err != nil {
		s.log.Debug("query failed", "query", a.id, "error", err)
	}
	a.end(err)
}

// run executes req as soon as fewer than maxRunning statements run.
func (s *server) run(ctx context.Context, req request, a *answer) error {
	// Refuse at once if the queue is full, so that callers can back off.
	select {
	case s.waiting <- struct{}{}:
	default:
		return &clickhouse.Error{
			Code: clickhouse.CodeTooMany, Name: "TOO_MANY_SIMULTANEOUS_QUERIES",
			Message: fmt.Sprintf("%d queries are running and %d are queued; try again later", maxRunning, maxWaiting),
		}
	}
	release, err := s.tokens.acquire(ctx, req.settings)
	if err != nil {
		<-s.waiting
		return err
	}
	defer release()
	select {
	case s.running <- struct{}{}:
		<-s.waiting
	case <-ctx.Done():
		<-s.waiting
		return ctx.Err()
	}
	defer func() { <-s.running }()
	return s.execute(ctx, req, a.write)
}

// notSettings are the parameters that are not settings of a query.
var notSettings = map[string]bool{
	"query": true, "database": true, "default_format": true, "user": true, "password": true, "query_id": true,
	"wait_end_of_query": true, "enable_http_compression": true, "compress": true, "decompress": true,
	"stacktrace": true, "buffer_size": true, "client_protocol_version": true, "log_comment": true,
	"session_timeout": true, "session_check": true, "quota_key": true, "role": true,
}

// parse authenticates a request and returns its statement. Headers take precedence over parameters.
func (s *server) parse(w http.ResponseWriter, r *http.Request) (request, error) {
	params := r.URL.Query()
	first := func(header, param string) string {
		if v := r.Header.Get(header); v != "" {
			return v
		}
		return params.Get(param)
	}
	req := request{
		user:     first("X-ClickHouse-User", "user"),
		database: first("X-ClickHouse-Database", "database"),
		format:   first("X-ClickHouse-Format", "default_format"),
		readOnly: r.Method == http.MethodGet,
		buffered: params.Get("wait_end_of_query") == "1",
	}
	if req.format == "" {
		req.format = "TabSeparated"
	}
	password := first("X-ClickHouse-Key", "password")
	if u, p, ok := r.BasicAuth(); ok && req.user == "" {
		req.user, password = u, p
	}
	if req.user == "" {
		req.user = clickhouse.Admin
	}
	// All users have the same password. The user decides the rights only.
	// Compare in constant time: other users of the machine can reach the loopback address.
	known := req.user == clickhouse.Admin || limited(req.user)
	if subtle.ConstantTimeCompare([]byte(password), []byte(s.password)) != 1 || !known {
		return req, &clickhouse.Error{
			Code: clickhouse.CodeAuthentication, Name: "AUTHENTICATION_FAILED",
			Message: req.user + ": Authentication failed: password is incorrect, or there is no user with such name.",
		}
	}
	// Everything that is not a known parameter is a setting of the query.
	for name, values := range params {
		switch {
		case notSettings[name]:
		case name == "session_id" || strings.HasPrefix(name, "param_"):
			return req, notImplemented(name + " is not supported by the embedded engine")
		case !settingName.MatchString(name):
			return req, &clickhouse.Error{
				Code: clickhouse.CodeBadArguments, Name: "BAD_ARGUMENTS",
				Message: fmt.Sprintf("%q is not a setting", name),
			}
		default:
			req.settings = append(req.settings, setting{name, values[len(values)-1]})
		}
	}
	var err error
	if req.revision, err = revisionOf(params); err != nil {
		return req, err
	}
	req.compression, req.framed = compressionOf(params)
	body, err := contentOf(w, r)
	if err != nil {
		return req, err
	}
	if req.query = params.Get("query"); insertStatement.MatchString(req.query) && hasBody(r) {
		req.rows = &limitedReader{r: body, limit: maxInsert}
		return req, nil
	}
	rest, err := io.ReadAll(io.LimitReader(body, maxQuery+1))
	if err != nil {
		return req, fmt.Errorf("read the query: %w", err)
	}
	if len(rest) > maxQuery {
		return req, tooManyBytes("the query is", maxQuery)
	}
	// Like ClickHouse, the body continues the statement in the URL.
	if req.query != "" && len(rest) > 0 {
		req.query += "\n"
	}
	req.query += string(rest)
	return req, nil
}

// hasBody reports whether a request has a body, which may be empty if its size is unknown.
func hasBody(r *http.Request) bool { return r.ContentLength != 0 }

// drainLimit is how long a client may still send after an error.
const drainLimit = 5 * time.Second

// drain reads the rest of a body. A client that still sends would see a closed connection instead
// of the error.
func drain(w http.ResponseWriter, r *http.Request) {
	if http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainLimit)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, maxInsert)) // the client gets the first error
	}
}

// notImplemented is the error for what ClickHouse has and the embedded engine does not.
func notImplemented(message string) error {
	return &clickhouse.Error{Code: clickhouse.CodeNotImplemented, Name: "NOT_IMPLEMENTED", Message: message}
}

// answer writes the result of one query.
type answer struct {
	w          http.ResponseWriter
	id, format string
	frames     *compress.Writer // nil for an answer without frames
	tag        string           // marks an error in the body; empty until the header is sent
}

// head sets the headers of all answers.
func (a *answer) head() {
	h := a.w.Header()
	h.Set("X-ClickHouse-Query-Id", a.id)
	h.Set("X-ClickHouse-Server-Display-Name", "millrace")
	h.Set("X-ClickHouse-Timezone", "UTC")
}

// write sends one piece of the answer, and the header before the first.
func (a *answer) write(piece []byte) error {
	if a.tag == "" {
		a.begin()
	}
	if a.frames != nil {
		return inFrames(a.frames, piece, a.send)
	}
	return a.send(piece)
}

// send sends bytes of the body.
func (a *answer) send(piece []byte) error {
	// The deadline is per piece, since a large answer may take long in total.
	rc := http.NewResponseController(a.w)
	if err := rc.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	if _, err := a.w.Write(piece); err != nil { //nolint:gosec // rows, and no browser may send the password
		return fmt.Errorf("write to the client: %w", err)
	}
	return rc.Flush()
}

// begin sends the header of a successful answer.
func (a *answer) begin() {
	a.tag = strings.ToLower(rand.Text()[:16])
	a.head()
	h := a.w.Header()
	h.Set("Content-Type", contentType(a.format))
	h.Set("X-ClickHouse-Format", a.format)
	h.Set("X-ClickHouse-Exception-Tag", a.tag)
	a.w.WriteHeader(http.StatusOK)
}

// end completes the answer. An error after its start is written into the body, marked with the tag,
// as ClickHouse does. Then the connection is aborted, so that no client mistakes a partial
// answer for a complete one.
func (a *answer) end(err error) {
	if err == nil {
		if a.tag == "" {
			a.begin()
		}
		return
	}
	// Errors of this process get a code like those of ClickHouse.
	e := new(clickhouse.Error)
	if !errors.As(err, &e) {
		e = &clickhouse.Error{Code: clickhouse.CodeUnknownException, Name: "UNKNOWN_EXCEPTION", Message: err.Error()}
	}
	text := errorText(e)
	// Nothing has been sent, so the error gets a status of its own.
	if a.tag == "" {
		a.head()
		h := a.w.Header()
		h.Set("Content-Type", "text/plain; charset=UTF-8")
		h.Set("X-ClickHouse-Exception-Code", fmt.Sprint(e.Code))
		a.w.WriteHeader(statusOf(e.Code))
		_, _ = io.WriteString(a.w, text+"\n") // the client may have disconnected
		return
	}
	const longest = 15 << 10 // clients expect all of it in the last 16 KiB
	if len(text) > longest {
		text = text[:longest]
	}
	// The client may have disconnected.
	_, _ = fmt.Fprintf(a.w, "\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n",
		a.tag, text, len(text)+1, a.tag)
	_ = http.NewResponseController(a.w).Flush()
	// net/http closes the connection without the final chunk.
	panic(http.ErrAbortHandler)
}

// errorText returns an error as ClickHouse writes it.
func errorText(e *clickhouse.Error) string {
	text := fmt.Sprintf("Code: %d. DB::Exception: %s", e.Code, e.Message)
	if e.Name != "" {
		text += " (" + e.Name + ")"
	}
	return text
}

// statusOf returns the HTTP status that ClickHouse uses for an error.
func statusOf(code int) int {
	switch code {
	case clickhouse.CodeAuthentication, 194, 193, 192: // REQUIRED_PASSWORD, WRONG_PASSWORD, UNKNOWN_USER
		return http.StatusUnauthorized
	case clickhouse.CodeAccessDenied, clickhouse.CodeReadOnly:
		return http.StatusForbidden
	// Input that cannot be parsed or does not fit its type.
	case clickhouse.CodeSyntax, clickhouse.CodeBadArguments, 6, 26, 27, 33, 38, 41, 53, 69, 70, 72, 117, 130, 131:
		return http.StatusBadRequest
	// Unknown function, identifier, type, engine, aggregate function, format or setting.
	case clickhouse.CodeUnknownTable, clickhouse.CodeUnknownDatabase, 46, 47, 50, 56, 63, 73, 115, 124:
		return http.StatusNotFound
	case clickhouse.CodeTooManyBytes:
		return http.StatusRequestEntityTooLarge
	case clickhouse.CodeNotImplemented:
		return http.StatusNotImplemented
	case clickhouse.CodeTooMany:
		return http.StatusServiceUnavailable
	case clickhouse.CodeTimeout:
		return http.StatusRequestTimeout
	}
	return http.StatusInternalServerError
}
