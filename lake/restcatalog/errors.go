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

// A failure is an answer that is an error. Its kind is the name of the exception that Java's client
// throws, which is what all clients know errors by.
type failure struct {
	status        int
	kind, message string
	cause         error // for the log
}

func (f *failure) Error() string { return f.kind + ": " + f.message }

func (f *failure) Unwrap() error { return f.cause }

func badRequest(format string, args ...any) error {
	return &failure{status: http.StatusBadRequest, kind: "BadRequestException", message: fmt.Sprintf(format, args...)}
}

func commitFailed(format string, args ...any) error {
	return &failure{status: http.StatusConflict, kind: "CommitFailedException", message: fmt.Sprintf(format, args...)}
}

// notNow says that nothing was done, so that the client may try again. Clients take 500, 502 and
// 504 in answer to a commit for "it may have landed", and keep its files; 503 tells them that it
// did not.
func notNow(cause error) error {
	return &failure{status: http.StatusServiceUnavailable, kind: "ServiceUnavailableException",
		message: "the catalog or its storage did not answer; nothing was done, try again", cause: cause}
}

// stateUnknown says that a commit may or may not have landed.
func stateUnknown(cause error) error {
	return &failure{status: http.StatusInternalServerError, kind: "CommitStateUnknownException",
		message: "the commit was sent to the database and its answer was lost: load the table to see whether it landed", cause: cause}
}

// What errors of the catalog are to clients.
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

// failed returns what an error is to the client of a request.
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
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		errors.As(notNow(err), &f)
		return f
	}
	return &failure{status: http.StatusInternalServerError, kind: "InternalServerError",
		message: "the catalog or its storage failed, and it is not known what was done; the server's log says why", cause: err}
}

// answer returns a handler's error an answer.
func (s *Server) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, failed(r, err))
		}
	})
}

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
	_ = json.NewEncoder(w).Encode(map[string]model{"error": {f.message, f.kind, f.status}}) // the client may have left
}

// reply sends an answer as JSON.
func reply(w http.ResponseWriter, answer any) error {
	b, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client may have left
	return nil
}

// read takes a request's body apart.
func read(r *http.Request, into any) error {
	// No page of another site can have a browser send this without asking first, and the answer to
	// that is no.
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

func decode(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return undecodable(b, "the body", err)
	}
	return nil
}

// undecodable reports what is wrong with JSON, in JSON's terms: the client does not know our types.
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

// inJSON returns what a type of ours is in JSON.
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

// ofGo are the signs of an error that speaks of Go, and not of the request.
var ofGo = regexp.MustCompile(`runtime error|json: |Go (?:value|struct)|strconv\.|reflect[.:]|interface conversion|\*?\b(?:table|iceberg|restcatalog|json)\.[A-Z]`)

// senseless returns the error of what a library makes no sense of. What it says is shown where it
// speaks of the request.
func senseless(what string, err error) error {
	text := strings.TrimSpace(strings.TrimPrefix(err.Error(), "json: "))
	if ofGo.MatchString(text) {
		text = "it makes no sense"
	}
	return &failure{status: http.StatusBadRequest, kind: "BadRequestException", message: what + ": " + text, cause: err}
}

// readGuarded and the two below hand outside bytes, or what came of them, to iceberg-go, where some
// of what is not a sense ends in a panic. It is the client's error.
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

func guard(err *error) {
	if p := recover(); p != nil {
		*err = senseless("the request", fmt.Errorf("%v", p))
	}
}
