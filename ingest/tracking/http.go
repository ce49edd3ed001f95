package tracking

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/internal/server"
)

// paths maps the paths of the API to the type of the event in the body. Bodies of the paths without
// a type are batches. The browser's client uses the short forms.
var paths = map[string]string{
	"/v1/track": behavior.Track, "/v1/t": behavior.Track,
	"/v1/identify": behavior.Identify, "/v1/i": behavior.Identify,
	"/v1/page": behavior.Page, "/v1/p": behavior.Page,
	"/v1/screen": behavior.Screen, "/v1/s": behavior.Screen,
	"/v1/group": behavior.Group, "/v1/g": behavior.Group,
	"/v1/alias": behavior.Alias, "/v1/a": behavior.Alias,
	"/v1/batch": "", "/v1/b": "", "/v1/import": "",
}

// Answers of the API.
const (
	codeBody        = "invalid_body"
	codeField       = "invalid_field"
	codeTooLarge    = "too_large"
	codeEncoding    = "unsupported_encoding"
	codeKey         = "unknown_write_key"
	codeOrigin      = "origin_not_allowed"
	codeOverloaded  = "overloaded"
	codeRate        = "rate_exceeded"
	codeUnavailable = "unavailable"
)

// problem is an answer other than 200.
type problem struct {
	status  int
	code    string
	field   string
	message string
}

// answer is the body of every answer.
type answer struct {
	Success  bool      `json:"success"`
	Code     string    `json:"code,omitempty"`
	Field    string    `json:"field,omitempty"`
	Message  string    `json:"message,omitempty"`
	Rejected []refused `json:"rejected,omitempty"`
}

// refused is an event of a batch that is now a dead letter.
type refused struct {
	Index   int    `json:"index"`
	Field   string `json:"field"`
	Message string `json:"message"`
}

