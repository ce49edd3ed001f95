package infer

import (
	"strings"
	"unicode"

	"github.com/millrace/millrace/lake/columnar"
)

// fieldOf returns the name of the field that a column belongs to.
func fieldOf(f columnar.Field) string {
	for _, kind := range []string{renamedKey, doubleKey, jsonKey} {
		if name, ok := strings.CutPrefix(f.Key, kind); ok {
			return name
		}
	}
	return f.Name
}

// fold returns the same string for all names that strings.EqualFold considers equal.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r { // the orbit wraps around to its lowest rune
				return next
			}
			r = next
		}
	}, name)
}

// claims reports whether a member of an object may use the column of a field whose name differs
// only in case. It may not if another member has exactly the field's name, or a similar one and
// comes first.
func claims(members []value, i int, field string) bool {
	for j := range members {
		other := &members[j]
		switch {
		case j == i || other.kind == kindNull || other.unnamed:
		case string(other.name) == field, j < i && strings.EqualFold(string(other.name), field):
			return false
		}
	}
	return true
}
