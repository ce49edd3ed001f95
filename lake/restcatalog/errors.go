package restcatalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"regexp"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
)

// failure is an error response. kind is the name of the exception in Java's client, by which all
// clients identify errors.
type failure struct {
	status        int
	kind, message string
	cause         error // for the log only
}

func (f *failure) Error() string { return f.kind + ": " + f.message }

func (f *failure) Unwrap() error { return f.cause }

func badRequest(format string, args ...any) error {
	return &failure{status: http.StatusBadRequest, kind: "BadRequestException", message: fmt.Sprintf(format, args...)}
}

func commitFailed(format string, args ...any) error {
	return &failure{status: http.StatusConflict, kind: "CommitFailedException", message: fmt.Sprintf(format, args...)}
}

// notNow reports that nothing was done and the client may retry. The status must be 503: after 500,
// 502 or 504, clients assume that a commit may have landed, and keep its files.
func notNow(cause error) error {
	return &failure{status: http.StatusServiceUnavailable, kind: "ServiceUnavailableException",
		message: "the catalog or its storage did not answer; nothing was done, try again", cause: cause}
}

// stateUnknown reports that a commit may or may not have landed.
func stateUnknown(cause error) error {
	return &failure{status: http.StatusInternalServerError, kind: "CommitStateUnknownException",
		message: "the commit was sent to the database and its answer was lost: load the table to see whether it landed", cause: cause}
}

// kinds maps errors of the catalog to responses.
var kinds = []struct {
	err    error
	status int
	kind   string
}{
	{catalog.ErrNoSuchTable, http.StatusNotFound, "NoSuchTableException"},
	{catalog.ErrNoSuchNamespace, http.StatusNotFound, "NoSuchNamespaceException"},
	{catalog.ErrNoSuchView, http.StatusNotFound, "NoSuchViewException"},
	{catalog.ErrTableAlreadyExists, http.StatusConflict, "AlreadyExistsException"},
	{catalog.ErrViewAlreadyExists, http.StatusConflict, "AlreadyExistsException"},
	{catalog.ErrNamespaceAlreadyExists, http.StatusConflict, "AlreadyExistsException"},
	{catalog.ErrNamespaceNotEmpty, http.StatusConflict, "NamespaceNotEmptyException"},
	{catalog.ErrInvalidIdentifier, http.StatusBadRequest, "BadRequestException"},
	{iceberg.ErrInvalidArgument, http.StatusBadRequest, "BadRequestException"},
	{table.ErrCommitFailed, http.StatusConflict, "CommitFailedException"},
	{ErrConflict, http.StatusConflict, "CommitFailedException"},
}

// failed returns the response for an error.
func failed(r *http.Request, err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &failure{status: http.StatusRequestEntityTooLarge, kind: "BadRequestException", message: fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit)}
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &failure{status: k.status, kind: k.kind, message: err.Error(), cause: err}
		}
	}
	// Reads change nothing, so a failed one can be retried.
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		errors.As(notNow(err), &f)
		return f
	}
	return &failure{status: http.StatusInternalServerError, kind: "InternalServerError",
		message: "the catalog or its storage failed, and it is not known what was done; the server's log says why", cause: err}
}

// answer converts a handler to an http.Handler that sends its errors.
func (s *Server) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, failed(r, err))
		}
	})
}

// fail logs a server error and sends the response.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f *failure) {
	if f.status >= http.StatusInternalServerError {
		s.config.Logger.Error("a request failed", "method", r.Method, "path", r.URL.Path, "status", f.status, "error", errors.Join(f, f.cause))
	}
	type model struct {
		Message string `json:"message"`
		Type    string `json:"type"`
		Code    int    `json:"code"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	// The client may have disconnected.
	_ = json.NewEncoder(w).Encode(map[string]model{"error": {f.message, f.kind, f.status}})
}

// reply sends a JSON response.
func reply(w http.ResponseWriter, answer any) error {
	b, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client may have disconnected
	return nil
}

// read decodes a JSON request body.
func read(r *http.Request, into any) error {
	// This content type makes browsers ask for permission (CORS) before they send a request of
	// another site, and the server never grants it.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return badRequest("Content-Type: it is not application/json")
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return err
		}
		return badRequest("read the body: %v", err)
	}
	return decode(b, into)
}

// decode decodes JSON and describes errors in terms of JSON.
func decode(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return undecodable(b, "the body", err)
	}
	return nil
}

// undecodable describes a decoding error in terms of JSON, because clients do not know Go types.
func undecodable(b []byte, what string, err error) error {
	var f *failure
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &syntax):
		read := b[:min(int(syntax.Offset), len(b))]
		line := 1 + bytes.Count(read, []byte("\n"))
		return badRequest("%s: not JSON: line %d, column %d: %v", what, line, len(read)-bytes.LastIndexByte(read, '\n')-1, syntax)
	case errors.As(err, &kind):
		if kind.Field != "" {
			what = kind.Field
		}
		return badRequest("%s: it is %s, want %s", what, strings.Replace("a "+kind.Value, "a array", "a list", 1), inJSON(kind.Type))
	}
	return senseless(what, err)
}

// inJSON returns the JSON name of a Go type.
func inJSON(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() { //nolint:exhaustive // what is left is an object
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number that is not too large"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	}
	return "an object"
}

// ofGo matches error texts about Go instead of the request.
var ofGo = regexp.MustCompile(`runtime error|json: |Go (?:value|struct)|strconv\.|reflect[.:]|interface conversion|\*?\b(?:table|iceberg|restcatalog|json)\.[A-Z]`)

// senseless returns the error for input that a library refuses. The library's message is included
// unless it is about Go.
func senseless(what string, err error) error {
	text := strings.TrimSpace(strings.TrimPrefix(err.Error(), "json: "))
	if ofGo.MatchString(text) {
		text = "it makes no sense"
	}
	return &failure{status: http.StatusBadRequest, kind: "BadRequestException", message: what + ": " + text, cause: err}
}

// readGuarded, unmarshalGuarded and validateGuarded pass client input to iceberg-go, which panics
// on some invalid input. The panic becomes a client error.
func readGuarded(r *http.Request, into any) (err error) {
	defer guard(&err)
	return read(r, into)
}

func unmarshalGuarded(b []byte, into any) (err error) {
	defer guard(&err)
	return json.Unmarshal(b, into)
}

func validateGuarded(requirement table.Requirement, m table.Metadata) (err error) {
	defer guard(&err)
	return requirement.Validate(m)
}

// guard converts a panic to a client error. It must be deferred.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = senseless("the request", fmt.Errorf("%v", p))
	}
}
