package evolution

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/lake/columnar"
)

// Union returns the columns that have room for rows of both: of a table as Columns tells it, and of
// one more kind of row that lands in it. It is for tables whose rows are of several schemas at a
// time. What one side lacks is null in its rows; of two types the wider is taken, whichever side
// has it; a column keeps the id that it has, and its name, unless that is an alias of the field's:
// then it is called as the field is. Where there is no such type, and where a name is taken, the
// error is a *RefusedError.
func Union(have, want []columnar.Field) ([]columnar.Field, error) { return union("", have, want) }

func union(at string, have, want []columnar.Field) ([]columnar.Field, error) {
	all := append([]columnar.Field(nil), have...)
	taken := make([]bool, len(have))
	names := map[string]bool{}
	for _, h := range have {
		names[strings.ToLower(h.Name)] = true
	}
	for i, n := range Match(have, want) {
		w := want[i]
		if n >= 0 && taken[n] {
			return nil, &RefusedError{join(at, w.Name), fmt.Sprintf("two fields are the table's column %s", have[n].Name)}
		}
		renamed := n >= 0 && calledBefore(have[n], w)
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
			if err != nil { // what has only the name of before is another field
				n = -1
			}
		}
		if n >= 0 && !renamed {
			continue
		}
		if folded := strings.ToLower(w.Name); names[folded] {
			return nil, &RefusedError{join(at, w.Name), "the table has another column of that name, or of one that differs in capitals alone; call the field otherwise"}
		}
		names[strings.ToLower(w.Name)] = true
		if renamed && n >= 0 {
			all[n].Name, all[n].Key = w.Name, formerKey+strings.Join(append(formerNames(have[n]), have[n].Name), ",")
			continue
		}
		w.Required = false // in the rows that are there it is missing
		all = append(all, w)
	}
	for n := range have {
		all[n].Required = all[n].Required && taken[n]
	}
	return all, nil
}

// formerKey begins the key of a column that was called otherwise before, as an alias in a newer
// schema said: what follows are the names that it had. Rows of the schemas before still call it so.
const formerKey = "was:"

func formerNames(f columnar.Field) []string {
	if names, ok := strings.CutPrefix(f.Key, formerKey); ok {
		return strings.Split(names, ",")
	}
	return nil
}

// byName reports whether a column goes by its name.
func byName(f columnar.Field) bool { return f.Key == "" || strings.HasPrefix(f.Key, formerKey) }

// calledBefore reports whether a column has a name that a field had before, and is to be called as
// the field is now.
func calledBefore(h, w columnar.Field) bool {
	return w.Key == "" && byName(h) && h.Name != w.Name && !slices.Contains(formerNames(h), w.Name)
}

// Match tells for each field wanted which column it is: the one of its key, or of its name, or one
// that had its name before, or one whose name is an alias of the field's. It is -1 where there is
// none.
func Match(have, want []columnar.Field) []int {
	found, taken := make([]int, len(want)), make([]bool, len(have))
	for i := range want {
		found[i] = -1
	}
	for pass, is := range []func(h, w columnar.Field) bool{
		func(h, w columnar.Field) bool {
			return h.Key == w.Key && w.Key != "" || w.Key == "" && byName(h) && h.Name == w.Name
		},
		func(h, w columnar.Field) bool { return w.Key == "" && slices.Contains(formerNames(h), w.Name) },
		func(h, w columnar.Field) bool {
			return w.Key == "" && byName(h) && slices.ContainsFunc(append(formerNames(h), h.Name), func(name string) bool { return slices.Contains(w.Aliases, name) })
		},
	} {
		claimed := taken
		if pass == 0 { // two fields of one name are for the caller to refuse
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

func unite(path string, h, w columnar.Field) (columnar.Field, error) {
	t, err := wider(path, h.Type, w.Type)
	h.Type, h.Required = t, h.Required && w.Required
	return h, err
}

func wider(path string, h, w columnar.Type) (columnar.Type, error) {
	refused := &RefusedError{path, fmt.Sprintf("the table has %s and these rows have %s, which do not go into one column; call the field otherwise", h, w)}
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
		if !ok || h.Key.Type.String() != w.Key.Type.String() { // keys of a map may not change
			return nil, refused
		}
		value, err := unite(join(path, h.Value.Name), h.Value, w.Value)
		return columnar.Map{Key: h.Key, Value: value}, err
	}
	switch {
	case h.String() == w.String(), grows(w, h):
		return h, nil
	case grows(h, w):
		return w, nil
	}
	return nil, refused
}
