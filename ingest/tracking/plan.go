package tracking

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/internal/decode"
)

// Plan is a tracking plan: the events that sources may send, and the types of their properties. A
// nil Plan allows everything.
type Plan struct {
	// Unplanned allows track events that Track does not list.
	Unplanned bool `yaml:"unplanned"`
	// Track has a rule for the properties of each track event, by its name.
	Track map[string]*Rule `yaml:"track"`
	// These are rules for the properties of page and screen, and for the traits of identify and
	// group. Nil allows everything.
	Page     *Rule `yaml:"page"`
	Screen   *Rule `yaml:"screen"`
	Identify *Rule `yaml:"identify"`
	Group    *Rule `yaml:"group"`
}

// Rule describes a JSON value, with words of JSON Schema. The rule of an event describes an object.
type Rule struct {
	Description string           `yaml:"description"`
	Type        string           `yaml:"type"` // string, number, integer, boolean, object, array; empty: any
	Required    bool             `yaml:"required"`
	Nullable    bool             `yaml:"nullable"`
	Enum        []any            `yaml:"enum"`
	Pattern     string           `yaml:"pattern"`
	Minimum     *float64         `yaml:"minimum"`
	Maximum     *float64         `yaml:"maximum"`
	Properties  map[string]*Rule `yaml:"properties"`
	Closed      bool             `yaml:"closed"` // properties that are not listed are not allowed
	Items       *Rule            `yaml:"items"`
	// Identifier makes a trait of identify an identifier of the identity graph: its kind.
	Identifier string `yaml:"identifier"`

	required []string       // sorted names of the required properties
	pattern  *regexp.Regexp // compiled Pattern
}

// ParsePlan reads a tracking plan from YAML.
func ParsePlan(text []byte) (*Plan, error) {
	p := &Plan{}
	if err := decode.YAML(text, p); err != nil {
		return nil, err
	}
	for name, rule := range p.rules() {
		if err := rule.compile(name, 0); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// rules returns the rules of all events, by their place in the file. An event without rules, such as
// "Cart Viewed:", gets an empty one.
func (p *Plan) rules() map[string]*Rule {
	all := map[string]*Rule{}
	for name, rule := range p.Track {
		if rule == nil {
			rule = &Rule{}
			p.Track[name] = rule
		}
		all["track."+name] = rule
	}
	for name, rule := range map[string]*Rule{
		behavior.Page: p.Page, behavior.Screen: p.Screen, behavior.Identify: p.Identify, behavior.Group: p.Group,
	} {
		if rule != nil {
			all[name] = rule
		}
	}
	for _, rule := range all {
		if rule.Type == "" {
			rule.Type = "object"
		}
	}
	return all
}

// ruleTypes are the values of Rule.Type.
var ruleTypes = []string{"", "string", "number", "integer", "boolean", "object", "array"}

// compile checks a rule and prepares it. place names it in errors.
func (r *Rule) compile(place string, depth int) (err error) {
	if depth > maxNesting {
		return fmt.Errorf("%s: rules are nested more than %d deep", place, maxNesting)
	}
	if !slices.Contains(ruleTypes, r.Type) {
		return fmt.Errorf("%s.type: %q is none of %s", place, r.Type, strings.Join(ruleTypes[1:], ", "))
	}
	if err := r.checkIdentifier(place, depth); err != nil {
		return err
	}
	if depth == 0 && r.Type != "object" {
		return fmt.Errorf("%s.type: the properties of an event are an object, not %q", place, r.Type)
	}
	if len(r.Properties) > 0 && r.Type == "" {
		r.Type = "object"
	}
	for word, allowed := range map[string]bool{
		"properties, closed": r.Type == "object" || len(r.Properties) == 0 && !r.Closed,
		"items":              r.Type == "array" || r.Items == nil,
		"pattern":            r.Type == "string" || r.Pattern == "",
		"minimum, maximum":   r.Type == "number" || r.Type == "integer" || r.Minimum == nil && r.Maximum == nil,
	} {
		if !allowed {
			return fmt.Errorf("%s: %s: not for the type %q", place, word, r.Type)
		}
	}
	if r.pattern, err = regexp.Compile(r.Pattern); err != nil {
		return fmt.Errorf("%s.pattern: %w", place, err)
	}
	for i, value := range r.Enum {
		// Values are compared as JSON.
		b, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("%s.enum: %v is not a JSON value", place, value)
		}
		r.Enum[i] = string(b)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Properties)) {
		inner := r.Properties[name]
		if inner == nil {
			inner = &Rule{}
			r.Properties[name] = inner
		}
		if err := inner.compile(place+".properties."+name, depth+1); err != nil {
			return err
		}
		if inner.Required {
			r.required = append(r.required, name)
		}
	}
	if r.Items != nil {
		return r.Items.compile(place+".items", depth+1)
	}
	return nil
}

