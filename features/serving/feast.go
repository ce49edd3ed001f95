package serving

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/server"
)

// Limits of a request of Feast's client.
const (
	maxFeastBody     = 4 << 20
	maxFeastEntities = 10_000 // values of one key
	maxFeastKeys     = 100
	maxFeastFeatures = 1_000
	maxFeastValues   = 1_000_000 // entities × features
)

// A feastError is an error in the form of Feast's feature server: a JSON string that holds a JSON
// object. Its client raises the class of the module feast.errors with the message.
type feastError struct {
	status         int
	class, message string
}

func (e *feastError) Error() string { return e.message }

// The classes of Feast's errors that are answered.
const (
	classAny       = "FeastError"
	classView      = "FeatureViewNotFoundException"
	classService   = "FeatureServiceNotFoundException"
	classNotFound  = "FeastObjectNotFoundException"
	classCollision = "FeatureNameCollisionError"
)

func badFeast(format string, a ...any) error {
	return &feastError{http.StatusUnprocessableEntity, classAny, fmt.Sprintf(format, a...)}
}

// WriteFeastError answers with an error in Feast's form.
func WriteFeastError(w http.ResponseWriter, status int, class, message string) {
	inner, _ := json.Marshal(map[string]string{"module": "feast.errors", "class": class, "message": message})
	outer, _ := json.Marshal(string(inner)) // texts can always be marshalled
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(outer) // a client that is gone needs no answer
}

// NewFeast returns a handler of POST /get-online-features. guard wraps it, to admit requests.
// GET /health needs no right.
func NewFeast(s *Service, guard func(http.Handler) http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /get-online-features", guard(http.HandlerFunc(s.serveFeast)))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.backend.Ready(); err != nil {
			WriteFeastError(w, http.StatusServiceUnavailable, classAny, err.Error())
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		WriteFeastError(w, http.StatusNotFound, classAny, fmt.Sprintf(
			"%s %s is not served: POST /get-online-features and GET /health are", r.Method, r.URL.Path))
	})
	return &feastErrors{mux}
}

// feastErrors gives plain errors of the layers below Feast's form: of authentication and overload.
type feastErrors struct{ next http.Handler }

// FeastErrors returns a handler whose plain text errors have Feast's form. Its client cannot read
// others.
func FeastErrors(next http.Handler) http.Handler { return &feastErrors{next} }

func (f *feastErrors) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.next.ServeHTTP(&feastWriter{ResponseWriter: w}, r)
}

// feastWriter translates a plain text error.
type feastWriter struct {
	http.ResponseWriter
	status int // of a plain text error whose text is to come
}

func (w *feastWriter) WriteHeader(status int) {
	if status >= http.StatusBadRequest && strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		w.status = status
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *feastWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		return w.ResponseWriter.Write(b)
	}
	status := w.status
	w.status = 0
	w.Header().Del("Content-Length")
	WriteFeastError(w.ResponseWriter, status, classAny, strings.TrimSpace(string(b)))
	return len(b), nil
}

// Unwrap is used by http.ResponseController.
func (w *feastWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// serveFeast answers POST /get-online-features.
func (s *Service) serveFeast(w http.ResponseWriter, r *http.Request) {
	m, _ := memories.Get().(*memory)
	defer func() {
		if cap(m.answer) <= maxReused {
			memories.Put(m)
		}
	}()
	if err := s.feast(r, m); err != nil {
		var known *feastError
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &known):
			WriteFeastError(w, known.status, known.class, known.message)
		case errors.As(err, &tooLarge):
			WriteFeastError(w, http.StatusRequestEntityTooLarge, classAny,
				fmt.Sprintf("the body has more than %d bytes", maxFeastBody))
		case errors.Is(err, server.ErrBusy):
			w.Header().Set("Retry-After", server.RetryAfter)
			WriteFeastError(w, http.StatusTooManyRequests, classAny, err.Error())
		default:
			WriteFeastError(w, http.StatusBadRequest, classAny, "the body is truncated or did not arrive in time")
		}
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(m.answer)))
	_, _ = w.Write(m.answer) // a client that is gone needs no answer
}

// memory is that of one request, which is reused.
type memory struct {
	body                       bytes.Buffer
	shape, times, rest, answer []byte
	found                      [][]online.Vector // by view
}

// maxReused is the size of an answer from which its memory is not kept.
const maxReused = 1 << 20

var memories = sync.Pool{New: func() any { return new(memory) }}

// feast answers a request into m.answer.
func (s *Service) feast(r *http.Request, m *memory) error {
	m.body.Reset()
	if _, err := m.body.ReadFrom(http.MaxBytesReader(nil, r.Body, maxFeastBody)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.backend.Ready(); err != nil {
		return &feastError{http.StatusServiceUnavailable, classAny, err.Error()}
	}
	var raw string
	m.shape, raw = cutEntities(m.shape[:0], m.body.Bytes())
	p, err := s.plan(m.shape)
	if err != nil {
		return err
	}
	entities, err := parseEntities(raw)
	if err != nil {
		return err
	}
	if err := p.check(entities); err != nil {
		return err
	}
	at := event.Time(s.now())
	for len(m.found) < len(p.views) {
		m.found = append(m.found, nil)
	}
	for i, q := range p.views {
		column := entities[entities.index(q.Group.Entity)]
		if m.found[i], err = s.lookup(r.Context(), q, column.names, at, m.found[i]); err != nil {
			if errors.Is(err, online.ErrUnavailable) {
				return &feastError{http.StatusServiceUnavailable, classAny, err.Error()}
			}
			return err
		}
		if s.log != nil {
			s.log.Add(q, m.found[i], at)
		}
	}
	m.answer = m.appendAnswer(m.answer[:0], entities, p)
	return nil
}
