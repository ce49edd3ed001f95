package evolution

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/lake/columnar"
)

// Union returns columns that have room for the rows of both have and want. have are a table's
// columns as returned by Columns, and want are those of another schema whose rows land in the same
// table.
//
// Columns that one side lacks are null in its rows. Of two types, the wider is used, whichever side
// has it. A column keeps its id. It also keeps its name, unless that is an alias of the wanted
// field: then it is renamed. If no common type exists or a name is taken, the error is a
// *RefusedError.
func Union(have, want []columnar.Field) ([]columnar.Field, error) { return union("", have, want) }

// union implements Union for the fields of a struct at path at.
func union(at string, have, want []columnar.Field) ([]columnar.Field, error) {
	all := append([]columnar.Field(nil), have...)
	taken := make([]bool, len(have))
	names := map[string]bool{}
	// Names are compared in lower case, because many engines ignore case.
	for _, h := range have {
		names[strings.ToLower(h.Name)] = true
	}
	for i, n := range Match(have, want) {
		w := want[i]
		if n >= 0 && taken[n] {
			return nil, &RefusedError{join(at, w.Name),
				fmt.Sprintf("two fields match the table's column %s", have[n].Name)}
		}
		renamed := n >= 0 && isRename(have[n], w)
		if n >= 0 {
			united, err := unite(join(at, w.Name), have[n], w)
			if err == nil {
				taken[n], all[n] = true, united
				if renamed {
					delete(names, strings.ToLower(have[n].Name))
				}
			}
			if err != nil && !renamed {
				return nil, err
			}
			if err != nil { // only an alias matched, so it is a different field
				n = -1
			}
		}
		if n >= 0 && !renamed {
			continue
		}
		if folded := strings.ToLower(w.Name); names[folded] {
			return nil, &RefusedError{join(at, w.Name),
				"the table has another column whose name is equal or differs only in case; rename the field"}
		}
		names[strings.ToLower(w.Name)] = true
		if renamed && n >= 0 {
			all[n].Name, all[n].Key = w.Name, formerKey+strings.Join(append(formerNames(have[n]), have[n].Name), ",")
			continue
		}
		w.Required = false // existing rows lack it
		all = append(all, w)
	}
	// A column is required only if the rows of both sides always have it.
	for n := range have {
		all[n].Required = all[n].Required && taken[n]
	}
	return all, nil
}

// formerKey is the prefix of the key of a column that was renamed because of an alias. The column's
// former names follow. Rows of older schemas still use them.
const formerKey = "was:"

// formerNames returns the names that a column had before renames by aliases.
func formerNames(f columnar.Field) []string {
	if names, ok := strings.CutPrefix(f.Key, formerKey); ok {
		return strings.Split(names, ",")
	}
	return nil
}

// byName reports whether a column is matched by name.
func byName(f columnar.Field) bool { return f.Key == "" || strings.HasPrefix(f.Key, formerKey) }

// isRename reports whether a column has a former name of a field and must be renamed.
func isRename(h, w columnar.Field) bool {
	return w.Key == "" && byName(h) && h.Name != w.Name && !slices.Contains(formerNames(h), w.Name)
}

// Match returns, for each wanted field, the index of its column, or -1. It compares keys and names
// first, then former names of columns, then aliases of fields.
func Match(have, want []columnar.Field) []int {
	found, taken := make([]int, len(want)), make([]bool, len(have))
	for i := range want {
		found[i] = -1
	}
	// Earlier passes take precedence over later ones for all fields.
	for pass, is := range []func(h, w columnar.Field) bool{
		// The field's key, or its name if neither side has a key.
		func(h, w columnar.Field) bool {
			return h.Key == w.Key && w.Key != "" || w.Key == "" && byName(h) && h.Name == w.Name
		},
		// A name that the column had earlier: the schema is older than the rename.
		func(h, w columnar.Field) bool { return w.Key == "" && slices.Contains(formerNames(h), w.Name) },
		// An alias: the schema renames the column.
		func(h, w columnar.Field) bool {
			return w.Key == "" && byName(h) && slices.ContainsFunc(append(formerNames(h), h.Name),
				func(name string) bool { return slices.Contains(w.Aliases, name) })
		},
	} {
		claimed := taken
		if pass == 0 { // the caller refuses two fields with one name
			claimed = make([]bool, len(have))
		}
		for i, w := range want {
			if found[i] >= 0 {
				continue
			}
			for n, h := range have {
				if !claimed[n] && is(h, w) {
					found[i], taken[n] = n, true
					break
				}
			}
		}
	}
	return found
}

// unite returns a column that holds values of both fields.
func unite(path string, h, w columnar.Field) (columnar.Field, error) {
	t, err := wider(path, h.Type, w.Type)
	h.Type, h.Required = t, h.Required && w.Required
	return h, err
}

// wider returns a type that holds values of both types.
func wider(path string, h, w columnar.Type) (columnar.Type, error) {
	refused := &RefusedError{path, fmt.Sprintf(
		"the table has %s and these rows have %s, which have no common type; rename the field", h, w)}
	switch h := h.(type) {
	case columnar.Struct:
		if w, ok := w.(columnar.Struct); ok {
			fields, err := union(path, h.Fields, w.Fields)
			return columnar.Struct{Fields: fields}, err
		}
		return nil, refused
	case columnar.List:
		if w, ok := w.(columnar.List); ok {
			element, err := unite(join(path, h.Element.Name), h.Element, w.Element)
			return columnar.List{Element: element}, err
		}
		return nil, refused
	case columnar.Map:
		w, ok := w.(columnar.Map)
		if !ok || h.Key.Type.String() != w.Key.Type.String() { // the key type of a map may not change
			return nil, refused
		}
		value, err := unite(join(path, h.Value.Name), h.Value, w.Value)
		return columnar.Map{Key: h.Key, Value: value}, err
	}
	switch {
	// Either side may be the wider one: rows of older schemas keep arriving.
	case h.String() == w.String(), widens(w, h):
		return h, nil
	case widens(h, w):
		return w, nil
	}
	return nil, refused
}