// Handler serves the API, and the health of the intake at /healthz and /readyz.
func (t *Intake) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, kind := range paths {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { t.serve(w, r, kind) })
		mux.HandleFunc("OPTIONS "+path, t.preflight)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !t.Available() {
			http.Error(w, "not ready: "+errUnavailable.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ready\n")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Nearly all requests have events: they are spared the patterns of the mux.
		if kind, ok := paths[r.URL.Path]; ok && r.Method == http.MethodPost && r.URL.RawPath == "" {
			t.serve(w, r, kind)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// preflight answers what a browser asks before a page of another origin may send.
func (t *Intake) preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", "POST, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Content-Encoding, X-Retry-Count")
	h.Set("Access-Control-Max-Age", "3600")
	t.allow(w, r, t.config.Sources.origins)
	w.WriteHeader(http.StatusNoContent)
}

// allow lets the page that made the request read the answer, if its origin is one of the allowed. It
// returns false if it is not. Credentials such as cookies are never allowed. Programs other than
// browsers send no origin.
func (t *Intake) allow(w http.ResponseWriter, r *http.Request, allowed []string) bool {
	origin := r.Header.Get("Origin")
	value := allowOrigin(allowed, origin)
	if value != anyOrigin {
		w.Header().Add("Vary", "Origin")
	}
	if origin == "" {
		return true
	}
	if value == "" {
		return false
	}
	w.Header().Set("Access-Control-Allow-Origin", value)
	w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
	return true
}

// serve handles a request with events. Under overload it refuses the request, before it reads the
// body if possible. A request takes a place only when its body has arrived, so slow clients do not
// occupy places.
func (t *Intake) serve(w http.ResponseWriter, r *http.Request, kind string) {
	if !t.limiter.Admits(server.Command) {
		t.refuse(w, r, overloaded(server.ErrOverloaded))
		return
	}
	m := memories.Get().(*memory) //nolint:forcetypeassert // of New
	defer memories.Put(m)
	if bad := read(w, r, m); bad != nil {
		t.refuse(w, r, bad)
		return
	}
	release, err := t.limiter.Acquire(r.Context(), server.Command)
	if errors.Is(err, server.ErrOverloaded) {
		t.refuse(w, r, overloaded(err))
	}
	if err != nil {
		return // otherwise the client has gone
	}
	defer release()
	t.accept(w, r, kind, m)
}

// accept handles a request whose body is in m.
func (t *Intake) accept(w http.ResponseWriter, r *http.Request, kind string, m *memory) {
	begun := time.Now()
	received := event.Time(begun)
	b, err := readBody(m, kind)
	if err != nil {
		t.refuse(w, r, &problem{http.StatusBadRequest, codeBody, "", err.Error()})
		return
	}
	source := t.source(r, &b)
	if source == nil {
		t.refuse(w, r, &problem{http.StatusUnauthorized, codeKey, "writeKey",
			"unknown write key: send it as the user of basic authentication, or as writeKey in the body"})
		return
	}
	if !t.allow(w, r, source.Origins) {
		t.refuse(w, r, &problem{http.StatusForbidden, codeOrigin, "", "pages of this origin may not send with this write key"})
		return
	}
	if b.bad != nil {
		t.refuse(w, r, &problem{http.StatusBadRequest, codeField, b.bad.Field, b.bad.Error()})
		return
	}
	if !source.allowed.take(len(b.events), begun) {
		t.refuse(w, r, &problem{http.StatusTooManyRequests, codeRate, "", fmt.Sprintf(
			"the write key of %s may send %d events per second to this process: send these again later", source.Name, source.Rate)})
		return
	}
	s := t.sort(&b, m, kind, source, received)
	// After sort, so that what it asked was known.
	if err := t.config.Consent.ready(); err != nil {
		t.refuse(w, r, &problem{http.StatusServiceUnavailable, codeUnavailable, "", err.Error()})
		return
	}
	// If nothing in the body can be used, the client learns it. If only some of a batch can, then
	// refusing the request would lose the rest, because clients drop what gets a 400.
	if len(s.rejected) == len(b.events) {
		first := s.rejected[0]
		field := first.bad.Field
		if kind == "" {
			field = fmt.Sprintf("batch[%d].%s", first.index, field)
		}
		t.refuse(w, r, &problem{http.StatusBadRequest, codeField, field, field + ": " + first.bad.Problem})
		return
	}
	if err := t.take(s, source, &b); err != nil {
		t.refuse(w, r, &problem{http.StatusServiceUnavailable, codeUnavailable, "", err.Error()})
		return
	}
	a := answer{Success: true}
	for _, rejected := range s.rejected {
		a.Rejected = append(a.Rejected, refused{rejected.index, rejected.bad.Field, rejected.bad.Problem})
	}
	respond(w, http.StatusOK, a)
}

// source returns the source of a request, by basic authentication or else by the write key in the
// body. It returns nil if there is none. Every event of the browser's client has the key.
func (t *Intake) source(r *http.Request, b *batch) *Source {
	key, _, ok := r.BasicAuth()
	if !ok {
		key = b.writeKey
		if key == "" && len(b.events) > 0 {
			key = b.events[0].writeKey
		}
	}
	return t.config.Sources.find(key)
}

// refuse answers a request that was not accepted.
func (t *Intake) refuse(w http.ResponseWriter, r *http.Request, p *problem) {
	if w.Header().Get("Access-Control-Allow-Origin") == "" {
		t.allow(w, r, t.config.Sources.origins) // the page may read why
	}
	switch p.status {
	case http.StatusTooManyRequests:
		t.stats.overloaded.Add(1)
		w.Header().Set("Retry-After", server.RetryAfter)
	case http.StatusServiceUnavailable:
		t.stats.unavailable.Add(1)
		w.Header().Set("Retry-After", server.RetryAfter)
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="tracking"`)
		t.stats.rejected.Add(1)
	default:
		t.stats.rejected.Add(1)
	}
	respond(w, p.status, answer{Code: p.code, Field: p.field, Message: p.message})
}

// What nearly all answers have. Their memory is shared, and nothing changes it.
var (
	typeJSON = []string{"application/json"}
	noSniff  = []string{"nosniff"}
	success  = []byte(`{"success":true}` + "\n")
)

// respond writes an answer.
func respond(w http.ResponseWriter, status int, a answer) {
	h := w.Header()
	h["Content-Type"], h["X-Content-Type-Options"] = typeJSON, noSniff
	w.WriteHeader(status)
	if status == http.StatusOK && len(a.Rejected) == 0 {
		_, _ = w.Write(success)
		return
	}
	_ = json.NewEncoder(w).Encode(a) // a client that is gone needs no answer
}

// unzippers holds decompressors, which have large tables.
var unzippers = sync.Pool{New: func() any { return new(gzip.Reader) }}

// read reads the body of a request into m, up to maxBody bytes of decompressed text.
func read(w http.ResponseWriter, r *http.Request, m *memory) (bad *problem) {
	var body io.Reader = r.Body
	if r.ContentLength < 0 || r.ContentLength > maxBody { // otherwise it cannot be longer
		body = http.MaxBytesReader(w, r.Body, maxBody)
	}
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
	case "gzip":
		z := unzippers.Get().(*gzip.Reader) //nolint:forcetypeassert // of New
		defer unzippers.Put(z)
		if err := z.Reset(body); err != nil {
			return bodyProblem(fmt.Errorf("the body is not gzip: %w", err))
		}
		body = z
	default:
		return &problem{http.StatusUnsupportedMediaType, codeEncoding, "",
			"content-encoding must be gzip or none"}
	}
	m.body = m.body[:0]
	for {
		m.body = slices.Grow(m.body, 1)
		n, err := body.Read(m.body[len(m.body):cap(m.body)])
		m.body = m.body[:len(m.body)+n]
		switch {
		case len(m.body) > maxBody:
			return tooLarge()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return bodyProblem(err)
		}
	}
}

// tooLarge is the answer to a body that is too large, compressed or not.
func tooLarge() *problem {
	return &problem{http.StatusRequestEntityTooLarge, codeTooLarge, "",
		fmt.Sprintf("the body has more than %d bytes", maxBody)}
}

// overloaded is the answer under overload.
func overloaded(err error) *problem {
	return &problem{http.StatusTooManyRequests, codeOverloaded, "", err.Error()}
}

// bodyProblem returns the answer to a body that cannot be read.
func bodyProblem(err error) *problem {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return tooLarge()
	case errors.Is(err, server.ErrBusy):
		return overloaded(err)
	case errors.Is(err, server.ErrBodyLate):
		return &problem{http.StatusRequestTimeout, codeBody, "", server.ErrBodyLate.Error()}
	}
	return &problem{http.StatusBadRequest, codeBody, "", err.Error()}
}
