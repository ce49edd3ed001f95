package serving

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/decode"
)

// A client sends one request again and again, with other entities. So a body is cut in two: its
// shape, which is the body with {} in place of the entities, and the entities. The plan of a shape is
// kept, and only the entities are parsed each time. A body is valid JSON if both parts are.

// feastRequest is the shape of a request's body. Fields that are unknown here are ignored.
type feastRequest struct {
	Entities        map[string]json.RawMessage `json:"entities"` // cut out
	FeatureService  *string                    `json:"feature_service"`
	Features        []string                   `json:"features"`
	FullNames       bool                       `json:"full_feature_names"`
	VersionMetadata bool                       `json:"include_feature_view_version_metadata"`
}

// feastEntities are the entities' keys, in the order of the request.
type feastEntities []feastColumn

// feastColumn is the values of one key: as they were sent, and as names of entities.
type feastColumn struct {
	key           string
	values, names []string
}

// index returns the index of a key, or -1.
func (e feastEntities) index(key string) int {
	return slices.IndexFunc(e, func(c feastColumn) bool { return c.key == key })
}

// cutEntities appends the shape of a body to dst and returns it and the text of the entities, which
// is empty if there are none. It finds their place in a valid body. In another one, whatever it
// returns is not valid.
func cutEntities(dst, body []byte) (shape []byte, entities string) {
	s := scanner[[]byte]{text: body}
	for more := s.take('{'); more; more = s.take(',') {
		key := s.value()
		if !s.take(':') {
			break
		}
		s.space()
		from := s.at
		value := s.value()
		if string(key) == `"entities"` {
			dst = append(append(append(dst, body[:from]...), "{}"...), body[s.at:]...)
			return dst, string(value)
		}
	}
	return append(dst, body...), ""
}

// scanner finds the values of JSON, without a check of what is in them.
type scanner[T string | []byte] struct {
	text T
	at   int
}

// space skips white space.
func (s *scanner[T]) space() {
	for ; s.at < len(s.text); s.at++ {
		if c := s.text[s.at]; c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return
		}
	}
}

// take skips white space and a character. It returns false if another one follows.
func (s *scanner[T]) take(c byte) bool {
	s.space()
	if s.at == len(s.text) || s.text[s.at] != c {
		return false
	}
	s.at++
	return true
}

// value skips white space and a value, and returns the value.
func (s *scanner[T]) value() T {
	s.space()
	from, depth := s.at, 0
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case '"':
			s.quoted()
		case '{', '[':
			depth++
			s.at++
		case '}', ']':
			if depth == 0 {
				return s.text[from:s.at] // the end of what the value is in
			}
			depth--
			s.at++
		case ',', ':', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return s.text[from:s.at]
			}
			s.at++
			continue
		default: // a number or a word
			s.at++
			continue
		}
		if depth == 0 {
			break
		}
	}
	return s.text[from:s.at]
}

// quoted skips a text.
func (s *scanner[T]) quoted() {
	for s.at++; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\\':
			s.at++
		case '"':
			s.at++
			return
		}
	}
	s.at = len(s.text)
}

var errEntities = badFeast("entities: want an object of lists")

// parseEntities parses the value of "entities". Without an error, the text is valid JSON.
func parseEntities(text string) (all feastEntities, err error) {
	if text == "" {
		return nil, nil
	}
	s := scanner[string]{text: text}
	if !s.take('{') {
		return nil, errEntities
	}
	for more := !s.take('}'); more; more = s.take(',') {
		var c feastColumn
		key := s.value()
		if c.key, err = parseText(key); err != nil || !s.take(':') {
			return nil, errEntities
		}
		switch {
		case !s.take('['):
			return nil, badFeast("entities: %s: want a list", c.key)
		case len(all) == maxFeastKeys:
			return nil, badFeast("entities: more than %d keys", maxFeastKeys)
		}
		for more := !s.take(']'); more; more = s.take(',') {
			if len(c.values) == maxFeastEntities {
				return nil, badFeast("entities: %s has more than %d values", c.key, maxFeastEntities)
			}
			raw := s.value()
			name, err := entityName(raw)
			if err != nil {
				return nil, badFeast("entities: %s[%d]: %s", c.key, len(c.values), err)
			}
			c.values, c.names = append(c.values, raw), append(c.names, name)
		}
		if len(c.values) > 0 && !s.take(']') {
			return nil, errEntities
		}
		all = append(all, c)
	}
	if len(all) > 0 && !s.take('}') || s.at != len(text) {
		return nil, errEntities
	}
	return all, nil
}

// parseText parses a JSON string.
func parseText(raw string) (s string, err error) {
	if raw == "" || raw[0] != '"' {
		return "", errors.New("want a text")
	}
	if end := len(raw) - 1; end > 0 && raw[end] == '"' && isPlain(raw[1:end]) {
		return raw[1:end], nil
	}
	if !utf8.ValidString(raw) { // the answer repeats it
		return "", errors.New("the text is not UTF-8")
	}
	err = json.Unmarshal([]byte(raw), &s)
	return s, err
}

// isPlain reports whether a text means itself in a JSON string.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			return false
		}
	}
	return true
}

// entityName returns the name of an entity: a text as it is, and an integer in decimal.
func entityName(raw string) (string, error) {
	if strings.HasPrefix(raw, `"`) {
		return parseText(raw)
	}
	if n, err := strconv.ParseInt(raw, 10, 64); err == nil && json.Valid([]byte(raw)) {
		return strconv.FormatInt(n, 10), nil
	}
	return "", errors.New("want a text or an integer")
}

