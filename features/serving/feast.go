package serving

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/server"
)

// Limits of a request of Feast's client.
const (
	maxFeastBody     = 4 << 20
	maxFeastEntities = 10_000
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

// feastRequest is the body of POST /get-online-features. Fields that are unknown here are ignored.
type feastRequest struct {
	Entities        feastEntities `json:"entities"`
	FeatureService  *string       `json:"feature_service"`
	Features        []string      `json:"features"`
	FullNames       bool          `json:"full_feature_names"`
	VersionMetadata bool          `json:"include_feature_view_version_metadata"`
}

// feastEntities are the entities' keys, in the order of the request.
type feastEntities []feastColumn

// feastColumn is the values of one key: as they were sent, and as names of entities.
type feastColumn struct {
	key    string
	values []json.RawMessage
	names  []string
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *feastEntities) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return badFeast("entities: want an object of lists")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		var c feastColumn
		c.key, _ = t.(string) // a key is a text
		if err := d.Decode(&c.values); err != nil {
			return badFeast("entities: %s: want a list", c.key)
		}
		c.names = make([]string, len(c.values))
		for i, raw := range c.values {
			if c.names[i], err = entityName(raw); err != nil {
				return badFeast("entities: %s[%d]: %s", c.key, i, err)
			}
		}
		*e = append(*e, c)
	}
	return nil
}

// entityName returns the name of an entity: a text as it is, and an integer in decimal.
func entityName(raw json.RawMessage) (string, error) {
	if len(raw) > 0 && raw[0] == '"' {
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	}
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return strconv.FormatInt(n, 10), nil
	}
	return "", errors.New("want a text or an integer")
}

// parseFeast reads a request and checks its form.
func parseFeast(body []byte) (*feastRequest, error) {
	var r feastRequest
	if err := json.Unmarshal(body, &r); err != nil {
		var known *feastError
		if errors.As(err, &known) {
			return nil, known
		}
		return nil, badFeast("the body is not a request of Feast's client: %s", err)
	}
	switch {
	case len(r.Entities) == 0 || len(r.Entities[0].values) == 0:
		return nil, badFeast("entities: want at least one")
	case len(r.Entities[0].values) > maxFeastEntities:
		return nil, badFeast("entities: %d are more than %d", len(r.Entities[0].values), maxFeastEntities)
	case len(r.Features) > maxFeastFeatures:
		return nil, badFeast("features: %d are more than %d", len(r.Features), maxFeastFeatures)
	case r.FeatureService == nil && len(r.Features) == 0:
		return nil, badFeast("features: want features or a feature_service")
	}
	for i, c := range r.Entities {
		if len(c.values) != len(r.Entities[0].values) {
			return nil, badFeast("entities: %s has %d values, and %s has %d", c.key, len(c.values), r.Entities[0].key,
				len(r.Entities[0].values))
		}
		if slices.ContainsFunc(r.Entities[:i], func(d feastColumn) bool { return d.key == c.key }) {
			return nil, badFeast("entities: %s is set twice", c.key)
		}
	}
	return &r, nil
}

// feastView is the features of one group in a request.
type feastView struct {
	query *online.Query
	names []string
	found []online.Vector
}

// feastOutput is one result column: an output of a view.
type feastOutput struct{ view, output int }

// feastPlan is what a request asks for.
type feastPlan struct {
	views   []feastView
	outputs []feastOutput
	names   []string // of the outputs, as they are answered
}

