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

// apiError is an error response. kind is the name of the exception in Java's client, by which all
// clients identify errors.
type apiError struct {
	status        int
	kind, message string
	cause         error // for the log only
}

// Error returns the kind and the message, for the log.
func (f *apiError) Error() string { return f.kind + ": " + f.message }

// Unwrap returns the cause, which clients do not see.
func (f *apiError) Unwrap() error { return f.cause }

// badRequest returns the error for an invalid request. The message begins with the field.
func badRequest(format string, args ...any) error {
	return &apiError{status: http.StatusBadRequest, kind: "BadRequestException", message: fmt.Sprintf(format, args...)}
}

// commitFailed returns the error for a conflict. Clients reload the table and retry.
func commitFailed(format string, args ...any) error {
	return &apiError{status: http.StatusConflict, kind: "CommitFailedException", message: fmt.Sprintf(format, args...)}
}

// unavailable reports that nothing was done and the client may retry. The status must be 503: after
// 500, 502 or 504, clients assume that a commit may have landed, and keep its files.
func unavailable(cause error) error {
	return &apiError{status: http.StatusServiceUnavailable, kind: "ServiceUnavailableException",
		message: "the catalog or its storage is unavailable; nothing was changed, try again", cause: cause}
}

// stateUnknown reports that a commit may or may not have landed.
func stateUnknown(cause error) error {
	return &apiError{status: http.StatusInternalServerError, kind: "CommitStateUnknownException",
		message: "the database's answer to the commit was lost; load the table to see whether it was committed",
		cause:   cause}
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

// toAPIError returns the response for an error.
func toAPIError(r *http.Request, err error) *apiError {
	var f *apiError
	if errors.As(err, &f) {
		return f
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &apiError{
			status: http.StatusRequestEntityTooLarge, kind: "BadRequestException",
			message: fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit),
		}
	}
	// The first match wins.
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &apiError{status: k.status, kind: k.kind, message: err.Error(), cause: err}
		}
	}
	// Reads change nothing, so a failed one can be retried.
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		errors.As(unavailable(err), &f)
		return f
	}
	return &apiError{status: http.StatusInternalServerError, kind: "InternalServerError",
		message: "the catalog or its storage failed; the outcome is unknown, see the server's log", cause: err}
}

// answer converts a handler to an http.Handler that sends its errors.
func (s *Server) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.sendError(w, r, toAPIError(r, err))
		}
	})
}

// sendError logs a server error and sends the response.
func (s *Server) sendError(w http.ResponseWriter, r *http.Request, f *apiError) {
	// Only errors of the server are worth an operator's attention.
	if f.status >= http.StatusInternalServerError {
		s.config.Logger.Error("request failed", "method", r.Method, "path", r.URL.Path,
			"status", f.status, "error", errors.Join(f, f.cause))
	}
	// The form of an error in the specification: {"error": {"message", "type", "code"}}.
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
		return fmt.Errorf("encode the response: %w", err)
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
		return badRequest("Content-Type: must be application/json")
	}
	// ServeHTTP has limited the size of the body.
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
		return decodeError(b, "body", err)
	}
	return nil
}

// decodeError describes a decoding error in terms of JSON, because clients do not know Go types.
func decodeError(b []byte, what string, err error) error {
	var f *apiError
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &syntax):
		read := b[:min(int(syntax.Offset), len(b))]
		line := 1 + bytes.Count(read, []byte("\n"))
		column := len(read) - bytes.LastIndexByte(read, '\n') - 1
		return badRequest("%s: invalid JSON: line %d, column %d: %v", what, line, column, syntax)
	// The field is the full path within the body.
	case errors.As(err, &kind):
		if kind.Field != "" {
			what = kind.Field
		}
		return badRequest("%s: got %s, want %s", what, kind.Value, jsonType(kind.Type))
	}
	return invalidInput(what, err)
}

// jsonType returns the JSON name of a Go type.
func jsonType(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() { //nolint:exhaustive // what is left is an object
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "an integer in range"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Slice, reflect.Array:
		return "array"
	}
	return "object"
}

// goText matches error texts about Go instead of the request.
var goText = regexp.MustCompile(`runtime error|json: |Go (?:value|struct)|strconv\.|reflect[.:]|` +
	`interface conversion|\*?\b(?:table|iceberg|restcatalog|json)\.[A-Z]`)

// invalidInput returns the error for input that a library refuses. The library's message is
// included unless it is about Go.
func invalidInput(what string, err error) error {
	// Errors of encoding/json begin with the name of the package.
	text := strings.TrimSpace(strings.TrimPrefix(err.Error(), "json: "))
	if goText.MatchString(text) {
		text = "invalid"
	}
	return &apiError{
		status: http.StatusBadRequest, kind: "BadRequestException", message: what + ": " + text, cause: err,
	}
}

// readGuarded, unmarshalGuarded and validateGuarded pass client input to iceberg-go, which panics
// on some invalid input. The panic becomes a client error.
func readGuarded(r *http.Request, into any) (err error) {
	defer guard(&err)
	return read(r, into)
}

// unmarshalGuarded is json.Unmarshal. See readGuarded.
func unmarshalGuarded(b []byte, into any) (err error) {
	defer guard(&err)
	return json.Unmarshal(b, into)
}

// validateGuarded is Requirement.Validate. See readGuarded.
func validateGuarded(requirement table.Requirement, m table.Metadata) (err error) {
	defer guard(&err)
	return requirement.Validate(m)
}

// guard converts a panic to a client error. It must be deferred.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = invalidInput("request", fmt.Errorf("%v", p))
	}
}
