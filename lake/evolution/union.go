package evolution

import (
	"fmt"
	"strings"

	"github.com/millrace/millrace/lake/columnar"
)

// Union gives the columns that have room for rows of both: of a table as Columns tells it, and of one more kind of row that lands in it.
// It is for tables whose rows are of several schemas at a time. What one side lacks is null in its rows; of two types the wider is
// taken, whichever side has it; a column keeps the name and the id that it has. Where there is no such type, and where a name is
// taken, the error is a *RefusedError.
func Union(have, want []columnar.Field) ([]columnar.Field, error) { return union("", have, want) }

func union(at string, have, want []columnar.Field) ([]columnar.Field, error) {
	all := append([]columnar.Field(nil), have...)
	taken := make([]bool, len(have))
	names := map[string]bool{}
	for _, h := range have {
		names[strings.ToLower(h.Name)] = true
	}
	for _, w := range want {
		n := place(have, w)
		if n >= 0 && taken[n] {
			return nil, &RefusedError{join(at, w.Name), fmt.Sprintf("two fields are the table's column %s", have[n].Name)}
		}
		if n >= 0 {
			taken[n] = true
			var err error
			if all[n], err = unite(join(at, w.Name), have[n], w); err != nil {
				return nil, err
			}
			continue
		}
		if folded := strings.ToLower(w.Name); names[folded] {
			return nil, &RefusedError{join(at, w.Name), "the table has another column of that name, or of one that differs in capitals alone; call the field otherwise"}
		} else {
			names[folded] = true
		}
		w.Required = false // in the rows that are there it is missing
		all = append(all, w)
	}
	for n := range have {
		all[n].Required = all[n].Required && taken[n]
	}
	return all, nil
}

// place is where the column stands that a field is, -1 if nowhere.
func place(have []columnar.Field, w columnar.Field) int {
	for n, h := range have {
		if h.Key == w.Key && (w.Key != "" || h.Name == w.Name) {
			return n
		}
	}
	return -1
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
