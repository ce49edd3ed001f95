package decode

import (
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/internal/duration"
)

// YAML decodes the first document of a text. A duration may be in days. The error is ErrEmpty if the
// text has nothing but comments.
func YAML(text []byte, into any) error {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return errors.New("not YAML: " + strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(document.Content) == 0 {
		return ErrEmpty
	}
	root := document.Content[0]
	err := (&checker{seen: map[visit]bool{}}).value("", root, reflect.TypeOf(into).Elem())
	if err != nil {
		return err
	}
	if err := root.Decode(into); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return nil
}

// checker compares a document with a Go type before it is decoded, because errors of yaml name Go's
// types, and a line but no field. It also writes durations as yaml reads them.
type checker struct{ seen map[visit]bool }

// visit is a node that was checked as a type. Aliases repeat nodes, possibly within themselves.
type visit struct {
	node *yaml.Node
	as   reflect.Type
}

var (
	durationType        = reflect.TypeFor[time.Duration]()
	levelType           = reflect.TypeFor[slog.Level]()
	unmarshalerType     = reflect.TypeFor[yaml.Unmarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value checks one value at a path.
func (c *checker) value(path string, n *yaml.Node, t reflect.Type) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.ShortTag() == "!!null" || c.seen[visit{n, t}] {
		return nil
	}
	c.seen[visit{n, t}] = true
	own := reflect.PointerTo(t).Implements(unmarshalerType) || reflect.PointerTo(t).Implements(textUnmarshalerType)
	switch {
	case t == durationType:
		d, err := duration.Parse(n.Value)
		if err != nil {
			return wrong(path, n, err.Error())
		}
		n.SetString(d.String())
		return nil
	case !own && t.Kind() == reflect.Struct:
		return c.fields(path, n, t)
	case !own && t.Kind() == reflect.Map:
		return c.entries(path, n, t, func(string) (reflect.Type, string) { return t.Elem(), "" })
	case !own && t.Kind() == reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return wrong(path, n, "want a list")
		}
		for i, element := range n.Content {
			if err := c.value(fmt.Sprintf("%s[%d]", path, i), element, t.Elem()); err != nil {
				return err
			}
		}
		return nil
	case t.Kind() == reflect.Interface:
		return nil
	}
	err := n.Decode(reflect.New(t).Interface())
	var kind *yaml.TypeError
	switch {
	case err == nil:
		return nil
	case t == levelType:
		return wrong(path, n, "want debug, info, warn or error")
	case !own || errors.As(err, &kind):
		return wrong(path, n, "want "+wanted(t))
	}
	return wrong(path, n, err.Error())
}

// fields checks the members of a struct.
func (c *checker) fields(path string, n *yaml.Node, t reflect.Type) error {
	known := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" {
			name = strings.ToLower(f.Name) // as yaml has it
		}
		if f.IsExported() && name != "-" {
			known[name] = f.Type
		}
	}
	var names []string
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	return c.entries(path, n, t, func(key string) (reflect.Type, string) {
		return known[key], "unknown key: want some of " + strings.Join(names, ", ")
	})
}

// entries checks a mapping that is decoded as a type. typeOf returns the type of a key's value, or nil and
// why the key may not be there.
func (c *checker) entries(
	path string, n *yaml.Node, as reflect.Type, typeOf func(key string) (reflect.Type, string),
) error {
	if n.Kind != yaml.MappingNode {
		return wrong(path, n, "want keys with values")
	}
	given := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.ShortTag() == "!!merge" { // the keys of another mapping, or of several
			merged := []*yaml.Node{value}
			if value.Kind == yaml.SequenceNode {
				merged = value.Content
			}
			for _, other := range merged {
				if err := c.value(path, other, as); err != nil {
					return err
				}
			}
			continue
		}
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		t, unknown := typeOf(key.Value)
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!null":
			return wrong(path, key, "want a text as the key")
		case t == nil:
			return wrong(at, key, unknown)
		case given[key.Value]:
			return wrong(at, key, "the key is there twice")
		}
		given[key.Value] = true
		if err := c.value(at, value, t); err != nil {
			return err
		}
	}
	return nil
}

// wrong returns the error about a node.
func wrong(path string, n *yaml.Node, reason string) error {
	if path == "" {
		return errors.New(reason) // about all of the text
	}
	return fmt.Errorf("line %d: %s: %s", n.Line, path, reason)
}