// checkIdentifier checks the identifier of a rule. A nested trait cannot be one.
func (r *Rule) checkIdentifier(place string, depth int) error {
	switch kinds := identifierKinds(); {
	case r.Identifier == "":
		return nil
	case depth != 1 || !strings.HasPrefix(place, behavior.Identify+".properties."):
		return fmt.Errorf("%s.identifier: only traits of identify are identifiers", place)
	case r.Type != "string":
		return fmt.Errorf("%s.identifier: not for the type %q, want string", place, r.Type)
	case kinds[r.Identifier] == 0:
		return fmt.Errorf("%s.identifier: %q is none of %s", place, r.Identifier,
			strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	}
	return nil
}

// identifierKinds returns the kinds of identifiers that traits can have, by name. The anonymous id has
// a field of its own.
func identifierKinds() map[string]identityv1.IdentifierKind {
	kinds := map[string]identityv1.IdentifierKind{}
	for name, kind := range identityv1.IdentifierKind_value {
		if kind := identityv1.IdentifierKind(kind); kind != 0 && kind != identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID {
			kinds[strings.ToLower(strings.TrimPrefix(name, "IDENTIFIER_KIND_"))] = kind
		}
	}
	return kinds
}

// Identifiers returns the traits of identify that are identifiers, with their kinds.
func (p *Plan) Identifiers() map[string]identityv1.IdentifierKind {
	found := map[string]identityv1.IdentifierKind{}
	if p == nil || p.Identify == nil {
		return found
	}
	kinds := identifierKinds()
	for name, rule := range p.Identify.Properties {
		if rule.Identifier != "" {
			found[name] = kinds[rule.Identifier]
		}
	}
	return found
}

// check returns why an event violates the plan, or nil.
func (p *Plan) check(m *behaviorv1.BehaviorEvent) *FieldError {
	if p == nil {
		return nil
	}
	rule, text, field := (*Rule)(nil), m.GetProperties(), "properties"
	switch m.GetType() {
	case behavior.Track:
		var planned bool
		if rule, planned = p.Track[m.GetEvent()]; !planned && !p.Unplanned {
			return &FieldError{"event", fmt.Sprintf("%q is not in the tracking plan", m.GetEvent())}
		}
	case behavior.Page:
		rule = p.Page
	case behavior.Screen:
		rule = p.Screen
	case behavior.Identify:
		rule, text, field = p.Identify, m.GetTraits(), "traits"
	case behavior.Group:
		rule, text, field = p.Group, m.GetTraits(), "traits"
	}
	if rule == nil {
		return nil
	}
	if text == "" {
		text = "{}"
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return &FieldError{field, err.Error()}
	}
	return rule.check(field, value)
}

// check returns why a value violates the rule, or nil.
func (r *Rule) check(field string, value any) *FieldError {
	if value == nil {
		if r.Nullable || r.Type == "" {
			return nil
		}
		return &FieldError{field, "want " + r.Type + ", not null"}
	}
	if is := typeOf(value); r.Type != "" && r.Type != is && (r.Type != "number" || is != "integer") {
		return &FieldError{field, "want " + r.Type + ", not " + is}
	}
	if len(r.Enum) > 0 {
		b, _ := json.Marshal(value) // it has been decoded from JSON
		if !slices.Contains(r.Enum, any(string(b))) {
			return &FieldError{field, fmt.Sprintf("%s is none of %v", short(string(b)), r.Enum)}
		}
	}
	switch v := value.(type) {
	case string:
		if r.Pattern != "" && !r.pattern.MatchString(v) {
			return &FieldError{field, fmt.Sprintf("%q does not match %s", short(v), r.Pattern)}
		}
	case json.Number:
		n, err := v.Float64()
		if err != nil || r.Minimum != nil && n < *r.Minimum || r.Maximum != nil && n > *r.Maximum {
			return &FieldError{field, short(v.String()) + " is out of range"}
		}
	case map[string]any:
		return r.checkObject(field, v)
	case []any:
		for i, element := range v {
			if r.Items == nil {
				break
			}
			if bad := r.Items.check(field+"["+strconv.Itoa(i)+"]", element); bad != nil {
				return bad
			}
		}
	}
	return nil
}

// checkObject is check for the members of an object.
func (r *Rule) checkObject(field string, members map[string]any) *FieldError {
	for _, name := range r.required {
		if _, ok := members[name]; !ok {
			return &FieldError{field + "." + name, "is missing"}
		}
	}
	// In order, so that an event always gets the same reason.
	for _, name := range slices.Sorted(maps.Keys(members)) {
		rule := r.Properties[name]
		if rule == nil {
			if r.Closed {
				return &FieldError{field + "." + short(name), "is not in the tracking plan"}
			}
			continue
		}
		if bad := rule.check(field+"."+name, members[name]); bad != nil {
			return bad
		}
	}
	return nil
}

// typeOf returns the type of a decoded JSON value. A number without decimals is an integer, however
// it is written.
func typeOf(value any) string {
	switch v := value.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	case map[string]any:
		return "object"
	case []any:
		return "array"
	case json.Number:
		if n, err := v.Float64(); err == nil && n == math.Trunc(n) {
			return "integer"
		}
		return "number"
	}
	return "null"
}

// short bounds a client's text in a message.
func short(text string) string {
	const most = 100
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