// planFeast finds the groups and features of a request.
func (s *Service) planFeast(r *feastRequest) (*feastPlan, error) {
	store := s.backend.Store()
	p := &feastPlan{}
	var groups []*features.Group
	add := func(g *features.Group, output string) {
		v := slices.Index(groups, g)
		if v < 0 {
			v = len(groups)
			groups = append(groups, g)
			p.views = append(p.views, feastView{})
		}
		p.outputs = append(p.outputs, feastOutput{v, len(p.views[v].names)})
		p.views[v].names = append(p.views[v].names, output)
		if name := output; r.FullNames {
			p.names = append(p.names, g.Name+"__"+name)
		} else {
			p.names = append(p.names, name)
		}
	}
	if r.FeatureService != nil {
		g := store.Group(*r.FeatureService)
		if g == nil {
			return nil, &feastError{http.StatusNotFound, classService,
				fmt.Sprintf("Feature service %s does not exist", *r.FeatureService)}
		}
		for _, o := range g.Outputs() {
			add(g, o.Name)
		}
	} else {
		for _, ref := range r.Features {
			view, name, ok := strings.Cut(ref, ":")
			if !ok {
				return nil, badFeast("features: %q: want VIEW:FEATURE", ref)
			}
			g := store.Group(view)
			if g == nil {
				return nil, &feastError{http.StatusNotFound, classView, fmt.Sprintf("Feature view %s does not exist", view)}
			}
			if name != "*" {
				add(g, name)
				continue
			}
			for _, o := range g.Outputs() {
				add(g, o.Name)
			}
		}
	}
	if len(p.outputs)*len(r.Entities[0].values) > maxFeastValues {
		return nil, badFeast("%d features of %d entities are more than %d values", len(p.outputs),
			len(r.Entities[0].values), maxFeastValues)
	}
	for i := range p.views {
		var err error
		if p.views[i].query, err = s.query(groups[i].Name, p.views[i].names); err != nil {
			return nil, &feastError{http.StatusNotFound, classNotFound, err.Error()}
		}
		if !slices.ContainsFunc(r.Entities, func(c feastColumn) bool { return c.key == groups[i].Entity }) {
			return nil, badFeast("entities: the key %s of feature view %s is missing", groups[i].Entity, groups[i].Name)
		}
	}
	return p, collision(p.names)
}

// collision returns an error if two features have the same name.
func collision(names []string) error {
	if len(names) < 2 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(names))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return &feastError{http.StatusUnprocessableEntity, classCollision, fmt.Sprintf(
				"The feature %s is requested twice: use full_feature_names, or request it once", sorted[i])}
		}
	}
	return nil
}

// serveFeast answers POST /get-online-features.
func (s *Service) serveFeast(w http.ResponseWriter, r *http.Request) {
	answer, err := s.feast(r)
	if err != nil {
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
	defer answers.Put(answer)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(*answer)))
	_, _ = w.Write(*answer) // a client that is gone needs no answer
}

// answers and bodies are reused.
var (
	answers = sync.Pool{New: func() any { return new([]byte) }}
	bodies  = sync.Pool{New: func() any { return new(bytes.Buffer) }}
)