// feastOutput is one result column: an output of a view.
type feastOutput struct{ view, output int }

// feastPlan is what a shape asks for. It is immutable.
type feastPlan struct {
	views   []*online.Query
	groups  map[string]*features.Group // by the name that the request has for them
	outputs []feastOutput
	tail    []byte // of the answer: what follows the entities' keys in the metadata
}

// feastPlans are the plans of shapes.
type feastPlans struct {
	mu      sync.RWMutex
	byShape map[string]*feastPlan
}

// Bounds of feastPlans. Clients ask in few different ways.
const (
	maxPlans = 1000
	maxShape = 32 << 10 // bytes of a shape whose plan is kept
)

// plan returns the plan of a shape.
func (s *Service) plan(shape []byte) (*feastPlan, error) {
	s.plans.mu.RLock()
	p := s.plans.byShape[string(shape)]
	s.plans.mu.RUnlock()
	if p != nil && s.isLive(p) {
		return p, nil
	}
	var r feastRequest
	if err := json.Unmarshal(shape, &r); err != nil {
		return nil, badFeast("the body is not a request of Feast's client: %s", decode.ExplainJSON(nil, err))
	}
	p, err := s.newPlan(&r)
	if err != nil || len(shape) > maxShape {
		return p, err
	}
	s.plans.mu.Lock()
	defer s.plans.mu.Unlock()
	if s.plans.byShape == nil || len(s.plans.byShape) >= maxPlans {
		s.plans.byShape = map[string]*feastPlan{}
	}
	s.plans.byShape[string(shape)] = p
	return p, nil
}

// isLive reports whether a plan is of the live versions of its groups. Another version may have become
// live since it was made.
func (s *Service) isLive(p *feastPlan) bool {
	for name, g := range p.groups {
		if s.backend.Store().Group(name) != g {
			return false
		}
	}
	return true
}

// newPlan finds the groups and features of a request.
func (s *Service) newPlan(r *feastRequest) (*feastPlan, error) {
	switch {
	case len(r.Entities) > 0:
		return nil, badFeast("entities: is set twice")
	case len(r.Features) > maxFeastFeatures:
		return nil, badFeast("features: %d are more than %d", len(r.Features), maxFeastFeatures)
	case r.FeatureService == nil && len(r.Features) == 0:
		return nil, badFeast("features: want features or a feature_service")
	}
	store := s.backend.Store()
	p := &feastPlan{groups: map[string]*features.Group{}}
	var groups []*features.Group
	var outputs [][]string // by group
	var names []string
	add := func(g *features.Group, output string) {
		v := slices.Index(groups, g)
		if v < 0 {
			v = len(groups)
			groups, outputs = append(groups, g), append(outputs, nil)
		}
		p.outputs = append(p.outputs, feastOutput{v, len(outputs[v])})
		outputs[v] = append(outputs[v], output)
		if name := output; r.FullNames {
			names = append(names, g.Name+"__"+name)
		} else {
			names = append(names, name)
		}
	}
	if r.FeatureService != nil {
		g := store.Group(*r.FeatureService)
		if g == nil {
			return nil, &feastError{http.StatusNotFound, classService,
				fmt.Sprintf("Feature service %s does not exist", *r.FeatureService)}
		}
		p.groups[*r.FeatureService] = g
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
			p.groups[view] = g
			if name != "*" {
				add(g, name)
				continue
			}
			for _, o := range g.Outputs() {
				add(g, o.Name)
			}
		}
	}
	for i, g := range groups {
		q, err := s.query(g.ID(), outputs[i])
		if err != nil {
			return nil, &feastError{http.StatusNotFound, classNotFound, err.Error()}
		}
		p.views = append(p.views, q)
	}
	for _, name := range names {
		p.tail = append(append(append(p.tail, `,"`...), name...), '"')
	}
	p.tail = append(p.tail, ']')
	if r.VersionMetadata {
		p.tail = append(p.tail, `,"feature_view_metadata":[`...)
		for i, g := range groups {
			p.tail = appendQuoted(append(comma(p.tail, i), `{"name":`...), g.Name)
			p.tail = append(strconv.AppendInt(append(p.tail, `,"version":`...), int64(g.Version), 10), '}')
		}
		p.tail = append(p.tail, ']')
	}
	p.tail = append(p.tail, `}}`...)
	return p, collision(names)
}

// check checks the entities of a request.
func (p *feastPlan) check(entities feastEntities) error {
	if len(entities) == 0 || len(entities[0].values) == 0 {
		return badFeast("entities: want at least one")
	}
	n := len(entities[0].values)
	if len(p.outputs)*n > maxFeastValues {
		return badFeast("%d features of %d entities are more than %d values", len(p.outputs), n, maxFeastValues)
	}
	for i, c := range entities {
		if len(c.values) != n {
			return badFeast("entities: %s has %d values, and %s has %d", c.key, len(c.values), entities[0].key, n)
		}
		if entities[:i].index(c.key) >= 0 {
			return badFeast("entities: %s is set twice", c.key)
		}
	}
	for _, q := range p.views {
		if entities.index(q.Group.Entity) < 0 {
			return badFeast("entities: the key %s of feature view %s is missing", q.Group.Entity, q.Group.Name)
		}
	}
	return nil
}

// collision returns an error if two features have the same name.
func collision(names []string) error {
	sorted := slices.Sorted(slices.Values(names))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return &feastError{http.StatusUnprocessableEntity, classCollision, fmt.Sprintf(
				"The feature %s is requested twice: use full_feature_names, or request it once", sorted[i])}
		}
	}
	return nil
}