// feast returns the answer to a request, which belongs to answers.
func (s *Service) feast(r *http.Request) (*[]byte, error) {
	body, _ := bodies.Get().(*bytes.Buffer)
	defer bodies.Put(body)
	body.Reset()
	if _, err := body.ReadFrom(http.MaxBytesReader(nil, r.Body, maxFeastBody)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := s.backend.Ready(); err != nil {
		return nil, &feastError{http.StatusServiceUnavailable, classAny, err.Error()}
	}
	request, err := parseFeast(body.Bytes())
	if err != nil {
		return nil, err
	}
	p, err := s.planFeast(request)
	if err != nil {
		return nil, err
	}
	at := event.Time(s.now())
	for i := range p.views {
		v := &p.views[i]
		pooled, _ := vectors.Get().(*[]online.Vector)
		defer vectors.Put(pooled)
		column := request.Entities[slices.IndexFunc(request.Entities,
			func(c feastColumn) bool { return c.key == v.query.Group.Entity })]
		if v.found, err = s.backend.Store().Lookup(v.query, column.names, at, *pooled); err != nil {
			return nil, err
		}
		*pooled = v.found
	}
	answer, _ := answers.Get().(*[]byte)
	*answer = appendFeast((*answer)[:0], request, p)
	return answer, nil
}

// never is the time of what has none.
const never = `"1970-01-01T00:00:00Z"`

// appendFeast appends the answer as Feast's feature server writes it.
func appendFeast(b []byte, r *feastRequest, p *feastPlan) []byte {
	b = append(b, `{"results":[`...)
	for i, c := range r.Entities {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"values":[`...)
		for j, raw := range c.values {
			b = append(comma(b, j), raw...)
		}
		b = append(b, `],"statuses":[`...)
		for j := range c.values {
			b = append(comma(b, j), `"PRESENT"`...)
		}
		b = append(b, `],"event_timestamps":[`...)
		for j := range c.values {
			b = append(comma(b, j), never...)
		}
		b = append(b, `]}`...)
	}
	for _, o := range p.outputs {
		found := p.views[o.view].found
		b = append(b, `,{"values":[`...)
		for j := range found {
			b = comma(b, j)
			if found[j].Found {
				b = appendResult(b, &found[j].Values[o.output])
			} else {
				b = append(b, "null"...)
			}
		}
		b = append(b, `],"statuses":[`...)
		for j := range found {
			b = comma(b, j)
			switch {
			case !found[j].Found:
				b = append(b, `"NOT_FOUND"`...)
			case found[j].Values[o.output].Kind == exact.NullResult:
				b = append(b, `"NULL_VALUE"`...)
			default:
				b = append(b, `"PRESENT"`...)
			}
		}
		b = append(b, `],"event_timestamps":[`...)
		for j := range found {
			b = appendMicros(comma(b, j), found[j].Newest)
		}
		b = append(b, `]}`...)
	}
	b = append(b, `],"metadata":{"feature_names":[`...)
	for i, c := range r.Entities {
		b = appendQuoted(comma(b, i), c.key)
	}
	for _, name := range p.names {
		b = append(append(append(b, `,"`...), name...), '"')
	}
	b = append(b, ']')
	if r.VersionMetadata {
		b = append(b, `,"feature_view_metadata":[`...)
		for i, v := range p.views {
			b = appendQuoted(append(comma(b, i), `{"name":`...), v.query.Group.Name)
			b = append(strconv.AppendInt(append(b, `,"version":`...), int64(v.query.Group.Version), 10), '}')
		}
		b = append(b, ']')
	}
	return append(b, `}}`...)
}

func comma(b []byte, i int) []byte {
	if i > 0 {
		return append(b, ',')
	}
	return b
}

// appendResult appends a value as Python writes it: a float has a point or an exponent.
func appendResult(b []byte, r *exact.Result) []byte {
	switch r.Kind {
	case exact.IntResult:
		return strconv.AppendInt(b, r.Int, 10)
	case exact.FloatResult:
		return appendFloat(b, r.Float)
	case exact.TextResult:
		return appendQuoted(b, r.Text)
	case exact.TextsResult:
		b = append(b, '[')
		for i, text := range r.Texts {
			b = appendQuoted(comma(b, i), text)
		}
		return append(b, ']')
	}
	return append(b, "null"...)
}

// The magnitudes between which Python writes a float without an exponent.
const smallFloat, largeFloat = 1e-4, 1e16

// appendFloat appends a number as Python's repr.
func appendFloat(b []byte, f float64) []byte {
	size := math.Abs(f)
	if size != 0 && (size < smallFloat || size >= largeFloat) {
		return strconv.AppendFloat(b, f, 'e', -1, 64)
	}
	start := len(b)
	b = strconv.AppendFloat(b, f, 'f', -1, 64)
	if bytes.IndexByte(b[start:], '.') < 0 {
		b = append(b, ".0"...)
	}
	return b
}

// appendQuoted appends a JSON string.
func appendQuoted(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			quoted, _ := json.Marshal(s) // a text can always be marshalled
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// appendMicros appends a time in microseconds since 1970, with as many decimals as it needs.
func appendMicros(b []byte, micros int64) []byte {
	if micros == 0 {
		return append(b, never...)
	}
	layout := `"2006-01-02T15:04:05.000000Z"`
	switch {
	case micros%1_000_000 == 0:
		layout = `"2006-01-02T15:04:05Z"`
	case micros%1_000 == 0:
		layout = `"2006-01-02T15:04:05.000Z"`
	}
	return time.UnixMicro(micros).UTC().AppendFormat(b, layout)
}
